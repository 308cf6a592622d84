//! Steps that are left out, on the engine that computes next to nothing.

use super::*;

const STEPS: usize = 12;

fn cached(threshold: f64, prompts: &[&str]) -> Request {
    let easycache = Some(EasyCache { threshold, start: 0.0, end: 1.0 });
    Request { easycache, sampling_steps: STEPS, ..request(prompts) }
}

fn draw(toy: &Arc<Toy>, batch_size: usize, request: &Request) -> Vec<Picture> {
    let folder = model();
    let mut pipeline = pipeline(&folder, toy, false);
    pipeline.options.batch_size = batch_size;
    sample(&mut pipeline, request)
}

#[test]
fn a_batch_computes_the_pictures_that_need_it() {
    let prompts = ["red", "a b", "a", "b"];
    let mut partial = false;
    // Somewhere between these the pictures differ in what they need.
    for threshold in (1..=60).map(|k| 0.01 * f64::from(k)) {
        let request = cached(threshold, &prompts);
        let toy = Arc::new(Toy::default());
        let together = draw(&toy, prompts.len(), &request);
        let computed: usize = together.iter().map(|picture| STEPS - picture.reused_steps).sum();
        assert_eq!(batches(&toy).iter().sum::<usize>(), 2 * computed, "{threshold}");
        partial |= batches(&toy).iter().any(|&rows| rows != 2 * prompts.len());

        let alone = draw(&Arc::new(Toy::default()), 1, &request);
        // Where another size of a batch costs more than it saves, there is one.
        let all = |toy: Toy| {
            let toy = Arc::new(toy);
            let whole = draw(&toy, prompts.len(), &request);
            assert!(batches(&toy).iter().all(|&rows| rows == 2 * prompts.len()), "{threshold}");
            whole
        };
        let compiled = all(Toy { compiles_per_size: true, ..Toy::default() });
        let planned = all(Toy { plans_per_size: true, ..Toy::default() });
        for (k, picture) in together.iter().enumerate() {
            for other in [&alone[k], &compiled[k], &planned[k]] {
                assert_eq!(picture.latents, other.latents, "{threshold}, picture {k}");
                assert_eq!(picture.reused_steps, other.reused_steps, "{threshold}, picture {k}");
            }
        }
    }
    assert!(partial, "no picture was left out of a batch that was computed");
}

#[test]
fn the_first_two_steps_and_the_last_are_computed_whatever_is_allowed() {
    let of = |request: &Request| {
        let toy = Arc::new(Toy::default());
        let pictures = draw(&toy, 1, request);
        (batches(&toy), pictures[0].reused_steps)
    };
    let all = cached(1e9, &["red"]);
    assert_eq!(of(&all), (vec![2, 2, 2], STEPS - 3));
    // What is carried over past the end of guidance is the prompt's half.
    let ends = Request { guidance_end: GuidanceEnd::Step(6), ..all.clone() };
    assert_eq!(of(&ends), (vec![2, 2, 1], STEPS - 3));
    let few = Request { sampling_steps: 2, ..all.clone() };
    assert_eq!(of(&few), (vec![2, 2], 0));
    let easycache = Some(EasyCache { threshold: 1e9, start: 0.5, end: 0.75 });
    let middle = Request { easycache, ..all };
    assert_eq!(of(&middle), (vec![2; 9], 3));
}

#[test]
fn a_threshold_of_zero_changes_nothing() {
    let plain = Request { easycache: None, ..cached(0.0, &["red"]) };
    let latents = |request: &Request| {
        let picture = draw(&Arc::new(Toy::default()), 1, request).remove(0);
        assert_eq!(picture.reused_steps, 0);
        picture.latents
    };
    assert_eq!(latents(&cached(0.0, &["red"])), latents(&plain));
}

#[test]
fn every_solver_goes_on_over_steps_left_out() {
    for method in SamplingMethod::ALL {
        let toy = Arc::new(Toy::default());
        *toy.variance.lock().expect("one thread") = 0.0;
        let steps = method.default_steps();
        let request = Request {
            sampling_method: method,
            sampling_steps: steps,
            guidance_scale: method.default_guidance_scale(),
            ..cached(1e9, &["red"])
        };
        let mut told = 0;
        let folder = model();
        let pictures = pipeline(&folder, &toy, false).sample(&request, &mut |event| {
            told += usize::from(matches!(event, Event::Latents { .. }));
        });
        let picture = pictures.expect("a picture").remove(0);
        assert!(picture.latents.iter().all(|value| value.is_finite()), "{method}");
        assert_eq!(picture.reused_steps, steps.saturating_sub(3), "{method}");
        assert_eq!((told, batches(&toy).len()), (steps, steps.min(3)), "{method}");
    }
}

//! Final latents with the other solvers against diffusers' pipeline with its own schedulers: the whole
//! way, the draws of the stochastic ones included, on both engines.

use ndarray::Axis;
use pixart_exporter::Profile;
use pixart_runtime::{
    pipeline::{Reference, Request},
    sampler::SamplingMethod,
    text::PromptCleaning,
};
use pixart_tests::{engines, errors::assert_close, exports::Export, fixtures};

#[test]
fn latents_equal_those_of_diffusers() {
    let latents = fixtures::tensors("pipeline/solvers.safetensors");
    let export = Export::pipeline(&fixtures::tiny(), Profile::ALL[0]);
    for engine in engines::both() {
        let on = engine.name();
        let mut pipeline = export.open(engine);
        for (method, steps) in
            [(SamplingMethod::Ddim, 6), (SamplingMethod::SaSolver, 8), (SamplingMethod::Lcm, 4)]
        {
            let request = Request {
                prompts: vec![
                    "A large RED circle above a small blue square".to_owned(),
                    "a quiet river at night".to_owned(),
                ],
                negative_prompts: vec![String::new(), "dark, tiny".to_owned()],
                sampling_method: method,
                sampling_steps: steps,
                guidance_scale: method.default_guidance_scale(),
                reference: Reference::Diffusers,
                // The latents were made with `clean_caption=False`.
                cleaning: Some(PromptCleaning::Lower),
                width: Some(80),
                height: Some(64),
                use_resolution_binning: false,
                ..Request::default()
            };
            let pictures = pipeline.sample(&request, &mut |_| ()).expect("pictures");
            let expected = latents[method.name()].as_f32().expect("latents are floats");
            assert_eq!(expected.shape(), [2, 4, 8, 10]);
            for (k, picture) in pictures.iter().enumerate() {
                let case = format!("{method}, picture {k}, on {on}");
                let expected = expected.select(Axis(0), &[k]);
                let error = assert_close(&case, &picture.latents, &expected, 1e-4);
                println!("{case}: {error:.1e}");
            }
        }
    }
}

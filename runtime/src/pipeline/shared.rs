//! One request on several pipelines, each of which has a device of its own.

use std::{sync::mpsc, thread, time::Instant};

use super::{Event, Picture, Pipeline, Request, Stage};
use crate::error::PipelineError;

/// What a pipeline tells from its thread.
enum Told {
    Picture(Box<Picture>, usize),
    Note(String),
    Info(String),
    /// How many steps of the transformer there are, and how many are done.
    Steps(usize, usize),
}

/// Draws the pictures of `request` on all `pipelines` at once: each takes every n-th prompt and draws whole
/// pictures, with the noise they have in one pipeline. `on_event` gets pictures as they are finished, and
/// the steps of all pipelines together. Returns the pictures in the order of the prompts.
///
/// The pipelines should be of the same model.
///
/// # Errors
/// The first that a pipeline fails with; the others stop then, for good, since they are cancelled.
pub fn sample_shared(
    pipelines: &mut [Pipeline],
    request: &Request,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Vec<Picture>, PipelineError> {
    request.check()?;
    let (send, receive) = mpsc::channel();
    let (count, begin) = (pipelines.len(), Instant::now());
    let mut progress = vec![(0, 0); count];
    let results: Vec<Result<Vec<Picture>, PipelineError>> = thread::scope(|scope| {
        let threads: Vec<_> = pipelines
            .iter_mut()
            .enumerate()
            .map(|(place, pipeline)| {
                let own = (place..request.prompts.len()).step_by(count);
                let (send, part) = (send.clone(), request.part(own));
                scope.spawn(move || {
                    // Nothing would be left to draw.
                    if part.prompts.is_empty() {
                        return Ok(Vec::new());
                    }
                    let cancel = pipeline.options.cancel.clone();
                    let result = pipeline.sample(&part, &mut teller(&send, place, count));
                    result.inspect_err(|_| cancel.cancel())
                })
            })
            .collect();
        // The threads have copies; when they are done, there is nothing more to receive.
        drop(send);
        for (place, told) in receive {
            match told {
                Told::Picture(picture, index) => {
                    on_event(Event::Picture { picture: &picture, index });
                }
                Told::Note(text) => on_event(Event::Note { text: &text }),
                Told::Info(text) => on_event(Event::Info { text: &text }),
                Told::Steps(done, of) => {
                    let first = progress.iter().all(|(_, of)| *of == 0);
                    progress[place] = (done, of);
                    let sum = |part: fn(&(usize, usize)) -> usize| progress.iter().map(part).sum();
                    let (index, total) = (sum(|steps| steps.0), sum(|steps| steps.1));
                    if first {
                        on_event(Event::StageStarted { stage: Stage::Denoise, total });
                    }
                    on_event(Event::Step { index, total });
                }
            }
        }
        let ended = threads.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.collect()
    });
    if progress.iter().any(|(_, of)| *of > 0) {
        let seconds = begin.elapsed().as_secs_f64();
        on_event(Event::StageFinished { stage: Stage::Denoise, seconds });
    }
    let mut each = Vec::new();
    for result in results {
        each.push(result?.into_iter());
    }
    let mut pictures = Vec::new();
    // One of each in turn, as they were shared out; a cancelled pipeline has fewer.
    loop {
        let round: Vec<Picture> = each.iter_mut().filter_map(Iterator::next).collect();
        if round.is_empty() {
            return Ok(pictures);
        }
        pictures.extend(round);
    }
}

/// Sends on what a pipeline tells, with the picture's number in the whole request.
fn teller(
    send: &mpsc::Sender<(usize, Told)>,
    place: usize,
    count: usize,
) -> impl FnMut(Event<'_>) + use<'_> {
    let mut drawing = false;
    move |event| {
        let told = match event {
            Event::Picture { picture, index } => {
                Told::Picture(Box::new(picture.clone()), place + index * count)
            }
            Event::Note { text } => Told::Note(text.to_owned()),
            Event::Info { text } => Told::Info(text.to_owned()),
            Event::StageStarted { stage, .. } => {
                drawing = stage == Stage::Denoise;
                return;
            }
            Event::Step { index, total } if drawing => Told::Steps(index, total),
            _ => return,
        };
        // A receiver that is gone wants to know nothing more.
        let _ = send.send((place, told));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_keep_prompts_and_noise_together() {
        let request = Request {
            prompts: ["a", "b", "c"].map(str::to_owned).to_vec(),
            negative_prompts: ["x", "y", "z"].map(str::to_owned).to_vec(),
            seed: 7,
            ..Request::default()
        };
        let parts = [request.part((0..3).step_by(2)), request.part(1..2)];
        assert_eq!(parts[0].prompts, ["a", "c"]);
        assert_eq!(parts[0].negative_prompts, ["x", "z"]);
        assert_eq!(parts[1].prompts, ["b"]);
        let seeds = |part: &Request| -> Vec<u64> {
            (0..part.prompts.len()).map(|k| part.noise_seed(k).seed).collect()
        };
        assert_eq!((seeds(&parts[0]), seeds(&parts[1])), (vec![7, 9], vec![8]));
        assert!(request.part(3..3).prompts.is_empty(), "more devices than prompts");
    }
}

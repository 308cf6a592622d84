//! What is told while pictures are made.

use std::{fmt, time::Instant};

use ndarray::ArrayD;

use super::Picture;

/// A part of the work. Loading the component it needs belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The text encoder turns prompts into embeddings.
    EncodeText,
    /// The VAE turns the picture to begin from into latents, once for every size.
    EncodePicture,
    /// The transformer turns noise into latents.
    Denoise,
    /// The VAE turns latents into pixels.
    Decode,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EncodeText => "text",
            Self::EncodePicture => "picture",
            Self::Denoise => "denoise",
            Self::Decode => "decode",
        })
    }
}

/// Progress of [`Pipeline::sample`](super::Pipeline::sample).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A stage begins; it has `total` steps: prompts, sizes of the picture to begin from, steps of the
    /// solver over all pictures, or pictures. Where pictures are decoded before all are drawn,
    /// [`Stage::Denoise`] and [`Stage::Decode`] come several times, and go on counting where they were.
    StageStarted {
        /// The stage.
        stage: Stage,
        /// The number of steps.
        total: usize,
    },
    /// A step of the current stage is done; one of the transformer is one of every picture in its batch.
    Step {
        /// How many are done.
        index: usize,
        /// The number of steps.
        total: usize,
    },
    /// A stage is done.
    StageFinished {
        /// The stage.
        stage: Stage,
        /// How long it took, loading included.
        seconds: f64,
    },
    /// A step of the solver is done for one picture.
    Latents {
        /// The picture's number, from 0.
        index: usize,
        /// The step, counted from 1.
        step: usize,
        /// The number of steps.
        steps: usize,
        /// The picture's latents, as noisy as this step leaves them: f32 [1, 4, height / 8, width / 8] of
        /// the size generated.
        latents: &'a ArrayD<f32>,
        /// The latents without noise that the model predicted in this step, in the same shape;
        /// [`LatentPreview`](crate::vae::LatentPreview) shows them.
        predicted: &'a ArrayD<f32>,
    },
    /// Something the user should know; the work goes on.
    Note {
        /// One line.
        text: &'a str,
    },
    /// Something the user may like to know: a choice made, and why.
    Info {
        /// One line.
        text: &'a str,
    },
    /// A picture is done.
    Picture {
        /// Its number, from 0.
        index: usize,
        /// The picture.
        picture: &'a Picture,
    },
}

/// Counts the steps of a stage and measures it.
pub(crate) struct StageProgress<'a> {
    stage: Stage,
    total: usize,
    done: usize,
    started: Instant,
    progress: &'a mut dyn FnMut(Event<'_>),
}

impl<'a> StageProgress<'a> {
    pub(crate) fn start(
        stage: Stage,
        total: usize,
        progress: &'a mut dyn FnMut(Event<'_>),
    ) -> Self {
        Self::resume(stage, total, 0, progress)
    }

    /// Goes on with a stage of which `done` steps are done.
    pub(crate) fn resume(
        stage: Stage,
        total: usize,
        done: usize,
        progress: &'a mut dyn FnMut(Event<'_>),
    ) -> Self {
        progress(Event::StageStarted { stage, total });
        Self { stage, total, done, started: Instant::now(), progress }
    }

    pub(crate) fn tell(&mut self, event: Event<'_>) {
        (self.progress)(event);
    }

    pub(crate) fn advance(&mut self, steps: usize) {
        self.done += steps;
        self.tell(Event::Step { index: self.done, total: self.total });
    }

    pub(crate) fn finish(mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.tell(Event::StageFinished { stage: self.stage, seconds });
    }
}

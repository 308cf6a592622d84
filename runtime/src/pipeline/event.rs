//! What is told while pictures are made.

use std::{fmt, time::Instant};

use super::Picture;

/// A part of the work. Loading the component it needs belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The text encoder turns prompts into embeddings.
    EncodeText,
    /// The transformer turns noise into latents.
    Denoise,
    /// The VAE turns latents into pixels.
    Decode,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EncodeText => "text",
            Self::Denoise => "denoise",
            Self::Decode => "decode",
        })
    }
}

/// Progress of [`Pipeline::sample`](super::Pipeline::sample).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A stage begins; it has `total` steps: prompts, steps of the solver over all pictures, or
    /// pictures.
    StageStarted {
        /// The stage.
        stage: Stage,
        /// The number of steps.
        total: usize,
    },
    /// A step of the current stage is done.
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
        progress(Event::StageStarted { stage, total });
        Self { stage, total, done: 0, started: Instant::now(), progress }
    }

    pub(crate) fn tell(&mut self, event: Event<'_>) {
        (self.progress)(event);
    }

    pub(crate) fn step(&mut self) {
        self.done += 1;
        self.tell(Event::Step { index: self.done, total: self.total });
    }

    pub(crate) fn finish(mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.tell(Event::StageFinished { stage: self.stage, seconds });
    }
}

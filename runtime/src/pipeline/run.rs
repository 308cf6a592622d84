//! The state of one request: what is drawn, what is decoded, what is left.

use std::{mem, ops::Range, time::Instant};

use super::{Event, Picture, Pipeline, Request, Stage, StageProgress, denoise::Drawn, init::Init};
use crate::{engine::Session, error::PipelineError, size::SizePlan, text::Conditioning};

/// One request under way. Pictures are drawn and decoded in the order of their prompts.
pub(super) struct Run<'a> {
    pub(super) request: &'a Request,
    pub(super) sizes: &'a [SizePlan],
    pub(super) captions: &'a [Conditioning],
    /// The picture to begin from, if there is one.
    pub(super) init: Option<&'a Init>,
    /// Draws in the place of the pipeline's own transformer.
    pub(super) transformer: Option<&'a mut dyn Session>,
    /// Latents that wait for the VAE; those of the first pictures are gone already.
    waiting: Vec<Drawn>,
    pub(super) pictures: Vec<Picture>,
    /// Whether it was told that the VAE works in tiles.
    told_of_tiles: bool,
}

impl<'a> Run<'a> {
    /// As many pictures as there are captions.
    pub(super) fn new(
        request: &'a Request,
        sizes: &'a [SizePlan],
        captions: &'a [Conditioning],
        init: Option<&'a Init>,
    ) -> Self {
        let (waiting, pictures) = (Vec::new(), Vec::new());
        let transformer = None;
        Self {
            request,
            sizes,
            captions,
            init,
            transformer,
            waiting,
            pictures,
            told_of_tiles: false,
        }
    }

    /// How many pictures are drawn, decoded or not.
    fn drawn(&self) -> usize {
        self.pictures.len() + self.waiting.len()
    }

    /// Whether all are drawn.
    pub(super) fn is_drawn(&self) -> bool {
        self.drawn() == self.captions.len()
    }

    /// The next pictures, at most `most` and of one size. Only neighbours share a batch, so that pictures
    /// are finished in their order.
    fn next_batch(&self, most: usize) -> Option<Range<usize>> {
        batch_from(&self.sizes[..self.captions.len()], self.drawn(), most)
    }
}

/// The pictures that are computed at once from picture `start` on, at most `most`; none where all are done.
pub(super) fn batch_from(sizes: &[SizePlan], start: usize, most: usize) -> Option<Range<usize>> {
    let size = sizes.get(start)?.latent();
    let rest = sizes[start..].iter().take(most.max(1));
    Some(start..start + rest.take_while(|other| other.latent() == size).count())
}

impl Pipeline {
    /// Draws and decodes all pictures; cancelled, those that were drawn by then.
    pub(super) fn make(
        &mut self,
        mut run: Run<'_>,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<Picture>, PipelineError> {
        while !run.is_drawn() && !self.options.cancel.is_cancelled() {
            let drawn = self.draw(&mut run, progress);
            self.free(|pipeline| pipeline.transformer.unload());
            // What is drawn is not lost, whatever became of the rest.
            let decoded = self.decode_drawn(&mut run, progress);
            self.free(|pipeline| pipeline.vae_decoder.unload());
            drawn.and(decoded)?;
        }
        Ok(run.pictures)
    }

    /// Draws pictures until all are drawn, it is time to decode, or cancellation is asked for.
    fn draw(
        &mut self,
        run: &mut Run<'_>,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), PipelineError> {
        let (started, steps) = (Instant::now(), run.request.steps_taken());
        let (total, done) = (run.captions.len() * steps, run.drawn() * steps);
        let mut stage = StageProgress::resume(Stage::Denoise, total, done, progress);
        let mut result = Ok(());
        while let Some(batch) = run.next_batch(self.options.batch_size) {
            match self.denoise(batch, run, &mut stage) {
                Ok(Some(drawn)) => run.waiting.extend(drawn),
                Ok(None) => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            let waited = started.elapsed() >= self.options.decode_interval;
            if self.options.keep_resident || waited {
                break;
            }
        }
        stage.finish();
        result
    }

    /// Makes pictures of all that is drawn.
    fn decode_drawn(
        &mut self,
        run: &mut Run<'_>,
        progress: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), PipelineError> {
        if run.waiting.is_empty() {
            return Ok(());
        }
        let (total, done) = (run.captions.len(), run.pictures.len());
        let mut stage = StageProgress::resume(Stage::Decode, total, done, progress);
        for Drawn { latents, reused_steps } in mem::take(&mut run.waiting) {
            let k = run.pictures.len();
            let (size, reference) = (&run.sizes[k], run.request.reference);
            let mut told = None;
            let tell = &mut |text: &str| told = Some(text.to_owned());
            let (image, vae_tiling) = match run.init {
                None => self.decode(&latents, size, reference, tell)?,
                Some(init) => {
                    let decoded = Init::decoded(size);
                    let (drawn, mode) = self.decode(&latents, &decoded, reference, tell)?;
                    (init.finish(&drawn, size), mode)
                }
            };
            // The first that needs them says it for all.
            if let Some(text) = told.as_deref().filter(|_| !run.told_of_tiles) {
                stage.tell(Event::Info { text });
                run.told_of_tiles = true;
            }
            let (seed, prompt) = (run.request.noise_seed(k).seed, run.request.prompts[k].clone());
            let picture = Picture { image, latents, seed, prompt, vae_tiling, reused_steps };
            run.pictures.push(picture);
            stage.advance(1);
            stage.tell(Event::Picture { index: k, picture: &run.pictures[k] });
        }
        stage.finish();
        Ok(())
    }
}

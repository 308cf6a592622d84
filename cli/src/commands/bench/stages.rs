//! The stages, measured: each part alone, the other parts being the smallest that fit.

use super::parts::{self, Part};
use super::report::Row;
use super::{BenchArgs, StageName};
use crate::exit::Failure;
use crate::progress::{Progress, Unit};
use ndarray::{Array2, ArrayD};
use pixart_exporter::write::Scratch;
use pixart_exporter::{Component, ExportOptions, Profile, random};
use pixart_runtime::engine::{Engine, LARGE};
use pixart_runtime::measure::{TextEncoderShape, TransformerShape, VaeDecoderShape};
use pixart_runtime::memory;
use pixart_runtime::noise::TorchGenerator;
use pixart_runtime::pipeline::{
    Cancel, Event, ModelPaths, Pipeline, PipelineOptions, Request, Stage, size_inputs,
};
use pixart_runtime::tensor::Tensor;
use pixart_runtime::text::{CaptionEncoder, LENGTH_MULTIPLE};
use pixart_runtime::vae::PictureDecoder;
use pixart_runtime::vae::tiles::TilingMode;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// A word that the stand-in's tokenizer has, with the mark of its beginning, and so one token.
const WORD: &str = "a";
/// Its vocabulary: pieces and scores.
const TOKENIZER: &str = r#"{"model": {"type": "Unigram", "unk_id": 2, "vocab":
    [["<pad>", 0], ["</s>", 0], ["<unk>", 0], ["▁", -2], ["▁a", -1]]}}"#;
/// The end of a sequence, in every T5's vocabulary.
const EOS: i64 = 1;

/// What all stages need to know.
pub struct Bench<'a> {
    args: &'a BenchArgs,
    engine: Arc<dyn Engine>,
    profile: Profile,
    /// Whether weights lie in the processor's memory.
    on_processor: bool,
    interrupted: Cancel,
}

/// The seconds of runs, the first of which loads.
struct Timed {
    /// Those that do not count, then those that do.
    runs: Vec<f64>,
    memory: Option<u64>,
}

impl<'a> Bench<'a> {
    pub fn new(
        args: &'a BenchArgs,
        engine: Arc<dyn Engine>,
        profile: Profile,
        on_processor: bool,
        interrupted: Cancel,
    ) -> Self {
        Self { args, engine, profile, on_processor, interrupted }
    }

    /// Measures one stage at every size.
    pub fn stage(
        &self,
        stage: StageName,
        part: &Part,
        tell: &mut dyn FnMut(Row),
    ) -> Result<(), Failure> {
        match stage {
            StageName::Text => self.text(part, tell),
            StageName::Denoise => self.denoise(part, tell),
            StageName::Decode => self.decode(part, tell),
        }
    }

    fn text(&self, part: &Part, tell: &mut dyn FnMut(Row)) -> Result<(), Failure> {
        let shape = TextEncoderShape::open(&part.folder)?;
        let stand_in = StandIn::tokenizer()?;
        let (halves, length) = (self.halves(), self.length());
        if let Some(reason) = self.too_large(part, 0) {
            tell(Row::skipped(StageName::Text, None, reason));
            return Ok(());
        }
        let prompt: Vec<i64> = (1..self.args.tokens)
            .map(|k| (5 + 37 * k % shape.vocab_size.saturating_sub(5).max(1)) as i64)
            .chain([EOS])
            .collect();
        let rows: &[&[i64]] = if halves == 2 { &[&[EOS], &prompt] } else { &[&prompt] };
        let tokenizer = stand_in.path().join("tokenizer");
        let mut encoder = CaptionEncoder::new(&self.engine, &part.folder, &tokenizer, None)?;
        if self.args.low_memory {
            encoder.stream_above(0);
        }
        let timed = self.timed("text encoding", &mut || {
            encoder.states(rows, length)?;
            Ok(())
        })?;
        let operations = shape.operations(halves, length);
        encoder.unload();
        if let Some(mut row) = self.row(StageName::Text, None, &timed, operations) {
            let ids = |b: usize, i: usize| rows[b].get(i).copied().unwrap_or(0);
            let own = |b: usize, i: usize| i64::from(i < rows[b].len());
            let size = (halves, length);
            let inputs = [
                ("input_ids", Array2::from_shape_fn(size, |(b, i)| ids(b, i)).into()),
                ("attention_mask", Array2::from_shape_fn(size, |(b, i)| own(b, i)).into()),
            ];
            row.operators = self.operators(part, &inputs)?;
            tell(row);
        }
        Ok(())
    }

    fn denoise(&self, part: &Part, tell: &mut dyn FnMut(Row)) -> Result<(), Failure> {
        let shape = TransformerShape::open(&part.folder)?;
        let stand_in = StandIn::around(&shape, self.profile, &self.interrupted)?;
        let rows = self.halves() * self.args.batch_size;
        for &pixels in &self.args.sizes {
            if self.interrupted.is_cancelled() {
                break;
            }
            let latent = [pixels as usize / 8; 2];
            let values = shape.activation_bytes(rows, latent, self.length());
            if let Some(reason) = self.too_large(part, values) {
                tell(Row::skipped(StageName::Denoise, Some(pixels), reason));
                continue;
            }
            let timed = self.steps(&stand_in.paths(&part.folder), pixels)?;
            let operations = shape.operations(rows, latent, self.length());
            let row = self.row(StageName::Denoise, Some(pixels), &timed, operations);
            let Some(mut row) = row else { continue };
            row.operators = self.operators(part, &self.step_inputs(&shape, latent)?)?;
            tell(row);
        }
        Ok(())
    }

    /// The first steps of pictures, through the pipeline that draws them.
    fn steps(&self, paths: &ModelPaths, pixels: u32) -> Result<Timed, Failure> {
        let (args, wanted) = (self.args, self.args.warmup + self.args.repeats);
        let cancel = Cancel::new();
        let options = PipelineOptions {
            batch_size: args.batch_size,
            low_memory: args.low_memory,
            cancel: cancel.clone(),
            ..PipelineOptions::default()
        };
        let mut pipeline = Pipeline::new(self.engine.clone(), paths.clone(), options)?;
        let default = Request::default();
        let request = Request {
            prompts: vec![vec![WORD; args.tokens - 1].join(" "); args.batch_size],
            width: Some(pixels),
            height: Some(pixels),
            use_resolution_binning: false,
            // One more than is measured, so that no picture is finished and none decoded.
            sampling_steps: args.steps.max(wanted + 1),
            guidance_scale: args.guidance_scale,
            max_length: default.max_length.max(args.tokens),
            ..default
        };
        let bar = Progress::start(format!("step, {pixels} px"), wanted as u64, Unit::Count("step"));
        let mut bar = Some(bar);
        let (mut current, mut last) = (None, Instant::now());
        let mut timed = Timed { runs: Vec::new(), memory: None };
        pipeline.sample(&request, &mut |event| match event {
            Event::StageStarted { stage, .. } => {
                current = Some(stage);
                if stage == Stage::Denoise {
                    memory::reset_peak();
                    last = Instant::now();
                }
            }
            Event::Step { .. } if current == Some(Stage::Denoise) => {
                timed.runs.push(last.elapsed().as_secs_f64());
                timed.memory = memory::peak();
                if timed.runs.len() == wanted || self.interrupted.is_cancelled() {
                    cancel.cancel();
                }
                if let Some(bar) = &mut bar {
                    bar.update(timed.runs.len() as u64, wanted as u64);
                }
                last = Instant::now();
            }
            Event::Note { text } => eprintln!("warning: {text}"),
            _ => {}
        })?;
        if let Some(bar) = bar.take() {
            bar.finish();
        }
        Ok(timed)
    }

    /// How the time of one run divides among the operators, the longest first, in seconds; nothing where it is
    /// not asked for.
    fn operators(
        &self,
        part: &Part,
        inputs: &[(&str, Tensor)],
    ) -> Result<Option<Vec<(String, f64)>>, Failure> {
        if !self.args.operators || self.interrupted.is_cancelled() {
            return Ok(None);
        }
        let inputs: Vec<_> = inputs.iter().map(|(name, value)| (*name, value)).collect();
        let shares = self.engine.time_shares(&part.folder.join("model.onnx"), &inputs)?;
        let mut operators: Vec<(String, f64)> = Vec::new();
        for ((_, operator), seconds) in shares.map(|shares| shares.times).unwrap_or_default() {
            match operators.iter_mut().find(|(known, _)| *known == operator) {
                Some((_, sum)) => *sum += seconds,
                None => operators.push((operator, seconds)),
            }
        }
        operators.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(Some(operators))
    }

    /// What goes into the transformer for one step.
    fn step_inputs(
        &self,
        shape: &TransformerShape,
        [height, width]: [usize; 2],
    ) -> Result<Vec<(&'static str, Tensor)>, Failure> {
        let (rows, length) = (self.halves() * self.args.batch_size, self.length());
        let mut inputs = vec![
            ("hidden_states", noise(vec![rows, shape.in_channels, height, width])?.into()),
            ("encoder_hidden_states", noise(vec![rows, length, shape.caption_channels])?.into()),
            ("encoder_attention_mask", Tensor::I64(ArrayD::ones(vec![rows, length]))),
            ("timestep", Tensor::F32(ArrayD::from_elem(vec![rows], 500.0))),
        ];
        if shape.use_additional_conditions {
            inputs.extend(size_inputs(rows, (height, width)));
        }
        Ok(inputs)
    }

    fn decode(&self, part: &Part, tell: &mut dyn FnMut(Row)) -> Result<(), Failure> {
        let shape = VaeDecoderShape::open(&part.folder)?;
        let mut decoder = PictureDecoder::open(&self.engine, &part.folder)?;
        let architecture = &decoder.folder().architecture;
        let (channels, side) = (architecture.latent_channels, architecture.scale_factor);
        let factor = architecture.scaling_factor;
        for &pixels in &self.args.sizes {
            if self.interrupted.is_cancelled() {
                break;
            }
            if let Some(reason) = self.too_large(part, 0) {
                tell(Row::skipped(StageName::Decode, Some(pixels), reason));
                continue;
            }
            let latent = [pixels as usize / side; 2];
            let sides = vec![1, channels, latent[0], latent[1]];
            let latents = noise(sides)?.mapv_into(|x| x / factor);
            let mut tiled = false;
            let timed = self.timed(&format!("decode, {pixels} px"), &mut || {
                let tiling = self.args.settings().vae_tiling()?;
                let (_, mode) = decoder.decode(latents.clone(), &tiling, &mut |_| ())?;
                tiled = mode != TilingMode::Off;
                Ok(())
            })?;
            decoder.unload();
            // Tiles overlap, so it is more than this then.
            let operations = shape.operations(1, latent);
            if let Some(mut row) = self.row(StageName::Decode, Some(pixels), &timed, operations) {
                row.tiled = tiled;
                if !tiled {
                    row.operators = self.operators(part, &[("latent_sample", latents.into())])?;
                }
                tell(row);
            }
        }
        Ok(())
    }

    /// Runs something as often as was asked for, or until it is interrupted.
    fn timed(
        &self,
        label: &str,
        run: &mut dyn FnMut() -> Result<(), Failure>,
    ) -> Result<Timed, Failure> {
        let wanted = self.args.warmup + self.args.repeats;
        let mut bar = Progress::start(label, wanted as u64, Unit::Count("run"));
        memory::reset_peak();
        let mut runs = Vec::new();
        while runs.len() < wanted && !self.interrupted.is_cancelled() {
            let start = Instant::now();
            run()?;
            runs.push(start.elapsed().as_secs_f64());
            bar.update(runs.len() as u64, wanted as u64);
        }
        bar.finish();
        Ok(Timed { runs, memory: memory::peak() })
    }

    /// What came of it; nothing where it was interrupted before a run that counts.
    fn row(
        &self,
        stage: StageName,
        pixels: Option<u32>,
        timed: &Timed,
        operations: f64,
    ) -> Option<Row> {
        let counted = timed.runs.get(self.args.warmup..).filter(|runs| !runs.is_empty())?;
        let seconds = median(counted);
        let gflops = operations / seconds / 1e9;
        Some(Row {
            stage,
            pixels,
            seconds: Some(seconds),
            runs: counted.to_vec(),
            load_seconds: Some((timed.runs[0] - seconds).max(0.0)),
            peak_memory_bytes: timed.memory,
            gflop: Some(operations / 1e9),
            gflops: Some(gflops),
            share_of_peak: None,
            tiled: false,
            operators: None,
            skipped: None,
        })
    }

    /// Why this machine has too little memory for a part and so many bytes beside its weights, if it has.
    fn too_large(&self, part: &Part, values: u64) -> Option<String> {
        let stored = match parts::stored_bytes(&part.folder) {
            // Not all of them are there at a time.
            stored if self.args.low_memory => stored.min(LARGE),
            stored => stored,
        } as f64;
        // In fp32, each step reads all that is mapped. 16-bit weights are widened, integers are laid out beside what is
        // mapped.
        let factor = match part.precision.as_str() {
            "fp32" => 1.1,
            "fp16" | "bf16" => 3.3,
            _ => 2.2,
        };
        let free = memory::free().filter(|_| self.on_processor)?;
        let needed = (stored * factor) as u64 + values;
        let [needed_gb, free_gb] = [needed, free].map(|bytes| bytes as f64 / 1e9);
        (needed > free).then(|| {
            format!("it would take about {needed_gb:.1} GB of memory, and {free_gb:.1} GB are free")
        })
    }

    /// Rows of a prompt.
    fn halves(&self) -> usize {
        if self.args.is_guided() { 2 } else { 1 }
    }

    /// Tokens with padding, as sampling computes them.
    fn length(&self) -> usize {
        padded(self.args.tokens, self.engine.compiles_per_size())
    }
}

/// So many tokens with padding. Where a graph is compiled for each size, all prompts have one.
fn padded(tokens: usize, per_size: bool) -> usize {
    let least = if per_size { Request::default().max_length } else { 0 };
    tokens.next_multiple_of(LENGTH_MULTIPLE).max(least)
}

/// The same numbers each time, normally distributed.
fn noise(shape: Vec<usize>) -> Result<ArrayD<f32>, Failure> {
    let numbers = TorchGenerator::new(0).randn(shape.iter().product());
    Ok(ArrayD::from_shape_vec(shape, numbers)?)
}

fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

/// The parts around one that is measured.
struct StandIn {
    folder: Scratch,
    text_encoder: Option<Part>,
    vae_decoder: Option<Part>,
}

impl StandIn {
    /// A tokenizer alone.
    fn tokenizer() -> Result<Self, Failure> {
        let folder = parts::scratch(None)?;
        let tokenizer = folder.path().join("tokenizer");
        std::fs::create_dir(&tokenizer)?;
        std::fs::write(tokenizer.join("tokenizer.json"), TOKENIZER)?;
        Ok(Self { folder, text_encoder: None, vae_decoder: None })
    }

    /// All that a transformer needs.
    fn around(
        shape: &TransformerShape,
        profile: Profile,
        interrupted: &Cancel,
    ) -> Result<Self, Failure> {
        let options = ExportOptions { profile, ..ExportOptions::default() };
        let text = random::smallest_text_config(shape.caption_channels);
        let vae = random::smallest_vae_config(shape.in_channels);
        let make = |part, config| parts::make(part, config, &options, None, interrupted);
        Ok(Self {
            text_encoder: Some(make(Component::TextEncoder, &text)?),
            vae_decoder: Some(make(Component::VaeDecoder, &vae)?),
            ..Self::tokenizer()?
        })
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn paths(&self, transformer: &Path) -> ModelPaths {
        let folder = |part: &Option<Part>| {
            part.as_ref().map_or_else(PathBuf::new, |part| part.folder.clone())
        };
        ModelPaths {
            transformer: transformer.to_owned(),
            text_encoder: folder(&self.text_encoder),
            vae_decoder: folder(&self.vae_decoder),
            vae_encoder: None,
            tokenizer: self.path().join("tokenizer"),
            scheduler: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_as_long_as_sampling_makes_them() {
        for (tokens, per_size, expected) in
            [(20, false, 24), (20, true, 300), (300, true, 304), (310, true, 312)]
        {
            assert_eq!(padded(tokens, per_size), expected, "{tokens}, {per_size}");
        }
    }

    #[test]
    fn the_middle_counts() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
    }
}

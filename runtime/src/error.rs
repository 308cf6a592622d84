//! What can go wrong on the way from a prompt to a picture.

use std::ops::RangeInclusive;

use crate::{
    engine::EngineError,
    lora::LoraError,
    model_folder::{Component, ModelError},
    sampler::{SamplingMethod, SchedulerError},
    size::SizeError,
    text::TokenizerError,
};

/// No picture could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// The request asks for something impossible.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The model's folders are incomplete or do not belong together.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer cannot be read, or failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The scheduler's configuration cannot be used.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// The engine failed.
    #[error("{component}: {source}")]
    Engine {
        /// The component that was being loaded or run.
        component: Component,
        /// What happened.
        source: EngineError,
    },
    /// A LoRA cannot be read, or does not fit the model.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// A graph lacks an output, or the output has another shape than the model's other parts need.
    #[error("{component}: {problem}; export the {component} again")]
    Output {
        /// The component.
        component: Component,
        /// What was found and what was expected.
        problem: String,
    },
    /// A caption that would have to be encoded, and no text encoder.
    #[error(
        "the prompt \"{}\" is not in the text cache {} and there is no text encoder at {}; run `pixart \
         encode` with the same prompt and settings where there is one, and copy its cache here",
        shortened(prompt), cache.display(), folder.display()
    )]
    NotCached {
        /// The prompt.
        prompt: String,
        /// The cache's folder.
        cache: std::path::PathBuf,
        /// Where the text encoder should be.
        folder: std::path::PathBuf,
    },
    /// A picture to begin from, and no VAE encoder.
    #[error(
        "init_image: this model has no VAE encoder to turn it into latents; export one with `pixart export \
         vae_encoder` from the checkpoint of its VAE, into the folder that holds vae_decoder"
    )]
    NoEncoder,
    /// NaN or infinity in a component's result.
    #[error(
        "the {component} ({precision}) gave values that are not finite{}; {}",
        step.map(|(step, total)| format!(" in step {step} of {total}")).unwrap_or_default(),
        cause.advice(*component)
    )]
    NotFinite {
        /// The component.
        component: Component,
        /// The precision of its weights.
        precision: String,
        /// The step, counted from 1, and the number of steps.
        step: Option<(usize, usize)>,
        /// What it probably comes from.
        cause: LikelyCause,
    },
    /// Infinity made of finite values.
    #[error(
        "the latents are not finite after step {} of {}, though all that the transformer gave was: with \
         guidance_scale {guidance_scale} they outgrow fp32; take one nearer to 4.5",
        step.0, step.1
    )]
    Diverged {
        /// The step, counted from 1, and the number of steps.
        step: (usize, usize),
        /// The strength of guidance.
        guidance_scale: f32,
    },
}

/// What values that are not finite probably come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LikelyCause {
    /// Weights that are not what they were.
    Weights,
    /// Too narrow a range of numbers: fp16 ends at 65504.
    Range,
    /// A LoRA.
    Lora,
}

impl LikelyCause {
    fn advice(self, component: Component) -> &'static str {
        match (self, component) {
            (Self::Weights, _) => {
                "the weights are probably damaged: compare the checkpoint's hash and export it again"
            }
            (Self::Range, Component::VaeDecoder) => {
                "its range is probably exceeded: export it with --vae_precision fp32"
            }
            (Self::Range, _) => {
                "its range is probably exceeded: export this component with --precision fp32 (`pixart \
                 sample --dtype fp32`), or bf16"
            }
            (Self::Lora, _) => {
                "a LoRA probably drives it out of range: try with a smaller strength, or without LoRA \
                 and, if that fails too, look at the weights and their precision"
            }
        }
    }
}

/// The beginning of a text, for a message.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What is wrong with a request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// No prompts.
    #[error("prompts: found none, expected at least one (an empty text is a prompt too)")]
    NoPrompts,
    /// As many negative prompts as prompts are needed, or none.
    #[error("negative_prompts: found {found} for {prompts} prompts, expected none or one for each")]
    NegativePrompts {
        /// How many there are.
        found: usize,
        /// How many prompts there are.
        prompts: usize,
    },
    /// As many sizes as prompts are needed, or none.
    #[error("sizes: found {found} for {prompts} prompts, expected none or one for each")]
    Sizes {
        /// How many there are.
        found: usize,
        /// How many prompts there are.
        prompts: usize,
    },
    /// An aspect ratio without the table it is looked up in.
    #[error(
        "aspect_ratio: it picks one of the trained sizes, but use_resolution_binning is off; switch it on \
         or give the size in pixels"
    )]
    RatioWithoutBins,
    /// A size that cannot be made.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// A picture so small that compression leaves no keys and values.
    #[error(
        "the picture is generated at {width}x{height} pixels, expected at least {least} on both sides, \
         because this transformer's keys and values are compressed; ask for a larger one"
    )]
    TooSmall {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The shortest side that works.
        least: usize,
    },
    /// As many seeds as prompts are needed, or none.
    #[error("noise_seeds: found {found} for {prompts} prompts, expected none or one for each")]
    NoiseSeeds {
        /// How many there are.
        found: usize,
        /// How many prompts there are.
        prompts: usize,
    },
    /// A solver whose only step begins at plain noise.
    #[error(
        "init_image: the solver {0} draws in one step from plain noise and cannot begin from a picture; take \
         another solver"
    )]
    InitWithoutSteps(SamplingMethod),
    /// A strength so low that no step of the solver remains.
    #[error(
        "strength: {strength} of {steps} steps leaves none, expected at least {}; give a higher strength or \
         more sampling_steps",
        least_strength(*steps)
    )]
    NoStepsLeft {
        /// The strength asked for.
        strength: f64,
        /// The steps asked for.
        steps: usize,
    },
    /// The size of the picture to begin from cannot be that of the new one.
    #[error(
        "no size is given, so the picture would have that of init_image, {width}x{height}, but: {source}; or \
         give image_width and image_height"
    )]
    InitSize {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Why not.
        source: SizeError,
    },
    /// A mask for another picture.
    #[error(
        "mask: found {}x{} pixels, expected {}x{} like the init_image it belongs to",
        found.0, found.1, expected.0, expected.1
    )]
    MaskSize {
        /// Width and height of the mask.
        found: (u32, u32),
        /// Width and height of the picture.
        expected: (u32, u32),
    },
    /// A mask that keeps everything.
    #[error(
        "mask: found no white in it (a level of 128 or more), so nothing would be drawn anew; expected white \
         where the picture is to be repainted and black where it is to be kept"
    )]
    EmptyMask,
    /// A number outside its range.
    #[error("{field}: found {found}, expected {expected}")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: String,
        /// The range.
        expected: &'static str,
    },
    /// Everything is to stay in memory, and little of it at a time.
    #[error(
        "low_memory: it has little of a model in memory at a time, keep_resident all; give one of the two"
    )]
    LowMemoryResident,
    /// No reference of this name.
    #[error("found `{0}`, expected mindone or diffusers")]
    UnknownReference(String),
    /// No solver of this name.
    #[error(
        "found `{found}`, expected one of {}",
        SamplingMethod::ALL.map(SamplingMethod::name).join(", ")
    )]
    UnknownMethod {
        /// The name.
        found: String,
    },
    /// No choice of the unconditional half's mask of this name.
    #[error("found `{0}`, expected caption or own")]
    UnknownMask(String),
    /// More or fewer steps than the solver can take.
    #[error(
        "sampling_steps: found {found}, expected {} with the solver {method}; leave it out for {}",
        range(accepted),
        method.default_steps()
    )]
    Steps {
        /// The solver.
        method: SamplingMethod,
        /// The steps asked for.
        found: usize,
        /// The steps it can take.
        accepted: RangeInclusive<usize>,
    },
    /// Guidance with a model that has it built in.
    #[error(
        "guidance_scale: found {found}, expected 1 with the solver {method}: its models are distilled \
         with guidance and run without; leave it out"
    )]
    Guided {
        /// The solver.
        method: SamplingMethod,
        /// The scale asked for.
        found: f32,
    },
    /// The noise schedule has too few times.
    #[error(
        "num_train_timesteps of the model's scheduler_config.json: found {found}, expected {least} or \
         more with the solver {method}; take another solver or fewer steps"
    )]
    ShortSchedule {
        /// The solver.
        method: SamplingMethod,
        /// The length of the schedule.
        found: usize,
        /// The length it needs.
        least: usize,
    },
    /// The solver needs variance channels and the transformer has none.
    #[error(
        "sampling_method: {0} needs a transformer with learned variance (8 output channels), this one \
         has none; take another solver"
    )]
    NoVariance(SamplingMethod),
    /// Several pictures at once in a transformer that quantises them together.
    #[error(
        "batch_size: found {0}, expected 1 with this transformer: its activations are quantised (int8 \
         dynamic) with one scale for a whole batch, so a picture would depend on the others"
    )]
    DynamicBatch(usize),
    /// No way of cleaning prompts of this name.
    #[error("found `{0}`, expected raw, lower or diffusers")]
    UnknownCleaning(String),
}

/// The lowest strength, in hundredths, that leaves a step.
fn least_strength(steps: usize) -> f64 {
    (1..=100).map(|k| f64::from(k) / 100.0).find(|s| steps as f64 * s >= 1.0).unwrap_or(1.0)
}

fn range(accepted: &RangeInclusive<usize>) -> String {
    match (accepted.start(), accepted.end()) {
        (least, most) if least == most => least.to_string(),
        (least, most) => format!("{least} to {most}"),
    }
}

impl From<SizeError> for PipelineError {
    fn from(error: SizeError) -> Self {
        Self::Request(error.into())
    }
}

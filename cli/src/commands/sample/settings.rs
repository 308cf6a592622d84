//! The settings of `pixart sample`: one list that is both the flags and the YAML keys.

use super::prompts::Prompts;
use super::values::{number_or_boolean, word_or_boolean};
use crate::config::{boolean, one_or_many};
use crate::exit::Failure;
use crate::model::Sources;
use clap::{ArgAction, Args};
use pixart_exporter::{KvSampling, VariantFlags};
use pixart_runtime::model_folder::KvCompression;
use pixart_runtime::pipeline::{Pipeline, Reference, Request};
use pixart_runtime::text::{PromptCleaning, TextCache};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Every field is optional: absent means the YAML file's value, then the default told in the help.
#[derive(Args, Serialize, Deserialize, Default, Debug)]
#[serde(default)]
pub struct Settings {
    /// What to draw; several prompts make several pictures
    #[arg(short, long, value_name = "TEXT", num_args = 1.., help_heading = "Prompts")]
    #[serde(deserialize_with = "one_or_many")]
    pub prompt: Vec<String>,
    /// Text file with one prompt per line, an empty line being an empty prompt; `-` reads from stdin.
    /// Wins over --prompt
    #[arg(long = "prompt_path", value_name = "FILE", help_heading = "Prompts")]
    pub prompt_path: Option<PathBuf>,
    /// What to avoid: none, one for all prompts, or one per prompt [default: ""]
    #[arg(short, long = "negative_prompt", value_name = "TEXT", num_args = 1..,
          help_heading = "Prompts")]
    #[serde(deserialize_with = "one_or_many")]
    pub negative_prompt: Vec<String>,
    /// Style to draw in, see docs/sampling.md: Cinematic, Photographic, Anime, Manga, Digital Art,
    /// Pixel art, Fantasy art, Neonpunk, 3D Model, or "(No style)"
    #[arg(long, value_name = "NAME", help_heading = "Prompts")]
    pub style: Option<String>,
    /// Whether `--ar H:W`, `--aspect_ratio H:W` and `--hw H:W` at the end of a prompt set its size
    /// [default: true]
    #[arg(long = "prompt_directives", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          help_heading = "Prompts")]
    pub prompt_directives: Option<bool>,
    /// What is done to prompts: raw (nothing), lower (lower case, no outer white space) or diffusers
    /// (its caption cleaner) [default: raw for mindone, diffusers for diffusers]
    #[arg(long = "prompt_cleaning", value_name = "NAME", help_heading = "Prompts")]
    pub prompt_cleaning: Option<String>,
    /// The same as diffusers' switch: true for its cleaner, false for what the reference does without
    #[arg(long = "clean_caption", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          help_heading = "Prompts")]
    pub clean_caption: Option<bool>,
    /// Longest prompt in tokens; what is longer is cut [default: 300]
    #[arg(long = "t5_max_length", value_name = "N", help_heading = "Prompts")]
    pub t5_max_length: Option<usize>,
    /// Pictures of each prompt, each with the next seed [default: 1]
    #[arg(
        long = "num_trials",
        alias = "nrows",
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Prompts"
    )]
    pub num_trials: Option<usize>,
    /// Pictures of one size that are computed at once, and prompts that share a grid; pictures do not
    /// depend on it, memory does [default: 1]
    #[arg(
        long = "batch_size",
        alias = "ncols",
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Prompts"
    )]
    pub batch_size: Option<usize>,
    /// Draw at the trained size whose ratio of height to width is nearest; with one side or both given,
    /// resize and crop to them
    #[arg(long = "aspect_ratio", visible_alias = "ar", value_name = "H:W", help_heading = "Sizes")]
    pub aspect_ratio: Option<String>,
    /// Width of the pictures in pixels [default: the model's own]
    #[arg(
        short = 'W',
        long = "image_width",
        value_name = "PIXELS",
        allow_negative_numbers = true,
        help_heading = "Sizes"
    )]
    pub image_width: Option<u32>,
    /// Height of the pictures in pixels [default: the model's own]
    #[arg(
        short = 'H',
        long = "image_height",
        value_name = "PIXELS",
        allow_negative_numbers = true,
        help_heading = "Sizes"
    )]
    pub image_height: Option<u32>,
    /// Draw at the nearest size the model was trained on, then resize and crop to the exact size;
    /// without it, both sides must be multiples of 16 [default: true]
    #[arg(long = "use_resolution_binning", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          help_heading = "Sizes")]
    pub use_resolution_binning: Option<bool>,
    /// Solver: dpm, ddim, iddpm, sa-solver; lcm and dmd for models distilled for them [default: dpm]
    #[arg(long = "sampling_method", value_name = "NAME", help_heading = "Sampling")]
    pub sampling_method: Option<String>,
    /// Solver steps; 2 to 1000, lcm 1 to 50, dmd 1 [default: dpm 20, ddim 50, iddpm 100, sa-solver 25,
    /// lcm 4, dmd 1]
    #[arg(
        long = "sampling_steps",
        visible_alias = "steps",
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub sampling_steps: Option<usize>,
    /// How strongly pictures follow the prompt; 1 switches guidance off, which halves the
    /// computation [default: 4.5, lcm and dmd 1]
    #[arg(
        long = "guidance_scale",
        visible_alias = "cfg_scale",
        value_name = "X",
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub guidance_scale: Option<f32>,
    /// Guide the first part of the steps only, 0 to 1; the others need half the computation
    /// [default: 1]
    #[arg(
        long = "guidance_end",
        value_name = "PART",
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub guidance_end: Option<f32>,
    /// The same as a number of steps: guide the first N only
    #[arg(
        long = "guidance_last_step",
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub guidance_last_step: Option<usize>,
    /// Against burnt colours: pull guided predictions back to the deviation of the prompt's own, 0 (not)
    /// to 1 (fully) [default: 0]
    #[arg(
        long = "guidance_rescale",
        value_name = "X",
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub guidance_rescale: Option<f32>,
    /// Tokens the unconditional half attends to: caption (as many as the prompt's) or own [default:
    /// caption; own with --reference diffusers]
    #[arg(long = "uncond_mask", value_name = "NAME", help_heading = "Sampling")]
    pub uncond_mask: Option<String>,
    /// An approximation that leaves steps out: carry the network's prediction over to the next step while it
    /// is expected to change by less than this part of itself; 0 is off [default: off; without a number
    /// 0.05]
    #[arg(
        long,
        value_name = "THRESHOLD",
        num_args = 0..=1,
        default_missing_value = "0.05",
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    #[serde(deserialize_with = "number_or_boolean")]
    pub easycache: Option<f64>,
    /// The part of the steps that --easycache computes at the start, 0 to 1 [default: 0.15]
    #[arg(
        long = "easycache_start",
        value_name = "PART",
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub easycache_start: Option<f64>,
    /// The part after which it computes all again, 0 to 1; the last step is always computed [default:
    /// 0.95]
    #[arg(
        long = "easycache_end",
        value_name = "PART",
        allow_negative_numbers = true,
        help_heading = "Sampling"
    )]
    pub easycache_end: Option<f64>,
    /// Seed of the first picture, picture k has seed + k; -1 draws one [default: 42]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = seed,
          help_heading = "Sampling")]
    pub seed: Option<i128>,
    /// Which implementation to follow where they differ: mindone (as the official code) or
    /// diffusers [default: mindone]
    #[arg(long, value_name = "NAME", help_heading = "Sampling")]
    pub reference: Option<String>,

    /// Model folder: an exported one, or a diffusers pipeline folder, which is exported on first
    /// use [default: models/demo]
    #[arg(short, long, value_name = "DIR", help_heading = "Model")]
    pub model: Option<PathBuf>,
    /// Transformer, if not the model's: an exported folder, a diffusers folder, or a file of weights
    #[arg(long, value_name = "PATH", help_heading = "Model")]
    pub checkpoint: Option<PathBuf>,
    /// Text encoder folder, if not the model's
    #[arg(long = "text_encoder_root", value_name = "DIR", help_heading = "Model")]
    pub text_encoder_root: Option<PathBuf>,
    /// VAE folder, if not the model's
    #[arg(long = "vae_root", value_name = "DIR", help_heading = "Model")]
    pub vae_root: Option<PathBuf>,
    /// Tokenizer folder, if not the model's
    #[arg(long = "tokenizer_root", value_name = "DIR", help_heading = "Model")]
    pub tokenizer_root: Option<PathBuf>,
    /// Latent side the transformer must have (32, 64, 128, 256): a check against mixed-up files. A
    /// checkpoint without config.json needs it
    #[arg(long = "sample_size", value_name = "N", help_heading = "Model")]
    pub sample_size: Option<u32>,
    /// Latent scale the VAE must have: a check against mixed-up files
    #[arg(long = "sd_scale_factor", value_name = "X", help_heading = "Model")]
    pub sd_scale_factor: Option<f32>,
    /// Whether keys and values are compressed, as the three settings below say; without it they are
    /// left out of account [default: what tensors, config.json or manifest say]
    #[arg(long = "kv_compress", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          help_heading = "Model")]
    pub kv_compress: Option<bool>,
    /// How: conv, ave, uniform or uniform_every
    #[arg(long = "kv_compress_sampling", value_name = "NAME", help_heading = "Model")]
    pub kv_compress_sampling: Option<String>,
    /// By which factor
    #[arg(long = "kv_compress_scale_factor", value_name = "N", help_heading = "Model")]
    pub kv_compress_scale_factor: Option<usize>,
    /// In which blocks, counted from 0
    #[arg(long = "kv_compress_layer", value_name = "N", num_args = 1.., help_heading = "Model")]
    pub kv_compress_layer: Vec<usize>,
    /// Precision in which transformer and text encoder are exported on first use: fp32, fp16, bf16, int8,
    /// or int4 (ONNX Runtime only); the VAE stays in fp32 [default: fp32]
    #[arg(long, value_name = "TYPE", help_heading = "Model")]
    pub dtype: Option<String>,
    /// LoRA to apply, a safetensors file or a folder with one, with its strength: FILE:0.8. Several are
    /// applied in the order given [default strength: 1]
    #[arg(long, value_name = "FILE[:STRENGTH]", num_args = 1.., help_heading = "Model")]
    #[serde(deserialize_with = "one_or_many")]
    pub lora: Vec<String>,
    /// Go on when keys of a LoRA belong to no layer of the model, without them [default: false]
    #[arg(long = "lora_allow_unmatched", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          help_heading = "Model")]
    pub lora_allow_unmatched: Option<bool>,

    /// What runs the graphs: auto, ort (ONNX Runtime) or tract [default: auto]
    #[arg(long, value_name = "NAME", help_heading = "Engine")]
    pub engine: Option<String>,
    /// What computes: cpu, tract, cuda, cann, openvino, … (`pixart engine list` shows all), with :N for one of
    /// several, as cuda:1 [default: cpu]
    #[arg(long, value_name = "NAME[:N]", help_heading = "Devices")]
    pub device: Option<String>,
    /// Share the prompts out to several devices, cuda:0,cuda:1; each computes whole pictures
    #[arg(
        long,
        value_name = "NAME[:N],…",
        value_delimiter = ',',
        conflicts_with = "device",
        help_heading = "Devices"
    )]
    #[serde(deserialize_with = "one_or_many")]
    pub devices: Vec<String>,
    /// An option of the device's provider, as NAME=VALUE; `pixart engine list NAME` shows them
    #[arg(long = "device_option", value_name = "NAME=VALUE", help_heading = "Devices")]
    #[serde(deserialize_with = "one_or_many")]
    pub device_option: Vec<String>,
    /// Plugin library for ONNX Runtime that brings the device [default: the one installed]
    #[arg(long = "device_plugin", value_name = "FILE", help_heading = "Devices")]
    pub device_plugin: Option<PathBuf>,
    /// Compute on the processor if the device cannot be used, or takes nothing of a network
    /// [default: false, which is an error]
    #[arg(long = "allow_cpu_fallback", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          help_heading = "Devices")]
    pub allow_cpu_fallback: Option<bool>,
    /// What computes the text encoder [default: as --device]
    #[arg(long = "text_encoder_device", value_name = "NAME[:N]", help_heading = "Devices")]
    pub text_encoder_device: Option<String>,
    /// What computes the VAE [default: as --device]
    #[arg(long = "vae_device", value_name = "NAME[:N]", help_heading = "Devices")]
    pub vae_device: Option<String>,
    /// Give each size of inputs a graph of its own whose sizes are fixed; captions are padded to the most tokens
    /// then [default: what the device of the transformer needs; the other parts go by their own devices]
    #[arg(long = "static_shapes", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          help_heading = "Devices")]
    pub static_shapes: Option<bool>,
    /// Folder where compiled graphs are kept [default: `compiled` in the cache folder]
    #[arg(long = "compiled_cache_dir", value_name = "DIR", help_heading = "Devices")]
    pub compiled_cache_dir: Option<PathBuf>,
    /// Compile graphs anew at each start, and keep none [default: false]
    #[arg(long = "no_compiled_cache", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          help_heading = "Devices")]
    pub no_compiled_cache: Option<bool>,
    /// Threads to compute with [default: all cores]
    #[arg(short, long, value_name = "N", help_heading = "Engine")]
    pub threads: Option<usize>,
    /// Keep all components in memory at once, laid out for speed: more memory, less loading, somewhat
    /// faster steps [default: false]
    #[arg(long = "keep_resident", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          help_heading = "Engine")]
    pub keep_resident: Option<bool>,
    /// Spend time for memory: read the text encoder from the disk layer by layer, a transformer of more than
    /// 1 GB too, in every step, and decode in small tiles; the same pictures but for rounding [default: false, but a text
    /// encoder of more than 1 GB is read so always]
    #[arg(long = "low_memory", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          help_heading = "Engine")]
    pub low_memory: Option<bool>,

    /// Folder of the text cache [default: `text` in the cache folder]
    #[arg(long = "text_cache_dir", value_name = "DIR", help_heading = "Text cache")]
    pub text_cache_dir: Option<PathBuf>,
    /// Most MiB of it; captions used longest ago go first [default: 1024]
    #[arg(long = "text_cache_size", value_name = "MIB", help_heading = "Text cache")]
    pub text_cache_size: Option<u64>,
    /// Encode every prompt anew and keep nothing [default: false]
    #[arg(long = "no_text_cache", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          help_heading = "Text cache")]
    pub no_text_cache: Option<bool>,

    /// Folder for the pictures, 0.png, 1.png, …; existing ones are kept [default: ./samples, or the folder
    /// of --output_name]
    #[arg(short, long = "output_path", value_name = "DIR", help_heading = "Output")]
    pub output_path: Option<PathBuf>,
    /// Also write the pictures of each --batch_size prompts side by side, as grid-0.png, …: a column is
    /// a prompt, a row a trial [default: false]
    #[arg(long, value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          help_heading = "Output")]
    pub imagegrid: Option<bool>,
    /// Also write the final latents, f32 of n × 4 × h × w under the key `latents`, to this file
    #[arg(long = "save_latents", value_name = "FILE", help_heading = "Output")]
    pub save_latents: Option<PathBuf>,

    /// Names of the pictures, with {number}, {seed}, {prompt}, {width}, {height}, {model}, {sampler},
    /// {steps}, {guidance}, {date} or {time} in them; .png, .jpg or .webp at the end sets the format. An
    /// existing file is kept and the new one gets another number [default: {number}]
    #[arg(long = "output_name", value_name = "TEMPLATE", help_heading = "Picture files")]
    pub output_name: Option<String>,
    /// Format of pictures and grids: png, jpeg, or webp (without loss only) [default: png]
    #[arg(long = "output_format", value_name = "FORMAT", help_heading = "Picture files")]
    pub output_format: Option<String>,
    /// Quality of JPEGs, 1 (smallest) to 100 (best) [default: 95]
    #[arg(
        long = "jpeg_quality",
        visible_alias = "quality",
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Picture files"
    )]
    pub jpeg_quality: Option<u32>,
    /// Write no texts into the pictures that say how they were made [default: false]
    #[arg(long = "no_metadata", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          help_heading = "Picture files")]
    pub no_metadata: Option<bool>,
    /// Begin from this picture (PNG, JPEG or WebP) instead of from noise; it gives the size where none is
    /// given
    #[arg(long = "init_image", value_name = "FILE", help_heading = "Pictures to begin from")]
    pub init_image: Option<PathBuf>,
    /// How much of it is drawn anew, above 0 and up to 1: that part of the steps is taken [default: 0.8,
    /// with --mask 1]
    #[arg(
        long,
        visible_alias = "denoising_strength",
        value_name = "X",
        allow_negative_numbers = true,
        help_heading = "Pictures to begin from"
    )]
    pub strength: Option<f64>,
    /// Draw only a part anew: a picture as large as --init_image, white there and black elsewhere
    #[arg(long, value_name = "FILE", help_heading = "Pictures to begin from")]
    pub mask: Option<PathBuf>,
    /// Soften the mask's edge, a radius in its pixels, 0 to 256 [default: 0]
    #[arg(
        long = "mask_blur",
        value_name = "PIXELS",
        allow_negative_numbers = true,
        help_heading = "Pictures to begin from"
    )]
    pub mask_blur: Option<f32>,
    /// Whether what the mask keeps is put back pixel by pixel, not as the VAE gives it [default: true]
    #[arg(long = "paste_back", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          help_heading = "Pictures to begin from")]
    pub paste_back: Option<bool>,

    /// Vary the picture of --seed: each picture goes a step towards the noise of another seed, picture k
    /// towards this one + k; -1 draws it
    #[arg(long = "variation_seed", value_name = "N", allow_negative_numbers = true,
          value_parser = seed, help_heading = "Variations")]
    pub variation_seed: Option<i128>,
    /// How far, 0 (the picture of --seed) to 1 (that of the other seed)
    #[arg(
        long = "variation_strength",
        value_name = "X",
        allow_negative_numbers = true,
        help_heading = "Variations"
    )]
    pub variation_strength: Option<f64>,
    /// Draw a row of pictures of each prompt, from --seed to this one; -1 draws it
    #[arg(long = "interpolate_to", value_name = "N", allow_negative_numbers = true,
          value_parser = seed, help_heading = "Variations")]
    pub interpolate_to: Option<i128>,
    /// Pictures of such a row, the first and the last included, 2 or more
    #[arg(
        long = "interpolate_steps",
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Variations"
    )]
    pub interpolate_steps: Option<usize>,
    /// Show what is being drawn: `terminal`, or a PNG file that is replaced at each step
    #[arg(long, value_name = "FILE", help_heading = "While it runs")]
    pub preview: Option<String>,
    /// Steps between two previews [default: 1]
    #[arg(long = "preview_interval", value_name = "N", help_heading = "While it runs")]
    pub preview_interval: Option<usize>,
    /// Seconds of drawing after which the pictures drawn so far are decoded and written; each time, the
    /// VAE and the transformer are loaded anew. With --keep_resident, every batch is written at once
    /// [default: 120]
    #[arg(
        long = "decode_interval",
        value_name = "SECONDS",
        allow_negative_numbers = true,
        help_heading = "While it runs"
    )]
    pub decode_interval: Option<f64>,
    /// Decode and encode pictures in tiles: auto (when the whole picture would not fit into free
    /// memory), true, false, or blend (faster, but tiles differ slightly) [default: auto]
    #[arg(long = "vae_tiling", value_name = "WHEN", num_args = 0..=1,
          default_missing_value = "true", help_heading = "Large pictures")]
    #[serde(deserialize_with = "word_or_boolean")]
    pub vae_tiling: Option<String>,
    /// Side of a tile in pixels of the picture, 64 to 4096, a multiple of 8; tiles that do not show are
    /// larger where that takes no more memory [default: 512; such ones with --low_memory 128]
    #[arg(
        long = "vae_tile_size",
        value_name = "PIXELS",
        allow_negative_numbers = true,
        help_heading = "Large pictures"
    )]
    pub vae_tile_size: Option<usize>,
    /// Pixels that neighbouring tiles share with --vae_tiling blend, a multiple of 8, at most half a
    /// tile [default: a quarter of a tile]
    #[arg(
        long = "vae_tile_overlap",
        value_name = "PIXELS",
        allow_negative_numbers = true,
        help_heading = "Large pictures"
    )]
    pub vae_tile_overlap: Option<usize>,

    /// The same as --device with upstream's names: CPU, GPU (cuda) or Ascend (cann)
    #[arg(long = "device_target", value_name = "NAME", help_heading = "Known to upstream")]
    pub device_target: Option<String>,
    /// No effect: attention never holds all its scores, and is exact
    #[arg(long = "enable_flash_attention", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          help_heading = "Known to upstream")]
    pub enable_flash_attention: Option<bool>,
    /// No effect: MindSpore's way of running, 0 or 1
    #[arg(
        long,
        value_name = "N",
        allow_negative_numbers = true,
        help_heading = "Known to upstream"
    )]
    pub mode: Option<u32>,
    /// No effect: MindSpore's way of compiling, O0 or O1
    #[arg(long = "jit_level", value_name = "LEVEL", help_heading = "Known to upstream")]
    pub jit_level: Option<String>,
    /// Share the pictures out to processes that `mpirun` has started [default: false]
    #[arg(long = "use_parallel", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set,
          help_heading = "Known to upstream")]
    pub use_parallel: Option<bool>,
}

/// The names of all settings, as flags and as YAML keys.
pub fn names() -> Vec<String> {
    let command = Settings::augment_args(clap::Command::new("sample"));
    command.get_arguments().filter_map(|arg| Some(arg.get_long()?.to_owned())).collect()
}

impl Settings {
    /// What the pipeline is asked to do.
    pub fn request(&self) -> Result<Request, Failure> {
        self.precision()?;
        let Prompts { prompts, negative_prompts, sizes } = Prompts::gather(self)?;
        let default = Request::default();
        let mut request = Request {
            prompts,
            negative_prompts,
            sizes,
            width: self.image_width,
            height: self.image_height,
            seed: drawn("seed", self.seed.unwrap_or(42))?,
            reference: parsed::<Reference>("reference", self.reference.as_deref())?,
            cleaning: self.cleaning()?,
            use_resolution_binning: self.use_resolution_binning.unwrap_or(true),
            max_length: self.t5_max_length.unwrap_or(default.max_length),
            ..default
        };
        self.apply_sampling(&mut request)?;
        self.apply_seeds(&mut request)?;
        request.check().map_err(Failure::request)?;
        Ok(request)
    }

    fn cleaning(&self) -> Result<Option<PromptCleaning>, Failure> {
        let named = self.prompt_cleaning.as_deref().map(str::parse::<PromptCleaning>).transpose();
        let named = named.map_err(|error| Failure::request(format!("prompt_cleaning: {error}")))?;
        let switched = self.clean_caption.map(|clean| {
            match (clean, parsed("reference", self.reference.as_deref())?) {
                (true, _) => Ok::<_, Failure>(PromptCleaning::Diffusers),
                (false, Reference::Diffusers) => Ok(PromptCleaning::Lower),
                (false, Reference::Mindone) => Ok(PromptCleaning::Raw),
            }
        });
        match (named, switched.transpose()?) {
            (Some(named), Some(switched)) if named != switched => Err(Failure::request(format!(
                "prompt_cleaning: found `{named}`, but clean_caption asks for `{switched}`; give one of \
                 the two"
            ))),
            (named, switched) => Ok(named.or(switched)),
        }
    }

    /// Pictures of each prompt.
    pub fn trials(&self) -> Result<usize, Failure> {
        match self.row()? {
            Some(pictures) => Ok(pictures),
            None => at_least_one("num_trials", self.num_trials),
        }
    }

    /// Prompts that share a grid.
    pub fn batch_size(&self) -> Result<usize, Failure> {
        at_least_one("batch_size", self.batch_size)
    }

    /// Where captions are kept, if they are.
    pub fn text_cache(&self) -> Result<Option<TextCache>, Failure> {
        if self.no_text_cache == Some(true) {
            return Ok(None);
        }
        let folder = match &self.text_cache_dir {
            Some(folder) => folder.clone(),
            None => match crate::model::cache_folder() {
                Ok(folder) => folder.join("text"),
                // A bundle runs where nobody has a home.
                Err(_) if crate::model::is_bundle() => return Ok(None),
                Err(failure) => return Err(failure),
            },
        };
        let limit = self.text_cache_size.unwrap_or(1024).saturating_mul(1 << 20);
        Ok(Some(TextCache::new(folder, limit)))
    }

    /// Compares the model with what the settings say it is.
    pub fn check_model(&self, pipeline: &Pipeline) -> Result<(), Failure> {
        let size = pipeline.sample_size();
        if let Some(expected) = self.sample_size.filter(|expected| *expected != size) {
            return Err(Failure::request(format!(
                "sample_size: the settings say {expected}, but the transformer's is {size}; take \
                 the transformer that belongs to the config"
            )));
        }
        let wanted = self.variant()?;
        let found = pipeline.transformer().kv_compression.as_ref();
        if let Some(sampling) = wanted.kv_compress_sampling
            && !found.is_some_and(|found| same_compression(sampling, &wanted, found))
        {
            return Err(Failure::request(
                "kv_compress: the transformer's keys and values are compressed in another way than \
                 the settings say, or not at all; take the transformer that belongs to the config, \
                 or export it again with these settings",
            ));
        }
        let factor = pipeline.scaling_factor();
        if let Some(expected) = self.sd_scale_factor.filter(|expected| *expected != factor) {
            return Err(Failure::request(format!(
                "sd_scale_factor: the settings say {expected}, but the VAE's is {factor}; take the \
                 VAE that belongs to the config"
            )));
        }
        Ok(())
    }

    /// Where the model's parts are.
    pub fn sources(&self) -> Result<Sources, Failure> {
        if self.checkpoint.as_deref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err(Failure::request(
                "checkpoint: it is empty, as in the configs of the KV-compressed 2K and 4K models, whose \
                 weights were never released; name a transformer of your own with --checkpoint PATH",
            ));
        }
        Sources::locate(
            self.model.as_deref(),
            self.checkpoint.as_deref(),
            self.text_encoder_root.as_deref(),
            self.vae_root.as_deref(),
            self.tokenizer_root.as_deref(),
            self.variant()?,
        )
    }

    /// What the settings say about the transformer's variant.
    fn variant(&self) -> Result<VariantFlags, Failure> {
        let mut variant = VariantFlags {
            sample_size: self.sample_size.map(|size| size as usize),
            ..VariantFlags::default()
        };
        // As upstream: without the switch, the other three count for nothing.
        if self.kv_compress == Some(true) {
            let sampling = self.kv_compress_sampling.as_deref().unwrap_or("conv");
            let sampling = sampling.parse::<KvSampling>();
            let sampling = sampling
                .map_err(|error| Failure::request(format!("kv_compress_sampling: {error}")))?;
            variant.kv_compress_sampling = Some(sampling);
            variant.kv_compress_scale_factor = self.kv_compress_scale_factor;
            variant.kv_compress_layer =
                (!self.kv_compress_layer.is_empty()).then(|| self.kv_compress_layer.clone());
        }
        Ok(variant)
    }
}

fn same_compression(sampling: KvSampling, wanted: &VariantFlags, found: &KvCompression) -> bool {
    let layers = wanted.kv_compress_layer.clone().map(|mut layers| {
        layers.sort_unstable();
        layers.dedup();
        layers
    });
    found.sampling == sampling.as_str()
        && wanted.kv_compress_scale_factor.is_none_or(|factor| factor == found.scale_factor)
        && layers.is_none_or(|layers| layers == found.layers)
}

fn at_least_one(name: &str, value: Option<usize>) -> Result<usize, Failure> {
    match value.unwrap_or(1) {
        0 => Err(Failure::request(format!("{name}: found 0, expected 1 or more"))),
        value => Ok(value),
    }
}

/// Reads a seed: -1 or a 64-bit number.
fn seed(text: &str) -> Result<i128, String> {
    let seed = text.parse().map_err(|_| "expected a whole number".to_owned())?;
    if (-1..=i128::from(u64::MAX)).contains(&seed) {
        Ok(seed)
    } else {
        Err(format!("expected -1 or 0 to {}", u64::MAX))
    }
}

/// Draws a seed for -1.
pub fn drawn(name: &str, seed: i128) -> Result<u64, Failure> {
    use std::hash::{BuildHasher, RandomState};
    match seed {
        // 32 bits are enough to try one's luck, and short to type again.
        -1 => Ok(RandomState::new().hash_one(name) >> 32),
        _ => seed.try_into().map_err(|_| {
            Failure::request(format!("{name}: found {seed}, expected -1 or 0 to {}", u64::MAX))
        }),
    }
}

pub(super) fn parsed<T>(name: &str, value: Option<&str>) -> Result<T, Failure>
where
    T: std::str::FromStr<Err: std::fmt::Display> + Default,
{
    match value {
        Some(value) => value.parse().map_err(|e| Failure::request(format!("{name}: {e}"))),
        None => Ok(T::default()),
    }
}

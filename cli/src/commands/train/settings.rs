//! The settings of training: flags, and the keys of the training configs. What is in a group is used by one part
//! of the command.

use crate::commands::dataset::settings as data;
use crate::config::{self, boolean, one_or_many};
use crate::exit::Failure;
use crate::ranks;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Args};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Everything that can be set.
#[derive(Args, Default, Debug)]
pub struct Settings {
    #[command(flatten, next_help_heading = "Data")]
    pub data: data::Settings,
    #[command(flatten, next_help_heading = "Captions, and what is kept of pictures and captions")]
    pub encoders: EncoderSettings,
    #[command(flatten, next_help_heading = "Model")]
    pub model: ModelSettings,
    #[command(flatten, next_help_heading = "LoRA")]
    pub lora: LoraSettings,
    #[command(flatten, next_help_heading = "Prior pictures, as of DreamBooth")]
    pub prior: PriorSettings,
    #[command(flatten, next_help_heading = "Optimizer")]
    pub optimizer: OptimizerSettings,
    #[command(flatten, next_help_heading = "Precision, and numbers that are not finite")]
    pub precision: PrecisionSettings,
    #[command(flatten, next_help_heading = "Run")]
    pub run: RunSettings,
    #[command(flatten, next_help_heading = "Validation pictures")]
    pub validation: ValidationSettings,
    #[command(flatten, next_help_heading = "Engine")]
    pub engine: EngineSettings,
    #[command(flatten, next_help_heading = "Known to upstream")]
    pub upstream: UpstreamSettings,
}

/// What turns pictures and captions into what the model reads.
#[derive(Args, Serialize, Deserialize, Default, Debug)]
#[serde(default)]
pub struct EncoderSettings {
    /// Folder of the VAE, exported or in the diffusers layout
    #[arg(long = "vae_root", value_name = "FOLDER")]
    pub vae_root: Option<PathBuf>,
    /// Folder of the text encoder, exported or in the diffusers layout
    #[arg(long = "text_encoder_root", value_name = "FOLDER")]
    pub text_encoder_root: Option<PathBuf>,
    /// Folder of what `pixart train cache` has made of pictures and captions; neither text encoder nor VAE is
    /// needed then
    #[arg(long = "cache_dir", value_name = "FOLDER")]
    pub cache_dir: Option<PathBuf>,
    /// Read latents' moments that the official tools have extracted, in the folder
    /// img_sdxl_vae_features_* beside the labels, in the place of the VAE [default: false]
    #[arg(long = "load_vae_feat", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub load_vae_feat: Option<bool>,
    /// Read captions that they have extracted, in caption_features_new and sharegpt4v_caption_features_new
    /// there, in the place of the text encoder [default: false]
    #[arg(long = "load_t5_feat", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub load_t5_feat: Option<bool>,
    /// What latents are multiplied by [default: 0.13025]
    #[arg(long = "sd_scale_factor", value_name = "X")]
    pub sd_scale_factor: Option<f32>,
    /// Probability of `prompt` where a picture has both captions [default: 0.5]
    #[arg(long = "real_prompt_ratio", value_name = "P")]
    pub real_prompt_ratio: Option<f64>,
    /// Probability that a caption is replaced by the empty one [default: 0.1]
    #[arg(long = "class_dropout_prob", value_name = "P")]
    pub class_dropout_prob: Option<f64>,
}

/// The model that is trained.
#[derive(Args, Serialize, Deserialize, Default, Debug)]
#[serde(default)]
pub struct ModelSettings {
    /// The transformer to begin with: a folder in the diffusers layout, or a file of weights; "" for random
    /// weights
    #[arg(long, value_name = "PATH", value_parser = path_or_nothing())]
    pub checkpoint: Option<PathBuf>,
    /// With checkpoint "": a config.json, or a folder with one, that says what the model is like [default:
    /// PixArt-Σ as it was published, XL/2]
    #[arg(long = "model_config", value_name = "PATH")]
    pub model_config: Option<PathBuf>,
    /// Train a checkpoint at another sample_size than its own [default: false]
    #[arg(long = "change_sample_size", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub change_sample_size: Option<bool>,
    /// Attention heads of a block, for files that do not say it [default: the width / 72]
    #[arg(long = "num_attention_heads", value_name = "N")]
    pub num_attention_heads: Option<usize>,
    /// Compress keys and values in the self-attention of some blocks; without it the three below count for
    /// nothing [default: false]
    #[arg(long = "kv_compress", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub kv_compress: Option<bool>,
    /// How: conv, ave, uniform or uniform_every [default: conv]
    #[arg(long = "kv_compress_sampling", value_name = "NAME")]
    pub kv_compress_sampling: Option<String>,
    /// By which factor; 1 is not at all [default: 1]
    #[arg(long = "kv_compress_scale_factor", value_name = "N")]
    pub kv_compress_scale_factor: Option<usize>,
    /// In which blocks, counted from 0
    #[arg(long = "kv_compress_layer", value_name = "N", num_args = 1.., value_delimiter = ',')]
    pub kv_compress_layer: Vec<usize>,
}

/// A LoRA in the place of all weights.
#[derive(Args, Serialize, Deserialize, Default, Debug)]
#[serde(default)]
pub struct LoraSettings {
    /// Train a LoRA of this rank, and leave the weights as they are [default: train all weights]
    #[arg(long = "lora_rank", value_name = "N")]
    pub lora_rank: Option<usize>,
    /// What the LoRA adds is multiplied by this over the rank [default: the rank]
    #[arg(long = "lora_alpha", value_name = "X")]
    pub lora_alpha: Option<f64>,
    /// Layers that get one: names or ends of names, such as to_q or ff.net.2 [default: all linear layers]
    #[arg(long = "lora_targets", value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    pub lora_targets: Vec<String>,
    /// How its first factor begins: uniform (PEFT's default) or gaussian [default: uniform]
    #[arg(long = "lora_init", value_name = "NAME")]
    pub lora_init: Option<String>,
    /// Multiply by alpha over the root of the rank instead, as rsLoRA [default: false]
    #[arg(long = "lora_rslora", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub lora_rslora: Option<bool>,
}

/// Pictures that keep a model from forgetting what it can draw.
#[derive(Args, Serialize, Deserialize, Default, Debug)]
#[serde(default)]
pub struct PriorSettings {
    /// Folder of pictures of other things of the kind; each batch gets as many of them as it has pictures
    #[arg(long = "prior_image_dir", value_name = "FOLDER")]
    pub prior_image_dir: Option<PathBuf>,
    /// What all of them show, such as "a photo of a dog"
    #[arg(long = "prior_prompt", value_name = "TEXT")]
    pub prior_prompt: Option<String>,
    /// What their loss counts beside that of the pictures that are learnt [default: 1]
    #[arg(long = "prior_loss_weight", value_name = "X")]
    pub prior_loss_weight: Option<f64>,
    /// Draw what the folder lacks of so many, with the model before training [default: 0, none]
    #[arg(long = "num_prior_images", value_name = "N")]
    pub num_prior_images: Option<usize>,
}

/// From gradients to steps.
#[derive(Args, Serialize, Deserialize, Default, Debug)]
#[serde(default)]
pub struct OptimizerSettings {
    /// adamw, came or muon; with muon, all but the matrices of the blocks goes by AdamW's settings [default: adamw]
    #[arg(long, value_name = "NAME")]
    pub optim: Option<String>,
    /// Decay of AdamW's two moments [default: 0.9 0.999]
    #[arg(long = "adamw_betas", value_name = "X", num_args = 2)]
    pub adamw_betas: Option<Vec<f64>>,
    /// Added by AdamW to the root of the second moment [default: 1e-10]
    #[arg(long = "adamw_eps", value_name = "X")]
    pub adamw_eps: Option<f64>,
    /// Decay of CAME's step, second moment and instability [default: 0.9 0.999 0.9999]
    #[arg(long = "came_betas", value_name = "X", num_args = 3)]
    pub came_betas: Option<Vec<f64>>,
    /// Added by CAME to the squares of gradients and of the instability [default: 1e-30 1e-16]
    #[arg(long = "came_eps", value_name = "X", num_args = 2)]
    pub came_eps: Option<Vec<f64>>,
    /// Decay of Muon's momentum [default: 0.95]
    #[arg(long = "muon_momentum", value_name = "X")]
    pub muon_momentum: Option<f64>,
    /// Weights shrink by its product with the learning rate; not biases and norms [default: 0]
    #[arg(long = "weight_decay", value_name = "X")]
    pub weight_decay: Option<f64>,
    /// Learning rate after the warm-up [default: 2e-5]
    #[arg(long = "start_learning_rate", value_name = "X")]
    pub start_learning_rate: Option<f64>,
    /// How it goes on: constant or cosine, down to 0 at the last step [default: constant]
    #[arg(long, value_name = "NAME")]
    pub scheduler: Option<String>,
    /// Steps in which it rises from 0 [default: 1000]
    #[arg(long = "warmup_steps", value_name = "N")]
    pub warmup_steps: Option<u64>,
    /// Multiply it by the pictures of a step over 256 (linear), or by the root of that (sqrt) [default: "",
    /// neither]
    #[arg(long = "auto_lr", value_name = "NAME")]
    pub auto_lr: Option<String>,
    /// Weigh the error of the noise by min(this, SNR) / SNR, the min-SNR weighting; 5 is usual [default: all times
    /// count alike]
    #[arg(long = "snr_gamma", value_name = "X")]
    pub snr_gamma: Option<f64>,
    /// Batches of a step [default: 1]
    #[arg(long = "gradient_accumulation_steps", value_name = "N")]
    pub gradient_accumulation_steps: Option<u32>,
    /// Shorten gradients that are longer than max_grad_norm [default: false]
    #[arg(long = "clip_grad", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub clip_grad: Option<bool>,
    /// Largest norm of all gradients together [default: 0.01]
    #[arg(long = "max_grad_norm", value_name = "X")]
    pub max_grad_norm: Option<f64>,
}

/// Numbers of few bits, and what they can become.
#[derive(Args, Serialize, Deserialize, Default, Debug)]
#[serde(default)]
pub struct PrecisionSettings {
    /// Precision of products of matrices: fp32, or fp16 or bf16, where weights stay in fp32. Captions are encoded
    /// in it, too [default: fp32]
    #[arg(long, value_name = "NAME")]
    pub dtype: Option<String>,
    /// The factor on the loss, which keeps small gradients of 16 bits: dynamic or static [default: dynamic
    /// with fp16, else none unless one of the next three is given]
    #[arg(long = "loss_scaler_type", value_name = "NAME")]
    pub loss_scaler_type: Option<String>,
    /// That factor at the beginning [default: 65536]
    #[arg(long = "init_loss_scale", value_name = "X")]
    pub init_loss_scale: Option<f64>,
    /// Batches without overflow after which a dynamic one grows [default: 1000]
    #[arg(long = "scale_window", value_name = "N")]
    pub scale_window: Option<u64>,
    /// What a dynamic one grows and shrinks by [default: 2]
    #[arg(long = "loss_scale_factor", value_name = "X")]
    pub loss_scale_factor: Option<f64>,
    /// Leave out a batch whose gradients overflow, where a smaller factor may help; else the run ends there
    /// [default: true]
    #[arg(long = "drop_overflow_update", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub drop_overflow_update: Option<bool>,
    /// Where the loss, or with the smallest factor a gradient, is not finite: stop the run, or skip the batch
    /// [default: stop]
    #[arg(long = "on_nan", value_name = "NAME")]
    pub on_nan: Option<String>,
}

/// How long it takes, and what stays.
#[derive(Args, Serialize, Deserialize, Default, Debug)]
#[serde(default)]
pub struct RunSettings {
    /// Folder of everything that is written [default: ./output]
    #[arg(short, long = "output_path", value_name = "FOLDER")]
    pub output_path: Option<PathBuf>,
    /// Go on from a checkpoint, or from the newest one in a folder [default without a value: the newest one
    /// in the ckpt folder of output_path]
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, default_missing_value = "",
          value_parser = path_or_nothing())]
    pub resume: Option<PathBuf>,
    /// Times that every picture is seen [default: 200]
    #[arg(long, value_name = "N")]
    pub epochs: Option<u64>,
    /// End after so many steps, whatever epochs says
    #[arg(long = "max_train_steps", value_name = "N")]
    pub max_train_steps: Option<u64>,
    /// Seed of everything that is drawn; equal runs give equal weights [default: 42]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Leave out of an epoch what does not fill a batch [default: false]
    #[arg(long = "drop_last", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub drop_last: Option<bool>,
    /// Of several processes, each keeps the optimizer's state of its share of the weights only, which saves memory
    /// [default: false]
    #[arg(long = "shard_optimizer", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub shard_optimizer: Option<bool>,
    /// Keep a moving average of the weights, which is saved beside them [default: false]
    #[arg(long = "use_ema", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub use_ema: Option<bool>,
    /// Share of the old average in the new one [default: 0.9999]
    #[arg(long = "ema_rate", value_name = "X")]
    pub ema_rate: Option<f64>,
    /// Save at the end of every so many epochs; the end of the run is always saved [default: 1]
    #[arg(long = "ckpt_save_interval", value_name = "N")]
    pub ckpt_save_interval: Option<u64>,
    /// Save after every so many steps, too
    #[arg(long = "ckpt_save_steps", value_name = "N")]
    pub ckpt_save_steps: Option<u64>,
    /// Checkpoints that are kept, the newest ones [default: 3]
    #[arg(long = "ckpt_max_keep", value_name = "N")]
    pub ckpt_max_keep: Option<usize>,
    /// Tell of every so many steps [default: 1]
    #[arg(long = "log_loss_interval", value_name = "N")]
    pub log_loss_interval: Option<u64>,
}

/// Pictures that are drawn while training goes on.
#[derive(Args, Serialize, Deserialize, Default, Debug)]
#[serde(default)]
pub struct ValidationSettings {
    /// Draw pictures now and then, and at the end [default: false]
    #[arg(long, value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub visualize: Option<bool>,
    /// At the end of every so many epochs [default: 1]
    #[arg(long = "visualize_interval", value_name = "N")]
    pub visualize_interval: Option<u64>,
    /// What to draw
    #[arg(long = "validation_prompts", value_name = "TEXT", num_args = 1..)]
    pub validation_prompts: Vec<String>,
    /// What to avoid: none, or one for each of them
    #[arg(long = "validation_negative_prompts", value_name = "TEXT", num_args = 1..)]
    pub validation_negative_prompts: Vec<String>,
    /// Solver, as of pixart sample [default: iddpm]
    #[arg(long = "sampling_method", value_name = "NAME")]
    pub sampling_method: Option<String>,
    /// Steps of the solver [default: 100]
    #[arg(long = "sampling_steps", value_name = "N")]
    pub sampling_steps: Option<usize>,
    /// Guidance [default: 4.5]
    #[arg(long = "guidance_scale", value_name = "X")]
    pub guidance_scale: Option<f32>,
}

/// What computes.
#[derive(Args, Serialize, Deserialize, Default, Debug)]
#[serde(default)]
pub struct EngineSettings {
    /// What runs the graphs: auto, ort (ONNX Runtime) or tract [default: auto]
    #[arg(long, value_name = "NAME")]
    pub engine: Option<String>,
    /// Device to compute on, as of pixart sample; of several processes each takes that of its number [default: cpu]
    #[arg(long, value_name = "NAME[:N]")]
    pub device: Option<String>,
    /// An option of the device's provider, as NAME=VALUE; `pixart engine list NAME` shows them
    #[arg(long = "device_option", value_name = "NAME=VALUE")]
    #[serde(deserialize_with = "one_or_many")]
    pub device_option: Vec<String>,
    /// Plugin library for ONNX Runtime that brings the device [default: the one installed]
    #[arg(long = "device_plugin", value_name = "FILE")]
    pub device_plugin: Option<PathBuf>,
    /// Compute on the processor if the device cannot be used, or takes nothing of a graph [default: false]
    #[arg(long = "allow_cpu_fallback", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub allow_cpu_fallback: Option<bool>,
    /// Threads to compute with [default: all cores, shared out to the processes of the machine]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<usize>,
}

/// What upstream has and is nothing here, or something else.
#[derive(Args, Serialize, Deserialize, Default, Debug)]
#[serde(default)]
pub struct UpstreamSettings {
    /// The same as --device with upstream's names: CPU, GPU (cuda) or Ascend (cann)
    #[arg(long = "device_target", value_name = "NAME")]
    pub device_target: Option<String>,
    /// Train in several processes that `mpirun` has started, each on its share of every batch [default: false]
    #[arg(long = "use_parallel", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub use_parallel: Option<bool>,
    /// No effect: attention never holds all its scores where the engine knows how to avoid it
    #[arg(long = "enable_flash_attention", value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub enable_flash_attention: Option<bool>,
    /// No effect: the inside of a block is always computed again on the way back
    #[arg(long, value_name = "BOOL", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub recompute: Option<bool>,
    /// No effect: MindSpore's mode of execution, 0 or 1
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub mode: Option<u32>,
    /// No effect: MindSpore's way of compiling, O0 or O1
    #[arg(long = "jit_level", value_name = "LEVEL")]
    pub jit_level: Option<String>,
}

/// Lays the flags over the YAML file, if there is one.
pub fn merge(path: Option<&Path>, flags: &Settings) -> Result<Settings, Failure> {
    let known = names();
    Ok(Settings {
        data: config::merge(path, &flags.data, &known)?,
        encoders: config::merge(path, &flags.encoders, &known)?,
        model: config::merge(path, &flags.model, &known)?,
        lora: config::merge(path, &flags.lora, &known)?,
        prior: config::merge(path, &flags.prior, &known)?,
        optimizer: config::merge(path, &flags.optimizer, &known)?,
        precision: config::merge(path, &flags.precision, &known)?,
        run: config::merge(path, &flags.run, &known)?,
        validation: config::merge(path, &flags.validation, &known)?,
        engine: config::merge(path, &flags.engine, &known)?,
        upstream: config::merge(path, &flags.upstream, &known)?,
    })
}

impl Settings {
    /// What several processes must have in common: this program, the settings, the `data` and the step of the
    /// checkpoint that they go on from.
    pub fn told(
        &self,
        data: String,
        step: Option<u64>,
    ) -> Result<BTreeMap<String, String>, Failure> {
        let settings = serde_yaml::from_str(&self.to_yaml()?).map_err(anyhow::Error::from)?;
        let mut told = ranks::told(settings)?;
        told.insert("pictures and captions".to_owned(), data);
        let step = step.map_or("none".to_owned(), |step| format!("that of step {step}"));
        told.insert("checkpoint to go on from".to_owned(), step);
        Ok(told)
    }

    /// What was set, as a config that sets the same.
    pub fn to_yaml(&self) -> Result<String, Failure> {
        let groups = [
            config::given(&self.data),
            config::given(&self.encoders),
            config::given(&self.model),
            config::given(&self.lora),
            config::given(&self.prior),
            config::given(&self.optimizer),
            config::given(&self.precision),
            config::given(&self.run),
            config::given(&self.validation),
            config::given(&self.engine),
            config::given(&self.upstream),
        ];
        let mut all = serde_yaml::Mapping::new();
        for group in groups {
            let group = group.map_err(anyhow::Error::from)?;
            // How this run went on is nothing of another one.
            all.extend(group.into_iter().filter(|(name, _)| name.as_str() != Some("resume")));
        }
        let text = serde_yaml::to_string(&all).map_err(anyhow::Error::from)?;
        let version = env!("CARGO_PKG_VERSION");
        Ok(format!("# pixart {version}: what was set; everything else had its default.\n{text}"))
    }
}

/// The names of all settings of training, as flags and as YAML keys.
pub fn names() -> Vec<String> {
    let command = Settings::augment_args(clap::Command::new("train"));
    command.get_arguments().filter_map(|arg| Some(arg.get_long()?.to_owned())).collect()
}

/// A path that may be empty, which means something here.
fn path_or_nothing() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

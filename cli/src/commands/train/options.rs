//! What the settings ask for, checked before anything is loaded.

use super::settings::{
    EncoderSettings, LoraSettings, OptimizerSettings, PrecisionSettings, RunSettings, Settings,
};
use crate::exit::Failure;
use pixart_trainer::data::{BatchOptions, CaptionOptions};
use pixart_trainer::ema::Warmup;
use pixart_trainer::gradient::Precision;
use pixart_trainer::lora::{AdapterSettings, LINEAR_TARGETS, Start};
use pixart_trainer::loss::LossKind;
use pixart_trainer::optimizer::{AdamW, Algorithm, Came, Muon};
use pixart_trainer::ranks::Ranks;
use pixart_trainer::run::{
    AverageOptions, Length, Policy, RunOptions, SaveOptions, TogetherOptions,
};
use pixart_trainer::scaler::{Dynamic, LossScaler, Scaling};
use pixart_trainer::schedule::AutoLr;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// Folder of the checkpoints in the folder of everything that is written.
const CHECKPOINTS: &str = "ckpt";

/// How pictures are dealt out.
pub fn batches(settings: &Settings, ranks: Option<&Arc<Ranks>>) -> Result<BatchOptions, Failure> {
    let batch_size = settings.data.batch_size()?;
    let drop_last = settings.run.drop_last.unwrap_or(false);
    let [rank, world] = ranks.map_or([0, 1], |ranks| [ranks.place().rank, ranks.place().world]);
    let seed = settings.run.seed();
    Ok(BatchOptions { drop_last, rank, world, ..BatchOptions::new(batch_size, seed) })
}

/// The run.
pub fn run(settings: &Settings, ranks: Option<&Arc<Ranks>>) -> Result<RunOptions, Failure> {
    let Settings { optimizer, precision, run, encoders, lora, .. } = settings;
    let batch = settings.data.batch_size()? as u64;
    let accumulation = optimizer.accumulation()?;
    let workers = ranks.map_or(1, |ranks| ranks.place().world as u64);
    let shard_optimizer = run.shard_optimizer.unwrap_or(false);
    if shard_optimizer && ranks.is_none() {
        return Err(Failure::request(
            "shard_optimizer: found true without use_parallel; it shares out the state over several processes, one \
             keeps all of it",
        ));
    }
    Ok(RunOptions {
        seed: run.seed(),
        length: run.length()?,
        accumulation,
        loss: match lora.lora_rank {
            None => LossKind::WithVariance,
            Some(_) => LossKind::NoiseError,
        },
        precision: precision.dtype()?,
        snr_gamma: optimizer.snr_gamma,
        prior: None,
        latent_scale: encoders.latent_scale()?,
        algorithm: optimizer.algorithm()?,
        learning_rate: optimizer.learning_rate(batch * u64::from(accumulation) * workers)?,
        warmup_steps: optimizer.warmup_steps.unwrap_or(1000),
        scheduler: parsed(optimizer.scheduler.as_deref().unwrap_or("constant"))?,
        weight_decay: at_least_zero("weight_decay", optimizer.weight_decay.unwrap_or(0.0))?,
        largest_norm: optimizer.largest_norm()?,
        scaling: precision.scaling()?,
        on_overflow: match precision.drop_overflow_update.unwrap_or(true) {
            true => Policy::Skip,
            false => Policy::Stop,
        },
        on_nan: precision.on_nan()?,
        average: run.average()?,
        lora: lora.adapter()?,
        save: run.save()?,
        together: ranks.map(|ranks| TogetherOptions { ranks: ranks.clone(), shard_optimizer }),
    })
}

impl RunSettings {
    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(42)
    }

    /// The folder of everything that is written.
    pub fn output(&self) -> PathBuf {
        self.output_path.clone().unwrap_or_else(|| "output".into())
    }

    fn length(&self) -> Result<Length, Failure> {
        match self.max_train_steps {
            Some(steps) => Ok(Length::Steps(at_least_one("max_train_steps", steps)?)),
            None => Ok(Length::Epochs(at_least_one("epochs", self.epochs.unwrap_or(200))?)),
        }
    }

    fn average(&self) -> Result<Option<AverageOptions>, Failure> {
        let decay = self.ema_rate.unwrap_or(0.9999);
        if !(0.0..1.0).contains(&decay) {
            return Err(wrong("ema_rate", decay, "a number from 0 to below 1"));
        }
        // The warm-up that diffusers has by default.
        let average = AverageOptions { decay, warmup: Warmup::Ratio };
        Ok(self.use_ema.unwrap_or(false).then_some(average))
    }

    fn save(&self) -> Result<SaveOptions, Failure> {
        let every_epochs =
            at_least_one("ckpt_save_interval", self.ckpt_save_interval.unwrap_or(1))?;
        let every_steps = self.ckpt_save_steps.map(|steps| at_least_one("ckpt_save_steps", steps));
        let keep = at_least_one("ckpt_max_keep", self.ckpt_max_keep.unwrap_or(3))?;
        Ok(SaveOptions {
            folder: self.output().join(CHECKPOINTS),
            every_epochs: Some(every_epochs),
            every_steps: every_steps.transpose()?,
            keep,
        })
    }

    /// How often a step is told of.
    pub fn log_interval(&self) -> Result<u64, Failure> {
        at_least_one("log_loss_interval", self.log_loss_interval.unwrap_or(1))
    }
}

impl EncoderSettings {
    /// What latents are multiplied by.
    pub fn latent_scale(&self) -> Result<f32, Failure> {
        match self.sd_scale_factor.unwrap_or(0.13025) {
            scale if scale > 0.0 && scale.is_finite() => Ok(scale),
            found => Err(wrong("sd_scale_factor", found, "a number above 0")),
        }
    }

    /// Which captions are taken.
    pub fn captions(&self) -> Result<CaptionOptions, Failure> {
        let default = CaptionOptions::default();
        let probability = |name, value: Option<f64>, default| match value.unwrap_or(default) {
            value if (0.0..=1.0).contains(&value) => Ok(value),
            found => Err(wrong(name, found, "a number from 0 to 1")),
        };
        let (real, dropped) = (default.real_prompt_ratio, default.class_dropout_prob);
        Ok(CaptionOptions {
            real_prompt_ratio: probability("real_prompt_ratio", self.real_prompt_ratio, real)?,
            class_dropout_prob: probability(
                "class_dropout_prob",
                self.class_dropout_prob,
                dropped,
            )?,
        })
    }
}

impl OptimizerSettings {
    fn algorithm(&self) -> Result<Algorithm, Failure> {
        let mut algorithm: Algorithm = parsed(self.optim.as_deref().unwrap_or("adamw"))?;
        let adamw = |AdamW { betas, epsilon }: &mut AdamW| {
            *betas = several("adamw_betas", self.adamw_betas.as_deref(), *betas)?;
            *epsilon = self.adamw_eps.unwrap_or(*epsilon);
            Ok::<(), Failure>(())
        };
        match &mut algorithm {
            Algorithm::AdamW(settings) => adamw(settings)?,
            Algorithm::Muon(Muon { momentum, rest }) => {
                *momentum = self.muon_momentum.unwrap_or(*momentum);
                adamw(rest)?;
            }
            Algorithm::Came(Came { betas, epsilons, .. }) => {
                *betas = several("came_betas", self.came_betas.as_deref(), *betas)?;
                *epsilons = several("came_eps", self.came_eps.as_deref(), *epsilons)?;
            }
        }
        algorithm.check().map_err(Failure::request)?;
        Ok(algorithm)
    }

    fn accumulation(&self) -> Result<u32, Failure> {
        at_least_one("gradient_accumulation_steps", self.gradient_accumulation_steps.unwrap_or(1))
    }

    /// For a step of so many pictures.
    fn learning_rate(&self, pictures: u64) -> Result<f64, Failure> {
        let rate = at_least_zero("start_learning_rate", self.start_learning_rate.unwrap_or(2e-5))?;
        let rule: AutoLr = parsed(self.auto_lr.as_deref().unwrap_or_default())?;
        Ok(rule.learning_rate(rate, pictures))
    }

    fn largest_norm(&self) -> Result<Option<f64>, Failure> {
        let largest = self.max_grad_norm.unwrap_or(0.01);
        if largest.is_nan() || largest <= 0.0 {
            return Err(wrong(
                "max_grad_norm",
                largest,
                "a number above 0; clip_grad false is none",
            ));
        }
        Ok(self.clip_grad.unwrap_or(false).then_some(largest))
    }
}

impl PrecisionSettings {
    /// What the model is computed in.
    pub fn dtype(&self) -> Result<Precision, Failure> {
        parsed(self.dtype.as_deref().unwrap_or("fp32"))
    }

    /// What is multiplied with the loss; nothing where nothing is said about it and no number is too small.
    fn scaling(&self) -> Result<Scaling, Failure> {
        let numbers = [self.init_loss_scale, self.loss_scale_factor];
        let is_given = self.loss_scaler_type.is_some()
            || numbers.iter().any(Option::is_some)
            || self.scale_window.is_some();
        if !is_given && self.dtype()? != Precision::Fp16 {
            return Ok(Scaling::None);
        }
        let default = Dynamic::default();
        let initial = self.init_loss_scale.unwrap_or(default.initial);
        let scaling = match self.loss_scaler_type.as_deref() {
            Some("static") => Scaling::Static(initial),
            None | Some("dynamic") => Scaling::Dynamic(Dynamic {
                initial,
                factor: self.loss_scale_factor.unwrap_or(default.factor),
                window: self.scale_window.unwrap_or(default.window),
            }),
            Some(found) => return Err(wrong("loss_scaler_type", found, "dynamic or static")),
        };
        LossScaler::new(scaling).map_err(Failure::request)?;
        Ok(scaling)
    }

    fn on_nan(&self) -> Result<Policy, Failure> {
        match self.on_nan.as_deref() {
            None | Some("stop") => Ok(Policy::Stop),
            Some("skip") => Ok(Policy::Skip),
            Some(found) => Err(wrong("on_nan", found, "stop or skip")),
        }
    }
}

impl LoraSettings {
    fn adapter(&self) -> Result<Option<AdapterSettings>, Failure> {
        let Some(rank) = self.lora_rank else {
            let others = [
                ("lora_alpha", self.lora_alpha.is_some()),
                ("lora_targets", !self.lora_targets.is_empty()),
                ("lora_init", self.lora_init.is_some()),
                ("lora_rslora", self.lora_rslora.is_some()),
            ];
            return match others.into_iter().find(|(_, given)| *given) {
                None => Ok(None),
                Some((name, _)) => Err(Failure::request(format!(
                    "{name}: found it without lora_rank; say how large the LoRA is with --lora_rank, such as \
                     16, or leave it out to train all weights"
                ))),
            };
        };
        let targets = match self.lora_targets.is_empty() {
            true => LINEAR_TARGETS.map(str::to_owned).to_vec(),
            false => self.lora_targets.clone(),
        };
        let start = match self.lora_init.as_deref() {
            None | Some("uniform") => Start::KaimingUniform,
            Some("gaussian") => Start::Gaussian,
            Some(found) => return Err(wrong("lora_init", found, "uniform or gaussian")),
        };
        Ok(Some(AdapterSettings {
            targets,
            rank,
            alpha: self.lora_alpha.unwrap_or(rank as f64),
            rank_stabilised: self.lora_rslora.unwrap_or(false),
            start,
        }))
    }
}

/// A request with a value that cannot be.
pub fn wrong(setting: &str, found: impl Display, expected: &str) -> Failure {
    Failure::request(format!("{setting}: found {found}, expected {expected}"))
}

/// A value that a library reads, whose error names the setting.
fn parsed<T: FromStr<Err: Display>>(text: &str) -> Result<T, Failure> {
    text.parse().map_err(Failure::request)
}

fn several<const N: usize>(
    name: &str,
    given: Option<&[f64]>,
    default: [f64; N],
) -> Result<[f64; N], Failure> {
    let Some(given) = given else { return Ok(default) };
    let found = given.len();
    given.try_into().map_err(|_| wrong(name, format!("{found} numbers"), &format!("{N}")))
}

fn at_least_one<T: PartialOrd + From<u8>>(name: &str, value: T) -> Result<T, Failure> {
    match value >= T::from(1) {
        true => Ok(value),
        false => Err(wrong(name, 0, "1 or more")),
    }
}

fn at_least_zero(name: &str, value: f64) -> Result<f64, Failure> {
    // It becomes a number of 32 bits.
    match value >= 0.0 && (value as f32).is_finite() {
        true => Ok(value),
        false => Err(wrong(name, value, "a finite number, at least 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings;
    use super::*;
    use pixart_trainer::gradient::Precision;
    use std::path::Path;

    fn of(config: &str) -> (Settings, RunOptions) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/train");
        let settings = settings::merge(Some(&folder.join(config)), &Settings::default());
        let settings = settings.unwrap_or_else(|error| panic!("{config}: {error:?}"));
        let options = run(&settings, None).unwrap_or_else(|error| panic!("{config}: {error:?}"));
        (settings, options)
    }

    #[test]
    fn every_config_asks_for_what_upstreams_does() {
        for (config, size, batch, multi_scale) in [
            ("pixart-sigma-256x256.yaml", 32, 64, false),
            ("pixart-sigma-512-MS.yaml", 64, 32, true),
            ("pixart-sigma-1024-MS.yaml", 128, 12, true),
            ("pixart-sigma-2K-MS.yaml", 256, 4, true),
        ] {
            let (settings, options) = of(config);
            assert_eq!(settings.data.sample_size, Some(size), "{config}");
            assert_eq!(batches(&settings, None).expect("batches").batch_size, batch, "{config}");
            assert_eq!(settings.data.multi_scale, Some(multi_scale), "{config}");
            assert_eq!((options.seed, options.length), (42, Length::Epochs(100)));
            assert_eq!((options.accumulation, options.latent_scale), (1, 0.13025));
            assert_eq!(options.algorithm, Algorithm::Came(Came::default()));
            let expected = 2e-5 * (batch as f64 / 256.0).sqrt();
            assert!((options.learning_rate - expected).abs() < 1e-18, "{config}");
            assert_eq!((options.warmup_steps, options.weight_decay), (1000, 0.0));
            assert_eq!((options.largest_norm, options.precision), (Some(0.01), Precision::Fp16));
            assert_eq!(options.scaling, Scaling::Dynamic(Dynamic::default()));
            assert_eq!((options.on_overflow, options.on_nan), (Policy::Skip, Policy::Stop));
            assert_eq!(options.loss, LossKind::WithVariance);
            assert!(options.average.is_none() && options.lora.is_none());
            assert_eq!((options.save.every_epochs, options.save.keep), (Some(5), 3));
            assert_eq!(settings.encoders.captions().expect("fine"), CaptionOptions::default());
        }
    }

    #[test]
    fn the_config_of_a_lora_is_that_of_upstreams_example() {
        let (settings, options) = of("pixart-sigma-512-MS-lora.yaml");
        let lora = options.lora.expect("a LoRA");
        assert_eq!((lora.rank, lora.scale()), (16, 1.0));
        assert_eq!((options.loss, options.learning_rate), (LossKind::NoiseError, 1e-4));
        assert_eq!(options.length, Length::Epochs(80));
        assert_eq!(batches(&settings, None).expect("batches").batch_size, 4);
    }

    #[test]
    fn without_settings_there_are_upstreams_defaults() {
        let settings = Settings::default();
        let options = run(&settings, None).unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(batches(&settings, None).expect("batches").batch_size, 64);
        assert_eq!((options.seed, options.length), (42, Length::Epochs(200)));
        assert_eq!(options.algorithm, Algorithm::AdamW(AdamW::default()));
        assert_eq!((options.learning_rate, options.warmup_steps), (2e-5, 1000));
        assert_eq!(options.largest_norm, None);
        assert_eq!(options.save.folder, Path::new("output/ckpt"));
        assert_eq!(
            (options.save.every_epochs, options.save.every_steps, options.save.keep),
            (Some(1), None, 3)
        );
    }
}

//! `pixart bench`: how fast a model runs here, stage by stage, and how near that is to what the machine can do.

mod chart;
mod parts;
mod report;
mod stages;

use crate::exit::{Failure, print_line};
use crate::interrupt::on_ctrl_c;
use anyhow::Context;
use clap::{Args, ValueEnum};
use parts::{Part, Parts};
use pixart_exporter::{Int8Mode, Precision};
use pixart_runtime::files::write_atomically;
use pixart_runtime::measure::matmul_peak;
use report::{Products, Report, Row};
use serde::Serialize;
use stages::Bench;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::sample::devices::profile_for;
use super::sample::settings::Settings;

/// What is typed after `pixart bench`.
#[derive(Args)]
pub struct BenchArgs {
    /// Model folder, exported or not [default: models/demo, where nothing else is named]
    #[arg(short, long, value_name = "DIR", help_heading = "Model")]
    model: Option<PathBuf>,
    /// Transformer, if not the model's
    #[arg(long, value_name = "PATH", help_heading = "Model")]
    checkpoint: Option<PathBuf>,
    /// Text encoder folder, if not the model's
    #[arg(long = "text_encoder_root", value_name = "DIR", help_heading = "Model")]
    text_encoder_root: Option<PathBuf>,
    /// VAE folder, if not the model's
    #[arg(long = "vae_root", value_name = "DIR", help_heading = "Model")]
    vae_root: Option<PathBuf>,
    /// Random weights in the shapes of a published model (pixart-sigma-256, pixart-sigma-512, pixart-sigma-1024,
    /// pixart-sigma-2k), of a transformer's config.json, or of the config.json files of a model folder. They
    /// are written to a temporary folder and removed again
    #[arg(long, value_name = "CONFIG", help_heading = "Model",
        conflicts_with_all = ["model", "checkpoint", "text_encoder_root", "vae_root"])]
    random: Option<String>,
    /// Precision in which transformer and text encoder are exported where they are not yet: fp32, fp16, bf16,
    /// int8 or int4 [default: fp32]
    #[arg(long, alias = "dtype", value_name = "TYPE", help_heading = "Model")]
    precision: Option<Precision>,
    /// How int8 computes, with --random: weight_only or dynamic, which is for the transformer [default:
    /// weight_only]
    #[arg(long = "int8_mode", value_name = "MODE", help_heading = "Model")]
    int8_mode: Option<Int8Mode>,
    /// Folder for the random weights [default: the system's for temporary files]
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    scratch: Option<PathBuf>,

    /// What to measure [default: all that the parts named allow]
    #[arg(long, value_name = "STAGE", num_args = 1.., help_heading = "Work")]
    stages: Vec<StageName>,
    /// Sides of the pictures in pixels, multiples of 16
    #[arg(long, value_name = "PIXELS", num_args = 1.., help_heading = "Work",
        default_values_t = [256, 512, 1024, 2048])]
    sizes: Vec<u32>,
    /// Steps of a whole picture (DPM-Solver++), to which the measured ones are extrapolated
    #[arg(long, value_name = "N", default_value_t = 20, help_heading = "Work")]
    steps: usize,
    /// Pictures that are computed at once
    #[arg(long = "batch_size", value_name = "N", default_value_t = 1, help_heading = "Work")]
    batch_size: usize,
    /// Tokens of the prompt, the end of the sequence included; the negative prompt is empty
    #[arg(long, value_name = "N", default_value_t = 20, help_heading = "Work")]
    tokens: usize,
    /// Guidance; 1 switches it off, which halves the computation
    #[arg(long = "guidance_scale", value_name = "X", default_value_t = 4.5, help_heading = "Work")]
    guidance_scale: f32,
    /// Runs of each stage that count; their median is told
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Work")]
    repeats: usize,
    /// Runs before them that do not count, the first of which loads
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Work")]
    warmup: usize,
    /// Also tell how the time of each stage divides among the operators of its graph, in the engine's names, not in
    /// tiles
    #[arg(long, help_heading = "Work")]
    operators: bool,

    /// What runs the graphs: auto, ort (ONNX Runtime) or tract [default: auto]
    #[arg(long, value_name = "NAME", help_heading = "Engine")]
    engine: Option<String>,
    /// What computes, as for `pixart sample` [default: cpu]
    #[arg(long, value_name = "NAME[:N]", help_heading = "Engine")]
    device: Option<String>,
    /// An option of the device's provider, as NAME=VALUE
    #[arg(long = "device_option", value_name = "NAME=VALUE", help_heading = "Engine")]
    device_option: Vec<String>,
    /// Plugin library for ONNX Runtime that brings the device [default: the one installed]
    #[arg(long = "device_plugin", value_name = "FILE", help_heading = "Engine")]
    device_plugin: Option<PathBuf>,
    /// Threads to compute with [default: all cores]
    #[arg(short, long, value_name = "N", help_heading = "Engine")]
    threads: Option<usize>,
    /// Lay out weights for speed, as `pixart sample --keep_resident` does
    #[arg(long = "keep_resident", conflicts_with = "low_memory", help_heading = "Engine")]
    keep_resident: bool,
    /// Spend time for memory, as `pixart sample --low_memory` does
    #[arg(long = "low_memory", help_heading = "Engine")]
    low_memory: bool,

    /// Also write everything that was measured as JSON; `-` prints it instead of the table
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    json: Option<PathBuf>,
    /// Also draw the seconds as bars into this PNG file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    chart: Option<PathBuf>,
}

/// A stage of `pixart sample`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum StageName {
    /// The text encoder on prompt and negative prompt
    Text,
    /// One step of the transformer and the solver
    Denoise,
    /// The VAE's decoder
    Decode,
}

impl BenchArgs {
    fn check(&self) -> Result<(), Failure> {
        let refuse = |flag: &str, found: String, expected: &str| {
            Err(Failure::request(format!("{flag}: found {found}, expected {expected}")))
        };
        if let Some(side) = self.sizes.iter().find(|side| !is_side(**side)) {
            return refuse("sizes", side.to_string(), "multiples of 16 from 16 to 16384");
        }
        for (flag, found, most) in [
            ("steps", self.steps, 1000),
            ("batch_size", self.batch_size, 4096),
            ("tokens", self.tokens, 4096),
            ("repeats", self.repeats, 900),
            ("warmup", self.warmup, 90),
        ] {
            if !(1..=most).contains(&found) {
                return refuse(flag, found.to_string(), &format!("1 to {most}"));
            }
        }
        if !self.guidance_scale.is_finite() {
            return refuse("guidance_scale", self.guidance_scale.to_string(), "a finite number");
        }
        // The parser does not enforce this beside flags that exclude --random.
        for (flag, given) in
            [("int8_mode", self.int8_mode.is_some()), ("scratch", self.scratch.is_some())]
        {
            if given && self.random.is_none() {
                return Err(Failure::request(format!(
                    "{flag}: it is for weights that are made here; add --random CONFIG or leave it out"
                )));
            }
        }
        let device = self.settings().main_device()?;
        if self.low_memory && !device.provider.is_processor() {
            return refuse(
                "low_memory",
                device.to_string(),
                "the processor; leave one of the two out",
            );
        }
        // Found out now rather than after the work.
        for (flag, path) in [("json", &self.json), ("chart", &self.chart)] {
            let Some(path) = path.as_ref().filter(|path| path.as_os_str() != "-") else { continue };
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            if path.is_dir() || folder.is_some_and(|folder| !folder.is_dir()) {
                let found = format!("`{}`", path.display());
                return refuse(flag, found, "a file in a folder that is there");
            }
        }
        match &self.chart {
            Some(path) if path.extension().is_none_or(|e| !e.eq_ignore_ascii_case("png")) => {
                refuse("chart", format!("`{}`", path.display()), "a file whose name ends in .png")
            }
            _ => Ok(()),
        }
    }

    /// What opens the engine, as `pixart sample` does.
    fn settings(&self) -> Settings {
        Settings {
            engine: self.engine.clone(),
            device: self.device.clone(),
            device_option: self.device_option.clone(),
            device_plugin: self.device_plugin.clone(),
            threads: self.threads,
            keep_resident: Some(self.keep_resident),
            low_memory: Some(self.low_memory),
            // Loading is measured, and what random weights and stand-ins compile to is of no use later.
            no_compiled_cache: Some(true),
            ..Settings::default()
        }
    }

    fn is_guided(&self) -> bool {
        self.guidance_scale != 1.0
    }
}

fn is_side(side: u32) -> bool {
    (16..=16_384).contains(&side) && side.is_multiple_of(16)
}

/// Runs the command.
pub fn run(args: BenchArgs) -> Result<(), Failure> {
    args.check()?;
    let settings = args.settings();
    let parts = Parts::locate(&args)?;
    let stages = parts.stages(&args.stages)?;
    let opened = settings.open_engines()?;
    for note in &opened.notes {
        eprintln!("{note}");
    }
    let provider = opened.providers.transformer;
    let engine = opened.main().clone();
    let threads = match settings.threads()? {
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let interrupted = on_ctrl_c()?;

    let mut report = Report::new(&args, &parts, &engine.describe(), threads);
    let (profile, on_processor) = (profile_for(provider), provider.is_processor());
    let bench = Bench::new(&args, engine.clone(), profile, on_processor, interrupted.clone());
    let measure = || -> Result<(), Failure> {
        for stage in stages {
            // What a part takes on the disk is gone before the next one is made.
            let part: Part = parts.resolve(stage, provider, &args, &interrupted)?;
            report.note_precision(stage, &part.precision);
            bench.stage(stage, &part, &mut |row: Row| report.rows.push(row))?;
            if interrupted.is_cancelled() {
                return Ok(());
            }
        }
        // The last, so that its memory is not that of a stage.
        for products in report.products(on_processor) {
            eprintln!("measuring {products} matrix products on {}", engine.describe());
            let peak = matmul_peak(engine.as_ref(), products == Products::Fp16)?;
            report.note_peak(peak, products, on_processor);
        }
        Ok(())
    };
    // What was measured before something went wrong is told all the same.
    let failure = measure().err();
    if report.rows.is_empty()
        && let Some(failure) = failure
    {
        return Err(failure);
    }
    for warning in opened.warnings() {
        eprintln!("warning: {warning}");
    }
    let printed = args.json.as_deref().is_some_and(|path| path.as_os_str() == "-");
    if printed {
        print_line(report.json())?;
    } else {
        print_line(report.table().trim_end())?;
    }
    if let Some(path) = args.json.as_deref().filter(|_| !printed) {
        write(path, report.json().as_bytes())?;
    }
    if let Some(path) = &args.chart {
        write(path, &chart::draw(&report)?)?;
    }
    if interrupted.is_cancelled() {
        return Err(Failure::Interrupted("what was measured by then is told".to_owned()));
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    match report.is_measured() {
        true => Ok(()),
        false => Err(Failure::Failed(anyhow::anyhow!(
            "nothing was measured: this machine has too little memory for all that was asked for"
        ))),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let written = write_atomically(path, |file| file.write_all(bytes));
    Ok(written.with_context(|| format!("cannot write {}", path.display()))?)
}

//! `pixart engine selftest`: does a device compute what it should? The table that `docs/engines.md` has for
//! the devices that were tried, for one that only you have.

use super::devices::DeviceArgs;
use crate::commands::sample::devices::Providers;
use crate::exit::{Failure, print_line};
use crate::model::{Sources, Wanted};
use clap::Args;
use image::RgbImage;
use pixart_exporter::{Precision, VariantFlags};
use pixart_runtime::engine::provider::Device;
use pixart_runtime::engine::{self, Engine, EngineChoice, EngineOptions};
use pixart_runtime::pipeline::{ModelPaths, Pipeline, PipelineOptions, Request};
use pixart_runtime::verify::compare_engines;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// How close a picture in fp32 must come to tract's, in decibels: nothing that an eye could find.
const CLOSE: f64 = 50.0;

/// What is typed after `pixart engine selftest`.
#[derive(Args)]
pub struct SelftestArgs {
    /// The device, as after --device
    #[arg(value_name = "NAME[:N]")]
    device: String,
    /// Model folder, exported or not [default: models/demo]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Precisions to try [default: all that the device computes]
    #[arg(long, value_name = "TYPE", num_args = 1..)]
    dtype: Vec<String>,
    #[command(flatten)]
    options: DeviceArgs,
}

/// Runs the command.
pub fn run(args: &SelftestArgs) -> Result<(), Failure> {
    let device: Device = args.device.parse()?;
    let opened = args.options.open(device)?;
    let provider = opened.provider;
    let providers = Providers { text_encoder: provider, transformer: provider, vae: provider };
    let none = VariantFlags::default();
    let sources = Sources::locate(args.model.as_deref(), None, None, None, None, none)?;
    let precisions = match args.dtype.is_empty() {
        true => provider.precisions.iter().map(|name| (*name).to_owned()).collect(),
        false => args.dtype.clone(),
    };
    print_line(format!("{}, profile {}", opened.engine.describe(), provider.profile))?;
    print_line("precision part          on device  largest error  allowed")?;
    let mut bad = 0;
    let mut exact = None;
    for name in precisions {
        let precision: Precision =
            name.parse().map_err(|error| Failure::request(format!("dtype: {error}")))?;
        let wanted = Wanted::new(Some(precision), providers)?;
        let paths = sources.resolve(providers, wanted, false)?;
        let vae = (precision == Precision::Fp32).then_some(&paths.vae_decoder);
        for folder in [&paths.text_encoder, &paths.transformer].into_iter().chain(vae) {
            bad += usize::from(!part(&name, folder, opened.engine.as_ref())?);
        }
        if precision == Precision::Fp32 {
            exact = Some(paths);
        }
    }
    if let Some(paths) = exact {
        bad += usize::from(!picture(&opened.engine, paths)?);
    }
    match bad {
        0 => Ok(()),
        bad => Err(Failure::Failed(anyhow::anyhow!(
            "{bad} of the results are too far from tract's; other options of the device may help, see \
             `pixart engine list {}`",
            provider.name
        ))),
    }
}

/// One row of the table; true if all is well.
fn part(precision: &str, folder: &Path, engine: &dyn Engine) -> Result<bool, Failure> {
    let known = engine.placements().len();
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let (nodes, error, allowed, good) = match compare_engines(folder, engine) {
        Ok(found) => {
            let placement = engine.placements().into_iter().nth(known);
            let nodes = placement.map(|placement| {
                let (device, cpu) = (placement.device_nodes(), placement.cpu_nodes());
                format!("{device}/{}", device + cpu)
            });
            let error = found.difference.max_relative;
            let good = error <= found.allowed;
            (nodes, format!("{error:.1e}"), format!("{:.0e}", found.allowed), good)
        }
        Err(error) => (None, format!("failed: {error}"), String::new(), false),
    };
    let nodes = nodes.unwrap_or_else(|| "all".to_owned());
    let verdict = if good { "" } else { "  too far" };
    print_line(format!("{precision:<9} {name:<13} {nodes:>11}  {error:>13}  {allowed}{verdict}"))?;
    Ok(good)
}

/// A whole picture on the device and on tract.
fn picture(device: &Arc<dyn Engine>, paths: ModelPaths) -> Result<bool, Failure> {
    let tract = engine::open(EngineChoice::Tract, &EngineOptions::default())?.engine;
    let request = Request {
        prompts: vec!["a red circle on a blue background".to_owned()],
        sampling_steps: 4,
        ..Request::default()
    };
    let draw = |engine: &Arc<dyn Engine>| {
        let mut pipeline =
            Pipeline::new(engine.clone(), paths.clone(), PipelineOptions::default())?;
        let begin = Instant::now();
        let mut pictures = pipeline.sample(&request, &mut |_| ())?;
        let picture = pictures.pop().ok_or_else(|| anyhow::anyhow!("no picture came"))?;
        Ok::<_, Failure>((picture.image, begin.elapsed().as_secs_f64()))
    };
    let (expected, slow) = draw(&tract)?;
    let (found, seconds) = draw(device)?;
    let ratio = decibels(&found, &expected);
    let good = ratio >= CLOSE;
    let verdict = if good { "" } else { "  too far" };
    print_line(format!(
        "a picture of 4 steps in fp32: {ratio:.1} dB from tract's, expected {CLOSE:.0} or more{verdict}; \
         {seconds:.2} s with loading, tract {slow:.2} s"
    ))?;
    Ok(good)
}

/// Peak signal-to-noise ratio of two pictures.
fn decibels(a: &RgbImage, b: &RgbImage) -> f64 {
    if a.dimensions() != b.dimensions() {
        return 0.0;
    }
    let squares = a.as_raw().iter().zip(b.as_raw()).map(|(&a, &b)| {
        let apart = f64::from(a) - f64::from(b);
        apart * apart
    });
    let mean = squares.sum::<f64>() / a.as_raw().len().max(1) as f64;
    10.0 * (255.0f64.powi(2) / mean).log10()
}

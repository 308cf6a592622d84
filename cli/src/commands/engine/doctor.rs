//! `pixart engine doctor`: what is there, what works, what is missing.

use super::devices::DeviceArgs;
use super::list::print_engine;
use crate::commands::sample::devices::Providers;
use crate::exit::{Failure, print_line};
use crate::model::{Sources, Wanted};
use anyhow::Context;
use clap::Args;
use pixart_exporter::VariantFlags;
use pixart_runtime::bundle::store;
use pixart_runtime::engine::data_folder;
use pixart_runtime::engine::install::{Status, list};
use pixart_runtime::engine::provider::{Device, PROVIDERS, Provider, has_system_library};
use pixart_runtime::engine::{Engine, Opened};
use pixart_runtime::verify::random_cases;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is typed after `pixart engine doctor`.
#[derive(Args)]
pub struct DoctorArgs {
    /// Look at this device only [default: all that something installed brings]
    #[arg(long, value_name = "NAME[:N]")]
    device: Option<String>,
    /// With --device: model folder, exported or not; says how many nodes and what share of the time the
    /// device takes, and which operators are left to the processor
    #[arg(long, value_name = "DIR", requires = "device")]
    model: Option<PathBuf>,
    #[command(flatten)]
    options: DeviceArgs,
}

/// Runs the command.
pub fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let Some(device) = &args.device else {
        return match args.options.any() {
            true => Err(Failure::request(
                "device_option, device_plugin and threads: these are for one device; name it with --device",
            )),
            false => everything(),
        };
    };
    let device: Device = device.parse()?;
    let opened = args.options.open(device.clone())?;
    print_line(format!("{device}: works, {}", opened.engine.describe()))?;
    match &args.model {
        Some(model) => parts(model, &opened),
        None => Ok(()),
    }
}

/// Libraries, then each device that one of them may bring.
fn everything() -> Result<(), Failure> {
    let engines = list(&data_folder()?);
    print_line("libraries, compared with the hashes of what was installed:")?;
    engines.iter().try_for_each(print_engine)?;
    print_line("\ndevices:")?;
    let mut broken = 0;
    for provider in PROVIDERS {
        if !may_be_there(provider, &engines) {
            print_line(format!("  {}: not installed; {}", provider.name, provider.how_to_get()))?;
            continue;
        }
        match try_alone(provider) {
            Ok(line) => print_line(format!("  {line}"))?,
            Err(reason) => {
                broken += 1;
                print_line(format!("  {}: does not work: {reason}", provider.name))?;
            }
        }
        // Their names are those of Linux.
        let libraries = provider.system_libraries.iter().filter(|_| cfg!(target_os = "linux"));
        for libraries in libraries {
            if !libraries.split(" or ").any(has_system_library) {
                print_line(format!("      the system has no {libraries}"))?;
            }
        }
    }
    match broken {
        0 => Ok(()),
        count => Err(Failure::Failed(anyhow::anyhow!("{count} of the devices do not work"))),
    }
}

/// Whether something on this machine may bring the provider.
fn may_be_there(provider: &Provider, engines: &[Status]) -> bool {
    let brought = |engine: &Status| provider.builds.contains(&engine.name.as_str());
    ["cpu", "tract"].contains(&provider.name)
        || provider.is_for_this_system() && engines.iter().any(brought)
}

/// Lets another process try the device: a driver may end it, and one process holds one ONNX Runtime.
fn try_alone(provider: &Provider) -> Result<String, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(program)
        .args(["engine", "doctor", "--device", provider.name])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.code() {
        Some(0) => Ok(text(&output.stdout)),
        Some(_) => {
            let errors = text(&output.stderr);
            // What drivers write before it is not for everybody.
            let at = errors.find("error: ").map_or(0, |at| at + "error: ".len());
            Err(errors[at..].to_owned())
        }
        None => Err(format!("it ended the program ({})", output.status)),
    }
}

/// Loads each part of a model, runs it once, and says where its nodes are computed.
fn parts(model: &Path, opened: &Opened) -> Result<(), Failure> {
    let none = VariantFlags::default();
    let sources = Sources::locate(Some(model), None, None, None, None, none)?;
    let provider = opened.provider;
    let providers = Providers { text_encoder: provider, transformer: provider, vae: provider };
    let paths = sources.resolve(providers, Wanted::new(None, providers)?, false)?;
    for folder in [&paths.text_encoder, &paths.transformer, &paths.vae_decoder] {
        let part = folder.file_name().unwrap_or_default().to_string_lossy();
        print_line(format!("{part}:"))?;
        part_of(folder, opened.engine.as_ref(), provider)?;
    }
    Ok(())
}

fn part_of(folder: &Path, engine: &dyn Engine, provider: &Provider) -> Result<(), Failure> {
    let file = folder.join("manifest.json");
    let manifest = store::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest)
        .with_context(|| format!("{} is damaged; export the model again", file.display()))?;
    let graph = folder.join("model.onnx");
    let cases = random_cases(&graph, &manifest["architecture"], 1)?;
    let inputs: Vec<_> = cases
        .first()
        .iter()
        .flat_map(|case| &case.inputs)
        .map(|(name, value)| (name.as_str(), value))
        .collect();
    let Some(name) = provider.ort_name.filter(|_| engine.name() == "ort") else {
        engine.load(&graph)?.run(&inputs)?;
        return Ok(print_line("  computed by tract alone")?);
    };
    let shares = engine.time_shares(&graph, &inputs)?.unwrap_or_default();
    if let Some(placement) = engine.placements().last() {
        print_line(format!("  {placement}"))?;
    }
    print_line(format!("  {:.1} % of the time on {}", 100.0 * shares.of(name), provider.name))?;
    let others = shares.others(name);
    if let Some((operator, seconds)) = others.first() {
        print_line(format!("  longest elsewhere: {operator}, {:.2} ms", 1e3 * seconds))?;
    }
    Ok(())
}

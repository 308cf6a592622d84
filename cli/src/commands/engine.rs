//! `pixart engine`: what runs the graphs, how to get a faster one, and whether it computes right.

pub(crate) mod devices;
mod doctor;
mod list;
mod selftest;
mod warm;

use crate::exit::{Failure, print_line};
use clap::{Args, Subcommand};
use pixart_runtime::engine::data_folder;
use pixart_runtime::engine::install::{InstallOptions, Outcome, install};
use pixart_runtime::engine::provider::{BUILDS, Build, PROVIDERS};

/// What is typed after `pixart engine`.
#[derive(Args)]
pub struct EngineArgs {
    #[command(subcommand)]
    command: EngineCommand,
}

#[derive(Subcommand)]
enum EngineCommand {
    /// Show the engines and devices there are, or all about one device
    List {
        /// The device
        #[arg(value_name = "NAME", help = devices_help())]
        name: Option<String>,
    },
    /// Fetch a build of ONNX Runtime, or a plugin for it, with your own pip
    Install {
        /// Which build
        #[arg(value_name = "NAME", help = names_help())]
        name: String,
        /// An exact version [default: the newest]
        #[arg(long, value_name = "X.Y.Z")]
        version: Option<String>,
        /// Fetch again even if it is installed
        #[arg(long)]
        force: bool,
    },
    /// Look at every library and device: what is there, what works, what is missing
    Doctor(doctor::DoctorArgs),
    /// Compute the demo model on a device and compare it with tract
    Selftest(selftest::SelftestArgs),
    /// Compile what sampling with these settings needs, and keep it for the next start
    Warm(Box<warm::WarmArgs>),
}

fn devices_help() -> String {
    let names: Vec<&str> = PROVIDERS.iter().map(|provider| provider.name).collect();
    format!("The device: {}", names.join(", "))
}

fn names_help() -> String {
    let lines = BUILDS.iter().map(|p| format!("{}: {}", p.name, p.summary));
    lines.collect::<Vec<_>>().join("; ")
}

/// Runs the command.
pub fn run(args: EngineArgs) -> Result<(), Failure> {
    match args.command {
        EngineCommand::List { name: None } => list::all(),
        EngineCommand::List { name: Some(name) } => list::one(&name),
        EngineCommand::Install { name, version, force } => {
            let build = Build::named(&name)?;
            let folder = data_folder()?;
            let options = InstallOptions { version, force };
            let mut say = |stage: &str| eprintln!("{stage}");
            let (installed, how) = match install(build, &folder, &options, &mut say)? {
                Outcome::Installed(installed) => (installed, "installed"),
                Outcome::AlreadyInstalled(installed) => (installed, "already installed"),
            };
            let what = if installed.record.plugin { "plugin" } else { "ONNX Runtime" };
            eprintln!("{how}: {what} {} ({})", installed.record.version, build.name);
            print_line(installed.library().display())?;
            Ok(())
        }
        EngineCommand::Doctor(args) => doctor::run(&args),
        EngineCommand::Selftest(args) => selftest::run(&args),
        EngineCommand::Warm(args) => warm::run(*args),
    }
}

//! `pixart engine`: what runs the graphs, and how to get a faster one.

use crate::exit::{Failure, print_line};
use clap::{Args, Subcommand};
use pixart_runtime::engine::data_folder;
use pixart_runtime::engine::install::{InstallOptions, Outcome, install, list};
use pixart_runtime::engine::provider::{BUILDS, Build};

/// What is typed after `pixart engine`.
#[derive(Args)]
pub struct EngineArgs {
    #[command(subcommand)]
    command: EngineCommand,
}

#[derive(Subcommand)]
enum EngineCommand {
    /// Show the engines there are, with versions, places and what is wrong with them
    List,
    /// Fetch a build of ONNX Runtime with your own pip
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
}

fn names_help() -> String {
    let lines = BUILDS.iter().map(|p| format!("{}: {}", p.name, p.summary));
    lines.collect::<Vec<_>>().join("; ")
}

/// Runs the command.
pub fn run(args: EngineArgs) -> Result<(), Failure> {
    match args.command {
        EngineCommand::List => show(),
        EngineCommand::Install { name, version, force } => {
            let build = Build::named(&name)?;
            let folder = data_folder()?;
            let options = InstallOptions { version, force };
            let mut say = |stage: &str| eprintln!("{stage}");
            let (installed, how) = match install(build, &folder, &options, &mut say)? {
                Outcome::Installed(installed) => (installed, "installed"),
                Outcome::AlreadyInstalled(installed) => (installed, "already installed"),
            };
            eprintln!("{how}: ONNX Runtime {} ({name})", installed.record.version);
            print_line(installed.library().display())?;
            Ok(())
        }
    }
}

fn show() -> Result<(), Failure> {
    let folder = data_folder()?;
    let engines = list(&folder);
    for engine in &engines {
        let kind = if engine.name != "tract" { "ONNX Runtime" } else { "" };
        let name = [kind, engine.version.as_deref().unwrap_or(""), &format!("({})", engine.name)];
        let name = name.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>();
        let mark = if engine.chosen { "*" } else { " " };
        print_line(format!("{mark} {}  {}", name.join(" "), engine.origin))?;
        if let Some(path) = &engine.path {
            print_line(format!("    {}", path.display()))?;
        }
        if let Some(problem) = &engine.problem {
            print_line(format!("    not usable: {problem}"))?;
        }
    }
    if engines.iter().all(|engine| engine.path.is_none()) {
        print_line("  ONNX Runtime is not installed; it is faster: pixart engine install cpu")?;
    }
    print_line("* is what --engine auto takes")?;
    Ok(())
}

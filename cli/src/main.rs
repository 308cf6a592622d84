//! The `pixart` command: PixArt-Σ text-to-image on ONNX, without Python.

mod bundled;
mod commands;
mod config;
mod exit;
mod interrupt;
mod model;
mod progress;
mod ranks;
mod spelling;
mod upstream;
mod variant;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use pixart_runtime::bundle;

/// PixArt-Σ text-to-image on ONNX: export the published weights, sample pictures, no Python.
#[derive(Parser)]
#[command(name = "pixart", version, max_term_width = 100, after_help = exit::CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make pictures from prompts
    Sample(Box<commands::sample::SampleArgs>),
    /// Put prompts into the text cache, for a machine without the text encoder
    Encode(Box<commands::encode::EncodeArgs>),
    /// Write ONNX graphs from a checkpoint
    Export(commands::export::ExportArgs),
    /// Rewrite a checkpoint as safetensors, under the original names or diffusers'
    Convert(commands::convert::ConvertArgs),
    /// Tell what a checkpoint or an export is, and how a picture was made
    Inspect(commands::inspect::InspectArgs),
    /// Train a model, or a LoRA of one, on pictures and captions
    Train(Box<commands::train::TrainArgs>),
    /// Look at pictures and captions before training on them
    Dataset(commands::dataset::DatasetArgs),
    /// Measure how fast a model runs here, and how near that is to what the machine can do
    Bench(Box<commands::bench::BenchArgs>),
    /// List and install the engines that run the graphs
    Engine(commands::engine::EngineArgs),
    /// Make one executable of this program, ONNX Runtime and a model; look into one
    Bundle(commands::bundle::BundleArgs),
    /// Print the completions of a shell
    Completions(commands::completions::CompletionsArgs),
    /// Write manual pages
    #[command(hide = true)]
    Man(commands::completions::ManArgs),
}

fn main() -> std::process::ExitCode {
    let arguments = spelling::normalise(std::env::args_os());
    let (command, arguments) = match bundle::own() {
        Ok(None) => match bundled::for_a_bundle(&Cli::command(), &arguments) {
            Some(failure) => return exit::report(Err(failure)),
            None => (Cli::command(), arguments),
        },
        Ok(Some(own)) => {
            (bundled::described(Cli::command(), own), bundled::with_command(arguments))
        }
        Err(error) => return exit::report(Err(anyhow::anyhow!("{error}").into())),
    };
    // clap prints its own message: usage errors exit with 2, help and version with 0.
    let matches = command.get_matches_from(arguments);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    exit::report(match cli.command {
        Command::Sample(args) => commands::sample::run(*args),
        Command::Encode(args) => commands::encode::run(*args),
        Command::Export(args) => commands::export::run(args),
        Command::Convert(args) => commands::convert::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Train(args) => commands::train::run(*args),
        Command::Dataset(args) => commands::dataset::run(args),
        Command::Bench(args) => commands::bench::run(*args),
        Command::Engine(args) => commands::engine::run(args),
        Command::Bundle(args) => commands::bundle::run(args),
        Command::Completions(args) => commands::completions::completions(args, Cli::command()),
        Command::Man(args) => commands::completions::man(args, Cli::command()),
    })
}

#[cfg(test)]
mod tests {
    use super::{Cli, CommandFactory};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}

//! The `pixart` command: PixArt-Σ text-to-image on ONNX, without Python.

mod commands;
mod config;
mod exit;
mod interrupt;
mod model;
mod progress;
mod spelling;
mod upstream;
mod variant;

use clap::{Parser, Subcommand};

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
    /// List and install the engines that run the graphs
    Engine(commands::engine::EngineArgs),
}

fn main() -> std::process::ExitCode {
    // clap prints its own message: usage errors exit with 2, help and version with 0.
    let cli = Cli::parse_from(spelling::normalise(std::env::args_os()));
    exit::report(match cli.command {
        Command::Sample(args) => commands::sample::run(*args),
        Command::Encode(args) => commands::encode::run(*args),
        Command::Export(args) => commands::export::run(args),
        Command::Convert(args) => commands::convert::run(args),
        Command::Inspect(args) => commands::inspect::run(args),
        Command::Train(args) => commands::train::run(*args),
        Command::Dataset(args) => commands::dataset::run(args),
        Command::Engine(args) => commands::engine::run(args),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}

//! `pixart completions` and `pixart man`: what shells and `man` want to know, made from the flags themselves.

use crate::exit::Failure;
use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;
use std::io::Write;
use std::path::PathBuf;

/// What is typed after `pixart completions`.
#[derive(Args)]
pub struct CompletionsArgs {
    /// The shell; its own documentation tells where the output belongs
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// What is typed after `pixart man`.
#[derive(Args)]
pub struct ManArgs {
    /// Where the pages go, one a command; made if it is not there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Prints the completions of a shell.
pub fn completions(args: CompletionsArgs, mut command: Command) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "pixart", &mut text);
    match std::io::stdout().write_all(&text) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Writes the manual pages.
pub fn man(args: ManArgs, command: Command) -> Result<(), Failure> {
    let folder = args.folder.display();
    let context = || format!("cannot write manual pages into {folder}");
    std::fs::create_dir_all(&args.folder).with_context(context)?;
    clap_mangen::generate_to(command, &args.folder).with_context(context)?;
    Ok(())
}

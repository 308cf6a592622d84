//! What differs when the program was started from a bundle: it samples without being told to, from the model
//! inside, and its help says what it is.

use crate::exit::Failure;
use clap::Command;
use pixart_runtime::bundle::Bundle;
use std::ffi::OsString;

/// The flags that are about the program as a whole.
const PROGRAM: [&str; 4] = ["-h", "--help", "-V", "--version"];

/// Puts `sample` before flags that come without a command.
pub fn with_command(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let is_flag = |argument: &OsString| {
        let text = argument.to_string_lossy();
        text.starts_with('-') && !PROGRAM.contains(&&*text)
    };
    if arguments.get(1).is_some_and(is_flag) {
        arguments.insert(1, "sample".into());
    }
    arguments
}

/// What to say when a program without a model gets the flags that a bundle takes without a command; some of
/// these programs were bundles once.
pub fn for_a_bundle(command: &Command, arguments: &[OsString]) -> Option<Failure> {
    let typed = arguments.get(1)?.to_string_lossy();
    let sample = command.find_subcommand("sample")?;
    let meant = sample.get_arguments().any(|known| match typed.strip_prefix("--") {
        Some(name) => known.get_long() == name.split('=').next(),
        None => known.get_short().is_some_and(|short| *typed == format!("-{short}")),
    });
    (meant && !PROGRAM.contains(&&*typed)).then(|| {
        Failure::request(format!(
            "found {typed} without a command, expected `pixart sample {typed} …`; only a bundle samples \
             without being told to, and this file holds no model: if it was a bundle, its end is lost, copy it \
             again"
        ))
    })
}

/// The help of a bundle: the commands' own, with what is inside before it.
pub fn described(command: Command, bundle: &Bundle) -> Command {
    let index = bundle.index();
    let name = bundle.file().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut inside = Vec::new();
    for part in index.parts() {
        let bytes: u64 = index.files(part).map(|entry| entry.bytes).sum();
        inside.push(format!("  {part:<14} {:>10.1} MB", bytes as f64 / 1e6));
    }
    let engine = match &index.engine {
        Some(engine) => format!("ONNX Runtime {} ({}), and tract", engine.version, engine.name),
        None => "tract".to_owned(),
    };
    let about = format!(
        "A model with all that runs it in one file: prompt in, picture out, nothing to install.\n\n\
         {name} is pixart {} for {} with\n{}\n\nEngine: {engine}\n\n  \
         {name} --prompt \"a red circle\"   makes a picture\n  \
         {name} sample --help             lists the flags for that\n  \
         {name} bundle --check            compares every file inside with its hash\n  \
         {name} bundle --extract DIR      gets the folders back",
        index.program.version,
        index.program.platform,
        inside.join("\n"),
    );
    command.about(about).bin_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_a_model_says_so() {
        let command = Command::new("pixart").subcommand(
            Command::new("sample")
                .arg(clap::Arg::new("prompt").short('p').long("prompt"))
                .arg(clap::Arg::new("seed").long("seed")),
        );
        let told = |typed: &str| for_a_bundle(&command, &["pixart".into(), typed.into()]);
        for typed in ["--prompt", "-p", "--seed=3"] {
            let Some(Failure::Request(error)) = told(typed) else { panic!("nothing on {typed}") };
            assert!(error.to_string().contains("holds no model"), "{error}");
        }
        for typed in ["--help", "-V", "--pro", "sample", "-x", "--", "-"] {
            assert!(told(typed).is_none(), "{typed}");
        }
        assert!(for_a_bundle(&command, &["pixart".into()]).is_none());
    }

    #[test]
    fn flags_without_a_command_are_for_sampling() {
        for (typed, expected) in [
            (&["--prompt", "a"][..], &["sample", "--prompt", "a"][..]),
            (&["-p", "a"], &["sample", "-p", "a"]),
            (&["sample", "-p", "a"], &["sample", "-p", "a"]),
            (&["bundle", "--check"], &["bundle", "--check"]),
            (&["--help"], &["--help"]),
            (&["-V"], &["-V"]),
            (&[], &[]),
        ] {
            let line = |words: &[&str]| -> Vec<OsString> {
                std::iter::once("demo").chain(words.iter().copied()).map(OsString::from).collect()
            };
            assert_eq!(with_command(line(typed)), line(expected), "{typed:?}");
        }
    }
}

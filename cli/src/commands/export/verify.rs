//! `pixart export --verify DIR`: is an export still what it was, and do two engines agree on it?

use crate::exit::{Failure, print_line};
use crate::progress::{Progress, Unit};
use pixart_runtime::engine::{self, EngineChoice, EngineOptions};
use pixart_runtime::verify::{
    CheckedFolder, EngineComparison, VerifyError, check_files, compare_engines, component_folders,
};
use std::path::Path;

/// Checks every component under `folder`; with `numeric`, runs those whose files are unchanged.
pub fn run(folder: &Path, numeric: bool) -> Result<(), Failure> {
    let folders = component_folders(folder).map_err(|error| match error {
        VerifyError::Read { .. } | VerifyError::NothingExported { .. } => {
            Failure::Request(error.into())
        }
        other => Failure::Failed(other.into()),
    })?;
    // Before the files are read, which can take minutes.
    let engine = match numeric {
        true => Some(engine::open(EngineChoice::Ort, &EngineOptions::default())?.engine),
        false => None,
    };
    let mut bad = 0;
    for folder in &folders {
        let checked = hash(folder)?;
        print_files(&checked)?;
        let mut good = checked.problems.is_empty();
        if let (true, Some(engine)) = (good, &engine) {
            good = match compare_engines(folder, &**engine) {
                Ok(comparison) => print_comparison(folder, &comparison)?,
                Err(error) => {
                    print_line(format!("{}: {error}", folder.display()))?;
                    false
                }
            };
        }
        bad += usize::from(!good);
    }
    match bad {
        0 => Ok(()),
        bad => Err(Failure::Failed(anyhow::anyhow!(
            "{}: {bad} of {} components did not pass; copy or export them again",
            folder.display(),
            folders.len()
        ))),
    }
}

fn hash(folder: &Path) -> Result<CheckedFolder, VerifyError> {
    let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy();
    let mut bar = Progress::start(format!("verify {name}"), 0, Unit::Bytes);
    let checked = check_files(folder, &mut |done, total| bar.update(done, total));
    bar.finish();
    checked
}

fn print_files(checked: &CheckedFolder) -> std::io::Result<()> {
    let folder = checked.folder.display();
    if checked.problems.is_empty() {
        let (files, bytes) = (checked.files, checked.bytes);
        return print_line(format!("{folder}: {files} files, {bytes} bytes, all as exported"));
    }
    checked.problems.iter().try_for_each(|problem| print_line(format!("{folder}/{problem}")))
}

/// Prints the result; true if the engines agree.
fn print_comparison(folder: &Path, comparison: &EngineComparison) -> std::io::Result<bool> {
    let EngineComparison { reference, second, difference, allowed, precision, .. } = comparison;
    let agree = difference.max_relative <= *allowed;
    let verdict = if agree { "allowed" } else { "which is too much; allowed" };
    print_line(format!(
        "{}: largest relative error {:.1e}, rms {:.1e}, {verdict} {allowed:.0e} in {precision}: \
         {second} against {reference}",
        folder.display(),
        difference.max_relative,
        difference.rms,
    ))?;
    if let Some(note) = &comparison.note {
        print_line(format!("{}: {note}", folder.display()))?;
    }
    Ok(agree)
}

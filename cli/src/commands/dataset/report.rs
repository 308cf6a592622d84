//! The report as a table.

use crate::exit::{Failure, print_line};
use pixart_trainer::data::{CheckOptions, CheckReport, LeftOutEntry};
use std::collections::BTreeMap;
use std::path::Path;

/// Entries of a kind that are listed before they are only counted.
const LISTED: usize = 12;

/// Prints what was found.
pub fn print(found: &CheckReport, options: &CheckOptions<'_>, quick: bool) -> Result<(), Failure> {
    row("labels", found.entries)?;
    row("usable", found.usable)?;
    let [both, prompt, sharegpt4v] = found.captions;
    row("captions", format!("{both} both, {prompt} prompt only, {sharegpt4v} sharegpt4v only"))?;
    match (&found.long_captions, &options.captions) {
        (Some(long), Some(limit)) => {
            let limit = limit.max_length;
            row("captions cut", format!("{} longer than {limit} tokens", long.len()))?;
            listed(long.iter().map(|long| {
                format!("{}: {}, {} tokens", shown(&long.path), long.caption, long.tokens)
            }))?;
        }
        _ => row("captions cut", "not counted, --tokenizer_root names no tokenizer")?,
    }
    let mut kinds = BTreeMap::<&str, Vec<&LeftOutEntry>>::new();
    for entry in &found.left_out {
        kinds.entry(entry.kind).or_default().push(entry);
    }
    for (kind, entries) in kinds {
        row(kind, entries.len())?;
        listed(entries.into_iter().map(|entry| {
            let line = entry.line.map(|line| format!(" (line {line})")).unwrap_or_default();
            format!("entry {}{line}, {}: {}", entry.entry, shown(&entry.path), entry.reason)
        }))?;
    }
    if !found.unsupported.is_empty() {
        row("not supported", format!("{} pictures, passed over", found.unsupported.len()))?;
        listed(found.unsupported.iter().map(|path| shown(path)))?;
    }
    let copies: usize = found.duplicates.iter().map(|group| group.len() - 1).sum();
    let how = if quick { " (by name)" } else { "" };
    row("duplicates", format!("{copies}{how}"))?;
    listed(
        found
            .duplicates
            .iter()
            .map(|group| group.iter().map(|path| shown(path)).collect::<Vec<_>>().join(" = ")),
    )?;
    if !found.mislabelled.is_empty() {
        row("wrong size in label", found.mislabelled.len())?;
        listed(found.mislabelled.iter().map(|picture| {
            let ((height, width), (true_height, true_width)) = (picture.declared, picture.found);
            format!(
                "{}: the label says {width} × {height}, the picture is {true_width} × {true_height}",
                shown(&picture.path)
            )
        }))?;
    }
    row("enlarged", format!("{} smaller than the size they are trained at", found.enlarged.len()))?;
    listed(found.enlarged.iter().map(|picture| {
        let (path, by) = (shown(&picture.path), picture.by);
        format!("{path}: {} × {}, enlarged {by:.2} times", picture.width, picture.height)
    }))?;
    row("height × width", format!("pictures, batches of {}", options.batch_size))?;
    for bucket in &found.buckets {
        let size = format!("{:>5} × {}", bucket.height, bucket.width);
        row(&size, format!("{:>8} {:>8}", bucket.pictures, bucket.batches))?;
    }
    let incomplete = found.incomplete_batches;
    row("batches in an epoch", format!("{}, {incomplete} of them not full", found.batches))
}

fn listed(entries: impl ExactSizeIterator<Item = String>) -> Result<(), Failure> {
    let more = entries.len().saturating_sub(LISTED);
    for entry in entries.take(LISTED) {
        row("", entry)?;
    }
    if more > 0 {
        row("", format!("and {more} more; --json lists all"))?;
    }
    Ok(())
}

fn row(label: &str, value: impl std::fmt::Display) -> Result<(), Failure> {
    Ok(print_line(format_args!("{label:<22}{value}"))?)
}

/// A path as text; a line break in a name must not look like another entry.
fn shown(path: &Path) -> String {
    path.display().to_string().replace(['\n', '\r'], "?")
}

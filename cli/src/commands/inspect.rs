//! `pixart inspect`: what a checkpoint, an export or a picture is.

mod picture;

use crate::exit::{Failure, print_line};
use crate::progress::{Progress, Unit};
use crate::variant::{OpenArgs, VariantArgs};
use anyhow::Context;
use clap::Args;
use pixart_exporter::inspect::{InspectOptions, Inspection, Suspicion, inspect};
use pixart_runtime::bundle::{Bundle, store};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Tensors that are listed before they are only counted.
const LISTED: usize = 12;

/// What is typed after `pixart inspect`.
#[derive(Args)]
pub struct InspectArgs {
    /// A file of weights, a model folder, an exported ONNX folder, a bundle, or a picture (PNG, JPEG, WebP)
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Do not look at the elements, only at names, shapes and types
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    variant: VariantArgs,
}

/// Runs the command.
pub fn run(args: InspectArgs) -> Result<(), Failure> {
    if picture::is_one(&args.path) {
        return picture::print(&args.path, args.json);
    }
    if let Some(exports) = exported(&args.path)? {
        return match args.json {
            true => Ok(print_line(format_args!("{:#}", Value::Array(exports)))?),
            false => exports.iter().try_for_each(print_manifest),
        };
    }
    let options = InspectOptions {
        variant: args.variant.flags(),
        open: args.open.options(),
        values: !args.quick,
    };
    let mut bar = None;
    let result = inspect(&args.path, &options, &mut |done, total| {
        bar.get_or_insert_with(|| Progress::start("inspect", total, Unit::Bytes))
            .update(done, total);
    });
    if let Some(bar) = bar {
        bar.finish();
    }
    let inspection = result?;
    match args.json {
        true => Ok(print_line(format_args!("{:#}", json!(inspection)))?),
        false => print_table(&inspection),
    }
}

/// The manifests of an exported folder, of one component or of a pipeline; `None` for anything else.
fn exported(path: &Path) -> Result<Option<Vec<Value>>, Failure> {
    let mut folders = vec![path.to_owned()];
    if let Ok(entries) = std::fs::read_dir(path) {
        folders.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    } else if path.is_file()
        && let Some(bundle) = Bundle::open(path)?
    {
        folders.extend(bundle.index().parts().into_iter().map(|part| path.join(part)));
    }
    folders[1..].sort();
    let mut found = Vec::new();
    for folder in folders {
        let file = folder.join("manifest.json");
        if !store::is_file(&file) || !store::is_file(&folder.join("model.onnx")) {
            continue;
        }
        let name = || format!("{}: cannot be read as an export's manifest", file.display());
        let text = store::read(&file).with_context(name)?;
        let mut manifest: Value = serde_json::from_slice(&text).with_context(name)?;
        if let Value::Object(map) = &mut manifest {
            map.insert("folder".to_owned(), json!(folder));
        }
        found.push(manifest);
    }
    Ok((!found.is_empty()).then_some(found))
}

fn print_manifest(manifest: &Value) -> Result<(), Failure> {
    row("folder", text(&manifest["folder"]))?;
    for key in ["component", "profile", "precision", "tool"] {
        row(key, text(&manifest[key]))?;
    }
    if let Value::Object(architecture) = &manifest["architecture"] {
        for (key, value) in architecture {
            row(key, text(value))?;
        }
    }
    for (label, files) in
        [("made from", &manifest["source"]["files"]), ("file", &manifest["files"])]
    {
        for file in files.as_array().into_iter().flatten() {
            let (name, bytes) = (text(&file["name"]), file["bytes"].as_u64().unwrap_or(0));
            row(label, format!("{name}, {bytes} bytes, sha256 {}", text(&file["sha256"])))?;
        }
    }
    Ok(())
}

fn print_table(found: &Inspection) -> Result<(), Failure> {
    for file in &found.files {
        let key = match &file.weights_key {
            Some(key) => format!(", under the key {key}"),
            None => String::new(),
        };
        row("file", format!("{} ({}{key})", file.path.display(), file.container))?;
    }
    if let Some(transformer) = &found.transformer {
        if !transformer.naming.is_empty() {
            row("model", format!("PixArt transformer, {}", transformer.family))?;
            row("naming", &transformer.naming)?;
            row("parameters", transformer.parameters)?;
        }
        for (key, value) in transformer.config.iter().flat_map(Value::as_object).flatten() {
            if SHOWN.contains(&key.as_str()) {
                row(key, text(value))?;
            }
        }
        if !transformer.unused.is_empty() {
            row("not needed", transformer.unused.join(", "))?;
        }
    } else {
        row("model", "no PixArt transformer")?;
        row("parameters", found.parameters)?;
    }
    row("tensors", format!("{}, {} bytes", found.tensors, found.bytes))?;
    for (dtype, count) in &found.dtypes {
        row("dtype", format!("{dtype}: {} tensors, {} elements", count.tensors, count.parameters))?;
    }
    match &found.suspicious {
        None => row("values", "not looked at")?,
        Some(list) if list.is_empty() => row("values", "nothing suspicious")?,
        Some(list) => listed("suspicious", list.iter().map(describe))?,
    }
    let problems = found.transformer.iter().flat_map(|transformer| transformer.problems.iter());
    listed("problem", problems.cloned())
}

/// Keys of `config.json` that tell variants apart.
const SHOWN: [&str; 10] = [
    "sample_size",
    "interpolation_scale",
    "num_layers",
    "num_attention_heads",
    "cross_attention_dim",
    "use_additional_conditions",
    "qk_norm",
    "kv_compress_sampling",
    "kv_compress_scale_factor",
    "kv_compress_layer",
];

fn describe(suspicion: &Suspicion) -> String {
    let Suspicion { tensor, elements, nan, infinite, all_zero } = suspicion;
    let mut said = Vec::new();
    if *nan > 0 {
        said.push(format!("{nan} of {elements} are NaN"));
    }
    if *infinite > 0 {
        said.push(format!("{infinite} of {elements} are infinite"));
    }
    if *all_zero {
        said.push(format!("all {elements} are zero"));
    }
    format!("{tensor}: {}", said.join(", "))
}

fn listed(label: &str, entries: impl Iterator<Item = String>) -> Result<(), Failure> {
    let mut more = 0;
    for (index, entry) in entries.enumerate() {
        if index < LISTED {
            row(label, entry)?;
        } else {
            more += 1;
        }
    }
    if more > 0 {
        row(label, format!("and {more} more; --json lists all"))?;
    }
    Ok(())
}

fn row(label: &str, value: impl std::fmt::Display) -> Result<(), Failure> {
    Ok(print_line(format_args!("{label:<26}{value}"))?)
}

/// A value without quotes, so that texts look like texts.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "unknown".to_owned(),
        other => other.to_string(),
    }
}

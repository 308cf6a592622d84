//! The check that a component passes before it is kept: its outputs against those in fp32.

use anyhow::anyhow;
use pixart_exporter::{Precision, Staged, Verdict};
use pixart_runtime::engine::{self, EngineChoice, EngineError, EngineOptions};
use pixart_runtime::verify::{allowed_error, compare_models};
use serde_json::json;

/// fp32 weights that are written for the comparison at most. A larger network is compared without
/// the blocks in the middle, so that a text encoder of 19 GB needs no 19 GB more.
const MOST_BYTES: u64 = 2 << 30;

/// Compares a component that was just written with its twin in fp32, on ONNX Runtime.
///
/// The result goes into the manifest; an error larger than the precision explains keeps the
/// component from being kept.
pub fn against_fp32(staged: &Staged<'_>) -> Verdict {
    let component = staged.component;
    let precision = match staged.int8_mode {
        Some(mode) => format!("{} ({mode})", staged.precision),
        None => staged.precision.to_string(),
    };
    if staged.precision == Precision::Fp32 {
        return Ok(None);
    }
    let allowed = allowed_error(staged.precision.as_str())
        .ok_or_else(|| anyhow!("no error is known that {precision} may have"))?;
    let engine = match engine::open(EngineChoice::Ort, &EngineOptions::default()) {
        Ok(opened) => opened.engine,
        Err(error @ EngineError::NoLibrary { .. }) => {
            eprintln!(
                "note: {component}: not compared with fp32, because there is no ONNX Runtime; \
                 `pixart engine install cpu` fetches it, --no_verify leaves this out"
            );
            let reason = error.to_string();
            return Ok(Some(json!({ "reference": "fp32", "skipped": reason })));
        }
        Err(error) => return Err(error.into()),
    };
    eprintln!("comparing {component} in {precision} with fp32");
    // Inside the folder that is being written, so that whatever happens it goes away with it.
    let scratch = tempfile::Builder::new().prefix(".twins-").tempdir_in(staged.folder)?;
    let twins = staged.write_twins(scratch.path(), MOST_BYTES)?;
    let difference =
        compare_models(&engine, &twins.exported, &twins.reference, staged.architecture)?;
    scratch.close()?;
    if difference.max_relative > allowed {
        return Err(anyhow!(
            "its outputs in {precision} are too far from those in fp32 ({}): the largest relative \
             error is {:.1e}, expected at most {allowed:.0e}; choose another --precision, or keep \
             it with --no_verify",
            twins.compared,
            difference.max_relative
        )
        .into());
    }
    Ok(Some(json!({
        "reference": "fp32",
        "engine": engine.describe(),
        "compared": twins.compared,
        "max_relative_error": rounded(difference.max_relative),
        "rms_error": rounded(difference.rms),
        "allowed": allowed,
    })))
}

/// Three digits are all that such a number means.
fn rounded(number: f64) -> f64 {
    format!("{number:.2e}").parse().unwrap_or(number)
}

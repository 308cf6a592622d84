//! The LoRAs of a run.

use crate::exit::Failure;
use crate::progress::note;
use pixart_runtime::lora::{Lora, LoraMatch, LoraSpec};
use pixart_runtime::pipeline::Pipeline;
use std::sync::Arc;

/// Reads the files that the settings name.
pub fn read(specs: &[String]) -> Result<Vec<Arc<Lora>>, Failure> {
    specs.iter().map(|text| Ok(Arc::new(Lora::open(&LoraSpec::parse(text)?)?))).collect()
}

/// Applies them, and tells what each one does.
pub fn apply(
    pipeline: &mut Pipeline,
    loras: &[Arc<Lora>],
    allow_unmatched: bool,
) -> Result<(), Failure> {
    if loras.is_empty() {
        return Ok(());
    }
    tell(loras, &pipeline.set_loras(loras, allow_unmatched)?);
    Ok(())
}

/// Tells what each one does.
pub fn tell(loras: &[Arc<Lora>], matches: &[LoraMatch]) {
    for (lora, found) in loras.iter().zip(matches) {
        note(line(lora, found));
        for key in &found.unmatched {
            note(format_args!("left out: {key}"));
        }
    }
}

fn line(lora: &Lora, found: &LoraMatch) -> String {
    let mut weights = Vec::new();
    for (count, component) in
        [(found.transformer, "transformer"), (found.text_encoder, "text_encoder")]
    {
        if count > 0 {
            weights.push(format!("{count} weights of the {component}"));
        }
    }
    if weights.is_empty() {
        // It is for a component that is not there, or that has no part in this.
        weights.push("no weights of what is used here".to_owned());
    }
    let (path, strength) = (lora.path().display(), lora.strength());
    format!("lora {path}, strength {strength}: {}", weights.join(", "))
}

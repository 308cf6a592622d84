//! How long each provider computes, from the profile that ONNX Runtime writes of a run.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{OrtEngine, OrtSession, Source, load_failed, run_failed};
use crate::{
    engine::{
        EngineError, Session as _,
        model_file::ModelFile,
        provider::{TimeShares, Using},
    },
    tensor::Tensor,
};

impl OrtEngine {
    /// Runs `model` twice and says what the second run took, by provider and operator.
    pub(super) fn profile(
        &self,
        model: &Path,
        inputs: &[(&str, &Tensor)],
    ) -> Result<TimeShares, EngineError> {
        let failed = |reason: String| run_failed(model, inputs, reason);
        let folder = tempfile::tempdir().map_err(|error| failed(error.to_string()))?;
        let profile = folder.path().join("profile");
        let mut file = ModelFile::open(model)?;
        let repack = self.repacks(&file);
        let changed = self.cut_into_portions(&mut file, &HashSet::new());
        let source = self.source(file, changed, repack, Vec::new())?;
        let sizes = match self.per_size {
            true => source.sizes(inputs)?,
            false => Vec::new(),
        };
        let session = self.make(&source, &sizes, Some(&profile), &Using::default());
        let session = session.map_err(|error| load_failed(model, error))?;
        let Source { model: path, signature, .. } = source;
        let transfer = self.transfer();
        let mut session = OrtSession { model: path, signature, session, transfer };
        for _ in 0..2 {
            session.run(inputs)?;
        }
        let file = session.session.end_profiling().map_err(|error| failed(error.to_string()))?;
        read(&PathBuf::from(file)).map_err(failed)
    }
}

fn read(file: &Path) -> Result<TimeShares, String> {
    let text = std::fs::read(file).map_err(|error| error.to_string())?;
    let events: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    Ok(shares(&events))
}

/// What runs other nodes, which are told themselves.
const CONTROL_FLOW: [&str; 3] = ["If", "Loop", "Scan"];

/// Sums up the kernels of the last run.
fn shares(events: &Value) -> TimeShares {
    let events = events.as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |event: &Value, name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let is_run = |event: &&Value| text(event, "name") == "model_run";
    // A run is written when it is over, with the time when it began.
    let begin = events.iter().filter(is_run).filter_map(|event| event["ts"].as_u64()).max();
    let mut times: BTreeMap<(String, String), f64> = BTreeMap::new();
    for event in events {
        let kernel = text(event, "cat") == "Node" && text(event, "name").ends_with("_kernel_time");
        if kernel && event["ts"].as_u64() >= begin {
            let provider = text(&event["args"], "provider");
            let operator = text(&event["args"], "op_name");
            if CONTROL_FLOW.contains(&operator.as_str()) {
                continue;
            }
            let seconds = event["dur"].as_f64().unwrap_or(0.0) / 1e6;
            *times.entry((provider, operator)).or_insert(0.0) += seconds;
        }
    }
    TimeShares { times }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_kernels_of_the_last_run_count() {
        let node = |ts: u64, provider: &str, operator: &str, dur: u64| {
            json!({ "cat": "Node", "name": "n_kernel_time", "ts": ts, "dur": dur,
                    "args": { "provider": provider, "op_name": operator } })
        };
        let events = json!([
            { "cat": "Session", "name": "session_initialization", "ts": 1, "dur": 9 },
            node(11, "A", "MatMul", 900_000),
            { "cat": "Session", "name": "model_run", "ts": 10, "dur": 5 },
            node(21, "A", "MatMul", 600_000),
            node(21, "A", "Scan", 890_000),
            node(22, "A", "MatMul", 300_000),
            node(23, "B", "Shape", 100_000),
            { "cat": "Node", "name": "n_fence_before", "ts": 24, "dur": 50 },
            { "cat": "Session", "name": "model_run", "ts": 20, "dur": 5 },
        ]);
        let shares = shares(&events);
        assert!((shares.of("A") - 0.9).abs() < 1e-9, "{shares:?}");
        assert!((shares.of("B") - 0.1).abs() < 1e-9, "{shares:?}");
        assert_eq!(shares.others("A"), [("Shape".to_owned(), 0.1)]);
    }
}

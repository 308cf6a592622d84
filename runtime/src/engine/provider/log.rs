//! Where nodes went, from what ONNX Runtime logs while it makes a session.
//!
//! Some builds (WebGPU's of 1.27) keep no record of it but log it all the same.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use ort::{logging::LogLevel, session::builder::SessionBuilder};

/// Lines about where nodes are placed, as long as a session is being made.
#[derive(Clone, Default)]
pub(super) struct PlacementLog {
    lines: Arc<Mutex<Option<Vec<String>>>>,
}

impl PlacementLog {
    /// Listens to a session that is being built.
    pub fn listen(builder: SessionBuilder) -> ort::Result<(SessionBuilder, Self)> {
        let log = Self { lines: Arc::new(Mutex::new(Some(Vec::new()))) };
        let lines = log.lines.clone();
        let keep = move |_: LogLevel, _: &str, _: &str, _: &str, message: &str| {
            let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(lines) = &mut *lines {
                lines.push(message.to_owned());
            }
        };
        let builder = builder.with_logger(Arc::new(keep))?.with_log_level(LogLevel::Verbose)?;
        Ok((builder, log))
    }

    /// Operators and their numbers by provider; listens no longer.
    pub fn finish(&self) -> BTreeMap<String, BTreeMap<String, usize>> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        counts(&lines.take().unwrap_or_default())
    }
}

/// Reads ` Node(s) placed on [NAME]. Number of nodes: N` with a line `  Operator (name)` for each, and
/// ` All nodes placed on [NAME]. Number of nodes: N` without.
fn counts(lines: &[String]) -> BTreeMap<String, BTreeMap<String, usize>> {
    let mut counts: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    let mut provider: Option<String> = None;
    for line in lines.iter().flat_map(|message| message.lines()) {
        let placed = line
            .split_once(" placed on [")
            .and_then(|(kind, rest)| Some((kind.trim(), rest.split_once(']')?)));
        match placed {
            Some(("All nodes", (name, rest))) => {
                let digits: String = rest.chars().filter(char::is_ascii_digit).collect();
                let number = digits.parse().unwrap_or(0);
                counts
                    .entry(name.to_owned())
                    .or_default()
                    .insert("all operators".to_owned(), number);
                provider = None;
            }
            Some((_, (name, _))) => provider = Some(name.to_owned()),
            None => {
                match (&provider, line.strip_prefix("  ").and_then(|node| node.split_once(" ("))) {
                    (Some(provider), Some((operator, _))) if !operator.contains(' ') => {
                        let operators = counts.entry(provider.clone()).or_default();
                        *operators.entry(operator.to_owned()).or_insert(0) += 1;
                    }
                    _ => provider = None,
                }
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_counted_by_provider_and_operator() {
        let lines = [
            "Creating something",
            "Node placements",
            " Node(s) placed on [WebGpuExecutionProvider]. Number of nodes: 3",
            "  MatMul (a)",
            "  MatMul (b (c))",
            "  Add ()",
            " Node(s) placed on [CPUExecutionProvider]. Number of nodes: 1",
            "  Shape (d)",
            "SaveMLValueNameIndexMapping",
            "  Add (not one of these)",
        ];
        let found = counts(&lines.map(str::to_owned));
        assert_eq!(found["WebGpuExecutionProvider"]["MatMul"], 2);
        assert_eq!(found["WebGpuExecutionProvider"]["Add"], 1);
        assert_eq!(found["CPUExecutionProvider"].values().sum::<usize>(), 1);
        let all = " All nodes placed on [CPUExecutionProvider]. Number of nodes: 12".to_owned();
        assert_eq!(counts(&[all])["CPUExecutionProvider"]["all operators"], 12);
    }
}

//! Which provider computes which nodes of a graph.

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char},
    fmt,
    path::PathBuf,
    ptr, slice,
};

use ort::AsPointer as _;

/// The setting that makes a session remember it.
pub(in super::super) const RECORD: &str = "session.record_ep_graph_assignment_info";

/// Operators that do nearly all of the work of a network.
const HEAVY: [&str; 14] = [
    "Attention",
    "Conv",
    "FusedConv",
    "FusedMatMul",
    "Gemm",
    "GroupNorm",
    "InstanceNormalization",
    "LayerNormalization",
    "MatMul",
    "MatMulInteger",
    "MatMulNBits",
    "MultiHeadAttention",
    "QuickGelu",
    "Softmax",
];

/// Where the nodes of a graph are computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The graph.
    pub model: PathBuf,
    /// Name of the device, as typed: `webgpu`.
    pub device: String,
    /// How many nodes of each operator the device computes.
    pub on_device: BTreeMap<String, usize>,
    /// How many nodes of each operator are left to the processor.
    pub on_cpu: BTreeMap<String, usize>,
}

impl Placement {
    /// How many nodes the device computes.
    pub fn device_nodes(&self) -> usize {
        self.on_device.values().sum()
    }

    /// How many nodes are left to the processor.
    pub fn cpu_nodes(&self) -> usize {
        self.on_cpu.values().sum()
    }

    /// Operators on the processor that should not be there, since they do much of the work.
    pub fn heavy_on_cpu(&self) -> Vec<&str> {
        self.on_cpu.keys().map(String::as_str).filter(|name| HEAVY.contains(name)).collect()
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (device, cpu) = (self.device_nodes(), self.cpu_nodes());
        write!(formatter, "{} computes {device} of {} nodes", self.device, device + cpu)?;
        if cpu > 0 {
            let mut left: Vec<(&String, &usize)> = self.on_cpu.iter().collect();
            left.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let left: Vec<String> =
                left.iter().map(|(name, count)| format!("{name} ×{count}")).collect();
            write!(formatter, ", the processor {}", left.join(", "))?;
        }
        Ok(())
    }
}

/// Counts the nodes of a session that was made with [`RECORD`]; `ort_name` is ONNX Runtime's name of the
/// provider.
pub(super) fn read(
    session: &ort::session::Session,
    model: PathBuf,
    device: String,
    ort_name: &str,
) -> ort::Result<Placement> {
    let (mut on_device, mut on_cpu) = (BTreeMap::new(), BTreeMap::new());
    let api = ort::api();
    let mut subgraphs = ptr::null();
    let mut count = 0;
    // SAFETY: the session is alive, both results are written by the call, and it is told if it fails. What
    // they point to belongs to the session, as does all below.
    unsafe {
        ort::Error::result_from_status((api.Session_GetEpGraphAssignmentInfo)(
            session.ptr(),
            &mut subgraphs,
            &mut count,
        ))?;
    }
    // SAFETY: as the call above left them.
    for &subgraph in unsafe { list(subgraphs, count) } {
        let mut name = ptr::null();
        let mut nodes = ptr::null();
        let mut count = 0;
        // SAFETY: the subgraph is one of the session's.
        unsafe {
            ort::Error::result_from_status((api.EpAssignedSubgraph_GetEpName)(
                subgraph, &mut name,
            ))?;
            ort::Error::result_from_status((api.EpAssignedSubgraph_GetNodes)(
                subgraph, &mut nodes, &mut count,
            ))?;
        }
        // SAFETY: a text of the session's.
        let provider = unsafe { text(name) };
        let counts = if provider == ort_name { &mut on_device } else { &mut on_cpu };
        // SAFETY: as the call above left them.
        for &node in unsafe { list(nodes, count) } {
            let mut operator = ptr::null();
            // SAFETY: the node is one of the session's.
            unsafe {
                ort::Error::result_from_status((api.EpAssignedNode_GetOperatorType)(
                    node,
                    &mut operator,
                ))?;
            }
            // SAFETY: a text of the session's.
            *counts.entry(unsafe { text(operator) }).or_insert(0) += 1;
        }
    }
    Ok(Placement { model, device, on_device, on_cpu })
}

/// The same from counts by provider and operator.
pub(super) fn of_counts(
    counts: BTreeMap<String, BTreeMap<String, usize>>,
    model: PathBuf,
    device: String,
    ort_name: &str,
) -> Placement {
    let (mut on_device, mut on_cpu) = (BTreeMap::new(), BTreeMap::new());
    for (provider, operators) in counts {
        let side = if provider == ort_name { &mut on_device } else { &mut on_cpu };
        for (operator, count) in operators {
            *side.entry(operator).or_insert(0) += count;
        }
    }
    Placement { model, device, on_device, on_cpu }
}

/// # Safety
/// `first` is null or the first of `count` items that live as long as the result is used.
unsafe fn list<'a, T>(first: *const T, count: usize) -> &'a [T] {
    if first.is_null() {
        return &[];
    }
    // SAFETY: as the caller promises.
    unsafe { slice::from_raw_parts(first, count) }
}

/// # Safety
/// `text` is null or ends with a zero byte.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_to_the_processor_is_told_with_the_most_first() {
        let counts = |list: &[(&str, usize)]| {
            list.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        let placement = Placement {
            model: "model.onnx".into(),
            device: "webgpu".to_owned(),
            on_device: counts(&[("MatMul", 5), ("Add", 2)]),
            on_cpu: counts(&[("Gather", 1), ("Shape", 3), ("Softmax", 1)]),
        };
        assert_eq!(
            placement.to_string(),
            "webgpu computes 7 of 12 nodes, the processor Shape ×3, Gather ×1, Softmax ×1"
        );
        assert_eq!(placement.heavy_on_cpu(), ["Softmax"]);
    }
}

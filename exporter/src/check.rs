//! Looking at a component before it is kept.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::export::Prepared;
use crate::graph::ir::{Graph, Initializer, WeightData};
use crate::graph::slice::{self, Blocks, Ends};
use crate::write::{self, MODEL_FILE, WriteError};
use crate::{Component, ExportError, ExportOptions, Int8Mode, Precision};

/// Blocks of a model that is too large to be compared as a whole, from the most to the fewest.
const ENDS: [Ends; 3] =
    [Ends { first: 2, last: 2 }, Ends { first: 1, last: 1 }, Ends { first: 1, last: 0 }];

/// What a check decides: whether the component is kept, and what its manifest says about it under
/// `verification`.
pub type Verdict = Result<Option<Value>, Box<dyn Error + Send + Sync>>;

/// A component that has been written, but has neither a manifest nor its name yet. A check that fails
/// leaves nothing behind.
pub struct Staged<'a> {
    /// Which one.
    pub component: Component,
    /// The folder that `model.onnx` and its weights are in for now.
    pub folder: &'a Path,
    /// What the manifest will say about the network.
    pub architecture: &'a Value,
    /// The precision of this component, which need not be that of the whole pipeline.
    pub precision: Precision,
    /// How it computes, if that is int8.
    pub int8_mode: Option<Int8Mode>,
    /// How the export was asked for.
    pub options: &'a ExportOptions,
    pub(crate) prepared: &'a Prepared,
    /// Prepares the same component with other options.
    pub(crate) again: &'a dyn Fn(&ExportOptions) -> Result<Prepared, ExportError>,
}

impl fmt::Debug for Staged<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { component, folder, options, .. } = self;
        f.debug_struct("Staged")
            .field("component", component)
            .field("folder", folder)
            .field("options", options)
            .finish_non_exhaustive()
    }
}

/// Two graphs of one network, in the precision of an export and in fp32.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Twins {
    /// The graph in the precision of the export: the export itself, or a part of it.
    pub exported: PathBuf,
    /// The same network in fp32.
    pub reference: PathBuf,
    /// How much of the network they are: `everything`, or for example `blocks 0-1 and 26-27 of 28`.
    pub compared: String,
}

impl Staged<'_> {
    /// Writes the component's network in fp32 into the folder `scratch`, to compare the export with.
    ///
    /// Where that would be more than `most_bytes` of weights, both are written without the blocks in
    /// the middle: two are kept at each end, or one, or only the first of all. A network that cannot
    /// be cut is compared as a whole, however large it is.
    ///
    /// # Errors
    ///
    /// As for any export.
    pub fn write_twins(&self, scratch: &Path, most_bytes: u64) -> Result<Twins, ExportError> {
        let options = ExportOptions {
            precision: Precision::Fp32,
            int8_mode: None,
            vae_precision: None,
            ..self.options.clone()
        };
        let reference = (self.again)(&options)?;
        let folders = ["exported", "reference"].map(|name| scratch.join(name));
        let graph = |folder: &Path| folder.join(MODEL_FILE);
        let [exported, twin] = &folders;

        let too_large = weight_bytes(&reference.graph) > most_bytes;
        let blocks = Blocks::of(&reference.graph).filter(|_| too_large);
        let Some((blocks, kept)) = blocks.and_then(|blocks| {
            let kept = fitting(&reference.graph, &blocks, most_bytes)?;
            Some((blocks, kept))
        }) else {
            write::create_folder(twin)?;
            reference.write_bare(&reference.graph, twin, &options)?;
            let compared = "everything".to_owned();
            return Ok(Twins { exported: graph(self.folder), reference: graph(twin), compared });
        };
        for (prepared, options, folder) in
            [(self.prepared, self.options, exported), (&reference, &options, twin)]
        {
            let Some(part) = slice::ends(&prepared.graph, &blocks, kept) else {
                return Err(ExportError::Write(WriteError::Inconsistent {
                    initializer: self.component.to_string(),
                    reason: "its blocks differ between precisions".to_owned(),
                }));
            };
            write::create_folder(folder)?;
            prepared.write_bare(&part, folder, options)?;
        }
        let compared = describe(kept, blocks.count);
        Ok(Twins { exported: graph(exported), reference: graph(twin), compared })
    }
}

/// The most blocks that fit; the fewest possible if even they do not. `None` where nothing can be
/// left out.
fn fitting(graph: &Graph, blocks: &Blocks, most_bytes: u64) -> Option<Ends> {
    let bytes = |kept| slice::ends(graph, blocks, kept).map(|part| weight_bytes(&part));
    let possible: Vec<(Ends, u64)> =
        ENDS.into_iter().filter_map(|kept| Some((kept, bytes(kept)?))).collect();
    let fits = possible.iter().find(|(_, bytes)| *bytes <= most_bytes);
    fits.or(possible.last()).map(|(kept, _)| *kept)
}

/// Bytes of the weights in a graph in fp32.
fn weight_bytes(graph: &Graph) -> u64 {
    let bytes = |initializer: &Initializer| match initializer.data {
        WeightData::Checkpoint(_) => {
            4 * initializer.shape.iter().map(|&n| n as u64).product::<u64>()
        }
        WeightData::Inline(_) => 0,
    };
    graph.initializers.iter().map(bytes).sum()
}

fn describe(kept: Ends, count: usize) -> String {
    match kept {
        Ends { first: 1, last: 0 } => format!("block 0 of {count}"),
        Ends { first: 1, last: 1 } => format!("blocks 0 and {} of {count}", count - 1),
        Ends { first, last } => {
            format!("blocks 0-{} and {}-{} of {count}", first - 1, count - last, count - 1)
        }
    }
}

//! The layers of an exported graph, under all the names that LoRA files have for them.

use std::collections::HashMap;

use super::{key::Module, names};
use crate::engine::{GraphWeights, Layout, WeightType};

/// A layer with a weight that a LoRA can change.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The initializer that holds its weight.
    pub initializer: String,
    pub outputs: usize,
    /// Inputs, the pixels of a kernel counted as inputs.
    pub inputs: usize,
    /// How the weight is stored where nothing can be added to it.
    pub quantised: Option<String>,
}

/// Part of the rows of a matrix in a file, and the layer they are for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// Position of the layer in [`Targets::list`].
    pub target: usize,
    /// Which part.
    pub part: usize,
    /// Of how many equal parts.
    pub parts: usize,
}

/// The layers of a graph by name.
pub(super) struct Targets {
    pub list: Vec<Target>,
    by_name: HashMap<String, Vec<Share>>,
    /// The same, every dot replaced by an underscore.
    by_flat_name: HashMap<String, Vec<Share>>,
}

impl Targets {
    /// Finds the layers: what linear layers and convolutions multiply with.
    pub fn of(weights: &GraphWeights) -> Self {
        let mut found =
            Self { list: Vec::new(), by_name: HashMap::new(), by_flat_name: HashMap::new() };
        for (name, weight) in weights.iter() {
            if let Some(layer) = name.strip_suffix(".weight") {
                let (outputs, inputs) = match (weight.layout, &weight.shape[..]) {
                    (Layout::InputsFirst, &[inputs, outputs]) => (outputs, inputs),
                    (Layout::OutputsFirst, &[outputs, ref inputs @ ..]) if !inputs.is_empty() => {
                        (outputs, inputs.iter().product())
                    }
                    _ => continue,
                };
                let quantised = match &weight.dtype {
                    WeightType::Other(dtype) => Some(format!("{dtype} ({name})")),
                    _ => None,
                };
                let initializer = name.to_owned();
                found.add(layer, Target { initializer, outputs, inputs, quantised });
            } else if let Some((layer, _)) = name.rsplit_once(".weight.")
                && matches!(weight.dtype, WeightType::Other(_))
            {
                // A quantised weight: `….weight.codes`, with its scales beside it.
                let quantised = Some(format!("{} ({name})", weight.dtype));
                let initializer = name.to_owned();
                found.add(layer, Target { initializer, outputs: 0, inputs: 0, quantised });
            }
        }
        found
    }

    fn add(&mut self, layer: &str, target: Target) {
        let index = self.list.len();
        self.list.push(target);
        let own = names::Alias { name: layer.to_owned(), part: 0, parts: 1 };
        for names::Alias { name, part, parts } in names::aliases(layer).into_iter().chain([own]) {
            let share = Share { target: index, part, parts };
            self.by_flat_name.entry(name.replace('.', "_")).or_default().push(share);
            self.by_name.entry(name).or_default().push(share);
        }
    }

    /// What the rows of a module's matrix are for, if this graph has such a layer. All the rows, or
    /// nothing.
    pub fn find(&self, module: &Module) -> Option<&[Share]> {
        let found = match self.by_name.get(&module.name) {
            None if !module.name.contains('.') => self.by_flat_name.get(&module.name),
            found => found,
        }?;
        (found.len() == found[0].parts).then_some(found)
    }
}

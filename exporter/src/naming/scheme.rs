//! Which names a transformer's tensors have, and the same tensors under diffusers' names.

use std::collections::BTreeMap;
use std::fmt;

use super::official::{self, NULL_CAPTION, Original, POSITION_TABLE};
use super::{ConfigError, WeightProblem, WeightsError, evidence};
use crate::checkpoint::{Checkpoint, Renamed};

/// How the tensors of a transformer are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Naming {
    /// As in the original PixArt files: `blocks.0.attn.qkv.weight`.
    Official,
    /// As in diffusers: `transformer_blocks.0.attn1.to_q.weight`.
    Diffusers,
}

impl fmt::Display for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Official => "official",
            Self::Diffusers => "diffusers",
        })
    }
}

/// Names that only one of the two schemes has.
const OFFICIAL: [&str; 4] = ["blocks.", "x_embedder.", "t_block.", "final_layer."];
const DIFFUSERS: [&str; 4] =
    ["transformer_blocks.", "adaln_single.", "caption_projection.", "proj_out."];

impl Naming {
    /// Of tensors with these names; `None` if they are not those of a PixArt transformer. Where
    /// both occur it is diffusers', and the others will be reported as left over.
    pub fn of<'a>(names: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut found = None;
        for name in names.map(official::unwrapped) {
            let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
            if starts(&DIFFUSERS) {
                return Some(Self::Diffusers);
            }
            if starts(&OFFICIAL) {
                found = Some(Self::Official);
            }
        }
        found
    }
}

/// A transformer's checkpoint under diffusers' names, and the names it has in its files.
///
/// Tensors that diffusers does not know keep their name, without the prefixes of wrappers, so that
/// what nothing reads is found out later, together with everything else that does not fit.
///
/// # Errors
///
/// The tensors are not those of a transformer, or two of them are the same one after the prefixes of
/// wrappers have been taken off.
pub fn in_diffusers_names(checkpoint: Checkpoint) -> Result<(Checkpoint, Naming), ConfigError> {
    let Some(naming) = Naming::of(checkpoint.names()) else {
        return Err(ConfigError::NotATransformer {
            path: evidence::place(&checkpoint).to_owned(),
            found: checkpoint.names().take(3).map(str::to_owned).collect::<Vec<_>>().join(", "),
        });
    };
    let mut entries: BTreeMap<String, Renamed> = BTreeMap::new();
    for stored in checkpoint.names() {
        for entry in renamed(&checkpoint, naming, stored) {
            if let Some(other) = entries.get(&entry.name) {
                let dropped = [POSITION_TABLE.1, NULL_CAPTION];
                if dropped.contains(&entry.name.as_str()) {
                    continue;
                }
                return Err(ConfigError::TwoTensors {
                    path: evidence::place(&checkpoint).to_owned(),
                    name: official::unwrapped(stored).to_owned(),
                    first: other.stored.clone(),
                    second: stored.to_owned(),
                });
            }
            entries.insert(entry.name.clone(), entry);
        }
    }
    let path = evidence::place(&checkpoint).to_owned();
    let renamed = checkpoint.renamed(entries.into_values().collect());
    renamed
        .map(|checkpoint| (checkpoint, naming))
        .map_err(|entry| ConfigError::NotATransformer { path, found: entry.stored })
}

/// What a stored tensor is in diffusers.
fn renamed(checkpoint: &Checkpoint, naming: Naming, stored: &str) -> Vec<Renamed> {
    let name = official::unwrapped(stored);
    let whole =
        |name: &str| vec![Renamed { name: name.to_owned(), stored: stored.to_owned(), rows: None }];
    if naming == Naming::Diffusers {
        return whole(name);
    }
    if name == POSITION_TABLE.0 {
        return whole(POSITION_TABLE.1);
    }
    let Some(names) = official::to_diffusers(name) else { return whole(name) };
    if let [single] = names.as_slice() {
        return whole(single);
    }
    let rows = checkpoint.info(stored).and_then(|info| info.shape.first().copied());
    match rows {
        Some(rows) if rows.is_multiple_of(names.len()) => {
            let each = rows / names.len();
            let part = |(part, name): (usize, String)| Renamed {
                name,
                stored: stored.to_owned(),
                rows: Some(part * each..(part + 1) * each),
            };
            names.into_iter().enumerate().map(part).collect()
        }
        // It stays under its own name; `in_stored_names` makes one problem of all that follows.
        _ => whole(name),
    }
}

/// The problems of a checkpoint in terms of the names that its files have, one for each tensor.
pub fn in_stored_names(error: WeightsError, naming: Naming) -> WeightsError {
    if naming == Naming::Diffusers {
        return error;
    }
    let mut problems: BTreeMap<String, WeightProblem> = BTreeMap::new();
    for problem in error.problems {
        let problem = match official::from_diffusers(problem.tensor()) {
            Some(original) => of_original(problem, &original),
            None => problem,
        };
        let name = problem.tensor().to_owned();
        let problem = match (problems.remove(&name), problem) {
            (None, problem) => problem,
            // A fused matrix that could not be cut: its parts are missing, and it is left over.
            (
                Some(WeightProblem::Missing { expected, .. }),
                WeightProblem::Unexpected { tensor, found },
            ) => WeightProblem::Shape { tensor, found, expected },
            (Some(first), _) => first,
        };
        problems.insert(name, problem);
    }
    WeightsError { problems: problems.into_values().collect(), ..error }
}

/// A problem of one part of an original tensor as one of the whole tensor.
fn of_original(problem: WeightProblem, original: &Original) -> WeightProblem {
    let tensor = original.name.clone();
    let whole = |mut shape: Vec<usize>| {
        if let Some(rows) = shape.first_mut() {
            *rows = rows.saturating_mul(original.parts);
        }
        shape
    };
    match problem {
        WeightProblem::Missing { expected, .. } => {
            WeightProblem::Missing { tensor, expected: whole(expected) }
        }
        WeightProblem::Shape { found, expected, .. } => {
            WeightProblem::Shape { tensor, found: whole(found), expected: whole(expected) }
        }
        WeightProblem::Dtype { found, .. } => WeightProblem::Dtype { tensor, found },
        WeightProblem::MixedDtypes { found, .. } => WeightProblem::MixedDtypes { tensor, found },
        WeightProblem::Unexpected { found, .. } => {
            WeightProblem::Unexpected { tensor, found: whole(found) }
        }
    }
}

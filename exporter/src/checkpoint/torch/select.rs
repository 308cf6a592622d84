//! The weights among everything that a PyTorch file holds.

use super::super::text::shown;
use super::value::{Tensor, Unpickled, Value};
use super::{FileProblem, WeightsKey};

/// Keys that wrap the weights, in the order in which they are looked for. Upstream's conversion
/// knows the first two; the third is that of other trainers, and the last is all that is left when
/// someone kept only the averaged weights.
const WRAPPERS: [&str; 4] = ["state_dict", "ema", "model", "state_dict_ema"];

/// Keys that an error lists at most.
const MAX_LISTED: usize = 20;

/// The key under which the weights are, with a `.` where it was nested, and name and view of each.
pub(super) type Weights<'u, 'a> = (Option<String>, Vec<(&'a str, &'u Tensor)>);

/// Finds the weights. Numbers, text and lists beside the tensors are left out, as are dictionaries:
/// what else a training checkpoint holds is no part of the model.
pub(super) fn weights<'u, 'a>(
    unpickled: &'u Unpickled<'a>,
    key: &WeightsKey,
) -> Result<Weights<'u, 'a>, FileProblem> {
    let none = |asked: Option<&str>| FileProblem::WeightsKey {
        asked: asked.map(str::to_owned),
        found: keys(unpickled, unpickled.root),
    };
    let Value::Dict(root) = unpickled.root else { return Err(none(None)) };
    let mut path: Vec<&str> = Vec::new();
    let mut dict = root;
    match key {
        WeightsKey::Bare => {}
        WeightsKey::Named(key) => {
            dict = inner(unpickled, root, key).ok_or_else(|| none(Some(key)))?;
            path.push(key);
        }
        WeightsKey::Auto => {
            let found = WRAPPERS.iter().find_map(|key| Some((*key, inner(unpickled, root, key)?)));
            if let Some((key, found)) = found {
                dict = found;
                path.push(key);
            }
        }
    }
    let mut tensors = tensors_of(unpickled, dict);
    // A wrapper in a wrapper, as a trainer's file that was saved again.
    if tensors.is_empty()
        && *key != WeightsKey::Bare
        && let Some(nested) = inner(unpickled, dict, WRAPPERS[0])
    {
        tensors = tensors_of(unpickled, nested);
        path.push(WRAPPERS[0]);
    }
    if tensors.is_empty() {
        return Err(none(path.first().copied()));
    }
    Ok(((!path.is_empty()).then(|| path.join(".")), tensors))
}

fn tensors_of<'u, 'a>(unpickled: &'u Unpickled<'a>, dict: usize) -> Vec<(&'a str, &'u Tensor)> {
    unpickled.dicts[dict]
        .iter()
        .filter_map(|item| match item {
            (Value::Text(name), Value::Tensor(tensor)) => {
                Some((*name, &unpickled.tensors[*tensor]))
            }
            _ => None,
        })
        .collect()
}

/// The dictionary under a key.
fn inner(unpickled: &Unpickled<'_>, dict: usize, wanted: &str) -> Option<usize> {
    unpickled.dicts[dict].iter().find_map(|item| match item {
        (Value::Text(key), Value::Dict(inner)) if *key == wanted => Some(*inner),
        _ => None,
    })
}

/// The keys of a dictionary, as far as they are worth showing.
fn keys(unpickled: &Unpickled<'_>, value: Value<'_>) -> Vec<String> {
    let Value::Dict(dict) = value else { return Vec::new() };
    let texts = unpickled.dicts[dict].iter().filter_map(|item| match item.0 {
        Value::Text(key) => Some(shown(key)),
        _ => None,
    });
    let mut keys: Vec<String> = texts.take(MAX_LISTED + 1).collect();
    if keys.len() > MAX_LISTED {
        keys[MAX_LISTED] = "…".to_owned();
    }
    keys
}

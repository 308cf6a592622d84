//! Typed access to a `config.json`, with errors that name the field.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::{Map, Value};

use super::ConfigError;

/// No real config comes near; larger files are something else.
const MAX_BYTES: u64 = 16 << 20;
/// Above every dimension of these models, and small enough that products cannot overflow.
const MAX_SIZE: u64 = 1 << 24;

const MAX_LAYERS: usize = 1024;

/// The fields of a config. `null` counts as absent everywhere.
pub(super) struct Fields {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Fields {
    /// Reads the file; fields nobody asks for are ignored.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
        let invalid = |reason: String| ConfigError::Json { path: path.to_owned(), reason };
        let bytes = fs::metadata(path).map_err(unreadable)?.len();
        if bytes > MAX_BYTES {
            return Err(invalid(format!("found {bytes} bytes, expected at most {MAX_BYTES}")));
        }
        let text = fs::read(path).map_err(unreadable)?;
        let map = serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// No fields, for a checkpoint without a config; messages name the checkpoint instead.
    pub fn none(checkpoint: &Path) -> Self {
        Self { path: checkpoint.to_owned(), map: Map::new() }
    }

    /// All of it.
    pub fn into_map(self) -> Map<String, Value> {
        self.map
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The file that the messages name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// The error for a field whose value cannot be used.
    pub fn invalid(&self, field: &'static str, expected: impl Into<String>) -> ConfigError {
        let mut found = self.map.get(field).map_or("missing".to_owned(), Value::to_string);
        if found.len() > 80 {
            found = found.chars().take(77).chain("...".chars()).collect();
        }
        ConfigError::Invalid { path: self.path.clone(), field, found, expected: expected.into() }
    }

    /// A size: a whole number from 1 to 2^24.
    pub fn size(&self, field: &'static str) -> Result<Option<usize>, ConfigError> {
        self.get(field)
            .map(|value| {
                to_size(value).ok_or_else(|| self.invalid(field, "a whole number of at least 1"))
            })
            .transpose()
    }

    /// A count of layers. A limit far above any real model keeps a damaged config from asking for
    /// a graph that fills the memory.
    pub fn layers(&self, field: &'static str) -> Result<Option<usize>, ConfigError> {
        match self.size(field)? {
            Some(count) if count > MAX_LAYERS => {
                Err(self.invalid(field, format!("at most {MAX_LAYERS}")))
            }
            count => Ok(count),
        }
    }

    /// A list of sizes, not empty.
    pub fn sizes(&self, field: &'static str) -> Result<Option<Vec<usize>>, ConfigError> {
        let expected = "a list of whole numbers of at least 1";
        self.get(field)
            .map(|value| {
                let sizes: Option<Vec<usize>> =
                    value.as_array().and_then(|list| list.iter().map(to_size).collect());
                sizes.filter(|s| !s.is_empty()).ok_or_else(|| self.invalid(field, expected))
            })
            .transpose()
    }

    /// True or false.
    pub fn flag(&self, field: &'static str) -> Result<Option<bool>, ConfigError> {
        self.get(field)
            .map(|value| value.as_bool().ok_or_else(|| self.invalid(field, "true or false")))
            .transpose()
    }

    /// A name out of a list of known ones.
    pub fn name<T: FromStr<Err: Display>>(
        &self,
        field: &'static str,
    ) -> Result<Option<T>, ConfigError> {
        self.get(field)
            .map(|value| {
                let name = value.as_str().ok_or_else(|| self.invalid(field, "a text"))?;
                name.parse().map_err(|error: T::Err| self.invalid(field, error.to_string()))
            })
            .transpose()
    }

    /// A list of numbers of layers, counted from 0.
    pub fn indexes(&self, field: &'static str) -> Result<Option<Vec<usize>>, ConfigError> {
        let index = |value: &Value| {
            value.as_u64().filter(|&index| index < MAX_LAYERS as u64).map(|index| index as usize)
        };
        self.get(field)
            .map(|value| {
                let list = value.as_array().and_then(|list| list.iter().map(index).collect());
                list.ok_or_else(|| self.invalid(field, "a list of block numbers from 0 on"))
            })
            .transpose()
    }

    /// A finite number above zero.
    pub fn positive(&self, field: &'static str) -> Result<Option<f64>, ConfigError> {
        self.get(field)
            .map(|value| {
                value
                    .as_f64()
                    .filter(|number| number.is_finite() && *number > 0.0)
                    .ok_or_else(|| self.invalid(field, "a number above 0"))
            })
            .transpose()
    }

    /// Refuses a field whose value is neither absent nor one of these.
    pub fn only(&self, field: &'static str, accepted: &[Value]) -> Result<(), ConfigError> {
        match self.get(field) {
            Some(value) if !accepted.contains(value) => {
                let accepted: Vec<String> = accepted.iter().map(Value::to_string).collect();
                Err(self.invalid(field, accepted.join(" or ")))
            }
            _ => Ok(()),
        }
    }

    /// Every entry of a list field must be `accepted`; the field may be absent.
    pub fn only_entries(&self, field: &'static str, accepted: &str) -> Result<(), ConfigError> {
        match self.get(field) {
            None => Ok(()),
            Some(Value::Array(list)) if list.iter().all(|entry| entry == accepted) => Ok(()),
            Some(_) => Err(self.invalid(field, format!("a list of {accepted:?} only"))),
        }
    }

    /// The value of a field that has no default.
    pub fn required<T>(
        &self,
        field: &'static str,
        value: Option<T>,
        expected: &str,
    ) -> Result<T, ConfigError> {
        value.ok_or_else(|| ConfigError::Missing {
            path: self.path.clone(),
            field,
            expected: expected.to_owned(),
        })
    }

    /// A value that the config gives, the weights show, or both: then they must be equal.
    /// `shown` is the value with the tensor that shows it.
    pub fn agreed<T: PartialEq + Display>(
        &self,
        field: &'static str,
        given: Option<T>,
        shown: Option<(T, String)>,
        expected: &str,
    ) -> Result<T, ConfigError> {
        match (given, shown) {
            (Some(given), Some((shown, evidence))) if given != shown => {
                Err(ConfigError::Conflict {
                    path: self.path.clone(),
                    field,
                    found: given.to_string(),
                    expected: shown.to_string(),
                    evidence,
                })
            }
            (_, Some((shown, _))) => Ok(shown),
            (given, None) => self.required(field, given, expected),
        }
    }
}

fn to_size(value: &Value) -> Option<usize> {
    value.as_u64().filter(|size| (1..=MAX_SIZE).contains(size)).map(|size| size as usize)
}

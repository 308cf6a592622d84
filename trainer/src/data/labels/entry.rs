//! From the fields of an entry to a record.

use super::{Columns, LabelError, Place, Record};
use crate::data::Captions;
use serde_json::{Map, Value};
use std::path::{Component, Path, PathBuf};

/// The record of a JSON value.
pub(super) fn from_json(
    file: &Path,
    place: Place,
    value: Value,
    columns: &Columns,
) -> Result<Record, LabelError> {
    let Value::Object(mut fields) = value else {
        let file = file.to_owned();
        return Err(LabelError::NoObject { file, place, found: described(Some(&value)) });
    };
    let wrong = |field: &str, value: Option<&Value>, expected| LabelError::Field {
        file: file.to_owned(),
        place,
        field: field.to_owned(),
        found: described(value),
        expected,
    };
    let path = match fields.remove(&columns.path) {
        Some(Value::String(path)) => path,
        other => return Err(wrong(&columns.path, other.as_ref(), "the picture's path as a text")),
    };
    let mut caption = |field: &str| match fields.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        other => Err(wrong(field, other.as_ref(), "a caption as a text")),
    };
    let captions = Captions::new(caption(&columns.prompt)?, caption(&columns.sharegpt4v)?);
    let side = |field: &str| match fields.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match whole(value) {
            Some(side) => Ok(Some(side)),
            None => Err(wrong(field, Some(value), "a number of pixels above 0")),
        },
    };
    let declared = side("height")?.zip(side("width")?);
    check_ratio(&fields).map_err(|value| wrong("ratio", Some(value), "a number above 0"))?;
    Ok(Record { place, path: inside(file, place, &path)?, captions, declared })
}

/// The ratio is not used, the picture's own is. A wrong type is still a sign of a broken file.
fn check_ratio(fields: &Map<String, Value>) -> Result<(), &Value> {
    match fields.get("ratio") {
        None | Some(Value::Null) => Ok(()),
        Some(value) if value.as_f64().is_some_and(|ratio| ratio > 0.0) => Ok(()),
        Some(value) => Err(value),
    }
}

/// A whole number above 0, also where it is written as `512.0`.
fn whole(value: &Value) -> Option<u64> {
    let number = value.as_f64()?;
    ((1.0..=4_294_967_295.0).contains(&number) && number.fract() == 0.0).then_some(number as u64)
}

/// A path that stays inside the folder it is relative to.
pub(super) fn inside(file: &Path, place: Place, text: &str) -> Result<PathBuf, LabelError> {
    let refused = |problem| LabelError::PathEscapes {
        file: file.to_owned(),
        place,
        path: text.to_owned(),
        problem,
    };
    let mut path = PathBuf::new();
    for part in Path::new(text).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err(refused("goes up with `..`")),
            Component::RootDir | Component::Prefix(_) => return Err(refused("is absolute")),
        }
    }
    if path.as_os_str().is_empty() {
        return Err(refused("names no file"));
    }
    Ok(path)
}

/// What a value is, in few words.
fn described(value: Option<&Value>) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(Value::Null) => "null".to_owned(),
        Some(Value::Bool(value)) => format!("{value}"),
        Some(Value::Number(number)) => format!("the number {number}"),
        Some(Value::String(text)) => {
            let short: String = text.chars().take(40).collect();
            let dots = if short.len() < text.len() { "…" } else { "" };
            format!("the text \"{short}{dots}\"")
        }
        Some(Value::Array(_)) => "a list".to_owned(),
        Some(Value::Object(_)) => "an object".to_owned(),
    }
}

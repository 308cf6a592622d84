//! The seed's JSON list, and a record a line.

use super::{Columns, LabelError, Place, Record, entry, relaxed};
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::Value;
use std::fmt;
use std::io;
use std::path::Path;

/// Records of a JSON list.
pub(super) fn read_list(file: &Path, columns: &Columns) -> Result<Vec<Record>, LabelError> {
    let mut text = read_text(file)?;
    relaxed::without_trailing_commas(&mut text);
    let mut problem = None;
    let mut json = serde_json::Deserializer::from_str(&text);
    let visitor = Records { file, columns, problem: &mut problem };
    let records = json.deserialize_seq(visitor).and_then(|records| json.end().map(|()| records));
    match (records, problem) {
        (_, Some(problem)) => Err(problem),
        (Ok(records), None) => Ok(records),
        (Err(error), None) => Err(malformed(file, &text, 1, &error)),
    }
}

/// Records of a file with one in every line; empty lines are passed over.
pub(super) fn read_lines(file: &Path, columns: &Columns) -> Result<Vec<Record>, LabelError> {
    let text = read_text(file)?;
    let mut records = Vec::new();
    for (line, content) in (1..).zip(text.lines()) {
        if content.trim().is_empty() {
            continue;
        }
        let value = serde_json::from_str(content)
            .map_err(|error| malformed(file, content, line, &error))?;
        let place = Place { entry: records.len() + 1, line: Some(line) };
        records.push(entry::from_json(file, place, value, columns)?);
    }
    Ok(records)
}

/// The file's text without a byte order mark.
pub(super) fn read_text(file: &Path) -> Result<String, LabelError> {
    let bytes = std::fs::read(file).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => LabelError::NotFound { file: file.to_owned() },
        _ => LabelError::Read { path: file.to_owned(), source },
    })?;
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let sound = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let sound = String::from_utf8_lossy(sound);
        let last = sound.rsplit('\n').next().unwrap_or_default();
        LabelError::Malformed {
            file: file.to_owned(),
            line: sound.matches('\n').count() as u64 + 1,
            column: last.chars().count() as u64 + 1,
            problem: "found bytes that are no UTF-8 text; save the file as UTF-8".to_owned(),
        }
    })?;
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    Ok(text)
}

/// `first_line` is the number of the text's first line in the file.
fn malformed(file: &Path, text: &str, first_line: u64, error: &serde_json::Error) -> LabelError {
    let (line, column) = (error.line().max(1), error.column());
    let content = text.split('\n').nth(line - 1).unwrap_or_default();
    // The parser counts bytes.
    let before = &content.as_bytes()[..column.saturating_sub(1).min(content.len())];
    let column = String::from_utf8_lossy(before).chars().count() as u64 + 1;
    let said = error.to_string();
    let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _)| said);
    let problem = format!("not valid JSON: {said}");
    LabelError::Malformed {
        file: file.to_owned(),
        line: first_line + line as u64 - 1,
        column,
        problem,
    }
}

/// Turns one element after the other into a record, so that the whole list never exists as JSON values.
struct Records<'a> {
    file: &'a Path,
    columns: &'a Columns,
    problem: &'a mut Option<LabelError>,
}

impl<'de> Visitor<'de> for Records<'_> {
    type Value = Vec<Record>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of records, `[{\"path\": …, \"prompt\": …}, …]`")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut records = Vec::new();
        while let Some(value) = list.next_element::<Value>()? {
            let place = Place { entry: records.len() + 1, line: None };
            match entry::from_json(self.file, place, value, self.columns) {
                Ok(record) => records.push(record),
                Err(error) => {
                    *self.problem = Some(error);
                    return Err(serde::de::Error::custom("an entry cannot be used"));
                }
            }
        }
        Ok(records)
    }
}

//! A table of comma-separated values with a line of names on top.

use super::{Columns, LabelError, Place, Record, entry, json::read_text};
use crate::data::Captions;
use std::path::Path;

/// Records of a table. One caption column is enough.
pub(super) fn read(file: &Path, columns: &Columns) -> Result<Vec<Record>, LabelError> {
    let text = read_text(file)?;
    let mut table = csv::Reader::from_reader(text.as_bytes());
    let names = table.headers().map_err(|error| malformed(file, &text, &error))?.clone();
    let usual = Columns::default();
    let missing = |column: &String, flag| LabelError::NoColumn {
        file: file.to_owned(),
        column: column.clone(),
        flag,
        found: names.iter().map(str::to_owned).collect(),
    };
    let place_of = |column: &String| names.iter().position(|name| name.trim() == column);
    let path = place_of(&columns.path).ok_or_else(|| missing(&columns.path, "path_column"))?;
    let prompt = place_of(&columns.prompt);
    let long = place_of(&columns.sharegpt4v);
    // A name that was asked for has to be there, and so has one of the two.
    if prompt.is_none() && (long.is_none() || columns.prompt != usual.prompt) {
        return Err(missing(&columns.prompt, "prompt_column"));
    }
    if long.is_none() && columns.sharegpt4v != usual.sharegpt4v {
        return Err(missing(&columns.sharegpt4v, "sharegpt4v_column"));
    }
    let sides = ["height", "width"].map(|name| place_of(&name.to_owned()));
    let mut records = Vec::new();
    let mut last = None;
    for row in table.records() {
        let row = row.map_err(|error| malformed(file, &text, &error))?;
        last = row.position().cloned();
        let line = row.position().map(|position| line_of(&text, position));
        let place = Place { entry: records.len() + 1, line };
        let cell = |column: Option<usize>| column.and_then(|k| row.get(k)).map(str::to_owned);
        let side = |name: &str, column: Option<usize>| match cell(column) {
            Some(cell) if !cell.trim().is_empty() => match cell.trim().parse::<f64>() {
                Ok(side) if (1.0..=4_294_967_295.0).contains(&side) && side.fract() == 0.0 => {
                    Ok(Some(side as u64))
                }
                _ => Err(LabelError::Field {
                    file: file.to_owned(),
                    place,
                    field: name.to_owned(),
                    found: format!("`{cell}`"),
                    expected: "a number of pixels above 0",
                }),
            },
            _ => Ok(None),
        };
        records.push(Record {
            place,
            path: entry::inside(file, place, &cell(Some(path)).unwrap_or_default())?,
            captions: Captions::new(cell(prompt), cell(long)),
            declared: side("height", sides[0])?.zip(side("width", sides[1])?),
        });
    }
    match last {
        Some(last) if ends_in_quotes(&text[last.byte() as usize..]) => {
            let problem = "the row has a quote that is opened and not closed".to_owned();
            Err(at_row(file, &text, last.byte() as usize, problem))
        }
        _ => Ok(records),
    }
}

/// The line a row begins at. The parser counts blank lines before it to the row.
fn line_of(text: &str, position: &csv::Position) -> u64 {
    let rest = text.as_bytes().get(position.byte() as usize..).unwrap_or_default();
    let blank = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
    position.line() + blank.filter(|byte| **byte == b'\n').count() as u64
}

/// Whether the last row is still inside quotes where the file ends, which the parser lets pass: all that
/// follows the quote would be one caption.
fn ends_in_quotes(row: &str) -> bool {
    let row = row.trim_start();
    let quoted = row.starts_with('"') || row.contains(",\"");
    quoted && !row.matches('"').count().is_multiple_of(2)
}

fn malformed(file: &Path, text: &str, error: &csv::Error) -> LabelError {
    let (position, problem) = match error.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let names = "fields, as the first line has; put texts with commas into quotes";
            (pos.clone(), format!("found {len} fields, expected {expected_len} {names}"))
        }
        _ => (error.position().cloned(), format!("not a valid table: {error}")),
    };
    at_row(file, text, position.map_or(0, |position| position.byte() as usize), problem)
}

/// An error at the row that begins at this byte; blank lines before it may be counted to it.
fn at_row(file: &Path, text: &str, byte: usize, problem: String) -> LabelError {
    let rest = text.get(byte..).unwrap_or_default();
    let at = text.len() - rest.trim_start_matches(['\r', '\n']).len();
    let before = text.get(..at).unwrap_or_default();
    let last = before.rsplit('\n').next().unwrap_or_default();
    LabelError::Malformed {
        file: file.to_owned(),
        line: before.matches('\n').count() as u64 + 1,
        column: last.chars().count() as u64 + 1,
        problem,
    }
}

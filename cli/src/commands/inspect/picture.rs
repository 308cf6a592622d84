//! `pixart inspect` of a picture: what it says about how it was made, whichever program wrote it.

use super::{row, text};
use crate::exit::{Failure, print_line};
use pixart_runtime::image::{ImageFormat, PictureTexts, RECORD, is_picture, read_texts};
use serde_json::{Value, json};
use std::path::Path;

/// Most characters of a text that are shown; node editors write whole programs.
const SHOWN: usize = 4000;

/// Whether a path is to be looked at as a picture: by its first bytes, or because it is called one.
pub fn is_one(path: &Path) -> bool {
    is_picture(path) || path.is_file() && ImageFormat::from_path(path).is_some()
}

/// Prints the texts of a picture.
pub fn print(path: &Path, as_json: bool) -> Result<(), Failure> {
    let found = read_texts(path)?;
    let record: Option<Value> = found.get(RECORD).and_then(|text| serde_json::from_str(text).ok());
    if as_json {
        let texts: Vec<_> =
            found.texts.iter().map(|text| json!({ "key": text.key, "text": text.text })).collect();
        let all = json!({
            "file": path.display().to_string(),
            "format": found.format.to_string(),
            "width": found.width,
            "height": found.height,
            "texts": texts,
            RECORD: record,
        });
        return Ok(print_line(format_args!("{all:#}"))?);
    }
    print_table(path, &found, record.as_ref())
}

fn print_table(path: &Path, found: &PictureTexts, record: Option<&Value>) -> Result<(), Failure> {
    row("file", path.display())?;
    row("picture", format!("{}, {}x{} pixels", found.format, found.width, found.height))?;
    if found.texts.is_empty() {
        return row("texts", "none: it does not say how it was made");
    }
    if let Some(record) = record {
        print_record(record)?;
    }
    for entry in &found.texts {
        if entry.key == RECORD && record.is_some() {
            continue;
        }
        let mut chars = entry.text.chars();
        let mut shown: String = chars.by_ref().take(SHOWN).collect();
        let more = chars.count();
        if more > 0 {
            shown.push_str(&format!("…\nand {more} more characters; --json prints all"));
        }
        lines(&entry.key, &shown)?;
    }
    Ok(())
}

/// Our own text: what it was made by, the settings as flags are called, the facts.
fn print_record(record: &Value) -> Result<(), Failure> {
    lines("made by", &text(&record["tool"]))?;
    let facts = &record["facts"];
    lines("engine", &text(&facts["engine"]["version"]))?;
    for (part, fact) in facts["model"].as_object().into_iter().flatten() {
        let hash = ["source_sha256", "sha256"].iter().find_map(|key| fact[*key].as_str());
        let words = ["name", "precision"].iter().filter_map(|key| fact[*key].as_str());
        let words: Vec<_> =
            words.map(str::to_owned).chain(hash.map(|h| format!("sha256 {h}"))).collect();
        lines(part, &words.join(", "))?;
    }
    for lora in facts["loras"].as_array().into_iter().flatten() {
        let (name, hash) = (text(&lora["name"]), text(&lora["sha256"]));
        lines("lora", &format!("{name}, strength {}, sha256 {hash}", lora["strength"]))?;
    }
    for (name, hash) in facts["inputs"].as_object().into_iter().flatten() {
        lines(name, &format!("sha256 {}", text(hash)))?;
    }
    for (name, value) in record["settings"].as_object().into_iter().flatten() {
        match value.as_array() {
            Some(values) => {
                for value in values {
                    lines(&format!("--{name}"), &text(value))?;
                }
            }
            None => lines(&format!("--{name}"), &text(value))?,
        }
    }
    Ok(())
}

/// A row whose text can have several lines. It comes from a stranger, so what a terminal could take for
/// commands is escaped.
fn lines(label: &str, text: &str) -> Result<(), Failure> {
    let label = plain(label);
    for (k, line) in text.lines().enumerate() {
        row(if k == 0 { &label } else { "" }, plain(line))?;
    }
    if text.is_empty() { row(&label, "") } else { Ok(()) }
}

fn plain(text: &str) -> String {
    let escaped = |c: char| c.is_control() && c != '\t';
    text.chars()
        .flat_map(|c| match escaped(c) {
            true => c.escape_debug().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_commands() {
        assert_eq!(plain("a\u{1b}[2Jb\u{9b}c\td ü"), "a\\u{1b}[2Jb\\u{9b}c\td ü");
    }
}

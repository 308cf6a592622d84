//! Named characters of HTML, single-byte encodings, and classes of characters.
//!
//! `tables.json` is written by `tests/fixtures/make/cleaner_tables.py`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::LazyLock,
};

use serde::Deserialize;

/// The tables, read on first use.
pub(super) static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    serde_json::from_str(include_str!("tables.json")).expect("the table is part of the program")
});

/// What the file holds.
#[derive(Deserialize)]
pub(super) struct Tables {
    /// The characters of `&name;`.
    pub(super) entities: HashMap<String, String>,
    /// The names that old pages write without a semicolon.
    pub(super) legacy: HashSet<String>,
    /// In the order in which they are tried.
    pub(super) encodings: Vec<Encoding>,
    /// Characters by class, as first and last code point of each run.
    classes: BTreeMap<String, Vec<(u32, u32)>>,
}

/// A single-byte encoding that has ASCII below.
#[derive(Deserialize)]
pub(super) struct Encoding {
    pub(super) name: String,
    /// Whether bytes without a character stand for themselves and U+FFFD is byte 0x1A.
    pub(super) sloppy: bool,
    /// The characters of the bytes 0x80 to 0xff.
    upper: String,
}

impl Tables {
    /// `rule` with every `{class}` replaced by the class's characters, for use inside brackets.
    pub(super) fn expand(&self, rule: &str) -> String {
        let mut out = rule.to_owned();
        for (name, runs) in &self.classes {
            let key = format!("{{{name}}}");
            if out.contains(&key) {
                let runs = runs.iter().map(|(a, b)| format!(r"\x{{{a:x}}}-\x{{{b:x}}}"));
                out = out.replace(&key, &runs.collect::<String>());
            }
        }
        out
    }
}

impl Encoding {
    /// The text in this encoding; `None` where a character does not occur in it.
    pub(super) fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars()
            .map(|c| match c {
                '\u{1a}' if self.sloppy => None,
                '\u{fffd}' if self.sloppy => Some(0x1a),
                '\0'..='\x7f' => Some(c as u8),
                _ => self.upper.chars().position(|u| u == c).map(|k| 0x80 + k as u8),
            })
            .collect()
    }

    /// The character of a byte from 0x80 on.
    pub(super) fn upper(&self, byte: u8) -> Option<char> {
        self.upper.chars().nth(usize::from(byte).checked_sub(0x80)?)
    }
}

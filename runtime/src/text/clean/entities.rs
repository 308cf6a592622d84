//! HTML's character references.

use std::sync::LazyLock;

use super::{CleanError, pattern::Pattern, tables::TABLES};

/// What `&#number;` stands for in a browser, as far as it is not simply that code point.
pub(super) fn numeric(number: u32) -> char {
    match number {
        0x80..=0x9f => windows_1252(number as u8),
        0 => '\u{fffd}',
        _ => char::from_u32(number).unwrap_or('\u{fffd}'),
    }
}

/// The Windows character of a byte from 0x80 to 0x9f; a byte without one is a control character.
pub(super) fn windows_1252(byte: u8) -> char {
    let table = TABLES.encodings.iter().find(|encoding| encoding.name == "windows-1252");
    table.and_then(|encoding| encoding.upper(byte)).unwrap_or(char::from(byte))
}

/// Reads digits, where too large a number is one that stands for nothing.
pub(super) fn number(digits: &str, radix: u32) -> u32 {
    u32::from_str_radix(digits, radix).unwrap_or(u32::MAX)
}

/// Python's `html.unescape`.
pub(super) fn unescape(text: &str) -> Result<String, CleanError> {
    static REFERENCE: LazyLock<Pattern> = LazyLock::new(|| {
        Pattern::new(r"&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\x0c <&#;]{1,32};?)")
    });
    Ok(REFERENCE.replace_with(text, |found| one(&found[1]))?.into_owned())
}

/// What the reference `&name` becomes; `name` may end in a semicolon.
fn one(name: &str) -> String {
    if let Some(digits) = name.strip_prefix('#') {
        let digits = digits.strip_suffix(';').unwrap_or(digits);
        let code = match digits.strip_prefix(['x', 'X']) {
            Some(digits) => number(digits, 16),
            None => number(digits, 10),
        };
        return match code {
            // Characters no page may have are dropped.
            0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef => String::new(),
            ..=0x10_ffff if code & 0xfffe == 0xfffe => String::new(),
            _ => numeric(code).to_string(),
        };
    }
    if let Some(text) = named(name) {
        return text.to_owned();
    }
    // The longest beginning that is a name of its own, as in "&notit" for "¬it".
    let ends = name.char_indices().map(|(at, _)| at).filter(|at| *at > 0);
    let known = ends
        .rev()
        .filter(|at| name[..*at].chars().count() > 1)
        .find_map(|at| named(&name[..at]).map(|text| format!("{text}{}", &name[at..])));
    known.unwrap_or_else(|| format!("&{name}"))
}

/// The characters of a name with its semicolon, or of one that needs none.
fn named(name: &str) -> Option<&'static str> {
    let text = match name.strip_suffix(';') {
        Some(name) => TABLES.entities.get(name),
        None if TABLES.legacy.contains(name) => TABLES.entities.get(name),
        None => None,
    };
    text.map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_become_characters() {
        for (text, expected) in [
            ("&lt;b&gt; &amp;amp; &eacute &notit; &nosuch;", "<b> &amp; é ¬it; &nosuch;"),
            ("&#65;&#x42;&#X43 &#128;&#0;&#1;&#x110000;&#xd800;", "ABC €\u{fffd}\u{fffd}\u{fffd}"),
            ("&#xfffe;&#99999999999999;&;&", "\u{fffd}&;&"),
        ] {
            assert_eq!(unescape(text).expect("a text"), expected);
        }
    }
}

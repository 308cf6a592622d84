//! Repair of texts that were decoded in the wrong encoding, and other damage, as `ftfy.fix_text` does it.

use std::sync::LazyLock;

use unicode_normalization::UnicodeNormalization;

use super::{
    CleanError, entities,
    pattern::Pattern,
    tables::{Encoding, TABLES},
};

/// Characters of one segment; a longer line is repaired in pieces.
const SEGMENT: usize = 1_000_000;

/// Neighbours that hardly any text has but a wrongly decoded one. Names in braces are classes of
/// characters.
const UNLIKELY: &[&str] = &[
    "[{c1}]",
    "[{bad}{lower_accented}{upper_accented}{box}{start_punctuation}{end_punctuation}{currency}{numeric}{law}][{bad}]",
    "[a-zA-Z][{lower_common}{upper_common}][{bad}]",
    "[{bad}][{lower_accented}{upper_accented}{box}{start_punctuation}{end_punctuation}{currency}{numeric}{law}]",
    "[{lower_accented}{lower_common}{box}{end_punctuation}{currency}{numeric}][{upper_accented}]",
    "[{box}{end_punctuation}{currency}{numeric}][{lower_accented}]",
    "[{lower_accented}{box}{end_punctuation}][{currency}]",
    r"\s[{upper_accented}][{currency}]",
    "[{upper_accented}{box}][{numeric}{law}]",
    "[{lower_accented}{upper_accented}{box}{currency}{end_punctuation}][{start_punctuation}][{numeric}]",
    "[{lower_accented}{upper_accented}{currency}{numeric}{box}{law}][{end_punctuation}][{start_punctuation}]",
    "[{currency}{numeric}{box}][{start_punctuation}]",
    "[a-z][{upper_accented}][{start_punctuation}{currency}]",
    "[{box}][{kaomoji}]",
    "[{lower_accented}{upper_accented}{currency}{numeric}{start_punctuation}{end_punctuation}{law}][{box}]",
    "[{box}][{end_punctuation}]",
    r"[{lower_accented}{upper_accented}][{start_punctuation}{end_punctuation}]\w",
    "[Œœ][^A-Za-z]",
    "[{upper_accented}]°",
    r"[ÂÃÎÐ][€œŠš¢£Ÿž\x{a0}\x{ad}®©°·»{start_punctuation}{end_punctuation}–—´]",
    "×[²³]",
    "(?:[ØÙ][{common}{currency}{bad}{numeric}{start_punctuation}ŸŠ®°µ»]){2}",
    "à[²µ¹¼½¾]",
    "√[±∂†≠®™´≤≥¥µø]",
    "≈[°¢]",
    "‚Ä[ìîïòôúùû†°¢π]",
    "‚[âó][àä°ê]",
    "вЂ",
    "[ВГРС][{c1}{bad}{start_punctuation}{end_punctuation}{currency}°µ][ВГРС]",
    "ГўВЂВ.[A-Za-z ]",
    r"Ã[\x{a0}¡]",
    r"[a-z]\s?[ÃÂ][ ]",
    "^[ÃÂ][ ]",
    "[a-z.,?!{end_punctuation}]Â[ {start_punctuation}{end_punctuation}]",
    r"β€[™\x{a0}Ά\x{ad}®°]",
    "[ΒΓΞΟ][{c1}{bad}{start_punctuation}{end_punctuation}{currency}°][ΒΓΞΟ]",
    "ā€",
];

static IS_BAD: LazyLock<Pattern> =
    LazyLock::new(|| Pattern::new(&TABLES.expand(&UNLIKELY.join("|"))));

/// What UTF-8 looks like when each byte was made a character.
static LIKE_UTF8: LazyLock<Pattern> = LazyLock::new(|| {
    let sequences = "(?:[{lead2}][{rest}]|[{lead3}][{rest}]{2}|[{lead4}][{rest}]{3})+";
    Pattern::new(&TABLES.expand(&format!("(?<![{{rest_strict}}]){sequences}")))
});

static ESCAPE: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(r"\x1b\[(?:\d|;)*[a-zA-Z]"));
static REFERENCE: LazyLock<Pattern> = LazyLock::new(|| Pattern::new("&#?[0-9A-Za-z]{1,24};"));

/// The text, repaired line by line.
pub(super) fn repaired(text: &str) -> Result<String, CleanError> {
    let mut out = String::with_capacity(text.len());
    let mut references = true;
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        while !rest.is_empty() {
            let end = rest.char_indices().nth(SEGMENT).map_or(rest.len(), |(at, _)| at);
            let (segment, after) = rest.split_at(end);
            // A text with markup is not to be unescaped, nor is what follows it.
            references &= !segment.contains('<');
            out.push_str(&segment_repaired(segment, references)?);
            rest = after;
        }
    }
    Ok(out)
}

fn segment_repaired(segment: &str, references: bool) -> Result<String, CleanError> {
    let mut text = segment.to_owned();
    loop {
        let before = text.clone();
        if references {
            text = REFERENCE.replace_with(&text, |found| unescaped(&found[0]))?.into_owned();
        }
        text = encoding_repaired(text)?;
        text = without_c1(&text);
        text = text.chars().flat_map(separated).collect();
        text = text.chars().map(|c| if halved(c) { nfkc(c) } else { c.to_string() }).collect();
        text = text.replace(['\u{201c}', '\u{201d}', '\u{201e}', '\u{201f}'], "\"");
        text = text.replace(['\u{2bc}', '\u{2018}', '\u{2019}', '\u{201a}', '\u{201b}'], "'");
        text = text.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n");
        text = ESCAPE.replace_all(&text, "")?.into_owned();
        text.retain(|c| !is_control(c));
        text = text.nfc().collect();
        if text == before {
            return Ok(text);
        }
    }
}

/// References that are complete, names in capitals included.
fn unescaped(reference: &str) -> String {
    let name = reference.trim_start_matches('&').trim_end_matches(';');
    if name.starts_with('#') {
        let text = entities::unescape(reference).unwrap_or_else(|_| reference.to_owned());
        return if text.contains(';') { reference.to_owned() } else { text };
    }
    if let Some(text) = TABLES.entities.get(name) {
        return text.clone();
    }
    // "&EACUTE;" is no HTML, but it is clear what it was, unless a shorter name begins it.
    let lower = name.to_lowercase();
    match TABLES.entities.get(&lower).filter(|_| name == lower.to_uppercase()) {
        Some(text) if entities::unescape(reference).is_ok_and(|plain| plain == reference) => {
            text.to_uppercase()
        }
        _ => reference.to_owned(),
    }
}

fn encoding_repaired(mut text: String) -> Result<String, CleanError> {
    loop {
        match one_layer(&text)? {
            Some(better) if better != text => text = better,
            _ => return Ok(text),
        }
    }
}

/// The text with one wrong decoding undone, if there is one.
fn one_layer(text: &str) -> Result<Option<String>, CleanError> {
    if text.is_ascii() || !IS_BAD.is_match(text)? {
        return Ok(None);
    }
    let mut latin1 = None;
    for encoding in &TABLES.encodings {
        let Some(bytes) = encoding.encode(text) else { continue };
        if encoding.name == "latin-1" {
            latin1 = Some(bytes.clone());
        }
        if let Some(decoded) = decode_utf8(&restored(bytes, encoding)) {
            return Ok(Some(decoded));
        }
    }
    if LIKE_UTF8.is_match(text)? {
        let mut failure = None;
        let fixed = LIKE_UTF8.replace_with(text, |found| {
            let part = &found[0];
            // Only a shorter text, so that this comes to an end.
            let better = match IS_BAD.is_match(part) {
                Ok(true) if part.len() < text.len() => encoding_repaired(part.to_owned()),
                Ok(_) => Ok(part.to_owned()),
                Err(error) => Err(error),
            };
            better.unwrap_or_else(|error| {
                failure = Some(error);
                String::new()
            })
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        if fixed != text {
            return Ok(Some(fixed.into_owned()));
        }
    }
    if let Some(bytes) = latin1 {
        // Bytes that Windows does not use either leave the text as it is.
        let unused = [0x81, 0x8d, 0x8f, 0x90, 0x9d];
        if !bytes.iter().any(|byte| unused.contains(byte)) {
            let fixed = without_c1(text);
            if fixed != text {
                return Ok(Some(fixed));
            }
        }
    }
    Ok(Some(without_c1(text)))
}

/// Control characters of Latin-1 as the characters Windows has in their place.
fn without_c1(text: &str) -> String {
    let windows = |c| match c {
        '\u{80}'..='\u{9f}' => entities::windows_1252(c as u8),
        _ => c,
    };
    text.chars().map(windows).collect()
}

/// The bytes with no-break spaces that became spaces put back, and with what was lost made U+FFFD.
fn restored(bytes: Vec<u8>, encoding: &Encoding) -> Vec<u8> {
    let mut bytes = bytes;
    if encoding.name != "macroman" && find(&bytes, SPACED).is_some() {
        bytes = with_a_grave(&bytes);
        bytes = replaced(&bytes, SPACED, |part| {
            part.iter().map(|byte| if *byte == b' ' { 0xa0 } else { *byte }).collect()
        });
    }
    if encoding.sloppy {
        bytes = replaced(&bytes, LOST, |_| "\u{fffd}".as_bytes().to_vec());
    }
    bytes
}

/// "Ã la" was "à la": the space stands for two, unless the word is one of the Portuguese contractions.
fn with_a_grave(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let joined: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
        if rest.starts_with(b"\xc3 ") && !joined.iter().any(|word| rest[2..].starts_with(word)) {
            out.extend(b"\xc3\xa0 ");
            at += 2;
        } else {
            out.push(rest[0]);
            at += 1;
        }
    }
    out
}

/// Bytes one after the other, each in one of the ranges.
type Sequence = &'static [&'static [(u8, u8)]];

const SPACE: &[(u8, u8)] = &[(b' ', b' ')];
/// Continuation bytes without 0x85 and 0xa0, beside which a space is a space.
const SURE: &[(u8, u8)] = &[(0x80, 0x84), (0x86, 0x9f), (0xa1, 0xbf)];
const ANY: &[(u8, u8)] = &[(0x80, 0xbf)];

/// UTF-8 in which a space stands where 0xa0 was.
const SPACED: &[Sequence] = &[
    &[&[(0xc2, 0xc3), (0xc5, 0xc5), (0xce, 0xce), (0xd0, 0xd0), (0xd9, 0xd9)], SPACE],
    &[&[(0xe2, 0xe3)], SPACE, SURE],
    &[&[(0xe0, 0xe3)], SURE, SPACE],
    &[&[(0xf0, 0xf0)], SPACE, ANY, ANY],
    &[&[(0xf0, 0xf0)], ANY, SPACE, ANY],
    &[&[(0xf0, 0xf0)], ANY, ANY, SPACE],
];

const GONE: &[(u8, u8)] = &[(0x1a, 0x1a)];
const GONE_OR_ASKED: &[(u8, u8)] = &[(0x1a, 0x1a), (b'?', b'?')];
const GONE_OR_ANY: &[(u8, u8)] = &[(0x1a, 0x1a), (0x80, 0xbf)];
const GONE_ASKED_OR_ANY: &[(u8, u8)] = &[(0x1a, 0x1a), (b'?', b'?'), (0x80, 0xbf)];
const SURROGATE: &[(u8, u8)] = &[(0xed, 0xed)];
const LEAD3: &[(u8, u8)] = &[(0xe0, 0xef)];
const LEAD4: &[(u8, u8)] = &[(0xf0, 0xf4)];

/// UTF-8 of which a byte is gone: 0x1a stands for U+FFFD.
const LOST: &[Sequence] = &[
    &[&[(0xc2, 0xdf)], GONE],
    &[&[(0xc2, 0xc3)], &[(b'?', b'?')]],
    &[SURROGATE, &[(0xa0, 0xaf)], GONE_OR_ASKED, SURROGATE, &[(0xb0, 0xbf)], GONE_ASKED_OR_ANY],
    &[SURROGATE, &[(0xa0, 0xaf)], GONE_ASKED_OR_ANY, SURROGATE, &[(0xb0, 0xbf)], GONE_OR_ASKED],
    &[LEAD3, GONE_OR_ASKED, GONE_OR_ANY],
    &[LEAD3, GONE_OR_ANY, GONE_OR_ASKED],
    &[LEAD4, GONE_OR_ASKED, GONE_OR_ANY, GONE_OR_ANY],
    &[LEAD4, GONE_OR_ANY, GONE_OR_ASKED, GONE_OR_ANY],
    &[LEAD4, GONE_OR_ANY, GONE_OR_ANY, GONE_OR_ASKED],
    &[GONE],
];

/// The length of the first sequence that `bytes` begin with.
fn length_at(bytes: &[u8], sequences: &[Sequence]) -> Option<usize> {
    let fits = |sequence: &&Sequence| {
        bytes.len() >= sequence.len()
            && sequence.iter().zip(bytes).all(|(ranges, byte)| {
                ranges.iter().any(|(first, last)| (first..=last).contains(&byte))
            })
    };
    sequences.iter().find(fits).map(|sequence| sequence.len())
}

fn find(bytes: &[u8], sequences: &[Sequence]) -> Option<usize> {
    (0..bytes.len()).find(|at| length_at(&bytes[*at..], sequences).is_some())
}

fn replaced(bytes: &[u8], sequences: &[Sequence], with: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match length_at(&bytes[at..], sequences) {
            Some(length) => {
                out.extend(with(&bytes[at..at + length]));
                at += length;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

/// UTF-8, with surrogate pairs written as two characters of three bytes (CESU-8) and Java's zero.
fn decode_utf8(bytes: &[u8]) -> Option<String> {
    let pair: Sequence = &[SURROGATE, &[(0xa0, 0xaf)], ANY, SURROGATE, &[(0xb0, 0xbf)], ANY];
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        if rest.starts_with(&[0xc0, 0x80]) {
            plain.push(0);
            at += 2;
        } else if length_at(rest, &[pair]).is_some() {
            let bits = |k: usize, mask: u8| u32::from(rest[k] & mask);
            let code =
                (bits(1, 0xf) << 16) + (bits(2, 0x3f) << 10) + (bits(4, 0xf) << 6) + bits(5, 0x3f);
            let c = char::from_u32(code + 0x10000)?;
            plain.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
            at += 6;
        } else {
            plain.push(rest[0]);
            at += 1;
        }
    }
    String::from_utf8(plain).ok()
}

/// The letters of a Latin ligature.
fn separated(c: char) -> impl Iterator<Item = char> {
    let letters = match c {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        'ŉ' => "ʼn",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => "",
    };
    letters.chars().chain(letters.is_empty().then_some(c))
}

/// Whether this is a full-width or half-width form.
fn halved(c: char) -> bool {
    c == '\u{3000}' || ('\u{ff01}'..'\u{fff0}').contains(&c)
}

fn nfkc(c: char) -> String {
    std::iter::once(c).nfkc().collect()
}

/// Characters that do nothing good in a text.
fn is_control(c: char) -> bool {
    matches!(c, '\0'..='\x08' | '\x0b' | '\x0e'..='\x1f' | '\x7f' | '\u{206a}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffc}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_decoded_wrongly_is_decoded_again() {
        for (text, expected) in [
            ("schÃ¶n", "schön"),
            ("âœ” No problems", "✔ No problems"),
            ("The Mona Lisa doesnÃƒÂ¢Ã¢â€šÂ¬Ã¢â€žÂ¢t", "The Mona Lisa doesn't"),
            ("voilÃ le travail", "voilà le travail"),
            ("â€œ like this â€\u{fffd}", "\" like this \u{fffd}"),
            ("ＬＯＵＤ　ﬂuﬃer &EACUTE; \u{1b}[31mred\r\n", "LOUD fluffier É red\n"),
            ("café à la carte", "café à la carte"),
        ] {
            let actual = repaired(text).expect("a text");
            assert_eq!(actual, expected, "{text}");
        }
    }
}

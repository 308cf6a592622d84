//! The caption cleaner of diffusers, which makes a prompt look like the captions of its day.
//!
//! The steps and their order are those of `PixArtSigmaPipeline` in diffusers 0.42, with its helpers:
//! the text of HTML as BeautifulSoup gives it with Python 3.11's parser, and the repairs of ftfy 6.3.
//! Parity: `tests/tests/parity_cleaner.rs`.

mod entities;
mod html;
mod mojibake;
mod pattern;
mod tables;

use std::sync::LazyLock;

use pattern::Pattern;
pub(super) use pattern::strip;

/// A prompt the cleaner cannot take.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CleanError {
    /// Markup that diffusers fails on, too.
    #[error(
        "the caption cleaner cannot read the markup `{0}`, nor can diffusers; remove it from the prompt or \
         clean with --prompt_cleaning raw"
    )]
    Markup(String),
    /// A text that would take for ever.
    #[error(
        "the caption cleaner gave up on a prompt that repeats itself too often; shorten it or clean with \
         --prompt_cleaning raw"
    )]
    TooComplex,
}

impl From<fancy_regex::Error> for CleanError {
    fn from(_: fancy_regex::Error) -> Self {
        Self::TooComplex
    }
}

/// Expressions and what replaces them.
type Steps = Vec<(Pattern, &'static str)>;

fn steps(list: &[(&str, &'static str)]) -> Steps {
    list.iter().map(|(pattern, with)| (Pattern::new(pattern), *with)).collect()
}

/// Addresses, before the markup is taken away.
static ADDRESSES: LazyLock<Steps> = LazyLock::new(|| {
    const HOST: &str = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)";
    let start =
        |scheme: &str| Pattern::new(&format!(r"\b(?:{scheme}:(?:/{{1,3}}|[a-zA-Z0-9%])|{HOST})"));
    let person = (Pattern::new("<person>"), "person");
    vec![person, (start("https?"), ""), (start("www"), "")]
});

/// Names, signs and numbers that say nothing about a picture, up to the repair of the encoding.
static SIGNS: LazyLock<Steps> = LazyLock::new(|| {
    steps(&[
        (r"@[\w\d]+\b", ""),
        // Strokes, phonetic extensions, enclosed and compatibility characters, ideographs and hexagrams.
        (r"[\x{31c0}-\x{31ef}\x{31f0}-\x{31ff}\x{3200}-\x{9fff}]+", ""),
        (
            r"[\-\x{58a}\x{5be}\x{1400}\x{1806}\x{2010}-\x{2015}\x{2e17}\x{2e1a}\x{2e3a}\x{2e3b}\x{2e40}\x{301c}\x{3030}\x{30a0}\x{fe31}\x{fe32}\x{fe58}\x{fe63}\x{ff0d}]+",
            "-",
        ),
        ("[`´«»“”¨]", "\""),
        ("[‘’]", "'"),
        ("&quot;?", ""),
        ("&amp", ""),
        (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
        (r"\d:\d\d\s+$", ""),
        (r"\\n", " "),
        (r"#\d{1,3}\b", ""),
        (r"#\d{5,}\b", ""),
        (r"\b\d{6,}\b", ""),
        (r"\S+\.(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)", ""),
        (r#"["']{2,}"#, "\""),
        (r"\.{2,}", " "),
        (r"[\#®•©™\&@·º½¾¿¡§\~)(\]\[}{|\\/*]+", " "),
        (r"\s+\.\s+", " "),
    ])
});

/// Article numbers, the phrases of shops, and stray punctuation.
static WORDS: LazyLock<Steps> = LazyLock::new(|| {
    steps(&[
        (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
        (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
        (r"\b\d+[a-zA-Z]+\d+\b", ""),
        (r"(worldwide\s+)?(free\s+)?shipping", ""),
        (r"(free\s)?download(\sfree)?", ""),
        (r"\bclick\b\s(?:for|on)\s\w+", ""),
        (r"\b(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)(\simages?)?", ""),
        (r"\bpage\s+\d+\b", ""),
        (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
        (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
        (r"\b\s+:\s+", ": "),
        (r"(\D[,./])\b", "$1 "),
        (r"\s+", " "),
        (r#"^["']((?s:.+))["']$"#, "$1"),
        (r"^['_,\-:;]", ""),
        (r"['_,\-:+]$", ""),
        (r"^\.\S+$", ""),
    ])
});

/// What diffusers makes of a prompt with `clean_caption`: the cleaner's result, cleaned once more.
pub(super) fn clean(prompt: &str) -> Result<String, CleanError> {
    once(&once(prompt)?)
}

fn once(text: &str) -> Result<String, CleanError> {
    let mut text = strip(&unquoted(text)).to_lowercase();
    apply(&mut text, &ADDRESSES)?;
    text = html::text(&text)?;
    apply(&mut text, &SIGNS)?;
    // Names-made-of-many-words.
    if text.chars().filter(|c| "-_".contains(*c)).count() > 3 {
        text = text.replace(['-', '_'], " ");
    }
    text = mojibake::repaired(&text)?;
    text = entities::unescape(&entities::unescape(&text)?)?;
    apply(&mut text, &WORDS)?;
    Ok(strip(&text).to_owned())
}

fn apply(text: &mut String, steps: &Steps) -> Result<(), CleanError> {
    for (pattern, with) in steps {
        let replaced = pattern.replace_all(text, with)?.into_owned();
        *text = replaced;
    }
    Ok(())
}

/// Takes the percent signs of a link away: `%20` and `+` are spaces. Each run of ASCII is UTF-8 of its own.
fn unquoted(text: &str) -> String {
    fn flush(run: &mut Vec<u8>, out: &mut String) {
        out.push_str(&String::from_utf8_lossy(run));
        run.clear();
    }
    let text = text.replace('+', " ");
    let bytes = text.as_bytes();
    let hex = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
    let (mut out, mut run, mut at) = (String::with_capacity(text.len()), Vec::new(), 0);
    for (start, c) in text.char_indices() {
        if start < at {
            continue;
        }
        at = start + c.len_utf8();
        match (c, hex(start + 1), hex(start + 2)) {
            ('%', Some(high), Some(low)) => {
                run.push((16 * high + low) as u8);
                at = start + 3;
            }
            _ if c.is_ascii() => run.push(c as u8),
            _ => {
                flush(&mut run, &mut out);
                out.push(c);
            }
        }
    }
    flush(&mut run, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_comes_out_as_a_caption() {
        let prompt =
            "  A <b>Red</b> circle+on%20white, see https://example.com/a.png @someone #123  ";
        assert_eq!(clean(prompt).expect("a caption"), "a red circle on white, see .");
    }

    #[test]
    fn percent_signs_that_are_none_stay() {
        assert_eq!(unquoted("100% a%2 %zz %c3%a9 %ff é%41+"), "100% a%2 %zz é \u{fffd} éA ");
    }

    #[test]
    fn a_text_without_end_is_given_up_with_an_error_or_cleaned() {
        for text in ["a.".repeat(3000), "<a ".repeat(3000), "1".repeat(20_000), "&".repeat(5000)] {
            let started = std::time::Instant::now();
            let _ = clean(&text);
            assert!(started.elapsed().as_secs() < 20, "{} took too long", &text[..3]);
        }
    }

    #[test]
    fn markup_that_diffusers_fails_on_is_named() {
        let error = clean("a <![x y]> b").expect_err("refused").to_string();
        assert!(error.contains("<![x") && error.contains("--prompt_cleaning raw"), "{error}");
    }
}

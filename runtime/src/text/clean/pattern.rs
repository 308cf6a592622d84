//! Regular expressions with Python's meaning of words, digits, spaces and ends.

use std::borrow::Cow;

use fancy_regex::{Captures, Regex, RegexBuilder};

use super::CleanError;

/// Backtracking beyond this many steps is given up. Ordinary prompts need a few thousand.
const STEPS: usize = 10_000_000;

/// An expression written as for Python's `re`.
///
/// There, a word character is a letter, a number of any kind or an underscore (no combining marks),
/// U+001C to U+001F are spaces, and `$` also stands before a line break at the end.
pub(super) struct Pattern(Regex);

impl Pattern {
    /// # Panics
    /// When `python` is no expression, which is a mistake in this program.
    pub(super) fn new(python: &str) -> Self {
        let rust = translated(python);
        let regex = RegexBuilder::new(&rust).backtrack_limit(STEPS).build();
        Self(regex.unwrap_or_else(|error| panic!("{rust}: {error}")))
    }

    /// The text with every match replaced; `$1` is the first group.
    pub(super) fn replace_all<'t>(
        &self,
        text: &'t str,
        with: &str,
    ) -> Result<Cow<'t, str>, CleanError> {
        Ok(self.0.try_replacen(text, 0, with)?)
    }

    /// The text with every match replaced by what `with` makes of it.
    pub(super) fn replace_with<'t>(
        &self,
        text: &'t str,
        with: impl FnMut(&Captures<'_>) -> String,
    ) -> Result<Cow<'t, str>, CleanError> {
        Ok(self.0.try_replacen(text, 0, with)?)
    }

    /// Whether there is a match anywhere.
    pub(super) fn is_match(&self, text: &str) -> Result<bool, CleanError> {
        Ok(self.0.is_match(text)?)
    }

    /// The byte offsets between which the first match lies.
    pub(super) fn find(&self, text: &str) -> Result<Option<(usize, usize)>, CleanError> {
        Ok(self.0.find(text)?.map(|found| (found.start(), found.end())))
    }
}

fn translated(python: &str) -> String {
    const WORD: &str = r"\p{L}\p{N}_";
    const SPACE: &str = r"\s\x1c-\x1f";
    let mut out = String::with_capacity(2 * python.len());
    let mut in_class = false;
    let mut chars = python.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match (chars.next(), in_class) {
                (Some('w'), true) => out.push_str(WORD),
                (Some('w'), false) => out.push_str(&format!("[{WORD}]")),
                (Some('s'), true) => out.push_str(SPACE),
                (Some('s'), false) => out.push_str(&format!("[{SPACE}]")),
                (Some('S'), false) => out.push_str(&format!("[^{SPACE}]")),
                (Some('b'), false) => {
                    let (before, after) = (format!("(?<=[{WORD}])"), format!("(?=[{WORD}])"));
                    let (none, end) = (format!("(?<![{WORD}])"), format!("(?![{WORD}])"));
                    out.push_str(&format!("(?:{before}{end}|{none}{after})"));
                }
                (Some(other), _) => out.extend(['\\', other]),
                (None, _) => out.push('\\'),
            },
            '[' if !in_class => {
                in_class = true;
                out.push(c);
            }
            ']' if in_class => {
                in_class = false;
                out.push(c);
            }
            '$' if !in_class => out.push_str(r"(?=\n?\z)"),
            _ => out.push(c),
        }
    }
    out
}

/// Python's `str.strip`.
pub(in crate::text) fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_spaces_and_ends_are_those_of_python() {
        let replaced = |pattern: &str, text: &str| {
            Pattern::new(pattern).replace_all(text, "_").expect("a text").into_owned()
        };
        // A number of any kind is part of a word, a combining mark is not.
        assert_eq!(replaced(r"\w+", "a² e\u{301}x"), "_ _\u{301}_");
        assert_eq!(replaced(r"a\b", "a² a\u{301} a"), "a² _\u{301} _");
        assert_eq!(replaced(r"\s", "a\u{1c}b\u{a0}c"), "a_b_c");
        assert_eq!(replaced("a$", "a a\n"), "a _\n");
    }
}

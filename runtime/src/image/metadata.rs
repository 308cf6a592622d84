//! What a picture says about how it was made.

use std::fmt;

/// The PNG key of the web UIs' text.
pub const PARAMETERS: &str = "parameters";

/// The PNG key of our JSON, and what our MakerNote begins with.
pub const RECORD: &str = "pixart";

/// The texts that a picture carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// For people and web UIs: the text of [`Parameters`].
    pub parameters: String,
    /// For programs: one JSON object.
    pub record: String,
}

/// The text that AUTOMATIC1111's web UI writes and that most programs read.
///
/// ```
/// # use pixart_runtime::image::Parameters;
/// let parameters = Parameters {
///     prompt: "a red circle".into(),
///     negative_prompt: "text".into(),
///     pairs: vec![("Steps".into(), "20".into()), ("Model".into(), "a, b".into())],
/// };
/// assert_eq!(
///     parameters.to_string(),
///     "a red circle\nNegative prompt: text\nSteps: 20, Model: \"a, b\""
/// );
/// ```
///
/// Readers take the last line for parameters only if it has three pairs or more, and without the pair
/// `RNG: CPU` they take the noise for a graphics card's. Names are two characters or more: letters,
/// digits, spaces, `-`, `/`. Pairs with an empty value are left out. Values with a comma, a colon, a
/// quote or a line break are JSON strings. In the prompts, line breaks stay and other control characters
/// become spaces, so a prompt can read back slightly changed, and so does one with a line that looks like a
/// negative prompt or the parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// What was drawn.
    pub prompt: String,
    /// What was drawn away from; empty for nothing.
    pub negative_prompt: String,
    /// The names and values of the last line, in order.
    pub pairs: Vec<(String, String)>,
}

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", printable(&self.prompt))?;
        if !self.negative_prompt.is_empty() {
            writeln!(f, "Negative prompt: {}", printable(&self.negative_prompt))?;
        }
        let pairs = self.pairs.iter().filter(|(_, value)| !value.is_empty());
        for (k, (name, value)) in pairs.enumerate() {
            let separator = if k == 0 { "" } else { ", " };
            write!(f, "{separator}{name}: {}", quoted(value))?;
        }
        Ok(())
    }
}

/// A value in quotes where it would not read back without.
fn quoted(value: &str) -> String {
    let plain = !value.contains([',', ':', '"', '\\'])
        && !value.contains(char::is_control)
        && value.trim() == value;
    if plain { value.to_owned() } else { serde_json::Value::from(value).to_string() }
}

/// The text without control characters, which PNG forbids, except for line feeds.
fn printable(text: &str) -> String {
    let text = text.replace("\r\n", "\n");
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_where_they_have_to_be() {
        for (value, expected) in [
            ("20", "20"),
            ("DPM++ 2M", "DPM++ 2M"),
            ("a,b", "\"a,b\""),
            ("a: b", "\"a: b\""),
            ("a\nb", "\"a\\nb\""),
            ("\"a\"", "\"\\\"a\\\"\""),
            (" a", "\" a\""),
            ("für", "für"),
        ] {
            assert_eq!(quoted(value), expected);
        }
    }

    #[test]
    fn prompts_keep_their_lines_and_lose_control_characters() {
        let text = Parameters {
            prompt: "a\r\nb\0c\u{1b}[0m".into(),
            pairs: vec![("Steps".into(), "1".into()), ("Model".into(), String::new())],
            ..Default::default()
        };
        assert_eq!(text.to_string(), "a\nb c [0m\nSteps: 1");
    }
}

//! Names of pictures from a template such as `{number}-{prompt}`, safe on every file system.

use crate::exit::Failure;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a template can hold, for messages.
const KNOWN: [&str; 11] = [
    "{number}",
    "{seed}",
    "{prompt}",
    "{width}",
    "{height}",
    "{model}",
    "{sampler}",
    "{steps}",
    "{guidance}",
    "{date}",
    "{time}",
];

/// Most bytes a template's own text may have.
const MOST_TEXT: usize = 120;

/// Most bytes of a prompt or a model's name in a file name.
const MOST_VALUE: usize = 80;

/// Most bytes of a name without its extension. File systems take 255; the rest is for a number that makes
/// it unique, the extension, and what synchronising programs add.
const MOST_STEM: usize = 200;

/// Names that Windows takes for devices, whatever the extension.
const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];

/// A template that was read.
#[derive(Debug, PartialEq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    /// A number with at least so many digits.
    Number(usize),
    Value(Value),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Value {
    Seed,
    Prompt,
    Width,
    Height,
    Model,
    Sampler,
    Steps,
    Guidance,
    Date,
    Time,
}

/// What the names of one picture are made of.
pub struct NameParts<'a> {
    pub seed: u64,
    pub prompt: &'a str,
    pub width: u32,
    pub height: u32,
    pub model: &'a str,
    pub sampler: &'a str,
    pub steps: usize,
    pub guidance: f32,
    /// When the run began.
    pub started: SystemTime,
}

impl Default for Template {
    /// `{number}`.
    fn default() -> Self {
        Self { pieces: vec![Piece::Number(1)] }
    }
}

impl Template {
    /// Reads a template without folder and extension.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = |found: &str, expected: &str| {
            Err(Failure::request(format!(
                "output_name: found {found} in `{text}`, expected {expected}"
            )))
        };
        let mut pieces: Vec<Piece> = Vec::new();
        let mut own = String::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let after = &rest[c.len_utf8()..];
            if c != '{' {
                // As in format strings, a brace is typed twice.
                let doubled = c == '}' && after.starts_with('}');
                if c == '}' && !doubled {
                    return wrong("a single `}`", "`}}` for a brace");
                }
                own.push(c);
                rest = if doubled { &after[1..] } else { after };
                continue;
            }
            if let Some(after) = after.strip_prefix('{') {
                own.push('{');
                rest = after;
                continue;
            }
            let Some((name, after)) = after.split_once('}') else {
                return wrong("`{` without `}`", "`{{` for a brace");
            };
            if !own.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut own)));
            }
            match piece(name) {
                Some(piece) => pieces.push(piece),
                None => return wrong(&format!("`{{{name}}}`"), &KNOWN.join(", ")),
            }
            rest = after;
        }
        if !own.is_empty() {
            pieces.push(Piece::Text(own));
        }
        let texts = || {
            pieces.iter().filter_map(|piece| match piece {
                Piece::Text(text) => Some(text.as_str()),
                _ => None,
            })
        };
        if let Some(c) = texts().flat_map(str::chars).find(|c| forbidden(*c)) {
            let found = format!("`{}`", c.escape_debug());
            return wrong(
                &found,
                "letters, digits and signs that every file system takes in a name",
            );
        }
        let length: usize = texts().map(str::len).sum();
        if length > MOST_TEXT {
            return wrong(&format!("{length} bytes of text"), &format!("{MOST_TEXT} or fewer"));
        }
        let is_name = texts().any(|text| !text.trim_matches([' ', '.']).is_empty())
            || pieces.iter().any(|piece| !matches!(piece, Piece::Text(_)));
        if !is_name {
            return wrong("no name", "something like cat.png or {number}-{prompt}");
        }
        Ok(Self { pieces })
    }

    /// Whether it is the default.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// Whether names differ by their number.
    pub fn has_number(&self) -> bool {
        self.pieces.iter().any(|piece| matches!(piece, Piece::Number(_)))
    }

    /// Whether the number can be read from a name: nothing but the template's own text stands before it.
    pub fn is_countable(&self) -> bool {
        matches!(
            self.pieces.as_slice(),
            [Piece::Number(_), ..] | [Piece::Text(_), Piece::Number(_), ..]
        )
    }

    /// The number in a name without extension, if it could come from this template.
    pub fn number_in(&self, stem: &str) -> Option<usize> {
        let (rest, after) = match self.pieces.as_slice() {
            [Piece::Number(_), after @ ..] => (stem, after),
            [Piece::Text(text), Piece::Number(_), after @ ..] => {
                (stem.strip_prefix(text.trim_start())?, after)
            }
            _ => return None,
        };
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, rest) = rest.split_at(end);
        let fits = match after {
            [] => rest.is_empty(),
            [Piece::Text(text), ..] => rest.starts_with(text.trim_end()),
            _ => true,
        };
        if fits { number.parse().ok() } else { None }
    }

    /// The name of a picture without its extension.
    pub fn render(&self, number: usize, parts: &NameParts) -> String {
        let name: String = self
            .pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Number(digits) => format!("{number:0digits$}"),
                Piece::Value(value) => rendered(*value, parts),
            })
            .collect();
        let name = shortened(name.trim_matches(' '), MOST_STEM).trim_end_matches([' ', '.']);
        let base = name.split('.').next().unwrap_or("").trim_end();
        // A leading dot would hide the file.
        if name.is_empty() || name.starts_with('.') || is_device(base) {
            return format!("_{name}");
        }
        name.to_owned()
    }
}

/// What stands between braces.
fn piece(name: &str) -> Option<Piece> {
    Some(Piece::Value(match name {
        "number" => return Some(Piece::Number(1)),
        "seed" => Value::Seed,
        "prompt" => Value::Prompt,
        "width" => Value::Width,
        "height" => Value::Height,
        "model" => Value::Model,
        "sampler" => Value::Sampler,
        "steps" => Value::Steps,
        "guidance" => Value::Guidance,
        "date" => Value::Date,
        "time" => Value::Time,
        _ => {
            let digits = name.strip_prefix("number:")?;
            return match digits.as_bytes() {
                [b'1'..=b'9'] => Some(Piece::Number(digits.parse().ok()?)),
                _ => None,
            };
        }
    }))
}

fn rendered(value: Value, parts: &NameParts) -> String {
    match value {
        Value::Seed => parts.seed.to_string(),
        Value::Prompt => safe(parts.prompt, "no_prompt"),
        Value::Width => parts.width.to_string(),
        Value::Height => parts.height.to_string(),
        Value::Model => safe(parts.model, "model"),
        Value::Sampler => safe(parts.sampler, "sampler"),
        Value::Steps => parts.steps.to_string(),
        Value::Guidance => parts.guidance.to_string(),
        Value::Date => utc(parts.started).0,
        Value::Time => utc(parts.started).1,
    }
}

/// Letters and digits of any script, `-` and `.` inside numbers (`1.5`); all else becomes one `_`.
fn safe(text: &str, empty: &str) -> String {
    let mut name = String::new();
    let mut before = ' ';
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let digit_next = chars.peek().is_some_and(char::is_ascii_digit);
        let point = c == '.' && before.is_ascii_digit() && digit_next;
        if c.is_alphanumeric() || c == '-' || point {
            name.push(c);
        } else if !name.ends_with('_') {
            name.push('_');
        }
        before = c;
    }
    let name = shortened(name.trim_matches('_'), MOST_VALUE).trim_end_matches(['_', '.']);
    if name.is_empty() { empty.to_owned() } else { name.to_owned() }
}

/// The beginning of a text, of at most so many bytes.
fn shortened(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Characters that some file system has not in names.
fn forbidden(c: char) -> bool {
    c.is_control() || "/\\<>:\"|?*".contains(c)
}

fn is_device(base: &str) -> bool {
    let base = base.to_lowercase();
    let numbered = || {
        let mut rest = base.strip_prefix("com").or_else(|| base.strip_prefix("lpt"))?.chars();
        let digit = rest.next()?;
        Some(rest.next().is_none() && (digit.is_ascii_digit() || "¹²³".contains(digit)))
    };
    DEVICES.contains(&base.as_str()) || numbered() == Some(true)
}

/// Date and time in UTC: `2026-11-23` and `07-05-09`.
fn utc(time: SystemTime) -> (String, String) {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (mut day, second) = (seconds / 86_400, seconds % 86_400);
    let mut year = 1970;
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let days = |year| if leap(year) { 366 } else { 365 };
    while day >= days(year) {
        day -= days(year);
        year += 1;
    }
    let february = days(year) - 337;
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let (hour, minute) = (second / 3600, second / 60 % 60);
    (
        format!("{year}-{month:02}-{:02}", day + 1),
        format!("{hour:02}-{minute:02}-{:02}", second % 60),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(prompt: &str) -> NameParts<'_> {
        NameParts {
            seed: 7,
            prompt,
            width: 512,
            height: 256,
            model: "PixArt-Sigma XL/2",
            sampler: "sa-solver",
            steps: 20,
            guidance: 4.5,
            started: UNIX_EPOCH + Duration::from_secs(1_795_434_309),
        }
    }

    fn name(template: &str, prompt: &str) -> String {
        Template::parse(template).unwrap().render(3, &parts(prompt))
    }

    #[test]
    fn placeholders_are_replaced() {
        for (template, expected) in [
            ("{number}", "3"),
            ("{number:5}-{seed}", "00003-7"),
            ("{prompt}", "a_red_fox_1.5_m-tall"),
            ("{width}x{height} {model}", "512x256 PixArt-Sigma_XL_2"),
            ("{sampler}_{steps}_{guidance}", "sa-solver_20_4.5"),
            ("{date}_{time}", "2026-11-23_11-45-09"),
            ("a{{b}}", "a{b}"),
            ("v1.5", "v1.5"),
        ] {
            assert_eq!(name(template, "a red fox, 1.5 m-tall!"), expected);
        }
    }

    #[test]
    fn names_are_safe_everywhere() {
        for (prompt, expected) in [
            ("../../etc/passwd", "etc_passwd"),
            ("..", "no_prompt"),
            ("", "no_prompt"),
            ("C:\\a\u{0}b\n*?", "C_a_b"),
            ("NUL", "_NUL"),
            ("com1", "_com1"),
            ("LPT²", "_LPT²"),
            ("com10", "com10"),
            ("ein Füchs 狐", "ein_Füchs_狐"),
            ("a.", "a"),
            ("-rf", "-rf"),
        ] {
            assert_eq!(name("{prompt}", prompt), expected, "{prompt}");
        }
        assert_eq!(name("nul.{prompt}", "a"), "_nul.a");
        assert_eq!(name(".{prompt}", "a"), "_.a");
        assert_eq!(name(" {prompt}. ", "a"), "a");
        for prompt in ["x".repeat(1000), "狐".repeat(1000)] {
            let one = name("{prompt}", &prompt);
            assert!(one.len() <= MOST_VALUE && one.len() > MOST_VALUE - 3, "{one}");
            assert!(name("{prompt}{prompt}{prompt}", &prompt).len() <= MOST_STEM);
        }
    }

    #[test]
    fn wrong_templates_are_refused() {
        for (template, expected) in [
            ("{sed}", "found `{sed}` in `{sed}`, expected {number}, {seed}, {prompt}"),
            ("{}", "found `{}`"),
            ("{number:0}", "found `{number:0}`"),
            ("{number:10}", "found `{number:10}`"),
            ("{seed", "`{` without `}`"),
            ("seed}", "a single `}`"),
            ("a/b", "found `/`"),
            ("a\\b", "found `\\\\`"),
            ("a:b", "found `:`"),
            ("a\tb", "found `\\t`"),
            ("", "no name"),
            ("..", "no name"),
            (" ", "no name"),
            (&"x".repeat(121), "121 bytes of text"),
        ] {
            let failure = Template::parse(template).unwrap_err();
            let Failure::Request(error) = failure else { panic!("{template}") };
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn numbers_are_found_in_names() {
        let number = |template, stem| Template::parse(template).unwrap().number_in(stem);
        assert_eq!(number("{number}", "12"), Some(12));
        assert_eq!(number("{number}", "12 monkeys"), None);
        assert_eq!(number("cat-{number:4}", "cat-0012"), Some(12));
        assert_eq!(number("cat-{number}", "dog-0012"), None);
        assert_eq!(number("{number}-{prompt}", "12-a_b"), Some(12));
        assert_eq!(number("{number}-{prompt}", "12_a_b"), None);
        assert_eq!(number("{prompt}-{number}", "a-12"), None);
        assert_eq!(number("cat", "cat"), None);
    }

    #[test]
    fn days_are_counted() {
        let date = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds)).0;
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(951_782_400), "2000-02-29");
        assert_eq!(date(1_709_251_199), "2024-02-29");
        assert_eq!(date(4_107_542_400), "2100-03-01");
    }
}

//! The text of a piece of HTML, as BeautifulSoup's `.text` gives it on Python's `html.parser`.
//!
//! Not a browser's idea of HTML: comments end at the first `-->`, an ampersand without a semicolon is
//! tolerated, what is left open at the end is text. The parser of Python 3.11.7 is followed; later ones
//! treat scripts and broken comments in another way.

use std::{collections::HashMap, sync::LazyLock};

use super::{
    CleanError, entities,
    pattern::{Pattern, strip},
    tables::TABLES,
};

/// Tags without an end.
const VOID: &[&str] = &[
    "area", "base", "br", "col", "embed", "hr", "img", "input", "keygen", "link", "menuitem",
    "meta", "param", "source", "track", "wbr", "basefont", "bgsound", "command", "frame", "image",
    "isindex", "nextid", "spacer",
];
/// Tags whose text does not belong to the document's.
const APART: &[&str] = &["rt", "rp", "style", "script", "template"];
/// Tags in which white space counts.
const PRESERVED: &[&str] = &["pre", "textarea"];
/// Tags in which there is no markup.
const VERBATIM: &[&str] = &["script", "style"];

/// The text of `markup`.
pub(super) fn text(markup: &str) -> Result<String, CleanError> {
    let mut parser = Parser { text: markup, at: 0, verbatim: None, tree: Tree::default() };
    parser.run(false)?;
    parser.run(true)?;
    parser.tree.end_data(Kind::Text);
    Ok(parser.tree.out)
}

/// What a piece of text is.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    /// Text whatever tag it is in.
    Cdata,
    /// Comments, declarations, instructions.
    Hidden,
}

/// Open tags, and the text so far.
#[derive(Default)]
struct Tree {
    out: String,
    /// The text since the last tag; `None` where there was not even an empty one.
    data: Option<String>,
    open: Vec<String>,
    count: HashMap<String, usize>,
    /// Void tags whose end would be one too many.
    closed: Vec<String>,
}

impl Tree {
    fn data(&mut self, text: &str) {
        self.data.get_or_insert_default().push_str(text);
    }

    fn end_data(&mut self, kind: Kind) {
        let Some(mut data) = self.data.take() else { return };
        let inside = |list: &[&str]| self.open.iter().any(|tag| list.contains(&tag.as_str()));
        if data.chars().all(|c| " \n\t\x0c\r".contains(c)) && !inside(PRESERVED) {
            data = if data.contains('\n') { "\n" } else { " " }.to_owned();
        }
        if kind == Kind::Cdata || kind == Kind::Text && !inside(APART) {
            self.out.push_str(&data);
        }
    }

    fn hidden(&mut self, text: &str, kind: Kind) {
        self.end_data(Kind::Text);
        self.data(text);
        self.end_data(kind);
    }

    fn start(&mut self, tag: &str, own_end: bool) {
        self.end_data(Kind::Text);
        *self.count.entry(tag.to_owned()).or_default() += 1;
        self.open.push(tag.to_owned());
        if own_end {
            self.end(tag);
        } else if VOID.contains(&tag) {
            self.end(tag);
            self.closed.push(tag.to_owned());
        }
    }

    fn end_unless_closed(&mut self, tag: &str) {
        match self.closed.iter().position(|closed| closed == tag) {
            Some(at) => {
                self.closed.remove(at);
            }
            None => self.end(tag),
        }
    }

    fn end(&mut self, tag: &str) {
        self.end_data(Kind::Text);
        while self.count.get(tag).is_some_and(|count| *count > 0) {
            let Some(last) = self.open.pop() else { break };
            *self.count.entry(last.clone()).or_default() -= 1;
            if last == tag {
                break;
            }
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    /// The tag whose end is awaited, in which nothing else is markup.
    verbatim: Option<String>,
    tree: Tree,
}

/// How one piece of markup ends.
enum Step {
    /// It is dealt with up to here.
    To(usize),
    /// Its end is missing.
    Open,
    /// It cannot be told, and the rest is left for later.
    Stop,
}

macro_rules! pattern {
    ($name:ident, $text:expr) => {
        static $name: LazyLock<Pattern> = LazyLock::new(|| Pattern::new($text));
    };
}

// An attribute's value, then a whole start tag without its end, each as a grammar of its own.
const TAG_NAME: &str = r"[a-zA-Z][^\t\n\r\x0c />\x00]*";
const GAP: &str = r"(?:\s|/(?!>))*";
const VALUE: &str = r#"\s*=+\s*(?:'[^']*'|"[^"]*"|(?!['"])[^>\s]*)"#;
const NAME: &str = r"[^\s/>][^\s/=>]*";
pattern!(
    START,
    &format!(r#"^<{TAG_NAME}(?:[\s/]*(?:(?<=['"\s/]){NAME}(?:{VALUE}\s*)?{GAP})*)?\s*"#)
);
pattern!(TAG, &format!("^{TAG_NAME}{GAP}"));
pattern!(JUST_TAG, &format!("^{TAG_NAME}"));
pattern!(ATTRIBUTE, &format!("^{NAME}(?:{VALUE})?{GAP}"));
pattern!(END, r"^</\s*[a-zA-Z][-.a-zA-Z0-9:_]*\s*>");
pattern!(COMMENT_END, r"--\s*>");
pattern!(SECTION_END, r"\]\s*\]\s*>");
pattern!(OFFICE_SECTION_END, r"\]\s*>");
pattern!(SECTION_NAME, r"^[a-zA-Z][-_.a-zA-Z0-9]*\s*");
pattern!(NUMBER, r"^&#(?:[0-9]+|[xX][0-9a-fA-F]+)[^0-9a-fA-F]");
pattern!(ENTITY, r"^&[a-zA-Z][-.a-zA-Z0-9]*[^a-zA-Z0-9]");

impl Parser<'_> {
    /// Reads as far as can be; with `end`, nothing follows and what is left is text.
    fn run(&mut self, end: bool) -> Result<(), CleanError> {
        while self.at < self.text.len() {
            let rest = &self.text[self.at..];
            let next = match &self.verbatim {
                Some(tag) => {
                    let close = Pattern::new(&format!(r"(?i)</\s*{tag}\s*>"));
                    match close.find(rest)? {
                        Some((start, _)) => start,
                        None => break,
                    }
                }
                None => rest.find(['&', '<']).unwrap_or(rest.len()),
            };
            if next > 0 {
                self.tree.data(&rest[..next]);
                self.at += next;
            }
            let rest = &self.text[self.at..];
            if rest.is_empty() {
                break;
            }
            let step = if rest.starts_with('<') { self.markup()? } else { self.reference(end)? };
            match step {
                Step::To(at) => self.at = at,
                Step::Open if end => {
                    // It was no markup after all.
                    let length = match rest[1..].find('>') {
                        Some(at) => at + 2,
                        None => rest[1..].find('<').map_or(1, |at| at + 1),
                    };
                    self.tree.data(&rest[..length]);
                    self.at += length;
                }
                Step::Open | Step::Stop => break,
            }
        }
        if end && self.at < self.text.len() && self.verbatim.is_none() {
            self.tree.data(&self.text[self.at..]);
            self.at = self.text.len();
        }
        Ok(())
    }

    /// What begins with `<`.
    fn markup(&mut self) -> Result<Step, CleanError> {
        let (text, at) = (self.text, self.at);
        let rest = &text[at..];
        let until = |from: usize| rest[from..].find('>').map(|end| from + end);
        if rest[1..].starts_with(|c: char| c.is_ascii_alphabetic()) {
            return self.start_tag();
        }
        if rest.starts_with("</") {
            return self.end_tag();
        }
        if let Some(inner) = rest.strip_prefix("<!--") {
            let Some((start, end)) = COMMENT_END.find(inner)? else { return Ok(Step::Open) };
            self.tree.hidden(&inner[..start], Kind::Hidden);
            return Ok(Step::To(at + 4 + end));
        }
        if rest.starts_with("<![") {
            return self.section();
        }
        let doctype = rest.get(..9).is_some_and(|head| head.eq_ignore_ascii_case("<!doctype"));
        if rest.starts_with("<?") || rest.starts_with("<!") {
            let Some(end) = until(if doctype { 9 } else { 2 }) else { return Ok(Step::Open) };
            self.tree.hidden(&rest[2..end], Kind::Hidden);
            return Ok(Step::To(at + end + 1));
        }
        if rest.len() > 1 {
            self.tree.data("<");
            return Ok(Step::To(at + 1));
        }
        Ok(Step::Stop)
    }

    fn start_tag(&mut self) -> Result<Step, CleanError> {
        let (text, at) = (self.text, self.at);
        let rest = &text[at..];
        let (_, mut end) = START.find(rest)?.unwrap_or((0, 1));
        match rest[end..].chars().next() {
            Some('>') => end += 1,
            Some('/') if rest[end..].starts_with("/>") => end += 2,
            None | Some('/' | '=') => return Ok(Step::Open),
            Some(c) if c.is_ascii_alphabetic() => return Ok(Step::Open),
            Some(_) => {}
        }
        let name_end = JUST_TAG.find(&rest[1..])?.map_or(1, |(_, end)| 1 + end);
        let tag = rest[1..name_end].to_lowercase();
        let mut read = TAG.find(&rest[1..])?.map_or(1, |(_, end)| 1 + end);
        while read < end {
            // An attribute follows a gap or a quotation mark.
            let before = rest[..read].chars().next_back();
            let apart = |c: char| "'\"/".contains(c) || strip(&c.to_string()).is_empty();
            let found =
                if before.is_some_and(apart) { ATTRIBUTE.find(&rest[read..])? } else { None };
            let Some((_, length)) = found else { break };
            read += length;
        }
        match strip(rest.get(read..end).unwrap_or_default()) {
            ">" => {
                self.tree.start(&tag, false);
                if VERBATIM.contains(&tag.as_str()) {
                    self.verbatim = Some(tag);
                }
            }
            "/>" => self.tree.start(&tag, true),
            _ => self.tree.data(&rest[..end]),
        }
        Ok(Step::To(at + end))
    }

    fn end_tag(&mut self) -> Result<Step, CleanError> {
        let (text, at) = (self.text, self.at);
        let rest = &text[at..];
        let Some(close) = rest.find('>') else { return Ok(Step::Open) };
        if END.find(rest)?.is_some() {
            let tag = strip(&rest[2..close]).to_lowercase();
            self.tree.end_unless_closed(&tag);
            self.verbatim = None;
            return Ok(Step::To(at + close + 1));
        }
        let Some((_, length)) = TAG.find(&rest[2..])? else {
            if !rest.starts_with("</>") {
                self.tree.hidden(&rest[2..close], Kind::Hidden);
            }
            return Ok(Step::To(at + close + 1));
        };
        let name_end = JUST_TAG.find(&rest[2..])?.map_or(2, |(_, end)| 2 + end);
        let tag = rest[2..name_end].to_lowercase();
        self.tree.end_unless_closed(&tag);
        let close = rest[2 + length..].find('>').map_or(close, |end| 2 + length + end);
        Ok(Step::To(at + close + 1))
    }

    /// `<![cdata[…]]>` and its kin.
    fn section(&mut self) -> Result<Step, CleanError> {
        let rest = &self.text[self.at..];
        let inner = &rest[3..];
        let unknown = || {
            let shown: String = rest.chars().take(20).collect();
            CleanError::Markup(shown)
        };
        if inner.is_empty() {
            return Ok(Step::Open);
        }
        let (_, length) = SECTION_NAME.find(inner)?.ok_or_else(unknown)?;
        if length == inner.len() {
            return Ok(Step::Open);
        }
        let close = match strip(&inner[..length]).to_ascii_lowercase().as_str() {
            "temp" | "cdata" | "ignore" | "include" | "rcdata" => SECTION_END.find(inner)?,
            "if" | "else" | "endif" => OFFICE_SECTION_END.find(inner)?,
            _ => return Err(unknown()),
        };
        let Some((start, end)) = close else { return Ok(Step::Open) };
        let content = &inner[..start];
        match content.get(..6).filter(|head| head.eq_ignore_ascii_case("cdata[")) {
            Some(_) => self.tree.hidden(&content[6..], Kind::Cdata),
            None => self.tree.hidden(content, Kind::Hidden),
        }
        Ok(Step::To(self.at + 3 + end))
    }

    /// What begins with `&`.
    fn reference(&mut self, end: bool) -> Result<Step, CleanError> {
        let (text, at) = (self.text, self.at);
        let rest = &text[at..];
        // The character that ends a reference is not part of it, unless it is a semicolon.
        let after = |length: usize| match rest[..length].strip_suffix(';') {
            Some(_) => Step::To(at + length),
            None => {
                let last = rest[..length].chars().next_back().map_or(0, char::len_utf8);
                Step::To(at + length - last)
            }
        };
        let without_last = |text: &'static str, length: usize| {
            let mut chars = rest[text.len()..length].chars();
            chars.next_back();
            chars.as_str().to_owned()
        };
        if rest.starts_with("&#") {
            let Some((_, length)) = NUMBER.find(rest)? else {
                if rest.contains(';') {
                    self.tree.data("&#");
                    self.at += 2;
                }
                return Ok(Step::Stop);
            };
            let digits = without_last("&#", length);
            let code = match digits.strip_prefix(['x', 'X']) {
                Some(digits) => entities::number(digits, 16),
                None => entities::number(&digits, 10),
            };
            self.tree.data(&entities::numeric(code).to_string());
            return Ok(after(length));
        }
        if let Some((_, length)) = ENTITY.find(rest)? {
            let name = without_last("&", length);
            match TABLES.entities.get(&name) {
                Some(characters) => self.tree.data(characters),
                None => self.tree.data(&format!("&{name}")),
            }
            return Ok(after(length));
        }
        if rest[1..].starts_with(|c: char| c.is_ascii_alphabetic()) {
            // Python's parser loses the ampersand of a last "&x".
            if end && rest.len() == 2 {
                self.at += 1;
            }
            return Ok(Step::Stop);
        }
        if rest.len() > 1 {
            self.tree.data("&");
            return Ok(Step::To(at + 1));
        }
        Ok(Step::Stop)
    }
}

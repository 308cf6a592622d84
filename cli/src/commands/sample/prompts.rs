//! Where prompts come from and what is written in them: files, directives, styles, trials.

use super::{settings::Settings, style::styled};
use crate::exit::Failure;
use crate::progress::note;
use pixart_runtime::pipeline::PictureSize;
use std::io::Read;
use std::path::Path;

/// One entry for each picture.
pub struct Prompts {
    /// What to draw.
    pub prompts: Vec<String>,
    /// What to draw away from.
    pub negative_prompts: Vec<String>,
    /// How large, where a prompt or the ratio says so; else empty.
    pub sizes: Vec<PictureSize>,
}

impl Prompts {
    /// Reads the prompts the settings name.
    pub fn gather(settings: &Settings) -> Result<Self, Failure> {
        let texts = texts(settings)?;
        let negatives = negatives(settings, texts.len())?;
        let trials = settings.trials()?;
        settings.batch_size()?;
        let ratio = settings.aspect_ratio.as_deref();
        let ratio = ratio.map(|text| two_numbers("aspect_ratio", text)).transpose()?;
        let (width, height) = (settings.image_width, settings.image_height);
        let all = PictureSize { width, height, aspect_ratio: ratio };
        let mut found =
            Self { prompts: Vec::new(), negative_prompts: Vec::new(), sizes: Vec::new() };
        for (text, negative) in texts.iter().zip(&negatives) {
            let (text, size) = match settings.prompt_directives {
                Some(false) => (text.as_str(), all),
                _ => directives(text, all)?,
            };
            let name = settings.style.as_deref().unwrap_or("(No style)");
            let (prompt, negative) = styled(name, text, negative)?;
            for _ in 0..trials {
                found.prompts.push(prompt.clone());
                found.negative_prompts.push(negative.clone());
                found.sizes.push(size);
            }
        }
        let plain = PictureSize { width, height, aspect_ratio: None };
        if found.sizes.iter().all(|size| *size == plain) {
            found.sizes.clear();
        }
        Ok(found)
    }
}

/// The prompts as they were typed.
pub fn texts(settings: &Settings) -> Result<Vec<String>, Failure> {
    let Some(path) = &settings.prompt_path else {
        return match settings.prompt.as_slice() {
            [] => Err(Failure::request(
                "no prompt: type --prompt \"what to draw\", name a file with --prompt_path, or give \
                 `prompt` in the config",
            )),
            prompts => Ok(prompts.to_vec()),
        };
    };
    if !settings.prompt.is_empty() {
        note("warning: prompt_path is given, so prompt is not used");
    }
    let text = read(path)?;
    // Upstream strips each line; an empty one is an empty prompt.
    let prompts: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    if prompts.is_empty() {
        return Err(Failure::request(format!(
            "prompt_path: {} is empty, expected one prompt per line",
            path.display()
        )));
    }
    Ok(prompts)
}

fn read(path: &Path) -> Result<String, Failure> {
    let shown = path.display();
    let mut bytes = Vec::new();
    let result = match path.as_os_str() == "-" {
        true => std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ()),
        false => std::fs::read(path).map(|content| bytes = content),
    };
    result.map_err(|error| {
        Failure::request(format!(
            "prompt_path: cannot read {shown}: {error}; expected a text file with one prompt per line, \
             or `-` for stdin"
        ))
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        Failure::request(format!(
            "prompt_path: {shown}, line {}: found bytes that are not UTF-8; save the file as UTF-8",
            line + 1
        ))
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned())
}

fn negatives(settings: &Settings, wanted: usize) -> Result<Vec<String>, Failure> {
    match settings.negative_prompt.as_slice() {
        [] => Ok(vec![String::new(); wanted]),
        [one] => Ok(vec![one.clone(); wanted]),
        many if many.len() == wanted => Ok(many.to_vec()),
        many => Err(Failure::request(format!(
            "negative_prompt: found {} for {wanted} prompts, expected none, one, or one per prompt",
            many.len()
        ))),
    }
}

/// The prompt before its first directive, and the size the directives ask for.
///
/// As in the official script: height first, and the long form of the ratio counts when both are there.
/// There, `--hw` never picks the size to draw at; here it does unless a ratio is given.
fn directives(text: &str, all: PictureSize) -> Result<(&str, PictureSize), Failure> {
    const NAMES: [&str; 4] = ["--ar", "--aspect_ratio", "--aspect-ratio", "--hw"];
    let start = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
    let Some(first) = text.split_whitespace().find(|word| NAMES.contains(word)) else {
        return Ok((text, all));
    };
    let prompt = text[..start(first)].trim_end();
    let (mut short, mut long, mut size) = (None, None, None);
    let mut words = text[start(first)..].split_whitespace();
    while let Some(name) = words.next() {
        let place = match name {
            "--ar" => &mut short,
            "--hw" => &mut size,
            "--aspect_ratio" | "--aspect-ratio" => &mut long,
            other => {
                return Err(Failure::request(format!(
                    "prompt \"{text}\": found `{other}` after a size, expected --ar, --aspect_ratio or --hw; \
                     move it in front, or give --prompt_directives false if this is all text"
                )));
            }
        };
        let value = words.next().unwrap_or_default();
        *place = Some(two_numbers(&format!("prompt \"{text}\": {name}"), value)?);
    }
    let ratio = long.or(short);
    let found = match (size, ratio) {
        (Some((height, width)), aspect_ratio) => {
            PictureSize { width: Some(width), height: Some(height), aspect_ratio }
        }
        (None, aspect_ratio) => PictureSize { width: None, height: None, aspect_ratio },
    };
    Ok((prompt, found))
}

/// Reads `H:W`.
fn two_numbers(name: &str, text: &str) -> Result<(u32, u32), Failure> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number > 0);
    let both = text.split_once(':').and_then(|(a, b)| Some((number(a)?, number(b)?)));
    both.ok_or_else(|| {
        Failure::request(format!(
            "{name}: found `{text}`, expected height and width as whole numbers, like 9:16"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_end_a_prompt() {
        let all = PictureSize { width: Some(64), height: None, aspect_ratio: None };
        let read = |text| directives(text, all).map_err(|failure| format!("{failure:?}"));
        let size = |width, height, aspect_ratio| PictureSize { width, height, aspect_ratio };
        for (text, prompt, expected) in [
            ("a cat", "a cat", all),
            ("a --arbitrary cat --arrow", "a --arbitrary cat --arrow", all),
            ("a cat --ar 9:16", "a cat", size(None, None, Some((9, 16)))),
            ("a cat --hw 48:80", "a cat", size(Some(80), Some(48), None)),
            ("a --ar 1:2 --aspect_ratio 3:4", "a", size(None, None, Some((3, 4)))),
            ("--aspect-ratio 3:4\t--hw 1:2", "", size(Some(2), Some(1), Some((3, 4)))),
        ] {
            assert_eq!(read(text), Ok((prompt, expected)), "{text}");
        }
        for (text, word) in [
            ("a --ar", "``"),
            ("a --ar 0:1", "`0:1`"),
            ("a --ar 1.5:1", "`1.5:1`"),
            ("a --hw 512x512", "`512x512`"),
            ("a --ar 1:2 dog", "`dog`"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(word) && error.contains("expected"), "{text}: {error}");
        }
    }
}

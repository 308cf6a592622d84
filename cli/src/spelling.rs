//! Long flags in both spellings: users paste upstream commands (`--image_width`) and type
//! `--image-width` by habit. Flags are declared with underscores, and typed ones are brought to that.

use std::ffi::OsString;

/// Replaces `-` by `_` inside the name of every long flag; values and everything after a bare `--`
/// stay as they are.
pub fn normalise(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut verbatim = false;
    args.into_iter()
        .map(|arg| {
            if arg == "--" {
                verbatim = true;
            }
            match arg.to_str() {
                Some(text) if !verbatim => underscored(text).map_or(arg, OsString::from),
                _ => arg,
            }
        })
        .collect()
}

fn underscored(arg: &str) -> Option<String> {
    let body = arg.strip_prefix("--")?;
    let (name, value) = match body.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (body, None),
    };
    // A prompt may begin with dashes too; a flag's name has no spaces or capitals.
    let is_name = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c));
    let name = is_name.then(|| name.replace('-', "_"))?;
    Some(match value {
        Some(value) => format!("--{name}={value}"),
        None => format!("--{name}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_long_flags_change() {
        for (typed, expected) in [
            ("--image-width", "--image_width"),
            ("--image_width", "--image_width"),
            ("--save-latents=a-b.safetensors", "--save_latents=a-b.safetensors"),
            ("--A red-circle", "--A red-circle"),
            ("a-b", "a-b"),
            ("-c", "-c"),
            ("---", "---"),
        ] {
            assert_eq!(normalise([typed.into()]), [OsString::from(expected)], "{typed}");
        }
    }

    #[test]
    fn nothing_changes_after_a_bare_double_dash() {
        let args = ["--", "--image-width"].map(OsString::from);
        assert_eq!(normalise(args.clone()), args);
    }
}

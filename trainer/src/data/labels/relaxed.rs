//! JSON as people write it: the seed's own example has a comma after the last field and after the last
//! record.

/// Replaces a comma before a closing bracket by a space, so that every line and column stays where it
/// is. A comma with nothing before it (`[,]`, `[1,,]`) stays, and is an error.
pub(super) fn without_trailing_commas(text: &mut String) {
    let mut commas = Vec::new();
    // The last comma outside of texts with only white space after it, if it follows a value.
    let mut pending = None;
    let mut after_value = false;
    let mut in_text = false;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        if in_text {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_text = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {}
            b',' => {
                pending = after_value.then_some(at);
                after_value = false;
            }
            b'[' | b'{' | b':' => {
                pending = None;
                after_value = false;
            }
            b']' | b'}' => {
                commas.extend(pending.take());
                after_value = true;
            }
            _ => {
                in_text = byte == b'"';
                pending = None;
                after_value = true;
            }
        }
    }
    for at in commas {
        text.replace_range(at..=at, " ");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parsed(text: &str) -> Option<Value> {
        let mut relaxed = text.to_owned();
        without_trailing_commas(&mut relaxed);
        assert_eq!(relaxed.len(), text.len());
        serde_json::from_str(&relaxed).ok()
    }

    #[test]
    fn a_comma_after_the_last_element_goes() {
        assert_eq!(parsed("[{\"a\": 1,\n},\n ]"), Some(json!([{"a": 1}])));
        assert_eq!(parsed("[[1, 2 , ], {\"b\": [],},]"), Some(json!([[1, 2], {"b": []}])));
    }

    #[test]
    fn commas_in_texts_stay() {
        for text in [r#"["a,]"]"#, r#"[{"a,}":"\",]"}]"#, r#"["\\",]"#, "[\"é,ü ,}\"]"] {
            let strict = text.replace("\",]", "\"]");
            let strict = if serde_json::from_str::<Value>(text).is_ok() { text } else { &strict };
            let expected: Value = serde_json::from_str(strict).expect("JSON");
            assert_eq!(parsed(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn other_commas_stay_wrong() {
        for text in ["[,]", "[1,,]", "{,}", "[1 2,]", "{\"a\":,}", "[1],", "[\"a,]"] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}

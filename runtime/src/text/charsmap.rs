//! The compiled character map of a SentencePiece model, looked over before use.
//!
//! The library that applies the map trusts it. A damaged file would make it reach outside the
//! map in the middle of a prompt, so every path through the map is checked once while loading.

use tokenizers::normalizers::precompiled::Precompiled;

/// Reads a compiled character map: the size of a trie in bytes (little-endian u32), the trie, and
/// replacement texts, each ended by a zero byte.
pub(super) fn read(bytes: &[u8]) -> Result<Precompiled, String> {
    let (size, rest) = bytes.split_first_chunk().ok_or("it is shorter than four bytes")?;
    let size = u32::from_le_bytes(*size) as usize;
    let (trie, texts) = rest.split_at_checked(size).ok_or_else(|| {
        format!("it has {} bytes after its head, which announces {size}", rest.len())
    })?;
    let units: Vec<u32> = trie.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    let texts = std::str::from_utf8(texts).map_err(|_| "its texts are not UTF-8")?;
    if !walk(&units, texts) {
        return Err("its trie points outside itself".to_owned());
    }
    Precompiled::from(bytes).map_err(|error| error.to_string())
}

/// Whether every key leads to places inside the trie and the texts.
///
/// The trie is a double array (Darts-clone): a unit holds a label, the offset of its children and
/// whether it has a value; child and parent position differ by offset and label, combined by
/// exclusive or.
fn walk(units: &[u32], texts: &str) -> bool {
    let offset = |unit: u32| ((unit >> 10) << ((unit & 0x200) >> 6)) as usize;
    let Some(&root) = units.first() else {
        return false;
    };
    let mut seen = vec![false; units.len()];
    let mut open = vec![offset(root)];
    while let Some(base) = open.pop() {
        // Looking a byte up reads one of the 256 units around the base.
        if base | 0xff >= units.len() {
            return false;
        }
        for label in 1..=255 {
            let child = base ^ label;
            let unit = units[child];
            if (unit & 0x8000_00ff) as usize != label || std::mem::replace(&mut seen[child], true) {
                continue;
            }
            let children = child ^ offset(unit);
            if unit & 0x100 != 0 {
                let text = units.get(children).map(|value| (value & 0x7fff_ffff) as usize);
                if !text.is_some_and(|text| texts.is_char_boundary(text)) {
                    return false;
                }
            }
            open.push(children);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map from "a" to "bc".
    fn small() -> Vec<u8> {
        let mut units = vec![0u32; 512];
        // The root's children are around unit 256, those of "a" around unit 0.
        units[0] = 256 << 10;
        let a = 256 ^ usize::from(b'a');
        let children = 256 ^ 0x80;
        units[a] = ((a ^ children) as u32) << 10 | 0x100 | u32::from(b'a');
        units[children] = 0x8000_0000;
        let trie = units.into_iter().flat_map(u32::to_le_bytes);
        (2048u32).to_le_bytes().into_iter().chain(trie).chain(*b"bc\0").collect()
    }

    #[test]
    fn a_sound_map_is_read() {
        let map = read(&small()).expect("a map");
        assert_eq!(map.transform("a"), Some("bc"));
        assert_eq!(map.transform("b"), None);
    }

    #[test]
    fn damage_is_noticed() {
        let unit = |index: usize| 4 + 4 * index;
        let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = small();
            change(&mut bytes);
            read(&bytes).err()
        };
        assert!(damaged(&|bytes| bytes.truncate(3)).is_some());
        assert!(damaged(&|bytes| bytes.truncate(1000)).is_some());
        assert!(damaged(&|bytes| bytes[..4].fill(0)).is_some());
        assert!(damaged(&|bytes| bytes[..4].fill(0xff)).is_some());
        assert!(damaged(&|bytes| bytes[unit(0)..unit(1)].fill(0x7f)).is_some());
        assert!(damaged(&|bytes| bytes[unit(384)] = 9).is_some(), "a text beyond the end");
        assert!(damaged(&|bytes| *bytes.last_mut().expect("a byte") = 0xff).is_some());
    }

    #[test]
    fn no_damage_of_one_byte_makes_a_lookup_fail() {
        for index in 0..small().len() {
            for value in [0x00, 0x7f, 0x80, 0xff] {
                let mut bytes = small();
                bytes[index] = value;
                if let Ok(map) = read(&bytes) {
                    for text in ["a", "aa", "bc", "é", "\u{10ffff}"] {
                        map.transform(text);
                    }
                }
            }
        }
    }
}

//! EXIF, as far as texts are concerned: a TIFF header, the main directory and the one below it.

use super::{Metadata, RECORD, read::Text};

/// What EXIF begins with in a JPEG segment.
pub(super) const PREFIX: &[u8] = b"Exif\0\0";

const SOFTWARE: u16 = 0x0131;
const EXIF_DIRECTORY: u16 = 0x8769;
const VERSION: u16 = 0x9000;
const MAKER_NOTE: u16 = 0x927c;
const USER_COMMENT: u16 = 0x9286;

/// The tags with texts, and what they are called.
const TEXTS: [(u16, &str); 9] = [
    (0x010e, "ImageDescription"),
    (0x010f, "Make"),
    (0x0110, "Model"),
    (SOFTWARE, "Software"),
    (0x013b, "Artist"),
    (0x8298, "Copyright"),
    (0x9c9c, "XPComment"),
    (MAKER_NOTE, "MakerNote"),
    (USER_COMMENT, "UserComment"),
];

const ASCII: u16 = 2;
const LONG: u16 = 4;
const UNDEFINED: u16 = 7;

/// Directories of pictures have a few dozen entries.
const MOST_ENTRIES: usize = 1000;

/// An EXIF block with these texts.
///
/// Big-endian, because the web UIs write and read the UTF-16 of a UserComment in that order, and the
/// standard wants it in the block's own.
pub(super) fn write(metadata: &Metadata) -> Vec<u8> {
    let software = concat!("pixart ", env!("CARGO_PKG_VERSION"), "\0");
    let utf16 = metadata.parameters.encode_utf16().flat_map(u16::to_be_bytes);
    let comment: Vec<u8> = b"UNICODE\0".iter().copied().chain(utf16).collect();
    let note = [RECORD.as_bytes(), b"\0", metadata.record.as_bytes()].concat();

    let mut block = b"MM\0\x2a\0\0\0\x08".to_vec();
    // The pointer's value is the place right after this directory and its texts.
    let main_size = 2 + 2 * 12 + 4 + software.len().next_multiple_of(2);
    let below = (8 + main_size) as u32;
    directory(
        &mut block,
        &[
            (SOFTWARE, ASCII, software.len(), software.as_bytes()),
            (EXIF_DIRECTORY, LONG, 1, &below.to_be_bytes()),
        ],
    );
    debug_assert_eq!(block.len(), below as usize);
    directory(
        &mut block,
        &[
            (VERSION, UNDEFINED, 4, b"0232"),
            (MAKER_NOTE, UNDEFINED, note.len(), &note),
            (USER_COMMENT, UNDEFINED, comment.len(), &comment),
        ],
    );
    block
}

/// Appends a directory, its entries (tag, type, count, value) in ascending order, and the values that do
/// not fit into four bytes.
fn directory(block: &mut Vec<u8>, entries: &[(u16, u16, usize, &[u8])]) {
    let mut place = block.len() + 2 + 12 * entries.len() + 4;
    let mut values = Vec::new();
    block.extend((entries.len() as u16).to_be_bytes());
    for (tag, kind, count, value) in entries {
        block.extend(tag.to_be_bytes());
        block.extend(kind.to_be_bytes());
        block.extend((*count as u32).to_be_bytes());
        if value.len() <= 4 {
            let mut inline = value.to_vec();
            inline.resize(4, 0);
            block.extend(inline);
        } else {
            block.extend((place as u32).to_be_bytes());
            values.extend_from_slice(value);
            values.resize(values.len().next_multiple_of(2), 0);
            place += value.len().next_multiple_of(2);
        }
    }
    block.extend(0u32.to_be_bytes());
    block.extend(values);
}

/// The texts of an EXIF block. What points outside the block is left out, as are tags without texts.
pub(super) fn read(block: &[u8]) -> Vec<Text> {
    let block = block.strip_prefix(PREFIX).unwrap_or(block);
    let big = match block.get(..4) {
        Some(b"MM\0\x2a") => true,
        Some(b"II\x2a\0") => false,
        _ => return Vec::new(),
    };
    let tiff = Tiff { block, big };
    let mut texts = Vec::new();
    let mut below = None;
    if let Some(place) = tiff.u32(4) {
        tiff.texts(place as usize, &mut texts, &mut below);
    }
    if let Some(place) = below {
        // A pointer in there is not followed, so a circle is no danger.
        tiff.texts(place, &mut texts, &mut None);
    }
    texts
}

struct Tiff<'a> {
    block: &'a [u8],
    big: bool,
}

impl Tiff<'_> {
    fn bytes<const N: usize>(&self, place: usize) -> Option<[u8; N]> {
        self.block.get(place..)?.first_chunk().copied()
    }

    fn u16(&self, place: usize) -> Option<u16> {
        let bytes = self.bytes(place)?;
        Some(if self.big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn u32(&self, place: usize) -> Option<u32> {
        let bytes = self.bytes(place)?;
        Some(if self.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    /// Adds the texts of the directory at `place`, each tag once.
    fn texts(&self, place: usize, texts: &mut Vec<Text>, below: &mut Option<usize>) {
        let count = usize::from(self.u16(place).unwrap_or(0)).min(MOST_ENTRIES);
        for k in 0..count {
            let Some(entry) = place.checked_add(2 + 12 * k) else { return };
            let (Some(tag), Some(kind), Some(count), Some(value)) =
                (self.u16(entry), self.u16(entry + 2), self.u32(entry + 4), self.u32(entry + 8))
            else {
                return;
            };
            if tag == EXIF_DIRECTORY && kind == LONG {
                *below = Some(value as usize);
            }
            let name = TEXTS.iter().find(|(known, _)| *known == tag).map(|(_, name)| *name);
            // Texts are of one byte a unit: BYTE, ASCII, UNDEFINED.
            let (Some(name), 1 | ASCII | UNDEFINED) = (name, kind) else { continue };
            let (length, start) = match count as usize {
                length @ ..=4 => (length, entry + 8),
                length => (length, value as usize),
            };
            let Some(bytes) = start.checked_add(length).and_then(|end| self.block.get(start..end))
            else {
                continue;
            };
            if let Some(text) = self.text(tag, name, bytes)
                && !texts.iter().any(|other| other.key == text.key)
            {
                texts.push(text);
            }
        }
    }

    fn text(&self, tag: u16, name: &str, bytes: &[u8]) -> Option<Text> {
        let (key, text) = match tag {
            USER_COMMENT => (name, self.comment(bytes)),
            // Other makers' notes are no texts.
            MAKER_NOTE => {
                let record = bytes.strip_prefix(RECORD.as_bytes())?.strip_prefix(b"\0")?;
                (RECORD, String::from_utf8_lossy(record).into_owned())
            }
            0x9c9c => (name, utf16(bytes, false)),
            _ => (name, String::from_utf8_lossy(bytes).into_owned()),
        };
        let text = text.trim_end_matches('\0').to_owned();
        (!text.trim().is_empty()).then(|| Text { key: key.to_owned(), text })
    }

    /// A UserComment: eight bytes of encoding, then the text.
    fn comment(&self, bytes: &[u8]) -> String {
        match bytes.split_at_checked(8) {
            Some((b"UNICODE\0", text)) => utf16(text, self.comment_is_big_endian(text)),
            Some((b"ASCII\0\0\0" | b"JIS\0\0\0\0\0" | [0, 0, 0, 0, 0, 0, 0, 0], text)) => {
                String::from_utf8_lossy(text).into_owned()
            }
            _ => String::from_utf8_lossy(bytes).into_owned(),
        }
    }

    /// Many programs write big-endian text into little-endian blocks; zeros tell where the high bytes are.
    fn comment_is_big_endian(&self, text: &[u8]) -> bool {
        let zeros = |from: usize| text.iter().skip(from).step_by(2).filter(|b| **b == 0).count();
        match text {
            [0xfe, 0xff, ..] => true,
            [0xff, 0xfe, ..] => false,
            _ if zeros(0) != zeros(1) => zeros(0) > zeros(1),
            _ => self.big,
        }
    }
}

fn utf16(bytes: &[u8], big: bool) -> String {
    let (pairs, _) = bytes.as_chunks();
    let convert = if big { u16::from_be_bytes } else { u16::from_le_bytes };
    let units: Vec<u16> = pairs.iter().map(|pair| convert(*pair)).collect();
    let text = String::from_utf16_lossy(&units);
    text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Metadata {
        Metadata { parameters: "a für 🦊\nSteps: 1".into(), record: "{\"a\":\"ü\"}".into() }
    }

    fn found(block: &[u8], key: &str) -> Option<String> {
        read(block).into_iter().find(|text| text.key == key).map(|text| text.text)
    }

    #[test]
    fn texts_read_back() {
        let block = write(&metadata());
        assert_eq!(found(&block, "UserComment"), Some(metadata().parameters));
        assert_eq!(found(&block, RECORD), Some(metadata().record));
        let software = concat!("pixart ", env!("CARGO_PKG_VERSION"));
        assert_eq!(found(&block, "Software").as_deref(), Some(software));
        assert_eq!(read(&[PREFIX, &block].concat()).len(), 3);
    }

    #[test]
    fn comments_of_other_programs_are_read() {
        let comment = |header: &[u8], text: &[u8]| {
            let value = [header, text].concat();
            let mut block = b"II\x2a\0\x08\0\0\0\x01\0\x86\x92\x07\0".to_vec();
            block.extend((value.len() as u32).to_le_bytes());
            block.extend(26u32.to_le_bytes());
            block.extend([0; 4]);
            block.extend(value);
            found(&block, "UserComment").unwrap()
        };
        assert_eq!(comment(b"UNICODE\0", b"\0a\0b"), "ab");
        assert_eq!(comment(b"UNICODE\0", b"a\0b\0"), "ab");
        assert_eq!(comment(b"UNICODE\0", b"\xff\xfea\0"), "a");
        assert_eq!(comment(b"UNICODE\0", b"\xc6\x72"), "\u{72c6}");
        assert_eq!(comment(b"ASCII\0\0\0", b"abc\0"), "abc");
        assert_eq!(comment(b"", b"just text"), "just text");
    }

    #[test]
    fn a_damaged_block_is_no_danger() {
        let block = write(&metadata());
        for end in 0..block.len() {
            read(&block[..end]);
        }
        for place in 0..block.len() {
            for value in [0, 0x7f, 0xff] {
                let mut damaged = block.clone();
                damaged[place] = value;
                read(&damaged);
            }
        }
        // A directory below that is the main one.
        let mut circle = block;
        circle[8 + 2 + 12 + 8..][..4].copy_from_slice(&8u32.to_be_bytes());
        assert_eq!(read(&circle).len(), 1);
    }
}

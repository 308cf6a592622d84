//! The texts of a WebP: the chunks EXIF and XMP.

use std::io::Seek;

use super::{Found, Problem, Source, Text};
use crate::image::exif;

pub(super) fn read(source: &mut Source) -> Result<Found, Problem> {
    let head: [u8; 12] = source.bytes()?;
    let [.., a, b, c, d, _, _, _, _] = head;
    let end = 8 + u64::from(u32::from_le_bytes([a, b, c, d]));
    if end > source.length {
        return Err(Problem::Truncated);
    }
    let (mut size, mut texts) = (None, Vec::new());
    while source.reader.stream_position()? + 8 <= end {
        let kind: [u8; 4] = source.bytes()?;
        let length = u64::from(u32::from_le_bytes(source.bytes()?));
        // Chunks of an odd length are followed by a byte of filling, which some writers leave out at the end.
        let next = source.reader.stream_position()? + length + length % 2;
        if next - length % 2 > end {
            let kind = kind.escape_ascii();
            return Err(Problem::Damaged(format!("its chunk {kind} is longer than the file")));
        }
        match &kind {
            b"EXIF" => texts.extend(exif::read(&source.text(length, "the chunk EXIF")?)),
            b"XMP " => {
                let data = source.text(length, "the chunk XMP")?;
                let text = String::from_utf8_lossy(&data).into_owned();
                texts.push(Text { key: "XMP".to_owned(), text });
            }
            b"VP8X" | b"VP8L" | b"VP8 " if length >= 10 && size.is_none() => {
                size = Some(dimensions(&kind, source.bytes()?));
            }
            _ => {}
        }
        let place = source.reader.stream_position()?;
        source.skip((next - place).min(end - place))?;
    }
    let no_size = || Problem::Damaged("it has no pixels (VP8)".to_owned());
    Ok((size.ok_or_else(no_size)?, texts))
}

/// Width and height by the first bytes of a chunk with pixels, or of the one that announces them.
fn dimensions(kind: &[u8; 4], head: [u8; 10]) -> (u32, u32) {
    let [a, b, c, d] = [6, 7, 8, 9].map(|k| u32::from(head[k]));
    match kind {
        // Two numbers of 24 bits, less one.
        b"VP8X" => {
            let [w0, w1, h2] = [u32::from(head[4]), u32::from(head[5]), d];
            (1 + (w0 | w1 << 8 | a << 16), 1 + (b | c << 8 | h2 << 16))
        }
        // After a byte, two numbers of 14 bits, less one.
        b"VP8L" => {
            let bits = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
            (1 + (bits & 0x3fff), 1 + (bits >> 14 & 0x3fff))
        }
        // Two numbers of 14 bits, each followed by two bits of scale.
        _ => ((a | b << 8) & 0x3fff, (c | d << 8) & 0x3fff),
    }
}

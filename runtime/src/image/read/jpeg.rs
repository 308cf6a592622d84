//! The texts of a JPEG: EXIF, XMP and comments, which are in the segments before the pixels.

use std::io::BufRead;

use super::{Found, Problem, Source, Text};
use crate::image::exif;

const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";

pub(super) fn read(source: &mut Source) -> Result<Found, Problem> {
    source.skip(2)?;
    let (mut size, mut texts) = (None, Vec::new());
    loop {
        let marker = marker(source)?;
        let damaged = |problem: &str| Problem::Damaged(problem.to_owned());
        match marker {
            // The pixels begin.
            0xda => {
                to_the_end(source)?;
                let no_size = || damaged("it has no size (SOF)");
                return Ok((size.ok_or_else(no_size)?, texts));
            }
            0xd9 => return Err(damaged("it ends before its pixels")),
            // Markers without a segment.
            0x01 | 0xd0..=0xd8 => continue,
            _ => {}
        }
        let length = u16::from_be_bytes(source.bytes()?);
        let length = length.checked_sub(2).ok_or_else(|| damaged("a segment is too short"))?;
        match marker {
            0xe1 | 0xfe | 0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                let data = source.text(length.into(), "a segment")?;
                match (marker, data.as_slice()) {
                    (0xe1, data) if data.starts_with(exif::PREFIX) => {
                        texts.extend(exif::read(data));
                    }
                    (0xe1, data) => {
                        if let Some(text) = data.strip_prefix(XMP) {
                            texts.push(text_of("XMP", text));
                        }
                    }
                    (0xfe, text) => texts.push(text_of("comment", text)),
                    (_, &[_, a, b, c, d, ..]) => {
                        let [height, width] = [[a, b], [c, d]].map(u16::from_be_bytes);
                        size = Some((width.into(), height.into()));
                    }
                    _ => return Err(damaged("its size (SOF) is too short")),
                }
            }
            _ => source.skip(length.into())?,
        }
    }
}

/// The next marker; any number of FF bytes may stand before it.
fn marker(source: &mut Source) -> Result<u8, Problem> {
    let [first] = source.bytes()?;
    if first != 0xff {
        return Err(Problem::Damaged(format!("found the byte {first:02x}, expected a marker")));
    }
    loop {
        match source.bytes()? {
            [0xff] => {}
            [marker] => return Ok(marker),
        }
    }
}

fn text_of(key: &str, bytes: &[u8]) -> Text {
    let text = String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    Text { key: key.to_owned(), text }
}

/// Looks for the end marker, which does not occur among the pixels.
fn to_the_end(source: &mut Source) -> Result<(), Problem> {
    let mut before = 0;
    loop {
        let bytes = source.reader.fill_buf()?;
        if bytes.is_empty() {
            return Err(Problem::Truncated);
        }
        if before == 0xff && bytes[0] == 0xd9 || bytes.windows(2).any(|pair| pair == [0xff, 0xd9]) {
            return Ok(());
        }
        before = bytes[bytes.len() - 1];
        let length = bytes.len();
        source.reader.consume(length);
    }
}

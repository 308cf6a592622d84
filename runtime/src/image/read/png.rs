//! The text chunks of a PNG: tEXt, zTXt, iTXt and eXIf.

use std::io::Read;

use flate2::{Crc, read::ZlibDecoder};

use super::{Found, MOST_TEXT, Problem, Source, Text};
use crate::image::exif;

pub(super) fn read(source: &mut Source) -> Result<Found, Problem> {
    source.skip(8)?;
    let (mut size, mut texts) = (None, Vec::new());
    loop {
        let length = u64::from(u32::from_be_bytes(source.bytes()?));
        let kind: [u8; 4] = source.bytes()?;
        match &kind {
            b"IHDR" | b"tEXt" | b"zTXt" | b"iTXt" | b"eXIf" => {
                let what = format!("the chunk {}", kind.escape_ascii());
                let data = source.text(length, &what)?;
                check(source, &kind, &data)?;
                match &kind {
                    b"IHDR" => size = Some(dimensions(&data)?),
                    b"eXIf" => texts.extend(exif::read(&data)),
                    _ => texts.extend(text(source, &kind, &data)?),
                }
            }
            _ => source.skip(length + 4)?,
        }
        if &kind == b"IEND" {
            let no_header = || Problem::Damaged("it has no header (IHDR)".to_owned());
            return Ok((size.ok_or_else(no_header)?, texts));
        }
    }
}

/// Compares a chunk with the checksum behind it.
fn check(source: &mut Source, kind: &[u8; 4], data: &[u8]) -> Result<(), Problem> {
    let mut sum = Crc::new();
    sum.update(kind);
    sum.update(data);
    if sum.sum() == u32::from_be_bytes(source.bytes()?) {
        return Ok(());
    }
    Err(Problem::Damaged(format!("the checksum of its chunk {} is wrong", kind.escape_ascii())))
}

fn dimensions(header: &[u8]) -> Result<(u32, u32), Problem> {
    match header.first_chunk::<8>() {
        Some([a, b, c, d, e, f, g, h]) => {
            Ok((u32::from_be_bytes([*a, *b, *c, *d]), u32::from_be_bytes([*e, *f, *g, *h])))
        }
        None => Err(Problem::Damaged("its header (IHDR) is too short".to_owned())),
    }
}

/// The text of a chunk, if it has the parts it must have.
fn text(source: &mut Source, kind: &[u8; 4], data: &[u8]) -> Result<Option<Text>, Problem> {
    let Some((key, rest)) = split(data) else { return Ok(None) };
    let key = latin1_or_utf8(key);
    let text = match kind {
        b"tEXt" => latin1_or_utf8(rest),
        b"zTXt" => match rest.split_first() {
            Some((0, packed)) => latin1_or_utf8(&unpack(source, packed, &key)?),
            _ => return Ok(None),
        },
        _ => {
            // Whether it is packed, the method, a language, the key in that language.
            let (Some([packed, method]), Some((_, rest))) =
                (rest.first_chunk(), rest.get(2..).and_then(split))
            else {
                return Ok(None);
            };
            let Some((_, text)) = split(rest) else { return Ok(None) };
            match (packed, method) {
                (0, _) => String::from_utf8_lossy(text).into_owned(),
                (1, 0) => String::from_utf8_lossy(&unpack(source, text, &key)?).into_owned(),
                _ => return Ok(None),
            }
        }
    };
    Ok(Some(Text { key, text }))
}

/// What is before and after the first zero.
fn split(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = data.iter().position(|byte| *byte == 0)?;
    Some((&data[..end], &data[end + 1..]))
}

/// The standard says Latin-1, but many programs write UTF-8, and what is valid UTF-8 is hardly ever
/// meant as anything else.
fn latin1_or_utf8(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    }
}

/// Unpacks a text, but no more of it than may be read.
fn unpack(source: &mut Source, packed: &[u8], key: &str) -> Result<Vec<u8>, Problem> {
    let what = format!("the packed text `{}`", key.chars().take(80).collect::<String>());
    let mut text = Vec::new();
    let unpacked = ZlibDecoder::new(packed).take(MOST_TEXT + 1).read_to_end(&mut text);
    source.spend(text.len() as u64, &what)?;
    unpacked.map_err(|error| {
        Problem::Damaged(format!("{} cannot be unpacked ({error})", what.escape_debug()))
    })?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::ZlibEncoder};

    use super::*;
    use crate::image::{PictureTexts, read_texts};

    fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let mut sum = Crc::new();
        sum.update(kind);
        sum.update(data);
        let length = (data.len() as u32).to_be_bytes();
        [&length[..], kind, data, &sum.sum().to_be_bytes()].concat()
    }

    fn picture(chunks: &[Vec<u8>]) -> Result<PictureTexts, String> {
        let header = chunk(b"IHDR", &[0, 0, 0, 5, 0, 0, 0, 7, 8, 2, 0, 0, 0]);
        let bytes = [
            &b"\x89PNG\r\n\x1a\n"[..],
            &header,
            &chunks.concat(),
            &chunk(b"IDAT", b"pixels"),
            &chunk(b"tEXt", b"late\0after the pixels"),
            &chunk(b"IEND", b""),
        ]
        .concat();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        std::fs::write(&path, bytes).unwrap();
        read_texts(&path).map_err(|error| error.to_string())
    }

    fn packed(text: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_kind_of_text_is_read() {
        let read = picture(&[
            chunk(b"tEXt", b"plain\0f\xfcr"),
            chunk(b"tEXt", "utf8\0f\u{fc}r".as_bytes()),
            chunk(b"zTXt", &[b"packed\0\0", &packed(b"f\xfcr")[..]].concat()),
            chunk(b"iTXt", "inter\0\0\0de\0\u{fc}\0f\u{fc}r".as_bytes()),
            chunk(b"iTXt", &[b"both\0\x01\0\0\0", &packed("für".as_bytes())[..]].concat()),
            chunk(b"tEXt", b"no zero"),
            chunk(b"iTXt", b"short\0\0"),
        ]);
        let read = read.unwrap();
        assert_eq!((read.width, read.height), (5, 7));
        for key in ["plain", "utf8", "packed", "inter", "both"] {
            assert_eq!(read.get(key), Some("für"), "{key}");
        }
        assert_eq!(read.get("late"), Some("after the pixels"));
        assert_eq!(read.texts.len(), 6);
    }

    #[test]
    fn bombs_and_endless_texts_are_refused() {
        let bomb = packed(&vec![b'a'; MOST_TEXT as usize + 1]);
        assert!(bomb.len() < 100_000);
        let ztxt = chunk(b"zTXt", &[b"z\0\0", &bomb[..]].concat());
        let itxt = chunk(b"iTXt", &[b"i\0\x01\0\0\0", &bomb[..]].concat());
        for (chunk, key) in [(ztxt, "z"), (itxt, "i")] {
            let error = picture(&[chunk]).unwrap_err();
            let expected = format!("the packed text `{key}` has more than 16777216 bytes");
            assert!(error.contains(&expected), "{error}");
        }
        let almost = packed(&vec![b'a'; MOST_TEXT as usize - 1000]);
        let many = vec![chunk(b"zTXt", &[b"z\0\0", &almost[..]].concat()); 3];
        let error = picture(&many).unwrap_err();
        assert!(error.contains("all text together has more than"), "{error}");

        let empty = chunk(b"tEXt", b"a\0");
        let error = picture(&[empty.repeat(300_000)]).unwrap_err();
        assert!(error.contains("all text together has more than"), "{error}");

        // 100 MB are announced, and refused before any is read.
        let long = [&100_000_000u32.to_be_bytes()[..], b"tEXt"].concat();
        let error = picture(&[long]).unwrap_err();
        assert!(error.contains("the chunk tEXt has more than"), "{error}");
    }

    #[test]
    fn damaged_texts_are_errors() {
        let mut wrong = chunk(b"tEXt", b"a\0b");
        *wrong.last_mut().unwrap() ^= 1;
        let error = picture(&[wrong]).unwrap_err();
        assert!(error.contains("checksum of its chunk tEXt is wrong"), "{error}");
        let error = picture(&[chunk(b"zTXt", b"a\0\0not packed")]).unwrap_err();
        assert!(error.contains("the packed text `a` cannot be unpacked"), "{error}");
    }
}

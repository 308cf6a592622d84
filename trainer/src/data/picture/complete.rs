//! Whether a picture's file is all there.
//!
//! Decoders fill what is missing of a JPEG with grey and report success, so a download that broke off
//! would be trained on. The container tells.

/// What is wrong if a JPEG or WebP file ends too early; PNG decoders notice it themselves.
pub(super) fn truncation(bytes: &[u8]) -> Option<String> {
    if bytes.starts_with(&[0xff, 0xd8]) {
        jpeg(bytes)
    } else if bytes.starts_with(b"RIFF") {
        webp(bytes)
    } else {
        None
    }
}

const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;

/// Walks the segments (ITU T.81, annex B) up to the end-of-image marker.
fn jpeg(bytes: &[u8]) -> Option<String> {
    let missing =
        || Some(format!("truncated: {} bytes, and no end-of-image marker in them", bytes.len()));
    let mut at = 2;
    loop {
        // Fill bytes may stand before a marker.
        while bytes.get(at) == Some(&0xff) && bytes.get(at + 1) == Some(&0xff) {
            at += 1;
        }
        let Some(&[0xff, marker]) = bytes.get(at..at + 2) else {
            // Not a marker: the decoder says what it makes of it, unless the file is over.
            return if at + 2 > bytes.len() { missing() } else { None };
        };
        at += 2;
        if marker == EOI {
            return None;
        }
        if marker == 0x01 || (0xd0..=0xd7).contains(&marker) {
            continue;
        }
        let Some(&[high, low]) = bytes.get(at..at + 2) else { return missing() };
        at += usize::from(u16::from_be_bytes([high, low])).max(2);
        if marker == SOS {
            // Compressed data, in which 0xff is followed by 0 or is a restart marker.
            let data = bytes.get(at..).unwrap_or_default();
            let end = data
                .windows(2)
                .position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff | 0xd0..=0xd7));
            match end {
                Some(end) => at += end,
                None => return missing(),
            }
        }
    }
}

/// The container's head says how long the file is.
fn webp(bytes: &[u8]) -> Option<String> {
    let length: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
    let expected = u64::from(u32::from_le_bytes(length)) + 8;
    let found = bytes.len() as u64;
    (found < expected).then(|| format!("truncated: {found} bytes, expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ExtendedColorType, ImageEncoder, codecs::jpeg::JpegEncoder, codecs::webp};

    fn pixels() -> Vec<u8> {
        (0..64 * 48 * 3).map(|k: u32| (k.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    #[test]
    fn every_cut_jpeg_is_noticed() {
        let mut bytes = Vec::new();
        let encoder = JpegEncoder::new_with_quality(&mut bytes, 90);
        encoder.write_image(&pixels(), 64, 48, ExtendedColorType::Rgb8).expect("a picture");
        assert_eq!(truncation(&bytes), None);
        for length in 2..bytes.len() {
            assert!(truncation(&bytes[..length]).is_some(), "{length} of {} bytes", bytes.len());
        }
        // What other programs append does no harm.
        bytes.extend([0, 1, 2, 0xff]);
        assert_eq!(truncation(&bytes), None);
    }

    #[test]
    fn every_cut_webp_is_noticed() {
        let mut bytes = Vec::new();
        let encoder = webp::WebPEncoder::new_lossless(&mut bytes);
        encoder.write_image(&pixels(), 64, 48, ExtendedColorType::Rgb8).expect("a picture");
        assert_eq!(truncation(&bytes), None);
        for length in 8..bytes.len() {
            assert!(truncation(&bytes[..length]).is_some(), "{length} of {} bytes", bytes.len());
        }
    }
}

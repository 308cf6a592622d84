//! The few characters that stand beside a curve or a bar, five pixels wide and seven high, so that no font is needed.

use image::{Rgb, RgbImage};

/// Pixels from one character to the next, and from top to bottom, before they are enlarged.
const ADVANCE: u32 = 6;
const HEIGHT: u32 = 7;

/// The pixels of a character, one row a number, the leftmost the highest of five bits; none for a character that is
/// not here.
fn glyph(character: char) -> Option<[u8; 7]> {
    Some(match character {
        '0' => [0b01110, 0b10001, 0b10011, 0b10101, 0b11001, 0b10001, 0b01110],
        '1' => [0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
        '2' => [0b01110, 0b10001, 0b00001, 0b00110, 0b01000, 0b10000, 0b11111],
        '3' => [0b11111, 0b00010, 0b00100, 0b00010, 0b00001, 0b10001, 0b01110],
        '4' => [0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010],
        '5' => [0b11111, 0b10000, 0b11110, 0b00001, 0b00001, 0b10001, 0b01110],
        '6' => [0b00110, 0b01000, 0b10000, 0b11110, 0b10001, 0b10001, 0b01110],
        '7' => [0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b01000, 0b01000],
        '8' => [0b01110, 0b10001, 0b10001, 0b01110, 0b10001, 0b10001, 0b01110],
        '9' => [0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00010, 0b01100],
        '.' => [0, 0, 0, 0, 0, 0b01100, 0b01100],
        '-' => [0, 0, 0, 0b11111, 0, 0, 0],
        'c' => [0, 0, 0b01110, 0b10000, 0b10000, 0b10001, 0b01110],
        'd' => [0b00001, 0b00001, 0b01101, 0b10011, 0b10001, 0b10001, 0b01111],
        'e' => [0, 0, 0b01110, 0b10001, 0b11111, 0b10000, 0b01110],
        'l' => [0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
        'n' => [0, 0, 0b10110, 0b11001, 0b10001, 0b10001, 0b10001],
        'o' => [0, 0, 0b01110, 0b10001, 0b10001, 0b10001, 0b01110],
        'p' => [0, 0, 0b11110, 0b10001, 0b11110, 0b10000, 0b10000],
        's' => [0, 0, 0b01111, 0b10000, 0b01110, 0b00001, 0b11110],
        't' => [0b01000, 0b01000, 0b11100, 0b01000, 0b01000, 0b01001, 0b00110],
        'x' => [0, 0, 0b10001, 0b01010, 0b00100, 0b01010, 0b10001],
        _ => return None,
    })
}

/// Width and height of a text whose pixels are `scale` wide.
pub fn size(text: &str, scale: u32) -> (u32, u32) {
    let count = text.chars().count() as u32;
    ((count * ADVANCE).saturating_sub(1) * scale, HEIGHT * scale)
}

/// Draws a text with its upper left corner at `(x, y)`; what lies outside of the picture is left out.
pub fn write(picture: &mut RgbImage, text: &str, (x, y): (u32, u32), scale: u32, color: Rgb<u8>) {
    for (index, rows) in text.chars().map(glyph).enumerate() {
        let left = x + index as u32 * ADVANCE * scale;
        for (row, bits) in rows.into_iter().flatten().enumerate() {
            for column in (0..5).filter(|column| bits >> (4 - column) & 1 == 1) {
                for (dx, dy) in (0..scale * scale).map(|k| (k % scale, k / scale)) {
                    let (x, y) = (left + column * scale + dx, y + row as u32 * scale + dy);
                    if let Some(pixel) = picture.get_pixel_mut_checked(x, y) {
                        *pixel = color;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_and_the_names_of_the_axes_can_be_written() {
        for character in "0123456789.e-lossstepsecondsdecodetextpx".chars() {
            assert!(glyph(character).is_some(), "{character}");
        }
        let mut picture = RgbImage::new(40, 10);
        write(&mut picture, "1", (30, 2), 1, Rgb([255; 3]));
        let lit = picture.pixels().filter(|pixel| pixel.0 == [255; 3]).count();
        assert_eq!(lit, 1 + 2 + 1 + 1 + 1 + 1 + 3);
        // Beyond the edge, and without a glyph.
        write(&mut picture, "8?8", (36, 8), 3, Rgb([255; 3]));
    }
}

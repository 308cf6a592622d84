//! Several pictures side by side.

use image::{RgbImage, imageops};

/// Lays pictures out in columns, from the left and from the top. Every cell is as large as the widest and
/// the tallest picture need; what no picture fills is black.
pub fn grid(columns: &[Vec<&RgbImage>]) -> RgbImage {
    let all = || columns.iter().flatten();
    let width = all().map(|picture| picture.width()).max().unwrap_or(0);
    let height = all().map(|picture| picture.height()).max().unwrap_or(0);
    let rows = columns.iter().map(Vec::len).max().unwrap_or(0) as u32;
    let mut whole = RgbImage::new(width * columns.len() as u32, height * rows);
    for (x, column) in (0u32..).zip(columns) {
        for (y, picture) in (0u32..).zip(column) {
            imageops::replace(&mut whole, *picture, (x * width).into(), (y * height).into());
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn no_picture_is_lost() {
        let picture =
            |value: u8, width, height| RgbImage::from_pixel(width, height, Rgb([value; 3]));
        let (a, b, c) = (picture(1, 2, 2), picture(2, 2, 2), picture(3, 1, 3));
        let whole = grid(&[vec![&a, &b], vec![&c]]);
        assert_eq!(whole.dimensions(), (4, 6));
        let at = |x, y| whole.get_pixel(x, y).0[0];
        assert_eq!(
            [at(0, 0), at(0, 3), at(2, 0), at(2, 2), at(3, 0), at(2, 3)],
            [1, 2, 3, 3, 0, 0]
        );
        assert_eq!(grid(&[]).dimensions(), (0, 0));
    }
}

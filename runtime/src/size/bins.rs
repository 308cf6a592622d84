//! The aspect-ratio bins: the sizes a model was trained at.

use super::Size;

/// How many pixels a latent pixel stands for.
pub const LATENT_SCALE: u32 = 8;
/// Latent sides are even because the transformer takes patches of 2 × 2.
pub(super) const SIDE_MULTIPLE: u32 = 2 * LATENT_SCALE;

/// A row of the published tables: the ratio that names it, height and width in sixteenths of
/// the model's own side, and whether the short list has it too.
///
/// The tables for 256, 512, 1024 and 2048 pixels are this one, scaled. The ratio is a rounded label,
/// and the label decides.
type Bin = (f64, u32, u32, bool);

/// Ascending, so that the first of two equally near ratios is the smaller one.
const BINS: [Bin; 40] = [
    (0.25, 8, 32, true),
    (0.26, 8, 31, false),
    (0.27, 8, 30, false),
    (0.28, 8, 29, true),
    (0.32, 9, 28, true),
    (0.33, 9, 27, true),
    (0.35, 9, 26, true),
    (0.4, 10, 25, true),
    (0.42, 10, 24, true),
    (0.48, 11, 23, true),
    (0.5, 11, 22, true),
    (0.52, 11, 21, true),
    (0.57, 12, 21, true),
    (0.6, 12, 20, true),
    (0.68, 13, 19, true),
    (0.72, 13, 18, true),
    (0.78, 14, 18, true),
    (0.82, 14, 17, true),
    (0.88, 15, 17, true),
    (0.94, 15, 16, true),
    (1.0, 16, 16, true),
    (1.07, 16, 15, true),
    (1.13, 17, 15, true),
    (1.21, 17, 14, true),
    (1.29, 18, 14, true),
    (1.38, 18, 13, true),
    (1.46, 19, 13, true),
    (1.67, 20, 12, true),
    (1.75, 21, 12, true),
    (2.0, 22, 11, true),
    (2.09, 23, 11, true),
    (2.4, 24, 10, true),
    (2.5, 25, 10, true),
    (2.89, 26, 9, false),
    (3.0, 27, 9, true),
    (3.11, 28, 9, false),
    (3.62, 29, 8, false),
    (3.75, 30, 8, false),
    (3.88, 31, 8, false),
    (4.0, 32, 8, true),
];

/// The table for 2880 pixels, of about 8.3 million pixels each, in units of [`UNIT_2880`]. It is no
/// scaled copy of the others.
const BINS_2880: [(f64, u32, u32); 40] = [
    (0.25, 22, 90),
    (0.26, 22, 87),
    (0.27, 22, 84),
    (0.28, 22, 81),
    (0.32, 25, 78),
    (0.33, 25, 75),
    (0.34, 25, 73),
    (0.4, 28, 70),
    (0.42, 28, 67),
    (0.47, 30, 64),
    (0.49, 30, 61),
    (0.51, 30, 59),
    (0.55, 33, 60),
    (0.59, 33, 56),
    (0.68, 36, 53),
    (0.72, 36, 50),
    (0.78, 39, 50),
    (0.83, 39, 47),
    (0.89, 42, 47),
    (0.93, 42, 45),
    (1.0, 45, 45),
    (1.07, 45, 42),
    (1.12, 47, 42),
    (1.21, 47, 39),
    (1.28, 50, 39),
    (1.39, 50, 36),
    (1.47, 53, 36),
    (1.7, 56, 33),
    (1.82, 60, 33),
    (2.03, 61, 30),
    (2.13, 64, 30),
    (2.39, 67, 28),
    (2.5, 70, 28),
    (2.92, 73, 25),
    (3.0, 75, 25),
    (3.12, 78, 25),
    (3.68, 81, 22),
    (3.82, 84, 22),
    (3.95, 87, 22),
    (4.0, 90, 22),
];

/// Pixels of a unit of [`BINS_2880`].
const UNIT_2880: u32 = 64;

/// Whether a model of this latent side has a row of [`BINS`].
///
/// 256 (2048 px) has all 40, as in diffusers and mindone. 512 (4096 px) has the 33 of the official
/// table that is this one times four; the official code calls it the test table of 2880, and it has
/// 0.26 where the other short lists have 0.28. All others have the 33 of diffusers and mindone.
fn is_listed(&(ratio, .., short): &Bin, sample_size: u32) -> bool {
    match sample_size {
        256 => true,
        512 => ratio == 0.26 || (short && ratio != 0.28),
        _ => short,
    }
}

/// The size to generate at for a picture of `request`, by a model of this latent side.
///
/// Published tables are there for 32, 64, 128, 256, 360 (2880 px) and 512. Models of other sizes get
/// the 256-pixel table scaled to their side, each side rounded to the nearest multiple of 16.
pub(super) fn nearest(request: Size, sample_size: u32) -> Size {
    nearest_entry(f64::from(request.height) / f64::from(request.width), sample_size).1
}

/// The same for a ratio, height to width, with the ratio that names the size.
pub(super) fn nearest_entry(ratio: f64, sample_size: u32) -> (f64, Size) {
    if sample_size == 360 {
        let (label, height, width) = nearest_row(BINS_2880.iter(), |row| row.0, ratio);
        return (*label, Size { height: height * UNIT_2880, width: width * UNIT_2880 });
    }
    let listed = BINS.iter().filter(|row| is_listed(row, sample_size));
    let (label, height, width, _) = nearest_row(listed, |row| row.0, ratio);
    let pixels = |sixteenths: &u32| {
        let exact = sixteenths * sample_size * LATENT_SCALE / 16;
        ((exact + SIDE_MULTIPLE / 2) / SIDE_MULTIPLE * SIDE_MULTIPLE).max(SIDE_MULTIPLE)
    };
    (*label, Size { height: pixels(height), width: pixels(width) })
}

/// Every size of a model of this latent side, the widest first.
pub(super) fn all(sample_size: u32) -> Vec<Size> {
    let labels: Vec<f64> = match sample_size {
        360 => BINS_2880.iter().map(|row| row.0).collect(),
        _ => BINS.iter().map(|row| row.0).collect(),
    };
    let mut sizes: Vec<Size> =
        labels.into_iter().map(|ratio| nearest_entry(ratio, sample_size).1).collect();
    // A label that the model's table lacks gives the size of a neighbour.
    sizes.dedup();
    sizes
}

/// The row whose label is nearest to `ratio`, the first of two that are as near.
fn nearest_row<'a, T>(
    rows: impl Iterator<Item = &'a T>,
    label: impl Fn(&T) -> f64,
    ratio: f64,
) -> &'a T {
    rows.min_by(|a, b| (label(a) - ratio).abs().total_cmp(&(label(b) - ratio).abs()))
        .expect("the table is not empty")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sizes_are_those_of_the_table() {
        for (side, count) in [(32, 33), (128, 33), (256, 40), (360, 40), (512, 33)] {
            let sizes = all(side);
            assert_eq!(sizes.len(), count, "{side}: {sizes:?}");
            for size in sizes {
                assert!(size.width % 16 == 0 && size.height % 16 == 0, "{side}: {size:?}");
            }
        }
        assert_eq!(all(128)[0], Size { width: 2048, height: 512 });
    }

    fn bin(width: u32, height: u32, sample_size: u32) -> (u32, u32) {
        let size = nearest(Size { width, height }, sample_size);
        (size.height, size.width)
    }

    #[test]
    fn the_published_examples() {
        assert_eq!(bin(1024, 512, 128), (704, 1408));
        assert_eq!(bin(1024, 1024, 128), (1024, 1024));
        // 0.75 is as near to 0.72 as to 0.78.
        assert_eq!(bin(640, 480, 64), (416, 576));
        assert_eq!(bin(300, 100, 32), (144, 432));
        assert_eq!(bin(4096, 1024, 256), (1024, 4096));
    }

    #[test]
    fn models_above_2048_pixels_have_tables_of_their_own() {
        assert_eq!(bin(4096, 4096, 512), (4096, 4096));
        assert_eq!(bin(3840, 2160, 512), (3072, 5376));
        assert_eq!(bin(1000, 265, 512), (2048, 7936));
        assert_eq!(bin(3840, 2160, 360), (2112, 3840));
        assert_eq!(bin(2880, 2880, 360), (2880, 2880));
    }

    #[test]
    fn only_2048_pixels_have_the_long_list() {
        // The ratio 0.27 belongs to the long list alone.
        assert_eq!(bin(1000, 270, 256), (1024, 3840));
        assert_eq!(bin(1000, 270, 128), (512, 1856));
    }

    #[test]
    fn a_tie_goes_to_the_smaller_ratio() {
        // 2.75 is exactly between 2.5 and 3.0.
        assert_eq!(bin(400, 1100, 32), (400, 160));
    }

    #[test]
    fn other_models_get_multiples_of_sixteen() {
        assert_eq!(bin(128, 128, 16), (128, 128));
        assert_eq!(bin(160, 96, 16), (96, 160));
        assert_eq!(bin(96, 160, 16), (160, 96));
        for sample_size in [1, 2, 8, 12, 16, 17, 48, 360, 512, 1024] {
            for (ratio, ..) in BINS {
                let (height, width) = bin(10_000, (ratio * 10_000.0) as u32, sample_size);
                assert!(height % 16 == 0 && width % 16 == 0 && height > 0 && width > 0);
            }
        }
    }

    #[test]
    fn the_lists_have_their_published_lengths() {
        assert_eq!(BINS.iter().filter(|bin| bin.3).count(), 33);
        assert!(BINS.is_sorted_by(|a, b| a.0 < b.0));
    }
}

//! From the size asked for to the size generated, and back.

mod bins;
mod resize;

pub use bins::LATENT_SCALE;
pub use resize::cover_and_crop;

use bins::SIDE_MULTIPLE;

/// The longest side that can be asked for, in pixels.
pub const MAX_SIDE: u32 = 16_384;

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Size {
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
}

/// The sizes of one picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizePlan {
    /// What the model makes; both sides are multiples of 16.
    pub generated: Size,
    /// What the user gets.
    pub requested: Size,
}

/// A size that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SizeError {
    /// A side is zero or too long.
    #[error("{side}: found {found}, expected 1 to {MAX_SIDE} pixels")]
    OutOfRange {
        /// `image_width` or `image_height`.
        side: &'static str,
        /// The pixels asked for.
        found: u32,
    },
    /// Without binning the model has to make exactly this size, and cannot.
    #[error(
        "{side}: found {found}, expected a multiple of {SIDE_MULTIPLE} because \
         use_resolution_binning is off; switch it on or take {below} or {above}",
        below = (found / SIDE_MULTIPLE * SIDE_MULTIPLE).max(SIDE_MULTIPLE),
        above = found.div_ceil(SIDE_MULTIPLE) * SIDE_MULTIPLE
    )]
    NoMultiple {
        /// `image_width` or `image_height`.
        side: &'static str,
        /// The pixels asked for.
        found: u32,
    },
}

impl SizePlan {
    /// Plans a picture of `width` × `height` pixels by a model whose latent side is `sample_size`.
    /// A side that is not given is the model's own.
    ///
    /// With `binning` the model makes the trained size of the nearest aspect ratio; without it,
    /// exactly what was asked for.
    ///
    /// # Errors
    /// When a side is zero or above [`MAX_SIDE`], or no multiple of 16 while `binning` is off.
    pub fn new(
        width: Option<u32>,
        height: Option<u32>,
        sample_size: u32,
        binning: bool,
    ) -> Result<Self, SizeError> {
        let own = sample_size.saturating_mul(LATENT_SCALE);
        let requested = Size { width: width.unwrap_or(own), height: height.unwrap_or(own) };
        check_sides(Some(requested.width), Some(requested.height), binning)?;
        let generated = if binning { bins::nearest(requested, sample_size) } else { requested };
        Ok(Self { generated, requested })
    }

    /// Plans a picture at the trained size whose ratio is nearest to `ratio`, height and width. Its sides
    /// are those of that size unless given.
    ///
    /// # Errors
    /// When a side is zero or above [`MAX_SIDE`].
    pub fn with_ratio(
        (height_part, width_part): (u32, u32),
        width: Option<u32>,
        height: Option<u32>,
        sample_size: u32,
    ) -> Result<Self, SizeError> {
        check_sides(width, height, true)?;
        let ratio = f64::from(height_part) / f64::from(width_part);
        let (_, generated) = bins::nearest_entry(ratio, sample_size);
        let requested = Size {
            width: width.unwrap_or(generated.width),
            height: height.unwrap_or(generated.height),
        };
        Ok(Self { generated, requested })
    }

    /// The ratio of height to width by which the published tables name the trained size that is nearest to
    /// `size`, such as 0.57 for 16 : 9. The size itself is [`SizePlan::with_ratio`]'s.
    pub fn ratio_label(size: Size, sample_size: u32) -> f64 {
        bins::nearest_entry(f64::from(size.height) / f64::from(size.width), sample_size).0
    }

    /// Height and width of the latents.
    pub fn latent(&self) -> (usize, usize) {
        let side = |pixels: u32| (pixels / LATENT_SCALE) as usize;
        (side(self.generated.height), side(self.generated.width))
    }
}

/// The sizes that a model whose latent side is `sample_size` was trained at, the widest first.
pub fn trained_sizes(sample_size: u32) -> Vec<Size> {
    bins::all(sample_size)
}

/// Checks what can be checked of a size without the model.
pub(crate) fn check_sides(
    width: Option<u32>,
    height: Option<u32>,
    binning: bool,
) -> Result<(), SizeError> {
    for (side, found) in [("image_width", width), ("image_height", height)] {
        let Some(found) = found else { continue };
        if !(1..=MAX_SIDE).contains(&found) {
            return Err(SizeError::OutOfRange { side, found });
        }
        if !binning && found % SIDE_MULTIPLE != 0 {
            return Err(SizeError::NoMultiple { side, found });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_models_own_size_needs_no_resizing() {
        for sample_size in [16, 32, 64, 128, 256] {
            let plan = SizePlan::new(None, None, sample_size, true).expect("a size");
            assert_eq!(plan.generated, plan.requested);
            assert_eq!(plan.latent(), (sample_size as usize, sample_size as usize));
        }
    }

    #[test]
    fn sides_are_checked() {
        let plan = |width, height, binning| SizePlan::new(Some(width), Some(height), 64, binning);
        for side in [0, MAX_SIDE + 1, u32::MAX] {
            assert!(matches!(plan(side, 512, true), Err(SizeError::OutOfRange { .. })));
            assert!(matches!(plan(512, side, false), Err(SizeError::OutOfRange { .. })));
        }
        let message = plan(512, 500, false).expect_err("no multiple").to_string();
        assert!(message.contains("image_height") && message.contains("496 or 512"), "{message}");
        assert_eq!(plan(1, MAX_SIDE, true).expect("fine").generated.width, 256);
        assert_eq!(plan(48, 160, false).expect("fine").generated, Size { width: 48, height: 160 });
    }
}

//! What tiles take of a picture, and what they make of it.

use std::ops::Range;

use crate::engine::Part;

/// What a tile takes along one side, and what it makes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Pixels of the inputs.
    pub taken: Range<usize>,
    /// Pixels of the results that are kept.
    pub result: Range<usize>,
    /// Where these begin in what the tile makes.
    pub skipped: usize,
}

/// Cuts a side of `side` input pixels for results of at most `tile` pixels. All windows take as many
/// pixels as the widest, because engines prepare themselves for each size.
pub(super) fn windows(part: &Part<'_>, side: usize, tile: usize) -> Vec<Window> {
    let (up, down) = part.scale();
    let made = side * up / down;
    let count = made.div_ceil(tile);
    let results: Vec<_> = (0..count).map(|k| made * k / count..made * (k + 1) / count).collect();
    let taken: Vec<_> = results
        .iter()
        .map(|result| {
            let needed = part.needed(result.start as isize..result.end as isize);
            let start = needed.start.max(0) as usize / down * down;
            start..(needed.end as usize).next_multiple_of(down).min(side)
        })
        .collect();
    let widest = taken.iter().map(Range::len).max().unwrap_or(side);
    let windows = results.into_iter().zip(taken).map(|(result, taken)| {
        let start = taken.start.min(side - widest);
        Window { taken: start..start + widest, skipped: result.start - start * up / down, result }
    });
    windows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Enlarging, decoder};

    #[test]
    fn windows_are_of_one_size_and_make_every_pixel_once() {
        for enlarging in Enlarging::ALL {
            let chain = decoder(enlarging);
            let last = chain.knots.len() - 1;
            for (from, to) in [(last - 1, last), (last - 3, last - 1), (last - 9, last)] {
                let part = chain.part(from, to);
                for (side, tile) in [(52, 24), (208, 64), (300, 301)] {
                    assert_complete(&part, side, tile);
                }
            }
        }
    }

    fn assert_complete(part: &Part<'_>, side: usize, tile: usize) {
        let (up, down) = part.scale();
        let windows = windows(part, side, tile);
        let mut made = 0;
        for window in &windows {
            assert_eq!(window.taken.len(), windows[0].taken.len());
            assert_eq!(window.result.start, made);
            assert_eq!(window.result.start, window.taken.start * up / down + window.skipped);
            assert!(window.result.len() <= tile);
            made = window.result.end;
        }
        assert_eq!(made, side * up / down);
    }
}

//! Which parts of a chain tiles go through, and what is kept between them.

use crate::engine::{Chain, Knot};

/// The most memory a whole picture takes, against the largest value between two parts. Measured with
/// the SDXL auto-encoder (docs/big-pictures.md), beside twice the weights: 3.6 to 4.0 on tract; 4.0 to 6.9 on
/// ONNX Runtime, by the side of the picture, because its allocator keeps pieces that fit nothing later.
pub(super) const PEAK: u64 = 7;

/// A stretch of the chain, by the places of its ends among the knots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub from: usize,
    pub to: usize,
    /// Whether it goes through in tiles.
    pub tiled: bool,
}

/// About how many bytes it takes to run all of `chain` on a picture with these sides at its input,
/// its weights left aside.
pub(super) fn whole_bytes(chain: &Chain, sides: [usize; 2]) -> u64 {
    PEAK * chain.knots.iter().map(|knot| bytes(knot, sides)).max().unwrap_or(0)
}

/// What of `free` bytes the values kept may take: a part is for the tiles, and a part stays for what
/// else happens on the machine.
pub(super) fn budget(chain: &Chain, sides: [usize; 2], tile: usize, free: u64) -> u64 {
    // Sides of the input that make one tile at the finest level.
    let finer = chain.knots.iter().map(|knot| knot.scale.0 / knot.scale.1).max().unwrap_or(1);
    let tile = sides.map(|side| side.min(tile / finer.max(1)));
    (free / 5 * 4).saturating_sub(whole_bytes(chain, tile))
}

/// Bytes of a knot's value.
fn bytes(knot: &Knot, sides: [usize; 2]) -> u64 {
    4 * knot.channels as u64 * sides.map(|side| knot.side(side) as u64).iter().product::<u64>()
}

/// The places of values that are always kept: those smaller than the ones before and after, as they
/// are before a picture is enlarged. To keep fewer saves little and costs much.
fn waists(sizes: &[u64]) -> Vec<usize> {
    let is_waist = |k: &usize| {
        // Of several of the same size, the last one counts.
        let after = sizes.get(k + 1).is_none_or(|size| *size > sizes[*k]);
        let before = sizes[..*k].iter().rev().find(|size| **size != sizes[*k]);
        after && before.is_none_or(|size| *size > sizes[*k])
    };
    (0..sizes.len()).filter(is_waist).collect()
}

/// Cuts the chain so that input and output of every tiled stretch together take at most `budget`
/// bytes, as far as that is sensible. Values that are not kept are computed several times, so as
/// many as fit are.
///
/// What lets every pixel depend on all others runs whole, and with it what is as coarse. `None` if
/// that is everything.
pub(super) fn plan(chain: &Chain, sides: [usize; 2], budget: u64) -> Option<Vec<Stretch>> {
    let last = chain.knots.len() - 1;
    let finer = |a: &Knot, b: &Knot| a.scale.0 * b.scale.1 > b.scale.0 * a.scale.1;
    let whole: Vec<usize> =
        (0..last).filter(|&link| !chain.part(link, link + 1).is_local()).collect();
    let zone = match (whole.first(), whole.last()) {
        (Some(&first), Some(&end)) => {
            let (mut from, mut to) = (first, end + 1);
            let coarse = match finer(&chain.knots[from], &chain.knots[to]) {
                true => from,
                false => to,
            };
            let coarse = chain.knots[coarse].clone();
            while from > 0 && !finer(&chain.knots[from - 1], &coarse) {
                from -= 1;
            }
            while to < last && !finer(&chain.knots[to + 1], &coarse) {
                to += 1;
            }
            if !chain.knots.iter().any(|knot| finer(knot, &coarse)) {
                return None;
            }
            Some((from, to))
        }
        _ => None,
    };
    let inside = |knot: usize| zone.is_some_and(|(from, to)| from < knot && knot < to);
    let mut kept: Vec<usize> = (0..=last).filter(|&knot| !inside(knot)).collect();
    let is_end = |knot: usize| {
        knot == 0 || knot == last || zone.is_some_and(|(from, to)| knot == from || knot == to)
    };
    let size = |knot: usize| bytes(&chain.knots[knot], sides);
    let waists = waists(&kept.iter().map(|&knot| size(knot)).collect::<Vec<_>>());
    let always: Vec<usize> = waists.into_iter().map(|place| kept[place]).collect();
    loop {
        // The largest value that belongs to a stretch above the budget, if it can be left out.
        let crowded = kept.windows(2).filter(|pair| {
            Some((pair[0], pair[1])) != zone && size(pair[0]) + size(pair[1]) > budget
        });
        let spare = |knot: &usize| !is_end(*knot) && !always.contains(knot);
        let largest = crowded.flatten().copied().filter(spare).max_by_key(|k| size(*k));
        let Some(largest) = largest else { break };
        kept.retain(|&knot| knot != largest);
    }
    let stretch = |pair: &[usize]| {
        let (from, to) = (pair[0], pair[1]);
        Stretch { from, to, tiled: zone != Some((from, to)) }
    };
    Some(kept.windows(2).map(stretch).collect())
}

#[cfg(test)]
mod tests {
    use super::waists;

    #[test]
    fn values_are_kept_at_least_where_they_are_smallest() {
        // A decoder: each level is four times as large once it is enlarged, then narrower.
        assert_eq!(waists(&[1, 8, 8, 8, 32, 16, 16, 16, 64, 16, 3]), [0, 7, 10]);
        // An encoder.
        assert_eq!(waists(&[3, 32, 32, 8, 16, 16, 4, 4]), [0, 3, 7]);
        assert_eq!(waists(&[5]), [0]);
    }
}

//! Which parts of a chain tiles go through, and what is kept between them.

use crate::engine::{Chain, Knot};

/// The most memory a whole picture takes, against the largest value between two parts. Measured with
/// the SDXL auto-encoder on both engines (docs/big-pictures.md): 3.6 to 4.0, beside twice the weights.
pub(super) const PEAK: u64 = 4;

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

/// Bytes of a knot's value.
fn bytes(knot: &Knot, sides: [usize; 2]) -> u64 {
    4 * knot.channels as u64 * sides.map(|side| knot.side(side) as u64).iter().product::<u64>()
}

/// Cuts the chain so that input and output of every tiled stretch together take at most `budget`
/// bytes, as far as that is possible. Values that are not kept are computed several times, so as
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
    loop {
        // The largest value that belongs to a stretch above the budget, if it can be left out.
        let crowded = kept.windows(2).filter(|pair| {
            Some((pair[0], pair[1])) != zone && size(pair[0]) + size(pair[1]) > budget
        });
        let largest =
            crowded.flatten().copied().filter(|&knot| !is_end(knot)).max_by_key(|k| size(*k));
        let Some(largest) = largest else { break };
        kept.retain(|&knot| knot != largest);
    }
    let stretch = |pair: &[usize]| {
        let (from, to) = (pair[0], pair[1]);
        Stretch { from, to, tiled: zone != Some((from, to)) }
    };
    Some(kept.windows(2).map(stretch).collect())
}

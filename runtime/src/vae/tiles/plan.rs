//! Which parts of a chain tiles go through, and what is kept between them.

use crate::engine::{Chain, Knot, Part, Plane};

use super::{
    bands::Extent,
    windows::{Window, windows},
};

/// The most memory a whole picture takes, against the largest value between two parts. Measured with
/// the SDXL auto-encoder (docs/big-pictures.md), beside twice the weights: 3.6 to 4.0 on tract; 4.0 to 6.9 on
/// ONNX Runtime, by the side of the picture, because its allocator keeps pieces that fit nothing later.
pub(super) const PEAK: u64 = 7;

/// A stretch of the chain, by the places of its ends among the knots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stage {
    pub from: usize,
    pub to: usize,
    /// Whether it goes through in tiles.
    pub tiled: bool,
}

/// One way over all tiles.
pub(super) struct Pass<'a> {
    pub part: Part<'a>,
    pub rows: Vec<Window>,
    pub columns: Vec<Window>,
}

/// About how many bytes it takes to run all of `chain` on a picture with these sides at its input,
/// its weights left aside.
pub(super) fn whole_bytes(chain: &Chain, sides: [usize; 2]) -> u64 {
    let values = chain.knots.iter().flat_map(|knot| &knot.values);
    PEAK * values.map(|value| value.bytes(sides)).max().unwrap_or(0)
}

/// Whether tiles can go through a part of the chain.
pub(super) fn can_be_cut(chain: &Chain) -> bool {
    zone(chain).is_some()
}

/// A picture of some size on its way through a chain.
#[derive(Clone, Copy)]
pub(super) struct Planner<'a> {
    chain: &'a Chain,
    /// Sides of the chain's input.
    sides: [usize; 2],
    /// Numbers of the largest value in a tile.
    numbers: f64,
}

impl<'a> Planner<'a> {
    /// `tile_size` is the side of a tile where the picture is finest and its widest value has the most channels.
    /// Elsewhere a tile is as large as takes no more memory.
    pub fn new(chain: &'a Chain, sides: [usize; 2], tile_size: usize) -> Self {
        let finest = chain.knots.iter().map(Knot::scale).fold((0, 1), |a, b| match finer(a, b) {
            true => a,
            false => b,
        });
        let values = chain.knots.iter().flat_map(|knot| &knot.values);
        let channels = values.filter(|value| value.scale == finest).map(|value| value.channels);
        let numbers = (channels.max().unwrap_or(1) * tile_size * tile_size) as f64;
        Self { chain, sides, numbers }
    }

    /// What of `free` bytes the values kept may take: a part is for the tiles, and a part stays for what
    /// else happens on the machine.
    pub fn budget(&self, free: u64) -> u64 {
        let tile = PEAK * 4 * self.numbers as u64;
        (free / 5 * 4).saturating_sub(tile.min(whole_bytes(self.chain, self.sides)))
    }

    fn pass(&self, part: Part<'a>) -> Pass<'a> {
        // The smallest make no more of what is around a tile than of itself.
        let tile = ((self.numbers / part.widest()).sqrt() as usize).max(8);
        let input = part.inputs.first();
        let [rows, columns] = self
            .sides
            .map(|side| windows(&part, input.map_or(side, |input| input.side(side)), tile));
        Pass { part, rows, columns }
    }

    /// The ways over all tiles that a stage takes: one for each norm inside that sums up its statistics, and
    /// the last one for the results.
    pub fn passes(&self, from: usize, to: usize) -> Vec<Pass<'a>> {
        let before = self.chain.part(from, to).up_to_norms();
        let before = before.into_iter().map(|part| self.pass(part));
        before.chain([self.last_pass(from, to)]).collect()
    }

    fn last_pass(&self, from: usize, to: usize) -> Pass<'a> {
        self.pass(self.chain.part(from, to))
    }

    /// What a stage costs, in multiplications.
    fn work(&self, passes: &[Pass<'_>]) -> f64 {
        let cost = |pass: &Pass<'_>| {
            let taken = |windows: &[Window]| windows.iter().map(|w| w.taken.len()).sum::<usize>();
            let (up, down) = pass.part.inputs.first().map_or((1, 1), |input| input.scale);
            // Pixels of the chain's input.
            let scale = (up as f64 / down as f64).powi(2);
            pass.part.work() * (taken(&pass.rows) * taken(&pass.columns)) as f64 / scale
        };
        passes.iter().map(cost).sum()
    }

    /// The most bytes that the values at the ends of a stage take at any time of it. Rows of what is not needed
    /// after it go as soon as the last tile has read them.
    fn peak(&self, from: usize, to: usize, last: &Pass<'_>) -> u64 {
        let knots = &self.chain.knots;
        let height = |value: &Plane| value.side(self.sides[0]);
        let row = |value: &Plane| 4 * (value.channels * value.side(self.sides[1])) as u64;
        let (mut held, passed): (Vec<&Plane>, Vec<&Plane>) =
            knots[from].values.iter().partition(|value| !knots[to].values.contains(value));
        let aside: u64 = passed.iter().map(|value| value.bytes(self.sides)).sum();
        let mut extents: Vec<_> = held.iter().map(|value| Extent::full(height(value))).collect();
        let going = held.len();
        held.extend(&last.part.outputs);
        extents.extend(last.part.outputs.iter().map(|value| Extent::new(height(value))));
        let mut most = 0;
        for (place, window) in last.rows.iter().enumerate() {
            for extent in &mut extents[going..] {
                extent.take(window.result.end);
            }
            let now: u64 = held.iter().zip(&extents).map(|(v, e)| row(v) * e.rows() as u64).sum();
            most = most.max(aside + now);
            if let Some(next) = last.rows.get(place + 1) {
                for extent in &mut extents[..going] {
                    extent.release(next.taken.start);
                }
            }
        }
        most
    }

    /// Cuts the chain so that the values kept never take more than `budget` bytes, as far as that is sensible, and
    /// so that as little as possible is computed under this condition: what is not kept is computed several
    /// times.
    ///
    /// What lets every pixel depend on all others runs whole, and with it what is as coarse. `None` if
    /// that is everything.
    pub fn stages(&self, budget: u64) -> Option<Vec<Stage>> {
        let zone = zone(self.chain)?;
        let last = self.chain.knots.len() - 1;
        let (before, after) = zone.unwrap_or((last, last));
        let ends = [self.ends(0, before), self.ends(after, last)];
        // Nothing takes less memory than to keep nothing between two ends. What that takes somewhere, and a
        // little more, all may take: less would save little and cost much.
        let direct = ends.iter().flat_map(|ends| ends.windows(2));
        let least =
            direct.map(|pair| self.peak(pair[0], pair[1], &self.last_pass(pair[0], pair[1])));
        let limit = budget.max(least.max().unwrap_or(0) / 4 * 5);
        let [before, after] = ends.map(|ends| {
            let pairs = ends.windows(2);
            pairs.flat_map(|pair| self.cheapest(pair[0], pair[1], limit)).collect::<Vec<_>>()
        });
        let whole = zone.map(|(from, to)| Stage { from, to, tiled: false });
        Some(before.into_iter().chain(whole).chain(after).collect())
    }

    /// The knots from one to another that are always kept, these two among them.
    fn ends(&self, from: usize, to: usize) -> Vec<usize> {
        let size = |knot: usize| match &self.chain.knots[knot].values[..] {
            [value] => Some((knot, value.bytes(self.sides))),
            _ => None,
        };
        let alone: Vec<(usize, u64)> = (from..=to).filter_map(size).collect();
        let sizes: Vec<u64> = alone.iter().map(|(_, size)| *size).collect();
        let mut ends: Vec<usize> = waists(&sizes).into_iter().map(|place| alone[place].0).collect();
        ends.extend([from, to]);
        ends.sort_unstable();
        ends.dedup();
        ends
    }

    /// The cheapest stages between two knots whose values never take more than `limit` bytes.
    fn cheapest(&self, from: usize, to: usize, limit: u64) -> Vec<Stage> {
        let knots = to - from;
        // The least work to come to a knot, and from where.
        let mut best: Vec<Option<(f64, usize)>> = vec![None; knots + 1];
        best[0] = Some((0.0, 0));
        for start in 0..knots {
            let (reached, ahead) = best.split_at_mut(start + 1);
            let Some((before, _)) = reached[start] else { continue };
            for (end, best) in (start + 1..).zip(ahead) {
                let passes = self.passes(from + start, from + end);
                let Some(last) = passes.last() else { continue };
                if self.peak(from + start, from + end, last) > limit {
                    continue;
                }
                let work = before + self.work(&passes);
                if best.is_none_or(|(least, _)| work < least) {
                    *best = Some((work, start));
                }
            }
        }
        let mut stages = Vec::new();
        let mut end = knots;
        while let Some((_, start)) = best[end].filter(|_| end > 0) {
            stages.push(Stage { from: from + start, to: from + end, tiled: true });
            end = start;
        }
        stages.reverse();
        stages
    }
}

fn finer(a: (usize, usize), b: (usize, usize)) -> bool {
    a.0 * b.1 > b.0 * a.1
}

/// The knots around what runs whole, if anything has to. `None` if that is everything.
fn zone(chain: &Chain) -> Option<Option<(usize, usize)>> {
    let last = chain.knots.len() - 1;
    let whole: Vec<usize> =
        (0..last).filter(|&link| !chain.part(link, link + 1).is_local()).collect();
    let (Some(&first), Some(&end)) = (whole.first(), whole.last()) else { return Some(None) };
    let scale = |knot: usize| chain.knots[knot].scale();
    let (mut from, mut to) = (first, end + 1);
    let coarse = if finer(scale(from), scale(to)) { scale(from) } else { scale(to) };
    while from > 0 && !finer(scale(from - 1), coarse) {
        from -= 1;
    }
    while to < last && !finer(scale(to + 1), coarse) {
        to += 1;
    }
    chain.knots.iter().any(|knot| finer(knot.scale(), coarse)).then_some(Some((from, to)))
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::engine::{Enlarging, decoder};

    /// How often each convolution is computed, and the most bytes of values between stages.
    fn cost(planner: &Planner<'_>, budget: u64) -> (HashMap<String, usize>, u64) {
        let mut runs = HashMap::new();
        let mut most = 0;
        for stage in planner.stages(budget).expect("a plan").iter().filter(|stage| stage.tiled) {
            let passes = planner.passes(stage.from, stage.to);
            let last = passes.last().expect("a pass");
            most = most.max(planner.peak(stage.from, stage.to, last));
            for name in passes.iter().flat_map(|pass| pass.part.convolutions()) {
                *runs.entry(name.to_owned()).or_default() += 1;
            }
        }
        (runs, most)
    }

    fn all(sides: &[usize]) -> impl Iterator<Item = (Enlarging, usize)> {
        Enlarging::ALL.into_iter().flat_map(|enlarging| sides.iter().map(move |&s| (enlarging, s)))
    }

    fn repeated(runs: &HashMap<String, usize>) -> Vec<usize> {
        let mut repeated: Vec<usize> = runs.values().copied().filter(|runs| *runs > 1).collect();
        repeated.sort_unstable();
        repeated
    }

    #[test]
    fn nothing_is_computed_twice_where_memory_allows() {
        for (enlarging, side) in all(&[64, 128, 256]) {
            let chain = decoder(enlarging);
            let planner = Planner::new(&chain, [side; 2], 256);
            let (runs, most) = cost(&planner, u64::MAX);
            // Three levels of three units after the first, which runs whole; their enlargements, two shortcuts and
            // the last one.
            let convolutions = 3 * 6 + 3 * enlarging.convolutions() + 2 + 1;
            assert_eq!((runs.len(), repeated(&runs).len()), (convolutions, 0), "{enlarging:?}");
            // The shortcut and the inner value of the last level's first unit, and what comes before them.
            let value = 4 * 128 * (8 * side as u64).pow(2);
            assert!((2 * value..4 * value).contains(&most), "{enlarging:?}, {side}: {most}");
        }
    }

    #[test]
    fn where_the_widest_value_does_not_fit_one_convolution_is_computed_twice() {
        for enlarging in Enlarging::ALL {
            let chain = decoder(enlarging);
            let planner = Planner::new(&chain, [128; 2], 128);
            let (runs, most) = cost(&planner, 1_200_000_000);
            assert_eq!(repeated(&runs), [2], "{enlarging:?}");
            assert!(most <= 1_200_000_000, "{enlarging:?}: {most}");
        }
    }

    #[test]
    fn the_budget_is_kept_and_less_memory_costs_more() {
        for (enlarging, side) in all(&[64, 128, 256]) {
            let chain = decoder(enlarging);
            let planner = Planner::new(&chain, [side; 2], 128);
            let numbers = 128 * (8 * side as u64).pow(2);
            let mut before = usize::MAX;
            // In units of the last level's values with 128 channels; the first is about what comes before them.
            for tenths in [8, 12, 16, 22, 28, 40] {
                let case = format!("{enlarging:?}, {side}, {tenths}");
                let budget = 4 * numbers * tenths / 10;
                let (runs, most) = cost(&planner, budget);
                let runs: usize = runs.values().sum();
                assert!(most <= budget, "{case}: {most} of {budget}");
                assert!(runs <= before, "{case}: {runs} after {before}");
                before = runs;
            }
            let (runs, most) = cost(&planner, 0);
            assert!(most <= 4 * numbers * 8 / 10, "{enlarging:?}, {side}: {most}");
            assert!(runs.values().all(|runs| *runs < 10), "{enlarging:?}: {runs:?}");
        }
    }

    #[test]
    fn the_result_of_a_narrowing_shortcut_is_kept_instead_of_its_input() {
        for enlarging in Enlarging::ALL {
            let chain = decoder(enlarging);
            let inner: Vec<_> = chain.knots.iter().filter(|knot| knot.values.len() == 2).collect();
            assert!(inner.len() >= 9, "{enlarging:?}: {inner:?}");
            for knot in inner {
                assert_eq!(knot.values[0].channels, knot.values[1].channels, "{knot:?}");
            }
        }
    }

    #[test]
    fn tiles_take_no_more_memory_than_the_finest() {
        for enlarging in Enlarging::ALL {
            let chain = decoder(enlarging);
            let planner = Planner::new(&chain, [128; 2], 128);
            let stages = planner.stages(u64::MAX).expect("a plan");
            for stage in stages.iter().filter(|stage| stage.tiled) {
                for pass in planner.passes(stage.from, stage.to) {
                    let most = |windows: &[Window]| windows.iter().map(|w| w.result.len()).max();
                    let (rows, columns) = (most(&pass.rows), most(&pass.columns));
                    let pixels = rows.zip(columns).map_or(0, |(rows, columns)| rows * columns);
                    assert!(pass.part.widest() * pixels as f64 <= planner.numbers, "{stage:?}");
                }
            }
        }
    }

    #[test]
    fn values_are_kept_at_least_where_they_are_smallest() {
        // A decoder: each level is four times as large once it is enlarged, then narrower.
        assert_eq!(waists(&[1, 8, 8, 8, 32, 16, 16, 16, 64, 16, 3]), [0, 7, 10]);
        // An encoder.
        assert_eq!(waists(&[3, 32, 32, 8, 16, 16, 4, 4]), [0, 3, 7]);
        assert_eq!(waists(&[5]), [0]);
    }
}

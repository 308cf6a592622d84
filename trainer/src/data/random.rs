//! Repeatable choices.
//!
//! Every choice of a run is drawn from a stream of its own, named by the seed and by what is chosen
//! (epoch, bucket, picture). Nothing has to be saved to go on after an interruption, and no choice
//! depends on how many others were made before it or on which worker made them.

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) struct Stream(u64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Stream {
    /// The stream of `seed` with this name.
    pub(crate) fn new(seed: u64, name: &[u64]) -> Self {
        let mut state = mixed(seed.wrapping_add(STEP));
        for &part in name {
            state = mixed(state ^ mixed(part.wrapping_add(STEP)));
        }
        Self(state)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mixed(self.0)
    }

    /// Uniform in [0, 1), a multiple of 2⁻⁵³.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform below `count`, which is not 0.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        let count = count as u64;
        // Values past the last whole multiple of `count` would make small results likelier.
        let limit = u64::MAX - u64::MAX % count;
        loop {
            let value = self.next();
            if value < limit {
                return (value % count) as usize;
            }
        }
    }

    /// Fisher and Yates' shuffle.
    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last + 1));
        }
    }
}

fn mixed(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_are_the_published_ones() {
        // The reference implementation's first values for the seed 1234567.
        let mut stream = Stream(1_234_567);
        let first =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([(); 3].map(|()| stream.next()), first);
    }

    #[test]
    fn streams_are_told_apart_by_every_part_of_their_name() {
        let first = |seed, name: &[u64]| Stream::new(seed, name).next();
        let all = [first(1, &[2, 3]), first(1, &[3, 2]), first(2, &[2, 3]), first(1, &[2])];
        for (k, value) in all.iter().enumerate() {
            assert!(!all[..k].contains(value));
        }
        assert_eq!(first(1, &[2, 3]), all[0]);
    }

    #[test]
    fn a_shuffle_keeps_everything_and_favours_no_place() {
        let mut seen = [[0u32; 4]; 4];
        for seed in 0..4000 {
            let mut list = [0, 1, 2, 3];
            Stream::new(seed, &[]).shuffle(&mut list);
            list.iter().enumerate().for_each(|(place, &value)| seen[value][place] += 1);
        }
        // 1000 expected in each cell with a deviation of 27.
        assert!(seen.iter().flatten().all(|&count| (860..1140).contains(&count)), "{seen:?}");
    }

    #[test]
    fn units_lie_in_the_unit_interval() {
        let mut stream = Stream::new(3, &[]);
        let mean = (0..10_000).map(|_| stream.unit()).inspect(|u| assert!((0.0..1.0).contains(u)));
        assert!((mean.sum::<f64>() / 1e4 - 0.5).abs() < 0.02);
    }
}

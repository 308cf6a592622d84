//! The 32-bit Mersenne Twister.

const SIZE: usize = 624;
const MIDDLE: usize = 397;

/// MT19937 (Matsumoto and Nishimura, 1998) with its standard 32-bit initialisation.
#[derive(Clone)]
pub(super) struct Mt19937 {
    state: [u32; SIZE],
    next: usize,
}

impl Mt19937 {
    pub(super) fn new(seed: u32) -> Self {
        let mut state = [0; SIZE];
        state[0] = seed;
        for i in 1..SIZE {
            let previous = state[i - 1];
            state[i] =
                1_812_433_253u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: SIZE }
    }

    /// The words of the state, and which of them comes next.
    pub(super) fn state(&self) -> (&[u32], usize) {
        (&self.state, self.next)
    }

    /// A generator in a given state; `None` if that is none.
    pub(super) fn from_state(words: &[u32], next: usize) -> Option<Self> {
        let state = words.try_into().ok()?;
        (next <= SIZE).then_some(Self { state, next })
    }

    pub(super) fn next_u32(&mut self) -> u32 {
        if self.next == SIZE {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..SIZE {
            let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % SIZE] & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + MIDDLE) % SIZE] ^ (joined >> 1) ^ odd;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ten_thousandth_value_is_the_published_one() {
        // The C++ standard (std::mt19937) fixes this value for the seed 5489.
        let mut generator = Mt19937::new(5489);
        let last = (0..10_000).map(|_| generator.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}

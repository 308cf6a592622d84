//! Noise that equals torch's, bit for bit.
//!
//! A picture belongs to its seed: whoever made one with `torch.Generator("cpu").manual_seed(s)` gets
//! the same starting noise here. torch has two ways to fill a float32 tensor with normal values. Fewer
//! than 16 are drawn one by one in double precision; 16 and more are drawn as uniform numbers
//! first and transformed in blocks of 16. The second way is the one of x86 processors with
//! AVX2 or later, see the `cephes` module; torch on other processors differs from it in the last
//! bits (at most about 2e-6).

mod cephes;
mod mersenne;
mod slerp;

use mersenne::Mt19937;
use serde::{Deserialize, Serialize};
use slerp::slerp;

/// How many values torch transforms at once.
const BLOCK: usize = 16;

/// The generator that `torch.Generator("cpu").manual_seed(seed)` makes.
pub struct TorchGenerator {
    bits: Mt19937,
    /// Drawing one by one makes two values at a time; this is the second, waiting to be used.
    spare: Option<f64>,
    /// A second generator, and how far each draw lies on the way to its own.
    towards: Option<(Box<TorchGenerator>, f64)>,
}

/// Where a [`TorchGenerator`] stands, for a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratorState {
    /// The words of the Mersenne Twister.
    pub words: Vec<u32>,
    /// Which of them is used next.
    pub next: usize,
    /// The bits of a normal value that waits to be used.
    pub spare: Option<u64>,
    /// The state of the generator it goes towards, and the bits of how far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub towards: Option<(Box<GeneratorState>, u64)>,
}

impl TorchGenerator {
    /// Only the low 32 bits of `seed` matter, as in torch.
    pub fn new(seed: u64) -> Self {
        Self { bits: Mt19937::new(seed as u32), spare: None, towards: None }
    }

    /// Draws from two seeds and gives what lies between, by spherical interpolation of each draw as a
    /// whole. At `weight` 0 it is the generator of `from`, at 1 that of `to`, bit for bit.
    ///
    /// # Panics
    /// When `weight` is not within 0 and 1.
    pub fn between(from: u64, to: u64, weight: f64) -> Self {
        assert!((0.0..=1.0).contains(&weight), "a weight of {weight}");
        Self { towards: Some((Box::new(Self::new(to)), weight)), ..Self::new(from) }
    }

    /// `torch.randn(count, generator=self)`: the next `count` values of N(0, 1), float32.
    ///
    /// A tensor of another shape is filled in the same order, last dimension fastest. What is drawn
    /// depends on `count`: one call for 32 values is not two calls for 16.
    pub fn randn(&mut self, count: usize) -> Vec<f32> {
        let mut values = self.own(count);
        if let Some((other, weight)) = &mut self.towards {
            slerp(&mut values, &other.own(count), *weight);
        }
        values
    }

    /// What this generator draws by itself.
    fn own(&mut self, count: usize) -> Vec<f32> {
        if count < BLOCK {
            return (0..count).map(|_| self.normal() as f32).collect();
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.uniform()).collect();
        let mut blocks = values.chunks_exact_mut(BLOCK);
        blocks.by_ref().for_each(transform);
        if !blocks.into_remainder().is_empty() {
            // The last block overlaps the one before, with numbers of its own.
            let last = &mut values[count - BLOCK..];
            last.fill_with(|| self.uniform());
            transform(last);
        }
        values
    }

    /// `torch.empty(count).uniform_(low, high, generator=self)`: the next `count` values of the uniform
    /// distribution over `low..high`, float32.
    pub fn rand(&mut self, count: usize, low: f32, high: f32) -> Vec<f32> {
        // torch's compiler fuses the two operations.
        (0..count).map(|_| self.uniform().mul_add(high - low, low)).collect()
    }

    /// Where the generator stands.
    pub fn state(&self) -> GeneratorState {
        let (words, next) = self.bits.state();
        let towards = self.towards.as_ref();
        GeneratorState {
            words: words.to_vec(),
            next,
            spare: self.spare.map(f64::to_bits),
            towards: towards.map(|(other, part)| (Box::new(other.state()), part.to_bits())),
        }
    }

    /// A generator that goes on where another one stood; `None` if the state is none: it has 624 words,
    /// of which the next is at most the one behind the last.
    pub fn from_state(state: &GeneratorState) -> Option<Self> {
        let bits = Mt19937::from_state(&state.words, state.next)?;
        let towards = match &state.towards {
            Some((other, part)) => {
                Some((Box::new(Self::from_state(other)?), f64::from_bits(*part)))
            }
            None => None,
        };
        Some(Self { bits, spare: state.spare.map(f64::from_bits), towards })
    }

    /// Uniform in [0, 1), a multiple of 2⁻²⁴.
    fn uniform(&mut self) -> f32 {
        (self.bits.next_u32() & 0x00ff_ffff) as f32 / (1 << 24) as f32
    }

    /// Uniform in [0, 1), a multiple of 2⁻⁵³.
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.bits.next_u32());
        let low = u64::from(self.bits.next_u32());
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    /// One value by the Box–Muller transform in double precision.
    fn normal(&mut self) -> f64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let angle = std::f64::consts::TAU * self.uniform_f64();
        let radius = (-2.0 * (-self.uniform_f64()).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

/// Box–Muller on sixteen uniform values: the first eight give the radii, the last eight the angles.
fn transform(block: &mut [f32]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * cephes::ln(1.0 - *a)).sqrt();
        let (sin, cos) = cephes::sin_cos(std::f32::consts::TAU * *b);
        // Adding the mean turns a negative zero into a positive one, as in torch.
        *a = radius * cos + 0.0;
        *b = radius * sin + 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(seed: u64, count: usize) -> Vec<u32> {
        TorchGenerator::new(seed).randn(count).into_iter().map(f32::to_bits).collect()
    }

    /// FNV-1a of the values' bytes.
    fn hash(seed: u64, count: usize) -> u64 {
        let bytes = bits(seed, count).into_iter().flat_map(u32::to_le_bytes);
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    #[test]
    fn few_values_are_torchs() {
        // torch.randn(n, generator=torch.Generator("cpu").manual_seed(42)), torch 2.15.
        assert_eq!(bits(42, 1), [0x3eac62ae]);
        assert_eq!(bits(42, 3), [0x3eac62ae, 0x3e03e69d, 0x3e7016e7]);
        assert_eq!(bits(42, 15)[12..], [0x3f8e1dfe, 0xbfd84b55, 0xbf7d2c7a]);
    }

    #[test]
    fn sixteen_and_seventeen_values_are_torchs() {
        assert_eq!(bits(42, 16)[..4], [0x3ff6a529, 0x3fbe5f53, 0x3f669567, 0xc006c0db]);
        // With a rest, the last sixteen are drawn again.
        let rest = [0x3ff6a529, 0xbe236d85, 0xbefeaae4, 0x3ee111d8, 0xbf4214e2, 0x3f8a0650];
        assert_eq!(bits(42, 17)[..6], rest);
        assert_eq!(bits(42, 17)[16], 0xbe9e9482);
    }

    #[test]
    fn many_values_are_torchs() {
        for (seed, fifteen, hundred, many) in [
            (0, 0x52b8f3bcc098f4b9, 0x6b680134d3d69e1b, 0xff5459507f508517),
            (42, 0x4c7fdcb26081ae6b, 0x7ea02704af7a98a3, 0xa96a79e8d1b216d1),
            (1024, 0x832bc854635af68b, 0x0996c75fd568b8c7, 0xc1338796cd7a3871),
            ((1 << 32) - 1, 0xc620850571f7f360, 0x7fa61a90f48724aa, 0x50475e3f0f68c223),
            ((1 << 40) + 7, 0xae1db7ca1b59542b, 0x3c97a2b7827d7b09, 0xe7d64da8d235734b),
        ] {
            assert_eq!(hash(seed, 15), fifteen, "15 values of seed {seed}");
            assert_eq!(hash(seed, 100), hundred, "100 values of seed {seed}");
            assert_eq!(hash(seed, 16384 + 5), many, "16389 values of seed {seed}");
        }
    }

    #[test]
    fn between_two_seeds_the_ends_are_the_seeds_in_every_draw() {
        let draws = |mut generator: TorchGenerator| {
            let draws = [64, 3, 17, 256].map(|count| generator.randn(count));
            draws.concat().into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        let (a, b) = (draws(TorchGenerator::new(7)), draws(TorchGenerator::new(8)));
        assert_eq!(draws(TorchGenerator::between(7, 8, 0.0)), a);
        assert_eq!(draws(TorchGenerator::between(7, 8, 1.0)), b);
        let middle = draws(TorchGenerator::between(7, 8, 0.5));
        assert!(middle != a && middle != b);
        assert_eq!(draws(TorchGenerator::between(7, 7, 0.5)), a);
    }

    #[test]
    fn what_lies_between_two_seeds_is_normal_noise() {
        for weight in [0.1, 0.5, 0.8] {
            let values = TorchGenerator::between(1, 2, weight).randn(1 << 16);
            let variance = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 65536.0;
            assert!((variance - 1.0).abs() < 0.02, "{weight}: {variance}");
        }
    }

    #[test]
    fn a_generator_goes_on_where_another_stood() {
        for mut first in [TorchGenerator::new(7), TorchGenerator::between(7, 8, 0.3)] {
            first.randn(3);
            first.rand(700, 0.0, 1.0);
            let text = serde_json::to_string(&first.state()).expect("JSON");
            let state: GeneratorState = serde_json::from_str(&text).expect("JSON");
            let mut second = TorchGenerator::from_state(&state).expect("a state");
            let draw = |g: &mut TorchGenerator| (g.randn(5), g.randn(700), g.rand(20, -1.0, 1.0));
            assert_eq!(draw(&mut first), draw(&mut second));
            let short = GeneratorState { words: vec![0; 623], ..state.clone() };
            assert!(TorchGenerator::from_state(&short).is_none());
            assert!(TorchGenerator::from_state(&GeneratorState { next: 625, ..state }).is_none());
        }
    }

    #[test]
    fn only_the_low_half_of_a_seed_counts() {
        assert_eq!(bits(1 << 40, 64), bits(0, 64));
        assert_ne!(bits(1 << 31, 64), bits(0, 64));
    }
}

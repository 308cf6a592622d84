//! Mean and variance of the groups of a norm over a whole picture.

use ndarray::Array4;

use crate::{
    engine::{GraphPart, Norm},
    tensor::Tensor,
};

/// Sums over the pixels of each group.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    norm: Norm,
    per_group: usize,
    groups: Vec<(f64, f64)>,
    count: usize,
}

impl Sums {
    /// For a norm of a value with so many channels.
    pub fn new(norm: &Norm, channels: usize) -> Self {
        let groups = vec![(0.0, 0.0); norm.groups];
        Self { norm: norm.clone(), per_group: channels / norm.groups, groups, count: 0 }
    }

    pub fn norm(&self) -> &Norm {
        &self.norm
    }

    /// Adds some pixels of a channel.
    pub fn add(&mut self, channel: usize, values: &[f32]) {
        // As many sums at a time as keep the processor busy.
        let (chunks, rest) = values.as_chunks::<8>();
        let (mut sums, mut squares) = ([0.0f64; 8], [0.0f64; 8]);
        for chunk in chunks {
            for (lane, value) in chunk.iter().enumerate() {
                let value = f64::from(*value);
                sums[lane] += value;
                squares[lane] += value * value;
            }
        }
        for value in rest {
            let value = f64::from(*value);
            sums[0] += value;
            squares[0] += value * value;
        }
        let group = &mut self.groups[channel / self.per_group];
        group.0 += sums.iter().sum::<f64>();
        group.1 += squares.iter().sum::<f64>();
        self.count += values.len();
    }

    /// The inputs that a session takes instead of computing the statistics.
    pub fn inputs(&self) -> [(String, Tensor); 2] {
        let count = (self.count / self.groups.len().max(1)) as f64;
        let mean = |group: &(f64, f64)| group.0 / count;
        let factor = |group: &(f64, f64)| {
            let variance = (group.1 / count - mean(group).powi(2)).max(0.0);
            (variance + self.norm.epsilon).sqrt().recip()
        };
        let tensor = |of: &dyn Fn(&(f64, f64)) -> f64| {
            let values = self.groups.iter().map(|group| of(group) as f32).collect();
            let shape = (1, self.groups.len(), 1, 1);
            Tensor::from(Array4::from_shape_vec(shape, values).expect("one value a group"))
        };
        let output = &self.norm.output;
        [
            (GraphPart::mean_of(output), tensor(&mean)),
            (GraphPart::factor_of(output), tensor(&factor)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_groups_are_those_of_all_their_pixels() {
        let (input, output) = ("x".to_owned(), "y".to_owned());
        let norm = Norm { input, output, groups: 2, epsilon: 0.25 };
        let mut sums = Sums::new(&norm, 4);
        // 1 to 22 in the first group, in rows of 11; the second has mean 3 and no variance.
        let all: Vec<f32> = (1..=22).map(|value| value as f32).collect();
        sums.add(0, &all[..11]);
        sums.add(1, &all[11..]);
        sums.add(2, &[3.0; 11]);
        sums.add(3, &[3.0; 11]);
        let [(_, mean), (_, factor)] = sums.inputs();
        let values = |tensor: &Tensor| tensor.as_f32().map(|array| array.iter().copied().collect());
        assert_eq!(values(&mean), Some(vec![11.5, 3.0]));
        // The variance of n numbers in a row is (n² − 1) / 12.
        let expected = (483.0f32 / 12.0 + 0.25).sqrt().recip();
        let factor: Vec<f32> = values(&factor).expect("floats");
        assert!((factor[0] / expected - 1.0).abs() < 1e-6 && factor[1] == 2.0, "{factor:?}");
    }
}

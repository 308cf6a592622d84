//! Steps whose prediction is not computed but carried over from one before: EasyCache (Zhou et al., "Less is
//! Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching", 2025).
//!
//! Where steps m < n were the last two computed ones, x their latents, ε what the network said and |·| the mean of
//! absolute values, k = |ε_n − ε_m| / |x_n − x_m| is how much its answer changes with its input. A later step i is
//! expected to be off by the sum of k |x_j − x_{j−1}| / |ε_n| over n < j ≤ i. While that is below the threshold,
//! ε_i = x_i + (ε_n − x_n); else the step is computed and the sum begins anew.
//!
//! The prompt's half of a guided batch decides for both. The learned variance stays as it was.

use std::ops::Range;

use ndarray::{ArrayD, ArrayViewD, Axis, Slice, Zip};

/// Which steps may be left out. The first two that are taken and the last one are always computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EasyCache {
    /// By which part of itself a prediction may be expected to change before it is computed again, 0 (nothing is
    /// carried over) or more.
    pub threshold: f64,
    /// The part of the steps that is computed at the start, 0 to 1, rounded to whole steps.
    pub start: f64,
    /// The part after which all are computed again, `start` to 1, rounded to whole steps.
    pub end: f64,
}

impl Default for EasyCache {
    /// What a model drew almost the same with in three quarters of its steps; see `docs/performance.md`.
    fn default() -> Self {
        Self { threshold: 0.05, start: 0.15, end: 0.95 }
    }
}

impl EasyCache {
    /// The steps of a run of so many that may be left out.
    pub fn reusable(&self, steps: usize) -> Range<usize> {
        let at = |part: f64| (part * steps as f64).round() as usize;
        at(self.start)..at(self.end).min(steps.saturating_sub(1))
    }
}

/// What is known of the steps of one picture. Each begins with [`reuse`](Self::reuse), and where that gives nothing,
/// [`keep`](Self::keep) follows.
pub struct StepCache {
    threshold: f64,
    reusable: Range<usize>,
    /// The latents of the step before, computed or not.
    before: Option<ArrayD<f32>>,
    computed: Option<Computed>,
    /// k.
    rate: Option<f64>,
    /// What the steps since then are expected to have changed.
    change: f64,
    reused: usize,
}

/// The last step that was computed.
struct Computed {
    latents: ArrayD<f32>,
    output: ArrayD<f32>,
}

impl StepCache {
    /// For a picture drawn in so many steps.
    pub fn new(settings: EasyCache, steps: usize) -> Self {
        Self {
            threshold: settings.threshold,
            reusable: settings.reusable(steps),
            before: None,
            computed: None,
            rate: None,
            change: 0.0,
            reused: 0,
        }
    }

    /// How many steps were not computed.
    pub fn reused(&self) -> usize {
        self.reused
    }

    /// What the network may be taken to say of these latents, f32 [1, channels, height, width], in step `index`;
    /// nothing where it has to be asked. It is in the last `rows` of the rows that the network last gave.
    ///
    /// # Panics
    /// When the shape differs from that of the step before, or there are not so many rows.
    pub fn reuse(
        &mut self,
        index: usize,
        latents: &ArrayD<f32>,
        rows: usize,
    ) -> Option<ArrayD<f32>> {
        let before = self.before.replace(latents.clone());
        let (before, rate, computed) = (before?, self.rate?, self.computed.as_ref()?);
        if !self.reusable.contains(&index) {
            self.change = 0.0;
            return None;
        }
        let channels = latents.shape()[1];
        self.change += rate * distance(latents.view(), before.view())
            / magnitude(noise(&computed.output, channels));
        // What is no number is not below it.
        let near = self.change < self.threshold;
        if !near {
            self.change = 0.0;
            return None;
        }
        self.reused += 1;
        let first = computed.output.shape()[0] - rows;
        let mut output = computed.output.slice_axis(Axis(0), Slice::from(first..)).to_owned();
        let mut carried = output.slice_axis_mut(Axis(1), Slice::from(..channels));
        carried += &(latents - &computed.latents);
        Some(output)
    }

    /// Takes what the network said of these latents: f32 [1 or 2, channels or more, height, width], the noise before
    /// other channels, the prompt's row the last.
    ///
    /// # Panics
    /// When the shape of the noise differs from that of the latents.
    pub fn keep(&mut self, latents: &ArrayD<f32>, output: &ArrayD<f32>) {
        if let Some(last) = &self.computed {
            let channels = latents.shape()[1];
            let change = distance(noise(output, channels), noise(&last.output, channels));
            self.rate = Some(change / distance(latents.view(), last.latents.view()));
        }
        self.computed = Some(Computed { latents: latents.clone(), output: output.clone() });
    }
}

/// The noise of the prompt's row.
fn noise(output: &ArrayD<f32>, channels: usize) -> ArrayViewD<'_, f32> {
    let rows = output.shape()[0];
    let mut row = output.slice_axis(Axis(0), Slice::from(rows - 1..));
    row.slice_axis_inplace(Axis(1), Slice::from(..channels));
    row
}

fn magnitude(values: ArrayViewD<'_, f32>) -> f64 {
    values.iter().map(|&value| f64::from(value).abs()).sum::<f64>() / values.len() as f64
}

/// The mean of |a − b|.
fn distance(a: ArrayViewD<'_, f32>, b: ArrayViewD<'_, f32>) -> f64 {
    let count = a.len() as f64;
    let add = |sum, &a: &f32, &b: &f32| sum + (f64::from(a) - f64::from(b)).abs();
    Zip::from(a).and(b).fold(0.0, add) / count
}

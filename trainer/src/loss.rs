//! The loss of a training step and its gradient with respect to the prediction.
//!
//! Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, as PixArt-Σ is
//! trained: the squared error of the predicted noise, and for the predicted variance the variational
//! bound, in bits, whose mean is computed from the predicted noise as a constant. Everything is computed
//! in double precision, element by element; a prediction is a few thousand numbers.

use std::f64::consts::{LN_2, PI};

use ndarray::{ArrayD, ArrayViewD, Axis, Slice};
use pixart_runtime::pipeline::Reference;
use pixart_runtime::sampler::NoiseSchedule;

/// What a prediction is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossKind {
    /// The mean of (ε − ε̂)² over the elements; LoRAs are trained with it. A predicted variance, if there
    /// is one, gets no gradient.
    NoiseError,
    /// The same plus the variational bound of the variance, as the whole model is trained.
    WithVariance,
}

/// What was to be predicted. Arrays are `[batch, channels, height, width]`.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The latents x₀.
    pub clean: &'a ArrayD<f32>,
    /// The noise ε.
    pub noise: &'a ArrayD<f32>,
    /// What the model saw: x₀ with noise, see [`Diffusion::add_noise`].
    pub noisy: &'a ArrayD<f32>,
    /// The training step of each member of the batch.
    pub times: &'a [usize],
}

/// A loss and its gradient.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The loss of each member of the batch, as it counts.
    pub each: Vec<f64>,
    /// The gradient of their mean with respect to the prediction, in its shape.
    pub gradient: ArrayD<f32>,
}

impl Loss {
    /// The mean over the batch.
    pub fn mean(&self) -> f64 {
        self.each.iter().sum::<f64>() / self.each.len() as f64
    }
}

/// Why there is no loss.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LossError {
    /// An array has another shape than the others ask for.
    #[error("{name}: found shape {found:?}; expected {expected}")]
    Shape {
        /// The array.
        name: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// What it has to be.
        expected: String,
    },
    /// A time outside of the noise schedule.
    #[error("time {time}: expected a training step from 0 to {last}")]
    Time {
        /// The time.
        time: usize,
        /// The last step of the schedule.
        last: usize,
    },
    /// A limit of the min-SNR weighting that is none.
    #[error("snr_gamma: found {0}, expected a positive number; 5 is the usual one")]
    Gamma(f64),
    /// Not one importance for each picture, or one that cannot be.
    #[error(
        "importance of the pictures: found {found}; expected {expected} finite numbers, at least 0"
    )]
    Importance {
        /// What was given.
        found: String,
        /// How many pictures there are.
        expected: usize,
    },
}

/// What the loss needs to know about the diffusion process.
#[derive(Clone, Debug)]
pub struct Diffusion {
    steps: Vec<Step>,
}

/// Constants of one training step t.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// √ᾱ and √(1 − ᾱ).
    signal: f64,
    noise: f64,
    /// ln β, the upper end of the predicted variance.
    log_beta: f64,
    /// ln β̃, the lower end and the true variance.
    log_posterior: f64,
    /// Factors of x₀ and of the noisy latents in the mean of the posterior.
    of_clean: f64,
    of_noisy: f64,
    /// Factor on the error of the noise.
    weight: f64,
}

impl Diffusion {
    /// For a noise schedule, in double precision.
    pub fn new(schedule: &NoiseSchedule) -> Self {
        let alpha_bar = |t: usize| schedule.level(t, Reference::Mindone).alpha.powi(2);
        let posterior = |t: usize| {
            let (now, before) = (alpha_bar(t), if t == 0 { 1.0 } else { alpha_bar(t - 1) });
            let beta = 1.0 - now / before;
            (beta, before, beta * (1.0 - before) / (1.0 - now))
        };
        let step = |t: usize| {
            let level = schedule.level(t, Reference::Mindone);
            let (beta, before, variance) = posterior(t);
            // At time 0 the true variance is 0, and the next one stands for it.
            let variance = if t == 0 && schedule.len() > 1 { posterior(1).2 } else { variance };
            let rest = level.sigma.powi(2);
            Step {
                signal: level.alpha,
                noise: level.sigma,
                log_beta: beta.ln(),
                log_posterior: variance.ln(),
                of_clean: beta * before.sqrt() / rest,
                of_noisy: (1.0 - before) * (1.0 - beta).sqrt() / rest,
                weight: 1.0,
            }
        };
        Self { steps: (0..schedule.len()).map(step).collect() }
    }

    /// The same with the min-SNR weighting (Hang et al., 2023): the error of the noise counts
    /// min(γ, SNR) / SNR, with SNR = ᾱ / (1 − ᾱ) at the picture's time, so that times with little noise
    /// count less. It is about the noise: the variational bound of the variance, which has its own weights
    /// by time, stays as it is.
    ///
    /// # Errors
    /// When `gamma` is no positive number.
    pub fn with_min_snr(mut self, gamma: f64) -> Result<Self, LossError> {
        if !(gamma > 0.0 && gamma.is_finite()) {
            return Err(LossError::Gamma(gamma));
        }
        for step in &mut self.steps {
            let ratio = (step.signal / step.noise).powi(2);
            step.weight = ratio.min(gamma) / ratio;
        }
        Ok(self)
    }

    /// Training steps of the schedule.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    fn step(&self, time: usize) -> Result<Step, LossError> {
        let last = self.steps.len().saturating_sub(1);
        self.steps.get(time).copied().ok_or(LossError::Time { time, last })
    }

    /// √ᾱ·x₀ + √(1 − ᾱ)·ε: `clean` and `noise` are `[batch, …]`, `times` one of each member.
    ///
    /// # Errors
    /// When the shapes do not agree, or a time is outside of the schedule.
    pub fn add_noise(
        &self,
        clean: &ArrayD<f32>,
        noise: &ArrayD<f32>,
        times: &[usize],
    ) -> Result<ArrayD<f32>, LossError> {
        same_shape("noise", noise, clean.shape())?;
        check_batch(clean, times)?;
        let mut noisy = clean.clone();
        let members = noisy.outer_iter_mut().zip(noise.outer_iter()).zip(times);
        for ((mut x, noise), &time) in members {
            let step = self.step(time)?;
            x.zip_mut_with(&noise, |x, &noise| {
                *x = (step.signal * f64::from(*x) + step.noise * f64::from(noise)) as f32;
            });
        }
        Ok(noisy)
    }

    /// The loss of `prediction[batch, 2·channels, height, width]`, noise first, then what it says of the
    /// variance; for [`LossKind::NoiseError`] also `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// When the shapes do not agree, or a time is outside of the schedule.
    pub fn loss(
        &self,
        kind: LossKind,
        prediction: &ArrayD<f32>,
        target: &Target,
    ) -> Result<Loss, LossError> {
        self.weighted_loss(kind, prediction, target, &vec![1.0; target.times.len()])
    }

    /// The same with a factor on the loss of each picture, for example those that keep a model from
    /// forgetting what it could draw before.
    ///
    /// # Errors
    /// As [`Diffusion::loss`], and when there is not one finite factor, at least 0, for each picture.
    pub fn weighted_loss(
        &self,
        kind: LossKind,
        prediction: &ArrayD<f32>,
        target: &Target,
        importance: &[f64],
    ) -> Result<Loss, LossError> {
        let Target { clean, noise, noisy, times } = *target;
        check_batch(clean, times)?;
        if importance.len() != times.len() || importance.iter().any(|k| !k.is_finite() || *k < 0.0)
        {
            let found = format!("{importance:?}");
            return Err(LossError::Importance { found, expected: times.len() });
        }
        same_shape("noise", noise, clean.shape())?;
        same_shape("noisy latents", noisy, clean.shape())?;
        let channels = check_prediction(kind, prediction, clean)?;

        let mut gradient = ArrayD::zeros(prediction.shape());
        let mut each = Vec::with_capacity(times.len());
        for (index, (&time, &importance)) in times.iter().zip(importance).enumerate() {
            let step = self.step(time)?;
            let first = |array: &ArrayD<f32>| array.index_axis(Axis(0), index).to_owned();
            let (clean, noise, noisy) = (first(clean), first(noise), first(noisy));
            let member = first(prediction);
            let part = |from, to| Slice::new(from as isize, Some(to as isize), 1);
            let predicted = member.slice_axis(Axis(0), part(0, channels));
            let mut slot = gradient.index_axis_mut(Axis(0), index);
            let share = importance / (clean.len() * times.len()) as f64;

            let (mut squares, mut bits) = (0.0, 0.0);
            let mut d_noise = slot.slice_axis_mut(Axis(0), part(0, channels));
            for ((d, &expected), &found) in d_noise.iter_mut().zip(&noise).zip(&predicted) {
                let error = f64::from(found) - f64::from(expected);
                squares += step.weight * error * error;
                *d = (2.0 * step.weight * error * share) as f32;
            }
            if kind == LossKind::WithVariance {
                let variance = member.slice_axis(Axis(0), part(channels, 2 * channels));
                let mut d_variance = slot.slice_axis_mut(Axis(0), part(channels, 2 * channels));
                let elements = elements(&clean, &noisy, predicted, variance);
                for (d, element) in d_variance.iter_mut().zip(elements) {
                    let (value, slope) = step.variational_bound(element, time == 0);
                    bits += value;
                    *d = (slope * share) as f32;
                }
            }
            each.push(importance * (squares + bits) / clean.len() as f64);
        }
        Ok(Loss { each, gradient })
    }
}

/// One element of latents and prediction.
#[derive(Clone, Copy)]
struct Element {
    clean: f64,
    noisy: f64,
    predicted_noise: f64,
    predicted_variance: f64,
}

fn elements<'a>(
    clean: &'a ArrayD<f32>,
    noisy: &'a ArrayD<f32>,
    predicted: ArrayViewD<'a, f32>,
    variance: ArrayViewD<'a, f32>,
) -> impl Iterator<Item = Element> {
    let predicted: Vec<f32> = predicted.iter().copied().collect();
    let variance: Vec<f32> = variance.iter().copied().collect();
    clean.iter().zip(noisy).zip(predicted).zip(variance).map(
        |(((&clean, &noisy), noise), variance)| Element {
            clean: f64::from(clean),
            noisy: f64::from(noisy),
            predicted_noise: f64::from(noise),
            predicted_variance: f64::from(variance),
        },
    )
}

impl Step {
    /// The bound in bits, and its slope along the predicted variance.
    fn variational_bound(&self, element: Element, at_zero: bool) -> (f64, f64) {
        let Element { clean, noisy, predicted_noise, predicted_variance } = element;
        let range = self.log_beta - self.log_posterior;
        let log_variance = self.log_posterior + (predicted_variance + 1.0) / 2.0 * range;
        let predicted = (noisy - self.noise * predicted_noise) / self.signal;
        let (value, slope) = match at_zero {
            true => {
                let mean = self.of_clean * predicted + self.of_noisy * noisy;
                negative_log_likelihood(clean, mean, log_variance)
            }
            false => {
                // The noisy latents are the same in both means.
                let apart = self.of_clean * (clean - predicted);
                kl_divergence(apart, self.log_posterior, log_variance)
            }
        };
        (value / LN_2, slope * range / 2.0 / LN_2)
    }
}

/// The divergence of two normal distributions whose means are `apart`, and its slope along the second
/// logarithmic variance.
fn kl_divergence(apart: f64, log_variance: f64, log_variance_2: f64) -> (f64, f64) {
    let ratio = (log_variance - log_variance_2).exp();
    let distance = apart * apart * (-log_variance_2).exp();
    let value = 0.5 * (-1.0 + log_variance_2 - log_variance + ratio + distance);
    (value, 0.5 * (1.0 - ratio - distance))
}

/// Half the width of the interval that stands for a value: that of one of 256 levels between −1 and 1.
const HALF_LEVEL: f64 = 1.0 / 255.0;

/// Values beyond this stand for everything that lies further out.
const EDGE: f32 = 0.999;

/// Smaller probabilities are taken for this one, and have no slope.
const LEAST: f64 = 1e-12;

/// −ln of the probability of the interval around `value`, and its slope along the logarithmic variance.
fn negative_log_likelihood(value: f64, mean: f64, log_variance: f64) -> (f64, f64) {
    let scale = (-0.5 * log_variance).exp();
    let centred = value - mean;
    let above = normal_cdf(scale * (centred + HALF_LEVEL));
    let below = normal_cdf(scale * (centred - HALF_LEVEL));
    let (probability, slope) = if value < -f64::from(EDGE) {
        (above.0, above.1)
    } else if value > f64::from(EDGE) {
        (1.0 - below.0, -below.1)
    } else {
        (above.0 - below.0, above.1 - below.1)
    };
    match probability >= LEAST {
        true => (-probability.ln(), -slope / probability),
        false => (-LEAST.ln(), 0.0),
    }
}

/// The usual approximation of the normal distribution function, and its slope along the logarithmic
/// variance: the argument is proportional to exp(−½ · that).
fn normal_cdf(x: f64) -> (f64, f64) {
    let factor = (2.0 / PI).sqrt();
    let tanh = (factor * (x + 0.044715 * x.powi(3))).tanh();
    let density = 0.5 * (1.0 - tanh * tanh) * factor * (1.0 + 3.0 * 0.044715 * x * x);
    (0.5 * (1.0 + tanh), density * -0.5 * x)
}

fn same_shape(
    name: &'static str,
    array: &ArrayD<f32>,
    expected: &[usize],
) -> Result<(), LossError> {
    if array.shape() == expected {
        return Ok(());
    }
    let expected = format!("{expected:?}, that of the clean latents");
    Err(LossError::Shape { name, found: array.shape().to_vec(), expected })
}

fn check_batch(clean: &ArrayD<f32>, times: &[usize]) -> Result<(), LossError> {
    if clean.ndim() == 4 && clean.shape()[0] == times.len() && !clean.is_empty() {
        return Ok(());
    }
    let expected = format!("[{}, channels, height, width], one for each time", times.len());
    Err(LossError::Shape { name: "clean latents", found: clean.shape().to_vec(), expected })
}

/// The number of channels of the noise.
fn check_prediction(
    kind: LossKind,
    prediction: &ArrayD<f32>,
    clean: &ArrayD<f32>,
) -> Result<usize, LossError> {
    let channels = clean.shape()[1];
    let with = |channels| {
        let mut shape = clean.shape().to_vec();
        shape[1] = channels;
        shape
    };
    let found = prediction.shape();
    if found == with(2 * channels) || (kind == LossKind::NoiseError && found == clean.shape()) {
        return Ok(channels);
    }
    let expected = format!("{:?}: noise and variance", with(2 * channels));
    Err(LossError::Shape { name: "prediction", found: found.to_vec(), expected })
}

#[cfg(test)]
mod tests {
    use pixart_runtime::sampler::SchedulerConfig;

    use super::*;

    fn diffusion() -> Diffusion {
        Diffusion::new(&NoiseSchedule::new(&SchedulerConfig::default()))
    }

    /// Numbers of both signs up to about 1, different ones for every seed.
    fn array(seed: usize, shape: &[usize]) -> ArrayD<f32> {
        let mut index = seed * 1000;
        ArrayD::from_shape_simple_fn(shape, || {
            index += 1;
            ((index as f32) * 1.7).sin()
        })
    }

    #[test]
    fn the_gradient_of_the_variance_is_the_slope_of_the_bound() {
        let diffusion = diffusion();
        for time in [0, 1, 2, 500, 999] {
            let step = diffusion.step(time).expect("a step");
            // Inside, at both edges, and so far off that the probability is taken for the least one.
            for (clean, noise) in [(0.2, 0.3), (-0.9995, -1.0), (1.5, 0.7), (-3.0, 0.1)] {
                let noisy = step.signal * clean + step.noise * (noise + 0.2);
                for variance in [-0.9, 0.0, 0.8, 1.3] {
                    let bound = |predicted_variance| {
                        let predicted_noise = noise;
                        let element = Element { clean, noisy, predicted_noise, predicted_variance };
                        step.variational_bound(element, time == 0)
                    };
                    let (value, slope) = bound(variance);
                    let h = 1e-5;
                    let expected = (bound(variance + h).0 - bound(variance - h).0) / (2.0 * h);
                    assert!((slope - expected).abs() < 1e-6 * expected.abs().max(1.0), "{time}");
                    assert!(time == 0 || value >= 0.0, "a divergence is not negative");
                }
            }
        }
    }

    #[test]
    fn the_bound_has_no_gradient_for_the_noise() {
        let shape = [2, 4, 2, 3];
        let [clean, noise] = [1, 2].map(|seed| array(seed, &shape));
        let times = [0, 400];
        let diffusion = diffusion();
        let noisy = diffusion.add_noise(&clean, &noise, &times).expect("fits");
        let target = Target { clean: &clean, noise: &noise, noisy: &noisy, times: &times };
        let prediction = array(3, &[2, 8, 2, 3]);
        let [whole, noise_error] = [LossKind::WithVariance, LossKind::NoiseError]
            .map(|kind| diffusion.loss(kind, &prediction, &target).expect("a loss"));
        let noise_of = |loss: &Loss| loss.gradient.slice_axis(Axis(1), Slice::from(..4)).to_owned();
        assert_eq!(noise_of(&whole), noise_of(&noise_error));
        assert!(whole.mean() > noise_error.mean());
        let variance = noise_error.gradient.slice_axis(Axis(1), Slice::from(4..)).to_owned();
        assert!(variance.iter().all(|&d| d == 0.0));
    }

    #[test]
    fn a_prediction_without_variance_has_the_error_of_its_noise() {
        let shape = [1, 4, 2, 2];
        let (clean, noise) = (array(1, &shape), array(2, &shape));
        let target = Target { clean: &clean, noise: &noise, noisy: &clean, times: &[10] };
        let prediction = &noise + 0.5;
        let loss = diffusion().loss(LossKind::NoiseError, &prediction, &target).expect("a loss");
        assert!((loss.mean() - 0.25).abs() < 1e-6);
        assert!(loss.gradient.iter().all(|d| (d - 1.0 / 16.0).abs() < 1e-6));
    }

    #[test]
    fn the_importance_of_a_picture_is_a_factor_on_its_loss() {
        let shape = [3, 4, 2, 2];
        let [clean, noise] = [1, 2].map(|seed| array(seed, &shape));
        let times = [0, 400, 900];
        let diffusion = diffusion().with_min_snr(5.0).expect("a limit");
        let noisy = diffusion.add_noise(&clean, &noise, &times).expect("fits");
        let target = Target { clean: &clean, noise: &noise, noisy: &noisy, times: &times };
        let prediction = array(3, &[3, 8, 2, 2]);
        let loss = |importance: &[f64]| {
            diffusion.weighted_loss(LossKind::WithVariance, &prediction, &target, importance)
        };
        let plain = diffusion.loss(LossKind::WithVariance, &prediction, &target).expect("a loss");
        let weighted = loss(&[1.0, 0.0, 2.5]).expect("a loss");
        for (index, factor) in [1.0, 0.0, 2.5].into_iter().enumerate() {
            assert!((weighted.each[index] - factor * plain.each[index]).abs() < 1e-12);
            let [found, expected] =
                [&weighted, &plain].map(|loss| loss.gradient.index_axis(Axis(0), index));
            let expected = expected.mapv(|d| d * factor as f32);
            assert!((&found - &expected).iter().all(|d| d.abs() < 1e-6));
        }
        for bad in [&[1.0, 1.0][..], &[1.0, f64::NAN, 1.0], &[-1.0, 1.0, 1.0]] {
            let error = loss(bad).expect_err("refused").to_string();
            assert!(error.contains("expected 3 finite numbers"), "{error}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for gamma in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = diffusion().with_min_snr(gamma).expect_err("no limit").to_string();
            assert!(error.starts_with("snr_gamma: found"), "{error}");
        }
        let diffusion = diffusion();
        let clean = array(1, &[2, 4, 2, 2]);
        let wrong = array(1, &[2, 4, 2, 3]);
        let error = diffusion.add_noise(&clean, &wrong, &[1, 2]).expect_err("shape").to_string();
        assert!(error.contains("[2, 4, 2, 3]") && error.contains("[2, 4, 2, 2]"), "{error}");
        let error = diffusion.add_noise(&clean, &clean, &[1]).expect_err("batch").to_string();
        assert!(error.contains("[1, channels, height, width]"), "{error}");
        let error = diffusion.add_noise(&clean, &clean, &[1, 1000]).expect_err("time").to_string();
        assert!(error.contains("1000") && error.contains("999"), "{error}");
        let target = Target { clean: &clean, noise: &clean, noisy: &clean, times: &[1, 2] };
        let error = diffusion.loss(LossKind::WithVariance, &clean, &target).expect_err("channels");
        assert!(error.to_string().contains("[2, 8, 2, 2]"), "{error}");
    }
}

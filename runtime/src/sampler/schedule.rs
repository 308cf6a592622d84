//! The noise schedule: how much signal and noise there is at a time.

use super::SchedulerConfig;
use crate::pipeline::Reference;

/// ᾱ of every training step of a linear-β schedule.
///
/// x_t = α x₀ + σ ε with α = √ᾱ and σ = √(1 − ᾱ); λ = ln(α/σ).
#[derive(Clone, Debug)]
pub struct NoiseSchedule {
    /// ln ᾱ in double precision.
    log_alpha_bar: Vec<f64>,
    /// ᾱ as diffusers has it: rounded to single precision, from single-precision β.
    alpha_bar_f32: Vec<f32>,
}

/// Signal and noise at one time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Factor α of the picture.
    pub alpha: f64,
    /// Factor σ of the noise; α² + σ² = 1.
    pub sigma: f64,
}

impl Level {
    /// The picture itself, without noise.
    pub const CLEAN: Self = Self { alpha: 1.0, sigma: 0.0 };

    /// The level whose ratio σ/α is `ratio`.
    pub fn from_ratio(ratio: f64) -> Self {
        let alpha = 1.0 / (ratio * ratio + 1.0).sqrt();
        Self { alpha, sigma: ratio * alpha }
    }

    /// The level of ln ᾱ = `log_alpha_bar`.
    pub fn from_log_alpha_bar(log_alpha_bar: f64) -> Self {
        Self { alpha: (0.5 * log_alpha_bar).exp(), sigma: (-log_alpha_bar.exp_m1()).sqrt() }
    }

    /// λ = ln(α/σ), half the logarithm of the signal-to-noise ratio.
    pub fn lambda(self) -> f64 {
        self.alpha.ln() - self.sigma.ln()
    }
}

impl NoiseSchedule {
    /// The schedule of `config`.
    pub fn new(config: &SchedulerConfig) -> Self {
        let steps = config.num_train_timesteps;
        let last = (steps - 1) as f64;
        let mut sum = 0.0;
        let log_alpha_bar = (0..steps)
            .map(|i| {
                let beta =
                    config.beta_start + (config.beta_end - config.beta_start) * i as f64 / last;
                sum += (-beta).ln_1p();
                sum
            })
            .collect();
        Self { log_alpha_bar, alpha_bar_f32: diffusers_alpha_bar(config) }
    }

    /// T, the number of training steps.
    pub fn len(&self) -> usize {
        self.log_alpha_bar.len()
    }

    /// Whether there are no steps, which no configuration allows.
    pub fn is_empty(&self) -> bool {
        self.log_alpha_bar.is_empty()
    }

    /// The level at the continuous time `t` in [1/T, 1], where training step i (from 0) lies at
    /// (i + 1)/T: ln α is interpolated linearly between the steps.
    pub fn at(&self, t: f64) -> Level {
        let last = self.len() - 1;
        let position = (t * self.len() as f64 - 1.0).clamp(0.0, last as f64);
        let below = (position as usize).min(last.saturating_sub(1));
        let above = (below + 1).min(last);
        let fraction = position - below as f64;
        let (a, b) = (self.log_alpha_bar[below], self.log_alpha_bar[above]);
        Level::from_log_alpha_bar(a + (b - a) * fraction)
    }

    /// The level of training step `t`: from double-precision β as the official code has it, or from
    /// diffusers' single-precision ᾱ.
    ///
    /// # Panics
    /// When `t` is not below [`len`](Self::len).
    pub fn level(&self, t: usize, reference: Reference) -> Level {
        match reference {
            Reference::Mindone => Level::from_log_alpha_bar(self.log_alpha_bar[t]),
            Reference::Diffusers => {
                let alpha_bar = f64::from(self.alpha_bar_f32[t]);
                Level { alpha: alpha_bar.sqrt(), sigma: (1.0 - alpha_bar).sqrt() }
            }
        }
    }

    /// σ/α of training step `t` in diffusers' precision.
    ///
    /// # Panics
    /// When `t` is not below [`len`](Self::len).
    pub fn sigma_ratio(&self, t: usize) -> f32 {
        let alpha_bar = self.alpha_bar_f32[t];
        ((1.0 - alpha_bar) / alpha_bar).sqrt()
    }
}

/// diffusers computes β in single precision (from both ends towards the middle, as torch.linspace
/// does, with fused multiply-adds), takes products in double precision and rounds each.
fn diffusers_alpha_bar(config: &SchedulerConfig) -> Vec<f32> {
    let steps = config.num_train_timesteps;
    let (start, end) = (config.beta_start as f32, config.beta_end as f32);
    let step = (end - start) / (steps - 1) as f32;
    let mut product = 1.0f64;
    (0..steps)
        .map(|i| {
            let beta = if i < steps / 2 {
                step.mul_add(i as f32, start)
            } else {
                (-step).mul_add((steps - 1 - i) as f32, end)
            };
            product *= f64::from(1.0 - beta);
            product as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// t, ᾱ, λ, √((1−ᾱ)/ᾱ) of the released schedule in double precision.
    const KNOWN: [(usize, f64, f64, f64); 11] = [
        (0, 0.9999, 4.6051202, 0.010001),
        (1, 0.9997800921, 4.2110408, 0.014831),
        (50, 0.9699514936, 1.7372166, 0.176010),
        (100, 0.8951415909, 1.0721855, 0.342260),
        (200, 0.6563470055, 0.3235286, 0.723591),
        (249, 0.5240853738, 0.0482081, 0.952936),
        (250, 0.5214230306, 0.0428723, 0.958034),
        (400, 0.1935720097, -0.7134825, 2.041087),
        (500, 0.07779665837, -1.2363336, 3.442967),
        (800, 0.00150752106, -3.2478900, 25.735980),
        (999, 0.00004035829765, -5.0588366, 157.407281),
    ];

    #[test]
    fn the_levels_at_whole_times_are_the_known_ones() {
        let schedule = NoiseSchedule::new(&SchedulerConfig::default());
        for (t, alpha_bar, lambda, ratio) in KNOWN {
            let level = schedule.at((t + 1) as f64 / 1000.0);
            assert!((level.alpha.powi(2) / alpha_bar - 1.0).abs() < 1e-9, "ᾱ at {t}");
            assert!((level.lambda() - lambda).abs() < 1e-7, "λ at {t}: {}", level.lambda());
            let found = level.sigma / level.alpha;
            assert!(
                (found / ratio - 1.0).abs() < 1e-4 && (found - ratio).abs() < 1e-6 * ratio.max(1.0),
                "{t}"
            );
            assert!((f64::from(schedule.sigma_ratio(t)) / ratio - 1.0).abs() < 1e-4, "f32 at {t}");
            for reference in [Reference::Mindone, Reference::Diffusers] {
                let Level { alpha, sigma } = schedule.level(t, reference);
                assert!((alpha.powi(2) / alpha_bar - 1.0).abs() < 1e-5, "{reference} at {t}");
                assert!((alpha.powi(2) + sigma.powi(2) - 1.0).abs() < 1e-14);
            }
        }
    }

    #[test]
    fn between_two_steps_the_logarithm_is_linear() {
        let schedule = NoiseSchedule::new(&SchedulerConfig::default());
        let [a, b, middle] = [0.500, 0.501, 0.5005].map(|t| schedule.at(t).alpha.ln());
        assert!((middle - (a + b) / 2.0).abs() < 1e-14);
    }

    #[test]
    fn alpha_and_sigma_lie_on_the_unit_circle() {
        let schedule = NoiseSchedule::new(&SchedulerConfig::default());
        for level in
            [schedule.at(0.001), schedule.at(0.37), schedule.at(1.0), Level::from_ratio(3.0)]
        {
            assert!((level.alpha.powi(2) + level.sigma.powi(2) - 1.0).abs() < 1e-14);
        }
    }
}

//! The moving average of the weights, which samples better than the weights themselves.

use pixart_runtime::engine::{Engine, Session, Value};

use crate::{
    optimizer::{OptimizerError, graphs},
    pieces, session,
    tensors::{Tensors, Values, number},
};

/// How the decay rises, so that the average forgets the untrained weights. `n` counts updates from 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    /// It does not: the decay is the full one from the start.
    None,
    /// `decay · (1 − exp(−n / 2000))`, as mindone declares it.
    Exponential,
    /// `n / (9 + n)`, at most the decay, as diffusers has it by default: the first update, of which it
    /// would be 0.1, takes the weights themselves.
    Ratio,
    /// `1 − (1 + (n − 1) / inverse_gamma)^−power`, at most the decay, as diffusers' `use_ema_warmup`.
    Power {
        /// Updates after which the rise slows down, above 0.
        inverse_gamma: f64,
        /// How fast it comes close to the decay, above 0.
        power: f64,
    },
}

impl Warmup {
    /// The decay of an update, counted from 1.
    fn decay(self, decay: f64, update: u64) -> f64 {
        let n = update as f64;
        match self {
            Self::None => decay,
            Self::Exponential => decay * (1.0 - (-n / 2000.0).exp()),
            Self::Ratio if update <= 1 => 0.0,
            Self::Ratio => (n / (9.0 + n)).min(decay),
            Self::Power { inverse_gamma, power } => {
                (1.0 - (1.0 + (n - 1.0) / inverse_gamma).powf(-power)).min(decay)
            }
        }
    }
}

/// A moving average of weights.
pub struct Average {
    session: Box<dyn Session>,
    decay: f64,
    warmup: Warmup,
    updates: u64,
    values: Values,
}

impl Average {
    /// An average that begins with the values of `weights`, which it shares until either changes. `decay` is the share of the old average in the
    /// new one, from 0 to below 1; upstream's is 0.9999.
    ///
    /// # Errors
    /// When a number is out of its range or the engine refuses the graph.
    pub fn new(
        engine: &dyn Engine,
        decay: f64,
        warmup: Warmup,
        weights: &Values,
    ) -> Result<Self, OptimizerError> {
        let fail = |setting, found: f64, expected| {
            Err(OptimizerError::Setting { setting, found: found.to_string(), expected })
        };
        if !(0.0..1.0).contains(&decay) {
            return fail("ema_rate", decay, "a number from 0 to below 1");
        }
        if let Warmup::Power { inverse_gamma, power } = warmup
            && let Some(&found) = [inverse_gamma, power].iter().find(|&&v| v <= 0.0 || v.is_nan())
        {
            return fail("warm-up of the average", found, "numbers above 0");
        }
        let session = session::load(engine, &graphs::moving_average()?)?;
        Ok(Self { session, decay, warmup, updates: 0, values: weights.clone() })
    }

    /// The averaged weights.
    pub fn weights(&self) -> &Values {
        &self.values
    }

    /// Updates done so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The decay of the next update.
    pub fn next_decay(&self) -> f64 {
        self.warmup.decay(self.decay, self.updates + 1)
    }

    /// Takes in the weights after a step.
    ///
    /// # Errors
    /// When a weight is missing or has another shape; nothing has changed then. When the engine fails:
    /// then the average has to be read from a checkpoint.
    pub fn update(&mut self, weights: &Values) -> Result<(), OptimizerError> {
        check(&self.values, |name| weights.get(name).map(Value::shape), "weight")?;
        let share = number(1.0 - self.next_decay());
        for (name, average) in &mut self.values {
            let Some(weight) = weights.get(name) else { continue };
            let (mut moved, numbers) = ([("average", average)], [("share", &share)]);
            let session = self.session.as_mut();
            pieces::run_by_element(session, &mut moved, Some(("weight", weight)), &numbers)?;
        }
        self.updates += 1;
        Ok(())
    }

    /// Goes on where another average of the same weights stood after `updates` updates.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape. Nothing has changed then.
    pub fn restore(&mut self, updates: u64, tensors: Tensors) -> Result<(), OptimizerError> {
        check(&self.values, |name| tensors.get(name).map(|array| array.shape()), "average")?;
        if let Some(name) = tensors.keys().find(|name| !self.values.contains_key(*name)) {
            let advice = "the average must be that of the same weights";
            return Err(OptimizerError::Unknown { kind: "average", name: name.clone(), advice });
        }
        self.updates = updates;
        self.values = tensors.into_iter().map(|(name, array)| (name, array.into())).collect();
        Ok(())
    }
}

/// Whether there is one of the same shape for each of `own`.
fn check<'a>(
    own: &Values,
    found: impl Fn(&str) -> Option<&'a [usize]>,
    kind: &'static str,
) -> Result<(), OptimizerError> {
    for (name, own) in own {
        let (name, expected) = (name.clone(), own.shape().to_vec());
        match found(&name) {
            None => return Err(OptimizerError::Missing { kind, name, expected }),
            Some(found) if found != expected => {
                let (found, advice) = (found.to_vec(), "the average must be of the same model");
                return Err(OptimizerError::Shape { kind, name, found, expected, advice });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decays_rise_to_the_full_one() {
        let exponential = |n| Warmup::Exponential.decay(0.9999, n);
        assert!((exponential(2000) - 0.9999 * (1.0 - (-1f64).exp())).abs() < 1e-15);
        assert!(exponential(1) < 1e-3 && (exponential(100_000) - 0.9999).abs() < 1e-12);
        assert_eq!(Warmup::Ratio.decay(0.9999, 1), 0.0);
        assert_eq!(Warmup::Ratio.decay(0.9999, 2), 2.0 / 11.0);
        assert_eq!(Warmup::Ratio.decay(0.9999, 1_000_000), 0.9999);
        let power = Warmup::Power { inverse_gamma: 1.0, power: 1.0 };
        assert_eq!([1, 2, 3].map(|n| power.decay(0.6, n)), [0.0, 0.5, 0.6]);
        assert_eq!(Warmup::None.decay(0.9, 1), 0.9);
    }
}

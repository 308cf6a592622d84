//! The factor on the loss that keeps small gradients of 16 bits from vanishing.

use serde::{Deserialize, Serialize};

/// How the loss is scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all: for fp32 and bf16.
    None,
    /// By a constant, above 0.
    Static(f64),
    /// By a factor that is found while training.
    Dynamic(Dynamic),
}

/// The settings of a dynamic scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dynamic {
    /// The first scale, at least 1.
    pub initial: f64,
    /// What it is multiplied or divided by, above 1.
    pub factor: f64,
    /// Batches in a row without overflow after which it grows, at least 1.
    pub window: u64,
}

impl Default for Dynamic {
    /// Upstream's: 65536, 2 and 1000.
    fn default() -> Self {
        Self { initial: 65536.0, factor: 2.0, window: 1000 }
    }
}

/// A setting that is out of its range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{setting}: found {found}, expected {expected}")]
pub struct ScalerError {
    /// The setting, as the command line names it.
    pub setting: &'static str,
    /// Its value.
    pub found: f64,
    /// What it may be.
    pub expected: &'static str,
}

/// What is stored of a scaler in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScalerState {
    /// The scale.
    pub scale: f64,
    /// Batches without overflow since it last changed.
    pub since: u64,
}

/// The scale at work: the loss is multiplied by [`LossScaler::scale`] before it is differentiated, and
/// [`LossScaler::update`] is told of every batch whether its gradients were finite.
///
/// An overflow divides a dynamic scale by its factor, down to 1; after a window of batches without one
/// it is multiplied, as long as it stays a number of 32 bits. This is what mindone does; torch's
/// `GradScaler` differs in having no lower bound.
#[derive(Clone, Debug)]
pub struct LossScaler {
    dynamic: Option<Dynamic>,
    state: ScalerState,
}

/// A dynamic scale never falls below this.
const SMALLEST: f64 = 1.0;

impl LossScaler {
    /// A scaler before the first batch.
    ///
    /// # Errors
    /// When a setting is out of its range.
    pub fn new(scaling: Scaling) -> Result<Self, ScalerError> {
        let fail = |setting, found, expected| Err(ScalerError { setting, found, expected });
        let (scale, dynamic) = match scaling {
            Scaling::None => (1.0, None),
            Scaling::Static(scale) => (scale, None),
            Scaling::Dynamic(dynamic) => (dynamic.initial, Some(dynamic)),
        };
        let smallest = if dynamic.is_some() { SMALLEST } else { f64::from(f32::MIN_POSITIVE) };
        if !(smallest..=f64::from(f32::MAX)).contains(&scale) {
            let expected = "a number of at least 1 (static: above 0) and at most 3.4e38";
            return fail("init_loss_scale", scale, expected);
        }
        if let Some(Dynamic { factor, window, .. }) = dynamic {
            if !(factor > 1.0 && factor.is_finite()) {
                return fail("loss_scale_factor", factor, "a number above 1");
            }
            if window == 0 {
                return fail("scale_window", 0.0, "at least 1");
            }
        }
        Ok(Self { dynamic, state: ScalerState { scale, since: 0 } })
    }

    /// The factor on the loss of the coming batch.
    pub fn scale(&self) -> f64 {
        self.state.scale
    }

    /// Takes note of a batch. Returns whether the scale cannot help: an overflow without a scale, with
    /// a static one, or with a dynamic one that is at its lower bound already.
    pub fn update(&mut self, overflow: bool) -> bool {
        let Some(Dynamic { factor, window, .. }) = self.dynamic else { return overflow };
        let ScalerState { scale, since } = &mut self.state;
        if overflow {
            let helpless = *scale <= SMALLEST;
            *scale = (*scale / factor).max(SMALLEST);
            *since = 0;
            return helpless;
        }
        *since += 1;
        if *since >= window {
            let larger = *scale * factor;
            if larger <= f64::from(f32::MAX) {
                *scale = larger;
            }
            *since = 0;
        }
        false
    }

    /// For a checkpoint.
    pub fn state(&self) -> ScalerState {
        self.state
    }

    /// Goes on where a dynamic scale stood; a static one stays what it is.
    ///
    /// # Errors
    /// When the scale is none.
    pub fn restore(&mut self, state: ScalerState) -> Result<(), ScalerError> {
        if self.dynamic.is_none() {
            return Ok(());
        }
        if !(SMALLEST..=f64::from(f32::MAX)).contains(&state.scale) {
            return Err(ScalerError {
                setting: "the loss scale of the checkpoint",
                found: state.scale,
                expected: "a number from 1 to 3.4e38",
            });
        }
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dynamic(initial: f64, window: u64) -> LossScaler {
        LossScaler::new(Scaling::Dynamic(Dynamic { initial, factor: 2.0, window })).expect("fits")
    }

    #[test]
    fn it_grows_after_a_window_and_shrinks_at_once() {
        let mut scaler = dynamic(8.0, 3);
        let mut after = |overflow| {
            scaler.update(overflow);
            scaler.scale()
        };
        assert_eq!([false, false, false].map(&mut after), [8.0, 8.0, 16.0]);
        assert_eq!([false, false, true].map(&mut after), [16.0, 16.0, 8.0]);
        assert_eq!([false, false, false, false].map(&mut after), [8.0, 8.0, 16.0, 16.0]);
    }

    #[test]
    fn it_keeps_its_bounds_and_says_when_it_cannot_help() {
        let mut scaler = dynamic(2.0, 1);
        assert!(!scaler.update(true), "it still can");
        assert_eq!(scaler.scale(), 1.0);
        assert!(scaler.update(true), "it is at its lower bound");
        assert_eq!(scaler.scale(), 1.0);
        for _ in 0..200 {
            scaler.update(false);
        }
        assert_eq!(scaler.scale(), 2f64.powi(127));
        let mut fixed = LossScaler::new(Scaling::Static(128.0)).expect("fits");
        assert!(fixed.update(true) && !fixed.update(false));
        assert_eq!(fixed.scale(), 128.0);
        assert_eq!(LossScaler::new(Scaling::None).expect("fits").scale(), 1.0);
    }

    #[test]
    fn it_goes_on_where_it_stood() {
        let mut first = dynamic(8.0, 3);
        first.update(false);
        first.update(false);
        let mut second = dynamic(65536.0, 3);
        second.restore(first.state()).expect("fits");
        assert!(!second.update(false));
        assert_eq!(second.scale(), 16.0);
        let bad = ScalerState { scale: f64::NAN, since: 0 };
        second.restore(bad).expect_err("no number");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let default = Dynamic::default();
        for (scaling, name) in [
            (Scaling::Static(0.0), "init_loss_scale"),
            (Scaling::Dynamic(Dynamic { initial: 0.5, ..default }), "init_loss_scale"),
            (Scaling::Dynamic(Dynamic { initial: f64::INFINITY, ..default }), "init_loss_scale"),
            (Scaling::Dynamic(Dynamic { factor: 1.0, ..default }), "loss_scale_factor"),
            (Scaling::Dynamic(Dynamic { window: 0, ..default }), "scale_window"),
        ] {
            let error = LossScaler::new(scaling).expect_err(name);
            assert_eq!(error.setting, name);
        }
    }
}

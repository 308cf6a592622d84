//! Stopping early.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Asks a pipeline to stop early, from another thread or a signal handler. Clones are one token, and
/// what was asked for once stays so: a pipeline whose token was used makes no more pictures.
///
/// The solver step, caption or picture that is being computed is completed first. Pictures whose steps are
/// all done are still decoded; those begun are dropped.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A token that was not used yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether that was asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

//! What of a run stands in a checkpoint's `training.json`, beside what the checkpoint itself knows.

use std::collections::BTreeMap;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::RunError;
use crate::{
    checkpoint::Saved,
    data::Position,
    scaler::{LossScaler, ScalerState},
};

const POSITION: &str = "position";
const SCALE: &str = "loss_scale";

/// Where a run stands between two steps. What is drawn follows from the position, so no generator has a state.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    /// The batches that are over.
    pub position: Position,
    /// The loss scale.
    pub scale: ScalerState,
}

impl State {
    pub fn new(position: &Position, scaler: &LossScaler) -> Self {
        Self { position: position.clone(), scale: scaler.state() }
    }

    pub fn to_json(&self) -> BTreeMap<String, Value> {
        let ScalerState { scale, since } = self.scale;
        // The bits, because a decimal fraction may lose its last one.
        let scale = json!({ "bits": scale.to_bits(), "since": since });
        BTreeMap::from([(POSITION.to_owned(), value(&self.position)), (SCALE.to_owned(), scale)])
    }

    pub fn read(saved: &Saved) -> Result<Self, RunError> {
        #[derive(serde::Deserialize)]
        struct Scale {
            bits: u64,
            since: u64,
        }
        let Scale { bits, since } = field(saved, SCALE)?;
        let scale = ScalerState { scale: f64::from_bits(bits), since };
        Ok(Self { position: field(saved, POSITION)?, scale })
    }
}

pub(super) fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).expect("numbers and texts under names")
}

pub(super) fn field<T: DeserializeOwned>(
    saved: &Saved,
    field: &'static str,
) -> Result<T, RunError> {
    let fail = |problem| RunError::State { path: saved.folder().to_owned(), field, problem };
    let value = saved.state().get(field).ok_or_else(|| fail("is missing".to_owned()))?;
    serde_json::from_value(value.clone()).map_err(|error| fail(format!("cannot be read: {error}")))
}

//! The embedding of the diffusion time.

use crate::graph::{GraphBuilder, GraphError, Value};

/// Width of the sinusoid.
const CHANNELS: usize = 256;

/// `timestep[batch]` (any real number in `0..1000`) → `[batch, 256]`: `cos(t·f)`, then `sin(t·f)`,
/// with `f_k = 10000^(−k/128)`.
pub(super) fn timestep_sinusoid(
    b: &mut GraphBuilder,
    timestep: &Value,
) -> Result<Value, GraphError> {
    b.scoped("time_proj", |b| {
        let half = CHANNELS / 2;
        // The reference rounds the exponent to float32, and t·f reaches 999: a frequency of full
        // precision would turn the fastest angles by up to 1e-4.
        let frequency =
            |k| f64::from(-(10000f64.ln() as f32) * k as f32 / half as f32).exp() as f32;
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let frequencies = b.constant_f32(&frequencies, &[1, half]);
        let timestep = b.unsqueeze(timestep, &[1])?;
        let angle = b.mul(&timestep, &frequencies)?;
        let (cos, sin) = (b.cos(&angle)?, b.sin(&angle)?);
        b.concat(&[&cos, &sin], -1)
    })
}

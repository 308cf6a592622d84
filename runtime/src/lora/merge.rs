//! Changed weights: a stored one plus the changes of the LoRAs, rounded once.

use std::{
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use half::{bf16, f16};
use ndarray::{Array1, Array2, Axis, linalg::general_mat_mul, s};

use super::{
    Lora, LoraError,
    adapter::{Layer, Magnitude},
    plan::Step,
};
use crate::{
    engine::{GraphWeight, GraphWeights, Layout, Override, WeightType},
    model_folder::Component,
};

/// More threads than this only wait for memory.
const MOST_THREADS: usize = 8;

/// Computes changed weights, in the order of their names.
pub(super) fn all(
    component: Component,
    weights: &GraphWeights,
    loras: &[Arc<Lora>],
    work: Vec<(&String, &Vec<Step>)>,
) -> Result<Vec<Override>, LoraError> {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let run = || {
        let mut done = Vec::new();
        while let Some((name, steps)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push(one(component, weights, loras, name, steps)?);
        }
        Ok(done)
    };
    let parts: Vec<Result<Vec<Override>, LoraError>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(MOST_THREADS)).map(|_| scope.spawn(run)).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, _>| match worker.join() {
            Ok(part) => part,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        workers.into_iter().map(join).collect()
    });
    let mut overrides = Vec::with_capacity(work.len());
    for part in parts {
        overrides.extend(part?);
    }
    overrides.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(overrides)
}

fn one(
    component: Component,
    weights: &GraphWeights,
    loras: &[Arc<Lora>],
    name: &str,
    steps: &[Step],
) -> Result<Override, LoraError> {
    let bytes = weights.read(name).map_err(|source| LoraError::Graph { component, source })?;
    let Some((weight, stored)) =
        weights.get(name).and_then(|weight| Some((weight, stored(weight, &bytes)?)))
    else {
        // Plans are made of such weights only.
        unreachable!("{name} is no matrix of floats");
    };
    drop(bytes);
    let mut matrix = Matrix { values: stored, outputs: outputs_axis(weight.layout) };
    for step in steps {
        let lora = &loras[step.lora];
        matrix.apply(&lora.layers[step.layer], step.rows.clone(), lora.strength());
    }
    let data = rounded(&matrix.values, &weight.dtype).ok_or_else(|| LoraError::NotFinite {
        tensor: name.to_owned(),
        component,
        precision: weight.dtype.to_string(),
        loras: steps.iter().map(|step| loras[step.lora].path().to_owned()).collect(),
    })?;
    let (dtype, shape) = (weight.dtype.clone(), weight.shape.clone());
    Ok(Override { name: name.to_owned(), dtype, shape, data })
}

fn outputs_axis(layout: Layout) -> usize {
    usize::from(layout == Layout::InputsFirst)
}

/// The stored elements as a matrix, the pixels of kernels in one axis.
fn stored(weight: &GraphWeight, bytes: &[u8]) -> Option<Array2<f32>> {
    let values: Vec<f32> = match weight.dtype {
        WeightType::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        WeightType::F16 => {
            bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect()
        }
        WeightType::Bf16 => {
            bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect()
        }
        WeightType::Other(_) => return None,
    };
    let rows = *weight.shape.first()?;
    let columns = weight.shape[1..].iter().product();
    Array2::from_shape_vec((rows, columns), values).ok()
}

/// The elements in the type of the weight; `None` if one is not finite.
fn rounded(values: &Array2<f32>, dtype: &WeightType) -> Option<Vec<u8>> {
    let finite = match dtype {
        // The largest numbers become infinite when they are rounded.
        WeightType::F16 => values.iter().all(|&x| f16::from_f32(x).is_finite()),
        WeightType::Bf16 => values.iter().all(|&x| bf16::from_f32(x).is_finite()),
        _ => values.iter().all(|x| x.is_finite()),
    };
    finite.then(|| match dtype {
        WeightType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        WeightType::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    })
}

/// A weight in memory, with outputs along either axis.
struct Matrix {
    values: Array2<f32>,
    outputs: usize,
}

impl Matrix {
    /// Adds the change of some rows of a layer; with magnitudes, sets the norms after that.
    fn apply(&mut self, layer: &Layer, rows: std::ops::Range<usize>, strength: f32) {
        let up = layer.up.slice(s![rows.clone(), ..]);
        let mut weight = match self.outputs {
            0 => self.values.view_mut(),
            _ => self.values.view_mut().reversed_axes(),
        };
        general_mat_mul(strength * layer.scale, &up, &layer.down, 1.0, &mut weight);
        match &layer.magnitude {
            None => {}
            Some(Magnitude::Outputs(magnitudes)) => {
                let magnitudes = Array1::from(magnitudes[rows].to_vec());
                let factors = magnitudes / self.norms(self.outputs);
                self.values *= &factors.insert_axis(Axis(1 - self.outputs));
            }
            Some(Magnitude::Inputs(magnitudes, pixels)) => {
                let squares = self.norms(1 - self.outputs).mapv(|norm| norm * norm);
                let factors = magnitudes.iter().enumerate().flat_map(|(channel, magnitude)| {
                    let here = squares.slice(s![channel * pixels..(channel + 1) * pixels]);
                    std::iter::repeat_n(magnitude / here.sum().sqrt(), *pixels)
                });
                let factors: Array1<f32> = factors.collect();
                self.values *= &factors.insert_axis(Axis(self.outputs));
            }
        }
    }

    /// The Euclidean norms of what lies at each position of `axis`.
    fn norms(&self, axis: usize) -> Array1<f32> {
        self.values.mapv(|x| x * x).sum_axis(Axis(1 - axis)).mapv(f32::sqrt)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;
    use crate::lora::key::Module;

    fn layer(magnitude: Option<Magnitude>) -> Layer {
        Layer {
            module: Module { network: None, name: "x".to_owned(), peft: false },
            keys: Vec::new(),
            down: array![[1.0, 0.0, -1.0]],
            up: array![[1.0], [2.0], [0.0], [4.0]],
            scale: 0.5,
            magnitude,
        }
    }

    fn applied(outputs: usize, layer: &Layer, rows: std::ops::Range<usize>) -> Array2<f32> {
        let weight = array![[3.0, 4.0, 0.0], [1.0, 2.0, 2.0]];
        let values = if outputs == 0 { weight } else { weight.reversed_axes() };
        let mut matrix = Matrix { values, outputs };
        matrix.apply(layer, rows, 2.0);
        if outputs == 0 { matrix.values } else { matrix.values.reversed_axes() }
    }

    #[test]
    fn rows_are_added_whichever_way_the_weight_lies() {
        for outputs in [0, 1] {
            let first = applied(outputs, &layer(None), 0..2);
            assert_eq!(first, array![[4.0, 4.0, -1.0], [3.0, 2.0, 0.0]]);
            let last = applied(outputs, &layer(None), 2..4);
            assert_eq!(last, array![[3.0, 4.0, 0.0], [5.0, 2.0, -2.0]]);
        }
    }

    fn near(a: &Array1<f32>, b: &Array1<f32>) -> bool {
        (a - b).iter().all(|error| error.abs() < 1e-6)
    }

    #[test]
    fn magnitudes_are_the_norms_afterwards() {
        for outputs in [0, 1] {
            let rows = layer(Some(Magnitude::Outputs(vec![9.0, 9.0, 2.0, 3.0])));
            let found = applied(outputs, &rows, 2..4);
            let norms = found.mapv(|x| x * x).sum_axis(Axis(1)).mapv(f32::sqrt);
            assert!(near(&norms, &array![2.0, 3.0]), "{norms}");
            let columns = layer(Some(Magnitude::Inputs(vec![1.0, 2.0, 3.0], 1)));
            let found = applied(outputs, &columns, 0..2);
            let norms = found.mapv(|x| x * x).sum_axis(Axis(0)).mapv(f32::sqrt);
            assert!(near(&norms, &array![1.0, 2.0, 3.0]), "{norms}");
        }
    }

    #[test]
    fn sums_are_rounded_once_and_must_stay_finite() {
        let one = |x: f32, dtype| rounded(&array![[x]], &dtype);
        assert_eq!(one(1.0, WeightType::F16), Some(vec![0x00, 0x3c]));
        assert_eq!(one(1.0, WeightType::Bf16), Some(vec![0x80, 0x3f]));
        assert_eq!(one(70_000.0, WeightType::F16), None);
        assert_eq!(one(f32::MAX, WeightType::Bf16), None);
        assert_eq!(one(f32::NAN, WeightType::F32), None);
        assert!(one(70_000.0, WeightType::F32).is_some());
    }
}

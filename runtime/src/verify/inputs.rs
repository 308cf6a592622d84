//! Random inputs for an exported graph, the same for the same seed on every machine.
//!
//! What an input may hold follows from its name, and its sizes from the symbols it is declared with.
//! The sizes are small, never square, and the second case has two rows of different length, so that
//! masks have something to hide.

use std::path::Path;

use ndarray::{ArrayD, IxDyn};
use serde_json::Value;

use super::VerifyError;
use crate::{
    engine::{Dim, Input, signature},
    tensor::Tensor,
};

/// End of a sentence and padding, in T5's vocabulary.
const END: i64 = 1;
const PAD: i64 = 0;

/// Rows, caption tokens, and sides in units that every variant of a component can divide.
const SIZES: [Sizes; 2] = [
    Sizes { batch: 1, length: 8, height: 2, width: 3 },
    Sizes { batch: 2, length: 13, height: 3, width: 1 },
];

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    length: usize,
    height: usize,
    width: usize,
}

/// One set of inputs of a graph.
#[derive(Clone, Debug)]
pub struct RandomCase {
    /// Names and values, in the graph's order.
    pub inputs: Vec<(String, Tensor)>,
}

/// Makes two sets of inputs for the graph in `model`. `architecture` is what its manifest says;
/// `vocab_size`, `patch_size` and the scale factors are read where the component has them.
///
/// # Errors
/// When the graph cannot be read, or takes an input that no component of the pipeline takes.
pub fn random_cases(
    model: &Path,
    architecture: &Value,
    seed: u64,
) -> Result<Vec<RandomCase>, VerifyError> {
    let signature = signature(model)?;
    let number = |field: &str| architecture[field].as_u64().and_then(|n| usize::try_from(n).ok());
    let of_pixels = signature.inputs.iter().any(|input| input.name == "sample");
    let unit = match number("patch_size") {
        // Key and value compression merges up to four patches a side.
        Some(patch) => 4 * patch,
        None if of_pixels => number("scale_factor").unwrap_or(8),
        None => 2,
    };
    let mut random = Random { state: seed };
    let case = |sizes: Sizes| {
        let sizes = Sizes { height: unit * sizes.height, width: unit * sizes.width, ..sizes };
        let inputs = signature.inputs.iter().map(|input| {
            let wrong = |reason: String| VerifyError::Input {
                model: model.to_owned(),
                input: input.name.clone(),
                reason,
            };
            let value = shape(input, sizes).and_then(|shape| {
                let vocabulary = number("vocab_size");
                value(&input.name, &shape, sizes, vocabulary, architecture, &mut random)
            });
            Ok((input.name.clone(), value.map_err(wrong)?))
        });
        Ok(RandomCase { inputs: inputs.collect::<Result<_, VerifyError>>()? })
    };
    SIZES.into_iter().map(case).collect()
}

fn shape(input: &Input, sizes: Sizes) -> Result<Vec<usize>, String> {
    let Some(dims) = &input.dims else { return Err("its shape is not declared".to_owned()) };
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => Ok(*size),
        Dim::Symbol(symbol) => match symbol.as_str() {
            "batch_size" => Ok(sizes.batch),
            "sequence_length" => Ok(sizes.length),
            "height" => Ok(sizes.height),
            "width" => Ok(sizes.width),
            other => Err(format!(
                "found the size `{other}`, expected batch_size, sequence_length, height or width"
            )),
        },
        Dim::Any => Err("a size of it has no name".to_owned()),
    };
    let shape: Vec<usize> = dims.iter().map(size).collect::<Result<_, _>>()?;
    // A declared size of billions would be a trap, not a model.
    const MOST_ELEMENTS: usize = 1 << 28;
    let count = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size));
    match count {
        Some(1..=MOST_ELEMENTS) => Ok(shape),
        _ => Err(format!("the shape {shape:?} is empty or too large")),
    }
}

fn value(
    name: &str,
    shape: &[usize],
    sizes: Sizes,
    vocabulary: Option<usize>,
    architecture: &Value,
    random: &mut Random,
) -> Result<Tensor, String> {
    // Rows get shorter: all tokens count in the first, and one fewer third of them in each next.
    let real = |row: usize| (sizes.length - row * sizes.length / 3).max(1);
    let floats = |value: &mut dyn FnMut() -> f64| {
        Ok(Tensor::F32(ArrayD::from_shape_simple_fn(shape, || value() as f32)))
    };
    let tokens = |value: &mut dyn FnMut(usize, usize) -> i64| match shape {
        [_, _] => Ok(Tensor::I64(ArrayD::from_shape_fn(IxDyn(shape), |at| value(at[0], at[1])))),
        _ => Err(format!("found the shape {shape:?}, expected [batch_size, sequence_length]")),
    };
    match name {
        "hidden_states" | "encoder_hidden_states" => floats(&mut || random.normal()),
        "latent_sample" => {
            let factor = architecture["scaling_factor"].as_f64().unwrap_or(1.0);
            floats(&mut || random.normal() / factor)
        }
        "sample" => floats(&mut || 2.0 * random.uniform() - 1.0),
        "timestep" => floats(&mut || 999.0 * random.uniform()),
        // The micro-conditions of PixArt-α: sides in pixels, and height by width.
        "resolution" => floats(&mut || 256.0 + 768.0 * random.uniform()),
        "aspect_ratio" => floats(&mut || 0.5 + random.uniform()),
        "attention_mask" | "encoder_attention_mask" => {
            tokens(&mut |row, column| i64::from(column < real(row)))
        }
        "input_ids" => {
            let Some(vocabulary) = vocabulary.filter(|&size| size > 2) else {
                return Err("the manifest gives no vocab_size above 2".to_owned());
            };
            tokens(&mut |row, column| match (column + 1).cmp(&real(row)) {
                std::cmp::Ordering::Less => 2 + random.below(vocabulary as u64 - 2) as i64,
                std::cmp::Ordering::Equal => END,
                std::cmp::Ordering::Greater => PAD,
            })
        }
        _ => Err("no component has an input of this name".to_owned()),
    }
}

/// The generator `splitmix64`: any seed serves, and nothing of it depends on the machine.
struct Random {
    state: u64,
}

impl Random {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        (self.uniform() * bound as f64) as u64
    }

    /// Normal with mean 0 and variance 1 (Box–Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tract_onnx::pb::tensor_proto::DataType;

    use super::*;

    fn input(name: &str, dims: &[&str]) -> Input {
        let dim = |text: &&str| match text.parse() {
            Ok(size) => Dim::Fixed(size),
            Err(_) => Dim::Symbol((*text).to_owned()),
        };
        let dims = Some(dims.iter().map(dim).collect());
        Input { name: name.to_owned(), dtype: DataType::Float, dims }
    }

    fn make(name: &str, dims: &[&str]) -> Result<Tensor, String> {
        let shape = shape(&input(name, dims), SIZES[1])?;
        let architecture = json!({ "scaling_factor": 0.5 });
        value(name, &shape, SIZES[1], Some(50), &architecture, &mut Random { state: 3 })
    }

    #[test]
    fn ids_end_and_are_padded_where_the_mask_says() {
        let dims = ["batch_size", "sequence_length"];
        let ids = make("input_ids", &dims).expect("made");
        let mask = make("attention_mask", &dims).expect("made");
        let (ids, mask) = (ids.as_i64().expect("integers"), mask.as_i64().expect("integers"));
        assert_eq!(mask.sum(), 13 + 9);
        for (row, length) in [(0, 13), (1, 9)] {
            for column in 0..13 {
                let id = ids[[row, column]];
                assert_eq!(mask[[row, column]], i64::from(column < length));
                match column + 1 {
                    c if c < length => assert!((2..50).contains(&id), "{id}"),
                    c if c == length => assert_eq!(id, END),
                    _ => assert_eq!(id, PAD),
                }
            }
        }
    }

    #[test]
    fn values_are_of_the_right_size_and_repeat_with_the_seed() {
        let dims = ["batch_size", "4", "height", "width"];
        let latents = make("latent_sample", &dims).expect("made");
        assert_eq!(latents.shape(), [2, 4, 3, 1]);
        assert_eq!(latents, make("latent_sample", &dims).expect("made"));
        let noise = make("hidden_states", &["100", "100"]).expect("made");
        let noise = noise.as_f32().expect("floats");
        assert!((noise.mean().expect("some")).abs() < 0.05);
        assert!((noise.std(0.0) - 1.0).abs() < 0.05);
    }

    #[test]
    fn what_cannot_be_made_is_an_error() {
        for (name, dims, said) in [
            ("secret", vec!["2"], "no component"),
            ("sample", vec!["depth"], "`depth`"),
            ("sample", vec!["0"], "empty"),
            ("sample", vec!["9999999999999", "9999999999999"], "too large"),
            ("input_ids", vec!["batch_size"], "expected [batch_size, sequence_length]"),
        ] {
            let reason = make(name, &dims).expect_err(name);
            assert!(reason.contains(said), "{reason}");
        }
    }
}

//! The whole transformer out of its parts: one pass forward, one backward.

use std::collections::HashMap;

use ndarray::ArrayD;
use pixart_exporter::graph::{
    LORA_SCALE,
    dim::Dim,
    ir::{Graph, ValueInfo},
};
use pixart_exporter::naming::TransformerConfig;
use pixart_exporter::profile::Profile;
use pixart_runtime::engine::{Engine, EngineError, Value};

use crate::session::{GraphSession, Results, SessionError};
use crate::tensors::Values;

use super::{GRADIENT, GradientError, PartKind, Training, part_graphs, sum_graph};

/// Values under the names of the diffusers checkpoint, in its shapes. With adapters, those of the layers
/// are `<layer>.lora_A.weight[rank, in]` and `<layer>.lora_B.weight[out, rank]`, and `lora_scale` is a number
/// without axes (alpha divided by rank).
pub type Weights = Values;

/// Gradients under the names and in the shapes of their weights.
pub type Gradients = Values;

/// What the transformer reads in one step, see
/// [`build`](pixart_exporter::models::transformer::build). Several parts read some of it: bring it to the
/// device with [`Inputs::to_device`] first.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Noisy latents `[batch, in_channels, height, width]`, f32.
    pub hidden_states: Value,
    /// Text encoder states `[batch, length, caption_channels]`, f32.
    pub encoder_hidden_states: Value,
    /// `[batch, length]`, i64: 1 keep, 0 padding.
    pub encoder_attention_mask: Value,
    /// Training steps `[batch]`, f32, 0 to 999.
    pub timestep: Value,
    /// For a model with size conditions: `resolution[batch, 2]` and `aspect_ratio[batch, 1]`, f32.
    pub conditions: Option<[Value; 2]>,
}

impl Inputs {
    /// The same where the engine computes.
    ///
    /// # Errors
    /// When there is no room, or the device fails.
    pub fn to_device(self, engine: &dyn Engine) -> Result<Self, EngineError> {
        let there = |value: Value| engine.to_device(value.into_tensor()?);
        let conditions = self.conditions.map(|[resolution, aspect_ratio]| {
            Ok::<_, EngineError>([there(resolution)?, there(aspect_ratio)?])
        });
        Ok(Self {
            hidden_states: there(self.hidden_states)?,
            encoder_hidden_states: there(self.encoder_hidden_states)?,
            encoder_attention_mask: there(self.encoder_attention_mask)?,
            timestep: there(self.timestep)?,
            conditions: conditions.transpose()?,
        })
    }
}

/// What a pass forward leaves for the pass backward: what goes from part to part.
pub struct Pass {
    /// The prediction `[batch, out_channels, height, width]`.
    pub output: ArrayD<f32>,
    inputs: Known,
    /// The tokens before each block, and after the last one.
    tokens: Vec<Value>,
}

/// What the parts read beside weights, by name.
type Known = HashMap<&'static str, Value>;

/// Why a pass through the transformer fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransformerError {
    /// A part's graph cannot be built or differentiated.
    #[error("the {part} graph of the transformer: {source}")]
    Gradient {
        /// The part.
        part: &'static str,
        /// Why.
        source: GradientError,
    },
    /// A graph needs a tensor that was not given.
    #[error(
        "{part}: no tensor `{name}` among the {count} weights and the inputs; expected every tensor of \
         the configuration's model under its diffusers name"
    )]
    Missing {
        /// The part.
        part: String,
        /// The tensor.
        name: String,
        /// How many weights there are.
        count: usize,
    },
    /// A graph gave no result of a name that it has.
    #[error("the engine gave no `{name}`; expected every output of the graph")]
    NoResult {
        /// The output.
        name: String,
    },
    /// A tensor has another shape than another one asks for.
    #[error("{name}: found shape {found:?}; expected {expected:?}")]
    Shape {
        /// The tensor.
        name: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// What it has to be.
        expected: Vec<usize>,
    },
    /// A graph cannot be loaded or run.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A result has another type than its graph says.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A transformer that can be differentiated: three or four small graphs, loaded once. The weights are
/// given to each pass. Weights, gradients and what goes from part to part stay where the engine computes;
/// only the prediction and its gradient come from there and go there.
pub struct TrainedTransformer {
    config: TransformerConfig,
    embedding: Sessions,
    block: Option<Sessions>,
    compressed: Option<Sessions>,
    last: Sessions,
    /// Adds two vectors.
    sum: GraphSession,
}

/// The graphs of one part, loaded.
struct Sessions {
    part: &'static str,
    forward: GraphSession,
    backward: Option<GraphSession>,
    weights: Vec<ValueInfo>,
}

/// The gradients of what the other parts read from the embedding, beside the tokens: the first from the
/// final part, the others from every block.
const SHARED: [&str; 3] = ["gradient.time_embedding", "gradient.modulation", "gradient.captions"];
type Shared = [Option<Value>; 3];

impl TrainedTransformer {
    /// Builds the graphs for a configuration and loads them. A pass backward gives the gradients of what
    /// is trained. An engine without kernels for a precision of 16 bits computes in 32 on rounded numbers.
    ///
    /// # Errors
    /// A configuration that does not fit together, no room for temporary files, or an engine that lacks
    /// an operator.
    pub fn load(
        engine: &dyn Engine,
        config: &TransformerConfig,
        training: &Training,
    ) -> Result<Self, TransformerError> {
        let training = &training.on(engine);
        let load =
            |kind, to_embedding| Sessions::load(engine, config, kind, training, to_embedding);
        let embedding = load(PartKind::Embedding, true)?;
        let load = |kind| load(kind, embedding.backward.is_some());
        let is_compressed = |layer: &usize| compressed(config, *layer);
        let any = |wanted| (0..config.num_layers).any(|layer| is_compressed(&layer) == wanted);
        let block =
            |compressed| any(compressed).then(|| load(PartKind::Block { compressed })).transpose();
        Ok(Self {
            block: block(false)?,
            compressed: block(true)?,
            last: load(PartKind::Final)?,
            config: config.clone(),
            embedding,
            sum: GraphSession::load(
                engine,
                &sum_graph()
                    .map_err(|source| TransformerError::Gradient { part: "sum", source })?,
            )?,
        })
    }

    /// Names and shapes of all the weights that a pass reads, adapters included; their rank is an open size.
    pub fn weights(&self) -> Vec<(String, Vec<Dim>)> {
        let mut all = Vec::new();
        let mut add = |prefix: &str, sessions: &Sessions| {
            let named = |w: &ValueInfo| (format!("{prefix}{}", w.name), w.shape.clone());
            all.extend(sessions.weights.iter().map(named));
        };
        add("", &self.embedding);
        for layer in 0..self.config.num_layers {
            let sessions = match compressed(&self.config, layer) {
                true => &self.compressed,
                false => &self.block,
            };
            sessions.iter().for_each(|sessions| add(&prefix(layer), sessions));
        }
        add("", &self.last);
        all
    }

    /// The prediction for `inputs`, and what the gradient needs.
    ///
    /// # Errors
    /// When a weight or an input is missing or has another shape than the configuration says, or when
    /// the engine fails.
    pub fn forward(
        &mut self,
        weights: &Weights,
        inputs: &Inputs,
    ) -> Result<Pass, TransformerError> {
        let mut known = HashMap::from([
            ("hidden_states", inputs.hidden_states.clone()),
            ("encoder_hidden_states", inputs.encoder_hidden_states.clone()),
            ("encoder_attention_mask", inputs.encoder_attention_mask.clone()),
            ("timestep", inputs.timestep.clone()),
        ]);
        if let Some([resolution, aspect_ratio]) = &inputs.conditions {
            known.insert("resolution", resolution.clone());
            known.insert("aspect_ratio", aspect_ratio.clone());
        }
        let mut results = self.embedding.forward(weights, "", &known)?;
        for name in ["time_embedding", "modulation", "captions"] {
            known.insert(name, take(&mut results, name)?);
        }
        let mut tokens = vec![take(&mut results, "tokens")?];
        for layer in 0..self.config.num_layers {
            known.insert("tokens", tokens[layer].clone());
            let mut results = self.sessions(layer).forward(weights, &prefix(layer), &known)?;
            tokens.push(take(&mut results, "out_tokens")?);
        }
        known.insert("tokens", tokens[self.config.num_layers].clone());
        let mut results = self.last.forward(weights, "", &known)?;
        let name = "out_hidden_states";
        let output = take(&mut results, name)?.into_tensor()?.into_f32(name)?;
        known.remove("tokens");
        Ok(Pass { output, inputs: known, tokens })
    }

    /// The gradients of the trained weights, by name, from `gradient`, that of the prediction and of its
    /// shape.
    ///
    /// # Errors
    /// As [`Self::forward`], and when the gradient has another shape than the prediction.
    pub fn backward(
        &mut self,
        weights: &Weights,
        pass: Pass,
        gradient: ArrayD<f32>,
    ) -> Result<Gradients, TransformerError> {
        let mut found = Gradients::new();
        self.backward_by_part(weights, pass, gradient, &mut |name, value| {
            found.insert(name, value);
            Ok::<(), TransformerError>(())
        })?;
        Ok(found)
    }

    /// The same; each gradient is given to `ready` as soon as its part is done, the last part's first.
    ///
    /// # Errors
    /// As [`Self::backward`], and what `ready` fails with.
    pub fn backward_by_part<E: From<TransformerError>>(
        &mut self,
        weights: &Weights,
        pass: Pass,
        gradient: ArrayD<f32>,
        ready: &mut dyn FnMut(String, Value) -> Result<(), E>,
    ) -> Result<(), E> {
        if gradient.shape() != pass.output.shape() {
            let error = TransformerError::Shape {
                name: "the gradient of the prediction",
                found: gradient.shape().to_vec(),
                expected: pass.output.shape().to_vec(),
            };
            return Err(error.into());
        }
        let Pass { inputs: mut known, mut tokens, .. } = pass;
        let mut keep = |prefix: &str, results: Results| -> Result<(), E> {
            for (name, value) in results {
                let name = name.strip_prefix(GRADIENT).unwrap_or(&name);
                // The final layer and every block have a table of that name, the prefix tells them apart.
                ready(format!("{prefix}{name}"), value)?;
            }
            Ok(())
        };

        known.insert("gradient.out_hidden_states", gradient.into());
        known.extend(tokens.pop().map(|tokens| ("tokens", tokens)));
        let mut results = self.last.backward(weights, "", &known)?;
        let mut d_tokens = take(&mut results, "gradient.tokens")?;
        let to_embedding = self.embedding.backward.is_some();
        let mut d_shared: Shared = [None, None, None];
        if to_embedding {
            d_shared[0] = Some(take(&mut results, "gradient.time_embedding")?);
        }
        keep("", results)?;

        for layer in (0..self.config.num_layers).rev() {
            known.extend(tokens.pop().map(|tokens| ("tokens", tokens)));
            known.insert("gradient.out_tokens", d_tokens);
            let mut results = self.sessions(layer).backward(weights, &prefix(layer), &known)?;
            d_tokens = take(&mut results, "gradient.tokens")?;
            if to_embedding {
                for (sum, name) in d_shared.iter_mut().zip(SHARED).skip(1) {
                    let part = take(&mut results, name)?;
                    *sum = Some(match sum.take() {
                        Some(sum) => self.added(sum, part)?,
                        None => part,
                    });
                }
            }
            keep(&prefix(layer), results)?;
        }

        if to_embedding {
            known.insert("gradient.tokens", d_tokens);
            for (sum, name) in d_shared.into_iter().zip(SHARED) {
                // Without any block nothing depends on them.
                let like = name.strip_prefix(GRADIENT).unwrap_or(name);
                let zeros = || ArrayD::<f32>::zeros(known[like].shape()).into();
                let sum = sum.unwrap_or_else(zeros);
                known.insert(name, sum);
            }
            keep("", self.embedding.backward(weights, "", &known)?)?;
        }
        Ok(())
    }

    /// The sum of two values of one shape.
    fn added(&mut self, a: Value, b: Value) -> Result<Value, TransformerError> {
        let (shape, size) = (a.shape().to_vec(), [a.size()]);
        let [a, b] = [a, b].map(|value| value.reshaped(&size));
        let mut results = self.sum.run(&[("a", &a), ("b", &b)])?;
        Ok(take(&mut results, "sum")?.reshaped(&shape))
    }

    fn sessions(&mut self, layer: usize) -> &mut Sessions {
        let sessions = match compressed(&self.config, layer) {
            true => &mut self.compressed,
            false => &mut self.block,
        };
        sessions.as_mut().expect("loaded for the layers of the configuration")
    }
}

fn compressed(config: &TransformerConfig, layer: usize) -> bool {
    config.kv_compression.as_ref().is_some_and(|c| c.layers.contains(&layer))
}

fn prefix(layer: usize) -> String {
    format!("transformer_blocks.{layer}.")
}

fn take(results: &mut Results, name: &str) -> Result<Value, TransformerError> {
    match results.iter().position(|(found, _)| found == name) {
        Some(index) => Ok(results.swap_remove(index).1),
        None => Err(TransformerError::NoResult { name: name.to_owned() }),
    }
}

impl Sessions {
    fn load(
        engine: &dyn Engine,
        config: &TransformerConfig,
        kind: PartKind,
        training: &Training,
        to_embedding: bool,
    ) -> Result<Self, TransformerError> {
        let part = kind.as_str();
        let graphs = part_graphs(config, Profile::Ort, kind, training, to_embedding)
            .map_err(|source| TransformerError::Gradient { part, source })?;
        let load = |graph: &Graph| GraphSession::load(engine, graph);
        Ok(Self {
            part,
            forward: load(&graphs.forward)?,
            backward: graphs.backward.as_ref().map(load).transpose()?,
            weights: graphs.weights,
        })
    }

    fn forward(
        &mut self,
        weights: &Weights,
        prefix: &str,
        known: &Known,
    ) -> Result<Results, TransformerError> {
        run(&mut self.forward, self.part, weights, prefix, known)
    }

    fn backward(
        &mut self,
        weights: &Weights,
        prefix: &str,
        known: &Known,
    ) -> Result<Results, TransformerError> {
        match &mut self.backward {
            Some(backward) => run(backward, self.part, weights, prefix, known),
            None => Ok(Vec::new()),
        }
    }
}

fn run(
    session: &mut GraphSession,
    part: &str,
    weights: &Weights,
    prefix: &str,
    known: &Known,
) -> Result<Results, TransformerError> {
    let find = |name: &String| {
        let prefix = if name == LORA_SCALE { "" } else { prefix };
        let weight = || weights.get(&format!("{prefix}{name}"));
        known.get(name.as_str()).or_else(weight).ok_or_else(|| TransformerError::Missing {
            part: format!("{prefix}{part}"),
            name: format!("{prefix}{name}"),
            count: weights.len(),
        })
    };
    let names = session.inputs().to_vec();
    let inputs: Vec<(&str, &Value)> = names
        .iter()
        .map(|name| Ok((name.as_str(), find(name)?)))
        .collect::<Result<_, TransformerError>>()?;
    Ok(session.run(&inputs)?)
}

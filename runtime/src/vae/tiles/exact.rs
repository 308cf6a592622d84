//! Tiles that give what the whole picture would have given.
//!
//! The graph is cut into stretches, and each goes over the whole picture before the next one starts.
//! In a stretch, a tile takes with it all around it that the convolutions reach, and only the pixels
//! that had all of their surroundings are kept. The norms need mean and variance of the whole picture:
//! the stretch runs up to the first norm over all tiles, then up to the second with the statistics of
//! the first given, and so on, and at last to its end. So the only differences from the whole picture
//! are those of rounding.

use std::{ops::Range, path::Path};

use ndarray::{Array4, ArrayD, ArrayView4, ArrayViewD, Axis, Ix4, concatenate, s};

use super::{TilingOptions, plan};
use crate::{
    engine::{Chain, Engine, EngineError, GraphPart, Norm, Part, PartValue},
    tensor::Tensor,
};

/// Runs the auto-encoder's half in the graph `model` on `input`, f32 `[batch, channels, height, width]`,
/// in tiles. `None` if the graph cannot be cut: it does not compute in f32, or is no such half.
///
/// # Errors
/// When the file cannot be read, or the engine does not load parts of graphs or fails.
pub fn run(
    engine: &dyn Engine,
    model: &Path,
    input: &ArrayD<f32>,
    options: &TilingOptions,
) -> Result<Option<ArrayD<f32>>, EngineError> {
    let chain = match (Chain::open(model)?, input.shape()) {
        (Some(chain), &[_, _, h, w]) if plan::plan(&chain, [h, w], 0).is_some() => chain,
        _ => return Ok(None),
    };
    let run = Run { engine, model, chain: &chain, options, free: options.free() };
    let mut pictures = Vec::with_capacity(input.shape()[0]);
    for picture in input.axis_iter(Axis(0)) {
        let picture = picture.insert_axis(Axis(0)).to_owned();
        pictures.push(run.run(picture.into_dimensionality().expect("four axes"))?);
    }
    if let [_] = pictures[..] {
        return Ok(pictures.pop().map(Array4::into_dyn));
    }
    let views: Vec<_> = pictures.iter().map(|picture| picture.view()).collect();
    Ok(Some(concatenate(Axis(0), &views).expect("pictures of one size").into_dyn()))
}

/// One picture's way through a chain.
struct Run<'a> {
    engine: &'a dyn Engine,
    model: &'a Path,
    chain: &'a Chain,
    options: &'a TilingOptions,
    /// Bytes of memory that are free.
    free: u64,
}

/// Statistics of norms, as inputs of the sessions.
type Statistics = Vec<(String, Tensor)>;

impl Run<'_> {
    /// `picture` is f32 `[1, channels, height, width]`.
    fn run(&self, picture: Array4<f32>) -> Result<Array4<f32>, EngineError> {
        let sides = [picture.dim().2, picture.dim().3];
        let budget = plan::budget(self.chain, sides, self.options.tile_size, self.free);
        let stretches = plan::plan(self.chain, sides, budget).unwrap_or_default();
        let knots = &self.chain.knots;
        let original = picture.clone();
        let mut value = picture;
        for stretch in stretches {
            let part = self.chain.part(stretch.from, stretch.to);
            value = match stretch.tiled {
                false => self.whole(part, stretch.from > 0, value, &original)?,
                true => {
                    // A tile is so many pixels of the picture wherever it is.
                    let finest = |a: (usize, usize), b: (usize, usize)| match a.0 * b.1 > b.0 * a.1
                    {
                        true => a,
                        false => b,
                    };
                    let (up, down) = knots.iter().map(|knot| knot.scale).fold((0, 1), finest);
                    let scale = knots[stretch.to].scale;
                    let tile = self.options.tile_size * scale.0 * down / (scale.1 * up);
                    let target = knots[stretch.to].channels;
                    self.tiled(part, tile.max(8), target, value)?
                }
            };
        }
        Ok(value)
    }

    /// A stretch as a whole. Its sizes come of the graph's own input.
    fn whole(
        &self,
        part: Part<'_>,
        inner: bool,
        value: Array4<f32>,
        original: &Array4<f32>,
    ) -> Result<Array4<f32>, EngineError> {
        let mut session = self.engine.load_part(self.model, &graph_part(part, &[]), Vec::new())?;
        let value = Tensor::from(value);
        let mut inputs = vec![(part.input, &value)];
        let original = (inner && part.reads_sizes()).then(|| Tensor::from(original.clone()));
        if let Some(original) = &original {
            inputs.push((&self.chain.knots[0].name, original));
        }
        only(session.run(&inputs)?, part.output)
    }

    fn tiled(
        &self,
        part: Part<'_>,
        tile: usize,
        channels: usize,
        value: Array4<f32>,
    ) -> Result<Array4<f32>, EngineError> {
        let mut statistics = Statistics::new();
        let mut done: Vec<&Norm> = Vec::new();
        for norm in part.norms() {
            let mut sums = Sums::new(norm);
            if norm.input == part.input {
                sums.add(value.view().into_dyn());
            } else {
                let before = part.up_to(&norm.input);
                self.pass(before, &done, &statistics, tile, &value, |_, made| sums.add(made))?;
            }
            statistics.extend(sums.inputs(norm));
            done.push(norm);
        }
        let (up, down) = part.scale();
        let (_, _, height, width) = value.dim();
        let mut result = Array4::zeros((1, channels, height * up / down, width * up / down));
        self.pass(part, &done, &statistics, tile, &value, |[rows, columns], made| {
            result.slice_mut(s![.., .., rows, columns]).assign(&made);
        })?;
        Ok(result)
    }

    /// Runs `part` over all tiles; `each` gets the place of a result and its pixels.
    fn pass(
        &self,
        part: Part<'_>,
        norms: &[&Norm],
        statistics: &Statistics,
        tile: usize,
        value: &Array4<f32>,
        mut each: impl FnMut([Range<usize>; 2], ArrayViewD<'_, f32>),
    ) -> Result<(), EngineError> {
        let part_of_graph = graph_part(part, norms);
        let mut session = self.engine.load_part(self.model, &part_of_graph, Vec::new())?;
        let (_, _, height, width) = value.dim();
        let (rows, columns) = (windows(part, height, tile), windows(part, width, tile));
        for row in &rows {
            for column in &columns {
                let cut = s![.., .., row.taken.clone(), column.taken.clone()];
                let taken = Tensor::from(value.slice(cut).to_owned());
                let mut inputs: Vec<(&str, &Tensor)> = vec![(part.input, &taken)];
                inputs.extend(statistics.iter().map(|(name, tensor)| (name.as_str(), tensor)));
                let made = only(session.run(&inputs)?, part.output)?;
                let kept = s![.., .., row.kept(), column.kept()];
                let place = [row.result.clone(), column.result.clone()];
                each(place, made.slice(kept).into_dyn());
            }
        }
        Ok(())
    }
}

fn graph_part(part: Part<'_>, norms: &[&Norm]) -> GraphPart {
    GraphPart {
        inputs: vec![PartValue::floats(part.input, 4)],
        outputs: vec![PartValue::floats(part.output, 4)],
        given_statistics: norms.iter().map(|norm| norm.output.clone()).collect(),
    }
}

/// The only result of a session.
fn only(outputs: Vec<(String, Tensor)>, name: &str) -> Result<Array4<f32>, EngineError> {
    let wrong = |found: String| EngineError::OutputType {
        output: name.to_owned(),
        found,
        expected: "f32 of four axes",
    };
    let (_, tensor) =
        outputs.into_iter().find(|(found, _)| found == name).ok_or_else(|| wrong("none".into()))?;
    let array: ArrayD<f32> = tensor.into_f32(name)?;
    let found = format!("{:?}", array.shape());
    array.into_dimensionality::<Ix4>().map_err(|_| wrong(found))
}

/// What a tile takes along one side, and what it makes of it.
#[derive(Debug, PartialEq, Eq)]
struct Window {
    /// Pixels of the input.
    taken: Range<usize>,
    /// Pixels of the result that are kept.
    result: Range<usize>,
    /// Where these begin in what the tile makes.
    skipped: usize,
}

impl Window {
    fn kept(&self) -> Range<usize> {
        self.skipped..self.skipped + self.result.len()
    }
}

/// Cuts a side of `side` input pixels for results of at most `tile` pixels. All windows take as many
/// pixels as the widest, because engines prepare themselves for each size.
fn windows(part: Part<'_>, side: usize, tile: usize) -> Vec<Window> {
    let (up, down) = part.scale();
    let made = side * up / down;
    let count = made.div_ceil(tile);
    let results: Vec<_> = (0..count).map(|k| made * k / count..made * (k + 1) / count).collect();
    let taken: Vec<_> = results
        .iter()
        .map(|result| {
            let needed = part.needed(result.start as isize..result.end as isize);
            let start = needed.start.max(0) as usize / down * down;
            start..(needed.end as usize).next_multiple_of(down).min(side)
        })
        .collect();
    let widest = taken.iter().map(Range::len).max().unwrap_or(side);
    let windows = results.into_iter().zip(taken).map(|(result, taken)| {
        let start = taken.start.min(side - widest);
        Window { taken: start..start + widest, skipped: result.start - start * up / down, result }
    });
    windows.collect()
}

/// Sums over the pixels of each group.
struct Sums {
    groups: Vec<(f64, f64)>,
    count: f64,
}

impl Sums {
    fn new(norm: &Norm) -> Self {
        Self { groups: vec![(0.0, 0.0); norm.groups], count: 0.0 }
    }

    /// Adds `values[1, channels, …]`.
    fn add(&mut self, values: ArrayViewD<'_, f32>) {
        let channels = values.shape()[1];
        let per_group = channels / self.groups.len();
        let values: ArrayView4<'_, f32> = values.into_dimensionality().expect("four axes");
        for (channel, plane) in values.index_axis(Axis(0), 0).outer_iter().enumerate() {
            let (mut sum, mut squares) = (0.0, 0.0);
            for row in plane.outer_iter() {
                for &value in row {
                    let value = f64::from(value);
                    sum += value;
                    squares += value * value;
                }
            }
            let group = &mut self.groups[channel / per_group];
            *group = (group.0 + sum, group.1 + squares);
        }
        self.count += (values.len() / self.groups.len()) as f64;
    }

    fn inputs(&self, norm: &Norm) -> [(String, Tensor); 2] {
        let mean = |group: &(f64, f64)| group.0 / self.count;
        let factor = |group: &(f64, f64)| {
            let variance = (group.1 / self.count - mean(group).powi(2)).max(0.0);
            (variance + norm.epsilon).sqrt().recip()
        };
        let tensor = |of: &dyn Fn(&(f64, f64)) -> f64| {
            let values = self.groups.iter().map(|group| of(group) as f32).collect();
            let shape = (1, self.groups.len(), 1, 1);
            Tensor::from(Array4::from_shape_vec(shape, values).expect("one value a group"))
        };
        [
            (GraphPart::mean_of(&norm.output), tensor(&mean)),
            (GraphPart::factor_of(&norm.output), tensor(&factor)),
        ]
    }
}

//! Tiles that give what the whole picture would have given.
//!
//! The graph is cut into stages, and each goes over the whole picture before the next one starts. In a
//! stage, a tile takes with it all around it that the convolutions reach, and only the pixels that had all
//! of their surroundings are kept. The norms need mean and variance of the whole picture: these are summed up
//! while the value that is normalised is made. Where that value is kept between two stages, nothing is
//! computed twice for it; where memory does not allow that, the stage runs up to its first norm over all
//! tiles, then up to the second with the statistics of the first given, and so on, and at last to its
//! end. So the only differences from the whole picture are those of rounding.

use std::{collections::HashMap, path::Path};

use ndarray::{Array4, ArrayD, ArrayView3, Axis, concatenate, s};

use super::{
    TilingMode, TilingOptions,
    bands::{Bands, for_rows},
    plan::{Pass, Planner, Stage},
    statistics::Sums,
    windows::Window,
};
use crate::{
    engine::{Chain, Engine, EngineError, GraphPart, Part, PartValue, Plane, Value},
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
    let (Some(chain), &[_, _, height, width]) = (Chain::open(model)?, input.shape()) else {
        return Ok(None);
    };
    let planner = Planner::new(&chain, [height, width], options.tile(TilingMode::Exact));
    let Some(stages) = planner.stages(planner.budget(options.free())) else { return Ok(None) };
    let mut pictures = Vec::with_capacity(input.shape()[0]);
    for picture in input.axis_iter(Axis(0)) {
        let picture = picture.into_dimensionality().expect("four axes without the first");
        let (kept, statistics) = (HashMap::new(), HashMap::new());
        let run = Run { engine, model, chain: &chain, planner, picture, kept, statistics };
        pictures.push(run.run(&stages)?);
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
    planner: Planner<'a>,
    /// `[channels, height, width]`.
    picture: ArrayView3<'a, f32>,
    /// The values of the knot that was reached, by name.
    kept: HashMap<String, Bands>,
    /// Of norms whose input was made, by the norm's result: inputs of sessions.
    statistics: HashMap<String, [(String, Value); 2]>,
}

impl Run<'_> {
    fn run(mut self, stages: &[Stage]) -> Result<Array4<f32>, EngineError> {
        let knots = &self.chain.knots;
        self.keep(&knots[0].values[0], self.picture);
        for stage in stages {
            match stage.tiled {
                true => self.tiled(*stage)?,
                false => self.whole(*stage)?,
            }
        }
        let output = &knots[knots.len() - 1].values[0].name;
        Ok(self.kept.remove(output).map(Bands::into_whole).expect("the last stage makes it"))
    }

    /// Sums for the norms of a value.
    fn sums(&self, value: &Plane) -> Vec<Sums> {
        self.chain.norms_of(&value.name).map(|norm| Sums::new(norm, value.channels)).collect()
    }

    fn learn(&mut self, sums: &[Sums]) {
        for sums in sums {
            let inputs = sums.inputs().map(|(name, tensor)| (name, tensor.into()));
            self.statistics.insert(sums.norm().output.clone(), inputs);
        }
    }

    /// Keeps a value that is there as a whole.
    fn keep(&mut self, value: &Plane, elements: ArrayView3<'_, f32>) {
        let mut sums = self.sums(value);
        self.kept.insert(value.name.clone(), Bands::of(elements, &mut sums));
        self.learn(&sums);
    }

    /// Forgets what is not in the knot that was reached.
    fn forget(&mut self, reached: usize) {
        let values = &self.chain.knots[reached].values;
        self.kept.retain(|name, _| values.iter().any(|value| value.name == *name));
    }

    /// A stage as a whole. Its sizes come of the graph's own input.
    fn whole(&mut self, stage: Stage) -> Result<(), EngineError> {
        let part = self.chain.part(stage.from, stage.to);
        let cut = graph_part(&part, false);
        let mut session = self.engine.load_part(self.model, &cut, Vec::new())?;
        let take = |input: &Plane| self.kept.remove(&input.name).map(Bands::into_whole);
        let taken = part.inputs.iter().map(take);
        let taken = taken.map(|input| Tensor::from(input.expect("the stages before made it")));
        let taken: Vec<Tensor> = taken.collect();
        let mut inputs: Vec<_> =
            part.inputs.iter().map(|input| input.name.as_str()).zip(&taken).collect();
        let original =
            (stage.from > 0 && part.reads_sizes()).then(|| self.picture.insert_axis(Axis(0)));
        let original = original.map(|picture| Tensor::from(picture.to_owned()));
        if let Some(original) = &original {
            inputs.push((&self.chain.knots[0].values[0].name, original));
        }
        let made = session.run(&inputs)?;
        let made: HashMap<String, Value> =
            made.into_iter().map(|(name, tensor)| (name, tensor.into())).collect();
        drop(session);
        for output in &part.outputs {
            self.keep(output, Pixels::of(&made, output)?.view());
        }
        self.forget(stage.to);
        Ok(())
    }

    fn tiled(&mut self, stage: Stage) -> Result<(), EngineError> {
        let mut passes = self.planner.passes(stage.from, stage.to);
        let Some(last) = passes.pop() else { return Ok(()) };
        for pass in &passes {
            let mut sums: Vec<Vec<Sums>> =
                pass.part.outputs.iter().map(|output| self.sums(output)).collect();
            self.pass(
                pass,
                |output, place, made| {
                    for_rows(place, made, |channel, _, values| {
                        sums[output].iter_mut().for_each(|sums| sums.add(channel, values));
                    });
                },
                |_, _| {},
            )?;
            sums.iter().for_each(|sums| self.learn(sums));
        }
        self.last_pass(stage, &last)
    }

    /// The pass that makes the results. What is not needed after it goes row by row.
    fn last_pass(&mut self, stage: Stage, pass: &Pass<'_>) -> Result<(), EngineError> {
        let outputs = &pass.part.outputs;
        let sides = |value: &Plane| {
            let (_, height, width) = self.picture.dim();
            (value.side(height), value.side(width))
        };
        let new = |value: &Plane| Bands::new(value.channels, sides(value).0, sides(value).1);
        let mut results: Vec<Bands> = outputs.iter().map(new).collect();
        let mut sums: Vec<Vec<Sums>> = outputs.iter().map(|output| self.sums(output)).collect();
        let stays =
            |name: &str| self.chain.knots[stage.to].values.iter().any(|value| value.name == name);
        self.pass(
            pass,
            |output, place, made| results[output].write(place, made, &mut sums[output]),
            |kept, row| {
                let going = kept.iter_mut().filter(|(name, _)| !stays(name));
                going.for_each(|(_, bands)| bands.release(row));
            },
        )?;
        sums.iter().for_each(|sums| self.learn(sums));
        for (output, result) in outputs.iter().zip(results) {
            self.kept.insert(output.name.clone(), result);
        }
        self.forget(stage.to);
        Ok(())
    }

    /// Runs a part over all tiles. `each` gets the place of an output among the part's, of the tile, and its
    /// pixels; `done` is told after every row of tiles which rows of the inputs are done with.
    fn pass(
        &mut self,
        pass: &Pass<'_>,
        mut each: impl FnMut(usize, [&Window; 2], ArrayView3<'_, f32>),
        mut done: impl FnMut(&mut HashMap<String, Bands>, usize),
    ) -> Result<(), EngineError> {
        let part = &pass.part;
        let mut session = self.engine.load_part(self.model, &graph_part(part, true), Vec::new())?;
        let given: Vec<_> =
            part.norms().flat_map(|norm| &self.statistics[&norm.output]).cloned().collect();
        for (place, row) in pass.rows.iter().enumerate() {
            for column in &pass.columns {
                let taken = part.inputs.iter().map(|input| {
                    let tile = self.kept[&input.name].read(row.taken.clone(), column.taken.clone());
                    (input.name.clone(), Value::from(tile))
                });
                let taken: Vec<(String, Value)> = taken.collect();
                let inputs = taken.iter().chain(&given).map(|(name, value)| (name.as_str(), value));
                let made = session.run_values(&inputs.collect::<Vec<_>>())?;
                drop(taken);
                let made: HashMap<_, _> = made.into_iter().collect();
                for (output, value) in part.outputs.iter().enumerate() {
                    each(output, [row, column], Pixels::of(&made, value)?.view());
                }
            }
            if let Some(next) = pass.rows.get(place + 1) {
                done(&mut self.kept, next.taken.start);
            }
        }
        Ok(())
    }
}

/// Between the values at the ends of a part; with `given`, statistics of norms are inputs as well.
fn graph_part(part: &Part<'_>, given: bool) -> GraphPart {
    let floats = |values: &[Plane]| values.iter().map(|v| PartValue::floats(&v.name, 4)).collect();
    let norms = part.norms().filter(|_| given);
    GraphPart {
        inputs: floats(&part.inputs),
        outputs: floats(&part.outputs),
        given_statistics: norms.map(|norm| norm.output.clone()).collect(),
    }
}

/// A result of a session, where it lies if the processor can read it there.
enum Pixels<'a> {
    Here(ArrayView3<'a, f32>),
    Fetched(ArrayD<f32>),
}

impl<'a> Pixels<'a> {
    fn of(made: &'a HashMap<String, Value>, output: &Plane) -> Result<Self, EngineError> {
        let wrong = |found: String| EngineError::OutputType {
            output: output.name.clone(),
            found,
            expected: "f32 of four axes",
        };
        let value = made.get(&output.name).ok_or_else(|| wrong("none".to_owned()))?;
        let &[1, channels, height, width] = value.shape() else {
            return Err(wrong(format!("{:?}", value.shape())));
        };
        if channels != output.channels {
            return Err(wrong(format!("{channels} channels")));
        }
        match value.floats() {
            Some(floats) => ArrayView3::from_shape((channels, height, width), floats)
                .map(Self::Here)
                .map_err(|error| wrong(error.to_string())),
            None => value.to_tensor()?.into_f32(&output.name).map(Self::Fetched),
        }
    }

    fn view(&self) -> ArrayView3<'_, f32> {
        match self {
            Self::Here(view) => view.view(),
            Self::Fetched(array) => array.slice(s![0, .., .., ..]),
        }
    }
}

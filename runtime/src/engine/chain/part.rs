//! What lies between two knots of a chain.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use super::{Knot, Norm, Plane, Reach, Step, reduced};

/// What it takes to come from some values of a graph to later ones.
#[derive(Clone, Debug)]
pub(crate) struct Part<'a> {
    /// The values it starts from.
    pub inputs: Vec<Plane>,
    /// The values it ends with.
    pub outputs: Vec<Plane>,
    /// Only those that count for the outputs.
    steps: Vec<&'a Step>,
}

impl<'a> Part<'a> {
    /// From one knot to a later one. What is in both goes past it.
    pub(super) fn between(from: &Knot, to: &Knot, steps: &'a [Step]) -> Self {
        let fresh = |value: &&Plane| !from.values.contains(value);
        let outputs = to.values.iter().filter(fresh).cloned().collect();
        Self::pruned(&from.values, outputs, steps[from.node..to.node].iter())
    }

    fn pruned(
        inputs: &[Plane],
        outputs: Vec<Plane>,
        steps: impl DoubleEndedIterator<Item = &'a Step>,
    ) -> Self {
        let mut wanted: HashSet<&str> = outputs.iter().map(|value| value.name.as_str()).collect();
        let mut kept = Vec::new();
        for step in steps.rev() {
            // Sizes are no pixels, so nothing leads back to the nodes that ask for them.
            if step.inputs.is_empty() || wanted.contains(step.output.as_str()) {
                wanted.extend(step.inputs.iter().map(String::as_str));
                kept.push(step);
            }
        }
        kept.reverse();
        let inputs = inputs.iter().filter(|input| wanted.contains(input.name.as_str()));
        let inputs = inputs.cloned().collect();
        drop(wanted);
        Self { inputs, outputs, steps: kept }
    }

    /// Whether tiles can go through it.
    pub fn is_local(&self) -> bool {
        self.steps.iter().all(|step| {
            !step.inputs.is_empty()
                && (!matches!(step.reach, Reach::Anywhere) || step.norm.is_some())
        })
    }

    /// Whether it asks for the sides of the graph's input.
    pub fn reads_sizes(&self) -> bool {
        self.steps.iter().any(|step| step.inputs.is_empty())
    }

    /// Its norms in the order of computation.
    pub fn norms(&self) -> impl Iterator<Item = &'a Norm> + use<'_, 'a> {
        self.steps.iter().filter_map(|step| step.norm.as_ref())
    }

    /// The parts that make the input of one norm each, for the norms whose input is no input of this part. It may
    /// be one of its outputs. In the order of computation.
    pub fn up_to_norms(&self) -> Vec<Self> {
        let mut seen: HashSet<&str> = self.inputs.iter().map(|value| value.name.as_str()).collect();
        let inside = self.norms().filter(|norm| seen.insert(&norm.input));
        let part = |norm: &Norm| {
            let end = self.steps.iter().position(|step| step.output == norm.input)?;
            let step = self.steps[end];
            let (channels, scale) = (step.made.channels, step.made.scale);
            let output = Plane { name: step.output.clone(), channels, scale };
            let steps = self.steps[..=end].iter().copied();
            Some(Self::pruned(&self.inputs, vec![output], steps))
        };
        inside.filter_map(part).collect()
    }

    /// By what the sides of the outputs differ from those of the inputs, as a fraction.
    pub fn scale(&self) -> (usize, usize) {
        match (self.inputs.first(), self.outputs.first()) {
            (Some(input), Some(output)) => {
                let ((a, b), (c, d)) = (input.scale, output.scale);
                reduced((c * b, d * a))
            }
            _ => (1, 1),
        }
    }

    /// Multiplications, about, for one pixel of the graph's input. Other steps count as many as take their
    /// time.
    pub fn work(&self) -> f64 {
        let pixels = |(up, down): (usize, usize)| (up as f64 / down as f64).powi(2);
        self.steps.iter().map(|step| step.made.work as f64 * pixels(step.made.scale)).sum()
    }

    /// The results of its convolutions.
    #[cfg(test)]
    pub fn convolutions(&self) -> impl Iterator<Item = &'a str> + use<'_, 'a> {
        let convolutions = self.steps.iter().filter(|step| matches!(step.reach, Reach::Window(..)));
        convolutions.map(|step| step.output.as_str())
    }

    /// How many numbers its widest value has for one pixel of the outputs.
    pub fn widest(&self) -> f64 {
        let (up, down) = self.outputs.first().map_or((1, 1), |output| output.scale);
        let numbers = |channels: usize, scale: (usize, usize)| {
            channels as f64 * ((scale.0 * down) as f64 / (scale.1 * up) as f64).powi(2)
        };
        let inputs = self.inputs.iter().map(|value| numbers(value.channels, value.scale));
        let inside = self.steps.iter().map(|step| numbers(step.made.channels, step.made.scale));
        inputs.chain(inside).fold(1.0, f64::max)
    }

    /// The range of the inputs that a range of the outputs depends on. It can reach over the ends.
    pub fn needed(&self, result: Range<isize>) -> Range<isize> {
        let union = |a: &Range<isize>, b: &Range<isize>| a.start.min(b.start)..a.end.max(b.end);
        let outputs = self.outputs.iter().map(|output| (output.name.as_str(), result.clone()));
        let mut needed: HashMap<&str, Range<isize>> = outputs.collect();
        for step in self.steps.iter().rev() {
            let Some(range) = needed.get(step.output.as_str()).cloned() else { continue };
            let range = step.reach.needed(range);
            for input in &step.inputs {
                let entry = needed.entry(input).or_insert(range.clone());
                *entry = union(entry, &range);
            }
        }
        let inputs = self.inputs.iter().filter_map(|input| needed.get(input.name.as_str()));
        inputs.cloned().reduce(|a, b| union(&a, &b)).unwrap_or(result)
    }
}

impl Reach {
    /// The range of a node's inputs that a range of its result depends on.
    fn needed(self, range: Range<isize>) -> Range<isize> {
        match self {
            Self::Window(kernel, stride, before) => {
                let (kernel, stride) = (kernel as isize, stride as isize);
                let start = range.start * stride - before as isize;
                start..(range.end - 1) * stride - before as isize + kernel
            }
            Self::Repeat(factor) => {
                let factor = factor as isize;
                range.start.div_euclid(factor)..(range.end - 1).div_euclid(factor) + 1
            }
            Self::Pointwise | Self::Anywhere => range,
        }
    }
}

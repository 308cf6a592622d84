//! The mean of the gradients of all ranks, sent in pieces while the rest is computed; and whose weights are whose.

use std::collections::BTreeMap;

use ndarray::{ArrayD, IxDyn};
use pixart_runtime::engine::EngineError;

use super::{Lost, Pending, Ranks};
use crate::tensors::{Values, value_floats};

/// Numbers of a piece: 25 MB, as PyTorch's DistributedDataParallel has it. Small ones cost a round trip each, with
/// large ones nothing is left to compute while they travel.
const PIECE: usize = 25 * 1024 * 1024 / 4;

/// Why gradients cannot be exchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// The others are gone.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// A gradient cannot be brought to where it is sent from.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Which rank keeps the optimizer's state of which weight, and moves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    owners: BTreeMap<String, usize>,
    world: usize,
}

impl Shares {
    /// Shares out weights of these sizes so that every rank has about equally much: the largest first, each to the
    /// one that has least. Names are in order, so that all ranks come to the same.
    pub fn new(sizes: &BTreeMap<String, usize>, world: usize) -> Self {
        let mut largest: Vec<(&String, usize)> =
            sizes.iter().map(|(name, &size)| (name, size)).collect();
        largest.sort_by_key(|&(_, size)| std::cmp::Reverse(size));
        let mut loads = vec![0; world];
        let mut owners = BTreeMap::new();
        for (name, size) in largest {
            let least = (0..world).min_by_key(|&rank| loads[rank]).unwrap_or(0);
            loads[least] += size;
            owners.insert(name.clone(), least);
        }
        Self { owners, world }
    }

    /// Whether a weight is that of `rank`.
    pub fn is_of(&self, name: &str, rank: usize) -> bool {
        self.owners.get(name) == Some(&rank)
    }

    /// Gives every rank the weights that the others have moved.
    pub fn spread(&self, ranks: &Ranks, weights: &mut Values) -> Result<(), ExchangeError> {
        let mut names = vec![Vec::new(); self.world];
        for (name, &owner) in &self.owners {
            names[owner].push(name);
        }
        let size = |name: &String| weights.get(name).map_or(0, |value| value.size());
        let limit = PIECE / self.world;
        // Each turn takes the next weights of every rank, about as many numbers of each.
        let mut turns: Vec<Vec<Vec<&String>>> = Vec::new();
        for (rank, names) in names.iter().enumerate() {
            let (mut turn, mut numbers) = (0, 0);
            for name in names {
                if numbers > 0 && numbers + size(name) > limit {
                    (turn, numbers) = (turn + 1, 0);
                }
                if turns.len() == turn {
                    turns.push(vec![Vec::new(); self.world]);
                }
                turns[turn][rank].push(name);
                numbers += size(name);
            }
        }
        let rank = ranks.place().rank;
        let mut under_way = Vec::new();
        for turn in turns {
            let counts =
                turn.iter().map(|names| names.iter().map(|name| size(name)).sum()).collect();
            let mut own = Vec::new();
            for name in &turn[rank] {
                if let Some(value) = weights.get(*name) {
                    own.extend_from_slice(&value_floats((*name).clone(), value)?.data);
                }
            }
            under_way.push((turn, ranks.gather(own, counts)));
        }
        for (turn, pending) in under_way {
            let numbers = pending.wait()?;
            let mut at = 0;
            for (owner, names) in turn.iter().enumerate() {
                for name in names {
                    let Some(value) = weights.get_mut(*name) else { continue };
                    let size = value.size();
                    if owner != rank {
                        *value = array(value.shape(), numbers[at..at + size].to_vec()).into();
                    }
                    at += size;
                }
            }
        }
        Ok(())
    }
}

/// The gradients of a step on their way to their mean over all ranks.
pub(crate) struct Exchange<'a> {
    ranks: &'a Ranks,
    shares: Option<&'a Shares>,
    /// What the next piece is made of, by the rank that gets it; without shares all of it is everyone's.
    next: Vec<Vec<Gradient>>,
    collected: usize,
    under_way: Vec<(Vec<Named>, Pending<Vec<f32>>)>,
}

struct Gradient {
    named: Named,
    numbers: Vec<f32>,
}

struct Named {
    name: String,
    shape: Vec<usize>,
}

impl<'a> Exchange<'a> {
    /// Nothing is under way. With `shares`, each rank gets the gradients of its weights only.
    pub fn begin(ranks: &'a Ranks, shares: Option<&'a Shares>) -> Self {
        let parts = shares.map_or(1, |shares| shares.world);
        let next = std::iter::repeat_with(Vec::new).take(parts).collect();
        Self { ranks, shares, next, collected: 0, under_way: Vec::new() }
    }

    /// Sends a gradient of this rank, sooner or later.
    pub fn send(&mut self, name: String, shape: &[usize], numbers: Vec<f32>) {
        let owner = self.shares.and_then(|shares| shares.owners.get(&name).copied()).unwrap_or(0);
        if self.collected > 0 && self.collected + numbers.len() > PIECE {
            self.flush();
        }
        self.collected += numbers.len();
        let named = Named { name, shape: shape.to_vec() };
        self.next[owner].push(Gradient { named, numbers });
    }

    fn flush(&mut self) {
        if self.collected == 0 {
            return;
        }
        let mut numbers = Vec::with_capacity(self.collected);
        let mut counts = Vec::new();
        let mut own = Vec::new();
        let rank = self.ranks.place().rank;
        for (owner, gradients) in self.next.iter_mut().enumerate() {
            let before = numbers.len();
            for Gradient { named, numbers: each } in gradients.drain(..) {
                numbers.extend_from_slice(&each);
                if self.shares.is_none() || owner == rank {
                    own.push(named);
                }
            }
            counts.push(numbers.len() - before);
        }
        self.collected = 0;
        let pending = match self.shares {
            None => self.ranks.sum(numbers),
            Some(_) => self.ranks.sum_shares(numbers, counts),
        };
        self.under_way.push((own, pending));
    }

    /// Waits for the rest. Gives the sums of all ranks, of this one's weights if there are shares, and the sum of the
    /// squares of all of them, whoever has them.
    pub fn finish(mut self) -> Result<(Values, f64), Lost> {
        self.flush();
        let (mut sums, mut squares) = (Values::new(), 0.0);
        for (own, pending) in self.under_way {
            let numbers = pending.wait()?;
            squares += numbers.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            let mut at = 0;
            for Named { name, shape } in own {
                let size = shape.iter().product::<usize>();
                sums.insert(name, array(&shape, numbers[at..at + size].to_vec()).into());
                at += size;
            }
        }
        if self.shares.is_some() {
            squares = self.ranks.sum_f64(vec![squares])?[0];
        }
        Ok((sums, squares))
    }
}

fn array(shape: &[usize], numbers: Vec<f32>) -> ArrayD<f32> {
    ArrayD::from_shape_vec(IxDyn(shape), numbers).expect("as many numbers as were sent")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_shared_out_evenly() {
        let sizes = [("a", 10), ("b", 7), ("c", 6), ("d", 5), ("e", 4), ("f", 0)];
        let sizes = sizes.map(|(name, size)| (name.to_owned(), size)).into();
        let shares = Shares::new(&sizes, 3);
        let load = |rank| {
            let own = sizes.iter().filter(|(name, _)| shares.is_of(name, rank));
            own.map(|(_, size)| size).sum::<usize>()
        };
        let mut loads = [0, 1, 2].map(load);
        loads.sort_unstable();
        assert_eq!(loads, [10, 11, 11]);
    }
}

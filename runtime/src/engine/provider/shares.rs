//! Who takes how much of the time.

use std::collections::BTreeMap;

/// Seconds of computation by provider and operator.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TimeShares {
    /// Seconds by provider and operator, in the engine's names; `tract` is its own provider.
    pub times: BTreeMap<(String, String), f64>,
}

impl TimeShares {
    /// The part of the time that a provider takes, 0 to 1.
    pub fn of(&self, ort_name: &str) -> f64 {
        let all: f64 = self.times.values().sum();
        let of = self.times.iter().filter(|((provider, _), _)| provider == ort_name);
        match all > 0.0 {
            true => of.map(|(_, seconds)| seconds).sum::<f64>() / all,
            false => 0.0,
        }
    }

    /// Operators of all other providers with their seconds, the longest first.
    pub fn others(&self, ort_name: &str) -> Vec<(String, f64)> {
        let others = self.times.iter().filter(|((provider, _), _)| provider != ort_name);
        let mut list: Vec<(String, f64)> =
            others.map(|((_, operator), seconds)| (operator.clone(), *seconds)).collect();
        list.sort_by(|a, b| b.1.total_cmp(&a.1));
        list
    }
}

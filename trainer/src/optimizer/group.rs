//! Groups of weights that have a learning rate and a decay of their own.

/// Weights whose names contain one of some texts, in any case.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The texts; none fits every name.
    pub names: Vec<String>,
    /// Factor on the learning rate.
    pub learning_rate: f64,
    /// Factor on the weight decay.
    pub weight_decay: f64,
}

impl Group {
    /// Upstream's only group beside the rest: neither normalisations nor biases decay.
    pub fn without_decay() -> Self {
        let names = ["layernorm", "bias"].map(str::to_owned).to_vec();
        Self { names, learning_rate: 1.0, weight_decay: 0.0 }
    }

    /// Everything else.
    fn rest() -> Self {
        Self { names: Vec::new(), learning_rate: 1.0, weight_decay: 1.0 }
    }

    fn fits(&self, weight: &str) -> bool {
        let weight = weight.to_lowercase();
        self.names.is_empty() || self.names.iter().any(|name| weight.contains(&name.to_lowercase()))
    }
}

/// The factors on learning rate and decay of a weight: those of the first group that fits, else 1.
pub(super) fn factors(groups: &[Group], weight: &str) -> (f64, f64) {
    let rest = Group::rest();
    let group = groups.iter().find(|group| group.fits(weight)).unwrap_or(&rest);
    (group.learning_rate, group.weight_decay)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_group_that_fits_counts() {
        let groups = [
            Group { names: vec!["adaln".to_owned()], learning_rate: 0.1, weight_decay: 1.0 },
            Group::without_decay(),
        ];
        assert_eq!(factors(&groups, "adaln_single.linear.bias"), (0.1, 1.0));
        assert_eq!(factors(&groups, "proj_out.bias"), (1.0, 0.0));
        assert_eq!(factors(&groups, "attn.norm_LayerNorm.weight"), (1.0, 0.0));
        assert_eq!(factors(&groups, "proj_out.weight"), (1.0, 1.0));
        let all = Group { names: vec![], learning_rate: 0.5, weight_decay: 2.0 };
        assert_eq!(factors(&[all], "proj_out.weight"), (0.5, 2.0));
    }
}

//! What tells the variants of the transformer apart, from options, `config.json` and tensors.

use std::collections::BTreeSet;

use super::config::{KvCompression, KvSampling};
use super::fields::Fields;
use super::official::{NULL_CAPTION, POSITION_TABLE};
use super::{ConfigError, evidence};
use crate::checkpoint::Checkpoint;

/// What the tensors of a transformer do not show. Every field may be left out: then `config.json`
/// counts, where there is one, and else what the published models have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VariantFlags {
    /// Side of the training latents: 32, 64, 128, 256 for the 256, 512, 1024 and 2K models.
    pub sample_size: Option<usize>,
    /// Scale of the position coordinates.
    pub interpolation_scale: Option<f64>,
    /// Attention heads of a block.
    pub num_attention_heads: Option<usize>,
    /// How keys and values are compressed.
    pub kv_compress_sampling: Option<KvSampling>,
    /// By which factor; 1 is not at all.
    pub kv_compress_scale_factor: Option<usize>,
    /// In which blocks, counted from 0; an empty list is none.
    pub kv_compress_layer: Option<Vec<usize>>,
}

impl VariantFlags {
    /// The first option that is set, as on the command line.
    pub fn first_set(&self) -> Option<&'static str> {
        [
            (SAMPLE_SIZE.flag, self.sample_size.is_some()),
            (SCALE_FLAG, self.interpolation_scale.is_some()),
            (HEADS_FLAG, self.num_attention_heads.is_some()),
            (SAMPLING.flag, self.kv_compress_sampling.is_some()),
            (FACTOR.flag, self.kv_compress_scale_factor.is_some()),
            (LAYERS.flag, self.kv_compress_layer.is_some()),
        ]
        .into_iter()
        .find_map(|(name, set)| set.then_some(name))
    }
}

pub(super) const SCALE_FLAG: &str = "--interpolation_scale";
pub(super) const HEADS_FLAG: &str = "--num_attention_heads";

/// The two spellings of a setting.
struct Setting {
    flag: &'static str,
    field: &'static str,
}

const SAMPLE_SIZE: Setting = Setting { flag: "--sample_size", field: "sample_size" };
const SAMPLING: Setting = Setting { flag: "--kv_compress_sampling", field: "kv_compress_sampling" };
const FACTOR: Setting =
    Setting { flag: "--kv_compress_scale_factor", field: "kv_compress_scale_factor" };
const LAYERS: Setting = Setting { flag: "--kv_compress_layer", field: "kv_compress_layer" };

/// A setting's value, from the option or else from `config.json`.
struct Given<T> {
    setting: Setting,
    from_flag: bool,
    value: T,
}

impl<T: PartialEq> Given<T> {
    fn new(setting: Setting, flag: Option<T>, field: Option<T>) -> Option<Self> {
        let from_flag = flag.is_some();
        flag.or(field).map(|value| Self { setting, from_flag, value })
    }

    /// An error if the tensors show another value.
    fn agree(
        &self,
        fields: &Fields,
        shown: &T,
        evidence: &str,
        display: impl Fn(&T) -> String,
    ) -> Result<(), ConfigError> {
        if self.value == *shown {
            return Ok(());
        }
        let path = fields.path().to_owned();
        let (found, expected) = (display(&self.value), display(shown));
        let evidence = evidence.to_owned();
        Err(match (self.from_flag, self.setting.flag, self.setting.field) {
            (true, flag, _) => ConfigError::FlagConflict { path, flag, found, expected, evidence },
            (false, _, field) => ConfigError::Conflict { path, field, found, expected, evidence },
        })
    }

    fn invalid(&self, fields: &Fields, found: String, expected: String) -> ConfigError {
        match self.from_flag {
            true => ConfigError::FlagInvalid { flag: self.setting.flag, found, expected },
            false => {
                let (path, field) = (fields.path().to_owned(), self.setting.field);
                ConfigError::Invalid { path, field, found, expected }
            }
        }
    }
}

/// Which of the two published families a transformer is from. Apart from the conditions of
/// α-1024 they have one architecture, so this is a label but for the position scale at 256 px.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// PixArt-Σ: captions of 300 tokens.
    Sigma,
    /// PixArt-α: captions of 120 tokens.
    Alpha,
}

impl Family {
    /// Seen from the conditions or from the length of the null caption. Without either, Σ.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        const ALPHA_TOKENS: usize = 120;
        let tokens = evidence::axis(checkpoint, NULL_CAPTION, 2, 0);
        match tokens {
            Some((tokens, _)) if tokens != ALPHA_TOKENS => Self::Sigma,
            Some(_) => Self::Alpha,
            None if size_conditions(checkpoint).is_some() => Self::Alpha,
            None => Self::Sigma,
        }
    }

    /// Name in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sigma => "sigma",
            Self::Alpha => "alpha",
        }
    }
}

/// A tensor that only the models with size conditions have.
pub(super) fn size_conditions(checkpoint: &Checkpoint) -> Option<&str> {
    evidence::containing(checkpoint, &[".resolution_embedder.", ".aspect_ratio_embedder."])
}

/// Whether the size and the aspect ratio of the picture are inputs: the tensors say it, and only where
/// there are none the file, whose default is wrong for Σ.
pub(super) fn has_size_conditions(
    fields: &Fields,
    checkpoint: &Checkpoint,
) -> Result<bool, ConfigError> {
    match evidence::is_empty(checkpoint) {
        true => Ok(fields.flag("use_additional_conditions")?.unwrap_or(false)),
        false => Ok(size_conditions(checkpoint).is_some()),
    }
}

/// Side of the training latents and scale of the position coordinates.
///
/// The option wins over the file, whose early revisions are wrong for one model; neither may
/// contradict a stored position table.
pub(super) fn position(
    fields: &Fields,
    flags: &VariantFlags,
    checkpoint: &Checkpoint,
    patch_size: usize,
) -> Result<(usize, f64), ConfigError> {
    let in_file = fields.size(SAMPLE_SIZE.field)?;
    let shown = stored_side(checkpoint).map(|(side, evidence)| (side * patch_size, evidence));
    let given = Given::new(SAMPLE_SIZE, flags.sample_size, in_file);
    let sample_size = match (given, shown) {
        (Some(given), shown) => {
            if let Some((shown, evidence)) = shown {
                given.agree(fields, &shown, &evidence, usize::to_string)?;
            }
            if given.value < patch_size || given.value > 1 << 16 {
                let expected = "32, 64, 128 or 256 for the 256, 512, 1024 or 2K model".to_owned();
                return Err(given.invalid(fields, given.value.to_string(), expected));
            }
            given.value
        }
        (None, Some((shown, _))) => shown,
        (None, None) => {
            return Err(ConfigError::Missing {
                path: fields.path().to_owned(),
                field: SAMPLE_SIZE.field,
                expected: format!(
                    "the side of the training latents, which no tensor shows: give {} 32, 64, 128 \
                     or 256 for the 256, 512, 1024 or 2K model",
                    SAMPLE_SIZE.flag
                ),
            });
        }
    };
    let scale = match flags.interpolation_scale {
        Some(scale) if scale.is_finite() && scale > 0.0 => Some(scale),
        Some(scale) => {
            return Err(ConfigError::FlagInvalid {
                flag: SCALE_FLAG,
                found: scale.to_string(),
                expected: "a number above 0".to_owned(),
            });
        }
        // A file that is wrong about the size is wrong about the scale.
        None if in_file.is_none_or(|size| size == sample_size) => {
            fields.positive("interpolation_scale")?
        }
        None => None,
    };
    let default = || default_interpolation_scale(Family::of(checkpoint), sample_size);
    Ok((sample_size, scale.unwrap_or_else(default)))
}

/// Rows of the square grid that a stored position table is for.
fn stored_side(checkpoint: &Checkpoint) -> Option<(usize, String)> {
    let (tokens, evidence) = evidence::axis(checkpoint, POSITION_TABLE.1, 3, 1)?;
    let side = tokens.isqrt();
    // Anything else is no table of a square model, and so no evidence; it is not read anyway.
    (side > 0 && side * side == tokens)
        .then(|| (side, format!("{evidence}: {side} by {side} tokens")))
}

/// The scale of the position coordinates when nobody says.
///
/// Σ was trained with `sample_size / 64`, α with 1 at 256 px as well. diffusers computes
/// `sample_size / 64` in whole numbers and at least 1, which is wrong for Σ at 256 px alone; a model
/// of another size can only come from diffusers, so its rule holds there.
fn default_interpolation_scale(family: Family, sample_size: usize) -> f64 {
    match (family, sample_size) {
        (Family::Sigma, 32) => 0.5,
        _ => (sample_size / 64).max(1) as f64,
    }
}

/// The compression of keys and values, if there is one.
pub(super) fn kv_compression(
    fields: &Fields,
    flags: &VariantFlags,
    checkpoint: &Checkpoint,
    num_layers: usize,
) -> Result<Option<KvCompression>, ConfigError> {
    let sampling = Given::new(SAMPLING, flags.kv_compress_sampling, fields.name(SAMPLING.field)?);
    let factor = Given::new(FACTOR, flags.kv_compress_scale_factor, fields.size(FACTOR.field)?);
    let set = |list: Vec<usize>| list.into_iter().collect::<BTreeSet<usize>>();
    let layers = Given::new(
        LAYERS,
        flags.kv_compress_layer.clone().map(set),
        fields.indexes(LAYERS.field)?.map(set),
    );
    match Convolutions::of(checkpoint) {
        Some(shown) => shown.compression(fields, sampling, factor, layers).map(Some),
        None => {
            let may_be_conv = evidence::is_empty(checkpoint);
            without_tensors(fields, sampling, factor, layers, num_layers, may_be_conv)
        }
    }
}

/// Compressed blocks as the tensors show them: only the convolution leaves any.
struct Convolutions {
    layers: BTreeSet<usize>,
    /// A tensor of one of them.
    tensor: String,
    /// Side of the kernels.
    factor: Option<(usize, String)>,
}

impl Convolutions {
    fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let mut found: Option<Self> = None;
        for name in checkpoint.names() {
            let Some((index, rest)) = evidence::layer(name, "transformer_blocks.") else {
                continue;
            };
            if !rest.starts_with("attn1.sr.") && !rest.starts_with("attn1.norm.") {
                continue;
            }
            let factor = match rest {
                "attn1.sr.weight" => evidence::axis(checkpoint, name, 4, 2),
                _ => None,
            };
            let found = found.get_or_insert_with(|| Self {
                layers: BTreeSet::new(),
                tensor: name.to_owned(),
                factor: None,
            });
            found.layers.insert(index);
            found.factor = found.factor.take().or(factor);
        }
        found
    }

    fn compression(
        self,
        fields: &Fields,
        sampling: Option<Given<KvSampling>>,
        factor: Option<Given<usize>>,
        layers: Option<Given<BTreeSet<usize>>>,
    ) -> Result<KvCompression, ConfigError> {
        let there = format!("found the tensor {}", self.tensor);
        if let Some(sampling) = sampling {
            sampling.agree(fields, &KvSampling::Conv, &there, KvSampling::to_string)?;
        }
        if let Some(layers) = layers {
            let evidence = "found attn.sr or attn.norm in these blocks";
            layers.agree(fields, &self.layers, evidence, display_layers)?;
        }
        let given = factor.as_ref().map(|factor| factor.value);
        if let (Some(factor), Some((shown, evidence))) = (&factor, &self.factor) {
            factor.agree(fields, shown, evidence, usize::to_string)?;
        }
        // Without a kernel, the check of all tensors will say that it is missing.
        let scale_factor = self.factor.map(|(factor, _)| factor).or(given).unwrap_or(2);
        Ok(KvCompression { sampling: KvSampling::Conv, scale_factor, layers: self.layers })
    }
}

/// The modes that leave no tensors, and all modes of a model that has none yet: all of it has to be said.
fn without_tensors(
    fields: &Fields,
    sampling: Option<Given<KvSampling>>,
    factor: Option<Given<usize>>,
    layers: Option<Given<BTreeSet<usize>>>,
    num_layers: usize,
    may_be_conv: bool,
) -> Result<Option<KvCompression>, ConfigError> {
    let off = factor.as_ref().is_some_and(|factor| factor.value == 1)
        || layers.as_ref().is_some_and(|layers| layers.value.is_empty());
    if off || (sampling.is_none() && factor.is_none() && layers.is_none()) {
        return Ok(None);
    }
    let missing = |setting: Setting, expected: &str| ConfigError::Missing {
        path: fields.path().to_owned(),
        field: setting.field,
        expected: format!(
            "{expected}, because another kv_compress setting is given and this model has no \
             tensors that would show it: give {}",
            setting.flag
        ),
    };
    let sampling = sampling.ok_or_else(|| missing(SAMPLING, "ave, uniform or uniform_every"))?;
    if sampling.value == KvSampling::Conv && !may_be_conv {
        let expected = "ave, uniform or uniform_every: the weights have no attn.sr tensors, which \
                        conv would read";
        return Err(sampling.invalid(fields, "conv".to_owned(), expected.to_owned()));
    }
    let factor = factor.ok_or_else(|| missing(FACTOR, "a factor such as 2"))?;
    if !(2..=256).contains(&factor.value) {
        return Err(factor.invalid(fields, factor.value.to_string(), "2 to 256".to_owned()));
    }
    let layers = layers.ok_or_else(|| missing(LAYERS, "block numbers such as 14 15 16"))?;
    if let Some(last) = layers.value.last().filter(|last| **last >= num_layers) {
        let expected = format!("numbers of blocks from 0 to {}", num_layers.saturating_sub(1));
        return Err(layers.invalid(fields, last.to_string(), expected));
    }
    Ok(Some(KvCompression {
        sampling: sampling.value,
        scale_factor: factor.value,
        layers: layers.value,
    }))
}

fn display_layers(layers: &BTreeSet<usize>) -> String {
    let list: Vec<String> = layers.iter().map(usize::to_string).collect();
    list.join(" ")
}

/// Whether queries and keys are normalised.
pub(super) fn qk_norm(fields: &Fields, checkpoint: &Checkpoint) -> Result<bool, ConfigError> {
    let field = "qk_norm";
    let tensor = evidence::containing(checkpoint, &[".attn1.q_norm.", ".attn1.k_norm."]);
    let shown = match tensor {
        Some(tensor) => (true, format!("found the tensor {tensor}")),
        None if evidence::is_empty(checkpoint) => return Ok(fields.flag(field)?.unwrap_or(false)),
        None => (false, "found no attn1.q_norm tensor".to_owned()),
    };
    fields.agreed(field, fields.flag(field)?, Some(shown), "true or false")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolation_scale_follows_the_training_size() {
        let cases = [(16, 1.0), (32, 0.5), (64, 1.0), (128, 2.0), (256, 4.0)];
        for (sample_size, scale) in cases {
            let found = default_interpolation_scale(Family::Sigma, sample_size);
            assert_eq!(found, scale, "{sample_size}");
        }
        assert_eq!(default_interpolation_scale(Family::Alpha, 32), 1.0);
        assert_eq!(default_interpolation_scale(Family::Alpha, 128), 2.0);
    }
}

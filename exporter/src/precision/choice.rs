//! Which scheme a component gets when so much is asked for.

use super::{Int8Mode, Precision, Scheme};
use crate::profile::Profile;
use crate::{Component, ExportOptions};

/// A precision that a component does not have.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrecisionError {
    /// The auto-encoder is not quantised.
    #[error(
        "{component}: found precision {precision}, expected fp32, fp16 or bf16: its convolutions are \
         small and lose too much when they are quantised; leave it at fp32"
    )]
    Vae {
        /// Decoder or encoder.
        component: Component,
        /// What was asked for.
        precision: Precision,
    },
    /// T5 with quantised activations.
    #[error(
        "text_encoder: found int8 mode dynamic, expected weight_only: the activations of T5 have \
         outliers that 8 bits cannot hold beside the rest"
    )]
    DynamicTextEncoder,
    /// 4 bits without the operator for them.
    #[error(
        "{component}: found precision int4 with profile {profile}, expected profile ort: no standard \
         operator multiplies 4-bit blocks without unpacking them to more than fp32 takes; use \
         profile ort or precision int8"
    )]
    Int4NeedsOrt {
        /// Which part.
        component: Component,
        /// What was asked for.
        profile: Profile,
    },
    /// A mode of int8 with another precision.
    #[error("found int8 mode {mode} with precision {precision}, expected precision int8")]
    ModeWithoutInt8 {
        /// The mode.
        mode: Int8Mode,
        /// What was asked for beside it.
        precision: Precision,
    },
}

/// What was chosen for a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub scheme: Scheme,
    /// What the user should know about it.
    pub warning: Option<String>,
}

/// The scheme of a component. In a whole pipeline the auto-encoder stays in fp32, and T5 is
/// quantised by its weights only; asked for `alone`, such a part must be able to do what was asked.
pub(crate) fn choose(
    options: &ExportOptions,
    component: Component,
    alone: bool,
) -> Result<Choice, PrecisionError> {
    let precision = options.precision;
    if let Some(mode) = options.int8_mode
        && precision != Precision::Int8
    {
        return Err(PrecisionError::ModeWithoutInt8 { mode, precision });
    }
    let profile = options.profile;
    let blocks = matches!(component, Component::Transformer | Component::TextEncoder);
    if blocks && precision == Precision::Int4 && profile != Profile::Ort {
        return Err(PrecisionError::Int4NeedsOrt { component, profile });
    }
    let mode = options.int8_mode.unwrap_or_default();
    match component {
        Component::Transformer => Ok(scheme(precision, mode).into()),
        Component::TextEncoder => match (precision, mode, alone) {
            (Precision::Int8, Int8Mode::Dynamic, true) => Err(PrecisionError::DynamicTextEncoder),
            _ => Ok(scheme(precision, Int8Mode::WeightOnly).into()),
        },
        _ => {
            let unasked = if alone { precision } else { Precision::Fp32 };
            vae(component, options.vae_precision.unwrap_or(unasked))
        }
    }
}

fn vae(component: Component, precision: Precision) -> Result<Choice, PrecisionError> {
    match precision {
        Precision::Fp32 => Ok(Scheme::Fp32.into()),
        Precision::Bf16 => Ok(Scheme::Bf16.into()),
        Precision::Fp16 => Ok(Choice {
            scheme: Scheme::Fp16,
            warning: Some(format!(
                "{component}: the SDXL auto-encoder overflows in fp16 and gives black pictures, \
                 unless these are the weights that were fine-tuned for fp16; fp32 is always right"
            )),
        }),
        Precision::Int8 | Precision::Int4 => Err(PrecisionError::Vae { component, precision }),
    }
}

fn scheme(precision: Precision, mode: Int8Mode) -> Scheme {
    match (precision, mode) {
        (Precision::Fp32, _) => Scheme::Fp32,
        (Precision::Fp16, _) => Scheme::Fp16,
        (Precision::Bf16, _) => Scheme::Bf16,
        (Precision::Int8, Int8Mode::WeightOnly) => Scheme::Int8WeightOnly,
        (Precision::Int8, Int8Mode::Dynamic) => Scheme::Int8Dynamic,
        (Precision::Int4, _) => Scheme::Int4,
    }
}

impl From<Scheme> for Choice {
    fn from(scheme: Scheme) -> Self {
        Self { scheme, warning: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(options: ExportOptions, component: Component, alone: bool) -> Result<Scheme, String> {
        choose(&options, component, alone).map(|c| c.scheme).map_err(|error| error.to_string())
    }

    #[test]
    fn a_pipeline_spares_the_auto_encoder_and_t5s_activations() {
        let options = ExportOptions {
            precision: Precision::Int8,
            int8_mode: Some(Int8Mode::Dynamic),
            ..Default::default()
        };
        let in_pipeline = |component| chosen(options.clone(), component, false);
        assert_eq!(in_pipeline(Component::Transformer), Ok(Scheme::Int8Dynamic));
        assert_eq!(in_pipeline(Component::TextEncoder), Ok(Scheme::Int8WeightOnly));
        assert_eq!(in_pipeline(Component::VaeDecoder), Ok(Scheme::Fp32));

        let alone = |component| chosen(options.clone(), component, true);
        assert_eq!(alone(Component::Transformer), Ok(Scheme::Int8Dynamic));
        assert!(alone(Component::TextEncoder).unwrap_err().contains("weight_only"));
        assert!(alone(Component::VaeDecoder).unwrap_err().contains("int8"));
    }

    #[test]
    fn the_auto_encoder_is_narrowed_only_when_asked_and_with_a_warning() {
        let vae = Component::VaeDecoder;
        let fp16 = ExportOptions { precision: Precision::Fp16, ..Default::default() };
        assert_eq!(choose(&fp16, vae, false).unwrap(), Scheme::Fp32.into());
        let asked = ExportOptions { vae_precision: Some(Precision::Fp16), ..fp16.clone() };
        for choice in [choose(&fp16, vae, true), choose(&asked, vae, false)] {
            let choice = choice.unwrap();
            assert_eq!(choice.scheme, Scheme::Fp16);
            assert!(choice.warning.unwrap().contains("overflows"));
        }
        let back = ExportOptions { vae_precision: Some(Precision::Fp32), ..fp16.clone() };
        assert_eq!(choose(&back, vae, true).unwrap(), Scheme::Fp32.into());
        let four = ExportOptions { vae_precision: Some(Precision::Int4), ..fp16 };
        assert!(choose(&four, vae, false).is_err());
    }

    #[test]
    fn four_bits_need_the_operator_for_them() {
        let precision = Precision::Int4;
        for component in [Component::Transformer, Component::TextEncoder] {
            let ort = ExportOptions { precision, ..Default::default() };
            assert_eq!(chosen(ort.clone(), component, true), Ok(Scheme::Int4));
            let portable = ExportOptions { profile: Profile::Portable, ..ort };
            for alone in [true, false] {
                let error = chosen(portable.clone(), component, alone).unwrap_err();
                assert!(error.contains("expected profile ort"), "{error}");
            }
        }
    }

    #[test]
    fn a_mode_needs_int8() {
        for precision in [Precision::Fp16, Precision::Int4] {
            let int8_mode = Some(Int8Mode::WeightOnly);
            let options = ExportOptions { precision, int8_mode, ..Default::default() };
            let error = chosen(options, Component::Transformer, true).unwrap_err();
            assert!(error.contains("expected precision int8"), "{error}");
        }
    }

    #[test]
    fn names_are_read_back() {
        for precision in Precision::ALL {
            assert_eq!(precision.as_str().parse::<Precision>().unwrap(), precision);
        }
        for mode in Int8Mode::ALL {
            assert_eq!(mode.as_str().parse::<Int8Mode>().unwrap(), mode);
        }
        assert!("fp8".parse::<Precision>().unwrap_err().to_string().contains("`fp8`"));
        assert!("static".parse::<Int8Mode>().is_err());
    }
}

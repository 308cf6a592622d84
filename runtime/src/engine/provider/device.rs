//! What a user asks to compute on.

use std::{fmt, path::PathBuf, str::FromStr};

use super::{super::EngineError, PROVIDERS, Provider};

/// A provider, and which of its devices: `cuda`, `cuda:1`, `openvino:GPU`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The provider.
    pub provider: &'static Provider,
    /// What follows the colon.
    pub suffix: Option<String>,
}

impl Default for Device {
    /// The processor.
    fn default() -> Self {
        Self { provider: &PROVIDERS[0], suffix: None }
    }
}

impl FromStr for Device {
    type Err = EngineError;

    /// Reads `NAME` or `NAME:DEVICE`.
    ///
    /// # Errors
    /// When there is no provider of that name, or it has no several devices to choose from.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, suffix) = match text.split_once(':') {
            Some((name, suffix)) => (name, Some(suffix.to_owned())),
            None => (text, None),
        };
        let provider = Provider::named(name)?;
        let device = Self { provider, suffix };
        // A wrong number is told of as early as a wrong name.
        device.suffix_setting()?;
        Ok(device)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.provider.name)?;
        self.suffix.iter().try_for_each(|suffix| write!(formatter, ":{suffix}"))
    }
}

impl Device {
    fn suffix_setting(&self) -> Result<Option<(String, String)>, EngineError> {
        let Some(suffix) = &self.suffix else { return Ok(None) };
        let option = self
            .provider
            .suffix
            .and_then(|name| self.provider.options.iter().find(|option| option.name == name))
            .ok_or_else(|| EngineError::DeviceSuffix {
                device: self.provider.name,
                suffix: suffix.clone(),
            })?;
        Ok(Some((option.name.to_owned(), option.value(self.provider.name, suffix)?)))
    }
}

/// What to compute on, and how.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// What computes.
    pub device: Device,
    /// Options of its provider, names and values as users write them.
    pub options: Vec<(String, String)>,
    /// A plugin library that brings the provider.
    pub plugin: Option<PathBuf>,
    /// Compute on the processor if the device cannot be used.
    pub allow_cpu_fallback: bool,
    /// Whether each size of inputs gets a graph of its own whose sizes are fixed; what the provider needs
    /// where not given.
    pub static_shapes: Option<bool>,
    /// Whether the processor lays out large weights of transformers anew when it loads them, as it does small ones: on
    /// ONNX Runtime, XL/2 then takes two seconds and 2.4 GB more, and steps are 9 % faster at 256 px.
    pub repack_weights: bool,
    /// The folder where compiled graphs are kept from one start to the next; nothing is kept without.
    pub compiled: Option<PathBuf>,
}

impl DeviceOptions {
    /// Whether sizes are fixed before the provider sees a graph. tract does so by itself.
    pub(in super::super) fn fixes_sizes(&self) -> bool {
        let provider = self.device.provider;
        self.static_shapes.unwrap_or(provider.compiles_per_size) && !provider.is_tract()
    }

    /// The options in the provider's spelling: defaults, then what was given, then the device's number.
    ///
    /// # Errors
    /// When an option is unknown or has a wrong value.
    pub fn settings(&self) -> Result<Vec<(String, String)>, EngineError> {
        let provider = self.device.provider;
        let mut settings: Vec<(String, String)> = Vec::new();
        let mut set = |name: &str, value: String| match settings
            .iter_mut()
            .find(|(known, _)| known == name)
        {
            Some((_, old)) => *old = value,
            None => settings.push((name.to_owned(), value)),
        };
        for option in provider.options {
            if let Some(default) = option.default {
                set(option.name, option.value(provider.name, default)?);
            }
        }
        for (name, value) in &self.options {
            let option = provider
                .options
                .iter()
                .find(|option| option.name.eq_ignore_ascii_case(name))
                .ok_or_else(|| EngineError::UnknownOption {
                    device: provider.name,
                    option: name.clone(),
                    known: provider.options.iter().map(|option| option.name).collect(),
                })?;
            set(option.name, option.value(provider.name, value)?);
        }
        if let Some((name, value)) = self.device.suffix_setting()? {
            set(&name, value);
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(device: &str, options: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
        let device = device.parse::<Device>().map_err(|error| error.to_string())?;
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let options = options.iter().map(own).collect();
        let options = DeviceOptions { device, options, ..DeviceOptions::default() };
        options.settings().map_err(|error| error.to_string())
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn devices_are_named_as_typed() {
        for text in ["cpu", "tract", "cuda", "cuda:1", "openvino:GPU.1", "tensorrt-rtx:0"] {
            assert_eq!(text.parse::<Device>().expect(text).to_string(), text);
        }
        assert_eq!(Device::default().to_string(), "cpu");
        for (text, said) in [
            ("gpu", "cpu, tract, cuda"),
            ("", "no device named \"\""),
            ("cpu:0", "cpu"),
            ("cuda:one", "0 to 255"),
            ("cuda:", "0 to 255"),
            ("openvino:", "a text"),
        ] {
            let error = text.parse::<Device>().expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn options_are_spelled_as_the_provider_does() {
        let found = settings(
            "cuda:1",
            &[("use_tf32", "True"), ("arena_extend_strategy", "ksameasrequested")],
        );
        let expected = [
            pair("use_tf32", "1"),
            pair("arena_extend_strategy", "kSameAsRequested"),
            pair("device_id", "1"),
        ];
        assert_eq!(found.expect("fine"), expected);
        let found = settings("openvino", &[("disable_dynamic_shapes", "1")]).expect("fine");
        assert!(found.contains(&pair("disable_dynamic_shapes", "true")), "{found:?}");
        assert!(found.contains(&pair("precision", "ACCURACY")), "the default: {found:?}");
    }

    #[test]
    fn wrong_options_are_named_with_what_is_expected() {
        for (device, option, said) in [
            ("cuda", ("use_tf23", "1"), "use_tf32"),
            ("cuda", ("gpu_mem_limit", "2G"), "a whole number from 0"),
            ("cuda", ("use_tf32", "maybe"), "true or false"),
            ("coreml", ("ModelFormat", "new"), "MLProgram, NeuralNetwork"),
            ("cpu", ("threads", "2"), "cpu has no options"),
        ] {
            let error = settings(device, &[option]).expect_err(option.0);
            assert!(error.contains(said) && error.contains(option.0), "{error}");
        }
    }
}

//! The builds of ONNX Runtime that can be installed.

use super::{super::library::parse_version, InstallError};

/// One build of ONNX Runtime, published as a Python wheel.
#[derive(Debug, PartialEq, Eq)]
pub struct Provider {
    /// The name to type: `cpu`.
    pub name: &'static str,
    /// What it computes on, for people.
    pub summary: &'static str,
    /// The wheel's package name.
    pub wheel: &'static str,
    /// The oldest version that serves.
    pub oldest: &'static str,
    /// The folder inside the wheel that holds the shared libraries.
    pub library_folder: &'static str,
}

/// Every build that can be installed.
pub const PROVIDERS: &[Provider] = &[Provider {
    name: "cpu",
    summary: "the processor, on every platform",
    wheel: "onnxruntime",
    oldest: "1.24",
    library_folder: "onnxruntime/capi",
}];

impl Provider {
    /// The provider of this name.
    ///
    /// # Errors
    /// [`InstallError::UnknownProvider`] with the names that exist.
    pub fn named(name: &str) -> Result<&'static Self, InstallError> {
        PROVIDERS.iter().find(|provider| provider.name == name).ok_or_else(|| {
            let available = PROVIDERS.iter().map(|provider| provider.name).collect();
            InstallError::UnknownProvider { name: name.to_owned(), available }
        })
    }

    /// Refuses what is no version, so that `pip` cannot take it for an option, and what is too old.
    pub(super) fn check_version(&self, version: Option<&str>) -> Result<(), InstallError> {
        let Some(version) = version else { return Ok(()) };
        let marks = |c: char| c.is_ascii_alphanumeric() || ".+-_!".contains(c);
        let digit = |c: char| c.is_ascii_digit();
        match parse_version(version) {
            Some(parsed) if version.starts_with(digit) && version.chars().all(marks) => {
                if Some(parsed) < parse_version(self.oldest) {
                    let version = version.to_owned();
                    return Err(InstallError::TooOld { version, oldest: self.oldest });
                }
                Ok(())
            }
            _ => Err(InstallError::Version { version: version.to_owned() }),
        }
    }

    /// What `pip` is asked for.
    pub(super) fn requirement(&self, version: Option<&str>) -> String {
        match version {
            Some(version) => format!("{}=={version}", self.wheel),
            None => format!("{}>={}", self.wheel, self.oldest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_cannot_smuggle_arguments() {
        let cpu = &PROVIDERS[0];
        for version in ["1.32.0", "1.24", "1.33.0.dev20261101", "1.100.0", "2.0"] {
            cpu.check_version(Some(version)).expect(version);
        }
        cpu.check_version(None).expect("the newest");
        for version in ["", "--index-url", "1.0 --pre", "1.30;evil", "latest", "1.30\n", "1"] {
            let error = cpu.check_version(Some(version)).expect_err(version);
            assert!(matches!(error, InstallError::Version { .. }), "{error:?}");
        }
    }

    #[test]
    fn old_versions_are_refused_before_anything_is_fetched() {
        let error = PROVIDERS[0].check_version(Some("1.9.1")).expect_err("old").to_string();
        assert!(error.contains("1.9.1") && error.contains("1.24 or newer"), "{error}");
    }

    #[test]
    fn every_provider_asks_for_what_the_program_can_use() {
        for provider in PROVIDERS {
            let oldest = parse_version(provider.oldest).expect("a version");
            assert!(oldest >= crate::engine::library::OLDEST, "{}", provider.name);
            assert_eq!(PROVIDERS.iter().filter(|other| other.name == provider.name).count(), 1);
        }
    }
}

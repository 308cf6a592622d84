//! The builds of ONNX Runtime that can be installed.

use super::InstallError;

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

    /// What `pip` is asked for.
    pub(super) fn requirement(&self, version: Option<&str>) -> String {
        match version {
            Some(version) => format!("{}=={version}", self.wheel),
            None => format!("{}>={}", self.wheel, self.oldest),
        }
    }
}

//! Execution providers: what ONNX Runtime computes with, besides the processor.
//!
//! [`PROVIDERS`] is the one table of them. Flags, help, documentation and checks are made from it, so that a
//! provider is what its row says. [`Device`] is what a user asks for.

mod accelerator;
mod build;
mod compiled;
mod device;
mod identity;
mod log;
mod option;
mod options;
mod placement;
mod probe;
mod register;
mod shares;
mod system;
mod table;

pub(super) use accelerator::Accelerator;
pub use build::{BUILDS, Build};
pub use compiled::{Compiled, Entry, Outcome, clear_compiled};
pub(super) use compiled::{Using, Wanted};
pub use device::{Device, DeviceOptions};
pub(super) use identity::{Identity, sha256};
pub use option::{OptionKind, OptionSpec};
pub use placement::Placement;
pub use shares::TimeShares;
pub use system::has_system_library;
pub use table::PROVIDERS;

use super::EngineError;

/// One way to compute.
#[derive(Debug, PartialEq, Eq)]
pub struct Provider {
    /// The name to type after `--device`.
    pub name: &'static str,
    /// What it computes on, for people.
    pub summary: &'static str,
    /// ONNX Runtime's name for it; `None` for tract, which is an engine of its own.
    pub ort_name: Option<&'static str>,
    /// Names of the [`BUILDS`] that bring it, the best first.
    pub builds: &'static [&'static str],
    /// The only operating system where builds have it, as Rust calls it.
    pub only_on: Option<&'static str>,
    /// How to get it where no build brings it, or what else it takes.
    pub obtained: &'static str,
    /// What the machine must have besides.
    pub needs: &'static str,
    /// Libraries of the system that it loads, on Linux; looked for by `pixart engine doctor`. Of `A or B` one
    /// is enough.
    pub system_libraries: &'static [&'static str],
    /// Precisions of exports that it computes, the best proved first.
    pub precisions: &'static [&'static str],
    /// The export profile whose graphs suit it: `ort`, `portable` or `cann`.
    pub profile: &'static str,
    /// The option that is set by what follows the name and a colon, as in `cuda:1`.
    pub suffix: Option<&'static str>,
    /// Whether it compiles a graph for each size of its inputs.
    pub compiles_per_size: bool,
    /// What it keeps of a compiled graph from one start to the next, if it is told to.
    pub keeps: Keeps,
    /// Its options.
    pub options: &'static [OptionSpec],
    /// Where its options are described.
    pub source: &'static str,
    /// Whether it was run.
    pub proof: Proof,
}

/// Whether a provider was run by those who made this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The numbers are in `docs/engines.md`.
    Run,
    /// Only its registration was written, against its documentation.
    Unproved,
}

/// How a provider keeps what it has compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// It does not, for this reason.
    Nothing(&'static str),
    /// In a folder, if these options are set; `FOLDER` stands for its path.
    Folder(&'static [(&'static str, &'static str)]),
    /// In a graph that stands for the first (ONNX Runtime's `ep.context_enable`).
    Context,
}

impl Keeps {
    /// The options that make it keep something.
    pub fn settings(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Folder(settings) => settings,
            _ => &[],
        }
    }
}

impl Provider {
    /// The provider of this name, in any case.
    ///
    /// # Errors
    /// [`EngineError::UnknownDevice`] with the names that exist.
    pub fn named(name: &str) -> Result<&'static Self, EngineError> {
        PROVIDERS.iter().find(|provider| provider.name.eq_ignore_ascii_case(name)).ok_or_else(
            || {
                let available = PROVIDERS.iter().map(|provider| provider.name).collect();
                EngineError::UnknownDevice { name: name.to_owned(), available }
            },
        )
    }

    /// The builds that bring it, the best first.
    pub fn builds(&self) -> impl Iterator<Item = &'static Build> {
        let names = self.builds;
        names.iter().filter_map(|name| BUILDS.iter().find(|build| build.name == *name))
    }

    /// What to do to get it, as the end of an error.
    pub fn how_to_get(&self) -> String {
        match (self.only_on, self.builds.first()) {
            (Some(system), _) if system != std::env::consts::OS => {
                format!("it is for {system} only, this is {}", std::env::consts::OS)
            }
            (_, Some(build)) => format!("`pixart engine install {build}` fetches it"),
            (_, None) => self.obtained.to_owned(),
        }
    }

    /// Whether builds for this operating system can have it.
    pub fn is_for_this_system(&self) -> bool {
        self.only_on.is_none_or(|system| system == std::env::consts::OS)
    }

    /// The processor, with ONNX Runtime.
    pub fn cpu() -> &'static Self {
        &PROVIDERS[0]
    }

    /// tract.
    pub fn tract() -> &'static Self {
        &PROVIDERS[1]
    }

    /// Whether it computes on the processor, which takes no accelerator in ONNX Runtime.
    pub fn is_processor(&self) -> bool {
        self.is_cpu() || self.is_tract()
    }

    /// Whether it is the processor itself, through any build of ONNX Runtime.
    pub(super) fn is_cpu(&self) -> bool {
        self.name == "cpu"
    }

    /// Whether it is the engine tract.
    pub(super) fn is_tract(&self) -> bool {
        self.ort_name.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_two_rows_are_the_engines_themselves() {
        assert!(Provider::cpu().is_cpu() && !Provider::cpu().is_tract());
        assert!(Provider::tract().is_tract() && Provider::tract().name == "tract");
    }

    #[test]
    fn every_row_is_whole() {
        for provider in PROVIDERS {
            let name = provider.name;
            assert_eq!(PROVIDERS.iter().filter(|other| other.name == name).count(), 1);
            assert_eq!(provider.builds().count(), provider.builds.len(), "{name}: unknown build");
            assert!(["ort", "portable", "cann"].contains(&provider.profile), "{name}");
            assert!(provider.precisions.contains(&"fp32"), "{name}");
            assert_ne!(provider.builds.is_empty(), provider.obtained.is_empty(), "{name}");
            assert!(!provider.how_to_get().is_empty(), "{name}");
            let known = |suffix| provider.options.iter().any(|option| option.name == suffix);
            assert!(provider.suffix.is_none_or(known), "{name}");
            for option in provider.options {
                let same = |other: &&OptionSpec| other.name == option.name;
                assert_eq!(provider.options.iter().filter(same).count(), 1, "{name}");
                let default = option.default.map(|value| option.value(name, value));
                assert!(default.is_none_or(|value| value.is_ok()), "{name}: {}", option.name);
            }
            for (option, value) in provider.keeps.settings() {
                let known = provider.options.iter().find(|known| known.name == *option);
                let known = known.unwrap_or_else(|| panic!("{name}: {option}"));
                assert!(known.value(name, value).is_ok(), "{name}: {option}");
            }
            assert!(provider.source.starts_with("https://") || provider.options.is_empty());
        }
    }
}

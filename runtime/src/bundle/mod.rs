//! One file to ship: the program, ONNX Runtime's library and exported folders in one executable.
//!
//! A bundle is a program with more behind its end: whoever starts the file starts the program, which
//! finds the rest in the file it was started from. `docs/bundle.md` has the format.
//!
//! Nothing is unpacked. A file of a bundle is named by a path below that of the bundle, as if the bundle
//! were a folder (`./pixart-demo/transformer/model.onnx`), and everything in this crate that reads models
//! takes such paths; weights are mapped from where they lie.

mod contents;
mod error;
mod extract;
mod format;
mod library;
pub mod store;
mod write;

pub use contents::{Contents, engine};
pub use error::BundleError;
pub use format::{Bundle, BundledEngine, Entry, Index, Program, platform};
pub(crate) use library::library;
pub use write::write;

use std::{path::PathBuf, sync::OnceLock};

/// The bundle that this process was started from; `None` for a program without one.
///
/// # Errors
/// When the file was cut short or is damaged.
pub fn own() -> Result<Option<&'static Bundle>, &'static BundleError> {
    static OWN: OnceLock<Result<Option<Bundle>, BundleError>> = OnceLock::new();
    let open = || match started() {
        Some(file) => match Bundle::open(&file) {
            // A program that may be run but not read, was replaced just now, or has lost everything behind it
            // runs as it is.
            Err(BundleError::Read { .. } | BundleError::CutEarly { .. }) => Ok(None),
            opened => opened,
        },
        // Without a path there is nothing to look into.
        None => Ok(None),
    };
    OWN.get_or_init(open).as_ref().map(Option::as_ref)
}

/// The file that this process was started from.
fn started() -> Option<PathBuf> {
    std::env::current_exe().ok().or_else(without_proc)
}

/// The name by which Linux was told to start it, which it keeps where there is no /proc, too.
#[cfg(target_os = "linux")]
fn without_proc() -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;
    let name = std::ffi::OsStr::from_bytes(rustix::param::linux_execfn().to_bytes());
    std::path::absolute(name).ok()
}

#[cfg(not(target_os = "linux"))]
fn without_proc() -> Option<PathBuf> {
    None
}

#[cfg(test)]
mod tests;

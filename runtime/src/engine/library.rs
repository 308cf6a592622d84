//! Finding ONNX Runtime, and looking at a library before it is used.
//!
//! A library older than the interface the program was built for does not fail when it is started:
//! it can hang. So its version is read through the two oldest functions of its interface, and
//! compared, before anything else in it is touched.

use std::{
    env,
    ffi::{CStr, OsString},
    fmt,
    path::{Path, PathBuf},
};

use super::{
    EngineError, data_folder, install,
    provider::{DeviceOptions, Provider},
};
use crate::bundle;

/// The oldest ONNX Runtime that serves: the interface level that the program is built for.
pub const OLDEST: (u32, u32) = (1, ort::MINOR_VERSION);

/// Variables that may name a library, in the order in which they are looked at.
const VARIABLES: [&str; 2] = ["PIXART_ORT_LIBRARY", "ORT_DYLIB_PATH"];

/// A library that was looked at and can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// The file, as an absolute path.
    pub path: PathBuf,
    /// Its version, as it states it: `1.32.0`.
    pub version: String,
    /// Who named it.
    pub origin: Origin,
}

/// Who named a library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The caller.
    Option,
    /// An environment variable.
    Variable(&'static str),
    /// `pixart engine install`, under this name.
    Installed(String),
    /// The bundle that the program was started from.
    Bundled,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Option => formatter.write_str("named by the caller"),
            Self::Variable(name) => write!(formatter, "named by {name}"),
            Self::Installed(name) => write!(formatter, "installed as {name}"),
            Self::Bundled => formatter.write_str("in this file"),
        }
    }
}

/// Where to search.
pub(super) struct Places {
    pub option: Option<PathBuf>,
    pub variables: Vec<(&'static str, OsString)>,
    /// The library in the bundle that the program was started from, or why it cannot be loaded. Asked only
    /// when it is needed: tract needs none.
    pub bundled: fn() -> Option<Result<PathBuf, String>>,
    pub data_folder: Option<PathBuf>,
}

impl Places {
    /// The places of this process.
    pub fn of_process(option: Option<&Path>) -> Self {
        let variables = VARIABLES
            .into_iter()
            .filter_map(|name| Some((name, env::var_os(name)?)))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        Self {
            option: option.map(Path::to_path_buf),
            variables,
            bundled: bundle::library,
            data_folder: data_folder::data_folder().ok(),
        }
    }

    /// Every library that the caller or the environment names, best first.
    pub fn named(&self) -> Vec<(Origin, PathBuf)> {
        let option = self.option.iter().map(|path| (Origin::Option, path.clone()));
        let variables = self
            .variables
            .iter()
            .map(|(name, value)| (Origin::Variable(name), PathBuf::from(value)));
        option.chain(variables).collect()
    }
}

/// The first usable library: named by the caller, by `PIXART_ORT_LIBRARY`, by `ORT_DYLIB_PATH`, in the
/// [`bundle`] that the program was started from, or installed in the data folder, the newest first. The
/// system's own search path is left alone, since what lies there is often an old copy that belongs to
/// another program.
///
/// # Errors
/// A named library that cannot be used is an error, not a reason to look further;
/// [`EngineError::NoLibrary`] when nothing is found.
pub fn find(option: Option<&Path>) -> Result<Library, EngineError> {
    find_in(&Places::of_process(option))
}

pub(super) fn find_in(places: &Places) -> Result<Library, EngineError> {
    if let Some((origin, path)) = places.named().into_iter().next() {
        return inspect(&path, origin);
    }
    let mut broken = None;
    let mut tried = vec![format!("{} are not set", VARIABLES.join(" and "))];
    if let Some(found) = (places.bundled)() {
        let opened =
            found.and_then(|path| inspect(&path, Origin::Bundled).map_err(|e| e.to_string()));
        match opened {
            Ok(library) => return Ok(library),
            Err(error) => {
                broken = Some(error.clone());
                tried.push(error);
            }
        }
    }
    match &places.data_folder {
        None => tried.push("there is no data folder".to_owned()),
        Some(folder) => {
            let mut installed = install::records(folder);
            installed.retain(|found| !found.as_ref().is_ok_and(|found| found.record.plugin));
            if installed.is_empty() {
                let folder = data_folder::engines_folder(folder);
                tried.push(format!("none is installed in {}", folder.display()));
            }
            for found in installed {
                match found.and_then(|installed| installed.open()) {
                    Ok(library) => return Ok(library),
                    Err(error) => {
                        broken.get_or_insert_with(|| error.to_string());
                        tried.push(error.to_string());
                    }
                }
            }
        }
    }
    Err(EngineError::NoLibrary { tried, broken })
}

/// The library to load for a provider, and the plugin to load into it, if there is one.
///
/// A library that the caller or the environment names is taken as it is; else one is taken that was
/// installed for this provider, or that a plugin for it can be loaded into.
///
/// # Errors
/// As [`find`], and when nothing that is installed brings the provider.
pub(super) fn find_for(
    options: &DeviceOptions,
    places: &Places,
) -> Result<(Library, Option<PathBuf>), EngineError> {
    let provider = options.device.provider;
    let named = !places.named().is_empty();
    let plugin = options.plugin.clone().map_or_else(
        || installed_plugin(provider, places),
        |path| Ok(Some(std::path::absolute(&path).unwrap_or(path))),
    )?;
    if options.plugin.is_none() && !named {
        let records = places.data_folder.iter().flat_map(|folder| install::records(folder));
        let records: Vec<_> = records.flatten().collect();
        for build in provider.builds().filter(|build| build.plugin.is_none()) {
            if let Some(found) = records.iter().find(|found| found.record.name == build.name) {
                return Ok((found.open()?, None));
            }
        }
    }
    // The library of a bundle may bring it, too; the session tells if it does not.
    if plugin.is_none() && !named && (places.bundled)().is_none() {
        return Err(EngineError::ProviderMissing {
            device: options.device.to_string(),
            how: provider.how_to_get(),
        });
    }
    Ok((find_in(places)?, plugin))
}

/// The newest installed plugin for a provider.
fn installed_plugin(provider: &Provider, places: &Places) -> Result<Option<PathBuf>, EngineError> {
    let records = places.data_folder.iter().flat_map(|folder| install::records(folder));
    let builds: Vec<_> = provider.builds().filter(|build| build.plugin.is_some()).collect();
    let brings = |name: &str| builds.iter().any(|build| build.name == name);
    match records.flatten().find(|found| found.record.plugin && brings(&found.record.name)) {
        None => Ok(None),
        Some(found) => found.check().map(|()| Some(found.library())),
    }
}

/// The engines installed in the data folder, the newest first; broken ones are left out.
pub(crate) fn installed() -> Vec<install::Installed> {
    let folder = data_folder::data_folder();
    folder.iter().flat_map(|folder| install::records(folder)).flatten().collect()
}

/// Looks at the library at `path` without starting it.
///
/// # Errors
/// When it is missing, no shared library, not ONNX Runtime, or older than [`OLDEST`].
pub fn inspect(path: &Path, origin: Origin) -> Result<Library, EngineError> {
    // ort resolves a relative path against the executable, users mean the current folder.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(EngineError::LibraryMissing { path, origin: origin.to_string() });
        }
        Err(error) => return Err(not_a_library(path, &origin, error.to_string())),
        Ok(metadata) if !metadata.is_file() => {
            return Err(not_a_library(path, &origin, "it is not a file".to_owned()));
        }
        Ok(_) => {}
    }
    let version = match read_version(&path) {
        Ok(version) => version,
        Err(Refusal::Loader(reason)) => return Err(not_a_library(path, &origin, reason)),
        Err(Refusal::Interface(reason)) => {
            let origin = origin.to_string();
            return Err(EngineError::NotOnnxRuntime { path, origin, reason });
        }
    };
    match parse_version(&version) {
        Some(found) if found >= OLDEST => Ok(Library { path, version, origin }),
        Some(_) => Err(EngineError::LibraryTooOld {
            path,
            origin: origin.to_string(),
            found: version,
            needed: format!("{}.{}", OLDEST.0, OLDEST.1),
        }),
        None => Err(EngineError::NotOnnxRuntime {
            path,
            origin: origin.to_string(),
            reason: format!("its version reads \"{}\"", version.escape_debug()),
        }),
    }
}

fn not_a_library(path: PathBuf, origin: &Origin, reason: String) -> EngineError {
    EngineError::NotALibrary { path, origin: origin.to_string(), reason }
}

enum Refusal {
    Loader(String),
    Interface(String),
}

fn read_version(path: &Path) -> Result<String, Refusal> {
    // SAFETY: loading runs the library's initialisers. The file was named by the user or fetched
    // by the user's own command, and is about to be used as the engine.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| {
        // What the system's loader said is the cause, not the error itself.
        let said = std::error::Error::source(&error).map(ToString::to_string);
        Refusal::Loader(said.unwrap_or_else(|| error.to_string()))
    })?;
    // Unloading runs finalisers, which C++ libraries are seldom tested for, and a library that
    // passes is loaded again at once. So it stays.
    let library = std::mem::ManuallyDrop::new(library);
    let absent = |what: &str| Refusal::Interface(format!("{what} is absent"));
    // SAFETY: the symbol of this name has had this signature in every release.
    let get_base = unsafe {
        library.get::<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase\0")
    }
    .map_err(|_| absent("OrtGetApiBase"))?;
    // SAFETY: takes no arguments; the result is null or points to a static structure whose two
    // members have never changed.
    let base = unsafe { get_base().as_ref() }.ok_or_else(|| absent("the interface"))?;
    // SAFETY: as above; the string is static.
    let version = unsafe { (base.GetVersionString)() };
    if version.is_null() {
        return Err(absent("the version"));
    }
    // SAFETY: not null, and ends with a zero byte.
    let version = unsafe { CStr::from_ptr(version) }.to_string_lossy().into_owned();
    Ok(version)
}

/// Major and minor number of a version such as `1.32.0` or `1.24.0-dev`.
pub(super) fn parse_version(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?;
    let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    Some((major, minor[..digits].parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &Path) -> String {
        inspect(path, Origin::Option).expect_err("must be refused").to_string()
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parse_version("1.32.0"), Some((1, 32)));
        assert_eq!(parse_version("1.24-dev"), Some((1, 24)));
        assert_eq!(parse_version("2.0"), Some((2, 0)));
        assert!(parse_version("1.9.0") < Some(OLDEST));
        assert!(parse_version("1.100.0") >= Some(OLDEST));
        for broken in ["", "1", "one.two", "1.", "1.x"] {
            assert_eq!(parse_version(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_missing_file_is_named_with_what_to_type() {
        let message = refusal(Path::new("no/such/libonnxruntime.so"));
        assert!(message.contains("no/such/libonnxruntime.so"), "{message}");
        assert!(message.contains("does not exist"), "{message}");
        assert!(message.contains("pixart engine install cpu"), "{message}");
    }

    #[test]
    fn a_text_file_and_a_folder_are_no_libraries() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("libonnxruntime.so");
        std::fs::write(&file, "this is no library\n").expect("file");
        for path in [file.as_path(), folder.path()] {
            let error = inspect(path, Origin::Variable("ORT_DYLIB_PATH")).expect_err("refused");
            assert!(matches!(error, EngineError::NotALibrary { .. }), "{error:?}");
            assert!(error.to_string().contains("named by ORT_DYLIB_PATH"), "{error}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_that_is_not_onnx_runtime_is_refused() {
        // The C library that this very process runs on.
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let path = maps
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5))
            .find(|path| path.contains("/libc.so") || path.contains("/libc-"))
            .expect("the C library");
        let error = inspect(Path::new(path), Origin::Option).expect_err("refused");
        assert!(matches!(error, EngineError::NotOnnxRuntime { .. }), "{error:?}");
        assert!(error.to_string().contains("OrtGetApiBase"), "{error}");
    }

    #[test]
    fn a_named_library_that_is_broken_ends_the_search() {
        let folder = tempfile::tempdir().expect("folder");
        let places = Places {
            option: None,
            variables: vec![("PIXART_ORT_LIBRARY", "no/such/file".into())],
            bundled: || None,
            data_folder: Some(folder.path().to_path_buf()),
        };
        let error = find_in(&places).expect_err("refused");
        assert!(matches!(error, EngineError::LibraryMissing { .. }), "{error:?}");
    }

    #[test]
    fn an_empty_data_folder_says_where_it_looked() {
        let folder = tempfile::tempdir().expect("folder");
        let data_folder = Some(folder.path().to_path_buf());
        let places = Places { option: None, variables: Vec::new(), bundled: || None, data_folder };
        let message = find_in(&places).expect_err("nothing there").to_string();
        assert!(message.contains(&folder.path().display().to_string()), "{message}");
        assert!(message.contains("pixart engine install cpu"), "{message}");
    }
}

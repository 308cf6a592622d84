//! What engines there are, and which of them can be used.

use std::path::{Path, PathBuf};

use super::{
    super::{
        EngineError,
        library::{self, Library, Origin, Places},
        tract,
    },
    records,
};

/// One engine, usable or not.
#[derive(Debug)]
pub struct Status {
    /// `tract`, the name of an installed provider, or `ort` for a library named otherwise.
    pub name: String,
    /// Its version, where it can be told.
    pub version: Option<String>,
    /// Its library; tract has none.
    pub path: Option<PathBuf>,
    /// Where it comes from, for people.
    pub origin: String,
    /// Why it cannot be used.
    pub problem: Option<EngineError>,
    /// Whether it is a plugin for ONNX Runtime.
    pub plugin: bool,
    /// Whether `--engine auto` takes it.
    pub chosen: bool,
}

/// Every engine: libraries named by the environment, those installed in the data folder, and
/// tract. Installed files are compared with their recorded hashes.
pub fn list(data_folder: &Path) -> Vec<Status> {
    list_in(&Places { data_folder: Some(data_folder.to_path_buf()), ..Places::of_process(None) })
}

fn list_in(places: &Places) -> Vec<Status> {
    let mut all = Vec::new();
    for (origin, path) in places.named() {
        let name = "ort".to_owned();
        let told = origin.to_string();
        all.push(status(name, None, Some(path.clone()), told, library::inspect(&path, origin)));
    }
    if let Some(Ok(path)) = (places.bundled)() {
        let opened = library::inspect(&path, Origin::Bundled);
        let told = Origin::Bundled.to_string();
        all.push(status("ort".to_owned(), None, Some(path.clone()), told, opened));
    }
    for found in places.data_folder.iter().flat_map(|folder| records(folder)) {
        all.push(match found {
            Ok(installed) => {
                let whole = installed.verify();
                let path = Some(installed.library());
                let told = format!(
                    "installed {} from {}",
                    installed.record.installed, installed.record.wheel
                );
                if installed.record.plugin {
                    let record = installed.record;
                    Status {
                        name: record.name,
                        version: Some(record.version),
                        path,
                        origin: told,
                        problem: whole.err(),
                        plugin: true,
                        chosen: false,
                    }
                } else {
                    let opened = whole.and_then(|()| installed.open());
                    let record = installed.record;
                    status(record.name, Some(record.version), path, told, opened)
                }
            }
            Err(problem) => Status {
                name: "ort".to_owned(),
                version: None,
                path: None,
                origin: "installed".to_owned(),
                problem: Some(problem),
                plugin: false,
                chosen: false,
            },
        });
    }
    // The same search that opens an engine decides; a broken named library ends it with an error.
    let found = library::find_in(places);
    if let Ok(library) = &found
        && let Some(status) =
            all.iter_mut().find(|status| status.path.as_ref() == Some(&library.path))
    {
        status.chosen = true;
    }
    all.push(Status {
        name: "tract".to_owned(),
        version: Some(tract::VERSION.to_owned()),
        path: None,
        origin: "built in".to_owned(),
        problem: None,
        plugin: false,
        chosen: matches!(found, Err(EngineError::NoLibrary { .. })),
    });
    all
}

fn status(
    name: String,
    version: Option<String>,
    path: Option<PathBuf>,
    origin: String,
    opened: Result<Library, EngineError>,
) -> Status {
    match opened {
        Ok(library) => Status {
            name,
            version: Some(library.version),
            path: Some(library.path),
            origin,
            problem: None,
            plugin: false,
            chosen: false,
        },
        Err(problem) => {
            let (plugin, chosen) = (false, false);
            Status { name, version, path, origin, problem: Some(problem), plugin, chosen }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(folder: &Path, variables: Vec<(&'static str, std::ffi::OsString)>) -> Places {
        Places {
            option: None,
            variables,
            bundled: || None,
            data_folder: Some(folder.to_path_buf()),
        }
    }

    #[test]
    fn tract_is_always_there_and_chosen_when_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let all = list_in(&places(folder.path(), Vec::new()));
        assert_eq!(all.len(), 1);
        assert!(all[0].name == "tract" && all[0].chosen && all[0].problem.is_none());
    }

    #[test]
    fn a_broken_named_library_is_listed_with_its_problem() {
        let folder = tempfile::tempdir().expect("folder");
        let variables = vec![("PIXART_ORT_LIBRARY", "no/such/library".into())];
        let all = list_in(&places(folder.path(), variables));
        let named = &all[0];
        assert!(matches!(named.problem, Some(EngineError::LibraryMissing { .. })));
        // Auto would report it, so neither is what auto takes.
        assert!(all.iter().all(|status| !status.chosen));
    }
}

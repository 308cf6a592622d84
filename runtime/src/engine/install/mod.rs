//! `pixart engine install` and `pixart engine list`.
//!
//! ONNX Runtime and plugins for it are published as Python wheels. The user's own `pip` fetches the
//! one that fits; only its shared libraries and licences are unpacked, into the user's data folder,
//! with a record of where they came from. No address is written into the program.

mod error;
mod pip;
mod record;
mod status;
mod wheel;

use std::path::{Path, PathBuf};

pub use error::InstallError;
pub use record::{FileRecord, Installed, Record};
pub use status::{Status, list};

use super::{
    data_folder::engines_folder,
    library::{self, Origin},
    provider::Build,
};

pub(super) use record::records;

/// What to install and whether to replace it.
#[derive(Clone, Debug, Default)]
pub struct InstallOptions {
    /// An exact version; the newest where not given.
    pub version: Option<String>,
    /// Fetch and replace even if it is installed already.
    pub force: bool,
}

/// How an installation ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Fetched and unpacked now.
    Installed(Installed),
    /// There already, usable and unchanged.
    AlreadyInstalled(Installed),
}

/// Fetches `build` into the data folder. `progress` is told each stage in a few words.
///
/// # Errors
/// When no `pip` works or `pip` fails, when the wheel holds no usable library, or when the data
/// folder cannot be written. What was installed before stays in place then.
pub fn install(
    build: &'static Build,
    data_folder: &Path,
    options: &InstallOptions,
    progress: &mut dyn FnMut(&str),
) -> Result<Outcome, InstallError> {
    build.check_version(options.version.as_deref())?;
    let folder = engines_folder(data_folder);
    if !options.force
        && let Some(installed) = present(build, data_folder, options.version.as_deref())
    {
        return Ok(Outcome::AlreadyInstalled(installed));
    }
    let unwritable = |path: &Path| {
        let path = path.to_path_buf();
        move |source| InstallError::Folder { path, source }
    };
    std::fs::create_dir_all(&folder).map_err(unwritable(&folder))?;
    let temporary = tempfile::Builder::new()
        .prefix(".install-")
        .tempdir_in(&folder)
        .map_err(unwritable(&folder))?;

    let pip = pip::find()?;
    progress(&format!("fetching {} with {pip}", build.package));
    let downloads = temporary.path().join("wheel");
    std::fs::create_dir(&downloads).map_err(unwritable(&downloads))?;
    let file = pip.download(build, options.version.as_deref(), &downloads)?;

    progress(&format!("unpacking {}", file.display()));
    let unpacked = temporary.path().join("engine");
    std::fs::create_dir(&unpacked).map_err(unwritable(&unpacked))?;
    let record = wheel::unpack(build, &file, &unpacked)?;
    record.write(&unpacked)?;

    let target = folder.join(format!("{}-{}", record.name, record.version));
    let previous = temporary.path().join("previous");
    put_in_place(&unpacked, &target, &previous).map_err(unwritable(&target))?;
    progress(&format!("checking {}", record.library));
    let installed = Installed { folder: target.clone(), record };
    let origin = Origin::Installed(installed.record.name.clone());
    let checked = match installed.record.plugin {
        // Only a runtime can tell whether it is one.
        true => Ok(()),
        false => library::inspect(&installed.library(), origin).map(drop),
    };
    match checked {
        Ok(()) => Ok(Outcome::Installed(installed)),
        Err(source) => {
            // What was there before is better than what cannot be used.
            let taken_away = std::fs::rename(&target, temporary.path().join("unusable"));
            if taken_away.is_ok() && previous.exists() {
                std::fs::rename(&previous, &target).map_err(unwritable(&target))?;
            }
            Err(InstallError::Unusable { wheel: installed.record.wheel, source: Box::new(source) })
        }
    }
}

/// An installed library that fits what was asked for and is whole.
fn present(build: &Build, data_folder: &Path, version: Option<&str>) -> Option<Installed> {
    records(data_folder).into_iter().flatten().find(|installed| {
        installed.record.name == build.name
            && version.is_none_or(|version| installed.record.version == version)
            && installed.verify().is_ok()
            && installed.check().is_ok()
    })
}

fn put_in_place(unpacked: &Path, target: &PathBuf, previous: &Path) -> std::io::Result<()> {
    if target.exists() {
        std::fs::rename(target, previous)?;
    }
    std::fs::rename(unpacked, target)
}

#[cfg(test)]
mod tests;

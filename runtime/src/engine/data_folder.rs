//! The folder where the program keeps what it fetched for the user.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::EngineError;

/// The user's data folder for this program; it need not exist yet.
///
/// `PIXART_DATA_DIR` where set, else the platform's place: `$XDG_DATA_HOME/pixart` or
/// `~/.local/share/pixart` on Linux, `~/Library/Application Support/pixart` on macOS,
/// `%LOCALAPPDATA%\pixart` on Windows.
///
/// # Errors
/// [`EngineError::NoDataFolder`] when neither the variable nor the home folder is known.
pub fn data_folder() -> Result<PathBuf, EngineError> {
    resolve(env::var_os("PIXART_DATA_DIR"), dirs::data_local_dir()).ok_or(EngineError::NoDataFolder)
}

/// Where engines are installed inside the data folder.
pub(super) fn engines_folder(data_folder: &Path) -> PathBuf {
    data_folder.join("engines")
}

/// An empty variable counts as unset, as is the custom of shells.
fn resolve(variable: Option<OsString>, platform: Option<PathBuf>) -> Option<PathBuf> {
    match variable {
        Some(folder) if !folder.is_empty() => Some(folder.into()),
        _ => platform.map(|folder| folder.join("pixart")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_variable_wins_and_an_empty_one_does_not_count() {
        let platform = || Some(PathBuf::from("/home/u/.local/share"));
        let below_home = Some(PathBuf::from("/home/u/.local/share/pixart"));
        assert_eq!(resolve(Some("/a".into()), platform()), Some(PathBuf::from("/a")));
        assert_eq!(resolve(Some("".into()), platform()), below_home);
        assert_eq!(resolve(None, platform()), below_home);
        assert_eq!(resolve(None, None), None);
    }
}

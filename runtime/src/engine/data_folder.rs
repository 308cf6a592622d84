//! The folder where the program keeps what it fetched for the user.

use std::{
    env,
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
    resolve(|name| env::var_os(name).map(PathBuf::from), env::home_dir())
        .ok_or(EngineError::NoDataFolder)
}

/// Where engines are installed inside the data folder.
pub(super) fn engines_folder(data_folder: &Path) -> PathBuf {
    data_folder.join("engines")
}

fn resolve(variable: impl Fn(&str) -> Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    // An empty variable counts as unset, as is the custom of shells and of the XDG specification.
    let variable = |name: &str| variable(name).filter(|path| !path.as_os_str().is_empty());
    let home = home.filter(|path| !path.as_os_str().is_empty());
    if let Some(path) = variable("PIXART_DATA_DIR") {
        return Some(path);
    }
    if cfg!(windows) {
        return variable("LOCALAPPDATA")
            .or_else(|| home.map(|home| home.join("AppData").join("Local")))
            .map(|path| path.join("pixart"));
    }
    // The specification tells programs to ignore a relative XDG path.
    if let Some(path) = variable("XDG_DATA_HOME").filter(|path| path.is_absolute()) {
        return Some(path.join("pixart"));
    }
    let below_home: &Path = if cfg!(target_os = "macos") {
        Path::new("Library/Application Support/pixart")
    } else {
        Path::new(".local/share/pixart")
    };
    home.map(|home| home.join(below_home))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)], home: Option<&str>) -> Option<PathBuf> {
        resolve(
            |name| {
                let found = variables.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| PathBuf::from(value))
            },
            home.map(PathBuf::from),
        )
    }

    #[test]
    fn own_variable_wins_and_empty_ones_do_not_count() {
        let both = [("PIXART_DATA_DIR", "/a"), ("XDG_DATA_HOME", "/b")];
        assert_eq!(with(&both, Some("/home/u")), Some(PathBuf::from("/a")));
        let empty = [("PIXART_DATA_DIR", "")];
        assert_ne!(with(&empty, Some("/home/u")), Some(PathBuf::new()));
        assert_eq!(with(&[], None), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_follows_the_xdg_specification() {
        let xdg = [("XDG_DATA_HOME", "/b")];
        assert_eq!(with(&xdg, Some("/home/u")), Some(PathBuf::from("/b/pixart")));
        let relative = [("XDG_DATA_HOME", "b")];
        let home = PathBuf::from("/home/u/.local/share/pixart");
        assert_eq!(with(&relative, Some("/home/u")), Some(home.clone()));
        assert_eq!(with(&[], Some("/home/u")), Some(home));
    }
}

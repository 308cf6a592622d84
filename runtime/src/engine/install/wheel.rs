//! Unpacking the shared libraries of a wheel, and nothing else.
//!
//! A wheel is a zip archive. Nothing in it decides where a file goes: an entry is taken only if it
//! lies in the one folder that holds the libraries (or is a licence), and only under its plain file
//! name.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use sha2::{Digest as _, Sha256};
use zip::ZipArchive;

use crate::files::{hex, sha256_of};

use super::{
    super::external_data::is_plain_file_name,
    Build, InstallError,
    record::{FileRecord, Record, now},
};

/// The largest file that is unpacked; the largest library published has about 1 GB.
const MOST_BYTES_FILE: u64 = 4 << 30;

/// The most that is unpacked in all.
const MOST_BYTES: u64 = 8 << 30;

/// The most entries that an archive may have.
const MOST_ENTRIES: usize = 65_536;

/// Texts that must travel with the libraries, wherever the wheel keeps them.
const LICENCES: [&str; 4] = ["LICENSE", "LICENSE.txt", "ThirdPartyNotices.txt", "Privacy.md"];

/// Unpacks `wheel` into `folder` and returns the record of what was unpacked.
pub(super) fn unpack(build: &Build, wheel: &Path, folder: &Path) -> Result<Record, InstallError> {
    let name = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let refused = |reason: String| InstallError::Wheel { wheel: name.clone(), reason };
    let version = version_of(build, &name).ok_or_else(|| {
        refused(format!("its name does not begin with {}-<version>", build.package))
    })?;
    let file = File::open(wheel).map_err(|error| refused(error.to_string()))?;
    let mut archive = ZipArchive::new(io::BufReader::new(file))
        .map_err(|error| refused(format!("it cannot be read as an archive: {error}")))?;
    if archive.len() > MOST_ENTRIES {
        return Err(refused(format!("it has {} entries", archive.len())));
    }

    let mut files = Vec::new();
    let mut names = HashSet::new();
    let mut left = MOST_BYTES;
    for index in 0..archive.len() {
        let mut entry =
            archive.by_index(index).map_err(|error| refused(format!("entry {index}: {error}")))?;
        // Names that are no text are not among those that are wanted.
        let Ok(entry_name) = entry.name().map(|name| name.into_owned()) else { continue };
        let Some(wanted) = wanted_name(build, &entry_name).map(str::to_owned) else {
            continue;
        };
        if !entry.is_file() || entry.is_symlink() || entry.encrypted() {
            return Err(refused(format!("its entry {entry_name} is no plain file")));
        }
        // Licences repeat; of libraries there must be one of a name.
        if !names.insert(wanted.to_lowercase()) {
            if LICENCES.contains(&wanted.as_str()) {
                continue;
            }
            return Err(refused(format!("its entry {entry_name} is there twice")));
        }
        let most = left.min(MOST_BYTES_FILE);
        let path = folder.join(&wanted);
        let copied = copy(&mut entry, &path, most).map_err(|error| match error {
            Copy::Read(reason) => refused(format!("its entry {wanted}: {reason}")),
            Copy::Write(source) => InstallError::Folder { path: path.clone(), source },
        })?;
        left -= copied.bytes;
        let file = FileRecord { name: wanted, ..copied };
        // Wheels hold no links, so that one library comes under several names.
        if let Some(twin) = files.iter().find(|known: &&FileRecord| known.sha256 == file.sha256) {
            link(&folder.join(&twin.name), &path);
        }
        files.push(file);
    }

    let libraries: Vec<&str> = files
        .iter()
        .map(|file| file.name.as_str())
        .filter(|name| is_main_library(build, name))
        .collect();
    let [library] = libraries[..] else {
        return Err(refused(format!(
            "it holds {} {} in {}, expected one",
            libraries.len(),
            if build.plugin.is_some() { "plugins" } else { "ONNX Runtime libraries" },
            build.library_folder
        )));
    };
    Ok(Record {
        format: 1,
        name: build.name.to_owned(),
        version,
        package: build.package.to_owned(),
        wheel_sha256: sha256_of(wheel, &mut |_| ()).map_err(|error| refused(error.to_string()))?,
        library: library.to_owned(),
        wheel: name.clone(),
        plugin: build.plugin.is_some(),
        files,
        installed: now(),
    })
}

/// The version in a wheel's name, `package-version-python-abi-platform.whl`.
fn version_of(build: &Build, name: &str) -> Option<String> {
    let mut parts = name.strip_suffix(".whl")?.split('-');
    let package = parts.next()?;
    // Names of packages and of their wheels differ in these two characters.
    if package.replace('_', "-") != build.package.replace('_', "-") {
        return None;
    }
    let version = parts.next()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || ".+_!".contains(c);
    (version.starts_with(|c: char| c.is_ascii_digit()) && version.chars().all(plain))
        .then(|| version.to_owned())
}

/// The file name under which an entry is unpacked, if it is.
fn wanted_name<'a>(build: &Build, entry: &'a str) -> Option<&'a str> {
    if let Some(name) =
        entry.strip_prefix(build.library_folder).and_then(|rest| rest.strip_prefix('/'))
        && is_plain_file_name(name)
        && is_library(build, name)
    {
        return Some(name);
    }
    let (folder, name) = entry.rsplit_once('/')?;
    let package_folder = build.library_folder.split('/').next().unwrap_or_default();
    let of_package = folder == package_folder
        || folder.ends_with(".dist-info")
        || folder.ends_with(".dist-info/licenses");
    (of_package && LICENCES.contains(&name)).then_some(name)
}

/// A shared library of a build on Linux, macOS or Windows.
fn is_library(build: &Build, name: &str) -> bool {
    let bare = name.strip_prefix("lib").unwrap_or(name);
    let own = build.libraries.iter().any(|begin| bare.starts_with(begin));
    // The module that Python itself loads is linked to Python.
    let python = name.contains("pybind11");
    let shared = name.ends_with(".so")
        || name.contains(".so.")
        || name.ends_with(".dylib")
        || name.ends_with(".dll");
    own && shared && !python
}

/// The library that is loaded, as opposed to those that it loads.
fn is_main_library(build: &Build, name: &str) -> bool {
    let bare = name.strip_prefix("lib").unwrap_or(name);
    match build.plugin {
        // Other names of it carry versions.
        Some(plugin) => {
            let ending = bare.strip_prefix(plugin);
            ending.is_some_and(|ending| [".so", ".dylib", ".dll"].contains(&ending))
        }
        None => {
            is_library(build, name)
                && bare.starts_with("onnxruntime")
                && !bare.contains("_providers_")
        }
    }
}

/// Makes `copy` another name of `file`, with the same content, where the file system can.
fn link(file: &Path, copy: &Path) {
    let temporary = copy.with_extension("link");
    if std::fs::hard_link(file, &temporary).is_ok() && std::fs::rename(&temporary, copy).is_err() {
        // The copy itself stays.
        let _ = std::fs::remove_file(&temporary);
    }
}

enum Copy {
    Read(String),
    Write(io::Error),
}

/// Copies at most `most` bytes and hashes them. The archive's own checksum is verified on the way.
fn copy(entry: &mut impl Read, path: &Path, most: u64) -> Result<FileRecord, Copy> {
    let mut file = File::create_new(path).map_err(Copy::Write)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut bytes = 0u64;
    loop {
        let count = entry.read(&mut buffer).map_err(|error| Copy::Read(error.to_string()))?;
        if count == 0 {
            break;
        }
        // Counted as they come: the sizes written in the archive may lie.
        bytes += count as u64;
        if bytes > most {
            return Err(Copy::Read(format!("it is longer than {most} bytes")));
        }
        hash.update(&buffer[..count]);
        file.write_all(&buffer[..count]).map_err(Copy::Write)?;
    }
    file.sync_all().map_err(Copy::Write)?;
    Ok(FileRecord { name: String::new(), bytes, sha256: hex(&hash.finalize()) })
}

#[cfg(test)]
mod tests {
    use zip::{ZipWriter, write::SimpleFileOptions};

    use super::*;
    use crate::engine::provider::BUILDS;

    const NAME: &str = "onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_x86_64.whl";

    /// Writes a wheel with these entries and unpacks it; the folder is returned with the result.
    fn unpacked(
        name: &str,
        entries: &[(&str, &[u8])],
    ) -> (tempfile::TempDir, Result<Record, InstallError>) {
        let folder = tempfile::tempdir().expect("folder");
        let wheel = folder.path().join(name);
        let mut writer = ZipWriter::new(File::create(&wheel).expect("wheel"));
        for (name, content) in entries {
            writer.start_file(*name, SimpleFileOptions::default()).expect("entry");
            writer.write_all(content).expect("content");
        }
        writer.finish().expect("finished");
        let target = folder.path().join("target");
        std::fs::create_dir(&target).expect("target");
        let record = unpack(&BUILDS[0], &wheel, &target);
        (folder, record)
    }

    fn names_in(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn only_libraries_and_licences_are_unpacked() {
        let (folder, record) = unpacked(
            NAME,
            &[
                ("onnxruntime/__init__.py", b"import this"),
                ("onnxruntime/capi/libonnxruntime.so.1.32.0", b"library"),
                ("onnxruntime/capi/libonnxruntime_providers_shared.so", b"bridge"),
                ("onnxruntime/capi/onnxruntime_pybind11_state.cpython-311.so", b"module"),
                ("onnxruntime/capi/other.so", b"other"),
                ("onnxruntime/LICENSE", b"licence"),
                ("onnxruntime-1.32.0.dist-info/LICENSE", b"again"),
                ("onnxruntime/ThirdPartyNotices.txt", b"notices"),
            ],
        );
        let record = record.expect("unpacked");
        assert_eq!(
            names_in(&folder.path().join("target")),
            [
                "LICENSE",
                "ThirdPartyNotices.txt",
                "libonnxruntime.so.1.32.0",
                "libonnxruntime_providers_shared.so"
            ]
        );
        assert_eq!((record.name.as_str(), record.version.as_str()), ("cpu", "1.32.0"));
        assert_eq!(record.library, "libonnxruntime.so.1.32.0");
        let library = record.files.iter().find(|file| file.name == record.library);
        let library = library.expect("recorded");
        assert_eq!(library.bytes, 7);
        let path = folder.path().join("target").join(&library.name);
        assert_eq!(sha256_of(&path, &mut |_| ()).expect("hash"), library.sha256);
    }

    #[test]
    fn entries_with_hostile_names_are_left_alone() {
        let (folder, record) = unpacked(
            NAME,
            &[
                ("onnxruntime/capi/libonnxruntime.so.1.32.0", b"library"),
                ("onnxruntime/capi/../../../libonnxruntime.so.9", b"evil"),
                ("onnxruntime/capi/sub/libonnxruntime.so.9", b"evil"),
                ("onnxruntime/capi/libonnxruntime\\..\\x.so", b"evil"),
                ("/onnxruntime/capi/libonnxruntime.so.9", b"evil"),
                ("../onnxruntime/capi/libonnxruntime.so.9", b"evil"),
                ("../LICENSE", b"evil"),
                ("onnxruntime/capi/", b""),
            ],
        );
        record.expect("unpacked");
        assert_eq!(names_in(&folder.path().join("target")), ["libonnxruntime.so.1.32.0"]);
        assert_eq!(names_in(folder.path()), [NAME, "target"]);
    }

    #[test]
    fn links_and_doubled_libraries_are_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let wheel = folder.path().join(NAME);
        let mut writer = ZipWriter::new(File::create(&wheel).expect("wheel"));
        let link = "onnxruntime/capi/libonnxruntime.so.1.32.0";
        writer.add_symlink(link, "/etc/passwd", SimpleFileOptions::default()).expect("link");
        writer.finish().expect("finished");
        let error = unpack(&BUILDS[0], &wheel, folder.path()).expect_err("refused");
        assert!(error.to_string().contains("no plain file"), "{error}");

        // On systems that ignore case, the second would replace the first.
        let (_folder, record) = unpacked(
            NAME,
            &[
                ("onnxruntime/capi/onnxruntime.dll", b"one"),
                ("onnxruntime/capi/onnxruntime.DLL.dll", b"other"),
                ("onnxruntime/capi/onnxruntime.dll.dll", b"two"),
            ],
        );
        let error = record.expect_err("refused").to_string();
        assert!(error.contains("twice"), "{error}");
    }

    #[test]
    fn wheels_without_one_library_or_of_another_package_are_refused() {
        let one: (&str, &[u8]) = ("onnxruntime/capi/libonnxruntime.so.1.32.0", b"a");
        let two: (&str, &[u8]) = ("onnxruntime/capi/libonnxruntime.so.1.33.0", b"b");
        for (entries, count) in [(vec![("README", &b"x"[..])], "0"), (vec![one, two], "2")] {
            let (_folder, record) = unpacked(NAME, &entries);
            let error = record.expect_err("refused").to_string();
            assert!(error.contains(&format!("holds {count} ONNX")), "{error}");
        }
        for name in ["numpy-1.0-py3-none-any.whl", "onnxruntime.whl", "onnxruntime-..-a.whl"] {
            let (_folder, record) = unpacked(name, &[one]);
            let error = record.expect_err("refused").to_string();
            assert!(error.contains("its name"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_archive_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let wheel = folder.path().join(NAME);
        std::fs::write(&wheel, "not an archive").expect("file");
        let error = unpack(&BUILDS[0], &wheel, folder.path()).expect_err("refused");
        assert!(error.to_string().contains("archive"), "{error}");
    }

    #[test]
    fn more_than_the_limit_is_not_written() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("file");
        let refusal = copy(&mut io::repeat(7), &path, 100_000);
        assert!(matches!(refusal, Err(Copy::Read(_))));
        assert!(path.metadata().expect("file").len() <= 100_000);
    }

    #[test]
    fn libraries_of_each_platform_are_told_apart() {
        for name in ["libonnxruntime.so.1.32.0", "libonnxruntime.1.32.0.dylib", "onnxruntime.dll"] {
            assert!(is_main_library(&BUILDS[0], name), "{name}");
        }
        for name in ["libonnxruntime_providers_shared.so", "onnxruntime_providers_shared.dll"] {
            assert!(is_library(&BUILDS[0], name) && !is_main_library(&BUILDS[0], name), "{name}");
        }
        for name in ["onnxruntime_pybind11_state.so", "onnxruntime_pybind11_state.pyd", "x.so"] {
            assert!(!is_library(&BUILDS[0], name), "{name}");
        }
    }
}

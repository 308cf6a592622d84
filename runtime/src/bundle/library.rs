//! ONNX Runtime's library in a bundle.
//!
//! A loader takes files. On Linux the library becomes a file in memory; elsewhere, and where the system
//! forbids that, it is written once into the user's data folder, under its hash.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::{Bundle, Entry, format::portions};
use crate::{
    engine::data_folder,
    files::{sha256_of, write_atomically},
};

/// The library of the bundle that this process was started from, as a path that can be loaded, or why there is
/// none; `None` without a bundle or without an engine in it.
pub(crate) fn library() -> Option<Result<PathBuf, String>> {
    static LOADABLE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let bundle = super::own().ok().flatten()?;
    let engine = bundle.index().engine.as_ref()?;
    let entry = bundle.entry(&engine.library)?;
    let loadable = LOADABLE.get_or_init(|| {
        // Its releases from 1.3x on find the real names of files with weights there.
        if cfg!(target_os = "linux") && !Path::new("/proc/self/fd").exists() {
            return Err(format!("{} needs /proc, and there is none", engine.library));
        }
        in_memory(bundle, entry).or_else(|memory| {
            let folder = data_folder().map_err(io::Error::other);
            folder.and_then(|folder| unpacked(&folder, bundle, entry)).map_err(|disk| {
                format!(
                    "{} can neither be held in memory ({memory}) nor be written to the data folder ({disk})",
                    engine.library
                )
            })
        })
    });
    Some(loadable.clone())
}

#[cfg(target_os = "linux")]
pub(super) fn in_memory(bundle: &Bundle, entry: &Entry) -> io::Result<PathBuf> {
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::{
        io::{Read, Seek, SeekFrom},
        os::fd::{AsRawFd, IntoRawFd},
    };

    let name = entry.path.rsplit('/').next().unwrap_or_default();
    let mut memory = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    let mut file = File::open(bundle.file())?;
    file.seek(SeekFrom::Start(entry.offset))?;
    // The system copies; hashes are compared when somebody asks for it.
    io::copy(&mut file.take(entry.bytes), &mut memory)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd()));
    // It stays open as long as the process lives, as the library does.
    let _ = memory.into_raw_fd();
    Ok(path)
}

#[cfg(not(target_os = "linux"))]
fn in_memory(_: &Bundle, _: &Entry) -> io::Result<PathBuf> {
    Err(io::Error::other("this system loads libraries from disk only"))
}

/// The library in the data folder; what was unpacked before is used if it has the bytes it should have.
pub(super) fn unpacked(data_folder: &Path, bundle: &Bundle, entry: &Entry) -> io::Result<PathBuf> {
    let folder = data_folder.join("bundled").join(&entry.sha256);
    let path = folder.join(entry.path.rsplit('/').next().unwrap_or_default());
    if sha256_of(&path, &mut |_| ()).is_ok_and(|found| found == entry.sha256) {
        return Ok(path);
    }
    std::fs::create_dir_all(&folder)?;
    let file = File::open(bundle.file())?;
    write_atomically(&path, |writer| {
        let copy = &mut |portion: &[u8]| writer.write_all(portion);
        match portions(&file, entry.offset, entry.bytes, copy)? == entry.sha256 {
            true => Ok(()),
            false => Err(io::Error::other("the library was altered since the bundle was made")),
        }
    })?;
    Ok(path)
}

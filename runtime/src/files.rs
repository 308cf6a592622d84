//! Writing files so that nobody ever sees half of one, and telling files apart.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::Path,
};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

/// Lets `content` write to a temporary file beside `path`, which then takes `path`'s place. On any
/// error nothing is left behind and an existing file stays as it was.
///
/// # Errors
/// Those of `content`, and of the file system.
pub fn write_atomically(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> io::Result<()> {
    temporary(path, content)?.persist(path)?;
    Ok(())
}

/// As [`write_atomically`], but when there is a file at `path` it stays and the answer is `false`.
pub(crate) fn write_new_atomically(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> io::Result<bool> {
    // A look first, so that nothing is computed in vain; what counts is the rename below.
    if path.symlink_metadata().is_ok() {
        return Ok(false);
    }
    match temporary(path, content)?.persist_noclobber(path) {
        Ok(_) => Ok(true),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        // Not every file system can do that (exFAT); an empty file then holds the place.
        Err(error) => match File::create_new(path) {
            Ok(_) => Ok(error.file.persist(path).map(|_| true)?),
            Err(other) if other.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(_) => Err(error.error),
        },
    }
}

/// A complete temporary file beside `path`.
fn temporary(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> io::Result<NamedTempFile> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".pixart-");
    // A temporary file is private by default; the result is an ordinary file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder)?;
    {
        let mut writer = BufWriter::new(file.as_file_mut());
        content(&mut writer)?;
        writer.flush()?;
    }
    Ok(file)
}

/// SHA-256 of a file, in hexadecimal; `step` is told how many bytes were read since the last call.
pub(crate) fn sha256_of(path: &Path, step: &mut dyn FnMut(u64)) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hex(&hash.finalize())),
            count => {
                hash.update(&block[..count]);
                step(count as u64);
            }
        }
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.png");
        std::fs::write(&path, "old").expect("a file");
        let result = write_atomically(&path, |writer| {
            writer.write_all(b"half")?;
            Err(io::Error::other("the disk is full"))
        });
        assert!(result.is_err());
        assert_eq!(std::fs::read(&path).expect("the old file"), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn of_many_at_once_one_gets_the_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.png");
        let write = &|k: u8| {
            write_new_atomically(&path, |writer| writer.write_all(&[k; 1000])).expect("no error")
        };
        let written: Vec<bool> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|k| scope.spawn(move || write(k))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let winners: Vec<_> = (0..16).filter(|k| written[usize::from(*k)]).collect();
        assert_eq!(winners.len(), 1, "{written:?}");
        assert_eq!(std::fs::read(&path).expect("a file"), [winners[0]; 1000]);
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn the_result_is_no_more_private_than_other_files() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let [ours, plain] = ["ours", "plain"].map(|name| folder.path().join(name));
        write_atomically(&ours, |writer| writer.write_all(b"x")).expect("written");
        std::fs::write(&plain, "x").expect("written");
        let mode = |path| std::fs::metadata(path).expect("a file").permissions().mode();
        assert_eq!(mode(ours), mode(plain));
    }
}

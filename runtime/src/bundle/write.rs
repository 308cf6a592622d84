//! Writing a bundle.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::Path,
};

use sha2::{Digest, Sha256};

use super::{
    Bundle, BundleError, Contents, Entry, Index, Program,
    contents::Source,
    format::{BLOCK, HEADER, Header, LONGEST_PROGRAM, PAGE, aligned, platform, portions, put},
};
use crate::files::{write_atomically, write_new_atomically};

/// Writes `program` and `contents` into the executable `output`; with `replace`, in place of what is there.
/// `progress` is told how many bytes of how many are written.
///
/// # Errors
/// When `output` exists, `program` is a bundle, a file differs from its manifest, something cannot be read
/// or written, or the result could not be opened. Then nothing is left behind.
pub fn write(
    output: &Path,
    program: &Path,
    contents: &Contents,
    replace: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Index, BundleError> {
    if Bundle::open(program)?.is_some() {
        return Err(BundleError::Nested { file: program.to_owned() });
    }
    let mut written = None;
    let mut failed = None;
    let mut content = |file: &mut File| {
        let result = Writer { file, output, position: 0, total: contents.bytes(), progress }
            .bundle(program, contents);
        result.map(|index| written = Some(index)).map_err(|error| {
            let told = io::Error::other("not written");
            failed = Some(error);
            told
        })
    };
    let result = match replace {
        true => write_atomically(output, |writer| content(writer.get_mut())).map(|()| true),
        false => write_new_atomically(output, |writer| content(writer.get_mut())),
    };
    if let Some(error) = failed {
        return Err(error);
    }
    match (result, written) {
        (Ok(true), Some(index)) => Ok(index),
        (Ok(_), _) => Err(BundleError::Exists {
            path: output.to_owned(),
            advice: "choose another name, or replace it with --force",
        }),
        (Err(source), _) => Err(BundleError::Write { path: output.to_owned(), source }),
    }
}

struct Writer<'a> {
    file: &'a mut File,
    /// What the file will be called.
    output: &'a Path,
    /// Where the next byte goes.
    position: u64,
    /// Bytes of all files, for the progress.
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Writer<'_> {
    fn bundle(mut self, program: &Path, contents: &Contents) -> Result<Index, BundleError> {
        let bytes = std::fs::metadata(program).map_err(|source| unreadable(program, source))?.len();
        let sha256 = self.copy(program, bytes)?;
        let described = Program {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            platform: platform(),
            bytes,
            sha256,
        };
        let own = aligned(bytes.max(1), BLOCK);
        self.position = own + HEADER as u64;
        let mut entries = Vec::with_capacity(contents.files.len());
        for source in &contents.files {
            entries.push(self.entry(source)?);
        }
        let engine = contents.engine.clone();
        let index = Index { program: described, engine, entries };
        let place = aligned(self.position, PAGE);
        self.finish(own, place, &index).map_err(|source| self.unwritten(source))?;
        let unusable = |reason| BundleError::Unusable { path: self.output.to_owned(), reason };
        match Bundle::read(self.file, self.output) {
            Ok(Some(read)) if *read.index() == index => Ok(index),
            Ok(_) => Err(unusable(format!(
                "{} is no program, or longer than {} MiB",
                program.display(),
                LONGEST_PROGRAM >> 20
            ))),
            Err(BundleError::Damaged { reason, .. }) => Err(unusable(reason)),
            Err(error) => Err(error),
        }
    }

    fn entry(&mut self, source: &Source) -> Result<Entry, BundleError> {
        self.position = aligned(self.position, if source.bytes < BLOCK { PAGE } else { BLOCK });
        let offset = self.position;
        let sha256 = self.copy(&source.file, source.bytes)?;
        if source.sha256.as_ref().is_some_and(|expected| *expected != sha256) {
            return Err(BundleError::Differs { file: source.file.clone() });
        }
        Ok(Entry { path: source.path.clone(), offset, bytes: source.bytes, sha256 })
    }

    /// Copies a file to where the writer stands; gives its hash.
    fn copy(&mut self, from: &Path, bytes: u64) -> Result<String, BundleError> {
        let source = File::open(from).map_err(|source| unreadable(from, source))?;
        let mut unwritten = None;
        let result = portions(&source, 0, bytes, &mut |portion| {
            let written = self.portion(portion);
            written.map_err(|error| {
                unwritten = Some(error);
                io::Error::other("not written")
            })
        });
        match (result, unwritten) {
            (_, Some(source)) => Err(self.unwritten(source)),
            (result, None) => result.map_err(|source| unreadable(from, source)),
        }
    }

    fn portion(&mut self, portion: &[u8]) -> io::Result<()> {
        put(self.file, self.position, portion)?;
        self.position += portion.len() as u64;
        (self.progress)(self.position.min(self.total), self.total);
        Ok(())
    }

    fn unwritten(&self, source: io::Error) -> BundleError {
        BundleError::Write { path: self.output.to_owned(), source }
    }

    /// Writes the index at its place, the header at `own`, and makes the file one that can be started.
    fn finish(&mut self, own: u64, place: u64, index: &Index) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(index)?;
        let header = Header {
            own,
            index: place,
            index_bytes: text.len() as u64,
            total: place + text.len() as u64,
            index_sha256: Sha256::digest(&text).into(),
        };
        for (place, bytes) in [(place, text), (own, header.to_bytes())] {
            self.file.seek(SeekFrom::Start(place))?;
            self.file.write_all(&bytes)?;
        }
        make_executable(self.file)
    }
}

fn unreadable(file: &Path, source: io::Error) -> BundleError {
    BundleError::Read { file: file.to_owned(), source }
}

/// Whoever may read the file may start it.
#[cfg(unix)]
fn make_executable(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut permissions = file.metadata()?.permissions();
    let mode = permissions.mode();
    permissions.set_mode(mode | (mode & 0o444) >> 2);
    file.set_permissions(permissions)
}

#[cfg(not(unix))]
fn make_executable(_: &File) -> io::Result<()> {
    Ok(())
}

//! Where everything lies in a bundle.
//!
//! Behind the program, at the next multiple of 64 KiB, stands a header; it names the place of an index in
//! JSON at the end, which lists the files. The header says its own place and the size of the whole, so
//! that a file cut short is told from a plain program, and what a signing tool appends does no harm.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::BundleError;
use crate::{engine::is_plain_file_name, files::hex};

/// What a header begins with.
const MAGIC: [u8; 16] = *b"\x7fpixart bundle\r\n";

/// The layout that this program writes and reads.
pub(super) const FORMAT: u32 = 1;

/// Headers and large files begin at a multiple of this, which every system can map.
pub(super) const BLOCK: u64 = 64 << 10;

/// Small files begin at a multiple of this.
pub(super) const PAGE: u64 = 4 << 10;

/// Bytes of a header.
pub(super) const HEADER: usize = 88;

/// No program comes near, so nothing is looked for behind.
pub(super) const LONGEST_PROGRAM: u64 = 1 << 30;

/// No index comes near.
const LONGEST_INDEX: u64 = 16 << 20;

/// What is where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// The program in front.
    pub program: Program,
    /// The engine inside, if there is one besides what is built in.
    pub engine: Option<BundledEngine>,
    /// The files, in the order in which they lie.
    pub entries: Vec<Entry>,
}

/// The program of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its version.
    pub version: String,
    /// What it runs on: `x86_64-linux`.
    pub platform: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// The engine of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundledEngine {
    /// The name it was installed under, or `ort` for a library named otherwise.
    pub name: String,
    /// Its version: `1.32.0`.
    pub version: String,
    /// The entry with its library.
    pub library: String,
}

/// One file of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its path with `/`: `transformer/model.onnx`.
    pub path: String,
    /// First byte in the bundle.
    pub offset: u64,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// A bundle whose index was read and fits its file.
#[derive(Clone, Debug)]
pub struct Bundle {
    file: PathBuf,
    index: Index,
}

/// What the program was built for: `x86_64-linux`.
pub fn platform() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}

/// The next multiple of `step`.
pub(super) fn aligned(position: u64, step: u64) -> u64 {
    position.div_ceil(step) * step
}

/// What stands behind the program.
pub(super) struct Header {
    pub own: u64,
    pub index: u64,
    pub index_bytes: u64,
    pub total: u64,
    pub index_sha256: [u8; 32],
}

impl Header {
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend([0; 4]);
        for number in [self.own, self.index, self.index_bytes, self.total] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.index_sha256);
        bytes
    }

    /// The header at `own`, with its format; `None` if none begins there. A program has the first bytes
    /// inside itself, but not followed by their own place.
    fn parse(bytes: &[u8; HEADER], own: u64) -> Option<(u32, Self)> {
        let number = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(eight)
        };
        if bytes[..16] != MAGIC || number(24) != own {
            return None;
        }
        let format = number(16) as u32;
        let mut index_sha256 = [0; 32];
        index_sha256.copy_from_slice(&bytes[56..]);
        let header = Self {
            own,
            index: number(32),
            index_bytes: number(40),
            total: number(48),
            index_sha256,
        };
        Some((format, header))
    }
}

impl Bundle {
    /// Reads what `file` says about itself; `None` if it is no bundle. The files inside are not read.
    ///
    /// # Errors
    /// When the file cannot be read, was cut short, or is a damaged bundle or one of another format.
    pub fn open(file: &Path) -> Result<Option<Self>, BundleError> {
        let opened = File::open(file)
            .map_err(|source| BundleError::Read { file: file.to_owned(), source })?;
        Self::read(&opened, file)
    }

    /// The same of an open file that is, or will be, called `file`.
    pub(super) fn read(opened: &File, file: &Path) -> Result<Option<Self>, BundleError> {
        let unreadable = |source| BundleError::Read { file: file.to_owned(), source };
        let metadata = opened.metadata().map_err(unreadable)?;
        if !metadata.is_file() || !is_program(opened).map_err(unreadable)? {
            return Ok(None);
        }
        let Some((format, header)) = find(opened, metadata.len()).map_err(unreadable)? else {
            let (file, found) = (file.to_owned(), metadata.len());
            return match ends_early(opened, found).map_err(unreadable)? {
                true => Err(BundleError::CutEarly { file, found }),
                false => Ok(None),
            };
        };
        if format != FORMAT {
            let file = file.to_owned();
            return Err(BundleError::Format { file, found: format, expected: FORMAT });
        }
        if metadata.len() < header.total {
            let (found, expected) = (metadata.len(), header.total);
            return Err(BundleError::CutShort { file: file.to_owned(), found, expected });
        }
        let damaged = |reason: &str| BundleError::Damaged {
            file: file.to_owned(),
            reason: reason.to_owned(),
        };
        let end = header.index.checked_add(header.index_bytes);
        if header.index < header.own || end != Some(header.total) {
            return Err(damaged("its header contradicts itself"));
        }
        if header.index_bytes > LONGEST_INDEX {
            return Err(damaged("its index is too long"));
        }
        let mut bytes = vec![0; header.index_bytes as usize];
        if read_at(opened, header.index, &mut bytes).map_err(unreadable)? < bytes.len() {
            return Err(damaged("its index ends early"));
        }
        if Sha256::digest(&bytes)[..] != header.index_sha256 {
            return Err(damaged("its index was altered"));
        }
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|error| damaged(&format!("its index cannot be used: {error}")))?;
        index.check(&header).map_err(|reason| damaged(&reason))?;
        Ok(Some(Self { file: file.to_owned(), index }))
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What is inside.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The file of this path inside.
    pub fn entry(&self, path: &str) -> Option<&Entry> {
        self.index.entries.iter().find(|entry| entry.path == path)
    }
}

impl Index {
    /// The folders inside, in the order in which they lie: `transformer`, `text_encoder`, …
    pub fn parts(&self) -> Vec<&str> {
        let mut parts: Vec<&str> =
            self.entries.iter().filter_map(|entry| Some(entry.path.split_once('/')?.0)).collect();
        parts.dedup();
        parts
    }

    /// The files of a folder inside.
    pub fn files(&self, part: &str) -> impl Iterator<Item = &Entry> {
        let within = move |entry: &&Entry| entry.path.split_once('/').is_some_and(|p| p.0 == part);
        self.entries.iter().filter(within)
    }

    fn check(&self, header: &Header) -> Result<(), String> {
        if self.program.bytes > header.own {
            return Err("its program is longer than the space in front of the header".to_owned());
        }
        let mut least = header.own + HEADER as u64;
        let mut paths = std::collections::HashSet::new();
        for entry in &self.entries {
            let path = entry.path.escape_debug();
            if !entry.path.split('/').all(is_plain_file_name) {
                return Err(format!("\"{path}\" is no path below a folder"));
            }
            if !paths.insert(entry.path.as_str()) {
                return Err(format!("\"{path}\" is there twice"));
            }
            let end = entry.offset.checked_add(entry.bytes).filter(|end| *end <= header.index);
            match end {
                Some(end) if entry.offset >= least => least = end,
                _ => return Err(format!("\"{path}\" does not lie where files can")),
            }
        }
        match &self.engine {
            Some(engine) if !paths.contains(engine.library.as_str()) => {
                Err(format!("\"{}\" is missing", engine.library.escape_debug()))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a file begins as a program does on any system: ELF, PE or Mach-O. Nothing else can be a bundle,
/// and large files of weights are not searched for a header.
fn is_program(file: &File) -> io::Result<bool> {
    let mut first = [0; 4];
    let count = read_at(file, 0, &mut first)?;
    let known: [&[u8]; 4] = [b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"];
    Ok(known.iter().any(|known| first[..count].starts_with(known)))
}

/// The header in a file of this size.
fn find(file: &File, size: u64) -> io::Result<Option<(u32, Header)>> {
    let mut bytes = [0; HEADER];
    for place in (BLOCK..size.min(LONGEST_PROGRAM)).step_by(BLOCK as usize) {
        if read_at(file, place, &mut bytes)? < HEADER {
            break;
        }
        if let Some(found) = Header::parse(&bytes, place) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Whether a file in which no header was found is the beginning of another one: it ends within a header, or,
/// as far as that is told (ELF of 64 bits), within the program.
fn ends_early(file: &File, size: u64) -> io::Result<bool> {
    let mut last = [0; HEADER];
    let place = size.saturating_sub(1) / BLOCK * BLOCK;
    let count = read_at(file, place, &mut last)?;
    let mut first = [0; 64];
    let is_elf =
        read_at(file, 0, &mut first)? == first.len() && first.starts_with(b"\x7fELF\x02\x01");
    // The table of sections is what comes last in a program.
    let number = |at: usize, bytes: usize| {
        first[at..at + bytes].iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let end = number(40, 8).saturating_add(number(58, 2) * number(60, 2));
    Ok(count < HEADER && last[..count].starts_with(&MAGIC) || is_elf && end > size)
}

/// Reads from `offset` until `bytes` is full or the file ends; how much it was.
pub(super) fn read_at(file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
    #[cfg(unix)]
    let read = std::os::unix::fs::FileExt::read_at;
    #[cfg(windows)]
    let read = std::os::windows::fs::FileExt::seek_read;
    let mut done = 0;
    while done < bytes.len() {
        match read(file, &mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Reads a stretch of a file in portions, and gives its SHA-256 in hexadecimal.
pub(super) fn portions(
    file: &File,
    offset: u64,
    bytes: u64,
    each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut portion = vec![0; 1 << 20];
    let mut done = 0;
    while done < bytes {
        let most = portion.len().min(usize::try_from(bytes - done).unwrap_or(usize::MAX));
        let count = read_at(file, offset + done, &mut portion[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hash.update(&portion[..count]);
        each(&portion[..count])?;
        done += count as u64;
    }
    Ok(hex(&hash.finalize()))
}

/// Writes a portion at its place; nothing but zeros becomes a hole.
pub(super) fn put(file: &mut File, position: u64, portion: &[u8]) -> io::Result<()> {
    if portion.iter().any(|byte| *byte != 0) {
        file.seek(SeekFrom::Start(position))?;
        file.write_all(portion)?;
    }
    Ok(())
}

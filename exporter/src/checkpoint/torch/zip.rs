//! The zip container of PyTorch files, as strict as PyTorch's writer is regular.
//!
//! Everything is stored, so an entry is a range of the file and there is nothing to expand. What
//! two readers could understand differently is refused: that is how files slip past scanners.
//! Checksums are not compared, because PyTorch can be told to leave them out.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::FileProblem;
use super::super::text::shown;

const LOCAL: &[u8; 4] = b"PK\x03\x04";
const CENTRAL: &[u8; 4] = b"PK\x01\x02";
const END: &[u8; 4] = b"PK\x05\x06";
const END64: &[u8; 4] = b"PK\x06\x06";
const LOCATOR64: &[u8; 4] = b"PK\x06\x07";

const LOCAL_BYTES: usize = 30;
const CENTRAL_BYTES: usize = 46;
const END_BYTES: usize = 22;
const END64_BYTES: usize = 56;
const LOCATOR64_BYTES: usize = 20;

/// Sizes and checksum follow the data, and may be zero in the header before it.
const FLAG_DESCRIPTOR: u16 = 1 << 3;
/// The name is UTF-8.
const FLAG_UTF8: u16 = 1 << 11;
/// Hints for a compressor.
const FLAG_LEVEL: u16 = 0b110;

/// The names of longer entries are no names of PyTorch.
const MAX_NAME_BYTES: usize = 1024;

/// Entry name → its bytes.
pub(super) type Archive<'a> = BTreeMap<&'a str, Range<usize>>;

fn invalid(reason: impl Into<String>) -> FileProblem {
    FileProblem::Zip { reason: reason.into() }
}

/// Reads the directory of a zip file.
pub(super) fn read(bytes: &[u8]) -> Result<Archive<'_>, FileProblem> {
    let directory = Directory::find(bytes)?;
    let mut archive = Archive::new();
    let mut occupied = Vec::new();
    let mut at = directory.range.start;
    for _ in 0..directory.entries {
        let entry = Entry::read(bytes, at, directory.range.end)?;
        at = entry.end;
        let (header, data) = entry.locate(bytes, directory.range.start)?;
        occupied.push((header..data.end, entry.name));
        let is_folder = entry.name.ends_with('/');
        if is_folder && !data.is_empty() {
            return Err(invalid(format!("the folder {} has content", shown(entry.name))));
        }
        if !is_folder && archive.insert(entry.name, data).is_some() {
            return Err(invalid(format!("found two entries named {}", shown(entry.name))));
        }
    }
    if at != directory.range.end {
        return Err(invalid("the central directory has more bytes than entries"));
    }
    occupied.sort_by_key(|(range, _)| range.start);
    for pair in occupied.windows(2) {
        let ((first, one), (second, other)) = (&pair[0], &pair[1]);
        if first.end > second.start {
            return Err(invalid(format!("{} and {} overlap", shown(one), shown(other))));
        }
    }
    Ok(archive)
}

/// Little-endian numbers of a record that lies wholly in the file.
struct Record<'a>(&'a [u8]);

impl<'a> Record<'a> {
    fn at(bytes: &'a [u8], at: usize, len: usize, signature: &[u8; 4]) -> Option<Self> {
        let record = bytes.get(at..at.checked_add(len)?)?;
        record.starts_with(signature).then_some(Self(record))
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }
}

/// Where the central directory is.
struct Directory {
    range: Range<usize>,
    entries: u64,
}

impl Directory {
    /// The end record has to be the last thing in the file, without a comment: then there is one
    /// way to find it.
    fn find(bytes: &[u8]) -> Result<Self, FileProblem> {
        let at = bytes.len().checked_sub(END_BYTES);
        let end = at.and_then(|at| Some((at, Record::at(bytes, at, END_BYTES, END)?)));
        let Some((end_at, end)) = end else {
            return Err(invalid("the end record is missing: the file is truncated or was changed"));
        };
        if end.u16(4) != 0 || end.u16(6) != 0 || end.u16(8) != end.u16(10) || end.u16(20) != 0 {
            return Err(invalid("the end record has several disks or a comment"));
        }
        let locator = end_at
            .checked_sub(LOCATOR64_BYTES)
            .and_then(|at| Some((at, Record::at(bytes, at, LOCATOR64_BYTES, LOCATOR64)?)));
        let small = (u64::from(end.u16(10)), u64::from(end.u32(12)), u64::from(end.u32(16)));
        let ((entries, size, offset), limit) = match locator {
            None => (small, end_at),
            Some((locator_at, locator)) => {
                let at = usize::try_from(locator.u64(8)).ok().filter(|&at| {
                    at.checked_add(END64_BYTES) == Some(locator_at)
                        && locator.u32(4) == 0
                        && locator.u32(16) == 1
                });
                let record =
                    at.and_then(|at| Some((at, Record::at(bytes, at, END64_BYTES, END64)?)));
                let Some((at, record)) = record else {
                    return Err(invalid("the zip64 end record is not where its locator says"));
                };
                let length = END64_BYTES as u64 - 12;
                if record.u64(4) != length
                    || record.u32(16) != 0
                    || record.u32(20) != 0
                    || record.u64(24) != record.u64(32)
                {
                    return Err(invalid("the zip64 end record has several disks or extra data"));
                }
                let large = (record.u64(32), record.u64(40), record.u64(48));
                let agree = (small.0 == u64::from(u16::MAX) || small.0 == large.0)
                    && (small.1 == u64::from(u32::MAX) || small.1 == large.1)
                    && (small.2 == u64::from(u32::MAX) || small.2 == large.2);
                if !agree {
                    return Err(invalid("the two end records disagree"));
                }
                (large, at)
            }
        };
        let range = usize::try_from(offset)
            .ok()
            .and_then(|begin| Some(begin..begin.checked_add(usize::try_from(size).ok()?)?))
            .filter(|range| range.end == limit);
        match range {
            Some(range) => Ok(Self { range, entries }),
            None => Err(invalid("the central directory does not end where the end record begins")),
        }
    }
}

/// An entry of the central directory.
struct Entry<'a> {
    name: &'a str,
    flags: u16,
    checksum: u32,
    size: usize,
    header: usize,
    /// Where the next entry begins.
    end: usize,
}

impl<'a> Entry<'a> {
    fn read(bytes: &'a [u8], at: usize, limit: usize) -> Result<Self, FileProblem> {
        let bytes = &bytes[..limit];
        let Some(record) = Record::at(bytes, at, CENTRAL_BYTES, CENTRAL) else {
            return Err(invalid("the central directory ends early or is damaged"));
        };
        let [name_len, extra_len, comment_len] = [28, 30, 32].map(|i| usize::from(record.u16(i)));
        let name_at = at + CENTRAL_BYTES;
        let extra_at = name_at + name_len;
        let end = extra_at + extra_len + comment_len;
        if end > limit {
            return Err(invalid("the central directory ends inside an entry"));
        }
        let name = check_name(&bytes[name_at..extra_at])?;
        let entry = shown(name);
        let (flags, method) = (record.u16(8), record.u16(10));
        if flags & 1 != 0 {
            return Err(invalid(format!("{entry} is encrypted")));
        }
        if flags & !(FLAG_DESCRIPTOR | FLAG_UTF8 | FLAG_LEVEL) != 0 {
            return Err(invalid(format!("{entry} has the unknown flags {flags:#06x}")));
        }
        if method != 0 {
            return Err(invalid(format!(
                "{entry} is compressed (method {method}), expected it stored as it is"
            )));
        }
        if record.u16(34) != 0 {
            return Err(invalid(format!("{entry} is on another disk")));
        }
        let mut wide = Wide::find(&bytes[extra_at..extra_at + extra_len])
            .ok_or_else(|| invalid(format!("{entry} has a damaged extra field")))?;
        let [size, packed, header] = [record.u32(24), record.u32(20), record.u32(42)]
            .map(|small| wide.or(small).and_then(|value| usize::try_from(value).ok()));
        let (Some(size), Some(packed), Some(header)) = (size, packed, header) else {
            return Err(invalid(format!("{entry} lacks its 64-bit sizes")));
        };
        if packed != size {
            return Err(invalid(format!("{entry} has two sizes, {packed} and {size}")));
        }
        Ok(Self { name, flags, checksum: record.u32(16), size, header, end })
    }

    /// Position of the local header, and the range of the data behind it; the header has to say
    /// what the central directory says.
    fn locate(&self, bytes: &[u8], limit: usize) -> Result<(usize, Range<usize>), FileProblem> {
        let name = shown(self.name);
        let bytes = &bytes[..limit];
        let Some(record) = Record::at(bytes, self.header, LOCAL_BYTES, LOCAL) else {
            return Err(invalid(format!("{name} has no header where the directory says")));
        };
        let [name_len, extra_len] = [26, 28].map(|i| usize::from(record.u16(i)));
        let name_at = self.header + LOCAL_BYTES;
        let extra_at = name_at + name_len;
        let begin = extra_at + extra_len;
        let Some(end) = begin.checked_add(self.size).filter(|&end| end <= limit) else {
            return Err(invalid(format!("{name} reaches into the central directory")));
        };
        let mut wide = Wide::find(&bytes[extra_at..begin])
            .ok_or_else(|| invalid(format!("{name} has a damaged extra field")))?;
        let sizes = [record.u32(22), record.u32(18)].map(|small| wide.or(small));
        let later = self.flags & FLAG_DESCRIPTOR != 0;
        let same = |found: u64, expected: u64| found == expected || later && found == 0;
        let agree = &bytes[name_at..extra_at] == self.name.as_bytes()
            && record.u16(6) == self.flags
            && record.u16(8) == 0
            && same(u64::from(record.u32(14)), u64::from(self.checksum))
            && sizes.iter().all(|size| size.is_some_and(|size| same(size, self.size as u64)));
        if !agree {
            return Err(invalid(format!("{name} has a header that disagrees with the directory")));
        }
        Ok((self.header, begin..end))
    }
}

/// The 64-bit values of a zip64 extra field, in order.
struct Wide<'a>(&'a [u8]);

impl<'a> Wide<'a> {
    /// Finds the field among the extra ones; `None` if these are not well-formed.
    fn find(mut extra: &'a [u8]) -> Option<Self> {
        const ZIP64: u16 = 1;
        let mut found: Option<&[u8]> = None;
        while !extra.is_empty() {
            let (head, rest) = extra.split_first_chunk::<4>()?;
            let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
            let (content, rest) = rest.split_at_checked(len)?;
            if u16::from_le_bytes([head[0], head[1]]) == ZIP64 && found.replace(content).is_some() {
                return None;
            }
            extra = rest;
        }
        Some(Self(found.unwrap_or_default()))
    }

    /// The 32-bit value, or the next 64-bit one where it is saturated.
    fn or(&mut self, small: u32) -> Option<u64> {
        if small != u32::MAX {
            return Some(u64::from(small));
        }
        let (value, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*value))
    }
}

/// Nothing is unpacked, so a name cannot do harm; but no honest file has such names.
fn check_name(name: &[u8]) -> Result<&str, FileProblem> {
    let text = std::str::from_utf8(name).ok().filter(|text| text.len() <= MAX_NAME_BYTES);
    let Some(text) = text else {
        return Err(invalid("found an entry name that is no UTF-8 or too long"));
    };
    let plain = !text.starts_with('/')
        && !text.contains('\\')
        && !text.chars().any(char::is_control)
        && text
            .strip_suffix('/')
            .unwrap_or(text)
            .split('/')
            .all(|part| !matches!(part, "" | "." | ".."));
    if plain {
        Ok(text)
    } else {
        Err(invalid(format!("found the entry name \"{}\", expected a plain path", shown(text))))
    }
}

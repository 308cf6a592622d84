//! TensorBoard's event files.
//!
//! A file is a row of records: the length of the data as 8 bytes, a checksum of these, the data, a
//! checksum of it. The data is a protobuf message, of which only the fields that are used are here. No
//! crate that writes them is maintained.

use std::{
    fs::File,
    io::{self, Cursor, Write},
    path::{Path, PathBuf},
};

use crc::{CRC_32_ISCSI, Crc};
use image::{ImageFormat, RgbImage};
use prost::Message;

use super::{LogError, now};

/// How the names of event files begin; TensorBoard takes files whose names contain `tfevents`.
pub(super) const FILE_PREFIX: &str = "events.out.tfevents.";

/// The version that stands in the first record of a file.
const VERSION: &str = "brain.Event:2";

#[derive(Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session: Option<Session>,
}

#[derive(Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

/// One number or picture under a name.
#[derive(Message)]
pub(super) struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    number: Option<f32>,
    #[prost(message, optional, tag = "4")]
    picture: Option<Picture>,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
}

#[derive(Message)]
struct Picture {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    /// 3 is RGB.
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    encoded: Vec<u8>,
}

#[derive(Message)]
struct Metadata {
    /// Shown beside the title.
    #[prost(string, tag = "3")]
    description: String,
}

/// Where a session begins, TensorBoard drops what earlier files hold of this step and later ones.
#[derive(Message)]
struct Session {
    /// 1 is the start.
    #[prost(int32, tag = "1")]
    status: i32,
}

impl Value {
    pub fn of_number(tag: &str, value: f32) -> Self {
        Self { tag: tag.to_owned(), number: Some(value), ..Default::default() }
    }

    pub fn of_picture(tag: &str, prompt: &str, picture: &RgbImage) -> io::Result<Self> {
        let mut encoded = Cursor::new(Vec::new());
        picture.write_to(&mut encoded, ImageFormat::Png).map_err(io::Error::other)?;
        let side = |pixels: u32| i32::try_from(pixels).unwrap_or(i32::MAX);
        let picture = Picture {
            height: side(picture.height()),
            width: side(picture.width()),
            colorspace: 3,
            encoded: encoded.into_inner(),
        };
        let metadata = Some(Metadata { description: prompt.to_owned() });
        Ok(Self { tag: tag.to_owned(), picture: Some(picture), metadata, number: None })
    }
}

/// An event file that is being written.
pub(super) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// A new file in `folder`; one that goes on behind step `resume` takes the place of what earlier files
    /// hold of later steps.
    pub fn create(folder: &Path, resume: Option<u64>) -> Result<Self, LogError> {
        let (seconds, process) = (now() as u64, std::process::id());
        let names = (0..).map(|k| folder.join(format!("{FILE_PREFIX}{seconds:010}.{process}.{k}")));
        let mut found = None;
        for path in names {
            match File::create_new(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                file => {
                    found = Some((path, file));
                    break;
                }
            }
        }
        let (path, file) = found.unwrap_or_else(|| {
            (folder.to_owned(), Err(io::Error::from(io::ErrorKind::AlreadyExists)))
        });
        let file = file.map_err(LogError::file(&path, "write TensorBoard's events"))?;
        let mut events = Self { path, file };
        let version = Some(VERSION.to_owned());
        events.event(Event { file_version: version, ..Event::default() })?;
        if let Some(last) = resume {
            let session = Some(Session { status: 1 });
            events.event(Event { step: signed(last + 1), session, ..Event::default() })?;
        }
        Ok(events)
    }

    /// Writes what is known of a step.
    pub fn write(&mut self, step: u64, value: Vec<Value>) -> Result<(), LogError> {
        let summary = Some(Summary { value });
        self.event(Event { step: signed(step), summary, ..Event::default() })
    }

    fn event(&mut self, event: Event) -> Result<(), LogError> {
        let data = Event { wall_time: now(), ..event }.encode_to_vec();
        let written = self.file.write_all(&record(&data));
        written.map_err(LogError::file(&self.path, "write TensorBoard's events"))
    }
}

fn signed(step: u64) -> i64 {
    i64::try_from(step).unwrap_or(i64::MAX)
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_checksum(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_checksum(data).to_le_bytes());
    record
}

/// The CRC-32C, rotated and moved on, as the format has it so that checksums of checksums differ.
fn masked_checksum(data: &[u8]) -> u32 {
    const CASTAGNOLI: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
    CASTAGNOLI.checksum(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_format() {
        // The well-known check value of CRC-32C, masked by hand.
        let sum: u32 = 0xe306_9283;
        let masked = sum.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked_checksum(b"123456789"), masked);
        let record = record(b"123456789");
        assert_eq!(record.len(), 8 + 4 + 9 + 4);
        assert_eq!(record[..8], 9u64.to_le_bytes());
        assert_eq!(record[12..21], *b"123456789");
        assert_eq!(record[21..], masked.to_le_bytes());
    }
}

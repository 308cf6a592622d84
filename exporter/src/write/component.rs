//! One component's folder: graph, weights, configuration, manifest.

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use prost::Message;
use serde_json::Value;

use super::convert::{Sink, Stop, convert};
use super::hash::{HashedFile, hash_sources};
use super::layout::{Layout, Place};
use super::manifest::{Manifest, Source};
use super::pipe::Pipe;
use super::staging::sync_folder;
use super::{DATA_FILE, FileRecord, MODEL_FILE, WriteError, copy, onnx};
use crate::Component;
use crate::checkpoint::{Checkpoint, Shard, TensorView};
use crate::graph::ir::{Graph, Initializer, Transform, WeightData};
use crate::naming::FoundWeight;
use crate::precision::{self, Int8Mode, Scheme};
use crate::profile::Profile;

/// Everything that goes into a component's folder.
pub(crate) struct Content<'a> {
    pub component: Component,
    pub profile: Profile,
    pub scheme: Scheme,
    pub graph: &'a Graph,
    pub checkpoint: &'a Checkpoint,
    /// The graph's weights in the checkpoint, as `naming::find` returns them.
    pub weights: &'a [FoundWeight],
    /// For the manifest.
    pub architecture: &'a Value,
    /// For `config.json`.
    pub config: &'a ConfigFile,
}

/// Where the content of `config.json` comes from.
pub(crate) enum ConfigFile {
    /// From a file, as it is.
    Copied(PathBuf),
    /// From what was worked out.
    Written(Value),
}

/// What has been written into a component's folder, for its manifest.
pub(crate) struct Written {
    /// The graph and its weights.
    pub files: Vec<FileRecord>,
    /// The checkpoint's files.
    pub source: Vec<FileRecord>,
}

/// Writes the component's files, all but the manifest, into an existing, empty folder and flushes
/// them. `progress` gets the bytes done and the bytes in all, and may end it.
pub(crate) fn write_component(
    folder: &Path,
    content: &Content<'_>,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Written, WriteError> {
    let written = write_graph(folder, content, true, progress)?;
    let config = folder.join("config.json");
    match content.config {
        ConfigFile::Copied(from) => copy::copy_file(from, &config)?,
        ConfigFile::Written(value) => copy::write_text(&config, &format!("{value:#}\n"))?,
    }
    Ok(written)
}

/// Writes only the graph and its weights, and does not read what they do not need of the
/// checkpoint's files, which are not hashed then.
pub(crate) fn write_bare(folder: &Path, content: &Content<'_>) -> Result<(), WriteError> {
    write_graph(folder, content, false, &mut |_, _| ControlFlow::Continue(())).map(drop)
}

/// Completes a component's folder.
pub(crate) fn write_manifest(
    folder: &Path,
    content: &Content<'_>,
    written: &Written,
    verification: Option<Value>,
) -> Result<(), WriteError> {
    let manifest = Manifest {
        component: content.component.as_str(),
        profile: content.profile.as_str(),
        precision: content.scheme.precision().as_str(),
        int8_mode: content.scheme.int8_mode().map(Int8Mode::as_str),
        weights: precision::summary(content.graph),
        verification,
        architecture: content.architecture,
        source: Source { files: written.source.clone() },
        files: written.files.clone(),
        notes: content.profile.notes(content.graph),
        ..Manifest::default()
    };
    copy::write_text(&folder.join("manifest.json"), &manifest.to_json()?)?;
    sync_folder(folder)
}

fn write_graph(
    folder: &Path,
    content: &Content<'_>,
    hash_source: bool,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Written, WriteError> {
    let graph = content.graph;
    let layout = Layout::new(graph)?;
    let (mut inline, data, source) = write_data(folder, content, &layout, hash_source, progress)?;

    let model = onnx::model(graph, &layout.places, &mut inline)?.encode_to_vec();
    let mut file = HashedFile::create(folder, MODEL_FILE, model.len() as u64)?;
    file.write(&model)?;
    Ok(Written { files: vec![file.finish()?, data], source })
}

/// Elements of initializers that stay in the graph, the data file, and the source files.
type Data = (Vec<Option<Vec<u8>>>, FileRecord, Vec<FileRecord>);

fn write_data(
    folder: &Path,
    content: &Content<'_>,
    layout: &Layout,
    hash_source: bool,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Data, WriteError> {
    let total = layout.data_bytes;
    let data = HashedFile::create(folder, DATA_FILE, total)?;
    let shards = if hash_source { content.checkpoint.shards() } else { &[] };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let hasher = scope.spawn(|| hash_sources(shards, &stop));
        let mut pipe = Pipe::new(scope, data, total, progress);
        let inline = write_initializers(content, layout, &mut pipe);
        // The writer's own failure is the cause of a closed pipe, so it is looked at first.
        let data = match (pipe.finish(), inline) {
            (Ok(data), Ok(inline)) => Ok((inline, data)),
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        };
        stop.store(data.is_err(), Ordering::Relaxed);
        let sources = hasher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (inline, data) = data?;
        Ok((inline, data, sources.unwrap_or_default()))
    })
}

/// Feeds every initializer that has a place in the data file to the pipe, in the graph's order, and
/// collects the checkpoint's elements that stay in the graph.
fn write_initializers(
    content: &Content<'_>,
    layout: &Layout,
    pipe: &mut Pipe<'_, '_>,
) -> Result<Vec<Option<Vec<u8>>>, WriteError> {
    let initializers = &content.graph.initializers;
    let mut tensors = vec![None; initializers.len()];
    for weight in content.weights {
        tensors[weight.initializer] = Some(weight.tensor.as_str());
    }
    let mut inline = vec![None; initializers.len()];
    for (index, initializer) in initializers.iter().enumerate() {
        let closed = || inconsistent(initializer, "the writer stopped");
        let place = layout.places[index];
        if let Place::External { offset, .. } = place {
            pipe.pad_to(offset).map_err(|_| closed())?;
        }
        match (&initializer.data, place) {
            (WeightData::Inline(_), Place::Inline) => {}
            (WeightData::Inline(bytes), Place::External { .. }) => {
                pipe.bytes(bytes).map_err(|_| closed())?;
            }
            (WeightData::Checkpoint(_), place) => {
                let weight = Weight::new(initializer, tensors[index], content.checkpoint)?;
                if place == Place::Inline {
                    let mut bytes = Vec::new();
                    weight.convert(&mut bytes)?;
                    inline[index] = Some(bytes);
                } else {
                    weight.convert(pipe)?;
                }
                weight.release();
            }
        }
        if let Place::External { offset, length } = place
            && pipe.position() != offset + length
        {
            let written = pipe.position() - offset;
            let reason = format!("{written} bytes written, {length} expected");
            return Err(inconsistent(initializer, &reason));
        }
    }
    Ok(inline)
}

fn inconsistent(initializer: &Initializer, reason: &str) -> WriteError {
    WriteError::Inconsistent { initializer: initializer.name.clone(), reason: reason.to_owned() }
}

/// A tensor of the checkpoint on its way to an initializer.
struct Weight<'a> {
    initializer: &'a Initializer,
    transform: Transform,
    tensor: &'a str,
    view: TensorView<'a>,
    shard: &'a Shard,
    range: Range<usize>,
}

impl<'a> Weight<'a> {
    fn new(
        initializer: &'a Initializer,
        tensor: Option<&'a str>,
        checkpoint: &'a Checkpoint,
    ) -> Result<Self, WriteError> {
        let found = tensor.and_then(|tensor| {
            let (shard, range) = checkpoint.position(tensor)?;
            let shard = checkpoint.shards().get(shard)?;
            Some((tensor, checkpoint.tensor(tensor)?, shard, range))
        });
        match (&initializer.data, found) {
            (WeightData::Checkpoint(weight), Some((tensor, view, shard, range))) => {
                let transform = weight.transform;
                Ok(Self { initializer, transform, tensor, view, shard, range })
            }
            _ => Err(inconsistent(initializer, "it has no tensor in the checkpoint")),
        }
    }

    fn convert<S: Sink>(&self, sink: &mut S) -> Result<(), WriteError> {
        let dtype = self.initializer.dtype;
        convert(&self.view, self.transform, dtype, sink).map_err(|stop| match stop {
            Stop::Sink(_) => inconsistent(self.initializer, "the writer stopped"),
            Stop::Value { element, value } => {
                let (path, tensor) = (self.shard.path().to_owned(), self.tensor.to_owned());
                if value.is_finite() {
                    WriteError::TooLarge { path, tensor, element, value, dtype }
                } else {
                    WriteError::NotFinite { path, tensor, element, value }
                }
            }
            Stop::Malformed => {
                let Self { tensor, view, .. } = self;
                let reason = format!("tensor {tensor} of type {} {:?}", view.dtype, view.shape);
                inconsistent(self.initializer, &reason)
            }
        })
    }

    /// Gives back the memory of the pages that were read.
    fn release(&self) {
        self.shard.release(self.range.clone());
    }
}

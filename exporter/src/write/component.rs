//! One component's folder: graph, weights, configuration, manifest.

use std::path::Path;

use prost::Message;
use serde_json::Value;

use super::elements::{Stop, stream, stream_transposed};
use super::hash::{HashedFile, HashedSource};
use super::layout::{Layout, Place};
use super::manifest::Manifest;
use super::staging::sync_folder;
use super::{DATA_FILE, FileRecord, MODEL_FILE, WriteError, copy, onnx};
use crate::checkpoint::{Checkpoint, TensorView};
use crate::graph::ir::{DType, Graph, Initializer, Transform, WeightData};
use crate::naming::FoundWeight;
use crate::profile::Profile;
use crate::{Component, Precision};

/// Everything that goes into a component's folder.
pub(crate) struct Content<'a> {
    pub component: Component,
    pub profile: Profile,
    pub precision: Precision,
    pub graph: &'a Graph,
    pub checkpoint: &'a Checkpoint,
    /// The graph's weights in the checkpoint, as `naming::find` returns them.
    pub weights: &'a [FoundWeight],
    /// For the manifest.
    pub architecture: &'a Value,
}

/// Writes the component's files into an existing, empty folder and flushes them. `progress` gets
/// the bytes done and the bytes in all.
pub(crate) fn write_component(
    folder: &Path,
    content: &Content<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<FileRecord>, WriteError> {
    let graph = content.graph;
    let layout = Layout::new(graph, content.weights, content.checkpoint)?;
    let (mut inline, data, source) = write_data(folder, content, &layout, progress)?;

    let model = onnx::model(graph, &layout.places, &mut inline)?.encode_to_vec();
    let mut file = HashedFile::create(folder, MODEL_FILE, model.len() as u64)?;
    file.write(&model)?;
    let files = vec![file.finish()?, data];

    copy::copy_file(&content.checkpoint.folder().join("config.json"), &folder.join("config.json"))?;
    let manifest = Manifest::new(
        content.component,
        content.profile,
        content.precision,
        content.architecture,
        source,
        files.clone(),
    )
    .with_notes(content.profile.notes(graph));
    copy::write_text(&folder.join("manifest.json"), &manifest.to_json()?)?;
    sync_folder(folder)?;
    Ok(files)
}

/// Elements of initializers that stay in the graph, the data file, and the source files.
type Written = (Vec<Option<Vec<u8>>>, FileRecord, Vec<FileRecord>);

fn write_data(
    folder: &Path,
    content: &Content<'_>,
    layout: &Layout,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Written, WriteError> {
    let Content { graph, checkpoint, .. } = content;
    let total = layout.data_bytes;
    let mut data = HashedFile::create(folder, DATA_FILE, total)?;
    let mut inline = vec![None; graph.initializers.len()];
    let mut sources: Vec<HashedSource<'_>> =
        checkpoint.shards().iter().map(HashedSource::new).collect();

    progress(0, total);
    for &index in &layout.order {
        let initializer = &graph.initializers[index];
        let place = layout.places[index];
        if let Place::External { offset, .. } = place {
            data.pad_to(offset)?;
        }
        match (&initializer.data, place) {
            (WeightData::Inline(_), Place::Inline) => {}
            (WeightData::Inline(bytes), Place::External { .. }) => {
                data.write(bytes)?;
                progress(data.position(), total);
            }
            (WeightData::Checkpoint(_), place) => {
                let weight =
                    Weight::new(initializer, layout.tensors[index].as_deref(), checkpoint)?;
                if place == Place::Inline {
                    let mut bytes = Vec::new();
                    weight.stream(&mut |block| {
                        bytes.extend_from_slice(block);
                        Ok(())
                    })?;
                    inline[index] = Some(bytes);
                } else {
                    weight.stream(&mut |block| {
                        data.write(block)?;
                        progress(data.position(), total);
                        Ok(())
                    })?;
                }
                sources[weight.shard].advance(weight.end);
            }
        }
        if let Place::External { offset, length } = place
            && data.position() != offset + length
        {
            return Err(WriteError::Inconsistent {
                initializer: initializer.name.clone(),
                reason: format!("{} bytes written, {length} expected", data.position() - offset),
            });
        }
    }
    let sources = sources.into_iter().map(HashedSource::finish).collect();
    Ok((inline, data.finish()?, sources))
}

/// A tensor of the checkpoint on its way to an initializer.
struct Weight<'a> {
    initializer: &'a Initializer,
    transform: Transform,
    tensor: &'a str,
    view: TensorView<'a>,
    checkpoint: &'a Checkpoint,
    shard: usize,
    end: usize,
}

impl<'a> Weight<'a> {
    fn new(
        initializer: &'a Initializer,
        tensor: Option<&'a str>,
        checkpoint: &'a Checkpoint,
    ) -> Result<Self, WriteError> {
        let found = tensor.and_then(|tensor| {
            let (shard, range) = checkpoint.position(tensor)?;
            Some((tensor, checkpoint.tensor(tensor)?, shard, range.end))
        });
        match (&initializer.data, found) {
            (WeightData::Checkpoint(weight), Some((tensor, view, shard, end)))
                if initializer.dtype == DType::F32 =>
            {
                let transform = weight.transform;
                Ok(Self { initializer, transform, tensor, view, checkpoint, shard, end })
            }
            _ => Err(WriteError::Inconsistent {
                initializer: initializer.name.clone(),
                reason: "it has no tensor of floats in the checkpoint".to_owned(),
            }),
        }
    }

    fn stream(
        &self,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let result = match (self.transform, self.initializer.shape.as_slice()) {
            (Transform::Transpose2d, &[columns, rows]) => {
                stream_transposed(&self.view, rows, columns, sink)
            }
            (Transform::Transpose2d, _) => Err(Stop::Malformed),
            (Transform::None | Transform::Reshape, _) => stream(&self.view, sink),
        };
        result.map_err(|stop| match stop {
            Stop::Sink(error) => error,
            Stop::NotFinite { element, value } => WriteError::NotFinite {
                path: self.checkpoint.shards()[self.shard].path().to_owned(),
                tensor: self.tensor.to_owned(),
                element,
                value,
            },
            Stop::Malformed => WriteError::Inconsistent {
                initializer: self.initializer.name.clone(),
                reason: format!("tensor {} of shape {:?}", self.tensor, self.view.shape),
            },
        })
    }
}

//! Exports of the small models into folders that go away with the test.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use pixart_exporter::{
    Component, ExportOptions, PipelineSource, Profile, export_component, export_pipeline,
};
use pixart_runtime::{
    engine::Engine,
    pipeline::{ModelPaths, Pipeline, PipelineOptions},
};
use tempfile::TempDir;

/// A folder with exported components, removed when dropped.
pub struct Export {
    folder: TempDir,
}

impl Export {
    /// Exports all of the pipeline in `source`.
    ///
    /// # Panics
    /// When the export fails.
    pub fn pipeline(source: &Path, profile: Profile) -> Self {
        let folder = new_folder();
        let source = PipelineSource::from_folder(source)
            .unwrap_or_else(|error| panic!("{}: {error}", source.display()));
        let output = folder.path().join("model");
        export_pipeline(&source, &output, &options(profile), &mut |_| {})
            .unwrap_or_else(|error| panic!("export for {profile}: {error}"));
        Self { folder }
    }

    /// Exports one component of `source`.
    ///
    /// # Panics
    /// When the export fails.
    pub fn component(source: &Path, component: Component, profile: Profile) -> Self {
        Self::component_with(source, component, &options(profile))
    }

    /// Exports one component of `source` with any options.
    ///
    /// # Panics
    /// When the export fails.
    pub fn component_with(source: &Path, component: Component, options: &ExportOptions) -> Self {
        let folder = new_folder();
        let output = folder.path().join("model");
        export_component(source, component, &output, options, &mut |_| {}).unwrap_or_else(
            |error| panic!("export of {component} for {}: {error}", options.profile),
        );
        Self { folder }
    }

    /// The folder that holds one folder a component.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    /// The exported pipeline on an engine, its parts kept loaded between requests.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub fn open(&self, engine: Arc<dyn Engine>) -> Pipeline {
        let options = PipelineOptions { keep_resident: true, ..PipelineOptions::default() };
        Pipeline::new(engine, ModelPaths::from_folder(self.path()), options)
            .unwrap_or_else(|error| panic!("the exported pipeline: {error}"))
    }

    /// The graph of one component.
    pub fn graph(&self, component: Component) -> PathBuf {
        self.path().join(component.as_str()).join("model.onnx")
    }
}

fn new_folder() -> TempDir {
    tempfile::Builder::new().prefix("pixart-test-").tempdir().expect("a temporary folder")
}

fn options(profile: Profile) -> ExportOptions {
    ExportOptions { profile, ..Default::default() }
}

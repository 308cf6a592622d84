//! The path of an export, from a checkpoint's folder to a finished ONNX folder.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Value, json};

use crate::check::{Staged, Verdict};
use crate::checkpoint::Checkpoint;
use crate::graph::ir::Graph;
use crate::naming::{
    self, Family, FoundWeight, Naming, TextEncoderConfig, TransformerConfig, VaeConfig,
};
use crate::precision::{self, Choice};
use crate::source::Located;
use crate::write::{self, ConfigFile, Content, FileRecord, Kind, Staging, WriteError};
use crate::{Component, ExportError, ExportOptions, Exported, PipelineSource, Progress, models};

/// Exports one component into `output/<component>`.
///
/// `source` is a diffusers pipeline folder or the component's own folder; for the transformer also a
/// file, or a folder without `config.json`, under diffusers' names or the original ones. The folder appears
/// complete or not at all, and `progress` is called about once per megabyte of weights.
///
/// # Errors
///
/// Everything that is wrong with the source is found before anything is written; see
/// [`ExportError`] for the kinds. An existing target is refused unless `options.force` is set.
pub fn export_component(
    source: &Path,
    component: Component,
    output: &Path,
    options: &ExportOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Exported, ExportError> {
    export_component_checked(source, component, output, options, progress, &mut |_| Ok(None))
}

/// As [`export_component`]; the component is put in place only if `check` accepts it.
///
/// # Errors
///
/// As [`export_component`], and [`ExportError::Refused`].
pub fn export_component_checked(
    source: &Path,
    component: Component,
    output: &Path,
    options: &ExportOptions,
    progress: &mut dyn FnMut(Progress),
    check: &mut dyn FnMut(&Staged<'_>) -> Verdict,
) -> Result<Exported, ExportError> {
    one(source, component, output, options, &mut unstopped(progress), check)
}

/// As [`export_component`], unless `progress` asks to end it early; nothing is left behind then.
///
/// # Errors
///
/// As [`export_component`], and [`WriteError::Stopped`].
pub fn export_component_until(
    source: &Path,
    component: Component,
    output: &Path,
    options: &ExportOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Exported, ExportError> {
    one(source, component, output, options, progress, &mut |_| Ok(None))
}

/// Tells the progress to one who never ends it.
fn unstopped(tell: &mut dyn FnMut(Progress)) -> impl FnMut(Progress) -> ControlFlow<()> {
    |progress| {
        tell(progress);
        ControlFlow::Continue(())
    }
}

fn one(
    source: &Path,
    component: Component,
    output: &Path,
    options: &ExportOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    check: &mut dyn FnMut(&Staged<'_>) -> Verdict,
) -> Result<Exported, ExportError> {
    let located = Located::find(source, component)?;
    let prepare = |options: &ExportOptions| Prepared::new(&located, component, options, true);
    let prepared = prepare(options)?;
    let target = output.join(component.as_str());
    let staging = Staging::begin(&target, Kind::Component, options.force, &[&located.path])?;
    let files = prepared.write(staging.folder(), options, progress, check, &prepare)?;
    let folder = staging.commit()?;
    let notes = options.profile.notes(&prepared.graph);
    Ok(Exported { component, folder, files, notes, warnings: prepared.warnings() })
}

/// Exports all components into the folder `output`, with the scheduler's configuration, the
/// tokenizer and `model_index.json` copied beside them.
///
/// All of it appears at once: `output` itself must not exist yet or be empty, unless
/// `options.force` is set.
///
/// # Errors
///
/// As [`export_component`]; all components are checked before the first is written.
pub fn export_pipeline(
    source: &PipelineSource,
    output: &Path,
    options: &ExportOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Exported>, ExportError> {
    export_pipeline_checked(source, output, options, progress, &mut |_| Ok(None))
}

/// As [`export_pipeline`]; the pipeline is put in place only if `check` accepts every component.
///
/// # Errors
///
/// As [`export_pipeline`], and [`ExportError::Refused`].
pub fn export_pipeline_checked(
    source: &PipelineSource,
    output: &Path,
    options: &ExportOptions,
    progress: &mut dyn FnMut(Progress),
    check: &mut dyn FnMut(&Staged<'_>) -> Verdict,
) -> Result<Vec<Exported>, ExportError> {
    source.check_copied()?;
    let prepare = |component: Component, options: &ExportOptions| {
        let located = Located::find(source.folder(component), component)?;
        Prepared::new(&located, component, options, false)
    };
    let prepared: Vec<Prepared> = Component::ALL
        .into_iter()
        .map(|component| prepare(component, options))
        .collect::<Result<_, _>>()?;

    let sources = [
        source.transformer.as_path(),
        &source.text_encoder,
        &source.vae,
        &source.tokenizer,
        &source.scheduler,
    ];
    let staging = Staging::begin(output, Kind::Pipeline, options.force, &sources)?;
    let mut written = Vec::new();
    let progress = &mut unstopped(progress);
    for part in &prepared {
        let folder = staging.folder().join(part.component.as_str());
        write::create_folder(&folder)?;
        let again = |options: &ExportOptions| prepare(part.component, options);
        written.push((part, part.write(&folder, options, progress, check, &again)?));
    }
    copy_unread(source, staging.folder())?;

    let output = staging.commit()?;
    let place = |(part, files): (&Prepared, Vec<FileRecord>)| {
        let component = part.component;
        let folder = output.join(component.as_str());
        Exported {
            component,
            folder,
            files,
            notes: options.profile.notes(&part.graph),
            warnings: part.warnings(),
        }
    };
    Ok(written.into_iter().map(place).collect())
}

/// A component whose configuration, graph and tensors have been found to fit together.
pub(crate) struct Prepared {
    component: Component,
    checkpoint: Checkpoint,
    pub(crate) graph: Graph,
    weights: Vec<FoundWeight>,
    architecture: Value,
    config: ConfigFile,
    choice: Choice,
}

impl Prepared {
    fn new(
        located: &Located,
        component: Component,
        options: &ExportOptions,
        alone: bool,
    ) -> Result<Self, ExportError> {
        let profile = options.profile;
        let choice = precision::choose(options, component, alone)?;
        let mut checkpoint = Checkpoint::open(&located.path, &options.open)?;
        let mut config_file = ConfigFile::Copied(checkpoint.folder().join("config.json"));
        let mut names = Naming::Diffusers;
        let (graph, architecture) = match component {
            Component::Transformer => {
                (checkpoint, names) = naming::in_diffusers_names(checkpoint)?;
                let file = located.config.as_deref();
                let config = TransformerConfig::read(&checkpoint, file, &options.variant)?;
                config_file = located.config_file(&config, &options.variant)?;
                let architecture = transformer_architecture(&config, Family::of(&checkpoint));
                (models::transformer::build(&config, profile), architecture)
            }
            Component::TextEncoder => {
                let config = TextEncoderConfig::read(&checkpoint)?;
                (models::text_encoder::build(&config, profile), text_architecture(&config))
            }
            Component::VaeDecoder => {
                let config = VaeConfig::read(&checkpoint)?;
                (models::vae::build_decoder(&config, profile), vae_architecture(&config))
            }
            Component::VaeEncoder => {
                let config = VaeConfig::read(&checkpoint)?;
                (models::vae::build_encoder(&config, profile), vae_architecture(&config))
            }
        };
        let graph = graph
            .and_then(|graph| precision::apply(graph, component, profile, choice.scheme))
            .and_then(|graph| profile.check(&graph).map(|()| graph))
            .map_err(|source| ExportError::Graph { component, source })?;
        let weights = naming::find(&graph, &checkpoint, component)
            .map_err(|error| naming::in_stored_names(error, names))?;
        Ok(Self {
            component,
            checkpoint,
            graph,
            weights,
            architecture,
            config: config_file,
            choice,
        })
    }

    fn warnings(&self) -> Vec<String> {
        self.choice.warning.iter().cloned().collect()
    }

    /// Writes the component, lets `check` look at it, and completes it with the manifest. `again`
    /// prepares the same component with other options.
    fn write(
        &self,
        folder: &Path,
        options: &ExportOptions,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
        check: &mut dyn FnMut(&Staged<'_>) -> Verdict,
        again: &dyn Fn(&ExportOptions) -> Result<Prepared, ExportError>,
    ) -> Result<Vec<FileRecord>, ExportError> {
        let component = self.component;
        let content = self.content(&self.graph, &self.weights, options);
        let written = write::write_component(folder, &content, &mut |bytes_done, bytes_total| {
            progress(Progress { component, bytes_done, bytes_total })
        })?;
        let architecture = &self.architecture;
        let (precision, int8_mode) =
            (self.choice.scheme.precision(), self.choice.scheme.int8_mode());
        let staged = Staged {
            component,
            folder,
            architecture,
            precision,
            int8_mode,
            options,
            prepared: self,
            again,
        };
        let verification =
            check(&staged).map_err(|source| ExportError::Refused { component, source })?;
        write::write_manifest(folder, &content, &written, verification)?;
        Ok(written.files)
    }

    /// Writes a part of the component's graph with the weights it reads, and nothing else.
    pub(crate) fn write_bare(
        &self,
        part: &Graph,
        folder: &Path,
        options: &ExportOptions,
    ) -> Result<(), WriteError> {
        let initializer = |weight: &FoundWeight| &self.graph.initializers[weight.initializer];
        let tensors: HashMap<&str, &str> = self
            .weights
            .iter()
            .map(|weight| (initializer(weight).name.as_str(), weight.tensor.as_str()))
            .collect();
        let found = part.initializers.iter().enumerate().filter_map(|(initializer, entry)| {
            let tensor = (*tensors.get(entry.name.as_str())?).to_owned();
            Some(FoundWeight { initializer, tensor })
        });
        let weights: Vec<FoundWeight> = found.collect();
        write::write_bare(folder, &self.content(part, &weights, options))
    }

    fn content<'a>(
        &'a self,
        graph: &'a Graph,
        weights: &'a [FoundWeight],
        options: &ExportOptions,
    ) -> Content<'a> {
        Content {
            component: self.component,
            profile: options.profile,
            scheme: self.choice.scheme,
            graph,
            checkpoint: &self.checkpoint,
            weights,
            architecture: &self.architecture,
            config: &self.config,
        }
    }
}

/// Copies what the pipeline needs and the exporter does not read.
fn copy_unread(source: &PipelineSource, output: &Path) -> Result<(), WriteError> {
    write::copy_plain_files(&source.tokenizer, &output.join("tokenizer"))?;
    write::copy_plain_files(&source.scheduler, &output.join("scheduler"))?;
    let index = output.join("model_index.json");
    match &source.model_index {
        Some(existing) => write::copy_file(existing, &index),
        None => {
            let content = json!({
                "_class_name": "PixArtSigmaPipeline",
                "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
                "text_encoder": ["transformers", "T5EncoderModel"],
                "tokenizer": ["transformers", "T5Tokenizer"],
                "transformer": ["diffusers", "PixArtTransformer2DModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            });
            write::write_text(&index, &format!("{content:#}\n"))
        }
    }
}

fn transformer_architecture(config: &TransformerConfig, family: Family) -> Value {
    let mut architecture = json!({
        "variant": family.as_str(),
        "sample_size": config.sample_size,
        "interpolation_scale": config.interpolation_scale,
        "num_layers": config.num_layers,
        "num_attention_heads": config.num_attention_heads,
        "attention_head_dim": config.attention_head_dim,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "patch_size": config.patch_size,
        "caption_channels": config.caption_channels,
        "use_additional_conditions": config.use_additional_conditions,
    });
    if let Value::Object(map) = &mut architecture {
        map.extend(config.variant_json());
    }
    architecture
}

fn text_architecture(config: &TextEncoderConfig) -> Value {
    json!({
        "d_model": config.d_model,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "d_kv": config.d_kv,
        "d_ff": config.d_ff,
        "vocab_size": config.vocab_size,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
    })
}

fn vae_architecture(config: &VaeConfig) -> Value {
    json!({
        "latent_channels": config.latent_channels,
        "scale_factor": config.scale_factor(),
        "scaling_factor": config.scaling_factor,
        "block_out_channels": config.block_out_channels,
        "norm_num_groups": config.norm_num_groups,
    })
}

//! Exported components on disk, and what their manifests say about them.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use crate::files::hex;

use crate::{bundle::store, engine::is_plain_file_name};

/// The manifest format this version reads.
const FORMAT: u64 = 1;

/// Where the parts of a model are. Four checkpoints can share one text encoder, so the parts need not
/// lie in one folder.
#[derive(Clone, Debug)]
pub struct ModelPaths {
    /// The exported transformer.
    pub transformer: PathBuf,
    /// The exported text encoder.
    pub text_encoder: PathBuf,
    /// The exported VAE decoder.
    pub vae_decoder: PathBuf,
    /// The exported VAE encoder, which only requests with a picture to begin from need.
    pub vae_encoder: Option<PathBuf>,
    /// The folder with `spiece.model` or `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// The folder with `scheduler_config.json`; the released values are used where not given.
    pub scheduler: Option<PathBuf>,
}

impl ModelPaths {
    /// The parts in the subfolders of one exported folder, or in a bundle. VAE encoder and scheduler may be missing.
    pub fn from_folder(folder: impl AsRef<Path>) -> Self {
        let folder = folder.as_ref();
        let present = |name: &str| Some(folder.join(name)).filter(|folder| store::is_dir(folder));
        Self {
            transformer: folder.join("transformer"),
            text_encoder: folder.join("text_encoder"),
            vae_decoder: folder.join("vae_decoder"),
            vae_encoder: present("vae_encoder"),
            tokenizer: folder.join("tokenizer"),
            scheduler: present("scheduler"),
        }
    }
}

/// The networks of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Component {
    /// T5.
    TextEncoder,
    /// The diffusion transformer.
    Transformer,
    /// The decoder of the VAE.
    VaeDecoder,
    /// The encoder of the VAE.
    VaeEncoder,
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TextEncoder => "text_encoder",
            Self::Transformer => "transformer",
            Self::VaeDecoder => "vae_decoder",
            Self::VaeEncoder => "vae_encoder",
        })
    }
}

/// What a manifest says about a transformer.
#[derive(Clone, Debug, Deserialize)]
pub struct TransformerArchitecture {
    /// Side of the latents the model was trained at: an eighth of the picture's side.
    pub sample_size: u32,
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the output: as many as the input, or twice as many with learned variance.
    pub out_channels: usize,
    /// Width of the caption embeddings.
    pub caption_channels: usize,
    /// Whether it takes the size and the aspect ratio of the picture (PixArt-α at 1024 px).
    #[serde(default)]
    pub use_additional_conditions: bool,
    /// How keys and values of its self-attention are compressed, if they are.
    #[serde(flatten)]
    pub kv_compression: Option<KvCompression>,
}

/// Fewer keys and values in the self-attention of some blocks, as a manifest has it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct KvCompression {
    /// `conv`, `ave`, `uniform` or `uniform_every`.
    #[serde(rename = "kv_compress_sampling")]
    pub sampling: String,
    /// The factor.
    #[serde(rename = "kv_compress_scale_factor")]
    pub scale_factor: usize,
    /// The blocks that have it, in ascending order, counted from 0.
    #[serde(rename = "kv_compress_layer")]
    pub layers: Vec<usize>,
}

/// What a manifest says about a text encoder.
#[derive(Clone, Debug, Deserialize)]
pub struct TextEncoderArchitecture {
    /// Width of the embeddings.
    pub d_model: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
}

/// What a manifest says about a VAE decoder.
#[derive(Clone, Debug, Deserialize)]
pub struct VaeDecoderArchitecture {
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Pixels per latent pixel.
    pub scale_factor: usize,
    /// Latents are divided by this before decoding.
    pub scaling_factor: f32,
}

/// What a manifest says about a VAE encoder.
#[derive(Clone, Debug, Deserialize)]
pub struct VaeEncoderArchitecture {
    /// Channels of the latents; the output has as many means and as many logarithms of variances.
    pub latent_channels: usize,
    /// Pixels per latent pixel.
    pub scale_factor: usize,
    /// Latents are multiplied by this after encoding.
    pub scaling_factor: f32,
}

/// The architecture of one kind of component.
pub trait Architecture: DeserializeOwned {
    /// The kind.
    const COMPONENT: Component;
}

impl Architecture for TransformerArchitecture {
    const COMPONENT: Component = Component::Transformer;
}
impl Architecture for TextEncoderArchitecture {
    const COMPONENT: Component = Component::TextEncoder;
}
impl Architecture for VaeDecoderArchitecture {
    const COMPONENT: Component = Component::VaeDecoder;
}
impl Architecture for VaeEncoderArchitecture {
    const COMPONENT: Component = Component::VaeEncoder;
}

/// An exported component whose manifest was read and whose files are there.
#[derive(Clone, Debug)]
pub struct ComponentFolder<A> {
    /// `model.onnx`.
    pub model: PathBuf,
    /// The precision of the weights, as the manifest has it: `fp32`.
    pub precision: String,
    /// How int8 computes: `weight_only` or `dynamic`. Absent in other precisions.
    pub int8_mode: Option<String>,
    /// What the network looks like.
    pub architecture: A,
    /// A hash of the hashes of its files, which changes whenever they do.
    pub identity: String,
    /// A hash of the checkpoint's files that it was exported from: the same for every profile and
    /// precision. That of its own files where the manifest has none.
    pub origin: String,
}

/// A model folder that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The folder does not exist.
    #[error(
        "the folder {} does not exist; expected the exported {component} there (made by \
         `pixart export {component}`)",
        folder.display()
    )]
    MissingFolder {
        /// The folder looked for.
        folder: PathBuf,
        /// What was to be there.
        component: Component,
    },
    /// A file of an exported folder is not there.
    #[error(
        "{} is missing; expected an exported {component} in this folder, export it again with \
         `pixart export {component}`",
        file.display()
    )]
    MissingFile {
        /// The file looked for.
        file: PathBuf,
        /// What was to be there.
        component: Component,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A manifest that is no JSON or lacks a field.
    #[error("{}: {source}; export the {component} again", file.display())]
    Manifest {
        /// The manifest.
        file: PathBuf,
        /// What was to be there.
        component: Component,
        /// What serde_json found.
        source: serde_json::Error,
    },
    /// A manifest with another value than the one needed.
    #[error("{}: found {field} {found}, expected {expected}", file.display())]
    Unexpected {
        /// The manifest.
        file: PathBuf,
        /// Name of the field.
        field: &'static str,
        /// What it says.
        found: String,
        /// What it should say, and what to do.
        expected: String,
    },
    /// A file is shorter or longer than when it was exported.
    #[error(
        "{} has {found} bytes, its manifest says {expected}: the copy is incomplete or the file \
         was changed; copy it or export the model again",
        file.display()
    )]
    FileSize {
        /// The file.
        file: PathBuf,
        /// Its size.
        found: u64,
        /// Its size when it was written.
        expected: u64,
    },
    /// Two components that do not belong together.
    #[error("{0}")]
    Mismatch(String),
}

/// What every manifest says, whatever the component.
#[derive(Deserialize)]
struct Manifest<A> {
    precision: String,
    #[serde(default)]
    int8_mode: Option<String>,
    architecture: A,
    #[serde(default)]
    source: Source,
    files: Vec<FileEntry>,
}

#[derive(Default, Deserialize)]
struct Source {
    #[serde(default)]
    files: Vec<FileEntry>,
}

#[derive(Deserialize)]
struct FileEntry {
    name: String,
    bytes: u64,
    #[serde(default)]
    sha256: String,
}

impl<A: Architecture> ComponentFolder<A> {
    /// Reads `folder/manifest.json` and checks that the files it lists are there in full.
    ///
    /// # Errors
    /// When the folder or a file is missing, the manifest is broken, of another version or of
    /// another component, or a file has another size than when it was written.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let component = A::COMPONENT;
        if !store::is_dir(folder) {
            return Err(ModelError::MissingFolder { folder: folder.to_owned(), component });
        }
        let file = folder.join("manifest.json");
        let missing = |file: PathBuf| ModelError::MissingFile { file, component };
        if !store::is_file(&file) {
            return Err(missing(file));
        }
        let text =
            store::read(&file).map_err(|source| ModelError::Read { file: file.clone(), source })?;
        let invalid = |source| ModelError::Manifest { file: file.clone(), component, source };
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(invalid)?;
        let expect = |field, accepted: bool, expected: String| match accepted {
            true => Ok(()),
            false => {
                let found = value[field].to_string();
                Err(ModelError::Unexpected { file: file.clone(), field, found, expected })
            }
        };
        let format = &value["format"];
        let advice = format!("{FORMAT}: export the model with this version of pixart");
        expect("format", format == FORMAT, advice)?;
        let name = component.to_string();
        let advice = format!("\"{name}\": the path names the folder of another component");
        expect("component", value["component"] == name.as_str(), advice)?;
        let manifest: Manifest<A> = serde_json::from_value(value).map_err(invalid)?;

        for entry in &manifest.files {
            if !is_plain_file_name(&entry.name) {
                return Err(ModelError::Unexpected {
                    file,
                    field: "files",
                    found: format!("{:?}", entry.name),
                    expected: "a plain file name in its folder".to_owned(),
                });
            }
            let path = folder.join(&entry.name);
            let found = store::place(&path).ok().flatten().map(|place| place.bytes);
            let found = found.ok_or_else(|| missing(path.clone()))?;
            if found != entry.bytes {
                let expected = entry.bytes;
                return Err(ModelError::FileSize { file: path, found, expected });
            }
        }
        let model = folder.join("model.onnx");
        if !store::is_file(&model) {
            return Err(missing(model));
        }
        let identity = hash_of(&manifest.files);
        let source = &manifest.source.files;
        let hashed = !source.is_empty() && source.iter().all(|file| !file.sha256.is_empty());
        let origin = if hashed { hash_of(source) } else { identity.clone() };
        let Manifest { precision, int8_mode, architecture, .. } = manifest;
        Ok(Self { model, precision, int8_mode, architecture, identity, origin })
    }
}

/// A hash of what is known of files.
fn hash_of(files: &[FileEntry]) -> String {
    let mut hash = Sha256::new();
    for FileEntry { name, bytes, sha256 } in files {
        hash.update(format!("{name} {bytes} {sha256}\n"));
    }
    hex(&hash.finalize()[..8])
}

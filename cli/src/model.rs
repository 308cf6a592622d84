//! Where a model's parts are, and their ONNX graphs: exported folders are used as they are,
//! diffusers folders are exported once into the user's cache.

use crate::commands::sample::devices::{Providers, profile_for};
use crate::exit::Failure;
use crate::progress::{Progress, Unit, note};
use anyhow::Context;
use pixart_exporter::{
    Component, ExportOptions, Precision, Profile, VariantFlags, export_component,
};
use pixart_runtime::bundle::{self, Bundle, store};
use pixart_runtime::engine::provider::PROVIDERS;
use pixart_runtime::files::hex;
use pixart_runtime::pipeline::ModelPaths;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The folders a model is made of, each exported or in the diffusers layout.
pub struct Sources {
    transformer: PathBuf,
    text_encoder: PathBuf,
    vae: PathBuf,
    tokenizer: PathBuf,
    scheduler: Option<PathBuf>,
    variant: VariantFlags,
}

impl Sources {
    /// Takes each part from its own path where given, else from the model folder.
    pub fn locate(
        model: Option<&Path>,
        transformer: Option<&Path>,
        text_encoder: Option<&Path>,
        vae: Option<&Path>,
        tokenizer: Option<&Path>,
        variant: VariantFlags,
    ) -> Result<Self, Failure> {
        let parts = [transformer, text_encoder, vae, tokenizer];
        let base = match model {
            Some(model) => folder("model", model)?,
            // Parts given one by one need no model folder; mixing in the demo's would be a trap.
            None if parts.iter().all(Option::is_some) => PathBuf::new(),
            None if parts.iter().all(Option::is_none) => default_model()?,
            // In a bundle, what is left out is what it brings.
            None if is_bundle() => default_model()?,
            None => {
                return Err(Failure::request(
                    "checkpoint, text_encoder_root, vae_root and tokenizer_root: give all four, or \
                     `model` for those left out",
                ));
            }
        };
        let part = |name: &str, given: Option<&Path>, sub: &str| match given {
            // A whole pipeline folder may stand for its part.
            Some(given) if store::is_dir(&given.join(sub)) => folder(name, &given.join(sub)),
            // The one part that is published as a file, too.
            Some(given) if sub == "transformer" && given.is_file() => Ok(given.to_owned()),
            Some(given) => folder(name, given),
            None => folder("model", &base.join(sub)),
        };
        let vae_sub = |root: &Path| {
            if is_exported(&root.join("vae_decoder")) { "vae_decoder" } else { "vae" }
        };
        let transformer = part("checkpoint", transformer, "transformer")?;
        let beside =
            |part: &Path| part.parent().map(|p| p.join("scheduler")).filter(|p| store::is_dir(p));
        Ok(Self {
            scheduler: beside(&transformer),
            text_encoder: match text_encoder {
                // It may be missing: what is in the text cache can be drawn without it.
                None => base.join("text_encoder"),
                given => part("text_encoder_root", given, "text_encoder")?,
            },
            vae: part("vae_root", vae, vae_sub(vae.unwrap_or(&base)))?,
            tokenizer: part("tokenizer_root", tokenizer, "tokenizer")?,
            transformer,
            variant,
        })
    }

    /// Where the transformer comes from.
    pub fn transformer(&self) -> &Path {
        &self.transformer
    }

    /// Where the text encoder comes from, if it is there.
    pub fn text_encoder(&self) -> &Path {
        &self.text_encoder
    }

    /// Where the VAE comes from.
    pub fn vae(&self) -> &Path {
        &self.vae
    }

    /// Whether the VAE's encoder is there, or can be exported.
    pub fn has_encoder(&self) -> bool {
        !is_exported(&self.vae) || is_exported(&self.vae.with_file_name("vae_encoder"))
    }

    /// The exported folders; what is not exported yet is exported into the cache first. The VAE's encoder is
    /// looked for where it is needed: with a picture to begin from.
    pub fn resolve(
        &self,
        providers: Providers,
        wanted: Wanted,
        encoder: bool,
    ) -> Result<ModelPaths, Failure> {
        let mut variant = self.variant.clone();
        if store::is_file(&self.transformer.join("config.json")) {
            // There it is only a check, which follows when the model is open.
            variant.sample_size = None;
        }
        let find = |source, component: Component, variant| {
            let profile = profile_for(match component {
                Component::Transformer => providers.transformer,
                Component::TextEncoder => providers.text_encoder,
                Component::VaeDecoder | Component::VaeEncoder => providers.vae,
            });
            exported(source, component, profile, wanted, variant)
        };
        let transformer = find(&self.transformer, Component::Transformer, &variant)?;
        let none = VariantFlags::default();
        Ok(ModelPaths {
            transformer,
            text_encoder: match store::is_dir(&self.text_encoder) {
                true => find(&self.text_encoder, Component::TextEncoder, &none)?,
                false => self.text_encoder.clone(),
            },
            vae_decoder: find(&self.vae, Component::VaeDecoder, &none)?,
            vae_encoder: encoder
                .then(|| vae_encoder(&self.vae, "init_image", profile_for(providers.vae), wanted))
                .transpose()?,
            tokenizer: self.tokenizer.clone(),
            scheduler: self.scheduler.clone(),
        })
    }
}

/// The exported encoder of a VAE, which lies beside an exported decoder. `why` is what needs it, for messages.
fn vae_encoder(
    vae: &Path,
    why: &str,
    profile: Profile,
    wanted: Wanted,
) -> Result<PathBuf, Failure> {
    if !is_exported(vae) {
        let none = VariantFlags::default();
        let encoder = exported(vae, Component::VaeEncoder, profile, wanted, &none);
        return encoder.map_err(|failure| {
            let context = format!("{why}: needs the VAE's encoder from {}", vae.display());
            match failure {
                Failure::Request(error) => Failure::Request(error.context(context)),
                Failure::Failed(error) => Failure::Failed(error.context(context)),
                Failure::Interrupted(_) => failure,
            }
        });
    }
    let encoder = vae.with_file_name("vae_encoder");
    match is_exported(&encoder) {
        true => Ok(encoder),
        false => Err(Failure::Failed(anyhow::anyhow!(
            "{why}: found no VAE encoder at {}, expected one beside {}; make it with `pixart \
             export vae_encoder --source VAE --output {}`, where VAE is the folder the decoder was \
             exported from",
            encoder.display(),
            vae.display(),
            vae.parent().unwrap_or(vae).display()
        ))),
    }
}

/// The exported encoder of the VAE alone, from a model folder or its own one. `why` is what needs it.
pub fn vae_side(
    model: Option<&Path>,
    vae: Option<&Path>,
    why: &str,
    profile: Profile,
    wanted: Wanted,
) -> Result<PathBuf, Failure> {
    let root = match (vae, model) {
        (Some(vae), _) => folder("vae_root", vae)?,
        (None, Some(model)) => folder("model", model)?,
        (None, None) => default_model()?,
    };
    // A whole pipeline folder may stand for its part.
    let parts = ["vae_encoder", "vae_decoder", "vae"].map(|part| root.join(part));
    let vae = parts.into_iter().find(|part| store::is_dir(part)).unwrap_or(root);
    vae_encoder(&vae, why, profile, wanted)
}

/// The exported decoder of the VAE alone, from a model folder or its own one.
pub fn vae_decoder(root: &Path, profile: Profile, wanted: Wanted) -> Result<PathBuf, Failure> {
    let root = folder("vae_root", root)?;
    // A whole pipeline folder may stand for its part, and the exported encoder for what lies beside it.
    let beside = root.with_file_name("vae_decoder");
    let beside = (root.ends_with("vae_encoder") && is_exported(&root)).then_some(beside);
    let parts = ["vae_decoder", "vae"].map(|part| root.join(part)).into_iter().chain(beside);
    let vae = parts.into_iter().find(|part| store::is_dir(part)).unwrap_or(root);
    exported(&vae, Component::VaeDecoder, profile, wanted, &VariantFlags::default())
}

/// The exported text encoder and the tokenizer, each from its own folder or that of a whole pipeline. The text
/// encoder may be missing where captions come from a cache.
pub fn text_parts(
    text_encoder: &Path,
    tokenizer: &Path,
    profile: Profile,
    wanted: Wanted,
) -> Result<(PathBuf, PathBuf), Failure> {
    match store::is_dir(text_encoder) {
        true => text_side(None, Some(text_encoder), Some(tokenizer), profile, wanted),
        false => Ok((text_encoder.to_owned(), folder("tokenizer_root", tokenizer)?)),
    }
}

/// The folders of the text side alone: the exported text encoder and the tokenizer.
pub fn text_side(
    model: Option<&Path>,
    text_encoder: Option<&Path>,
    tokenizer: Option<&Path>,
    profile: Profile,
    wanted: Wanted,
) -> Result<(PathBuf, PathBuf), Failure> {
    let base = match (model, text_encoder, tokenizer) {
        (Some(model), ..) => folder("model", model)?,
        (None, Some(_), Some(_)) => PathBuf::new(),
        (None, None, None) => default_model()?,
        _ if is_bundle() => default_model()?,
        _ => {
            return Err(Failure::request(
                "text_encoder_root and tokenizer_root: give both, or `model` for the one left out",
            ));
        }
    };
    let part = |name: &str, given: Option<&Path>, sub: &str| match given {
        Some(given) if store::is_dir(&given.join(sub)) => folder(name, &given.join(sub)),
        Some(given) => folder(name, given),
        None => folder("model", &base.join(sub)),
    };
    let text_encoder = part("text_encoder_root", text_encoder, "text_encoder")?;
    let none = VariantFlags::default();
    let text_encoder = exported(&text_encoder, Component::TextEncoder, profile, wanted, &none)?;
    Ok((text_encoder, part("tokenizer_root", tokenizer, "tokenizer")?))
}

/// One exported part alone, from its own folder or file, or a whole pipeline's; from the model folder where
/// `given` is nothing, and from the demo where that is nothing either.
pub fn part(
    component: Component,
    model: Option<&Path>,
    given: Option<&Path>,
    profile: Profile,
    wanted: Wanted,
) -> Result<PathBuf, Failure> {
    let setting = match component {
        Component::Transformer => "checkpoint",
        Component::TextEncoder => "text_encoder_root",
        Component::VaeDecoder | Component::VaeEncoder => "vae_root",
    };
    let root = match (given, model) {
        (Some(given), _) if component == Component::Transformer && given.is_file() => {
            given.to_owned()
        }
        (Some(given), _) => folder(setting, given)?,
        (None, Some(model)) => folder("model", model)?,
        (None, None) => default_model()?,
    };
    let inner = [component.as_str(), component.source_folder()].map(|name| root.join(name));
    let found = inner.into_iter().find(|inner| store::is_dir(inner));
    let whole = given.is_none();
    let source = match found {
        Some(inner) => inner,
        None if whole => folder("model", &root.join(component.source_folder()))?,
        None => root,
    };
    exported(&source, component, profile, wanted, &VariantFlags::default())
}

/// The precision in which what is not exported yet is exported.
#[derive(Clone, Copy)]
pub struct Wanted(Option<Precision>);

impl Wanted {
    /// This one, or fp32, for what computes.
    pub fn new(precision: Option<Precision>, providers: Providers) -> Result<Self, Failure> {
        let Some(wanted) = precision else { return Ok(Self(None)) };
        for provider in [providers.transformer, providers.text_encoder] {
            if !provider.precisions.contains(&wanted.as_str()) {
                let able = PROVIDERS.iter().filter(|p| p.precisions.contains(&wanted.as_str()));
                let able: Vec<&str> = able.map(|provider| provider.name).collect();
                return Err(Failure::request(format!(
                    "dtype: found {wanted} with {}, expected {}; {wanted} is for {}",
                    provider.name,
                    provider.precisions.join(", "),
                    able.join(", ")
                )));
            }
        }
        Ok(Self(precision))
    }

    fn of(self, component: Component) -> Precision {
        match component {
            // Its values reach beyond fp16, and it is small.
            Component::VaeDecoder | Component::VaeEncoder => Precision::Fp32,
            _ => self.0.unwrap_or_default(),
        }
    }

    /// Tells where a graph that is there already has another precision than the one asked for. It is no
    /// error: a config names one precision, but an 8-bit T5 beside it is common.
    fn compare(self, folder: &Path, component: Component) {
        let manifest = store::read(&folder.join("manifest.json")).unwrap_or_default();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap_or_default();
        let wanted = self.0.filter(|_| !matches!(component, Component::VaeDecoder));
        if let (Some(wanted), Some(found)) = (wanted, manifest["precision"].as_str())
            && found != wanted.as_str()
        {
            note(format_args!(
                "note: dtype asks for {wanted}, but the {component} in {} is exported in {found} and used as \
                 it is",
                folder.display()
            ));
        }
    }
}

fn is_exported(folder: &Path) -> bool {
    store::is_file(&folder.join("model.onnx"))
}

/// Whether an export has all files that its manifest names, in their sizes.
fn is_whole(export: &Path) -> bool {
    let manifest = std::fs::read(export.join("manifest.json")).unwrap_or_default();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap_or_default();
    let whole = |file: &serde_json::Value| {
        let path = export.join(file["name"].as_str().unwrap_or_default());
        std::fs::metadata(path).is_ok_and(|found| file["bytes"] == found.len())
    };
    let files = manifest["files"].as_array();
    is_exported(export) && files.is_some_and(|files| files.iter().all(whole))
}

fn folder(setting: &str, path: &Path) -> Result<PathBuf, Failure> {
    if store::is_dir(path) {
        return Ok(path.to_owned());
    }
    if path.is_file() {
        // One that was cut short says so.
        Bundle::open(path)?;
    }
    let found = if path.exists() { "a file" } else { "nothing" };
    Err(Failure::request(format!(
        "{setting}: found {found} at {}, expected a folder, exported or in the diffusers layout",
        path.display()
    )))
}

/// Whether the program was started from a bundle.
pub fn is_bundle() -> bool {
    own_model().is_some()
}

/// The bundle that the program was started from.
fn own_model() -> Option<PathBuf> {
    let own = bundle::own().ok().flatten()?;
    Some(own.file().to_owned())
}

/// The model that is taken when none is named: the bundle's own, else the demo.
fn default_model() -> Result<PathBuf, Failure> {
    own_model().map_or_else(demo, Ok)
}

/// The demo model: under the current folder, or in the source tree the program was built in.
fn demo() -> Result<PathBuf, Failure> {
    let here = PathBuf::from("models/demo");
    let exe = std::env::current_exe().ok();
    let above = exe.iter().flat_map(|exe| exe.ancestors().skip(1).take(4).map(|a| a.join(&here)));
    std::iter::once(here.clone()).chain(above).find(|p| p.is_dir()).ok_or_else(|| {
        Failure::request(
            "model: none given, and no models/demo here; name one with --model DIR or -c CONFIG",
        )
    })
}

fn exported(
    source: &Path,
    component: Component,
    profile: Profile,
    wanted: Wanted,
    variant: &VariantFlags,
) -> Result<PathBuf, Failure> {
    if is_exported(source) {
        wanted.compare(source, component);
        return Ok(source.to_owned());
    }
    let precision = wanted.of(component);
    let output =
        cache_folder()?.join("exports").join(fingerprint(source, profile, precision, variant)?);
    let target = output.join(component.to_string());
    if is_whole(&target) {
        return Ok(target);
    }
    eprintln!("exporting {} to {} in {precision} (once)", source.display(), target.display());
    // What stands there without a model.onnx is no export of ours to keep.
    let variant = variant.clone();
    let options = ExportOptions { profile, precision, force: true, variant, ..Default::default() };
    let mut bar = Progress::start(format!("export {component}"), 0, Unit::Bytes);
    let result = export_component(source, component, &output, &options, &mut |progress| {
        bar.update(progress.bytes_done, progress.bytes_total);
    });
    bar.finish();
    result?;
    Ok(target)
}

/// Names an export by all it depends on: path, sizes and times of the files, profile, precision, version.
/// Hashing 19 GB of weights at every start would cost more than it protects from.
fn fingerprint(
    source: &Path,
    profile: Profile,
    precision: Precision,
    variant: &VariantFlags,
) -> anyhow::Result<String> {
    let path = source.display();
    let context = || format!("{path}: cannot list this folder");
    let mut paths = Vec::new();
    if source.is_file() {
        paths.extend([source.to_owned(), source.with_file_name("config.json")]);
    } else {
        for entry in std::fs::read_dir(source).with_context(context)? {
            paths.push(entry.with_context(context)?.path());
        }
    }
    let mut files = Vec::new();
    for path in paths {
        // This follows links, as files of a model cache are.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        let modified = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        files.push((path.file_name().map(ToOwned::to_owned), metadata.len(), modified));
    }
    files.sort();
    let source = std::fs::canonicalize(source).with_context(context)?;
    let version = env!("CARGO_PKG_VERSION");
    let digest = Sha256::digest(format!(
        "{version} {profile} {precision} {variant:?} {} {files:?}",
        source.display()
    ));
    Ok(hex(&digest[..8]))
}

/// `PIXART_CACHE_DIR`, else the platform's folder for caches.
pub fn cache_folder() -> Result<PathBuf, Failure> {
    match std::env::var_os("PIXART_CACHE_DIR") {
        Some(folder) if !folder.is_empty() => Ok(folder.into()),
        _ => dirs::cache_dir().map(|folder| folder.join("pixart")).ok_or_else(|| {
            Failure::request("no cache folder: neither PIXART_CACHE_DIR nor HOME is set")
        }),
    }
}

//! What goes into a bundle: the files of exported folders and of an engine.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{BundleError, BundledEngine, store};
use crate::{
    engine::{
        EngineError,
        library::{self, Library, Origin},
        weight_files,
    },
    model_folder::{
        Component, ComponentFolder, ModelPaths, TextEncoderArchitecture, TransformerArchitecture,
        VaeDecoderArchitecture, VaeEncoderArchitecture,
    },
    sampler::SchedulerConfig,
    text::Tokenizer,
};

/// Files of a tokenizer; the first two hold its vocabulary.
const TOKENIZER: [&str; 4] =
    ["spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

const SCHEDULER: &str = "scheduler_config.json";

/// Texts that go with an engine's library.
const NOTICES: [&str; 3] = ["LICENSE", "ThirdPartyNotices.txt", "Privacy.md"];

/// What a bundle is to hold.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    pub(super) files: Vec<Source>,
    pub(super) engine: Option<BundledEngine>,
}

/// A file to be bundled.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub path: String,
    pub file: PathBuf,
    pub bytes: u64,
    /// What its manifest says of it.
    pub sha256: Option<String>,
}

/// The library of ONNX Runtime that a bundle gets: the one installed under a name, or, without a name, the one
/// that would be used here. `None` for `tract`, which every program has.
///
/// # Errors
/// When there is no such engine, or it is damaged or cannot be used.
pub fn engine(name: Option<&str>) -> Result<Option<Library>, BundleError> {
    let name = match name {
        Some("ort") => return Ok(Some(library::find(None)?)),
        // As `engine::open` decides: a library that is there but broken is no reason to fail either.
        None | Some("auto") => match library::find(None) {
            Ok(library) => return Ok(Some(library)),
            Err(EngineError::NoLibrary { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        },
        Some("tract") => return Ok(None),
        Some(name) => name,
    };
    let installed = library::installed();
    let Some(found) = installed.iter().find(|found| found.record.name == name) else {
        let mut installed: Vec<_> = installed.into_iter().map(|found| found.record.name).collect();
        installed.push("tract".to_owned());
        installed.dedup();
        return Err(BundleError::NoEngine { name: name.to_owned(), installed });
    };
    found.verify()?;
    Ok(Some(found.open()?))
}

impl Contents {
    /// The parts of a model, each as it will be opened: nothing that could not be sampled with later gets
    /// into a bundle.
    ///
    /// # Errors
    /// When a part is missing or cannot be used.
    pub fn of_model(paths: &ModelPaths) -> Result<Self, BundleError> {
        for folder in [&paths.transformer, &paths.text_encoder, &paths.vae_decoder] {
            if let Ok(Some(place)) = store::place(&folder.join("manifest.json"))
                && place.bundled
            {
                return Err(BundleError::Nested { file: place.file });
            }
        }
        let mut contents = Self::default();
        ComponentFolder::<TransformerArchitecture>::open(&paths.transformer)?;
        contents.component(Component::Transformer, &paths.transformer)?;
        ComponentFolder::<TextEncoderArchitecture>::open(&paths.text_encoder)?;
        contents.component(Component::TextEncoder, &paths.text_encoder)?;
        ComponentFolder::<VaeDecoderArchitecture>::open(&paths.vae_decoder)?;
        contents.component(Component::VaeDecoder, &paths.vae_decoder)?;
        if let Some(encoder) = &paths.vae_encoder {
            ComponentFolder::<VaeEncoderArchitecture>::open(encoder)?;
            contents.component(Component::VaeEncoder, encoder)?;
        }
        let missing = |folder: &Path, part, expected| {
            Err(BundleError::Part { folder: folder.to_owned(), part, expected })
        };
        let tokenizer = &paths.tokenizer;
        if !TOKENIZER[..2].iter().any(|name| tokenizer.join(name).is_file()) {
            return missing(tokenizer, "tokenizer", "spiece.model or tokenizer.json");
        }
        let unusable =
            |file: &Path, reason: String| BundleError::Name { file: file.to_owned(), reason };
        Tokenizer::from_folder(tokenizer)
            .map_err(|error| unusable(tokenizer, error.to_string()))?;
        for name in TOKENIZER {
            contents.optional("tokenizer", tokenizer, name)?;
        }
        if let Some(scheduler) = &paths.scheduler {
            let file = scheduler.join(SCHEDULER);
            if file.is_file() {
                SchedulerConfig::from_file(&file)
                    .map_err(|error| unusable(&file, error.to_string()))?;
            }
            contents.optional("scheduler", scheduler, SCHEDULER)?;
        }
        Ok(contents)
    }

    /// Adds a library of ONNX Runtime that was looked at, and the texts that lie beside it.
    ///
    /// # Errors
    /// When it needs libraries beside it, or cannot be read.
    pub fn with_engine(mut self, library: &Library) -> Result<Self, BundleError> {
        let name = match &library.origin {
            Origin::Installed(name) => name.clone(),
            _ => "ort".to_owned(),
        };
        let folder = library.path.parent().unwrap_or(Path::new(""));
        let count = libraries(library);
        if count > 1 {
            return Err(BundleError::EngineInParts { name, count });
        }
        let unnamed = || BundleError::Name {
            file: library.path.clone(),
            reason: "its name is not valid Unicode".to_owned(),
        };
        let file_name = library.path.file_name().and_then(|name| name.to_str());
        let path = format!("engine/{}", file_name.ok_or_else(unnamed)?);
        self.add(path.clone(), library.path.clone(), None)?;
        if matches!(library.origin, Origin::Installed(_)) {
            for notice in NOTICES {
                self.optional("engine", folder, notice)?;
            }
        }
        self.engine = Some(BundledEngine { name, version: library.version.clone(), library: path });
        Ok(self)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|source| source.bytes).sum()
    }

    /// The files of an exported component: the manifest, what it lists, and the config beside it.
    fn component(&mut self, component: Component, folder: &Path) -> Result<(), BundleError> {
        let model = folder.join("model.onnx");
        let read = |file: &Path| {
            std::fs::read(file)
                .map_err(|source| BundleError::Read { file: file.to_owned(), source })
        };
        let weights = weight_files(&model, &read(&model)?)?;
        let manifest = folder.join("manifest.json");
        let listed: Value = serde_json::from_slice(&read(&manifest)?).unwrap_or_default();
        let below = |name: &str| format!("{component}/{name}");
        self.add(below("manifest.json"), manifest, None)?;
        for file in listed["files"].as_array().into_iter().flatten() {
            // The folder was opened, so these are there.
            let Some(name) = file["name"].as_str() else { continue };
            let sha256 = file["sha256"].as_str().filter(|hash| !hash.is_empty());
            self.add(below(name), folder.join(name), sha256.map(str::to_owned))?;
        }
        self.add(below("model.onnx"), model, None)?;
        // A manifest may not know of all weights.
        for name in weights {
            self.add(below(&name), folder.join(&name), None)?;
        }
        self.optional(&component.to_string(), folder, "config.json")
    }

    fn optional(&mut self, part: &str, folder: &Path, name: &str) -> Result<(), BundleError> {
        let (path, file) = (format!("{part}/{name}"), folder.join(name));
        match file.is_file() {
            true => self.add(path, file, None),
            false => Ok(()),
        }
    }

    /// Adds a file; one that is there already is there once.
    fn add(
        &mut self,
        path: String,
        file: PathBuf,
        sha256: Option<String>,
    ) -> Result<(), BundleError> {
        if self.files.iter().any(|source| source.path == path) {
            return Ok(());
        }
        let unreadable = |source| BundleError::Read { file: file.clone(), source };
        let place = store::place(&file).map_err(unreadable)?;
        match place {
            Some(place) if place.bundled => Err(BundleError::Nested { file: place.file }),
            Some(place) => {
                self.files.push(Source { path, bytes: place.bytes, file, sha256 });
                Ok(())
            }
            None => Err(unreadable(std::io::Error::other("it is not a file"))),
        }
    }
}

/// How many libraries an engine has: its own, and those beside it that belong to it. In the folder of an
/// installed engine that is every one, elsewhere those of ONNX Runtime. The bridge to providers in libraries of
/// their own is of no use without them.
fn libraries(library: &Library) -> usize {
    let folder = library.path.parent().unwrap_or(Path::new(""));
    let installed = matches!(library.origin, Origin::Installed(_));
    // Links to the library itself lie beside it in the system's folders.
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    let own = real(&library.path);
    let belongs = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_library = [".so", ".dll", ".dylib"].iter().any(|ending| name.contains(ending));
        is_library
            && (installed || name.contains("onnxruntime"))
            && !name.contains("onnxruntime_providers_shared")
            && real(path) != own
    };
    let beside = std::fs::read_dir(folder).into_iter().flatten().flatten();
    1 + beside.map(|entry| entry.path()).filter(belongs).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_of_several_libraries_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str| std::fs::write(at(name), name).expect("written");
        write("libonnxruntime.so.1.32.0");
        let path = at("libonnxruntime.so.1.32.0");
        let library = |origin| Library { path: path.clone(), version: "1.32.0".to_owned(), origin };
        let bundled = |origin| Contents::default().with_engine(&library(origin));
        let cpu = || Origin::Installed("cpu".to_owned());
        for name in ["LICENSE", "libonnxruntime_providers_shared.so", "engine.json"] {
            write(name);
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(&path, at("libonnxruntime.so")).expect("a link");
        let contents = bundled(cpu()).expect("one library");
        let files: Vec<_> = contents.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(files, ["engine/libonnxruntime.so.1.32.0", "engine/LICENSE"]);
        assert_eq!(contents.engine.expect("an engine").name, "cpu");

        // In a folder of the system there are libraries of everybody.
        write("libz.so.1");
        bundled(Origin::Option).expect("one library of ONNX Runtime");
        let error = bundled(cpu()).expect_err("two").to_string();
        assert!(error.contains("cpu has 2 libraries"), "{error}");
        write("libonnxruntime_providers_cuda.so");
        let error = bundled(Origin::Option).expect_err("two").to_string();
        assert!(error.contains("ort has 2 libraries"), "{error}");
    }
}

//! The settings of training that are about its data: flags, and keys of the training configs.

use crate::commands::train;
use crate::config;
use crate::exit::Failure;
use clap::{ArgAction, Args};
use pixart_runtime::text::{PromptCleaning, Tokenizer};
use pixart_trainer::data::{Columns, DataOptions, Depth, PictureLimits, Sizing, Source};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Every field is optional: absent means the YAML file's value, then the default told in the help.
#[derive(Args, Serialize, Deserialize, Default, Debug)]
#[serde(default)]
pub struct Settings {
    /// Labels: the seed's JSON, or by their ending JSON lines (.jsonl) or a table (.csv) [default: the .txt
    /// files beside the pictures]
    #[arg(long = "json_path", visible_alias = "labels", value_name = "FILE")]
    pub json_path: Option<PathBuf>,
    /// Folder of the pictures, which the labels' paths start from
    #[arg(long = "image_dir", value_name = "FOLDER")]
    pub image_dir: Option<PathBuf>,
    /// Field or column with the picture's path [default: path]
    #[arg(long = "path_column", value_name = "NAME")]
    pub path_column: Option<String>,
    /// Field or column with the original caption [default: prompt]
    #[arg(long = "prompt_column", value_name = "NAME")]
    pub prompt_column: Option<String>,
    /// Field or column with the long caption [default: sharegpt4v]
    #[arg(long = "sharegpt4v_column", value_name = "NAME")]
    pub sharegpt4v_column: Option<String>,
    /// Side of the model's latents, an eighth of its side in pixels [default: 64]
    #[arg(long = "sample_size", value_name = "N")]
    pub sample_size: Option<u32>,
    /// Bring pictures to the trained size of the nearest aspect ratio, not to squares [default: false]
    #[arg(long = "multi_scale", value_name = "BOOL", value_parser = config::boolean,
          num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub multi_scale: Option<bool>,
    /// Pictures in a batch [default: 64]
    #[arg(long = "batch_size", value_name = "N")]
    pub batch_size: Option<usize>,
    /// Leave out pictures whose longer side is more than this many times the shorter one [default: 4.5]
    #[arg(long = "max_ratio", value_name = "X")]
    pub max_ratio: Option<f64>,
    /// Leave out pictures that would be enlarged more than this many times [default: none]
    #[arg(long = "max_enlargement", value_name = "X")]
    pub max_enlargement: Option<f64>,
    /// Largest picture that is read, in pixels [default: 134217728]
    #[arg(long = "max_pixels", value_name = "N")]
    pub max_pixels: Option<u64>,
    /// Folder of the tokenizer, to find captions that are too long
    #[arg(long = "tokenizer_root", value_name = "FOLDER")]
    pub tokenizer_root: Option<PathBuf>,
    /// Longest caption in tokens; what is longer is cut [default: 300]
    #[arg(long = "t5_max_length", value_name = "N")]
    pub t5_max_length: Option<usize>,
    /// What is done to captions: raw, lower or diffusers [default: raw]
    #[arg(long = "prompt_cleaning", value_name = "NAME")]
    pub prompt_cleaning: Option<String>,
    /// Threads that read pictures [default: one for each core]
    #[arg(long = "num_parallel_workers", value_name = "N")]
    pub num_parallel_workers: Option<usize>,
}

/// Lays the flags over the YAML file, if there is one. Other settings of training may be in it.
pub fn merge(path: Option<&Path>, flags: &Settings) -> Result<Settings, Failure> {
    config::merge(path, flags, &train::settings::names())
}

impl Settings {
    /// Where labels and pictures are.
    pub fn source(&self) -> Result<(Source, Columns, PathBuf), Failure> {
        let Some(image_dir) = &self.image_dir else {
            return Err(Failure::request(
                "image_dir: nothing given; name the folder of the pictures with --image_dir",
            ));
        };
        let columns = [&self.path_column, &self.prompt_column, &self.sharegpt4v_column];
        let source = match &self.json_path {
            Some(file) => Source::of_file(file),
            None if columns.iter().any(|column| column.is_some()) => {
                return Err(Failure::request(
                    "path_column, prompt_column, sharegpt4v_column: a folder of pictures has no columns; \
                     name the label file with --json_path",
                ));
            }
            None => Source::Folder,
        };
        let usual = Columns::default();
        let [path, prompt, sharegpt4v] = columns.map(Option::clone);
        let columns = Columns {
            path: path.unwrap_or(usual.path),
            prompt: prompt.unwrap_or(usual.prompt),
            sharegpt4v: sharegpt4v.unwrap_or(usual.sharegpt4v),
        };
        Ok((source, columns, image_dir.clone()))
    }

    /// Side of the model's latents.
    pub fn sample_size(&self) -> Result<usize, Failure> {
        let sample_size = self.sample_size.unwrap_or(64);
        if !(2..=2048).contains(&sample_size) || !sample_size.is_multiple_of(2) {
            return Err(Failure::request(format!(
                "sample_size: found {sample_size}, expected an even number of 2 to 2048: 32, 64, 128 or 256 \
                 for the 256, 512, 1024 or 2K model"
            )));
        }
        Ok(sample_size as usize)
    }

    /// How pictures are looked at.
    pub fn data(&self, quick: bool) -> Result<DataOptions, Failure> {
        let sample_size = self.sample_size()? as u32;
        let sizing = Sizing { sample_size, multi_scale: self.multi_scale.unwrap_or(false) };
        let mut options = DataOptions::new(sizing);
        options.max_ratio = self.max_ratio.unwrap_or(options.max_ratio);
        if options.max_ratio.is_nan() || options.max_ratio < 1.0 {
            let found = options.max_ratio;
            return Err(Failure::request(format!("max_ratio: found {found}, expected 1 or more")));
        }
        options.max_enlargement = self.max_enlargement;
        if let Some(found) = self.max_enlargement
            && (found.is_nan() || found <= 0.0)
        {
            return Err(Failure::request(format!(
                "max_enlargement: found {found}, expected more than 0; 1 leaves out every picture that is \
                 smaller than the size it is trained at"
            )));
        }
        options.depth = if quick { Depth::Headers } else { Depth::Decode };
        let limits = PictureLimits::default();
        let pixels = self.max_pixels.unwrap_or(limits.pixels);
        options.limits = PictureLimits { pixels, ..limits };
        options.threads = at_least_one("num_parallel_workers", self.num_parallel_workers)?
            .unwrap_or(options.threads);
        Ok(options)
    }

    /// Pictures in a batch.
    pub fn batch_size(&self) -> Result<usize, Failure> {
        Ok(at_least_one("batch_size", self.batch_size)?.unwrap_or(64))
    }

    /// Tokens a caption may have.
    pub fn t5_max_length(&self) -> Result<usize, Failure> {
        Ok(at_least_one("t5_max_length", self.t5_max_length)?.unwrap_or(300))
    }

    /// What is done to captions.
    pub fn cleaning(&self) -> Result<PromptCleaning, Failure> {
        match self.prompt_cleaning.as_deref() {
            None => Ok(PromptCleaning::Raw),
            Some(name) => {
                name.parse().map_err(|error| Failure::request(format!("prompt_cleaning: {error}")))
            }
        }
    }

    /// The tokenizer, if there is one. One that a config names may be missing: looking at pictures
    /// needs no model.
    pub fn tokenizer(&self, asked_for: bool) -> Result<Option<Tokenizer>, Failure> {
        let Some(folder) = &self.tokenizer_root else { return Ok(None) };
        if !asked_for && !folder.is_dir() {
            eprintln!(
                "tokenizer_root: there is no {}, so the tokens of captions are not counted",
                folder.display()
            );
            return Ok(None);
        }
        if !folder.is_dir() {
            return Err(Failure::request(format!(
                "tokenizer_root: there is no folder {}; expected one with spiece.model or tokenizer.json",
                folder.display()
            )));
        }
        Ok(Some(Tokenizer::from_folder(folder)?))
    }
}

fn at_least_one(name: &str, value: Option<usize>) -> Result<Option<usize>, Failure> {
    match value {
        Some(0) => Err(Failure::request(format!("{name}: found 0, expected 1 or more"))),
        value => Ok(value),
    }
}

//! What the official tools have extracted of pictures and captions, where they leave it (facts 5.1):
//!
//! | file | content |
//! |---|---|
//! | `img_sdxl_vae_features_<side>resolution_ms_new/<name>.npy`, without buckets `…resolution_new` | mean and standard deviation of the latents, one upon the other: fp16 or fp32 [2 × latent channels, height / 8, width / 8], unscaled |
//! | `caption_features_new/<name>.npz` | of `prompt`: `caption_feature` fp16 or fp32 [1, tokens, width], `attention_mask` of whole numbers [1, tokens] |
//! | `sharegpt4v_caption_features_new/<name>.npz` | the same of `sharegpt4v` |
//!
//! The name is that of the picture without its ending. With buckets the official trainer looks for pictures in folders
//! by a name in which the last separator is `_`, but the tools write by the picture's own name, and what they write
//! of the latents ends at its first dot; all are found here.

mod names;
mod npy;

use super::{CaptionKind, CaptionOptions, CaptionStates, Dataset};
use names::{Names, Part};
use ndarray::{Array2, Array3, ArrayD, Axis, Ix2, Ix3, Slice, s};
use npy::Npy;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

const STATES: &str = "caption_feature";
const MASK: &str = "attention_mask";

/// The features of a data set.
#[derive(Clone, Debug)]
pub struct Features {
    root: PathBuf,
    /// The folder of the moments.
    moments: String,
    latent_channels: usize,
    caption_width: usize,
    names: Names,
}

/// The features of a picture cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FeatureError {
    /// There are none.
    #[error("there is no {}", paths(tried))]
    Missing {
        /// Where they may be.
        tried: Vec<PathBuf>,
    },
    /// They may be of another picture.
    #[error("{} can be of one picture only, and {count} have that name", path.display())]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// How many pictures may have it by their names.
        count: usize,
    },
    /// They may be of another caption.
    #[error(
        "{} is of one caption only, and the picture is listed with {count} that differ",
        path.display()
    )]
    SeveralCaptions {
        /// The file.
        path: PathBuf,
        /// How many captions there are; a missing one counts, too.
        count: usize,
    },
    /// The file is not what it should be.
    #[error("{}: {problem}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl FeatureError {
    /// A word for it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "missing",
            Self::Ambiguous { .. } | Self::SeveralCaptions { .. } => "ambiguous",
            Self::Unusable { .. } => "of another type or shape",
        }
    }
}

impl Features {
    /// Features of `dataset` in the folders below `root`, for a model with latents of `latent_channels` and
    /// captions of `caption_width` numbers a token. Nothing is read yet.
    pub fn new(
        root: &Path,
        dataset: &Dataset,
        latent_channels: usize,
        caption_width: usize,
    ) -> Self {
        let sizing = dataset.sizing();
        let scales = if sizing.multi_scale { "_ms" } else { "" };
        let moments = format!("img_sdxl_vae_features_{}resolution{scales}_new", sizing.side());
        let names = Names::new(dataset);
        Self { root: root.to_owned(), moments, latent_channels, caption_width, names }
    }

    /// Numbers a token of a caption.
    pub fn caption_width(&self) -> usize {
        self.caption_width
    }

    /// Whether a picture has what is to be read of it, as far as that takes the beginnings of files: its moments
    /// if `moments`, and those captions that can be chosen by `captions`, at most `max_length` tokens each.
    ///
    /// # Errors
    /// When something is missing or of another type or shape.
    pub fn check(
        &self,
        dataset: &Dataset,
        item: usize,
        moments: bool,
        captions: Option<(CaptionOptions, usize)>,
    ) -> Result<(), FeatureError> {
        if moments {
            self.open_moments(dataset, item)?;
        }
        let Some((options, max_length)) = captions else { return Ok(()) };
        for kind in dataset.items()[item].captions.possible(options) {
            let path = self.caption_path(dataset, item, kind)?;
            let checked = archive(&path).and_then(|mut archive| {
                self.open_states(member(&mut archive, STATES)?, max_length).map(drop)
            });
            checked.map_err(unusable(path))?;
        }
        Ok(())
    }

    /// Means and logarithms of variances of a picture's latents, f32 [2 × latent channels, height / 8, width / 8].
    ///
    /// # Errors
    /// When they are missing or not what they should be.
    pub fn moments(&self, dataset: &Dataset, item: usize) -> Result<Array3<f32>, FeatureError> {
        let (npy, path) = self.open_moments(dataset, item)?;
        let moments = npy.floats().and_then(|values| {
            let mut moments = values.into_dimensionality::<Ix3>().map_err(|e| e.to_string())?;
            if moments.iter().any(|x| !x.is_finite()) {
                return Err("a number is not finite".to_owned());
            }
            let half = Slice::from(self.latent_channels as isize..);
            let mut deviations = moments.slice_axis_mut(Axis(0), half);
            if deviations.iter().any(|&x| x < 0.0) {
                return Err("a standard deviation is negative".to_owned());
            }
            // A deviation of 0 has a logarithm of −∞, which is cut off where batches are made.
            deviations.mapv_inplace(|x| 2.0 * x.ln());
            Ok(moments)
        });
        moments.map_err(unusable(path))
    }

    /// What the text encoder made of a caption of a picture, at most `max_length` tokens.
    ///
    /// # Errors
    /// When it is missing or not what it should be.
    pub fn caption(
        &self,
        dataset: &Dataset,
        item: usize,
        kind: CaptionKind,
        max_length: usize,
    ) -> Result<CaptionStates, FeatureError> {
        let path = self.caption_path(dataset, item, kind)?;
        self.read_caption(&path, max_length).map_err(unusable(path))
    }

    fn read_caption(&self, path: &Path, max_length: usize) -> Result<CaptionStates, String> {
        let mut archive = archive(path)?;
        let states = self.open_states(member(&mut archive, STATES)?, max_length)?.floats()?;
        let states = rows(states)?;
        if states.iter().any(|x| !x.is_finite()) {
            return Err(format!("a number of {STATES} is not finite"));
        }
        let has_mask = archive.index_for_name(&format!("{MASK}.npy")).is_some();
        let tokens = match has_mask {
            // As the official trainer takes it.
            false => states.nrows(),
            true => {
                let mask = Npy::open(member(&mut archive, MASK)?)?;
                if mask.shape() != [1, states.nrows()] && mask.shape() != [states.nrows()] {
                    let (found, expected) = (mask.description(), states.nrows());
                    return Err(format!("{MASK}: found {found}, expected [1, {expected}]"));
                }
                attended(&mask.integers()?)?
            }
        };
        Ok(CaptionStates { states: states.slice(s![..tokens, ..]).to_owned(), tokens })
    }

    fn open_moments(
        &self,
        dataset: &Dataset,
        item: usize,
    ) -> Result<(Npy<BufReader<File>>, PathBuf), FeatureError> {
        let folder = self.root.join(&self.moments);
        let path = self.names.find(&folder, &dataset.items()[item].path, Part::Moments)?;
        let (height, width) = dataset.latent_size(item);
        let expected = [2 * self.latent_channels, height, width];
        let file = File::open(&path).map_err(|error| error.to_string());
        let npy = file.and_then(|file| Npy::open(BufReader::new(file))).and_then(|npy| {
            match npy.shape() == expected && npy.is_float() {
                true => Ok(npy),
                false => {
                    let found = npy.description();
                    Err(format!("found {found}, expected F16 or F32 of {expected:?}"))
                }
            }
        });
        Ok((npy.map_err(unusable(path.clone()))?, path))
    }

    fn caption_path(
        &self,
        dataset: &Dataset,
        item: usize,
        kind: CaptionKind,
    ) -> Result<PathBuf, FeatureError> {
        let folder = match kind {
            CaptionKind::Prompt => "caption_features_new",
            CaptionKind::Sharegpt4v => "sharegpt4v_caption_features_new",
        };
        let picture = &dataset.items()[item].path;
        self.names.find(&self.root.join(folder), picture, Part::Caption(kind))
    }

    fn open_states<R: io::Read>(&self, reader: R, max_length: usize) -> Result<Npy<R>, String> {
        let npy = Npy::open(reader).map_err(|problem| format!("{STATES}: {problem}"))?;
        let fits = match *npy.shape() {
            [1, tokens, width] | [tokens, width] => {
                (1..=max_length).contains(&tokens) && width == self.caption_width
            }
            _ => false,
        };
        if fits && npy.is_float() {
            return Ok(npy);
        }
        let (found, width) = (npy.description(), self.caption_width);
        Err(format!(
            "{STATES}: found {found}, expected F16 or F32 of [1, at most {max_length} tokens (t5_max_length), \
             {width}]"
        ))
    }
}

/// How many places are attended to, which must be the first ones.
fn attended(mask: &ArrayD<i64>) -> Result<usize, String> {
    let tokens = mask.iter().take_while(|&&attends| attends == 1).count();
    match tokens > 0 && mask.iter().skip(tokens).all(|&attends| attends == 0) {
        true => Ok(tokens),
        false => Err(format!("{MASK}: expected 1 at the first places, one at least, then 0")),
    }
}

/// States [1, tokens, width] or [tokens, width] as the latter.
fn rows(states: ArrayD<f32>) -> Result<Array2<f32>, String> {
    let states = if states.ndim() == 3 { states.index_axis_move(Axis(0), 0) } else { states };
    states.into_dimensionality::<Ix2>().map_err(|error| error.to_string())
}

type Archive = zip::ZipArchive<BufReader<File>>;

fn archive(path: &Path) -> Result<Archive, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    zip::ZipArchive::new(BufReader::new(file))
        .map_err(|error| format!("it is no archive of arrays of numpy: {error}"))
}

/// An array of an archive.
fn member<'a>(archive: &'a mut Archive, name: &str) -> Result<impl io::Read + 'a, String> {
    archive.by_name(&format!("{name}.npy")).map_err(|error| format!("{name}: {error}"))
}

fn unusable(path: PathBuf) -> impl FnOnce(String) -> FeatureError {
    |problem| FeatureError::Unusable { path, problem }
}

fn paths(tried: &[PathBuf]) -> String {
    let all: Vec<String> = tried.iter().map(|path| path.display().to_string()).collect();
    all.join(", nor ")
}

#[cfg(test)]
mod tests;

//! What a set of pictures is worth before training begins.

use super::{Columns, DataOptions, Dataset, LabelError, Labels, Source};
use pixart_runtime::text::{PromptCleaning, Tokenizer, TokenizerError};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is checked.
pub struct CheckOptions<'a> {
    /// The sizes and filters; [`Depth::Decode`](super::Depth::Decode) finds pictures that are cut off and those
    /// that are there twice.
    pub data: DataOptions,
    /// Pictures in a batch of all workers.
    pub batch_size: usize,
    /// How long captions may be.
    pub captions: Option<CaptionLimit<'a>>,
}

/// A tokenizer and the tokens a caption may have.
pub struct CaptionLimit<'a> {
    /// Of the text encoder.
    pub tokenizer: &'a Tokenizer,
    /// What is done to captions.
    pub cleaning: PromptCleaning,
    /// The end token included.
    pub max_length: usize,
}

/// What was found. Lists are complete and in the order of the labels.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// Labels.
    pub entries: usize,
    /// Those that can be trained on.
    pub usable: usize,
    /// Usable pictures with both captions, with `prompt` only, and with `sharegpt4v` only.
    pub captions: [usize; 3],
    /// Labels that cannot, with the reason.
    pub left_out: Vec<LeftOutEntry>,
    /// Pictures in a folder that are of no kind that can be read.
    pub unsupported: Vec<PathBuf>,
    /// Groups of pictures that are the same file, by name or by content.
    pub duplicates: Vec<Vec<PathBuf>>,
    /// Pictures that are smaller than the size they are trained at.
    pub enlarged: Vec<Enlarged>,
    /// Pictures whose label gives another size than they have.
    pub mislabelled: Vec<Mislabelled>,
    /// Captions that lose their end; absent without a tokenizer.
    pub long_captions: Option<Vec<LongCaption>>,
    /// By height and width.
    pub buckets: Vec<BucketCount>,
    /// Batches in an epoch.
    pub batches: usize,
    /// Those of them that are not full.
    pub incomplete_batches: usize,
}

/// A label that nothing is trained on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LeftOutEntry {
    /// Its number, from 1.
    pub entry: usize,
    /// Its line, where the format has one.
    pub line: Option<u64>,
    /// The picture.
    pub path: PathBuf,
    /// `missing`, `unreadable`, `no caption`, `extreme ratio` or `too small`.
    pub kind: &'static str,
    /// Whether it was left out because the options say so, and nothing is wrong with it.
    pub filtered: bool,
    /// The reason in words.
    pub reason: String,
}

/// A picture that is smaller than the size it is trained at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Enlarged {
    /// The picture.
    pub path: PathBuf,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// The factor it is enlarged by.
    pub by: f64,
}

/// A picture whose label gives another size than it has.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mislabelled {
    /// The picture.
    pub path: PathBuf,
    /// Height and width of the label.
    pub declared: (u64, u64),
    /// Height and width of the picture.
    pub found: (u32, u32),
}

/// A caption that loses its end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LongCaption {
    /// The picture.
    pub path: PathBuf,
    /// `prompt` or `sharegpt4v`.
    pub caption: &'static str,
    /// Its tokens, the end token included.
    pub tokens: usize,
}

/// How many pictures are trained at a size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BucketCount {
    /// In pixels.
    pub height: u32,
    /// In pixels.
    pub width: u32,
    /// Pictures.
    pub pictures: usize,
    /// Batches in an epoch, the last of which may not be full.
    pub batches: usize,
}

impl CheckReport {
    /// Labels that something is wrong with; what the filters take out is not counted.
    pub fn problems(&self) -> usize {
        self.left_out.iter().filter(|entry| !entry.filtered).count()
    }
}

/// Checking failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The labels cannot be read.
    #[error(transparent)]
    Labels(#[from] LabelError),
    /// A caption cannot be tokenized.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Reads the labels and looks at every picture.
///
/// # Errors
/// When the labels cannot be read at all, or the tokenizer fails. What is wrong with single pictures is
/// in the report.
pub fn check(
    source: &Source,
    columns: &Columns,
    image_dir: &Path,
    options: &CheckOptions<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<CheckReport, CheckError> {
    let mut labels = Labels::read(source, columns, image_dir)?;
    let entries = labels.records.len();
    let unsupported = std::mem::take(&mut labels.unsupported);
    let dataset = Dataset::open(labels, image_dir, &options.data, progress);
    let long_captions = match &options.captions {
        Some(limit) => Some(long_captions(&dataset, limit)?),
        None => None,
    };
    let batch_size = options.batch_size.max(1);
    let buckets: Vec<BucketCount> = dataset
        .buckets()
        .iter()
        .map(|bucket| BucketCount {
            height: bucket.size.height,
            width: bucket.size.width,
            pictures: bucket.items.len(),
            batches: bucket.items.len().div_ceil(batch_size),
        })
        .collect();
    Ok(CheckReport {
        entries,
        usable: dataset.items().len(),
        captions: captions(&dataset),
        left_out: left_out(&dataset),
        unsupported,
        duplicates: duplicates(&dataset),
        enlarged: enlarged(&dataset),
        mislabelled: mislabelled(&dataset),
        long_captions,
        batches: buckets.iter().map(|bucket| bucket.batches).sum(),
        incomplete_batches: buckets
            .iter()
            .filter(|b| !b.pictures.is_multiple_of(batch_size))
            .count(),
        buckets,
    })
}

fn captions(dataset: &Dataset) -> [usize; 3] {
    let mut counts = [0; 3];
    for item in dataset.items() {
        match (&item.captions.prompt, &item.captions.sharegpt4v) {
            (Some(_), Some(_)) => counts[0] += 1,
            (Some(_), None) => counts[1] += 1,
            _ => counts[2] += 1,
        }
    }
    counts
}

fn left_out(dataset: &Dataset) -> Vec<LeftOutEntry> {
    let entry = |left: &super::LeftOut| LeftOutEntry {
        entry: left.place.entry,
        line: left.place.line,
        path: left.path.clone(),
        kind: left.reason.kind(),
        filtered: left.reason.is_filter(),
        reason: left.reason.to_string(),
    };
    dataset.left_out().iter().map(entry).collect()
}

fn duplicates(dataset: &Dataset) -> Vec<Vec<PathBuf>> {
    let mut groups: Vec<Vec<PathBuf>> = Vec::new();
    let mut group_of = BTreeMap::new();
    let mut by_content = BTreeMap::new();
    let mut by_path = BTreeMap::new();
    for (k, item) in dataset.items().iter().enumerate() {
        // The first of its content or name; most pictures are the only one.
        let first = match item.content {
            Some(content) => *by_content.entry(content).or_insert(k),
            None => *by_path.entry(&item.path).or_insert(k),
        };
        if first != k {
            let group = *group_of.entry(first).or_insert_with(|| {
                groups.push(vec![dataset.items()[first].path.clone()]);
                groups.len() - 1
            });
            groups[group].push(item.path.clone());
        }
    }
    groups
}

fn enlarged(dataset: &Dataset) -> Vec<Enlarged> {
    let items = dataset.items().iter().filter_map(|item| {
        let by = dataset.sizing().enlargement(item.size);
        let (width, height) = (item.size.width, item.size.height);
        (by > 1.0).then(|| Enlarged { path: item.path.clone(), width, height, by })
    });
    items.collect()
}

fn mislabelled(dataset: &Dataset) -> Vec<Mislabelled> {
    let items = dataset.items().iter().filter_map(|item| {
        let (declared, found) = (item.declared?, (item.size.height, item.size.width));
        let differs = declared != (found.0.into(), found.1.into());
        differs.then(|| Mislabelled { path: item.path.clone(), declared, found })
    });
    items.collect()
}

fn long_captions(
    dataset: &Dataset,
    limit: &CaptionLimit<'_>,
) -> Result<Vec<LongCaption>, TokenizerError> {
    let mut long = Vec::new();
    for item in dataset.items() {
        let captions =
            [("prompt", &item.captions.prompt), ("sharegpt4v", &item.captions.sharegpt4v)];
        for (caption, text) in captions {
            let Some(text) = text else { continue };
            let text = limit.cleaning.apply(text).map_err(TokenizerError::Clean)?;
            let tokens = limit.tokenizer.encode(&text, usize::MAX)?.len();
            if tokens > limit.max_length {
                long.push(LongCaption { path: item.path.clone(), caption, tokens });
            }
        }
    }
    Ok(long)
}

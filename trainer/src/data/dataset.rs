//! Pictures that can be trained on, by aspect bucket, and those that cannot, with the reason.

use super::picture::{PictureError, PictureLimits, Sizing};
use super::scan::{Depth, Seen, in_parallel, scan};
use super::{Captions, FeatureError, Labels, Place, Record};
use crate::files::hex;
use pixart_runtime::size::{LATENT_SCALE, Size};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is trained on.
#[derive(Clone, Copy, Debug)]
pub struct DataOptions {
    /// The sizes pictures are brought to.
    pub sizing: Sizing,
    /// The longer side over the shorter one at most. Upstream's filter looks at height over width only and
    /// keeps the widest panoramas, see `docs/training-data.md`.
    pub max_ratio: f64,
    /// The factor by which a picture may be enlarged to cover its trained size; any where absent.
    pub max_enlargement: Option<f64>,
    /// What a picture may cost.
    pub limits: PictureLimits,
    /// How closely pictures are looked at before training begins.
    pub depth: Depth,
    /// Threads that do it.
    pub threads: usize,
}

impl DataOptions {
    /// The seed's ratio of 4.5, pictures of any size, headers only, a thread for each core.
    pub fn new(sizing: Sizing) -> Self {
        Self {
            sizing,
            max_ratio: 4.5,
            max_enlargement: None,
            limits: PictureLimits::default(),
            depth: Depth::Headers,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// A picture with its captions.
#[derive(Clone, Debug)]
pub struct Item {
    /// Where its label is.
    pub place: Place,
    /// The picture, relative to the folder of pictures.
    pub path: PathBuf,
    /// What it shows; one caption at least.
    pub captions: Captions,
    /// Its size as it is to be seen.
    pub size: Size,
    /// Height and width as its label says.
    pub declared: Option<(u64, u64)>,
    /// SHA-256 of the file, where it was decoded.
    pub content: Option<[u8; 32]>,
}

/// The pictures that are trained at one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// That size, in pixels.
    pub size: Size,
    /// Numbers of the pictures in [`Dataset::items`], ascending.
    pub items: Vec<usize>,
}

/// A label that nothing is trained on.
#[derive(Debug)]
pub struct LeftOut {
    /// Where it is.
    pub place: Place,
    /// The picture, relative to the folder of pictures.
    pub path: PathBuf,
    /// Why.
    pub reason: Reason,
}

/// Why a picture is not trained on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The picture cannot be used.
    #[error("{0}")]
    Picture(#[from] PictureError),
    /// What was extracted of it cannot be used.
    #[error("{0}")]
    Features(#[from] FeatureError),
    /// There is no caption, or only white space.
    #[error("no caption")]
    NoCaption,
    /// The picture is too wide or too tall.
    #[error("{width} × {height} pixels are {ratio:.2} : 1, at most {limit} : 1 is taken", width = size.width, height = size.height)]
    ExtremeRatio {
        /// The picture's.
        size: Size,
        /// The longer side over the shorter one.
        ratio: f64,
        /// What is allowed.
        limit: f64,
    },
    /// The picture is too small.
    #[error("{width} × {height} pixels would be enlarged {by:.2} times, at most {limit} times is taken", width = size.width, height = size.height)]
    TooSmall {
        /// The picture's.
        size: Size,
        /// The factor.
        by: f64,
        /// What is allowed.
        limit: f64,
    },
}

impl Reason {
    /// Whether it was left out because the options say so, and nothing is wrong with it.
    pub fn is_filter(&self) -> bool {
        matches!(self, Self::ExtremeRatio { .. } | Self::TooSmall { .. })
    }

    /// A word for it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Picture(PictureError::Missing) => "missing",
            Self::Picture(_) => "unreadable",
            Self::Features(_) => "without features",
            Self::NoCaption => "no caption",
            Self::ExtremeRatio { .. } => "extreme ratio",
            Self::TooSmall { .. } => "too small",
        }
    }
}

/// Pictures by bucket.
#[derive(Debug)]
pub struct Dataset {
    image_dir: PathBuf,
    sizing: Sizing,
    limits: PictureLimits,
    items: Vec<Item>,
    buckets: Vec<Bucket>,
    left_out: Vec<LeftOut>,
}

impl Dataset {
    /// Looks at the pictures of the labels. A picture that cannot be used is left out with the reason;
    /// `progress` is told how many of how many were looked at.
    pub fn open(
        labels: Labels,
        image_dir: &Path,
        options: &DataOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Self {
        let paths: Vec<PathBuf> =
            labels.records.iter().map(|record| image_dir.join(&record.path)).collect();
        let seen = scan(&paths, options.limits, options.depth, options.threads, progress);
        let mut items = Vec::new();
        let mut left_out = Vec::new();
        for (record, seen) in labels.records.into_iter().zip(seen) {
            match judge(&record, seen, options) {
                Ok(Seen { size, content }) => {
                    let Record { place, path, captions, declared } = record;
                    items.push(Item { place, path, captions, size, declared, content });
                }
                Err(reason) => {
                    left_out.push(LeftOut { place: record.place, path: record.path, reason });
                }
            }
        }
        // By height and width, so that the order does not depend on that of the labels.
        let mut buckets = BTreeMap::<(u32, u32), Vec<usize>>::new();
        for (k, item) in items.iter().enumerate() {
            let size = options.sizing.bucket(item.size);
            buckets.entry((size.height, size.width)).or_default().push(k);
        }
        let bucket = |((height, width), items)| Bucket { size: Size { width, height }, items };
        Self {
            image_dir: image_dir.to_owned(),
            sizing: options.sizing,
            limits: options.limits,
            items,
            buckets: buckets.into_iter().map(bucket).collect(),
            left_out,
        }
    }

    /// The pictures that can be trained on, in the order of the labels.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The same by size; no bucket is empty.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// The labels nothing is trained on, in their order.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// The bucket of a picture.
    pub(super) fn bucket_of(&self, item: usize) -> &Bucket {
        let bucket = self.buckets.iter().find(|bucket| bucket.items.binary_search(&item).is_ok());
        bucket.expect("every picture is in a bucket")
    }

    /// Height and width of a picture's latents.
    pub(super) fn latent_size(&self, item: usize) -> (usize, usize) {
        let size = self.bucket_of(item).size;
        ((size.height / LATENT_SCALE) as usize, (size.width / LATENT_SCALE) as usize)
    }

    /// The same without the pictures that `judge` gives a reason against; it is asked on `threads` threads,
    /// and `progress` is told how many of how many were judged. Those that stay get other numbers.
    pub fn keep(
        self,
        threads: usize,
        judge: impl Fn(&Self, usize) -> Result<(), Reason> + Sync,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Self {
        let mut reasons = BTreeMap::new();
        let look = |item| judge(&self, item).err();
        let count = self.items.len();
        in_parallel(count, threads, look, |item, reason, done| {
            reasons.extend(reason.map(|reason| (item, reason)));
            progress(done, count);
        });
        let Self { image_dir, sizing, limits, items, mut buckets, mut left_out } = self;
        let mut numbers = BTreeMap::new();
        let mut kept = Vec::new();
        for (number, item) in items.into_iter().enumerate() {
            match reasons.remove(&number) {
                None => {
                    numbers.insert(number, kept.len());
                    kept.push(item);
                }
                Some(reason) => {
                    left_out.push(LeftOut { place: item.place, path: item.path, reason });
                }
            }
        }
        for bucket in &mut buckets {
            let items = bucket.items.iter().filter_map(|item| numbers.get(item).copied());
            bucket.items = items.collect();
        }
        buckets.retain(|bucket| !bucket.items.is_empty());
        left_out.sort_by_key(|left_out| left_out.place.entry);
        Self { image_dir, sizing, limits, items: kept, buckets, left_out }
    }

    /// These pictures, and behind them those of `other`, in buckets of their own: where one cannot be read
    /// any more, none of the other kind stands for it. What was left out of either is not told any more.
    pub fn and(&self, other: &Self) -> Self {
        let first = self.items.len();
        let added = other.items.iter().enumerate().map(|(k, item)| {
            // It does not start from the folder of these pictures.
            let file = other.file(k);
            Item { path: std::path::absolute(&file).unwrap_or(file), ..item.clone() }
        });
        let moved = other.buckets.iter().map(|Bucket { size, items }| {
            let items = items.iter().map(|item| first + item).collect();
            Bucket { size: *size, items }
        });
        Self {
            image_dir: self.image_dir.clone(),
            sizing: self.sizing,
            limits: self.limits,
            items: self.items.iter().cloned().chain(added).collect(),
            buckets: self.buckets.iter().cloned().chain(moved).collect(),
            left_out: Vec::new(),
        }
    }

    /// The sizes pictures are brought to.
    pub fn sizing(&self) -> Sizing {
        self.sizing
    }

    /// What a picture may cost.
    pub(super) fn limits(&self) -> PictureLimits {
        self.limits
    }

    /// Where a picture is.
    pub fn file(&self, item: usize) -> PathBuf {
        self.image_dir.join(&self.items[item].path)
    }

    /// A hash of which pictures there are, in which order, and of their buckets and captions, in
    /// hexadecimal digits. Two runs deal out the same batches only where it is the same.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        let mut text = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        for item in &self.items {
            text(&item.path.to_string_lossy());
            let size = self.sizing.bucket(item.size);
            text(&format!("{}x{}", size.width, size.height));
            text(item.captions.prompt.as_deref().unwrap_or_default());
            text(item.captions.sharegpt4v.as_deref().unwrap_or_default());
        }
        hex(&hash.finalize()[..16])
    }
}

/// Whether a picture is trained on.
fn judge(
    record: &Record,
    seen: Result<Seen, PictureError>,
    options: &DataOptions,
) -> Result<Seen, Reason> {
    let seen = seen?;
    if record.captions.is_empty() {
        return Err(Reason::NoCaption);
    }
    let size = seen.size;
    let ratio = f64::from(size.width.max(size.height)) / f64::from(size.width.min(size.height));
    if ratio > options.max_ratio {
        return Err(Reason::ExtremeRatio { size, ratio, limit: options.max_ratio });
    }
    let by = options.sizing.enlargement(size);
    match options.max_enlargement {
        Some(limit) if by > limit => Err(Reason::TooSmall { size, by, limit }),
        _ => Ok(seen),
    }
}

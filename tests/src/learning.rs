//! What a small model is trained on through the library: pictures without content, and latents and captions that
//! belong to them.

use std::{path::Path, sync::Arc};

use image::RgbImage;
use ndarray::{Array2, Array3, Array4, Axis};
use pixart_exporter::{VariantFlags, checkpoint::OpenOptions};
use pixart_runtime::noise::TorchGenerator;
use pixart_trainer::{
    data::{
        BatchEncoder, BatchPlan, Captions, Conditions, DataOptions, Dataset, EncodeError,
        EncodedBatch, Labels, Place, Record, Sizing, Skipped, Stopped,
    },
    run::StartingPoint,
};
use tempfile::TempDir;

/// So many pictures of one size in a folder.
///
/// # Panics
/// When they cannot be written.
pub fn pictures(count: usize) -> (TempDir, Arc<Dataset>) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut labels = Labels::default();
    for entry in 1..=count {
        let path = format!("{entry}.png").into();
        RgbImage::new(16, 16).save(folder.path().join(&path)).expect("written");
        let captions = Captions::new(Some(format!("picture {entry}")), None);
        let place = Place { entry, line: None };
        labels.records.push(Record { place, path, captions, declared: None });
    }
    let options = DataOptions::new(Sizing { sample_size: 2, multi_scale: false });
    let dataset = Dataset::open(labels, folder.path(), &options, &mut |_, _| {});
    (folder, Arc::new(dataset))
}

/// Latents and captions that belong to their pictures.
#[derive(Default)]
pub struct Encoder {
    /// Epochs and batches whose latents are no numbers.
    pub broken: Vec<(u64, u64)>,
    /// The epoch and the batch that cannot be had.
    pub gone: Option<(u64, u64)>,
    /// The picture that another one stands for.
    pub unreadable: Option<usize>,
    /// Height and width of the pictures, as they are told to models that ask.
    pub side: f32,
}

impl BatchEncoder for Encoder {
    fn encode(&mut self, plan: BatchPlan) -> Result<EncodedBatch, EncodeError> {
        let at = (plan.epoch, plan.batch);
        if self.gone == Some(at) {
            return Err(Stopped.into());
        }
        let count = plan.items.len();
        let mut mean = Array4::zeros((count, 4, 8, 8));
        let mut captions = Array3::zeros((count, 8, 48));
        let mut mask = Array2::zeros((count, 8));
        for (k, &item) in plan.items.iter().enumerate() {
            let mut generator = TorchGenerator::new(item as u64);
            let mut fill = |values: &mut [f32]| {
                let drawn = generator.randn(values.len());
                values.copy_from_slice(&drawn);
            };
            fill(mean.index_axis_mut(Axis(0), k).as_slice_mut().expect("in order"));
            fill(captions.index_axis_mut(Axis(0), k).as_slice_mut().expect("in order"));
            mask.row_mut(k).iter_mut().take(3 + item % 5).for_each(|x| *x = 1);
        }
        if self.broken.contains(&at) {
            mean.fill(f32::NAN);
        }
        let skipped = self.unreadable.map(|item| Skipped {
            item,
            file: "gone.png".into(),
            problem: "no such file".to_owned(),
        });
        Ok(EncodedBatch {
            log_variance: Array4::from_elem(mean.raw_dim(), -10.0),
            conditions: Conditions {
                resolution: Array2::from_elem((count, 2), self.side),
                aspect_ratio: Array2::ones((count, 1)),
            },
            skipped: skipped.into_iter().collect(),
            plan,
            mean,
            captions,
            mask,
        })
    }
}

/// The weights of a checkpoint, to begin with.
///
/// # Panics
/// When it cannot be read.
pub fn load(folder: &Path) -> StartingPoint {
    let open = OpenOptions::default();
    let start = StartingPoint::from_checkpoint(folder, &open, &VariantFlags::default(), None);
    start.unwrap_or_else(|error| panic!("{error}"))
}

//! Making things on a thread of their own, some ahead of their use.

use super::{BatchPlan, Sampler, Skipped};
use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

/// What is made of a plan.
pub trait OfPlan {
    /// Pictures of the plan for which others stand.
    fn skipped(&self) -> &[Skipped];
}

/// The thread that makes batches is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the thread that makes batches stopped unexpectedly; this is a mistake in the program")]
pub struct Stopped;

/// Batches in the sampler's order, made ahead of their use on a thread of their own. The first error is
/// the last item.
#[derive(Debug)]
pub struct Ahead<T, E> {
    /// Until this goes.
    batches: Option<mpsc::Receiver<Result<T, E>>>,
    /// Until it has ended.
    maker: Option<JoinHandle<()>>,
    skipped: BTreeMap<usize, Skipped>,
}

impl<T: OfPlan + Send + 'static, E: From<Stopped> + Send + 'static> Ahead<T, E> {
    /// Makes the batches from where `sampler` is to the end of the epoch before `end_epoch`, `ahead` of
    /// them before they are asked for.
    pub(crate) fn making(
        mut sampler: Sampler,
        end_epoch: u64,
        ahead: usize,
        mut make: impl FnMut(BatchPlan) -> Result<T, E> + Send + 'static,
    ) -> Self {
        let (sender, batches) = mpsc::sync_channel(ahead);
        let maker = thread::spawn(move || {
            while sampler.position().epoch < end_epoch {
                let batch = make(sampler.next_batch());
                let failed = batch.is_err();
                // Nobody waits for batches any more, or there are none.
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        });
        Self { batches: Some(batches), maker: Some(maker), skipped: BTreeMap::new() }
    }
}

impl<T, E> Ahead<T, E> {
    /// The pictures skipped so far, each once, by number.
    pub fn skipped(&self) -> impl ExactSizeIterator<Item = &Skipped> {
        self.skipped.values()
    }
}

impl<T: OfPlan, E: From<Stopped>> Iterator for Ahead<T, E> {
    type Item = Result<T, E>;

    fn next(&mut self) -> Option<Self::Item> {
        self.maker.as_ref()?;
        let batch = match self.batches.as_ref()?.recv() {
            Ok(batch) => batch,
            // A maker that is done hangs up, and so does one that panics.
            Err(mpsc::RecvError) => self.maker.take()?.join().err().map(|_| Err(Stopped.into()))?,
        };
        match &batch {
            Ok(batch) => {
                let new = batch.skipped().iter().map(|skipped| (skipped.item, skipped.clone()));
                self.skipped.extend(new);
            }
            Err(_) => self.maker = None,
        }
        Some(batch)
    }
}

impl<T, E> Drop for Ahead<T, E> {
    /// Waits for the batch in the making: it may be computed by an engine, which must not go before it.
    fn drop(&mut self) {
        self.batches = None;
        if let Some(maker) = self.maker.take() {
            // What it panicked with, it has told.
            let _ = maker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{
        BatchOptions, Captions, DataOptions, Dataset, Labels, Place, Record, Sizing,
    };

    struct Made(u64);

    impl OfPlan for Made {
        fn skipped(&self) -> &[Skipped] {
            &[]
        }
    }

    /// Three batches of one picture.
    fn made(make: impl FnMut(u64) -> Result<Made, Stopped> + Send + 'static) -> Vec<Option<u64>> {
        let folder = tempfile::tempdir().expect("a folder");
        let mut labels = Labels::default();
        for entry in 1..=3 {
            let path = std::path::PathBuf::from(format!("{entry}.png"));
            image::RgbImage::new(16, 16).save(folder.path().join(&path)).expect("written");
            let captions = Captions::new(Some("a".into()), None);
            let place = Place { entry, line: None };
            labels.records.push(Record { place, path, captions, declared: None });
        }
        let options = DataOptions::new(Sizing { sample_size: 2, multi_scale: false });
        let dataset = Dataset::open(labels, folder.path(), &options, &mut |_, _| {});
        let sampler = Sampler::new(&dataset, BatchOptions::new(1, 0)).expect("a sampler");
        let mut make = make;
        let ahead = Ahead::<Made, Stopped>::making(sampler, 1, 1, move |plan| make(plan.batch));
        ahead.map(|made| made.ok().map(|Made(batch)| batch)).collect()
    }

    #[test]
    fn the_end_is_told_from_a_thread_that_died() {
        assert_eq!(made(|batch| Ok(Made(batch))), [Some(0), Some(1), Some(2)]);
        let fails = |batch| if batch == 1 { Err(Stopped) } else { Ok(Made(batch)) };
        assert_eq!(made(fails), [Some(0), None]);
        let dies = |batch| if batch == 1 { panic!("on purpose") } else { Ok(Made(batch)) };
        assert_eq!(made(dies), [Some(0), None]);
    }
}

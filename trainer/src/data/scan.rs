//! Looking at many pictures at once, in bounded memory.

use super::picture::{
    PictureError, PictureLimits, decode_picture, file_size, picture_size, read_file,
};
use pixart_runtime::size::Size;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError, mpsc};

/// How closely pictures are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Their sizes only, which takes a file's head; broken pixels stay unnoticed.
    Headers,
    /// Every pixel.
    Decode,
}

/// What was seen of a picture.
pub(super) struct Seen {
    /// As it is to be seen.
    pub size: Size,
    /// SHA-256 of the file, where it was decoded.
    pub content: Option<[u8; 32]>,
}

/// Memory for decoded pictures of all threads together. One picture alone may take more.
const MEMORY: u64 = 1 << 30;

/// What decoding takes at most: 16 bits of four channels, and the same again as 8 bits.
const BYTES_PER_PIXEL: u64 = 12;

/// Looks at the pictures with `threads` threads. Results are in the order of `paths`; `progress` is
/// told how many are done.
pub(super) fn scan(
    paths: &[PathBuf],
    limits: PictureLimits,
    depth: Depth,
    threads: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Vec<Result<Seen, PictureError>> {
    let memory = Memory { free: Mutex::new(MEMORY), freed: Condvar::new() };
    let mut results: Vec<_> = paths.iter().map(|_| None).collect();
    in_parallel(
        paths.len(),
        threads,
        |k| {
            if depth == Depth::Headers {
                return Ok(Seen { size: file_size(&paths[k], limits)?, content: None });
            }
            let bytes = read_file(&paths[k], limits)?;
            let size = picture_size(&bytes, limits)?;
            let pixels = u64::from(size.width) * u64::from(size.height);
            memory.with(pixels * BYTES_PER_PIXEL, || decode_picture(&bytes, limits))?;
            Ok(Seen { size, content: Some(Sha256::digest(&bytes).into()) })
        },
        |k, result, done| {
            results[k] = Some(result);
            progress(done, paths.len());
        },
    );
    results.into_iter().map(|result| result.expect("every picture was looked at")).collect()
}

/// Does `work` for 0 to `count` on several threads and hands each result to `take` on this one, with the
/// number of those done.
pub(super) fn in_parallel<T: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize) -> T + Sync,
    mut take: impl FnMut(usize, T, usize),
) {
    let threads = threads.clamp(1, count.max(1));
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::sync_channel(2 * threads);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next, work) = (sender.clone(), &next, &work);
            scope.spawn(move || {
                loop {
                    let k = next.fetch_add(1, Ordering::Relaxed);
                    if k >= count || sender.send((k, work(k))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (done, (k, result)) in (1..).zip(receiver) {
            take(k, result, done);
        }
    });
}

/// Lets threads wait until the memory they need is free.
struct Memory {
    free: Mutex<u64>,
    freed: Condvar,
}

impl Memory {
    fn with<T>(&self, bytes: u64, work: impl FnOnce() -> T) -> T {
        let bytes = bytes.min(MEMORY);
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self
            .freed
            .wait_while(free, |free| *free < bytes)
            .unwrap_or_else(PoisonError::into_inner);
        *free -= bytes;
        drop(free);
        let _taken = Taken { memory: self, bytes };
        work()
    }
}

/// Gives memory back, also when the work panics.
struct Taken<'a> {
    memory: &'a Memory,
    bytes: u64,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.memory.free.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        self.memory.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn everything_is_done_once_and_counted() {
        for (count, threads) in [(0, 4), (1, 4), (100, 3), (5, 0)] {
            let mut seen = vec![0; count];
            let mut last = 0;
            in_parallel(
                count,
                threads,
                |k| k * 2,
                |k, result, done| {
                    assert_eq!((result, done), (2 * k, last + 1));
                    (seen[k], last) = (seen[k] + 1, done);
                },
            );
            assert!(seen.iter().all(|&times| times == 1) && last == count);
        }
    }

    #[test]
    fn no_more_memory_is_in_use_than_there_is() {
        let memory = Memory { free: Mutex::new(MEMORY), freed: Condvar::new() };
        let used = AtomicU64::new(0);
        in_parallel(
            64,
            8,
            |k| {
                // The last one is larger than all there is, and waits to be alone.
                let bytes = if k == 63 { 3 * MEMORY } else { MEMORY / 3 };
                memory.with(bytes, || {
                    let now = used.fetch_add(bytes.min(MEMORY), Ordering::SeqCst);
                    assert!(now + bytes.min(MEMORY) <= MEMORY);
                    std::thread::yield_now();
                    used.fetch_sub(bytes.min(MEMORY), Ordering::SeqCst);
                });
            },
            |_, (), _| {},
        );
        assert_eq!(*memory.free.lock().expect("nobody panicked"), MEMORY);
    }
}

//! The way of the weights into the data file: one thread converts, another hashes and writes.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use super::convert::{Block, Sink};
use super::hash::HashedFile;
use super::{FileRecord, WriteError};

/// Blocks that wait to be written. With the one being filled and the one being written, this
/// bounds the memory of an export.
const WAITING: usize = 4;

/// Hands blocks to a thread that appends them to a file.
pub(super) struct Pipe<'scope, 'p> {
    filled: SyncSender<Block>,
    spare: Receiver<Block>,
    writer: ScopedJoinHandle<'scope, Result<FileRecord, WriteError>>,
    position: u64,
    total: u64,
    progress: &'p mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    /// Whether nobody wants the file any more.
    stopped: Arc<AtomicBool>,
}

/// The writer has stopped; [`Pipe::finish`] says why.
#[derive(Debug)]
pub(super) struct Closed;

impl<'scope, 'p> Pipe<'scope, 'p> {
    /// A pipe into `file`, which will get `total` bytes. `progress` gets the bytes done and `total`,
    /// and may end it.
    pub fn new<'env>(
        scope: &'scope Scope<'scope, 'env>,
        file: HashedFile,
        total: u64,
        progress: &'p mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Self {
        let (filled, blocks) = sync_channel(WAITING);
        let (empty, spare) = channel();
        let stopped = Arc::new(AtomicBool::new(progress(0, total).is_break()));
        let told = stopped.clone();
        let writer = scope.spawn(move || write(file, &blocks, &empty, &told));
        Self { filled, spare, writer, position: 0, total, progress, stopped }
    }

    /// Position in the file of what comes next.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Appends bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Closed> {
        for part in bytes.chunks(1 << 20) {
            let mut block = self.empty();
            block.resize(part.len()).copy_from_slice(part);
            self.put(block)?;
        }
        Ok(())
    }

    /// Appends zeros up to a position.
    pub fn pad_to(&mut self, position: u64) -> Result<(), Closed> {
        let mut block = self.empty();
        let count = usize::try_from(position.saturating_sub(self.position)).unwrap_or(0);
        block.resize(count).fill(0);
        self.put(block)
    }

    /// Waits for the writer, which flushes the file to the disk.
    pub fn finish(self) -> Result<FileRecord, WriteError> {
        drop(self.filled);
        self.writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Sink for Pipe<'_, '_> {
    type Error = Closed;

    fn empty(&mut self) -> Block {
        self.spare.try_recv().unwrap_or_default()
    }

    fn put(&mut self, block: Block) -> Result<(), Closed> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Closed);
        }
        self.position += block.bytes().len() as u64;
        self.filled.send(block).map_err(|_| Closed)?;
        if (self.progress)(self.position, self.total).is_break() {
            self.stopped.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn write(
    mut file: HashedFile,
    blocks: &Receiver<Block>,
    empty: &Sender<Block>,
    stopped: &AtomicBool,
) -> Result<FileRecord, WriteError> {
    for block in blocks {
        file.write(block.bytes())?;
        // Nobody may be left who wants it.
        let _ = empty.send(block);
    }
    if stopped.load(Ordering::Relaxed) {
        // Flushing what nobody wants could take long.
        return Err(WriteError::Stopped);
    }
    file.finish()
}

//! The unit in which elements travel from a checkpoint to a file.

use bytemuck::cast_slice_mut;

/// Elements of one type, a few megabytes at most. Reused, so that memory is not asked for again.
#[derive(Default)]
pub(crate) struct Block {
    /// Aligned for every element type.
    words: Vec<u32>,
    bytes: usize,
}

impl Block {
    /// The elements as little-endian bytes, once they are filled in.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.bytes]
    }

    /// Makes room for so many bytes, of whatever content.
    pub fn resize(&mut self, bytes: usize) -> &mut [u8] {
        self.bytes = bytes;
        self.words.resize(bytes.div_ceil(4), 0);
        &mut cast_slice_mut(&mut self.words)[..bytes]
    }

    /// Makes room for so many floats.
    pub fn resize_floats(&mut self, count: usize) -> &mut [f32] {
        self.resize(count * 4);
        cast_slice_mut(&mut self.words)
    }

    /// Makes room for so many numbers of 16 bits.
    pub fn resize_halves(&mut self, count: usize) -> &mut [u16] {
        self.resize(count * 2);
        &mut cast_slice_mut(&mut self.words)[..count]
    }

    /// Makes bytes of elements that were filled in as numbers `width` bytes wide.
    pub fn little_endian(&mut self, width: usize) {
        if cfg!(target_endian = "big") {
            let bytes = self.bytes;
            let all: &mut [u8] = cast_slice_mut(&mut self.words);
            all[..bytes].chunks_mut(width).for_each(<[u8]>::reverse);
        }
    }
}

/// Where blocks go.
pub(crate) trait Sink {
    /// Why a block cannot be taken.
    type Error;

    /// A block to fill.
    fn empty(&mut self) -> Block;

    /// Takes a filled block.
    fn put(&mut self, block: Block) -> Result<(), Self::Error>;
}

/// Collects everything.
impl Sink for Vec<u8> {
    type Error = std::convert::Infallible;

    fn empty(&mut self) -> Block {
        Block::default()
    }

    fn put(&mut self, block: Block) -> Result<(), Self::Error> {
        self.extend_from_slice(block.bytes());
        Ok(())
    }
}

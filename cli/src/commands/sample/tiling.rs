//! The settings of pictures too large for the memory.

use super::settings::Settings;
use crate::exit::Failure;
use pixart_runtime::vae::tiles::{TilingMode, TilingOptions};

impl Settings {
    /// Whether and how pictures are decoded in tiles.
    pub fn vae_tiling(&self) -> Result<TilingOptions, Failure> {
        let mode = self.vae_tiling.as_deref().map_or(Ok(TilingMode::default()), str::parse);
        let options = TilingOptions {
            mode: mode.map_err(Failure::request)?,
            tile_size: self.vae_tile_size,
            overlap: self.vae_tile_overlap,
            free_memory: None,
            sparing: self.low_memory.unwrap_or(false),
        };
        options.check().map_err(Failure::request)?;
        Ok(options)
    }
}

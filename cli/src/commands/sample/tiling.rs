//! The settings of pictures too large for the memory.

use super::settings::Settings;
use crate::exit::Failure;
use pixart_runtime::vae::tiles::{TilingMode, TilingOptions};

impl Settings {
    /// Whether and how pictures are decoded in tiles.
    pub fn vae_tiling(&self) -> Result<TilingOptions, Failure> {
        let default = TilingOptions::default();
        let mode = self.vae_tiling.as_deref().map_or(Ok(default.mode), str::parse);
        let mode = mode.map_err(Failure::request)?;
        // The size of exact tiles does not show.
        let usual = match self.low_memory {
            Some(true) if mode != TilingMode::Blended => TilingOptions::SPARING_TILE,
            _ => default.tile_size,
        };
        let tile_size = self.vae_tile_size.unwrap_or(usual);
        let options = TilingOptions {
            mode,
            tile_size,
            // A quarter, where only the size is given.
            overlap: self.vae_tile_overlap.unwrap_or(tile_size / 32 * 8),
            ..default
        };
        options.check().map_err(Failure::request)?;
        Ok(options)
    }
}

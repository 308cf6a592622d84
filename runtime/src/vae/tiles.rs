//! Pictures that go through an auto-encoder tile by tile, because they are too large for the memory
//! as a whole. Both directions work the same way.
//!
//! Two ways are known. The [exact] one gives what the whole picture would have given: tiles go
//! through short parts of the graph, with all that the convolutions reach around them, and the norms
//! use the statistics of the whole picture. The [blended](blend) one is that of other programs: each
//! tile goes through the whole graph with statistics of its own, and overlaps are blended; colours and
//! contrast differ a little from tile to tile. It is for graphs that the exact one does not know, and
//! for those who want its speed.

mod bands;
pub mod blend;
pub mod exact;
mod plan;
mod statistics;
mod windows;

use std::{fmt, str::FromStr};

use ndarray::ArrayD;

use crate::{
    engine::{Chain, EngineError},
    error::{PipelineError, RequestError},
    memory,
    model_folder::Architecture,
    pipeline::LazyComponent,
};

/// Whether pictures go through the auto-encoder in tiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TilingMode {
    /// Exactly, when the whole picture would take more memory than is free.
    #[default]
    Auto,
    /// Exactly, always; blended where the graph does not allow it.
    Exact,
    /// Blended, always.
    Blended,
    /// Never.
    Off,
}

impl FromStr for TilingMode {
    type Err = RequestError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "true" => Ok(Self::Exact),
            "blend" => Ok(Self::Blended),
            "false" => Ok(Self::Off),
            _ => Err(RequestError::OutOfRange {
                field: "vae_tiling",
                found: format!("`{name}`"),
                expected: "auto, true, false or blend",
            }),
        }
    }
}

impl fmt::Display for TilingMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Exact => "true",
            Self::Blended => "blend",
            Self::Off => "false",
        })
    }
}

/// How pictures are cut into tiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TilingOptions {
    /// Whether they are.
    pub mode: TilingMode,
    /// Side of a tile in pixels of the picture, 64 to 4096, a multiple of 8.
    pub tile_size: usize,
    /// Pixels of the picture that neighbouring blended tiles share, a multiple of 8, at most half of
    /// `tile_size`. Exact tiles share what the convolutions reach, whatever this is.
    pub overlap: usize,
    /// Bytes that are free; measured where not given.
    pub free_memory: Option<u64>,
}

impl Default for TilingOptions {
    /// Tiles of 512 pixels, a quarter of which overlaps.
    fn default() -> Self {
        Self { mode: TilingMode::Auto, tile_size: 512, overlap: 128, free_memory: None }
    }
}

/// Pixels of a picture to a latent pixel, which tiles respect.
const STEP: usize = 8;

/// What counts as free where memory is to be spared. A picture of 1024 pixels is decoded then with next to
/// nothing computed twice.
const SPARED: u64 = 1_700_000_000;

impl TilingOptions {
    /// Checks the sizes.
    ///
    /// # Errors
    /// Names the one that is out of range.
    pub fn check(&self) -> Result<(), RequestError> {
        let refuse = |field, found: usize, expected| {
            Err(RequestError::OutOfRange { field, found: found.to_string(), expected })
        };
        let Self { tile_size, overlap, .. } = *self;
        if !(64..=4096).contains(&tile_size) || tile_size % STEP != 0 {
            return refuse("vae_tile_size", tile_size, "64 to 4096 pixels, a multiple of 8");
        }
        if overlap > tile_size / 2 || overlap % STEP != 0 {
            let expected = "at most half of vae_tile_size, a multiple of 8";
            return refuse("vae_tile_overlap", overlap, expected);
        }
        Ok(())
    }

    /// The side of a tile where memory is to be spared.
    pub const SPARING_TILE: usize = 128;

    /// The same, but as if at most 1.7 GB were free.
    pub fn sparing(&self) -> Self {
        Self { free_memory: Some(self.free().min(SPARED)), ..self.clone() }
    }

    fn free(&self) -> u64 {
        self.free_memory.or_else(memory::free).unwrap_or(memory::ASSUMED_FREE)
    }
}

/// Runs an auto-encoder's half on `input`, f32 `[batch, channels, height, width]`, whole or in tiles
/// as `options` say, and gives its `output`, with the mode that came of it, which is never `Auto`.
///
/// `scale` is the side of the output against that of the input: (8, 1) for a decoder. `tell` gets a
/// line when the choice was made here and fell on tiles.
pub(crate) fn run<A: Architecture>(
    component: &mut LazyComponent<A>,
    (name, input): (&str, ArrayD<f32>),
    output: &str,
    scale: (usize, usize),
    options: &TilingOptions,
    tell: &mut dyn FnMut(&str),
) -> Result<(ArrayD<f32>, TilingMode), PipelineError> {
    options.check()?;
    let failed = |source| PipelineError::Engine { component: A::COMPONENT, source };
    let sides = [input.shape()[2], input.shape()[3]];
    let pixels = sides.map(|side| side * scale.0.max(scale.1) / scale.1);
    let mode = choose(component, sides, pixels, options, tell).map_err(failed)?;
    let result = match mode {
        TilingMode::Off | TilingMode::Auto => {
            component.load()?.run(&[(name, input.into())], output)
        }
        TilingMode::Blended => {
            let mut loaded = component.load()?;
            blend::run(input, scale, options, &mut |tile| {
                loaded.run(&[(name, tile.into())], output)
            })
        }
        TilingMode::Exact => {
            // Its weights are not needed as a whole.
            component.unload();
            let (engine, model) = component.places();
            match exact::run(engine, model, &input, options).map_err(failed)? {
                Some(result) => Ok(result),
                None => component.load()?.run(&[(name, input.into())], output),
            }
        }
    };
    Ok((result?, mode))
}

fn choose<A: Architecture>(
    component: &LazyComponent<A>,
    sides: [usize; 2],
    pixels: [usize; 2],
    options: &TilingOptions,
    tell: &mut dyn FnMut(&str),
) -> Result<TilingMode, EngineError> {
    let small = pixels.iter().all(|side| *side <= options.tile_size);
    if options.mode == TilingMode::Off || small {
        return Ok(TilingMode::Off);
    }
    if options.mode == TilingMode::Blended {
        return Ok(TilingMode::Blended);
    }
    let chain = Chain::open(component.places().1)?;
    let needed = match &chain {
        Some(chain) => plan::whole_bytes(chain, sides),
        // The numbers of the SDXL auto-encoder.
        None => plan::PEAK * 256 * 4 * pixels.iter().product::<usize>() as u64,
    };
    // Engines lay out weights anew beside those they read.
    let needed = needed + 2 * component.stored_bytes();
    let chain = chain.filter(plan::can_be_cut);
    let free = options.free();
    let auto = options.mode == TilingMode::Auto;
    // A part stays for what else happens on the machine.
    if auto && needed <= free / 5 * 4 {
        return Ok(TilingMode::Off);
    }
    let how = match chain {
        Some(_) => "the result is the same",
        None => "blended, because its graph cannot be cut: export it in fp32 for exact tiles",
    };
    if auto || chain.is_none() {
        let reason = match auto {
            true => format!(
                " as a whole it may need {}, and {} are free;",
                gigabytes(needed),
                gigabytes(free)
            ),
            false => String::new(),
        };
        tell(&format!("{}: in tiles of {} pixels;{reason} {how}", A::COMPONENT, options.tile_size));
    }
    Ok(if chain.is_some() { TilingMode::Exact } else { TilingMode::Blended })
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

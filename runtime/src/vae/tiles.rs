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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TilingOptions {
    /// Whether they are.
    pub mode: TilingMode,
    /// Side of a tile in pixels of the picture, 64 to 4096, a multiple of 8; see [`tile`](Self::tile). An exact tile
    /// has it where the picture is finest and its widest value has the most channels, and elsewhere takes no more
    /// memory than there.
    pub tile_size: Option<usize>,
    /// Pixels of the picture that neighbouring blended tiles share, a multiple of 8, at most half of a tile; a
    /// quarter of it where not given. Exact tiles share what the convolutions reach, whatever this is.
    pub overlap: Option<usize>,
    /// Bytes that are free; measured where not given.
    pub free_memory: Option<u64>,
    /// Whether to plan as if at most 1.7 GB were free, with exact tiles of 128 pixels where nothing else is given.
    pub sparing: bool,
}

/// Pixels of a picture to a latent pixel, which tiles respect.
const STEP: usize = 8;

/// The side of a tile.
const TILE: usize = 512;

/// The side of an exact tile, whose size does not show, where memory is to be spared.
const SPARING_TILE: usize = 128;

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
        let tile = self.tile(self.mode);
        if !(64..=4096).contains(&tile) || !tile.is_multiple_of(STEP) {
            return refuse("vae_tile_size", tile, "64 to 4096 pixels, a multiple of 8");
        }
        let overlap = self.overlap(TilingMode::Blended);
        if overlap > self.tile(TilingMode::Blended) / 2 || !overlap.is_multiple_of(STEP) {
            let expected = "at most half of vae_tile_size, a multiple of 8";
            return refuse("vae_tile_overlap", overlap, expected);
        }
        Ok(())
    }

    /// The side of a tile in pixels: what is given, or 512, or 128 for exact tiles where memory is to be spared.
    pub fn tile(&self, mode: TilingMode) -> usize {
        let usual = match mode {
            TilingMode::Auto | TilingMode::Exact if self.sparing => SPARING_TILE,
            _ => TILE,
        };
        self.tile_size.unwrap_or(usual)
    }

    /// Pixels that neighbouring tiles share if they are blended: what is given, or a quarter of a tile.
    pub fn overlap(&self, mode: TilingMode) -> usize {
        self.overlap.unwrap_or(self.tile(mode) / 4 / STEP * STEP)
    }

    fn free(&self) -> u64 {
        let free = self.free_memory.or_else(memory::free).unwrap_or(memory::ASSUMED_FREE);
        if self.sparing { free.min(SPARED) } else { free }
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
    let small = |mode| pixels.iter().all(|side| *side <= options.tile(mode));
    if options.mode == TilingMode::Off || small(options.mode) {
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
    let (mode, about, how) = match chain {
        Some(_) => (TilingMode::Exact, "about ", "the result is the same"),
        None if small(TilingMode::Blended) => return Ok(TilingMode::Off),
        None => (
            TilingMode::Blended,
            "",
            "blended, because its graph cannot be cut: export it in fp32 for exact tiles",
        ),
    };
    if auto || mode == TilingMode::Blended {
        let reason = match auto {
            true => format!(
                " as a whole it may need {}, and {} are free;",
                gigabytes(needed),
                gigabytes(free)
            ),
            false => String::new(),
        };
        let side = options.tile(mode);
        tell(&format!("{}: in tiles of {about}{side} pixels;{reason} {how}", A::COMPONENT));
    }
    Ok(mode)
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

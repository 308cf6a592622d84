//! LoRA: small files of changes to the matrices of a network, applied when its session is built.
//!
//! A [`Lora`] is a file of any of the common writers with a strength. A [`LoraPlan`] is what several of
//! them mean for one exported component: every change is matched with an initializer of its graph,
//! and shapes are compared. [`LoraPlan::merge`] then gives the changed weights, which an engine takes
//! in place of the stored ones ([`Engine::load_with`](crate::engine::Engine::load_with)). Nothing is
//! exported again and no file is changed; only the changed weights are held in memory.
//!
//! A layer with the weight `W` `[out, in]` becomes `W + s·c·(B·A)`, with `A` `[r, in]` and `B`
//! `[out, r]` of the file, the strength `s`, and `c` = alpha / r (rsLoRA: alpha / √r; 1 where the
//! file has no alpha). DoRA's result is `V·m/‖V‖` of that `V`, with the stored magnitudes `m` and the
//! norm of each output's row (as PEFT merges it; s takes part in `V`, so the effect is not linear in s),
//! or of each input's column where the file has one magnitude for each. LoRAs are applied in the
//! order given, each on the result of the one before; sums are in f32 and are rounded to the weight's
//! own type once. A strength of 0 leaves the file out.

mod adapter;
mod adapter_config;
mod error;
mod file;
mod key;
mod merge;
mod names;
mod plan;
mod spec;
mod targets;

pub use adapter::Lora;
pub use error::LoraError;
pub use plan::{Exported, LoraMatch, LoraPlan, match_loras};
pub use spec::LoraSpec;

//! Prompt in, picture out: PixArt-Σ on ONNX Runtime or tract.
//!
//! A [`Pipeline`](pipeline::Pipeline) takes an exported model (a folder with `transformer`,
//! `text_encoder`, `vae_decoder`, `tokenizer` and `scheduler`) and an [`engine`]:
//!
//! ```no_run
//! use pixart_runtime::{
//!     engine::{self, EngineChoice, EngineOptions},
//!     image::write_png,
//!     pipeline::{ModelPaths, Pipeline, PipelineOptions, Request},
//! };
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let engine = engine::open(EngineChoice::Auto, &EngineOptions::default())?.engine;
//!     let paths = ModelPaths::from_folder("exported");
//!     let mut pipeline = Pipeline::new(engine, paths, PipelineOptions::default())?;
//!     let request = Request { prompts: vec!["a red circle".into()], ..Request::default() };
//!     for picture in pipeline.sample(&request, &mut |_| ())? {
//!         write_png("circle.png".as_ref(), &picture.image)?;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! The parts can be used alone: [`text::Tokenizer`], [`noise::TorchGenerator`],
//! [`sampler::DpmSolver`], [`size::SizePlan`].

pub mod bundle;
pub mod engine;
pub mod error;
pub mod files;
pub mod image;
pub mod lora;
pub mod measure;
pub mod memory;
pub mod model_folder;
pub mod noise;
pub mod pipeline;
pub mod sampler;
pub mod size;
pub mod tensor;
pub mod text;
pub mod vae;
pub mod verify;

//! What stays the same from step to step goes to the device once: a step moves latents, times and the
//! prediction.

use std::sync::Arc;

use pixart_exporter::Profile;
use pixart_runtime::{
    engine::Engine,
    pipeline::{Engines, ModelPaths, Pipeline, PipelineOptions, Request},
    sampler::GuidanceEnd,
};
use pixart_tests::{device::Device, engines, exports::Export, fixtures};

const STEPS: usize = 6;
/// Bytes of a float and of a whole number.
const FLOAT: usize = 4;
const INTEGER: usize = 8;

#[test]
fn a_step_moves_no_captions() {
    let export = Export::pipeline(&fixtures::tiny(), Profile::Portable);
    for inner in engines::both() {
        // As many steps guided as not; two pictures at once, whose captions have 8 and 24 tokens.
        let request = Request {
            prompts: vec!["a".to_owned(), "a house with a garden, seen from the street".to_owned()],
            sampling_steps: STEPS,
            guidance_end: GuidanceEnd::Fraction(0.5),
            width: Some(96),
            height: Some(64),
            use_resolution_binning: false,
            ..Request::default()
        };
        let options = PipelineOptions { batch_size: 2, ..PipelineOptions::default() };
        let draw = |transformer: Arc<dyn Engine>| {
            let engines = Engines { transformer, ..Engines::from(inner.clone()) };
            let paths = ModelPaths::from_folder(export.path());
            let pipeline = Pipeline::with_engines(engines, paths, options.clone());
            let mut pipeline = pipeline.expect("a pipeline");
            let (channels, width) = {
                let transformer = pipeline.transformer();
                (transformer.in_channels, transformer.caption_channels)
            };
            let pictures = pipeline.sample(&request, &mut |_| ()).expect("pictures");
            (pictures, channels, width)
        };
        let device = Arc::new(Device::new(inner.clone()));
        let traffic = device.traffic();
        let (pictures, channels, width) = draw(device);
        let [into, out] = traffic.take();
        let case = inner.name();

        // Guided steps have four rows, the others two.
        let rows = 4 * STEPS / 2 + 2 * STEPS / 2;
        let latents = FLOAT * channels * (64 / 8) * (96 / 8);
        let steps = rows * (latents + FLOAT);
        let tokens = 24;
        // Once for the guided and once for the other steps.
        let captions = (4 + 2) * tokens * (FLOAT * width + INTEGER);
        assert_eq!(into, steps + captions, "{case}: in");
        // Noise and variance of each row.
        assert_eq!(out, 2 * rows * latents, "{case}: out");
        assert!(captions > FLOAT * rows, "{case}: these captions would not show");

        let (plain, ..) = draw(inner.clone());
        for (found, expected) in pictures.iter().zip(&plain) {
            assert_eq!(found.latents, expected.latents, "{case}");
        }
    }
}

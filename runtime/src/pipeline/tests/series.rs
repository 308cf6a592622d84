//! Pictures of a transformer that is somebody else's, on the engine that computes next to nothing.

use super::*;

fn architecture() -> TransformerArchitecture {
    TransformerArchitecture {
        sample_size: 8,
        in_channels: 4,
        out_channels: 8,
        caption_channels: 4,
        use_additional_conditions: false,
        kv_compression: None,
    }
}

fn series(folder: &TempDir, toy: &Arc<Toy>, request: Request) -> Result<Series, PipelineError> {
    let paths = ModelPaths::from_folder(folder.path());
    let options = PipelineOptions { batch_size: 2, ..PipelineOptions::default() };
    let engine = Arc::new(ToyEngine(toy.clone()));
    Series::new(engine, architecture(), &paths, options, request, &mut |_| ())
}

#[test]
fn the_pictures_are_those_of_a_pipeline_each_time() {
    let (folder, toy) = (model(), Arc::new(Toy::default()));
    let request = request(&["red", "a", "red"]);
    let expected = sample(&mut pipeline(&folder, &toy, false), &request);
    // The captions are encoded when the series is made, and neither encoder nor transformer is needed then.
    toy.calls.lock().expect("one thread").clear();
    let transformer = folder.path().join("transformer");
    let mut session = ToyEngine(toy.clone()).load(&transformer.join("model.onnx")).expect("a toy");
    std::fs::remove_dir_all(&transformer).expect("removed");
    let mut series = series(&folder, &toy, request).expect("a series");
    assert_eq!(toy.calls.lock().expect("one thread").len(), 2);
    std::fs::remove_dir_all(folder.path().join("text_encoder")).expect("removed");
    for _ in 0..2 {
        let found = series.draw(session.as_mut(), &mut |_| ()).expect("pictures");
        assert_eq!(found.len(), 3);
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((&found.image, found.seed), (&expected.image, expected.seed));
            assert_eq!(found.prompt, expected.prompt);
        }
    }
    // The lent session, and nothing else, is still there.
    assert_eq!(toy.alive.load(Ordering::SeqCst), 1);
}

#[test]
fn what_is_missing_or_wrong_is_told_when_it_is_made() {
    let toy = Arc::new(Toy::default());
    for (part, said) in [("vae_decoder", "vae_decoder"), ("text_encoder", "text_encoder")] {
        let folder = model();
        std::fs::remove_dir_all(folder.path().join(part)).expect("removed");
        let error = series(&folder, &toy, request(&["red"])).err().expect("refused").to_string();
        assert!(error.contains(said) && error.contains("pixart export"), "{error}");
    }
    let error = series(&model(), &toy, request(&[])).err().expect("refused").to_string();
    assert!(error.contains("prompts: found none"), "{error}");
    let image = InitImage { image: Arc::new(RgbImage::new(64, 64)), strength: 0.5, mask: None };
    let from_picture = Request { init: Some(image), ..request(&["red"]) };
    let error = series(&model(), &toy, from_picture).err().expect("refused");
    assert!(matches!(error, PipelineError::NoEncoder), "{error}");
}

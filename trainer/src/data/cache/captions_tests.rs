use super::super::fill::{FillOptions, Filled};
use super::*;
use pixart_runtime::pipeline::Cancel;
use std::fs;

const SETTINGS: CaptionSettings = CaptionSettings { cleaning: PromptCleaning::Raw, max_length: 20 };

/// Stands for T5: an id a letter and one for the end; the states of a row are its own numbers, and padding gives
/// states too.
#[derive(Default)]
struct Letters {
    /// Rows and lengths it was given.
    given: Vec<(usize, usize)>,
    dependent: bool,
    fails_after: Option<usize>,
}

impl EncodesText for Letters {
    fn ids(&mut self, text: &str, settings: CaptionSettings) -> Result<Vec<i64>, PipelineError> {
        let letters = text.bytes().map(i64::from).take(settings.max_length - 1);
        Ok(letters.chain([1]).collect())
    }

    fn states(&mut self, rows: &[&[i64]], length: usize) -> Result<Array3<f32>, PipelineError> {
        if self.fails_after == Some(self.given.len()) {
            return Err(PipelineError::NoEncoder);
        }
        self.given.push((rows.len(), length));
        Ok(Array3::from_shape_fn((rows.len(), length, 3), |(b, i, c)| {
            let id = rows[b].get(i).copied().unwrap_or(-7);
            id as f32 / 3.0 + c as f32
        }))
    }

    fn rows_are_independent(&self) -> bool {
        !self.dependent
    }
}

fn fill(
    cache: &CaptionCache,
    texts: &[&str],
    kept: CaptionType,
    encoder: &mut Letters,
) -> Result<Filled, CacheError> {
    let options = FillOptions { settings: SETTINGS, kept, workers: 2, cancel: Cancel::new() };
    let mut progress = |done, total| assert!(done <= total);
    let mut fill = Fill::new(texts.len(), &options, &mut progress);
    cache.fill(texts, SETTINGS, kept, encoder, &mut fill)?;
    Ok(fill.filled)
}

const TEXTS: [&str; 5] = ["", "a", "bb", "eleven more", "this one is longer than twenty letters"];

#[test]
fn captions_are_kept_in_their_own_length_and_the_empty_one_in_the_greatest() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = CaptionCache::new(folder.path(), "t5".into());
    let mut encoder = Letters::default();
    assert_eq!(cache.get("a", SETTINGS), Err(Lack::Missing));
    let filled = fill(&cache, &TEXTS, CaptionType::F32, &mut encoder).expect("filled");
    assert_eq!((filled.computed, filled.present, filled.total), (5, 0, 5));
    // The longest first, those of one length together.
    assert_eq!(encoder.given, [(1, 20), (1, 16), (2, 8), (1, 20)]);
    for (text, rows, tokens) in
        [("", 20, 1), ("a", 2, 2), ("bb", 3, 3), ("eleven more", 12, 12), (TEXTS[4], 20, 20)]
    {
        let caption = cache.get(text, SETTINGS).expect(text);
        assert_eq!((caption.states.dim(), caption.tokens), ((rows, 3), tokens), "{text}");
        let expected = encoded(&mut Letters::default(), &[text], SETTINGS).expect("encoded");
        assert_eq!(caption, expected[0], "{text}");
        assert!(cache.has(text, SETTINGS));
    }
    let shorter = CaptionSettings { max_length: 10, ..SETTINGS };
    let lower = CaptionSettings { cleaning: PromptCleaning::Lower, ..SETTINGS };
    for other in [shorter, lower] {
        assert_eq!(cache.get("a", other), Err(Lack::Missing), "{other:?}");
    }
    let other = CaptionCache::new(folder.path(), "another t5".into());
    assert_eq!(other.get("a", SETTINGS), Err(Lack::Missing));
    let mut idle = Letters::default();
    let again = fill(&cache, &TEXTS, CaptionType::F32, &mut idle).expect("filled");
    assert_eq!((again.computed, again.present, idle.given.len()), (0, 5, 0));
}

#[test]
fn halves_are_rounded_to_the_nearest_and_floats_are_made_of_them_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = CaptionCache::new(folder.path(), "t5".into());
    let mut encoder = Letters::default();
    fill(&cache, &TEXTS, CaptionType::F16, &mut encoder).expect("filled");
    let exact = encoded(&mut encoder, &["bb"], SETTINGS).expect("encoded").swap_remove(0);
    let halves = cache.get("bb", SETTINGS).expect("kept");
    assert_ne!(halves, exact);
    let rounded = exact.states.mapv(|value| half::f16::from_f32(value).to_f32());
    assert_eq!(halves, CaptionStates { states: rounded, ..exact.clone() });
    for (half, float) in halves.states.iter().zip(&exact.states) {
        assert!((half - float).abs() <= float.abs() / 2048.0, "{half} for {float}");
    }
    let filled = fill(&cache, &TEXTS, CaptionType::F32, &mut encoder).expect("filled");
    assert_eq!((filled.computed, filled.present), (5, 0));
    assert_eq!(cache.get("bb", SETTINGS), Ok(exact));
}

#[test]
fn rows_that_change_one_another_are_encoded_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = CaptionCache::new(folder.path(), "t5".into());
    let mut encoder = Letters { dependent: true, ..Letters::default() };
    fill(&cache, &TEXTS, CaptionType::F16, &mut encoder).expect("filled");
    assert!(encoder.given.iter().all(|(rows, _)| *rows == 1), "{:?}", encoder.given);
}

#[test]
fn an_interrupted_run_goes_on_and_damage_is_mended() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = CaptionCache::new(folder.path(), "t5".into());
    let mut encoder = Letters { fails_after: Some(2), ..Letters::default() };
    let error = fill(&cache, &TEXTS, CaptionType::F16, &mut encoder).expect_err("interrupted");
    assert!(matches!(error, CacheError::Encoder(_)), "{error}");
    let mut encoder = Letters::default();
    let filled = fill(&cache, &TEXTS, CaptionType::F16, &mut encoder).expect("filled");
    assert_eq!((filled.computed, filled.present), (3, 2));

    let path = cache.path("bb", SETTINGS);
    let good = fs::read(&path).expect("an entry");
    let expected = cache.get("bb", SETTINGS).expect("kept");
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x11;
        fs::write(&path, &bytes).expect("written");
        if let Ok(found) = cache.get("bb", SETTINGS) {
            assert_eq!(found, expected, "byte {at}");
        }
    }
    fs::write(&path, &good[..good.len() - 1]).expect("written");
    assert!(matches!(cache.get("bb", SETTINGS), Err(Lack::Damaged(_))));
    let filled = fill(&cache, &TEXTS, CaptionType::F16, &mut encoder).expect("filled");
    assert_eq!((filled.computed, filled.present), (1, 4));
    assert_eq!(cache.get("bb", SETTINGS), Ok(expected));
}

#[test]
fn what_fp16_cannot_hold_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = CaptionCache::new(folder.path(), "t5".into());
    let large = CaptionStates { states: Array2::from_elem((1, 3), 65_520.0), tokens: 1 };
    let error = cache.put("big", SETTINGS, CaptionType::F16, &large).expect_err("too large");
    assert!(
        error.to_string().contains("65520") && error.to_string().contains("\"big\""),
        "{error}"
    );
    cache.put("big", SETTINGS, CaptionType::F32, &large).expect("kept");
    assert_eq!(cache.get("big", SETTINGS), Ok(large));
}

use super::*;
use crate::data::{Captions, DataOptions, Labels, Place, Reason, Record, Sizing};
use image::RgbImage;
use std::fs;
use std::io::Write as _;

/// Square pictures at these paths, with both captions.
fn dataset(folder: &Path, paths: &[&str], multi_scale: bool) -> Dataset {
    let mut labels = Labels::default();
    for (k, path) in paths.iter().enumerate() {
        let file = folder.join(path);
        fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        RgbImage::new(64, 64).save(&file).expect("written");
        let captions = Captions::new(Some("short".into()), Some("long".into()));
        let place = Place { entry: k + 1, line: None };
        labels.records.push(Record { place, path: path.into(), captions, declared: None });
    }
    let options = DataOptions::new(Sizing { sample_size: 8, multi_scale });
    Dataset::open(labels, folder, &options, &mut |_, _| {})
}

/// A file of numpy with floats that count up from `first`.
fn npy(shape: &[usize], first: f32) -> Vec<u8> {
    let count = shape.iter().product::<usize>();
    let header = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}\n",
        shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
    );
    let mut file = [&b"\x93NUMPY\x01\0"[..], &(header.len() as u16).to_le_bytes()].concat();
    file.extend(header.as_bytes());
    file.extend((0..count).flat_map(|k| (first + k as f32).to_le_bytes()));
    file
}

fn mask(values: &[i16]) -> Vec<u8> {
    let header =
        format!("{{'descr': '<i2', 'fortran_order': False, 'shape': (1, {}), }}\n", values.len());
    let mut file = [&b"\x93NUMPY\x01\0"[..], &(header.len() as u16).to_le_bytes()].concat();
    file.extend(header.as_bytes());
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    file
}

fn npz(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored);
        archive.start_file(format!("{name}.npy"), options).expect("begun");
        archive.write_all(bytes).expect("written");
    }
    archive.finish().expect("finished").into_inner()
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, bytes).expect("written");
}

const WITH_BOTH: CaptionOptions =
    CaptionOptions { real_prompt_ratio: 0.5, class_dropout_prob: 0.0 };
const PROMPTS: CaptionOptions = CaptionOptions { real_prompt_ratio: 1.0, class_dropout_prob: 0.0 };

#[test]
fn files_are_found_under_each_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let paths = ["a.b.c.png", "x/y/one.png", "x/two.png", "own.1.png", "x/three.4.png"];
    let dataset = dataset(folder.path(), &paths, true);
    let features = Features::new(folder.path(), &dataset, 4, 3);
    let below = folder.path().join("img_sdxl_vae_features_64resolution_ms_new");
    let file = npy(&[8, 8, 8], 1.0);
    // Up to the first dot, as the tool writes it; with `_` for the last separator, which the official trainer
    // reads; the picture's own name.
    for name in ["a.npy", "x/y_one.npy", "two.npy", "own.1.npy"] {
        write(&below.join(name), &file);
    }
    for item in 0..4 {
        assert_eq!(features.check(&dataset, item, true, None), Ok(()), "{item}");
        let moments = features.moments(&dataset, item).expect("moments");
        assert_eq!((moments.dim(), moments[[0, 0, 1]]), ((8, 8, 8), 2.0));
        let deviation = (moments[[4, 0, 0]] / 2.0).exp();
        assert!((deviation - 257.0).abs() < 1e-3, "{deviation}");
    }
    let tried = ["x_three.4.npy", "three.4.npy", "three.npy"].map(|name| below.join(name));
    let missing = FeatureError::Missing { tried: tried.to_vec() };
    assert_eq!(features.check(&dataset, 4, true, None), Err(missing.clone()));
    assert_eq!(features.moments(&dataset, 4), Err(missing));
    // Captions have all of the name.
    let captions = folder.path().join("caption_features_new");
    write(&captions.join("a.npz"), b"of another picture");
    let tried = vec![captions.join("a.b.c.npz")];
    let captions = Some((PROMPTS, 20));
    let missing = FeatureError::Missing { tried };
    assert_eq!(features.check(&dataset, 0, false, captions), Err(missing));
    // Without buckets they are in another folder, and no name has that of the picture's.
    let dataset = self::dataset(folder.path(), &paths, false);
    let features = Features::new(folder.path(), &dataset, 4, 3);
    let below = folder.path().join("img_sdxl_vae_features_64resolution_new");
    write(&below.join("x_two.npy"), &file);
    let tried = vec![below.join("two.npy")];
    assert_eq!(features.moments(&dataset, 2), Err(FeatureError::Missing { tried }));
}

#[test]
fn a_file_that_may_be_of_several_pictures_is_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let paths = ["a/1.png", "b/1.png", "v.1.png", "v.2.png", "c/3.png", "c_3.png", "v.1.png"];
    let dataset = dataset(folder.path(), &paths, true);
    let features = Features::new(folder.path(), &dataset, 4, 3);
    let below = folder.path().join("img_sdxl_vae_features_64resolution_ms_new");
    let written = ["1.npy", "b_1.npy", "v.npy", "v.2.npy", "c_3.npy"];
    for name in written {
        write(&below.join(name), &npy(&[8, 8, 8], 1.0));
    }
    // The tool writes one file for the two of a name, and one for two versions.
    for (item, name) in [(0, "1.npy"), (2, "v.npy"), (4, "c_3.npy"), (5, "c_3.npy")] {
        let error = FeatureError::Ambiguous { path: below.join(name), count: 2 };
        assert_eq!(features.moments(&dataset, item), Err(error), "{}", paths[item]);
    }
    assert!(features.moments(&dataset, 1).is_ok() && features.moments(&dataset, 3).is_ok());
}

#[test]
fn a_picture_that_is_listed_twice_is_one_but_its_captions_may_be_two() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut labels = Labels::default();
    for (k, prompt) in ["one", "another"].into_iter().enumerate() {
        RgbImage::new(64, 64).save(folder.path().join("1.png")).expect("written");
        let captions = Captions::new(Some(prompt.into()), Some("long".into()));
        let place = Place { entry: k + 1, line: None };
        labels.records.push(Record { place, path: "1.png".into(), captions, declared: None });
    }
    let options = DataOptions::new(Sizing { sample_size: 8, multi_scale: true });
    let dataset = Dataset::open(labels, folder.path(), &options, &mut |_, _| {});
    let features = Features::new(folder.path(), &dataset, 4, 3);
    let at = |path: &str| folder.path().join(path);
    write(&at("img_sdxl_vae_features_64resolution_ms_new/1.npy"), &npy(&[8, 8, 8], 1.0));
    let [short, long] =
        ["caption", "sharegpt4v_caption"].map(|kind| at(&format!("{kind}_features_new/1.npz")));
    for path in [&short, &long] {
        write(path, &npz(&[("caption_feature", npy(&[1, 5, 3], 0.0))]));
    }
    for item in 0..2 {
        assert_eq!(features.check(&dataset, item, true, None), Ok(()));
        assert!(features.caption(&dataset, item, CaptionKind::Sharegpt4v, 20).is_ok());
        let error = features.caption(&dataset, item, CaptionKind::Prompt, 20);
        let expected = FeatureError::SeveralCaptions { path: short.clone(), count: 2 };
        assert_eq!(error, Err(expected));
    }
}

#[test]
fn captions_have_the_tokens_of_their_mask() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path(), &["1.png"], true);
    let features = Features::new(folder.path(), &dataset, 4, 3);
    let prompt = folder.path().join("caption_features_new/1.npz");
    let long = folder.path().join("sharegpt4v_caption_features_new/1.npz");
    let members =
        [("caption_feature", npy(&[1, 5, 3], 0.0)), ("attention_mask", mask(&[1, 1, 0, 0, 0]))];
    write(&prompt, &npz(&members));
    let check = |options| features.check(&dataset, 0, false, Some((options, 20)));
    assert_eq!(check(PROMPTS), Ok(()));
    assert_eq!(check(WITH_BOTH), Err(FeatureError::Missing { tried: vec![long.clone()] }));
    write(&long, &npz(&members[..1]));
    assert_eq!(check(WITH_BOTH), Ok(()));
    let caption = |kind| features.caption(&dataset, 0, kind, 20).expect("a caption");
    let short = caption(CaptionKind::Prompt);
    let expected = ndarray::arr2(&[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
    assert_eq!(short, CaptionStates { states: expected, tokens: 2 });
    // Without a mask, all places count.
    assert_eq!(caption(CaptionKind::Sharegpt4v).tokens, 5);
}

#[test]
fn what_is_not_as_it_should_be_is_told_with_its_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path(), &["1.png"], true);
    let features = Features::new(folder.path(), &dataset, 4, 3);
    let moments = folder.path().join("img_sdxl_vae_features_64resolution_ms_new/1.npy");
    let negative = npy(&[8, 8, 8], -300.0);
    let mut infinite = npy(&[8, 8, 8], 1.0);
    let end = infinite.len() - 4;
    infinite[end..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    for (bytes, said) in [
        (npy(&[8, 4, 4], 0.0), "found F32 of [8, 4, 4], expected F16 or F32 of [8, 8, 8]"),
        (npy(&[1, 8, 8, 8], 0.0), "found F32 of [1, 8, 8, 8]"),
        (npy(&[16, 8, 8], 0.0), "found F32 of [16, 8, 8]"),
        (b"no array".to_vec(), "it is no array of numpy"),
        (Vec::new(), "it ends too early"),
        (npy(&[8, 8, 8], 1.0)[..700].to_vec(), "it ends too early"),
        (negative, "a standard deviation is negative"),
        (infinite, "a number is not finite"),
    ] {
        write(&moments, &bytes);
        let error = features.moments(&dataset, 0).expect_err(said).to_string();
        assert!(error.contains(said) && error.contains("1.npy: "), "no `{said}` in: {error}");
    }
    let caption = folder.path().join("caption_features_new/1.npz");
    let states = |shape: &[usize]| ("caption_feature", npy(shape, 0.0));
    let masked = |values: &[i16]| npz(&[states(&[1, 5, 3]), ("attention_mask", mask(values))]);
    let mut damaged = npz(&[states(&[1, 5, 3])]);
    // The last number, behind the archive's own header with the name; its checksum stays.
    let end = 30 + "caption_feature.npy".len() + npy(&[1, 5, 3], 0.0).len();
    damaged[end - 1] ^= 1;
    for (bytes, said) in [
        (
            npz(&[states(&[1, 5, 4])]),
            "caption_feature: found F32 of [1, 5, 4], expected F16 or F32",
        ),
        (npz(&[states(&[1, 21, 3])]), "at most 20 tokens (t5_max_length), 3]"),
        (npz(&[states(&[2, 5, 3])]), "found F32 of [2, 5, 3]"),
        (npz(&[("other", npy(&[1], 0.0))]), "caption_feature: "),
        (b"no archive".to_vec(), "it is no archive of arrays of numpy"),
        (masked(&[1, 1]), "attention_mask: found I16 of [1, 2], expected [1, 5]"),
        (masked(&[0, 1, 1, 1, 1]), "expected 1 at the first places"),
        (masked(&[0; 5]), "expected 1 at the first places"),
        (damaged, "checksum"),
    ] {
        write(&caption, &bytes);
        let read = features.caption(&dataset, 0, CaptionKind::Prompt, 20);
        let error = read.expect_err(said).to_string();
        assert!(
            error.to_lowercase().contains(said) || error.contains(said),
            "no `{said}` in: {error}"
        );
        assert!(error.contains("1.npz: "), "{error}");
    }
}

#[test]
fn pictures_without_features_are_left_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let dataset = dataset(folder.path(), &["1.png", "2.png", "3.png"], true);
    let features = Features::new(folder.path(), &dataset, 4, 3);
    let below = folder.path().join("img_sdxl_vae_features_64resolution_ms_new");
    write(&below.join("1.npy"), &npy(&[8, 8, 8], 1.0));
    write(&below.join("3.npy"), &npy(&[8, 8, 8], 1.0));
    let check = |dataset: &Dataset, item| Ok(features.check(dataset, item, true, None)?);
    let mut told = Vec::new();
    let dataset = dataset.keep(2, check, &mut |done, of| told.push((done, of)));
    assert_eq!(told, [(1, 3), (2, 3), (3, 3)]);
    let paths: Vec<_> = dataset.items().iter().map(|item| item.path.as_path()).collect();
    assert_eq!(paths, ["1.png", "3.png"].map(Path::new));
    assert_eq!(dataset.buckets()[0].items, [0, 1]);
    let [left_out] = dataset.left_out() else { panic!("one picture: {:?}", dataset.left_out()) };
    assert!(matches!(&left_out.reason, Reason::Features(FeatureError::Missing { .. })));
    assert_eq!((left_out.place.entry, left_out.reason.kind()), (2, "without features"));
    assert!(!left_out.reason.is_filter());
    // Where nothing is left, no bucket is.
    let dataset = dataset.keep(1, |_, _| Err(Reason::NoCaption), &mut |_, _| {});
    assert!(dataset.items().is_empty() && dataset.buckets().is_empty());
}

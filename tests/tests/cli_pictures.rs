//! Picture files through the binary: formats, names, what pictures say about themselves, and drawing them again.

use image::{Rgb, RgbImage};
use pixart_tests::binary::{Run, Sandbox, copy_folder};
use pixart_tests::fixtures;
use serde_json::{Value, json};
use std::fs;

const FAILED: i32 = 1;
const WRONG_REQUEST: i32 = 2;

/// A sandbox with the tiny pipeline in `model` and a config for a short run.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::with_tiny_model();
    let config = "model: model\nsampling_steps: 2\nengine: tract\n";
    fs::write(sandbox.path().join("short.yaml"), config).unwrap();
    sandbox
}

fn works(sandbox: &Sandbox, arguments: &[&str]) -> Run {
    let run = sandbox.pixart(arguments);
    assert_eq!(run.code, 0, "{run:?}");
    run
}

/// The paths that a short run prints.
fn sample(sandbox: &Sandbox, more: &[&str]) -> Vec<String> {
    let run = works(sandbox, &[&["sample", "-c", "short.yaml"][..], more].concat());
    run.stdout.lines().map(str::to_owned).collect()
}

/// The path that drawing `picture` again prints, and what is reported.
fn again(sandbox: &Sandbox, picture: &str, more: &[&str]) -> (String, String) {
    let common = ["sample", "--from", picture, "--output_path", "again"];
    let run = works(sandbox, &[&common[..], more].concat());
    (run.stdout.trim().to_owned(), run.stderr)
}

fn refuses(sandbox: &Sandbox, arguments: &[&str], code: i32, said: &[&str]) {
    let before = sandbox.files();
    let run = sandbox.pixart(arguments);
    assert_eq!(run.code, code, "{run:?}");
    assert_eq!(run.stdout, "", "{run:?}");
    for text in said {
        assert!(run.stderr.contains(text), "no `{text}` in: {}", run.stderr);
    }
    assert_eq!(run.stderr.matches("error: ").count(), 1, "{run:?}");
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    assert_eq!(sandbox.files(), before, "files were left behind");
}

fn inspect(sandbox: &Sandbox, picture: &str) -> Value {
    let run = works(sandbox, &["inspect", "--json", picture]);
    serde_json::from_str(&run.stdout).expect("one JSON object")
}

fn text<'a>(found: &'a Value, key: &str) -> Option<&'a str> {
    let texts = found["texts"].as_array().expect("a list");
    texts.iter().find(|text| text["key"] == key).map(|text| text["text"].as_str().unwrap())
}

/// What a program that follows the rules of the web UIs reads: prompt, negative prompt, pairs.
///
/// The last line holds the pairs if it has three or more; a value is a JSON string or ends at a comma.
fn web_ui(parameters: &str) -> (String, String, Vec<(String, String)>) {
    let mut lines: Vec<&str> = parameters.trim().split('\n').collect();
    let mut found = pairs(lines.last().unwrap());
    if found.len() < 3 {
        found.clear();
    } else {
        lines.pop();
    }
    let (mut prompt, mut negative, mut in_negative) = (Vec::new(), Vec::new(), false);
    for line in lines {
        let mut line = line.trim();
        if let Some(rest) = line.strip_prefix("Negative prompt:") {
            (line, in_negative) = (rest.trim(), true);
        }
        if in_negative { negative.push(line) } else { prompt.push(line) }
    }
    (prompt.join("\n"), negative.join("\n"), found)
}

fn pairs(line: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some((key, value)) = rest.split_once(':') {
        let value = value.trim_start();
        let mut strings = serde_json::Deserializer::from_str(value).into_iter::<String>();
        let (value, end) = match strings.next() {
            Some(Ok(text)) if value.starts_with('"') => (text, strings.byte_offset()),
            _ => {
                let end = value.find(',').unwrap_or(value.len());
                (value[..end].to_owned(), end)
            }
        };
        let after = rest.split_once(':').unwrap().1.trim_start();
        rest = after[end..].trim_start_matches(',');
        found.push((key.trim().to_owned(), value));
    }
    found
}

#[test]
fn every_format_says_how_it_was_made() {
    let sandbox = sandbox();
    let prompt = "ein Füchs 🦊: rot, \"groß\"\nSecond line";
    let common = ["--prompt", prompt, "--negative_prompt", "text, blur", "--seed", "7"];
    for (format, extension) in [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")] {
        let printed = sample(&sandbox, &[&common[..], &["--output_format", format]].concat());
        let [path] = printed.as_slice() else { panic!("{printed:?}") };
        assert!(path.ends_with(extension), "{path}");
        let found = inspect(&sandbox, path);
        let (width, height) = sandbox.pixels(path).dimensions();
        assert_eq!(found["format"], format);
        assert_eq!([&found["width"], &found["height"]], [&json!(width), &json!(height)]);

        let key = if format == "png" { "parameters" } else { "UserComment" };
        let (positive, negative, pairs) = web_ui(text(&found, key).unwrap());
        assert_eq!((positive.as_str(), negative.as_str()), (prompt, "text, blur"));
        let pair = |key: &str| {
            let pair = pairs.iter().find(|(name, _)| name == key);
            pair.unwrap_or_else(|| panic!("no {key} in {pairs:?}")).1.clone()
        };
        let size = format!("{width}x{height}");
        for (key, expected) in [
            ("Steps", "2"),
            ("Sampler", "DPM++ 2M"),
            ("CFG scale", "4.5"),
            ("Seed", "7"),
            ("Size", &size),
            ("Model", "model"),
            ("RNG", "CPU"),
        ] {
            assert_eq!(pair(key), expected, "{key}");
        }
        assert!(pair("Version").starts_with("pixart "));

        let record = &found["pixart"];
        let transformer = &record["facts"]["model"]["transformer"];
        let hash = transformer["source_sha256"].as_str().unwrap();
        assert_eq!(pair("Model hash"), hash[..10]);
        assert_eq!(record["settings"]["prompt"], json!([prompt]));
        assert_eq!(record["settings"]["seed"], 7);
        assert_eq!(record["settings"]["model"], "model");
        assert_eq!(record["facts"]["engine"]["name"], "tract");
        assert_eq!(record["facts"]["size"], json!([width, height]));

        // The same for people.
        let shown = works(&sandbox, &["inspect", path]).stdout;
        for expected in ["--seed", "ein Füchs 🦊", "tract", "Negative prompt: text, blur", hash]
        {
            assert!(shown.contains(expected), "no {expected} in {shown}");
        }
    }
    // Lossless is lossless, and JPEG is near it.
    let png = sandbox.pixels("samples/0.png");
    assert_eq!(sandbox.pixels("samples/2.webp"), png);
    let jpeg = sandbox.pixels("samples/1.jpg");
    let difference = |a: &image::RgbImage| {
        let squares = a.iter().zip(png.iter()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
        squares.sum::<f64>() / png.len() as f64
    };
    let error = difference(&jpeg);
    assert!(error > 0.0 && error < 100.0, "{error}");
    let rough =
        sample(&sandbox, &[&common[..], &["--output_name", "a.jpg", "--quality", "5"]].concat());
    assert!(difference(&sandbox.pixels(&rough[0])) > error);
    let size = |name: &str| fs::metadata(sandbox.path().join(name)).unwrap().len();
    assert!(size(&rough[0]) < size("samples/1.jpg"));
}

#[test]
fn texts_can_be_left_out_and_grids_have_none() {
    let sandbox = sandbox();
    let common = ["--prompt", "a", "b", "--batch_size", "2", "--imagegrid"];
    for format in ["png", "jpeg", "webp"] {
        let more = ["--output_path", format, "--output_format", format];
        let printed = sample(&sandbox, &[&common[..], &more].concat());
        let [first, _, grid] = printed.as_slice() else { panic!("{printed:?}") };
        assert!(inspect(&sandbox, first)["pixart"].is_object());
        assert_eq!(inspect(&sandbox, grid)["texts"], json!([]));
        assert!(works(&sandbox, &["inspect", grid]).stdout.contains("none"), "{grid}");
        let more = [&more[..], &["--no_metadata"]].concat();
        for picture in sample(&sandbox, &[&common[..], &more].concat()) {
            let found = inspect(&sandbox, &picture);
            assert_eq!((&found["texts"], &found["pixart"]), (&json!([]), &Value::Null));
            let bytes = fs::read(sandbox.path().join(&picture)).unwrap();
            for word in ["pixart", "parameters", "Exif"] {
                assert!(!bytes.windows(word.len()).any(|part| part == word.as_bytes()), "{word}");
            }
        }
    }
}

#[test]
fn names_come_from_a_template_and_never_replace_a_file() {
    let sandbox = sandbox();
    let prompts = ["--prompt", "a fox: ../x", "CON", "--seed", "7"];
    let run = |more: &[&str]| sample(&sandbox, &[&prompts[..], more].concat());
    assert_eq!(run(&[]), ["samples/0.png", "samples/1.png"]);
    assert_eq!(run(&["--output_format", "webp"]), ["samples/2.webp", "samples/3.webp"]);
    let template = ["--output_name", "{prompt}-{seed}-{width}x{height}"];
    let sizes = ["--image_width", "48", "--image_height", "32"];
    let expected = ["samples/a_fox_x-7-48x32.png", "samples/CON-8-48x32.png"];
    assert_eq!(run(&[&template[..], &sizes].concat()), expected);
    assert_eq!(run(&["--output_name", "{prompt}"]), ["samples/a_fox_x.png", "samples/_CON.png"]);
    // An explicit name, taken and taken again.
    assert_eq!(run(&["--output_name", "cat.jpg"]), ["samples/cat.jpg", "samples/cat-1.jpg"]);
    let before = fs::read(sandbox.path().join("samples/cat.jpg")).unwrap();
    assert_eq!(run(&["--output_name", "cat.jpg"]), ["samples/cat-2.jpg", "samples/cat-3.jpg"]);
    assert_eq!(fs::read(sandbox.path().join("samples/cat.jpg")).unwrap(), before);
    // A folder in the name, and numbers that go on.
    let numbered = ["--output_name", "out/cat-{number:3}.png"];
    assert_eq!(run(&numbered), ["out/cat-000.png", "out/cat-001.png"]);
    assert_eq!(run(&numbered), ["out/cat-002.png", "out/cat-003.png"]);
    // Counted by the list where a name cannot tell.
    let other = ["--output_name", "out/{prompt}-{number}.png"];
    assert_eq!(run(&other), ["out/a_fox_x-4.png", "out/CON-5.png"]);

    let listing = fs::read(sandbox.path().join("out/prompts.json")).unwrap();
    let listing: Value = serde_json::from_slice(&listing).unwrap();
    let entries = listing.as_array().unwrap();
    assert_eq!(entries.len(), 6);
    assert_eq!(entries[5]["file"], "CON-5.png");
    assert_eq!(entries[5]["id"], 5);
    // Numbered pictures are listed as upstream does, and go on after the others.
    assert_eq!(sample(&sandbox, &["--prompt", "a", "--output_path", "out"]), ["out/6.png"]);
    assert!(sandbox.files().iter().all(|file| !file.to_string_lossy().contains(".pixart-")));
}

#[test]
fn wrong_names_and_formats_are_refused_before_any_work() {
    let sandbox = sandbox();
    for (more, said) in [
        (
            &["--output_name", "{sed}"][..],
            &["output_name", "`{sed}`", "{number}, {seed}, {prompt}"][..],
        ),
        (&["--output_name", "{seed}/x"], &["output_name", "brace"]),
        (&["--output_name", "cat.gif"], &["output_name", ".gif", ".png, .jpg or .webp"]),
        (&["--output_name", "a:b"], &["output_name", "`:`"]),
        (&["--output_name", ".."], &["output_name", "no name"]),
        (&["--output_name", "x/a", "--output_path", "y"], &["output_name", "output_path"]),
        (&["--output_name", "a.png", "--output_format", "webp"], &["output_format", ".png"]),
        (&["--output_format", "gif"], &["output_format", "`gif`", "png, jpeg or webp"]),
        (&["--jpeg_quality", "0", "--output_format", "jpeg"], &["jpeg_quality", "1 to 100"]),
        (&["--quality", "90"], &["jpeg_quality", "png"]),
    ] {
        let arguments = ["sample", "-c", "short.yaml", "--prompt", "a"];
        let arguments = [&arguments[..], more].concat();
        refuses(&sandbox, &arguments, WRONG_REQUEST, said);
        assert!(!sandbox.path().join("samples").exists(), "{more:?}");
    }
}

#[test]
fn a_picture_is_drawn_again_bit_for_bit() {
    let sandbox = sandbox();
    fs::write(
        sandbox.path().join("prompts.txt"),
        "a red circle --ar 9:16\na <b>blue</b> square --hw 40:72\n\n  ~/a star  \n",
    )
    .unwrap();
    let from = RgbImage::from_fn(70, 50, |x, y| Rgb([3 * x as u8, 5 * y as u8, 9]));
    from.save(sandbox.path().join("from.png")).unwrap();
    let mask = RgbImage::from_fn(70, 50, |x, _| Rgb([255 * u8::from(x > 40); 3]));
    mask.save(sandbox.path().join("mask.png")).unwrap();
    for (k, more) in [
        &["--prompt", "a red circle"][..],
        &["--prompt", "a red circle", "a star", "--num_trials", "2", "--seed", "5"],
        &["--prompt", "a --hw", "--prompt_directives", "false"],
        &["--prompt_path", "prompts.txt", "--negative_prompt", "1", "2", "", "~/4"],
        &["--prompt_path", "prompts.txt", "--reference", "diffusers", "--style", "Anime"],
        &["--prompt", "A <b>Cat</b>", "--clean_caption", "--aspect_ratio", "2:1", "-W", "50"],
        &["--prompt", "a", "b", "--sampling_method", "sa-solver", "--guidance_last_step", "1"],
        &["--prompt", "a", "b", "--seed", "18446744073709551615", "--guidance_rescale", "0.7"],
        &["--prompt", "a", "--sampling_method", "lcm", "--t5_max_length", "9", "--seed", "-1"],
        &["--prompt", "a", "--use_resolution_binning", "false", "-W", "48", "-H", "64"],
        &["--prompt", "a", "b", "--variation_seed", "9", "--variation_strength", "0.3"],
        &["--prompt", "a", "b", "--interpolate_to", "9", "--interpolate_steps", "3"],
        &["--prompt", "a", "--interpolate_to", "9", "--interpolate_steps", "12"],
        &["--prompt", "a", "--init_image", "from.png", "--strength", "0.5", "--num_trials", "2"],
        &["--prompt", "a", "--init_image", "from.png", "--mask", "mask.png", "--mask_blur", "3"],
    ]
    .into_iter()
    .enumerate()
    {
        let folder = format!("run-{k}");
        for picture in sample(&sandbox, &[more, &["--output_path", &folder]].concat()) {
            let (copy, said) = again(&sandbox, &picture, &[]);
            assert!(sandbox.pixels(&copy) == sandbox.pixels(&picture), "{more:?}: {picture}");
            assert!(!said.contains("warning"), "{said}");
            // The copy says the same about itself.
            let [first, second] = [&picture, &copy].map(|name| inspect(&sandbox, name));
            assert_eq!(first["pixart"], second["pixart"], "{more:?}");
            let encoder = &first["pixart"]["facts"]["model"]["vae_encoder"];
            assert_eq!(encoder.is_object(), more.contains(&"--init_image"), "{more:?}");
        }
    }
}

#[test]
fn pictures_in_lossy_and_other_formats_and_with_loras_are_drawn_again() {
    let sandbox = sandbox();
    copy_folder(&fixtures::root().join("lora"), &sandbox.path().join("lora"));
    let size = ["--use_resolution_binning", "false", "-W", "64", "-H", "64", "--prompt", "für"];
    let lora = ["--lora", "lora/kohya.safetensors:0.5", "lora/peft"];
    let plain = sample(&sandbox, &size);
    let changed = sample(&sandbox, &[&size[..], &lora].concat());
    let pixels = sandbox.pixels(&changed[0]);
    assert_ne!(sandbox.pixels(&plain[0]), pixels);
    let facts = inspect(&sandbox, &changed[0])["pixart"]["facts"]["loras"].clone();
    assert_eq!([&facts[0]["name"], &facts[0]["strength"]], [&json!("kohya"), &json!(0.5)]);
    assert_eq!(facts[0]["sha256"].as_str().unwrap().len(), 64);
    for name in ["a.jpg", "a.webp"] {
        let [path] = &sample(&sandbox, &[&size[..], &lora, &["--output_name", name]].concat())[..]
        else {
            panic!("one picture")
        };
        let (copy, said) = again(&sandbox, path, &[]);
        assert!(copy.ends_with(".png") && !said.contains("warning"), "{copy}: {said}");
        assert_eq!(sandbox.pixels(&copy), pixels, "{name}");
    }
    // Other LoRAs are a wish, but a changed file is a surprise.
    let (copy, said) = again(&sandbox, &changed[0], &["--lora", "lora/kohya.safetensors:0"]);
    assert!(sandbox.pixels(&copy) == sandbox.pixels(&plain[0]) && !said.contains("warning"));
    let at = |name: &str| sandbox.path().join("lora").join(name);
    fs::copy(at("diffusers.safetensors"), at("kohya.safetensors")).unwrap();
    let (_, said) = again(&sandbox, &changed[0], &[]);
    assert!(said.contains("was made with another LoRA"), "{said}");
}

#[test]
fn flags_win_over_the_picture() {
    let sandbox = sandbox();
    let first = ["--prompt", "a --ar 9:16", "--seed", "7", "--style", "Anime"];
    sample(&sandbox, &first);
    let settings = |path: &str| inspect(&sandbox, path)["pixart"]["settings"].clone();
    let from = |more: &[&str]| settings(&again(&sandbox, "samples/0.png", more).0);
    let original = settings("samples/0.png");
    assert_eq!(original["aspect_ratio"], "9:16");
    assert_eq!(original["style"], Value::Null);

    let changed = from(&["--seed", "8", "--sampling_steps", "3"]);
    let mut expected = original.clone();
    expected["seed"] = json!(8);
    expected["sampling_steps"] = json!(3);
    assert_eq!(changed, expected);
    // A size replaces the ratio, a new prompt is read for directives.
    let changed = from(&["--image_width", "64", "--image_height", "48"]);
    assert_eq!(changed["aspect_ratio"], Value::Null);
    assert_eq!([&changed["image_width"], &changed["image_height"]], [&json!(64), &json!(48)]);
    let changed = from(&["--prompt", "b --hw 32:48"]);
    assert_eq!([&changed["prompt"], &changed["image_width"]], [&json!(["b"]), &json!(48)]);
    // Another solver has steps of its own, another reference its own cleaning.
    let changed = from(&["--sampling_method", "lcm", "--reference", "diffusers"]);
    assert_eq!(changed["sampling_steps"], 4);
    assert_eq!(changed["guidance_scale"], 1.0);
    assert_eq!([&changed["prompt_cleaning"], &changed["uncond_mask"]], ["diffusers", "own"]);
}

#[test]
fn flags_set_aside_what_belonged_to_what_they_replace() {
    let sandbox = sandbox();
    for (name, side) in [("a.png", 64), ("b.png", 48)] {
        let picture = RgbImage::from_fn(side, side, |x, y| Rgb([x as u8, 4 * y as u8, 9]));
        picture.save(sandbox.path().join(name)).unwrap();
    }
    let init = ["--prompt", "a", "--sampling_steps", "3", "--guidance_last_step", "2"];
    sample(&sandbox, &[&init[..], &["--init_image", "a.png"]].concat());
    let settings = |path: &str| inspect(&sandbox, path)["pixart"]["settings"].clone();
    let from = |name: &str, more: &[&str]| settings(&again(&sandbox, name, more).0);
    // A mask given later does not change the strength, whose default depends on it.
    assert_eq!(settings("samples/0.png")["strength"], 0.8);
    let masked = from("samples/0.png", &["--mask", "a.png"]);
    assert_eq!([&masked["strength"], &masked["mask"]], [&json!(0.8), &json!("a.png")]);
    assert_eq!([&masked["mask_blur"], &masked["paste_back"]], [&json!(0.0), &json!(true)]);
    // A mask belongs to its picture, the last guided step to the number of steps.
    let changed = from("again/0.png", &["--init_image", "b.png"]);
    assert_eq!([&changed["mask"], &changed["paste_back"]], [&Value::Null, &Value::Null]);
    let changed = from("samples/0.png", &["--sampling_steps", "2"]);
    assert_eq!(changed["guidance_last_step"], Value::Null);
    // The overlap follows the size of the tiles.
    let tiles = ["--vae_tiling", "blend", "--vae_tile_size", "256", "--vae_tile_overlap", "128"];
    sample(&sandbox, &[&["--prompt", "a"][..], &tiles].concat());
    let changed = from("samples/1.png", &["--vae_tile_size", "128"]);
    assert_eq!(changed["vae_tile_overlap"], 32);
}

#[test]
fn another_model_or_engine_is_told_of() {
    let sandbox = sandbox();
    sample(&sandbox, &["--prompt", "a"]);
    let (_, said) = again(&sandbox, "samples/0.png", &["--engine", "ort"]);
    let warnings: Vec<_> = said.lines().filter(|line| line.contains("warning")).collect();
    let [warning] = warnings.as_slice() else { panic!("{said}") };
    for text in ["samples/0.png was made with tract", "this is ONNX Runtime", "small differences"] {
        assert!(warning.contains(text), "{warning}");
    }
    // Other weights of the same shape.
    let weights = sandbox.path().join("model/vae/diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 2;
    bytes[last] ^= 0x40;
    fs::write(&weights, bytes).unwrap();
    let (_, said) = again(&sandbox, "samples/0.png", &[]);
    let warnings: Vec<_> = said.lines().filter(|line| line.contains("warning")).collect();
    let [warning] = warnings.as_slice() else { panic!("{said}") };
    assert!(warning.contains("was made with another vae decoder"), "{warning}");
}

#[cfg(unix)]
#[test]
fn a_home_folder_is_not_told() {
    let sandbox = sandbox();
    let home = sandbox.path().join("anna");
    copy_folder(&fixtures::tiny(), &home.join("models/x"));
    let sandbox = sandbox.with("HOME", &home);
    let model = home.join("models/x");
    let common = ["--prompt", "a", "--model", model.to_str().unwrap()];
    sample(&sandbox, &common);
    let found = inspect(&sandbox, "samples/0.png");
    assert_eq!(found["pixart"]["settings"]["model"], "~/models/x");
    assert!(!found.to_string().contains("anna"), "{found}");
    let (copy, _) = again(&sandbox, "samples/0.png", &[]);
    assert_eq!(sandbox.pixels(&copy), sandbox.pixels("samples/0.png"));
}

/// A PNG of one pixel with these texts, written by another program.
fn foreign(sandbox: &Sandbox, name: &str, texts: &[(&str, &str)]) {
    let mut bytes = Vec::new();
    image::RgbImage::new(1, 1)
        .write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png)
        .unwrap();
    let chunks: Vec<u8> = texts
        .iter()
        .flat_map(|(key, text)| chunk(b"tEXt", &[key.as_bytes(), b"\0", text.as_bytes()].concat()))
        .collect();
    // After the signature and the header.
    bytes.splice(33..33, chunks);
    fs::write(sandbox.path().join(name), bytes).unwrap();
}

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut sum = u32::MAX;
    for byte in kind.iter().chain(data) {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = sum >> 1 ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    [&(data.len() as u32).to_be_bytes()[..], kind, data, &(!sum).to_be_bytes()].concat()
}

#[test]
fn pictures_of_other_programs_are_shown_and_not_guessed_at() {
    let sandbox = sandbox();
    let parameters = "a cat\nSteps: 20, Sampler: Euler, Seed: 1";
    foreign(&sandbox, "a1111.png", &[("parameters", parameters)]);
    foreign(&sandbox, "comfy.png", &[("prompt", "{\"3\": {}}"), ("workflow", "{\"nodes\": []}")]);
    foreign(&sandbox, "plain.png", &[]);
    foreign(&sandbox, "evil.png", &[("comment", "a\u{1b}]0;title\u{7}b")]);
    let shown = |name: &str| works(&sandbox, &["inspect", name]).stdout;
    assert!(shown("a1111.png").contains("Steps: 20, Sampler: Euler, Seed: 1"));
    let comfy = shown("comfy.png");
    assert!(comfy.contains("prompt ") && comfy.contains("{\"nodes\": []}"), "{comfy}");
    assert!(shown("plain.png").contains("none: it does not say how it was made"));
    assert!(!shown("evil.png").contains('\u{1b}') && shown("evil.png").contains("\\u{1b}]0;title"));

    let from = |name| ["sample", "--from", name];
    let other = ["a1111.png", "another program", "pixart inspect"];
    refuses(&sandbox, &from("a1111.png"), WRONG_REQUEST, &other);
    refuses(&sandbox, &from("comfy.png"), WRONG_REQUEST, &["comfy.png has no settings"]);
    refuses(&sandbox, &from("plain.png"), WRONG_REQUEST, &["plain.png has no settings"]);
}

#[test]
fn what_is_no_sound_picture_is_one_clear_error() {
    let sandbox = sandbox();
    let write = |name: &str, bytes: &[u8]| fs::write(sandbox.path().join(name), bytes).unwrap();
    sample(&sandbox, &["--prompt", "a"]);
    let whole = fs::read(sandbox.path().join("samples/0.png")).unwrap();
    write("half.png", &whole[..whole.len() / 2]);
    write("text.png", b"this is a text");
    write("empty.jpg", b"");
    let mut long = whole[..33].to_vec();
    long.extend(100_000_000u32.to_be_bytes());
    long.extend(b"tEXtparameters\0");
    write("long.png", &long);
    for (name, said) in [
        ("half.png", "incomplete"),
        ("text.png", "begins with \"this is a te\", expected a picture"),
        ("empty.jpg", "an empty file"),
        ("long.png", "more than 16777216 bytes"),
    ] {
        refuses(&sandbox, &["inspect", name], FAILED, &[name, said]);
        refuses(&sandbox, &["sample", "--from", name], WRONG_REQUEST, &["from: ", name, said]);
    }
    let missing = ["sample", "--from", "missing.png"];
    refuses(&sandbox, &missing, WRONG_REQUEST, &["from: missing.png: cannot read"]);
    let both = ["sample", "--from", "samples/0.png", "-c", "short.yaml"];
    refuses(&sandbox, &both, WRONG_REQUEST, &["--from", "--config"]);
}

#[test]
fn settings_of_a_stranger_are_checked_and_say_nothing_about_files() {
    let sandbox = sandbox();
    let record = |settings: Value| {
        json!({ "format": 1, "tool": "pixart 9.9.9", "settings": settings, "facts": {} })
            .to_string()
    };
    for (record, said) in [
        ("no json".to_owned(), "no JSON"),
        ("{}".to_owned(), "an unknown program wrote its settings in the format null"),
        (json!({ "format": 2, "tool": "pixart 9.9.9" }).to_string(), "pixart 9.9.9 wrote"),
        (json!({ "format": 1 }).to_string(), "no `settings`"),
        (record(json!({ "seeed": 1 })), "pixart 9.9.9 made it with the setting `seeed`"),
        (record(json!({ "seed": "x" })), "its settings cannot be used"),
        (record(json!({ "prompt": [{}] })), "its settings cannot be used"),
    ] {
        foreign(&sandbox, "bad.png", &[("pixart", &record)]);
        let arguments = ["sample", "--from", "bad.png"];
        refuses(&sandbox, &arguments, WRONG_REQUEST, &["from: bad.png: ", said]);
    }
    let settings = json!({
        "prompt": ["a"], "model": "model", "sampling_steps": 2, "engine": "tract",
        "output_path": "elsewhere", "output_name": "x", "save_latents": "l.safetensors",
        "text_cache_dir": "cache", "prompt_path": "short.yaml", "num_trials": 9,
    });
    foreign(&sandbox, "evil.png", &[("pixart", &record(settings))]);
    let run = works(&sandbox, &["sample", "--from", "evil.png"]);
    assert_eq!(run.stdout, "samples/0.png\n");
    for name in ["elsewhere", "l.safetensors", "cache"] {
        assert!(!sandbox.path().join(name).exists(), "{name}");
    }
}

#[test]
fn a_prompt_too_long_for_a_jpeg_costs_its_texts_and_not_the_picture() {
    let sandbox = sandbox();
    let prompt = "x".repeat(40_000);
    let run = works(
        &sandbox,
        &["sample", "-c", "short.yaml", "--prompt", &prompt, "--output_name", "{prompt}.jpg"],
    );
    assert!(run.stderr.contains("warning: a JPEG has no room"), "{}", run.stderr);
    assert_eq!(inspect(&sandbox, run.stdout.trim())["texts"], json!([]));
    let printed = sample(&sandbox, &["--prompt", &prompt, "--output_format", "webp"]);
    assert_eq!(inspect(&sandbox, &printed[0])["pixart"]["settings"]["prompt"], json!([prompt]));
}

//! Pictures and settings for `pixart train`.

use std::fs;

use image::RgbImage;

use crate::binary::Sandbox;

/// A sandbox with the tiny pipeline in `model`, four pictures of 64 pixels in `images`, their labels, and a
/// config `short.yaml` for short runs on tract.
///
/// # Panics
/// When it cannot be made.
pub fn sandbox() -> Sandbox {
    let sandbox = Sandbox::with_tiny_model();
    let images = sandbox.path().join("images");
    fs::create_dir(&images).expect("written");
    let mut labels = String::from("[\n");
    for k in 0..4u32 {
        let picture = RgbImage::from_fn(64, 64, |x, y| {
            image::Rgb([(x * 4) as u8, (y * 3 + k * 20) as u8, ((x ^ y) * (k + 1)) as u8])
        });
        picture.save(images.join(format!("{k}.png"))).expect("written");
        // With commas at the ends, as the seed's own example has them.
        labels += &format!(
            "{{\"path\": \"{k}.png\", \"prompt\": \"picture {k}\", \"sharegpt4v\": \"long\",}},\n"
        );
    }
    fs::write(sandbox.path().join("labels.json"), labels + "]\n").expect("written");
    let config = "checkpoint: model/transformer\nvae_root: model/vae\ntext_encoder_root: model/text_encoder\n\
                  tokenizer_root: model/tokenizer\nimage_dir: images\njson_path: labels.json\nsample_size: 8\n\
                  change_sample_size: True\nbatch_size: 2\nepochs: 2\nstart_learning_rate: 1e-3\nwarmup_steps: 1\n\
                  dtype: fp32\nengine: tract\nthreads: 2\n";
    fs::write(sandbox.path().join("short.yaml"), config).expect("written");
    sandbox
}

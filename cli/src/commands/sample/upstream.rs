//! Settings that upstream's `sample.py` has and that mean something else here, or nothing.

use super::settings::Settings;
use crate::exit::Failure;
use crate::upstream::Upstream;

impl Settings {
    /// Refuses what would have to have an effect and has none; of what may be left aside, returns a
    /// line for each.
    pub fn upstream_notes(&self) -> Result<Vec<String>, Failure> {
        let upstream = Upstream {
            enable_flash_attention: self.enable_flash_attention,
            mode: self.mode,
            jit_level: self.jit_level.as_deref(),
        };
        upstream.notes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings;
    use super::*;
    use clap::{Args, FromArgMatches};

    /// The settings that a command line gives.
    fn typed(args: &str) -> Result<Settings, clap::Error> {
        let command = Settings::augment_args(clap::Command::new("sample").no_binary_name(true));
        let args = args.split_whitespace().map(std::ffi::OsString::from);
        let matches = command.try_get_matches_from(crate::spelling::normalise(args))?;
        Settings::from_arg_matches(&matches)
    }

    fn refused(result: Result<Vec<String>, Failure>) -> String {
        match result.expect_err("refused") {
            Failure::Request(error) => format!("{error:#}"),
            Failure::Failed(error) => panic!("not a request error: {error:#}"),
            Failure::Interrupted(line) => panic!("{line}"),
        }
    }

    /// Every flag of upstream's `sample.py` with a value it takes there. What is refused here is in the
    /// next test.
    const FLAGS: &str = "--output_path ./out --image_height 512 --image_width 256 --sample_size 64 \
        --use_resolution_binning True --checkpoint a.ckpt --vae_root models/vae \
        --tokenizer_root models/tokenizer --text_encoder_root models/text_encoder \
        --t5_max_length 300 --prompt cat dog --prompt_path list.txt --negative_prompt bad worse \
        --sd_scale_factor 0.13025 --sampling_method iddpm --sampling_steps 30 --guidance_scale 4.5 \
        --device_target CPU --mode 0 --jit_level O1 --seed 42 --enable_flash_attention True \
        --kv_compress False --kv_compress_sampling ave --kv_compress_scale_factor 2 \
        --kv_compress_layer 14 15 16 --dtype fp32 --imagegrid True --num_trials 2 --batch_size 3 \
        --use_parallel False";

    #[test]
    fn every_flag_of_upstream_is_read_in_both_spellings() {
        for flags in [FLAGS.to_owned(), FLAGS.replace('_', "-").replace("a.ckpt", "a_b.ckpt")] {
            let settings = typed(&flags).expect("read");
            assert_eq!(settings.prompt, ["cat", "dog"]);
            assert_eq!(settings.negative_prompt, ["bad", "worse"]);
            assert_eq!((settings.image_height, settings.image_width), (Some(512), Some(256)));
            assert_eq!((settings.sample_size, settings.sampling_steps), (Some(64), Some(30)));
            assert_eq!((settings.t5_max_length, settings.seed), (Some(300), Some(42)));
            assert_eq!((settings.num_trials, settings.batch_size), (Some(2), Some(3)));
            assert_eq!((settings.imagegrid, settings.kv_compress), (Some(true), Some(false)));
            assert_eq!(settings.kv_compress_layer, [14, 15, 16]);
            assert_eq!(settings.kv_compress_scale_factor, Some(2));
            assert_eq!(settings.kv_compress_sampling.as_deref(), Some("ave"));
            assert_eq!(settings.use_resolution_binning, Some(true));
            assert_eq!(settings.sampling_method.as_deref(), Some("iddpm"));
            assert_eq!(
                (settings.guidance_scale, settings.sd_scale_factor),
                (Some(4.5), Some(0.13025))
            );
            assert_eq!(settings.dtype.as_deref(), Some("fp32"));
            assert_eq!(settings.use_parallel, Some(false));
            for path in [
                &settings.checkpoint,
                &settings.vae_root,
                &settings.tokenizer_root,
                &settings.text_encoder_root,
                &settings.prompt_path,
                &settings.output_path,
            ] {
                assert!(path.is_some());
            }
            assert_eq!(settings.upstream_notes().expect("accepted").len(), 2, "mode, jit_level");
        }
        let old = typed("--nrows 2 --ncols 3").expect("older names");
        assert_eq!((old.num_trials, old.batch_size), (Some(2), Some(3)));
    }

    #[test]
    fn what_would_lose_its_meaning_is_refused() {
        for (flags, said) in [
            ("--mode 2", "mode: found 2, expected 0 or 1"),
            ("--jit_level O3", "jit_level: found `O3`"),
        ] {
            let message = refused(typed(flags).expect("read").upstream_notes());
            assert!(message.contains(said), "{message}");
        }
        let quiet = typed("--device_target cpu --enable_flash_attention True --use_parallel false");
        assert!(quiet.expect("read").upstream_notes().expect("accepted").is_empty());
        let off = typed("--enable_flash_attention False").expect("read").upstream_notes();
        assert!(off.expect("accepted")[0].contains("has no effect"));
    }

    /// Name of a config, latent side, and whether keys and values are compressed.
    const CONFIGS: [(&str, u32, bool); 6] = [
        ("pixart-sigma-256x256", 32, false),
        ("pixart-sigma-512-MS", 64, false),
        ("pixart-sigma-1024-MS", 128, false),
        ("pixart-sigma-2K-MS", 256, false),
        ("pixart-sigma-2K-MS-KV-Compress", 256, true),
        ("pixart-sigma-4K-MS-KV-Compress", 512, true),
    ];

    #[test]
    fn every_config_asks_for_what_upstreams_does() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/inference");
        for (name, sample_size, compressed) in CONFIGS {
            let path = folder.join(format!("{name}.yaml"));
            let settings =
                crate::config::merge(Some(&path), &Settings::default(), &settings::names());
            let settings = settings.unwrap_or_else(|_| panic!("{name} is not read"));
            assert!(settings.upstream_notes().expect("accepted").is_empty(), "{name}");
            let side = Some(8 * sample_size);
            assert_eq!((settings.image_height, settings.image_width), (side, side), "{name}");
            assert_eq!(settings.sample_size, Some(sample_size));
            assert_eq!(settings.sd_scale_factor, Some(0.13025));
            assert_eq!(settings.enable_flash_attention, Some(true));
            assert_eq!(settings.kv_compress, compressed.then_some(true));
            let checkpoint = settings.checkpoint.clone().expect("a checkpoint, perhaps empty");
            assert_eq!(checkpoint.as_os_str().is_empty(), compressed, "{name}");
            if compressed {
                assert_eq!(settings.kv_compress_sampling.as_deref(), Some("conv"));
                assert_eq!(settings.kv_compress_scale_factor, Some(2));
                assert_eq!(settings.kv_compress_layer, (14..28).collect::<Vec<_>>());
                let Err(Failure::Request(error)) = settings.sources() else { panic!("{name}") };
                assert!(error.to_string().contains("never released"), "{error}");
            }
            let request = settings.request().expect("a request");
            assert_eq!((request.sampling_steps, request.guidance_scale), (20, 4.5), "{name}");
            assert_eq!((request.seed, request.prompts.len()), (42, 1), "{name}");
            assert_eq!(request.sampling_method, pixart_runtime::sampler::SamplingMethod::Dpm);
            assert!(request.use_resolution_binning, "{name}");
        }
        let count = std::fs::read_dir(folder).expect("the folder").count();
        assert_eq!(count, CONFIGS.len(), "configs that this test does not know");
    }
}

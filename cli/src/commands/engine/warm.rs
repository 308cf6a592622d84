//! `pixart engine warm`: what a device compiles for sampling, compiled and kept beforehand.
//!
//! It draws with the settings of the sampling that it prepares, but only as many steps as show every size of the
//! networks' inputs, and throws the pictures away. So it compiles what sampling needs, no more and no less.

use crate::commands::sample::Reporter;
use crate::commands::sample::devices::{OpenEngines, part_of};
use crate::commands::sample::lora;
use crate::commands::sample::settings::{self, Settings};
use crate::exit::{Failure, print_line};
use crate::interrupt::on_ctrl_c;
use crate::model::Wanted;
use clap::Args;
use pixart_runtime::bundle::store;
use pixart_runtime::engine::provider::{Compiled, Keeps, Outcome, Provider, clear_compiled};
use pixart_runtime::pipeline::{PictureSize, Pipeline, Request};
use pixart_runtime::sampler::GuidanceEnd;
use pixart_runtime::size::trained_sizes;
use std::path::PathBuf;

/// What is typed after `pixart engine warm`: the settings of the sampling it prepares.
#[derive(Args)]
pub struct WarmArgs {
    /// YAML file with the settings of `pixart sample` under the same names; flags win over it
    #[arg(short = 'c', long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Prepare for every size that the model was trained at
    #[arg(long = "all_sizes")]
    all_sizes: bool,
    /// Remove everything that was kept, for all devices and models, and end
    #[arg(long)]
    clear: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Runs the command.
pub fn run(args: WarmArgs) -> Result<(), Failure> {
    let mut settings =
        crate::config::merge(args.config.as_deref(), &args.settings, &settings::names())?;
    if settings.no_compiled_cache == Some(true) {
        return Err(Failure::request(
            "no_compiled_cache: `pixart engine warm` fills the cache; leave the flag out",
        ));
    }
    let folder = settings.compiled_cache().ok_or_else(|| {
        Failure::request(
            "compiled_cache_dir: neither PIXART_CACHE_DIR nor HOME is set; name a folder to keep graphs in",
        )
    })?;
    if args.clear {
        let (count, bytes) = clear_compiled(&folder)?;
        let megabytes = bytes as f64 / 1e6;
        print_line(format!("removed {count} entries, {megabytes:.1} MB: {}", folder.display()))?;
        return Ok(());
    }
    // What it draws does not matter; how many tokens it has does not either, where sizes are fixed.
    if settings.prompt.is_empty() && settings.prompt_path.is_none() {
        settings.prompt = vec!["a".to_owned()];
    }
    if args.all_sizes && (settings.image_width.or(settings.image_height).is_some()) {
        return Err(Failure::request("all_sizes: leave image_width and image_height out"));
    }
    let mut request = settings.request()?;
    settings.read_pictures(&mut request)?;
    shorten(&mut request);
    let loras = lora::read(&settings.lora)?;
    let sources = settings.sources()?;
    let precision = settings.precision()?;
    let mut options = settings.options()?;
    // The encoder is to be loaded, whatever captions are known.
    options.text_cache = options.text_cache.filter(|_| !store::is_dir(sources.text_encoder()));

    let each = settings.open_each()?;
    let cancel = on_ctrl_c()?;
    options.cancel = cancel.clone();
    for opened in &each {
        opened.notes.iter().for_each(|note| eprintln!("{note}"));
        if !keeps_something(opened)? {
            continue;
        }
        let wanted = Wanted::new(precision, opened.providers)?;
        let paths = sources.resolve(opened.providers, wanted, request.init.is_some())?;
        let mut pipeline = Pipeline::with_engines(opened.engines(), paths, options.clone())?;
        settings.check_model(&pipeline)?;
        lora::apply(&mut pipeline, &loras, settings.lora_allow_unmatched.unwrap_or(false))?;
        let mut request = request.clone();
        match args.all_sizes {
            true => every_size(&mut request, pipeline.sample_size(), settings.batch_size()?),
            false => fill_batches(&mut request, settings.batch_size()?),
        }
        let mut reporter = Reporter::default();
        let result = pipeline.sample(&request, &mut |event| reporter.report(event));
        drop(reporter);
        // What was compiled before a failure is kept.
        opened.compiled().iter().try_for_each(tell)?;
        result?;
        if cancel.is_cancelled() {
            return Err(Failure::Interrupted("what is listed above is kept".to_owned()));
        }
    }
    Ok(())
}

/// Whether a device keeps anything; says so for those that do not.
fn keeps_something(opened: &OpenEngines) -> Result<bool, Failure> {
    let providers = opened.providers;
    let all = [providers.transformer, providers.text_encoder, providers.vae];
    let mut told: Vec<&Provider> = Vec::new();
    for provider in all {
        if let Keeps::Nothing(reason) = provider.keeps
            && !told.contains(&provider)
        {
            print_line(format!("{}: nothing has to be warmed: {reason}", provider.name))?;
            told.push(provider);
        }
    }
    Ok(all.iter().any(|provider| !matches!(provider.keeps, Keeps::Nothing(_))))
}

/// As few steps as are guided and not guided where all of them are. With a picture to begin from, the first are left
/// out, and guided ones with them: there, all stay.
fn shorten(request: &mut Request) {
    // A step that is left out shows no size.
    request.easycache = None;
    if request.init.is_some() {
        return;
    }
    let all = request.sampling_steps;
    let guided = request.guidance_end.guided_steps(all);
    let least = *request.sampling_method.steps().start();
    if guided > 0 && guided < all {
        request.sampling_steps = least.max(2).min(all);
        request.guidance_end = GuidanceEnd::Step(1);
    } else {
        request.sampling_steps = least.min(all);
    }
}

/// Pictures of every size that the model was trained at.
fn every_size(request: &mut Request, sample_size: u32, batch: usize) {
    let sizes = trained_sizes(sample_size);
    let repeated = sizes.iter().flat_map(|size| std::iter::repeat_n(size, batch));
    request.sizes = repeated
        .map(|size| PictureSize {
            width: Some(size.width),
            height: Some(size.height),
            aspect_ratio: None,
        })
        .collect();
    // They are trained sizes already.
    request.use_resolution_binning = false;
    let first = |texts: &[String]| vec![texts[0].clone(); request.sizes.len()];
    let (prompts, negatives) = (&request.prompts, &request.negative_prompts);
    let (prompts, negatives) =
        (first(prompts), if negatives.is_empty() { Vec::new() } else { first(negatives) });
    (request.prompts, request.negative_prompts) = (prompts, negatives);
    request.noise_seeds.clear();
}

/// A full batch where one picture was asked for; more pictures are taken as they are.
fn fill_batches(request: &mut Request, batch: usize) {
    let missing = batch.saturating_sub(request.prompts.len());
    if request.prompts.len() != 1 || missing == 0 {
        return;
    }
    fn repeat<T: Clone>(list: &mut Vec<T>, more: usize) {
        let first = list.first().cloned();
        list.extend(first.into_iter().flat_map(|first| std::iter::repeat_n(first, more)));
    }
    repeat(&mut request.prompts, missing);
    repeat(&mut request.negative_prompts, missing);
    repeat(&mut request.sizes, missing);
    request.noise_seeds.clear();
}

/// One line for one graph.
fn tell(compiled: &Compiled) -> Result<(), Failure> {
    let part = part_of(&compiled.model);
    let sizes = match compiled.sizes.as_str() {
        "" => "all sizes",
        sizes => sizes,
    };
    let (what, entry) = match &compiled.outcome {
        Outcome::Found(entry) => ("was there".to_owned(), entry),
        Outcome::Made(entry) => ("made".to_owned(), entry),
        Outcome::Remade(entry, reason) => (format!("made anew, because {reason}"), entry),
        Outcome::NotKept(reason) | Outcome::Failed(reason) => {
            return Ok(print_line(format!("{part} ({sizes}): not kept: {reason}"))?);
        }
    };
    let (megabytes, seconds) = (entry.bytes as f64 / 1e6, compiled.seconds);
    let folder = entry.folder.display();
    Ok(print_line(format!(
        "{part} ({sizes}): {what}, {megabytes:.1} MB, {seconds:.2} s: {folder}"
    ))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pixart_runtime::pipeline::InitImage;

    #[test]
    fn few_steps_show_all_sizes() {
        let shortened = |init: Option<f64>, end| {
            let init = init.map(|strength| InitImage {
                image: std::sync::Arc::new(image::RgbImage::new(8, 8)),
                strength,
                mask: None,
            });
            let mut request = Request { init, guidance_end: end, ..Request::default() };
            request.sampling_steps = 20;
            shorten(&mut request);
            (request.sampling_steps, request.guidance_end.guided_steps(request.sampling_steps))
        };
        let (some, all) = (GuidanceEnd::Step(15), GuidanceEnd::Step(20));
        assert_eq!(shortened(None, some), (2, 1));
        let (steps, guided) = shortened(None, all);
        assert!(steps < 20 && guided == steps, "{steps} {guided}");
        // At a strength of a quarter the last five are taken, of which `some` guides none: two steps would have none.
        for end in [some, all] {
            assert_eq!(shortened(Some(0.25), end), (20, end.guided_steps(20)));
        }
    }
}

//! `pixart encode`: prompts into the text cache, so that sampling needs no text encoder.

use super::sample::devices::profile_for;
use super::sample::settings::{self, Settings};
use super::sample::{Reporter, lora};
use crate::exit::{Failure, print_line};
use crate::interrupt::on_ctrl_c;
use crate::model::{Wanted, text_side};
use clap::Args;
use pixart_runtime::engine::LARGE;
use pixart_runtime::text::CaptionEncoder;
use std::path::PathBuf;

/// What is typed after `pixart encode`: the settings of the sampling it prepares.
#[derive(Args)]
pub struct EncodeArgs {
    /// YAML file with the settings of `pixart sample` under the same names; flags win over it
    #[arg(short = 'c', long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Runs the command.
pub fn run(args: EncodeArgs) -> Result<(), Failure> {
    let settings =
        crate::config::merge(args.config.as_deref(), &args.settings, &settings::names())?;
    let notes = settings.upstream_notes()?;
    if settings.use_parallel == Some(true) {
        return Err(Failure::request(
            "use_parallel: found true, but one process encodes prompts; leave it out",
        ));
    }
    let request = settings.request()?;
    let loras = lora::read(&settings.lora)?;
    let Some(cache) = settings.text_cache()? else {
        return Err(Failure::request(
            "no_text_cache: `pixart encode` fills the text cache; leave the flag out",
        ));
    };
    let folder = cache.folder().to_owned();
    let opened = settings.open_engines()?;
    for note in opened.notes.iter().chain(&notes) {
        eprintln!("{note}");
    }
    let (text_encoder, tokenizer) = text_side(
        settings.model.as_deref(),
        settings.text_encoder_root.as_deref(),
        settings.tokenizer_root.as_deref(),
        profile_for(opened.providers.text_encoder),
        Wanted::new(settings.precision()?, opened.providers)?,
    )?;
    let cache = Some(cache);
    let mut captions =
        CaptionEncoder::new(opened.text_encoder(), &text_encoder, &tokenizer, cache)?;
    captions.stream_above(if settings.is_sparing()? { 0 } else { LARGE });
    let cancel = on_ctrl_c()?;
    captions.set_cancel(cancel.clone());
    let allow_unmatched = settings.lora_allow_unmatched.unwrap_or(false);
    lora::tell(&loras, &captions.set_loras(&loras, allow_unmatched)?);
    let width = captions.width().unwrap_or_default();
    let mut reporter = Reporter::default();
    let mut problem = None;
    let encoded = captions.encode(&request, width, &mut |event| {
        // A full disk is no mere warning here: to fill the cache is all there is to do.
        if let pixart_runtime::pipeline::Event::Note { text } = event
            && text.starts_with("cannot keep")
        {
            problem = Some(text.to_owned());
            return;
        }
        reporter.report(event);
    })?;
    if let Some(problem) = problem {
        return Err(Failure::Failed(anyhow::anyhow!("{problem}")));
    }
    print_line(folder.display())?;
    let prompts = request.prompts.len();
    if cancel.is_cancelled() {
        let done = encoded.len();
        return Err(Failure::Interrupted(format!("{done} of {prompts} prompts are in the cache")));
    }
    eprintln!("{prompts} prompts, {}, {}", reporter.summary(), opened.text_encoder().describe());
    Ok(())
}

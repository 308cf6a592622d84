//! `pixart engine list`: what is installed, what could be, and all about one device.

use crate::exit::{Failure, print_line};
use pixart_runtime::engine::data_folder;
use pixart_runtime::engine::install::{Status, list};
use pixart_runtime::engine::provider::{Keeps, OptionSpec, PROVIDERS, Proof, Provider};

/// Every engine, and every device with what brings it.
pub fn all() -> Result<(), Failure> {
    let engines = list(&data_folder()?);
    engines.iter().try_for_each(print_engine)?;
    if engines.iter().all(|engine| engine.path.is_none()) {
        print_line("  ONNX Runtime is not installed; it is faster: pixart engine install cpu")?;
    }
    print_line("* is what --engine auto takes")?;
    print_line("\ndevices, for --device:")?;
    for provider in PROVIDERS {
        let state = match state(provider, &engines) {
            State::Here => "installed".to_owned(),
            State::Elsewhere => provider.how_to_get(),
            State::Unproved => format!("{}, not yet proved", provider.how_to_get()),
        };
        print_line(format!("  {:<13} {} ({state})", provider.name, provider.summary))?;
    }
    print_line("more about one: pixart engine list NAME")?;
    Ok(())
}

enum State {
    Here,
    Elsewhere,
    Unproved,
}

fn state(provider: &Provider, engines: &[Status]) -> State {
    let usable = |engine: &Status| engine.problem.is_none();
    let brought =
        |engine: &&Status| usable(engine) && provider.builds.contains(&engine.name.as_str());
    let built_in = ["cpu", "tract"].contains(&provider.name);
    if built_in || provider.is_for_this_system() && engines.iter().any(|engine| brought(&engine)) {
        return State::Here;
    }
    match provider.proof {
        Proof::Run => State::Elsewhere,
        Proof::Unproved => State::Unproved,
    }
}

/// One engine and what is wrong with it.
pub fn print_engine(engine: &Status) -> std::io::Result<()> {
    let kind = match (engine.name.as_str(), engine.plugin) {
        ("tract", _) => "",
        (_, true) => "plugin",
        (_, false) => "ONNX Runtime",
    };
    let name = [kind, engine.version.as_deref().unwrap_or(""), &format!("({})", engine.name)];
    let name = name.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>();
    let mark = if engine.chosen { "*" } else { " " };
    print_line(format!("{mark} {}  {}", name.join(" "), engine.origin))?;
    if let Some(path) = &engine.path {
        print_line(format!("    {}", path.display()))?;
    }
    if let Some(problem) = &engine.problem {
        print_line(format!("    not usable: {problem}"))?;
    }
    Ok(())
}

/// The row of a device, with its options.
pub fn one(name: &str) -> Result<(), Failure> {
    let provider = Provider::named(name)?;
    print_line(format!("{}: {}", provider.name, provider.summary))?;
    let per_size = match provider.compiles_per_size {
        true => "compiles a graph anew for each size of picture",
        false => "takes pictures of all sizes with one graph",
    };
    let proof = match provider.proof {
        Proof::Run => "run, with the numbers in docs/engines.md",
        Proof::Unproved => "not yet: `pixart engine selftest` tells whether it computes right",
    };
    let keeps = match provider.keeps {
        Keeps::Nothing(reason) => format!("nothing: {reason}"),
        Keeps::Folder(settings) => {
            let names: Vec<&str> = settings.iter().map(|(name, _)| *name).collect();
            format!("compiled graphs, through {}", names.join(", "))
        }
        Keeps::Context => "compiled graphs, through ep.context_enable".to_owned(),
    };
    for (what, text) in [
        ("how to get it", provider.how_to_get()),
        ("it needs", provider.needs.to_owned()),
        ("precisions", provider.precisions.join(", ")),
        ("export profile", provider.profile.to_owned()),
        ("sizes", per_size.to_owned()),
        ("keeps", keeps),
        ("proved", proof.to_owned()),
    ] {
        print_line(format!("  {what:<15} {text}"))?;
    }
    if let Some(suffix) = provider.suffix {
        print_line(format!("  {:<15} {}:VALUE sets {suffix}", "one of several", provider.name))?;
    }
    if provider.options.is_empty() {
        return Ok(print_line("  it has no options")?);
    }
    print_line(format!("  options, see {}", provider.source))?;
    provider.options.iter().try_for_each(print_option)?;
    Ok(())
}

fn print_option(option: &OptionSpec) -> std::io::Result<()> {
    let default = option.default.map(|value| format!(" [here: {value}]")).unwrap_or_default();
    print_line(format!("    {}: {}; {}{default}", option.name, option.summary, option.kind))
}

//! Every flag that the help of a command names is typed by some test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use pixart_tests::binary::Sandbox;

/// Flags that clap brings.
const CLAPS_OWN: [&str; 2] = ["help", "version"];

/// The help of a command and of all below it, by the words that name it.
fn helps(sandbox: &Sandbox, command: &[String], helps: &mut BTreeMap<String, String>) {
    let run = sandbox.pixart(&[command, &["--help".to_owned()]].concat());
    assert_eq!(run.code, 0, "{run:?}");
    let mut lines = run.stdout.lines().skip_while(|line| *line != "Commands:").skip(1);
    while let Some(line) = lines.next().filter(|line| !line.is_empty()) {
        // What is wrapped stands further in.
        let Some(name) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')) else {
            continue;
        };
        let name = name.split_whitespace().next().expect("a name").to_owned();
        if name != "help" {
            self::helps(sandbox, &[command, &[name]].concat(), helps);
        }
    }
    helps.insert(command.join(" "), run.stdout);
}

/// Whether a line names a flag; what explains it stands further in.
fn is_flag(line: &str) -> bool {
    let text = line.trim_start();
    text.starts_with('-') && line.len() - text.len() < 8
}

/// The long flags that a help explains, aliases left out.
fn flags(help: &str) -> BTreeSet<String> {
    let begins = help.lines().filter(|line| is_flag(line)).map(str::trim_start);
    let words =
        begins.filter_map(|line| line.split([' ', ',', '=', '[']).find(|w| w.starts_with("--")));
    words.map(|word| word.trim_start_matches('-').to_owned()).collect()
}

/// Where a text has this word as a whole, as it is or with `-` for `_`.
fn has(text: &str, flag: &str) -> bool {
    [flag.to_owned(), flag.replace('_', "-")].iter().any(|name| {
        let word = format!("--{name}");
        text.match_indices(&word).any(|(at, _)| {
            let next = text[at + word.len()..].chars().next();
            next.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '-')
        })
    })
}

#[test]
fn every_flag_of_every_command_is_in_a_test() {
    let mut all = BTreeMap::new();
    helps(&Sandbox::new(), &[], &mut all);
    let commands: Vec<&str> = all.keys().map(String::as_str).collect();
    for known in ["", "sample", "encode", "export", "convert", "inspect", "engine install"] {
        assert!(commands.contains(&known), "no `{known}` in {commands:?}");
    }
    assert!(flags(&all["sample"]).len() > 40, "{:?}", flags(&all["sample"]));

    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let own = Path::new(file!()).file_name().expect("a name").to_owned();
    let mut texts = Vec::new();
    for entry in fs::read_dir(tests).expect("the tests") {
        let path = entry.expect("a file").path();
        let is_test = path.extension().is_some_and(|extension| extension == "rs");
        if is_test && path.file_name() != Some(&own) {
            texts.push(fs::read_to_string(path).expect("a text"));
        }
    }
    let mut missing = Vec::new();
    for (command, help) in &all {
        for flag in flags(help) {
            // `encode` takes the settings of `sample`, where they are tested.
            let tested =
                CLAPS_OWN.contains(&flag.as_str()) || texts.iter().any(|text| has(text, &flag));
            if !tested && command != "encode" {
                missing.push(format!("pixart {command} --{flag}"));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "no file of tests/tests has these flags; write a test that uses them:\n{}",
        missing.join("\n")
    );
}

/// The headings of a help, with how many flags each has.
fn headings(help: &str) -> BTreeMap<&str, usize> {
    let mut headings = BTreeMap::new();
    let mut current = "";
    for line in help.lines() {
        if let Some(heading) = line.strip_suffix(':').filter(|line| !line.starts_with(' ')) {
            current = heading;
        } else if is_flag(line) {
            *headings.entry(current).or_default() += 1;
        }
    }
    headings
}

#[test]
fn long_helps_are_grouped() {
    let mut all = BTreeMap::new();
    helps(&Sandbox::new(), &[], &mut all);
    for (command, help) in &all {
        // More than this under one heading nobody reads.
        for (heading, count) in headings(help) {
            assert!(count <= 20, "pixart {command}: {count} flags under `{heading}`");
        }
    }
    assert!(headings(&all["sample"]).len() > 6);
    assert_eq!(
        headings(&all["sample"])["Options"],
        3,
        "only --config, --from and --help have none"
    );
}

//! The operators of exports against what providers publish that they take: those that cannot run here would
//! otherwise leave work to the processor that nobody knows of. CANN's list is checked by the exporter itself.

use std::collections::{BTreeMap, BTreeSet};

use pixart_exporter::Component;
use pixart_runtime::engine::provider::{PROVIDERS, Proof, Provider};
use pixart_tests::{exports::Export, fixtures};
use prost::Message as _;
use serde::Deserialize;
use tract_onnx::pb::{GraphProto, ModelProto};

#[derive(Deserialize)]
struct Published {
    source: String,
    operators: BTreeSet<String>,
    /// Operators of the exports that are not among them; `docs/engines.md` tells of these.
    missing: BTreeSet<String>,
}

fn collect(graph: &GraphProto, found: &mut BTreeSet<String>) {
    for node in &graph.node {
        let name = match node.domain.as_str() {
            "" | "ai.onnx" => node.op_type.clone(),
            domain => format!("{domain}::{}", node.op_type),
        };
        found.insert(name);
        for graph in node.attribute.iter().filter_map(|attribute| attribute.g.as_ref()) {
            collect(graph, found);
        }
    }
}

#[test]
fn exports_hold_what_providers_take() {
    let file = fixtures::root().join("provider_operators.json");
    let published = std::fs::read(&file).expect("the lists");
    let published: BTreeMap<String, Published> = serde_json::from_slice(&published).expect("lists");
    assert_eq!(published.len(), 4);
    for (name, published) in published {
        let provider = Provider::named(&name).expect("a provider");
        let profile = provider.profile.parse().expect("a profile");
        let mut used = BTreeSet::new();
        for component in [Component::TextEncoder, Component::Transformer, Component::VaeDecoder] {
            let export = Export::component(&fixtures::tiny(), component, profile);
            let model = std::fs::read(export.graph(component)).expect("a graph");
            let model = ModelProto::decode(model.as_slice()).expect("ONNX");
            collect(model.graph.as_ref().expect("a graph"), &mut used);
        }
        let missing: BTreeSet<String> = used.difference(&published.operators).cloned().collect();
        assert_eq!(missing, published.missing, "{name}: {}", published.source);
    }
}

#[test]
fn the_documentation_says_which_devices_were_run() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/engines.md");
    let page = std::fs::read_to_string(page).expect("the page").to_lowercase();
    let line = page.lines().find(|line| line.contains("are unproved.**")).expect("the statement");
    let listed = line.split("are unproved").next().expect("a list").replace(" and ", ", ");
    let mut unproved: Vec<&str> =
        listed.split(',').map(|name| name.trim_matches(['*', ' '])).collect();
    unproved.sort_unstable();
    let of_table = PROVIDERS.iter().filter(|provider| provider.proof == Proof::Unproved);
    let mut expected: Vec<&str> = of_table.map(|provider| provider.name).collect();
    expected.sort_unstable();
    assert_eq!(unproved, expected);
    for provider in PROVIDERS.iter().filter(|provider| provider.proof == Proof::Run) {
        assert!(page.contains(&format!("| {}", provider.name)) || provider.name == "tract");
    }
}

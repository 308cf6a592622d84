//! Writes the graphs that PixArt-Σ XL/2 is trained with, forward and backward, as ONNX files:
//! `part_graphs FOLDER`. Weights are inputs, so the files are small.

use std::error::Error;
use std::path::PathBuf;

use pixart_exporter::naming::TransformerConfig;
use pixart_exporter::profile::Profile;
use pixart_exporter::write::to_bytes;
use pixart_trainer::gradient::{PartKind, Training, part_graphs};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: part_graphs FOLDER")?);
    let config = TransformerConfig::xl2(64);
    std::fs::create_dir_all(&folder)?;
    for kind in [PartKind::Embedding, PartKind::Block { compressed: false }, PartKind::Final] {
        let graphs = part_graphs(&config, Profile::Ort, kind, &Training::full(), true)?;
        let all = [("forward", Some(graphs.forward)), ("backward", graphs.backward)];
        for (name, graph) in all.into_iter().filter_map(|(name, graph)| Some((name, graph?))) {
            let file = folder.join(format!("{}_{name}.onnx", kind.as_str()));
            let bytes = to_bytes(&graph)?;
            println!("{}: {} nodes, {} bytes", file.display(), graph.nodes.len(), bytes.len());
            std::fs::write(file, bytes)?;
        }
    }
    Ok(())
}

//! A diffusers pipeline folder to ONNX, in ten lines:
//! `cargo run --release -p pixart-exporter --example export -- SOURCE OUTPUT [PROFILE [COMPONENT]]`

use std::path::Path;

use pixart_exporter::{ExportOptions, PipelineSource, export_component, export_pipeline};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, output, rest @ ..] = arguments.as_slice() else {
        return Err("expected SOURCE and OUTPUT".into());
    };
    let (source, output) = (Path::new(source), Path::new(output));
    let profile = rest.first().map_or(Ok(Default::default()), |name| name.parse())?;
    let options = ExportOptions { profile, ..Default::default() };
    let exported = match rest.get(1) {
        Some(name) => {
            vec![export_component(source, name.parse()?, output, &options, &mut |_| ())?]
        }
        None => {
            let source = PipelineSource::from_folder(source)?;
            export_pipeline(&source, output, &options, &mut |_| ())?
        }
    };
    for part in exported {
        println!("{}", part.folder.display());
    }
    Ok(())
}

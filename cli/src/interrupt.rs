//! Ctrl-C: the first time work ends cleanly, the second time at once.

use crate::exit::{Failure, INTERRUPTED};
use pixart_runtime::pipeline::Cancel;

/// A token that the first Ctrl-C uses; the second one ends the program. Before this is called, the first
/// one does.
pub fn on_ctrl_c() -> Result<Cancel, Failure> {
    let cancel = Cancel::new();
    let token = cancel.clone();
    ctrlc::set_handler(move || {
        if token.is_cancelled() {
            std::process::exit(INTERRUPTED.into());
        }
        token.cancel();
        eprintln!("\nending after this step, keeping what is finished; Ctrl-C again ends at once");
    })
    .map_err(|error| anyhow::anyhow!("cannot listen for Ctrl-C: {error}"))?;
    Ok(cancel)
}

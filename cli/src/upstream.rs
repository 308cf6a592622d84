//! Settings that upstream's commands have and that mean something else here, or nothing: its commands and
//! configs can be used as they are, and nobody is left believing that they do what they do there.

use crate::exit::Failure;

/// Those that sampling and training share.
#[derive(Clone, Copy, Default)]
pub struct Upstream<'a> {
    pub enable_flash_attention: Option<bool>,
    pub mode: Option<u32>,
    pub jit_level: Option<&'a str>,
}

impl Upstream<'_> {
    /// Refuses what would have to have an effect and has none; of what may be left aside, returns a
    /// line for each.
    pub fn notes(&self) -> Result<Vec<String>, Failure> {
        let refuse = |message: String| Err(Failure::request(message));
        let mut notes = Vec::new();
        if self.enable_flash_attention == Some(false) {
            notes.push(
                "enable_flash_attention: false has no effect; attention never holds all its scores, and \
                 gives the same"
                    .to_owned(),
            );
        }
        match self.mode {
            None => {}
            Some(mode @ 0..=1) => notes.push(format!(
                "mode: {mode} has no effect; graphs are always compiled before they run"
            )),
            Some(mode) => return refuse(format!("mode: found {mode}, expected 0 or 1")),
        }
        match self.jit_level {
            None => {}
            Some(level @ ("O0" | "O1")) => notes
                .push(format!("jit_level: {level} has no effect; engines always optimise graphs")),
            Some(level) => return refuse(format!("jit_level: found `{level}`, expected O0 or O1")),
        }
        Ok(notes)
    }
}

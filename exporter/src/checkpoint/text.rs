//! Text of untrusted files in messages.

/// Text without control characters and of a bounded length.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 200;
    let mut characters = text.escape_debug();
    let mut short: String = characters.by_ref().take(LONGEST).collect();
    if characters.next().is_some() {
        short.push('…');
    }
    short
}

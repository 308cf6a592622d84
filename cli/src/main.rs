//! The `pixart` command.
fn main() {}

//! What the machine has.

/// Whether the system's loader finds a library. Loading runs its initialisers, as a provider's use of it
/// would.
pub fn has_system_library(name: &str) -> bool {
    // SAFETY: the names are those in the table of providers, of libraries that providers load anyway.
    let library = unsafe { libloading::Library::new(name) };
    // Unloading runs finalisers, which drivers are seldom tested for.
    library.map(std::mem::ManuallyDrop::new).is_ok()
}

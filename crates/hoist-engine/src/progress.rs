//! How the engine tells a caller how far it is.

/// Receives progress; every method may be called from any task.
pub trait Progress: Send + Sync {
    /// A piece of work of so many bytes starts.
    fn begin(&self, what: &str, total_bytes: u64);
    /// So many more bytes of it are done.
    fn advance(&self, bytes: u64);
    /// It is done.
    fn end(&self);
    /// Something the user should know.
    fn note(&self, text: &str);
}

/// Tells nobody.
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}
    fn note(&self, _: &str) {}
}

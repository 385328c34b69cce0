//! Parts of a layer's table that no registry has, because they were made here.

use futures_util::future::BoxFuture;

use crate::error::Error;

/// Who makes them anew when the store has lost them.
pub trait Anew: Send + Sync {
    /// Makes them, if `is_here` does not find that somebody just has.
    ///
    /// # Errors
    /// When what they are made of cannot be had, or is another now.
    fn make<'a>(&'a self, is_here: &'a (dyn Fn() -> bool + Sync)) -> BoxFuture<'a, Result<(), Error>>;
}

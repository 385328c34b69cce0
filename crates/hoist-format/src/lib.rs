//! Bytes in, one [`tree::Tree`] of files and one [`extent::ExtentTable`] out, and a tree out as EROFS.
//!
//! Nothing here opens a file, a socket or a task: every decoder takes bytes and returns values or
//! an error, so that it can be fuzzed and reasoned about alone.
#![forbid(unsafe_code)]

pub mod build;
pub mod chunk;
pub mod codec;
pub mod digest;
pub mod erofs;
pub mod ext4;
pub mod extent;
pub mod formats;
pub mod layer;
mod le;
pub mod merge;
pub mod overlaybd;
pub mod partial;
pub mod rafs;
pub mod soci;
pub mod span;
pub mod table;
pub mod tar;
pub mod tree;
pub mod volume;

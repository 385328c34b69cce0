//! SOCI's zTOC (soci-snapshotter `ztoc/`): where each file of a tar layer stands in the uncompressed stream, and where in
//! the blob decoding may start.

mod describe;
mod error;
mod flat;
mod spans;
mod ztoc;

pub use describe::{HEADER, Told, describe, is_plain_header};
pub use error::SociError;

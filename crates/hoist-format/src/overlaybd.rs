//! overlaybd: images as block devices, each layer the blocks that it changes, compressed in blocks of their own.
//!
//! From outside in: a [tar header](tarwrap), a [ZFile](zfile) of compressed blocks, in it an [LSMT](lsmt) file of the
//! sectors that a layer has, all layers laid over each other as one [device](device), and on that a file system, which
//! is read without mounting it. TurboOCI has the file system's own blocks alone, and for the contents names sectors
//! of the original layer's tar stream ([turbo], [gzip_meta]).
//!
//! Facts are from containerd/overlaybd 063821f and containerd/accelerated-container-image 4f5c597, as named.

mod blob;
mod describe;
mod device;
mod error;
mod gzip_meta;
mod lsmt;
mod room;
mod tarwrap;
mod trace;
mod turbo;
mod zfile;

pub use blob::Blob;
pub use describe::{Image, Step, TurboLayer, describe_turbo};
pub use device::{Layers, Place};
pub use error::OverlaybdError;
pub use gzip_meta::{GzipIndex, GzipSpan};
pub use lsmt::{Sector, Segment, Source};
use room::Room;
pub use trace::{MAX_TRACE, Recorded, recorded};
pub use turbo::{FileSystem, TurboMeta};
pub use zfile::Zfile;

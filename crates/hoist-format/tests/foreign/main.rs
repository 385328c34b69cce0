//! Images that other projects' own tools made, read and held against what containerd's unpack of the same tree shows.

mod archive;
mod erofs_layers;
mod fixture;
mod lies;
mod overlaybd;
mod readers;
mod soci;
mod sparse;
mod turbo;
#[path = "../unpacked/mod.rs"]
mod unpacked;

//! RAFS of the fixtures, which nydus-image made, against containerd's unpack of the same image; and lies.

mod fixtures;
mod lies;
mod reader;
mod support;
#[path = "../unpacked/mod.rs"]
mod unpacked;

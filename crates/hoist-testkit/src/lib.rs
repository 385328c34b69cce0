//! What hoist's tests, benches and demo stand on: real outsiders to be judged by.
//!
//! A real `docker-registry`, a real `containerd`, images packed by the real `gzip` and `zstd`, and a proxy
//! that makes the network slow or hostile on demand. Nothing here uses hoist's own decoders, so that no test
//! compares hoist with itself. A missing tool is an error, never a skip.

pub mod containerd;
pub mod cri;
pub mod digest;
pub mod fixtures;
pub mod grpc;
pub mod http;
pub mod https;
pub mod layout;
pub mod overlaybd;
pub mod process;
pub mod proxy;
pub mod push;
pub mod reading;
pub mod registry;
pub mod system;
pub mod tree;

pub use fixtures::{Exceptions, compare_tree, expected, fixtures_dir};
pub use proxy::{Fault, FaultKind, Proxy, ProxyOptions, When};
pub use push::push_layout;
pub use registry::Registry;
pub use tree::{diff, walk, walk_overlay};

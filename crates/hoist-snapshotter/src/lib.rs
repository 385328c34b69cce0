//! hoist as a containerd snapshotter: the snapshots service, version 1, over folders and overlayfs.
//!
//! A *snapshot* is a record (`meta`) and a folder (`folders`). The folder comes first and goes last, so that
//! a record always has its folder, and a folder without a record is nobody's: it is what a crash left.
//! What a snapshot is mounted from follows from the records alone (`mounts`). Nothing is held in memory but
//! the next free number: a killed process loses nothing.
//!
//! A layer need not be unpacked where somebody has its image (`part`): it is a record without a folder, and
//! the image, mounted once, the lower folder of what stands on it (`remote`).
//!
//! Beside it stands a CRI image service that passes all on to containerd (`cri`): how a kubelet's credentials come here.

pub mod api;
mod channel;
mod client;
mod cri;
mod error;
mod filter;
mod folders;
mod ids;
mod meta;
mod mounts;
mod part;
mod record;
mod remote;
mod serve;
mod service;
mod snapshotter;

pub use channel::Channel;
pub use client::{Client, ClientError, Content, Layer};
pub use cri::{Auth, Keychain, serve_images};
pub use error::Error;
pub use part::{Found, How, Images, Part, Reason, Refusal, Wanted};
pub use record::{Info, Kind, Labels, Usage};
pub use serve::serve;
pub use service::Service;
pub use snapshotter::{Snapshotter, Standing};
pub use tonic::async_trait;

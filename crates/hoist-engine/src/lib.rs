//! Everything that makes an image run, without a command line: registry client, store, fill path,
//! mounts. `docs/ARCHITECTURE.md` is the map.

mod check;
mod config;
mod convert;
pub mod counters;
mod engine;
mod error;
mod evict;
pub mod fill;
mod fsck;
mod house;
mod image;
pub mod ingest;
mod lowest;
mod mount;
pub mod oci;
mod own;
mod pauses;
pub mod progress;
pub mod publish;
mod pull;
pub mod reference;
pub mod registry;
mod stats;
pub mod store;

pub use config::{Background, Config, Driver, Owners, Platform, Successor, Trust, Vault};
pub use engine::Engine;
pub use error::Error;
pub use fsck::{Checked, Problem};
pub use house::{ImageRecord, Inspection, LayerInspection, Pruned};
pub use image::Image;
pub use mount::{
    DriverState, Files, LayerStatus, Mount, MountTable, Needs, Use, Viewer, bequeathed, drivers, waitable,
};
pub use progress::Progress;
pub use pull::{Indexed, Pulled};
pub use stats::Stats;

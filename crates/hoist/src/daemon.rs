//! The node daemon: one process that owns a store and all its mounts, asked through a socket.
//!
//! `hoist daemon` is the one side (`serve`, `mounts`), every other command is the other (`client`): it uses
//! a daemon of its store where there is one, and else does the work itself, on the same store.

mod ahead;
pub mod client;
mod connection;
mod container;
mod credentials;
mod intents;
mod metrics;
mod mounts;
pub mod notify;
mod policy;
mod prepared;
pub mod protocol;
mod requests;
mod serve;
pub mod settings;
mod snapshotter;
mod socket;
pub mod status;

pub use serve::{inherit, run};

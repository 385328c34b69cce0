//! The only crate of hoist in which `unsafe` compiles: thin, safe types over what the kernel and
//! zlib offer and no other crate wraps.
//!
//! Nothing here decides policy: each module turns one foreign interface into values and errors.

pub mod fanotify;
pub mod file;
pub mod fuse;
pub mod inflate;
pub mod keeper;
pub mod limits;
pub mod loop_device;
pub mod map;
pub mod memory;
pub mod mount;
mod outliving;
pub mod presence;
pub mod process;
pub mod shm;
pub mod stored;
pub mod thread;
pub mod userns;
pub mod watch;

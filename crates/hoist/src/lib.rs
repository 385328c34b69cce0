//! The `hoist` program: command line, printer, OCI bundles, and the processes behind mounts. The work on
//! images is `hoist-engine`'s.

pub mod bundle;
pub mod cli;
pub mod failure;
pub mod human;
pub mod mount_record;
pub mod program;
pub mod rootdir;
pub mod runtime;
pub mod signals;
pub mod stats_file;

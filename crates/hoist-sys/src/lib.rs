//! The only crate of hoist in which `unsafe` compiles: thin, safe types over what the kernel and
//! zlib offer and no other crate wraps.
//!
//! Nothing here decides policy: each module turns one foreign interface into values and errors.

pub mod inflate;

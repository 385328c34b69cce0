//! The wire, made from `proto` by `scripts/proto`.

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod containerd {
    pub mod types {
        include!("api/containerd.types.rs");
    }
    pub mod services {
        pub mod snapshots {
            pub mod v1 {
                include!("api/containerd.services.snapshots.v1.rs");
            }
        }
    }
}

pub use containerd::services::snapshots::v1::*;
pub use containerd::types::Mount;

//! See Cargo.toml.

use std::path::Path;

fn main() -> anyhow::Result<()> {
    let snapshotter = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/hoist-snapshotter");
    let proto = snapshotter.join("proto");
    let services = protox::compile(["snapshots.proto"], [&proto])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .btree_map(".")
        .out_dir(snapshotter.join("src/api"))
        .compile_fds(services)?;
    Ok(())
}

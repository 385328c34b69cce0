//! See Cargo.toml.

use std::path::Path;

fn main() -> anyhow::Result<()> {
    make("hoist-snapshotter", &["snapshots.proto"], "src/api", true)?;
    make("hoist-snapshotter", &["content.proto", "images.proto", "leases.proto"], "src/client", false)?;
    make("hoist-testkit", &["cri.proto"], "src/cri", false)
}

fn make(name: &str, services: &[&str], out: &str, serves: bool) -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates").join(name);
    let described = protox::compile(services, [folder.join("proto")])?;
    std::fs::create_dir_all(folder.join(out))?;
    tonic_prost_build::configure()
        .build_transport(false)
        .build_server(serves)
        .btree_map(".")
        .out_dir(folder.join(out))
        .compile_fds(described)?;
    Ok(())
}

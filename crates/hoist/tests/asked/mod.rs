//! The snapshotter as containerd asks it, over its socket.
// Each test program uses its own part of this.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hoist_snapshotter::api::snapshots_client::SnapshotsClient;
use hoist_snapshotter::api::*;
use hoist_testkit::grpc::Channel;
use hoist_testkit::layout::{Builder, Built, Compression};
use hoist_testkit::{digest, process};
use tonic::{Code, Status};

use crate::node::daemon::Daemon;
use crate::node::{Node, Published};

pub const TARGET: &str = "containerd.io/snapshot.ref";

/// A node whose daemon serves containerd.
pub struct Snapshots {
    pub runtime: tokio::runtime::Runtime,
    pub socket: PathBuf,
}

pub fn serve(node: &Node) -> (Daemon<'_>, Snapshots) {
    serve_with(node, &[])
}

/// The same with these options besides.
pub fn serve_with<'a>(node: &'a Node, options: &[&str]) -> (Daemon<'a>, Snapshots) {
    let socket = node.path("snapshotter.sock");
    let fixed = ["--log-format", "json", "--snapshotter-socket", socket.to_str().unwrap()];
    let daemon = Daemon::start(node, &[&fixed[..], options].concat());
    (daemon, Snapshots::at(socket))
}

pub type Client = SnapshotsClient<Channel>;

impl Snapshots {
    pub fn at(socket: PathBuf) -> Snapshots {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Snapshots { runtime: runtime.unwrap(), socket }
    }

    /// Anew for each call: the daemon may be another one by now.
    pub async fn client(socket: &Path) -> Client {
        let channel = Channel::connect(socket).await.unwrap();
        SnapshotsClient::with_origin(channel, "http://localhost".parse().unwrap())
    }

    pub fn ask<T>(
        &self,
        ask: impl AsyncFnOnce(Client) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Status> {
        self.runtime
            .block_on(async { ask(Self::client(&self.socket).await).await.map(tonic::Response::into_inner) })
    }

    pub fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<Vec<Mount>, Status> {
        let request = prepare_request(key, parent, labels);
        self.ask(async |mut client| client.prepare(request).await).map(|answer| answer.mounts)
    }

    pub fn view(&self, key: &str, parent: &str) -> Vec<Mount> {
        let request =
            ViewSnapshotRequest { key: key.into(), parent: parent.into(), ..ViewSnapshotRequest::default() };
        self.ask(async |mut client| client.view(request).await).unwrap().mounts
    }

    pub fn remove(&self, key: &str) {
        let request = RemoveSnapshotRequest { key: key.into(), snapshotter: String::new() };
        self.ask(async |mut client| client.remove(request).await).unwrap();
    }

    /// As containerd looks for a layer that is there already (its core/metadata/snapshot.go).
    pub fn find(&self, target: &str, parent: &str) -> Vec<Info> {
        let filters = vec![format!("labels.{TARGET:?}=={target},parent=={parent:?}")];
        let request = ListSnapshotsRequest { filters, snapshotter: String::new() };
        let listed = self.runtime.block_on(async {
            let mut stream = Self::client(&self.socket).await.list(request).await.unwrap().into_inner();
            let mut all = Vec::new();
            while let Some(part) = stream.message().await.unwrap() {
                all.extend(part.info);
            }
            all
        });
        assert!(listed.iter().all(|info| info.kind() == Kind::Committed), "{listed:?}");
        listed
    }

    /// Prepares all layers of an image as containerd does; none is to be unpacked. The uppermost's name.
    pub fn pull(&self, image: &Image, name: &str) -> String {
        let mut parent = String::new();
        for (i, chain) in image.chain.iter().enumerate() {
            let key = format!("{name}-extract-{i}");
            let status = self.prepare(&key, &parent, &image.labels(i)).unwrap_err();
            assert_eq!(status.code(), Code::AlreadyExists, "{status}");
            let found = self.find(chain, &parent);
            assert_eq!(found.len(), 1, "{found:?}");
            parent.clone_from(&found[0].name);
        }
        parent
    }
}

pub fn prepare_request(key: &str, parent: &str, labels: &BTreeMap<String, String>) -> PrepareSnapshotRequest {
    let (key, parent, labels) = (key.into(), parent.into(), labels.clone());
    PrepareSnapshotRequest { key, parent, labels, snapshotter: String::new() }
}

/// An image in a registry, and what containerd says of its layers.
pub struct Image {
    pub published: Published,
    pub built: Built,
    pub chain: Vec<String>,
}

/// Three layers: a file in each, one of all replaced and one removed by the uppermost.
pub fn layout(dir: &Path, name: &str) -> Built {
    let mut builder = Builder::new(dir.join(name)).unwrap();
    for i in 0..3 {
        let root = dir.join(format!("{name}-{i}"));
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join(format!("etc/{i}")), vec![i as u8; 300_000]).unwrap();
        fs::write(root.join("same"), format!("of layer {i} of {name}")).unwrap();
        if i == 2 {
            fs::write(root.join("etc/.wh.0"), "").unwrap();
        }
        let tar = dir.join(format!("{name}-{i}.tar"));
        process::run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg(".")).unwrap();
        builder = builder.layer(&tar, Compression::Gzip(6)).unwrap();
    }
    builder.write("v1").unwrap()
}

impl Image {
    pub fn of(published: Published, built: Built) -> Image {
        let mut chain: Vec<String> = Vec::new();
        for diff_id in &built.diff_ids {
            chain.push(match chain.last() {
                Some(below) => digest::of_bytes(format!("{below} {diff_id}").as_bytes()),
                None => diff_id.clone(),
            });
        }
        Image { published, built, chain }
    }

    pub fn indexed() -> Image {
        Image::indexed_as("app")
    }

    /// Images of different names share no layer.
    pub fn indexed_as(name: &str) -> Image {
        let dir = tempfile::tempdir().unwrap();
        let built = layout(dir.path(), name);
        Image::of(Published::indexed(&built.directory), built)
    }

    /// Those of containerd's CRI plugin.
    pub fn labels(&self, layer: usize) -> BTreeMap<String, String> {
        let cri = |name: &str| format!("containerd.io/snapshot/cri.{name}");
        [
            (TARGET.to_owned(), self.chain[layer].clone()),
            (cri("image-ref"), self.published.name.clone()),
            (cri("layer-digest"), self.built.layers[layer].clone()),
            (cri("image-layers"), self.built.layers[layer..].join(",")),
            (cri("manifest-digest"), self.published.digest.clone()),
        ]
        .into()
    }
}

/// What mounts show; unmounted when dropped.
pub struct Shown(pub PathBuf);

pub fn show(node: &Node, mounts: &[Mount]) -> Shown {
    let [mount] = mounts else { panic!("{mounts:?}") };
    let point = tempfile::tempdir_in(node.path("")).unwrap().keep();
    let options = mount.options.join(",");
    let mut command = Command::new("mount");
    if mount.r#type == "bind" {
        command.arg("--bind").args(["-o", &options]).arg(&mount.source);
    } else {
        command.args(["-t", &mount.r#type, "-o", &options, &mount.source]);
    }
    process::run(command.arg(&point)).unwrap();
    Shown(point)
}

impl Shown {
    pub fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.0.join(path)).unwrap()
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = process::run(Command::new("umount").arg(&self.0));
    }
}

pub fn lower(mounts: &[Mount]) -> Vec<String> {
    let lower = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    lower.unwrap_or_else(|| panic!("{mounts:?}")).split(':').map(str::to_owned).collect()
}

/// Folders of images that are mounted.
pub fn images(node: &Node) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let images = node.store("snapshotter/images");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(&images)).map(str::to_owned).collect()
}

pub fn wait_no_images(node: &Node) {
    process::wait_until("the images to be let go", Duration::from_secs(20), || Ok(images(node).is_empty()))
        .unwrap();
    process::wait_until("nobody to serve them", Duration::from_secs(20), || {
        Ok(fs::read_dir(node.store("mounts")).map_or(0, Iterator::count) == 0)
    })
    .unwrap();
}

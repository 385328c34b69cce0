//! The snapshotter as containerd asks it, over its socket: layers that are not unpacked, and what they are
//! mounted from. containerd's own tests of ordinary snapshots are in tests/containerd-suite.

mod node;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hoist_snapshotter::api::snapshots_client::SnapshotsClient;
use hoist_snapshotter::api::*;
use hoist_testkit::containerd;
use hoist_testkit::grpc::Channel;
use hoist_testkit::layout::{Builder, Built, Compression};
use hoist_testkit::{diff, digest, process, walk};
use node::daemon::Daemon;
use node::{Node, Published};
use rustix::process::Signal;
use tonic::{Code, Status};

const TARGET: &str = "containerd.io/snapshot.ref";

/// A node whose daemon serves containerd.
struct Snapshots {
    runtime: tokio::runtime::Runtime,
    socket: PathBuf,
}

fn serve(node: &Node) -> (Daemon<'_>, Snapshots) {
    let socket = node.path("snapshotter.sock");
    let daemon =
        Daemon::start(node, &["--log-format", "json", "--snapshotter-socket", socket.to_str().unwrap()]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    (daemon, Snapshots { runtime: runtime.unwrap(), socket })
}

type Client = SnapshotsClient<Channel>;

impl Snapshots {
    /// Anew for each call: the daemon may be another one by now.
    async fn client(socket: &Path) -> Client {
        let channel = Channel::connect(socket).await.unwrap();
        SnapshotsClient::with_origin(channel, "http://localhost".parse().unwrap())
    }

    fn ask<T>(
        &self,
        ask: impl AsyncFnOnce(Client) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Status> {
        self.runtime
            .block_on(async { ask(Self::client(&self.socket).await).await.map(tonic::Response::into_inner) })
    }

    fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<Vec<Mount>, Status> {
        let request = prepare_request(key, parent, labels);
        self.ask(async |mut client| client.prepare(request).await).map(|answer| answer.mounts)
    }

    fn view(&self, key: &str, parent: &str) -> Vec<Mount> {
        let request =
            ViewSnapshotRequest { key: key.into(), parent: parent.into(), ..ViewSnapshotRequest::default() };
        self.ask(async |mut client| client.view(request).await).unwrap().mounts
    }

    fn remove(&self, key: &str) {
        let request = RemoveSnapshotRequest { key: key.into(), snapshotter: String::new() };
        self.ask(async |mut client| client.remove(request).await).unwrap();
    }

    /// As containerd looks for a layer that is there already (its core/metadata/snapshot.go).
    fn find(&self, target: &str, parent: &str) -> Vec<Info> {
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
    fn pull(&self, image: &Image, name: &str) -> String {
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

fn prepare_request(key: &str, parent: &str, labels: &BTreeMap<String, String>) -> PrepareSnapshotRequest {
    let (key, parent, labels) = (key.into(), parent.into(), labels.clone());
    PrepareSnapshotRequest { key, parent, labels, snapshotter: String::new() }
}

/// An image in a registry, and what containerd says of its layers.
struct Image {
    published: Published,
    built: Built,
    chain: Vec<String>,
}

/// Three layers: a file in each, one of all replaced and one removed by the uppermost.
fn layout(dir: &Path, name: &str) -> Built {
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
    fn of(published: Published, built: Built) -> Image {
        let mut chain: Vec<String> = Vec::new();
        for diff_id in &built.diff_ids {
            chain.push(match chain.last() {
                Some(below) => digest::of_bytes(format!("{below} {diff_id}").as_bytes()),
                None => diff_id.clone(),
            });
        }
        Image { published, built, chain }
    }

    fn indexed() -> Image {
        let dir = tempfile::tempdir().unwrap();
        let built = layout(dir.path(), "app");
        Image::of(Published::indexed(&built.directory), built)
    }

    /// Those of containerd's CRI plugin.
    fn labels(&self, layer: usize) -> BTreeMap<String, String> {
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
struct Shown(PathBuf);

fn show(node: &Node, mounts: &[Mount]) -> Shown {
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
    fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.0.join(path)).unwrap()
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = process::run(Command::new("umount").arg(&self.0));
    }
}

fn lower(mounts: &[Mount]) -> Vec<String> {
    let lower = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    lower.unwrap_or_else(|| panic!("{mounts:?}")).split(':').map(str::to_owned).collect()
}

/// Folders of images that are mounted.
fn images(node: &Node) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let images = node.store("snapshotter/images");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(&images)).map(str::to_owned).collect()
}

fn wait_no_images(node: &Node) {
    process::wait_until("the images to be let go", Duration::from_secs(20), || Ok(images(node).is_empty()))
        .unwrap();
    process::wait_until("nobody to serve them", Duration::from_secs(20), || {
        Ok(fs::read_dir(node.store("mounts")).map_or(0, Iterator::count) == 0)
    })
    .unwrap();
}

#[test]
fn an_image_is_one_mount_that_nobody_unpacked() {
    let image = Image::indexed();
    let containerd = containerd::Daemon::start().unwrap();
    let unpacked = containerd.unpack(&image.published.name).unwrap();
    let wanted = walk(unpacked.path()).unwrap();
    image.published.proxy.reset();

    let node = Node::new();
    let (daemon, snapshots) = serve(&node);
    let top = snapshots.pull(&image, "a");
    let asked = image.published.proxy.log();
    let of_layers =
        asked.iter().filter(|asked| image.built.layers.iter().any(|layer| asked.path.contains(layer)));
    assert_eq!(of_layers.count(), 0, "{asked:?}");
    assert_eq!(images(&node).len(), 1);
    let prepared =
        daemon.said().lines().filter(|line| line.contains("\"remote-snapshot-prepared\":\"true\"")).count();
    assert_eq!(prepared, 3, "{}", daemon.said());

    let mounts = snapshots.prepare("container", &top, &BTreeMap::new()).unwrap();
    assert_eq!(lower(&mounts), images(&node));
    let shown = show(&node, &mounts);
    let mut found = walk(&shown.0).unwrap();
    found.get_mut(&b"."[..]).unwrap().mtime_ns = wanted[&b"."[..]].mtime_ns;
    assert_eq!(diff(&found, &wanted), [""; 0]);
    fs::rename(shown.0.join("etc"), shown.0.join("moved")).unwrap();
    assert_eq!(shown.read("moved/1"), vec![1; 300_000]);
    assert_eq!(snapshots.view("look", &top)[0].r#type, "bind");

    // What it takes is what is here of it.
    let usage = UsageRequest { key: top.clone(), snapshotter: String::new() };
    let usage = snapshots.ask(async |mut client| client.usage(usage).await).unwrap();
    assert!(usage.size >= 300_000 && usage.size < 1 << 20, "{usage:?}");

    drop(shown);
    for key in ["look", "container", &image.chain[2], &image.chain[1], &image.chain[0]] {
        snapshots.remove(key);
    }
    wait_no_images(&node);
    process::wait_until("the layers to be freed", Duration::from_secs(20), || {
        Ok(fs::read_dir(node.store("layers"))?.count() == 0)
    })
    .unwrap();
}

#[test]
fn a_killed_daemon_and_the_next_leave_containers_running() {
    let image = Image::indexed();
    let node = Node::new();
    let (mut daemon, snapshots) = serve(&node);
    let top = snapshots.pull(&image, "a");
    let shown = show(&node, &snapshots.prepare("container", &top, &BTreeMap::new()).unwrap());
    daemon.signal(Signal::KILL);
    daemon.wait();
    // By its successor.
    assert_eq!(shown.read("etc/1"), vec![1; 300_000]);

    let (mut daemon, snapshots) = serve(&node);
    assert_eq!(snapshots.pull(&image, "again"), top);
    let mounts = snapshots.prepare("second", &top, &BTreeMap::new()).unwrap();
    assert_eq!((lower(&mounts), images(&node).len()), (images(&node), 1));
    let second = show(&node, &mounts);
    assert_eq!(second.read("etc/2"), vec![2; 300_000]);
    let request = MountsRequest { key: "container".into(), snapshotter: String::new() };
    let again = snapshots.ask(async |mut client| client.mounts(request).await).unwrap().mounts;
    assert_eq!(lower(&again), images(&node));

    // Told to end, it hands over what containers stand on.
    daemon.end();
    assert_eq!(shown.read("same"), b"of layer 2 of app");
    let (_daemon, snapshots) = serve(&node);
    drop((shown, second));
    for key in ["container", "second", &image.chain[2], &image.chain[1], &image.chain[0]] {
        snapshots.remove(key);
    }
    wait_no_images(&node);
}

#[test]
fn an_image_that_is_gone_is_mounted_again_where_it_is_needed() {
    let image = Image::indexed();
    let node = Node::new();
    let (daemon, snapshots) = serve(&node);
    let top = snapshots.pull(&image, "a");
    // As after a reboot.
    for folder in images(&node) {
        process::run(Command::new("umount").arg(folder)).unwrap();
    }
    let shown = show(&node, &snapshots.prepare("container", &top, &BTreeMap::new()).unwrap());
    assert_eq!(shown.read("etc/2"), vec![2; 300_000]);
    drop(shown);
    drop(daemon);
}

#[test]
fn layers_below_the_uppermost_are_stood_on_too() {
    let image = Image::indexed();
    let node = Node::new();
    let (_daemon, snapshots) = serve(&node);
    snapshots.pull(&image, "a");
    // An image that ends here, or one whose next layer has to be unpacked.
    let mounts = snapshots.prepare("next", &image.chain[1], &BTreeMap::new()).unwrap();
    assert_eq!(lower(&mounts).len(), 1);
    let shown = show(&node, &mounts);
    assert_eq!((shown.read("etc/0"), shown.read("same")), (vec![0; 300_000], b"of layer 1 of app".to_vec()));
    fs::write(shown.0.join("new"), "x").unwrap();
    drop(shown);
    let request = CommitSnapshotRequest { name: "upper".into(), key: "next".into(), ..Default::default() };
    snapshots.ask(async |mut client| client.commit(request).await).unwrap();
    let mounts = snapshots.prepare("container", "upper", &BTreeMap::new()).unwrap();
    assert_eq!(lower(&mounts).len(), 2);
    let shown = show(&node, &mounts);
    assert_eq!((shown.read("new"), shown.read("etc/1")), (b"x".to_vec(), vec![1; 300_000]));
}

#[test]
fn what_cannot_be_lazy_is_left_to_containerd() {
    let dir = tempfile::tempdir().unwrap();
    let built = layout(dir.path(), "plain");
    let image = Image::of(Published::plain(&built.directory), built);
    let node = Node::new();
    let (daemon, snapshots) = serve(&node);
    // No index.
    snapshots.prepare("plain", "", &image.labels(0)).unwrap();
    assert!(daemon.said().contains("\"remote-snapshot-prepared\":\"false\""), "{}", daemon.said());
    // No such layer, no such image, no image named.
    let mut labels = image.labels(0);
    labels.insert(TARGET.into(), image.chain[1].clone());
    snapshots.prepare("other", "", &labels).unwrap();
    labels.insert("containerd.io/snapshot/cri.image-ref".into(), "no image!".into());
    snapshots.prepare("wrong", "", &labels).unwrap();
    snapshots.prepare("unnamed", "", &[(TARGET.to_owned(), image.chain[0].clone())].into()).unwrap();
    assert_eq!(images(&node), [""; 0]);
}

#[test]
fn many_who_want_an_image_at_once_fetch_it_once() {
    let alone = Image::indexed();
    let node = Node::new();
    let (_daemon, snapshots) = serve(&node);
    snapshots.pull(&alone, "a");
    let wanted = alone.published.proxy.log().len();

    let image = Image::indexed();
    let node = Node::new();
    let (_daemon, snapshots) = serve(&node);
    let labels = image.labels(0);
    let socket = &snapshots.socket;
    let all = snapshots.runtime.block_on(async {
        let mut all = tokio::task::JoinSet::new();
        for i in 0..20 {
            let request = prepare_request(&format!("pod-{i}"), "", &labels);
            let socket = socket.clone();
            all.spawn(async move { Snapshots::client(&socket).await.prepare(request).await });
        }
        all.join_all().await
    });
    for answer in all {
        assert_eq!(answer.unwrap_err().code(), Code::AlreadyExists);
    }
    snapshots.pull(&image, "a");
    assert_eq!(image.published.proxy.log().len(), wanted);
    assert_eq!(images(&node).len(), 1);
}

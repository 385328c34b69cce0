//! A node as the tests see it: the real binary with a store of its own, and images in a real registry.
// Each test program uses its own part of this.
#![allow(dead_code)]

pub mod case;
pub mod daemon;
pub mod deb;
pub mod disk;
pub mod pids;
pub mod tar;
pub mod tree;
pub mod user;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

pub use hoist_testkit::system::unmount_below;
use hoist_testkit::{Proxy, ProxyOptions, Registry, process, push_layout};
use rustix::process::{Pid, Signal};
use serde_json::Value;

/// A machine that runs hoist. What is mounted below its folder is unmounted at its end.
pub struct Node {
    dir: tempfile::TempDir,
    store: PathBuf,
    driver: Option<&'static str>,
    /// Its daemon, where every node has one (`through_daemon.rs`): from the first command on.
    daemon: OnceLock<Child>,
}

/// The drivers that are held to a promise: all of them, or those that another kernel has which the tests are run on
/// (`old_kernels.rs`), by `HOIST_TEST_DRIVERS`.
pub fn drivers() -> Vec<&'static str> {
    let named = std::env::var("HOIST_TEST_DRIVERS").ok();
    let has = |driver: &&str| named.as_ref().is_none_or(|named| named.split(',').any(|name| name == *driver));
    ["erofs", "erofs-fuse", "fuse"].into_iter().filter(has).collect()
}

/// Of these the daemon has what the first command has: they are not a client's to say.
const OF_THE_DAEMON: [&str; 3] = ["--background", "--read-timeout", "--store-limit"];

impl Node {
    /// A configuration by which the image is asked of the mirror first.
    pub fn mirrored(&self, image: &Published, mirror: &Proxy) -> PathBuf {
        let folder = self.path("certs.d").join(image.proxy.host().replace(':', "_"));
        let by_host = self.path("certs.d").join(image.proxy.host());
        for folder in [&folder, &by_host] {
            fs::create_dir_all(folder).unwrap();
            let hosts = format!(
                "server = \"http://{}\"\n[host.\"http://{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
                image.proxy.host(),
                mirror.host()
            );
            fs::write(folder.join("hosts.toml"), hosts).unwrap();
        }
        let config = self.path("hoist.toml");
        fs::write(&config, format!("certs_dirs = [{:?}]\n", self.path("certs.d"))).unwrap();
        config
    }

    /// With an empty store.
    pub fn new() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        Node { dir, store, driver: None, daemon: OnceLock::new() }
    }

    /// With its folder in another.
    pub fn within(folder: &Path) -> Node {
        let dir = tempfile::tempdir_in(folder).unwrap();
        let store = dir.path().join("store");
        Node { dir, store, driver: None, daemon: OnceLock::new() }
    }

    /// With its store in a folder of the test's own.
    pub fn with_store(store: &Path) -> Node {
        Node {
            dir: tempfile::tempdir().unwrap(),
            store: store.to_owned(),
            driver: None,
            daemon: OnceLock::new(),
        }
    }

    /// The same node, whose mounts are made by this driver.
    pub fn with_driver(mut self, driver: &'static str) -> Node {
        self.driver = Some(driver);
        self
    }

    /// A path in its store.
    pub fn store(&self, name: &str) -> PathBuf {
        self.store.join(name)
    }

    /// Makes its store, with nothing in it: no command does that alone.
    pub fn make_store(&self) {
        hoist_engine::store::Store::open(&self.store).unwrap();
    }

    /// A path in its folder, beside the store.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command, not yet started.
    pub fn hoist(&self, args: &[&str]) -> Command {
        // Once more, by programs that do nothing else.
        if env!("CARGO_CRATE_NAME") == "through_daemon" {
            self.daemon.get_or_init(|| self.start_daemon(args));
        }
        self.bare(args)
    }

    fn start_daemon(&self, args: &[&str]) -> Child {
        let mut command = self.bare(&["daemon", "--log", "info"]);
        for pair in args.windows(2).filter(|pair| OF_THE_DAEMON.contains(&pair[0])) {
            command.args(pair);
        }
        let log = fs::File::create(self.path("daemon.log")).unwrap();
        let daemon = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let listens = || Ok(std::os::unix::net::UnixStream::connect(self.store("hoist.sock")).is_ok());
        process::wait_until("the node's daemon", Duration::from_secs(30), listens).unwrap();
        daemon
    }

    fn bare(&self, args: &[&str]) -> Command {
        let mut command = Command::new(user::program());
        command.env_remove("HOIST_TRUST_INDEX").env("HOIST_ROOT", &self.store);
        if let Some(driver) = self.driver {
            command.env("HOIST_DRIVER", driver);
        }
        command.args(args).stdin(Stdio::null());
        command
    }

    /// What a command prints that must succeed.
    pub fn says(&self, args: &[&str]) -> String {
        let output = self.hoist(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}{}", stderr(&output), self.logs());
        String::from_utf8(output.stdout).unwrap()
    }

    /// The error of a command that must fail, with a word to the user and no panic.
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.hoist(args).output().unwrap();
        let said = stderr(&output);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {} {said}", output.status);
        assert!(said.contains("error: "), "{args:?}: {said}");
        assert!(!said.contains("panicked") && !said.contains("internal:"), "{args:?}: {said}");
        said
    }

    /// Mounts an image on a folder of its own.
    pub fn mount(&self, image: &str, options: &[&str]) -> Mounted<'_> {
        self.try_mount(image, options).unwrap_or_else(|said| panic!("{image}: {said}{}", self.logs()))
    }

    /// The same, or the error.
    pub fn try_mount(&self, image: &str, options: &[&str]) -> Result<Mounted<'_>, String> {
        let point = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        let stats = point.with_extension("json");
        let fixed = ["mount", "--stats", stats.to_str().unwrap(), image, point.to_str().unwrap()];
        let output = self.hoist(&[&fixed[..], options].concat()).output().unwrap();
        match output.status.success() {
            true => Ok(Mounted { node: self, point, stats }),
            false => {
                let said = stderr(&output);
                assert!(!said.contains("panicked") && !said.contains("internal:"), "{said}");
                Err(said)
            }
        }
    }

    /// The folders of its store's layers.
    pub fn layers(&self) -> Vec<PathBuf> {
        let mut folders: Vec<_> =
            fs::read_dir(self.store("layers")).unwrap().map(|entry| entry.unwrap().path()).collect();
        folders.sort();
        folders
    }

    /// Waits until a layer is complete and was found to be the image's.
    pub fn wait_verified(&self) {
        let is_verified = |layer: PathBuf| {
            let state = fs::read_to_string(layer.join("state.json")).unwrap_or_default();
            state.contains(r#""complete":true,"verified":true"#)
        };
        process::wait_until("the layer's check", Duration::from_secs(30), || {
            Ok(self.layers().into_iter().any(is_verified))
        })
        .unwrap_or_else(|e| panic!("{e}{}", self.logs()));
    }

    /// The folder of an image in its store.
    pub fn image(&self, digest: &str) -> PathBuf {
        self.store("images").join(digest.trim_start_matches("sha256:"))
    }

    /// The processes that serve its mounts.
    pub fn servers(&self) -> Vec<i32> {
        self.leases("filler_pid")
    }

    /// Their keepers.
    pub fn keepers(&self) -> Vec<i32> {
        self.leases("keeper_pid")
    }

    fn leases(&self, field: &str) -> Vec<i32> {
        let files = fs::read_dir(self.store("mounts")).unwrap().map(|e| e.unwrap().path());
        let leases = files.filter(|path| path.extension().is_some_and(|e| e == "lease"));
        let read = |path: PathBuf| serde_json::from_slice::<Value>(&fs::read(path).ok()?).ok();
        leases.filter_map(|path| i32::try_from(read(path)?[field].as_i64()?).ok()).collect()
    }

    /// Whether the store holds that an index lied, within a while.
    pub fn wait_distrusted(&self) {
        process::wait_until("the verdict on the index", Duration::from_secs(20), || {
            Ok(fs::read_dir(self.store("distrusted"))?.next().is_some())
        })
        .unwrap_or_else(|e| panic!("{e}{}", self.logs()));
    }

    /// What the processes in the background have logged.
    pub fn logs(&self) -> String {
        let entries = fs::read_dir(self.store("log")).into_iter().flatten().flatten().map(|e| e.path());
        let all = entries.chain([self.path("daemon.log")]);
        all.map(|path| format!("\n-- log\n{}", fs::read_to_string(path).unwrap_or_default())).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        unmount_below(self.dir.path());
        if let Some(mut daemon) = self.daemon.take() {
            let _ = rustix::process::kill_process(Pid::from_child(&daemon), Signal::TERM);
            let ended = process::wait_until("the daemon's end", Duration::from_secs(30), || {
                Ok(daemon.try_wait()?.is_some())
            });
            if ended.is_err() {
                let _ = daemon.kill();
                let _ = daemon.wait();
            }
        }
    }
}

/// An image mounted by a process in the background; unmounted when dropped.
pub struct Mounted<'a> {
    node: &'a Node,
    point: PathBuf,
    stats: PathBuf,
}

impl Mounted<'_> {
    /// Where.
    pub fn root(&self) -> &Path {
        &self.point
    }

    /// A file's content.
    pub fn read(&self, path: &str) -> std::io::Result<Vec<u8>> {
        fs::read(self.point.join(path))
    }

    /// Reads a range of a file.
    pub fn read_at(&self, path: &str, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        fs::File::open(self.point.join(path))?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Unmounts and returns what `--stats` wrote.
    pub fn unmount(self) -> Value {
        self.node.says(&["unmount", self.point.to_str().unwrap()]);
        serde_json::from_slice(&fs::read(&self.stats).unwrap()).unwrap()
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = self.node.hoist(&["unmount", self.point.to_str().unwrap()]).output();
    }
}

/// An image in a real registry, behind a proxy that counts and misbehaves on demand.
pub struct Published {
    pub proxy: Proxy,
    pub registry: Registry,
    /// `host:port/repo:tag`, through the proxy.
    pub name: String,
    /// Its manifest's digest.
    pub digest: String,
}

/// The repository that the tests push to.
pub const REPO: &str = "app";

impl Published {
    /// Pushes a layout, without an index.
    pub fn plain(layout: &Path) -> Published {
        let registry = Registry::start().unwrap();
        let proxy = Proxy::start(registry.address(), ProxyOptions::default()).unwrap();
        let digest = push_layout(&registry.host(), REPO, "v1", layout).unwrap().digest;
        let name = format!("{}/{REPO}:v1", proxy.host());
        Published { proxy, registry, name, digest }
    }

    /// Pushes a layout and publishes its index from a node of its own.
    pub fn indexed(layout: &Path) -> Published {
        let published = Published::plain(layout);
        Node::new().says(&["index", "--push", &published.name]);
        published.proxy.reset();
        published
    }

    fn manifest(&self, of: &str) -> Value {
        let path = format!("/v2/{REPO}/manifests/{of}");
        let accept = [("accept", "application/vnd.oci.image.manifest.v1+json")];
        let found = hoist_testkit::http::get(&self.registry.host(), &path, &accept).unwrap();
        assert_eq!(found.status, 200);
        serde_json::from_slice(&found.body).unwrap()
    }

    /// The digests of its layers.
    pub fn layers(&self) -> Vec<String> {
        let manifest = self.manifest(&self.digest);
        let layers = manifest["layers"].as_array().unwrap().iter();
        layers.map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
    }

    /// The digest of its configuration.
    pub fn config(&self) -> String {
        self.manifest(&self.digest)["config"]["digest"].as_str().unwrap().to_owned()
    }

    /// The tag under which its index is found at once.
    pub fn index_tag(&self) -> String {
        format!("{}.hoist", self.digest.replace(':', "-"))
    }

    /// The published index's manifest.
    pub fn index(&self) -> Value {
        self.manifest(&self.index_tag())
    }

    /// The digests of the index's parts whose media type contains `kind`.
    pub fn parts(&self, kind: &str) -> Vec<String> {
        let index = self.index();
        let parts = index["layers"].as_array().unwrap().iter();
        let of_kind = parts.filter(|part| part["mediaType"].as_str().unwrap().contains(kind));
        of_kind.map(|part| part["digest"].as_str().unwrap().to_owned()).collect()
    }
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A number of a `--stats` file.
pub fn count(stats: &Value, field: &str) -> u64 {
    stats[field].as_u64().unwrap_or_else(|| panic!("{field} in {stats}"))
}

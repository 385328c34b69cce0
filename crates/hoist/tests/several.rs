//! Several mounts in one process: a successor takes over each by itself.
//!
//! The process that serves them is this program, started anew: so this file has its own `main`. Its successors are
//! hoist's own.

mod node;

use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hoist_engine::progress::Silent;
use hoist_engine::{Config, Driver, Engine, Successor, Use};
use hoist_testkit::layout::Compression;
use hoist_testkit::process;
use node::case::PATIENCE;
use node::tree::{Source, noise};
use node::{Node, Published};

const DRIVERS: [Driver; 3] = Driver::ALL;

fn main() {
    assert!(hoist_sys::keeper::main_if_asked().is_none(), "successors are hoist's own");
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, role, driver, root, mounts @ ..] = &arguments[..]
        && role == "filler"
    {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        return runtime.block_on(fill(driver, Path::new(root), mounts));
    }
    for driver in DRIVERS {
        each_is_taken_over_by_itself(driver);
        println!("each_is_taken_over_by_itself, driver {}: ok", driver.name());
    }
}

/// Serves image after image, each on the folder named behind it, until it is killed.
async fn fill(driver: &str, root: &Path, mounts: &[String]) {
    let mut config = Config::new(root.to_owned());
    config.driver = DRIVERS.into_iter().find(|d| d.name() == driver);
    let arguments = ["--root".into(), root.into(), "serve".into()].into();
    config.successor = Some(Successor { program: env!("CARGO_BIN_EXE_hoist").into(), arguments });
    let engine = Engine::open(config).unwrap();
    let mut serving = Vec::new();
    for [image, target] in mounts.as_chunks().0 {
        let image = engine.resolve(image).await.unwrap();
        let mount = engine.mount(&image, Path::new(target), Use::Look, &Silent).await;
        serving.push(mount.unwrap());
    }
    // One that fails is not counted off the others.
    let image = engine.resolve(&mounts[0]).await.unwrap();
    let no_folder = root.join("version");
    assert!(engine.mount(&image, &no_folder, Use::Look, &Silent).await.is_err());
    println!("up");
    std::future::pending::<()>().await;
}

/// Killed and reaped when dropped, as by a test that fails.
struct Filler(Child);

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(driver: Driver, node: &Node, mounts: &[(&str, &Path)]) -> Filler {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["filler", driver.name()]).arg(node.store("")).stdout(Stdio::piped());
    for (image, target) in mounts {
        command.arg(image).arg(target);
    }
    let mut filler = Filler(command.spawn().unwrap());
    let mut line = String::new();
    BufReader::new(filler.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    filler
}

/// The lease of what is mounted there.
fn lease(node: &Node, target: &Path) -> PathBuf {
    let files = fs::read_dir(node.store("mounts")).unwrap().map(|e| e.unwrap().path());
    let mut records = files.filter(|path| path.extension().is_some_and(|e| e == "json"));
    let of = |path: &PathBuf| {
        let record: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        record["target"] == target.to_str().unwrap()
    };
    records.find(of).unwrap().with_extension("lease")
}

fn is_held(lease: &Path) -> bool {
    File::open(lease).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Two go on; the third, of which the store has lost the manifest, goes out of service and holds up nobody.
fn each_is_taken_over_by_itself(driver: Driver) {
    let (good, bad) = (Source::new(), Source::new());
    bad.write("etc/other", &noise(99, 50_000));
    let publish = |source: &Source| Published::indexed(&source.layout(Compression::Gzip(6)).directory);
    let (image, broken) = (publish(&good), publish(&bad));
    let node = Node::new();
    let points = ["a", "b", "c"].map(|name| node.path(name));
    points.iter().for_each(|point| fs::create_dir(point).unwrap());
    let [a, b, c] = points.each_ref().map(PathBuf::as_path);
    let filler = start(driver, &node, &[(&image.name, a), (&broken.name, b), (&image.name, c)]);
    assert_eq!(fs::read(b.join("etc/motd")).unwrap(), bad.read("etc/motd"));
    let (lost, kept) = (lease(&node, b), lease(&node, a));
    let digest = broken.digest.trim_start_matches("sha256:").to_owned();
    fs::remove_file(node.store("images").join(digest).join("manifest.json")).unwrap();
    drop(filler);
    good.assert_shown(a);
    good.assert_shown(c);
    process::wait_until("the end of the broken mount", PATIENCE, || Ok(!is_held(&lost)))
        .unwrap_or_else(|e| panic!("{e}{}", node.logs()));
    assert_eq!(fs::read_dir(b).unwrap().count(), 0, "{}", node.logs());
    assert!(node.logs().contains("cannot be served any more"), "{}", node.logs());
    assert!(is_held(&kept));
    for point in [a, c] {
        node.says(&["unmount", point.to_str().unwrap()]);
    }
    process::wait_until("the end of the successor", PATIENCE, || Ok(node.servers().is_empty())).unwrap();
}

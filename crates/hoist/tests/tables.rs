//! Tables that nobody has used for a while are not in memory; who reads next does not notice.
//!
//! The mounts are this process's own, which has its own keeper: so this file has its own `main`.

mod node;

use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hoist_engine::progress::Silent;
use hoist_engine::{Config, Driver, Engine, Mount, Use};
use hoist_testkit::{Fault, FaultKind, When, process};
use node::Node;
use node::case::{Case, PATIENCE};
use tokio::runtime::Runtime;

fn main() {
    assert!(hoist_sys::keeper::main_if_asked().is_none(), "there are no successors here");
    std::thread::scope(|scope| {
        for driver in Driver::ALL {
            scope.spawn(move || nobody_notices(driver));
        }
    });
    println!("nobody_notices, each driver: ok");
}

struct Served {
    engine: Engine,
    mount: Mount,
}

impl Served {
    fn start(runtime: &Runtime, node: &Node, image: &str, driver: Driver) -> Served {
        let mut config = Config::new(node.store(""));
        (config.driver, config.tables_for) = (Some(driver), Duration::from_millis(20));
        let point = node.path("point");
        fs::create_dir(&point).unwrap();
        runtime.block_on(async {
            let engine = Engine::open(config).unwrap();
            let image = engine.resolve(image).await.unwrap();
            let mount = engine.mount(&image, &point, Use::Look, &Silent).await.unwrap();
            Served { engine, mount }
        })
    }

    /// Reads a file, not from the page cache.
    fn read(&self, path: &str) -> std::io::Result<Vec<u8>> {
        let path = self.mount.target().join(path);
        rustix::fs::fadvise(File::open(&path)?, 0, None, rustix::fs::Advice::DontNeed)?;
        fs::read(path)
    }

    fn tables(&self) -> u64 {
        self.engine.counters().tables.load(Ordering::Relaxed)
    }

    /// Waits until the table is not in memory.
    fn wait_put_away(&self) {
        process::wait_until("the end of the table", PATIENCE, || Ok(self.tables() == 0)).unwrap();
    }

    fn present(&self) -> u64 {
        self.mount.layers()[0].present_bytes
    }
}

fn nobody_notices(driver: Driver) {
    let case = Case::new();
    let node = Node::new();
    let runtime = Runtime::new().unwrap();
    let mut served = Served::start(&runtime, &node, &case.image.name, driver);
    let name = driver.name();
    let is_right = |served: &Served, path: &str| {
        assert!(served.read(path).unwrap() == case.source.read(path), "{name}: {path} has wrong bytes");
    };
    let asked_for = |digest: &str| case.image.proxy.log().iter().filter(|r| r.path.contains(digest)).count();
    let ([windows], [table]) = (&case.image.parts("windows")[..], &case.image.parts("table")[..]) else {
        panic!("one layer");
    };

    is_right(&served, "lib/b.so");
    let here = served.present();
    assert_eq!(served.tables(), 1, "{name}");
    served.wait_put_away();
    assert!(here > 0 && served.present() >= here, "{name}: {} of {here}", served.present());

    // What is here is read again without anybody being asked, and it stays so.
    let before = case.image.proxy.log().len();
    is_right(&served, "lib/b.so");
    served.wait_put_away();
    is_right(&served, "lib/b.so");
    assert_eq!(case.image.proxy.log().len(), before, "{name}");

    // What is absent is fetched, whatever became of the stored table. The windows that came with the first are here.
    served.wait_put_away();
    let stored = node.layers()[0].join("table");
    let sound = fs::read(&stored).unwrap();
    let (tables, several) = (asked_for(table), asked_for(windows));
    damage(&stored);
    is_right(&served, "lib/d.so");
    assert_eq!(fs::read(&stored).unwrap(), sound, "{name}");
    assert_eq!((asked_for(table), asked_for(windows)), (tables + 1, several), "{name}");

    // Damaged and nowhere to be had it is an error, which passes.
    served.wait_put_away();
    damage(&stored);
    case.image.proxy.inject(Fault::new("GET /v2/", When::Always, FaultKind::Status(404, Vec::new())));
    assert_eq!(served.read("lib/a.so").unwrap_err().raw_os_error(), Some(libc::EIO), "{name}");
    case.image.proxy.clear_faults();
    process::wait_until("the registry", PATIENCE, || Ok(served.read("lib/a.so").is_ok())).unwrap();
    case.source.assert_shown(served.mount.target());

    // The table of a layer that is complete and verified is no exception.
    node.wait_verified();
    served.wait_put_away();

    runtime.block_on(served.mount.unmount()).unwrap();
    drop(served);
    runtime.shutdown_background();
}

fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    fs::write(path, bytes).unwrap();
}

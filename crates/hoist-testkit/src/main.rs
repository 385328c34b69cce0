//! The test kit's daemons and tools for shell scripts.

use hoist_testkit::overlaybd::Kind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use hoist_testkit::layout::{Builder, Compression};
use hoist_testkit::system::System;
use hoist_testkit::{
    Exceptions, Proxy, ProxyOptions, Registry, compare_tree, diff, http, push_layout, reading, walk,
};

#[derive(Parser)]
#[command(about = "Registries, proxies and images for hoist's demo, tests and benches")]
struct Arguments {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Run an empty docker-registry until told to end.
    Registry {
        /// Where to write its port, once it answers.
        #[arg(long)]
        port_file: PathBuf,
    },
    /// Run a slow, counting proxy until told to end.
    Proxy {
        /// `address:port` of the registry.
        #[arg(long)]
        upstream: SocketAddr,
        /// Where to listen.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// Milliseconds that each request takes longer.
        #[arg(long, default_value_t = 0)]
        delay_ms: u64,
        /// Bytes per second over all connections; 0 is unlimited.
        #[arg(long, default_value_t = 0)]
        rate: u64,
        /// Where to write its port, once it listens.
        #[arg(long)]
        port_file: Option<PathBuf>,
        /// Where to write the counts at the end, as JSON.
        #[arg(long)]
        stats_file: Option<PathBuf>,
    },
    /// Print a proxy's counts as JSON, or change it.
    ProxyCtl {
        /// `address:port` of the proxy.
        proxy: String,
        /// `stats`, `reset`, or `set?delay_ms=N&rate=BYTES`.
        what: String,
    },
    /// Have the system of another Debian until told to end: its folder `data` is on this machine's disk.
    System {
        /// Which, of those that `scripts/chroots` makes.
        debian: String,
        /// Where to write the process that keeps its mount namespace, and the path of its root.
        #[arg(long)]
        file: PathBuf,
    },
    /// Push an OCI layout with plain PUTs.
    Push {
        /// The layout's folder.
        layout: PathBuf,
        /// host:port/repository:tag.
        image: String,
    },
    /// Build an OCI layout from layer tars.
    Layout {
        /// The folder to make.
        directory: PathBuf,
        /// The tars, lowest layer first.
        #[arg(required = true)]
        tars: Vec<PathBuf>,
        /// The image's name in the layout.
        #[arg(long, default_value = "latest")]
        tag: String,
        /// gzip, pigz, zstd or none.
        #[arg(long, default_value = "gzip")]
        compression: String,
        /// The image's Cmd, as JSON.
        #[arg(long, default_value = r#"["/bin/sh"]"#)]
        cmd: String,
    },
    /// Make an OCI layout of an image as overlaybd stores it, from one of gzip layers without whiteouts.
    Overlaybd {
        /// The image's layout.
        from: PathBuf,
        /// The folder to make.
        to: PathBuf,
    },
    /// Make an OCI layout of an image as TurboOCI stores it, from one of gzip layers without whiteouts.
    Turbooci {
        /// The image's layout.
        from: PathBuf,
        /// The folder to make.
        to: PathBuf,
    },
    /// Read a tree and print seconds, paths and bytes: for benches.
    Read {
        /// walk, sequential or random.
        how: String,
        /// The tree.
        root: PathBuf,
        /// How many pages a random run reads.
        #[arg(long, default_value_t = 20_000)]
        count: u64,
    },
    /// Mount an EROFS image straight from its file: mount(8) would put a loop device between.
    MountErofs {
        /// The image.
        image: PathBuf,
        /// Where to mount it.
        target: PathBuf,
    },
    /// Compare two trees in every respect, or one with the fixtures' expected.jsonl.
    Compare {
        /// The tree to judge.
        found: PathBuf,
        /// What it must be like; the fixtures' tree if left out.
        wanted: Option<PathBuf>,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Subcommands::Registry { port_file } => {
            let registry = Registry::start()?;
            write_whole(&port_file, &registry.address().port().to_string())?;
            wait_for_end()
        }
        Subcommands::Proxy { upstream, listen, delay_ms, rate, port_file, stats_file } => {
            let options =
                ProxyOptions { delay: Duration::from_millis(delay_ms), rate: (rate > 0).then_some(rate) };
            let proxy = Proxy::start_on(listen, upstream, options)?;
            match port_file {
                Some(file) => write_whole(&file, &proxy.address().port().to_string())?,
                None => println!("{}", proxy.host()),
            }
            wait_for_end()?;
            if let Some(file) = stats_file {
                write_whole(&file, &serde_json::to_string(&proxy.stats())?)?;
            }
            Ok(())
        }
        Subcommands::System { debian, file } => {
            let system = System::of(&[&debian])?;
            let root = system.directory().parent().context("a system has a root")?.to_owned();
            let keeper = system.keeper().context("it has no mount namespace")?;
            write_whole(&file, &format!("{keeper} {}\n", root.display()))?;
            wait_for_end()
        }
        Subcommands::ProxyCtl { proxy, what } => {
            let answer = http::get(&proxy, &format!("/_testkit/{what}"), &[])?;
            println!("{}", String::from_utf8_lossy(&answer.body));
            Ok(())
        }
        Subcommands::Push { layout, image } => {
            let (host, rest) = image.split_once('/').context("the image must be host:port/repository:tag")?;
            let (repo, tag) = rest.rsplit_once(':').context("the image must be host:port/repository:tag")?;
            println!("{}", push_layout(host, repo, tag, &layout)?.digest);
            Ok(())
        }
        Subcommands::Layout { directory, tars, tag, compression, cmd } => {
            let compression = match compression.as_str() {
                "none" => Compression::None,
                "gzip" => Compression::Gzip(6),
                "pigz" => Compression::Pigz(6),
                "zstd" => Compression::Zstd(3),
                other => bail!("unknown compression {other}: use gzip, pigz, zstd or none"),
            };
            let mut builder = Builder::new(directory)?.config("Cmd", serde_json::from_str(&cmd)?);
            for tar in tars {
                builder = builder.layer(&tar, compression)?;
            }
            println!("{}", builder.write(&tag)?.manifest);
            Ok(())
        }
        Subcommands::Overlaybd { from, to } => hoist_testkit::overlaybd::convert(Kind::Blocks, &from, &to),
        Subcommands::Turbooci { from, to } => hoist_testkit::overlaybd::convert(Kind::Turbo, &from, &to),
        Subcommands::Read { how, root, count } => {
            let done = match how.as_str() {
                "walk" => reading::walk(&root)?,
                "sequential" => reading::sequential(&root)?,
                "random" => reading::random(&root, count)?,
                other => bail!("unknown reading {other}: use walk, sequential or random"),
            };
            let (took, longest) = (done.took.as_secs_f64(), done.longest.as_secs_f64());
            println!("{took:.6} {} {} {longest:.6}", done.paths, done.bytes);
            Ok(())
        }
        Subcommands::MountErofs { image, target } => {
            use rustix::mount::{MountFlags, mount};
            mount(&image, &target, "erofs", MountFlags::RDONLY, None)
                .with_context(|| format!("mounting {} on {}", image.display(), target.display()))
        }
        Subcommands::Compare { found, wanted } => {
            let lines = match wanted {
                Some(wanted) => diff(&walk(&found)?, &walk(&wanted)?),
                None => compare_tree(&found, &Exceptions::full())?,
            };
            for line in &lines {
                println!("{line}");
            }
            if !lines.is_empty() {
                bail!("{} differences", lines.len());
            }
            Ok(())
        }
    }
}

/// A reader that polls for the file never sees half of it.
fn write_whole(file: &std::path::Path, text: &str) -> Result<()> {
    let part = file.with_extension("part");
    std::fs::write(&part, text).with_context(|| format!("writing {}", part.display()))?;
    std::fs::rename(&part, file).with_context(|| format!("writing {}", file.display()))
}

fn wait_for_end() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut end = signal(SignalKind::terminate())?;
        tokio::select! {
            _ = end.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        Ok(())
    })
}

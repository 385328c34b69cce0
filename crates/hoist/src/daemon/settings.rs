//! The daemon's configuration file: TOML, every key said once in [`KEYS`].
//!
//! `docs/CONFIG.md` and `hoist daemon --help` are made from that table; an error names file, line, key and
//! what is allowed. What the file says counts; options and environment count for what it leaves out.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hoist_engine::Platform;
use toml::de::{DeTable, DeValue};

use crate::cli::{self, BackgroundFetch, Global, LogFormat, TrustIndex};
use crate::failure::user;

/// What the daemon goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The store.
    pub root: PathBuf,
    /// Filter of the log.
    pub log: String,
    /// Form of the log.
    pub log_format: LogFormat,
    /// The loosest trust that a client may ask for.
    pub trust_index: TrustIndex,
    /// Of images whose client names none.
    pub platform: Option<Platform>,
    /// Of registries whose client does not say.
    pub plain_http: Option<bool>,
    /// Folders of `hosts.toml` files; empty: the usual places.
    pub certs_dirs: Vec<PathBuf>,
    /// How long a read may wait.
    pub read_timeout: Duration,
    /// Most that layers may take on disk.
    pub store_limit: Option<u64>,
    /// Whether what nobody reads is fetched too.
    pub background: BackgroundFetch,
    /// Where metrics are served.
    pub metrics: Option<MetricsAt>,
    /// Whether mounts are made anew at the start.
    pub restore: bool,
    /// Where containerd is served.
    pub snapshotter_socket: Option<PathBuf>,
    /// What becomes of images that containerd pulls.
    pub containerd_images: ContainerdImages,
}

/// See the key `containerd_images`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ContainerdImages {
    /// Mounted at once where they can be, else unpacked by containerd.
    Lazy,
    /// Pulled whole first.
    Full,
}

/// See the key `metrics`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAt {
    /// HTTP on TCP.
    Tcp(SocketAddr),
    /// HTTP on a unix socket.
    Unix(PathBuf),
}

/// A key of the file.
pub struct Key {
    name: &'static str,
    /// What it may be.
    allowed: &'static str,
    /// What it is where the file does not say.
    default: &'static str,
    /// Whether a reload changes it.
    reloads: bool,
    help: &'static str,
    set: fn(&mut Settings, &DeValue<'_>) -> Option<()>,
}

/// All of them, in the order of the documentation.
pub const KEYS: &[Key] = &[
    Key {
        name: "root",
        allowed: "an absolute path, as \"/var/lib/hoist\"",
        default: "that of --root",
        reloads: false,
        help: "Store of layers, indexes and mounts. The daemon's socket is in it, but for /var/lib/hoist: \
               there it is /run/hoist/hoist.sock.",
        set: |settings, value| put(&mut settings.root, absolute(value)),
    },
    Key {
        name: "log",
        allowed: "a level (\"error\", \"warn\", \"info\", \"debug\", \"trace\") or target=level filters, as \"info,hoist_engine=debug\"",
        default: "that of --log",
        reloads: true,
        help: "What to log to stderr.",
        set: |settings, value| {
            let filter = value.as_str()?;
            tracing_subscriber::EnvFilter::try_new(filter).ok()?;
            put(&mut settings.log, Some(filter.to_owned()))
        },
    },
    Key {
        name: "log_format",
        allowed: "\"text\" or \"json\"",
        default: "that of --log-format",
        reloads: false,
        help: "Form of the log; JSON is one object a line.",
        set: |settings, value| put(&mut settings.log_format, choice(value)),
    },
    Key {
        name: "trust_index",
        allowed: "\"registry\", \"local\" or \"none\"",
        default: "that of --trust-index",
        reloads: true,
        help: "Which layer indexes to trust at most: a client may ask for less trust, never for more.",
        set: |settings, value| put(&mut settings.trust_index, choice(value)),
    },
    Key {
        name: "platform",
        allowed: "OS/ARCH[/VARIANT], as \"linux/arm64\"",
        default: "that of --platform, else this machine's",
        reloads: true,
        help: "Platform to choose from a multi-arch image, where the client names none.",
        set: |settings, value| put(&mut settings.platform, Some(Some(value.as_str()?.parse().ok()?))),
    },
    Key {
        name: "plain_http",
        allowed: "true or false",
        default: "that of --plain-http, else plain on loopback only",
        reloads: true,
        help: "Whether to talk plain HTTP to registries, where the client does not say.",
        set: |settings, value| put(&mut settings.plain_http, value.as_bool().map(Some)),
    },
    Key {
        name: "certs_dirs",
        allowed: "a list of absolute paths, as [\"/etc/containerd/certs.d\"]",
        default: "[\"/etc/containerd/certs.d\", \"/etc/docker/certs.d\"]",
        reloads: true,
        help: "Folders of containerd's hosts.toml files: mirrors, certificates, headers.",
        set: |settings, value| {
            let paths = value.as_array()?.iter().map(|path| absolute(path.get_ref()));
            put(&mut settings.certs_dirs, paths.collect::<Option<Vec<_>>>().filter(|dirs| !dirs.is_empty()))
        },
    },
    Key {
        name: "read_timeout",
        allowed: "a time, as \"90s\" or \"2m\"",
        default: "that of --read-timeout",
        reloads: false,
        help: "How long a read may wait for absent data before it fails with EIO.",
        set: |settings, value| put(&mut settings.read_timeout, crate::units::time(value.as_str()?).ok()),
    },
    Key {
        name: "store_limit",
        allowed: "a size, as \"20G\"",
        default: "that of --store-limit",
        reloads: true,
        help: "Most that the store's layers may take on disk: those not used for longest are removed.",
        set: |settings, value| {
            put(&mut settings.store_limit, crate::units::size(value.as_str()?).ok().map(Some))
        },
    },
    Key {
        name: "background",
        allowed: "\"off\", \"on\", or at most so many bytes a second, as \"20M\"",
        default: "that of --background",
        reloads: true,
        help: "Whether to fetch the rest of what is mounted too, while nobody waits for anything.",
        set: |settings, value| put(&mut settings.background, value.as_str()?.parse().ok()),
    },
    Key {
        name: "metrics",
        allowed: "\"ADDRESS:PORT\", as \"127.0.0.1:9464\", or \"unix:/PATH\"",
        default: "none are served",
        reloads: true,
        help: "Where to serve metrics for Prometheus, at /metrics (docs/METRICS.md). Nobody is asked for a \
               password there.",
        set: |settings, value| {
            let text = value.as_str()?;
            settings.metrics = Some(match text.strip_prefix("unix:") {
                Some(path) => MetricsAt::Unix(Some(path.into()).filter(|path: &PathBuf| path.is_absolute())?),
                None => MetricsAt::Tcp(text.parse().ok()?),
            });
            Some(())
        },
    },
    Key {
        name: "restore",
        allowed: "true or false",
        default: "true",
        reloads: false,
        help: "Whether to make the mounts of `hoist mount` anew at the start, as after a reboot.",
        set: |settings, value| put(&mut settings.restore, value.as_bool()),
    },
    Key {
        name: "snapshotter_socket",
        allowed: "an absolute path, as \"/run/hoist/snapshotter.sock\"",
        default: "that of --snapshotter-socket, else containerd is not served",
        reloads: false,
        help: "Socket of containerd's snapshots service: what containerd's proxy plugin is given as address.",
        set: |settings, value| put(&mut settings.snapshotter_socket, absolute(value).map(Some)),
    },
    Key {
        name: "containerd_images",
        allowed: "\"lazy\" or \"full\"",
        default: "\"lazy\"",
        reloads: true,
        help: "What becomes of an image that containerd pulls by the snapshotter: \"lazy\" mounts it before its layers are \
               here if it can, and leaves it to containerd to unpack if not; \"full\" has the pull wait until \
               hoist has all of it, verified.",
        set: |settings, value| put(&mut settings.containerd_images, choice(value)),
    },
];

fn put<T>(place: &mut T, value: Option<T>) -> Option<()> {
    *place = value?;
    Some(())
}

fn absolute(value: &DeValue<'_>) -> Option<PathBuf> {
    Some(PathBuf::from(value.as_str()?)).filter(|path| path.is_absolute())
}

fn choice<T: clap::ValueEnum>(value: &DeValue<'_>) -> Option<T> {
    T::from_str(value.as_str()?, false).ok()
}

impl Settings {
    /// What options and environment say.
    ///
    /// # Errors
    /// One of them is wrong: the user's to mend.
    pub fn of(global: &Global, options: &cli::Daemon) -> anyhow::Result<Settings> {
        Ok(Settings {
            root: global.root()?,
            log: global.log.clone(),
            log_format: options.log_format,
            trust_index: global.trust_index,
            platform: crate::engine_glue::platform(global)?,
            plain_http: global.plain_http,
            certs_dirs: Vec::new(),
            read_timeout: global.read_timeout,
            store_limit: global.store_limit,
            background: global.background,
            metrics: None,
            restore: true,
            snapshotter_socket: options.snapshotter_socket.as_deref().map(std::path::absolute).transpose()?,
            containerd_images: ContainerdImages::Lazy,
        })
    }

    /// What the file says on top of that.
    ///
    /// # Errors
    /// It can't be read or something in it is wrong: the user's to mend.
    pub fn read(mut self, file: &Path) -> anyhow::Result<Settings> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| user(format!("reading the configuration {}: {error}", file.display())))?;
        self.apply(&text).map_err(|(at, what)| {
            let line = text.get(..at).unwrap_or(&text).matches('\n').count() + 1;
            user(format!("{}:{line}: {what}", file.display()))
        })?;
        Ok(self)
    }

    /// The error is a place in the text and what is wrong there.
    fn apply(&mut self, text: &str) -> Result<(), (usize, String)> {
        let table = DeTable::parse(text)
            .map_err(|error| (error.span().map_or(0, |span| span.start), error.message().to_owned()))?;
        for (name, value) in table.get_ref() {
            let at = name.span().start;
            let Some(key) = KEYS.iter().find(|key| key.name == name.get_ref()) else {
                let known: Vec<_> = KEYS.iter().map(|key| key.name).collect();
                return Err((
                    at,
                    format!("there is no key {:?}; the keys are {}", name.get_ref(), known.join(", ")),
                ));
            };
            (key.set)(self, value.get_ref()).ok_or_else(|| {
                let found = text.get(value.span()).unwrap_or_default();
                (at, format!("{} can't be {found}; it is {}", key.name, key.allowed))
            })?;
        }
        Ok(())
    }

    /// Keys that differ and that a reload does not change.
    pub fn fixed_that_differ(&self, new: &Settings) -> Vec<&'static str> {
        let differ = [
            ("root", self.root != new.root),
            ("log_format", self.log_format != new.log_format),
            ("read_timeout", self.read_timeout != new.read_timeout),
            ("restore", self.restore != new.restore),
            ("snapshotter_socket", self.snapshotter_socket != new.snapshotter_socket),
        ];
        debug_assert!(
            differ.iter().all(|(name, _)| KEYS.iter().any(|key| key.name == *name && !key.reloads))
        );
        differ.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
    }
}

/// For `hoist daemon --help`.
pub fn help() -> String {
    let mut text =
        "Keys of the configuration file (TOML); what it says counts, options count for the rest:\n"
            .to_owned();
    for key in KEYS {
        text.push_str(&format!(
            "  {}\n      {}\n      {} [default: {}]\n",
            key.name, key.help, key.allowed, key.default
        ));
    }
    text.push_str(
        "SIGHUP reads it again (docs/CONFIG.md tells which keys it changes); SIGTERM ends the daemon.",
    );
    text
}

/// `docs/CONFIG.md`.
#[cfg(test)]
fn page() -> String {
    let mut page = "\
# Configuration of the daemon

`hoist daemon --config FILE` reads TOML. What the file says counts; options and environment count for what it
leaves out. An unknown key or a wrong value is an error that names file, line and what is allowed, and the daemon
does not start; at a reload (SIGHUP, `systemctl reload hoist`) it is logged and everything stays as it was.

This page is made from the table in `crates/hoist/src/daemon/settings.rs`.
"
    .to_owned();
    for key in KEYS {
        let reload = match key.reloads {
            true => "A reload changes it.",
            false => "It is read at the start: a reload says that it takes a restart.",
        };
        page.push_str(&format!(
            "\n## `{}`\n\n{}\n\nAllowed: {}. Default: {}. {reload}\n",
            key.name, key.help, key.allowed, key.default
        ));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        let args = ["hoist", "--root", "/store", "daemon"];
        let cli = <crate::cli::Cli as clap::Parser>::parse_from(args);
        let cli::Command::Daemon(options) = cli.command else { panic!("not the daemon") };
        Settings::of(&cli.global, &options).unwrap()
    }

    fn error(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hoist.toml");
        std::fs::write(&file, text).unwrap();
        let error = settings().read(&file).unwrap_err().to_string();
        error.replace(dir.path().to_str().unwrap(), "")
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
            root = "/other"
            log = "info,hoist_engine=debug"
            log_format = "json"
            trust_index = "local"
            platform = "linux/arm64/v8"
            plain_http = false
            certs_dirs = ["/a", "/b"]
            read_timeout = "16s"
            store_limit = "20G"
            background = "20M"
            metrics = "unix:/run/x.sock"
            restore = false
            snapshotter_socket = "/run/s.sock"
            containerd_images = "full"
        "#;
        let mut read = settings();
        read.apply(text).unwrap();
        assert_eq!(text.trim().lines().count(), KEYS.len(), "a key is not tried here");
        assert_eq!(read.root, Path::new("/other"));
        assert_eq!((read.log.as_str(), read.log_format), ("info,hoist_engine=debug", LogFormat::Json));
        assert_eq!(read.trust_index, TrustIndex::Local);
        assert_eq!(read.platform.as_ref().map(ToString::to_string).as_deref(), Some("linux/arm64/v8"));
        assert_eq!((read.plain_http, read.restore), (Some(false), false));
        assert_eq!(read.certs_dirs, [Path::new("/a"), Path::new("/b")]);
        assert_eq!(read.read_timeout, Duration::from_secs(16));
        assert_eq!((read.store_limit, read.background), (Some(20 << 30), BackgroundFetch::AtMost(20 << 20)));
        assert_eq!(read.metrics, Some(MetricsAt::Unix("/run/x.sock".into())));
        assert_eq!(read.snapshotter_socket.as_deref(), Some(Path::new("/run/s.sock")));
        assert_eq!(read.containerd_images, ContainerdImages::Full);
        let fixed: Vec<_> = KEYS.iter().filter(|key| !key.reloads).map(|key| key.name).collect();
        assert_eq!(settings().fixed_that_differ(&read), fixed);
        read.apply("metrics = \"[::1]:9464\"").unwrap();
        assert_eq!(read.metrics, Some(MetricsAt::Tcp("[::1]:9464".parse().unwrap())));
    }

    #[test]
    fn errors_name_file_line_key_and_what_is_allowed() {
        let keys: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        let keys = keys.join(", ");
        assert_eq!(
            error("\nlogs = 1"),
            format!("/hoist.toml:2: there is no key \"logs\"; the keys are {keys}")
        );
        assert_eq!(
            error("[daemon]"),
            format!("/hoist.toml:1: there is no key \"daemon\"; the keys are {keys}")
        );
        assert_eq!(
            error("# x\nrestore = \"yes\""),
            "/hoist.toml:2: restore can't be \"yes\"; it is true or false"
        );
        assert_eq!(
            error("read_timeout = 60"),
            "/hoist.toml:1: read_timeout can't be 60; it is a time, as \"90s\" or \"2m\""
        );
        assert_eq!(
            error("certs_dirs = [\n\"a\"\n]"),
            "/hoist.toml:1: certs_dirs can't be [\n\"a\"\n]; it is a list of absolute paths, as [\"/etc/containerd/certs.d\"]"
        );
        assert!(error("log = \"info\"\nlog = \"warn\"").starts_with("/hoist.toml:2: "));
        assert!(error("log = ").starts_with("/hoist.toml:1: "));
        // Of each key a value of another type is refused by what is allowed.
        for key in KEYS {
            let said = error(&format!("{} = 1979-05-27", key.name));
            assert_eq!(
                said,
                format!("/hoist.toml:1: {} can't be 1979-05-27; it is {}", key.name, key.allowed)
            );
        }
    }

    #[test]
    fn the_page_is_the_table() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/CONFIG.md");
        if std::env::var_os("HOIST_BLESS").is_some() {
            std::fs::write(&path, page()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), page(), "HOIST_BLESS=1 renews it");
    }
}

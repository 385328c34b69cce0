//! The daemon's configuration file: TOML, every key said once in `KEYS`.
//!
//! `docs/CONFIG.md` and `hoist daemon --help` are made from that table; an error names file, line, key and
//! what is allowed. What the file says counts; options and environment count for what it leaves out.

mod keys;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hoist_engine::Platform;
use hoist_engine::registry::Cluster;
use toml::de::DeTable;

pub use self::keys::choice;
use self::keys::{KEYS, Set};
use super::policy::{self, Mode, Rule};
use crate::cli::{self, BackgroundFetch, Given, Global, LogFormat, TrustIndex};
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
    /// Least that a registry must send in a second.
    pub min_rate: u64,
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
    pub containerd_images: Mode,
    /// The size below which "auto" is "full", bytes.
    pub full_below: u64,
    /// What becomes of some of them.
    pub images: Vec<Rule>,
    /// Where containerd listens.
    pub containerd_socket: PathBuf,
    /// Where the kubelet's image service is served.
    pub cri_socket: Option<PathBuf>,
    /// The kubelet's file of credential provider plugins.
    pub credential_provider_config: Option<PathBuf>,
    /// The folder of their programs.
    pub credential_provider_bin_dir: PathBuf,
    /// The cluster whose pull secrets are used.
    pub pull_secrets: Option<Cluster>,
    /// Keys that options or the environment have said: the file does not change them.
    pub given: Given,
    /// Those of them that the file has too.
    pub overridden: Vec<&'static str>,
}

/// See `full_below`: about what comes in the time in which a lazy mount is ready.
const SMALL: u64 = 32 << 20;
/// Where containerd listens, where nothing is said.
pub const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// Where a kubelet's plugins are, where nothing is said.
const PROVIDER_PROGRAMS: &str = "/usr/libexec/kubernetes/image-credential-provider";

/// See the key `metrics`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAt {
    /// HTTP on TCP.
    Tcp(SocketAddr),
    /// HTTP on a unix socket.
    Unix(PathBuf),
}

impl Settings {
    /// What options and environment say without those of `hoist daemon`.
    ///
    /// # Errors
    /// One of them is wrong: the user's to mend.
    pub fn of_global(global: &Global) -> anyhow::Result<Settings> {
        let none = cli::Daemon { config: None, log_format: LogFormat::Text, snapshotter_socket: None };
        Settings::of(global, &none)
    }

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
            min_rate: global.min_rate,
            store_limit: global.store_limit,
            background: global.background,
            metrics: None,
            restore: true,
            snapshotter_socket: options.snapshotter_socket.as_deref().map(std::path::absolute).transpose()?,
            containerd_images: Mode::Lazy,
            full_below: SMALL,
            images: Vec::new(),
            containerd_socket: CONTAINERD.into(),
            cri_socket: None,
            credential_provider_config: None,
            credential_provider_bin_dir: PROVIDER_PROGRAMS.into(),
            pull_secrets: None,
            given: global.given.clone(),
            overridden: Vec::new(),
        })
    }

    /// What the file says of what they leave out.
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
            // It has to be right, though it may not count.
            let mut unused = self.clone();
            let into = match self.given.contains(key.name) {
                true => {
                    self.overridden.push(key.name);
                    &mut unused
                }
                false => &mut *self,
            };
            let taken = match key.set {
                Set::Value(set) => set(into, value.get_ref()),
                Set::Rules if value.get_ref().is_array() => {
                    into.images = policy::parse(value.get_ref())?;
                    Some(())
                }
                Set::Rules => None,
            };
            taken.ok_or_else(|| {
                let found = text.get(value.span()).unwrap_or_default();
                (at, format!("{} can't be {found}; it is {}", key.name, key.allowed))
            })?;
        }
        Ok(())
    }

    /// The new ones, but for what a reload does not change.
    pub fn reloaded(self, new: Settings) -> Settings {
        Settings {
            root: self.root,
            log_format: self.log_format,
            read_timeout: self.read_timeout,
            min_rate: self.min_rate,
            restore: self.restore,
            snapshotter_socket: self.snapshotter_socket,
            containerd_socket: self.containerd_socket,
            cri_socket: self.cri_socket,
            ..new
        }
    }

    /// Keys that differ and that a reload does not change.
    pub fn fixed_that_differ(&self, new: &Settings) -> Vec<&'static str> {
        let differ = [
            ("root", self.root != new.root),
            ("log_format", self.log_format != new.log_format),
            ("read_timeout", self.read_timeout != new.read_timeout),
            ("min_rate", self.min_rate != new.min_rate),
            ("restore", self.restore != new.restore),
            ("snapshotter_socket", self.snapshotter_socket != new.snapshotter_socket),
            ("containerd_socket", self.containerd_socket != new.containerd_socket),
            ("cri_socket", self.cri_socket != new.cri_socket),
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
        "Keys of the configuration file (TOML); options and environment count before it:\n".to_owned();
    for key in KEYS {
        text.push_str(&format!(
            "  {}\n      {}\n      {} [default: {}]\n",
            key.name, key.help, key.allowed, key.default
        ));
        if matches!(key.set, Set::Rules) {
            for key in policy::RULE_KEYS {
                text.push_str(&format!("      {}: {}\n          {}\n", key.name, key.help, key.allowed));
            }
        }
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

`hoist daemon --config FILE` reads TOML. Of what is said twice the command line counts, then the environment
(`HOIST_ROOT` and its like), then the file; the log tells which keys of the file do not count. An unknown key or a wrong value is an error that names file, line and what is allowed, and the daemon
does not start; at a reload (SIGHUP, `systemctl reload hoist`) it is logged and everything stays as it was.

This page is made from the table in `crates/hoist/src/daemon/settings/keys.rs`.
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
        if matches!(key.set, Set::Rules) {
            page.push_str("\n| key of a rule | allowed | what |\n|---|---|---|\n");
            for key in policy::RULE_KEYS {
                page.push_str(&format!("| `{}` | {} | {} |\n", key.name, key.allowed, key.help));
            }
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        // What the file says counts: nothing was given.
        Settings { given: Given::new(), ..of(&["--root", "/store", "daemon"]) }
    }

    fn of(args: &[&str]) -> Settings {
        let found = cli::command().get_matches_from(["hoist"].iter().chain(args));
        let cli = cli::Cli::of(&found).unwrap();
        let cli::Command::Daemon(options) = cli.command else { panic!("not the daemon") };
        Settings::of(&cli.global, &options).unwrap()
    }

    #[test]
    fn the_command_line_counts_before_the_file() {
        let mut read =
            of(&["--store-limit", "1G", "daemon", "--log-format", "json", "--trust-index", "none"]);
        let text =
            "store_limit = \"2G\"\nlog_format = \"text\"\ntrust_index = \"local\"\nread_timeout = \"5s\"";
        read.apply(text).unwrap();
        assert_eq!((read.store_limit, read.log_format), (Some(1 << 30), LogFormat::Json));
        assert_eq!((read.trust_index, read.read_timeout), (TrustIndex::None, Duration::from_secs(5)));
        assert_eq!(read.overridden, ["log_format", "store_limit", "trust_index"]);
        // Wrong is wrong all the same.
        assert!(of(&["--store-limit", "1G", "daemon"]).apply("store_limit = 5").is_err());
        // Every option that has a key goes by the key's name.
        let options = cli::command();
        let daemon = options.find_subcommand("daemon").unwrap();
        let known: Vec<_> = daemon.get_arguments().map(|arg| arg.get_id().as_str()).collect();
        for key in KEYS {
            let option = key.name.replace('_', "-");
            let is_one = daemon.get_arguments().any(|arg| arg.get_long() == Some(&option));
            assert_eq!(is_one, known.contains(&key.name), "{}", key.name);
        }
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
            min_rate = "10K"
            store_limit = "20G"
            background = "20M"
            metrics = "unix:/run/x.sock"
            restore = false
            snapshotter_socket = "/run/s.sock"
            containerd_images = "full"
            full_below = "64M"
            images = [{registry = "r.io", mode = "auto"}]
            containerd_socket = "/run/c.sock"
            cri_socket = "/run/i.sock"
            credential_provider_config = "/etc/p.yaml"
            credential_provider_bin_dir = "/opt/p"
            pull_secrets = "/etc/kubeconfig"
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
        assert_eq!((read.read_timeout, read.min_rate), (Duration::from_secs(16), 10 << 10));
        assert_eq!((read.store_limit, read.background), (Some(20 << 30), BackgroundFetch::AtMost(20 << 20)));
        assert_eq!(read.metrics, Some(MetricsAt::Unix("/run/x.sock".into())));
        assert_eq!(read.snapshotter_socket.as_deref(), Some(Path::new("/run/s.sock")));
        assert_eq!((read.containerd_images, read.full_below), (Mode::Full, 64 << 20));
        assert_eq!(read.images.len(), 1);
        assert_eq!(read.containerd_socket, Path::new("/run/c.sock"));
        assert_eq!(read.cri_socket.as_deref(), Some(Path::new("/run/i.sock")));
        assert_eq!(read.credential_provider_config.as_deref(), Some(Path::new("/etc/p.yaml")));
        assert_eq!(read.credential_provider_bin_dir, Path::new("/opt/p"));
        assert_eq!(read.pull_secrets, Some(Cluster::Kubeconfig("/etc/kubeconfig".into())));
        let fixed: Vec<_> = KEYS.iter().filter(|key| !key.reloads).map(|key| key.name).collect();
        assert_eq!(settings().fixed_that_differ(&read), fixed);
        let reloaded = settings().reloaded(read.clone());
        assert_eq!(settings().fixed_that_differ(&reloaded), [""; 0]);
        assert_eq!(reloaded.store_limit, read.store_limit);
        read.apply("pull_secrets = \"pod\"").unwrap();
        assert_eq!(read.pull_secrets, Some(Cluster::OfThePod));
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
        assert!(
            error("log = \"info\"\n[[images]]\nmode = 1").starts_with("/hoist.toml:3: images: mode can't be")
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

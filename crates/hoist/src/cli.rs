//! The command line: every command, option and environment variable, said once.

use std::path::PathBuf;

use clap::builder::StyledStr;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

/// Start any container image at once: its files are fetched when they are read, verified before they can be
/// read, and served by the kernel at native speed from then on
#[derive(Debug, Parser)]
#[command(name = "hoist", version, propagate_version = true, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  hoist run --rm -it debian:12 bash          a shell, before the image is fetched
  hoist index --push registry/app:1          publish the index once: every node starts app lazily
  hoist mount registry/app:1 /mnt/app        the image as a read-only folder
  hoist run --rm oci:./layout python3 -V     from an OCI layout, a folder or a tar
  hoist doctor                               what this machine can do, and what to change

IMAGE is [REGISTRY/]NAME[:TAG][@DIGEST] (Docker Hub short names too), or oci:PATH[:TAG] for an OCI layout.
Exit code: 1 if you can mend it, 2 if the fault is hoist's or the machine's; `run` passes on the program's.";

/// The command line, with the options that every command takes told once.
pub fn command() -> clap::Command {
    let mut command = Cli::command();
    // From here on the commands have the global options.
    command.build();
    let globals: Vec<String> = command
        .get_arguments()
        .filter(|arg| arg.is_global_set())
        .filter_map(|arg| Some(format!("--{}", arg.get_long()?)))
        .collect();
    let hint = format!("Global options (`hoist help` tells of them): {}", globals.join(" "));
    command.mut_subcommands(|sub| {
        let with_hint = |text: Option<&StyledStr>| match text {
            Some(text) => format!("{text}\n\n{hint}"),
            None => hint.clone(),
        };
        let short = with_hint(sub.get_after_help());
        let long = sub.get_after_long_help().map(|text| with_hint(Some(text)));
        let sub = sub.mut_args(|arg| match arg.is_global_set() {
            true => arg.hide(true),
            false => arg,
        });
        let sub = sub.after_help(short);
        match long {
            Some(long) => sub.after_long_help(long),
            None => sub,
        }
    })
}

/// Options every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Store of layers, indexes and mounts [default: /var/lib/hoist; for an ordinary user
    /// $XDG_DATA_HOME/hoist or ~/.local/share/hoist]
    #[arg(long, global = true, env = "HOIST_ROOT", hide_env_values = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// How to show the image's files: erofs, erofs-fuse or fuse [default: the first that works here; `hoist
    /// doctor` tells]
    #[arg(
        long,
        global = true,
        env = "HOIST_DRIVER",
        hide_env_values = true,
        value_enum,
        hide_possible_values = true
    )]
    pub driver: Option<Driver>,
    /// Platform to choose from a multi-arch image, as OS/ARCH[/VARIANT] [default: this machine's]
    #[arg(long, global = true, env = "HOIST_PLATFORM", hide_env_values = true, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Which indexes to believe before the layer itself was verified: also those found in the registry beside
    /// the image (checked once the layer is complete), those made here alone (local), or none
    #[arg(
        long,
        global = true,
        env = "HOIST_TRUST_INDEX",
        hide_env_values = true,
        value_enum,
        value_name = "registry|local|none",
        hide_possible_values = true,
        default_value = "registry"
    )]
    pub trust_index: TrustIndex,
    /// Fetch the rest of what is mounted too, while nobody waits for anything: all of it, or at most so many
    /// bytes a second, as 20M
    #[arg(
        long,
        global = true,
        env = "HOIST_BACKGROUND",
        hide_env_values = true,
        value_name = "off|on|RATE",
        default_value = "off"
    )]
    pub background: BackgroundFetch,
    /// How long a read waits for data that is not here before it fails with EIO, as 90s, 2m or 500ms
    #[arg(
        long,
        global = true,
        env = "HOIST_READ_TIMEOUT",
        hide_env_values = true,
        value_name = "TIME",
        default_value = "60s",
        value_parser = crate::units::time
    )]
    pub read_timeout: std::time::Duration,
    /// Least that a registry must send in a second, over a minute of waiting, before it is given up, as 10K
    #[arg(
        long,
        global = true,
        env = "HOIST_MIN_RATE",
        hide_env_values = true,
        value_name = "RATE",
        default_value = "1K",
        value_parser = crate::units::size
    )]
    pub min_rate: u64,
    /// Most that the store's layers may take on disk, as 20G: those not used for longest are removed
    /// [default: no limit]
    #[arg(
        long,
        global = true,
        env = "HOIST_STORE_LIMIT",
        hide_env_values = true,
        value_name = "SIZE",
        value_parser = crate::units::size
    )]
    pub store_limit: Option<u64>,
    /// Talk plain HTTP to the registry; `=false` demands TLS [default: plain on loopback only]
    #[arg(
        long,
        global = true,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true
    )]
    pub plain_http: Option<bool>,
    /// Do the work in this process, though a daemon runs
    #[arg(long, global = true, env = "HOIST_NO_DAEMON", hide_env_values = true, action = ArgAction::SetTrue, value_parser = clap::builder::FalseyValueParser::new())]
    pub no_daemon: bool,
    /// What to log to stderr: a level (error, warn, info, debug, trace) or target=level filters
    #[arg(
        long,
        global = true,
        env = "HOIST_LOG",
        hide_env_values = true,
        value_name = "FILTER",
        default_value = "warn"
    )]
    pub log: String,
    /// What the command line or the environment has said, of these and of the command's own options.
    #[arg(skip)]
    pub given: Given,
}

/// Names of options that were given, and not left to their defaults, as the fields that hold them.
pub type Given = std::collections::BTreeSet<String>;

impl Cli {
    /// What was parsed.
    ///
    /// # Errors
    /// clap's.
    pub fn of(found: &clap::ArgMatches) -> Result<Cli, clap::Error> {
        let mut cli = <Cli as clap::FromArgMatches>::from_arg_matches(found)?;
        let mut level = Some(found);
        while let Some(matches) = level {
            let given = |id: &&clap::Id| {
                let source = matches.value_source(id.as_str());
                source.is_some_and(|source| source != clap::parser::ValueSource::DefaultValue)
            };
            cli.global.given.extend(matches.ids().filter(given).map(ToString::to_string));
            level = matches.subcommand().map(|(_, below)| below);
        }
        Ok(cli)
    }
}

/// See `--background`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackgroundFetch {
    /// Only what is read is fetched.
    Off,
    /// All of it, as fast as the line.
    On,
    /// All of it, at most so many bytes a second.
    AtMost(u64),
}

impl std::str::FromStr for BackgroundFetch {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => return Ok(Self::Off),
            "on" => return Ok(Self::On),
            _ => {}
        }
        let rate = crate::units::size(text).ok().filter(|rate| *rate > 0);
        rate.map(Self::AtMost).ok_or_else(|| "expected off, on, or bytes a second such as 20M".to_owned())
    }
}

impl std::fmt::Display for BackgroundFetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On => f.write_str("on"),
            Self::AtMost(rate) => rate.fmt(f),
        }
    }
}

/// See `--trust-index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrustIndex {
    /// Those found in the registry beside the image, checked against the layer when it is complete
    Registry,
    /// Only those made on this machine in a pass that verified the layer
    Local,
    /// None: a layer is fetched whole and verified before it is used
    None,
}

/// See `--driver`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// The kernel's EROFS, filled by fanotify: Linux 6.14, root, a store on ext4, xfs or btrfs
    Erofs,
    /// The kernel's EROFS on data files that FUSE serves: Linux 5.16, root
    ErofsFuse,
    /// A FUSE file system: any user who may open /dev/fuse
    Fuse,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Run(Box<Run>),
    Mount(Mount),
    Unmount(Unmount),
    Pull(Pull),
    Index(Index),
    Images(Images),
    Inspect(Inspect),
    Ps(Ps),
    Exec(Exec),
    Stop(Stop),
    Rm(Rm),
    Prune(Prune),
    Fsck(Fsck),
    Pin(Pin),
    /// Let an image's data go when the store's limit asks for it
    Unpin(Pin),
    Status(Status),
    Top(Top),
    Why(Why),
    Daemon(Daemon),
    Doctor(Doctor),
    /// Go on with the mounts of a process that has died; started by its keeper alone
    #[command(hide = true)]
    Serve(Serve),
}

/// Run a program in an image
///
/// The root file system is the image, mounted lazily, under an overlay that takes the writes. The
/// container is started by an OCI runtime found on PATH (crun, runc or youki); it has its own process,
/// mount, IPC and UTS namespaces, Docker's default capabilities, and by default the host's network:
/// networks of its own are not offered yet.
///
/// Entrypoint, command, environment, user and working folder come from the image and are overridden as
/// with Docker. Signals are passed on to the program.
#[derive(Debug, Args)]
#[command(
    override_usage = "hoist run [OPTIONS] IMAGE [CMD]...",
    after_help = "\
Examples:
  hoist run --rm alpine echo hello
  hoist run --rm -it -v ./src:/src:ro -w /src python:3.12 python3
  hoist run -d --name web -e PORT=8080 registry/app:1   then, when done: hoist stop web; hoist rm web

Exit code: the program's, or 128+N if signal N ended it;
127 if the image has no such program, 126 if it can't be run;
else 1 if you can mend it, 2 if the fault is hoist's or the machine's."
)]
pub struct Run {
    /// Set an environment variable; NAME alone passes on this process's value
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Bind a file or folder of the host into the container
    #[arg(short, long, value_name = "SOURCE:TARGET[:ro]")]
    pub volume: Vec<String>,
    /// Working folder, made if missing
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User, by name or number, from the image's /etc/passwd and /etc/group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Replace the image's entrypoint (an empty one takes it away); the image's command is dropped too
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Throw away what the container wrote when it ends
    #[arg(long)]
    pub rm: bool,
    /// Make the root file system read-only
    #[arg(long)]
    pub read_only: bool,
    /// Name of the container, for `hoist stop`, `exec` and `rm` [default: a random one]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Run it in the background, and print its name as soon as its program runs. What that says goes to the file
    /// `containers/NAME/output` of the store
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub detach: bool,
    /// Report to the process that started this one, on standard output
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub report: bool,
    /// Pass standard input on to the program
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the program a terminal (standard input must be one)
    #[arg(short, long)]
    pub tty: bool,
    /// Host name inside the container [default: the host's, or the container's name with --net none]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Network of the container
    #[arg(long, value_enum, default_value = "host")]
    pub net: Net,
    /// System call filter of the container
    #[arg(long, value_enum, default_value = "default")]
    pub seccomp: Seccomp,
    /// OCI runtime to use, a name on PATH or a path [default: the first of crun, runc, youki that works here]
    #[arg(long, env = "HOIST_RUNTIME", hide_env_values = true, value_name = "PROGRAM")]
    pub runtime: Option<String>,
    #[command(flatten)]
    pub stats: StatsFile,
    /// The image to run, then a command and its arguments, instead of the image's
    // One list, since clap would take options between two positional arguments for its own.
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE [CMD]")]
    pub(crate) image_and_command: Vec<String>,
}

/// See `--net`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Net {
    /// The host's
    Host,
    /// Loopback alone
    None,
}

/// See `--seccomp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Seccomp {
    /// Refuse the system calls that administer the kernel, as Docker's default profile does
    Default,
    /// Allow every system call
    None,
}

/// See `--stats`.
#[derive(Debug, Clone, Args)]
pub struct StatsFile {
    /// Write what it took (requests, bytes, seconds) to this file as JSON at the end
    #[arg(long = "stats", value_name = "FILE")]
    pub path: Option<PathBuf>,
}

/// Mount an image read-only on a folder
///
/// Returns as soon as the mount is ready; a process in the background fetches what is read until
/// `hoist unmount DIR` (or umount) ends it. Its log is kept in the store's `log` folder.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hoist mount debian:12 /mnt && ls /mnt && hoist unmount /mnt")]
pub struct Mount {
    #[command(flatten)]
    pub stats: StatsFile,
    /// Stay in the foreground and serve until unmounted or interrupted
    #[arg(long)]
    pub foreground: bool,
    /// Report to the process that started this one, on standard output
    #[arg(long, hide = true, requires = "foreground")]
    pub report: bool,
    /// The image to mount
    pub image: String,
    /// The folder to mount it on
    #[arg(value_name = "DIR")]
    pub target: PathBuf,
}

/// Unmount an image and wait until nobody serves it any more
#[derive(Debug, Args)]
#[command(visible_alias = "umount")]
pub struct Unmount {
    /// Detach the mount though it is in use; it is served until the last user has ended
    #[arg(long)]
    pub lazy: bool,
    /// The folder it is mounted on
    #[arg(value_name = "DIR")]
    pub target: PathBuf,
}

/// Fetch the whole of an image, verified
///
/// With `--containerd`, have containerd know it: its record, its manifest and configuration, and a snapshot for
/// each layer by hoist's snapshotter. Then only what is needed first is fetched, if the image can be read lazily.
#[derive(Debug, Args)]
pub struct Pull {
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub stats: StatsFile,
    /// For containerd, as `ctr run --snapshotter hoist` or nerdctl run it
    #[arg(long)]
    pub containerd: bool,
    /// For containerd, but fetch all of it now
    #[arg(long, requires = "containerd")]
    pub full: bool,
    /// containerd's socket
    #[arg(
        long,
        requires = "containerd",
        value_name = "SOCKET",
        env = "CONTAINERD_ADDRESS",
        default_value = crate::daemon::settings::CONTAINERD
    )]
    pub address: PathBuf,
    /// containerd's namespace; Kubernetes has k8s.io
    #[arg(
        long,
        requires = "containerd",
        value_name = "NAME",
        env = "CONTAINERD_NAMESPACE",
        default_value = "default"
    )]
    pub namespace: String,
    /// What containerd calls hoist's snapshotter
    #[arg(
        long,
        requires = "containerd",
        value_name = "NAME",
        env = "CONTAINERD_SNAPSHOTTER",
        default_value = "hoist"
    )]
    pub snapshotter: String,
    /// The image to fetch
    pub image: String,
}

/// Build the index that makes an image lazy
///
/// One pass over the layers, which verifies them as it goes. With `--push` the index is published beside
/// the image as an OCI referrer (which leaves the image's digest as it is), so that every other node
/// starts it lazily.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hoist index --push registry/app:1")]
pub struct Index {
    /// Publish the index in the image's repository
    #[arg(long)]
    pub push: bool,
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
    /// The image to index
    pub image: String,
}

/// List the images the store knows
#[derive(Debug, Args)]
pub struct Images {
    /// Print them as JSON
    #[arg(long)]
    pub json: bool,
}

/// Tell an image's layers, their formats, what is present, and whether it will be lazy
#[derive(Debug, Args)]
pub struct Inspect {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// The image to inspect
    pub image: String,
}

/// List the containers of `hoist run`: those that run, and those that ended and were not removed
#[derive(Debug, Args)]
pub struct Ps {
    /// Print them as JSON
    #[arg(long)]
    pub json: bool,
}

/// Run one more program in a running container
///
/// The container's OCI runtime starts it, in the container's namespaces and with its environment.
#[derive(Debug, Args)]
#[command(
    override_usage = "hoist exec [OPTIONS] NAME CMD...",
    after_help = "Example:\n  hoist exec -it web sh\n\nExit code: the program's; the runtime's own where it can't start it."
)]
pub struct Exec {
    /// Set an environment variable; NAME alone passes on this process's value
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Working folder
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User, by name or number, from the container's /etc/passwd and /etc/group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Pass standard input on to the program
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the program a terminal (standard input must be one)
    #[arg(short, long)]
    pub tty: bool,
    /// The container, then a command and its arguments
    // One list, as with `Run`.
    #[arg(required = true, trailing_var_arg = true, num_args = 2.., value_names = ["NAME", "CMD"])]
    name_and_command: Vec<String>,
}

/// End the programs of running containers
///
/// Each is asked to end by SIGTERM (or by the signal that its image names), and killed when its time is over. Returns
/// when nobody runs it any more.
#[derive(Debug, Args)]
pub struct Stop {
    /// How long it has to end by itself, as 30s (bare numbers are seconds); 0 kills it at once
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = crate::units::time_or_none)]
    pub time: std::time::Duration,
    /// Names of containers, as `hoist ps` lists them
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// Remove ended containers, or images' names from the store
///
/// `hoist ps` and `hoist images` list them. Data that no image names any more is freed by `hoist prune`.
#[derive(Debug, Args)]
pub struct Rm {
    /// Kill containers that run first
    #[arg(short, long)]
    pub force: bool,
    /// Names of containers or images, or images' digests (the first 6 digits or more will do)
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// Keep an image's data whatever the store's limit; `hoist unpin` lets it go
///
/// Images that are mounted need no pin while they are.
#[derive(Debug, Args)]
pub struct Pin {
    /// Image names, as `hoist images` lists them
    #[arg(required = true, value_name = "IMAGE")]
    pub names: Vec<String>,
}

/// Check everything in the store against its digests
///
/// Every document and tree is decoded, every extent that is here is read from the disk and hashed. Exits
/// with 1 if something is wrong and was not mended. What is mounted is reported on and left as it is.
#[derive(Debug, Args)]
pub struct Fsck {
    /// Mend what is wrong: bad extents are fetched again when they are read, what is of no use is removed
    #[arg(long)]
    pub repair: bool,
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

/// Free the data that no image in the store and no mount uses
///
/// Works while images are mounted: what they use stays.
#[derive(Debug, Args)]
pub struct Prune {
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

/// Tell what is mounted from the store, and how much of it is here
#[derive(Debug, Args)]
pub struct Status {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// Watch the mounts of the store: what is here of each, what is fetched, who waits for what
///
/// A table anew each second, until it is interrupted; it is told what the processes that serve the mounts write
/// down each second, with or without a daemon.
#[derive(Debug, Args)]
pub struct Top {
    /// Print a line of JSON each time
    #[arg(long)]
    pub json: bool,
    /// Time between two looks, as 2s or 500ms
    #[arg(short = 'd', long, value_name = "TIME", default_value = "1s", value_parser = crate::commands::top::interval)]
    pub interval: std::time::Duration,
    /// Look so many times, then end
    #[arg(short = 'n', long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

/// Tell why something was not lazy, or was slow
///
/// Of the latest mount: whether it was lazy and why not, which driver showed it and what is missing for a faster
/// one, what its readers waited for (the slowest reads by the file's name, which server served them, what went wrong
/// meanwhile), and how much came from where. Of the image: whether a mount would be lazy now. Mounts are remembered
/// for a while after their end.
#[derive(Debug, Args)]
pub struct Why {
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// A container, a folder that an image is or was mounted on, or an image by name or digest
    #[arg(value_name = "CONTAINER|DIR|IMAGE")]
    pub of: String,
}

/// Serve a store and all its mounts from one process
///
/// Every other command uses it where its socket is there: /run/hoist/hoist.sock for the store
/// /var/lib/hoist, hoist.sock in the store for any other. It stays in the foreground and logs to stderr.
/// What `hoist mount` mounted through it comes back when it starts again.
#[derive(Debug, Args)]
#[command(after_long_help = crate::daemon::settings::help())]
pub struct Daemon {
    /// Configuration
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Form of the log
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Serve containerd as a snapshotter, on this socket
    #[arg(long, value_name = "SOCKET")]
    pub snapshotter_socket: Option<PathBuf>,
}

/// Go on with the mounts of another process.
#[derive(Debug, Args)]
pub struct Serve {
    /// Configuration of the daemon that served them
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// See `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// A JSON object a line
    Json,
}

/// Tell what this machine can do, and what to change
///
/// Exits with 1 if images can't be mounted here.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

impl Run {
    /// The image's name.
    pub fn image(&self) -> &str {
        self.image_and_command.first().map_or("", String::as_str)
    }

    /// The command given instead of the image's; empty if none is.
    pub fn command(&self) -> &[String] {
        self.image_and_command.get(1..).unwrap_or_default()
    }
}

impl Exec {
    /// The container's name.
    pub fn name(&self) -> &str {
        self.name_and_command.first().map_or("", String::as_str)
    }

    /// The command.
    pub fn command(&self) -> &[String] {
        self.name_and_command.get(1..).unwrap_or_default()
    }
}

impl Global {
    /// The store's folder, absolute.
    pub fn root(&self) -> anyhow::Result<PathBuf> {
        let root = match &self.root {
            Some(root) => root.clone(),
            None => default_root(
                rustix::process::geteuid().is_root(),
                std::env::var_os("XDG_DATA_HOME").map(PathBuf::from),
                std::env::var_os("HOME").map(PathBuf::from),
            )
            .ok_or_else(|| {
                crate::failure::user_hint(
                    "no place for the store: HOME is not set",
                    "name one with --root DIR",
                )
            })?,
        };
        Ok(std::path::absolute(root)?)
    }
}

/// The store of the machine.
pub const ROOT_STORE: &str = "/var/lib/hoist";

/// `None` if an ordinary user has neither of the folders. A relative XDG_DATA_HOME is ignored, as the XDG
/// base directory specification demands.
fn default_root(is_root: bool, xdg: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    if is_root {
        return Some(ROOT_STORE.into());
    }
    let data = xdg.filter(|dir| dir.is_absolute()).or_else(|| home.map(|home| home.join(".local/share")));
    data.map(|data| data.join("hoist"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn options_after_the_image_belong_to_the_program() {
        let cli = Cli::parse_from(["hoist", "run", "--rm", "-it", "img", "-u", "ls", "-e", "--rm"]);
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!((run.image(), run.command().join(" ")), ("img", "-u ls -e --rm".to_owned()));
        assert!(Cli::try_parse_from(["hoist", "run", "--no-such-option", "img"]).is_err());
        assert!(run.rm && run.interactive && run.tty && run.env.is_empty());
    }

    #[test]
    fn store_folder() {
        let home = Some(PathBuf::from("/home/u"));
        assert_eq!(default_root(true, None, home.clone()), Some("/var/lib/hoist".into()));
        assert_eq!(default_root(false, Some("/x".into()), home.clone()), Some("/x/hoist".into()));
        assert_eq!(default_root(false, Some("x".into()), home), Some("/home/u/.local/share/hoist".into()));
        assert_eq!(default_root(false, None, None), None);
    }
}

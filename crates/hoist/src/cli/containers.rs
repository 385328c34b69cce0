//! Containers: run, listed, entered, ended, removed.

use clap::{Args, ValueEnum};

use super::StatsFile;

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
else 1 if you can mend it, 2 if the fault is hoist's or the machine's,
as where the program can't be read since the registry is down."
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
    /// Run it in the background, and print its name as soon as its program runs; `hoist logs` shows what that says
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

/// List the containers of `hoist run`: those that run, and those that ended and were not removed
#[derive(Debug, Args)]
pub struct Ps {
    /// Print them as JSON
    #[arg(long)]
    pub json: bool,
    /// What others need to be told: those that ended are listed in any case
    #[arg(short, long, hide = true)]
    pub all: bool,
}

/// Show what the program of a container in the background has said
///
/// That is its standard output and error; what it writes to both at about the same time may have changed its order, as
/// the OCI runtime copies them apart. `hoist run -d` keeps it in the file
/// `containers/NAME/output` of the store. What hoist itself says of the container meanwhile is in `log/run-NAME-*.log`
/// there, and `hoist why NAME` tells of its image.
#[derive(Debug, Args)]
pub struct Logs {
    /// Go on with what it says until it ends, or this is interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with the last so many lines
    #[arg(short = 'n', long, value_name = "LINES")]
    pub tail: Option<usize>,
    /// The container, as `hoist ps` lists it
    pub name: String,
}

/// Run one more program in a running container
///
/// The container's OCI runtime starts it, in the container's namespaces and with its environment.
#[derive(Debug, Args)]
#[command(
    override_usage = "hoist exec [OPTIONS] NAME CMD...",
    after_help = "Example:\n  hoist exec -it web sh\n\nExit code: the program's;\n127 if the container has no such program, 126 if it can't be run;\nelse 1 if you can mend it, 2 if the fault is hoist's or the machine's."
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
#[command(alias = "rmi")]
pub struct Rm {
    /// Kill containers that run first
    #[arg(short, long)]
    pub force: bool,
    /// Names of containers or images, or images' digests (the first 6 digits or more will do)
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

//! `hoist run`.
//!
//! Start latency is what this command is for, so what does not depend on the mount is done while it is
//! being made, and what reads the image reads at once, in parallel.
//!
//! With `--detach` a process in the background does the work (`detached.rs`), and this one leaves when the program
//! runs.

mod detached;
mod unread;

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use anyhow::Context;
use hoist_engine::Progress;
use hoist_engine::store::{Store, new_log};
use serde_json::Value;

use crate::background::{PARENT_GONE, Reporter};
use crate::bundle::process::{self, DEFAULT_PATH, ImageProcess};
use crate::bundle::user::{self, User};
use crate::bundle::volume::{self, Volume};
use crate::bundle::{self, Bundle};
use crate::cli::{Global, Net, Run, Seccomp};
use crate::container::{self, Container, Record, output};
use crate::container_image::{Mounted, Resolved};
use crate::daemon::client::Gone;
use crate::daemon::status;
use crate::failure::user_hint;
use crate::printer::Printer;
use crate::program::{self, Found, Over};
use crate::rootdir::RootDir;
use crate::rootless::{self, Root};
use crate::runtime::{NotStarted, Runtime, Started, Streams};
use crate::signals::{Signals, interrupted};

/// What will be run, as far as finding its files takes.
struct Command<'a> {
    program: &'a str,
    path: &'a str,
    library_path: Option<&'a str>,
    cwd: &'a str,
}

/// Where a program is looked for: its PATH and working folder.
struct Place {
    path: String,
    cwd: String,
}

/// What is known before the image is.
struct Plan<'a> {
    global: &'a Global,
    options: &'a Run,
    runtime: Runtime,
    volumes: Vec<Volume>,
    /// The program has ended.
    over: Arc<Over>,
    root: Root,
    /// Who waits for the program to run, where this process is in the background.
    reporter: Option<Reporter>,
}

pub(super) fn run(global: &Global, options: &Run) -> anyhow::Result<u8> {
    if options.detach {
        return detached::start(global, options).map(|()| 0);
    }
    let reporter = options.report.then(Reporter::detach);
    let told = reporter.clone();
    let outcome = run_here(global, options, reporter);
    match (told, outcome) {
        // Whoever asked for it tells of it.
        (Some(reporter), Err(error)) if reporter.failed(&error) => Ok(crate::engine_glue::exit_code(&error)),
        (_, outcome) => outcome,
    }
}

/// Says that there is no terminal where one is wanted.
pub(super) fn check_terminal(wanted: bool) -> anyhow::Result<()> {
    if wanted && !rustix::termios::isatty(std::io::stdin()) {
        return Err(user_hint(
            "-t needs a terminal on standard input",
            "leave out -t; -i alone passes input on",
        ));
    }
    Ok(())
}

fn run_here(global: &Global, options: &Run, reporter: Option<Reporter>) -> anyhow::Result<u8> {
    check_terminal(options.tty)?;
    crate::stats_file::check(options.stats.path.as_deref())?;
    let cwd = std::env::current_dir().context("finding the current folder")?;
    let volumes =
        options.volume.iter().map(|option| volume::parse(option, &cwd)).collect::<Result<_, _>>()?;
    let (global, root) = rootless::enter(global)?;
    let mut runtime = Runtime::find(options.runtime.as_deref())?;
    if root.is_rootless() {
        runtime.without_cgroups();
    }
    let plan = Plan { global: &global, options, runtime, volumes, root, over: Arc::default(), reporter };
    let runtime = crate::engine_glue::tokio_runtime()?;
    let outcome = runtime.block_on(plan.run());
    // What was fetched ahead and is still being decoded serves nobody any more.
    runtime.shutdown_background();
    outcome
}

impl Plan<'_> {
    async fn run(&self) -> anyhow::Result<u8> {
        let mut signals = Signals::catch().context("catching signals")?;
        let resolving = Resolved::find(self.global, self.root, self.options.image(), self.reporter.as_ref());
        let (image, image_process) = tokio::select! {
            resolved = resolving => resolved?,
            why = self.called_off(&mut signals) => return Err(why),
        };
        let command =
            process::args(&image_process, self.options.entrypoint.as_deref(), self.options.command())?;
        let container = Container::create(&self.global.root()?, self.options.name.as_deref())?;
        let mut record = Record {
            image: Some(self.options.image().to_owned()),
            command: command.clone(),
            runtime: Some(self.runtime.program().to_owned()),
            stop_signal: image_process.stop_signal.clone(),
            rm: self.options.rm,
            ..Record::default()
        };
        if record.rm {
            // Who is killed while the image is mounted, or even fetched, removes nothing.
            container.note(&record)?;
        }
        let outcome =
            self.run_in(&container, image, &image_process, command, &mut signals, &mut record).await;
        // Who was told that it runs asks later how it ended.
        if let (Err(error), Some(true)) = (&outcome, self.reporter.as_ref().map(Reporter::is_ready)) {
            record.exit_code.get_or_insert(crate::engine_glue::exit_code(error));
        }
        // Known also where something failed after its end, as the daemon that had the image mounted may be gone.
        if let (Some(_), false) = (record.exit_code, self.options.rm) {
            record.ended = Some(status::now());
            // Only for who asks later.
            let _ = container.note(&record).inspect_err(|error| tracing::warn!("{error:#}"));
        }
        // A container that never ran is kept for nobody.
        let never_ran = outcome.is_err() && record.exit_code.is_none();
        let outcome = match outcome {
            Err(error) if never_ran && self.reporter.is_some() => Err(with_output(error, &container)),
            outcome => outcome,
        };
        let cleaned = container.clean(self.options.rm || never_ran);
        // After the program, whose start is what this is for.
        container::remove_left(&self.global.root()?).await;
        let code = outcome?;
        cleaned?;
        Ok(code)
    }

    async fn run_in(
        &self,
        container: &Container,
        image: Resolved,
        image_process: &ImageProcess,
        command: Vec<String>,
        signals: &mut Signals,
        record: &mut Record,
    ) -> anyhow::Result<u8> {
        let printer = Printer::new();
        let progress: &dyn Progress = self.reporter.as_ref().map_or(&printer, |reporter| reporter);
        let is_on_host_network = self.options.net == Net::Host;
        let hostname =
            bundle::bound::hostname(self.options.hostname.as_deref(), is_on_host_network, container.name())?;
        let mounting = async {
            let files = async { bundle::bound::write(&container.bundle(), &hostname, is_on_host_network) };
            let mount = image.mount(container, self.options.rm, self.runtime.program(), progress);
            let (mount, files) = tokio::join!(mount, files);
            progress.end();
            let (mut mount, facts) = mount?;
            record.digest = facts.digest;
            record.driver = facts.driver;
            record.started = Some(status::now());
            if let Err(error) = files.and_then(|()| container.note(record)) {
                let _ = mount.unmount().await;
                return Err(error);
            }
            Ok(mount)
        };
        let mount: Mounted = tokio::select! {
            mount = mounting => mount?,
            why = self.called_off(signals) => return Err(why),
        };
        let outcome = self.run_mounted(container, image_process, command, &hostname, signals).await;
        record.exit_code = outcome.as_ref().ok().copied();
        self.over.say();
        if container.state().join(container.name()).exists() {
            self.runtime.delete(container.name(), &container.state()).await;
        }
        let unmounted = container.unmount_overlay();
        let stats = self.unmount(mount, container).await;
        let code = self.with_unread(outcome, container, record).await?;
        unmounted?;
        match stats? {
            Some(stats) => {
                record.demand_stalls = stats["demand_stalls"].as_u64();
                if let Some(path) = &self.options.stats.path {
                    crate::stats_file::write(path, &stats)?;
                }
            }
            None if self.options.stats.path.is_some() => {
                eprintln!(
                    "note: what the image took is not known: who had it mounted ended meanwhile, or it is still read"
                );
            }
            None => {}
        }
        Ok(code)
    }

    /// The program's outcome, told with what could not be read of its image meanwhile.
    async fn with_unread(
        &self,
        outcome: anyhow::Result<u8>,
        container: &Container,
        record: &Record,
    ) -> anyhow::Result<u8> {
        // Of a store that is damaged by now nothing is known.
        let Some(store) = self.global.root().ok().and_then(|root| Store::open(&root).ok()) else {
            return outcome;
        };
        let image = self.options.image();
        match (outcome, unread::of(&store, &container.image())) {
            (Err(error), Some(unread)) => Err(error.context(unread)),
            (Err(error), None) if unread::is_cause(&error) => {
                Err(error.context(unread::elsewhere(&store, record, image).await))
            }
            (Ok(code), Some(unread)) => {
                eprintln!("note: {unread}; `hoist why {image}` tells more");
                Ok(code)
            }
            (outcome, None) => outcome,
        }
    }

    /// Unmounts the image, by whoever serves it now; gives what it took, if that is known. Nothing of it is the program's: that
    /// the daemon has ended or was replaced meanwhile, or that what was read ahead still waits for a registry and holds the mount.
    async fn unmount(&self, mut mount: Mounted, container: &Container) -> anyhow::Result<Option<Value>> {
        let is_held = match mount.unmount().await {
            Ok(stats) => return Ok(Some(stats)),
            Err(error) => {
                tracing::info!("{error:#}");
                !error.is::<Gone>()
            }
        };
        let target = super::unmount::canonical(&container.image())?;
        match mount {
            // Then it goes with this process.
            Mounted::Own(_) => super::unmount::unmount(&target, true)?,
            Mounted::Daemon { .. } => {
                // The container is not wanted any more.
                drop(mount);
                if crate::mount_table::mounted_type(&target)?.is_some() {
                    super::unmount::end(self.global, &target, is_held).await?;
                }
            }
        }
        Ok(None)
    }

    async fn run_mounted(
        &self,
        container: &Container,
        image_process: &ImageProcess,
        args: Vec<String>,
        hostname: &str,
        signals: &mut Signals,
    ) -> anyhow::Result<u8> {
        let place = self.prepare(container, image_process, &args, hostname, signals).await?;
        let ended = self.run_bounded(container, signals).await;
        let in_volume = self.may_be_in_a_volume(&args[0], &place);
        let may_not_have_run = match &ended {
            Ok(0) => false,
            // Some runtimes call it the program's own end that the kernel refused to run it. What a volume brings can't be
            // seen from here.
            Ok(code) => matches!(code, 1 | 126 | 127 | 255) && !in_volume,
            Err(error) => error.is::<NotStarted>(),
        };
        let program = args.into_iter().next().unwrap_or_default();
        match may_not_have_run {
            true => why_not_started(container, program, place).await.map_or(ended, Err),
            false => ended,
        }
    }

    /// Looks up what the bundle says of the program and its user, and writes it. Gives where the program is looked for.
    async fn prepare(
        &self,
        container: &Container,
        image_process: &ImageProcess,
        args: &[String],
        hostname: &str,
        signals: &mut Signals,
    ) -> anyhow::Result<Place> {
        let options = self.options;
        let cwd = options.workdir.as_deref().unwrap_or(&image_process.working_dir);
        let cwd = bundle::absolute_cwd(cwd);
        let defaults: &[(&str, &str)] = &[("PATH", DEFAULT_PATH), ("HOSTNAME", hostname), ("TERM", "xterm")];
        let defaults = if options.tty { defaults } else { &defaults[..2] };
        let own = |name: &str| std::env::var(name).ok();
        let mut env = process::env(image_process, &options.env, own, defaults)?;
        let path =
            env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH).to_owned();

        let library_path = env.iter().find_map(|entry| entry.strip_prefix("LD_LIBRARY_PATH="));
        let command = Command { program: &args[0], path: &path, library_path, cwd: &cwd };
        let preparing = self.read_image(container, image_process, &command);
        let user = tokio::select! {
            user = preparing => user?,
            why = self.called_off(signals) => return Err(why),
        };
        if !env.iter().any(|entry| entry.starts_with("HOME=")) {
            env.push(format!("HOME={}", user.home));
        }
        rootless::check_user(self.root, user.uid, user.gid)?;
        let cgroup = container.cgroup()?;
        let mut config = bundle::config(&Bundle {
            rootfs: &container.rootfs(),
            files: &container.bundle(),
            args,
            env: &env,
            cwd: &cwd,
            user: &user,
            hostname,
            terminal: options.tty,
            read_only: options.read_only,
            host_network: options.net == Net::Host,
            seccomp: options.seccomp == Seccomp::Default,
            volumes: &self.volumes,
            allowed_capabilities: &bundle::limits::in_bounding_set,
            nofile_limit: bundle::limits::own_nofile(),
            cgroup: (!self.root.is_rootless()).then_some(&cgroup),
        });
        if self.root.is_rootless() {
            rootless::adapt(&mut config, self.root, options.net == Net::Host);
        }
        std::fs::write(container.bundle().join("config.json"), serde_json::to_vec(&config)?)
            .context("writing the container's config.json")?;
        Ok(Place { path, cwd })
    }

    /// Has the OCI runtime run the bundle until its end. What it says in the background is kept within its bound.
    async fn run_bounded(&self, container: &Container, signals: &mut Signals) -> anyhow::Result<u8> {
        let (streams, started) = self.streams(container)?;
        let in_background = started.is_some();
        let said = container.output_path();
        let bounding = async {
            if in_background {
                // Then it grows: no reason to end the program.
                tracing::warn!("{:#}", output::bound(&said).await);
            }
            std::future::pending::<Result<u8, anyhow::Error>>().await
        };
        tokio::select! {
            ended = self.runtime.run(container, streams, self.options.tty, signals, started) => ended,
            never = bounding => never,
        }
    }

    /// What the program reads and writes, and what is to be done once it runs.
    fn streams(&self, container: &Container) -> anyhow::Result<(Streams, Option<Started<'_>>)> {
        let Some(reporter) = &self.reporter else {
            let passed_on = self.options.interactive || self.options.tty;
            let input = if passed_on { Stdio::inherit() } else { Stdio::null() };
            return Ok((Streams { input, output: Stdio::inherit(), error: Stdio::inherit() }, None));
        };
        let output = container.output()?;
        let error = output.try_clone().context("sharing a container's output")?;
        // What this process says from here on is none of the program's output.
        let (log, _) = new_log(&self.global.root()?, &format!("run-{}", container.name()))?;
        rustix::stdio::dup2_stderr(&log)?;
        let started = || {
            // Nothing below is relative to the folder this was started in, which somebody may want to unmount.
            std::env::set_current_dir("/")?;
            reporter.ready()
        };
        let streams = Streams { input: Stdio::null(), output: output.into(), error: error.into() };
        Ok((streams, Some(Box::new(started))))
    }

    /// Waits until the container is not wanted any more; gives why.
    async fn called_off(&self, signals: &mut Signals) -> anyhow::Error {
        let parent_gone = async {
            match &self.reporter {
                Some(reporter) => reporter.parent_gone().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            signal = signals.next_fatal() => interrupted(signal),
            () = parent_gone => anyhow::anyhow!(PARENT_GONE),
        }
    }

    /// Whether the program may be one that a volume brings.
    fn may_be_in_a_volume(&self, program: &str, place: &Place) -> bool {
        let folders = if program.contains('/') { vec![""] } else { place.path.split(':').collect() };
        folders.into_iter().any(|folder| {
            let program = Path::new(&place.cwd).join(folder).join(program);
            self.volumes.iter().any(|volume| program.starts_with(&volume.target))
        })
    }

    /// Mounts the overlay and looks up user and program, all at once: each may wait for the registry.
    async fn read_image(
        &self,
        container: &Container,
        image_process: &ImageProcess,
        command: &Command<'_>,
    ) -> anyhow::Result<User> {
        let Command { program, path, library_path, cwd } = *command;
        let opened = container.image();
        let root =
            blocking(move || Ok(RootDir::open(&opened)?)).await.context("opening the image's root folder")?;
        let root = Arc::new(root);
        let read = |file: &'static str| {
            let root = root.clone();
            blocking(move || {
                let content =
                    root.read(Path::new(file)).with_context(|| format!("reading the image's {file}"))?;
                Ok(content.unwrap_or_default())
            })
        };
        let finding = {
            let (root, program) = (root.clone(), program.to_owned());
            let (path, cwd) = (path.to_owned(), cwd.to_owned());
            let (library_path, over) = (library_path.map(str::to_owned), Arc::clone(&self.over));
            blocking(move || {
                let found = program::find(&root, &program, &path, &cwd)
                    .with_context(|| format!("looking for {program:?} in the image"))?;
                if let Found::Program(program) = found.clone() {
                    let start = program::Start { root, program, path, library_path };
                    // Nobody waits for it.
                    tokio::task::spawn_blocking(move || program::warm(start, None, &over));
                }
                Ok(found)
            })
        };
        let overlay = async { container.mount_overlay(self.options.rm, self.root.is_rootless()) };
        let (overlay, passwd, group, found) =
            tokio::join!(overlay, read("/etc/passwd"), read("/etc/group"), finding);
        overlay?;
        match found? {
            Found::Program(_) => {}
            // A volume may bring the program.
            _ if !self.volumes.is_empty() => {}
            missing => return Err(program::not_found(&missing, "image", program, path)),
        }
        let spec = self.options.user.as_deref().unwrap_or(&image_process.user);
        let user = user::resolve(spec, &passwd?, &group?)?;
        if cwd != "/" {
            RootDir::open(&container.rootfs()).and_then(|root| root.create_dir_all(Path::new(cwd))).map_err(
                |error| {
                    user_hint(
                        format!("the working folder {cwd} can't be made: {error}"),
                        "give another with -w",
                    )
                },
            )?;
        }
        Ok(user)
    }
}

/// What the OCI runtime has said of a program that never ran goes with the container: whoever asked for it hears it with the error.
fn with_output(error: anyhow::Error, container: &Container) -> anyhow::Error {
    let said = std::fs::read_to_string(container.output_path()).unwrap_or_default();
    match said.trim() {
        // Then nobody could say anything.
        "" if is_full(&container.output_path()) => user_hint(
            format!("{error:#}: no space is left where the store is"),
            "make room there, or name another store with --root",
        ),
        "" => error,
        said => error.context(said.lines().collect::<Vec<_>>().join("; ")),
    }
}

/// Is the file system of this file full?
fn is_full(file: &Path) -> bool {
    rustix::fs::statvfs(file).is_ok_and(|stat| stat.f_bavail == 0)
}

/// On a thread of its own: a read through the mount may wait for the very tasks that this one drives.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("a reading thread died")?
}

/// Why the program can't have run, where that can be seen from here.
async fn why_not_started(container: &Container, program: String, place: Place) -> Option<anyhow::Error> {
    let rootfs = container.rootfs();
    let look = blocking(move || {
        let Place { path, cwd } = place;
        program::why_not(&RootDir::open(&rootfs)?, "image", &program, &path, &cwd)
    });
    look.await.ok().flatten()
}

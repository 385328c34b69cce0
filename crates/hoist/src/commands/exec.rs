//! `hoist exec`: becomes the OCI runtime that runs the container, which does it all.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::MemfdFlags;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::bundle;
use crate::bundle::process::{self, ImageProcess};
use crate::bundle::user::{self, User};
use crate::cli::{Exec, Global};
use crate::container::{self, Program};
use crate::failure::user_hint;
use crate::program;
use crate::rootdir::RootDir;
use crate::runtime::Runtime;

pub(super) fn run(global: &Global, options: &Exec) -> anyhow::Result<u8> {
    super::run::check_terminal(options.tty)?;
    let root = global.root()?;
    hoist_engine::store::Store::open(&root)?;
    let (program, record) = container::running(&root, options.name())?;
    let known = record.runtime.ok_or_else(|| {
        user_hint(
            format!("who runs the container {:?} is not known: an older hoist started it", options.name()),
            "start it anew",
        )
    })?;
    let mut runtime = Runtime::of(known);
    let user = options.user.as_deref().map(|spec| user_of(spec, &program)).transpose()?;
    let mut given: Vec<_> = user.iter().map(|user| format!("HOME={}", user.home)).collect();
    given.extend_from_slice(&options.env);
    // It stays open until the runtime has read it.
    let described = match &user {
        Some(user) if !user.groups.is_empty() => Some(described(&root, options, user, &given)?),
        _ => None,
    };
    let (arguments, command) = match &described {
        Some(file) => {
            (vec!["--process".into(), format!("/proc/self/fd/{}", file.as_raw_fd()).into()], &[][..])
        }
        None => (arguments(options, user.as_ref(), &given)?, options.command()),
    };
    if enter(&program)? {
        runtime.without_cgroups();
    }
    if !options.interactive && !options.tty {
        let null = std::fs::File::open("/dev/null").context("opening /dev/null")?;
        rustix::stdio::dup2_stdin(null)?;
    }
    let state = container::state_of(&root, options.name());
    if let Some(why) = why_not(&root, options, &program) {
        return Err(why);
    }
    let error = runtime.exec(options.name(), &state, &arguments, command);
    Err(error).with_context(|| format!("starting the OCI runtime {}", runtime.program().display()))
}

/// Who is meant, by the container's own files.
fn user_of(spec: &str, program: &Program) -> anyhow::Result<User> {
    let root = RootDir::open(&of_process(program, "root")).context("opening the container's root folder")?;
    let read =
        |file: &str| root.read(Path::new(file)).with_context(|| format!("reading the container's {file}"));
    let [passwd, group] = [read("/etc/passwd")?, read("/etc/group")?].map(Option::unwrap_or_default);
    user::resolve(spec, &passwd, &group)
}

fn own(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The runtime's own options.
fn arguments(options: &Exec, user: Option<&User>, given: &[String]) -> anyhow::Result<Vec<OsString>> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut give = |name: &str, value: &str| arguments.extend([name.into(), value.into()]);
    if let Some(user) = user {
        give("--user", &format!("{}:{}", user.uid, user.gid));
    }
    for variable in process::env(&ImageProcess::default(), given, own, &[])? {
        give("--env", &variable);
    }
    if let Some(dir) = &options.workdir {
        give("--cwd", &bundle::absolute_cwd(dir));
    }
    if options.tty {
        arguments.push("--tty".into());
    }
    Ok(arguments)
}

/// A file in memory, inherited by the runtime, that describes the program: not every runtime has an option for
/// supplementary groups.
fn described(root: &Path, options: &Exec, user: &User, given: &[String]) -> anyhow::Result<File> {
    let name = options.name();
    let lost = || format!("reading the bundle of the container {name}");
    let mut process = container::process(root, name).with_context(lost)?;
    let (env, _) = container::environment(root, name).with_context(lost)?;
    let container = ImageProcess { env, ..ImageProcess::default() };
    process["args"] = options.command().into();
    process["env"] = process::env(&container, given, own, &[])?.into();
    if let Some(dir) = &options.workdir {
        process["cwd"] = bundle::absolute_cwd(dir).into();
    }
    process["terminal"] = options.tty.into();
    process["user"]["uid"] = user.uid.into();
    process["user"]["gid"] = user.gid.into();
    // A user namespace of one user has none.
    if let Some(groups) = process["user"].get_mut("additionalGids") {
        *groups = user.groups.clone().into();
    }
    let made = rustix::fs::memfd_create(c"hoist-process", MemfdFlags::empty());
    let mut file = File::from(made.context("making a file in memory")?);
    file.write_all(process.to_string().as_bytes()).context("describing the program to the runtime")?;
    Ok(file)
}

/// Why the command can't be run, where that can be seen from here. The runtime would tell it in its own words.
fn why_not(root: &Path, options: &Exec, running: &Program) -> Option<anyhow::Error> {
    let (env, cwd) = container::environment(root, options.name())?;
    let given = options.env.iter().filter_map(|given| given.strip_prefix("PATH=")).next_back();
    let path = given.or_else(|| env.iter().find_map(|entry| entry.strip_prefix("PATH=")))?;
    let cwd = options.workdir.as_deref().unwrap_or(&cwd);
    let root = RootDir::open(&of_process(running, "root")).ok()?;
    if let (Some(dir), Ok(false)) = (&options.workdir, root.has(Path::new(&bundle::absolute_cwd(cwd)))) {
        return Some(user_hint(
            format!("the container {:?} has no folder {dir:?} to run it in", options.name()),
            "name one that it has with -w, or make it first: hoist exec NAME mkdir -p DIR",
        ));
    }
    let program = options.command().first()?;
    program::why_not(&root, "container", program, path, &bundle::absolute_cwd(cwd)).ok()?
}

fn of_process(program: &Program, what: &str) -> PathBuf {
    Path::new("/proc").join(program.pid().to_string()).join(what)
}

/// Becomes root of the container's user namespace, where it is an ordinary user's; false if it has none of its own.
fn enter(program: &Program) -> anyhow::Result<bool> {
    let namespace =
        |link: PathBuf| std::fs::read_link(&link).with_context(|| format!("looking at {}", link.display()));
    if namespace("/proc/self/ns/user".into())? == namespace(of_process(program, "ns/user"))? {
        return Ok(false);
    }
    move_into_thread_name_spaces(program.process(), ThreadNameSpaceType::USER)
        .context("entering the container's user namespace")?;
    Ok(true)
}

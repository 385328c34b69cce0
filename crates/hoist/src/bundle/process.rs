//! What is run: arguments and environment, out of the image's configuration and the command line.

use serde::{Deserialize, Serialize};

use crate::failure::{user, user_hint};

/// PATH for images that set none: Docker's.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The part of an image's configuration that says how to run it (OCI image specification, config.md).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ImageProcess {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, each `NAME=VALUE`.
    pub env: Vec<String>,
    /// `WorkingDir`, empty for `/`.
    pub working_dir: String,
    /// `User`, empty for root.
    pub user: String,
    /// `StopSignal`.
    #[serde(default)]
    pub stop_signal: Option<String>,
}

/// The argument vector: a command replaces the image's, an entrypoint replaces both of the image's.
///
/// # Errors
/// Nothing to run.
pub fn args(
    image: &ImageProcess,
    entrypoint: Option<&str>,
    command: &[String],
) -> anyhow::Result<Vec<String>> {
    let mut args = match entrypoint {
        Some("") => Vec::new(),
        Some(program) => vec![program.to_owned()],
        None => image.entrypoint.clone(),
    };
    if !command.is_empty() {
        args.extend_from_slice(command);
    } else if entrypoint.is_none() {
        args.extend_from_slice(&image.cmd);
    }
    if args.is_empty() {
        return Err(user_hint("the image names no command to run", "give one: hoist run IMAGE CMD [ARG...]"));
    }
    if args.iter().any(|arg| arg.contains('\0')) {
        return Err(user("the image's command has a NUL byte in it"));
    }
    Ok(args)
}

/// The environment in order: the image's, then `-e` (which may pass on a variable of `own`), then what
/// programs expect and none of these set: PATH, HOSTNAME, HOME, and TERM on a terminal.
pub fn env(
    image: &ImageProcess,
    options: &[String],
    own: impl Fn(&str) -> Option<String>,
    defaults: &[(&str, &str)],
) -> anyhow::Result<Vec<String>> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match env.iter_mut().find(|(known, _)| known == name) {
        Some(entry) => entry.1 = value.to_owned(),
        None => env.push((name.to_owned(), value.to_owned())),
    };
    // Variables without a name or value can't be said in an image; an OCI runtime would refuse them all.
    for (name, value) in image.env.iter().filter_map(|entry| entry.split_once('=')) {
        if !name.is_empty() && !name.contains('\0') && !value.contains('\0') {
            set(name, value);
        }
    }
    for option in options {
        match option.split_once('=') {
            Some(("", _)) => return Err(user(format!("-e {option:?} has no variable name"))),
            Some((name, value)) => set(name, value),
            None if option.is_empty() => return Err(user("-e needs a variable name")),
            None => {
                if let Some(value) = own(option) {
                    set(option, &value);
                }
            }
        }
    }
    for (name, value) in defaults {
        if !env.iter().any(|(known, _)| known == name) {
            env.push(((*name).to_owned(), (*value).to_owned()));
        }
    }
    Ok(env.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|item| (*item).to_owned()).collect()
    }

    // The table of the Dockerfile reference, "Understand how CMD and ENTRYPOINT interact", and of
    // `docker run --entrypoint`, which drops the image's Cmd.
    #[test]
    fn overrides_as_docker_has_them() {
        let both = ImageProcess { entrypoint: list(&["e"]), cmd: list(&["c", "d"]), ..Default::default() };
        let cmd = ImageProcess { cmd: list(&["c"]), ..Default::default() };
        assert_eq!(args(&both, None, &[]).unwrap(), ["e", "c", "d"]);
        assert_eq!(args(&both, None, &list(&["x"])).unwrap(), ["e", "x"]);
        assert_eq!(args(&both, Some("y"), &[]).unwrap(), ["y"]);
        assert_eq!(args(&both, Some("y"), &list(&["x"])).unwrap(), ["y", "x"]);
        assert_eq!(args(&both, Some(""), &list(&["x"])).unwrap(), ["x"]);
        assert_eq!(args(&cmd, None, &[]).unwrap(), ["c"]);
        assert!(args(&both, Some(""), &[]).is_err());
        assert!(args(&ImageProcess::default(), None, &[]).is_err());
    }

    #[test]
    fn environment_order_and_defaults() {
        let image = ImageProcess { env: list(&["A=1", "B=2", "junk", "=x"]), ..Default::default() };
        let own = |name: &str| (name == "OWN").then(|| "mine".to_owned());
        let defaults = [("PATH", DEFAULT_PATH), ("A", "no")];
        let env = env(&image, &list(&["B=3=4", "OWN", "ABSENT", "C="]), own, &defaults).unwrap();
        assert_eq!(env, ["A=1", "B=3=4", "OWN=mine", "C=", &format!("PATH={DEFAULT_PATH}")]);
    }
}

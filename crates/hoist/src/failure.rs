//! How a command fails: what it says and the exit code it leaves.
//!
//! Exit 1 is a failure the user can mend (a wrong name, a missing program), 2 is one of hoist's own or of
//! the machine's; `hoist run` knows more codes. An error may carry a hint: what to do next.

use std::fmt;
use std::io::{ErrorKind, Write};

/// The exit code of failures the user can mend.
pub const EXIT_USER: u8 = 1;
/// The exit code of every other failure.
pub const EXIT_OURS: u8 = 2;
/// What shells and container engines say of a program that is there and can't be run.
pub const EXIT_NOT_RUNNABLE: u8 = 126;
/// The same of one that is not there.
pub const EXIT_NO_PROGRAM: u8 = 127;

/// A failure the user can mend, with a hint how.
#[derive(Debug)]
pub struct UserFailure {
    text: String,
    hint: Option<String>,
    code: u8,
}

impl fmt::Display for UserFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for UserFailure {}

/// A user's failure without a hint.
pub fn user(text: impl Into<String>) -> anyhow::Error {
    UserFailure { text: text.into(), hint: None, code: EXIT_USER }.into()
}

/// A user's failure with a hint.
pub fn user_hint(text: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    user_code(text, hint, EXIT_USER)
}

/// The same with an exit code of its own.
pub fn user_code(text: impl Into<String>, hint: impl Into<String>, code: u8) -> anyhow::Error {
    UserFailure { text: text.into(), hint: Some(hint.into()), code }.into()
}

/// A failure told by the background process of a mount: printed as it was told, with the code it had.
#[derive(Debug)]
pub struct Relayed {
    /// The whole message, causes and hints included.
    pub text: String,
    /// The exit code.
    pub code: u8,
}

impl fmt::Display for Relayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Within another message.
        f.write_str(self.text.strip_prefix("error: ").unwrap_or(&self.text))
    }
}

impl std::error::Error for Relayed {}

/// The exit code an error calls for. `judge` says of an error of another kind whether it is the user's to
/// mend, if it knows.
pub fn exit_code(
    error: &anyhow::Error,
    judge: impl Fn(&(dyn std::error::Error + 'static)) -> Option<bool>,
) -> u8 {
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<UserFailure>() {
            return failure.code;
        }
        if let Some(relayed) = cause.downcast_ref::<Relayed>() {
            return relayed.code;
        }
        if let Some(error) = cause.downcast_ref::<std::io::Error>()
            && [ErrorKind::StorageFull, ErrorKind::QuotaExceeded].contains(&error.kind())
        {
            return EXIT_USER;
        }
        if let Some(user) = judge(cause) {
            return if user { EXIT_USER } else { EXIT_OURS };
        }
    }
    EXIT_OURS
}

/// The message of an error: one line for what failed, one for each cause, one for the hint.
pub fn describe(error: &anyhow::Error) -> String {
    if let Some(relayed) = error.downcast_ref::<Relayed>() {
        return relayed.text.clone();
    }
    let mut text = format!("error: {error}");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let line = cause.to_string();
        // Many errors already tell their source in their own text.
        if !last.contains(&line) {
            text.push_str(&format!("\n  cause: {line}"));
        }
        last = line;
    }
    for cause in error.chain() {
        if let Some(UserFailure { hint: Some(hint), .. }) = cause.downcast_ref::<UserFailure>() {
            text.push_str(&format!("\n  hint: {hint}"));
        }
    }
    text
}

/// Prints the error to stderr; a closed stderr is nothing to fail on.
pub fn report(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "{}", describe(error));
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn causes_and_hints_are_told_once() {
        let inner = user_hint("no such image", "check the name");
        let error = Err::<(), _>(inner).context("cannot run x").unwrap_err();
        assert_eq!(describe(&error), "error: cannot run x\n  cause: no such image\n  hint: check the name");
        assert_eq!(exit_code(&error, |_| None), 1);
        assert_eq!(exit_code(&anyhow::anyhow!("disk on fire"), |_| None), 2);
        assert_eq!(exit_code(&anyhow::anyhow!("no such tag"), |_| Some(true)), 1);
        let full = std::io::Error::from(ErrorKind::StorageFull);
        assert_eq!(exit_code(&anyhow::Error::from(full).context("writing"), |_| None), 1);
    }

    #[test]
    fn what_is_relayed_says_once_that_it_is_an_error() {
        let relayed = || anyhow::Error::from(Relayed { text: "error: no such image".into(), code: 1 });
        assert_eq!(describe(&relayed()), "error: no such image");
        assert_eq!(format!("{:#}", relayed().context("x can't be had")), "x can't be had: no such image");
    }
}

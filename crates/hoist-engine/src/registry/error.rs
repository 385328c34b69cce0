//! What can go wrong between hoist and a registry. No text holds a credential or a signed URL.

use std::error::Error as _;
use std::time::Duration;

use hoist_format::digest::Digest;

/// A failed registry or layout operation. `doing` says what was done and to what.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The server answered that it has no such thing.
    #[error("{doing}: {host} has no such manifest, blob or repository; check the image name and tag")]
    NotFound {
        /// What was done.
        doing: String,
        /// Who answered.
        host: String,
    },
    /// Credentials are missing, wrong or not enough.
    #[error(
        "{doing}: {host} refused access ({detail}); check the name, or log in with `docker login {host}`"
    )]
    Unauthorized {
        /// What was done.
        doing: String,
        /// Who answered.
        host: String,
        /// The server's words.
        detail: String,
    },
    /// The server could not be reached, or the connection broke.
    #[error("{doing}: cannot reach {host} ({detail}); check the network, the host name and its hosts.toml")]
    Unreachable {
        /// What was done.
        doing: String,
        /// Who was asked.
        host: String,
        /// The cause.
        detail: String,
        /// No connection came about: nobody listens there, or its name is not known.
        nobody: bool,
    },
    /// The server took too long.
    #[error("{doing}: {host} did not {what} within {limit:?}; check the network, or try again later")]
    TimedOut {
        /// What was done.
        doing: String,
        /// Who was asked.
        host: String,
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// The server does not answer, as others found who have just waited for it; it was not asked again.
    #[error("{doing}: {host} is down ({detail}); it is asked again within seconds")]
    Down {
        /// What was to be done.
        doing: String,
        /// Who would have been asked.
        host: String,
        /// How the last request failed.
        detail: String,
    },
    /// One side does not take the other's certificate, or does not speak TLS.
    #[error("{doing}: no safe connection to {host}: {detail}; {advice}")]
    Tls {
        /// What was done.
        doing: String,
        /// Who was asked.
        host: String,
        /// What is wrong.
        detail: String,
        /// What to do.
        advice: String,
    },
    /// An answer that reports failure.
    #[error("{doing}: {host} answered {status} {detail}{}; {}", wish(*.retry_after), advice(*.status))]
    Status {
        /// What was done.
        doing: String,
        /// Who answered.
        host: String,
        /// HTTP status.
        status: u16,
        /// The server's words.
        detail: String,
        /// The pause it asked for.
        retry_after: Option<Duration>,
    },
    /// An answer that breaks the protocol: hostile, broken, or no registry at all.
    #[error("{doing}: {host} sent {what}; the server or a proxy on the way is broken, try another mirror")]
    BadAnswer {
        /// What was done.
        doing: String,
        /// Who answered.
        host: String,
        /// What was wrong with it.
        what: String,
    },
    /// Content that is not what its digest says.
    #[error("{doing}: {host} sent content with digest {found}, not {expected}; it was thrown away")]
    DigestMismatch {
        /// What was done.
        doing: String,
        /// Who answered.
        host: String,
        /// The digest asked for.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// Others keep writing what we write.
    #[error("{doing}: others keep writing the same list at {host}; try again when they are done")]
    Contended {
        /// What was done.
        doing: String,
        /// Where.
        host: String,
    },
    /// The server sends whole blobs where a part is asked for, and the part is far inside.
    #[error("{doing}: {host} ignores HTTP ranges; lazy reading needs them, fetch the blob as a whole")]
    RangesIgnored {
        /// What was done.
        doing: String,
        /// Who answered.
        host: String,
    },
    /// Settings of this machine that cannot be used.
    #[error("{doing}: {what}")]
    Config {
        /// What was done.
        doing: String,
        /// What is wrong and where.
        what: String,
    },
    /// An OCI layout that cannot be read.
    #[error("reading OCI layout {path}: {what}")]
    Layout {
        /// The folder or tar file.
        path: String,
        /// What is wrong and what to do.
        what: String,
    },
}

fn advice(status: u16) -> &'static str {
    match status {
        // Those of the registry itself are `Unauthorized`.
        401 | 403 => "no login mends that: tell whoever runs the registry, or use a mirror",
        416 => {
            "what it has is shorter than the image says: the blob is cut off there, push it again or use a mirror"
        }
        429 => "its rate limit is used up, wait or log in",
        500.. => "the server has trouble, try again later",
        _ => "check the image name and the server's settings",
    }
}

/// What an answer asks of who comes again.
fn wish(retry_after: Option<Duration>) -> String {
    let pause = retry_after.filter(|pause| !pause.is_zero());
    pause.map_or_else(String::new, |pause| format!(" and wants to be asked again after {pause:?}"))
}

impl RegistryError {
    /// Whether the thing is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
    /// Whether credentials are the matter.
    pub fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Unauthorized { .. })
    }
    /// Whether the server sends whole blobs only.
    pub fn is_ranges_ignored(&self) -> bool {
        matches!(self, Self::RangesIgnored { .. })
    }
    /// Whether it is for the user to mend: a name, a login, a file of settings, a certificate, a registry that refuses or
    /// has other content than the image's.
    pub fn is_user_failure(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Unauthorized { .. } | Self::Config { .. })
            || matches!(self, Self::Unreachable { detail, .. } if is_no_such_host(detail))
            || matches!(self, Self::Tls { .. } | Self::Layout { .. })
            || matches!(self, Self::Status { status: 401 | 403, .. } | Self::DigestMismatch { .. })
    }
    /// Whether the same may work a little later or with another mirror.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::BadAnswer { .. } => true,
            Self::DigestMismatch { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502..=504 | 507..=599),
            _ => false,
        }
    }
    /// What happened, without what was being done.
    pub(crate) fn cause(&self) -> String {
        match self {
            Self::Unreachable { detail, .. } | Self::Tls { detail, .. } | Self::Down { detail, .. } => {
                detail.clone()
            }
            Self::TimedOut { what, limit, .. } => format!("it did not {what} within {limit:?}"),
            Self::Status { status, detail, retry_after, .. } => {
                format!("it answered {status} {detail}{}", wish(*retry_after))
            }
            Self::BadAnswer { what, .. } => format!("it sent {what}"),
            other => other.to_string(),
        }
    }
    /// Which server it is about, if one.
    pub(crate) fn host(&self) -> Option<&str> {
        match self {
            Self::NotFound { host, .. }
            | Self::Unauthorized { host, .. }
            | Self::Unreachable { host, .. }
            | Self::TimedOut { host, .. }
            | Self::Down { host, .. }
            | Self::Tls { host, .. }
            | Self::Status { host, .. }
            | Self::BadAnswer { host, .. }
            | Self::DigestMismatch { host, .. }
            | Self::Contended { host, .. }
            | Self::RangesIgnored { host, .. } => Some(host),
            Self::Config { .. } | Self::Layout { .. } => None,
        }
    }
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
    /// Whether nobody is there to answer.
    pub(super) fn is_nobody(&self) -> bool {
        matches!(self, Self::Unreachable { nobody: true, .. })
    }
    /// Whether the server as such is the trouble, so that it deserves a rest.
    pub(crate) fn server_down(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Tls { .. })
            || matches!(self, Self::Down { .. })
            || matches!(self, Self::Status { status: 500.., .. })
    }
}

/// Does the cause say that a name means no host? That none could be asked is another matter.
fn is_no_such_host(detail: &str) -> bool {
    // The words of std, and behind them of glibc and musl.
    detail.strip_prefix("failed to lookup address information").is_some_and(|why| {
        !["Temporary failure", "Try again", "System error"].iter().any(|words| why.contains(words))
    })
}

/// The innermost cause, which is the one a user can act on ("connection refused").
pub(super) fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_host_is_the_users_to_mend() {
        let unreachable = |detail: &str| RegistryError::Unreachable {
            doing: "reading manifest 1 of r/x".into(),
            host: "r".into(),
            detail: detail.into(),
            nobody: true,
        };
        for (why, is_user) in [
            ("failed to lookup address information: Name or service not known", true),
            ("failed to lookup address information: Name does not resolve", true),
            ("failed to lookup address information: Temporary failure in name resolution", false),
            ("Connection refused (os error 111)", false),
        ] {
            assert_eq!(unreachable(why).is_user_failure(), is_user, "{why}");
        }
    }
}

//! What a failed TLS handshake means to a user, and what mends it.

use std::error::Error;

use rustls::{CertificateError, Error as TlsError};

const SETTINGS: &str = "check the server's TLS settings";

/// What is wrong between us and `host`, and the advice; none if `error` is not about TLS.
pub(super) fn trouble(error: &(dyn Error + 'static), host: &str) -> Option<(String, String)> {
    let folder = folder(host);
    let client = || client_advice(host);
    if let Some(alert) = alert(error) {
        let ours = ["Certificate", "UnknownCA", "AccessDenied", "DecryptError"];
        return Some(match ours.iter().any(|word| alert.contains(word)) {
            true => (format!("it wants a client certificate, or another than ours ({alert})"), client()),
            false => (format!("it ended the handshake ({alert})"), SETTINGS.to_owned()),
        });
    }
    let error = find(error)?;
    let advice = match error {
        TlsError::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                let detail = "its certificate is signed by a CA that is not trusted here".to_owned();
                let advice = format!(
                    "put the CA's certificate as ca.crt into {folder}, or name it as `ca` in hosts.toml"
                );
                return Some((detail, advice));
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "use a name that the certificate is for, or give the server a certificate for this one"
                    .to_owned()
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => {
                "renew the server's certificate, or correct this machine's clock".to_owned()
            }
            _ => "give the server a certificate of its own, signed by a CA that is trusted here".to_owned(),
        },
        TlsError::InvalidMessage(_) => {
            "if it serves plain HTTP, write its URL with http:// in hosts.toml or use --plain-http".to_owned()
        }
        _ => SETTINGS.to_owned(),
    };
    Some((error.to_string(), advice))
}

/// How to show a client certificate to `host`.
pub(super) fn client_advice(host: &str) -> String {
    let folder = folder(host);
    format!("put client.cert and client.key into {folder}, or name them as `client` in hosts.toml")
}

fn folder(host: &str) -> String {
    format!("/etc/containerd/certs.d/{host} or /etc/docker/certs.d/{host}")
}

/// The TLS error among the causes. An `io::Error` hides what it wraps from `source`.
fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a TlsError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// What the server said when it ended the handshake. By its words, as HTTP/2 keeps nothing else of it.
fn alert(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some((_, words)) = error.to_string().split_once("received fatal alert: ") {
            return Some(words.to_owned());
        }
        next = error.source();
    }
    None
}

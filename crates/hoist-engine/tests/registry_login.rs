//! Credential helpers as programs on PATH: right, ignorant, broken and hanging ones. What skopeo makes of the same file
//! and the same helper is asked where it can be.

mod registry_support;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use hoist_engine::registry::{Client, RegistryError};
use registry_support::*;
use serde_json::{Value, json};

/// A helper `docker-credential-test` in a folder of its own, and a Docker config.
struct Login {
    dir: tempfile::TempDir,
    config: PathBuf,
}

impl Login {
    fn new(script: &str, config: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("docker-credential-test");
        std::fs::write(&program, format!("#!/bin/sh\ncd '{}'\n{script}\n", dir.path().display())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(&file, config.to_string()).unwrap();
        Self { config: file, dir }
    }

    fn path(&self) -> String {
        format!("{}:/usr/bin:/bin", self.dir.path().display())
    }

    fn client(&self) -> Client {
        let mut config = config();
        config.credentials.files = vec![self.config.clone()];
        config.credentials.helper_path = Some(self.path().into());
        config.credentials.helper_limit = Duration::from_secs(20);
        Client::new(config)
    }

    /// Whether we get at the manifest, or the error.
    async fn hoist(&self, registry: &Registry) -> Result<(), RegistryError> {
        let named = format!("{}:v1", registry.repo("team/app")).parse().unwrap();
        self.client().manifest(&named).await.map(drop)
    }

    /// Whether skopeo does.
    fn skopeo(&self, registry: &Registry) -> bool {
        let image = format!("docker://{}:v1", registry.repo("team/app"));
        let mut command = Command::new("skopeo");
        command.args(["inspect", "--raw", "--tls-verify=false", "--authfile"]).arg(&self.config).arg(image);
        command.env("PATH", self.path()).output().expect("skopeo is needed").status.success()
    }
}

async fn registry() -> Registry {
    let registry = Registry::with_htpasswd();
    let known = Client::new(with_password(&registry.host));
    push_layout(&known, &registry.repo("team/app"), &fixtures().join("gzip"), "v1").await;
    registry
}

/// Answers for the one server, and notes what it was asked and how.
const RIGHT: &str = r#"read server; echo "$* $server" >>asked; cat /proc/$PPID/cmdline >>parent
echo "looked it up" >&2; echo '{"ServerURL": "x", "Username": "someone", "Secret": "s3cret"}'"#;

#[tokio::test]
async fn a_helper_opens_the_registry_and_no_secret_is_in_an_argument() {
    let registry = registry().await;
    let host = &registry.host;
    let stale = json!({"auth": "c29tZW9uZTp3cm9uZw=="});
    for config in [
        json!({"credHelpers": {host: "test"}}),
        json!({"credsStore": "test"}),
        // The file's own word is older than the helper's.
        json!({"credsStore": "test", "auths": {host: stale}}),
        json!({"credsStore": "absent", "credHelpers": {host: "test"}}),
    ] {
        let login = Login::new(RIGHT, config.clone());
        login.hoist(&registry).await.unwrap_or_else(|error| panic!("{config}: {error}"));
        let asked = std::fs::read_to_string(login.dir.path().join("asked")).unwrap();
        assert_eq!(asked, format!("get {host}\n"), "{config}: once, by its standard input");
        let parent = std::fs::read(login.dir.path().join("parent")).unwrap();
        assert!(!String::from_utf8_lossy(&parent).contains("s3cret"));
    }
    let login = Login::new(RIGHT, json!({"credHelpers": {host: "test"}}));
    assert!(login.skopeo(&registry));
}

#[tokio::test]
async fn what_a_helper_does_not_know_the_file_may() {
    let registry = registry().await;
    let host = &registry.host;
    let none = "echo 'credentials not found in native keychain'; exit 1";
    let right = json!({"auth": "c29tZW9uZTpzM2NyZXQ="});
    let login = Login::new(none, json!({"credsStore": "test", "auths": {host: right}}));
    login.hoist(&registry).await.unwrap();
    for script in [none, "echo '{}'", "echo '{\"Username\": \"\", \"Secret\": \"\"}'"] {
        let login = Login::new(script, json!({"credHelpers": {host: "test"}}));
        let error = login.hoist(&registry).await.unwrap_err();
        assert!(error.is_unauthorized() && error.to_string().contains("docker login"), "{script}: {error}");
        assert!(!login.skopeo(&registry), "{script}");
    }
    // A wrong answer is the server's to refuse.
    let login = Login::new(
        "echo '{\"Username\": \"someone\", \"Secret\": \"hunter2\"}'",
        json!({"credsStore": "test"}),
    );
    let error = login.hoist(&registry).await.unwrap_err();
    assert!(error.is_unauthorized(), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
}

#[tokio::test]
async fn broken_helpers_are_told_by_name_without_what_they_know() {
    let registry = registry().await;
    let host = &registry.host;
    for (script, word) in [
        ("echo 's3cret, not JSON'", "not the JSON expected"),
        ("echo '{\"Username\": \"someone\", \"Secret\": \"s3cret\"'", "not the JSON expected"),
        (
            "echo '{\"Secret\": \"s3cret\"}'; echo 'the vault is sealed' >&2; exit 3",
            "saying: the vault is sealed",
        ),
        ("echo 'no vault here'; exit 1", "saying: no vault here"),
        ("echo '{\"Secret\": \"s3cret\"}'; exit 1", "saying: nothing"),
        ("kill -9 $$", "signal: 9"),
        ("printf 'bad \\033[31mred\\n' >&2; exit 1", "saying: bad [31mred"),
    ] {
        let login = Login::new(script, json!({"credHelpers": {host: "test"}}));
        let error = login.hoist(&registry).await.unwrap_err();
        let said = format!("{error} {error:?}");
        assert!(said.contains("docker-credential-test") && said.contains(word), "{script}: {said}");
        assert!(!said.contains("s3cret") && error.is_user_failure(), "{script}: {said}");
        assert!(!login.skopeo(&registry), "{script}");
    }
    let login = Login::new("", json!({"credHelpers": {host: "missing"}}));
    let said = login.hoist(&registry).await.unwrap_err().to_string();
    assert!(said.contains("cannot run docker-credential-missing") && said.contains("install it"), "{said}");
    let login = Login::new("", json!({"credHelpers": {host: "../../bin/sh"}}));
    let said = login.hoist(&registry).await.unwrap_err().to_string();
    assert!(said.contains("no name of a credential helper"), "{said}");
}

#[tokio::test]
async fn a_helper_that_hangs_is_ended_at_the_limit() {
    let registry = registry().await;
    let login = Login::new("echo $$ >pid; exec sleep 1000", json!({"credHelpers": {&registry.host: "test"}}));
    let mut config = config();
    config.credentials.files = vec![login.config.clone()];
    config.credentials.helper_path = Some(login.path().into());
    config.credentials.helper_limit = Duration::from_secs(2);
    let named = format!("{}:v1", registry.repo("team/app")).parse().unwrap();
    let said = Client::new(config).manifest(&named).await.unwrap_err().to_string();
    assert!(said.contains("docker-credential-test gave no answer within 2s"), "{said}");
    let pid = std::fs::read_to_string(login.dir.path().join("pid")).unwrap();
    // Killed, it stays a name without a command line until it is waited for.
    let mut left = true;
    for _ in 0..10_000 {
        left = std::fs::read(format!("/proc/{}/cmdline", pid.trim())).is_ok_and(|line| !line.is_empty());
        if !left {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(!left, "the helper lives on");
}

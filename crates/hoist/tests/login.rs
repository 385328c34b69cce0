//! A registry that wants a login, as the command line meets it: Docker's config and a helper on PATH.

mod node;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use hoist_testkit::layout::Compression;
use hoist_testkit::{Registry, process};
use node::tree::Source;
use node::{Node, stderr};

/// Asks with the Docker config and the programs in `folder` and no others, and logs all there is to log.
fn pull(node: &Node, image: &str, folder: &Path) -> Output {
    let mut command = node.hoist(&["--log", "trace", "pull", image]);
    command.env("PATH", format!("{}:/usr/bin:/bin", folder.display())).env("DOCKER_CONFIG", folder);
    command.env("HOME", folder).env_remove("XDG_RUNTIME_DIR").env_remove("XDG_CONFIG_HOME");
    command.env_remove("REGISTRY_AUTH_FILE").output().unwrap()
}

#[test]
fn a_login_by_file_or_helper_opens_the_registry_and_is_not_logged() {
    let registry = Registry::with_login().unwrap();
    let host = registry.host();
    let image = format!("{host}/team/app:v1");
    let source = Source::new();
    let layout = source.layout(Compression::Gzip(1)).directory;
    let mut copy = Command::new("skopeo");
    copy.args(["copy", "-q", "--dest-tls-verify=false", "--dest-creds", "someone:s3cret"]);
    process::run(copy.arg(format!("oci:{}:v1", layout.display())).arg(format!("docker://{image}"))).unwrap();

    let node = Node::new();
    let folder = tempfile::tempdir().unwrap();
    let said = pull(&node, &image, folder.path());
    assert_eq!(said.status.code(), Some(1), "{}", stderr(&said));
    assert!(stderr(&said).contains(&format!("docker login {host}")), "{}", stderr(&said));

    let helper = folder.path().join("docker-credential-vault");
    let script = "#!/bin/sh\ntr '\\0' ' ' </proc/$PPID/cmdline >\"$HOME/parent\"\necho \"$@\" >\"$HOME/arguments\"\n\
        echo '{\"Username\": \"someone\", \"Secret\": \"s3cret\"}'\n";
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    // someone:s3cret
    let by_file = format!("{{\"auths\": {{\"{host}\": {{\"auth\": \"c29tZW9uZTpzM2NyZXQ=\"}}}}}}");
    for config in [by_file, "{\"credsStore\": \"vault\"}".to_owned()] {
        fs::write(folder.path().join("config.json"), &config).unwrap();
        let node = Node::new();
        let said = pull(&node, &image, folder.path());
        assert!(said.status.success(), "{config}: {}", stderr(&said));
        let logged = stderr(&said);
        assert!(logged.contains("TRACE") || logged.contains("DEBUG"), "nothing was logged: {logged}");
        assert!(!logged.contains("s3cret") && !logged.contains("c29tZW9uZTpzM2NyZXQ"), "{logged}");
    }
    assert_eq!(fs::read_to_string(folder.path().join("arguments")).unwrap(), "get\n");
    assert!(!fs::read_to_string(folder.path().join("parent")).unwrap().contains("s3cret"));
}

//! `hoist run` and `hoist mount` whole, on an image in an OCI layout, against what its own programs see.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hoist_testkit::layout::{Builder, Compression};
use serde_json::json;

/// Programs that no kernel runs, or not this one.
fn make_unrunnable(root: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mut foreign = fs::read(root.join("bin/sh")).unwrap();
    // e_machine of the ELF header: SPARC V9.
    foreign[18..20].copy_from_slice(&43u16.to_le_bytes());
    let files: [(&str, &[u8]); 3] =
        [("no-interpreter", b"#!/no/interpreter\n"), ("nonsense", b"just words\n"), ("foreign", &foreign)];
    for (name, content) in files {
        let path = root.join("bin").join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    fn new() -> Image {
        let dir = tempfile::tempdir().unwrap();
        let (root, tar) = (dir.path().join("root"), dir.path().join("layer.tar"));
        common::make_rootfs(&root);
        make_unrunnable(&root);
        common::output(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg("."));
        Builder::new(dir.path().join("layout"))
            .unwrap()
            .layer(&tar, Compression::Gzip(6))
            .unwrap()
            .config("Env", json!(["PATH=/bin", "COLOR=blue"]))
            .config("WorkingDir", json!("/made/here"))
            .config("Cmd", json!(["sh", "-c", "echo by default"]))
            .write("latest")
            .unwrap();
        Image { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn name(&self) -> String {
        format!("oci:{}", self.path("layout").display())
    }

    fn hoist(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoist"));
        command.env("HOIST_ROOT", self.path("store")).args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, options: &[&str], program: &[&str]) -> Output {
        self.run_command(options, program).output().unwrap()
    }

    fn run_command(&self, options: &[&str], program: &[&str]) -> Command {
        let name = self.name();
        self.hoist(&[&["run"], options, &[name.as_str()], program].concat())
    }

    fn says(&self, options: &[&str], program: &[&str]) -> String {
        common::output(&mut self.run_command(options, program))
    }
}

impl Drop for Image {
    // What a failed test leaves mounted would keep its folder from being removed.
    fn drop(&mut self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in table.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if Path::new(point).starts_with(self.dir.path()) {
                let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
            }
        }
    }
}

#[test]
fn the_image_s_configuration_and_its_overrides() {
    let image = Image::new();
    assert_eq!(image.says(&["--rm"], &[]), "by default\n");
    assert_eq!(image.says(&["--rm"], &["sh", "-c", "pwd; echo $COLOR $HOME"]), "/made/here\nblue /root\n");
    let options = ["--rm", "-w", "/tmp", "-e", "COLOR=red", "-u", "app"];
    assert_eq!(image.says(&options, &["sh", "-c", "pwd; echo $COLOR $HOME"]), "/tmp\nred /home/app\n");
    assert_eq!(image.says(&["--rm", "--entrypoint", "id"], &["-u"]), "0\n");
}

#[test]
fn a_read_only_root_a_volume_and_what_it_took() {
    let image = Image::new();
    let (volume, stats) = (image.path("volume"), image.path("run.json"));
    fs::create_dir(&volume).unwrap();
    let volume_option = format!("{}:/data", volume.display());
    let options = ["--rm", "--read-only", "-v", &volume_option, "--stats", stats.to_str().unwrap()];
    let script = "touch /tmp/x 2>/dev/null && echo written; echo kept >/data/file; exit 5";
    let output = image.run(&options, &["sh", "-c", script]);
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "kept\n");
    assert_statistics(&stats);
}

/// Every field that scripts are promised is there.
fn assert_statistics(path: &Path) {
    let written: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    for field in
        ["requests", "wire_bytes", "demand_bytes", "demand_stalls", "seconds_to_mount", "seconds_total"]
    {
        assert!(written[field].is_number(), "{field} in {written}");
    }
}

#[test]
fn exit_codes() {
    let image = Image::new();
    assert_eq!(image.run(&["--rm"], &["sh", "-c", "exit 37"]).status.code(), Some(37));
    assert_eq!(image.run(&["--rm", "-u", "nobody"], &["id"]).status.code(), Some(1));
    // As docker and podman have it.
    let cases: [(&str, i32, &str); 7] = [
        ("no-such-program", 127, "no program \"no-such-program\" in its PATH"),
        ("/no/such/program", 127, "no program /no/such/program"),
        ("/etc", 126, "can't be run"),
        ("/etc/passwd", 126, "can't be run"),
        ("/bin/no-interpreter", 127, "/no/interpreter"),
        ("/bin/nonsense", 126, "neither an ELF program nor a script"),
        ("/bin/foreign", 126, "another kind of processor"),
    ];
    let volume = format!("{}:/data", image.path("").display());
    for options in [&["--rm"][..], &["--rm", "-v", &volume]] {
        for (program, code, why) in cases {
            let output = image.run(options, &[program]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(code), "{options:?} {program}: {said}");
            assert!(said.contains(why), "{options:?} {program}: {said}");
        }
    }
    assert_eq!(fs::read_dir(image.path("store/containers")).unwrap().count(), 0);
}

/// A program that is no OCI runtime: that it succeeds says nothing.
#[test]
fn a_runtime_that_does_nothing_is_none() {
    let image = Image::new();
    for (runtime, code, why) in [("true", 1, "true did nothing"), ("false", 2, "could not start")] {
        let output = image.run(&["--runtime", runtime], &["sh"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(fs::read_dir(image.path("store/containers")).unwrap().count(), 0);
}

#[test]
fn signals_reach_the_program() {
    let image = Image::new();
    let script = "trap 'exit 42' TERM; echo up; while :; do sleep 0.05; done";
    let mut child =
        image.run_command(&["--rm"], &["sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    child.stdout.take().unwrap().read_exact(&mut up).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(42));
    assert_eq!(fs::read_dir(image.path("store/containers")).unwrap().count(), 0);
}

/// Containers of one name in two stores have control groups of their own: the end of one is not the other's.
#[test]
fn one_name_in_two_stores() {
    let image = Image::new();
    let script = "trap 'exit 42' TERM; cat /proc/self/cgroup; echo up; while :; do sleep 0.05; done";
    let start = |store: &str| {
        let mut command = image.run_command(&["--rm", "--name", "twin"], &["sh", "-c", script]);
        let mut child = command.env("HOIST_ROOT", image.path(store)).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let groups: Vec<_> = lines.take_while(|line| line != "up").collect();
        (child, groups)
    };
    let (mut one, its) = start("store");
    let (mut other, others) = start("other");
    let own = |groups: &[String]| -> Vec<String> {
        groups.iter().filter(|group| group.contains("twin")).cloned().collect()
    };
    assert!(
        !own(&its).is_empty() && own(&its).iter().all(|group| !others.contains(group)),
        "{its:?} {others:?}"
    );
    for child in [&mut one, &mut other] {
        assert!(child.try_wait().unwrap().is_none());
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(42));
    }
}

#[test]
fn writes_stay_in_the_container_until_it_is_removed() {
    let image = Image::new();
    image.says(&["--name", "kept"], &["sh", "-c", "echo mine >/tmp/x"]);
    assert_eq!(fs::read_to_string(image.path("store/containers/kept/upper/tmp/x")).unwrap(), "mine\n");
    assert!(!image.run(&["--rm"], &["cat", "/tmp/x"]).status.success());
    assert_eq!(image.run(&["--name", "kept"], &[]).status.code(), Some(1));
    common::output(&mut image.hoist(&["rm", "kept"]));
    assert!(!image.path("store/containers/kept").exists());
}

#[test]
fn a_mount_serves_in_the_background_until_unmounted() {
    let image = Image::new();
    let (target, stats) = (image.path("mnt"), image.path("stats.json"));
    fs::create_dir(&target).unwrap();
    let (target, stats) = (target.to_str().unwrap(), stats.to_str().unwrap());
    common::output(&mut image.hoist(&["mount", "--stats", stats, &image.name(), target]));
    common::output(Command::new("diff").arg("-r").arg(image.path("root")).arg(target));
    let again = image.hoist(&["mount", &image.name(), target]).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    common::output(&mut image.hoist(&["unmount", target]));
    assert_statistics(Path::new(stats));
    assert_eq!(fs::read_dir(target).unwrap().count(), 0);
    assert_eq!(image.hoist(&["unmount", target]).status().unwrap().code(), Some(1));
}

/// Paths of the store that mean something to who mounts.
#[test]
fn a_store_of_any_name_will_do() {
    let image = Image::new();
    for name in [r"back\slash", r"twice\\", "a,b:c", "with space"] {
        let script = "echo new >/tmp/x && cat /tmp/x";
        let mut command = image.run_command(&["--rm"], &["sh", "-c", script]);
        let said = common::output(command.env("HOIST_ROOT", image.path(name)));
        assert_eq!(said, "new\n", "{name}");
    }
}

//! The commands as somebody meets them who has not read the source.

mod common;
mod node;

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use hoist_testkit::layout::{Builder, Compression};
use hoist_testkit::{Fault, FaultKind, ProxyOptions, When, process};
use node::case::PATIENCE;
use node::daemon::Daemon;
use node::tree::Source;
use node::{Node, Published, REPO, count, stderr};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

/// An image with a shell, and with more in it than that.
fn programs() -> Published {
    let dir = tempfile::tempdir().unwrap();
    let (root, tar) = (dir.path().join("root"), dir.path().join("layer.tar"));
    common::make_rootfs(&root);
    std::fs::write(root.join("etc/large"), node::tree::noise(7, 24_000_000)).unwrap();
    common::output(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg("."));
    let builder = Builder::new(dir.path().join("layout")).unwrap();
    let builder = builder.layer(&tar, Compression::Gzip(1)).unwrap();
    let layout = builder.config("Env", json!(["PATH=/bin"])).write("v1").unwrap();
    Published::indexed(&layout.directory)
}

fn ps(node: &Node) -> Vec<Value> {
    serde_json::from_str(&node.says(&["ps", "--json"])).unwrap()
}

#[test]
fn containers_are_listed_while_they_run_and_after() {
    let image = programs();
    // On a slow line nothing is fetched that nobody reads.
    image.proxy.set_options(hoist_testkit::ProxyOptions { rate: Some(20_000_000), ..Default::default() });
    for with_daemon in [false, true] {
        let node = Node::new();
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        assert_eq!(ps(&node).len(), 0);
        let args = ["run", "-i", "--name", "web", &image.name, "sh", "-c", "echo up; read wait; exit 3"];
        let mut running = node.hoist(&args);
        let mut running = running.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut up = [0; 3];
        std::io::Read::read_exact(running.stdout.as_mut().unwrap(), &mut up).unwrap();
        // Its program may speak before its OCI runtime has noted which process it is.
        let noted = || Ok(ps(&node).iter().any(|row| row["pid"].is_u64()));
        process::wait_until("the container's first process", node::case::PATIENCE, noted).unwrap();
        let listed = ps(&node);
        let [web] = &listed[..] else { panic!("{listed:?}") };
        assert_eq!((&web["name"], &web["state"]), (&json!("web"), &json!("running")), "{web}");
        assert_eq!((&web["image"], &web["digest"]), (&json!(image.name), &json!(image.digest)), "{web}");
        assert_eq!(web["command"], json!(["sh", "-c", "echo up; read wait; exit 3"]));
        assert!(web["exit_code"].is_null() && web["ended"].is_null(), "{web}");
        let program = std::fs::read(format!("/proc/{}/cmdline", web["pid"])).unwrap();
        assert_eq!(program, b"sh\0-c\0echo up; read wait; exit 3\0");
        // What the kernel says of the mount.
        let point = node.store("containers/web/image");
        let kind = process::run(Command::new("findmnt").args(["-no", "FSTYPE"]).arg(&point)).unwrap();
        assert_eq!(web["driver"].as_str().unwrap(), kind.trim(), "{web}");
        let (here, total) = (count(web, "present_bytes"), count(web, "total_bytes"));
        assert!(here > 0 && here < total, "{web}");
        let shown = node.says(&["ps"]);
        assert!(
            shown.contains("NAME") && shown.contains("running for") && shown.contains(" MiB of "),
            "{shown}"
        );
        let said = node.fails(&["rm", "web"]);
        assert!(said.contains("still running") && said.contains("hoist stop web"), "{said}");
        let said = node.fails(&["inspect", "web"]);
        assert!(said.contains("\"web\" is a container") && said.contains("hoist why web"), "{said}");
        let said = node.fails(&["unmount", "web"]);
        assert!(said.contains("hoist stop web"), "{said}");
        let said = node.fails(&["logs", "web"]);
        assert!(said.contains("in the foreground"), "{said}");
        // Others' way to have those that ended listed, as they are here in any case.
        assert!(node.says(&["ps", "-a"]).contains("web"));

        drop(running.stdin.take());
        assert_eq!(running.wait().unwrap().code(), Some(3));
        let listed = ps(&node);
        let [web] = &listed[..] else { panic!("{listed:?}") };
        assert_eq!((&web["state"], &web["exit_code"]), (&json!("exited"), &json!(3)), "{web}");
        assert!(web["pid"].is_null(), "{web}");
        assert!(web["ended"].is_u64() && count(web, "present_bytes") >= here, "{web}");
        assert_eq!(count(web, "total_bytes"), total);
        assert!(node.says(&["ps"]).contains("exited (3)"));
        let why = node.says(&["why", "web"]);
        assert!(why.contains(&format!("{} on {}", image.name, point.display())), "{why}");
        assert!(why.contains("\nlazy: ") && why.contains("reads waited for data"), "{why}");
        node.says(&["rm", "web"]);
        assert_eq!(ps(&node).len(), 0);
        node.says(&["run", "--rm", &image.name, "sh", "-c", ":"]);
        assert_eq!(ps(&node).len(), 0);
    }
}

/// What a container's program has said, once that is as much as this.
fn wait_for_output(node: &Node, name: &str, wanted: &str) {
    let file = node.store("containers").join(name).join("output");
    let said = || std::fs::read_to_string(&file).unwrap_or_default();
    let waited = process::wait_until(wanted, node::case::PATIENCE, || Ok(said().contains(wanted)));
    waited.unwrap_or_else(|e| panic!("{e}: {:?}", said()));
}

#[test]
fn a_container_in_the_background_is_entered_stopped_and_removed() {
    let image = programs();
    let asked = "trap 'echo bye; exit 3' TERM; echo up $X; while :; do sleep 0.05; done";
    for with_daemon in [false, true] {
        let node = Node::new();
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        let run = ["run", "-d", "--name", "web", "-e", "X=it is", &image.name, "sh", "-c", asked];
        assert_eq!(node.says(&run), "web\n");
        assert!(node.fails(&run).contains("a container \"web\" already"));
        wait_for_output(&node, "web", "up it is\n");
        assert_eq!(ps(&node)[0]["state"], json!("running"));

        let inside = ["-e", "Y=too", "-w", "/tmp", "-u", "app", "web", "sh", "-c"];
        let exec = |script: &str| node.hoist(&[&["exec"], &inside[..], &[script]].concat()).output().unwrap();
        let said = exec("echo $X $Y $HOME; pwd; id -u; id -g; exit 7");
        assert_eq!(said.status.code(), Some(7), "{}", stderr(&said));
        assert_eq!(String::from_utf8(said.stdout).unwrap(), "it is too /home/app\n/tmp\n1000\n1001\n");
        let said = exec("echo $X $Y $HOME $0; pwd; id -G");
        assert_eq!(String::from_utf8(said.stdout).unwrap(), "it is too /home/app sh\n/tmp\n1001 44\n");
        assert_eq!(node.says(&["exec", "-u", "app:app", "web", "id", "-G"]), "1001\n");
        assert_eq!(node.says(&["exec", "-w", "tmp", "web", "pwd"]), "/tmp\n");
        // As the container has it: the program is its first process.
        assert_eq!(node.says(&["exec", "web", "sh", "-c", "read -r name </proc/1/comm; echo $name"]), "sh\n");
        // What can't be run is told as `hoist run` tells it.
        for (command, code, wanted) in [
            (&["web", "no-such"][..], 127, "error: the container has no program \"no-such\" in its PATH\n"),
            (&["web", "/no/such"], 127, "error: the container has no program /no/such\n"),
            (&["-w", "/no/such", "web", "pwd"], 1, "has no folder \"/no/such\" to run it in"),
            (&["-w", "/etc", "web", "./passwd"], 126, "passwd can't be run: it has no execute permission"),
        ] {
            let refused = node.hoist(&[&["exec"], command].concat()).output().unwrap();
            let said = stderr(&refused);
            assert_eq!((refused.status.code(), refused.stdout.len()), (Some(code), 0), "{said}");
            assert!(said.contains(wanted) && said.matches("error").count() == 1, "{said}");
        }

        // The OCI runtime may have something to say there too, after that.
        assert!(node.says(&["logs", "web"]).starts_with("up it is\n"));
        let mut following = node.hoist(&["logs", "--follow", "web"]);
        let following = following.stdout(Stdio::piped()).spawn().unwrap();
        node.says(&["stop", "web"]);
        wait_for_output(&node, "web", "bye\n");
        let followed = following.wait_with_output().unwrap();
        let followed = String::from_utf8(followed.stdout).unwrap();
        assert!(followed.starts_with("up it is\nbye\n"), "{followed}");
        assert_eq!(node.says(&["logs", "web"]), followed);
        let last = followed.split_inclusive('\n').next_back().unwrap();
        assert_eq!(node.says(&["logs", "-n", "1", "web"]), last);
        let web = &ps(&node)[0];
        assert_eq!((&web["state"], &web["exit_code"]), (&json!("exited"), &json!(3)), "{web}");
        node.says(&["stop", "web"]);
        assert!(node.fails(&["exec", "web", "true"]).contains("does not run"));
        node.says(&["rm", "web"]);
        for command in [&["stop", "web"][..], &["exec", "web", "true"], &["logs", "web"]] {
            assert!(node.fails(command).contains("no container \"web\""), "{command:?}");
        }
    }
}

/// What it says is kept as far as somebody may want to read it.
#[test]
fn what_a_container_in_the_background_says_does_not_fill_the_disk() {
    let image = programs();
    let node = Node::new();
    // 64 KiB a line, 40 MiB.
    let talkative = "x=0123456789abcdef; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do x=$x$x; done
        i=0; while [ $i -lt 640 ]; do echo $i $x; i=$((i + 1)); done; echo the end; while :; do sleep 0.05; done";
    node.says(&["run", "-d", "--name", "web", &image.name, "sh", "-c", talkative]);
    let file = node.store("containers").join("web").join("output");
    let taken = || std::fs::metadata(&file).map_or(u64::MAX, |file| file.blocks() * 512);
    process::wait_until("an end that is near its beginning", node::case::PATIENCE, || {
        Ok(node.says(&["logs", "--tail", "1", "web"]) == "the end\n" && taken() <= 16 << 20)
    })
    .unwrap();
    let said = node.says(&["logs", "web"]);
    let numbers: Vec<u32> = said.lines().filter_map(|line| line.split_once(' ')?.0.parse().ok()).collect();
    assert!(said.len() >= 8 << 20 && numbers.ends_with(&[637, 638, 639]), "{numbers:?}");
    assert!(numbers.windows(2).all(|two| two[0] + 1 == two[1]), "{numbers:?}");
    node.says(&["rm", "--force", "web"]);
}

/// Whoever does not heed SIGTERM is killed, and what was to be thrown away is.
#[test]
fn a_stubborn_program_is_killed() {
    let image = programs();
    let node = Node::new();
    let stubborn = "trap '' TERM; echo up; while :; do sleep 0.05; done";
    let start = |options: &[&str]| {
        let said = node.says(&[&["run", "-d"], options, &[&image.name, "sh", "-c", stubborn]].concat());
        let name = said.trim().to_owned();
        wait_for_output(&node, &name, "up\n");
        name
    };
    let name = start(&[]);
    let stopped = node.hoist(&["stop", "--time", "2s", &name]).output().unwrap();
    // A long wait is explained.
    assert!(stopped.status.success() && stderr(&stopped).contains("it is killed in 1 s "), "{stopped:?}");
    assert_eq!(ps(&node)[0]["exit_code"], json!(137));
    node.says(&["rm", &name]);
    for options in [&["--name", "a"][..], &["--name", "a", "--rm"]] {
        start(options);
        node.says(&["rm", "--force", "a"]);
        assert_eq!(ps(&node).len(), 0, "{options:?}");
    }
    // And one that is over at once is not.
    start(&["--rm", "--name", "brief"]);
    let stopped = node.hoist(&["stop", "-t", "1", "brief"]).output().unwrap();
    assert!(stopped.status.success() && stderr(&stopped).is_empty(), "{stopped:?}");
    start(&["--rm", "--name", "gone"]);
    node.says(&["stop", "-t", "0", "gone"]);
    assert_eq!(ps(&node).len(), 0);
}

/// The image's own word for it, as web servers have one.
#[test]
fn a_program_is_asked_by_the_signal_its_image_names() {
    let dir = tempfile::tempdir().unwrap();
    let (root, tar) = (dir.path().join("root"), dir.path().join("layer.tar"));
    common::make_rootfs(&root);
    common::output(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg("."));
    let script = "trap 'exit 5' QUIT; trap 'exit 6' TERM; echo up; while :; do sleep 0.05; done";
    let builder = Builder::new(dir.path().join("layout")).unwrap().config("StopSignal", json!("SIGQUIT"));
    let builder = builder.config("Env", json!(["PATH=/bin"])).config("Cmd", json!(["sh", "-c", script]));
    let layout = builder.layer(&tar, Compression::Gzip(1)).unwrap().write("v1").unwrap();
    let node = Node::new();
    node.says(&["run", "-d", "--name", "web", &format!("oci:{}", layout.directory.display())]);
    wait_for_output(&node, "web", "up\n");
    node.says(&["stop", "web"]);
    assert_eq!(ps(&node)[0]["exit_code"], json!(5));
    // What can't be started is told by who asked for it, and nothing is left of it.
    let output =
        node.hoist(&["run", "-d", &format!("oci:{}", layout.directory.display()), "no-such"]).output();
    let output = output.unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(127), 0));
    let said = stderr(&output);
    assert!(said.starts_with("error: the image has no program \"no-such\""), "{said}");
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    assert_eq!(ps(&node).len(), 1);
}

/// What a command shows on a terminal of 80 columns.
fn on_terminal(node: &Node, command: &str) -> String {
    let hoist = node.hoist(&[]);
    let mut script = Command::new("script");
    script.args(["-qec", &format!("stty cols 80 && exec \"$HOIST\" {command}"), "/dev/null"]);
    script.env("HOIST", hoist.get_program()).stdin(Stdio::null());
    script.envs(hoist.get_envs().filter_map(|(name, value)| Some((name, value?))));
    process::run(&mut script).unwrap().replace("\x1b[2J\x1b[H", "").replace('\r', "")
}

#[test]
fn tables_fit_the_terminal() {
    let image = Published::indexed(&Source::small().layout(Compression::Gzip(6)).directory);
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    let tail = mount.root().file_name().unwrap().to_str().unwrap().trim_start_matches('.');
    let listed = || Ok(node.says(&["top", "--json", "-n", "1"]).contains(tail));
    process::wait_until("the mount in `hoist top`", node::case::PATIENCE, listed).unwrap();
    // Where nobody looks, nothing is left out.
    assert!(node.says(&["status"]).contains(mount.root().to_str().unwrap()));
    for command in ["status", "top -n 1", "images"] {
        let shown = on_terminal(&node, command);
        let table: Vec<_> = shown.lines().skip_while(|line| !line.contains("  ")).collect();
        assert!(table.len() >= 2, "{command}: {shown}");
        assert!(table.iter().all(|line| line.chars().count() <= 80), "{command}: {shown}");
        assert!(command == "images" || shown.contains(tail), "{command}: {shown}");
    }
}

/// Long work shows how far it is on a terminal, and says nothing anywhere else.
#[test]
fn progress_is_for_a_terminal_alone() {
    let image = programs();
    image.proxy.set_options(hoist_testkit::ProxyOptions { rate: Some(8_000_000), ..Default::default() });
    let shown = on_terminal(&Node::new(), &format!("pull {}", image.name));
    assert!(shown.contains("MiB/s") && shown.contains("layer fetched"), "{shown:?}");
    let node = Node::new();
    let output = node.hoist(&["pull", "--json", &image.name]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    // The program has a terminal of its own where one was asked for.
    let asked = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo a terminal; exit 0";
    let shown = on_terminal(&node, &format!("run --rm -it {} sh -c '{asked}'", image.name));
    // Of an input that ends a terminal shows a mark first.
    assert!(shown.ends_with("a terminal\n"), "{shown:?}");
    assert_eq!(node.says(&["run", "--rm", &image.name, "sh", "-c", asked]), "");
}

/// Looking at an image is not having it.
#[test]
fn inspecting_lists_no_image() {
    let image = Published::indexed(&Source::small().layout(Compression::Gzip(6)).directory);
    for with_daemon in [false, true] {
        let node = Node::new();
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        for name in [image.name.clone(), format!("{}/{REPO}@{}", image.proxy.host(), image.digest)] {
            let told: Value = serde_json::from_str(&node.says(&["inspect", "--json", &name])).unwrap();
            assert_eq!((&told["lazy"], &told["digest"]), (&json!(true), &json!(image.digest)));
            assert!(node.says(&["inspect", &name]).contains("nothing"));
            assert_eq!(node.says(&["images", "--json"]).trim(), "[]");
        }
        let said = node.says(&["pull", &image.name]);
        let fetched = format!("{} ({}): 1 of 1 layer fetched; ", image.name, &image.digest[7..19]);
        assert!(said.starts_with(&fetched) && said.lines().count() == 1, "{said}");
        let said = node.says(&["pull", &image.name]);
        assert!(said.contains(": all of it was here already, 1 layer; "), "{said}");
        assert!(node.says(&["images", "--json"]).contains(&image.name));
    }
}

#[test]
fn a_killed_run_is_listed_as_ended() {
    let image = programs();
    let node = Node::new();
    let mut command = node.hoist(&["run", "--name", "web", &image.name, "sleep", "1000"]);
    let mut running = command.spawn().unwrap();
    let pid_file = node.store("containers/web/bundle/pid");
    let started = || Ok(std::fs::read_to_string(&pid_file).is_ok_and(|text| !text.is_empty()));
    process::wait_until("the container", Duration::from_secs(30), started).unwrap();
    let program: i32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    running.kill().unwrap();
    running.wait().unwrap();
    rustix::process::kill_process(Pid::from_raw(program).unwrap(), Signal::KILL).unwrap();
    let ended = || Ok(ps(&node)[0]["state"] == "exited");
    process::wait_until("the container's end", Duration::from_secs(30), ended).unwrap();
    let web = &ps(&node)[0];
    assert!(web["exit_code"].is_null() && web["image"] == json!(image.name), "{web}");
    assert!(node.says(&["ps"]).contains("nobody saw how"));
    node.says(&["rm", "web"]);
}

fn down(image: &Published) {
    image.proxy.inject(Fault::new("", When::Always, FaultKind::CloseAfter(0)));
}

/// What is complete and verified is pulled, and it is said that nobody could be asked; else it fails.
#[test]
fn what_a_pull_took_counts_what_asking_took() {
    let image = programs();
    let node = Node::new();
    node.says(&["pull", &image.name]);
    let delay = Duration::from_millis(400);
    image.proxy.set_options(ProxyOptions { delay, rate: None });
    let again: Value = serde_json::from_str(&node.says(&["pull", "--json", &image.name])).unwrap();
    assert_eq!(again["stats"]["requests"], 1, "{again}");
    assert!(again["stats"]["seconds_total"].as_f64().unwrap() >= delay.as_secs_f64(), "{again}");
}

#[test]
fn a_pull_without_the_registry_says_what_it_knows() {
    let image = Published::indexed(&Source::new().layout(Compression::Gzip(6)).directory);
    for (with_daemon, pulled) in [(false, true), (true, true), (false, false)] {
        let node = Node::new();
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        match pulled {
            true => drop(node.says(&["pull", &image.name])),
            false => drop(node.mount(&image.name, &[]).read("lib/a.so").unwrap()),
        }
        down(&image);
        let output = node.hoist(&["pull", "--json", &image.name]).output().unwrap();
        let said = stderr(&output);
        if pulled {
            assert!(said.starts_with("note: ") && said.lines().count() == 1, "{said}");
            let told: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!((&told["fetched_layers"], output.status.code()), (&json!(0), Some(0)), "{said}");
            assert!(told["unchecked"].as_str().unwrap().contains("cannot reach"), "{told}");
            assert!(said.contains("could not be asked"), "{said}");
        } else {
            assert!(matches!(output.status.code(), Some(1 | 2)), "{said}");
            assert!(output.stdout.is_empty() && said.contains("cannot reach"), "{said}");
        }
        image.proxy.clear_faults();
        let told: Value = serde_json::from_str(&node.says(&["pull", "--json", &image.name])).unwrap();
        assert!(told.get("unchecked").is_none(), "{told}");
    }
}

#[test]
fn images_are_known_by_any_of_their_names() {
    let image = Published::plain(&Source::small().layout(Compression::Gzip(6)).directory);
    let node = Node::new();
    let by_digest = format!("{}/{REPO}@{}", image.proxy.host(), image.digest);
    let hex = image.digest.strip_prefix("sha256:").unwrap();
    let spelled_out = format!("{}@{}", image.name, image.digest);
    node.says(&["pull", &image.name]);
    for spelling in [&image.digest, &image.digest[..19], hex, &hex[..12]] {
        let told: Value = serde_json::from_str(&node.says(&["inspect", "--json", spelling])).unwrap();
        assert_eq!(told["digest"], *image.digest);
        node.says(&["pin", spelling]);
        assert!(node.says(&["images", "--json"]).contains(r#""pinned": true"#));
        node.says(&["unpin", spelling]);
    }
    assert!(node.fails(&["inspect", "sha256:000000000000"]).contains("`hoist images`"));
    for spelling in [image.name.as_str(), &by_digest, &spelled_out, &image.digest, hex, &hex[..12]] {
        node.says(&["pull", &image.name]);
        node.says(&["rm", spelling]);
        assert_eq!(node.says(&["images", "--json"]).trim(), "[]", "{spelling}");
    }
    let said = node.fails(&["rm", &hex[..12]]);
    assert!(said.contains("`hoist images` and `hoist ps` list them"), "{said}");
    let said = node.fails(&["pull", "Debian:12"]);
    assert!(said.contains("lower case: write debian:12"), "{said}");
}

/// Whoever may not push hears of it before the image is fetched.
#[test]
fn a_push_that_will_be_refused_is_refused_first() {
    let source = Source::small();
    let layout = source.layout(Compression::Gzip(6));
    let image = Published::plain(&layout.directory);
    let denied = FaultKind::Status(403, vec![]);
    image.proxy.inject(Fault::new(format!("POST /v2/{REPO}/blobs/uploads"), When::Always, denied));
    let node = Node::new();
    let said = node.fails(&["index", "--push", &image.name]);
    assert!(said.contains("refused access"), "{said}");
    let asked: Vec<_> = image.proxy.log().into_iter().map(|request| request.path).collect();
    assert!(!asked.iter().any(|path| path.contains(&layout.layers[0])), "{asked:?}");
    let said = node.fails(&["index", "--push", &format!("oci:{}", layout.directory.display())]);
    assert!(said.contains("push the image to a registry first"), "{said}");
    assert_eq!(std::fs::read_dir(node.store("layers")).unwrap().count(), 0);
    image.proxy.clear_faults();
    node.says(&["index", "--push", &image.name]);
    // Whoever has made the index needs none.
    assert!(node.says(&["inspect", &image.name]).contains("none needed: all of it is here"));
}

/// An image for one machine alone: taken as it is, unless another platform was asked for.
#[test]
fn an_image_for_another_machine_is_not_what_was_asked_for() {
    let image = Published::plain(&Source::small().layout(Compression::Gzip(6)).directory);
    let node = Node::new();
    for _ in 0..2 {
        let said = node.fails(&["pull", "--platform", "linux/s390x", &image.name]);
        assert!(said.contains("alone, not for linux/s390x"), "{said}");
        node.says(&["pull", &image.name]);
    }
}

#[test]
fn umount_is_unmount() {
    let image = Published::plain(&Source::small().layout(Compression::Gzip(6)).directory);
    let node = Node::new();
    let mount = node.mount(&image.name, &[]);
    let said = node.fails(&["unmount", &image.name]);
    assert!(said.contains("is an image") && said.contains(mount.root().to_str().unwrap()), "{said}");
    node.says(&["umount", mount.root().to_str().unwrap()]);
    assert_eq!(std::fs::read_dir(mount.root()).unwrap().count(), 0);
}

/// However fast the bytes come: the index of an image is one index, and one referrer.
#[test]
fn an_index_built_twice_is_the_same() {
    let image = Published::plain(&Source::new().layout(Compression::Gzip(6)).directory);
    let mut pushed = Vec::new();
    for rate in [None, Some(40_000_000), Some(7_000_000)] {
        image.proxy.set_options(hoist_testkit::ProxyOptions { rate, ..Default::default() });
        let said = Node::new().says(&["index", "--push", "--json", &image.name]);
        pushed.push(serde_json::from_str::<Value>(&said).unwrap());
    }
    assert!(count(&pushed[0], "window_bytes") > 0, "{}", pushed[0]);
    assert!(pushed.iter().all(|said| *said == pushed[0]), "{pushed:?}");
    let fallback = format!("/v2/{REPO}/manifests/{}", image.digest.replace(':', "-"));
    let accept = [("accept", "application/vnd.oci.image.index.v1+json")];
    let found = hoist_testkit::http::get(&image.registry.host(), &fallback, &accept).unwrap();
    let referrers: Value = serde_json::from_slice(&found.body).unwrap();
    assert_eq!(referrers["manifests"].as_array().unwrap().len(), 1, "{referrers}");
}

/// Killed in its second layer, a pull goes on there: neither the first layer nor what had come of the second
/// is fetched again.
#[test]
fn a_killed_pull_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = Builder::new(dir.path().join("layout")).unwrap();
    for (layer, length) in [3_000_000, 60_000_000].into_iter().enumerate() {
        let (root, tar) = (dir.path().join(format!("{layer}")), dir.path().join(format!("{layer}.tar")));
        std::fs::create_dir(&root).unwrap();
        let name = format!("file-{layer}");
        std::fs::write(root.join(&name), node::tree::noise(layer as u64 + 3, length)).unwrap();
        process::run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg(".")).unwrap();
        builder = builder.layer(&tar, Compression::Gzip(1)).unwrap();
    }
    let layout = builder.write("v1").unwrap();
    let size = |layer: usize| {
        let path = layout.directory.join("blobs").join(layout.layers[layer].replace(':', "/"));
        std::fs::metadata(path).unwrap().len()
    };
    let image = Published::plain(&layout.directory);
    let node = Node::new();
    image.proxy.set_options(hoist_testkit::ProxyOptions { rate: Some(20_000_000), ..Default::default() });
    let mut pull = node.hoist(&["pull", &image.name]).spawn().unwrap();
    let had = 30 << 20;
    let enough = size(0) + had;
    process::wait_until("most of the second layer", Duration::from_secs(60), || {
        Ok(image.proxy.stats().body_bytes >= enough)
    })
    .unwrap();
    pull.kill().unwrap();
    pull.wait().unwrap();
    image.proxy.set_options(hoist_testkit::ProxyOptions::default());
    let first = node.store("layers").join(layout.layers[0].trim_start_matches("sha256:"));
    assert!(first.join("state.json").exists(), "the first layer was not complete yet");
    image.proxy.reset();
    node.says(&["pull", &image.name]);
    // What was under way when it was killed comes again: four requests of 4 MiB at most.
    let fetched = image.proxy.stats().body_bytes;
    assert!(fetched < size(1) - had + (17 << 20), "{fetched} of {}", size(1));
    let second = node.store("layers").join(layout.layers[1].trim_start_matches("sha256:"));
    let mut left: Vec<_> =
        std::fs::read_dir(second).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["data", "state.json", "table", "tree", "used", "windows"]);
    let mount = node.mount(&image.name, &[]);
    for (layer, length) in [3_000_000, 60_000_000].into_iter().enumerate() {
        let content = mount.read(&format!("file-{layer}")).unwrap();
        assert!(content == node::tree::noise(layer as u64 + 3, length));
    }
}

/// What an interrupted pull has left is believed as little as what comes from the network.
#[test]
fn a_pull_does_not_believe_what_an_earlier_one_left() {
    let source = Source::new();
    let layout = source.layout(Compression::None);
    let image = Published::plain(&layout.directory);
    let node = Node::new();
    node.make_store();
    let layer = node.store("layers").join(layout.layers[0].trim_start_matches("sha256:"));
    std::fs::create_dir_all(&layer).unwrap();
    let blob = layout.directory.join("blobs").join(layout.layers[0].replace(':', "/"));
    let mut blob = std::fs::read(blob).unwrap();
    blob.truncate(6 << 20);
    blob[5 << 20] ^= 1;
    std::fs::write(layer.join("begun"), &blob).unwrap();
    let output = node.hoist(&["pull", &image.name]).output().unwrap();
    assert!(output.status.success() && stderr(&output).contains("without what was kept"), "{output:?}");
    assert!(!layer.join("begun").exists());
    let mount = node.mount(&image.name, &[]);
    assert!(mount.read("lib/c.so").unwrap() == node::tree::noise(4, 3_000_000));
}

/// Of a registry that is down whoever starts a program hears once, whatever has tried to read the image.
#[test]
fn an_image_that_cannot_be_read_is_one_error() {
    let image = programs();
    for with_daemon in [false, true] {
        let node = Node::new();
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        // Known, and next to nothing of it here.
        drop(node.mount(&image.name, &[]));
        let name = format!("{}@{}", image.name, image.digest);
        node.says(&["inspect", &name]);
        down(&image);
        for detached in [&["-d"][..], &[]] {
            let output =
                node.hoist(&[&["run"], detached, &[&name, "sh", "-c", ":"]].concat()).output().unwrap();
            let said = stderr(&output);
            assert!(matches!(output.status.code(), Some(1 | 2)) && output.stdout.is_empty(), "{said}");
            assert!(said.starts_with("error: ") && said.contains("of the image failed, "), "{said}");
            assert!(said.contains("cannot reach") && said.matches("error: ").count() == 1, "{said}");
            assert!(said.lines().skip(1).all(|line| line.starts_with("  ")), "{said}");
            assert_eq!(ps(&node).len(), 0);
        }
        image.proxy.clear_faults();
    }
}

/// An image with users in one layer and programs in another.
fn programs_apart() -> Published {
    let dir = tempfile::tempdir().unwrap();
    let (programs, users) = (dir.path().join("programs"), dir.path().join("users"));
    common::make_rootfs(&programs);
    std::fs::create_dir(&users).unwrap();
    std::fs::rename(programs.join("etc"), users.join("etc")).unwrap();
    let mut builder = Builder::new(dir.path().join("layout")).unwrap();
    for root in [users, programs] {
        let tar = root.with_extension("tar");
        common::output(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&root).arg("."));
        builder = builder.layer(&tar, Compression::Gzip(6)).unwrap();
    }
    let layout = builder.config("Env", json!(["PATH=/bin"])).write("v1").unwrap();
    Published::indexed(&layout.directory)
}

/// A program that the kernel can't read is no program that has failed: what is told is why it can't be read.
#[test]
fn a_program_that_cannot_be_read_is_told_as_such() {
    let image = programs_apart();
    let programs = image.layers().remove(1);
    for kind in [FaultKind::CloseAfter(0), FaultKind::FlipBit(100)] {
        image.proxy.inject(Fault::new(&programs, When::Always, kind));
        let node = Node::new();
        let output = node.hoist(&["run", "--name", "web", &image.name, "sh", "-c", ":"]).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("the image's /bin/sh or its interpreter can't be read"), "{said}");
        assert!(said.contains("of the image failed, "), "{said}");
        assert_eq!(ps(&node).len(), 0);
        image.proxy.clear_faults();
    }
    // In the background it may have been said to run by then.
    image.proxy.inject(Fault::new(&programs, When::Always, FaultKind::Hang));
    let node = Node::new();
    let options = ["run", "-d", "--name", "web", "--read-timeout", "2s", &image.name, "sh", "-c", ":"];
    assert_eq!(node.says(&options), "web\n");
    process::wait_until("its end", PATIENCE, || Ok(ps(&node)[0]["state"] == "exited")).unwrap();
    assert_eq!(ps(&node)[0]["exit_code"], json!(2));
    image.proxy.clear_faults();
}

/// A container that lasts a moment leaves no more in the store than its limit allows.
#[test]
fn a_run_keeps_to_the_store_s_limit() {
    let image = programs();
    let node = Node::new();
    let taken = || -> u64 {
        let files = node.layers().into_iter().flat_map(|layer| std::fs::read_dir(layer).unwrap());
        files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum()
    };
    let run = ["run", "--rm", &image.name, "sha256sum", "/etc/large"];
    node.says(&run);
    assert!(taken() > 20 << 20);
    node.says(&[&["--store-limit", "1M"], &run[..]].concat());
    assert!(taken() <= 1 << 20, "{}", taken());
}

/// Of a container in the background, too.
#[test]
fn what_hoist_says_is_no_output_of_a_program() {
    let image = programs();
    let node = Node::new();
    let script = "echo up; read wait </tmp/wait; cat /etc/large >/dev/null; echo over";
    let fifo = node.path("wait");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let volume = format!("{}:/tmp/wait", fifo.display());
    // On a slow line nothing is fetched that nobody reads.
    image.proxy.set_options(hoist_testkit::ProxyOptions { rate: Some(20_000_000), ..Default::default() });
    node.says(&["run", "-d", "--name", "web", "-v", &volume, &image.name, "sh", "-c", script]);
    wait_for_output(&node, "web", "up\n");
    down(&image);
    std::fs::write(&fifo, "\n").unwrap();
    wait_for_output(&node, "web", "over\n");
    process::wait_until("its end", PATIENCE, || Ok(ps(&node)[0]["state"] == "exited")).unwrap();
    // Some runtimes copy what is said from pipes, two at once.
    let logged = node.says(&["logs", "web"]);
    let mut lines: Vec<_> = logged.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["cat: /etc/large: Input/output error", "over", "up"], "{logged}");
    let logs = std::fs::read_dir(node.store("log")).unwrap().map(|entry| entry.unwrap().path());
    let of_web = logs.filter(|log| log.file_name().unwrap().to_str().unwrap().starts_with("run-web-"));
    let said: String = of_web.map(|log| std::fs::read_to_string(log).unwrap()).collect();
    assert!(said.contains("of the image failed, ") && said.contains("hoist why"), "{said}");
    image.proxy.clear_faults();
}

/// Called off while reads of its image wait for a registry that hangs, a container leaves nothing.
#[test]
fn a_run_interrupted_while_its_image_cannot_be_read_leaves_nothing() {
    let image = programs();
    for with_daemon in [false, true] {
        let node = Node::new();
        let _daemon = with_daemon.then(|| Daemon::start(&node, &[]));
        // Known, and next to nothing of it here.
        drop(node.mount(&image.name, &[]));
        image.proxy.inject(Fault::new("/blobs/", When::Always, FaultKind::Hang));
        let name = format!("{}@{}", image.name, image.digest);
        let mut run = node.hoist(&["run", "--rm", &name, "sh", "-c", ":"]);
        let run = run.stderr(Stdio::piped()).spawn().unwrap();
        let containers = node.store("containers");
        let is_mounted = || {
            let table = std::fs::read_to_string("/proc/self/mountinfo")?;
            Ok(table.contains(containers.to_str().unwrap()))
        };
        process::wait_until("the image's mount", PATIENCE, is_mounted).unwrap();
        let pid = rustix::process::Pid::from_raw(run.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let ended = run.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(130), "{}", stderr(&ended));
        image.proxy.clear_faults();
        process::wait_until("the end of the mount", PATIENCE, || Ok(!is_mounted()?)).unwrap();
        process::wait_until("the end of the container's folder", PATIENCE, || {
            Ok(std::fs::read_dir(&containers)?.next().is_none())
        })
        .unwrap();
    }
}

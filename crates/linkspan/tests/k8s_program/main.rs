//! `linkspan k8s device-plugin` with a plane that runs, and a kubelet that we did not write the
//! protocol of.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use linkspan_testkit::census::settled;
use rustix::process::{Signal, kill_process};
use serde_json::json;

#[path = "../host/mod.rs"]
mod host;
mod kubelet;
mod manifests;
#[path = "../programs/mod.rs"]
mod programs;

use host::Host;
use kubelet::Kubelet;
use programs::Program;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

const DISK: &str = "linkspan.dev/disk";

const PLANE: &str = "[plane]\ncontrol = \"control.sock\"\n\
    [link.disk-a]\ncommand = \"blk\"\nsocket-path = \"a/disk.sock\"\nimage = \"mem:1M\"\n\
    [link.disk-b]\ncommand = \"blk\"\nsocket-path = \"b/disk.sock\"\nimage = \"mem:2M\"\n\
    restart = \"never\"\n\
    [link.lan]\ncommand = \"net\"\nport = [\"vhost-user:lan/net.sock\", \"responder\"]\n";

/// A plane, and a kubelet's folder.
fn node(plane: &str) -> Host {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "b", "lan", "kubelet"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    Host::start(folder, plane, &[])
}

fn plugin(host: &Host, resources: &[&str]) -> Program {
    let at = |name: &str| host.at(name).to_str().unwrap().to_owned();
    let mut words = vec!["device-plugin".to_owned(), "--json".to_owned()];
    for (option, value) in [
        ("--control", at("control.sock")),
        ("--kubelet-dir", at("kubelet")),
        ("--mount-below", at("inside")),
    ] {
        words.extend([option.to_owned(), value]);
    }
    for resource in resources {
        words.extend(["--resource".to_owned(), (*resource).to_owned()]);
    }
    Program::start("k8s", words)
}

fn sockets(host: &Host) -> Vec<String> {
    let names = fs::read_dir(host.at("kubelet")).unwrap();
    let names = names.map(|it| it.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|it| it != "kubelet.sock").collect();
    names.sort();
    names
}

/// What `linkspan driver blk … info` says of the disk at a socket, seen as a container sees it
/// to which a folder is mounted, read-only.
fn seen_inside(mount: &serde_json::Value, socket: &str) -> (bool, String) {
    let (inside, outside) = (mount[0].as_str().unwrap(), mount[1].as_str().unwrap());
    fs::create_dir_all(inside).unwrap();
    let script = "mount --bind \"$1\" \"$2\" && mount -o remount,bind,ro \"$2\" && \
        ! touch \"$2/new\" 2>/dev/null && exec \"$0\" driver blk --socket-path \"$3\" info --json";
    let mut command = Command::new("unshare");
    command.args([
        "--mount", "sh", "-c", script, PROGRAM, outside, inside, socket,
    ]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

#[test]
fn a_kubelet_gets_links_as_devices_and_a_container_a_disk() {
    let host = node(PLANE);
    let test = "a_kubelet_gets_links_as_devices_and_a_container_a_disk";
    let Some(mut kubelet) = Kubelet::new(test, &host.at("kubelet")) else {
        return host.end();
    };
    kubelet.start();
    host.becomes("lan/state", |it| it == "running");
    let plugin = plugin(&host, &["linkspan.dev/disk=disk-*", "linkspan.dev/nic=lan"]);
    for resource in [DISK, "linkspan.dev/nic"] {
        kubelet.says_of("registered", |it| {
            it["resource"] == resource && it["preferred"] == true
        });
    }
    kubelet.has(DISK, &json!({ "disk-a": "Healthy", "disk-b": "Healthy" }));
    kubelet.has("linkspan.dev/nic", &json!({ "lan": "Healthy" }));
    kubelet.tell(&json!(["allocate", DISK, [["disk-b"]]]));
    let answer = kubelet.says("allocated");
    let container = &answer["containers"][0];
    let socket = host.at("inside/disk/0/disk.sock");
    assert_eq!(container["envs"], json!({ "LINKSPAN_DISK": socket }));
    assert_eq!(container["annotations"], json!({ DISK: "disk-b" }));
    let mount = json!([host.at("inside/disk/0"), host.at("b"), true]);
    assert_eq!(container["mounts"], json!([mount]));
    if rustix::process::geteuid().is_root() {
        let (works, said) = seen_inside(&mount, socket.to_str().unwrap());
        assert!(works && said.contains("2097152"), "{said}");
    }
    kubelet.tell(&json!(["prefer", DISK, ["disk-b", "disk-a"], 1]));
    assert_eq!(kubelet.says("preferred")["devices"], json!(["disk-a"]));
    kubelet.tell(&json!(["pre_start", DISK, ["disk-a"]]));
    kubelet.says("pre-started");
    plugin.signal(Signal::TERM);
    let (status, _, errors) = plugin.end();
    assert_eq!(status, Some(0), "{errors}");
    assert_eq!(sockets(&host), [""; 0]);
    host.end();
}

#[test]
fn what_a_link_does_is_its_device_s_health() {
    let host = node(PLANE);
    let test = "what_a_link_does_is_its_device_s_health";
    let Some(mut kubelet) = Kubelet::new(test, &host.at("kubelet")) else {
        return host.end();
    };
    kubelet.start();
    let plugin = plugin(&host, &["linkspan.dev/disk=disk-*"]);
    let are = |a: &str, b: &str| json!({ "disk-a": a, "disk-b": b });
    kubelet.has(DISK, &are("Healthy", "Healthy"));
    assert!(host.run(&["link", "stop", "disk-a"]).status.success());
    kubelet.has(DISK, &are("Unhealthy", "Healthy"));
    let allocate = json!(["allocate", DISK, [["disk-a"]]]);
    assert_eq!(kubelet.is_refused(&allocate).0, "FAILED_PRECONDITION");
    assert!(host.run(&["link", "start", "disk-a"]).status.success());
    kubelet.has(DISK, &are("Healthy", "Healthy"));
    // One that nobody starts again.
    kill_process(host.process("disk-b"), Signal::KILL).unwrap();
    kubelet.has(DISK, &are("Healthy", "Unhealthy"));
    // Nobody knows how they are any more.
    host.up.signal(Signal::TERM);
    kubelet.has(DISK, &are("Unhealthy", "Unhealthy"));
    plugin.await_error("no device is healthy: ");
    plugin.signal(Signal::TERM);
    assert_eq!(plugin.end().0, Some(0));
    host.end();
}

/// It removes what is in its folder, refuses, and is another one then.
#[test]
fn a_kubelet_that_comes_back_has_its_devices_again() {
    let host = node(PLANE);
    let test = "a_kubelet_that_comes_back_has_its_devices_again";
    let Some(mut kubelet) = Kubelet::new(test, &host.at("kubelet")) else {
        return host.end();
    };
    // Before there is a kubelet.
    let plugin = plugin(&host, &["linkspan.dev/disk=disk-*"]);
    plugin.await_error("the kubelet does not take linkspan.dev/disk");
    let all = json!({ "disk-a": "Healthy", "disk-b": "Healthy" });
    kubelet.start();
    kubelet.says("registered");
    kubelet.has(DISK, &all);
    for refusals in [0, 2] {
        kubelet.tell(&json!(["stop"]));
        kubelet.says("stopped");
        kubelet.forget();
        kubelet.tell(&json!(["refuse", refusals]));
        kubelet.start();
        kubelet.says("registered");
        kubelet.has(DISK, &all);
        kubelet.tell(&json!(["allocate", DISK, [["disk-a"], ["disk-b"]]]));
        kubelet.says("allocated");
    }
    // Somebody tidies up, and the kubelet does not notice.
    let socket = &sockets(&host)[0];
    fs::remove_file(host.at("kubelet").join(socket)).unwrap();
    kubelet.says("registered");
    kubelet.has(DISK, &all);
    // It lets go, and nothing in its folder changes.
    kubelet.forget();
    kubelet.tell(&json!(["let_go", DISK]));
    kubelet.says("registered");
    kubelet.has(DISK, &all);
    plugin.signal(Signal::TERM);
    let (status, lines, errors) = plugin.end();
    assert_eq!(status, Some(0), "{errors}");
    // One that is slow to watch is asked again.
    let registered = lines.iter().filter(|it| it["event"] == "registered");
    assert!(registered.count() >= 5, "{lines:?}");
    host.end();
}

#[test]
fn who_asks_for_what_cannot_be_is_refused_by_name() {
    let host = node(PLANE);
    let test = "who_asks_for_what_cannot_be_is_refused_by_name";
    let Some(mut kubelet) = Kubelet::new(test, &host.at("kubelet")) else {
        return host.end();
    };
    kubelet.start();
    let plugin = plugin(&host, &["linkspan.dev/disk=disk-*"]);
    kubelet.has(DISK, &json!({ "disk-a": "Healthy", "disk-b": "Healthy" }));
    for (what, code, why) in [
        (
            json!(["allocate", DISK, [["disk-a", "disk-ä\n"]]]),
            "NOT_FOUND",
            "there is no device \"disk-ä\\n\"",
        ),
        (json!(["allocate", DISK, [["lan"]]]), "NOT_FOUND", "\"lan\""),
        (
            json!(["allocate", DISK, [["disk-a"], ["disk-a"]]]),
            "INVALID_ARGUMENT",
            "twice",
        ),
        (json!(["pre_start", DISK, ["x"]]), "NOT_FOUND", "\"x\""),
        (
            json!(["prefer", DISK, ["disk-a"], 2]),
            "INVALID_ARGUMENT",
            "2 devices are wanted of 1",
        ),
        (
            json!(["raw", DISK, "Allocate", "zzzz"]),
            "INVALID_ARGUMENT",
            "Protobuf",
        ),
        (
            json!(["raw", DISK, "Allocate", "aaaaaaaa", 300_000]),
            "RESOURCE_EXHAUSTED",
            "more than 1048576 bytes",
        ),
        (
            json!(["raw", DISK, "Allocate", "aaaaaaaa", 10_000, true]),
            "UNIMPLEMENTED",
            "compressed",
        ),
        (
            json!(["raw", DISK, "Nothing", ""]),
            "UNIMPLEMENTED",
            "no such method",
        ),
    ] {
        let refused = kubelet.is_refused(&what);
        assert_eq!(refused.0, code, "{what}");
        assert!(refused.1.contains(why), "{what}: {}", refused.1);
    }
    kubelet.tell(&json!(["allocate", DISK, [["disk-a"]]]));
    kubelet.says("allocated");
    plugin.signal(Signal::TERM);
    assert_eq!(plugin.end().0, Some(0));
    host.end();
}

/// The greeting of HTTP/2 (RFC 9113, 3.4), and a frame of settings without any.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn connected(socket: &Path, bytes: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    // Who is not listened to any more cannot say all.
    let _ = stream.write_all(bytes);
    stream
}

fn is_left(mut stream: UnixStream) -> bool {
    stream
        .set_read_timeout(Some(linkspan_testkit::PATIENCE))
        .unwrap();
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// Nonsense, silence, and streams without end: the kubelet is served.
#[test]
fn a_hostile_peer_keeps_nobody_out() {
    let host = node(PLANE);
    let Some(mut kubelet) = Kubelet::new("a_hostile_peer_keeps_nobody_out", &host.at("kubelet"))
    else {
        return host.end();
    };
    kubelet.start();
    let plugin = plugin(&host, &["linkspan.dev/disk=disk-*"]);
    let all = json!({ "disk-a": "Healthy", "disk-b": "Healthy" });
    kubelet.has(DISK, &all);
    let socket = host.at("kubelet").join(&sockets(&host)[0]);
    // What is no HTTP/2, a frame of another length than it may have, headers that are none.
    let bad_headers = [GREETING, b"\0\0\x04\x01\x05\0\0\0\x01\xff\xff\xff\xff"].concat();
    let too_long = [GREETING, b"\xff\xff\xff\0\0\0\0\0\x01"].concat();
    for bytes in [b"GET / HTTP/1.1\r\n\r\n", &bad_headers[..], &too_long] {
        assert!(is_left(connected(&socket, bytes)), "{bytes:?}");
    }
    // Headers that go on and on.
    let mut endless = connected(&socket, &[GREETING, b"\0\x40\0\x01\0\0\0\0\x01"].concat());
    let frame = [b"\0\x40\0\x09\0\0\0\0\x01", &[b'\0'; 1 << 14][..]].concat();
    let patience = Some(linkspan_testkit::PATIENCE);
    endless.set_write_timeout(patience).unwrap();
    let _ = endless.write_all(&[0; 1 << 14]);
    while endless.write_all(&frame).is_ok() {}
    assert!(is_left(endless));
    // More that say nothing than there is room for: they make room for each other.
    let silent: Vec<_> = (0..40).map(|_| connected(&socket, b"")).collect();
    kubelet.tell(&json!(["allocate", DISK, [["disk-a"]]]));
    kubelet.says("allocated");
    let greeted: Vec<_> = (0..40).map(|_| connected(&socket, GREETING)).collect();
    kubelet.tell(&json!(["allocate", DISK, [["disk-b"]]]));
    kubelet.says("allocated");
    drop((silent, greeted));
    // It has had the same stream all the while.
    assert!(host.run(&["link", "stop", "disk-a"]).status.success());
    kubelet.has(DISK, &json!({ "disk-a": "Unhealthy", "disk-b": "Healthy" }));
    assert!(status(plugin.id(), "Seccomp").is_some_and(|it| it == "2"));
    plugin.signal(Signal::TERM);
    let (code, _, errors) = plugin.end();
    assert_eq!(code, Some(0), "{errors}");
    host.end();
}

fn status(id: u32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(&format!("{name}:\t")));
    value.map(str::to_owned)
}

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(PROGRAM);
    let output = command
        .args(["k8s", "device-plugin"])
        .args(arguments)
        .output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[test]
fn what_makes_no_sense_is_told_before_anything_is_served() {
    let disk = ["--resource", "linkspan.dev/disk=disk-*"];
    let (code, said) = run(&["--resource", "disk=disk-*"]);
    assert_eq!(code, Some(2), "{said}");
    let (code, said) = run(&[&disk[..], &["--resource", "example.org/disk=x"]].concat());
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("could not tell linkspan.dev/disk from example.org/disk"),
        "{said}"
    );
    let (code, said) = run(&[&disk[..], &["--kubelet-dir", "/nowhere/at/all"]].concat());
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("--kubelet-dir"), "{said}");
}

/// Its folder is the kubelet's, and without it there is nothing to serve.
#[test]
fn a_folder_that_goes_ends_it_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let kubelet: PathBuf = folder.path().join("kubelet");
    fs::create_dir(&kubelet).unwrap();
    let kubelet_dir = kubelet.to_str().unwrap();
    let control = folder.path().join("none");
    let words = [
        "--resource",
        "linkspan.dev/disk=*",
        "--kubelet-dir",
        kubelet_dir,
    ];
    let control = ["--control", control.to_str().unwrap()];
    let plugin = Program::start("k8s", [&["device-plugin"], &words[..], &control].concat());
    plugin.await_error("no device is healthy");
    let mut sealed = || status(plugin.id(), "Seccomp").as_deref() == Some("2");
    assert!((0..3).any(|_| settled(&mut sealed)));
    fs::remove_dir(&kubelet).unwrap();
    let (code, _, errors) = plugin.end();
    assert_eq!(code, Some(5), "{errors}");
    assert!(errors.contains("is gone"), "{errors}");
}

/// The script of docs/scale.md.
#[test]
fn the_script_of_costs_says_what_links_cost() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/cost.sh");
    for (kind, last) in [("blk", "its processor time: "), ("net", "its metrics: ")] {
        let mut command = Command::new("sh");
        command.arg(&script).args([PROGRAM, kind, "2", "2", "1"]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{output:?}");
        let value = |name: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split([' ', ',']).next());
            number.and_then(|it| it.parse::<u64>().ok()).expect(name)
        };
        assert!(value("private memory of a link: ") > 0, "{said}");
        assert!(value("threads of a link: ") > 1, "{said}");
        value("processor time of all links: ");
        value(last);
    }
    let nothing = Command::new("sh").arg(&script).output().unwrap();
    assert_eq!(nothing.status.code(), Some(2));
}

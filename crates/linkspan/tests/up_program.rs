//! `linkspan up` and `linkspan link` as programs: links that die, are ended, change, and
//! outlive each other.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use linkspan_testkit::census::settled;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

mod programs;

use programs::Program;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

const PLANE: &str = "[plane]\ncontrol = \"control.sock\"\n\
    [link.a]\ncommand = \"blk\"\nsocket-path = \"a.sock\"\nimage = \"mem:1M\"\n\
    [link.b]\ncommand = \"blk\"\nsocket-path = \"b.sock\"\nimage = \"mem:1M\"\n\
    [link.c]\ncommand = \"gpu\"\nsocket-path = \"c.sock\"\nstart = false\n";

/// A folder with a plane, and its supervisor.
struct Host {
    folder: TempDir,
}

impl Host {
    fn new(plane: &str) -> (Self, Program) {
        let folder = tempfile::tempdir().unwrap();
        let host = Self { folder };
        host.write(plane);
        let up = host.up();
        (host, up)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, plane: &str) {
        fs::write(self.at("plane.toml"), plane).unwrap();
    }

    fn up(&self) -> Program {
        Program::start("up", [self.at("plane.toml").as_os_str(), "--json".as_ref()])
    }

    fn link(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(PROGRAM);
        command.arg("link").args(arguments).arg("--control");
        command.arg(self.at("control.sock")).output().unwrap()
    }

    /// What is told of a link, once somebody answers.
    fn seen(&self, name: &str) -> Option<Value> {
        let output = self.link(&["list", "--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.find(|line: &Value| line["link"] == name)
    }

    fn state(&self, name: &str) -> Option<String> {
        Some(self.seen(name)?["state"].as_str()?.to_owned())
    }

    /// The link's process, once its device is served.
    #[track_caller]
    fn serving(&self, name: &str) -> Pid {
        let socket = self.at(&format!("{name}.sock"));
        let mut pid = None;
        let mut runs = || {
            let seen = self.seen(name).filter(|_| socket.exists());
            pid = seen.and_then(|seen| seen["pid"].as_i64());
            pid.is_some()
        };
        assert!(settled(&mut runs), "{name} does not run");
        let pid = i32::try_from(pid.unwrap()).unwrap();
        Pid::from_raw(pid).unwrap()
    }

    #[track_caller]
    fn becomes(&self, name: &str, state: &str) {
        let mut is = || self.state(name).as_deref() == Some(state);
        assert!(settled(&mut is), "{name}: {:?}", self.seen(name));
    }
}

fn answers(socket: &Path) -> bool {
    let mut command = Command::new(PROGRAM);
    command.args(["driver", "blk", "--socket-path"]).arg(socket);
    command.arg("info").output().unwrap().status.success()
}

#[test]
fn links_run_each_in_a_process_of_its_own_and_end_in_order() {
    let (host, up) = Host::new(PLANE);
    let (a, b) = (host.serving("a"), host.serving("b"));
    assert_ne!(a, b);
    assert!(answers(&host.at("a.sock")) && answers(&host.at("b.sock")));
    // The third is for who asks.
    assert_eq!(host.state("c").unwrap(), "stopped");
    assert!(host.link(&["start", "c"]).status.success());
    host.serving("c");
    up.signal(Signal::TERM);
    let (status, lines, errors) = up.end();
    assert_eq!(status, Some(0), "{errors}");
    // Each line says which link says it.
    let ours = |name: &str| errors.lines().any(|line| line.starts_with(name));
    assert!(ours("a: ") && ours("b: "), "{errors}");
    let ended = lines.iter().filter(|line| line["event"] == "ended");
    let words: Vec<_> = ended.map(|line| line["end"].as_str().unwrap()).collect();
    assert_eq!(words, ["it ended with status 0"; 3]);
    for socket in ["a.sock", "b.sock", "c.sock", "control.sock"] {
        assert!(!host.at(socket).exists(), "{socket}");
    }
}

#[test]
fn a_link_that_is_killed_comes_back_and_the_other_is_unharmed() {
    let (host, up) = Host::new(PLANE);
    let (a, b) = (host.serving("a"), host.serving("b"));
    kill_process(a, Signal::KILL).unwrap();
    let mut back = || host.seen("a").is_some_and(|seen| seen["starts"] == 2);
    assert!(settled(&mut back), "{:?}", host.seen("a"));
    let again = host.serving("a");
    assert_ne!(again, a);
    let mut serves = || answers(&host.at("a.sock"));
    assert!(settled(&mut serves));
    assert_eq!(host.seen("a").unwrap()["last_end"], "signal 9 ended it");
    assert_eq!(host.serving("b"), b);
    // As a system call ends it that its sandbox does not have.
    kill_process(again, Signal::SYS).unwrap();
    let mut back = || host.seen("a").is_some_and(|seen| seen["starts"] == 3);
    assert!(settled(&mut back), "{:?}", host.seen("a"));
    let end = host.seen("a").unwrap()["last_end"].to_string();
    assert!(end.contains("sandbox") && end.contains("SECURITY"), "{end}");
    up.signal(Signal::INT);
    assert_eq!(up.end().0, Some(0));
}

/// Whoever starts the supervisor again has the links again.
#[test]
fn a_supervisor_that_is_killed_takes_its_links_along_and_the_next_has_them() {
    let (host, up) = Host::new(PLANE);
    let (a, b) = (host.serving("a"), host.serving("b"));
    up.signal(Signal::KILL);
    drop(up.end());
    for pid in [a, b] {
        // Whoever has it now may take a while to hear of its end.
        let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
        let mut gone = || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
        assert!(settled(&mut gone), "{pid:?} stays");
    }
    let up = host.up();
    host.serving("a");
    let mut serves = || answers(&host.at("a.sock"));
    assert!(settled(&mut serves));
    up.signal(Signal::TERM);
    assert_eq!(up.end().0, Some(0));
}

#[test]
fn a_reload_changes_only_what_changed() {
    let (host, up) = Host::new(PLANE);
    let (a, b) = (host.serving("a"), host.serving("b"));
    // Wrong: nothing changes.
    host.write(&PLANE.replace("mem:1M", "mem:none"));
    up.signal(Signal::HUP);
    let changed = PLANE.replacen("image = \"mem:1M\"", "image = \"mem:2M\"", 1);
    let changed = changed.replace(
        "[link.c]\ncommand = \"gpu\"\nsocket-path = \"c.sock\"\nstart = false\n",
        "",
    );
    host.write(&(changed + "[link.d]\ncommand = \"gpu\"\nsocket-path = \"d.sock\"\n"));
    up.signal(Signal::HUP);
    host.serving("d");
    let mut other = || host.seen("a").is_some_and(|seen| seen["starts"] == 2);
    assert!(settled(&mut other), "{:?}", host.seen("a"));
    assert_ne!(host.serving("a"), a);
    assert_eq!(host.serving("b"), b);
    assert_eq!(host.seen("c"), None);
    up.signal(Signal::TERM);
    assert_eq!(up.end().0, Some(0));
}

/// Ours: the supervisor and each link ended with a panic at the next line of their log once
/// nobody read it any more: a terminal or a pipe that was closed.
#[test]
fn nobody_ends_since_nobody_reads_what_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let host = Host { folder };
    host.write(PLANE);
    let (read, write) = std::io::pipe().unwrap();
    let mut up = linkspan_testkit::program(PROGRAM);
    up.arg("up").arg(host.at("plane.toml")).stderr(write);
    let mut child = up.spawn().unwrap();
    // The command has the other end of the pipe as well.
    drop((up, read));
    let (a, b) = (host.serving("a"), host.serving("b"));
    // A link that says something, a supervisor that does, and one that has much to say.
    assert!(answers(&host.at("a.sock")));
    host.write("[link.a]\n");
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::HUP).unwrap();
    host.write(&(PLANE.to_owned() + "[link.d]\ncommand = \"gpu\"\nsocket-path = \"d.sock\"\n"));
    kill_process(pid, Signal::HUP).unwrap();
    host.serving("d");
    assert_eq!((host.serving("a"), host.serving("b")), (a, b));
    kill_process(pid, Signal::TERM).unwrap();
    let mut ended = None;
    let mut is_over = || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    };
    assert!((0..3).any(|_| settled(&mut is_over)));
    assert_eq!(ended.unwrap().code(), Some(0));
}

/// Ours: a supervisor whose standard error was a pipe that nobody read waited there, and
/// started and ended no link any more; so did each link that had something to say.
#[test]
fn nobody_waits_for_who_does_not_read_what_is_said() {
    nobody_waits(&["--json"]);
    // The page's address is said too.
    nobody_waits(&["--page", "127.0.0.1:0"]);
}

#[track_caller]
fn nobody_waits(options: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let host = Host { folder };
    host.write(PLANE);
    let full = || {
        let (read, mut write) = std::io::pipe().unwrap();
        let bytes = rustix::pipe::fcntl_setpipe_size(&write, 4096).unwrap();
        write.write_all(&vec![b'x'; bytes]).unwrap();
        (read, write)
    };
    let ((_out, to_out), (_errors, to_errors)) = (full(), full());
    let mut up = linkspan_testkit::program(PROGRAM);
    up.arg("up").arg(host.at("plane.toml")).args(options);
    let mut child = up.stdout(to_out).stderr(to_errors).spawn().unwrap();
    host.serving("a");
    let b = host.serving("b");
    let mut listens = || host.link(&["page"]).status.success();
    assert!(options == ["--json"] || settled(&mut listens));
    assert!(answers(&host.at("a.sock")));
    assert!(host.link(&["stop", "a"]).status.success());
    host.becomes("a", "stopped");
    assert!(host.link(&["start", "a"]).status.success());
    host.serving("a");
    let mut serves = || answers(&host.at("a.sock"));
    assert!(settled(&mut serves));
    assert_eq!(host.serving("b"), b);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let mut ended = None;
    let mut is_over = || {
        ended = child.try_wait().unwrap();
        ended.is_some()
    };
    assert!((0..3).any(|_| settled(&mut is_over)));
    assert_eq!(ended.unwrap().code(), Some(0));
}

/// Ours: a plane had no more links than half of the descriptors that a shell gives.
#[test]
fn a_plane_has_more_links_than_a_shell_gives_descriptors() {
    let folder = tempfile::tempdir().unwrap();
    let host = Host { folder };
    let names: Vec<_> = (0..16).map(|number| format!("n{number}")).collect();
    let link = |name: &String| {
        format!("[link.{name}]\ncommand = \"gpu\"\nsocket-path = \"{name}.sock\"\n")
    };
    let links: String = names.iter().map(link).collect();
    host.write(&format!("[plane]\ncontrol = \"control.sock\"\n{links}"));
    let mut up = linkspan_testkit::program("sh");
    up.args(["-c", "ulimit -Sn 20 && exec \"$0\" up \"$1\"", PROGRAM]);
    let mut child = up.arg(host.at("plane.toml")).spawn().unwrap();
    let mut runs = || {
        names
            .iter()
            .all(|name| host.at(&format!("{name}.sock")).exists())
    };
    assert!((0..6).any(|_| settled(&mut runs)));
    for name in &names {
        assert_eq!(host.seen(name).unwrap()["starts"], 1, "{name}");
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// The page is the plane's: one that is read again without it has none, and the next one has a
/// token of its own. Where a service manager keeps what is said, no token is.
#[test]
fn a_page_goes_with_its_plane_and_no_manager_reads_its_token() {
    let folder = tempfile::tempdir().unwrap();
    let host = Host { folder };
    let with_page = PLANE.replacen("[plane]\n", "[plane]\npage = \"127.0.0.1:0\"\n", 1);
    host.write(&with_page);
    let _manager = UnixDatagram::bind(host.at("notify")).unwrap();
    let said = fs::File::create(host.at("said")).unwrap();
    let mut up = linkspan_testkit::program(PROGRAM);
    up.arg("up").arg(host.at("plane.toml")).arg("--json");
    up.env("NOTIFY_SOCKET", host.at("notify"));
    up.stdout(said.try_clone().unwrap()).stderr(said);
    let mut child = up.spawn().unwrap();
    let pid = Pid::from_child(&child);
    let page = || host.link(&["page"]);
    let token = || {
        let mut url = String::new();
        let mut there = || {
            let told = page();
            url = String::from_utf8(told.stdout).unwrap();
            told.status.success()
        };
        assert!((0..3).any(|_| settled(&mut there)), "no page");
        url.trim().split_once("/#").unwrap().1.to_owned()
    };
    let first = token();
    assert_eq!(first.len(), 64);
    host.write(PLANE);
    kill_process(pid, Signal::HUP).unwrap();
    let mut gone = || page().status.code() == Some(1) && host.seen("(page)").is_none();
    assert!((0..3).any(|_| settled(&mut gone)), "{:?}", page());
    host.write(&with_page);
    kill_process(pid, Signal::HUP).unwrap();
    let second = token();
    assert_ne!(first, second);
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let said = fs::read_to_string(host.at("said")).unwrap();
    assert!(
        said.contains("\"started\"") && said.contains("the page is at "),
        "{said}"
    );
    assert!(!said.contains(&first) && !said.contains(&second), "{said}");
}

#[test]
fn links_are_ended_and_started_by_name() {
    let (host, up) = Host::new(PLANE);
    host.serving("a");
    for verb in ["stop", "drain"] {
        assert!(host.link(&[verb, "a"]).status.success());
        host.becomes("a", "stopped");
        assert!(!host.at("a.sock").exists());
        assert!(host.link(&["start", "a"]).status.success());
        host.serving("a");
    }
    let unknown = host.link(&["stop", "z"]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(said.contains("there is no link z"), "{said}");
    up.signal(Signal::TERM);
    assert_eq!(up.end().0, Some(0));
    assert_eq!(host.link(&["list"]).status.code(), Some(3));
}

/// A link that cannot run does not keep the others from running, and is tried again.
#[test]
fn a_link_that_cannot_run_is_tried_again_and_harms_nobody() {
    let (host, up) = Host::new(PLANE);
    host.serving("b");
    assert!(host.link(&["stop", "a"]).status.success());
    host.becomes("a", "stopped");
    // Somebody else has its place now.
    let other = std::os::unix::net::UnixListener::bind(host.at("a.sock")).unwrap();
    assert!(host.link(&["start", "a"]).status.success());
    let mut tries = || {
        let seen = host.seen("a").unwrap();
        seen["starts"].as_u64() > Some(3)
    };
    assert!(settled(&mut tries), "{:?}", host.seen("a"));
    assert_eq!(host.state("b").unwrap(), "running");
    drop(other);
    let mut serves = || answers(&host.at("a.sock"));
    assert!((0..3).any(|_| settled(&mut serves)));
    up.signal(Signal::TERM);
    assert_eq!(up.end().0, Some(0));
}

/// The plane of the book and of the command's own help.
#[test]
fn the_example_runs_as_it_is() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/host.toml");
    let (host, up) = Host::new(&fs::read_to_string(example).unwrap());
    let sockets = ["disk-a", "disk-b", "net-a", "net-b", "gpu-a", "screen-a"];
    let mut served = || {
        let mut sockets = sockets.iter();
        sockets.all(|name| host.at(&format!("{name}.sock")).exists())
    };
    assert!((0..3).any(|_| settled(&mut served)), "{}", up.complained());
    assert!(answers(&host.at("disk-a.sock")) && answers(&host.at("disk-b.sock")));
    for link in ["disk-a", "disk-b", "lan", "screen-a"] {
        assert_eq!(host.seen(link).unwrap()["starts"], 1, "{link}");
    }
    up.signal(Signal::TERM);
    let (status, _, errors) = up.end();
    assert_eq!(status, Some(0), "{errors}");
}

/// As a service is that was just installed; and a file that somebody is about to write ends
/// no link.
#[test]
fn a_plane_without_links_is_served_until_there_are_some() {
    let (host, up) = Host::new("[plane]\ncontrol = \"control.sock\"\n");
    let mut answered = || host.link(&["list"]).status.success();
    assert!((0..3).any(|_| settled(&mut answered)));
    up.await_error("there are no links yet");
    host.write(PLANE);
    up.signal(Signal::HUP);
    let a = host.serving("a");
    host.write("");
    up.signal(Signal::HUP);
    up.await_error("the plane is not read again");
    assert_eq!(host.serving("a"), a);
    host.write("[plane]\ncontrol = \"control.sock\"\n");
    up.signal(Signal::HUP);
    let mut gone = || host.seen("a").is_none() && host.link(&["list"]).status.success();
    assert!((0..3).any(|_| settled(&mut gone)), "{:?}", host.seen("a"));
    up.signal(Signal::TERM);
    assert_eq!(up.end().0, Some(0));
}

#[test]
fn a_wrong_plane_is_not_started() {
    let (_host, up) = Host::new(&PLANE.replace("b.sock", "a.sock"));
    let (status, lines, errors) = up.end();
    assert_eq!((status, lines.len()), (Some(2), 0));
    assert!(errors.contains("plane.toml:9:1: link b:"), "{errors}");
}

/// A supervisor that systemd started with these sockets, which it calls so; it becomes the
/// supervisor itself once somebody connects. `None` after saying why there is none.
fn managed(test: &str, host: &Host, sockets: &[(&str, &str)]) -> Option<Child> {
    let mut manager = Command::new("systemd-socket-activate");
    for (_, socket) in sockets {
        manager.arg("--listen").arg(host.at(socket));
    }
    let names: Vec<_> = sockets.iter().map(|(name, _)| *name).collect();
    manager.arg(format!("--fdname={}", names.join(":")));
    manager.args([PROGRAM, "up"]).arg(host.at("plane.toml"));
    match manager.spawn() {
        Ok(manager) => Some(manager),
        Err(_) => {
            let mut out = std::io::stderr().lock();
            drop(writeln!(out, "SKIP {test}: systemd is not installed"));
            None
        }
    }
}

/// The service manager has the control socket listening; who asks is answered, and the
/// socket is the manager's when the supervisor is gone.
#[test]
fn a_service_manager_hands_over_the_control_socket() {
    let folder = tempfile::tempdir().unwrap();
    let host = Host { folder };
    host.write(&PLANE.replace("control = \"control.sock\"\n", ""));
    let test = "a_service_manager_hands_over_the_control_socket";
    let Some(mut manager) = managed(test, &host, &[("mine", "control.sock")]) else {
        return;
    };
    host.serving("a");
    kill_process(Pid::from_child(&manager), Signal::TERM).unwrap();
    assert_eq!(manager.wait().unwrap().code(), Some(0));
    assert!(host.at("control.sock").exists());
}

/// Links have the manager's sockets by their names: they are there before a link's process
/// and after it, and who connects while there is none waits for the next one. No process has
/// another link's.
#[test]
fn a_service_manager_hands_over_the_sockets_of_links() {
    let folder = tempfile::tempdir().unwrap();
    let host = Host { folder };
    let net =
        "[link.n]\ncommand = \"net\"\nport = [\"vhost-user:n.sock,queues=2\", \"responder\"]\n";
    host.write(&(PLANE.to_owned() + net));
    let test = "a_service_manager_hands_over_the_sockets_of_links";
    let sockets = [
        ("control", "control.sock"),
        ("n", "n.sock"),
        ("a", "a.sock"),
        ("stranger", "stranger.sock"),
    ];
    let Some(mut manager) = managed(test, &host, &sockets) else {
        return;
    };
    let (mut first, inode) = (None, || fs::metadata(host.at("a.sock")).map(|it| it.ino()));
    let mut starts = || {
        // Who asks too early finds no socket.
        first = host.seen("a").and_then(|seen| seen["pid"].as_i64());
        first.is_some()
    };
    assert!(settled(&mut starts));
    let pid = Pid::from_raw(i32::try_from(first.unwrap()).unwrap()).unwrap();
    let before = inode().unwrap();
    assert!(answers(&host.at("a.sock")));
    let n = host.serving("n").as_raw_nonzero();
    // Ports are driven by the same protocol.
    let mut driver = Command::new(PROGRAM);
    driver
        .args(["driver", "net", "--socket-path"])
        .arg(host.at("n.sock"));
    assert!(driver.arg("info").output().unwrap().status.success());
    let listening = |pid: i32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let inherited = |it: &fs::DirEntry| {
            let number: i32 = it.file_name().to_str().unwrap().parse().unwrap();
            let info = format!("/proc/{pid}/fdinfo/{number}");
            // Those that came through exec are below all that a process opens: 3 to 6.
            (3..=6).contains(&number) && fs::read_to_string(info).is_ok()
        };
        fds.filter(inherited)
            .filter_map(|it| fs::read_link(it.path()).ok())
            .filter(|link| link.to_string_lossy().starts_with("socket:"))
            .map(|link| link.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    };
    let supervisor = listening(i32::try_from(manager.id()).unwrap());
    let of_a: Vec<_> = listening(pid.as_raw_nonzero().get());
    let of_n: Vec<_> = listening(n.get());
    assert_eq!(supervisor.len(), 4, "{supervisor:?}");
    let shared = |link: &[String]| supervisor.iter().filter(|it| link.contains(it)).count();
    assert_eq!((shared(&of_a), shared(&of_n)), (1, 1), "{of_a:?} {of_n:?}");
    kill_process(pid, Signal::KILL).unwrap();
    // Nobody is turned away.
    let mut serves = || answers(&host.at("a.sock"));
    assert!(settled(&mut serves));
    assert_eq!(host.seen("a").unwrap()["starts"], 2);
    kill_process(Pid::from_child(&manager), Signal::TERM).unwrap();
    assert_eq!(manager.wait().unwrap().code(), Some(0));
    assert_eq!(inode().unwrap(), before);
    assert!(!host.at("b.sock").exists());
}

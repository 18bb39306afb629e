//! `linkspan net` as people and management programs run it.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use linkspan_devices::net::Mac;
use linkspan_sys::Listener;
use linkspan_testkit::FrontEnd;
use linkspan_testkit::census::settled;
use linkspan_testkit::net::{Card, CardOptions, frame, station};
use linkspan_vhost::message::Request;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    let program = env!("CARGO_BIN_EXE_linkspan");
    Command::new(program)
        .arg("net")
        .args(args)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A program that runs, and a folder for its sockets.
struct Program {
    child: Child,
    folder: TempDir,
}

impl Program {
    /// `FOLDER` in an argument becomes the folder.
    fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder, args)
    }

    fn start_in(folder: TempDir, args: &[&str]) -> Self {
        let place = folder.path().to_str().unwrap();
        let args = args.iter().map(|arg| arg.replace("FOLDER", place));
        let child = linkspan_testkit::program(env!("CARGO_BIN_EXE_linkspan"))
            .arg("net")
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    #[track_caller]
    fn card(&self, name: &str) -> Card {
        let socket = self.socket(name);
        assert!(settled(|| socket.exists()), "it does not listen");
        Card::bring_up(&socket, &CardOptions::default()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end: status, and the lines of standard output.
    #[track_caller]
    fn end(mut self) -> (Option<i32>, Vec<serde_json::Value>) {
        let mut status = None;
        let ended = settled(|| {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(ended, "it does not end");
        let mut said = String::new();
        let stdout = self.child.stdout.as_mut().unwrap();
        stdout.read_to_string(&mut said).unwrap();
        let lines = said.lines().map(|line| serde_json::from_str(line).unwrap());
        (status.unwrap().code(), lines.collect())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn talk(a: &mut Card, b: &mut Card) {
    for mark in 0..10 {
        let there = frame(station(1), station(2), mark, 400);
        a.send(0, &there);
        assert_eq!(b.expect().1, there);
        let back = frame(station(2), station(1), mark, 400);
        b.send(0, &back);
        assert_eq!(a.expect().1, back);
    }
}

#[test]
fn guests_talk_and_programs_hear_of_it() {
    let program = Program::start(&[
        "--json",
        "--port",
        "vhost-user:FOLDER/a,queues=2",
        "--port",
        "vhost-user:FOLDER/b",
    ]);
    let (mut a, mut b) = (program.card("a"), program.card("b"));
    talk(&mut a, &mut b);
    drop((a, b));
    // The next ones are served as well.
    let (mut a, mut b) = (program.card("a"), program.card("b"));
    talk(&mut a, &mut b);
    let (first, second) = (program.socket("a"), program.socket("b"));
    program.signal(Signal::TERM);
    let (status, lines) = program.end();
    assert_eq!(status, Some(0));
    assert!(!first.exists() && !second.exists());
    let events = |name: &str| lines.iter().filter(|line| line["event"] == name).count();
    assert_eq!(
        (events("listening"), events("connected"), events("ended")),
        (2, 4, 4)
    );
    let counts: Vec<_> = lines
        .iter()
        .filter(|line| line["event"] == "counts")
        .collect();
    assert_eq!(counts.len(), 2, "{lines:#?}");
    for counts in counts {
        assert_eq!(
            (&counts["frames_in"], &counts["frames_out"]),
            (&20.into(), &20.into())
        );
        assert_eq!(counts["dropped"]["no_buffers"], 0);
        let pairs = counts["pairs"].as_array().unwrap();
        let first = counts["port"].as_str().unwrap().ends_with("/a");
        assert_eq!(pairs.len(), if first { 2 } else { 1 });
        for way in ["frames_in", "frames_out"] {
            let sum: u64 = pairs.iter().map(|pair| pair[way].as_u64().unwrap()).sum();
            assert_eq!(sum, 20, "{counts}");
        }
        assert!(counts["port"].as_str().unwrap().starts_with("vhost-user:/"));
    }
}

#[test]
fn a_front_end_that_listens_is_connected_to_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("monitor");
    let program = Program::start_in(
        folder,
        &[
            "--mode",
            "echo",
            "--port",
            "vhost-user:FOLDER/monitor,client",
        ],
    );
    let listener = Listener::bind(&socket).unwrap();
    for round in 0..2 {
        let mut stream = None;
        assert!(settled(|| {
            stream = listener.accept().ok();
            stream.is_some()
        }));
        let front = FrontEnd::over(stream.unwrap());
        let mut card = Card::over(front, &CardOptions::default()).unwrap();
        card.send(0, &frame(station(1), station(2), round, 100));
        assert_eq!(card.expect().1, frame(station(2), station(1), round, 100));
    }
    program.signal(Signal::INT);
    assert_eq!(program.end().0, Some(0));
}

/// A socket that we were started with: one that listens, and one that is connected.
#[test]
fn a_port_is_served_on_an_inherited_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let serve = |given: OwnedFd| {
        let mut command = linkspan_testkit::program("sh");
        command
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 </dev/null"])
            .arg(env!("CARGO_BIN_EXE_linkspan"))
            .args([
                "net",
                "--json",
                "--mode",
                "echo",
                "--port",
                "vhost-user-fd:3",
            ])
            .stdin(Stdio::from(given))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Program {
            child: command.spawn().unwrap(),
            folder: tempfile::tempdir().unwrap(),
        }
    };
    let echoes = |card: &mut Card| {
        card.send(0, &frame(station(1), station(2), 1, 100));
        assert_eq!(card.expect().1, frame(station(2), station(1), 1, 100));
    };
    let counted = |lines: &[serde_json::Value]| {
        let counts = counts_of(lines, "vhost-user-fd:3");
        counts["frames_in"].as_u64().unwrap()
    };
    let program = serve(UnixListener::bind(&socket).unwrap().into());
    for _ in 0..2 {
        echoes(&mut Card::bring_up(&socket, &CardOptions::default()).unwrap());
    }
    program.signal(Signal::TERM);
    let (status, lines) = program.end();
    assert_eq!((status, counted(&lines)), (Some(0), 2));

    let (ours, theirs) = linkspan_sys::Stream::pair().unwrap();
    let program = serve(theirs.into());
    let mut card = Card::over(FrontEnd::over(ours), &CardOptions::default()).unwrap();
    echoes(&mut card);
    // Nobody can come after it, so the program ends with it.
    drop(card);
    let (status, lines) = program.end();
    assert_eq!((status, counted(&lines)), (Some(0), 1));
}

/// A station that is silent is forgotten, and what is for it goes to all again.
#[test]
fn a_silent_station_is_forgotten_in_the_time_that_was_asked_for() {
    let ports = ["a", "b", "c"].map(|name| format!("vhost-user:FOLDER/{name}"));
    let [a, b, c] = ports.each_ref().map(String::as_str);
    let ports = ["--json", "--port", a, "--port", b, "--port", c];
    let program = Program::start(&[&["--ageing", "1"], &ports[..]].concat());
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| program.card(name));
    let here = frame(station(2), Mac::BROADCAST, 0, 100);
    b.send(0, &here);
    assert_eq!((a.expect().1, c.expect().1), (here.clone(), here));
    let there = frame(station(1), station(2), 1, 100);
    let forgotten = settled(|| {
        a.send(0, &there);
        assert_eq!(b.expect().1, there);
        c.poll().is_some_and(|(_, got)| got == there)
    });
    assert!(forgotten, "it is remembered for ever");
    drop((a, b, c));
    program.signal(Signal::TERM);
    let (status, lines) = program.end();
    assert_eq!(status, Some(0));
    // All but the last were for its port alone.
    assert_eq!(counts_of(&lines, "/a")["flooded"], 1);
    assert!(counts_of(&lines, "/b")["frames_out"].as_u64() > Some(1));
}

#[test]
fn a_port_floods_no_more_than_it_may() {
    let program = Program::start(&[
        "--json",
        "--flood-limit",
        "1",
        "--ageing",
        "60",
        "--port",
        "vhost-user:FOLDER/a",
        "--port",
        "vhost-user:FOLDER/b",
    ]);
    let (mut a, mut b) = (program.card("a"), program.card("b"));
    b.send(0, &frame(station(2), station(1), 0, 100));
    a.expect();
    for mark in 0..100 {
        a.send(0, &frame(station(1), station(9), mark, 100));
    }
    // Behind all of them.
    let last = frame(station(1), station(2), 100, 100);
    a.send(0, &last);
    while b.expect().1 != last {}
    drop((a, b));
    program.signal(Signal::TERM);
    let (status, lines) = program.end();
    assert_eq!(status, Some(0));
    let sender = lines.iter().find(|line| {
        let port = line["port"].as_str().unwrap_or_default();
        line["event"] == "counts" && port.ends_with("/a")
    });
    let counts = sender.expect("counts of the sender");
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    let (came, flooded) = (number(&counts["frames_in"]), number(&counts["flooded"]));
    let dropped = number(&counts["dropped"]["flood"]);
    assert_eq!((came, flooded + dropped), (101, 100), "{counts}");
    // One in a second at most, and one at once.
    assert!(flooded > 0 && dropped > 0, "{counts}");
}

/// What may come from a guest in a second comes, and no sooner; nothing is lost.
#[test]
fn a_port_sends_no_more_than_its_limits_let_it() {
    const FRAMES: u8 = 30;
    // A tenth of a second's worth may come at once.
    for (limit, frames_per_s) in [
        ("packets-per-second=100", 100),
        ("bytes-per-second=51400", 100),
    ] {
        let port = format!("vhost-user:FOLDER/a,{limit}");
        let program = Program::start(&["--json", "--port", &port, "--port", "vhost-user:FOLDER/b"]);
        let (mut a, mut b) = (program.card("a"), program.card("b"));
        let start = Instant::now();
        for mark in 0..FRAMES {
            a.send(0, &frame(station(1), station(2), mark, 500));
        }
        for mark in 0..FRAMES {
            assert_eq!(b.expect().1, frame(station(1), station(2), mark, 500));
        }
        // However fast or slow this machine is.
        let least = Duration::from_secs(1) * (u32::from(FRAMES) - 12) / frames_per_s;
        assert!(start.elapsed() >= least, "{limit}: {:?}", start.elapsed());
        drop((a, b));
        program.signal(Signal::TERM);
        let (status, lines) = program.end();
        assert_eq!(status, Some(0));
        let counts = counts_of(&lines, "/a");
        assert_eq!(counts["frames_in"], FRAMES, "{counts}");
        assert_eq!(counts["dropped"]["limit"], 0, "{counts}");
    }
}

/// What was counted last of the port whose name ends so.
#[track_caller]
fn counts_of<'a>(lines: &'a [serde_json::Value], port: &str) -> &'a serde_json::Value {
    let last = lines.iter().rfind(|line| {
        let name = line["port"].as_str().unwrap_or_default();
        line["event"] == "counts" && name.ends_with(port)
    });
    last.expect("counts of the port")
}

#[test]
fn workers_are_where_they_are_asked_to_be() {
    let cpus = linkspan_sys::thread::allowed_cpus().unwrap();
    let last = cpus.last().unwrap().to_string();
    let ports = [
        "--port",
        "vhost-user:FOLDER/a,queues=2",
        "--port",
        "vhost-user:FOLDER/b",
    ];
    let program = Program::start(&[&["--cpus", &last], &ports[..]].concat());
    let workers = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", program.child.id())).unwrap();
        let allowed = tasks.filter_map(|task| {
            let task = task.unwrap().path();
            let name = std::fs::read_to_string(task.join("comm")).ok()?;
            let status = std::fs::read_to_string(task.join("status")).ok()?;
            let mut lines = status.lines();
            let cpus = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            let worker = name.starts_with("worker-");
            worker
                .then(|| cpus.map(|cpus| cpus.trim().to_owned()))
                .flatten()
        });
        allowed.collect::<Vec<_>>()
    };
    // One processor is one worker, which then has both pairs.
    assert!(settled(|| workers() == [last.clone()]), "{:?}", workers());
    let (mut a, mut b) = (program.card("a"), program.card("b"));
    talk(&mut a, &mut b);
    program.signal(Signal::TERM);
    drop((a, b));
    assert_eq!(program.end().0, Some(0));
}

/// The bit of configuration space (virtio 1.3 5.1.4).
fn link_is_up(card: &Card) -> bool {
    let ask = [&6_u32.to_le_bytes()[..], &2_u32.to_le_bytes(), &[0; 6]].concat();
    let reply = card.front.ask(Request::GetConfig, &ask, &[]).unwrap();
    reply[12] & 1 != 0
}

#[test]
fn links_are_taken_down_and_up_by_signals() {
    let ports = [
        "--port",
        "vhost-user:FOLDER/a",
        "--port",
        "vhost-user:FOLDER/b",
    ];
    let program = Program::start(&[&["--json"], &ports[..]].concat());
    let (mut a, mut b) = (program.card("a"), program.card("b"));
    talk(&mut a, &mut b);
    for (signal, up) in [(Signal::USR1, false), (Signal::USR2, true)] {
        program.signal(signal);
        assert!(settled(|| link_is_up(&a) == up && link_is_up(&b) == up));
    }
    talk(&mut a, &mut b);
    program.signal(Signal::USR1);
    assert!(settled(|| !link_is_up(&a)));
    a.send(0, &frame(station(1), station(2), 9, 100));
    // The one that sends it finds out.
    assert!(settled(|| a.pairs[0].transmit_is_empty()));
    program.signal(Signal::TERM);
    let (status, lines) = program.end();
    assert_eq!(status, Some(0));
    let links = lines.iter().filter(|line| line["event"] == "links");
    let links: Vec<_> = links.map(|line| line["up"].as_bool().unwrap()).collect();
    assert_eq!(links, [false, true, false]);
    let counts = counts_of(&lines, "/a");
    assert_eq!(
        (&counts["dropped"]["down"], &counts["link_up"]),
        (&1.into(), &false.into())
    );
    assert_eq!(counts["frames_in"], 20, "{counts}");
}

#[test]
fn workers_that_never_sleep_serve_as_well() {
    let args = [
        "--busy",
        "--mode",
        "pair",
        "--port",
        "vhost-user:FOLDER/a",
        "--port",
        "vhost-user:FOLDER/b",
    ];
    let program = Program::start(&args);
    let (mut a, mut b) = (program.card("a"), program.card("b"));
    talk(&mut a, &mut b);
    program.signal(Signal::TERM);
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn help_and_capabilities_are_what_people_and_programs_read() {
    let help = text(&run(["--help"]).stdout);
    for part in [
        "Example",
        "vhost-user:PATH",
        "tap:NAME",
        "responder",
        "SIGUSR1",
        "--ageing",
        "--flood-limit",
        "-netdev vhost-user",
    ] {
        assert!(help.contains(part), "{part} is not in:\n{help}");
    }
    let output = run(["--print-capabilities"]);
    assert_eq!(output.status.code(), Some(0));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["type"], "net");
}

#[test]
fn wrong_usage_has_status_2_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("a");
    let port = format!("vhost-user:{}", socket.display());
    let bad = |option: &str| format!("{port},{option}");
    let wrong = [
        vec![],
        vec!["--port".into()],
        vec!["--port".into(), "nonsense".into()],
        vec!["--port".into(), bad("queues=0")],
        vec!["--port".into(), bad("mac=ff:ff:ff:ff:ff:ff")],
        vec!["--port".into(), bad("nonsense=1")],
        vec![
            "--port".into(),
            port.clone(),
            "--mode".into(),
            "pair".into(),
        ],
        vec![
            "--port".into(),
            port.clone(),
            "--mode".into(),
            "nonsense".into(),
        ],
        vec![
            "--port".into(),
            port.clone(),
            "--busy".into(),
            "--poll-us".into(),
            "5".into(),
        ],
        vec!["--port".into(), port.clone(), "--ageing".into(), "0".into()],
        vec!["--port".into(), "vhost-user-fd:0".into()],
        vec!["--port".into(), "vhost-user-fd:99".into()],
        vec!["--port".into(), "tap-fd:99".into()],
        vec!["--port".into(), "tap:a/b".into()],
    ];
    for args in wrong {
        let output = run(&args);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?}: {}",
            text(&output.stderr)
        );
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
        assert!(!socket.exists(), "{args:?}");
    }
}

#[test]
fn a_socket_that_is_in_use_has_status_1_and_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("a");
    let _taken = UnixListener::bind(&socket).unwrap();
    let port = format!("vhost-user:{}", socket.display());
    let output = run(["--port", &port]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(socket.to_str().unwrap()));
}

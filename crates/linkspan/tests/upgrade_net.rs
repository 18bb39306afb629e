//! `linkspan upgrade` of a network: ports with traffic go on in new processes, all at once, and
//! no frame is lost; whoever is killed meanwhile, the network goes on.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, ExitStatus, Stdio};

use linkspan_devices::net::control::Command as Ask;
use linkspan_devices::net::{Mac, ReceiveModes};
use linkspan_testkit::census::settled;
use linkspan_testkit::net::{Card, CardOptions, Control, station};
use linkspan_testkit::{Namespace, Options};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

mod host;
mod programs;

use host::Host;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

/// How often a network is handed over; `cargo xtask long upgrade-net` asks for more.
const UPGRADES_ENV: &str = "LINKSPAN_UPGRADES";

/// Frames of each stream between two upgrades at least.
const FRAMES: u64 = 500;

/// Frames of a stream on their way at most, so that there are always buffers.
const AHEAD: u64 = 8;

const PLANE: &str = "[plane]\ncontrol = \"control.sock\"\n\
    [link.net]\ncommand = \"net\"\nworkers = 2\n\
    port = [\"vhost-user:a.sock,queues=2,control-queue\", \"vhost-user:b.sock\", \
    \"vhost-user:idle.sock\", \"vhost-user:client.sock,client\", \"responder\"]\n";

/// A stream of numbered frames from a pair of one card to another card.
struct Flow {
    from: usize,
    pair: usize,
    to: usize,
    sent: u64,
    got: u64,
}

fn numbered(from: usize, to: usize, pair: usize, number: u64) -> Vec<u8> {
    let station = |card: usize| station(u8::try_from(card + 1).unwrap());
    let pair = u8::try_from(pair).unwrap();
    let mut frame = [&station(to).0[..], &station(from).0, &[0x88, 0xB5, pair]].concat();
    frame.extend_from_slice(&number.to_le_bytes());
    // Of any length.
    let len = 60 + usize::try_from(number * 37 % 1400).unwrap();
    frame.resize(len, number.to_le_bytes()[0]);
    frame
}

/// A network of a plane with two cards.
struct Rig {
    host: Host,
    cards: [Card; 2],
    flows: [Flow; 3],
}

impl Rig {
    fn new(packed: bool) -> Self {
        let host = Host::start(tempfile::tempdir().unwrap(), PLANE, &["--json"]);
        host.becomes("net/vhost-user:idle.sock", Value::is_object);
        let card = |name: &str, pairs: u16| {
            let front = Options {
                packed,
                ..Options::default()
            };
            let options = CardOptions {
                pairs,
                front,
                ..CardOptions::default()
            };
            Card::bring_up(&host.at(name), &options).unwrap()
        };
        let cards = [card("a.sock", 2), card("b.sock", 1)];
        let flow = |(from, pair, to)| Flow {
            from,
            pair,
            to,
            sent: 0,
            got: 0,
        };
        // What comes on the second pair goes through the other worker.
        let flows = [(0, 0, 1), (0, 1, 1), (1, 0, 0)].map(flow);
        Self { host, cards, flows }
    }

    /// Sends what there is room for, and takes what is there.
    fn turn(&mut self) {
        for flow in &mut self.flows {
            while flow.sent - flow.got < AHEAD {
                let frame = numbered(flow.from, flow.to, flow.pair, flow.sent);
                self.cards[flow.from].send(flow.pair, &frame);
                flow.sent += 1;
            }
        }
        self.take();
    }

    fn take(&mut self) {
        for to in 0..2 {
            while let Some((_, frame)) = self.cards[to].poll() {
                let pair = usize::from(frame[14]);
                let mut flows = self.flows.iter_mut();
                let flow = flows.find(|flow| (flow.to, flow.pair) == (to, pair));
                let flow = flow.expect("a stream");
                let expected = numbered(flow.from, to, pair, flow.got);
                assert!(
                    frame == expected,
                    "frame {} of a stream is missing",
                    flow.got
                );
                flow.got += 1;
            }
        }
    }

    /// Has so many more frames of each stream come.
    #[track_caller]
    fn run(&mut self, frames: u64) {
        let goals = self.flows.each_ref().map(|flow| flow.got + frames);
        let there = (0..4).any(|_| {
            settled(|| {
                self.turn();
                let mut flows = self.flows.iter().zip(goals);
                flows.all(|(flow, goal)| flow.got >= goal)
            })
        });
        let got = self.flows.each_ref().map(|flow| (flow.sent, flow.got));
        assert!(there, "{got:?}\n{}", self.host.up.complained());
    }

    /// Has the network go on in another process while frames come and go; what is said of it.
    #[track_caller]
    fn upgrade(&mut self) -> Value {
        let mut child = Command::new(PROGRAM)
            .args(["upgrade", "net", "--json", "--control"])
            .arg(self.host.at("control.sock"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let over = (0..4).any(|_| {
            settled(|| {
                self.turn();
                child.try_wait().unwrap().is_some()
            })
        });
        assert!(over, "the upgrade does not end");
        let output = child.wait_with_output().unwrap();
        let said = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let complained = self.host.up.complained();
        assert!(output.status.success(), "{said}\n{complained}");
        said
    }

    fn port(&self, name: &str) -> Value {
        self.host.seen(&format!("net/vhost-user:{name}.sock"))
    }
}

fn promiscuous(on: bool) -> Ask<'static> {
    let mode = ReceiveModes::PROMISC;
    Ask::Receive { mode, on }
}

fn nothing_is_lost(packed: bool) {
    let mut rig = Rig::new(packed);
    let mut control = Control::start(&mut rig.cards[0], 4).unwrap();
    rig.run(1);
    // Another address than the device's, and no others: what the switch floods is not for it.
    assert!(control.ask(&Ask::MacAddress(station(1))));
    assert!(control.ask(&promiscuous(false)));
    rig.run(FRAMES);
    let flooded = |rig: &Rig| {
        let counted = |port| rig.port(port)["frames"]["flooded"].as_u64().unwrap();
        ["a", "b"].map(counted)
    };
    // Both workers know both stations from here on.
    let [of_a, of_b] = flooded(&rig);
    let mut before = rig.host.process("net");
    let upgrades = std::env::var(UPGRADES_ENV).map_or(10, |text| text.parse().unwrap());
    for round in 0..upgrades {
        rig.run(FRAMES);
        let said = rig.upgrade();
        println!("{said}");
        assert!(said["pause_us"].is_u64(), "{said}");
        let now = rig.host.process("net");
        assert_ne!(now, before, "round {round}");
        before = now;
    }
    rig.run(FRAMES);
    // The last ones arrive.
    let all = settled(|| {
        rig.take();
        rig.flows.iter().all(|flow| flow.got == flow.sent)
    });
    let got = rig.flows.each_ref().map(|flow| (flow.sent, flow.got));
    assert!(all, "{got:?}");
    // What the driver of one asked for holds, and it can go on asking.
    let unknown = [&Mac([2, 0, 0, 0, 9, 9]).0[..], &station(2).0, &[0x88, 0xB5]].concat();
    let unknown = [&unknown[..], &[3; 46]].concat();
    rig.cards[1].send(0, &unknown);
    let a = |rig: &Rig| rig.port("a")["frames"].clone();
    let filtered = settled(|| a(&rig)["dropped"]["filtered"] == 1);
    assert!(filtered, "{:#}", a(&rig));
    assert!(control.ask(&promiscuous(true)));
    // All was counted, in whichever process, and the table knew both stations all the time.
    let counts = a(&rig);
    assert_eq!(counts["commands"], 3, "{counts:#}");
    assert_eq!(counts["frames_in"], rig.flows[0].sent + rig.flows[1].sent);
    assert_eq!(counts["frames_out"], rig.flows[2].sent);
    assert_eq!(flooded(&rig), [of_a, of_b + 1]);
    for port in ["a", "b", "idle"] {
        let seen = rig.port(port);
        let one = u64::from(port != "idle");
        assert_eq!(seen["generation"], one, "{seen:#}");
    }
    assert_eq!(rig.host.seen("net/starts"), 1);
    // Who was not there yet comes to the last process.
    let idle = Card::bring_up(&rig.host.at("idle.sock"), &CardOptions::default());
    drop((idle.unwrap(), control));
    let monitor = UnixListener::bind(rig.host.at("client.sock")).unwrap();
    monitor.set_nonblocking(true).unwrap();
    assert!(settled(|| monitor.accept().is_ok()), "it does not connect");
    rig.host.end();
}

#[test]
fn ports_go_on_in_ten_processes_and_lose_no_frame_in_split_rings() {
    nothing_is_lost(false);
}

#[test]
fn ports_go_on_in_ten_processes_and_lose_no_frame_in_packed_rings() {
    nothing_is_lost(true);
}

/// A process that ends with its test.
struct Started(Child);

impl Started {
    fn new(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    /// Sends it a signal; what it said until its end.
    fn end(&mut self, signal: Signal) -> (String, ExitStatus) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
        let mut said = String::new();
        if let Some(out) = &mut self.0.stdout {
            out.read_to_string(&mut said).unwrap();
        }
        (said, self.0.wait().unwrap())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The children of a process.
fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    text.split(' ').filter_map(|pid| pid.parse().ok()).collect()
}

/// A driver that counts what comes back, and connects again when it has to.
#[test]
fn frames_go_on_when_the_old_or_the_new_process_is_killed_meanwhile() {
    let plane = "[plane]\ncontrol = \"control.sock\"\n\
        [link.net]\ncommand = \"net\"\nmode = \"echo\"\nworkers = 2\n\
        port = [\"vhost-user:a.sock,queues=2\", \"vhost-user:b.sock\"]\n";
    let folder = tempfile::tempdir().unwrap();
    let log = File::create(folder.path().join("driver.log")).unwrap();
    let socket = folder.path().join("a.sock");
    let mut driver = Command::new(PROGRAM);
    driver
        .args(["driver", "net", "--connect-limit", "60", "--queues", "2"])
        .arg("--socket-path")
        .arg(&socket)
        .args(["bench", "--mode", "loop", "--seconds", "3600", "--json"])
        .stdout(Stdio::piped())
        .stderr(log);
    let mut driver = Started::new(&mut driver);
    let host = Host::start(folder, plane, &["--json"]);
    let frames = || {
        let seen = host.seen("net/vhost-user:a.sock/frames/frames_in");
        seen.as_u64().unwrap_or(0)
    };
    let flow = || {
        let before = frames();
        let flows = (0..4).any(|_| settled(|| frames() > before + 1000));
        assert!(flows, "no frames come\n{}", host.up.complained());
    };
    flow();
    for round in 0..6 {
        let old = host.process("net");
        let before = children(host.up.id());
        let mut upgrade = Command::new(PROGRAM)
            .args(["upgrade", "net", "--json", "--control"])
            .arg(host.at("control.sock"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut new = None;
        let there = settled(|| {
            let now = children(host.up.id());
            new = now.into_iter().find(|pid| !before.contains(pid));
            new.is_some()
        });
        assert!(there, "{}", host.up.complained());
        let new = Pid::from_raw(i32::try_from(new.unwrap()).unwrap()).unwrap();
        // It may have ended by itself.
        let _ = kill_process(if round % 2 == 0 { old } else { new }, Signal::KILL);
        upgrade.wait().unwrap();
        host.becomes("net/vhost-user:a.sock/phase", |phase| phase == "running");
        // What was counted before may be gone with its process.
        flow();
    }
    let (report, status) = driver.end(Signal::TERM);
    assert!(status.success(), "{report}");
    println!("{report}");
    host.end();
}

/// The kernel's own network on one side: a ping every few milliseconds misses no answer.
#[test]
fn an_interface_of_this_machine_goes_on_with_the_ports() {
    let Some(here) = Namespace::new("upgrade") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let plane = "[plane]\ncontrol = \"control.sock\"\n\
        [link.net]\ncommand = \"net\"\n\
        port = [\"vhost-user:a.sock\", \"tap:ls0,queues=2\", \"responder,address=10.9.0.2/24\"]\n";
    std::fs::write(folder.path().join("plane.toml"), plane).unwrap();
    let mut up = here.command(PROGRAM);
    let mut up = Started::new(up.arg("up").arg(folder.path().join("plane.toml")));
    let control = folder.path().join("control.sock");
    let run = |args: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(args).arg("--control").arg(&control);
        command.output().unwrap()
    };
    let seen = || -> Value {
        let output = run(&["inspect", "net/tap:ls0", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    };
    assert!((0..4).any(|_| settled(|| seen().is_object())), "no port");
    here.run("ip addr add 10.9.0.1/24 dev ls0");
    here.run("ip link set ls0 up");
    here.run("ping -c 1 -W 20 10.9.0.2");
    // Into a file: a pipe that nobody reads meanwhile would hold it up.
    let answers = folder.path().join("answers");
    let mut ping = here.command("ping");
    let mut ping = Started::new(
        ping.args(["-i", "0.005", "-W", "20", "10.9.0.2"])
            .stdout(File::create(&answers).unwrap()),
    );
    for _ in 0..3 {
        let output = run(&["upgrade", "net", "--json"]);
        assert!(output.status.success(), "{output:?}");
        let counted = |seen: Value| seen["frames"]["frames_in"].as_u64().unwrap_or(0);
        let before = counted(seen());
        assert!(before > 0);
        assert!(settled(|| counted(seen()) > before + 50), "no ping comes");
    }
    ping.end(Signal::INT);
    let said = std::fs::read_to_string(&answers).unwrap();
    let numbers = said.lines().filter_map(|line| {
        let (_, number) = line.strip_prefix("64 bytes")?.split_once("icmp_seq=")?;
        number.split(' ').next()?.parse::<u64>().ok()
    });
    let mut numbers: Vec<_> = numbers.collect();
    numbers.sort_unstable();
    // None is missing but what was on its way at the end.
    let all = numbers.iter().zip(1..).all(|(got, it)| *got == it);
    assert!(all && !numbers.is_empty(), "{said}");
    assert!(up.end(Signal::TERM).1.success());
}

#[test]
fn a_network_that_cannot_be_handed_over_says_why_and_goes_on() {
    let plane = "[plane]\ncontrol = \"control.sock\"\n\
        [link.net]\ncommand = \"net\"\ncapture = \"all.pcapng\"\nport = [\"vhost-user:a.sock\"]\n";
    let host = Host::start(tempfile::tempdir().unwrap(), plane, &[]);
    host.becomes("net/vhost-user:a.sock", Value::is_object);
    let before = (
        host.process("net"),
        host.at("all.pcapng").metadata().unwrap().len(),
    );
    let output = host.run(&["upgrade", "net"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("captured cannot be taken over"), "{said}");
    // The capture was not begun anew.
    let after = (
        host.process("net"),
        host.at("all.pcapng").metadata().unwrap().len(),
    );
    assert_eq!(before, after);
    host.end();
}

//! Interfaces of this machine as ports of `linkspan net`: the kernel's own network on
//! both sides, in network namespaces that exist for the test only.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Stdio};
use std::sync::mpsc;

use linkspan_backends::port::from_kernel;
use linkspan_devices::net::{Mac, Sum};
use linkspan_sys::tap::open_tap;
use linkspan_testkit::Namespace;
use linkspan_testkit::census::settled;
use linkspan_testkit::net::{Card, CardOptions, frame, station};
use linkspan_vhost::message::Request;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A program that runs in a namespace.
struct Program {
    child: Child,
}

impl Program {
    /// Started, and its interfaces are there.
    #[track_caller]
    fn start(namespace: &Namespace, args: &[&str], interfaces: usize) -> Self {
        let mut command = namespace.command(env!("CARGO_BIN_EXE_linkspan"));
        command.args(["net", "--json"]).args(args);
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut program = Self { child };
        let mut lines = BufReader::new(program.child.stdout.as_mut().unwrap()).lines();
        for _ in 0..interfaces {
            let line = lines.next().expect("it goes on").unwrap();
            assert!(line.contains("\"opened\""), "{line}");
        }
        program
    }
}

impl Program {
    /// What it has counted of its first port, at its end.
    #[track_caller]
    fn counts(&mut self) -> Value {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let said = BufReader::new(self.child.stdout.as_mut().unwrap());
        let mut said = said.lines().map(|line| line.unwrap());
        let counts = said.find(|line| line.contains("\"counts\""));
        serde_json::from_str(&counts.expect("it says what it counted")).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_host_that_is_not_there_answers_a_ping_of_this_machine() {
    let Some(here) = Namespace::new("ping") else {
        return;
    };
    let ports = [
        "--port",
        "tap:ls0,queues=2",
        "--port",
        "responder,address=10.9.0.2/24",
    ];
    let _program = Program::start(&here, &ports, 1);
    here.run("ip addr add 10.9.0.1/24 dev ls0");
    here.run("ip link set ls0 up");
    here.run("ping -c 3 -i 0.2 -W 20 10.9.0.2");
    here.run("ping -c 2 -i 0.2 -W 20 -s 1400 10.9.0.2");
}

#[test]
fn two_networks_of_the_kernel_are_joined() {
    let (Some(here), Some(there)) = (Namespace::new("here"), Namespace::new("there")) else {
        return;
    };
    let ports = ["--port", "tap:ls0,queues=2", "--port", "tap:ls1,queues=2"];
    let _program = Program::start(&here, &ports, 2);
    here.run(&format!("ip link set ls1 netns {}", there.name()));
    here.run("ip addr add 10.9.0.1/24 dev ls0");
    here.run("ip link set ls0 up");
    there.run("ip addr add 10.9.0.2/24 dev ls1");
    there.run("ip link set ls1 up");
    here.run("ping -c 3 -i 0.2 -W 20 10.9.0.2");
    // In fragments.
    there.run("ping -c 2 -i 0.2 -W 20 -s 9000 10.9.0.1");
    // Large segments and checksums that are left to others.
    let bytes: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let (listens, ready) = mpsc::channel();
    let server = there.spawn(move || {
        let listener = TcpListener::bind("10.9.0.2:7777").unwrap();
        listens.send(()).unwrap();
        let mut got = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut got).unwrap();
        got
    });
    ready.recv().unwrap();
    let sent = bytes.clone();
    let client = here.spawn(move || {
        let mut stream = TcpStream::connect("10.9.0.2:7777").unwrap();
        stream.write_all(&sent).unwrap();
    });
    client.join().unwrap();
    assert!(server.join().unwrap() == bytes, "the stream is another one");
}

/// A frame that lies in a guest's buffers goes to the kernel straight from them.
#[test]
fn a_guest_talks_to_the_kernel() {
    let Some(here) = Namespace::new("guest") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("guest");
    let guest = format!("vhost-user:{}", socket.display());
    let _program = Program::start(&here, &["--port", "tap:ls0", "--port", &guest], 1);
    here.run("ip addr add 10.9.0.1/24 dev ls0");
    here.run("ip link set ls0 up");
    assert!(settled(|| socket.exists()));
    for slot_bytes in [256, 2048] {
        let options = CardOptions {
            slot_bytes,
            ..CardOptions::default()
        };
        let mut card = Card::bring_up(&socket, &options).unwrap();
        let mut request = frame(station(1), Mac::BROADCAST, 0, 28);
        request[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        request[22..28].copy_from_slice(&station(1).0);
        request[28..32].copy_from_slice(&[10, 9, 0, 2]);
        request[38..42].copy_from_slice(&[10, 9, 0, 1]);
        card.send(0, &request);
        let reply = expect(&mut card, |frame| {
            frame[12..22] == [8, 6, 0, 1, 8, 0, 6, 4, 0, 2]
        });
        let kernel = Mac::source(&reply);
        let len = 1000;
        let mut echo = frame(station(1), kernel, 3, 28 + len);
        echo[12..26].copy_from_slice(&[8, 0, 0x45, 0, 4, 4, 0, 1, 0, 0, 64, 1, 0, 0]);
        echo[26..34].copy_from_slice(&[10, 9, 0, 2, 10, 9, 0, 1]);
        let checksum = Sum::default().with(&echo[14..34]).checksum();
        echo[24..26].copy_from_slice(&checksum);
        echo[34..38].copy_from_slice(&[8, 0, 0, 0]);
        let checksum = Sum::default().with(&echo[34..]).checksum();
        echo[36..38].copy_from_slice(&checksum);
        card.send(0, &echo);
        let reply = expect(&mut card, |frame| {
            frame[12..14] == [8, 0] && frame[23] == 1 && frame[34] == 0
        });
        assert_eq!(reply.len(), 14 + 1028);
        assert_eq!(reply[38..], echo[38..], "the kernel had all of it");
    }
}

/// In a pair, each end sees by its link whether the other is there.
#[test]
fn an_interface_and_a_guest_see_when_the_other_is_gone() {
    let Some(here) = Namespace::new("link") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("guest");
    let guest = format!("vhost-user:{}", socket.display());
    let ports = ["--mode", "pair", "--port", "tap:ls0", "--port", &guest];
    let _program = Program::start(&here, &ports, 1);
    let carrier = |there: bool| {
        let state = here
            .command("ip")
            .args(["link", "show", "ls0"])
            .output()
            .unwrap();
        let state = String::from_utf8(state.stdout).unwrap();
        state.contains("NO-CARRIER") != there
    };
    here.run("ip link set ls0 up");
    assert!(settled(|| socket.exists()));
    for _ in 0..2 {
        assert!(settled(|| carrier(false)), "nobody is there");
        let card = Card::bring_up(&socket, &CardOptions::default()).unwrap();
        assert!(settled(|| carrier(true)), "a guest is there");
        let requests = card.front.listen_to_requests().unwrap();
        assert!(settled(|| link_is_up(&card)));
        here.run("ip link set ls0 down");
        assert!(
            settled(|| !link_is_up(&card)),
            "whoever owns it took it down"
        );
        assert!(settled(|| requests.has_message()), "and that is told");
        here.run("ip link set ls0 up");
        assert!(settled(|| link_is_up(&card)));
    }
    let card = Card::bring_up(&socket, &CardOptions::default()).unwrap();
    assert!(settled(|| link_is_up(&card)));
    here.run("ip link del ls0");
    assert!(settled(|| !link_is_up(&card)), "it is gone");
}

/// The bit of configuration space (virtio 1.3 5.1.4).
fn link_is_up(card: &Card) -> bool {
    let ask = [&6_u32.to_le_bytes()[..], &2_u32.to_le_bytes(), &[0; 6]].concat();
    let reply = card.front.ask(Request::GetConfig, &ask, &[]).unwrap();
    reply[12] & 1 != 0
}

/// A program that is started with a queue of an interface serves it, and does not take
/// from it more than it may.
#[test]
fn an_interface_that_somebody_else_opened_is_served() {
    let Some(here) = Namespace::new("tapfd") else {
        return;
    };
    let queue = here.spawn(|| open_tap("ls0", 1, from_kernel()).unwrap().1.pop().unwrap());
    let queue = queue.join().unwrap();
    let fd = queue.as_fd().try_clone_to_owned().unwrap();
    here.run("ip addr add 10.9.0.1/24 dev ls0");
    here.run("ip link set ls0 up");
    for limit in ["", ",packets-per-second=1"] {
        let port = format!("tap-fd:{}{limit}", fd.as_raw_fd());
        let responder = "responder,address=10.9.0.2/24";
        let mut command = linkspan_testkit::program(env!("CARGO_BIN_EXE_linkspan"));
        command.args(["net", "--json", "--port", &port, "--port", responder]);
        // What other tests start meanwhile gets it as well, and does nothing with it.
        fcntl_setfd(&fd, FdFlags::empty()).unwrap();
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        fcntl_setfd(&fd, FdFlags::CLOEXEC).unwrap();
        let mut program = Program { child };
        if limit.is_empty() {
            here.run("ping -c 3 -i 0.2 -W 20 10.9.0.2");
            continue;
        }
        // Most of them are not answered.
        let words = ["-c", "30", "-i", "0.01", "-W", "1", "10.9.0.2"];
        here.command("ping").args(words).output().unwrap();
        let counts = program.counts();
        let dropped = counts["dropped"]["limit"].as_u64().unwrap();
        assert!(dropped > 0, "{counts}");
    }
}

/// The next frame of this kind; the kernel says other things as well.
#[track_caller]
fn expect(card: &mut Card, kind: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    loop {
        let (_, frame) = card.expect();
        if frame.len() >= 42 && kind(&frame) {
            return frame;
        }
    }
}

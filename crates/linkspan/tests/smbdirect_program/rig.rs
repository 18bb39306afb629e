//! A listener as a process of its own, and commands against it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub(crate) fn program(verb: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_linkspan"));
    command.args(["smbdirect", verb]).env("LINKSPAN_LOG", "off");
    command
}

/// A listener that says what happens, line by line.
pub(crate) struct Listener {
    pub(crate) child: Child,
    lines: BufReader<ChildStdout>,
    pub(crate) address: SocketAddr,
}

impl Listener {
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut command = program("listen");
        command.args(["--addr", "127.0.0.1:0", "--json"]).args(args);
        Self::of(command)
    }

    pub(crate) fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let nowhere = "0.0.0.0:0".parse().unwrap();
        let mut listener = Self {
            child,
            lines,
            address: nowhere,
        };
        let listening = listener.event("listening");
        listener.address = listening["address"].as_str().unwrap().parse().unwrap();
        listener
    }

    /// The next event of this name.
    #[track_caller]
    pub(crate) fn event(&mut self, name: &str) -> Value {
        let mut line = String::new();
        loop {
            line.clear();
            let len = self.lines.read_line(&mut line).unwrap();
            assert!(len > 0, "it ended before {name}");
            let value: Value = serde_json::from_str(&line).unwrap();
            if value["event"] == name {
                return value;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// It ends in order.
    #[track_caller]
    pub(crate) fn stop(mut self, signal: Signal) {
        self.signal(signal);
        self.event("stopped");
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }

    /// A command against it.
    pub(crate) fn command(&self, verb: &str, args: &[&str]) -> Command {
        let mut command = program(verb);
        command.arg(self.address.to_string()).args(args);
        command
    }

    /// What a command prints as JSON; it succeeds.
    #[track_caller]
    pub(crate) fn run(&self, verb: &str, args: &[&str]) -> Value {
        let output = self.command(verb, args).arg("--json").output().unwrap();
        answer(&output)
    }

    /// A socket that anybody could have opened.
    pub(crate) fn raw(&self) -> TcpStream {
        TcpStream::connect(self.address).unwrap()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
pub(crate) fn answer(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// It ends like this, and says so.
#[track_caller]
pub(crate) fn fails(output: &Output, status: i32, word: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert!(said.contains(word), "no {word:?} in: {said}");
}

/// What a listener says of itself, of its connections, and of those that ended.
#[track_caller]
pub(crate) fn status(control: &Path, args: &[&str]) -> (Value, Vec<Value>, Vec<Value>) {
    let mut command = program("status");
    command
        .arg("--control")
        .arg(control)
        .arg("--json")
        .args(args);
    let output = command.output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |kind: &str| {
        lines
            .iter()
            .filter(|line| line["kind"] == kind)
            .cloned()
            .collect::<Vec<_>>()
    };
    (lines[0].clone(), of("connection"), of("ended"))
}

/// MPA and SMB Direct byte by byte, as an initiator.
pub(crate) struct Script {
    pub(crate) stream: TcpStream,
    next: u32,
}

const REQUEST: &[u8] =
    b"MPA ID Req Frame\x10\x02\x00\x0c\x00\x20\x00\x01\x00\x00\x00\x20\x00\x00\x00\x01";

impl Script {
    /// Asks for a connection and has the reply.
    pub(crate) fn open(mut stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.write_all(REQUEST).unwrap();
        let mut reply = [0; 24];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(&reply[..16], b"MPA ID Rep Frame");
        assert_eq!(&reply[16..20], b"\x10\x02\x00\x04");
        Self { stream, next: 1 }
    }

    /// And negotiates.
    pub(crate) fn negotiated(stream: TcpStream) -> Self {
        let mut script = Self::open(stream);
        script.send(&negotiate_request());
        let response = script.message();
        assert_eq!((response.len(), &response[12..16]), (32, &[0; 4][..]));
        script
    }

    /// One message in one frame.
    pub(crate) fn send(&mut self, message: &[u8]) {
        let frame = self.frame(message);
        self.stream.write_all(&frame).unwrap();
    }

    /// The frame of the next message.
    pub(crate) fn frame(&mut self, message: &[u8]) -> Vec<u8> {
        let len = u16::try_from(18 + message.len()).unwrap();
        let mut frame = len.to_be_bytes().to_vec();
        frame.extend_from_slice(&[0x41, 0x43, 0, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend_from_slice(&self.next.to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(message);
        frame.resize(frame.len().next_multiple_of(4) + 4, 0);
        self.next += 1;
        frame
    }

    /// The next message, of one frame.
    pub(crate) fn message(&mut self) -> Vec<u8> {
        let mut len = [0; 2];
        self.stream.read_exact(&mut len).unwrap();
        let len = usize::from(u16::from_be_bytes(len));
        let mut frame = vec![0; (len + 2).next_multiple_of(4) + 4 - 2];
        self.stream.read_exact(&mut frame).unwrap();
        assert_eq!(frame[..2], [0x41, 0x43], "no message");
        frame[18..len].to_vec()
    }

    /// Whatever is said until the end.
    pub(crate) fn rest(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset is an end.
        let _ = self.stream.read_to_end(&mut bytes);
        bytes
    }
}

pub(crate) fn negotiate_request() -> [u8; 20] {
    let mut request = [0; 20];
    request[..8].copy_from_slice(&[0, 1, 0, 1, 0, 0, 10, 0]);
    request[8..12].copy_from_slice(&1364_u32.to_le_bytes());
    request[12..16].copy_from_slice(&1364_u32.to_le_bytes());
    request[16..].copy_from_slice(&131_072_u32.to_le_bytes());
    request
}

/// A Data Transfer that asks for 10 credits and grants them.
pub(crate) fn data(flags: u8, remaining: u32, bytes: &[u8]) -> Vec<u8> {
    let mut message = vec![10, 0, 10, 0, flags, 0, 0, 0];
    message.extend_from_slice(&remaining.to_le_bytes());
    let offset: u32 = if bytes.is_empty() { 0 } else { 24 };
    message.extend_from_slice(&offset.to_le_bytes());
    message.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_le_bytes());
    if !bytes.is_empty() {
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(bytes);
    }
    message
}

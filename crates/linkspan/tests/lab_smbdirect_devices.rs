//! `linkspan smbdirect` over devices of the kernel in software, both ends, and a device with our
//! iWARP over TCP.

//: about our SMB Direct programs over siw and rxe, and siw with our iWARP over TCP
//: pack ip rdma verbs rdmacm
//: memory 512
//: limit 400

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use linkspan_testkit::lab::{self, Rdma};
use serde_json::Value;

fn program(verb: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_linkspan"));
    command.args(["smbdirect", verb]).stdin(Stdio::null());
    command
}

struct Listener {
    child: Child,
    events: BufReader<ChildStdout>,
}

impl Listener {
    fn start(provider: &str, address: &str, args: &[&str]) -> (Self, Value) {
        let mut command = program("listen");
        command.args(["--json", "--provider", provider, "--addr", address]);
        let mut child = command.args(args).stdout(Stdio::piped()).spawn().unwrap();
        let events = BufReader::new(child.stdout.take().unwrap());
        let mut listener = Self { child, events };
        let listening = listener.expect("listening");
        (listener, listening["address"].clone())
    }

    /// The next event of this name.
    fn expect(&mut self, name: &str) -> Value {
        loop {
            let mut line = String::new();
            let len = self.events.read_line(&mut line).unwrap();
            assert!(len > 0, "it ended before {name}");
            let value: Value = serde_json::from_str(&line).unwrap();
            if value["event"] == name {
                return value;
            }
        }
    }

    fn stop(mut self) {
        let id = self.child.id().to_string();
        lab::run(Command::new("kill").args(["-s", "TERM", &id]));
        self.expect("stopped");
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn output(verb: &str, provider: &str, address: &str, args: &[&str]) -> Output {
    let mut command = program(verb);
    command.args([address, "--provider", provider, "--json"]);
    command.args(args).output().unwrap()
}

#[track_caller]
fn answer(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Ping, and each kind of bench, between these.
fn programs(device: &Rdma, listens: &str, connects: &str) {
    let address = device.address().to_string();
    let (mut listener, at) = Listener::start(listens, &address, &[]);
    let report = answer(&output("ping", connects, &address, &["--count", "20"]));
    assert_eq!(report["peer"], "linkspan, echo");
    assert_eq!(report["kind"], "echo");
    assert_eq!(report["round_trips"], 20);
    assert_eq!(report["address"], at);
    let negotiated = &report["negotiated"];
    assert_eq!((&negotiated["send_credits"]), 254);
    listener.expect("ended");
    for (mode, size, messages) in [("send", "1000", 400), ("write", "1M", 8), ("read", "1M", 8)] {
        let messages = messages.to_string();
        let args = [
            "--mode",
            mode,
            "--size",
            size,
            "--messages",
            &messages,
            "--connections",
            "2",
        ];
        let report = answer(&output("bench", connects, &address, &args));
        assert_eq!(
            (&report["verified"], &report["mode"]),
            (&true.into(), &mode.into())
        );
        println!("{listens} {connects} {mode}: {report}");
    }
    listener.stop();
}

#[test]
fn the_programs_over_siw() {
    if !lab::guest("the_programs_over_siw") {
        return;
    }
    programs(&Rdma::new("siw"), "verbs", "verbs");
}

#[test]
fn the_programs_over_rxe() {
    if !lab::guest("the_programs_over_rxe") {
        return;
    }
    programs(&Rdma::new("rxe"), "verbs", "verbs");
}

#[test]
fn siw_connects_to_the_listener_over_tcp() {
    if !lab::guest("siw_connects_to_the_listener_over_tcp") {
        return;
    }
    programs(&Rdma::new("siw"), "tcp", "verbs");
}

#[test]
fn a_device_listens_for_iwarp_over_tcp() {
    if !lab::guest("a_device_listens_for_iwarp_over_tcp") {
        return;
    }
    programs(&Rdma::new("siw"), "verbs", "tcp");
}

/// Fault 30 (m:a1038688a): 5445 is for iWARP, where 445 is SMB over TCP, and 445 for what has
/// ports of its own.
#[test]
fn each_kind_of_device_has_its_port() {
    if !lab::guest("each_kind_of_device_has_its_port") {
        return;
    }
    let [siw, rxe] = ["siw", "rxe"].map(Rdma::new);
    for (device, port, other) in [(&siw, 5445, 445), (&rxe, 445, 5445)] {
        let address = device.address().to_string();
        let wrong = format!("{address}:{other}");
        let mut command = program("listen");
        command.args(["--provider", "verbs", "--addr", &wrong]);
        let refused = command.output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("not for the RDMA device"), "{said}");
        let (listener, at) = Listener::start("verbs", &address, &[]);
        assert_eq!(at, format!("{address}:{port}"));
        // Without a port it is found, and at the other one nobody is asked.
        let report = answer(&output("ping", "verbs", &address, &["--count", "1"]));
        assert_eq!(report["address"], at);
        let refused = output("ping", "verbs", &wrong, &[]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(3), "{said}");
        assert!(said.contains(&format!("port {other} is not for")), "{said}");
        listener.stop();
    }
    // Everywhere means both.
    let (mut listener, first) = Listener::start("verbs", "0.0.0.0", &[]);
    let second = listener.expect("listening")["address"].clone();
    assert_eq!(
        (first, second),
        ("0.0.0.0:5445".into(), "0.0.0.0:445".into())
    );
    for device in [&siw, &rxe] {
        let address = device.address().to_string();
        answer(&output("ping", "verbs", &address, &["--count", "1"]));
    }
    listener.stop();
}

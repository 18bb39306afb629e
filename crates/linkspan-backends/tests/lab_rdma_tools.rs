//! rdma-core's own programs over siw against our iWARP over TCP, in both roles; tshark reads what
//! went over the wire, which the kernel has captured.

//: about rping and other programs of rdma-core, over siw, with our iWARP over TCP
//: pack ip rdma verbs rdmacm rdma-tools tcpdump tshark
//: memory 768
//: limit 400

mod rdma_suite;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use linkspan_backends::rdma::{Config, ConnectionId, Provider};
use linkspan_rdma::verbs::{Access, Depth, Event, Failure, Key, Remote, Verbs as _, Work};
use linkspan_testkit::PATIENCE;
use linkspan_testkit::lab::{self, Capture, Rdma};
use rdma_suite::{Side, done, established, requested};

const PORT: u16 = 7471;
const ROUNDS: usize = 5;

fn side() -> Side<Provider> {
    let mut config = Config::default();
    config.options.crc = true;
    // What these programs ask for.
    config.options.depth = Depth {
        inbound: 1,
        outbound: 1,
    };
    Side::new(Provider::new(config).unwrap())
}

fn start(program: &str, arguments: &[&str], address: Ipv4Addr) -> Child {
    let address = address.to_string();
    let port = PORT.to_string();
    let replaced = arguments.iter().map(|word| match *word {
        "ADDRESS" => address.as_str(),
        "PORT" => port.as_str(),
        word => word,
    });
    let mut command = Command::new(program);
    command.args(replaced);
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn until<T>(
    side: &mut Side<Provider>,
    mut found: impl FnMut(&mut Side<Provider>) -> Option<T>,
) -> T {
    let begin = Instant::now();
    loop {
        side.look();
        if let Some(found) = found(side) {
            return found;
        }
        let said = (&side.events, &side.ends);
        assert!(begin.elapsed() < PATIENCE, "nothing happens: {said:?}");
    }
}

/// What a program has said, once it is over.
fn over(mut child: Child, side: &mut Side<Provider>) -> Output {
    until(side, |_| child.try_wait().unwrap());
    child.wait_with_output().unwrap()
}

fn well(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
}

/// Connects once somebody listens.
fn connect(side: &mut Side<Provider>, address: SocketAddr) -> ConnectionId {
    let port = format!(":{PORT}");
    lab::await_true("a listener", || {
        let mut command = Command::new("rdma");
        let text = lab::run(command.args(["resource", "show", "cm_id"]));
        text.lines()
            .any(|line| line.contains("LISTEN") && line.contains(&port))
    });
    let id = side.provider.connect(address, b"").unwrap();
    // Some programs speak first; so a receive is there before.
    side.receive(id, 16).unwrap();
    until(side, |side| side.find(established));
    id
}

fn accept(side: &mut Side<Provider>) -> ConnectionId {
    let (id, greeting) = until(side, |side| side.find(requested));
    side.receive(id, 16).unwrap();
    let mut connection = side.provider.connection(id).unwrap();
    connection.accept(b"", greeting.depth).unwrap();
    until(side, |side| side.find(established));
    id
}

/// rping's messages: an address, a key and a length, big-endian.
fn words(remote: Remote, len: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&remote.address.to_be_bytes());
    bytes[8..12].copy_from_slice(&remote.key.0.to_be_bytes());
    bytes[12..].copy_from_slice(&len.to_be_bytes());
    bytes
}

fn remote(bytes: &[u8]) -> (Remote, u32) {
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let address = u64::from(number(0)) << 32 | u64::from(number(4));
    let key = Key(number(8));
    (Remote { key, address }, number(12))
}

fn next(side: &mut Side<Provider>, id: ConnectionId) -> Vec<u8> {
    let message = until(side, Side::message);
    // Whoever has said all may be gone.
    if let Some(mut connection) = side.provider.connection(id) {
        connection.post_receives(1).unwrap();
    }
    message
}

/// Until the work of this number is done, and not another.
fn completed(side: &mut Side<Provider>, number: u64) {
    until(side, |side| {
        side.find(|event| done(event).filter(|it| it.0 == number))
    });
}

fn say(side: &mut Side<Provider>, id: ConnectionId, bytes: &[u8]) {
    side.write(1 << 20, bytes);
    let len = u32::try_from(bytes.len()).unwrap();
    let gather = [side.slice(1 << 20, len)];
    side.send(id, 1, &gather);
    completed(side, 1);
}

#[test]
fn rping_pings_us() {
    if !lab::guest("rping_pings_us") {
        return;
    }
    let siw = Rdma::new("siw");
    let capture = Capture::start("lo", "rping_pings_us");
    let mut side = side();
    side.provider.listen((siw.address(), PORT).into()).unwrap();
    let rounds = ROUNDS.to_string();
    let arguments = [
        "-c", "-a", "ADDRESS", "-p", "PORT", "-V", "-S", "1000", "-C", &rounds,
    ];
    let child = start("rping", &arguments, siw.address());
    let id = accept(&mut side);
    for round in 0..ROUNDS {
        let (from, len) = remote(&next(&mut side, id));
        assert_eq!(len, 1000);
        let into = [side.slice(0, len)];
        side.post(id, 2, Work::Read { into: &into, from }).unwrap();
        completed(&mut side, 2);
        let text = side.read(into[0]);
        let begin = format!("rdma-ping-{round}: ");
        assert!(text.starts_with(begin.as_bytes()), "{text:?}");
        say(&mut side, id, &[0; 16]);
        let (to, _) = remote(&next(&mut side, id));
        side.post(id, 3, Work::Write { gather: &into, to }).unwrap();
        say(&mut side, id, &[0; 16]);
    }
    well(&over(child, &mut side));
    assert_eq!(until(&mut side, |side| side.end_of(id)), Failure::Closed);
    capture.judge(5);
}

#[test]
fn we_ping_rping() {
    if !lab::guest("we_ping_rping") {
        return;
    }
    let siw = Rdma::new("siw");
    let capture = Capture::start("lo", "we_ping_rping");
    let rounds = ROUNDS.to_string();
    let arguments = ["-s", "-a", "ADDRESS", "-p", "PORT", "-V", "-C", &rounds];
    let child = start("rping", &arguments, siw.address());
    let mut side = side();
    let id = connect(&mut side, (siw.address(), PORT).into());
    // As much as it has room for.
    let mut text = [b'x'; 64];
    text[63] = 0;
    side.write(0, &text);
    let source = side.slice(0, 64);
    let sink = side.slice(4096, 64);
    let from = side.expose(id, &[source], Access::READ);
    let to = side.expose(id, &[sink], Access::WRITE);
    for round in 0..ROUNDS {
        side.write(4096, &[0; 64]);
        text[0] = b'a' + u8::try_from(round).unwrap();
        side.write(0, &text);
        say(&mut side, id, &words(from, 64));
        next(&mut side, id);
        say(&mut side, id, &words(to, 64));
        next(&mut side, id);
        assert_eq!(side.read(sink), text);
    }
    side.provider.connection(id).unwrap().disconnect();
    until(&mut side, |side| side.end_of(id));
    drop(over(child, &mut side));
    capture.judge(5);
}

/// librdmacm's example: a message of 16 bytes, and one back.
#[test]
fn rdma_client_and_rdma_server_talk_to_us() {
    if !lab::guest("rdma_client_and_rdma_server_talk_to_us") {
        return;
    }
    let siw = Rdma::new("siw");
    let capture = Capture::start("lo", "rdma_client");
    let mut served = side();
    served
        .provider
        .listen((siw.address(), PORT).into())
        .unwrap();
    let child = start(
        "rdma_client",
        &["-s", "ADDRESS", "-p", "PORT"],
        siw.address(),
    );
    let id = accept(&mut served);
    assert_eq!(next(&mut served, id).len(), 16);
    say(&mut served, id, &[7; 16]);
    well(&over(child, &mut served));
    until(&mut served, |side| side.end_of(id));
    drop(served);

    let child = start(
        "rdma_server",
        &["-s", "ADDRESS", "-p", "PORT"],
        siw.address(),
    );
    let mut asking = side();
    let id = connect(&mut asking, (siw.address(), PORT).into());
    say(&mut asking, id, &[9; 16]);
    assert_eq!(next(&mut asking, id).len(), 16);
    // It leaves as soon as it has said all.
    if let Some(mut connection) = asking.provider.connection(id) {
        connection.disconnect();
    }
    until(&mut asking, |side| side.end_of(id));
    well(&over(child, &mut asking));
    let back = |event: &Event| matches!(event, Event::Completed(it) if !it.done).then_some(());
    assert!(asking.find(back).is_none());
    capture.judge(2);
}

//! Clients over TCP through a gateway: they reach the server as it is, and hear of SMB Direct.

mod smb_files;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use linkspan_backends::smb::gateway::End;
use linkspan_backends::smb::{Settings, Share};
use linkspan_smb2::ioctl::RDMA_CAPABLE;
use linkspan_testkit::samba::Samba;
use smb_files::{Running, bytes, login, round};

/// What clients do over TCP to Samba, which may have several channels.
fn samba() -> Option<Samba> {
    Samba::start(&["server multi channel support = yes"])
}

#[test]
fn files_go_over_tcp_and_clients_hear_of_smb_direct() {
    let Some(samba) = samba() else {
        return;
    };
    let server = ([127, 0, 0, 1], samba.port).into();
    for (sign, encrypt, told) in [(false, false, 1), (true, false, 0), (true, true, 0)] {
        let gateway = Running::start(server, |_| {});
        let settings = Settings {
            require_signing: sign,
            require_encryption: encrypt,
            ..Settings::default()
        };
        let open = |port| Share::open("127.0.0.1", port, "files", &login(&samba), &settings);
        let mut share = open(gateway.tcp_port).unwrap();
        assert_eq!(share.connection().transport(), "TCP");
        round(&samba, &mut share);
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut own = open(samba.port).unwrap().interfaces().unwrap();
        let mut heard = share.interfaces().unwrap();
        let with_rdma = |it: &linkspan_smb2::ioctl::Interface| {
            it.ip() == Some(here) && it.capability.get() & RDMA_CAPABLE != 0
        };
        assert_eq!(
            heard.iter().filter(|it| with_rdma(it)).count(),
            usize::from(told > 0)
        );
        // Else it is what the server says.
        heard.retain(|it| it.ip() != Some(here));
        own.retain(|it| it.ip() != Some(here));
        let addresses = |all: &[linkspan_smb2::ioctl::Interface]| -> Vec<_> {
            all.iter()
                .map(|it| (it.ip(), it.capability.get()))
                .collect()
        };
        assert_eq!(addresses(&heard), addresses(&own));
        drop(share);
        let (direct, relayed) = gateway.stop_all();
        assert!(direct.is_empty());
        let [(traffic, times, end)] = &relayed[..] else {
            panic!("{relayed:?}");
        };
        assert!(traffic.iter().all(|bytes| *bytes > 300_000), "{traffic:?}");
        assert_eq!(*times, told);
        assert!(matches!(end, End::Over | End::Stopped), "{end}");
    }
}

/// A server that says what it hears, and ends when its client does.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut other = stream.try_clone().unwrap();
                // A client that is gone hears nothing.
                let _ = std::io::copy(&mut stream, &mut other);
                let _ = other.shutdown(Shutdown::Write);
            });
        }
    });
    address
}

fn framed(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).unwrap();
    [&len.to_be_bytes()[..], message].concat()
}

/// Longer than buffers, in pieces, and not read until all is sent.
#[test]
fn messages_of_any_length_arrive_as_they_are_and_an_end_comes_behind_them() {
    let gateway = Running::start(echo(), |_| {});
    let mut all = Vec::new();
    for len in [1, 63, 64, 200, 70_000, 131_072, 3_000_000, 5] {
        all.extend(framed(&bytes(len)));
    }
    // One that is cut off goes as far as it came.
    all.extend(&framed(&bytes(1000))[..500]);
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.tcp_port)).unwrap();
    let mut back = stream.try_clone().unwrap();
    let sender = thread::spawn({
        let all = all.clone();
        move || {
            for piece in all.chunks(99_991) {
                stream.write_all(piece).unwrap();
            }
            stream.shutdown(Shutdown::Write).unwrap();
        }
    });
    let mut heard = Vec::new();
    back.read_to_end(&mut heard).unwrap();
    sender.join().unwrap();
    assert!(heard == all, "{} bytes of {}", heard.len(), all.len());
    let (_, relayed) = gateway.stop_all();
    let count = all.len() as u64;
    assert!(
        matches!(&relayed[..], [(both, 0, End::Over)] if *both == [count; 2]),
        "{relayed:?}"
    );
}

/// Ours: when both had said all, what a client that reads slowly had not taken yet was lost.
#[test]
fn all_arrives_at_a_slow_client_when_both_ends_have_said_all() {
    // More than all sockets on the way keep.
    const MESSAGES: usize = 40;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = Running::start(listener.local_addr().unwrap(), |_| {});
    let message = framed(&bytes(1 << 20));
    let server = thread::spawn({
        let message = message.clone();
        move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
            for _ in 0..MESSAGES {
                stream.write_all(&message).unwrap();
            }
        }
    });
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.tcp_port)).unwrap();
    stream.write_all(&framed(b"hello")).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut heard = Vec::new();
    // The server has sent all while much of it is still on its way.
    let mut piece = [0; 2048];
    while !server.is_finished() {
        let count = stream.read(&mut piece).unwrap();
        heard.extend_from_slice(&piece[..count]);
    }
    stream.read_to_end(&mut heard).unwrap();
    server.join().unwrap();
    assert!(heard == message.repeat(MESSAGES), "{} bytes", heard.len());
    let (_, relayed) = gateway.stop_all();
    let down = heard.len() as u64;
    assert!(
        matches!(&relayed[..], [([9, count], 0, End::Over)] if *count == down),
        "{relayed:?}"
    );
}

#[test]
fn a_client_that_is_gone_is_no_fault_of_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = Running::start(listener.local_addr().unwrap(), |_| {});
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut heard = [0; 9];
        stream.read_exact(&mut heard).unwrap();
        stream.write_all(&heard).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap()
    });
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.tcp_port)).unwrap();
    stream.write_all(&framed(b"hello")).unwrap();
    assert!(stream.peek(&mut [0; 9]).unwrap() > 0);
    // What was not read makes it a reset.
    drop(stream);
    assert_eq!(server.join().unwrap(), 0);
    let (_, relayed) = gateway.stop_all();
    assert!(
        matches!(&relayed[..], [([9, 9], 0, end @ End::Left(_))] if !end.is_bad()),
        "{relayed:?}"
    );
}

#[test]
fn what_is_no_smb_over_tcp_ends_by_name_and_others_go_on() {
    let gateway = Running::start(echo(), |_| {});
    let connect = || TcpStream::connect(("127.0.0.1", gateway.tcp_port)).unwrap();
    let mut other = connect();
    let mut wrong = connect();
    wrong.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut heard = Vec::new();
    // It may be a reset.
    let _ = wrong.read_to_end(&mut heard);
    assert!(heard.is_empty());
    other.write_all(&framed(b"hello")).unwrap();
    let mut back = [0; 9];
    other.read_exact(&mut back).unwrap();
    assert_eq!(back[4..], *b"hello");
    drop(other);
    let (_, relayed) = gateway.stop_all();
    let ends: Vec<String> = relayed.iter().map(|(.., end)| end.to_string()).collect();
    assert!(
        ends[0].contains("the client's message: the first byte"),
        "{ends:?}"
    );
}

#[test]
fn a_server_that_is_not_there_and_clients_that_are_too_many_have_their_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let gateway = Running::start(nobody, |_| {});
    let mut client = TcpStream::connect(("127.0.0.1", gateway.tcp_port)).unwrap();
    assert_eq!(client.read(&mut [0; 9]).unwrap_or(0), 0);
    let (_, relayed) = gateway.stop_all();
    assert!(
        matches!(&relayed[..], [(_, _, End::Connect { address, .. })] if *address == nobody),
        "{relayed:?}"
    );
    let gateway = Running::start_for(echo(), 1, |_| {});
    let connect = || TcpStream::connect(("127.0.0.1", gateway.tcp_port)).unwrap();
    let mut first = connect();
    first.write_all(&framed(b"hello")).unwrap();
    first.read_exact(&mut [0; 9]).unwrap();
    assert_eq!(connect().read(&mut [0; 9]).unwrap_or(0), 0);
    first.write_all(&framed(b"still")).unwrap();
    first.read_exact(&mut [0; 9]).unwrap();
    drop(first);
    gateway.stop_all();
}

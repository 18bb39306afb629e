//! Peers that do not do what they should.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Stdio;
use std::thread;

use linkspan_testkit::census::settled;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::json;

use crate::idle::waits;
use crate::rig::{Listener, Script, data, fails, negotiate_request, program, status};

#[test]
fn garbage_ends_its_connection_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("s");
    let listener = Listener::start(&["--control", control.to_str().unwrap()]);
    // Not MPA, an end in the middle of it, and a first frame that comes with the request.
    let mut raw = listener.raw();
    raw.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        .unwrap();
    let _ = raw.read_to_end(&mut Vec::new());
    drop({
        let mut raw = listener.raw();
        raw.write_all(b"MPA ID Req").unwrap();
        raw
    });
    let mut early = listener.raw();
    let mut bytes = b"MPA ID Req Frame\x10\x02\x00\x04\x00\x20\x00\x01".to_vec();
    bytes.extend_from_slice(&[0, 38, 0x41, 0x43]);
    early.write_all(&bytes).unwrap();
    let _ = early.read_to_end(&mut Vec::new());
    // What is no negotiation, and what is none that can be.
    for message in [&b"short"[..], &[0xFF; 600], &[0; 20]] {
        let mut script = Script::open(listener.raw());
        script.send(message);
        script.rest();
    }
    // A frame that ends nowhere, with a version that is none.
    let mut script = Script::open(listener.raw());
    let mut frame = script.frame(&negotiate_request());
    frame[3] = 0x83;
    script.stream.write_all(&frame).unwrap();
    script.rest();
    // Fields of a Data Transfer.
    let mut offset = data(0, 0, b"data");
    offset[12] = 25;
    let mut outside = data(0, 0, b"data");
    outside[16] = 200;
    let mut credits = data(0, 0, b"data");
    credits[0] = 0;
    let long = data(0, 1 << 20, b"data");
    for message in [offset, outside, credits, long, b"no header".to_vec()] {
        let mut script = Script::negotiated(listener.raw());
        script.send(&message);
        script.rest();
    }
    assert!(settled(|| status(&control, &[]).0["connections"] == 0));
    let (summary, _, ended) = status(&control, &[]);
    assert_eq!(
        (&summary["ended"], &summary["receive_buffers"]),
        (&json!(10), &json!(0))
    );
    assert_eq!(summary["unasked"], 2);
    let reasons: Vec<_> = ended
        .iter()
        .map(|it| it["first_error"].as_str().unwrap())
        .collect();
    for reason in [
        "DataOffset is 25, no multiple of 8",
        "CreditsRequested is 0, less than 1",
    ] {
        assert!(reasons.contains(&reason), "no {reason:?} in {reasons:#?}");
    }
    assert_eq!(listener.run("ping", &["--count", "2"])["round_trips"], 2);
    listener.stop(Signal::TERM);
}

/// MS-SMBD 3.1.5.6: another version is told so.
#[test]
fn another_version_is_refused_with_a_status() {
    let listener = Listener::start(&[]);
    let mut script = Script::open(listener.raw());
    let mut request = negotiate_request();
    request[..4].copy_from_slice(&[0, 2, 0, 2]);
    script.send(&request);
    let response = script.message();
    assert_eq!(response[12..16], 0xC000_00BB_u32.to_le_bytes());
    script.rest();
}

#[test]
fn half_open_connections_go_in_time_and_keep_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("s");
    let listener = Listener::start(&[
        "--control",
        control.to_str().unwrap(),
        "--half-open",
        "8",
        "--negotiate-timeout-ms",
        "300",
    ]);
    // One that says nothing, one that asks and says no more: of an address two are enough.
    let silent = listener.raw();
    let asked = Script::open(listener.raw());
    let mut third = listener.raw();
    assert_eq!(third.read(&mut [0]).unwrap_or(0), 0);
    assert_eq!(status(&control, &[]).0["half_open"], 2);
    // The second has its negotiation timer; there is room then, and after that for the first.
    asked.rest();
    assert_eq!(listener.run("ping", &["--count", "1"])["round_trips"], 1);
    let (_, _, ended) = status(&control, &[]);
    let reasons: Vec<_> = ended
        .iter()
        .map(|it| it["first_error"].as_str().unwrap())
        .collect();
    assert!(
        reasons.contains(&"no negotiation within 300 ms"),
        "{reasons:#?}"
    );
    drop(silent);
    assert!(settled(|| status(&control, &[]).0["half_open"] == 0));
    listener.stop(Signal::TERM);
}

#[test]
fn connections_have_caps() {
    let mut listener = Listener::start(&["--connections", "3", "--per-address", "2"]);
    let one = Script::negotiated(listener.raw());
    let two = Script::negotiated(listener.raw());
    let output = listener.command("ping", &[]).output().unwrap();
    fails(&output, 3, "connection was lost");
    drop(two);
    listener.event("ended");
    assert_eq!(listener.run("ping", &["--count", "1"])["round_trips"], 1);
    drop(one);
    listener.stop(Signal::TERM);
}

/// A peer that sends and never reads its echoes: it runs out of credits, and others do not.
#[test]
fn a_peer_that_does_not_read_holds_nobody_up() {
    let listener = Listener::start(&["--memory", "64K", "--budget", "64K"]);
    let mut scripts: Vec<_> = (0..3).map(|_| Script::negotiated(listener.raw())).collect();
    for script in &mut scripts {
        // All credits that it has, and none for the echoes beyond ten.
        for _ in 0..10 {
            script.send(&data(0, 0, &[1; 1340]));
        }
    }
    assert_eq!(listener.run("ping", &["--count", "20"])["round_trips"], 20);
    drop(scripts);
    listener.stop(Signal::TERM);
}

/// A peer that says everything one byte at a time.
#[test]
fn a_slow_peer_is_served() {
    let listener = Listener::start(&[]);
    let mut script = Script::open(listener.raw());
    let mut slowly = |message: &[u8]| {
        for byte in script.frame(message) {
            script.stream.write_all(&[byte]).unwrap();
        }
        script.message()
    };
    assert_eq!(slowly(&negotiate_request()).len(), 32);
    let first = slowly(&data(0, 0, b"hello"));
    // An empty message may come first.
    let echo = if first.len() > 20 {
        first
    } else {
        script.message()
    };
    assert_eq!(&echo[24..], b"hello");
    listener.stop(Signal::TERM);
}

/// Where no descriptor is free, the control socket waits and asks again, and does not spin.
#[test]
fn a_control_socket_without_descriptors_is_served_when_there_are_some() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("s");
    let listener = Listener::start(&["--control", control.to_str().unwrap()]);
    status(&control, &[]);
    let process = listener.child.id();
    let thread = std::fs::read_dir(format!("/proc/{process}/task"))
        .unwrap()
        .map(|thread| thread.unwrap().path())
        .find(|thread| std::fs::read_to_string(thread.join("comm")).unwrap() == "control\n")
        .unwrap();
    let pid = Pid::from_child(&listener.child);
    let limit = |current| {
        let limit = getrlimit(Resource::Nofile);
        prlimit(Some(pid), Resource::Nofile, Rlimit { current, ..limit }).unwrap()
    };
    // Those that it begins with; poll takes no more either.
    let before = limit(Some(3));
    let before_waits = waits(&thread);
    let mut command = program("status");
    command.arg("--control").arg(&control).arg("--json");
    let mut asker = command.stdout(Stdio::piped()).spawn().unwrap();
    // It has slept a few times over it, and nobody has an answer.
    assert!(settled(|| waits(&thread) >= before_waits + 4));
    assert!(asker.try_wait().unwrap().is_none());
    limit(before.current);
    assert!(asker.wait().unwrap().success());
    listener.stop(Signal::TERM);
}

/// What answers is no end of SMB Direct: `ping` says so.
#[test]
fn a_peer_that_breaks_the_protocol_has_status_4() {
    let reply = b"MPA ID Rep Frame\x10\x02\x00\x04\x00\x20\x00\x01";
    let negotiated = {
        // Versions, credits asked for and granted, no status, sizes; a field that cannot be.
        let mut message = vec![0, 1, 0, 1, 0, 1, 0, 0, 10, 0, 10, 0, 0, 0, 0, 0];
        for size in [1_u32 << 20, 1364, 1364, 100] {
            message.extend_from_slice(&size.to_le_bytes());
        }
        message
    };
    for (answer, message, word) in [
        (
            &b"SSH-2.0-OpenSSH_9.2 and more than twenty bytes\r\n"[..],
            None,
            "127.0.0.1",
        ),
        (
            &reply[..],
            Some(negotiated),
            "MaxFragmentedSize is 100, less than 131072",
        ),
        (
            &reply[..],
            Some(vec![1, 2, 3]),
            "Negotiate Response of 3 bytes, less than 32",
        ),
    ] {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let peer = thread::spawn(move || {
            let (mut stream, _) = socket.accept().unwrap();
            let mut request = [0; 32];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(answer).unwrap();
            if let Some(message) = message {
                // The request for negotiation: 18 + 20 bytes, their length, and the checksum.
                stream.read_exact(&mut [0; 44]).unwrap();
                let len = u16::try_from(18 + message.len()).unwrap();
                let mut frame = len.to_be_bytes().to_vec();
                frame.extend_from_slice(&[
                    0x41, 0x43, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0,
                ]);
                frame.extend_from_slice(&message);
                frame.resize(frame.len().next_multiple_of(4) + 4, 0);
                stream.write_all(&frame).unwrap();
            }
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let output = program("ping").arg(&address).output().unwrap();
        fails(&output, 4, word);
        peer.join().unwrap();
    }
}

//! `linkspan net --capture`: the file as tshark reads it, and nobody who waits for it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;

use linkspan_testkit::census::settled;
use linkspan_testkit::net::{Card, CardOptions, frame, station};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

mod programs;

use programs::Program;

/// Two guests at ports whose frames go to `file`.
fn start(folder: &TempDir, file: &Path, more: &[&str]) -> (Program, Card, Card) {
    let port = |name: &str| format!("vhost-user:{}", folder.path().join(name).display());
    let (a, b) = (port("a"), port("b"));
    let args = ["--json", "--port", &a, "--port", &b, "--capture"];
    let args = args.into_iter().chain([file.to_str().unwrap()]);
    let program = Program::start("net", args.chain(more.iter().copied()));
    let card = |name: &str| {
        let socket = folder.path().join(name);
        assert!(settled(|| socket.exists()), "it does not listen");
        Card::bring_up(&socket, &CardOptions::default()).unwrap()
    };
    (program, card("a"), card("b"))
}

/// `rounds` frames each way.
#[track_caller]
fn talk(a: &mut Card, b: &mut Card, rounds: u32) {
    for round in 0..rounds {
        let [mark, ..] = round.to_le_bytes();
        let sent = frame(station(1), station(2), mark, 400);
        a.send(0, &sent);
        assert_eq!(b.expect().1, sent);
        let sent = frame(station(2), station(1), mark, 400);
        b.send(0, &sent);
        assert_eq!(a.expect().1, sent);
    }
}

fn counts(lines: &[Value]) -> Vec<&Value> {
    let counts = lines.iter().filter(|line| line["event"] == "counts");
    counts.collect()
}

/// The fields of each packet, in the order of the file; `None` without tshark.
fn tshark(test: &str, file: &Path, fields: &[&str]) -> Option<Vec<Vec<String>>> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file).args(["-n", "-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let Ok(output) = command.output() else {
        // Where the summary of `cargo xtask test` looks; `eprintln` would be captured.
        drop(writeln!(
            std::io::stderr().lock(),
            "SKIP {test}: tshark is not installed"
        ));
        return None;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    let fields = |line: &str| line.split('\t').map(str::to_owned).collect();
    Some(text.lines().map(fields).collect())
}

#[test]
fn tshark_reads_what_went_through_each_port() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("capture.pcapng");
    let (program, mut a, mut b) = start(&folder, &file, &[]);
    talk(&mut a, &mut b, 10);
    program.signal(Signal::TERM);
    let (status, lines, errors) = program.end();
    assert_eq!(status, Some(0), "{errors}");
    for counts in counts(&lines) {
        assert_eq!(
            (&counts["captured"], &counts["not_captured"]),
            (&20.into(), &0.into())
        );
    }
    let fields = [
        "frame.interface_name",
        "frame.packet_flags_direction",
        "frame.len",
        "frame.cap_len",
        "eth.src",
        "data.data",
    ];
    let test = "tshark_reads_what_went_through_each_port";
    let Some(packets) = tshark(test, &file, &fields) else {
        return;
    };
    assert_eq!(packets.len(), 40);
    let [at_a, at_b] = ["a", "b"].map(|name| {
        let end = format!("/{name}");
        let here = packets.iter().filter(|packet| packet[0].ends_with(&end));
        here.collect::<Vec<_>>()
    });
    assert_eq!((at_a.len(), at_b.len()), (20, 20));
    for (round, packets) in at_a.chunks(2).enumerate() {
        let mark = u8::try_from(round).unwrap();
        for (packet, (way, from)) in packets.iter().zip([(1, 1), (2, 2)]) {
            let sent = frame(station(from), station(3 - from), mark, 400);
            let hex: String = sent[14..]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            assert_eq!(
                u8::from_str_radix(packet[1].trim_start_matches("0x"), 16),
                Ok(way)
            );
            assert_eq!((&*packet[2], &*packet[3]), ("414", "414"));
            assert_eq!(packet[4], station(from).to_string());
            assert_eq!(packet[5], hex);
        }
    }
}

#[test]
fn a_snap_length_cuts_frames_and_says_how_long_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("capture.pcapng");
    // Within the first bytes of a frame, and behind them.
    for length in ["60", "200"] {
        let (program, mut a, mut b) = start(&folder, &file, &["--snap-length", length]);
        talk(&mut a, &mut b, 2);
        program.signal(Signal::TERM);
        assert_eq!(program.end().0, Some(0));
        let test = "a_snap_length_cuts_frames_and_says_how_long_they_were";
        let Some(packets) = tshark(test, &file, &["frame.len", "frame.cap_len"]) else {
            return;
        };
        assert_eq!(packets, vec![["414".to_owned(), length.to_owned()]; 8]);
    }
}

/// Who opens a pipe and does not read it loses frames of the capture, and no guest
/// does. It is said at the end.
#[test]
fn a_capture_that_nobody_reads_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || {
            let mut file = File::open(pipe).unwrap();
            file.read_exact(&mut [0; 4]).unwrap();
            file
        }
    });
    let (program, mut a, mut b) = start(&folder, &pipe, &[]);
    let file = reader.join().unwrap();
    talk(&mut a, &mut b, 1500);
    program.signal(Signal::TERM);
    let (status, lines, errors) = program.end();
    drop(file);
    assert_eq!(status, Some(1), "{errors}");
    assert!(errors.contains("the capture is not complete"), "{errors}");
    for counts in counts(&lines) {
        assert_eq!(counts["frames_in"], 1500);
        assert!(counts["not_captured"].as_u64().unwrap() > 0, "{counts}");
    }
}

#[test]
fn a_file_that_cannot_be_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let port = format!("vhost-user:{}", folder.path().join("a").display());
    let file = folder.path().join("none").join("file");
    let args = ["--port", &port, "--capture", file.to_str().unwrap()];
    let (status, _, errors) = Program::start("net", args).end();
    assert_eq!(status, Some(1));
    assert!(errors.contains("cannot capture to"), "{errors}");
    // Without a file there is nothing to cut.
    let (status, ..) = Program::start("net", ["--port", &port, "--snap-length", "60"]).end();
    assert_eq!(status, Some(2));
}

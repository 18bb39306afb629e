//! `linkspan inspect` and `linkspan top` as programs, and what a supervisor does with links
//! that do not answer.

use std::path::Path;
use std::process::Command;

use linkspan_testkit::Driven;
use rustix::process::{Signal, kill_process};
use serde_json::Value;

mod host;
mod programs;

use host::Host;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

const PLANE: &str = "[plane]\ncontrol = \"control.sock\"\n\
    [link.a]\ncommand = \"blk\"\nsocket-path = \"a.sock\"\nimage = \"mem:1M\"\nqueues = 2\n\
    watchdog-seconds = 0\n\
    [link.lan]\ncommand = \"net\"\nport = [\"vhost-user:lan.sock\", \"responder\"]\n\
    [link.screen]\ncommand = \"gpu\"\nsocket-path = \"screen.sock\"\n\
    [link.later]\ncommand = \"gpu\"\nsocket-path = \"later.sock\"\nstart = false\n";

fn host(plane: &str) -> Host {
    Host::start(tempfile::tempdir().unwrap(), plane, &[])
}

fn driven(socket: &Path) -> Driven {
    Driven::new(socket, 2).unwrap()
}

#[test]
fn one_tree_shows_what_was_agreed_upon_and_done() {
    let host = host(PLANE);
    for (link, endpoint) in [("a", "disk"), ("lan", "responder"), ("screen", "screen")] {
        host.becomes(&format!("{link}/{endpoint}"), Value::is_object);
    }
    let disk = host.seen("a/disk");
    assert_eq!(disk["phase"], "idle", "{disk:#}");
    assert_eq!(host.seen("later/state"), "stopped");
    assert_eq!(host.seen("later/answers"), false);
    let driven = driven(&host.at("a.sock"));
    let disk = host.becomes("a/disk", |disk| disk["phase"] == "running");
    assert_eq!(disk["generation"], 1);
    for name in ["VERSION_1", "MQ"] {
        let features = disk["features"].as_array().unwrap();
        assert!(features.iter().any(|it| it == name), "{disk:#}");
    }
    let protocol = disk["protocol_features"].as_array().unwrap();
    assert!(protocol.iter().any(|it| it == "CONFIG"), "{disk:#}");
    assert!(disk["memory"][0]["bytes"].as_u64() > Some(0), "{disk:#}");
    assert_eq!(disk["rings"].as_array().unwrap().len(), 2);
    assert_eq!(disk["last_error"], Value::Null);
    // One read through each kind of count.
    let reads = host.seen("a/disk/requests/reads").as_u64().unwrap();
    let mut bench = Command::new(PROGRAM);
    drop(driven);
    host.becomes("a/disk/phase", |phase| phase == "reconnecting");
    bench
        .args(["driver", "blk", "--socket-path"])
        .arg(host.at("a.sock"));
    let bench = bench.args(["bench", "--seconds", "0.1"]).output().unwrap();
    assert!(bench.status.success(), "{bench:?}");
    host.becomes("a/disk/requests/reads", |now| now.as_u64() > Some(reads));
    host.becomes("a/disk/generation", |now| now.as_u64() > Some(1));
    let text = host.run(&["inspect", "a"]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains("state: running") && text.contains("disk\n"),
        "{text}"
    );
    let unknown = host.run(&["inspect", "nobody"]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    let metrics = String::from_utf8(host.run(&["inspect", "--metrics"]).stdout).unwrap();
    for line in [
        "linkspan_link_state{link=\"a\",state=\"running\"} 1",
        "linkspan_link_answers{link=\"later\"} 0",
        "linkspan_disk_reads_total{link=\"a\",endpoint=\"disk\"}",
        "linkspan_port_received_frames_total{link=\"lan\",endpoint=\"responder\"} 0",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    let top = String::from_utf8(host.run(&["top", "--rounds", "1"]).stdout).unwrap();
    assert_eq!(top.lines().count(), 5, "{top}");
    host.end();
}

/// Messages are shown in the words of the specification, each once.
#[test]
fn what_goes_by_is_shown_in_words() {
    let host = host(PLANE);
    host.becomes("a/disk", Value::is_object);
    let driven = driven(&host.at("a.sock"));
    host.becomes("a/disk/phase", |phase| phase == "running");
    let said = host.run(&["trace", "a", "--once"]);
    let text = String::from_utf8(said.stdout).unwrap();
    for line in [
        "disk > VHOST_USER_GET_FEATURES\n",
        "disk < VHOST_USER_GET_FEATURES reply: 0x",
        "disk > VHOST_USER_SET_VRING_NUM: ring 1, ",
        "disk > VHOST_USER_SET_VRING_KICK: ring 0, ",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let lines = host.run(&["trace", "a", "--once", "--json"]).stdout;
    let lines = String::from_utf8(lines).unwrap();
    let numbers = lines.lines().map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        line["number"].as_u64().unwrap()
    });
    assert!(numbers.eq(1..=lines.lines().count() as u64), "{lines}");
    drop(driven);
    let unknown = host.run(&["trace", "nobody", "--once"]);
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    let later = host.run(&["trace", "later", "--once"]);
    assert_eq!(later.status.code(), Some(3), "{later:?}");
    host.end();
}

/// A peer that breaks the protocol is told of until the next fault.
#[test]
fn the_last_fault_is_kept() {
    use std::io::{Read as _, Write as _};

    let host = host(PLANE);
    host.becomes("a/disk", Value::is_object);
    let mut peer = std::os::unix::net::UnixStream::connect(host.at("a.sock")).unwrap();
    peer.write_all(&[0xff; 64]).unwrap();
    let mut rest = Vec::new();
    let _ = peer.read_to_end(&mut rest);
    host.becomes("a/disk/last_error", Value::is_string);
    assert_eq!(host.seen("a/state"), "running");
    host.end();
}

/// A process that hangs holds up nobody who looks at the others.
#[test]
fn a_link_that_does_not_answer_is_shown_without_what_it_has() {
    let host = host(PLANE);
    let process = host.process("a");
    host.becomes("a/answers", |answers| answers == true);
    kill_process(process, Signal::STOP).unwrap();
    host.becomes("a/answers", |answers| answers == false);
    assert_eq!(host.seen("lan/answers"), true);
    assert_eq!(host.seen("a/state"), "running");
    let top = String::from_utf8(host.run(&["top", "--rounds", "1"]).stdout).unwrap();
    assert!(top.contains("silent"), "{top}");
    // Without a watchdog it goes on as soon as it can.
    kill_process(process, Signal::CONT).unwrap();
    host.becomes("a/answers", |answers| answers == true);
    assert_eq!(host.seen("a/starts"), 1);
    host.end();
}

#[test]
fn a_watchdog_ends_a_link_that_hangs() {
    let host = host(&PLANE.replace("watchdog-seconds = 0", "watchdog-seconds = 1"));
    // On a machine with much to do it may have been too slow already.
    let process = loop {
        let process = host.process("a");
        if kill_process(process, Signal::STOP).is_ok() {
            break process;
        }
    };
    host.becomes("a/starts", |starts| starts.as_u64() >= Some(2));
    assert_eq!(host.seen("a/last_end"), "signal 9 ended it");
    assert_ne!(host.process("a"), process);
    host.end();
}

#[test]
fn a_listener_of_smb_direct_shows_its_credits() {
    let host = host(
        "[plane]\ncontrol = \"control.sock\"\n\
         [link.smbd]\ncommand = \"smbdirect listen\"\naddr = \"127.0.0.1:0\"\n",
    );
    let seen = host.becomes("smbd/smbdirect", Value::is_object);
    assert_eq!(seen["peers"], 0, "{seen:#}");
    assert_eq!(seen["credits"]["receives_granted"], 0, "{seen:#}");
    host.end();
}

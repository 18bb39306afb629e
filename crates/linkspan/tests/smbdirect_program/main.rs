//! `linkspan smbdirect`, each end a process of its own.

mod hostile;
mod idle;
mod race;
mod rig;

use std::path::Path;
use std::process::Stdio;

use linkspan_testkit::census::settled;
use linkspan_testkit::tshark;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use rig::{Listener, answer, fails, program, status};

#[test]
fn ping_says_what_was_negotiated_and_how_long_a_round_trip_takes() {
    let mut listener = Listener::start(&[]);
    for (size, crc) in [("1", false), ("64", true), ("100000", false)] {
        let mut args = vec!["--count", "7", "--size", size];
        args.extend(crc.then_some("--crc"));
        let report = listener.run("ping", &args);
        assert_eq!(report["peer"], "linkspan, echo");
        assert_eq!(
            (&report["kind"], &report["round_trips"]),
            (&json!("echo"), &json!(7))
        );
        assert!(report["rtt_us"]["min"].as_f64() <= report["rtt_us"]["max"].as_f64());
        let negotiated = &report["negotiated"];
        assert_eq!(negotiated["max_send_size"], 1364);
        assert_eq!(negotiated["max_fragmented_send_size"], 173_910);
        assert_eq!(negotiated["state"], "connected");
        let ended = listener.event("ended");
        assert_eq!(
            (&ended["messages"], &ended["reason"]),
            (&json!(7), &json!("the peer disconnected"))
        );
    }
    // And to people.
    let output = listener
        .command("ping", &["--count", "3"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    for word in [
        "linkspan, echo",
        "negotiated in",
        "credits: 254 granted of 255",
        "3 round trips",
    ] {
        assert!(said.contains(word), "no {word:?} in: {said}");
    }
    listener.stop(Signal::TERM);
}

#[test]
fn a_sink_counts_and_gives_signs_of_life() {
    let mut listener = Listener::start(&["--sink"]);
    let report = listener.run("ping", &["--count", "5"]);
    assert_eq!(
        (&report["peer"], &report["kind"]),
        (&json!("linkspan, sink"), &json!("keep-alive"))
    );
    assert_eq!(report["round_trips"], 5);
    listener.event("ended");
    let report = listener.run("bench", &["--messages", "1000", "--size", "5000"]);
    assert_eq!(
        (&report["messages"], &report["verified"]),
        (&json!(1000), &json!(true))
    );
    let ended = listener.event("ended");
    assert_eq!(
        (&ended["messages"], &ended["bytes"]),
        (&json!(1000), &json!(5_000_000))
    );
    listener.stop(Signal::INT);
}

#[test]
fn every_mode_of_bench_moves_what_it_says() {
    for listens in ["--echo", "--sink"] {
        let listener = Listener::start(&[listens]);
        for (args, size, messages) in [
            (&["--mode", "send", "--messages", "500"][..], 1340, 1500),
            (&["--mode", "write", "--messages", "9"], 1 << 20, 27),
            (&["--mode", "read", "--messages", "9", "--crc"], 1 << 20, 27),
            (
                &[
                    "--mode",
                    "write",
                    "--messages",
                    "40",
                    "--size",
                    "5000",
                    "--fpdu",
                    "1448",
                ],
                5000,
                120,
            ),
            (
                &[
                    "--mode",
                    "read",
                    "--messages",
                    "3",
                    "--size",
                    "3M",
                    "--ord",
                    "8",
                ],
                3 << 20,
                9,
            ),
        ] {
            let args = [args, &["--connections", "3"]].concat();
            let report = listener.run("bench", &args);
            assert_eq!(report["verified"], true, "{args:?}");
            assert_eq!(
                (&report["size"], &report["messages"]),
                (&json!(size), &json!(messages))
            );
            for figure in [
                "bytes_per_second",
                "cpu_ns_per_byte",
                "system_calls_per_mib",
            ] {
                assert!(report[figure].as_f64().unwrap() > 0.0, "{figure} {args:?}");
            }
        }
        listener.stop(Signal::TERM);
    }
}

/// Fault 28 (8d4312f8e): a benchmark of files had its connections reset, over frames as large as
/// segments: writes and reads of all sizes, one after the other and several at a time.
#[test]
fn a_load_of_all_sizes_resets_no_connection() {
    let listener = Listener::start(&["--ord", "8", "--fpdu", "1448", "--crc"]);
    for mode in ["write", "read", "auto"] {
        for size in ["1000", "4K", "64K", "1M", "8M"] {
            let args = ["--mode", mode, "--size", size, "--connections", "4"];
            let more = ["--messages", "6", "--depth", "4", "--fpdu", "1448"];
            let report = listener.run("bench", &[&args[..], &more].concat());
            assert_eq!(report["verified"], true, "{mode} {size}");
            // Below the threshold messages are enough.
            let kind = match mode {
                "auto" if size == "1000" => "send",
                "auto" => "write",
                mode => mode,
            };
            assert_eq!(report["mode"], kind, "{mode} {size}");
        }
    }
    let args = ["--mode", "auto", "--size", "4K", "--rdma-threshold", "4097"];
    let report = listener.run("bench", &[&args[..], &["--messages", "3"]].concat());
    assert_eq!(report["mode"], "send");
    listener.stop(Signal::TERM);
}

#[test]
fn memory_for_peers_has_a_budget() {
    let listener = Listener::start(&["--memory", "1M"]);
    let output = listener
        .command(
            "bench",
            &["--mode", "write", "--size", "2M", "--messages", "1"],
        )
        .output();
    fails(&output.unwrap(), 1, "has no memory for 2097152 bytes");
    listener.run(
        "bench",
        &["--mode", "write", "--size", "1M", "--messages", "1"],
    );
    listener.run(
        "bench",
        &["--mode", "write", "--size", "1M", "--messages", "1"],
    );
    listener.stop(Signal::TERM);
}

#[test]
fn parameters_hold_at_both_ends_and_wrong_ones_are_refused() {
    let listener = Listener::start(&["--credits", "5", "--max-receive-size", "4096", "--ird", "3"]);
    let report = listener.run(
        "ping",
        &[
            "--max-send-size",
            "8K",
            "--credits",
            "2",
            "--ord",
            "16",
            "--size",
            "20000",
        ],
    );
    let negotiated = &report["negotiated"];
    assert_eq!(
        (&negotiated["max_send_size"], &negotiated["outbound_reads"]),
        (&json!(4096), &json!(16))
    );
    assert_eq!(negotiated["receive_credit_target"], 5);
    listener.stop(Signal::TERM);
    for (verb, args, word) in [
        ("listen", &["--credits", "0"][..], "1..=4096"),
        (
            "listen",
            &["--max-receive-size", "127"],
            "128 to 65536 bytes are possible",
        ),
        ("listen", &["--addr", "nowhere"], "an address such as"),
        ("listen", &["--echo", "--sink"], "cannot be used with"),
        ("listen", &["--log", "everything"], "is no class"),
        ("ping", &["host", "--fpdu", "100"], "max, or 128 to 65535"),
        ("ping", &["host", "--rdma-threshold", "0"], "are possible"),
        (
            "ping",
            &["host", "--keepalive-wait-ms", "99"],
            "100 to 600000 ms are possible",
        ),
        ("bench", &["host", "--mode", "fast"], "invalid value 'fast'"),
        ("bench", &["--seconds", "0"], "how long"),
        (
            "bench",
            &["--mode", "write", "--size", "9M"],
            "1 to 8388608 bytes are possible",
        ),
    ] {
        fails(&program(verb).args(args).output().unwrap(), 2, word);
    }
}

#[test]
fn a_message_longer_than_the_peer_takes_is_refused() {
    let listener = Listener::start(&[]);
    let output = listener
        .command("ping", &["--size", "173911"])
        .output()
        .unwrap();
    fails(&output, 2, "messages have 1 to 173910 bytes here");
}

#[test]
fn nobody_there_has_status_3() {
    let listener = Listener::start(&[]);
    let address = listener.address.to_string();
    listener.stop(Signal::TERM);
    for verb in ["ping", "bench"] {
        let output = program(verb).arg(&address).output().unwrap();
        fails(&output, 3, &address);
    }
    let missing = program("status")
        .args(["--control", "/nowhere/at/all"])
        .output()
        .unwrap();
    fails(&missing, 3, "/nowhere/at/all");
    // Taken already.
    let listener = Listener::start(&[]);
    let address = listener.address.to_string();
    let output = program("listen")
        .args(["--addr", &address])
        .output()
        .unwrap();
    fails(&output, 1, "cannot listen at");
}

#[test]
fn status_shows_connections_and_switches_logs() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("s");
    let mut listener = Listener::start(&["--control", control.to_str().unwrap()]);
    let mut script = rig::Script::negotiated(listener.raw());
    listener.event("connected");
    // The begin of a message of 2000 bytes.
    script.send(&rig::data(0, 1000, &[7; 1000]));
    let found = || {
        let (_, connections, _) = status(&control, &[]);
        connections.first().cloned().unwrap_or_default()
    };
    assert!(settled(|| found()["reassembly"]["missing_bytes"] == 1000));
    let connection = found();
    assert_eq!(
        (&connection["state"], &connection["role"]),
        (&json!("connected"), &json!("listener"))
    );
    assert_eq!(
        connection["reassembly"],
        json!({
            "messages": 1, "bytes": 1000, "kept_bytes": 0, "missing_bytes": 1000, "held_buffers": 1
        })
    );
    assert_eq!(
        (
            &connection["send_credits"],
            &connection["receive_credit_target"]
        ),
        (&json!(10), &json!(10))
    );
    assert_eq!(
        (&connection["max_send_size"], &connection["first_error"]),
        (&json!(1364), &json!(null))
    );
    assert_eq!(connection["registrations"]["ready"], 64);
    // Something that cannot be: the rest is shorter than what was said.
    script.send(&rig::data(0, 0, &[7; 10]));
    script.rest();
    assert_eq!(
        listener.event("ended")["reason"],
        "a segment says 10 + 0 bytes, where 1000 are missing"
    );
    let (summary, connections, ended) = status(&control, &["--log", "send,keep-alive"]);
    assert_eq!(
        (&summary["mode"], &summary["log"]),
        (&json!("echo"), &json!(["send", "keep-alive"]))
    );
    assert_eq!((connections.len(), ended.len()), (0, 1));
    assert_eq!(
        ended[0]["first_error"],
        "a segment says 10 + 0 bytes, where 1000 are missing"
    );
    let (summary, ..) = status(&control, &["--log", "none"]);
    assert_eq!(summary["log"], json!([]));
    let wrong = program("status")
        .arg("--control")
        .arg(&control)
        .args(["--log", "x"])
        .output();
    fails(&wrong.unwrap(), 2, "is no class");
    listener.stop(Signal::TERM);
    assert!(!control.exists());
}

/// Who connects is seen as well as who is connected to.
#[test]
fn status_shows_the_connections_of_ping_and_of_bench() {
    let listener = Listener::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    for (verb, args, count) in [
        ("bench", &["--seconds", "600", "--connections", "3"][..], 3),
        ("ping", &["--count", "100000000"], 1),
    ] {
        let control = folder.path().join(verb);
        let mut command = listener.command(verb, args);
        command.arg("--control").arg(&control);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        // It is there before it is listened at.
        let answers = || {
            let mut command = program("status");
            let output = command.arg("--control").arg(&control).output();
            output.unwrap().status.success()
        };
        assert!(settled(answers), "{verb}");
        let runs = || {
            let (_, all, _) = status(&control, &[]);
            let talks = |one: &serde_json::Value| one["receives"].as_u64() > Some(100);
            all.len() == count && all.iter().all(talks)
        };
        assert!(settled(runs), "{verb}");
        let (summary, connections, ended) = status(&control, &["--log", "credit"]);
        assert_eq!(
            (&summary["kind"], &summary["connections"], &summary["log"]),
            (&json!("initiator"), &json!(count), &json!(["credit"]))
        );
        assert!(ended.is_empty());
        for connection in connections {
            assert_eq!(connection["role"], "initiator");
            assert_eq!(connection["state"], "connected");
            assert_eq!(connection["peer"], listener.address.to_string());
            assert_eq!(connection["max_send_size"], 1364);
            assert_eq!(connection["first_error"], json!(null));
        }
        // And to people.
        let mut command = program("status");
        let output = command.arg("--control").arg(&control).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        for word in [
            "connections; ",
            "logs ",
            "sizes: send 1364",
            "first error: -",
        ] {
            assert!(said.contains(word), "no {word:?} in: {said}");
        }
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        child.wait().unwrap();
    }
    listener.stop(Signal::INT);
}

#[test]
fn classes_are_logged_when_they_are_switched_on() {
    let mut command = program("listen");
    command.args(["--addr", "127.0.0.1:0", "--json", "--log", "all", "--sink"]);
    command.env("LINKSPAN_LOG", "info").stderr(Stdio::piped());
    let mut listener = Listener::of(command);
    let mut log = listener.child.stderr.take().unwrap();
    listener.run("bench", &["--mode", "write", "--messages", "2"]);
    listener.run("ping", &["--count", "1"]);
    listener.event("ended");
    listener.stop(Signal::TERM);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut log, &mut said).unwrap();
    for class in [
        "event: connected",
        "send: 1 messages",
        "receive: ",
        "credit: ",
        "memory: ",
    ] {
        assert!(said.contains(class), "no {class:?} in {said}");
    }
}

#[test]
fn a_capture_shows_wireshark_everything() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["listener.pcap", "initiator.pcap"].map(|name| folder.path().join(name));
    let [of_listener, of_initiator] = files.each_ref().map(|file| file.to_str().unwrap());
    let listener = Listener::start(&["--pcap", of_listener]);
    let args = [
        "--crc",
        "--pcap",
        of_initiator,
        "--connections",
        "1",
        "--messages",
        "3",
    ];
    for mode in ["write", "read", "send"] {
        listener.run(
            "bench",
            &[&args[..], &["--mode", mode, "--size", "10000"]].concat(),
        );
    }
    listener.run("ping", &["--crc", "--count", "2"]);
    listener.stop(Signal::TERM);
    for file in [of_listener, of_initiator] {
        let Some(good) = tshark::good_checksums(Path::new(file)) else {
            return;
        };
        let text = tshark::read(Path::new(file), &["-V"]).unwrap();
        let count = |what: &str| text.matches(what).count();
        assert!(good > 10 && count("NegotiateResponse") > 0);
        assert!(count("DataMessage") > 5, "{}", count("DataMessage"));
    }
}

#[test]
fn either_end_may_be_killed() {
    let mut listener = Listener::start(&[]);
    let forever = ["--messages", "1000000000"];
    for mode in ["send", "write", "read"] {
        let mut bench = listener.command("bench", &[&forever[..], &["--mode", mode]].concat());
        let mut bench = bench.stdout(Stdio::null()).spawn().unwrap();
        listener.event("connected");
        kill_process(Pid::from_child(&bench), Signal::KILL).unwrap();
        bench.wait().unwrap();
        listener.event("ended");
    }
    // All is as before.
    assert_eq!(listener.run("ping", &["--count", "1"])["round_trips"], 1);
    let mut bench = listener.command("bench", &forever);
    let bench = bench.stderr(Stdio::piped()).spawn().unwrap();
    listener.event("connected");
    listener.event("connected");
    listener.signal(Signal::KILL);
    fails(&bench.wait_with_output().unwrap(), 3, "127.0.0.1:");
}

#[test]
fn a_signal_ends_either_end_in_order() {
    let mut listener = Listener::start(&[]);
    let mut ping = listener.command("ping", &["--count", "100000000", "--json"]);
    let ping = ping.stdout(Stdio::piped()).spawn().unwrap();
    listener.event("connected");
    kill_process(Pid::from_child(&ping), Signal::INT).unwrap();
    // What was measured until then, unless it had not begun.
    let output = ping.wait_with_output().unwrap();
    if output.status.success() {
        assert_eq!(answer(&output)["kind"], "echo");
    }
    assert_eq!(listener.event("ended")["reason"], "the peer disconnected");
    let mut bench = listener.command("bench", &["--messages", "1000000000"]);
    let bench = bench.stderr(Stdio::piped()).spawn().unwrap();
    listener.event("connected");
    listener.stop(Signal::TERM);
    fails(
        &bench.wait_with_output().unwrap(),
        3,
        "the peer disconnected",
    );
}

//! `linkspan driver net` on `linkspan net`: the control queue between them, over the
//! death of either process.

use std::path::Path;

use linkspan_testkit::census::settled;
use rustix::process::Signal;
use serde_json::Value;

mod programs;

use programs::Program;

#[track_caller]
fn serve(socket: &Path, options: &str) -> Program {
    let port = format!("vhost-user:{},{options}", socket.display());
    let program = Program::start("net", ["--json", "--mode", "echo", "--port", &port]);
    assert!(settled(|| socket.exists()), "it does not listen");
    program
}

fn driver(socket: &Path, args: &[&str]) -> Program {
    let place = ["net", "--connect-limit", "30", "--socket-path"];
    let place = place.into_iter().chain([socket.to_str().unwrap()]);
    Program::start("driver", place.chain(args.iter().copied()))
}

/// What the program counted at its one port.
#[track_caller]
fn counts(program: Program) -> Value {
    program.signal(Signal::TERM);
    let (status, lines, errors) = program.end();
    assert_eq!(status, Some(0), "{errors}");
    // The last of them.
    let counts = lines.into_iter().rfind(|line| line["event"] == "counts");
    counts.expect("it says what it counted")
}

const BENCH: [&str; 6] = ["bench", "--mode", "loop", "--json", "--window", "64"];

#[test]
fn as_many_pairs_as_the_device_has_or_fewer_and_not_one_more() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let program = serve(&socket, "queues=3,control-queue");
    for packed in [&[][..], &["--packed"], &["--packed", "--in-order"]] {
        for pairs in ["1", "2", "3"] {
            let args = [&BENCH[..], &["--seconds", "0.2", "--queues", pairs], packed].concat();
            let (status, lines, errors) = driver(&socket, &args).end();
            assert_eq!(status, Some(0), "{errors}");
            let figures = &lines[0];
            assert_eq!(figures["control_queue"], true);
            assert_eq!(
                (&figures["lost"], &figures["damaged"]),
                (&0.into(), &0.into())
            );
            assert!(figures["received"].as_u64().unwrap() > 0, "{figures}");
        }
    }
    let args = [&BENCH[..], &["--queues", "4"]].concat();
    let (status, _, errors) = driver(&socket, &args).end();
    assert_eq!(status, Some(4), "{errors}");
    let (_, lines, errors) = driver(&socket, &["--queues", "3", "info", "--json"]).end();
    assert_eq!(lines[0]["control_queue"], true, "{errors}");
    // Each time with several pairs one command says how many.
    let counts = counts(program);
    assert_eq!(counts["commands"], 6, "{counts}");
    let refused = counts["commands_refused"].as_object().unwrap();
    assert!(refused.values().all(|count| *count == 0), "{counts}");
}

/// Whatever the back end counts, as many pairs as it has work, and one more is refused
/// with both numbers before a ring is set up.
#[test]
fn queues_are_counted_either_way_and_not_one_more_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    for (port, switch, pairs) in [
        // Several pairs are offered, so configuration space says how many.
        ("queues=2,count=rings", &[][..], 2_u16),
        ("queues=2,count=pairs", &[], 2),
        ("queues=2,count=rings,control-queue", &[], 2),
        ("queues=2,count=rings", &["--count", "rings"], 2),
        (
            "queues=2,count=rings,control-queue",
            &["--count", "rings"],
            2,
        ),
        // Here only the answer does.
        ("queues=1,count=rings", &["--count", "rings"], 1),
        ("queues=1,count=pairs", &["--count", "pairs"], 1),
        // Two pairs, taken for two rings.
        ("queues=2,count=pairs", &["--count", "rings"], 1),
    ] {
        let what = format!("{port} {switch:?}");
        let program = serve(&socket, port);
        let [all, more] = [pairs, pairs + 1].map(|pairs| pairs.to_string());
        let info = |queues: &str| {
            let args = [switch, &["--queues", queues, "info", "--json"]].concat();
            driver(&socket, &args).end()
        };
        let (status, lines, errors) = info(&all);
        assert_eq!(status, Some(0), "{what}: {errors}");
        assert_eq!(lines[0]["queue_pairs_max"], pairs, "{what}");
        let bench = ["--seconds", "0.2", "--queues", &all];
        let args = [switch, &BENCH, &bench].concat();
        let (status, lines, errors) = driver(&socket, &args).end();
        assert_eq!(status, Some(0), "{what}: {errors}");
        assert!(lines[0]["received"].as_u64() > Some(0), "{what}");
        let args = [switch, &BENCH, &["--queues", &more]].concat();
        for (status, lines, errors) in [info(&more), driver(&socket, &args).end()] {
            assert_eq!((status, lines.len()), (Some(4), 0), "{what}: {errors}");
            for word in [
                format!("{more} queue pairs were wanted"),
                format!("has {pairs}"),
            ] {
                assert!(errors.contains(&word), "{what}: no {word:?} in {errors}");
            }
        }
        assert_eq!(counts(program)["dropped"]["header"], 0, "{what}");
    }
    let kernel = [
        "net",
        "--vdpa",
        "/dev/vhost-vdpa-0",
        "--count",
        "rings",
        "info",
    ];
    assert_eq!(Program::start("driver", kernel).end().0, Some(2));
}

#[test]
fn a_device_that_dies_under_the_traffic_is_told_again() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let mut program = serve(&socket, "queues=2,control-queue");
    let wanted = ["--mac", "02:00:00:00:00:77", "--promiscuous", "on"];
    let args = [&BENCH[..], &["--queues", "2", "--seconds", "600"], &wanted].concat();
    let bench = driver(&socket, &args);
    // It says what it has counted when it is asked: frames go round, and the device
    // was told.
    let moved = |program: &Program| {
        program.signal(Signal::HUP);
        let said = program.said();
        let last = said.lines().rev().find(|line| line.contains("counts"));
        let counts = last.and_then(|line| serde_json::from_str::<Value>(line).ok());
        counts.is_some_and(|counts| {
            counts["commands"] == 3 && counts["frames_out"].as_u64() > Some(1000)
        })
    };
    for _ in 0..2 {
        assert!(
            (0..6).any(|_| settled(|| moved(&program))),
            "{}",
            program.said()
        );
        program.signal(Signal::KILL);
        drop(program.end());
        // One that was killed leaves its socket.
        std::fs::remove_file(&socket).unwrap();
        program = serve(&socket, "queues=2,control-queue");
    }
    assert!(
        (0..6).any(|_| settled(|| moved(&program))),
        "{}",
        program.said()
    );
    bench.signal(Signal::TERM);
    let (status, lines, errors) = bench.end();
    assert_eq!(status, Some(0), "{errors}");
    assert_eq!(lines[0]["reconnects"], 2, "{errors}");
    assert_eq!(lines[0]["damaged"], 0);
    let counts = counts(program);
    assert_eq!(counts["commands"], 3, "{counts}");
}

#[test]
fn what_needs_a_control_queue_is_refused_without_one() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let program = serve(&socket, "queues=2");
    let short = ["--seconds", "0.2", "--queues", "2"];
    let args = [&BENCH[..], &short].concat();
    let (status, lines, errors) = driver(&socket, &args).end();
    assert_eq!(status, Some(0), "{errors}");
    assert_eq!(lines[0]["control_queue"], false);
    let args = [&BENCH[..], &["--promiscuous", "off"]].concat();
    let (status, _, errors) = driver(&socket, &args).end();
    assert_eq!(status, Some(4), "{errors}");
    assert!(errors.contains("no control queue"), "{errors}");
    for wrong in [
        &["--mac", "01:00:00:00:00:01"][..],
        &["--promiscuous", "maybe"],
        &["--promiscuous", "on", "--no-control-queue"],
    ] {
        let args = [&BENCH[..], wrong].concat();
        assert_eq!(driver(&socket, &args).end().0, Some(2));
    }
    assert_eq!(counts(program)["commands"], 0);
}

#[test]
fn a_link_whose_other_end_is_missing_is_shown_as_down() {
    let folder = tempfile::tempdir().unwrap();
    let sockets = ["a", "b"].map(|name| folder.path().join(name));
    let ports = sockets
        .each_ref()
        .map(|socket| format!("vhost-user:{}", socket.display()));
    let args = [
        "--json", "--mode", "pair", "--port", &ports[0], "--port", &ports[1],
    ];
    let program = Program::start("net", args);
    assert!(settled(|| sockets.iter().all(|socket| socket.exists())));
    let link = || {
        let (status, lines, errors) = driver(&sockets[0], &["info", "--json"]).end();
        assert_eq!(status, Some(0), "{errors}");
        lines[0]["link_up"].as_bool().unwrap()
    };
    assert!(!link(), "nobody is there");
    let bench = driver(
        &sockets[1],
        &["bench", "--json", "--mode", "tx", "--seconds", "600"],
    );
    assert!((0..6).any(|_| settled(link)), "somebody is");
    bench.signal(Signal::TERM);
    assert_eq!(bench.end().0, Some(0));
    assert!(settled(|| !link()), "somebody was");
    program.signal(Signal::TERM);
    assert_eq!(program.end().0, Some(0));
}

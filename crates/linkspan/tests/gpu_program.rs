//! `linkspan gpu` and `linkspan display` as programs, without a guest.

use std::path::Path;
use std::process::{Command, Output};

use linkspan_testkit::census::settled;
use rustix::process::Signal;

mod programs;

use programs::Program;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

fn run(arguments: &[&str]) -> Output {
    let output = Command::new(PROGRAM).args(arguments).output();
    output.expect("the program runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn each_kind_of_failure_has_its_status() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("s");
    let nowhere = nowhere.to_str().unwrap();
    let picture = folder.path().join("p.png");
    let picture = picture.to_str().unwrap();
    let cases: &[(&[&str], i32, &str)] = &[
        (
            &["display", "shot", nowhere, "-o", picture],
            3,
            "no screen at",
        ),
        (
            &["display", "vnc", nowhere, "--listen", "127.0.0.1:0"],
            3,
            "no screen at",
        ),
        (
            &["display", "vnc", nowhere, "--listen", "0.0.0.0:0"],
            2,
            "no password",
        ),
        (
            &["display", "vnc", nowhere, "--listen", "[::]:0"],
            2,
            "no password",
        ),
        (&["gpu"], 2, "--socket-path"),
        (
            &["gpu", "--socket-path", nowhere, "--mode", "1x1"],
            2,
            "1x1",
        ),
        (
            &["gpu", "--socket-path", nowhere, "--mode", "wide"],
            2,
            "1280x800",
        ),
        (&["gpu", "--socket-path", nowhere, "--heads", "17"], 2, "17"),
    ];
    for (arguments, status, part) in cases {
        let output = run(arguments);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(*status), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
    assert!(!Path::new(picture).exists());
}

#[test]
fn capabilities_are_what_management_software_expects() {
    let output = run(&["gpu", "--print-capabilities"]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["type"], "gpu");
}

#[test]
fn a_gpu_without_a_guest_has_no_signal_and_ends_when_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (socket, screen) = (path("gpu"), path("screen"));
    let gpu = Program::start(
        "gpu",
        ["--json", "--socket-path", &socket, "--display", &screen],
    );
    assert!(settled(|| gpu.said().contains("listening")));
    let output = run(&["display", "shot", &screen, "-o", &path("p.png")]);
    let why = said(&output);
    assert_eq!(output.status.code(), Some(1), "{why}");
    assert!(
        why.contains("no signal: the guest has switched its screen off"),
        "{why}"
    );
    let vnc = ["vnc", "--json", "--listen", "127.0.0.1:0", &screen];
    let vnc = Program::start("display", vnc);
    assert!(settled(|| vnc.said().contains("listening")));
    vnc.signal(Signal::TERM);
    let (status, lines, errors) = vnc.end();
    assert_eq!((status, lines.len()), (Some(0), 1), "{errors}");
    gpu.signal(Signal::TERM);
    let (status, _, errors) = gpu.end();
    assert_eq!(status, Some(0), "{errors}");
    assert!(!Path::new(&socket).exists() && !Path::new(&screen).exists());
}

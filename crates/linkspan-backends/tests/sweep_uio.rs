//! Each step of giving a program a device is made to fail in turn.

use std::io::{self, Write as _};
use std::process::Command;

use linkspan_backends::uio::Program;
use linkspan_testkit::VmbusHost;
use linkspan_testkit::sweep::sweep;

const RING: u64 = 20480;

#[test]
fn each_step_of_giving_a_program_a_device_fails_in_turn() {
    let run = || {
        let (connect, _hosts) = VmbusHost::for_each_guest(RING);
        let mut command = Command::new("sh");
        // Opening the device may fail as well.
        command
            .args(["-c", "exec 3<>/dev/uio0"])
            .stderr(std::process::Stdio::null());
        let program = Program::start(VmbusHost::offer(RING), connect, command)?;
        let status = program.wait()?;
        if !status.success() {
            return Err(format!("the program could not open it: {status}").into());
        }
        Ok::<_, Box<dyn std::error::Error>>(())
    };
    let (connect, _hosts) = VmbusHost::for_each_guest(RING);
    if let Err(error) = Program::start(VmbusHost::offer(RING), connect, Command::new("true")) {
        let remedy = error.remedy().unwrap_or_else(|| panic!("{error:?}"));
        let mut out = io::stderr().lock();
        drop(writeln!(
            out,
            "SKIP a device for a program: {error}: {remedy}"
        ));
        return;
    }
    let report = sweep(run);
    println!("{report:?}");
    // A file and mounts, threads, a channel of the host's, and what is watched of it.
    assert!(report.points >= 20, "{report:?}");
    assert_eq!(report.absorbed(), 0, "{report:?}");
}

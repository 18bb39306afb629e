//! The program asked for devices of the kernel, on a kernel that has neither VDUSE nor
//! vDPA devices; those of one that has both are in `lab_vduse.rs` and `lab_vdpa.rs`.

use std::path::Path;
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

fn run(arguments: &[&str]) -> Output {
    let output = Command::new(PROGRAM).args(arguments).output();
    output.expect("the program runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_kernel_without_vduse_has_status_5_and_says_what_is_missing() {
    if Path::new("/dev/vduse/control").exists() {
        eprintln!("SKIP a_kernel_without_vduse_has_status_5: this kernel has VDUSE");
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().join("state");
    let state_argument = folder.to_str().unwrap();
    for arguments in [
        &["blk", "--image", "mem:1M", "--vduse", "x"][..],
        &["net", "--port", "responder", "--port", "vduse:x"],
    ] {
        let arguments = [arguments, &["--vduse-state", state_argument]].concat();
        let output = run(&arguments);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(5), "{said}");
        for part in ["/dev/vduse/control", "modprobe", "CONFIG_VDPA_USER"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!folder.exists(), "nothing stays");
    }
}

#[test]
fn a_kernel_without_vdpa_devices_has_status_5_and_says_what_is_missing() {
    if Path::new("/sys/bus/vdpa").exists() {
        eprintln!("SKIP a_kernel_without_vdpa_devices_has_status_5: this kernel has vDPA");
        return;
    }
    let (node, socket) = ("/dev/vhost-vdpa-0", "/nowhere/socket");
    for arguments in [
        &["vdpa", "list"][..],
        &["vdpa", "show", node],
        &["vdpa", "serve", node, "--socket-path", socket],
        &["driver", "blk", "--vdpa", node, "info"],
        &["driver", "net", "--vdpa", node, "info"],
    ] {
        let output = run(arguments);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(5), "{arguments:?}: {said}");
        for part in [
            "modprobe -a vhost_vdpa",
            "CONFIG_VHOST_VDPA",
            "vdpa dev add",
        ] {
            assert!(said.contains(part), "{arguments:?}: {part}: {said}");
        }
    }
}

#[test]
fn what_makes_no_sense_has_status_2() {
    for (arguments, why) in [
        (
            &[
                "blk",
                "--image",
                "mem:1M",
                "--vduse",
                "x",
                "--socket-path",
                "s",
            ][..],
            "cannot be used with",
        ),
        (&["blk", "--image", "mem:1M", "--vduse", "a/b"], "no name"),
        (
            &["blk", "--image", "mem:1M", "--vduse", "control"],
            "no name",
        ),
        (&["net", "--port", "vduse:x,queues=2"], "no option"),
    ] {
        let output = run(arguments);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(why), "{arguments:?}: {said}");
    }
}

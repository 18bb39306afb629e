//! The examples do what they say, on each other.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use linkspan_testkit::census::settled;

/// An example that was built beside this test.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap().join("examples");
    Command::new(folder.join(name))
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn front_end_without_engine_gets_bytes_from_the_entropy_device() {
    let folder = tempfile::tempdir().unwrap();
    let socket: PathBuf = folder.path().join("rng.sock");
    let entropy = example("entropy")
        .arg(&socket)
        .stderr(Stdio::null())
        .spawn();
    let _entropy = Running(entropy.unwrap());
    assert!(settled(|| socket.exists()));
    let ask = || {
        let output = example("front_end").arg(&socket).output().unwrap();
        let talk = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{talk}");
        String::from_utf8(output.stdout).unwrap()
    };
    // One front end after the other; each answer is a list of 32 bytes.
    let (one, other) = (ask(), ask());
    assert_eq!(one.split(", ").count(), 32, "{one}");
    assert_ne!(one, other);
}

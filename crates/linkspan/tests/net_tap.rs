//! Interfaces of this machine as ports of `linkspan net`: the kernel's own network on
//! both sides, in network namespaces that exist for the test only.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use linkspan_testkit::census::settled;

/// A network namespace.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        // One that is left behind is seen by whoever looks.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

impl Namespace {
    /// `None`, and a word, where it cannot be.
    fn new(name: &str) -> Option<Self> {
        let namespace = Self(format!("linkspan-{name}-{}", std::process::id()));
        let made = Command::new("ip")
            .args(["netns", "add", &namespace.0])
            .output();
        let tools = Command::new("ping").arg("-V").output();
        match made {
            Ok(made) if made.status.success() && tools.is_ok() => Some(namespace),
            Ok(made) => {
                let why = String::from_utf8_lossy(&made.stderr).into_owned();
                println!("SKIP interfaces of this machine: {why} (root and ping are needed)");
                None
            }
            Err(error) => {
                println!("SKIP interfaces of this machine: ip: {error}");
                None
            }
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    #[track_caller]
    fn run(&self, line: &str) {
        let mut words = line.split(' ');
        let output = self
            .command(words.next().unwrap())
            .args(words)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {said}{errors}");
    }
}

/// A program that runs in a namespace.
struct Program {
    child: Child,
}

impl Program {
    /// Started, and its interfaces are there.
    #[track_caller]
    fn start(namespace: &Namespace, args: &[&str], interfaces: usize) -> Self {
        let mut command = namespace.command(env!("CARGO_BIN_EXE_linkspan"));
        command.args(["net", "--json"]).args(args);
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut program = Self { child };
        let mut lines = BufReader::new(program.child.stdout.as_mut().unwrap()).lines();
        for _ in 0..interfaces {
            let line = lines.next().expect("it goes on").unwrap();
            assert!(line.contains("\"opened\""), "{line}");
        }
        program
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_host_that_is_not_there_answers_a_ping_of_this_machine() {
    let Some(here) = Namespace::new("ping") else {
        return;
    };
    let ports = [
        "--port",
        "tap:ls0,queues=2",
        "--port",
        "responder,address=10.9.0.2/24",
    ];
    let _program = Program::start(&here, &ports, 1);
    here.run("ip addr add 10.9.0.1/24 dev ls0");
    here.run("ip link set ls0 up");
    here.run("ping -c 3 -i 0.2 -W 20 10.9.0.2");
    here.run("ping -c 2 -i 0.2 -W 20 -s 1400 10.9.0.2");
}

#[test]
fn two_networks_of_the_kernel_are_joined() {
    let (Some(here), Some(there)) = (Namespace::new("here"), Namespace::new("there")) else {
        return;
    };
    let ports = ["--port", "tap:ls0,queues=2", "--port", "tap:ls1,queues=2"];
    let _program = Program::start(&here, &ports, 2);
    here.run(&format!("ip link set ls1 netns {}", there.0));
    here.run("ip addr add 10.9.0.1/24 dev ls0");
    here.run("ip link set ls0 up");
    there.run("ip addr add 10.9.0.2/24 dev ls1");
    there.run("ip link set ls1 up");
    here.run("ping -c 3 -i 0.2 -W 20 10.9.0.2");
    // In fragments.
    there.run("ping -c 2 -i 0.2 -W 20 -s 9000 10.9.0.1");
    // Large segments and checksums that are left to others.
    if Command::new("busybox").arg("true").output().is_err() {
        println!("SKIP a stream between networks: busybox is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (sent, got) = (folder.path().join("sent"), folder.path().join("got"));
    let bytes: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&sent, &bytes).unwrap();
    let mut server = there
        .command("busybox")
        .args(["nc", "-l", "-p", "7777"])
        .stdout(fs::File::create(&got).unwrap())
        .spawn()
        .unwrap();
    let connected = settled(|| {
        let mut client = here.command("busybox");
        client.args(["nc", "10.9.0.2", "7777"]);
        client.stdin(fs::File::open(&sent).unwrap());
        client.output().is_ok_and(|client| client.status.success())
    });
    assert!(connected, "nobody listens");
    assert!(server.wait().unwrap().success());
    assert!(
        fs::read(&got).unwrap() == bytes,
        "the stream is another one"
    );
}

//! DPDK's `dpdk-testpmd`, from Debian's `dpdk-dev`: with `net_vhost` a network
//! device for our driver, with `net_virtio_user` a driver for our device.
//!
//! It runs without huge pages, on whatever processors there are. What it says goes
//! to a file, line by line; commands go to its standard input, at the end of which
//! it ends.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use linkspan_testkit::census::settled;
use tempfile::TempDir;

const PROGRAM: &str = "dpdk-testpmd";

/// Whether it is installed.
pub fn is_installed() -> bool {
    let mut command = Command::new(PROGRAM);
    command.arg("--version").stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    // It knows no such option, but it was there to say so.
    command.status().is_ok()
}

/// Its one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// A back end that listens at the path.
    Vhost,
    /// A back end that connects to the path, again and again.
    VhostClient,
    /// A driver that connects to the path.
    VirtioUser {
        /// Packed rings.
        packed: bool,
        /// Buffers in order.
        in_order: bool,
        /// Frames may take several receive buffers.
        mergeable: bool,
    },
    /// The same driver, and it listens at the path.
    VirtioUserServer {
        /// Packed rings.
        packed: bool,
        /// Buffers in order.
        in_order: bool,
    },
}

impl Port {
    fn vdev(self, path: &Path, queues: u16) -> String {
        let path = path.display();
        let number = u8::from;
        match self {
            Self::Vhost => format!("net_vhost0,iface={path},queues={queues}"),
            Self::VhostClient => format!("net_vhost0,iface={path},queues={queues},client=1"),
            Self::VirtioUser {
                packed,
                in_order,
                mergeable,
            } => format!(
                "net_virtio_user0,path={path},queues={queues},queue_size=256,packed_vq={},in_order={},mrg_rxbuf={}",
                number(packed),
                number(in_order),
                number(mergeable)
            ),
            Self::VirtioUserServer { packed, in_order } => format!(
                "net_virtio_user0,path={path},queues={queues},queue_size=256,packed_vq={},in_order={},server=1",
                number(packed),
                number(in_order)
            ),
        }
    }
}

/// What its port has counted since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counts {
    /// Frames that came in.
    pub received: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// Frames that went out.
    pub sent: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
}

/// A process that runs until it is dropped, which kills it as `kill -9` does.
pub struct Testpmd {
    child: Child,
    commands: ChildStdin,
    output: PathBuf,
    /// Its own files, which it leaves behind when it is killed.
    _folder: TempDir,
}

impl Testpmd {
    /// Starts it with a port at `path`, and waits until it forwards frames as
    /// `mode` says: `rxonly`, `txonly`, `io`, `mac`, `macswap`.
    ///
    /// # Panics
    /// When it is not installed, or does not start.
    pub fn start(port: Port, path: &Path, queues: u16, mode: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        if matches!(port, Port::Vhost | Port::VirtioUserServer { .. }) {
            // One that was killed leaves its socket, at which the next one fails.
            drop(fs::remove_file(path));
        }
        let output = folder.path().join("output");
        let last = std::thread::available_parallelism().map_or(0, |count| count.get() - 1);
        let log = || {
            let mut options = File::options();
            options.append(true).create(true);
            options.open(&output).expect("a file")
        };
        let queues_text = queues.to_string();
        // Without `stdbuf` it keeps what it says to itself until the end.
        let mut command = Command::new("stdbuf");
        command
            .args(["-oL", PROGRAM, "--no-pci", "--no-huge", "-m", "192"])
            .args([
                "--no-telemetry",
                "--single-file-segments",
                "--file-prefix=peer",
            ])
            .args(["--lcores", &format!("0@(0-{last}),1@(0-{last})")])
            .args(["--vdev", &port.vdev(path, queues)])
            .args(["--", "--interactive", "--auto-start", "--nb-cores=1"])
            .args(["--rxq", &queues_text, "--txq", &queues_text])
            .args(["--rxd=256", "--txd=256", "--total-num-mbufs=8192"])
            .arg(format!("--forward-mode={mode}"))
            .env("RUNTIME_DIRECTORY", folder.path())
            .stdin(Stdio::piped())
            .stdout(log())
            .stderr(log());
        let mut child = command.spawn().expect("it is installed");
        let commands = child.stdin.take().expect("it was piped");
        let mut testpmd = Self {
            child,
            commands,
            output,
            _folder: folder,
        };
        testpmd.expect(0, &format!("{mode} packet forwarding packets/burst"));
        testpmd
    }

    /// Forwards frames in another way from now on.
    ///
    /// # Panics
    /// When it does not.
    pub fn forward(&mut self, mode: &str) {
        let at = self.say(&format!("stop\nset fwd {mode}\nstart"));
        self.expect(at, &format!("{mode} packet forwarding packets/burst"));
    }

    /// Forwards nothing more.
    ///
    /// # Panics
    /// When it goes on.
    pub fn stop(&mut self) {
        let at = self.say("stop");
        self.expect(at, "Done.");
    }

    /// What the port has counted.
    ///
    /// # Panics
    /// When it does not say.
    pub fn counts(&mut self) -> Counts {
        let at = self.say("show port stats 0");
        let text = self.expect(at, "Tx-bps:");
        let number = |name: &str| {
            let (_, rest) = text.split_once(name).expect("the counter is there");
            let word = rest.split_whitespace().next();
            word.and_then(|word| word.parse().ok()).expect("a number")
        };
        Counts {
            received: number("RX-packets:"),
            received_bytes: number("RX-bytes:"),
            sent: number("TX-packets:"),
            sent_bytes: number("TX-bytes:"),
        }
    }

    /// The same when this holds, or what it is if that never comes: it counts a
    /// batch only after the other side has seen it.
    ///
    /// # Panics
    /// When it does not say.
    pub fn counts_when(&mut self, condition: impl Fn(&Counts) -> bool) -> Counts {
        let mut counts = self.counts();
        let _ = settled(|| {
            counts = self.counts();
            condition(&counts)
        });
        counts
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Gives commands; says how much it had said before.
    fn say(&mut self, commands: &str) -> usize {
        let before = self.text().len();
        writeln!(self.commands, "{commands}").expect("it runs");
        before
    }

    /// Waits until it has said something since `from`; gives all since then.
    #[track_caller]
    fn expect(&mut self, from: usize, what: &str) -> String {
        let mut said = String::new();
        let mut look = || {
            said = text(&self.output).split_off(from);
            said.contains(what) || self.child.try_wait().expect("our child").is_some()
        };
        // Under load it takes its time: one of these waits for ten seconds or more.
        let _ = (0..6).any(|_| settled(&mut look));
        assert!(
            said.contains(what),
            "no {what:?} in what testpmd says:\n{said}"
        );
        said
    }

    fn text(&self) -> String {
        text(&self.output)
    }
}

fn text(path: &Path) -> String {
    let bytes = fs::read(path).expect("its file");
    // One byte for each, so that places stay where they are.
    bytes
        .into_iter()
        .map(|byte| char::from(byte & 0x7F))
        .collect()
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        // It has ended already, or this ends it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

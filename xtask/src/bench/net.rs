//! `cargo xtask bench net`: our network device in the place of DPDK's `net_vhost`
//! under the same `virtio-user`, our driver in the place of `virtio-user` on the
//! same `net_vhost`, what a frame costs either device under a driver that is faster
//! than both, and two network namespaces through our switch and a kernel bridge.
//!
//! A device has processor 0 to itself and its driver processor 1; all of them poll.
//! Rates are what the peer that does not change counts, or the driver of ours.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::namespaces::Place;
use super::{Args, Folder, Series, Turn, alternate, answer, machine, number, pinned};
use crate::packages;
use crate::project::Project;
use crate::run::build;

/// Which way frames go, seen from the driver.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToDevice,
    FromDevice,
    /// The device sends back what it gets.
    Around,
}

/// Who takes part in a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// `linkspan net` and `net_vhost`, under `virtio-user`.
    Device,
    /// The same under `linkspan driver net`.
    Cost,
    /// `linkspan driver net` and `virtio-user`, on `net_vhost`.
    Driver,
    /// TCP from one network namespace to another.
    Switch,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Linkspan,
    Dpdk,
    /// Ours with one pair, where the row has more.
    OnePair,
    Bridge,
}

struct Row {
    name: &'static str,
    role: Role,
    way: Way,
    packed: bool,
    pairs: u16,
    against: Who,
    target: f64,
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { name: "device, guest to host, split", role: Role::Device, way: Way::ToDevice, packed: false, pairs: 1, against: Who::Dpdk, target: 1.0 },
    Row { name: "device, guest to host, packed", role: Role::Device, way: Way::ToDevice, packed: true, pairs: 1, against: Who::Dpdk, target: 1.0 },
    Row { name: "device, host to guest, split", role: Role::Device, way: Way::FromDevice, packed: false, pairs: 1, against: Who::Dpdk, target: 1.0 },
    Row { name: "device, host to guest, packed", role: Role::Device, way: Way::FromDevice, packed: true, pairs: 1, against: Who::Dpdk, target: 1.0 },
    Row { name: "device, loop, split", role: Role::Device, way: Way::Around, packed: false, pairs: 1, against: Who::Dpdk, target: 1.0 },
    Row { name: "device, loop, packed", role: Role::Device, way: Way::Around, packed: true, pairs: 1, against: Who::Dpdk, target: 1.0 },
    Row { name: "device, guest to host, two pairs on one worker", role: Role::Device, way: Way::ToDevice, packed: false, pairs: 2, against: Who::OnePair, target: 0.95 },
    Row { name: "cost at the device, guest to host, split", role: Role::Cost, way: Way::ToDevice, packed: false, pairs: 1, against: Who::Dpdk, target: 1.0 },
    Row { name: "cost at the device, guest to host, packed", role: Role::Cost, way: Way::ToDevice, packed: true, pairs: 1, against: Who::Dpdk, target: 1.0 },
    Row { name: "driver, guest to host, split", role: Role::Driver, way: Way::ToDevice, packed: false, pairs: 1, against: Who::Dpdk, target: 1.0 },
    Row { name: "driver, guest to host, packed", role: Role::Driver, way: Way::ToDevice, packed: true, pairs: 1, against: Who::Dpdk, target: 1.0 },
    Row { name: "driver, host to guest, split", role: Role::Driver, way: Way::FromDevice, packed: false, pairs: 1, against: Who::Dpdk, target: 1.0 },
    Row { name: "driver, host to guest, packed", role: Role::Driver, way: Way::FromDevice, packed: true, pairs: 1, against: Who::Dpdk, target: 1.0 },
    Row { name: "TCP between namespaces", role: Role::Switch, way: Way::ToDevice, packed: false, pairs: 1, against: Who::Bridge, target: 1.0 },
];

struct Bench<'a> {
    args: &'a Args,
    linkspan: PathBuf,
    folder: Folder,
}

pub(super) fn run(project: &Project, args: &Args) -> Result<String> {
    packages::ensure(packages::NET_BENCH)?;
    let bench = Bench {
        args,
        linkspan: build(project)?,
        folder: Folder::new(Path::new("/dev/shm"))?,
    };
    let _pages = HugePages::reserve()?;
    let mut results = Vec::new();
    let wanted = |row: &&Row| {
        let only = args.only.as_deref().unwrap_or("");
        row.name.contains(only)
    };
    for row in ROWS.iter().filter(wanted) {
        let bench = &bench;
        let turn = |who: Who| -> Box<dyn Fn() -> Result<Turn> + '_> {
            Box::new(move || bench.turn(row, who))
        };
        let series = alternate(args.rounds, &[turn(Who::Linkspan), turn(row.against)])?;
        eprintln!("{}", line(row, &series));
        results.push((row, series));
    }
    Ok(page(args, &results))
}

/// Huge pages for DPDK: reserved as root where there are too few, and given back with
/// the value.
struct HugePages {
    before: u64,
}

/// Pages of 2 MiB: 256 MiB for each of two processes.
const HUGE_PAGES: u64 = 300;
const HUGE_PAGES_FILE: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    fn reserve() -> Result<Self> {
        let there = || -> Result<u64> { Ok(fs::read_to_string(HUGE_PAGES_FILE)?.trim().parse()?) };
        let before = there()?;
        if before < HUGE_PAGES {
            eprintln!(
                "xtask: reserving {HUGE_PAGES} huge pages; {before} there will be again afterwards"
            );
            fs::write(HUGE_PAGES_FILE, HUGE_PAGES.to_string())
                .context("DPDK wants huge pages, which need root")?;
        }
        let pages = Self { before };
        ensure!(
            there()? >= HUGE_PAGES,
            "this machine has no memory for {HUGE_PAGES} huge pages"
        );
        Ok(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        drop(fs::write(HUGE_PAGES_FILE, self.before.to_string()));
    }
}

impl Bench<'_> {
    fn turn(&self, row: &Row, who: Who) -> Result<Turn> {
        let socket = self.folder.0.join("socket");
        drop(fs::remove_file(&socket));
        let pairs = if who == Who::OnePair { 1 } else { row.pairs };
        match (row.role, who) {
            (Role::Switch, Who::Bridge) => Place::bridge()?.tcp(self.args.seconds),
            (Role::Switch, _) => Place::switch(&self.linkspan)?.tcp(self.args.seconds),
            (Role::Device | Role::Driver, Who::Dpdk) => {
                let _device = self.net_vhost(row, pairs, &socket)?;
                self.virtio_user(row, pairs, &socket)
            }
            (Role::Device, _) => {
                let _device = self.our_device(row, pairs, &socket)?;
                self.virtio_user(row, pairs, &socket)
            }
            (Role::Cost, Who::Linkspan) => {
                let _device = self.our_device(row, pairs, &socket)?;
                self.our_driver(row, pairs, &socket)
            }
            (Role::Cost | Role::Driver, _) => {
                let _device = self.net_vhost(row, pairs, &socket)?;
                self.our_driver(row, pairs, &socket)
            }
        }
    }

    fn net_vhost(&self, row: &Row, pairs: u16, socket: &Path) -> Result<Testpmd> {
        let vdev = format!("net_vhost0,iface={},queues={pairs}", socket.display());
        let mode = match row.way {
            Way::ToDevice => "rxonly",
            Way::FromDevice => "txonly",
            Way::Around => "mac",
        };
        Testpmd::start(&self.folder.0, 0, &vdev, pairs, (mode, "start"))
    }

    fn our_device(&self, row: &Row, pairs: u16, socket: &Path) -> Result<super::Server> {
        let mode = match row.way {
            Way::ToDevice => "sink",
            Way::FromDevice => "source",
            Way::Around => "echo",
        };
        let port = format!("vhost-user:{},queues={pairs}", socket.display());
        let mut command = pinned(0, &self.linkspan);
        command
            .args(["net", "--port", &port, "--mode", mode])
            .args(["--workers", "1", "--busy"])
            .env("LINKSPAN_LOG", "warn");
        super::Server::start(command, socket)
    }

    /// What `virtio-user` sends and receives on the device at `socket`.
    fn virtio_user(&self, row: &Row, pairs: u16, socket: &Path) -> Result<Turn> {
        let rings = if row.packed {
            "packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1"
        } else {
            "mrg_rxbuf=1"
        };
        let vdev = format!(
            "net_virtio_user0,path={},queues={pairs},queue_size=1024,{rings}",
            socket.display()
        );
        let (mode, start) = match row.way {
            Way::ToDevice => ("txonly", "start"),
            Way::FromDevice => ("rxonly", "start"),
            // With one burst of frames, which then goes round.
            Way::Around => ("mac", "start tx_first"),
        };
        let mut driver = Testpmd::start(&self.folder.0, 1, &vdev, pairs, (mode, start))?;
        // To warm up, so that both ends have their memory.
        std::thread::sleep(Duration::from_millis(200));
        let before = driver.counts()?;
        std::thread::sleep(Duration::from_secs_f64(self.args.seconds));
        let after = driver.counts()?;
        let frames = match row.way {
            Way::ToDevice => after.sent - before.sent,
            Way::FromDevice | Way::Around => after.received - before.received,
        };
        let seconds = (after.at - before.at).as_secs_f64();
        turn(frames, seconds)
    }

    fn our_driver(&self, row: &Row, pairs: u16, socket: &Path) -> Result<Turn> {
        let mut command = pinned(1, &self.linkspan);
        command
            .args(["driver", "net", "--socket-path"])
            .arg(socket)
            .args(["--queues", &pairs.to_string()]);
        if row.packed {
            command.args(["--packed", "--in-order", "--no-mergeable"]);
        }
        let mode = match row.way {
            Way::ToDevice => "tx",
            Way::FromDevice => "rx",
            Way::Around => "loop",
        };
        command
            .args(["bench", "--json", "--poll", "--mode", mode])
            .args(["--seconds", &self.args.seconds.to_string()])
            .env("LINKSPAN_LOG", "warn");
        let report = answer(command)?;
        let mut turn = turn(number(&report, "mpps")? * 1e6, 1.0)?;
        if row.role == Role::Cost {
            turn.cpu = number(&report, "full")?;
        }
        Ok(turn)
    }
}

/// Both ends poll, so a frame costs the time that it takes.
fn turn(frames: f64, seconds: f64) -> Result<Turn> {
    ensure!(frames > 0.0, "no frame moved");
    let rate = frames / seconds;
    Ok(Turn {
        rate,
        cpu: 1e6 / rate,
    })
}

struct Counts {
    at: Instant,
    received: f64,
    sent: f64,
}

/// DPDK's testpmd with one port, which ends with the value.
struct Testpmd {
    child: Child,
    commands: ChildStdin,
    output: PathBuf,
}

impl Testpmd {
    fn start(
        folder: &Path,
        cpu: usize,
        vdev: &str,
        pairs: u16,
        (mode, start): (&str, &str),
    ) -> Result<Self> {
        let output = folder.join(format!("testpmd-{cpu}"));
        let pairs = pairs.to_string();
        let log = File::create(&output)?;
        // Without `stdbuf` it keeps what it says to itself until the end.
        let mut command = Command::new("stdbuf");
        command
            .args([
                "-oL",
                "dpdk-testpmd",
                "--no-pci",
                "--in-memory",
                "-m",
                "256",
            ])
            .args(["--no-telemetry", "--single-file-segments"])
            .args([
                &format!("--file-prefix=bench{cpu}"),
                "--lcores",
                &format!("0@{cpu},1@{cpu}"),
            ])
            .args(["--vdev", vdev, "--", "--interactive", "--nb-cores=1"])
            .args(["--rxq", &pairs, "--txq", &pairs, "--rxd=1024", "--txd=1024"])
            .args(["--total-num-mbufs=16384", &format!("--forward-mode={mode}")])
            .env("RUNTIME_DIRECTORY", folder)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = command.spawn().context("cannot start dpdk-testpmd")?;
        let commands = child.stdin.take().context("no standard input")?;
        let mut testpmd = Self {
            child,
            commands,
            output,
        };
        // It reads this when it is ready.
        writeln!(testpmd.commands, "{start}")?;
        testpmd.expect(0, "packets/burst")?;
        Ok(testpmd)
    }

    fn counts(&mut self) -> Result<Counts> {
        let from = fs::read(&self.output)?.len();
        writeln!(self.commands, "show port stats 0")?;
        let text = self.expect(from, "Tx-bps:")?;
        let number = |name: &str| -> Result<f64> {
            let (_, rest) = text.split_once(name).context("no such counter")?;
            Ok(rest
                .split_whitespace()
                .next()
                .context("no number")?
                .parse()?)
        };
        Ok(Counts {
            at: Instant::now(),
            received: number("RX-packets:")?,
            sent: number("TX-packets:")?,
        })
    }

    /// Waits until it has said something after `from`; gives all since then.
    fn expect(&mut self, from: usize, what: &str) -> Result<String> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let bytes = fs::read(&self.output)?;
            let text = String::from_utf8_lossy(bytes.get(from..).unwrap_or_default());
            if text.contains(what) {
                return Ok(text.into_owned());
            }
            let ended = self.child.try_wait()?;
            ensure!(
                ended.is_none() && Instant::now() < deadline,
                "no {what:?} in what testpmd says ({ended:?}):\n{text}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn line(row: &Row, series: &[Series]) -> String {
    let (ours, theirs) = (&series[0], &series[1]);
    let (low, high) = ours.spread(theirs);
    let peer = match (row.against, row.role) {
        (Who::OnePair, _) => "one pair",
        (Who::Bridge, _) => "kernel bridge",
        (_, Role::Device | Role::Cost) => "net_vhost",
        (..) => "virtio-user",
    };
    let cost = |series: &Series| match row.role {
        Role::Device | Role::Driver => String::new(),
        Role::Cost => format!("{:.0}", 1e9 / series.rate()),
        Role::Switch => format!("{:.2}", series.cpu()),
    };
    let scale = if row.role == Role::Switch { 1e9 } else { 1e6 };
    format!(
        "| {} | {:.2} | {} | {peer} | {:.2} | {} | **{:.2}** ({low:.2}–{high:.2}) | {:.2} |",
        row.name,
        ours.rate() / scale,
        cost(ours),
        theirs.rate() / scale,
        cost(theirs),
        ours.rate() / theirs.rate(),
        row.target
    )
}

fn page(args: &Args, results: &[(&Row, Vec<Series>)]) -> String {
    let mut text = format!(
        "`cargo xtask bench net --rounds {} --seconds {}` on {}. Frames of 64 bytes, DPDK's `dpdk-testpmd`\n\
         at the other end, with huge pages; one processor a side, both ends poll. Split rings merge buffers; packed rings do\n\
         not and are in order. Millions of frames a second: medians. The ratio is that of the medians, and in\n\
         parentheses the lowest and highest of a round. The two rows of *cost* have `linkspan driver net bench` as the\n\
         driver of both devices; *cost* is nanoseconds of the device's processor for a frame. Of the passes of that\n\
         driver the ring had no room for a whole batch in: {}. TCP is in Gbit/s, and its cost in\n\
         processor seconds of the whole machine for 10^9 bytes.\n\n\
         | row | ours | cost | peer | its rate | its cost | ratio | target |\n|---|---|---|---|---|---|---|---|\n",
        args.rounds,
        args.seconds,
        machine(),
        full(results)
    );
    for (row, series) in results {
        let _ = writeln!(text, "{}", line(row, series));
    }
    text
}

/// How often the driver had to wait for the devices, for each row of that kind.
fn full(results: &[(&Row, Vec<Series>)]) -> String {
    let rows = results.iter().filter(|(row, _)| row.role == Role::Cost);
    let shares = rows.map(|(row, series)| {
        let percent = |series: &Series| 100.0 * series.cpu();
        let rings = if row.packed { "packed" } else { "split" };
        let (ours, theirs) = (percent(&series[0]), percent(&series[1]));
        format!("{rings} {ours:.0} % with ours and {theirs:.0} % with net_vhost")
    });
    shares.collect::<Vec<_>>().join(", ")
}

//! `cargo xtask bench fcopy`: files into a guest, on tmpfs.
//!
//! One message at a time, through the device as a kernel shows it: our guest and Linux's
//! daemon under the same host; and without FUSE, both with the memory and the eventfds of the
//! host itself: ours by its socket, since it makes its system calls itself and no preloaded
//! library sees them, and Linux's daemon by one that stands in for the device (preload.c),
//! which joins the same socket. There once as two ends of ours agree on it, headers sent back,
//! and once with whole messages sent back by both (the example `first_link`). Several at a
//! time between two ends of ours: against `cp`
//! and bare loops. Nothing is bound to a processor: the device's file has a thread of its
//! own in the host, and the kernel knows best where that runs.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::blk::example;
use super::{Args, Folder, Series, Turn, alternate, machine, number};
use crate::fcopy_daemon;
use crate::project::{Project, cargo};
use crate::run::build;

/// Bytes of the file that is sent.
const BYTES: u64 = 512 << 20;

/// Bytes of the file that is sent once.
const LARGE: u64 = 10_000_000_000;

const GIB: f64 = (1_u64 << 30) as f64;

/// Who takes part.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contestant {
    /// Our guest with the device, one message at a time.
    Ours,
    /// Linux's daemon with the same device.
    Linux,
    /// Our guest at the host's socket, one message at a time.
    OursBeside,
    /// The same, and it sends back all that it was sent, as Linux's daemon does.
    OursEcho,
    /// Linux's daemon, with a library between that joins that socket.
    LinuxBeside,
    /// Two ends of ours, several messages at a time.
    Both,
    /// The same, and the file is read back at both ends.
    Verified,
    /// `cp`.
    Cp,
    /// No program between: pieces of 6 KiB read and written.
    Alone,
    /// The same in two threads that take turns.
    Turns,
}

struct Row {
    name: &'static str,
    ours: Contestant,
    /// Against whom, and the ratio of rates that is wanted.
    against: &'static [(Contestant, &'static str, Option<f64>)],
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { name: "one message, the device as a file of FUSE", ours: Contestant::Ours, against: &[(Contestant::Linux, "hv_fcopy_uio_daemon", Some(1.3)), (Contestant::Turns, "bare turns of two threads", None)] },
    Row { name: "one message, the host's memory and eventfds", ours: Contestant::OursBeside, against: &[(Contestant::LinuxBeside, "hv_fcopy_uio_daemon, preloaded", Some(1.3))] },
    Row { name: "the same, whole messages sent back", ours: Contestant::OursEcho, against: &[(Contestant::LinuxBeside, "hv_fcopy_uio_daemon, preloaded", Some(1.3))] },
    Row { name: "several messages, both ends ours", ours: Contestant::Both, against: &[(Contestant::Cp, "cp", Some(0.6)), (Contestant::Verified, "ours, verified", None), (Contestant::Alone, "bare pread and pwrite of 6 KiB", None)] },
];

/// Processor time per byte of our guest over Linux's, at most.
const CPU_TARGET: f64 = 0.7;

/// GB a second of the ring alone, at least.
const RING_TARGET: f64 = 8.0;

struct Bench {
    linkspan: PathBuf,
    daemon: PathBuf,
    bare_copy: PathBuf,
    first_link: PathBuf,
    tmpfs: Folder,
}

/// Bytes of a ring as Linux's kernel has it for this device.
const DEVICE_RING: u64 = 20480;

/// Stands in for the device in Linux's daemon.
const PRELOAD: &str = include_str!("preload.c");

/// Where the daemon looks for its device, below /sys/bus/vmbus.
const DEVICE: &str = "devices/eb765408-105f-49b6-b4aa-c123b64d17d4";

pub(super) fn run(project: &Project, args: &Args) -> Result<String> {
    let bench = Bench {
        daemon: fcopy_daemon::ensure()?,
        linkspan: build(project)?,
        bare_copy: example(project, "linkspan-sys", "bare_copy")?,
        first_link: example(project, "linkspan-engine", "first_link")?,
        tmpfs: Folder::new(Path::new("/dev/shm"))?,
    };
    fill(&bench.source())?;
    let wanted = |name: &str| args.only.as_ref().is_none_or(|only| name.contains(only));
    let mut results = Vec::new();
    for row in ROWS.iter().filter(|row| wanted(row.name)) {
        let mut contestants = vec![row.ours];
        contestants.extend(row.against.iter().map(|(who, ..)| *who));
        let bench = &bench;
        let turns: Vec<Box<dyn Fn() -> Result<Turn> + '_>> = contestants
            .into_iter()
            .map(|who| -> Box<dyn Fn() -> Result<Turn> + '_> { Box::new(move || bench.turn(who)) })
            .collect();
        let series = alternate(args.rounds, &turns)?;
        eprint!("{}", lines(row, &series));
        results.push((row, series));
    }
    let mut text = page(args, &results);
    if wanted("ring") {
        text += &ring(project)?;
    }
    if wanted("large") {
        text += &bench.large()?;
    }
    Ok(text)
}

fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    let chunk: Vec<u8> = (0..1_u32 << 20)
        .map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1])
        .collect();
    for _ in 0..BYTES >> 20 {
        file.write_all(&chunk)?;
    }
    Ok(())
}

impl Bench {
    fn source(&self) -> PathBuf {
        self.tmpfs.0.join("source")
    }

    fn turn(&self, who: Contestant) -> Result<Turn> {
        let inbox = self.tmpfs.0.join("in");
        drop(fs::remove_dir_all(&inbox));
        fs::create_dir(&inbox)?;
        let target = inbox.join("source");
        let (seconds, cpu) = match who {
            Contestant::Ours | Contestant::Linux => self.by_device(who, &inbox)?,
            Contestant::OursBeside | Contestant::OursEcho | Contestant::LinuxBeside => {
                self.beside(who, &inbox)?
            }
            Contestant::Both => self.natively(&self.source(), &inbox, &["--no-verify"])?,
            Contestant::Verified => self.natively(&self.source(), &inbox, &[])?,
            Contestant::Cp => {
                let start = Instant::now();
                let status = Command::new("cp")
                    .arg(self.source())
                    .arg(&target)
                    .status()?;
                ensure!(status.success(), "cp: {status}");
                (start.elapsed().as_secs_f64(), 0.0)
            }
            Contestant::Alone => self.bare("alone", &target)?,
            Contestant::Turns => self.bare("turns", &target)?,
        };
        let len = fs::metadata(&target)?.len();
        ensure!(len == BYTES, "{len} bytes arrived of {BYTES}");
        fs::remove_dir_all(&inbox)?;
        Ok(Turn {
            rate: BYTES as f64 / seconds / 1e6,
            cpu: cpu / (BYTES as f64 / GIB),
        })
    }

    fn bare(&self, mode: &str, target: &Path) -> Result<(f64, f64)> {
        let mut command = Command::new(&self.bare_copy);
        command.arg(mode).arg(self.source()).arg(target);
        Ok((number(&super::answer(command)?, "seconds")?, 0.0))
    }

    /// Sends the file to a daemon that has the device: seconds, and those of the daemon's
    /// processor.
    fn by_device(&self, who: Contestant, inbox: &Path) -> Result<(f64, f64)> {
        let socket = self.tmpfs.0.join("socket");
        let mut host = Command::new(&self.linkspan);
        host.args(["fcopy", "host", "--control"]).arg(&socket);
        host.arg("--");
        match who {
            Contestant::Linux => host.arg(&self.daemon).arg("-n"),
            _ => {
                host.arg(&self.linkspan).args(["fcopy", "guest", "--root"]);
                host.arg(inbox)
            }
        };
        let host = Running::start(&mut host, &socket)?;
        // The daemon makes no folder and wants a slash.
        let to = format!("{}/", inbox.display());
        self.send(&socket, &self.tiny()?, &to, &[])?;
        let daemon = child_of(host.child.id())?;
        let before = cpu_seconds(daemon)?;
        let seconds = self.send(&socket, &self.source(), &to, &["--no-verify"])?;
        Ok((seconds, cpu_seconds(daemon)? - before))
    }

    /// Sends a file from one end of ours to the other: seconds, and those of the guest's
    /// processor.
    fn natively(&self, file: &Path, inbox: &Path, options: &[&str]) -> Result<(f64, f64)> {
        let socket = self.tmpfs.0.join("socket");
        let mut host = Command::new(&self.linkspan);
        host.args(["fcopy", "host", "--control"]).arg(&socket);
        let host = Running::start(&mut host, &socket)?;
        let guest = Running::start(&mut self.guest(inbox, &socket), &socket)?;
        let sent = self.sent_to(&guest, inbox, file, options);
        drop((guest, host));
        sent
    }

    /// Sends the file to a guest that has the memory and the eventfds of the host, one
    /// message at a time: seconds, and those of the guest's processor.
    fn beside(&self, who: Contestant, inbox: &Path) -> Result<(f64, f64)> {
        let socket = self.tmpfs.0.join("socket");
        let mut host = Command::new(&self.linkspan);
        host.args(["fcopy", "host", "--outstanding", "1", "--ring-size"]);
        host.arg(DEVICE_RING.to_string());
        let host = Running::start(host.arg("--control").arg(&socket), &socket)?;
        let link = match who {
            Contestant::OursEcho => {
                let own = self.tmpfs.0.join("first-link");
                drop(fs::remove_file(&own));
                let mut link = Command::new(&self.first_link);
                let link = Running::start(link.arg(&socket).arg(&own), &own)?;
                Some((link, own))
            }
            _ => None,
        };
        let mut guest = match (who, &link) {
            (Contestant::LinuxBeside, _) => self.preloaded(&socket)?,
            (_, Some((_, own))) => self.guest(inbox, own),
            (_, None) => self.guest(inbox, &socket),
        };
        let guest = Running::start(&mut guest, &socket)?;
        let sent = self.sent_to(&guest, inbox, &self.source(), &["--no-verify"]);
        drop((guest, link, host));
        sent
    }

    fn guest(&self, inbox: &Path, socket: &Path) -> Command {
        let mut guest = Command::new(&self.linkspan);
        guest.args(["fcopy", "guest", "--root"]).arg(inbox);
        guest.arg("--connect").arg(socket);
        guest
    }

    /// Linux's daemon with the library that stands in for the device.
    fn preloaded(&self, socket: &Path) -> Result<Command> {
        let folder = &self.tmpfs.0;
        let (source, library) = (folder.join("preload.c"), folder.join("preload.so"));
        if !library.exists() {
            fs::write(&source, PRELOAD)?;
            let mut gcc = Command::new("gcc");
            gcc.args(["-O2", "-shared", "-fPIC", "-o"]);
            let status = gcc.arg(&library).arg(&source).status()?;
            ensure!(status.success(), "preload.c does not build");
            let device = folder.join("vmbus").join(DEVICE);
            fs::create_dir_all(device.join("uio/uio0"))?;
            fs::create_dir_all(device.join("channels/11"))?;
            File::create(device.join("channels/11/ring"))?.set_len(2 * DEVICE_RING)?;
        }
        let mut daemon = Command::new(&self.daemon);
        daemon.arg("-n").env("LD_PRELOAD", library);
        daemon.env("LINKSPAN_PRELOAD", socket);
        daemon.env("LINKSPAN_PRELOAD_SYS", folder.join("vmbus"));
        Ok(daemon)
    }

    /// Sends a file to a guest: seconds, and those of the guest's processor.
    fn sent_to(
        &self,
        guest: &Running,
        inbox: &Path,
        file: &Path,
        options: &[&str],
    ) -> Result<(f64, f64)> {
        let socket = self.tmpfs.0.join("socket");
        // The daemon makes no folder and wants a slash.
        let to = format!("{}/", inbox.display());
        self.send(&socket, &self.tiny()?, &to, options)?;
        let before = cpu_seconds(guest.child.id())?;
        let seconds = self.send(&socket, file, &to, options)?;
        Ok((seconds, cpu_seconds(guest.child.id())? - before))
    }

    /// A file that shows that both ends are there, and warms them up.
    fn tiny(&self) -> Result<PathBuf> {
        let tiny = self.tmpfs.0.join("tiny");
        fs::write(&tiny, [7; 100_000])?;
        Ok(tiny)
    }

    fn send(&self, socket: &Path, file: &Path, to: &str, options: &[&str]) -> Result<f64> {
        let mut send = Command::new(&self.linkspan);
        send.args(["fcopy", "send", "--control"]).arg(socket);
        send.args(options).arg(file).args(["--to", to]);
        let start = Instant::now();
        let output = send.stdin(Stdio::null()).output()?;
        let seconds = start.elapsed().as_secs_f64();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "send: {said}");
        Ok(seconds)
    }

    /// One large file, once.
    fn large(&self) -> Result<String> {
        let (file, inbox) = (self.tmpfs.0.join("large"), self.tmpfs.0.join("in"));
        File::create(&file)?.set_len(LARGE)?;
        let mut text = String::from(
            "\nA file of 10 GB (a hole of tmpfs, read as zeroes; the guest writes all of it), once, both ends ours:\n\n\
             | | seconds | MB/s | guest's processor, s |\n|---|---|---|---|\n",
        );
        for (name, options) in [("not verified", &["--no-verify"][..]), ("verified", &[])] {
            drop(fs::remove_dir_all(&inbox));
            fs::create_dir(&inbox)?;
            let (seconds, cpu) = self.natively(&file, &inbox, options)?;
            let len = fs::metadata(inbox.join("large"))?.len();
            ensure!(len == LARGE, "{len} bytes arrived of {LARGE}");
            let rate = LARGE as f64 / seconds / 1e6;
            writeln!(text, "| {name} | {seconds:.1} | {rate:.0} | {cpu:.1} |")?;
        }
        fs::remove_dir_all(&inbox)?;
        Ok(text)
    }
}

/// A program that ends with the value.
struct Running {
    child: Child,
}

impl Running {
    fn start(command: &mut Command, socket: &Path) -> Result<Self> {
        let child = command
            .env("LINKSPAN_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let mut running = Self { child };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            if let Some(status) = running.child.try_wait()? {
                bail!("{command:?} ended: {status}");
            }
            ensure!(Instant::now() < deadline, "{command:?} makes no socket");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The host takes its socket and its program with it when it is asked to end.
        let id = self.child.id().to_string();
        drop(Command::new("kill").args(["-TERM", &id]).status());
        drop(self.child.wait());
    }
}

/// The one child of a process.
fn child_of(parent: u32) -> Result<u32> {
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // One that has ended meanwhile is not it.
        let Ok(fields) = stat(id) else { continue };
        if fields
            .get(1)
            .is_some_and(|field| *field == parent.to_string())
        {
            return Ok(id);
        }
    }
    bail!("the host has no program")
}

/// The fields of /proc/ID/stat behind the name: the state first.
fn stat(id: u32) -> Result<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The name in parentheses may contain anything.
    let rest = stat.rsplit_once(')').context("no name")?.1;
    Ok(rest.split_whitespace().map(str::to_owned).collect())
}

/// Processor seconds of all threads so far, to a hundredth.
fn cpu_seconds(id: u32) -> Result<f64> {
    let fields = stat(id)?;
    let field =
        |at: usize| -> Result<f64> { Ok(fields.get(at).context("no such field")?.parse()?) };
    // In ticks, of which Linux shows programs 100 a second everywhere.
    Ok((field(11)? + field(12)?) / 100.0)
}

/// The row of the ring's own bench that counts.
fn ring(project: &Project) -> Result<String> {
    let output = cargo()
        .args(["bench", "--package", "linkspan-vmbus", "--bench", "ring"])
        .current_dir(&project.root)
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(
        output.status.success(),
        "the ring's bench: {}",
        output.status
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let median = ring_row(&text).context("no row of 2 MiB and 6224 bytes")?;
    Ok(format!(
        "\nThe ring alone, 2 MiB, payload of 6224 bytes, two threads that poll (`cargo bench -p linkspan-vmbus`): \
         **{median:.1} GB/s**, target {RING_TARGET:.0}.\n"
    ))
}

/// The median of the row for 2 MiB and a fragment of file copy.
fn ring_row(text: &str) -> Option<f64> {
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [ring, payload, median, ..] = fields[..] else {
            return None;
        };
        (ring == "2097152" && payload == "6224").then(|| median.parse().ok())?
    })
}

fn page(args: &Args, results: &[(&Row, Vec<Series>)]) -> String {
    let mut text = format!(
        "`cargo xtask bench fcopy --rounds {}` on {}. A file of 512 MiB from tmpfs to\n\
         tmpfs, by `linkspan fcopy send`, its start included: 10^6 bytes a second, and the guest's processor seconds per GiB where it is a\n\
         process of its own: medians. The ratio is that of the medians, and in parentheses the lowest and highest of a\n\
         round. µs is the time of a fragment of 6 KiB.\n\n\
         | row | ours | µs | CPU | peer | its rate | µs | its CPU | ratio | target | CPU ratio | target |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n",
        args.rounds,
        machine()
    );
    for (row, series) in results {
        text += &lines(row, series);
    }
    text
}

fn lines(row: &Row, series: &[Series]) -> String {
    let ours = &series[0];
    let mut text = String::new();
    let micros = |series: &Series| 6144.0 / series.rate();
    let cpu = |series: &Series| match series.cpu() {
        0.0 => String::new(),
        cpu => format!("{cpu:.2}"),
    };
    for ((who, name, target), theirs) in row.against.iter().zip(&series[1..]) {
        let (low, high) = ours.spread(theirs);
        let target = target.map_or(String::new(), |target| format!("{target:.1}"));
        let costs = match who {
            Contestant::Linux | Contestant::LinuxBeside => {
                format!("**{:.2}** | {CPU_TARGET}", ours.cpu() / theirs.cpu())
            }
            _ => " | ".into(),
        };
        text += &format!(
            "| {} | {:.0} | {:.1} | {} | {name} | {:.0} | {:.1} | {} | **{:.2}** ({low:.2}–{high:.2}) | {target} | {costs} |\n",
            row.name,
            ours.rate(),
            micros(ours),
            cpu(ours),
            theirs.rate(),
            micros(theirs),
            cpu(theirs),
            ours.rate() / theirs.rate(),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_of_the_ring_is_found() {
        let text = "      ring  payload  median GB/s    best GB/s    ns a packet\n\
                    \x20    16384     6224          2.6          2.7           2393\n\
                    \x20  2097152     6224         13.9         14.2            447\n";
        assert_eq!(ring_row(text), Some(13.9));
        assert_eq!(ring_row("2097152 64 1 2 3"), None);
    }

    #[test]
    fn rows_have_rates_costs_and_targets() {
        let series = |rate: f64, cpu: f64| Series {
            turns: vec![Turn { rate, cpu }],
        };
        let all = [series(614.4, 0.5), series(307.2, 1.0), series(100.0, 0.0)];
        let text = lines(&ROWS[0], &all);
        let first = text.lines().next().unwrap();
        assert!(first.contains("| 614 | 10.0 | 0.50 | hv_fcopy_uio_daemon | 307 | 20.0 | 1.00 |"));
        assert!(first.ends_with("**2.00** (2.00–2.00) | 1.3 | **0.50** | 0.7 |"));
    }
}

//! `cargo xtask bench blk`: our disk against others under the same driver, and
//! against a bare loop on the same file.
//!
//! Each server has processor 0 to itself and the driver processor 1.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{
    Args, Folder, Series, Server, Turn, alternate, answer, machine, median, number, pinned,
};
use crate::packages;
use crate::project::{Project, cargo};
use crate::run::build;

/// Bytes of the file: it stays in the page cache.
const BYTES: u64 = 1 << 30;

/// What a server serves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Image {
    Tmpfs,
    Ext4,
    Null,
    Memory,
}

/// Who takes part.
#[derive(Clone, Copy)]
enum Contestant {
    /// `linkspan blk`, with more options.
    Linkspan(&'static [&'static str]),
    /// qemu-storage-daemon in its fastest form: an iothread that polls, io_uring.
    Qsd,
    /// A null device on rust-vmm's `vhost-user-backend`.
    RustVmm,
    /// No server: a loop of `preadv`.
    Preadv,
    /// No server: a loop of io_uring, as many requests at a time as the row has.
    Uring,
}

struct Row {
    name: &'static str,
    image: Image,
    depth: u16,
    queues: u16,
    /// Whether the driver sleeps when there is nothing to do.
    sleeps: bool,
    /// Against whom: the first of the table is ours.
    against: &'static [(Contestant, f64)],
}

const QSD: Contestant = Contestant::Qsd;

/// Ours, with a system call for each read.
const BY_CALLS: Contestant = Contestant::Linkspan(&["--no-map"]);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { name: "tmpfs, depth 1", image: Image::Tmpfs, depth: 1, queues: 1, sleeps: false, against: &[(QSD, 2.0)] },
    Row { name: "ext4, depth 1", image: Image::Ext4, depth: 1, queues: 1, sleeps: false, against: &[(QSD, 2.0)] },
    Row { name: "tmpfs, depth 32", image: Image::Tmpfs, depth: 32, queues: 1, sleeps: false, against: &[(QSD, 2.0), (Contestant::Preadv, 0.7), (Contestant::Uring, 0.7), (BY_CALLS, 1.0)] },
    Row { name: "ext4, depth 32", image: Image::Ext4, depth: 32, queues: 1, sleeps: false, against: &[(QSD, 1.5), (Contestant::Preadv, 0.7), (Contestant::Uring, 0.7), (BY_CALLS, 1.0)] },
    Row { name: "tmpfs, depth 32, 4 queues", image: Image::Tmpfs, depth: 32, queues: 4, sleeps: false, against: &[(QSD, 1.0)] },
    Row { name: "ext4, depth 32, 4 queues", image: Image::Ext4, depth: 32, queues: 4, sleeps: false, against: &[(QSD, 1.0)] },
    Row { name: "tmpfs, depth 1, sleeping driver", image: Image::Tmpfs, depth: 1, queues: 1, sleeps: true, against: &[(QSD, 1.0)] },
    Row { name: "tmpfs, depth 32, sleeping driver", image: Image::Tmpfs, depth: 32, queues: 1, sleeps: true, against: &[(QSD, 1.0)] },
    Row { name: "null, depth 1", image: Image::Null, depth: 1, queues: 1, sleeps: false, against: &[(Contestant::RustVmm, 2.0), (QSD, 1.0)] },
    Row { name: "null, depth 32", image: Image::Null, depth: 32, queues: 1, sleeps: false, against: &[(Contestant::RustVmm, 2.0), (QSD, 1.0)] },
    Row { name: "memory, depth 1", image: Image::Memory, depth: 1, queues: 1, sleeps: false, against: &[] },
    Row { name: "memory, depth 32", image: Image::Memory, depth: 32, queues: 1, sleeps: false, against: &[] },
];

struct Bench<'a> {
    args: &'a Args,
    linkspan: PathBuf,
    rust_vmm: PathBuf,
    bare_loop: PathBuf,
    tmpfs: Folder,
    ext4: Folder,
}

pub(super) fn run(project: &Project, args: &Args) -> Result<String> {
    packages::ensure(packages::TESTS)?;
    let bench = Bench {
        args,
        linkspan: build(project)?,
        rust_vmm: example(project, "linkspan-peers", "null_disk")?,
        bare_loop: example(project, "linkspan-sys", "bare_loop")?,
        tmpfs: Folder::new(Path::new("/dev/shm"))?,
        ext4: Folder::new(&project.target)?,
    };
    for folder in [&bench.tmpfs, &bench.ext4] {
        fill(&folder.0.join("disk.img"))?;
    }
    let mut results = Vec::new();
    for row in ROWS {
        if args
            .only
            .as_ref()
            .is_some_and(|only| !row.name.contains(only.as_str()))
        {
            continue;
        }
        let mut contestants = vec![Contestant::Linkspan(&[])];
        contestants.extend(row.against.iter().map(|(who, _)| *who));
        let bench = &bench;
        let turns: Vec<Box<dyn Fn() -> Result<Turn> + '_>> = contestants
            .into_iter()
            .map(|who| -> Box<dyn Fn() -> Result<Turn> + '_> {
                Box::new(move || bench.turn(row, who))
            })
            .collect();
        let series = alternate(args.rounds, &turns)?;
        eprintln!("{}", line(row, &series));
        results.push((row, series));
    }
    let mut text = page(args, &results);
    if args.only.is_none() {
        text += &bench.costs()?;
        text += &bench.commands();
    }
    Ok(text)
}

/// An example of a crate, built for speed.
pub(super) fn example(project: &Project, package: &str, name: &str) -> Result<PathBuf> {
    let status = cargo()
        .args([
            "build",
            "--release",
            "--package",
            package,
            "--example",
            name,
        ])
        .current_dir(&project.root)
        .status()?;
    ensure!(status.success(), "{name} does not build");
    Ok(project.target.join("release/examples").join(name))
}

/// Makes the file, and with that has it cached.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    let chunk: Vec<u8> = (0..1 << 20)
        .map(|at: u32| at.to_le_bytes()[0] ^ at.to_le_bytes()[1])
        .collect();
    for _ in 0..BYTES >> 20 {
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    Ok(())
}

impl Bench<'_> {
    fn turn(&self, row: &Row, who: Contestant) -> Result<Turn> {
        let file = match row.image {
            Image::Ext4 => self.ext4.0.join("disk.img"),
            Image::Tmpfs | Image::Null | Image::Memory => self.tmpfs.0.join("disk.img"),
        };
        if let Contestant::Preadv | Contestant::Uring = who {
            return self.bare(row, who, &file);
        }
        let socket = self.tmpfs.0.join("socket");
        let server = Server::start(self.command(row, who, &file, &socket), &socket)?;
        // A turn to warm up, so that both ends have their memory.
        self.drive(row, &socket, 0.2)?;
        let before = server.cpu_seconds()?;
        let (rate, operations) = self.drive(row, &socket, self.args.seconds)?;
        let cpu = (server.cpu_seconds()? - before) / operations * 1e6;
        Ok(Turn { rate, cpu })
    }

    fn command(&self, row: &Row, who: Contestant, file: &Path, socket: &Path) -> Command {
        let queues = row.queues.to_string();
        match who {
            Contestant::Linkspan(more) => {
                let mut command = pinned(0, &self.linkspan);
                command
                    .args(["blk", "--queues", &queues, "--socket-path"])
                    .arg(socket)
                    .arg("--image");
                match row.image {
                    Image::Tmpfs | Image::Ext4 => command.arg(file),
                    Image::Null => command.arg(format!("null:{BYTES}")),
                    Image::Memory => command.arg(format!("mem:{BYTES}")),
                };
                command.args(more).env("LINKSPAN_LOG", "warn");
                command
            }
            Contestant::RustVmm => {
                let mut command = pinned(0, &self.rust_vmm);
                command.arg(socket).arg(BYTES.to_string()).arg(queues);
                command
            }
            _ => {
                let node = match row.image {
                    Image::Null | Image::Memory => {
                        format!("driver=null-co,read-zeroes=off,node-name=n,size={BYTES}")
                    }
                    _ => format!(
                        "driver=file,aio=io_uring,node-name=n,filename={}",
                        file.display()
                    ),
                };
                let mut command = pinned(0, "qemu-storage-daemon");
                command
                    .args(["--object", "iothread,id=io,poll-max-ns=1000000", "--blockdev", &node, "--export"])
                    .arg(format!(
                        "type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={},writable=on,num-queues={queues},iothread=io",
                        socket.display()
                    ));
                command
            }
        }
    }

    /// The programs of a row of each kind, as they are called.
    fn commands(&self) -> String {
        let row = &ROWS[2];
        let (file, socket) = (Path::new("FILE"), Path::new("SOCKET"));
        let servers = [Contestant::Linkspan(&[]), QSD, Contestant::RustVmm];
        let mut all: Vec<Command> = servers
            .into_iter()
            .map(|who| self.command(row, who, file, socket))
            .collect();
        all.push(self.driver(row, socket, self.args.seconds));
        all.push(self.bare_command(row, Contestant::Preadv, file));
        let mut text = format!(
            "\nThe programs of the row `{}`, the third being that of null images:\n\n```sh\n",
            row.name
        );
        for command in all {
            let words = std::iter::once(command.get_program()).chain(command.get_args());
            let words: Vec<_> = words
                .map(|word| {
                    Path::new(word)
                        .file_name()
                        .unwrap_or(word)
                        .to_string_lossy()
                })
                .collect();
            text += &words.join(" ");
            text.push('\n');
        }
        text + "```\n"
    }

    /// Operations a second, and how many there were.
    fn drive(&self, row: &Row, socket: &Path, seconds: f64) -> Result<(f64, f64)> {
        let report = answer(self.driver(row, socket, seconds))?;
        Ok((number(&report, "iops")?, number(&report, "operations")?))
    }

    fn driver(&self, row: &Row, socket: &Path, seconds: f64) -> Command {
        let mut command = pinned(1, &self.linkspan);
        command
            .args(["driver", "blk", "--socket-path"])
            .arg(socket)
            .args(["bench", "--op", "randread", "--json"])
            .args([
                "--depth",
                &row.depth.to_string(),
                "--queues",
                &row.queues.to_string(),
            ])
            .args(["--seconds", &seconds.to_string()]);
        if row.sleeps {
            command.args(["--poll-us", "0"]);
        } else {
            command.arg("--poll");
        }
        command
    }

    fn bare(&self, row: &Row, who: Contestant, file: &Path) -> Result<Turn> {
        let report = answer(self.bare_command(row, who, file))?;
        let rate = number(&report, "iops")?;
        Ok(Turn {
            rate,
            cpu: 1e6 / rate,
        })
    }

    fn bare_command(&self, row: &Row, who: Contestant, file: &Path) -> Command {
        let mut command = pinned(0, &self.bare_loop);
        let mode = if matches!(who, Contestant::Uring) {
            "uring"
        } else {
            "preadv"
        };
        command
            .arg(mode)
            .arg(file)
            .args([row.depth.to_string(), self.args.seconds.to_string()]);
        command
    }

    /// What it costs to have a device at all.
    fn costs(&self) -> Result<String> {
        let socket = self.tmpfs.0.join("socket");
        let row = &ROWS[4];
        let file = self.tmpfs.0.join("disk.img");
        let mut times = Vec::new();
        for _ in 0..20 {
            drop(std::fs::remove_file(&socket));
            let start = Instant::now();
            let child = self
                .command(row, Contestant::Linkspan(&[]), &file, &socket)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()?;
            let server = Server { child };
            answers(&socket)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            drop(server);
        }
        let server = Server::start(
            self.command(row, Contestant::Linkspan(&[]), &file, &socket),
            &socket,
        )?;
        self.drive(row, &socket, 1.0)?;
        let (private, of_files) = server.memory_bytes(&file)?;
        // Idle with a driver that is there and asks for nothing.
        let mut driver = pinned(1, &self.linkspan);
        driver
            .args(["driver", "blk", "--socket-path"])
            .arg(&socket)
            .args([
                "bench",
                "--op",
                "randread",
                "--queues",
                "4",
                "--seconds",
                "1000",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let driver = Server {
            child: driver.spawn()?,
        };
        std::thread::sleep(Duration::from_millis(500));
        stop(&driver)?;
        std::thread::sleep(Duration::from_millis(500));
        let before = server.cpu_seconds()?;
        std::thread::sleep(Duration::from_secs(5));
        let idle = server.cpu_seconds()? - before;
        let mut text = String::new();
        writeln!(text, "\nWhat a device costs, with 4 queues:\n")?;
        writeln!(text, "| what | measured | target |\n|---|---|---|")?;
        writeln!(
            text,
            "| from start to a socket that answers, median of 20 | {:.1} ms | 10 ms |",
            median(times)
        )?;
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            text,
            "| private memory after a load, page tables included | {:.1} MiB | 8 MiB |",
            mib(private)
        )?;
        writeln!(
            text,
            "| pages of the program and its libraries beside that, which all devices share | {:.1} MiB | |",
            mib(of_files)
        )?;
        writeln!(
            text,
            "| processor time in 5 s of a driver that asks for nothing | {idle:.2} s | 0 |"
        )?;
        Ok(text)
    }
}

/// Stops a process where it is.
fn stop(server: &Server) -> Result<()> {
    let status = Command::new("kill")
        .args(["-STOP", &server.child.id().to_string()])
        .status()?;
    ensure!(status.success(), "cannot stop the driver");
    Ok(())
}

/// Waits until the device answers VHOST_USER_GET_FEATURES.
fn answers(socket: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(error) => ensure!(Instant::now() < deadline, "no socket: {error}"),
        }
        std::thread::sleep(Duration::from_micros(100));
    };
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = [1_u32, 1, 0].map(u32::to_ne_bytes);
    stream.write_all(request.as_flattened())?;
    stream.read_exact(&mut [0; 20])?;
    Ok(())
}

fn who_is(who: Contestant) -> &'static str {
    match who {
        Contestant::Linkspan([]) => "linkspan",
        Contestant::Linkspan(_) => "ours with `--no-map`",
        Contestant::Qsd => "qemu-storage-daemon",
        Contestant::RustVmm => "vhost-user-backend",
        Contestant::Preadv => "bare preadv",
        Contestant::Uring => "bare io_uring",
    }
}

/// Rows of the table: one for each peer.
fn line(row: &Row, series: &[Series]) -> String {
    let ours = &series[0];
    let mut text = String::new();
    let kilo = |rate: f64| rate / 1e3;
    if row.against.is_empty() {
        let _ = writeln!(
            text,
            "| {} | {:.0} | {:.2} | | | | | |",
            row.name,
            kilo(ours.rate()),
            ours.cpu()
        );
    }
    for ((who, target), theirs) in row.against.iter().zip(&series[1..]) {
        let (low, high) = ours.spread(theirs);
        let _ = writeln!(
            text,
            "| {} | {:.0} | {:.2} | {} | {:.0} | {:.2} | **{:.2}** ({low:.2}–{high:.2}) | {target:.1} |",
            row.name,
            kilo(ours.rate()),
            ours.cpu(),
            who_is(*who),
            kilo(theirs.rate()),
            theirs.cpu(),
            ours.rate() / theirs.rate(),
        );
    }
    text.trim_end().to_owned()
}

fn page(args: &Args, results: &[(&Row, Vec<Series>)]) -> String {
    let mut text = format!(
        "`cargo xtask bench blk --rounds {} --seconds {}` on {}. 4 KiB random reads of a cached\n\
         raw file of 1 GiB; a server has one processor and the driver the other; the driver polls unless it\n\
         says otherwise: a sleeping one sleeps whenever no answer is there (`--poll-us 0`). Thousands of operations a second and the server's processor seconds per million\n\
         operations: medians. The ratio is that of the medians, and in parentheses the lowest and highest of a round.\n\n\
         | row | ours | CPU | peer | its rate | its CPU | ratio | target |\n|---|---|---|---|---|---|---|---|\n",
        args.rounds,
        args.seconds,
        machine()
    );
    for (row, series) in results {
        text += &line(row, series);
        text.push('\n');
    }
    text += &split(results);
    text
}

/// Where the time of a request goes, from rows that differ in one thing.
fn split(results: &[(&Row, Vec<Series>)]) -> String {
    let time = |name: &str| {
        let found = results.iter().find(|(row, _)| row.name == name)?;
        Some(1e9 / found.1[0].rate())
    };
    let against = |name: &str, is: fn(Contestant) -> bool| {
        let (row, series) = results.iter().find(|(row, _)| row.name == name)?;
        let place = row.against.iter().position(|(who, _)| is(*who))?;
        Some(1e9 / series[place + 1].rate())
    };
    let parts = || {
        let ring = time("null, depth 32")?;
        let copied = time("memory, depth 32")?;
        let by_calls = |name| against(name, |who| matches!(who, Contestant::Linkspan(_)));
        let bare = against("tmpfs, depth 32", |who| matches!(who, Contestant::Preadv))?;
        let sleeping = time("tmpfs, depth 1, sleeping driver")?;
        let polling = time("tmpfs, depth 1")?;
        // Whoever sleeps cannot be the faster one, unless the machine was busy meanwhile.
        let wakes = sleeping - polling;
        let wakes = if wakes > 0.0 {
            format!("{wakes:.0}")
        } else {
            "not seen".to_owned()
        };
        Some(format!(
            "\nWhere the time of a request goes, as differences of rows (nanoseconds): ring and request, with a null image,\n\
             {ring:.0}; the copy, from a memory image, {:.0}; the mapping of a file, tmpfs {:.0} and ext4 {:.0}; in its\n\
             place, with `--no-map`, the system call and the page cache, tmpfs {:.0} and ext4 {:.0} (a bare `preadv` with its\n\
             copy takes {bare:.0} on tmpfs); two wake-ups, at depth 1 with a driver that sleeps, {wakes}.\n",
            copied - ring,
            time("tmpfs, depth 32")? - copied,
            time("ext4, depth 32")? - copied,
            by_calls("tmpfs, depth 32")? - copied,
            by_calls("ext4, depth 32")? - copied,
        ))
    };
    parts().unwrap_or_default()
}

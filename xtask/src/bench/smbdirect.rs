//! `cargo xtask bench smbdirect`: SMB Direct over user-space iWARP on loopback, against TCP
//! alone. Both ends are processes, each on a processor of its own. Not to be mistaken for
//! RDMA hardware.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::blk::example;
use super::{Args, Series, Turn, alternate, answer, machine, number, pinned};
use crate::project::Project;
use crate::run::build;

/// Who takes part.
#[derive(Clone, Copy)]
enum Contestant {
    /// A mode of our bench, with options.
    Bench(&'static [&'static str]),
    /// Our round trip.
    Ping,
    /// TCP: bytes of a write and of a read, and of the memory that writes are from and reads
    /// go to.
    Tcp {
        write: u32,
        read: u32,
        memory: [u32; 2],
    },
    /// A round trip of TCP.
    TcpPing,
}

use Contestant::{Bench, Ping, Tcp, TcpPing};

/// Writes and reads as large as ours are, and as much memory at either end.
const fn batched(memory: [u32; 2]) -> Contestant {
    Tcp {
        write: 512 << 10,
        read: 64 << 10,
        memory,
    }
}

/// Writes of so many bytes, where ours are messages.
const fn messages(write: u32) -> Contestant {
    Tcp {
        write,
        read: 64 << 10,
        memory: [4 << 20; 2],
    }
}

/// Of writes of 1 MiB four are under way, from as many places to one; reads the other way.
const WRITES: [u32; 2] = [4 << 20, 1 << 20];
const READS: [u32; 2] = [1 << 20, 4 << 20];
const LONG_WRITES: [u32; 2] = [32 << 20, 8 << 20];

struct Row {
    name: &'static str,
    ours: Contestant,
    /// Against whom, and the ratio of rates that is wanted.
    against: &'static [(Contestant, &'static str, Option<f64>)],
}

/// Connections that say nothing, and how long they are looked at.
const IDLE: u32 = 1000;
const IDLE_FOR: Duration = Duration::from_secs(5);

/// A ratio of times of at most 1.3.
const ROUND_TRIP: f64 = 1.0 / 1.3;

#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { name: "RDMA write, 1 MiB", ours: Bench(&["--mode", "write"]), against: &[(batched(WRITES), "TCP, batched alike", Some(0.9))] },
    Row { name: "RDMA write, 1 MiB, CRC", ours: Bench(&["--mode", "write", "--crc"]), against: &[(batched(WRITES), "TCP, batched alike", Some(0.85))] },
    Row { name: "RDMA read, 1 MiB", ours: Bench(&["--mode", "read", "--ord", "8"]), against: &[(batched(READS), "TCP, batched alike", Some(0.9))] },
    Row { name: "RDMA read, 1 MiB, CRC", ours: Bench(&["--mode", "read", "--ord", "8", "--crc"]), against: &[(batched(READS), "TCP, batched alike", Some(0.85))] },
    Row { name: "RDMA write, 8 MiB", ours: Bench(&["--mode", "write", "--size", "8M"]), against: &[(batched(LONG_WRITES), "TCP, batched alike", Some(0.9))] },
    Row { name: "sends of 1364 bytes", ours: Bench(&["--mode", "send"]), against: &[
        (messages(1364), "TCP, a write for each message", Some(3.0)),
        (messages(64 << 10), "TCP, writes of 64 KiB", Some(0.5)),
    ] },
    Row { name: "sends of 1364 bytes, 4 connections", ours: Bench(&["--mode", "send", "--connections", "4"]), against: &[(messages(64 << 10), "TCP, writes of 64 KiB", None)] },
    Row { name: "round trip of 64 bytes", ours: Ping, against: &[(TcpPing, "TCP", Some(ROUND_TRIP))] },
];

struct Rig {
    linkspan: PathBuf,
    bare_tcp: PathBuf,
    idle: PathBuf,
    seconds: f64,
}

pub(super) fn run(project: &Project, args: &Args) -> Result<String> {
    let rig = Rig {
        linkspan: build(project)?,
        bare_tcp: example(project, "linkspan-sys", "bare_tcp")?,
        idle: example(project, "linkspan-backends", "idle_smbdirect")?,
        seconds: args.seconds,
    };
    let wanted = |name: &str| args.only.as_ref().is_none_or(|only| name.contains(only));
    let mut text = format!(
        "`cargo xtask bench smbdirect --rounds {} --seconds {}` on {}. Loopback, each end\n\
         a process on a processor of its own; not to be mistaken for RDMA hardware. 10^6 bytes of payload a second, or\n\
         round trips; nanoseconds of processor a byte at both ends together, and system calls of the sending end a\n\
         MiB: medians. The ratio is that of the medians, and in parentheses the lowest and highest of a round.\n\n\
         | row | ours | CPU | peer | its rate | its CPU | ratio | target |\n\
         |---|---|---|---|---|---|---|---|\n",
        args.rounds,
        args.seconds,
        machine()
    );
    for row in ROWS.iter().filter(|row| wanted(row.name)) {
        let mut contestants = vec![row.ours];
        contestants.extend(row.against.iter().map(|(who, ..)| *who));
        let rig = &rig;
        let turns: Vec<Box<dyn Fn() -> Result<Turn> + '_>> = contestants
            .into_iter()
            .map(|who| -> Box<dyn Fn() -> Result<Turn> + '_> { Box::new(move || rig.turn(who)) })
            .collect();
        let series = alternate(args.rounds, &turns)?;
        let lines = lines(row, &series);
        eprint!("{lines}");
        text += &lines;
    }
    text += &calls(&rig)?;
    text += &rig.idle()?;
    Ok(text)
}

fn lines(row: &Row, series: &[Series]) -> String {
    let ours = &series[0];
    let cpu = |series: &Series| match series.cpu() {
        0.0 => String::new(),
        cpu => format!("{cpu:.2}"),
    };
    let mut text = String::new();
    for ((_, name, target), theirs) in row.against.iter().zip(&series[1..]) {
        let (low, high) = ours.spread(theirs);
        let target = target.map_or(String::new(), |target| format!("{target:.2}"));
        text += &format!(
            "| {} | {:.0} | {} | {name} | {:.0} | {} | **{:.2}** ({low:.2}–{high:.2}) | {target} |\n",
            row.name,
            ours.rate(),
            cpu(ours),
            theirs.rate(),
            cpu(theirs),
            ours.rate() / theirs.rate(),
        );
    }
    text
}

/// System calls of our initiator, which counts them.
fn calls(rig: &Rig) -> Result<String> {
    let mut text = String::from("\nSystem calls of our initiator a MiB, of any kind: ");
    let mut said = Vec::new();
    for (name, args) in [
        ("writes of 1 MiB", &["--mode", "write"][..]),
        ("reads of 1 MiB", &["--mode", "read", "--ord", "8"]),
        ("sends of 1364 bytes", &["--mode", "send"]),
    ] {
        let (value, _) = rig.bench(args)?;
        said.push(format!(
            "{name} {:.1}",
            number(&value, "system_calls_per_mib")?
        ));
    }
    text += &said.join(", ");
    text += ".\n";
    Ok(text)
}

impl Rig {
    fn turn(&self, who: Contestant) -> Result<Turn> {
        match who {
            Bench(args) => {
                let (value, listener_cpu) = self.bench(args)?;
                let bytes = number(&value, "messages")? * number(&value, "size")?;
                Ok(Turn {
                    rate: number(&value, "bytes_per_second")? / 1e6,
                    cpu: (number(&value, "cpu_seconds")? + listener_cpu) * 1e9 / bytes,
                })
            }
            Ping => {
                let listener = self.listener("--echo")?;
                let mut command = pinned(1, &self.linkspan);
                command.args(["smbdirect", "ping", &listener.address, "--json"]);
                command.args(["--count", "20000"]);
                let value = answer(command)?;
                let rate = 1e6 / number(&value["rtt_us"], "median")?;
                Ok(Turn { rate, cpu: 0.0 })
            }
            Tcp {
                write,
                read,
                memory: [from, to],
            } => {
                let sink = self.bare(&["sink", &read.to_string(), &to.to_string()])?;
                let mut command = pinned(1, &self.bare_tcp);
                let (write, seconds) = (write.to_string(), self.seconds.to_string());
                let from = from.to_string();
                command.args(["stream", &sink.address, &write, &seconds, &from]);
                let value = answer(command)?;
                let cpu = number(&value, "cpu_seconds")? + sink.cpu_seconds()?;
                Ok(Turn {
                    rate: number(&value, "bytes_per_second")? / 1e6,
                    cpu: cpu * 1e9 / number(&value, "bytes")?,
                })
            }
            TcpPing => {
                let echo = self.bare(&["echo"])?;
                let mut command = pinned(1, &self.bare_tcp);
                command.args(["ping", &echo.address, "64", "20000"]);
                let rate = 1e6 / number(&answer(command)?, "median_us")?;
                Ok(Turn { rate, cpu: 0.0 })
            }
        }
    }

    /// What a listener takes for connections that say nothing.
    fn idle(&self) -> Result<String> {
        let listener = self.listener("--echo")?;
        let before = listener.resident()?;
        let mut command = pinned(1, &self.idle);
        command.args([&listener.address, &IDLE.to_string()]);
        let line = |line: &str| Some(line.to_owned()).filter(|line| line.trim() == "ready");
        let peers = Other::start(command, line)?;
        let took = listener.resident()? - before;
        let cpu = listener.cpu_seconds()?;
        std::thread::sleep(IDLE_FOR);
        let cpu = listener.cpu_seconds()? - cpu;
        drop(peers);
        Ok(format!(
            "\n{IDLE} connections that say nothing take {:.1} MiB of the listener (target: less than 64), and {:.3} ms of\n\
             processor in {} s.\n",
            took / f64::from(1 << 20),
            cpu * 1e3,
            IDLE_FOR.as_secs(),
        ))
    }

    /// What our bench says, and processor seconds of the listener.
    fn bench(&self, args: &[&str]) -> Result<(serde_json::Value, f64)> {
        let listener = self.listener("--sink")?;
        let mut command = pinned(1, &self.linkspan);
        command.args(["smbdirect", "bench", &listener.address, "--json"]);
        command
            .args(["--seconds", &self.seconds.to_string()])
            .args(args);
        let value = answer(command)?;
        Ok((value, listener.cpu_seconds()?))
    }

    fn listener(&self, mode: &str) -> Result<Other> {
        let mut command = pinned(0, &self.linkspan);
        command.args([
            "smbdirect",
            "listen",
            "--addr",
            "127.0.0.1:0",
            "--json",
            mode,
        ]);
        Other::start(command, |line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(line["address"].as_str()?.to_owned())
        })
    }

    fn bare(&self, args: &[&str]) -> Result<Other> {
        let mut command = pinned(0, &self.bare_tcp);
        command.args(args);
        Other::start(command, |line| Some(line.trim().to_owned()))
    }
}

/// The end that listens; it ends with the value.
pub(super) struct Other {
    child: Child,
    pub(super) address: String,
}

impl Other {
    pub(super) fn start(
        mut command: Command,
        address: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let mut child = command
            .env("LINKSPAN_LOG", "off")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        let address = address(&line).with_context(|| format!("{command:?} says {line:?}"))?;
        Ok(Self { child, address })
    }

    /// Bytes of it that are in memory and no file's.
    fn resident(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find(|line| line.starts_with("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(kib.context("no RssAnon")?.parse::<f64>()? * 1024.0)
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.id())
    }
}

/// Processor seconds of a process so far, to a nanosecond: those of all its threads.
pub(super) fn cpu_seconds(process: u32) -> Result<f64> {
    let folder = format!("/proc/{process}/task");
    let mut nanoseconds = 0.0;
    for thread in std::fs::read_dir(Path::new(&folder))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        let first = text.split_whitespace().next().context("no time")?;
        nanoseconds += first.parse::<f64>()?;
    }
    Ok(nanoseconds / 1e9)
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

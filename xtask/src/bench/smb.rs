//! `cargo xtask bench smb`: files over SMB Direct against SMB over TCP, with the same client,
//! server and file; and our gateway against a plain relay of TCP in its place.
//!
//! On this machine the server is Samba, or ours, and all are processes on loopback. ksmbd alone has
//! SMB Direct without a relay: it is in the lab guest (`ksmbd`), which is emulated.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use super::blk::example;
use super::{Args, Folder, Series, Turn, alternate, answer, machine, median, number};
use crate::packages;
use crate::project::Project;
use crate::run::build;

mod ksmbd;

/// Bytes of the file, which is in memory.
const FILE: usize = 64 << 20;

/// What the relay reads at a time, as much as the gateway does at most.
const RELAY_READ: &str = "262144";

/// How the client gets at the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    /// SMB Direct to our gateway, and TCP to Samba.
    Gateway,
    /// TCP to a relay, and TCP to Samba.
    Relay,
    /// SMB Direct to our server, which has a gateway in it.
    ServeDirect,
    /// TCP to our server.
    ServeTcp,
}

struct Row {
    name: &'static str,
    way: &'static str,
    ours: By,
    peer: By,
    peer_is: &'static str,
    target: &'static str,
}

const RELAY: &str = "a relay of TCP";
const TCP: &str = "TCP to the same";

#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { name: "read through the gateway", way: "read", ours: By::Gateway, peer: By::Relay, peer_is: RELAY, target: "0.90" },
    Row { name: "write through the gateway", way: "write", ours: By::Gateway, peer: By::Relay, peer_is: RELAY, target: "0.90" },
    Row { name: "read from `smb serve`", way: "read", ours: By::ServeDirect, peer: By::ServeTcp, peer_is: TCP, target: "" },
    Row { name: "write to `smb serve`", way: "write", ours: By::ServeDirect, peer: By::ServeTcp, peer_is: TCP, target: "" },
];

/// A program that stays until this is dropped.
struct Running {
    child: Child,
    /// What it said first.
    said: Vec<Value>,
    /// It ends in order when its standard input does.
    by_input: bool,
}

impl Running {
    /// Waits until it has said so many lines.
    fn start(mut command: Command, lines: usize) -> Result<Self> {
        let child = command
            .env("LINKSPAN_LOG", "off")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let mut running = Self {
            child,
            said: Vec::new(),
            by_input: false,
        };
        let out = running.child.stdout.take().context("no output")?;
        for line in BufReader::new(out).lines().take(lines) {
            let line = line?;
            let value = serde_json::from_str(&line);
            running
                .said
                .push(value.with_context(|| format!("{command:?} says {line:?}"))?);
        }
        anyhow::ensure!(running.said.len() == lines, "{command:?} does not start");
        Ok(running)
    }

    /// Where it listens.
    fn address(&self, event: &str) -> Result<String> {
        let mut lines = self.said.iter();
        let line = lines.find(|line| line["event"] == event);
        let address = line.and_then(|line| line["address"].as_str());
        Ok(address.context("it does not say where")?.to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if !self.by_input {
            drop(self.child.kill());
        }
        drop(self.child.wait());
    }
}

/// Processor seconds of a process and of its group, those of children that are gone included.
fn cpu_seconds(process: u32) -> Result<f64> {
    let mut ticks = 0.0;
    for entry in fs::read_dir("/proc")? {
        // What is gone meanwhile is in the times of its parent.
        let Ok(text) = fs::read_to_string(entry?.path().join("stat")) else {
            continue;
        };
        let (id, rest) = text.split_once(" (").context("no name")?;
        let after = rest.rsplit_once(") ").context("no end of the name")?.1;
        let fields: Vec<&str> = after.split(' ').collect();
        let field = |at: usize| fields.get(at).and_then(|word| word.parse::<f64>().ok());
        let of = |range: std::ops::Range<usize>| range.filter_map(field).sum::<f64>();
        let is_it = id.parse() == Ok(process);
        if is_it || field(2) == Some(f64::from(process)) {
            // utime and stime (proc_pid_stat(5)).
            ticks += of(11..13);
        }
        if is_it {
            // Those of children that were waited for.
            ticks += of(13..15);
        }
    }
    Ok(ticks / 100.0)
}

/// Figures of each turn, by what was measured and the way there.
type Costs = BTreeMap<(&'static str, By), Vec<[f64; 3]>>;

struct Rig {
    stream: PathBuf,
    user: String,
    password: String,
    seconds: f64,
    /// Samba's own process, and what is between.
    samba: u32,
    gateway: Running,
    relay: Running,
    serve: Running,
    /// Nanoseconds of client, what is between and server a byte, of each turn.
    costs: RefCell<Costs>,
    /// Last, since the others end before their server.
    _keeper: Running,
    _folder: Folder,
}

impl Rig {
    fn new(project: &Project, args: &Args) -> Result<Self> {
        packages::ensure(packages::TESTS)?;
        let linkspan = build(project)?;
        let stream = example(project, "linkspan-backends", "smb_stream")?;
        let bare_tcp = example(project, "linkspan-sys", "bare_tcp")?;
        let folder = Folder::new(Path::new("/dev/shm"))?;
        let mut command = Command::new(&stream);
        let mut keeper = Running::start(taken(command.arg("samba").arg(&folder.0)), 1)?;
        keeper.by_input = true;
        let text = |name: &str| {
            let word = keeper.said[0][name].as_str();
            word.map(str::to_owned)
                .with_context(|| format!("no {name}"))
        };
        let (user, password, share) = (text("user")?, text("password")?, text("share")?);
        fs::write(Path::new(&share).join("file"), vec![1; FILE])?;
        let port = number(&keeper.said[0], "port")?.to_string();
        let mut command = Command::new(&linkspan);
        command.args(["smb", "gateway", "--json", "--listen", "127.0.0.1:0"]);
        let gateway = Running::start(
            taken(command.arg("--to").arg(format!("127.0.0.1:{port}"))),
            1,
        )?;
        let mut command = Command::new(&bare_tcp);
        let relay = Running::start(taken(command.args(["relay", &port, RELAY_READ])), 1)?;
        let mut command = Command::new(&linkspan);
        command.args(["smb", "serve", "--json", "--user", &user]);
        command.args(["--share", &format!("files={share}")]);
        command.args([
            "--listen-tcp",
            "127.0.0.1:0",
            "--listen-rdma",
            "127.0.0.1:0",
        ]);
        let serve = Running::start(taken(command.env("SMB_PASSWORD", &password)), 2)?;
        let samba = number(&keeper.said[0], "process")?;
        Ok(Self {
            stream,
            user,
            password,
            seconds: args.seconds,
            samba: format!("{samba}").parse()?,
            gateway,
            relay,
            serve,
            costs: RefCell::default(),
            _keeper: keeper,
            _folder: folder,
        })
    }

    /// Where the client goes, what is between, and the server.
    fn place(&self, by: By) -> Result<(&'static str, String, Option<u32>, u32)> {
        let serve = self.serve.child.id();
        Ok(match by {
            By::Gateway => {
                let address = self.gateway.address("listening")?;
                ("rdma", address, Some(self.gateway.child.id()), self.samba)
            }
            By::Relay => {
                let address = format!("127.0.0.1:{}", self.relay.said[0]);
                ("tcp", address, Some(self.relay.child.id()), self.samba)
            }
            By::ServeDirect => ("rdma", self.serve.address("listening")?, None, serve),
            By::ServeTcp => ("tcp", self.serve.address("serving")?, None, serve),
        })
    }

    fn turn(&self, row: &'static str, way: &str, by: By) -> Result<Turn> {
        let (transport, address, between, server) = self.place(by)?;
        let now = || -> Result<[f64; 2]> {
            Ok([between.map_or(Ok(0.0), cpu_seconds)?, cpu_seconds(server)?])
        };
        let before = now()?;
        let mut command = Command::new(&self.stream);
        let seconds = self.seconds.to_string();
        command.args([
            way, transport, &address, "files", "file", &seconds, &self.user,
        ]);
        let value = answer(taken(command.env("SMB_PASSWORD", &self.password)))?;
        let after = now()?;
        let bytes = number(&value, "bytes")?;
        let cost = |seconds: f64| seconds * 1e9 / bytes;
        let costs = [
            cost(number(&value, "cpu_seconds")?),
            cost(after[0] - before[0]),
            cost(after[1] - before[1]),
        ];
        let mut all = self.costs.borrow_mut();
        all.entry((row, by)).or_default().push(costs);
        Ok(Turn {
            rate: number(&value, "bytes_per_second")? / 1e6,
            cpu: costs.iter().sum(),
        })
    }

    /// The medians, as words.
    fn costs(&self, row: &'static str, by: By) -> String {
        let all = self.costs.borrow();
        let turns = all.get(&(row, by)).map(Vec::as_slice).unwrap_or_default();
        let costs = (0..3).map(|at| median(turns.iter().map(|turn| turn[at]).collect()));
        let words: Vec<String> = costs.map(|cost| format!("{cost:.2}")).collect();
        words.join(" + ")
    }
}

/// A command that was put together.
fn taken(command: &mut Command) -> Command {
    std::mem::replace(command, Command::new("true"))
}

pub(super) fn run(project: &Project, args: &Args) -> Result<String> {
    let wanted = |name: &str| args.only.as_ref().is_none_or(|only| name.contains(only));
    let mut text = format!(
        "`cargo xtask bench smb --rounds {} --seconds {}` on {}. A file of {} MiB in memory, whole and again\n\
         and again, requests of 1 MiB, 16 in flight, neither signed nor encrypted; on loopback, not to be mistaken for RDMA\n\
         hardware. The server is Samba where it is not ours. 10^6 bytes a second, and nanoseconds of processor a byte of client +\n\
         what is between + server (`smb serve` is both): medians. The ratio is that of the medians, and in parentheses\n\
         the lowest and highest of a round.\n\n\
         | row | SMB Direct | CPU | peer | its rate | its CPU | ratio | target |\n\
         |---|---|---|---|---|---|---|---|\n",
        args.rounds,
        args.seconds,
        machine(),
        FILE >> 20,
    );
    if ROWS.iter().any(|row| wanted(row.name)) {
        let rig = Rig::new(project, args)?;
        for row in ROWS.iter().filter(|row| wanted(row.name)) {
            let turn = |by: By| -> Box<dyn Fn() -> Result<Turn> + '_> {
                let rig = &rig;
                Box::new(move || rig.turn(row.name, row.way, by))
            };
            let series = alternate(args.rounds, &[turn(row.ours), turn(row.peer)])?;
            let line = line(row, &rig, &series);
            eprint!("{line}");
            text += &line;
        }
    }
    text += &ksmbd::run(project, args)?;
    Ok(text)
}

fn line(row: &Row, rig: &Rig, series: &[Series]) -> String {
    let (low, high) = series[0].spread(&series[1]);
    format!(
        "| {} | {:.0} | {} | {} | {:.0} | {} | **{:.2}** ({low:.2}–{high:.2}) | {} |\n",
        row.name,
        series[0].rate(),
        rig.costs(row.name, row.ours),
        row.peer_is,
        series[1].rate(),
        rig.costs(row.name, row.peer),
        series[0].rate() / series[1].rate(),
        row.target,
    )
}

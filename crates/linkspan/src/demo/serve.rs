//! Programs that serve the guest, each a child of the demo, and `linkspan net` of them.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde_json::Value;

use super::Error;
use super::address::{Network, PREFIX_LEN};
use super::check::Server;
use super::machine::Place;
use super::page::Link;
use super::process::{self, Process, Stop, await_socket, supervised};
use crate::plane::Viewers;
use crate::supervisor::Line;

/// How long a program may take until it listens, or answers a signal.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// The responder's network, as in user networks of QEMU.
const RESPONDER: &str = "responder,address=10.0.2.2/24,lease=10.0.2.15";
const RESPONDER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const LEASE: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Exit status of a program that lacks a permission or a kernel feature.
const MISSING: i32 = 5;

/// A child that serves, with its socket and its log.
pub(super) struct Served {
    pub(super) process: Process,
    pub(super) socket: PathBuf,
    log: PathBuf,
    /// What there is to see of it is asked here.
    line: Option<Line>,
}

impl Served {
    /// Starts this program with `args`, and waits until it listens at `NAME.sock`.
    pub(super) fn start(
        name: &'static str,
        short: &str,
        args: impl FnOnce(&Path) -> Vec<String>,
        dir: &Path,
        stop: &Stop,
    ) -> Result<Self, Error> {
        let socket = dir.join(format!("{short}.sock"));
        let words = [vec![short.to_owned()], args(&socket)].concat();
        let (line, theirs) = Line::new().map_err(Error::system("make a socket"))?;
        let (mut process, log, _) = spawn(name, &words, Some(theirs), dir)?;
        await_socket(&mut process, &socket, &log, LIMIT, stop)?;
        Ok(Self {
            process,
            socket,
            log,
            line: Some(line),
        })
    }

    /// For a page, which calls it so.
    pub(super) fn link(&mut self, name: &'static str, viewers: Option<Viewers>) -> Link {
        Link {
            name,
            pid: self.process.id(),
            line: self.line.take(),
            viewers,
        }
    }

    /// What it said, for somebody who has to find out why a check failed.
    pub(super) fn show_log(&self) {
        for line in process::tail(&self.log).lines() {
            eprintln!("{}: {line}", self.process.name());
        }
    }

    pub(super) fn server(&mut self) -> Server<'_> {
        Server {
            process: &mut self.process,
            log: &self.log,
        }
    }
}

/// Starts this program with these words, the first of which also names its files: the process,
/// its log, and where its standard output goes.
pub(super) fn spawn<S: AsRef<str>>(
    name: &'static str,
    words: &[S],
    line: Option<OwnedFd>,
    dir: &Path,
) -> Result<(Process, PathBuf, PathBuf), Error> {
    let short = words.first().map_or("", AsRef::as_ref);
    let place = |kind: &str| dir.join(format!("{short}.{kind}"));
    let (log, events) = (place("log"), place("events"));
    let create = |path: &Path| fs::File::create(path).map_err(Error::file("write", path));
    let mut command = supervised(&this_program()?);
    if line.is_some() {
        command.arg(format!("--supervisor={}", std::process::id()));
    }
    command
        .args(words.iter().map(AsRef::as_ref))
        .stdin(line.map_or_else(Stdio::null, Stdio::from))
        .stdout(create(&events)?)
        .stderr(create(&log)?);
    let process = Process::spawn(name, &mut command)?;
    Ok((process, log, events))
}

/// This program's file.
pub(super) fn this_program() -> Result<PathBuf, Error> {
    std::env::current_exe().map_err(Error::system("find this program's file"))
}

pub(super) fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Which network a guest is to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// One with this machine where that is allowed, else one with the responder
    #[default]
    Auto,
    /// One with this machine, by a tap interface that is made for the demo
    Tap,
    /// One with a host that is not there: it answers ARP, ping and DHCP
    Responder,
    /// None
    None,
}

/// Who is at the other end of the guest's network.
#[derive(Debug)]
pub(super) enum Form {
    /// This machine, by an interface.
    Tap { interface: String, network: Network },
    /// The responder.
    Responder,
    /// Each frame comes back: for a driver in place of a guest.
    Echo,
}

/// A network as a report has it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Described {
    form: &'static str,
    queue_pairs: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<Ipv4Addr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<Ipv4Addr>,
}

impl std::fmt::Display for Described {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pairs = self.queue_pairs;
        match &self.interface {
            Some(interface) => write!(f, "a network with this machine ({interface})")?,
            None if self.peer.is_some() => write!(f, "a network with the responder")?,
            None => write!(f, "a network that sends frames back")?,
        }
        write!(f, " with {pairs} queue pairs")
    }
}

/// `linkspan net` with the guest's network.
pub(super) struct Net {
    pub(super) served: Served,
    pub(super) form: Form,
    pub(super) pairs: u16,
    events: PathBuf,
}

impl Net {
    /// Starts the network of this kind, and gives this machine its address in it;
    /// `None` where none is to be.
    ///
    /// # Errors
    /// [`Error::Tap`] where an interface is asked for and may not be made.
    pub(super) fn start(
        choice: Choice,
        pairs: u16,
        dir: &Path,
        stop: &Stop,
    ) -> Result<Option<Self>, Error> {
        let tap = || Self::tap(pairs, dir, stop);
        let form = match choice {
            Choice::None => return Ok(None),
            Choice::Tap => tap()?,
            Choice::Responder => Self::responder(pairs, dir, stop)?,
            Choice::Auto => match tap() {
                Err(error @ Error::Tap { .. }) => {
                    eprintln!("linkspan: {error}");
                    eprintln!("linkspan: so the guest's network has the responder in it");
                    Self::responder(pairs, dir, stop)?
                }
                result => result?,
            },
        };
        eprintln!("linkspan: network of the guest: {}", form.place());
        Ok(Some(form))
    }

    fn tap(pairs: u16, dir: &Path, stop: &Stop) -> Result<Self, Error> {
        let no = |why: String| Error::Tap { why };
        let network = Network::choose()
            .map_err(|error| no(format!("the networks of this machine: {error}")))?
            .ok_or_else(|| no("every private network is in use on this machine".into()))?;
        let ports = vec![format!("tap:linkspan%d,queues={pairs}")];
        let (served, events) =
            Self::serve(ports, pairs, dir, stop).map_err(|error| match error {
                Error::Ended { status, tail, .. } if status.code() == Some(MISSING) => {
                    let last = tail.lines().last().unwrap_or_default();
                    no(last.trim_start_matches("linkspan: ").to_owned())
                }
                error => error,
            })?;
        let interface = reports(&events, "opened")
            .first()
            .and_then(|event| Some(event["interface"].as_str()?.to_owned()))
            .ok_or_else(|| no("linkspan net did not say what it is called".into()))?;
        linkspan_sys::interface::give_address(&interface, network.host(), PREFIX_LEN)
            .map_err(|error| no(format!("an address for {interface}: {error}")))?;
        Ok(Self {
            served,
            form: Form::Tap { interface, network },
            pairs,
            events,
        })
    }

    fn responder(pairs: u16, dir: &Path, stop: &Stop) -> Result<Self, Error> {
        let (served, events) = Self::serve(vec![RESPONDER.into()], pairs, dir, stop)?;
        Ok(Self {
            served,
            form: Form::Responder,
            pairs,
            events,
        })
    }

    /// One whose frames come back.
    pub(super) fn echo(pairs: u16, dir: &Path, stop: &Stop) -> Result<Self, Error> {
        let (served, events) = Self::serve(Vec::new(), pairs, dir, stop)?;
        Ok(Self {
            served,
            form: Form::Echo,
            pairs,
            events,
        })
    }

    /// With a port for the guest behind the others; alone it gets its frames back.
    fn serve(
        ports: Vec<String>,
        pairs: u16,
        dir: &Path,
        stop: &Stop,
    ) -> Result<(Served, PathBuf), Error> {
        let args = |socket: &Path| {
            let mode = if ports.is_empty() { "echo" } else { "switch" };
            // With a worker for each pair a frame stays on the pair that it came by.
            let workers = pairs.to_string();
            let mut args = ["--json", "--mode", mode, "--workers", &workers]
                .map(str::to_owned)
                .to_vec();
            let guest = format!("vhost-user:{},queues={pairs}", text(socket));
            for port in ports.into_iter().chain([guest]) {
                args.extend(["--port".into(), port]);
            }
            args
        };
        let served = Served::start("linkspan net", "net", args, dir, stop)?;
        Ok((served, dir.join("net.events")))
    }

    /// What people are told of it.
    pub(super) fn place(&self) -> String {
        let pairs = self.pairs;
        match &self.form {
            Form::Tap { interface, network } => format!(
                "{} here ({interface}), {} there, {pairs} queue pairs",
                network.host(),
                network.guest(),
            ),
            Form::Responder => {
                format!("a responder at {RESPONDER_ADDRESS}, {pairs} queue pairs")
            }
            Form::Echo => format!("frames come back, {pairs} queue pairs"),
        }
    }

    pub(super) fn described(&self) -> Described {
        let addresses = self.addresses();
        Described {
            form: match &self.form {
                Form::Tap { .. } => "tap",
                Form::Responder => "responder",
                Form::Echo => "echo",
            },
            queue_pairs: self.pairs,
            interface: self.interface().map(str::to_owned),
            peer: addresses.map(|(peer, _)| peer),
            guest: addresses.map(|(_, guest)| guest),
        }
    }

    /// The interface of this machine, if it has one.
    pub(super) fn interface(&self) -> Option<&str> {
        match &self.form {
            Form::Tap { interface, .. } => Some(interface),
            Form::Responder | Form::Echo => None,
        }
    }

    /// Who answers the guest, and the guest's own address.
    pub(super) fn addresses(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        match &self.form {
            Form::Tap { network, .. } => Some((network.host(), network.guest())),
            Form::Responder => Some((RESPONDER_ADDRESS, LEASE)),
            Form::Echo => None,
        }
    }

    /// How the guest is to find it.
    pub(super) fn guest_place(&self) -> Place {
        match &self.form {
            Form::Tap { network, .. } => Place::Fixed {
                own: network.guest(),
                prefix_len: PREFIX_LEN,
                peer: network.host(),
            },
            Form::Responder => Place::Lease,
            Form::Echo => Place::None,
        }
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            process: self.served.process.id(),
            events: self.events.clone(),
            pairs: self.pairs.into(),
        }
    }
}

/// Asks a running `linkspan net` what it has counted.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    process: u32,
    events: PathBuf,
    pairs: usize,
}

/// Frames of a queue pair, from the guest and to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PairFrames {
    pub(super) from_guest: u64,
    pub(super) to_guest: u64,
}

impl Counts {
    /// Frames of each queue pair until now; `None` where it does not answer.
    ///
    /// # Errors
    /// [`Error::Stopped`], [`Error::System`].
    pub(super) fn take(&self, stop: &Stop) -> Result<Option<Vec<PairFrames>>, Error> {
        let guests = || {
            let counts = reports(&self.events, "counts");
            let is_guest = |event: &Value| {
                let port = event["port"].as_str().unwrap_or_default();
                port.starts_with("vhost-user:")
            };
            counts.into_iter().filter(is_guest).collect::<Vec<_>>()
        };
        let before = guests().len();
        let id = i32::try_from(self.process).ok().and_then(Pid::from_raw);
        let id = id.expect("a process has an id");
        kill_process(id, Signal::HUP).map_err(Error::system("signal a child process"))?;
        let deadline = Instant::now() + LIMIT;
        loop {
            stop.check()?;
            if let Some(event) = guests().get(before) {
                return Ok(Some(self.read(event)));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn read(&self, event: &Value) -> Vec<PairFrames> {
        let number = |pair: usize, way: &str| event["pairs"][pair][way].as_u64().unwrap_or(0);
        let pairs = (0..self.pairs).map(|pair| PairFrames {
            from_guest: number(pair, "frames_in"),
            to_guest: number(pair, "frames_out"),
        });
        pairs.collect()
    }
}

/// The lines of JSON about this event. One that is not whole yet is none.
pub(super) fn reports(events: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(events).unwrap_or_default();
    let events = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    events
        .filter(|event: &Value| event["event"] == name)
        .collect()
}

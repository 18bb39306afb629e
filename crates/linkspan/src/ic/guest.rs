//! `linkspan ic guest`: a thread for each service, over one channel after the other.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use linkspan_backends::fcopy::GuestEnd;
use linkspan_backends::ic::{Guest, clock_offset};
use linkspan_engine::vmbus::{Channel, Framed, FramedError};
use linkspan_engine::{Endpoint, Phase};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_sys::{thread, uio};
use linkspan_vmbus::ic::heartbeat::Pulse;
use linkspan_vmbus::ic::shutdown::{Obedience, Request};
use linkspan_vmbus::ic::timesync::{Follower, Purpose, Sample};
use linkspan_vmbus::ic::{GuestService, Service, Status as Answer};
use linkspan_vmbus::link::Frame;
use rustix::time::{ClockId, Timespec, clock_settime};
use serde::Serialize;

use super::{Named, action_name, services};
use crate::exit::{Failure, Status};
use crate::serving::print;
use crate::tether;

/// The first pause before another attempt, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// How long a host may take to give its channel.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A difference of clocks that is left as it is, in units of 100 ns: 100 ms.
const TOLERANCE: u128 = 1_000_000;

/// Options of `guest`.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Example: Hyper-V may ask this machine to end, and set its clock\n\n  \
        linkspan ic guest --allow-shutdown --allow-time-set\n\n\
        Without --connect the kernel has to give the devices to programs: each is to be bound\n\
        to uio_hv_generic instead of hv_utils (docs/ic.md)."
)]
pub(super) struct Args {
    /// What is served
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "heartbeat,shutdown,timesync"
    )]
    services: Vec<Named>,

    /// A host of ours at this socket, instead of the kernel's devices
    #[arg(long, value_name = "PATH")]
    connect: Option<PathBuf>,

    /// Does what the host wishes: power off, restart or hibernate. Otherwise it is refused
    #[arg(long)]
    allow_shutdown: bool,

    /// The program for that, which gets `poweroff`, `reboot` or `hibernate` as its argument
    #[arg(long, value_name = "PROGRAM", default_value = "systemctl")]
    shutdown_command: PathBuf,

    /// Sets the clock if the host says so and it is more than 100 ms off; needs
    /// CAP_SYS_TIME. Otherwise that is refused
    #[arg(long)]
    allow_time_set: bool,

    /// Prints what happens on standard output, one JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, Default)]
struct Line<'a> {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    force: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    /// Whether it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed: Option<bool>,
    /// Seconds that the host's clock is ahead.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset_seconds: Option<f64>,
    /// Whether the clock was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    set: Option<bool>,
}

/// Serves until a signal ends it.
///
/// # Errors
/// With the status that the program is to end with.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let signals = Arc::new(signals);
    let named = services(&args.services);
    if args.connect.is_none() {
        any_device(&named)?;
    }
    let mut threads = Vec::new();
    for name in named {
        let (args, signals) = (args.clone(), Arc::clone(&signals));
        let serve = move || {
            let source = Source {
                args: &args,
                name,
                signals: &signals,
                told: false,
            };
            let served = source.serve();
            if let Err(failure) = &served {
                tracing::warn!("{}: {failure}", name.name());
            }
            served
        };
        let thread = thread::spawn(format!("ic {}", name.name()), serve);
        threads.push(thread.context("cannot start a thread")?);
    }
    let mut result = Ok(());
    for thread in threads {
        let served = thread.join().expect("the thread of a service");
        result = result.and(served);
    }
    result
}

/// Whether there is a device at all, and otherwise why not.
fn any_device(named: &[Named]) -> Result<(), Failure> {
    let mut failure = None;
    for name in named {
        match find(name.service()) {
            Ok(_) => return Ok(()),
            Err(error) => {
                failure = Some(Failure::new(
                    Status::Missing,
                    anyhow!(error).context(name.name()),
                ));
            }
        }
    }
    let hint = "bind the devices to uio_hv_generic, or --connect";
    Err(match failure {
        Some(failure) => failure.hint(hint),
        None => Failure::new(Status::Usage, anyhow!("no service is named")),
    })
}

fn find(service: &Service) -> Result<uio::Found, uio::Error> {
    let class = service.interface.to_string();
    let instance = service.instance.map(|instance| instance.to_string());
    uio::find(&uio::Roots::default(), &class, instance.as_deref())
}

/// A service, and where its channels come from.
struct Source<'a> {
    args: &'a Args,
    name: Named,
    signals: &'a Signals,
    /// Whether it was said that there is none.
    told: bool,
}

impl Source<'_> {
    fn serve(self) -> Result<(), Failure> {
        match self.name {
            Named::Heartbeat => {
                self.keep(Pulse::default(), &mut |never| match never {}, &mut || {})
            }
            Named::Shutdown => self.serve_shutdown(),
            Named::Timesync => {
                let (args, name) = (self.args, self.name);
                self.keep(Follower, &mut |sample| time(args, name, sample), &mut || {})
            }
        }
    }

    fn serve_shutdown(self) -> Result<(), Failure> {
        let (args, name) = (self.args, self.name);
        // What was agreed to is done when the answer is on its way.
        let wish = std::cell::RefCell::new(None);
        self.keep(
            Obedience,
            &mut |request: Request| {
                let status = wished(args, name, &request);
                if status.is_ok() {
                    wish.replace(Some(request));
                }
                status
            },
            &mut || {
                if let Some(request) = wish.take() {
                    obey(&args.shutdown_command, &request);
                }
            },
        )
    }

    /// Serves one channel after the other.
    fn keep<S: GuestService>(
        mut self,
        service: S,
        act: &mut dyn FnMut(S::Effect) -> Answer,
        answered: &mut dyn FnMut(),
    ) -> Result<(), Failure> {
        let mut guest = Guest::new(service);
        let endpoint = Arc::new(Endpoint::default());
        let seen = (self.name.name(), Arc::clone(&endpoint));
        tether::watch(seen.0, guest.messages());
        tether::show(move || Some(tether::life(seen.0, &seen.1)));
        let mut pause = PAUSES[0];
        loop {
            let begun = Instant::now();
            if let Some((channel, mut socket)) = self.open()? {
                self.told = false;
                self.say("joined", None);
                endpoint.begin();
                endpoint.enter(Phase::Running);
                let end = guest.serve(
                    channel,
                    socket.as_mut(),
                    self.signals.as_fd(),
                    act,
                    answered,
                );
                if matches!(end, GuestEnd::Cancelled) {
                    self.say("stopped", None);
                    return Ok(());
                }
                let reason = end.to_string();
                endpoint.enter(Phase::Reconnecting);
                if end.is_fault() {
                    endpoint.fault(&reason);
                    tracing::warn!("{}: the channel ended: {reason}", self.name.name());
                }
                self.say("left", Some(reason));
                if begun.elapsed() > PAUSES[1] {
                    pause = PAUSES[0];
                }
            }
            let until = Instant::now() + pause;
            let signals = self.signals.as_fd();
            let woken = wait_for(signals, Direction::Read, None, Some(until));
            if woken.context("cannot wait")? == Wake::Ready {
                self.say("stopped", None);
                return Ok(());
            }
            pause = (pause * 2).min(PAUSES[1]);
        }
    }

    fn say(&self, event: &'static str, reason: Option<String>) {
        if self.args.json {
            print(&Line {
                event,
                service: Some(self.name.name()),
                reason,
                ..Line::default()
            });
        }
    }

    /// The next channel, if there is one now.
    fn open(&mut self) -> Result<Option<(Channel, Option<Framed>)>, Failure> {
        let opened = match &self.args.connect {
            Some(path) => match self.join(path) {
                Err(failure) if failure.status == Status::Usage => return Err(failure),
                joined => joined.map(|(channel, framed)| (channel, Some(framed))),
            },
            None => self.device().map(|channel| (channel, None)),
        };
        match opened {
            Ok(opened) => Ok(Some(opened)),
            // Another host may come, or this one by its right mind.
            Err(failure) => {
                if !std::mem::replace(&mut self.told, true) {
                    tracing::info!("{}: waiting: {failure}", self.name.name());
                }
                Ok(None)
            }
        }
    }

    fn device(&self) -> Result<Channel, Failure> {
        let device = find(self.name.service()).and_then(|found| uio::Device::open(&found));
        let device = device.map_err(|error| Failure::new(Status::Missing, error))?;
        Ok(Channel::device(device)?)
    }

    fn join(&self, path: &Path) -> Result<(Channel, Framed), Failure> {
        let service = self.name.service();
        let unreachable = |error| crate::fcopy::unreachable(path, error);
        let framed = Framed::connect_with(path, &Frame::hello_of(service));
        let mut framed = framed.map_err(unreachable)?;
        let deadline = Instant::now() + HANDSHAKE;
        let answer = framed.await_frame(self.signals.as_fd(), Some(deadline));
        let (frame, fds) = answer.map_err(unreachable)?;
        match frame {
            Frame::Channel {
                interface, shape, ..
            } if interface == service.interface => {
                let channel = Channel::guest(shape, fds);
                let channel = channel.map_err(|error| Failure::new(Status::PeerBroke, error))?;
                Ok((channel, framed))
            }
            Frame::Refused(reason) => Err(crate::fcopy::refused(path, reason)),
            _ => Err(unreachable(FramedError::Closed)),
        }
    }
}

/// What the host is told of its wish.
fn wished(args: &Args, name: Named, request: &Request) -> Answer {
    let (action, allowed) = (action_name(request.action), args.allow_shutdown);
    if args.json {
        print(&Line {
            event: "shutdown",
            service: Some(name.name()),
            action: Some(action),
            force: Some(request.force),
            message: Some(&request.message),
            allowed: Some(allowed),
            ..Line::default()
        });
    }
    if !allowed {
        tracing::warn!("the host's wish to {action} is refused: --allow-shutdown is not given");
        return Answer::FAIL;
    }
    tracing::warn!("the host wishes to {action}: {:?}", request.message);
    Answer::OK
}

/// Starts what ends this machine, and does not wait for it.
fn obey(program: &Path, request: &Request) {
    let action = action_name(request.action);
    let start = |program: &OsStr, arguments: &[&str]| -> io::Result<()> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut child = command.spawn()?;
        // Nobody else waits for it.
        thread::spawn("ic shutdown", move || drop(child.wait()))?;
        Ok(())
    };
    let started = match start(program.as_os_str(), &[action]) {
        // Without systemd the action is a program.
        Err(error) if error.kind() == io::ErrorKind::NotFound => start(action.as_ref(), &[]),
        started => started,
    };
    if let Err(error) = started {
        tracing::error!("cannot {action}: {error}");
    }
}

/// What the host is told of its time.
fn time(args: &Args, name: Named, sample: Sample) -> Answer {
    let offset = clock_offset(sample.unix_100ns);
    let wanted = sample.purpose == Purpose::Set;
    let far = offset.unsigned_abs() > TOLERANCE;
    let (answer, set) = match (wanted, args.allow_time_set) {
        (false, _) => (Answer::OK, false),
        (true, false) => {
            tracing::warn!("the host's time is refused: --allow-time-set is not given");
            (Answer::FAIL, false)
        }
        (true, true) if !far => (Answer::OK, false),
        (true, true) => match set_clock(sample.unix_100ns) {
            Ok(()) => (Answer::OK, true),
            Err(error) => {
                tracing::warn!("the clock cannot be set: {error}");
                (Answer::FAIL, false)
            }
        },
    };
    if args.json {
        print(&Line {
            event: if wanted { "set" } else { "sample" },
            service: Some(name.name()),
            allowed: wanted.then_some(args.allow_time_set),
            // Exact to a microsecond, which is more than a message is worth.
            offset_seconds: Some((offset / 10) as f64 / 1e6),
            set: wanted.then_some(set),
            ..Line::default()
        });
    }
    answer
}

fn set_clock(unix_100ns: u64) -> io::Result<()> {
    let per_second = 10_000_000;
    let seconds = i64::try_from(unix_100ns / per_second);
    let rest = i64::try_from(unix_100ns % per_second * 100);
    let (Ok(tv_sec), Ok(tv_nsec)) = (seconds, rest) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    Ok(clock_settime(
        ClockId::Realtime,
        Timespec { tv_sec, tv_nsec },
    )?)
}

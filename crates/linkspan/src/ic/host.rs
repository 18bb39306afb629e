//! `linkspan ic host`: the services, at a socket for guests.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use linkspan_backends::ic::{Host, HostEvent, HostOptions, Parting};
use linkspan_engine::{Endpoint, Phase};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_sys::{EventFd, Listener};
use linkspan_vmbus::ic::heartbeat::Health;
use linkspan_vmbus::ic::{SHUTDOWN, Service, shutdown};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use serde::Serialize;

use super::{Named, services};
use crate::exit::{Failure, Status};
use crate::plane::{Use, Used};
use crate::sandbox::{self, Kind};
use crate::serving::print;
use crate::tether;

/// Options of `host`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: a guest is to end; status 0 if it says that it will, 1 if not, 3 if it does not answer\n\n  \
        linkspan ic host --control /run/ic.sock --services shutdown --shutdown poweroff \\\n    \
          --message 'new kernel'"
)]
pub(super) struct Args {
    /// Where a guest connects
    #[arg(long, value_name = "PATH")]
    control: PathBuf,

    /// What is offered
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "heartbeat,shutdown,timesync"
    )]
    services: Vec<Named>,

    /// Seconds between two beats, and between two times
    #[arg(long, value_name = "SECONDS", default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(1..=86_400))]
    interval: u32,

    /// Asks the first guest that comes to do this, and ends with its answer
    #[arg(long, value_enum, value_name = "ACTION")]
    shutdown: Option<Wish>,

    /// Does not let the guest's applications object
    #[arg(long, requires = "shutdown")]
    force: bool,

    /// What people at the guest are told [default: nothing]
    #[arg(
        long,
        value_name = "TEXT",
        requires = "shutdown",
        default_value = "",
        hide_default_value = true
    )]
    message: String,

    /// Has the guest's clock set when it comes, not only compared
    #[arg(long)]
    set_time: bool,

    /// Seconds after which a guest that does not answer is given up, but for beats
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
        value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout: u32,

    /// Prints what happens on standard output, one JSON object a line
    #[arg(long)]
    json: bool,
}

impl Args {
    /// What it takes of this machine.
    pub(super) fn uses(&self) -> Vec<Used> {
        vec![("control", Use::Socket(self.control.clone()))]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wish {
    Poweroff,
    Reboot,
    Hibernate,
}

#[derive(Serialize, Default)]
struct Line {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ok: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// How the wish ended.
type Answered = Option<Result<(), (Status, String)>>;

/// Serves until a signal ends it, or the guest has answered.
///
/// # Errors
/// With the status that the program is to end with.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let named = services(&args.services);
    if args.shutdown.is_some() && !named.contains(&Named::Shutdown) {
        let error = anyhow!("--shutdown is for a host with the service shutdown");
        return Err(Failure::new(Status::Usage, error));
    }
    let listener = Listener::bind(&args.control)
        .with_context(|| format!("cannot listen at {}", args.control.display()))?;
    let options = HostOptions {
        services: named.iter().map(|named| named.service()).collect(),
        interval: Duration::from_secs(args.interval.into()),
        patience: Duration::from_secs(args.timeout.into()),
        wish: args.shutdown.map(|wish| request(args, wish)),
        set_time: args.set_time,
    };
    let (json, wishes) = (args.json, args.shutdown.is_some());
    let over = EventFd::new().context("cannot make an eventfd")?;
    let done = over.try_clone().context("cannot make an eventfd")?;
    let answered: Arc<Mutex<Answered>> = Arc::default();
    let answer = Arc::clone(&answered);
    let lives: Vec<_> = options
        .services
        .iter()
        .map(|it| (*it, Arc::default()))
        .collect();
    let seen = lives.clone();
    let mut host = Host::new(listener, options, move |service, event| {
        live(&seen, service, &event);
        report(service, &event, json);
        if let Some(end) = end_of_wish(service, &event).filter(|_| wishes) {
            let mut answer = answer.lock().expect("nobody panics with it");
            answer.get_or_insert(end);
            // The program ends all the same when it is asked to.
            let _ = done.signal();
        }
    })?;
    if json {
        print(&Line {
            event: "listening",
            ..Line::default()
        });
    }
    tracing::info!("listening");
    show(&host, &lives);
    sandbox::seal(Kind::IcHost, &[])?;
    serve(&mut host, &signals, &over)?;
    let answer = answered.lock().expect("nobody panics with it").take();
    match answer {
        Some(Err((status, reason))) => Err(Failure::new(status, anyhow!(reason))),
        Some(Ok(())) => Ok(()),
        None if wishes => Err(anyhow!("stopped before the guest had answered").into()),
        None => Ok(()),
    }
}

/// Services, each with the life of its guest.
type Lives = Vec<(&'static Service, Arc<Endpoint>)>;

/// What happened to the guest of a service, for who looks.
fn live(lives: &Lives, service: &Service, event: &HostEvent) {
    let Some((_, endpoint)) = lives.iter().find(|(it, _)| it.kind == service.kind) else {
        return;
    };
    match event {
        HostEvent::Joined => {
            endpoint.begin();
        }
        HostEvent::Ready { .. } => endpoint.enter(Phase::Running),
        HostEvent::Left { reason, parting } => {
            endpoint.enter(Phase::Reconnecting);
            if *parting != Parting::Went {
                endpoint.fault(reason);
            }
        }
        _ => {}
    }
}

fn show(host: &Host, lives: &Lives) {
    for (service, messages) in host.messages() {
        tether::watch(service.name, messages);
    }
    for (service, endpoint) in lives.clone() {
        tether::show(move || Some(tether::life(service.name, &endpoint)));
    }
}

/// Until a signal comes, or the guest has answered.
fn serve(host: &mut Host, signals: &Signals, over: &EventFd) -> Result<(), Failure> {
    let stop = EventFd::new().context("cannot make an eventfd")?;
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut fds = [
                PollFd::new(signals, PollFlags::IN),
                PollFd::new(over, PollFlags::IN),
            ];
            let woken = retry_on_intr(|| poll(&mut fds, None));
            let stopped = stop.signal();
            woken
                .map(drop)
                .map_err(std::io::Error::from)
                .and(stopped.map(drop))
        });
        host.run(stop.as_fd()).context("cannot wait")?;
        watch
            .join()
            .expect("the thread that watches")
            .context("cannot wait")?;
        Ok(())
    })
}

fn request(args: &Args, wish: Wish) -> shutdown::Request {
    shutdown::Request {
        action: match wish {
            Wish::Poweroff => shutdown::Action::PowerOff,
            Wish::Reboot => shutdown::Action::Restart,
            Wish::Hibernate => shutdown::Action::Hibernate,
        },
        force: args.force,
        reason: 0,
        timeout_s: args.timeout,
        message: args.message.clone(),
    }
}

/// Whether the wish has come to an end with this, and to which.
fn end_of_wish(service: &Service, event: &HostEvent) -> Answered {
    if service.kind != SHUTDOWN.kind {
        return None;
    }
    match event {
        HostEvent::Answered { status } if status.is_ok() => Some(Ok(())),
        HostEvent::Answered { status } => Some(Err((
            Status::Failed,
            format!("the guest refused: {status}"),
        ))),
        HostEvent::Left { reason, parting } => {
            let status = match parting {
                Parting::Went | Parting::Silent => Status::PeerUnreachable,
                Parting::Broke => Status::PeerBroke,
            };
            Some(Err((status, reason.clone())))
        }
        _ => None,
    }
}

fn report(service: &'static Service, event: &HostEvent, json: bool) {
    let name = Named::of(service);
    if json {
        let line = Line {
            service: Some(name),
            ..Line::default()
        };
        print(&match event {
            HostEvent::Joined => Line {
                event: "joined",
                ..line
            },
            HostEvent::Ready { version } => Line {
                event: "ready",
                version: Some(version.to_string()),
                ..line
            },
            HostEvent::Alive { health } => Line {
                event: "alive",
                health: Some(match health {
                    Health::Unknown => "unknown",
                    Health::Healthy => "healthy",
                    Health::Critical => "critical",
                }),
                ..line
            },
            HostEvent::Missed { count } => Line {
                event: "missed",
                count: Some(*count),
                ..line
            },
            HostEvent::Strange => Line {
                event: "strange",
                ..line
            },
            HostEvent::Answered { status } => Line {
                event: "answered",
                ok: Some(status.is_ok()),
                reason: Some(status.to_string()),
                ..line
            },
            HostEvent::Left { reason, .. } => Line {
                event: "left",
                reason: Some(reason.clone()),
                ..line
            },
        });
    }
    match event {
        HostEvent::Joined => tracing::info!("{name}: a guest has the channel"),
        HostEvent::Ready { version } => tracing::info!("{name}: version {version}"),
        HostEvent::Alive { health } => tracing::info!("{name}: the guest lives ({health:?})"),
        HostEvent::Missed { count } => {
            tracing::warn!("{name}: {count} beats in a row were not answered");
        }
        HostEvent::Strange => tracing::warn!("{name}: a beat was answered with nonsense"),
        HostEvent::Answered { status } => tracing::info!("{name}: the guest answered: {status}"),
        HostEvent::Left {
            reason,
            parting: Parting::Went,
        } => tracing::info!("{name}: the guest left: {reason}"),
        HostEvent::Left { reason, .. } => {
            tracing::warn!("{name}: the guest is given up: {reason}");
        }
    }
}

//! `linkspan up`: starts the links of a plane, and keeps them running.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use linkspan_sys::Epoll;
use linkspan_sys::poll::{Interest, Ready};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_sys::socket::Listener;
use rustix::net::{SocketAddrUnix, getsockname};
use rustix::process::{Resource, Rlimit, Signal as Number, getrlimit, setrlimit};
use serde::Serialize;

use super::activation::Activated;
use super::core::{Core, Effect, End, State, Unknown, Wanted};
use super::gathering::Gathering;
use super::line::Heard;
use super::listed::Listed;
use super::metrics::Metrics;
use super::notify::Manager;
use super::page::{self, Page};
use super::processes::Processes;
use super::question::{Question, Verb};
use super::succession::Succession;
use crate::control::{Askers, Control, refusal};
use crate::display::{NOT_ENCRYPTED, listen};
use crate::exit::{Failure, Status};
use crate::page::feed::Said;
use crate::plane::{Plane, Viewers, metrics_address};
use crate::serving::print;
use crate::tether::Question as Asked;

const SIGNALS: u64 = 0;
const CONTROL: u64 = 1;
const PAGE: u64 = 2;
/// Tokens of processes begin here.
const PROCESSES: u64 = 3;

/// Options of `linkspan up`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: the plane of the examples, and what its links do\n\n  \
    linkspan up examples/host.toml &\n  \
    sleep 1\n  \
    linkspan link list --control examples/control.sock\n  \
    linkspan up examples/host.toml --page 127.0.0.1:0    # prints its address\n\n\
    Each link is a process of its own. SIGHUP reads the plane again: links that are the same\n\
    go on, and a plane with something wrong changes nothing. SIGTERM and SIGINT end all links\n\
    in order; who has not finished after `drain-seconds` is killed. A service manager is told\n\
    when all links are started (Type=notify or notify-reload), and that the supervisor lives."
)]
pub struct Args {
    /// The plane; `linkspan plane check` says what is wrong with it
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Metrics for Prometheus over HTTP at this address, at 127.0.0.1 if it is a port alone
    /// [default: `metrics` in [plane], else none]
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = metrics_address)]
    metrics: Option<SocketAddr>,

    /// Serve a page with links, what they do and their guests' screens at this address of this
    /// machine; port 0 is any that is free. Its whole address is printed [default: `page`
    /// in [plane], else none]
    #[arg(long, value_name = "ADDRESS:PORT")]
    page: Option<SocketAddr>,

    /// Print what happens to links on standard output, one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Keeps the links of a plane running until a signal ends it.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    let plane = Plane::read(&args.file)?;
    plane.verdict()?;
    if let Some(address) = args.page.filter(|address| address.port() != 0) {
        // So that who cannot have it is told now, and not by a process that tries for ever.
        drop(listen(address, false, NOT_ENCRYPTED)?);
    }
    raise_descriptors();
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate, Signal::Hangup])
        .context("cannot watch for signals")?;
    let is_link = |name: &str| plane.links.iter().any(|link| link.name == name);
    let activated = Activated::of_this_process(is_link)?;
    let at = activated
        .control
        .as_ref()
        .map_or_else(|| plane.control(), place);
    let control = match (activated.control, plane.control()) {
        (Some(listener), _) => Some(Control::on(listener, Askers::Ours)?),
        (None, Some(path)) => Some(Control::new(&path, Askers::Ours)?),
        (None, None) => None,
    };
    let epoll = Epoll::new().context("cannot wait")?;
    epoll.add(signals.as_fd(), SIGNALS, Interest::READ)?;
    if let Some(control) = &control {
        epoll.add(control.event().as_fd(), CONTROL, Interest::READ)?;
    }
    let mut supervisor = Supervisor {
        page: None,
        viewers: BTreeMap::new(),
        sockets: BTreeMap::new(),
        core: Core::new(plane.settings.drain),
        processes: Processes::new(&plane.folder, PROCESSES, activated.links),
        epoll,
        successions: BTreeMap::new(),
        json: args.json,
        gatherings: Vec::new(),
    };
    let manager = Manager::of_this_process();
    let metrics = match (args.metrics.or(plane.settings.metrics), at) {
        (Some(address), Some(at)) => Some(Metrics::start(address, at)?),
        (Some(_), None) => {
            let error = anyhow!("metrics are asked for at the control socket, and there is none");
            return Err(Failure::new(Status::Usage, error).hint("`control` in [plane]"));
        }
        (None, _) => None,
    };
    supervisor.reload(args, &plane)?;
    manager.ready(&supervisor.status());
    let served = supervisor.serve(args, &signals, control.as_ref(), &manager);
    // Who is asked for metrics asks the control socket, which ends with its owner.
    drop(control);
    drop(metrics);
    served
}

/// Where a control socket is that listens already.
fn place(listener: &Listener) -> Option<PathBuf> {
    let address = getsockname(listener.as_fd()).ok()?;
    let address = SocketAddrUnix::try_from(address).ok()?;
    let path = address.path_bytes()?;
    Some(OsStr::from_bytes(path).into())
}

/// Descriptors of this process and of its links at most.
const DESCRIPTORS: u64 = 1 << 20;

/// Takes as many descriptors as the system lets us have: a shell gives 1024, for the sake of
/// programs that know no more, and a plane has two for each link.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
    if limit.current.is_some_and(|current| current < most) {
        let raised = Rlimit {
            current: Some(most),
            ..limit
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!("no more descriptors than {:?}: {error}", limit.current);
        }
    }
}

pub(super) struct Supervisor {
    pub(super) core: Core,
    pub(super) processes: Processes,
    pub(super) epoll: Epoll,
    /// Links that are to go on in another process.
    pub(super) successions: BTreeMap<String, Succession>,
    json: bool,
    /// What somebody waits for who asked to see links.
    gatherings: Vec<Gathering>,
    page: Option<Page>,
    /// The screens of links.
    viewers: BTreeMap<String, Viewers>,
    /// Where links serve virtual machines.
    sockets: BTreeMap<String, Vec<PathBuf>>,
}

/// What happened to a link, as a line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    event: &'static str,
    link: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<String>,
}

impl Supervisor {
    fn serve(
        &mut self,
        args: &Args,
        signals: &Signals,
        control: Option<&Control<Question>>,
        manager: &Manager,
    ) -> Result<(), Failure> {
        let mut ready = Ready::with_capacity(64);
        let mut beat = manager.beat.map(|every| Instant::now() + every);
        while !self.core.is_over() {
            let gathered = self.gatherings.iter().map(Gathering::due).min();
            let handed = self.successions.values().map(Succession::due).min();
            let leaving = self.processes.leaving_due();
            let next = [self.core.due(), beat, gathered, handed, leaving];
            let next = next.into_iter().flatten().min();
            let pause = next.map(|next| until(next, Instant::now()));
            self.epoll.wait(&mut ready, pause).context("cannot wait")?;
            let now = Instant::now();
            for event in ready.iter() {
                match (event.token, control) {
                    (SIGNALS, _) => self.signalled(args, signals, manager)?,
                    (CONTROL, Some(control)) => self.answer(control),
                    (PAGE, _) => self.hear_page(manager, now),
                    (token, _) => {
                        self.heard(token, now);
                        self.ended(token, now);
                        self.succession(token, now);
                    }
                }
            }
            self.core.tick(now);
            self.carry_out();
            self.gather(now);
            self.end_late_successors(now);
            self.processes.end_late_leavers(now);
            self.tell_page();
            if beat.is_some_and(|beat| beat <= now) {
                manager.lives();
                beat = manager.beat.map(|every| now + every);
            }
        }
        tracing::info!("all links have ended");
        Ok(())
    }

    fn signalled(
        &mut self,
        args: &Args,
        signals: &Signals,
        manager: &Manager,
    ) -> Result<(), Failure> {
        for signal in signals.take().context("cannot take a signal")? {
            if signal == Signal::Hangup {
                manager.reloading();
                self.read_again(args);
                manager.ready(&self.status());
            } else {
                tracing::info!("ending: the links finish what is in flight");
                manager.ending();
                self.core.end(Instant::now());
            }
        }
        Ok(())
    }

    /// Reads the plane again. One with something wrong changes nothing.
    fn read_again(&mut self, args: &Args) {
        let plane = Plane::read(&args.file).and_then(|plane| {
            plane.verdict()?;
            Ok(plane)
        });
        let read = plane.and_then(|plane| self.reload(args, &plane));
        if let Err(failure) = read {
            tracing::error!("the plane is not read again: {failure}");
        }
    }

    /// Makes the links those of a plane.
    ///
    /// # Errors
    /// There can be no page.
    fn reload(&mut self, args: &Args, plane: &Plane) -> Result<(), Failure> {
        let address = args.page.or(plane.settings.page);
        match address {
            Some(_) if self.page.is_none() => {
                self.page = Some(Page::new().context("cannot serve a page")?);
            }
            Some(_) => {}
            // Its process ends, and nobody is told of it any more.
            None => self.page = None,
        }
        self.viewers = plane.viewers();
        self.sockets = plane.sockets();
        let wanted = plane.links.iter().map(|link| Wanted {
            name: link.name.clone(),
            arguments: link.arguments.clone(),
            restart: link.policy.restart,
            start: link.policy.start,
            first: link.is_machine,
            watchdog: link.policy.watchdog,
        });
        let drain = plane.settings.drain;
        let wanted = wanted.chain(address.map(Page::wanted)).collect();
        let changes = self.core.reload(drain, wanted, Instant::now());
        for (what, names) in [
            ("new", &changes.added),
            ("gone", &changes.removed),
            ("changed", &changes.changed),
        ] {
            if !names.is_empty() {
                tracing::info!("{what}: {}", names.join(", "));
            }
        }
        self.carry_out();
        if let Some(note) = plane.without_links() {
            tracing::info!("{note}");
        }
        Ok(())
    }

    /// Does what is to be done, until nothing is.
    fn carry_out(&mut self) {
        while let Some(effect) = self.core.effect() {
            self.is_news();
            match effect {
                Effect::Start { name, arguments } => {
                    let page = self.page.as_mut().filter(|_| name == page::NAME);
                    let out = page.map(|page| page.feed(&self.epoll, PAGE)).transpose();
                    let started = out
                        .and_then(|out| self.processes.start(&name, &arguments, out, &self.epoll));
                    match started {
                        Ok(pid) => self.tell("started", &name, Some(pid), None),
                        Err(error) => {
                            tracing::error!("link {name}: it cannot be started: {error}");
                            self.core.ended(&name, End::NotStarted, Instant::now());
                        }
                    }
                }
                Effect::Terminate(name) => self.processes.signal(&name, Number::TERM),
                Effect::Kill(name) => {
                    tracing::warn!("link {name}: it has not answered in time, and is killed");
                    self.processes.signal(&name, Number::KILL);
                }
                Effect::Beat(name) => {
                    // Who cannot be asked does not answer.
                    self.processes.ask(&name, Asked::Beat);
                }
            }
        }
    }

    fn heard(&mut self, token: u64, now: Instant) {
        let Some((name, answers)) = self.processes.heard(token, &self.epoll) else {
            return;
        };
        for Heard { question, text } in answers {
            match question {
                Asked::Beat => self.core.heard(&name, now),
                Asked::HandOver | Asked::TakenOver => {}
                Asked::Inspect | Asked::Trace => {
                    for gathering in &mut self.gatherings {
                        gathering.take(question, &name, &text);
                    }
                }
            }
        }
    }

    /// Answers who waits for what links say, once they have or had long enough.
    fn gather(&mut self, now: Instant) {
        let done = |it: &mut Gathering| it.is_complete() || it.due() <= now;
        let done: Vec<_> = self.gatherings.extract_if(.., done).collect();
        for gathering in done {
            gathering.answer(self.listed());
        }
    }

    /// Does what the page asks for.
    fn hear_page(&mut self, manager: &Manager, now: Instant) {
        let said = self.page.as_mut().map(Page::hear).unwrap_or_default();
        for said in said {
            match said {
                Said::At(address) => {
                    let (json, managed) = (self.json, manager.is_there());
                    if let Some(page) = &mut self.page {
                        page.is_at(address, json, managed);
                    }
                }
                Said::Asks(Question::Inspect) => {
                    let asked = self.ask_all();
                    let page = self.page.as_mut();
                    let gathering = page.and_then(|page| page.ask(asked, now));
                    self.gatherings.extend(gathering);
                }
                Said::Asks(Question::Change(verb, name)) => {
                    let done = self.change(verb, &name, now);
                    if let (Err(unknown), Some(page)) = (done, &mut self.page) {
                        page.refuse(&unknown.to_string());
                    }
                }
                // It has no use for these.
                Said::Asks(
                    Question::List | Question::Trace(_) | Question::Page | Question::Upgrade(..),
                ) => {}
            }
        }
    }

    /// Tells the page what there is to tell.
    fn tell_page(&mut self) {
        if let Some(mut page) = self.page.take() {
            page.tell(|| Listed::lines(self.shown()));
            self.page = Some(page);
        }
    }

    /// Links have changed their state.
    pub(super) fn is_news(&mut self) {
        if let Some(page) = &mut self.page {
            page.is_news();
        }
    }

    /// Asks all links what there is to see of them; those of which an answer may come.
    fn ask_all(&mut self) -> BTreeSet<String> {
        let names: Vec<_> = self.core.links().map(|seen| seen.name).collect();
        let mut asks = |name: &String| self.processes.ask(name, Asked::Inspect);
        names.into_iter().filter(&mut asks).collect()
    }

    /// Does something to a link.
    ///
    /// # Errors
    /// There is none of this name.
    fn change(&mut self, verb: Verb, name: &str, now: Instant) -> Result<(), Unknown> {
        match verb {
            Verb::Start => self.core.start(name, now)?,
            Verb::Stop => self.core.stop(name, now)?,
            Verb::Drain => self.core.drain(name, now)?,
            Verb::Restart => self.core.restart(name, now)?,
        }
        self.is_news();
        self.carry_out();
        Ok(())
    }

    fn ended(&mut self, token: u64, now: Instant) {
        let Some((name, end)) = self.processes.ended(token, &self.epoll) else {
            return;
        };
        for gathering in &mut self.gatherings {
            gathering.leave(&name);
        }
        if self.waits_for_successor(&name, end) {
            return;
        }
        self.has_ended(&name, end, now);
    }

    /// A link has no process any more.
    pub(super) fn has_ended(&mut self, name: &str, end: End, now: Instant) {
        self.core.ended(name, end, now);
        self.is_news();
        if let Some(page) = self.page.as_mut().filter(|_| name == page::NAME) {
            page.leave();
        }
        self.tell("ended", name, None, Some(words(end)));
    }

    pub(super) fn tell(
        &self,
        event: &'static str,
        link: &str,
        pid: Option<u32>,
        end: Option<String>,
    ) {
        match (&end, pid) {
            (Some(end), _) => tracing::info!("link {link}: {end}"),
            (None, Some(pid)) => tracing::info!("link {link}: process {pid}"),
            (None, None) => {}
        }
        if self.json {
            let line = Line {
                event,
                link,
                pid,
                end,
            };
            print(&line);
        }
    }

    fn answer(&mut self, control: &Control<Question>) {
        while let Some((question, answer)) = control.take() {
            let now = Instant::now();
            let text = match question {
                Question::List => self.list(),
                Question::Inspect => {
                    let asked = self.ask_all();
                    self.gatherings.push(Gathering::new(answer, asked, now));
                    continue;
                }
                Question::Trace(name) => {
                    let known = self.core.links().any(|seen| seen.name == name);
                    if known {
                        let asks = self.processes.ask(&name, Asked::Trace);
                        let asked = asks.then(|| name.clone()).into_iter().collect();
                        self.gatherings
                            .push(Gathering::of(answer, asked, now, name));
                        continue;
                    }
                    refusal(&Unknown(name).to_string())
                }
                Question::Page => match self.page.as_ref().and_then(Page::url) {
                    Some(url) => format!("{}\n", serde_json::json!({ "url": url })),
                    None => refusal("there is no page: `page` in [plane], or --page"),
                },
                Question::Upgrade(name, program) => {
                    self.upgrade(name, program, answer, now);
                    continue;
                }
                Question::Change(verb, name) => match self.change(verb, &name, now) {
                    Ok(()) => self.list(),
                    Err(unknown) => refusal(&unknown.to_string()),
                },
            };
            // Whoever asked may have left.
            let _ = answer.send(text);
        }
    }

    fn listed(&self) -> impl Iterator<Item = Listed> {
        self.core.links().map(|seen| Listed {
            state: state(seen.state),
            pid: self.processes.id(&seen.name),
            starts: seen.starts,
            last_end: seen.last.map(words),
            viewers: self.viewers.get(&seen.name).cloned(),
            sockets: self.sockets.get(&seen.name).cloned().unwrap_or_default(),
            link: seen.name,
        })
    }

    /// All links, without the page itself.
    fn shown(&self) -> impl Iterator<Item = Listed> {
        self.listed().filter(|it| it.link != page::NAME)
    }

    /// A line for each link.
    fn list(&self) -> String {
        Listed::lines(self.listed())
    }

    /// How it is, in one line.
    fn status(&self) -> String {
        let links = || self.core.links().filter(|seen| seen.name != page::NAME);
        let running = links().filter(|seen| seen.state == State::Running).count();
        match links().count() {
            0 => "no links yet".to_owned(),
            all => format!("{running} of {all} links run"),
        }
    }
}

/// How long to wait, in whole milliseconds and not less than is left.
fn until(next: Instant, now: Instant) -> Duration {
    let left = next.saturating_duration_since(now);
    match left.subsec_nanos() % 1_000_000 {
        0 => left,
        _ => left + Duration::from_millis(1),
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Stopped => "stopped",
        State::Running => "running",
        State::Pausing => "pausing",
        State::Ending => "ending",
    }
}

/// What ends who calls what its sandbox does not have, on all processors here.
const SIGSYS: i32 = Number::SYS.as_raw();

pub(super) fn words(end: End) -> String {
    match end {
        End::Status(status) => format!("it ended with status {status}"),
        End::Signal(SIGSYS) => "its sandbox killed it (SIGSYS): see docs/SECURITY.md, and \
             `--sandbox log`"
            .to_owned(),
        End::Signal(signal) => format!("signal {signal} ended it"),
        End::NotStarted => "it could not be started".to_owned(),
    }
}

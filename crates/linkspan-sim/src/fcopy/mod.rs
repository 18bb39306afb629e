//! A file copy over VMBus: the control path of both ends, both rings of a channel in shared
//! memory, the integration service's frame, and sender and receiver with a model of a disk.
//! Either end goes away at any step and comes back.

mod disk;
mod guest;
mod host;
mod side;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use linkspan_vmbus::Guid;
use linkspan_vmbus::channel::{Offer, ProtocolVersion, guest as at_guest, host as at_host};
use linkspan_vmbus::fcopy::{Failure, Options};
use linkspan_vmbus::ic::{Echo, FILE_COPY, Status};

use crate::{Link, Mishap, Rest, Rng, Sim};
use disk::Disk;
use guest::{Daemon, Guest};
use host::{Copy, Host};

fn file_copy() -> Offer {
    Offer::service(&FILE_COPY, Guid::default(), 0x2001)
}

/// A fault of the model, to see that the simulation finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Now and then a signal gets lost.
    LosesSignal,
    /// Now and then a message of the control path gets lost.
    LosesMessage,
    /// Now and then a byte in the memory of the rings is another one.
    ChangesByte,
    /// The daemon's end is not told when its channel is taken away.
    ForgetsFile,
}

/// What a seed decides.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    fault: Fault,
    /// What guest and host speak at best.
    versions: [ProtocolVersion; 2],
    /// Bytes of a ring.
    ring: u64,
    outstanding: usize,
    echo: Echo,
    /// The sizes of the files.
    sizes: Vec<usize>,
}

impl Plan {
    fn new(rng: &mut Rng, fault: Fault) -> Self {
        let version = |rng: &mut Rng| ProtocolVersion::ALL[rng.index(ProtocolVersion::ALL.len())];
        let size = |rng: &mut Rng| match rng.below(5) {
            0 => rng.index(2),
            1 => 6143 + rng.index(3),
            2 => 12_288,
            _ => rng.index(40_000),
        };
        Self {
            fault,
            versions: [version(rng), version(rng)],
            ring: side::HEADER + 4096 * (2 + rng.below(12)),
            outstanding: 1 + rng.index(6),
            echo: if rng.percent(50) {
                Echo::Full
            } else {
                Echo::Header
            },
            sizes: (0..1 + rng.below(4)).map(|_| size(rng)).collect(),
        }
    }

    fn options(&self) -> Options {
        Options {
            outstanding: self.outstanding,
        }
    }
}

/// Something that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// An end's control path says the next thing, or hears one.
    HostSays,
    GuestSays,
    ToHost,
    ToGuest,
    /// A pass over an end's rings.
    HostPass,
    GuestPass,
    /// The daemon runs again.
    Wake,
    /// The next file is begun.
    Begin,
    /// The host gives up a channel over which nothing can be sent.
    Renew,
}

/// Both ends, and what is between them.
pub(crate) struct Vm {
    plan: Plan,
    sim: Sim,
    host: Host,
    guest: Guest,
    disk: Disk,
    to_host: VecDeque<Vec<u8>>,
    to_guest: VecDeque<Vec<u8>>,
    /// Whether the guest was started again without a word.
    reborn: bool,
    /// Whether the control path of guest and host may have something to say.
    may_say: [bool; 2],
}

impl Link for Vm {
    type Step = Step;
    type Fault = Fault;

    const NAME: &'static str = "fcopy";
    const MISHAPS: &'static [Mishap] = &[
        Mishap::Cut,
        Mishap::ServerDies,
        Mishap::HandOver,
        Mishap::HandOver,
        Mishap::ClockJump,
        Mishap::Change,
        Mishap::Starve,
        Mishap::Refuse,
    ];
    const CHANCE: u64 = 30;
    const HAPPENS: &'static [&'static str] = &[
        "files begun",
        "files arrived",
        "requests served",
        "channels opened",
        "daemons restarted",
        "guests unloaded",
        "files stopped",
        "files refused",
        "guests given up",
    ];

    fn new(seed: u64, fault: Fault) -> Self {
        let mut sim = Sim::new(seed);
        let plan = Plan::new(&mut sim.rng, fault);
        sim.mishaps = match fault {
            Fault::None | Fault::ForgetsFile => sim.rng.below(12),
            _ => 0,
        };
        // A few names, so that files replace each other.
        let copy = |(at, size): (usize, &usize)| Copy {
            name: format!("file-{}", at % 2),
            bytes: Rng::new(seed ^ at as u64).bytes(*size),
            before: None,
        };
        let copies = plan.sizes.iter().enumerate().map(copy).collect();
        Self {
            host: Host::new(&plan, copies),
            guest: Guest::new(&plan),
            disk: Disk::default(),
            to_host: VecDeque::new(),
            to_guest: VecDeque::new(),
            reborn: false,
            may_say: [true; 2],
            plan,
            sim,
        }
    }

    fn sim(&mut self) -> &mut Sim {
        &mut self.sim
    }

    fn plan(&self) -> String {
        format!("{:#?}", self.plan)
    }

    fn possible(&self, steps: &mut Vec<Step>) {
        let mut add = |step, possible| {
            if possible {
                steps.push(step);
            }
        };
        add(Step::HostSays, self.may_say[1]);
        add(Step::GuestSays, self.may_say[0]);
        add(Step::ToHost, !self.to_host.is_empty());
        add(Step::ToGuest, !self.to_guest.is_empty());
        let host = self.host.open.as_ref();
        add(Step::HostPass, host.is_some_and(|open| open.side.awake));
        add(
            Step::Renew,
            host.is_some_and(|open| open.over && !open.side.awake),
        );
        add(Step::Begin, self.host.may_begin());
        let daemon = self.daemon();
        let stalls = daemon.is_some_and(|daemon| daemon.stalls);
        add(Step::Wake, stalls);
        let awake = daemon.is_some_and(|daemon| daemon.side.awake);
        add(Step::GuestPass, awake && !stalls);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::HostSays => return self.host_says(),
            Step::GuestSays => return self.guest_says(),
            Step::ToHost => {
                if let Some(message) = self.to_host.pop_front() {
                    // What crosses a rescind is for nothing now.
                    let _ = self.host.control.receive(&message);
                }
            }
            Step::ToGuest => {
                if let Some(message) = self.to_guest.pop_front() {
                    // Who was started again hears what was for the one before, until its contact
                    // is answered.
                    let connected = self.guest.control.version().is_some();
                    let heard = self.guest.control.receive(&message);
                    // So are answers for a channel that was taken away and released.
                    let known = !connected || self.reborn || self.host.renewed > 0;
                    assert!(heard.is_ok() || known, "{heard:?}");
                }
            }
            Step::HostPass => {
                let told = self.host.pass(&mut self.sim);
                self.hear(told);
            }
            Step::GuestPass => self.guest.pass(&mut self.disk, &mut self.sim),
            Step::Wake => {
                let channel = self.guest.channel.as_mut();
                if let Some(daemon) = channel.and_then(|it| it.daemon.as_mut()) {
                    daemon.stalls = false;
                }
            }
            Step::Begin => {
                let name = &self.host.copies[0].name;
                let before = self.disk.files.get(&format!("/tmp/{name}")).cloned();
                self.host.begin(before, &mut self.sim);
            }
            Step::Renew => self.host.renew(&mut self.sim),
        }
        self.may_say = [true; 2];
        self.signal();
    }

    fn mishap(&mut self, mishap: Mishap) -> bool {
        let done = match mishap {
            Mishap::Cut => {
                self.host.renew(&mut self.sim);
                true
            }
            // Its kernel begins anew without a word (kexec), which takes longer than any message.
            Mishap::ServerDies => {
                self.guest.channel = None;
                self.disk.open = None;
                self.to_host.clear();
                self.may_say[1] = true;
                while self.may_say[1] {
                    self.host_says();
                }
                self.to_guest.clear();
                self.guest = Guest::new(&self.plan);
                self.reborn = true;
                true
            }
            Mishap::HandOver if self.sim.rng.percent(50) => {
                let region = self.guest.channel.as_ref().map(|it| &it.region);
                self.host.hand_over(&self.plan, region, &mut self.sim.rng)
            }
            Mishap::HandOver => self.guest.hand_over(&self.plan, &mut self.sim.rng),
            Mishap::ClockJump => self.host.expire(),
            Mishap::Change => self.change(),
            Mishap::Starve => {
                let channel = self.guest.channel.as_mut();
                let daemon = channel.and_then(|it| it.daemon.as_mut());
                daemon.is_some_and(|daemon| !std::mem::replace(&mut daemon.stalls, true))
            }
            _ => {
                if self.sim.rng.percent(30) {
                    self.host.refuses += 1;
                } else {
                    self.disk.refuses += 1;
                }
                true
            }
        };
        self.may_say = [true; 2];
        self.signal();
        done
    }

    fn rest(&mut self) -> Rest {
        let (files, sending) = (self.host.copies.len(), self.host.sending);
        assert!(
            files == 0 && !sending,
            "nothing is left to do, with {files} files to send"
        );
        assert!(self.disk.open.is_none(), "a file is left behind");
        let ready = self.host.open.as_ref().is_some_and(|open| open.ready);
        assert!(ready && self.daemon().is_some(), "the channel is not open");
        assert_eq!(self.guest.control.offers().count(), 1);
        Rest::Over
    }
}

impl Vm {
    fn daemon(&self) -> Option<&Daemon> {
        self.guest.channel.as_ref()?.daemon.as_ref()
    }

    fn strikes(&mut self, fault: Fault) -> bool {
        self.plan.fault == fault && self.sim.rng.percent(5)
    }

    fn host_says(&mut self) {
        use at_host::Output;
        let Some(output) = self.host.control.poll_output() else {
            self.may_say[1] = false;
            return;
        };
        match output {
            Output::Send(message) => {
                if !self.strikes(Fault::LosesMessage) {
                    self.to_guest.push_back(message);
                }
            }
            Output::Open { relid, request } => {
                // A guest that begins anew meanwhile takes its memory along.
                let ranges = self.host.control.gpadl(request.gpadl).into_iter();
                let pages = ranges.flat_map(|it| it.iter().collect::<Vec<_>>());
                let pages = pages.flat_map(|it| it.pages().collect::<Vec<_>>());
                let pages: Vec<u64> = pages.collect();
                let channel = self.guest.channel.as_ref().filter(|it| it.pages == pages);
                let current = relid == self.host.relid;
                let opened = match channel.filter(|_| current) {
                    Some(channel) => self.host.open(&self.plan, &channel.region),
                    None => false,
                };
                self.host.control.opened(relid, opened);
            }
            Output::Close { relid } => {
                if relid == self.host.relid {
                    self.host.close();
                }
            }
            Output::Release { gpadl } => {
                // Who has left has taken it along.
                let _ = self.host.control.released(gpadl);
            }
            Output::Retarget { .. } => {}
            Output::Reset => self.host.close(),
        }
    }

    fn guest_says(&mut self) {
        use at_guest::Output;
        match self.guest.control.poll_output() {
            None => self.may_say[0] = false,
            Some(Output::Send { message, .. }) => {
                if !self.strikes(Fault::LosesMessage) {
                    self.to_host.push_back(message);
                }
            }
            Some(Output::Rescinded(relid)) if self.plan.fault == Fault::ForgetsFile => {
                self.guest.channel = None;
                self.guest.control.release(relid).expect("it was rescinded");
            }
            Some(event) => {
                let (plan, disk) = (&self.plan, &mut self.disk);
                self.guest.hear(event, plan, disk, &mut self.sim);
            }
        }
    }

    /// What the host has heard of a file.
    fn hear(&mut self, told: Option<Result<Copy, Failure>>) {
        match told {
            None => {}
            Some(Ok(copy)) => {
                self.sim.count("files arrived");
                let found = self.disk.files.get(&format!("/tmp/{}", copy.name));
                assert!(
                    found == Some(&copy.bytes),
                    "{} is done and has other bytes",
                    copy.name
                );
            }
            Some(Err(failure)) => {
                let known = match failure {
                    Failure::Stopped => "files stopped",
                    Failure::Silent => "guests given up",
                    _ => "files refused",
                };
                self.sim.count(known);
                if let Failure::Refused { status, .. } = failure {
                    let full = status == Status::DISK_FULL && self.disk.refused > 0;
                    assert!(full, "{failure} without a reason");
                }
                self.check_old(failure);
            }
        }
    }

    /// A file that failed is as it was, or whole if that is not known.
    fn check_old(&self, failure: Failure) {
        let copy = &self.host.copies[0];
        let found = self.disk.files.get(&format!("/tmp/{}", copy.name));
        let old = found == copy.before.as_ref();
        let unknown = failure == Failure::Silent && found == Some(&copy.bytes);
        assert!(old || unknown, "{failure}, and {} is changed", copy.name);
    }

    /// Something that an operator or the guest's kernel does.
    fn change(&mut self) -> bool {
        match self.sim.rng.below(4) {
            0 => self.host.stop(),
            1 => {
                let done = self.guest.restart_daemon(&mut self.disk);
                self.sim.counts.add("daemons restarted", done.into());
                done
            }
            2 => {
                let relid = self.guest.channel.as_ref().map(|it| it.relid);
                relid.is_some_and(|relid| self.guest.control.retarget(relid, 1).is_ok())
            }
            _ => {
                let done = self.guest.control.unload().is_ok();
                if done {
                    self.sim.count("guests unloaded");
                    self.guest.channel = None;
                    self.disk.open = None;
                }
                done
            }
        }
    }

    /// Signals arrive, and none is lost.
    fn signal(&mut self) {
        let lost = self.strikes(Fault::LosesSignal);
        let changed = self.strikes(Fault::ChangesByte);
        let host = self.host.open.as_mut().map(|open| &mut open.side);
        let channel = self.guest.channel.as_mut();
        if let Some(channel) = channel.as_ref().filter(|_| changed) {
            let at = side::HEADER + self.sim.rng.below(self.plan.ring - side::HEADER);
            let byte = channel
                .region
                .slice(self.plan.ring + at, 1)
                .expect("inside");
            byte.write(&[0x5A]);
        }
        let guest = channel.and_then(|it| it.daemon.as_mut());
        let guest = guest.map(|daemon| &mut daemon.side);
        if let (Some(host), Some(guest)) = (host, guest) {
            let [to_guest, to_host] = [&mut host.signals, &mut guest.signals];
            let (wakes_guest, wakes_host) = (std::mem::take(to_guest), std::mem::take(to_host));
            guest.awake |= wakes_guest && !lost;
            host.awake |= wakes_host && !lost;
        }
    }
}

//! Messages of the control path against both ends of it.
//!
//! The bytes are a script; the first one says which end is under test. What a host
//! keeps stays within its budgets, what it hands out is complete, and either end can be
//! saved whenever it is quiet.

use linkspan_vmbus::Guid;
use linkspan_vmbus::channel::{Guest, Host, Offer, ProtocolVersion, guest, host};
use linkspan_vmbus::ic::{FILE_COPY, HEARTBEAT};

use super::Outcome;
use crate::input::Input;

/// Steps of a script, the first byte of each.
pub(crate) mod step {
    /// A message: its number, 8 bits; how many bytes follow its header, 8 bits; those.
    pub(crate) const MESSAGE: u8 = 0;
    /// A message as it is: bytes, 8 bits; those.
    pub(crate) const RAW: u8 = 1;
    /// The end is saved and restored.
    pub(crate) const SAVE: u8 = 2;
    /// What the owner of the end does, 8 bits; a number, 8 bits.
    pub(crate) const OWNER: u8 = 3;
    /// How many there are.
    pub(crate) const COUNT: u8 = 4;
}

/// What the owner of a host does.
pub(crate) mod host_owner {
    pub(crate) const OFFER: u8 = 0;
    pub(crate) const RESCIND: u8 = 1;
    /// Opens are granted from now on if the number is even.
    pub(crate) const GRANT: u8 = 2;
    pub(crate) const COUNT: u8 = 3;
}

/// What the owner of a guest does, to a channel of that number.
pub(crate) mod guest_owner {
    pub(crate) const CONNECT: u8 = 0;
    /// Shares 40 pages.
    pub(crate) const SHARE: u8 = 1;
    /// Opens it on what was shared last.
    pub(crate) const OPEN: u8 = 2;
    pub(crate) const CLOSE: u8 = 3;
    pub(crate) const UNSHARE: u8 = 4;
    pub(crate) const RELEASE: u8 = 5;
    pub(crate) const UNLOAD: u8 = 6;
    pub(crate) const RETARGET: u8 = 7;
    pub(crate) const COUNT: u8 = 8;
}

const HOST: host::Limits = host::Limits {
    version: ProtocolVersion::WIN10_V5_3,
    gpadls: 4,
    pages: 64,
};

const GUEST: guest::Limits = guest::Limits {
    version: ProtocolVersion::WIN10_V5_3,
    channels: 4,
};

/// The target.
pub fn target(data: &[u8]) {
    run(data);
}

/// Runs a script to the end. The first byte is even for a host.
pub fn run(data: &[u8]) -> Outcome {
    let mut input = Input::new(data);
    let mut outcome = Outcome::default();
    match input.u8() {
        Some(end) if end % 2 == 0 => HostRun::new().run(&mut input, &mut outcome),
        Some(_) => GuestRun::new().run(&mut input, &mut outcome),
        None => None,
    };
    outcome
}

/// The next step, if it is a message.
fn message(step: u8, input: &mut Input<'_>) -> Option<Option<Vec<u8>>> {
    Some(match step {
        step::MESSAGE => {
            let (code, len) = (input.u8()?, input.u8()?);
            let mut bytes = vec![code, 0, 0, 0, 0, 0, 0, 0];
            bytes.extend(input.bytes(len.into()));
            bytes.resize(8 + usize::from(len), 0);
            Some(bytes)
        }
        step::RAW => {
            let len = input.u8()?;
            Some(input.bytes(len.into()).to_vec())
        }
        _ => None,
    })
}

struct HostRun {
    host: Host,
    grant: bool,
}

impl HostRun {
    fn new() -> Self {
        let mut host = Host::new(HOST);
        for service in [&FILE_COPY, &HEARTBEAT] {
            host.offer(Offer::service(service, Guid([1; 16]), 7))
                .expect("a channel");
        }
        Self { host, grant: true }
    }

    fn run(&mut self, input: &mut Input<'_>, outcome: &mut Outcome) -> Option<()> {
        loop {
            let step = input.u8()? % step::COUNT;
            if let Some(message) = message(step, input)? {
                outcome.count(self.host.receive(&message));
            } else if step == step::SAVE {
                let saved = self.host.snapshot().expect("all was taken");
                self.host = Host::restore(HOST, &saved).expect("just saved");
                assert_eq!(self.host.snapshot().expect("quiet"), saved);
            } else {
                let (what, number) = (input.u8()?, input.u8()?);
                match what % host_owner::COUNT {
                    host_owner::OFFER => {
                        let _ = self
                            .host
                            .offer(Offer::service(&HEARTBEAT, Guid([number; 16]), 8));
                    }
                    host_owner::RESCIND => {
                        let _ = self.host.rescind(number.into());
                    }
                    _ => self.grant = number.is_multiple_of(2),
                }
            }
            self.carry_out();
        }
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.host.poll_output() {
            match output {
                host::Output::Send(message) => assert!((8..=240).contains(&message.len())),
                host::Output::Open { relid, request } => {
                    let ranges = self.host.gpadl(request.gpadl).expect("it is complete");
                    let pages = ranges.page_count();
                    assert!(
                        (1..pages).contains(&(request.second_page as usize)) && pages <= HOST.pages
                    );
                    self.host.opened(relid, self.grant);
                }
                host::Output::Release { gpadl } => {
                    self.host.released(gpadl).expect("it waits");
                    assert_eq!(self.host.gpadl(gpadl), None);
                }
                host::Output::Close { .. }
                | host::Output::Retarget { .. }
                | host::Output::Reset => {}
            }
        }
    }
}

struct GuestRun {
    guest: Guest,
    shared: u32,
}

impl GuestRun {
    fn new() -> Self {
        let mut guest = Guest::new(GUEST);
        guest.connect().expect("apart");
        Self { guest, shared: 0 }
    }

    fn run(&mut self, input: &mut Input<'_>, outcome: &mut Outcome) -> Option<()> {
        loop {
            let step = input.u8()? % step::COUNT;
            if let Some(message) = message(step, input)? {
                outcome.count(self.guest.receive(&message));
                assert!(self.guest.offers().count() <= GUEST.channels);
            } else if step == step::SAVE {
                while self.guest.poll_output().is_some() {}
                let saved = self.guest.snapshot().expect("all was taken");
                self.guest = Guest::restore(GUEST, &saved).expect("just saved");
                assert_eq!(self.guest.snapshot().expect("quiet"), saved);
            } else {
                let (what, relid) = (input.u8()?, input.u8()?);
                self.owner(what % guest_owner::COUNT, relid.into());
            }
            // Some is left for a rescind to find.
            for _ in 0..2 {
                if let Some(guest::Output::Send { message, .. }) = self.guest.poll_output() {
                    assert!((8..=240).contains(&message.len()));
                }
            }
        }
    }

    fn owner(&mut self, what: u8, relid: u32) {
        let shared = self.shared;
        let _ = match what {
            guest_owner::CONNECT => self.guest.connect(),
            guest_owner::SHARE => {
                let pages: Vec<u64> = (0..40).collect();
                self.guest
                    .share(relid, 40 * 4096, &pages)
                    .map(|gpadl| self.shared = gpadl)
            }
            guest_owner::OPEN => self.guest.open(relid, shared, 20, 0, [0; 120]),
            guest_owner::CLOSE => self.guest.close(relid),
            guest_owner::UNSHARE => self.guest.unshare(shared),
            guest_owner::RELEASE => self.guest.release(relid),
            guest_owner::UNLOAD => self.guest.unload(),
            _ => self.guest.retarget(relid, 1),
        };
    }
}

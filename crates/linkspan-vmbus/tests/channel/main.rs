//! The control path: both ends.

mod hostile;
mod pair;

use linkspan_vmbus::Guid;
use linkspan_vmbus::channel::{Guest, Host, Offer, ProtocolVersion, guest, host};
use linkspan_vmbus::ic::{FILE_COPY, HEARTBEAT};

fn file_copy() -> Offer {
    Offer::service(&FILE_COPY, Guid::default(), 0x2001)
}

fn heartbeat() -> Offer {
    Offer::service(&HEARTBEAT, Guid([7; 16]), 0x2002)
}

/// Both ends, and what came of them.
struct Pair {
    host: Host,
    guest: Guest,
    host_limits: host::Limits,
    guest_limits: guest::Limits,
    /// Whether an open is granted.
    grant: bool,
    /// Whether both ends are saved and restored at every step.
    cut: bool,
    messages: usize,
    events: Vec<guest::Output>,
    effects: Vec<host::Output>,
}

impl Pair {
    fn new(cut: bool) -> Self {
        Self::with(
            cut,
            ProtocolVersion::WIN10_V5_3,
            ProtocolVersion::WIN10_V5_3,
        )
    }

    fn with(cut: bool, at_host: ProtocolVersion, at_guest: ProtocolVersion) -> Self {
        let host_limits = host::Limits {
            version: at_host,
            ..host::Limits::default()
        };
        let guest_limits = guest::Limits {
            version: at_guest,
            ..guest::Limits::default()
        };
        Self {
            host: Host::new(host_limits),
            guest: Guest::new(guest_limits),
            host_limits,
            guest_limits,
            grant: true,
            cut,
            messages: 0,
            events: Vec::new(),
            effects: Vec::new(),
        }
    }

    fn save_and_restore(&mut self) {
        if !self.cut {
            return;
        }
        // Whoever has something to hand out is not quiet.
        if let Ok(saved) = self.host.snapshot() {
            self.host = Host::restore(self.host_limits, &saved).unwrap();
            assert_eq!(self.host.snapshot().unwrap(), saved);
        }
        if let Ok(saved) = self.guest.snapshot() {
            self.guest = Guest::restore(self.guest_limits, &saved).unwrap();
            assert_eq!(self.guest.snapshot().unwrap(), saved);
        }
    }

    fn host_effect(&mut self, effect: host::Output) {
        match &effect {
            host::Output::Send(message) => {
                assert!(message.len() <= 240);
                self.guest.receive(message).unwrap();
                return;
            }
            host::Output::Open { relid, request } => {
                assert!(self.host.gpadl(request.gpadl).is_some());
                self.save_and_restore();
                self.host.opened(*relid, self.grant);
            }
            host::Output::Release { gpadl } => {
                self.save_and_restore();
                self.host.released(*gpadl).unwrap();
            }
            _ => {}
        }
        self.effects.push(effect);
    }

    /// Until both are silent.
    fn talk(&mut self) {
        loop {
            self.save_and_restore();
            if let Some(effect) = self.host.poll_output() {
                self.host_effect(effect);
            } else if let Some(output) = self.guest.poll_output() {
                match output {
                    guest::Output::Send { message, .. } => {
                        assert!(message.len() <= 240);
                        self.messages += 1;
                        self.host.receive(&message).unwrap();
                    }
                    event => self.events.push(event),
                }
            } else {
                return;
            }
        }
    }

    fn events(&mut self) -> Vec<guest::Output> {
        self.talk();
        std::mem::take(&mut self.events)
    }

    fn effects(&mut self) -> Vec<host::Output> {
        self.talk();
        std::mem::take(&mut self.effects)
    }

    /// Connected, with one channel.
    fn connected(cut: bool) -> (Self, u32) {
        let mut pair = Self::new(cut);
        let relid = pair.host.offer(file_copy()).unwrap();
        pair.guest.connect().unwrap();
        pair.events();
        (pair, relid)
    }

    /// With rings of so many pages, shared.
    fn share(&mut self, relid: u32, pages: u32) -> u32 {
        let numbers: Vec<u64> = (0..u64::from(pages)).map(|page| 0x1000 + page).collect();
        let gpadl = self.guest.share(relid, pages * 4096, &numbers).unwrap();
        assert_eq!(self.events(), [guest::Output::Shared(gpadl)]);
        let ranges = self.host.gpadl(gpadl).unwrap();
        let found: Vec<u64> = ranges
            .iter()
            .flat_map(|range| range.pages().collect::<Vec<_>>())
            .collect();
        assert_eq!(found, numbers);
        gpadl
    }
}

//! The guest: its kernel, which has the control path, and the daemon that writes files.

use linkspan_mem::Region;
use linkspan_vmbus::channel::{Guest as Control, guest};
use linkspan_vmbus::fcopy::{self, Policy, Receiver, Roots};
use linkspan_vmbus::ic::{Reaction, Status};
use linkspan_vmbus::packet::Header;

use super::Plan;
use super::disk::Disk;
use super::side::{End, Side};
use crate::{Rng, Sim};

pub(crate) struct Guest {
    pub(crate) control: Control,
    limits: guest::Limits,
    /// The channel that was offered.
    pub(crate) channel: Option<Channel>,
}

/// A channel that was offered, and what the guest has of it.
pub(crate) struct Channel {
    pub(crate) relid: u32,
    gpadl: Option<u32>,
    /// The memory of the rings, and the pages that the host is told.
    pub(crate) region: Region,
    pub(crate) pages: Vec<u64>,
    pub(crate) daemon: Option<Daemon>,
}

/// The daemon while its channel is open.
pub(crate) struct Daemon {
    pub(crate) side: Side,
    pub(crate) receiver: fcopy::Guest,
    /// It does not run for a while.
    pub(crate) stalls: bool,
}

fn policy() -> Policy {
    Policy {
        roots: Roots::new(&["/tmp"]).expect("a root"),
        max_size: 1 << 20,
    }
}

impl Guest {
    pub(crate) fn new(plan: &Plan) -> Self {
        let limits = guest::Limits {
            version: plan.versions[0],
            ..guest::Limits::default()
        };
        let mut control = Control::new(limits);
        control.connect().expect("nobody is connected");
        Self {
            control,
            limits,
            channel: None,
        }
    }

    /// What the kernel hears of its channels.
    pub(crate) fn hear(
        &mut self,
        event: guest::Output,
        plan: &Plan,
        disk: &mut Disk,
        sim: &mut Sim,
    ) {
        use guest::Output;
        match event {
            Output::Offered(relid) => {
                assert!(self.channel.is_none(), "two channels are offered");
                self.share(relid, plan, sim);
            }
            Output::Shared(gpadl) => {
                if let Some(channel) = &mut self.channel {
                    channel.gpadl = Some(gpadl);
                    self.open(plan);
                }
            }
            Output::NotOpened { .. } => self.open(plan),
            Output::Opened(relid) => {
                let channel = self.channel.as_mut().filter(|it| it.relid == relid);
                // Who has left meanwhile wants none.
                let Some(channel) = channel else { return };
                sim.count("channels opened");
                channel.daemon = Some(Daemon {
                    side: Side::new(&channel.region, plan.ring, End::Guest),
                    receiver: fcopy::Guest::new(Receiver::new(policy()), plan.echo),
                    stalls: false,
                });
            }
            Output::Rescinded(relid) => {
                self.stop_daemon(disk);
                self.channel = None;
                // Unless it has left meanwhile.
                let _ = self.control.release(relid);
            }
            // The channel was closed, and is opened again.
            Output::Unshared(_) => {
                if let Some(channel) = self.channel.take() {
                    self.share(channel.relid, plan, sim);
                }
            }
            Output::Retargeted { status, .. } => {
                assert_eq!(status, 0);
                sim.count("moved interrupts");
            }
            Output::Unloaded => self.control.connect().expect("it is unloaded"),
            Output::Connected(_) | Output::AllOffered => {}
            other => panic!("{other:?}"),
        }
    }

    fn share(&mut self, relid: u32, plan: &Plan, sim: &mut Sim) {
        let len = 2 * plan.ring;
        let first = sim.rng.below(1 << 20);
        let pages: Vec<u64> = (0..len / 4096).map(|page| first + 3 * page).collect();
        let bytes = u32::try_from(len).expect("small");
        // One that is not there any more was rescinded, which is said next.
        if self.control.share(relid, bytes, &pages).is_err() {
            return;
        }
        self.channel = Some(Channel {
            relid,
            gpadl: None,
            region: Region::heap(usize::try_from(len).expect("small")).expect("memory"),
            pages,
            daemon: None,
        });
    }

    fn open(&mut self, plan: &Plan) {
        let Some(channel) = &self.channel else { return };
        let gpadl = channel.gpadl.expect("it is shared");
        let second = u32::try_from(plan.ring / 4096).expect("small");
        let opened = self.control.open(channel.relid, gpadl, second, 0, [0; 120]);
        // As for `share`.
        let _ = opened;
    }

    /// The daemon is gone in order: what it has begun is removed.
    fn stop_daemon(&mut self, disk: &mut Disk) {
        let daemon = self.channel.as_mut().and_then(|it| it.daemon.take());
        let Some(mut daemon) = daemon else { return };
        if let Some(effect) = daemon.receiver.end() {
            let status = disk.carry_out(&effect, &[]);
            daemon.receiver.ended(status);
        }
        assert!(disk.open.is_none(), "a file is left behind");
    }

    /// The daemon is killed, closes its device, and is started again; says whether there was one.
    pub(crate) fn restart_daemon(&mut self, disk: &mut Disk) -> bool {
        let Some(channel) = self.channel.as_mut().filter(|it| it.daemon.is_some()) else {
            return false;
        };
        channel.daemon = None;
        // The next one removes what it finds.
        disk.open = None;
        let (relid, gpadl) = (channel.relid, channel.gpadl.expect("it is open"));
        if self.control.close(relid).is_ok() {
            self.control.unshare(gpadl).expect("it is closed");
        }
        true
    }

    /// The daemon's pass over the rings.
    pub(crate) fn pass(&mut self, disk: &mut Disk, sim: &mut Sim) {
        let daemon = self.channel.as_mut().and_then(|it| it.daemon.as_mut());
        let Some(Daemon { side, receiver, .. }) = daemon else {
            return;
        };
        side.begin();
        let (mut left, mut waits) = (true, false);
        for _ in 0..1 + sim.rng.below(6) {
            if !side.has_room() {
                (waits, left) = (true, false);
                break;
            }
            if !side.next() {
                left = false;
                break;
            }
            let id = side.packet.descriptor().transaction_id;
            let len = serve(receiver, side.packet.payload_mut(), disk);
            sim.count("requests served");
            let reply = &side.packet.payload()[..len];
            let sent = side.outgoing.send(Header::in_band(id), &[reply]);
            sent.expect("there is room");
        }
        side.end(left, waits);
    }

    /// A part of it goes on in another process, if it can now; says whether it did.
    pub(crate) fn hand_over(&mut self, plan: &Plan, rng: &mut Rng) -> bool {
        if rng.percent(40) {
            let Ok(saved) = self.control.snapshot() else {
                return false;
            };
            self.control = Control::restore(self.limits, &saved).expect("its own bytes");
            assert_eq!(self.control.snapshot(), Ok(saved));
            return true;
        }
        let Some(channel) = &mut self.channel else {
            return false;
        };
        let Some(daemon) = &mut channel.daemon else {
            return false;
        };
        let saved = daemon.receiver.snapshot().expect("nothing is under way");
        let receiver = fcopy::Guest::restore(Receiver::new(policy()), plan.echo, &saved);
        daemon.receiver = receiver.expect("its own bytes");
        assert_eq!(daemon.receiver.snapshot(), Ok(saved));
        daemon
            .side
            .hand_over(&channel.region, plan.ring, End::Guest);
        true
    }
}

/// Serves a request in place; the bytes of its answer.
fn serve(receiver: &mut fcopy::Guest, payload: &mut [u8], disk: &mut Disk) -> usize {
    let mut reaction = receiver.receive(payload).expect("a host of ours");
    loop {
        match reaction {
            Reaction::Reply(len) => return len,
            Reaction::Do(effect) => {
                let status: Status = disk.carry_out(&effect, payload);
                reaction = receiver.answer(status, payload);
            }
        }
    }
}

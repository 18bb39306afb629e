//! The host: it offers the channel, and sends one file after the other.

use std::collections::VecDeque;

use linkspan_mem::Region;
use linkspan_vmbus::channel::{Host as Control, host};
use linkspan_vmbus::fcopy::{Failure, Job, Options, Output, Sender};
use linkspan_vmbus::packet::Header;

use super::side::{End, Side};
use super::{Plan, file_copy};
use crate::{Rng, Sim};

/// A file that the guest is to have.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// What was there before it was sent, if anything.
    pub(crate) before: Option<Vec<u8>>,
}

pub(crate) struct Host {
    pub(crate) control: Control,
    limits: host::Limits,
    /// The channel that is offered.
    pub(crate) relid: u32,
    /// The channel that is open: its end of the rings, and the sender.
    pub(crate) open: Option<Open>,
    pub(crate) copies: VecDeque<Copy>,
    /// Whether the first of them is under way.
    pub(crate) sending: bool,
    /// Opens that are refused.
    pub(crate) refuses: u64,
    /// Somebody here stopped a file.
    stopped: bool,
    /// How many times the device was taken away.
    pub(crate) renewed: u64,
}

/// A channel that is open.
pub(crate) struct Open {
    pub(crate) side: Side,
    pub(crate) sender: Sender,
    pub(crate) ready: bool,
    /// Nothing can be sent over it any more.
    pub(crate) over: bool,
}

impl Host {
    pub(crate) fn new(plan: &Plan, copies: VecDeque<Copy>) -> Self {
        let limits = host::Limits {
            version: plan.versions[1],
            ..host::Limits::default()
        };
        let mut control = Control::new(limits);
        Self {
            relid: control.offer(file_copy()).expect("a first channel"),
            control,
            limits,
            open: None,
            copies,
            sending: false,
            refuses: 0,
            stopped: false,
            renewed: 0,
        }
    }

    /// The channel is gone, and whatever was sent over it.
    pub(crate) fn close(&mut self) {
        self.open = None;
        (self.sending, self.stopped) = (false, false);
    }

    /// The device is taken away, and comes again.
    pub(crate) fn renew(&mut self, sim: &mut Sim) {
        self.renewed += 1;
        self.close();
        self.control.rescind(self.relid).expect("it is offered");
        self.relid = self.control.offer(file_copy()).expect("a few channels");
        sim.note("host offers anew", self.relid.into(), 0);
    }

    /// Opens a channel on this memory; says whether it is open.
    pub(crate) fn open(&mut self, plan: &Plan, region: &Region) -> bool {
        if self.refuses > 0 {
            self.refuses -= 1;
            return false;
        }
        self.open = Some(Open {
            side: Side::new(region, plan.ring, End::Host),
            sender: Sender::new(plan.options()).expect("a few at once"),
            ready: false,
            over: false,
        });
        true
    }

    /// A pass over the rings.
    pub(crate) fn pass(&mut self, sim: &mut Sim) -> Option<Result<Copy, Failure>> {
        let open = self.open.as_mut()?;
        open.side.begin();
        let mut left = false;
        let mut most = 1 + sim.rng.below(6);
        while open.side.next() {
            open.sender.receive(open.side.packet.payload());
            most -= 1;
            if most == 0 {
                left = true;
                break;
            }
        }
        let mut waits = false;
        let mut told = None;
        for _ in 0..8 {
            if !open.side.has_room() {
                waits = true;
                break;
            }
            let Some(output) = open.sender.poll_output() else {
                break;
            };
            let source = self.copies.front();
            if let Some(output) = send(&mut open.side, output, source) {
                told = Some(output);
                left = true;
                break;
            }
        }
        open.side.end(left, waits);
        self.hear(told?)
    }

    fn hear(&mut self, output: Output) -> Option<Result<Copy, Failure>> {
        let open = self.open.as_mut().expect("it has told something");
        match output {
            Output::Ready => open.ready = true,
            Output::Done => {
                (self.sending, self.stopped) = (false, false);
                return self.copies.pop_front().map(Ok);
            }
            Output::Failed(failure) => {
                match failure {
                    Failure::Stopped => assert!(self.stopped, "nobody stopped it"),
                    Failure::Silent => open.over = true,
                    Failure::Refused { .. } => {}
                    failure => panic!("{failure}"),
                }
                let sending = self.sending;
                (self.sending, self.stopped) = (false, false);
                return sending.then_some(Err(failure));
            }
            _ => {}
        }
        None
    }

    /// Whether a file can be begun.
    pub(crate) fn may_begin(&self) -> bool {
        let open = self.open.as_ref();
        let ready = open.is_some_and(|open| open.ready && !open.over);
        ready && !self.sending && !self.copies.is_empty()
    }

    pub(crate) fn begin(&mut self, before: Option<Vec<u8>>, sim: &mut Sim) {
        let (Some(open), Some(copy)) = (&mut self.open, self.copies.front_mut()) else {
            return;
        };
        sim.count("files begun");
        let job = Job {
            file: copy.name.clone(),
            path: "/tmp/".into(),
            overwrite: before.is_some(),
            create_path: sim.rng.percent(50),
            size: copy.bytes.len() as u64,
        };
        copy.before = before;
        open.sender.send(&job).expect("it is ready");
        open.side.awake = true;
        self.sending = true;
    }

    /// Somebody stops the file that is under way; says whether one is.
    pub(crate) fn stop(&mut self) -> bool {
        let Some(open) = self.open.as_mut().filter(|_| self.sending) else {
            return false;
        };
        open.sender.cancel(Failure::Stopped);
        open.side.awake = true;
        self.stopped = true;
        true
    }

    /// The guest has not answered for too long, by the clock; says whether that mattered.
    pub(crate) fn expire(&mut self) -> bool {
        let awaiting = self.open.as_mut().filter(|open| open.sender.awaiting());
        let Some(open) = awaiting else {
            return false;
        };
        open.sender.expired();
        open.side.awake = true;
        true
    }

    /// A part of it goes on in another process, if it can now; says whether it did.
    pub(crate) fn hand_over(
        &mut self,
        plan: &Plan,
        region: Option<&Region>,
        rng: &mut Rng,
    ) -> bool {
        if rng.percent(40) {
            let Ok(saved) = self.control.snapshot() else {
                return false;
            };
            self.control = Control::restore(self.limits, &saved).expect("its own bytes");
            assert_eq!(self.control.snapshot(), Ok(saved));
            return true;
        }
        let (Some(open), Some(region)) = (&mut self.open, region) else {
            return false;
        };
        let Ok(saved) = open.sender.snapshot() else {
            return false;
        };
        let options: Options = plan.options();
        open.sender = Sender::restore(options, &saved).expect("its own bytes");
        assert_eq!(open.sender.snapshot(), Ok(saved));
        open.side.hand_over(region, plan.ring, End::Host);
        true
    }
}

/// Sends what is to be sent; gives back what is not.
fn send(side: &mut Side, output: Output, source: Option<&Copy>) -> Option<Output> {
    let header = Header::in_band(1);
    let sent = match output {
        Output::Send(message) => side.outgoing.send(header, &[&message]),
        Output::Write {
            head,
            offset,
            len,
            padding,
        } => {
            let at = usize::try_from(offset).expect("small");
            let source = &source.expect("a file is under way").bytes;
            let parts = [&head[..], &source[at..at + len], &vec![0; padding]];
            side.outgoing.send(header, &parts)
        }
        other => return Some(other),
    };
    sent.expect("there is room");
    None
}

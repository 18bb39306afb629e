//! What a UIO device does with what is asked of its file, without I/O: requests in,
//! effects out (facts: Linux's drivers/uio/uio.c and uio_hv_generic.c).

use std::collections::{BTreeMap, VecDeque};

use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::wire::{self, Message, Request, opcode};

/// Files that are open at once, at most. Each is also at most one call that waits.
const FILES_MAX: usize = 1024;

/// Calls that wait at once, at most.
const WAITING_MAX: usize = 1024;

/// Bytes of what is read and written.
const WORD: u32 = 4;

/// What is to be done, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send this to the kernel.
    Send(Message),
    /// The kernel has said what it can do: whether it takes files behind files. The
    /// device works only if it does.
    Ready {
        /// Whether it does.
        passthrough: bool,
    },
    /// Somebody opened it: open the channel, then say [`Device::connected`].
    Connect {
        /// Which request it was.
        unique: u64,
    },
    /// Nobody has it open any more: close the channel.
    Disconnect,
    /// Write the interrupt mask of the ring from host to guest; when interrupts are on,
    /// then signal the host.
    Interrupts {
        /// Whether the host may interrupt.
        on: bool,
    },
}

/// An open file.
#[derive(Debug)]
struct Open {
    /// The count of interrupts that it has read, or found when it was opened.
    seen: u32,
    /// Whom to tell of the next one.
    poll: Option<u64>,
}

/// The channel below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Below {
    Closed,
    /// With the file that is mapped.
    Open(i32),
    /// The host took it back. A next one can be had when all have closed this one.
    Rescinded,
}

/// A UIO device with one file.
#[derive(Debug)]
pub struct Device {
    mode: u32,
    owner: [u32; 2],
    masks: bool,
    below: Below,
    /// Interrupts since the device is there.
    events: u32,
    files: BTreeMap<u64, Open>,
    next: u64,
    /// Requests that wait for an interrupt, and their files.
    waiting: VecDeque<(u64, u64)>,
}

fn failure(unique: u64, errno: Errno) -> Effect {
    Effect::Send(Message::answer(unique, -errno.raw_os_error()))
}

impl Device {
    /// A device whose file has this mode, user and group.
    #[must_use]
    pub fn new(mode: u32, owner: [u32; 2]) -> Self {
        Self {
            mode,
            owner,
            masks: false,
            below: Below::Closed,
            events: 0,
            files: BTreeMap::new(),
            next: 0,
            waiting: VecDeque::new(),
        }
    }

    /// Whether it masks interrupts when its channel is opened and with each one, as Linux
    /// did before b15b7d2a1b09.
    #[must_use]
    pub fn masking(self, masks: bool) -> Self {
        Self { masks, ..self }
    }

    /// Takes a message of the kernel.
    pub fn request(&mut self, bytes: &[u8], effects: &mut VecDeque<Effect>) {
        let Some(request) = Request::parse(bytes) else {
            return;
        };
        let unique = request.unique;
        match self.obey(&request, effects) {
            // The body is shorter than its kind: no kernel sends that.
            None => effects.push_back(failure(unique, Errno::INVAL)),
            Some(Err(errno)) => effects.push_back(failure(unique, errno)),
            Some(Ok(())) => {}
        }
    }

    fn obey(
        &mut self,
        request: &Request<'_>,
        effects: &mut VecDeque<Effect>,
    ) -> Option<Result<(), Errno>> {
        let unique = request.unique;
        let mut send = |message| {
            effects.push_back(Effect::Send(message));
            Some(Ok(()))
        };
        match request.opcode {
            opcode::INIT => Some(init(request, effects)?),
            opcode::GETATTR => send(self.attributes(unique)),
            opcode::SETATTR if request.u32(0)? & wire::ATTR_OWNER != 0 => Some(Err(Errno::PERM)),
            opcode::SETATTR => send(self.attributes(unique)),
            opcode::OPEN => Some(self.open(unique, effects)),
            opcode::READ => {
                let (file, len) = (request.u64(0)?, request.u32(16)?);
                let flags = OFlags::from_bits_retain(request.u32(32)?);
                Some(self.read(unique, file, len, flags, effects))
            }
            opcode::WRITE => {
                let (file, len) = (request.u64(0)?, request.u32(16)?);
                let word = (len == WORD).then(|| request.u32(40));
                Some(self.write(unique, file, word, effects))
            }
            opcode::POLL => {
                let (file, handle, flags) = (request.u64(0)?, request.u64(8)?, request.u32(16)?);
                let notify = flags & wire::POLL_SCHEDULE_NOTIFY != 0;
                Some(self.poll(unique, file, notify.then_some(handle), effects))
            }
            opcode::RELEASE => {
                self.release(request.u64(0)?, effects);
                effects.push_back(Effect::Send(Message::answer(unique, 0)));
                Some(Ok(()))
            }
            opcode::INTERRUPT => {
                let target = request.u64(0)?;
                // What was answered meanwhile is not there any more.
                if let Some(at) = self.waiting.iter().position(|(waits, _)| *waits == target) {
                    self.waiting.remove(at);
                    effects.push_back(failure(target, Errno::INTR));
                }
                Some(Ok(()))
            }
            opcode::FORGET | opcode::BATCH_FORGET | opcode::DESTROY => Some(Ok(())),
            _ => Some(Err(Errno::NOSYS)),
        }
    }

    fn attributes(&self, unique: u64) -> Message {
        let [user, group] = self.owner;
        Message::answer(unique, 0)
            // Valid for so long; the number of the file; sizes and times.
            .zeroes(16)
            .u64(1)
            .zeroes(5 * 8 + 3 * 4)
            .u32(REGULAR | self.mode)
            .u32(1)
            .u32(user)
            .u32(group)
            .u32(0)
            .u32(4096)
            .u32(0)
    }

    fn open(&mut self, unique: u64, effects: &mut VecDeque<Effect>) -> Result<(), Errno> {
        match self.below {
            _ if self.files.len() >= FILES_MAX => return Err(Errno::NFILE),
            Below::Rescinded => return Err(Errno::NODEV),
            Below::Closed => effects.push_back(Effect::Connect { unique }),
            Below::Open(backing) => effects.push_back(self.opened(unique, backing)),
        }
        Ok(())
    }

    fn opened(&mut self, unique: u64, backing: i32) -> Effect {
        self.next += 1;
        let open = Open {
            seen: self.events,
            poll: None,
        };
        self.files.insert(self.next, open);
        let flags = wire::OPEN_DIRECT_IO
            | wire::OPEN_NOFLUSH
            | wire::OPEN_PARALLEL_WRITES
            | wire::OPEN_PASSTHROUGH;
        let message = Message::answer(unique, 0)
            .u64(self.next)
            .u32(flags)
            .i32(backing);
        Effect::Send(message)
    }

    /// The channel is open, and this is the number of the file that is mapped; or it
    /// could not be opened. The answer to [`Effect::Connect`].
    pub fn connected(
        &mut self,
        unique: u64,
        backing: Result<i32, Errno>,
        effects: &mut VecDeque<Effect>,
    ) {
        let effect = match backing {
            Ok(backing) => {
                self.below = Below::Open(backing);
                self.mask(effects);
                self.opened(unique, backing)
            }
            Err(errno) => failure(unique, errno),
        };
        effects.push_back(effect);
    }

    fn read(
        &mut self,
        unique: u64,
        file: u64,
        len: u32,
        flags: OFlags,
        effects: &mut VecDeque<Effect>,
    ) -> Result<(), Errno> {
        let open = self.files.get_mut(&file).ok_or(Errno::BADF)?;
        if self.below == Below::Rescinded {
            return Err(Errno::IO);
        }
        if len != WORD {
            return Err(Errno::INVAL);
        }
        if open.seen != self.events {
            open.seen = self.events;
            effects.push_back(Effect::Send(Message::answer(unique, 0).u32(self.events)));
            return Ok(());
        }
        if flags.contains(OFlags::NONBLOCK) {
            return Err(Errno::AGAIN);
        }
        if self.waiting.len() >= WAITING_MAX {
            return Err(Errno::NOMEM);
        }
        self.waiting.push_back((unique, file));
        Ok(())
    }

    fn write(
        &mut self,
        unique: u64,
        file: u64,
        word: Option<Option<u32>>,
        effects: &mut VecDeque<Effect>,
    ) -> Result<(), Errno> {
        if !self.files.contains_key(&file) {
            return Err(Errno::BADF);
        }
        if self.below == Below::Rescinded {
            return Err(Errno::IO);
        }
        let word = word.flatten().ok_or(Errno::INVAL)?;
        effects.push_back(Effect::Interrupts { on: word != 0 });
        effects.push_back(Effect::Send(Message::answer(unique, 0).u32(WORD).u32(0)));
        Ok(())
    }

    fn poll(
        &mut self,
        unique: u64,
        file: u64,
        notify: Option<u64>,
        effects: &mut VecDeque<Effect>,
    ) -> Result<(), Errno> {
        let open = self.files.get_mut(&file).ok_or(Errno::BADF)?;
        let ready = if self.below == Below::Rescinded {
            PollFlags::IN | PollFlags::RDNORM | PollFlags::ERR | PollFlags::HUP
        } else if open.seen != self.events {
            PollFlags::IN | PollFlags::RDNORM
        } else {
            if notify.is_some() {
                open.poll = notify;
            }
            PollFlags::empty()
        };
        let ready = u32::from(ready.bits());
        effects.push_back(Effect::Send(Message::answer(unique, 0).u32(ready).u32(0)));
        Ok(())
    }

    fn release(&mut self, file: u64, effects: &mut VecDeque<Effect>) {
        if self.files.remove(&file).is_none() || !self.files.is_empty() {
            return;
        }
        self.below = Below::Closed;
        effects.push_back(Effect::Disconnect);
    }

    /// The host has interrupted, once or several times.
    pub fn interrupted(&mut self, effects: &mut VecDeque<Effect>) {
        self.events = self.events.wrapping_add(1);
        self.mask(effects);
        while let Some((unique, file)) = self.waiting.pop_front() {
            if let Some(open) = self.files.get_mut(&file) {
                open.seen = self.events;
            }
            effects.push_back(Effect::Send(Message::answer(unique, 0).u32(self.events)));
        }
        self.tell_polls(effects);
    }

    /// The host has taken the channel back.
    pub fn rescinded(&mut self, effects: &mut VecDeque<Effect>) {
        if !matches!(self.below, Below::Open(_)) {
            return;
        }
        self.below = Below::Rescinded;
        while let Some((unique, _)) = self.waiting.pop_front() {
            effects.push_back(failure(unique, Errno::IO));
        }
        self.tell_polls(effects);
    }

    fn mask(&self, effects: &mut VecDeque<Effect>) {
        if self.masks {
            effects.push_back(Effect::Interrupts { on: false });
        }
    }

    fn tell_polls(&mut self, effects: &mut VecDeque<Effect>) {
        let polls = self.files.values_mut().filter_map(|open| open.poll.take());
        effects.extend(
            polls.map(|handle| Effect::Send(Message::notification(wire::NOTIFY_POLL).u64(handle))),
        );
    }
}

/// S_IFREG.
const REGULAR: u32 = 0o100_000;

fn init(request: &Request<'_>, effects: &mut VecDeque<Effect>) -> Option<Result<(), Errno>> {
    let (major, minor, flags) = (request.u32(0)?, request.u32(4)?, request.u32(12)?);
    if major < wire::MAJOR {
        return Some(Err(Errno::PROTO));
    }
    // Kernels before 7.36 have no second word.
    let flags2 = match flags & wire::INIT_EXT {
        0 => 0,
        _ => request.u32(16)?,
    };
    let passthrough =
        flags2 & wire::PASSTHROUGH != 0 && (major, minor) >= (wire::MAJOR, wire::MINOR);
    let message = Message::answer(request.unique, 0)
        .u32(wire::MAJOR)
        .u32(wire::MINOR)
        // Nothing is read ahead; there is a second word.
        .u32(0)
        .u32(wire::INIT_EXT)
        // Numbers of requests in the background: the kernel's own.
        .u32(0)
        // Bytes of a write; times are exact to a nanosecond; no pages, no alignment.
        .u32(4096)
        .u32(1)
        .u32(0)
        .u32(wire::PASSTHROUGH)
        // Files behind ours lie on no other file system.
        .u32(1)
        .zeroes(6 * 4);
    effects.push_back(Effect::Send(message));
    effects.push_back(Effect::Ready { passthrough });
    Some(Ok(()))
}

#[cfg(test)]
mod tests;

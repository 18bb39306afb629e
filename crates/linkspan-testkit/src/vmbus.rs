//! The host's end of a VMBus channel, which can say anything.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use linkspan_backends::uio::{Channel, Connect, Offer};
use linkspan_mem::{Region, Window};
use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::{EventFd, PeerMemory};
use linkspan_vmbus::fcopy::{Failure, Job, Options, Output, Sender};
use linkspan_vmbus::ic::FILE_COPY;
use linkspan_vmbus::packet::Header;
use linkspan_vmbus::{Incoming, Outgoing, Packet, Shape};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;

use crate::PATIENCE;

/// A channel of file copy, seen from the host.
#[derive(Debug)]
pub struct VmbusHost {
    memory: OwnedFd,
    kick: EventFd,
    call: EventFd,
    gone: EventFd,
    incoming: Incoming<Window>,
    outgoing: Outgoing<Window>,
    packet: Packet,
}

impl VmbusHost {
    /// What is offered, with rings of this size each.
    #[must_use]
    pub fn offer(ring: u64) -> Offer {
        Offer {
            interface: FILE_COPY.interface,
            instance: FILE_COPY.instance.expect("it has one"),
            relid: 11,
            ring,
            masks: false,
        }
    }

    /// Both ends of a new channel.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn pair(ring: u64) -> io::Result<(Self, Channel)> {
        Self::pair_of(ring, rustix::param::page_size() as u64)
    }

    /// The same, to a guest with pages of so many bytes.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn pair_of(ring: u64, page: u64) -> io::Result<(Self, Channel)> {
        let memory = memfd::create("rings", ring * 2, Sealing::Fixed)?;
        let mapped = PeerMemory::check(memory.try_clone()?).map_err(io::Error::other)?;
        let mapped = mapped.map(0, ring * 2, None).map_err(io::Error::other)?;
        let shape = Shape::halves(ring * 2, page);
        let rings = shape.rings(&Region::new(Arc::new(mapped)), 0);
        let [to_host, to_guest] = rings.map_err(io::Error::other)?;
        let incoming = Incoming::new(to_host).map_err(io::Error::other)?;
        let host = Self {
            memory: memory.try_clone()?,
            kick: EventFd::new()?,
            call: EventFd::new()?,
            gone: EventFd::new()?,
            packet: Packet::new(incoming.packet_max()).map_err(io::Error::other)?,
            incoming,
            outgoing: Outgoing::new(to_guest).map_err(io::Error::other)?,
        };
        let channel = Channel {
            memory,
            kick: host.kick.try_clone()?.into(),
            call: host.call.try_clone()?.into(),
            gone: host.gone.try_clone()?.into(),
        };
        Ok((host, channel))
    }

    /// Gives each guest that connects a channel of its own, whose other end comes to
    /// the receiver.
    #[must_use]
    pub fn for_each_guest(ring: u64) -> (Connect, Receiver<Self>) {
        Self::for_each_guest_of(ring, rustix::param::page_size() as u64, |_| {})
    }

    /// The same for guests with pages of so many bytes; `first` is what the host does as
    /// soon as the channel is open, before the guest hears of it.
    #[must_use]
    pub fn for_each_guest_of(
        ring: u64,
        page: u64,
        mut first: impl FnMut(&mut Self) + Send + 'static,
    ) -> (Connect, Receiver<Self>) {
        let (send, hosts) = mpsc::channel();
        let connect = Box::new(move || {
            let (mut host, channel) = Self::pair_of(ring, page)?;
            first(&mut host);
            let lost = |_| io::Error::from(io::ErrorKind::ConnectionRefused);
            send.send(host).map_err(lost)?;
            Ok(channel)
        });
        (connect, hosts)
    }

    /// Puts a message into the ring, and signals if the guest wants that and `quiet`
    /// does not forbid it.
    ///
    /// # Panics
    /// When there is no room for it.
    pub fn post(&mut self, parts: &[&[u8]], quiet: bool) {
        self.outgoing
            .send(Header::in_band(1), parts)
            .expect("room for a message");
        if self.outgoing.publish().expect("a ring that works") && !quiet {
            self.interrupt();
        }
    }

    /// Signals the guest.
    pub fn interrupt(&self) {
        self.call.signal().expect("an eventfd of ours");
    }

    /// Waits until the guest has signalled.
    ///
    /// # Panics
    /// When it takes too long.
    pub fn await_kick(&mut self) {
        let patience = Timespec::try_from(PATIENCE).expect("a minute");
        let mut fds = [PollFd::new(&self.kick, PollFlags::IN)];
        let count = retry_on_intr(|| poll(&mut fds, Some(&patience))).expect("a wait");
        assert!(count > 0, "the guest does not signal");
        self.kick.drain().expect("an eventfd of ours");
    }

    /// Bytes that can be sent now.
    ///
    /// # Panics
    /// When the guest has broken the ring.
    pub fn room(&mut self) -> u32 {
        self.outgoing.refresh().expect("a ring that works")
    }

    /// Writes anything anywhere into the memory of the channel.
    ///
    /// # Panics
    /// When that is outside of it.
    pub fn scribble(&self, at: u64, bytes: &[u8]) {
        let written = rustix::io::pwrite(&self.memory, bytes, at).expect("memory of ours");
        assert_eq!(written, bytes.len());
    }

    /// Takes the channel back.
    pub fn rescind(&self) {
        self.gone.signal().expect("an eventfd of ours");
    }

    /// The guest's next message, if it is there.
    ///
    /// # Panics
    /// When the guest has broken the ring.
    pub fn take(&mut self) -> Option<&[u8]> {
        self.kick.drain().expect("an eventfd of ours");
        self.incoming.refresh().expect("a ring that works");
        let came = self.incoming.receive(&mut self.packet);
        let came = came.expect("a packet that is whole");
        if self.incoming.release().expect("a ring that works") {
            self.interrupt();
        }
        came.then(|| self.packet.payload())
    }

    /// Waits for the guest's next message; `None` if the guest ends first, which `ended`
    /// becomes readable for.
    ///
    /// # Panics
    /// When it takes too long.
    pub fn receive(&mut self, ended: impl AsFd) -> Option<Vec<u8>> {
        loop {
            if let Some(payload) = self.take() {
                return Some(payload.to_vec());
            }
            let mut fds = [
                PollFd::new(&self.kick, PollFlags::IN),
                PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN),
            ];
            let patience = Timespec::try_from(PATIENCE).expect("a minute");
            let count = retry_on_intr(|| poll(&mut fds, Some(&patience))).expect("a wait");
            assert!(count > 0, "the guest does not answer");
            if fds[0].revents().is_empty() {
                return None;
            }
        }
    }

    /// Negotiates, and copies files one after the other: what became of each.
    ///
    /// # Panics
    /// When the guest ends, or does not answer.
    pub fn copy(&mut self, ended: impl AsFd, files: &[(Job, &[u8])]) -> Vec<Result<(), Failure>> {
        let mut sender = Sender::new(Options { outstanding: 1 }).expect("one at a time");
        let (mut done, mut at) = (Vec::new(), 0);
        loop {
            while let Some(output) = sender.poll_output() {
                match output {
                    Output::Send(message) => self.post(&[&message], false),
                    Output::Write {
                        head,
                        offset,
                        len,
                        padding,
                    } => {
                        let offset = usize::try_from(offset).expect("of a slice");
                        let data = &files[at].1[offset..offset + len];
                        self.post(&[&head, data, &vec![0; padding]], false);
                    }
                    Output::Ready => sender.send(&files[0].0).expect("it is ready"),
                    Output::Done | Output::Failed(_) => {
                        done.push(match output {
                            Output::Failed(why) => Err(why),
                            _ => Ok(()),
                        });
                        at += 1;
                        match files.get(at) {
                            Some((job, _)) => sender.send(job).expect("it is ready"),
                            None => return done,
                        }
                    }
                }
            }
            let reply = self.receive(&ended).expect("the guest lives");
            sender.receive(&reply);
        }
    }
}

//! The control queue of a card, as bytes on the wire.

use std::sync::Arc;

use linkspan_devices::net::control::{Command, accepted};
use linkspan_mem::{Gpa, Window};
use linkspan_virtio::{Buffer, DriverQueue, Features, QueueLayout};

use super::{Card, Rig};
use crate::census::settled;
use crate::disk::expect_signal;
use crate::front_end::Refused;
use crate::memory::SharedMemory;

/// Entries of the queue.
const SIZE: u16 = 16;

/// Bytes that a command may have.
const ROOM: u64 = 4096;

/// A control queue that runs.
#[derive(Debug)]
pub struct Control {
    memory: Arc<SharedMemory>,
    rig: Rig,
    queue: DriverQueue<Window>,
    layout: QueueLayout,
    /// Where the command is, and behind it the answer.
    at: u64,
}

impl Control {
    /// Starts and enables ring `index` of a card.
    ///
    /// # Errors
    /// When the back end refuses.
    ///
    /// # Panics
    /// When there is not enough memory.
    #[track_caller]
    pub fn start(card: &mut Card, index: u16) -> Result<Self, Refused> {
        let memory = Arc::clone(&card.pairs[0].memory);
        let features = Features::from_bits_retain(card.front.features());
        let layout = QueueLayout::of(features);
        let rig = Rig::new(&memory, index, SIZE, layout);
        rig.start(&card.front, &memory)?;
        card.front.enable(index, true)?;
        Ok(Self {
            queue: rig.queue(&memory, features),
            rig,
            at: memory.take(ROOM + 64),
            memory,
            layout,
        })
    }

    /// Whether the device does what it is asked for.
    ///
    /// # Panics
    /// When it does not answer.
    #[track_caller]
    pub fn ask(&mut self, command: &Command<'_>) -> bool {
        self.ask_bytes(&command.to_bytes())
    }

    /// The same with any bytes as a command, in two pieces.
    ///
    /// # Panics
    /// When the device does not answer.
    #[track_caller]
    pub fn ask_bytes(&mut self, bytes: &[u8]) -> bool {
        self.memory.write(self.at + ROOM, &[0xEE]);
        self.send(bytes, true);
        let mut written = None;
        let answered = settled(|| {
            self.queue.refresh().expect("a sane device");
            let used = self.queue.pop().expect("a sane device");
            written = used.map(|used| used.written);
            written.is_some()
        });
        assert!(answered, "a command is not answered");
        assert_eq!(written, Some(1));
        let answer = self.memory.read(self.at + ROOM, 1)[0];
        assert!(answer <= 1, "no answer: {answer:#x}");
        accepted(answer)
    }

    /// A command without room for an answer.
    ///
    /// # Panics
    /// When the queue is broken already.
    pub fn ask_without_answer(&mut self, bytes: &[u8]) {
        self.send(bytes, false);
    }

    fn send(&mut self, bytes: &[u8], answer: bool) {
        self.memory.write(self.at, bytes);
        let cut = bytes.len() / 2;
        let buffer = |at: u64, len: usize| Buffer {
            address: Gpa(self.memory.guest(at).0),
            len: len.try_into().expect("a short command"),
        };
        let pieces = [
            buffer(self.at, cut),
            buffer(self.at + cut as u64, bytes.len() - cut),
        ];
        let pieces: Vec<_> = pieces.into_iter().filter(|piece| piece.len > 0).collect();
        let room = answer.then(|| buffer(self.at + ROOM, 1));
        let added = self.queue.add(&pieces, room.as_slice(), None);
        added.expect("a sane device");
        self.queue.publish().expect("a sane device");
        if self.queue.kick_wanted().expect("a sane device") {
            self.rig.kick.signal().expect("an eventfd");
        }
    }

    /// Waits until the device says that it gave the queue up.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn expect_broken(&self) {
        expect_signal(&self.rig.err, "the ring is not given up");
    }

    /// Stops the ring and starts it where it stood, as for a machine that is paused.
    ///
    /// # Panics
    /// When the layout is packed, or the back end refuses.
    #[track_caller]
    pub fn pause(&self, card: &Card) {
        assert_eq!(self.layout, QueueLayout::Split);
        let base = card.front.stop(self.rig.index).expect("a base");
        let started = self.rig.start_at(&card.front, &self.memory, base.into());
        started.expect("it starts again");
    }
}

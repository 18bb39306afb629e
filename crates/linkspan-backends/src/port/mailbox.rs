//! How a worker hands to another what that has to do: frames for queues that only
//! the other one has, and stations that were learned. Nobody ever waits.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use crossbeam_queue::ArrayQueue;
use linkspan_devices::net::header::{FRAME_LEN_MAX, Offload};
use linkspan_devices::net::switch::Station;
use linkspan_devices::net::{Frame, HEAD_LEN, Mac};
use linkspan_mem::fault::{self, Injected};
use linkspan_sys::EventFd;

use super::fabric::BYTES_MAX;

/// Frames that may wait for one worker. Their memory is touched as far as it is used.
const PARCELS: usize = 256;

/// Learned stations that may wait for one worker. What goes beyond is learned by
/// flooding.
const NOTES: usize = 1024;

/// What is to be done with a frame.
#[derive(Clone, Copy, Debug)]
pub(super) enum Address {
    /// It goes to this queue pair of a port.
    Pair(u16, u16),
    /// It comes from this port, as if a guest had sent it.
    From(u16),
}

/// A frame in memory of ours.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) address: Address,
    pub(super) offload: Offload,
    bytes: BytesMut,
    len: usize,
}

impl Parcel {
    /// The frame.
    pub(super) fn frame(&self) -> Frame<'_> {
        split(&self.bytes[..self.len])
    }
}

/// A frame in private memory, its first bytes apart.
pub(super) fn split(bytes: &[u8]) -> Frame<'_> {
    let (head, rest) = bytes.split_at(bytes.len().min(HEAD_LEN));
    let body = linkspan_devices::net::Body::Private(rest);
    Frame { head, body }
}

/// A station that another worker has learned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note {
    pub(super) port: u16,
    pub(super) vlan: u16,
    pub(super) mac: Mac,
}

/// What waits for one worker.
#[derive(Debug)]
pub(super) struct Mailbox {
    free: ArrayQueue<Box<Parcel>>,
    full: ArrayQueue<Box<Parcel>>,
    notes: ArrayQueue<Note>,
    pub(super) wake: EventFd,
    asleep: AtomicBool,
    /// Whether the worker is to say which stations it has learned, and what it said.
    asked: AtomicBool,
    told: Mutex<Option<Vec<Station>>>,
}

impl Mailbox {
    /// For a worker with others beside it, or not.
    pub(super) fn new(alone: bool) -> io::Result<Self> {
        // One that is alone gets nothing but announcements.
        let (parcels, notes) = if alone { (4, 1) } else { (PARCELS, NOTES) };
        let mailbox = Self {
            free: ArrayQueue::new(parcels),
            full: ArrayQueue::new(parcels),
            notes: ArrayQueue::new(notes),
            wake: EventFd::new()?,
            asleep: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            told: Mutex::default(),
        };
        let all = || -> Result<BytesMut, Injected> {
            const { assert!(BYTES_MAX >= FRAME_LEN_MAX as usize) };
            fault::point(fault::Site::Alloc)?;
            Ok(BytesMut::zeroed(parcels * BYTES_MAX))
        };
        // In one piece: the system gives so large a one as it is touched, and many small
        // ones at once.
        let mut all = all().map_err(io::Error::other)?;
        while !all.is_empty() {
            mailbox.give_back(Box::new(Parcel {
                address: Address::From(0),
                offload: Offload::NONE,
                bytes: all.split_to(BYTES_MAX),
                len: 0,
            }));
        }
        Ok(mailbox)
    }

    /// Hands a frame over; `false` when too many wait.
    pub(super) fn send(&self, address: Address, offload: &Offload, frame: &Frame<'_>) -> bool {
        let Some(mut parcel) = self.free.pop() else {
            return false;
        };
        let len = frame.read(&mut parcel.bytes).map(|bytes| bytes.len());
        let Some(len) = len else {
            self.give_back(parcel);
            return false;
        };
        (parcel.address, parcel.offload, parcel.len) = (address, *offload, len);
        // There is room for all parcels.
        let _ = self.full.push(parcel);
        self.rouse();
        true
    }

    /// Says where a station is, if there is room. Nobody is woken for it.
    pub(super) fn note(&self, note: Note) {
        let _ = self.notes.push(note);
    }

    #[inline]
    pub(super) fn next_note(&self) -> Option<Note> {
        self.notes.pop()
    }

    #[inline]
    pub(super) fn next(&self) -> Option<Box<Parcel>> {
        self.full.pop()
    }

    pub(super) fn give_back(&self, parcel: Box<Parcel>) {
        // There is room for all parcels.
        let _ = self.free.push(parcel);
    }

    #[inline]
    pub(super) fn has_parcels(&self) -> bool {
        !self.full.is_empty()
    }

    /// Whether nothing waits, and the worker has nothing in hand.
    pub(super) fn is_idle(&self) -> bool {
        self.free.is_full()
    }

    /// Asks the worker which stations it has learned.
    pub(super) fn ask(&self) {
        *self.lock() = None;
        self.asked.store(true, Ordering::Release);
        if let Err(error) = self.wake.signal() {
            panic!("our own eventfd cannot be signalled: {error}");
        }
    }

    #[inline]
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// The worker's answer.
    pub(super) fn answer(&self, stations: Vec<Station>) {
        self.asked.store(false, Ordering::Release);
        // Whoever asked signalled, whether the worker slept or not.
        self.wake_up();
        *self.lock() = Some(stations);
    }

    /// What the worker answered, once.
    pub(super) fn answered(&self) -> Option<Vec<Station>> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Station>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker is about to sleep: whether something waits already, so that it
    /// must not. Else it is woken from now on.
    pub(super) fn sleep(&self) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        // Whoever puts a parcel in sees that the worker sleeps, or is seen here.
        fence(Ordering::SeqCst);
        let waits = self.has_parcels();
        if waits {
            self.asleep.store(false, Ordering::Relaxed);
        }
        waits
    }

    /// The worker looks by itself again.
    pub(super) fn wake_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        if let Err(error) = self.wake.drain() {
            panic!("our own eventfd cannot be read: {error}");
        }
    }

    fn rouse(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed)
            && self.asleep.swap(false, Ordering::Relaxed)
            && let Err(error) = self.wake.signal()
        {
            panic!("our own eventfd cannot be signalled: {error}");
        }
    }
}

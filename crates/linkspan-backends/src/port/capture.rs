//! What goes through the ports, written to a file for who wants to look at it.
//!
//! Workers copy frames into a bounded ring and never wait: what finds no room there
//! is counted, and the network goes on as if nobody looked. A thread writes.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_queue::ArrayQueue;
use linkspan_devices::net::Frame;
use linkspan_devices::net::pcapng::{self, Seen, Way};
use linkspan_mem::fault;
use linkspan_sys::EventFd;
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_sys::thread::spawn;

use super::fabric::BYTES_MAX;

/// Frames that may wait for the writer. Their memory is touched as far as it is used.
const SLOTS: usize = 2048;

/// Bytes that are written at once.
const CHUNK: usize = 1 << 18;

/// How long the file may take for the last of them.
const END_LIMIT: Duration = Duration::from_secs(5);

/// Bytes of the longest frame that can be captured.
pub const SNAP_LENGTH_MAX: u32 = {
    assert!(BYTES_MAX < 1 << 20);
    #[expect(clippy::cast_possible_truncation, reason = "checked one line above")]
    {
        BYTES_MAX as u32
    }
};

/// A frame on its way to the file.
struct Slot {
    seen: Seen,
    bytes: Vec<u8>,
    have: usize,
}

/// Takes copies of frames.
pub struct Capture {
    free: ArrayQueue<Box<Slot>>,
    full: ArrayQueue<Box<Slot>>,
    /// By port.
    counts: Vec<Counts>,
    wake: EventFd,
    asleep: AtomicBool,
    ending: AtomicBool,
    /// The file takes nothing any more.
    broken: AtomicBool,
    /// When it began, by both clocks.
    start: (Instant, u64),
}

#[derive(Default)]
struct Counts {
    written: AtomicU64,
    missing: AtomicU64,
}

/// The end of a capture that has the file.
#[derive(Debug)]
pub struct CaptureFile {
    capture: Arc<Capture>,
    ended: Receiver<io::Result<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Begins to write to `file` what goes through ports of these names, so many bytes
    /// of each frame at most.
    ///
    /// # Errors
    /// When memory, a descriptor or a thread cannot be had, or the file takes nothing.
    pub fn begin(
        mut file: File,
        names: &[String],
        snap_length: u32,
    ) -> io::Result<(Arc<Self>, CaptureFile)> {
        let snap_length = snap_length.clamp(1, SNAP_LENGTH_MAX);
        let mut head = Vec::new();
        pcapng::begin(&mut head, concat!("linkspan ", env!("CARGO_PKG_VERSION")));
        for name in names {
            pcapng::port(&mut head, name, snap_length);
        }
        fault::point(fault::Site::Alloc).map_err(io::Error::other)?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let capture = Arc::new(Self {
            free: ArrayQueue::new(SLOTS),
            full: ArrayQueue::new(SLOTS),
            counts: names.iter().map(|_| Counts::default()).collect(),
            wake: EventFd::new()?,
            asleep: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            start: (Instant::now(), nanos(since.unwrap_or_default())),
        });
        for _ in 0..SLOTS {
            capture.give_back(Box::new(Slot {
                seen: Seen {
                    port: 0,
                    way: Way::In,
                    nanos: 0,
                    len: 0,
                },
                // Zeroes come from the system as they are touched.
                bytes: vec![0; snap_length as usize],
                have: 0,
            }));
        }
        file.write_all(&head)?;
        let (tell, ended) = sync_channel(1);
        let thread = spawn("capture", {
            let capture = Arc::clone(&capture);
            move || drop(tell.send(capture.write(file)))
        })?;
        let writer = CaptureFile {
            capture: Arc::clone(&capture),
            ended,
            thread: Some(thread),
        };
        Ok((capture, writer))
    }

    /// Takes a copy of a frame if there is room, at a time that is known already.
    #[cold]
    pub(super) fn take(&self, port: u16, way: Way, now: Instant, frame: &Frame<'_>) {
        let Some(counts) = self.counts.get(usize::from(port)) else {
            return;
        };
        let takes = !self.broken.load(Ordering::Relaxed);
        let slot = takes.then(|| self.free.pop()).flatten();
        let Some(mut slot) = slot else {
            counts.missing.fetch_add(1, Ordering::Relaxed);
            return;
        };
        slot.seen = Seen {
            port: port.into(),
            way,
            nanos: self.nanos(now),
            len: u32::try_from(frame.len()).unwrap_or(u32::MAX),
        };
        slot.have = frame.read_front(&mut slot.bytes);
        // There is room for all of them.
        let _ = self.full.push(slot);
        self.rouse();
    }

    /// Frames of a port that are in the file or on their way, and those that found no
    /// room.
    pub fn counts(&self, port: u16) -> (u64, u64) {
        let counts = self.counts.get(usize::from(port));
        counts.map_or((0, 0), |counts| {
            let value = |count: &AtomicU64| count.load(Ordering::Relaxed);
            (value(&counts.written), value(&counts.missing))
        })
    }

    fn nanos(&self, now: Instant) -> u64 {
        let (start, at) = self.start;
        at.saturating_add(nanos(now.saturating_duration_since(start)))
    }

    fn give_back(&self, slot: Box<Slot>) {
        // There is room for all of them.
        let _ = self.free.push(slot);
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

    /// Writes until it is to end and nothing is left.
    fn write(&self, mut file: File) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(CHUNK + 2 * BYTES_MAX);
        loop {
            while let Some(slot) = self.full.pop() {
                pcapng::frame(&mut bytes, &slot.seen, &slot.bytes[..slot.have]);
                let counts = self.counts.get(slot.seen.port as usize);
                self.give_back(slot);
                if let Some(counts) = counts {
                    counts.written.fetch_add(1, Ordering::Relaxed);
                }
                if bytes.len() >= CHUNK {
                    self.put(&mut file, &mut bytes)?;
                }
            }
            self.put(&mut file, &mut bytes)?;
            if self.ending.load(Ordering::Acquire) && self.full.is_empty() {
                break;
            }
            self.sleep()?;
        }
        let now = self.nanos(Instant::now());
        for (port, _) in (0_u16..).zip(&self.counts) {
            pcapng::counts(&mut bytes, port.into(), now, self.counts(port));
        }
        self.put(&mut file, &mut bytes)
    }

    fn put(&self, file: &mut File, bytes: &mut Vec<u8>) -> io::Result<()> {
        let done = file.write_all(bytes);
        bytes.clear();
        if let Err(error) = &done {
            self.broken.store(true, Ordering::Relaxed);
            tracing::error!("nothing more is captured: {error}");
        }
        done
    }

    /// Sleeps until there is something to write, or it is to end.
    fn sleep(&self) -> io::Result<()> {
        self.asleep.store(true, Ordering::Relaxed);
        // Whoever puts a frame in sees that we sleep, or is seen here.
        fence(Ordering::SeqCst);
        if self.full.is_empty() && !self.ending.load(Ordering::Relaxed) {
            wait_for(self.wake.as_fd(), Direction::Read, None, None)?;
        }
        self.asleep.store(false, Ordering::Relaxed);
        self.wake.drain()?;
        Ok(())
    }
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").finish_non_exhaustive()
    }
}

impl CaptureFile {
    /// Writes what was taken until now, and ends.
    ///
    /// # Errors
    /// When the file did not take all of it, or takes too long, as a pipe does that
    /// nobody reads.
    pub fn finish(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        self.capture.ending.store(true, Ordering::Release);
        self.capture.rouse();
        match self.ended.recv_timeout(END_LIMIT) {
            Ok(done) => {
                let _ = thread.join();
                done
            }
            // It is left behind, with its file.
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Drop for CaptureFile {
    fn drop(&mut self) {
        // Whoever wants to know calls `finish`.
        let _ = self.end();
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

//! `qemu-img`, and a queue of an image driven by hand.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use linkspan_backends::image::{Image, ImageQueue, Operation};
use linkspan_mem::{Gpa, GuestMemory, Region, Span, UserVa};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_testkit::PATIENCE;

/// Whether QEMU's tools are not there; says so then.
pub(crate) fn missing(test: &str) -> bool {
    let version = || Command::new("qemu-img").arg("--version").output();
    let missing = without_children(version).is_err();
    if missing {
        drop(writeln!(
            io::stderr().lock(),
            "SKIP {test}: qemu-img (package qemu-utils) is not installed"
        ));
    }
    missing
}

/// Held while a child is on its way to its program: until then it has what this
/// process has open, locks of images included.
static SPAWN: Mutex<()> = Mutex::new(());

/// Does something, an opening above all, while no child holds what was closed.
pub(crate) fn without_children<T>(work: impl FnOnce() -> T) -> T {
    let _guard = SPAWN.lock().unwrap_or_else(PoisonError::into_inner);
    work()
}

fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    let mut command = Command::new("qemu-img");
    command.args(args).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = without_children(|| command.spawn()).unwrap();
    child.wait_with_output().unwrap()
}

/// Runs `qemu-img`, which must succeed.
#[track_caller]
pub(crate) fn img<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) {
    let output = run(args);
    let said = String::from_utf8_lossy(&output.stderr);
    let more = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "qemu-img: {said} {more}");
}

/// Runs `qemu-img`, which must fail; what it said.
#[track_caller]
pub(crate) fn img_fails<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let output = run(args);
    assert!(!output.status.success(), "qemu-img succeeded");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The bytes of the disk in a qcow2 image, as QEMU reads them.
#[track_caller]
pub(crate) fn raw_of(image: &Path, folder: &Path) -> Vec<u8> {
    let raw = folder.join("raw.out");
    let convert = ["convert", "-f", "qcow2", "-O", "raw"].map(Path::new);
    img(convert.into_iter().chain([image, &*raw]));
    fs::read(raw).unwrap()
}

/// Bytes without a pattern that a mistake would keep.
pub(crate) fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        bytes.extend(next());
    }
    bytes.truncate(len);
    bytes
}

/// Bytes of the buffer of a rig.
const BUFFER: usize = 1 << 20;

/// A queue of an image, and memory.
pub(crate) struct Rig {
    memory: GuestMemory,
    queue: Box<dyn ImageQueue>,
    buffer: Vec<Span>,
}

impl Rig {
    pub(crate) fn new(image: &dyn Image) -> Self {
        Self::try_new(image).unwrap()
    }

    pub(crate) fn try_new(image: &dyn Image) -> io::Result<Self> {
        let region = Region::heap(BUFFER + 4096).map_err(io::Error::other)?;
        let memory = GuestMemory::new(vec![(region, Gpa(0), UserVa(0x1000))]);
        let memory = memory.map_err(io::Error::other)?;
        let mut buffer = Vec::new();
        // In two pieces, neither of which has whole sectors.
        let len = u32::try_from(BUFFER).unwrap() - 100;
        for (at, len) in [(4000, 100), (4100, len)] {
            let resolved = memory.guest.resolve(Gpa(at), len, |span| buffer.push(span));
            resolved.unwrap();
        }
        Ok(Self {
            memory,
            queue: image.open_queue(64)?,
            buffer,
        })
    }

    fn spans(&self, len: usize) -> Vec<Span> {
        let [first, second] = self.buffer[..] else {
            unreachable!("there are two");
        };
        let len = u32::try_from(len).unwrap();
        vec![first.part(0, len), second.part(0, len.saturating_sub(100))]
    }

    /// Does one operation and waits for its end.
    #[track_caller]
    pub(crate) fn try_run(&mut self, operation: Operation<'_>) -> io::Result<()> {
        let known = self.queue.submit(5, operation, self.memory.table());
        if let Some(known) = known {
            return known;
        }
        loop {
            if let Some(completion) = self.queue.completion() {
                assert_eq!(completion.token, 5);
                assert!(self.queue.completion().is_none());
                return completion.result;
            }
            let fd = self.queue.completion_fd().expect("it completes later");
            let deadline = Some(Instant::now() + PATIENCE);
            let woken = wait_for(fd.as_fd(), Direction::Read, None, deadline).unwrap();
            assert_eq!(woken, Wake::Ready, "the image does not answer");
        }
    }

    #[track_caller]
    pub(crate) fn run(&mut self, operation: Operation<'_>) {
        self.try_run(operation).unwrap();
    }

    #[track_caller]
    pub(crate) fn try_read(&mut self, offset: usize, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0xEE; len];
        for at in (0..len).step_by(BUFFER) {
            let data = self.spans(BUFFER.min(len - at));
            let offset = (offset + at) as u64;
            let read = Operation::Read {
                offset,
                data: &data,
            };
            self.try_run(read)?;
            let part = &mut bytes[at..len.min(at + BUFFER)];
            self.memory.table().gather(&data, 0, part).unwrap();
        }
        Ok(bytes)
    }

    #[track_caller]
    pub(crate) fn read(&mut self, offset: usize, len: usize) -> Vec<u8> {
        self.try_read(offset, len).unwrap()
    }

    #[track_caller]
    pub(crate) fn try_write(
        &mut self,
        offset: usize,
        bytes: &[u8],
        durable: bool,
    ) -> io::Result<()> {
        for at in (0..bytes.len()).step_by(BUFFER) {
            let part = &bytes[at..bytes.len().min(at + BUFFER)];
            let data = self.spans(part.len());
            self.memory.table().scatter(&data, 0, part).unwrap();
            self.try_run(Operation::Write {
                offset: (offset + at) as u64,
                data: &data,
                durable,
            })?;
        }
        Ok(())
    }

    #[track_caller]
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8], durable: bool) {
        self.try_write(offset, bytes, durable).unwrap();
    }
}

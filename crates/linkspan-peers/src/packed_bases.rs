//! A relay that mends one message. Where a packed ring begins, its wrap counters
//! are 1 (virtio 1.3, 2.8.1), and `VHOST_USER_SET_VRING_BASE` carries them in bits
//! 15 and 31. virtio-driver 0.6.1 sends 0, a ring whose first descriptors would
//! never become available.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use linkspan_sys::poll::{Direction, Epoll, Interest, Ready, Wake, wait_for};
use linkspan_sys::{Listener, Stream};
use linkspan_testkit::PATIENCE;
use linkspan_vhost::message::Request;
use linkspan_virtio::QueueLayout;
use tempfile::TempDir;

/// A relay between one front end and its back end.
pub struct PackedBases {
    folder: TempDir,
    thread: Option<JoinHandle<u32>>,
}

impl PackedBases {
    /// Relays one connection to the back end at `to`.
    ///
    /// # Panics
    /// When a socket cannot be had.
    pub fn start(to: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = Listener::bind(&folder.path().join("relay")).expect("a socket");
        let to = to.to_owned();
        let relay = move || {
            let deadline = Some(Instant::now() + PATIENCE);
            let woken = wait_for(listener.as_fd(), Direction::Read, None, deadline);
            assert_eq!(woken.expect("a poll"), Wake::Ready, "nobody connects");
            let front = listener.accept().expect("a front end");
            relay(&front, &Stream::connect(&to).expect("a back end"))
        };
        Self {
            folder,
            thread: Some(std::thread::spawn(relay)),
        }
    }

    /// Where the front end connects.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("relay")
    }
}

impl Drop for PackedBases {
    fn drop(&mut self) {
        let mended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            let mended = mended.expect("one thread").expect("it does not panic");
            assert!(mended > 0, "the relay is needed no more");
        }
    }
}

/// Relays until one of them is gone; how many messages were mended.
fn relay(front: &Stream, back: &Stream) -> u32 {
    let epoll = Epoll::new().expect("an epoll");
    epoll.add(front, 0, Interest::READ).expect("epoll");
    epoll.add(back, 1, Interest::READ).expect("epoll");
    let mut ready = Ready::with_capacity(2);
    let mut mended = 0;
    loop {
        // Longer than any test is silent.
        let limit = Some(PATIENCE + Duration::from_secs(5));
        epoll.wait(&mut ready, limit).expect("epoll");
        let (from, to) = match ready.iter().next().map(|event| event.token) {
            Some(0) => (front, back),
            Some(_) => (back, front),
            None => return mended,
        };
        let mut bytes = [0; 4096];
        let mut fds = Vec::new();
        let len = match from.receive(&mut bytes, &mut fds, 8) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            received => received.map_or(0, |received| received.bytes),
        };
        if len == 0 {
            return mended;
        }
        mended += u32::from(std::ptr::eq(from, front) && mend(&mut bytes[..len]));
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        if to
            .send(&bytes[..len], &fds, Instant::now() + PATIENCE)
            .is_err()
        {
            return mended;
        }
    }
}

/// Puts the base of a fresh packed ring into a message that sets it to 0. The
/// front end waits for the acknowledgement of each, so they come one by one.
fn mend(message: &mut [u8]) -> bool {
    let code = Request::SetVringBase.code().to_le_bytes();
    // Request, flags, size; ring, base.
    if message.len() != 20 || message[..4] != code || message[16..] != [0; 4] {
        return false;
    }
    let base = QueueLayout::Packed.base(QueueLayout::Packed.start());
    message[16..].copy_from_slice(&base.to_le_bytes());
    true
}

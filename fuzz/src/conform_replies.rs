//! What a target of the conformance kit answers: whatever it is, the kit says in words what it
//! is, or goes on, and ends.

use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use linkspan_conform::{Kind, Target};
use linkspan_sys::Stream;

/// The target `conform_replies`.
pub fn target(bytes: &[u8]) {
    run(bytes);
}

/// How far the kit comes with a disk that says all this, and nothing after it.
pub fn run(bytes: &[u8]) -> String {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let says = Stream::check(OwnedFd::from(theirs.try_clone().expect("a descriptor")));
    let sent = says.and_then(|says| says.send_now(bytes)).expect("it fits");
    assert!(sent == bytes.len() || bytes.len() > 4096);
    theirs.shutdown(Shutdown::Write).expect("a socket");
    let ours = Stream::check(OwnedFd::from(ours)).expect("a socket");
    let kit = Target {
        socket: PathBuf::new(),
        kind: Kind::Blk,
        patience: Duration::from_secs(10),
        settle: Duration::ZERO,
    };
    kit.meet(ours)
}

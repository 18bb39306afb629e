//! Each step of a link's start fails in turn: no process, descriptor or thread is left behind.
//! Alone in its binary, which is also what it starts.

use std::io;
use std::path::Path;

use linkspan::supervisor::Sockets;
use linkspan::supervisor::processes::Processes;
use linkspan_sys::Epoll;
use linkspan_sys::poll::Ready;
use linkspan_testkit::sweep::sweep;

/// Starts a link, and waits until it has ended.
fn start_and_end() -> io::Result<()> {
    let epoll = Epoll::new()?;
    let mut processes = Processes::new(Path::new("/"), 2, Sockets::default());
    processes.start("a", &["--list".into()], None, &epoll)?;
    let mut ready = Ready::with_capacity(4);
    loop {
        epoll.wait(&mut ready, None)?;
        for event in ready.iter() {
            if processes.ended(event.token, &epoll).is_some() {
                return Ok(());
            }
        }
    }
}

#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    let report = sweep(start_and_end);
    assert!(report.points >= 3, "{report:?}");
    assert_eq!(report.absorbed(), 0, "{report:?}");
}

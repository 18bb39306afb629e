//! A program that goes on in the background, as daemons did before service managers.

use crate::acquire;
use linkspan_mem::fault::Site;
use std::fs;
use std::io;

/// Goes on as a process without terminal and parent, in the root folder, with
/// /dev/null in place of its three standard descriptors. The process that was started
/// ends with status 0; what is open stays open.
///
/// # Errors
/// `EBUSY` if there are other threads, which would be lost; what fork(2) reports.
pub fn detach() -> io::Result<()> {
    if fs::read_dir("/proc/self/task").map_or(1, Iterator::count) > 1 {
        return Err(rustix::io::Errno::BUSY.into());
    }
    acquire(Site::Thread)?;
    // SAFETY: there is no other thread whose locks the new process could inherit.
    match unsafe { libc::daemon(0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{alone, in_child};
    use std::io::{Read as _, Write as _};

    #[test]
    fn a_process_with_threads_stays_as_it_is() {
        in_child(
            "daemon::tests::a_process_with_threads_stays_as_it_is",
            || {
                // This runs in a thread of the test harness.
                assert_eq!(detach().unwrap_err().raw_os_error(), Some(libc::EBUSY));
            },
        )
        .assert_success();
    }

    #[test]
    fn a_process_that_may_not_fork_stays_as_it_is() {
        let name = "daemon::tests::a_process_that_may_not_fork_stays_as_it_is";
        in_child(name, || {
            alone(|| {
                let _sweep = linkspan_mem::fault::arm(1);
                let id = std::process::id();
                assert_eq!(detach().unwrap_err().raw_os_error(), Some(libc::EAGAIN));
                assert_eq!(std::process::id(), id);
            });
        })
        .assert_success();
    }

    #[test]
    fn a_daemon_keeps_what_is_open_and_nothing_else() {
        let name = "daemon::tests::a_daemon_keeps_what_is_open_and_nothing_else";
        in_child(name, || {
            let (mut report, told) = io::pipe().unwrap();
            alone(move || {
                let before = std::process::id();
                detach().unwrap();
                assert_ne!(std::process::id(), before);
                let cwd = std::env::current_dir().unwrap();
                let null = |fd: u32| fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
                let text = format!("{} {}", cwd.display(), null(1).display());
                let mut told = told;
                told.write_all(text.as_bytes()).unwrap();
            });
            let mut text = String::new();
            report.read_to_string(&mut text).unwrap();
            assert_eq!(text, "/ /dev/null");
        })
        .assert_success();
    }
}

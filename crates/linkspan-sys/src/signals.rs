//! The wish of a person or a service to stop, as something to wait for.
//!
//! A handler that counts an eventfd up, instead of a `signalfd`: that one needs
//! the signals blocked, and programs that we start would inherit the block and
//! could not be stopped. Handlers go back to the default when a program starts.

use crate::EventFd;
use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Lives as long as the process: a handler may be running at any time.
static EVENT: OnceLock<EventFd> = OnceLock::new();

/// One bit per signal that came and was not taken yet.
static CAME: AtomicU32 = AtomicU32::new(0);

/// A signal that can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT: Ctrl-C. The first one can be waited for; a second one ends the
    /// process at once, in case that stopping takes too long for somebody.
    Interrupt,
    /// SIGTERM: what service managers send.
    Terminate,
    /// SIGHUP: read the configuration again. Left ignored if it is ignored
    /// already, because that is what `nohup` asks for.
    Hangup,
    /// SIGUSR1: whatever the program says that it is for.
    User1,
    /// SIGUSR2: the same.
    User2,
}

impl Signal {
    const ALL: [Self; 5] = [
        Self::Interrupt,
        Self::Terminate,
        Self::Hangup,
        Self::User1,
        Self::User2,
    ];

    const fn number(self) -> c_int {
        match self {
            Self::Interrupt => libc::SIGINT,
            Self::Terminate => libc::SIGTERM,
            Self::Hangup => libc::SIGHUP,
            Self::User1 => libc::SIGUSR1,
            Self::User2 => libc::SIGUSR2,
        }
    }
}

/// The signals of this process; readable for [`crate::poll`] when one came.
#[derive(Debug)]
pub struct Signals {
    event: &'static EventFd,
}

impl Signals {
    /// Waits for `wanted` from now on. Once in the life of a process, and best
    /// before anything is started that has to be stopped in order.
    ///
    /// # Errors
    /// `AlreadyExists` on a second call; `EMFILE`.
    pub fn install(wanted: &[Signal]) -> io::Result<Self> {
        if EVENT.set(EventFd::new()?).is_err() {
            let text = "the signals of this process have an owner already";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        let event = EVENT.get().expect("it has just been set");
        for &signal in wanted {
            handle(signal)?;
        }
        Ok(Self { event })
    }

    /// The signals that came since the last call, each once. Never waits.
    ///
    /// # Errors
    /// None that the kernel documents for an eventfd of ours.
    pub fn take(&self) -> io::Result<Vec<Signal>> {
        // Emptied first: a signal that comes in between makes it readable again.
        self.event.drain()?;
        let came = CAME.swap(0, Ordering::AcqRel);
        let all = Signal::ALL.into_iter();
        Ok(all
            .filter(|&signal| came & bit(signal.number()) != 0)
            .collect())
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// A file that would pass the limit of this process (`RLIMIT_FSIZE`) is an error of
/// that write, `EFBIG`, and not the end of the process.
///
/// # Errors
/// None that the kernel documents.
pub fn ignore_file_limit() -> io::Result<()> {
    let mut action = no_action();
    action.sa_sigaction = libc::SIG_IGN;
    // SAFETY: the structure is ours, and no handler runs.
    check(unsafe { libc::sigaction(libc::SIGXFSZ, &raw const action, null_mut()) })
}

fn handle(signal: Signal) -> io::Result<()> {
    if signal == Signal::Hangup && ignored(signal)? {
        return Ok(());
    }
    let mut action = no_action();
    let function: extern "C" fn(c_int) = on_signal;
    action.sa_sigaction = function as usize;
    // Calls that the signal interrupts go on; whoever waits waits for the fd. On the
    // stack of the thread: the one for signals that Rust's threads have may be no
    // larger than the registers that the kernel puts there.
    action.sa_flags = libc::SA_RESTART;
    if signal == Signal::Interrupt {
        // The kernel itself goes back to the default with the first one, so the
        // second one works however stuck this process is.
        action.sa_flags |= libc::SA_RESETHAND;
    }
    // SAFETY: the structure is ours, and the function may interrupt anything.
    check(unsafe { libc::sigaction(signal.number(), &raw const action, null_mut()) })
}

fn ignored(signal: Signal) -> io::Result<bool> {
    let mut now = no_action();
    // SAFETY: the structure is ours; nothing is changed.
    check(unsafe { libc::sigaction(signal.number(), null(), &raw mut now) })?;
    Ok(now.sa_sigaction == libc::SIG_IGN)
}

extern "C" fn on_signal(number: c_int) {
    CAME.fetch_or(bit(number), Ordering::AcqRel);
    let Some(event) = EVENT.get() else {
        return;
    };
    let one = 1_u64;
    // SAFETY: the location of this thread's errno, which is put back, since the
    // interrupted code may be about to read it; the descriptor is never closed
    // and does not block.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        libc::write(
            event.as_fd().as_raw_fd(),
            (&raw const one).cast(),
            size_of::<u64>(),
        );
        *errno = saved;
    }
}

const fn bit(number: c_int) -> u32 {
    1 << number
}

fn no_action() -> libc::sigaction {
    // SAFETY: all bits zero is an action: the default one, no flags, no mask.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn check(status: c_int) -> io::Result<()> {
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::poll::{Direction, wait_for};
    use crate::testing::in_child;
    use std::process::Command;

    fn send(signal: Signal) {
        // SAFETY: sends a signal to this process, and nothing else.
        check(unsafe { libc::kill(libc::getpid(), signal.number()) }).unwrap();
    }

    fn next(signals: &Signals) -> Vec<Signal> {
        wait_for(signals.as_fd(), Direction::Read, None, None).unwrap();
        signals.take().unwrap()
    }

    #[test]
    fn signals_can_be_waited_for() {
        in_child("signals::tests::signals_can_be_waited_for", || {
            let signals = Signals::install(&Signal::ALL).unwrap();
            assert_eq!(signals.take().unwrap(), []);
            for signal in [
                Signal::Terminate,
                Signal::Hangup,
                Signal::Terminate,
                Signal::Interrupt,
            ] {
                send(signal);
                assert_eq!(next(&signals), [signal]);
            }
            let twice = Signals::install(&[]).unwrap_err();
            assert_eq!(twice.kind(), io::ErrorKind::AlreadyExists);
        })
        .assert_success();
    }

    #[test]
    fn second_interrupt_kills() {
        in_child("signals::tests::second_interrupt_kills", || {
            let signals = Signals::install(&Signal::ALL).unwrap();
            send(Signal::Interrupt);
            assert_eq!(next(&signals), [Signal::Interrupt]);
            send(Signal::Interrupt);
            next(&signals);
        })
        .assert_signal(libc::SIGINT);
    }

    #[test]
    fn started_programs_are_not_affected() {
        in_child("signals::tests::started_programs_are_not_affected", || {
            let _signals = Signals::install(&Signal::ALL).unwrap();
            let status = Command::new("cat")
                .arg("/proc/self/status")
                .output()
                .unwrap();
            let status = String::from_utf8(status.stdout).unwrap();
            let zero = |field: &str, mask: u64| {
                let line = status
                    .lines()
                    .find_map(|line| line.strip_prefix(field))
                    .unwrap();
                u64::from_str_radix(line.trim(), 16).unwrap() & mask == 0
            };
            let ours = Signal::ALL
                .iter()
                .fold(0, |mask, s| mask | 1 << (s.number() - 1));
            assert!(zero("SigBlk:", ours) && zero("SigIgn:", ours) && zero("SigCgt:", ours));
        })
        .assert_success();
    }

    #[test]
    fn ignored_hangup_stays_ignored() {
        in_child("signals::tests::ignored_hangup_stays_ignored", || {
            // SAFETY: ignoring a signal installs no function.
            unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
            let signals = Signals::install(&Signal::ALL).unwrap();
            send(Signal::Hangup);
            send(Signal::Terminate);
            assert_eq!(next(&signals), [Signal::Terminate]);
        })
        .assert_success();
    }
}

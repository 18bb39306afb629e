//! The program that `linkspan fcopy host` runs with the device as the kernel would show
//! it. Its device is a guest of the host like any other: it connects when the program
//! opens the file.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use linkspan_backends::fcopy::Host;
use linkspan_backends::uio::{self, Channel, Offer, Program};
use linkspan_engine::vmbus::Framed;
use linkspan_sys::signals::{Signal, Signals};
use linkspan_sys::{EventFd, thread};
use linkspan_vmbus::ic::FILE_COPY;
use linkspan_vmbus::link::{Frame, Reason};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::Signal as Number;

use crate::demo::process::supervised;
use crate::exit::{Failure, Status};

/// How long the host may take for the channel: it is this process.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Number of the device's channel; the first one that a host gives out is 1.
const RELID: u32 = 1;

/// Runs the host and, as its guest at the socket `place`, the program, until the program
/// ends. SIGINT and SIGTERM are passed on to it.
pub(super) fn run(
    mut host: Host,
    ring: u64,
    place: &Path,
    words: &[OsString],
    signals: &Signals,
) -> Result<ExitCode, Failure> {
    let offer = Offer {
        interface: FILE_COPY.interface,
        instance: FILE_COPY.instance.unwrap_or_default(),
        relid: RELID,
        ring,
        masks: false,
    };
    let (name, arguments) = words.split_first().context("no program is named")?;
    let mut command = supervised(name.as_ref());
    command.args(arguments);
    let over = EventFd::new().context("cannot watch the program")?;
    let stop = over.try_clone().context("cannot watch the program")?;
    let serving = thread::spawn("fcopy host", move || host.run(stop.as_fd()))
        .context("cannot start a thread")?;
    let status = attend(offer, place.to_owned(), command, signals);
    over.signal().context("cannot stop the host")?;
    let served = serving.join().expect("the host's thread");
    let status = status?;
    served.context("cannot wait")?;
    Ok(code(status))
}

fn attend(
    offer: Offer,
    place: PathBuf,
    command: Command,
    signals: &Signals,
) -> Result<ExitStatus, Failure> {
    let connect = Box::new(move || join(&place));
    let program = Program::start(offer, connect, command).map_err(failure)?;
    loop {
        let mut fds = [
            PollFd::new(&program, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        retry_on_intr(|| poll(&mut fds, None)).context("cannot wait")?;
        if !fds[0].revents().is_empty() {
            return Ok(program.wait().context("the device's file")?);
        }
        for signal in signals.take().context("cannot look for signals")? {
            let number = match signal {
                Signal::Interrupt => Number::INT,
                _ => Number::TERM,
            };
            let passed = program.signal(number);
            passed.context("cannot pass a signal on to the program")?;
        }
    }
}

/// The channel, as a guest gets it from the host at this socket.
fn join(place: &Path) -> io::Result<Channel> {
    // The program may be anybody's, and knows the device only.
    let framed = Framed::connect_with(place, &Frame::hello_unasked());
    let mut framed = framed.map_err(io::Error::other)?;
    // Nobody cancels it but the deadline.
    let never = EventFd::new()?;
    let deadline = Instant::now() + HANDSHAKE;
    let answer = framed.await_frame(never.as_fd(), Some(deadline));
    let (frame, fds) = answer.map_err(io::Error::other)?;
    match frame {
        Frame::Channel { .. } => {
            let three = <[_; 3]>::try_from(fds);
            let [memory, kick, call] = three.map_err(|_| Errno::PROTO)?;
            Ok(Channel {
                memory,
                kick,
                call,
                gone: framed.as_fd().try_clone_to_owned()?,
            })
        }
        // Another guest has the device.
        Frame::Refused(Reason::Busy) => Err(Errno::BUSY.into()),
        Frame::Refused(reason) => Err(io::Error::other(reason)),
        _ => Err(Errno::PROTO.into()),
    }
}

fn failure(error: uio::Error) -> Failure {
    match error.remedy() {
        Some(remedy) => Failure::new(Status::Missing, error).hint(remedy),
        None => error.into(),
    }
}

/// The program's own status, or what a shell says of one that a signal ended.
fn code(status: ExitStatus) -> ExitCode {
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

//! Runs a machine in QEMU: waits for its sockets, presses its power button when it is to
//! end, and hears what QEMU says meanwhile.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use linkspan_sys::Epoll;
use linkspan_sys::poll::{Direction, Interest, Ready, Wake, wait_for};
use linkspan_sys::signals::{Signal, Signals};
use serde_json::Value;

use super::machine::Machine;
use super::qemu::{Kind, arguments};
use crate::demo::process::{Process, find_program, supervised};
use crate::exit::{Failure, Status};
use crate::tether;

/// How long until it is looked again for sockets that are not there.
const LOOK: Duration = Duration::from_millis(100);

/// How long QEMU may take to end once its machine has no power.
const QUIT: Duration = Duration::from_secs(5);

/// Bytes of a line of QEMU's monitor at most; a longer one is dropped.
const LINE_MAX: usize = 1 << 16;

/// QEMU's monitor is on its standard input and output (QMP).
const MONITOR: [&str; 4] = [
    "-chardev",
    "stdio,id=linkspan,signal=off",
    "-mon",
    "chardev=linkspan,mode=control",
];

const SIGNALS: u64 = 0;
const SAID: u64 = 1;
const ENDED: u64 = 2;

/// Runs the machine until it goes off, or a signal ends it.
pub(super) fn run(machine: &Machine) -> Result<(), Failure> {
    tether::settle();
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    if !await_sockets(machine, &signals)? {
        return Ok(());
    }
    let Some(qemu) = find_program(&machine.qemu) else {
        let error = anyhow!("there is no program {}", machine.qemu.display());
        return Err(Failure::new(Status::Missing, error).hint("apt install qemu-system-x86"));
    };
    let kind = Kind::of(&qemu);
    let mut command = supervised(&qemu);
    command
        .args(arguments(machine, kind))
        .args(MONITOR)
        // What a terminal sends is for us: QEMU would end at once, and its guest with it.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut process = Process::spawn("QEMU", &mut command)?;
    let orders = process.take_stdin().context("QEMU has no input")?;
    let said = process.take_stdout().context("QEMU has no output")?;
    let mut running = Running {
        process,
        orders,
        shutdown: Duration::from_secs(machine.shutdown_seconds),
        power: Power::On,
    };
    running.order("qmp_capabilities");
    running.serve(said, &signals)
}

/// Waits until all sockets are there; whether they are, and no signal came.
fn await_sockets(machine: &Machine, signals: &Signals) -> Result<bool, Failure> {
    let is_there = |path: &Path| {
        let found = path.metadata();
        found.is_ok_and(|found| found.file_type().is_socket())
    };
    let mut told = false;
    loop {
        let Some(missing) = machine.sockets().find(|path| !is_there(path)) else {
            return Ok(true);
        };
        if !std::mem::replace(&mut told, true) {
            tracing::info!("waiting for {}", missing.display());
        }
        let until = Some(Instant::now() + LOOK);
        let woken = wait_for(signals.as_fd(), Direction::Read, None, until);
        if let Wake::Ready = woken.context("cannot wait for a signal")?
            && !signals.take().context("cannot take a signal")?.is_empty()
        {
            return Ok(false);
        }
    }
}

/// How far the end of a machine has come.
#[derive(Clone, Copy)]
enum Power {
    On,
    /// Its button was pressed; the power goes then.
    Pressed(Instant),
    /// QEMU is to end until then.
    Off(Instant),
}

struct Running {
    process: Process,
    orders: ChildStdin,
    shutdown: Duration,
    power: Power,
}

impl Running {
    fn serve(&mut self, mut said: ChildStdout, signals: &Signals) -> Result<(), Failure> {
        let epoll = Epoll::new().context("cannot wait")?;
        epoll.add(signals.as_fd(), SIGNALS, Interest::READ)?;
        epoll.add(&said, SAID, Interest::READ)?;
        epoll.add(&self.process, ENDED, Interest::READ)?;
        let (mut ready, mut lines) = (Ready::with_capacity(4), Lines::default());
        loop {
            let left = |until: Instant| until.saturating_duration_since(Instant::now());
            let pause = match self.power {
                Power::On => None,
                Power::Pressed(until) | Power::Off(until) => Some(left(until)),
            };
            epoll.wait(&mut ready, pause).context("cannot wait")?;
            for event in ready.iter() {
                match event.token {
                    SIGNALS => {
                        for _ in signals.take().context("cannot take a signal")? {
                            self.press();
                        }
                    }
                    SAID => {
                        let mut bytes = [0; 4096];
                        match said.read(&mut bytes) {
                            Ok(count @ 1..) => lines.take(&bytes[..count], tell),
                            // Its end is heard of by itself.
                            _ => epoll.delete(&said)?,
                        }
                    }
                    _ => {
                        if let Some(status) = self.process.ended()? {
                            if status.success() {
                                return Ok(());
                            }
                            return Err(anyhow!("QEMU ended: {status}").into());
                        }
                    }
                }
            }
            match self.power {
                Power::Pressed(until) if left(until).is_zero() => {
                    tracing::warn!("the guest has not gone off, and loses its power");
                    self.cut();
                }
                Power::Off(until) if left(until).is_zero() => {
                    self.process.kill()?;
                    return Err(anyhow!("QEMU did not end, and was killed").into());
                }
                _ => {}
            }
        }
    }

    /// Goes one step further towards the end.
    fn press(&mut self) {
        match self.power {
            Power::On => {
                tracing::info!("ending: the guest is asked to go off");
                self.order("system_powerdown");
                self.power = Power::Pressed(Instant::now() + self.shutdown);
            }
            Power::Pressed(_) => self.cut(),
            Power::Off(_) => {}
        }
    }

    fn cut(&mut self) {
        self.order("quit");
        self.power = Power::Off(Instant::now() + QUIT);
    }

    fn order(&mut self, command: &str) {
        let line = format!("{}\n", serde_json::json!({ "execute": command }));
        // Few and short lines, which a pipe takes at once. A QEMU that is gone needs none.
        let _ = self.orders.write_all(line.as_bytes());
    }
}

/// Says what happened to the machine.
fn tell(line: &str) {
    let said: Value = serde_json::from_str(line).unwrap_or_default();
    if let Some(error) = said.get("error") {
        tracing::warn!("QEMU refuses: {}", error["desc"]);
    }
    match said["event"].as_str() {
        Some("GUEST_PANICKED") => tracing::warn!("the guest panicked"),
        Some("SHUTDOWN") => tracing::info!("the guest goes off: {}", said["data"]["reason"]),
        Some(event) => tracing::debug!("QEMU: {event}"),
        None => {}
    }
}

/// Bytes as they come, cut into lines.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_MAX - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                if self.line.len() < LINE_MAX {
                    each(&String::from_utf8_lossy(&self.line));
                }
                self.line.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_parts_and_have_a_limit() {
        let (mut lines, mut whole) = (Lines::default(), Vec::new());
        let mut each = |line: &str| whole.push(line.len());
        lines.take(b"ab", &mut each);
        lines.take(b"c\nd\n", &mut each);
        for _ in 0..100 {
            lines.take(&[b'x'; LINE_MAX / 10], &mut each);
        }
        lines.take(b"\nef\n", &mut each);
        assert_eq!(whole, [4, 2, 3]);
        assert!(lines.line.capacity() <= 2 * LINE_MAX);
    }
}

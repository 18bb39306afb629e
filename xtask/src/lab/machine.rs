//! Runs a packed guest in QEMU and listens to it.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use anyhow::{Context, Result};

use super::guest::Needs;
use crate::packages;

/// A line may be this long; the rest begins a new one.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Lines that are kept for whoever has to find out why a guest failed.
const LAST_LINES: usize = 40;

/// All that QEMU can emulate, but not the strings that a processor is said to move fast:
/// the kernel then copies to and from programs by them, which QEMU does byte by byte.
const CPU: &str = "max,-erms,-fsrm";

/// MiB of the kernel and its tables.
const KERNEL_MIB: u64 = 96;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// What ran gave this status.
    Status(u32),
    /// The guest ended without saying so: it panicked, or QEMU failed.
    Died,
    /// The time limit passed.
    Late,
}

/// What starts a machine.
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) image: &'a Path,
    pub(crate) image_bytes: u64,
    pub(crate) needs: &'a Needs,
}

impl Machine<'_> {
    /// QEMU without its console and report.
    fn command(&self) -> Command {
        let mut command = if packages::runs("setpriv") {
            // It ends with us, whatever becomes of us.
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
            command
        } else {
            Command::new("qemu-system-x86_64")
        };
        let needs = self.needs;
        command
            // Files of the workspace that its devices have are named from there.
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-machine", &needs.machine])
            .args(["-accel", "tcg,thread=multi", "-cpu", CPU])
            .args(["-smp", &needs.cpus.to_string()])
            .args(["-m", &format!("{}M", self.memory_mib())])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.image)
            .args(["-device", "virtio-rng-pci"])
            .args(&needs.qemu);
        command
    }

    /// The kernel holds the archive and what it unpacked at once, and afterwards
    /// what it unpacked and what runs.
    fn memory_mib(&self) -> u64 {
        let image = self.image_bytes.div_ceil(1 << 20);
        KERNEL_MIB + image + self.needs.memory_mib.max(image)
    }

    fn append(&self, more: &str) -> String {
        // A panic ends QEMU (-no-reboot). Without the timer check a busy machine is no reason for
        // one. ramfs, unlike tmpfs, may fill all memory.
        format!(
            "console=ttyS0 loglevel=5 panic=-1 oops=panic no_timer_check rootfstype=ramfs {} {more}",
            self.needs.append
        )
    }

    /// A shell in the guest, on this terminal.
    pub(crate) fn shell(&self) -> Result<bool> {
        let status = self
            .command()
            .args(["-append", &self.append("lab.shell")])
            .args(["-serial", "mon:stdio"])
            .status()
            .context("cannot run qemu-system-x86_64")?;
        Ok(status.success())
    }

    /// Runs the guest until it has said its last line, and shows each line to `see`.
    /// Its console and its lines are kept in `dir`.
    pub(crate) fn run(&self, dir: &Path, mut see: impl FnMut(&str)) -> Result<End> {
        let console = dir.join("console.log");
        drop(fs::remove_file(&console));
        let errors = File::create(dir.join("qemu.log"))?;
        let mut child = self
            .command()
            .args(["-append", &self.append("")])
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-chardev", "file,id=report,path=/dev/stdout"])
            .args(["-device", "virtio-serial-pci"])
            .args(["-device", "virtserialport,chardev=report,name=report"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .context("cannot run qemu-system-x86_64")?;
        let report = child.stdout.take().context("QEMU has no output")?;
        let guard = Guard(child);
        let deadline = Instant::now() + self.needs.limit;
        let lines = lines(report);
        let mut log = File::create(dir.join("report.log"))?;
        let end = loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(status) = line.strip_prefix("lab end ") {
                        break End::Status(status.parse().unwrap_or(u32::MAX));
                    }
                    writeln!(log, "{line}")?;
                    see(&line);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => break End::Late,
                Err(mpsc::RecvTimeoutError::Disconnected) => break End::Died,
            }
        };
        drop(guard);
        Ok(end)
    }
}

/// QEMU ends with the value.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn lines(from: ChildStdout) -> mpsc::Receiver<String> {
    // Bounded, so that a guest that never stops talking waits for us.
    let (to_us, lines) = mpsc::sync_channel(64);
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while (&mut from)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
            .is_ok_and(|count| count > 0)
        {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if to_us.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    lines
}

/// The last lines of a log.
pub(crate) fn tail(path: &Path) -> Vec<String> {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut last = VecDeque::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        last.push_back(line.trim_end().to_owned());
        if last.len() > LAST_LINES {
            last.pop_front();
        }
    }
    last.into()
}

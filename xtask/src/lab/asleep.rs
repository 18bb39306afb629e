//! A guest that sleeps: started here by the QEMU that is to wake it in the lab, and
//! written into a file when it is up. In the lab that QEMU is emulated itself, and takes
//! more than a minute to start a kernel, but some seconds to go on with one.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use linkspan_guest::{Archive, busybox};

use super::machine::CPU;
use crate::packages::Missing;

/// Its memory, which others can share.
const MEMORY: &str = "memory-backend-memfd,id=m,size=128M,share=on";

/// How long it may take to start, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Time between two looks at what it says.
const PAUSE: Duration = Duration::from_millis(20);

/// What its init says when it sleeps.
const ASLEEP: &str = "inner: asleep";

/// QEMU's options, which are the same for whoever wakes it.
pub(crate) fn options() -> [&'static str; 13] {
    [
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display none",
        "-accel tcg",
        "-icount shift=5",
        "-cpu",
        CPU,
        "-machine pc,memory-backend=m",
        "-object",
        MEMORY,
        "-m",
        "128M",
    ]
}

/// Starts `kernel` with this init in `qemu`, and writes it into `to`, once it sleeps.
pub(crate) fn make(qemu: &Path, kernel: &Path, init: &Path, to: &Path) -> Result<()> {
    let archive = to.with_extension("cpio");
    pack(init, &archive).with_context(|| format!("cannot write {}", archive.display()))?;
    let log = to.with_extension("log");
    drop(fs::remove_file(&log));
    let errors = File::create(to.with_extension("errors"))?;
    let mut command = Command::new(qemu);
    for option in options() {
        command.args(option.split(' '));
    }
    // Its devices interrupt by messages alone, so it can do without ACPI, whose tables
    // are programs that would be emulated twice.
    let mut child = command
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(&archive)
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 oops=panic acpi=off tsc=reliable",
        ])
        .args(["-serial", &format!("file:{}", log.display())])
        .args(["-monitor", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .with_context(|| format!("cannot run {}", qemu.display()))?;
    let done = fall_asleep(&mut child, &log, to);
    if done.is_err() {
        drop(child.kill());
    }
    let status = child.wait()?;
    done?;
    ensure!(
        status.success() && to.is_file(),
        "the inner guest was not written: {status}"
    );
    for path in [archive, log, to.with_extension("errors")] {
        drop(fs::remove_file(path));
    }
    Ok(())
}

fn pack(init: &Path, to: &Path) -> Result<()> {
    let (_, busybox) = busybox::find().map_err(|_| {
        Missing("no static busybox. Install the Debian package busybox-static".to_owned())
    })?;
    let mut archive = Archive::new(File::create(to)?);
    for dir in ["dev", "lab"] {
        archive.dir(dir)?;
    }
    archive.char_device("dev/console", 5, 1)?;
    archive.file("lab/busybox", 0o755, &busybox)?;
    archive.file("init", 0o755, &fs::read(init)?)?;
    archive.finish()?;
    Ok(())
}

/// Waits until it sleeps, has it written, and ends it.
fn fall_asleep(child: &mut Child, log: &Path, to: &Path) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let said = || String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    while !said().contains(ASLEEP) {
        let ended = child.try_wait()?;
        ensure!(ended.is_none(), "the inner guest ended: {}", said());
        ensure!(
            Instant::now() < deadline,
            "the inner guest does not start: {}",
            said()
        );
        std::thread::sleep(PAUSE);
    }
    let mut monitor = child.stdin.take().context("QEMU has a monitor")?;
    // Each command is over before the next one is read.
    write!(
        monitor,
        "stop\nmigrate \"exec:cat >'{}'\"\nquit\n",
        to.display()
    )?;
    Ok(())
}

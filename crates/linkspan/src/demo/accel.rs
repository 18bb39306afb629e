//! Chooses how the guest is executed. `/dev/kvm` can exist and still hang a
//! guest, so KVM counts only once a short trial boot has come up under it.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::Duration;

use super::Error;
use super::initramfs;
use super::kernel::cache_dir;
use super::machine::{Accel, Hardware, probe};
use super::process::Stop;

/// How long the trial boot may take. A working KVM needs about one second.
const PROBE_LIMIT: Duration = Duration::from_secs(8);

/// What a person asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// KVM where a short trial boot proves that it works, else emulation
    #[default]
    Auto,
    /// Software emulation
    Tcg,
    /// Virtualization by the host's kernel, without a trial
    Kvm,
}

/// Turns the choice into what this machine can do. A trial's result is kept
/// until the host boots again; `dir` takes the trial's files.
///
/// # Errors
/// [`Error::Kvm`] where KVM was asked for and is not there; those of the trial.
pub fn choose(
    choice: Choice,
    hardware: &Hardware,
    dir: &Path,
    stop: &Stop,
) -> Result<Accel, Error> {
    match choice {
        Choice::Tcg => Ok(Accel::Tcg),
        Choice::Kvm if kvm_opens() => Ok(Accel::Kvm),
        Choice::Kvm => Err(Error::Kvm {
            reason: "/dev/kvm cannot be opened for reading and writing",
        }),
        Choice::Auto if !kvm_opens() => Ok(Accel::Tcg),
        Choice::Auto => {
            let subject = subject(hardware);
            let works = match remembered(&subject) {
                Some(works) => works,
                None => {
                    let works = try_kvm(hardware, dir, stop)?;
                    remember(&subject, works);
                    works
                }
            };
            Ok(if works { Accel::Kvm } else { Accel::Tcg })
        }
    }
}

fn kvm_opens() -> bool {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
}

fn try_kvm(hardware: &Hardware, dir: &Path, stop: &Stop) -> Result<bool, Error> {
    eprintln!(
        "linkspan: trying KVM (at most {} s; the result is kept until this machine boots)",
        PROBE_LIMIT.as_secs()
    );
    let hardware = Hardware {
        accel: Accel::Kvm,
        memory_mib: 256,
        ..hardware.clone()
    };
    let archive = dir.join("probe.cpio");
    initramfs::store(&initramfs::build(&hardware.kernel, &[])?, &archive)?;
    probe(
        &hardware,
        &archive,
        &dir.join("probe.log"),
        PROBE_LIMIT,
        stop,
    )
}

/// What a result holds for: this boot of the host, this QEMU, this kernel.
fn subject(hardware: &Hardware) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    format!(
        "{} {} {}",
        boot.trim(),
        hardware.qemu.display(),
        hardware.kernel.release
    )
}

fn remembered(subject: &str) -> Option<bool> {
    let text = fs::read_to_string(cache_dir().join("kvm-trial")).ok()?;
    text.lines().find_map(|line| match line.rsplit_once(' ')? {
        (of, "works") if of == subject => Some(true),
        (of, "fails") if of == subject => Some(false),
        _ => None,
    })
}

/// Keeps a result. One that cannot be kept only costs the next run a trial.
fn remember(subject: &str, works: bool) {
    let dir = cache_dir();
    let line = format!("{subject} {}\n", if works { "works" } else { "fails" });
    // Written beside and renamed, so that a second run never reads half a file.
    let draft = dir.join(format!(".kvm-trial.{}", std::process::id()));
    let kept = fs::create_dir_all(&dir)
        .and_then(|()| fs::write(&draft, line))
        .and_then(|()| fs::rename(&draft, dir.join("kvm-trial")));
    if kept.is_err() {
        let _ = fs::remove_file(&draft);
    }
}

//! What can go wrong in a demo, said so that a person can act on it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// Why a demo did not run or did not pass.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No QEMU for x86-64.
    #[error(
        "QEMU is missing: no `{program}` that can be run.\n\
         Install it (Debian: `apt-get install qemu-system-x86`) or name it with --qemu PATH."
    )]
    Qemu {
        /// What was looked for.
        program: PathBuf,
    },
    /// No busybox, or only one that needs libraries.
    #[error(
        "a static busybox is missing{}.\nInstall it: Debian package `busybox-static`.",
        found_dynamic.as_ref().map_or_else(String::new, |p| format!(
            ": {} needs shared libraries, which the guest does not have", p.display()))
    )]
    Busybox {
        /// A busybox that was found but is linked dynamically.
        found_dynamic: Option<PathBuf>,
    },
    /// No kernel to boot.
    #[error(
        "there is no guest kernel: no readable boot/vmlinuz-* with its lib/modules in {}.\n\
         Get one: `cargo xtask run` fetches Debian's; or unpack a package and name the folder:\n  \
         apt-get download linux-image-cloud-amd64 (or the linux-image-* package that it depends on)\n  \
         dpkg-deb -x linux-image-*.deb DIR && linkspan demo --kernel DIR",
        list(searched)
    )]
    Kernel {
        /// The folders that were searched.
        searched: Vec<PathBuf>,
    },
    /// The kernel lacks a module for the guest's disk.
    #[error(
        "the guest kernel has no module `{name}`: it is neither built in nor below {}.\n\
         Choose another kernel with --kernel DIR.",
        dir.display()
    )]
    Module {
        /// The module.
        name: String,
        /// The folder of the kernel's modules.
        dir: PathBuf,
    },
    /// A module could not be decompressed.
    #[error("cannot unpack the module {} with `{program}`; is the file whole and the program installed?", path.display())]
    Unpack {
        /// The module file.
        path: PathBuf,
        /// The program that was asked.
        program: String,
    },
    /// Several things are missing.
    #[error("{}", all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Missing {
        /// Each of them.
        all: Vec<Self>,
    },
    /// KVM was asked for and does not work.
    #[error(
        "KVM does not work here: {reason}.\n\
         Use --accel tcg (software emulation), or --accel auto to choose by a trial."
    )]
    Kvm {
        /// What the trial showed.
        reason: &'static str,
    },
    /// This machine cannot be part of the guest's network.
    #[error("no tap interface for the guest's network: {why}")]
    Tap {
        /// Why not.
        why: String,
    },
    /// The guest cannot have a screen.
    #[error("no screen for the guest: {why}")]
    Screen {
        /// Why not.
        why: String,
    },
    /// The demo cannot have a page.
    #[error("no page: {why}")]
    Page {
        /// Why not.
        why: String,
    },
    /// There was no guest, and the built-in driver took its place.
    #[error("without a guest only the links were tried; what it needs is said above")]
    NoGuest,
    /// A shell was asked for where nobody can type.
    #[error(
        "there is no terminal for the guest's shell: standard input is empty.\n\
         Run this in a terminal, give it commands through a pipe, or use --check."
    )]
    NoTerminal,
    /// The image cannot be used for this.
    #[error("the image {} has {bytes} bytes; the check needs at least {min_bytes} and a multiple of 512", path.display())]
    ImageSize {
        /// The image.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The least that will do.
        min_bytes: u64,
    },
    /// A file could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried, a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried, a verb with its object.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A program that has to run the whole time ended.
    #[error("{name} ended early ({status}){}", tail_text(tail))]
    Ended {
        /// Which one.
        name: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote.
        tail: String,
    },
    /// The disk's server did not listen in time.
    #[error("{name} did not listen on {} within {} s{}", socket.display(), limit.as_secs(), tail_text(tail))]
    NoSocket {
        /// Which program.
        name: &'static str,
        /// Where it should listen.
        socket: PathBuf,
        /// How long we waited.
        limit: Duration,
        /// The end of what it wrote.
        tail: String,
    },
    /// A server did not say in time where it listens.
    #[error("{name} did not say within {} s where it listens{}", limit.as_secs(), tail_text(tail))]
    Silent {
        /// Which program.
        name: &'static str,
        /// How long we waited.
        limit: Duration,
        /// The end of what it wrote.
        tail: String,
    },
    /// The guest did not finish in time.
    #[error("the guest did not finish within {} s; it was at: {at}{}", limit.as_secs(), tail_text(tail))]
    Timeout {
        /// How long we waited.
        limit: Duration,
        /// The last report.
        at: String,
        /// The end of the guest's console.
        tail: String,
    },
    /// The guest's kernel gave up.
    #[error("the guest's kernel panicked{}", tail_text(tail))]
    Panicked {
        /// The end of the guest's console.
        tail: String,
    },
    /// The check ran and something was not as it should be.
    #[error(
        "the check failed: {failed} of {total} findings are wrong{}",
        tail_text(tail)
    )]
    CheckFailed {
        /// How many findings are wrong.
        failed: usize,
        /// How many there are.
        total: usize,
        /// The end of the guest's console.
        tail: String,
    },
    /// A signal asked us to stop.
    #[error("stopped by a signal")]
    Stopped,
}

impl Error {
    /// The exit status of the program for this error: 1 failed, 2 wrong usage,
    /// 5 something is missing on this machine.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Qemu { .. }
            | Self::Busybox { .. }
            | Self::Kernel { .. }
            | Self::Module { .. }
            | Self::Unpack { .. }
            | Self::Missing { .. }
            | Self::Tap { .. }
            | Self::Screen { .. }
            | Self::NoGuest
            | Self::Kvm { .. } => 5,
            Self::ImageSize { .. } | Self::NoTerminal => 2,
            _ => 1,
        }
    }

    /// Makes the error of a failed `action` on `path`.
    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }

    /// Makes the error of a failed `action` that concerns no one file.
    pub(super) fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            action,
            source: source.into(),
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

fn tail_text(tail: &str) -> String {
    if tail.is_empty() {
        return String::new();
    }
    let lines: Vec<String> = tail.lines().map(|line| format!("  | {line}")).collect();
    format!("; its last words:\n{}", lines.join("\n"))
}

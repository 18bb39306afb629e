//! The screen of a guest, served by `linkspan gpu`; and what such a guest needs that others do
//! not.

use std::path::{Path, PathBuf};

use super::initramfs::{self, WITH_SCREEN};
use super::kernel::Kernel;
use super::machine::{Accel, Gpu, Hardware};
use super::page::Link;
use super::process::Stop;
use super::qemu::{self, version};
use super::serve::{Served, text};
use super::{Args, Error};
use crate::plane::Viewers;

/// The version of QEMU that is known to have the device without KVM; 7.2 has it with KVM.
const WITHOUT_KVM_SINCE: u32 = 10;

/// A screen.
pub(super) struct Screen {
    gpu: Served,
    /// Where viewers connect.
    viewers: PathBuf,
    /// Where QEMU hears what is done on the page.
    keys: PathBuf,
}

/// The machine for a guest with a screen, its initramfs, and the screen.
///
/// # Errors
/// [`Error::Screen`] and others where there cannot be one; [`Error::Stopped`].
pub(super) fn prepare(
    args: &Args,
    hardware: &Hardware,
    dir: &Path,
    stop: &Stop,
) -> Result<(Hardware, Vec<u8>, Screen), Error> {
    let hardware = with_screen(args, hardware)?;
    let archive = initramfs::build_with(&hardware.kernel, &WITH_SCREEN, &[])?;
    let screen = Screen::start(dir, stop)?;
    Ok((hardware, archive, screen))
}

/// Another kernel than for a guest without a screen, and without KVM another QEMU.
fn with_screen(args: &Args, hardware: &Hardware) -> Result<Hardware, Error> {
    let no = |why: &str| Error::Screen { why: why.into() };
    let mut hardware = hardware.clone();
    if args.kernel.is_none() {
        let found = Kernel::find_with_screen();
        hardware.kernel = found.map_err(|_| {
            no("the guest's kernel has no driver for it; `cargo xtask run` fetches one that has")
        })?;
    }
    let is_late = |qemu: &Path| version(qemu).is_some_and(|it| it >= WITHOUT_KVM_SINCE);
    if hardware.accel == Accel::Tcg && !is_late(&hardware.qemu) {
        let later = qemu::later().filter(|qemu| is_late(qemu));
        hardware.qemu = later.ok_or_else(|| {
            no("this QEMU has vhost-user-gpu with KVM alone; `cargo xtask run` fetches a later one")
        })?;
    }
    Ok(hardware)
}

impl Screen {
    fn start(dir: &Path, stop: &Stop) -> Result<Self, Error> {
        let viewers = dir.join("screen.sock");
        let args = |socket: &Path| {
            let words = ["--socket-path", &text(socket), "--display", &text(&viewers)];
            words.map(str::to_owned).to_vec()
        };
        let gpu = Served::start("linkspan gpu", "gpu", args, dir, stop)?;
        let keys = dir.join("keys.sock");
        Ok(Self { gpu, viewers, keys })
    }

    /// For the page.
    pub(super) fn link(&mut self) -> Link {
        let viewers = Viewers {
            display: self.viewers.clone(),
            heads: 1,
            keys: Some(self.keys.clone()),
        };
        self.gpu.link("screen", Some(viewers))
    }

    /// Where the guest's GPU is.
    pub(super) fn device(&self, packed: bool) -> Gpu<'_> {
        Gpu {
            socket: &self.gpu.socket,
            packed,
            keys: Some(&self.keys),
        }
    }

    /// # Errors
    /// It ended.
    pub(super) fn still_runs(&mut self) -> Result<(), Error> {
        self.gpu.server().still_runs()
    }
}

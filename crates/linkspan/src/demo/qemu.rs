//! What differs between versions of QEMU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::kernel::cache_dir;
use super::process::find_program;

/// Names a QEMU for those devices that the one of this machine does not have.
const LATER_ENV: &str = "LINKSPAN_LATER_QEMU";

/// The first number of a QEMU's version.
pub(crate) fn version(qemu: &Path) -> Option<u32> {
    let output = Command::new(qemu).arg("--version").output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = said.split("version ").nth(1)?.split('.').next()?;
    number.parse().ok()
}

/// A back end that is gone may come back; the guest waits for it. 9.2 has the second form,
/// and 11 no other one.
pub(crate) fn reconnect(version: Option<u32>) -> &'static str {
    match version {
        Some(10..) => "reconnect-ms=1000",
        _ => "reconnect=1",
    }
}

/// The one that is named, or the newest of the cache.
pub(super) fn later() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(LATER_ENV) {
        return find_program(Path::new(&named));
    }
    let entries = fs::read_dir(cache_dir().join("qemu")).ok()?.flatten();
    let whole = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    let programs = whole.map(|entry| entry.path().join("qemu-system-x86_64"));
    programs.filter(|program| program.is_file()).max()
}

/// A path as QEMU's option parser wants it: commas doubled.
pub(crate) fn comma_escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

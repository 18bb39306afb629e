//! Linux's own daemon of Hyper-V's file copy: built from Debian's source of Linux and
//! kept in the cache. It is under the GPL and no part of this project; tests run it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::lab::kernel::{SOURCE, installed_version, run};
use crate::packages;
use crate::project::cache_dir;

/// The program's name, which things of the lab and tests know it by.
pub(crate) const NAME: &str = "hv_fcopy_uio_daemon";

/// What it is made from, below the folder of the source.
const PARTS: [&str; 3] = [
    "tools/hv/hv_fcopy_uio_daemon.c",
    "tools/hv/vmbus_bufring.c",
    "tools/hv/vmbus_bufring.h",
];

/// The daemon, built if the cache has none: half a minute, for the archive is large.
pub(crate) fn ensure() -> Result<PathBuf> {
    packages::ensure(packages::FCOPY_DAEMON)?;
    let version = installed_version().context("linux-source-6.12 has no version")?;
    let dir = cache_dir().join("hv");
    let done = dir.join(&version).join(NAME);
    if done.exists() {
        return Ok(done);
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // One build at a time; whoever waited finds it done.
    let lock = File::create(dir.join(".lock"))?;
    lock.lock()?;
    if done.exists() {
        return Ok(done);
    }
    eprintln!("xtask: building {NAME} from {SOURCE} {version} (half a minute, once)");
    let draft = dir.join(".build");
    drop(fs::remove_dir_all(&draft));
    fs::create_dir(&draft)?;
    let archive = format!("/usr/src/{SOURCE}.tar.xz");
    let mut tar = Command::new("tar");
    tar.args(["-xf", &archive, "--strip-components=1", "-C"])
        .arg(&draft);
    run(tar.args(PARTS.map(|part| format!("{SOURCE}/{part}"))))?;
    compile(&draft)?;
    // Nobody sees half of it.
    fs::create_dir_all(dir.join(&version))?;
    fs::rename(draft.join(NAME), &done)?;
    drop(fs::remove_dir_all(&draft));
    Ok(done)
}

/// As its own Makefile does.
fn compile(draft: &Path) -> Result<()> {
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-g", "-D_GNU_SOURCE", "-w", "-o", NAME]);
    run(gcc.args(&PARTS[..2]).current_dir(draft))
}

//! A program that needs nothing of the machine but its kernel: linked with musl, statically.
//! It cannot load libraries, and so it has no verbs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{VERSION, said, strip};
use crate::packages::Missing;
use crate::processors;
use crate::project::{Project, cargo};

/// Builds it, sees that it works, and says where it is.
pub(super) fn make(project: &Project, out: &Path) -> Result<PathBuf> {
    let architecture = std::env::consts::ARCH;
    let target = format!("{architecture}-unknown-linux-musl");
    if !processors::has_or_adds(&target)? {
        let why = format!("Rust's library for {target} is missing and rustup has it not");
        return Err(Missing(why).into());
    }
    let mut build = cargo();
    build.args([
        "build",
        "--release",
        "--package",
        "linkspan",
        "--target",
        &target,
    ]);
    let built = build.current_dir(&project.root).status()?.success();
    ensure!(built, "linkspan does not build for {target}");
    let made = out.join(format!("linkspan-{VERSION}-{architecture}-static"));
    let program = project.target.join(&target).join("release/linkspan");
    strip(&program, &made)?;
    works(&made)?;
    Ok(made)
}

/// Sees that it asks for no loader and no library, and that it runs: a disk that it serves
/// is read by a second one.
fn works(program: &Path) -> Result<()> {
    let elf = said(Command::new("readelf").args(["-ldW"]).arg(program))?;
    for word in ["INTERP", "(NEEDED)"] {
        ensure!(!elf.contains(word), "it is not static: {word}");
    }
    let version = said(Command::new(program).arg("--version"))?;
    ensure!(version.trim() == format!("linkspan {VERSION}"), "{version}");
    // Its status is about the machine.
    let doctor = Command::new(program)
        .args(["doctor", "smbdirect"])
        .output()?;
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    ensure!(
        doctor.contains("a static program cannot load verbs"),
        "{doctor}"
    );
    let folder = std::env::temp_dir().join(format!("linkspan-static-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let read = serves(program, &folder);
    fs::remove_dir_all(&folder)?;
    read
}

fn serves(program: &Path, folder: &Path) -> Result<()> {
    let (image, copy, socket) = (folder.join("disk"), folder.join("copy"), folder.join("s"));
    fs::write(&image, b"linkspan".repeat(64 * 1024))?;
    let mut disk = Command::new(program);
    disk.args(["blk", "--socket-path"]).arg(&socket);
    let disk = disk.arg("--image").arg(&image).stdin(Stdio::null());
    let _disk = Served(disk.spawn().context("cannot run it")?);
    let mut driver = Command::new(program);
    driver.args(["driver", "blk", "--socket-path"]).arg(&socket);
    driver
        .args(["--connect-limit", "60", "read", "--length", "512K", "--to"])
        .arg(&copy);
    said(&mut driver)?;
    ensure!(
        fs::read(&image)? == fs::read(&copy)?,
        "what was read is something else"
    );
    Ok(())
}

/// A process that ends with this value.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//! A program that needs nothing of the machine but its kernel: linked with musl, statically.
//! It cannot load libraries, and so it has no verbs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{VERSION, said, strip};
use crate::packages::{self, Missing};
use crate::processors;
use crate::project::{Project, cargo};
use crate::tally::{Tally, headline};

/// Builds it as users get it, sees that it works, and says where it is.
pub(super) fn make(project: &Project, out: &Path) -> Result<PathBuf> {
    let program = build(project, "release")?;
    let made = out.join(format!(
        "linkspan-{VERSION}-{}-static",
        std::env::consts::ARCH
    ));
    strip(&program, &made)?;
    works(&made)?;
    Ok(made)
}

/// Builds it as tests are built, which is quicker, and sees that it works.
pub(crate) fn test(project: &Project, tally: &mut Tally) -> Result<()> {
    let name = "static program: built, used in a root of its own";
    headline(name);
    let tried = packages::ensure(&["binutils"]).and_then(|()| works(&build(project, "dev")?));
    match tried {
        Err(error) if error.is::<Missing>() => tally.skip(name, &format!("{error:#}")),
        Err(error) => {
            println!("{error:#}");
            tally.check(name, false);
        }
        Ok(()) => tally.check(name, true),
    }
    Ok(())
}

fn build(project: &Project, profile: &str) -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    if !processors::has_or_adds(&target)? {
        let why = format!("Rust's library for {target} is missing and rustup has it not");
        return Err(Missing(why).into());
    }
    let mut build = cargo();
    build.args(["build", "--package", "linkspan", "--profile", profile]);
    build.args(["--target", &target]).current_dir(&project.root);
    ensure!(
        build.status()?.success(),
        "linkspan does not build for {target}"
    );
    // What cargo calls the folder of its profile `dev`.
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(project.target.join(target).join(folder).join("linkspan"))
}

/// Sees that it asks for no loader and no library, and that it runs where there is nothing
/// else: a disk that it serves is read by a second one.
fn works(program: &Path) -> Result<()> {
    let elf = said(Command::new("readelf").args(["-ldW"]).arg(program))?;
    for word in ["INTERP", "(NEEDED)"] {
        ensure!(!elf.contains(word), "it is not static: {word}");
    }
    let root = std::env::temp_dir().join(format!("linkspan-static-{}", std::process::id()));
    fs::create_dir(&root)?;
    let tried = fs::create_dir(root.join("proc"))
        .and_then(|()| fs::copy(program, root.join("linkspan")))
        .map_err(Into::into)
        .and_then(|_| runs(&root));
    fs::remove_dir_all(&root)?;
    tried
}

fn runs(root: &Path) -> Result<()> {
    let is_possible = said(namespace().arg("true")).is_ok();
    if !is_possible {
        println!("no root for it alone (root makes one): it runs in that of this machine");
    }
    let alone = || alone(root, is_possible);
    let version = said(alone().arg("--version"))?;
    ensure!(version.trim() == format!("linkspan {VERSION}"), "{version}");
    // Its status is about the machine.
    let doctor = alone().args(["doctor", "smbdirect"]).output()?;
    let doctor = String::from_utf8_lossy(&doctor.stdout);
    ensure!(
        doctor.contains("a static program cannot load verbs"),
        "{doctor}"
    );
    let image = b"linkspan".repeat(64 * 1024);
    fs::write(root.join("disk"), &image)?;
    let mut disk = alone();
    disk.args(["blk", "--socket-path", "s", "--image", "disk"]);
    let _disk = Served(disk.spawn().context("cannot run it")?);
    let mut driver = alone();
    driver.args([
        "driver",
        "blk",
        "--socket-path",
        "s",
        "--connect-limit",
        "60",
    ]);
    said(driver.args(["read", "--length", "512K", "--to", "copy"]))?;
    let copy = fs::read(root.join("copy"))?;
    ensure!(copy == image, "what was read is something else");
    Ok(())
}

/// Makes the folder that it is in the root, with nothing else in it but /proc, by which
/// descriptors of peers are told apart.
const ALONE: &str = "mount -t proc proc proc; exec chroot . /linkspan \"$@\"";

/// The program in a root where nothing else is.
fn alone(root: &Path, is_possible: bool) -> Command {
    let mut command = if is_possible {
        let mut unshare = namespace();
        unshare.args(["sh", "-euc", ALONE, "sh"]);
        unshare
    } else {
        Command::new(root.join("linkspan"))
    };
    command.current_dir(root).stdin(Stdio::null());
    command
}

/// A program that is named next, in a mount namespace.
fn namespace() -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private"]);
    unshare
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

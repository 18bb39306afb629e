//! `cargo xtask run`: everything that `linkspan demo` needs, then the demo itself.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::packages::Missing;
use crate::project::{Project, cargo};
use crate::{kernel, later_qemu, packages};

/// Where `linkspan demo` looks for the kernel that we fetched.
pub(crate) const KERNEL_ENV: &str = "LINKSPAN_GUEST_KERNEL";

/// Where it looks for QEMU of a later Debian, which has virtual GPUs without KVM.
pub(crate) const LATER_QEMU_ENV: &str = "LINKSPAN_LATER_QEMU";

/// Sets up, builds, and becomes `linkspan demo` with these arguments. It only
/// returns if something is in the way.
///
/// What is missing is said; the demo then shows what it can without a guest.
pub(crate) fn run(arguments: &[String]) -> Result<bool> {
    let said = |error: anyhow::Error| match error.is::<Missing>() {
        true => {
            eprintln!("xtask: {error:#}");
            Ok(())
        }
        false => Err(error),
    };
    packages::ensure(packages::GUEST).or_else(said)?;
    let kernel = kernel::ensure().map(Some);
    let kernel = kernel.or_else(|error| said(error).map(|()| None))?;
    let qemu = if has_screen(arguments) {
        screen()
    } else {
        None
    };
    let program = build(&Project::load()?)?;
    let mut demo = Command::new(&program);
    demo.arg("demo").args(arguments);
    if let Some(kernel) = kernel {
        demo.env(KERNEL_ENV, kernel);
    }
    if let Some(qemu) = qemu {
        demo.env(LATER_QEMU_ENV, qemu);
    }
    bail!("cannot start {}: {}", program.display(), demo.exec())
}

/// Whether a guest that is started like this may have a screen.
fn has_screen(arguments: &[String]) -> bool {
    let without = ["--check", "--no-guest", "--no-screen", "--help", "-h"];
    !arguments
        .iter()
        .any(|word| without.contains(&word.as_str()))
}

/// What a guest with a screen needs: a kernel and QEMU. Without them it has none.
fn screen() -> Option<PathBuf> {
    let said = |error: anyhow::Error| eprintln!("xtask: {error:#}");
    kernel::ensure_with_screen().map_err(said).ok()?;
    let root = later_qemu::ensure().map_err(said).ok()?;
    Some(later_qemu::program(&root))
}

/// Builds the program as a user gets it.
pub(crate) fn build(project: &Project) -> Result<PathBuf> {
    ensure!(
        command(project).status()?.success(),
        "linkspan does not build"
    );
    Ok(program(project))
}

/// What builds it.
pub(crate) fn command(project: &Project) -> Command {
    let mut command = cargo();
    command
        .args(["build", "--release", "--package", "linkspan"])
        .current_dir(&project.root);
    command
}

/// Where it is then.
pub(crate) fn program(project: &Project) -> PathBuf {
    project.target.join("release/linkspan")
}

//! `cargo xtask run`: everything that `linkspan demo` needs, then the demo itself.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::packages::Missing;
use crate::project::{Project, cargo};
use crate::{kernel, packages};

/// Where `linkspan demo` looks for the kernel that we fetched.
pub(crate) const KERNEL_ENV: &str = "LINKSPAN_GUEST_KERNEL";

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
    let program = build(&Project::load()?)?;
    let mut demo = Command::new(&program);
    demo.arg("demo").args(arguments);
    if let Some(kernel) = kernel {
        demo.env(KERNEL_ENV, kernel);
    }
    bail!("cannot start {}: {}", program.display(), demo.exec())
}

/// Builds the program as a user gets it.
pub(crate) fn build(project: &Project) -> Result<PathBuf> {
    let status = cargo()
        .args(["build", "--release", "--package", "linkspan"])
        .current_dir(&project.root)
        .status()?;
    ensure!(status.success(), "linkspan does not build");
    Ok(project.target.join("release/linkspan"))
}

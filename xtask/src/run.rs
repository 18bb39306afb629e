//! `cargo xtask run`: everything that `linkspan demo` needs, then the demo itself.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::project::{Project, cargo};
use crate::{kernel, packages};

/// Where `linkspan demo` looks for the kernel that we fetched.
pub(crate) const KERNEL_ENV: &str = "LINKSPAN_GUEST_KERNEL";

/// Sets up, builds, and becomes `linkspan demo` with these arguments. It only
/// returns if something is in the way.
pub(crate) fn run(arguments: &[String]) -> Result<bool> {
    packages::ensure(packages::GUEST)?;
    let kernel = kernel::ensure()?;
    let program = build(&Project::load()?)?;
    let mut demo = Command::new(&program);
    demo.arg("demo").args(arguments).env(KERNEL_ENV, kernel);
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

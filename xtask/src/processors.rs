//! Other processors than this machine's: the compiler checks for them what must not depend on
//! ours. Nothing of it is run.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::project::{Project, cargo};
use crate::tally::Tally;

/// A target, and the packages that are checked for it with all that they stand on.
const TARGETS: &[(&str, &[&str])] = &[
    ("aarch64-unknown-linux-gnu", &["linkspan"]),
    // The most significant byte comes first.
    ("s390x-unknown-linux-gnu", &["linkspan-vmbus"]),
    // A word has 32 bits.
    ("armv7-unknown-linux-gnueabihf", &["linkspan-vmbus"]),
];

pub(crate) fn run(project: &Project, tally: &mut Tally) -> Result<()> {
    for (target, packages) in TARGETS {
        let name = format!("{} for {target}", packages.join(", "));
        if !has_or_adds(target)? {
            tally.skip(
                &name,
                "Rust's library for it is missing and rustup has it not",
            );
            continue;
        }
        let mut command = cargo();
        command.args(["check", "--target", target]);
        for package in *packages {
            command.args(["--package", package]);
        }
        tally.step(&name, command.current_dir(&project.root))?;
    }
    Ok(())
}

/// Whether the compiler can build for this target, perhaps with what is fetched now.
pub(crate) fn has_or_adds(target: &str) -> Result<bool> {
    Ok(has_library(target)? || add_library(target))
}

/// Whether the compiler has a library for this target.
fn has_library(target: &str) -> Result<bool> {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", target]);
    let output = rustc.output().context("cannot run rustc")?;
    let path = String::from_utf8_lossy(&output.stdout);
    Ok(output.status.success() && Path::new(path.trim()).exists())
}

/// Whether rustup could get it.
fn add_library(target: &str) -> bool {
    let mut rustup = Command::new("rustup");
    let status = rustup.args(["target", "add", target]).status();
    status.is_ok_and(|status| status.success())
}

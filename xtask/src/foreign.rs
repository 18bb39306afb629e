//! The program for another processor: all of it is checked by the compiler for arm64, so
//! that nothing in it depends on x86.
//!
//! The compiler is Debian's newest, as it is made for browsers: its packages, and the
//! standard library for the other processor, are unpacked into the cache. Nothing is
//! installed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::debs::{Apt, Draft, text_of};
use crate::packages;
use crate::project::{Project, cache_dir, cargo};
use crate::tally::Tally;

const NAME: &str = "the program for arm64";

/// The processor, as Debian and as the compiler calls it.
const DEBIAN: &str = "arm64";
const TARGET: &str = "aarch64-unknown-linux-gnu";

const COMPILER: &str = "rustc-web";

/// Of what the compiler depends on, what has to be of its version.
const PARTS: [&str; 2] = ["libstd-rust-web", "libllvm"];

/// With this in its name a part is the standard library for programs that are compiled.
const LIBRARY: &str = "-dev";

/// Debian's release with it, and where its security team puts it.
const SUITES: [(&str, &str); 2] = [
    ("Debian", "bookworm"),
    ("Debian-Security", "bookworm-security"),
];

/// Starts it, wherever the folder is.
const SCRIPT: &str = r#"#!/bin/sh
# Debian's compiler with the libraries beside this file.
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH=$here/usr/lib/x86_64-linux-gnu exec "$here/usr/bin/rustc" "$@"
"#;

/// Checks it, where the compiler can be had.
pub(crate) fn check(project: &Project, tally: &mut Tally) -> Result<()> {
    let compiler = match ensure() {
        Ok(compiler) => compiler,
        Err(error) => {
            tally.skip(NAME, &format!("{error:#}"));
            return Ok(());
        }
    };
    let mut command = cargo();
    command
        .args(["check", "--package", "linkspan", "--target", TARGET])
        .env("RUSTC", compiler)
        // Another compiler would build anew what this one has built, and that again.
        .env("CARGO_TARGET_DIR", project.target.join("foreign"))
        .current_dir(&project.root);
    tally.step(NAME, &mut command).map(|_| ())
}

/// The compiler, fetched if the cache has none: 126 MB to fetch, 500 MB to keep.
fn ensure() -> Result<PathBuf> {
    let root = cache_dir().join("rustc");
    let program = root.join("rustc");
    if !program.is_file() {
        ensure!(
            cfg!(target_arch = "x86_64"),
            "there is no compiler for it on this processor"
        );
        for program in ["apt-get", "apt-cache", "dpkg-deb"] {
            ensure!(
                packages::runs(program),
                "its compiler cannot be fetched without {program}"
            );
        }
        fetch(&root).context("its compiler cannot be fetched")?;
    }
    Ok(program)
}

/// Fetches and unpacks beside the final place and renames, so that two runs at once
/// leave one whole folder.
fn fetch(done: &Path) -> Result<()> {
    eprintln!("xtask: fetching a compiler for {DEBIAN} (126 MB, unpacked and not installed)");
    let draft = Draft(done.with_file_name(format!(".rustc.{}", std::process::id())));
    let apt = Apt::new(&draft.0.join("apt"), &SUITES, &[DEBIAN])?;
    apt.run(&["update"])?;
    let packages = parts(&apt)?;
    ensure!(
        packages.iter().any(|name| name.ends_with(DEBIAN)),
        "{COMPILER} has no library for {DEBIAN}"
    );
    let names: Vec<&str> = packages.iter().map(String::as_str).collect();
    apt.run(&[&["download"], &names[..]].concat())?;
    let root = draft.0.join("root");
    for entry in fs::read_dir(draft.0.join("apt"))?.flatten() {
        let archive = entry.path();
        if archive
            .extension()
            .is_some_and(|extension| extension == "deb")
        {
            let mut command = Command::new("dpkg-deb");
            let status = command.arg("-x").arg(&archive).arg(&root).status()?;
            ensure!(status.success(), "dpkg-deb -x {} failed", archive.display());
        }
    }
    let script = root.join("rustc");
    fs::write(&script, SCRIPT)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let version = text_of(&script.to_string_lossy(), &["--version"])?;
    ensure!(
        version.starts_with("rustc "),
        "what was fetched does not run"
    );
    match fs::rename(&root, done) {
        // Somebody else was faster.
        Err(_) if done.is_dir() => Ok(()),
        result => result.context("cannot move it into the cache"),
    }
}

/// The compiler and what it is made of, and its library for the other processor.
fn parts(apt: &Apt) -> Result<Vec<String>> {
    let mut names = vec![COMPILER.to_owned()];
    let mut at = 0;
    while let Some(name) = names.get(at) {
        let record = apt.ask(&["show", "--no-all-versions", name])?;
        for part in dependencies(&record) {
            if PARTS.iter().any(|start| part.starts_with(start)) && !names.contains(&part) {
                names.push(part);
            }
        }
        at += 1;
    }
    let library = names.iter().find(|name| name.ends_with(LIBRARY));
    let Some(library) = library.map(|name| format!("{name}:{DEBIAN}")) else {
        bail!("{COMPILER} cannot be had");
    };
    names.push(library);
    Ok(names)
}

/// The packages that a record names as needed.
fn dependencies(record: &str) -> Vec<String> {
    let line = record
        .lines()
        .find_map(|line| line.strip_prefix("Depends: "))
        .unwrap_or_default();
    let name = |part: &str| part.split_whitespace().next().map(str::to_owned);
    line.split(',').filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_a_record_are_what_it_depends_on() {
        let record = "Package: rustc-web\nDepends: libc6 (>= 2.34), libstd-rust-web-dev (= 1.96.0), gcc\nSize: 1\n";
        let found = dependencies(record);
        assert_eq!(found, ["libc6", "libstd-rust-web-dev", "gcc"]);
        assert_eq!(dependencies("Package: a\n"), [""; 0]);
    }
}

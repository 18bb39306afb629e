//! Debian packages unpacked into the cache instead of installed: for kernels, and
//! for programs whose packages exclude others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::packages::{self, Missing};
use crate::project::cache_dir;

/// The root folder of a package, fetched if the cache has none.
pub(crate) fn ensure(package: &str) -> Result<PathBuf> {
    let cache = cache_dir().join("debs");
    let prefix = format!("{package}_");
    let cached = fs::read_dir(&cache).into_iter().flatten().flatten();
    let mut cached: Vec<PathBuf> = cached
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect();
    cached.sort();
    if let Some(root) = cached.pop() {
        return Ok(root);
    }
    if !packages::runs("apt-get") || !packages::runs("dpkg-deb") {
        bail!(Missing(format!(
            "{package} is not there, and without apt-get and dpkg-deb it cannot be fetched. \
             Unpack its Debian package into {}/{package}_VERSION",
            cache.display()
        )));
    }
    eprintln!("xtask: fetching the Debian package {package} (unpacked, not installed)");
    let newest = || fetch(&cache, package, &version(package)?);
    match newest() {
        Err(_) if packages::is_root() && packages::update()? => newest(),
        result => result,
    }
}

/// The version of a package that apt would fetch.
pub(crate) fn version(package: &str) -> Result<String> {
    let record = text_of("apt-cache", &["show", "--no-all-versions", package])?;
    let version = record
        .lines()
        .find_map(|line| line.strip_prefix("Version: "));
    Ok(version
        .with_context(|| format!("apt knows no version of {package}"))?
        .to_owned())
}

/// Downloads and unpacks beside the final place and renames, so that two runs at
/// once and a run that is cut off leave either nothing or a whole package.
pub(crate) fn fetch(cache: &Path, package: &str, version: &str) -> Result<PathBuf> {
    let done = cache.join(format!("{package}_{}", version.replace(['/', ':'], "_")));
    let draft = Draft(cache.join(format!(".{package}.{}", std::process::id())));
    let dir = &draft.0;
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let downloaded = packages::apt_get()
        .args(["download", package])
        .current_dir(dir)
        .status()?;
    ensure!(downloaded.success(), "apt-get download {package} failed");
    let archive = fs::read_dir(dir)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download {package} left no file"))?;
    let root = dir.join("root");
    let unpacked = Command::new("dpkg-deb")
        .arg("-x")
        .arg(&archive)
        .arg(&root)
        .status()?;
    ensure!(
        unpacked.success(),
        "dpkg-deb -x {} failed",
        archive.display()
    );
    // Documentation is not needed.
    for dir in ["doc", "man", "locale"] {
        let _ = fs::remove_dir_all(root.join("usr/share").join(dir));
    }
    match fs::rename(&root, &done) {
        // Somebody else was faster with the same package.
        Err(_) if done.is_dir() => Ok(done),
        result => result
            .map(|()| done)
            .with_context(|| format!("cannot move {package} into the cache")),
    }
}

/// A folder that is removed when the work on it ends, however it ends.
pub(crate) struct Draft(pub(crate) PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a program prints on standard output.
pub(crate) fn text_of(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .stderr(Stdio::null())
        .output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

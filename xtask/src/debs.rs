//! Debian packages unpacked into the cache instead of installed: for kernels, and
//! for programs whose packages exclude others, or are of another release or processor.

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

/// What Debian signs its lists with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where this machine gets what has this label from.
fn archive(label: &str) -> Result<String> {
    let ask = || {
        let label = format!("Label: {label}");
        let uris = ["indextargets", "--format", "$(REPO_URI)", &label];
        let text = text_of("apt-get", &uris)?;
        anyhow::Ok(text.lines().next().map(str::to_owned))
    };
    let found = match ask()? {
        // A fresh machine has no lists, and they say who is Debian.
        None if packages::is_root() && packages::update()? => ask()?,
        found => found,
    };
    found.with_context(|| format!("apt has no lists of {label}. Try as root: apt-get update"))
}

/// apt with releases and folders of its own: it takes nothing to be installed.
pub(crate) struct Apt {
    dir: PathBuf,
    /// Processors beside the machine's own.
    foreign: Vec<String>,
}

impl Apt {
    /// With these suites, each behind its label, for this processor and `foreign` ones, in
    /// this folder.
    pub(crate) fn new(dir: &Path, suites: &[(&str, &str)], foreign: &[&str]) -> Result<Self> {
        ensure!(
            Path::new(KEYRING).is_file(),
            "Debian's keys are missing; install the Debian package debian-archive-keyring"
        );
        let place = || format!("cannot write into {}", dir.display());
        for part in ["lists/partial", "archives/partial", "state", "empty"] {
            fs::create_dir_all(dir.join(part)).with_context(place)?;
        }
        fs::write(dir.join("status"), "").with_context(place)?;
        let mut sources = String::new();
        for (label, suite) in suites {
            let archive = archive(label)?;
            sources += &format!("deb [signed-by={KEYRING}] {archive} {suite} main\n");
        }
        fs::write(dir.join("sources.list"), sources).with_context(place)?;
        Ok(Self {
            dir: dir.to_owned(),
            foreign: foreign.iter().map(|&name| name.to_owned()).collect(),
        })
    }

    /// Where packages are that were downloaded to be installed.
    pub(crate) fn archives(&self) -> PathBuf {
        self.dir.join("archives")
    }

    /// Runs apt-get in that folder.
    pub(crate) fn run(&self, words: &[&str]) -> Result<()> {
        let mut command = packages::apt_get();
        let status = self.options(&mut command).args(words).status()?;
        ensure!(status.success(), "apt-get {} failed", words.join(" "));
        Ok(())
    }

    /// What apt-cache prints.
    pub(crate) fn ask(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new("apt-cache");
        let output = self.options(&mut command).args(words).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn options<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        for (option, place) in [
            ("Dir::State", "state"),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", ""),
            ("Dir::Cache::archives", "archives"),
            ("Dir::Etc::sourcelist", "sources.list"),
            ("Dir::Etc::sourceparts", "empty"),
            ("Dir::Etc::preferences", "empty/none"),
            ("Dir::Etc::preferencesparts", "empty"),
        ] {
            let place = self.dir.join(place);
            command
                .arg("-o")
                .arg(format!("{option}={}", place.display()));
        }
        // Whoever has no network hears of it within a minute.
        for option in ["Acquire::http::Timeout=20", "Acquire::Retries=1"] {
            command.args(["-o", option]);
        }
        for processor in &self.foreign {
            command.args(["-o", &format!("APT::Architectures::={processor}")]);
        }
        // An update that got nothing is no failure for apt otherwise.
        command.args(["-o", "APT::Update::Error-Mode=any"]);
        command.current_dir(&self.dir)
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

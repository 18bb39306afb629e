//! The lab kernel: Debian's source of Linux with lab/lab.config and lab/patches,
//! built once and kept in the cache.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::packages;
use crate::project::{Project, cache_dir};

/// The package with the source, and the folder in its archive.
pub(crate) const SOURCE: &str = "linux-source-6.12";

/// What compiling prints about this often; for the progress line alone.
const STEPS: u32 = 2860;

/// How often progress is told.
const TELL: Duration = Duration::from_secs(20);

/// What a kernel is made from, apart from the source.
struct Recipe {
    config: PathBuf,
    patches: Vec<PathBuf>,
    /// Names what comes out.
    digest: String,
}

impl Recipe {
    fn load(project: &Project) -> Result<Self> {
        let lab = project.root.join("lab");
        let config = lab.join("lab.config");
        let mut patches: Vec<PathBuf> = fs::read_dir(lab.join("patches"))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        patches.sort();
        let mut hash = Sha256::new();
        for path in std::iter::once(&config).chain(&patches) {
            let bytes = fs::read(path).with_context(|| format!("{}", path.display()))?;
            hash.update(bytes.len().to_le_bytes());
            hash.update(&bytes);
        }
        let mut digest = String::new();
        for byte in &hash.finalize()[..6] {
            write!(digest, "{byte:02x}").expect("a string takes everything");
        }
        Ok(Self {
            config,
            patches,
            digest,
        })
    }
}

fn cache() -> PathBuf {
    cache_dir().join("lab")
}

/// The newest kernel of the cache that was made from this config and these patches.
pub(crate) fn cached(project: &Project) -> Result<Option<PathBuf>> {
    let recipe = Recipe::load(project)?;
    if let Some(version) = installed_version() {
        let exact = image(&recipe, &version);
        return Ok(Some(exact).filter(|path| path.exists()));
    }
    // Without the source's package any of its versions serves.
    let prefix = format!("{}-", recipe.digest);
    let mut found: Vec<PathBuf> = fs::read_dir(cache())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path().join("bzImage"))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    Ok(found.pop())
}

/// The kernel, built if the cache has none: about 7 minutes on 2 processors.
pub(crate) fn ensure(project: &Project) -> Result<PathBuf> {
    if let Some(image) = cached(project)? {
        return Ok(image);
    }
    packages::ensure(packages::LAB_KERNEL)?;
    let recipe = Recipe::load(project)?;
    let version =
        installed_version().context("linux-source-6.12 is installed and has no version")?;
    let done = image(&recipe, &version);
    let dir = cache().join(format!(".build-{}-{version}", recipe.digest));
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    // One build at a time; whoever waited finds it done.
    let lock = File::create(cache().join(".lock"))?;
    lock.lock()?;
    if done.exists() {
        return Ok(done);
    }
    eprintln!(
        "xtask: building the lab kernel from {SOURCE} {version} (about 7 minutes on 2 processors, once)"
    );
    let source = unpack(&dir, &recipe)?;
    configure(&source, &recipe)?;
    compile(&source, &dir.join("make.log"))?;
    // Nobody sees half a kernel: it is copied beside and renamed.
    let place = done.parent().context("a kernel has a folder")?;
    fs::create_dir_all(place)?;
    let draft = place.join(".bzImage");
    fs::copy(source.join("arch/x86/boot/bzImage"), &draft)?;
    fs::rename(&draft, &done)?;
    // More than a gigabyte that nobody needs any more.
    drop(fs::remove_dir_all(&dir));
    eprintln!("xtask: the lab kernel is {}", done.display());
    Ok(done)
}

fn image(recipe: &Recipe, version: &str) -> PathBuf {
    cache().join(format!("{}-{version}/bzImage", recipe.digest))
}

pub(crate) fn installed_version() -> Option<String> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Status}|${Version}", SOURCE])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.strip_prefix("install ok installed|")?;
    Some(version.replace(['/', ':'], "_"))
}

/// The patched source. A build that was broken off goes on where it was.
fn unpack(dir: &Path, recipe: &Recipe) -> Result<PathBuf> {
    let source = dir.join("source");
    if source.is_dir() {
        eprintln!("xtask: going on with a build that was broken off");
        return Ok(source);
    }
    let draft = dir.join("unpacking");
    drop(fs::remove_dir_all(&draft));
    fs::create_dir(&draft)?;
    let archive = format!("/usr/src/{SOURCE}.tar.xz");
    run(Command::new("tar")
        .args(["-xf", &archive, "--strip-components=1", "-C"])
        .arg(&draft))?;
    for patch in &recipe.patches {
        run(Command::new("patch")
            .args(["--quiet", "-p1", "--fuzz=0", "-i"])
            .arg(patch)
            .current_dir(&draft))?;
    }
    fs::rename(&draft, &source)?;
    Ok(source)
}

/// tinyconfig and what lab.config says, every line of which has to come true.
fn configure(source: &Path, recipe: &Recipe) -> Result<()> {
    let make = |target: &str| run(make(source).args(["-s", target]));
    make("tinyconfig")?;
    run(Command::new("scripts/kconfig/merge_config.sh")
        .args(["-m", ".config"])
        .arg(&recipe.config)
        .stdout(Stdio::null())
        .current_dir(source))?;
    make("olddefconfig")?;
    let wanted = fs::read_to_string(&recipe.config)?;
    let config = fs::read_to_string(source.join(".config"))?;
    let unmet = unmet(&wanted, &config);
    ensure!(
        unmet.is_empty(),
        "this kernel cannot have, of lab/lab.config: {}",
        unmet.join(" ")
    );
    Ok(())
}

/// The lines of `wanted` that did not come true in `config`.
fn unmet<'a>(wanted: &'a str, config: &str) -> Vec<&'a str> {
    let holds = |line: &str| match line.strip_suffix("=n") {
        Some(option) => !config
            .lines()
            .any(|line| line.strip_prefix(option) == Some("=y")),
        None => config.lines().any(|found| found == line),
    };
    wanted
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && !holds(line))
        .collect()
}

/// make, so that the same source gives the same kernel anywhere.
fn make(source: &Path) -> Command {
    let mut command = Command::new("make");
    command
        .current_dir(source)
        .env("KBUILD_BUILD_TIMESTAMP", "2025-01-01")
        .env("KBUILD_BUILD_VERSION", "1")
        .env("KBUILD_BUILD_USER", "lab")
        .env("KBUILD_BUILD_HOST", "linkspan")
        // What runs us may have its own ideas of how to make things.
        .env_remove("MAKEFLAGS")
        .stdin(Stdio::null());
    command
}

fn compile(source: &Path, log: &Path) -> Result<()> {
    let jobs = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let errors = File::create(log)?;
    let mut child = make(source)
        .args([&format!("-j{jobs}"), "bzImage"])
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .context("cannot run make")?;
    let output = child.stdout.take().context("make has no output")?;
    let (started, mut told, mut steps) = (Instant::now(), Instant::now(), 0);
    for line in BufReader::new(output).lines() {
        line?;
        steps += 1;
        if told.elapsed() >= TELL {
            told = Instant::now();
            let percent = (steps * 100 / STEPS).min(99);
            let seconds = started.elapsed().as_secs();
            eprintln!("xtask: lab kernel: {percent} % after {seconds} s");
        }
    }
    if !child.wait()?.success() {
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(20)..];
        bail!("the lab kernel does not build:\n{}", last.join("\n"));
    }
    Ok(())
}

pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_that_did_not_come_true_is_named() {
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=16\nCONFIG_E=y\n";
        let wanted = "# words\n\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=16\nCONFIG_D=n\nCONFIG_E=n\n";
        assert_eq!(unmet(wanted, config), ["CONFIG_B=y", "CONFIG_E=n"]);
    }
}

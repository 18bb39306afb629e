//! QEMU of a later Debian than this machine's, for devices that its own does not have:
//! vhost-vdpa devices of any type, and vfio-user. Its packages and all that they depend
//! on are unpacked into a folder of the cache, and nothing is installed. It runs by the
//! loader and the libraries of that folder, so it needs neither root nor chroot and sees
//! this machine's files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::debs::{Draft, text_of};
use crate::packages;
use crate::project::cache_dir;

/// What things of the lab know it by, and its place in a guest below /opt.
pub(crate) const NAME: &str = "later-qemu";

/// The program: in a folder of `ensure`, and in a guest's PATH.
const PROGRAM: &str = "qemu-system-x86_64";

/// Debian's release, and the part of it with new versions of single packages.
const RELEASE: &str = "trixie";
const BACKPORTS: &str = "trixie-backports";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const PACKAGES: [&str; 2] = ["qemu-system-x86", "seabios"];

/// Its D-Bus display, which tells guests another size. Of what that depends on, drivers of
/// GPUs are left out: 200 MB that nothing calls. The last one has the module, of QEMU's version.
const DISPLAY: [&str; 5] = [
    "libepoxy0",
    "libgbm1",
    "libdrm2",
    "libexpat1",
    "qemu-system-modules-opengl",
];

/// What is there of it.
const DISPLAY_MODULE: &str = "usr/lib/x86_64-linux-gnu/qemu/ui-dbus.so";

/// Where its libraries are, its loader among them.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";

/// Firmware for a guest that is started with `-kernel`.
const FIRMWARE: [&str; 4] = [
    "usr/share/seabios/bios-256k.bin",
    "usr/share/qemu/kvmvapic.bin",
    "usr/share/qemu/linuxboot_dma.bin",
    "usr/share/qemu/pvh.bin",
];

/// A quarter of what is unpacked is of no use.
const USELESS: [&str; 5] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/bin/qemu-system-i386",
    "usr/bin/qemu-system-x86_64-microvm",
];

/// Starts it, wherever the folder is.
const SCRIPT: &str = r#"#!/bin/sh
# QEMU with the libraries, modules and firmware beside this file, whatever this machine has.
here=$(dirname "$(readlink -f "$0")")
libraries=$here/usr/lib/x86_64-linux-gnu
QEMU_MODULE_DIR=$libraries/qemu exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" \
    --argv0 qemu-system-x86_64 "$here/usr/bin/qemu-system-x86_64" \
    -L "$here/usr/share/seabios" -L "$here/usr/share/qemu" "$@"
"#;

/// It is not in the cache and cannot be fetched here, as root or not.
#[derive(Debug)]
pub(crate) struct Unavailable(String);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no QEMU of a later Debian: {}", self.0)
    }
}

impl std::error::Error for Unavailable {}

/// The folder with it, fetched if the cache has none: 40 MB to fetch, 110 MB to keep.
///
/// Fails with [`Unavailable`] where it cannot be had.
pub(crate) fn ensure() -> Result<PathBuf> {
    let cache = cache_dir().join("qemu");
    let cached = fs::read_dir(&cache).into_iter().flatten().flatten();
    let mut cached: Vec<PathBuf> = cached
        .map(|entry| entry.path())
        .filter(|path| path.join(PROGRAM).is_file())
        .filter(|path| !path.file_name().is_some_and(hidden))
        .collect();
    cached.sort();
    let root = match cached.pop() {
        Some(root) => root,
        None => fetch(&cache).map_err(|error| Unavailable(format!("{error:#}")))?,
    };
    if !root.join(DISPLAY_MODULE).is_file()
        && let Err(error) = add_display(&cache, &root)
    {
        eprintln!("xtask: QEMU without its D-Bus display: {error:#}");
    }
    Ok(root)
}

/// Adds the D-Bus display to QEMU in this folder, which others may use meanwhile.
fn add_display(cache: &Path, root: &Path) -> Result<()> {
    let version = root.file_name().unwrap_or_default().to_string_lossy();
    let version = version.trim_end_matches("_amd64").replacen('_', ":", 1);
    let draft = Draft(cache.join(format!(".display.{}", std::process::id())));
    let apt = Apt::new(&draft.0.join("apt"), &archive()?)?;
    eprintln!("xtask: fetching the D-Bus display of QEMU {version} (1 MB, unpacked)");
    apt.run(&["update"])?;
    for package in DISPLAY {
        let package = match package {
            "qemu-system-modules-opengl" => format!("{package}={version}"),
            package => package.to_owned(),
        };
        let folder = draft.0.join(&package);
        fs::create_dir_all(&folder)?;
        apt.run_in(&folder, &["download", &package])?;
        for entry in fs::read_dir(&folder)?.flatten() {
            extract(&entry.path(), root)?;
        }
    }
    for place in USELESS {
        drop(fs::remove_dir_all(root.join(place)));
    }
    Ok(())
}

fn extract(archive: &Path, root: &Path) -> Result<()> {
    let mut command = Command::new("dpkg-deb");
    let status = command.arg("-x").arg(archive).arg(root).status()?;
    ensure!(status.success(), "dpkg-deb -x {} failed", archive.display());
    Ok(())
}

fn hidden(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with('.')
}

/// The program in a folder of [`ensure`]. It takes QEMU's options.
pub(crate) fn program(root: &Path) -> PathBuf {
    root.join(PROGRAM)
}

/// What a guest needs to run `/opt/later-qemu/qemu-system-x86_64`, each file with its
/// place there.
pub(crate) fn files(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    let (loader, libraries) = (root.join(LOADER), root.join(LIBRARIES));
    let inside = root.join("usr/bin").join(PROGRAM);
    let words = [
        Path::new("--library-path"),
        &libraries,
        Path::new("--list"),
        &inside,
    ];
    let words = words.map(|word| word.to_str().unwrap_or_default());
    let listed = text_of(&loader.to_string_lossy(), &words)?;
    let mut places: Vec<String> = libraries_in(&listed, &libraries);
    ensure!(
        !places.is_empty(),
        "{} lists no libraries",
        inside.display()
    );
    places.extend(FIRMWARE.map(str::to_owned));
    places.extend([LOADER, PROGRAM].map(str::to_owned));
    places.push(format!("usr/bin/{PROGRAM}"));
    let place = |place: String| (root.join(&place), format!("/opt/{NAME}/{place}"));
    Ok(places.into_iter().map(place).collect())
}

/// The places below the root of what the loader lists.
fn libraries_in(listed: &str, libraries: &Path) -> Vec<String> {
    let name = |line: &str| {
        let (_, path) = line.trim().split_once(" => ")?;
        let path = Path::new(path.split(" (").next()?);
        (path.parent() == Some(libraries)).then_some(())?;
        Some(format!("{LIBRARIES}/{}", path.file_name()?.to_str()?))
    };
    listed.lines().filter_map(name).collect()
}

/// Fetches and unpacks beside the final place and renames, so that two runs at once
/// leave one whole folder.
fn fetch(cache: &Path) -> Result<PathBuf> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "there is none for this processor"
    );
    for program in ["apt-get", "dpkg-deb"] {
        ensure!(
            packages::runs(program),
            "it cannot be fetched without {program}"
        );
    }
    ensure!(
        Path::new(KEYRING).is_file(),
        "Debian's keys are missing; install the Debian package debian-archive-keyring"
    );
    let archive = archive()?;
    eprintln!("xtask: fetching QEMU of {BACKPORTS} (40 MB, unpacked and not installed)");
    let draft = Draft(cache.join(format!(".draft.{}", std::process::id())));
    let apt = Apt::new(&draft.0.join("apt"), &archive)?;
    apt.run(&["update"])
        .with_context(|| format!("the lists of {RELEASE} cannot be fetched"))?;
    let install = [
        "install",
        "-y",
        "--no-install-recommends",
        "--download-only",
    ];
    apt.run(&[&install[..], &["-t", BACKPORTS], &PACKAGES].concat())
        .with_context(|| format!("the packages of {BACKPORTS} cannot be fetched"))?;
    let root = draft.0.join("root");
    let version = unpack(&apt.dir.join("archives"), &root)?;
    let done = cache.join(version);
    match fs::rename(&root, &done) {
        // Somebody else was faster.
        Err(_) if done.is_dir() => Ok(done),
        result => result
            .map(|()| done)
            .context("cannot move it into the cache"),
    }
}

/// Where this machine gets Debian from.
fn archive() -> Result<String> {
    let ask = || {
        let uris = ["indextargets", "--format", "$(REPO_URI)", "Label: Debian"];
        let text = text_of("apt-get", &uris)?;
        anyhow::Ok(text.lines().next().map(str::to_owned))
    };
    let found = match ask()? {
        // A fresh machine has no lists, and they say who is Debian.
        None if packages::is_root() && packages::update()? => ask()?,
        found => found,
    };
    found.context("apt has no lists of Debian. Try as root: apt-get update")
}

/// apt with one release, and with folders of its own: it takes nothing to be installed.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(dir: &Path, archive: &str) -> Result<Self> {
        let place = || format!("cannot write into {}", dir.display());
        for part in ["lists/partial", "archives/partial", "state", "empty"] {
            fs::create_dir_all(dir.join(part)).with_context(place)?;
        }
        fs::write(dir.join("status"), "").with_context(place)?;
        let source = |suite| format!("deb [signed-by={KEYRING}] {archive} {suite} main\n");
        let sources = [RELEASE, BACKPORTS].map(source).concat();
        fs::write(dir.join("sources.list"), sources).with_context(place)?;
        let dir = dir.to_owned();
        Ok(Self { dir })
    }

    fn run(&self, words: &[&str]) -> Result<()> {
        self.run_in(&self.dir, words)
    }

    /// The same with this folder as the one where it works.
    fn run_in(&self, folder: &Path, words: &[&str]) -> Result<()> {
        let mut command = packages::apt_get();
        command.current_dir(folder);
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
        // An update that got nothing is no failure for apt otherwise.
        command.args(["-o", "APT::Update::Error-Mode=any"]);
        let status = command.args(words).status()?;
        ensure!(status.success(), "apt-get {} failed", words.join(" "));
        Ok(())
    }
}

/// Unpacks all packages and gives QEMU's version.
fn unpack(archives: &Path, root: &Path) -> Result<String> {
    let prefix = format!("{}_", PACKAGES[0]);
    let mut version = None;
    for entry in fs::read_dir(archives)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".deb") else {
            continue;
        };
        if let Some(found) = name.strip_prefix(&prefix) {
            version = Some(found.replace("%3a", "_"));
        }
        extract(&entry.path(), root)?;
    }
    let Some(version) = version else {
        bail!("apt-get left no {}", PACKAGES[0]);
    };
    for place in USELESS.map(|place| root.join(place)) {
        drop(fs::remove_dir_all(&place).or_else(|_| fs::remove_file(&place)));
    }
    let script = root.join(PROGRAM);
    fs::write(&script, SCRIPT)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let output = Command::new(&script).arg("--version").output()?;
    ensure!(output.status.success(), "what was fetched does not run");
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_the_folder_alone_are_taken() {
        let text = "\
\tlinux-vdso.so.1 (0x00007f4ef93ac000)
\tlibm.so.6 => /c/usr/lib/x86_64-linux-gnu/libm.so.6 (0x00007f547663e000)
\t/lib64/ld-linux-x86-64.so.2 => /c/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 (0x00007f4ef93ae000)
\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f547663e000)
";
        let found = libraries_in(text, Path::new("/c/usr/lib/x86_64-linux-gnu"));
        assert_eq!(found, ["usr/lib/x86_64-linux-gnu/libm.so.6", LOADER]);
    }

    #[test]
    fn the_script_names_the_places_that_are_fetched() {
        for place in [LIBRARIES, "usr/share/seabios", "usr/share/qemu"] {
            assert!(SCRIPT.contains(&format!("$here/{place}")), "{place}");
        }
        assert!(SCRIPT.contains(&format!("$here/usr/bin/{PROGRAM}")));
        assert!(Path::new(LOADER).starts_with(LIBRARIES));
    }
}

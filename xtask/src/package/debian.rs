//! The Debian package: a tree with modes and times that depend on nothing but the source,
//! and dpkg-deb.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::{VERSION, said, strip};
use crate::project::Project;
use crate::run::build;

/// How often this version was packaged.
const REVISION: u32 = 1;

const MAINTAINER: &str = "The Linkspan developers <linkspan@users.noreply.github.com>";

/// The settings that are the user's once installed.
const SETTINGS: &str = "/etc/linkspan/plane.toml";

/// Files of the project, where they go, and whether they are run.
const FILES: &[(&str, &str, bool)] = &[
    ("packaging/plane.toml", "etc/linkspan/plane.toml", false),
    (
        "packaging/linkspan.service",
        "usr/lib/systemd/system/linkspan.service",
        false,
    ),
    (
        "packaging/linkspan-fcopy.service",
        "usr/lib/systemd/system/linkspan-fcopy.service",
        false,
    ),
    (
        "packaging/60-linkspan-fcopy.rules",
        "usr/lib/udev/rules.d/60-linkspan-fcopy.rules",
        false,
    ),
    // No settings of the machine: with them there, a Hyper-V host could send files.
    (
        "packaging/fcopy.toml",
        "usr/share/doc/linkspan/examples/fcopy.toml",
        false,
    ),
    (
        "examples/host.toml",
        "usr/share/doc/linkspan/examples/host.toml",
        false,
    ),
    (
        "examples/guest.toml",
        "usr/share/doc/linkspan/examples/guest.toml",
        false,
    ),
    // Behind those of QEMU, which have 50: machines that use its own go on with it.
    (
        "packaging/vhost-user/60-linkspan-blk.json",
        "usr/share/qemu/vhost-user/60-linkspan-blk.json",
        false,
    ),
    (
        "packaging/vhost-user/60-linkspan-gpu.json",
        "usr/share/qemu/vhost-user/60-linkspan-gpu.json",
        false,
    ),
    (
        "packaging/vhost-user/vhost-user-blk",
        "usr/libexec/linkspan/vhost-user-blk",
        true,
    ),
    (
        "packaging/vhost-user/vhost-user-gpu",
        "usr/libexec/linkspan/vhost-user-gpu",
        true,
    ),
    (
        "packaging/debian/copyright",
        "usr/share/doc/linkspan/copyright",
        false,
    ),
    ("packaging/debian/postinst", "DEBIAN/postinst", true),
    ("packaging/debian/prerm", "DEBIAN/prerm", true),
    ("packaging/debian/postrm", "DEBIAN/postrm", true),
];

/// Shells, and where each looks for what it completes our command lines with.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/linkspan"),
    ("zsh", "usr/share/zsh/vendor-completions/_linkspan"),
    ("fish", "usr/share/fish/vendor_completions.d/linkspan.fish"),
];

const DESCRIPTION: &str = "\
data paths between virtual machines and the world
 Linkspan serves disks, networks and screens to virtual machines over
 vhost-user, vfio-user and vDPA, copies files into guests of Hyper-V, and
 speaks SMB Direct with and without RDMA cards. Both ends of each are here.
 .
 Many of them run from one file, each in a process of its own, as a service.
";

/// What a package is made of, before it is packed.
struct Tree {
    root: PathBuf,
    /// The time that all of it has, in seconds since 1970.
    epoch: u64,
}

/// Makes the package in this folder, and says what it is called.
pub(super) fn make(project: &Project, out: &Path) -> Result<PathBuf> {
    let built = build(project)?;
    let architecture = said(Command::new("dpkg").arg("--print-architecture"))?;
    let name = format!("linkspan_{VERSION}-{REVISION}_{}", architecture.trim());
    let tree = Tree::new(out.join(&name), epoch(project)?)?;
    let program = tree.at("usr/bin/linkspan")?;
    strip(&built, &program)?;
    for (from, to, _) in FILES {
        let copied = fs::copy(project.root.join(from), tree.at(to)?);
        copied.with_context(|| format!("cannot copy {from}"))?;
    }
    tree.pages(&program)?;
    for (shell, place) in COMPLETIONS {
        let text = said(Command::new(&program).args(["completions", shell]))?;
        fs::write(tree.at(place)?, text)?;
    }
    tree.changes(project)?;
    tree.control(architecture.trim(), &program)?;
    tree.settle(&tree.root)?;
    let package = out.join(name + ".deb");
    let mut pack = Command::new("dpkg-deb");
    pack.args(["--root-owner-group", "-Zxz", "--build"]);
    pack.env("SOURCE_DATE_EPOCH", tree.epoch.to_string());
    said(pack.arg(&tree.root).arg(&package))?;
    fs::remove_dir_all(&tree.root)?;
    Ok(package)
}

/// When the source is from: what is said of it, or its commit; without git, as in an archive
/// of the source or in somebody else's folder, the time of what says what has changed.
fn epoch(project: &Project) -> Result<u64> {
    let mut git = Command::new("git");
    git.args(["log", "-1", "--format=%ct"]);
    let commit = || said(git.current_dir(&project.root)).ok();
    let Some(text) = std::env::var("SOURCE_DATE_EPOCH").ok().or_else(commit) else {
        let changed = fs::metadata(project.root.join("CHANGELOG.md"))?.modified()?;
        return Ok(changed.duration_since(UNIX_EPOCH)?.as_secs());
    };
    let text = text.trim();
    text.parse()
        .with_context(|| format!("no time in seconds: {text}"))
}

impl Tree {
    fn new(root: PathBuf, epoch: u64) -> Result<Self> {
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        fs::create_dir(&root)?;
        Ok(Self { root, epoch })
    }

    /// A place in the tree, whose folder is there.
    fn at(&self, place: &str) -> Result<PathBuf> {
        let path = self.root.join(place);
        let folder = path.parent().context("a place has a folder")?;
        fs::create_dir_all(folder)?;
        Ok(path)
    }

    /// A file below the documentation, compressed without its name and time.
    fn compressed(&self, text: &[u8], place: &str) -> Result<()> {
        let mut gzip = Command::new("gzip");
        gzip.arg("-9nc").stdin(Stdio::piped());
        let mut gzip = gzip.stdout(File::create(self.at(place)?)?).spawn()?;
        let written = gzip.stdin.take().context("a pipe")?.write_all(text);
        ensure!(gzip.wait()?.success() && written.is_ok(), "gzip failed");
        Ok(())
    }

    /// The pages of the manual, as the program prints them.
    fn pages(&self, program: &Path) -> Result<()> {
        let folder = self.at("pages/page")?.with_file_name("");
        said(Command::new(program).args(["man", "--out"]).arg(&folder))?;
        for page in fs::read_dir(&folder)? {
            let page = page?;
            let name = page.file_name().to_string_lossy().into_owned();
            let text = fs::read(page.path())?;
            self.compressed(&text, &format!("usr/share/man/man1/{name}.gz"))?;
        }
        fs::remove_dir_all(folder)?;
        Ok(())
    }

    /// What has changed: of the program, and of the package.
    fn changes(&self, project: &Project) -> Result<()> {
        let text = fs::read(project.root.join("CHANGELOG.md"))?;
        self.compressed(&text, "usr/share/doc/linkspan/changelog.gz")?;
        let mut date = Command::new("date");
        let date =
            said(
                date.env("LC_ALL", "C")
                    .args(["-u", "-R", "-d", &format!("@{}", self.epoch)]),
            )?;
        let text = format!(
            "linkspan ({VERSION}-{REVISION}) unstable; urgency=medium\n\n  \
             * The package of version {VERSION}; changelog.gz says what is new in it.\n\n \
             -- {MAINTAINER}  {date}"
        );
        self.compressed(
            text.as_bytes(),
            "usr/share/doc/linkspan/changelog.Debian.gz",
        )
    }

    fn control(&self, architecture: &str, program: &Path) -> Result<()> {
        let mut sums = Vec::new();
        let mut bytes = 0;
        for path in files(&self.root)? {
            let name = path
                .strip_prefix(&self.root)?
                .to_string_lossy()
                .into_owned();
            if !name.starts_with("DEBIAN/") {
                bytes += fs::metadata(&path)?.len();
                sums.push(name);
            }
        }
        let mut sum = Command::new("md5sum");
        let sums = said(sum.args(&sums).current_dir(&self.root))?;
        fs::write(self.at("DEBIAN/md5sums")?, sums)?;
        fs::write(self.at("DEBIAN/conffiles")?, format!("{SETTINGS}\n"))?;
        let text = format!(
            "Package: linkspan\n\
             Version: {VERSION}-{REVISION}\n\
             Architecture: {architecture}\n\
             Maintainer: {MAINTAINER}\n\
             Installed-Size: {}\n\
             Depends: libc6 (>= {}), libgcc-s1\n\
             Suggests: qemu-system, libibverbs1, librdmacm1\n\
             Section: admin\n\
             Priority: optional\n\
             Homepage: https://github.com/linkspan/linkspan\n\
             Description: {DESCRIPTION}",
            bytes.div_ceil(1024),
            c_library(program)?,
        );
        fs::write(self.at("DEBIAN/control")?, text)?;
        Ok(())
    }

    /// Gives each file and folder the mode and the time that it has in every package.
    fn settle(&self, path: &Path) -> Result<()> {
        let name = path.strip_prefix(&self.root)?;
        let folder = path.is_dir();
        if folder {
            for entry in fs::read_dir(path)? {
                self.settle(&entry?.path())?;
            }
        }
        let run = |(_, to, run): &(_, &str, bool)| *run && name == Path::new(to);
        let program = name == Path::new("usr/bin/linkspan") || FILES.iter().any(run);
        let mode = if folder || program { 0o755 } else { 0o644 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        let time: SystemTime = UNIX_EPOCH + Duration::from_secs(self.epoch);
        File::open(path)?.set_modified(time)?;
        Ok(())
    }
}

/// All files below a folder, by name.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The oldest version of the C library that has all that the program calls.
fn c_library(program: &Path) -> Result<String> {
    let mut head = [0; 4];
    File::open(program)?.read_exact(&mut head)?;
    ensure!(head == *b"\x7fELF", "{} is no program", program.display());
    let text = said(Command::new("readelf").arg("--version-info").arg(program))?;
    newest(&text).context("the program names no version of the C library")
}

/// The largest of the versions `GLIBC_2.N` in this text.
fn newest(text: &str) -> Option<String> {
    let minor = |rest: &str| {
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        rest[..end].parse::<u32>().ok()
    };
    let minors = text.split("GLIBC_2.").skip(1).filter_map(minor);
    minors.max().map(|minor| format!("2.{minor}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_of_the_c_library_counts() {
        let text = "Name: GLIBC_2.4  Flags: none\nName: GLIBC_2.34  Flags\nName: GLIBC_2.2.5";
        assert_eq!(newest(text).as_deref(), Some("2.34"));
        assert_eq!(newest("GCC_3.0"), None);
    }
}

//! The Debian packages that the tasks need: installed as root, named otherwise.

use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::debs;

/// Packages for a guest.
pub(crate) const GUEST: &[&str] = &["qemu-system-x86", "busybox-static"];

/// Packages for all tests: the guest, a disk server and a network device that are
/// not ours, the tools that make and check images, the compiler for libFuzzer, and
/// networks to talk through, with what a guest changes its own with, and who reads
/// captures; what structures of rdma-core look like; who checks units and domains of
/// libvirt, and who shows system calls; VNC clients, a browser, a server of files, and what a
/// kubelet and its manifests are read with
/// (100 MB to fetch, 300 MB installed, 20 s).
pub(crate) const TESTS: &[&str] = &[
    "qemu-system-x86",
    "busybox-static",
    "qemu-system-common",
    "qemu-utils",
    "g++",
    "iproute2",
    "iputils-ping",
    "ethtool",
    "dpdk-dev",
    "tshark",
    "libibverbs-dev",
    "librdmacm-dev",
    "systemd",
    "libvirt-clients",
    "libxml2-utils",
    "strace",
    "gvncviewer",
    "libvncserver-dev",
    "tigervnc-viewer",
    "xvfb",
    "samba",
    "chromium-headless-shell",
    "python3-grpcio",
    "python3-yaml",
];

/// Packages for the figures of network devices.
pub(crate) const NET_BENCH: &[&str] = &["dpdk-dev", "iproute2", "iperf3"];

/// Packages for the lab's kernel: its source and what builds it.
pub(crate) const LAB_KERNEL: &[&str] = &[
    "linux-source-6.12",
    "gcc",
    "make",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libssl-dev",
    "xz-utils",
    "patch",
];

/// Packages for Linux's daemon of file copy: its source and what builds it.
pub(crate) const FCOPY_DAEMON: &[&str] = &["linux-source-6.12", "gcc", "xz-utils"];

/// Something is not there and cannot be installed by us.
#[derive(Debug)]
pub(crate) struct Missing(pub(crate) String);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// Makes sure that the packages are installed.
///
/// As root on Debian it installs them and says so. Otherwise it fails with the
/// line that installs them.
pub(crate) fn ensure(wanted: &[&str]) -> Result<()> {
    let missing = missing(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !runs("apt-get") {
        bail!(Missing(format!(
            "these are missing, by their Debian package names: {list}. Install them with your system's packages."
        )));
    }
    if !is_root() {
        bail!(Missing(format!(
            "packages are missing. Install them as root:\n  apt-get install {list}"
        )));
    }
    eprintln!("xtask: installing Debian packages: {list}");
    // A fresh machine has no package lists; old lists name files that are gone,
    // which shows as a failed installation.
    if !has_lists() {
        update()?;
    }
    if install(&missing)? || (update()? && install(&missing)?) {
        return Ok(());
    }
    // One that this system does not have keeps no other out.
    let mut known = missing.clone();
    known.retain(|package| debs::version(package).is_ok());
    if !known.is_empty() && known != missing {
        install(&known)?;
    }
    let missing = self::missing(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    bail!(Missing(format!(
        "apt-get could not install: {list}. Its messages are above."
    )))
}

fn missing<'a>(wanted: &[&'a str]) -> Vec<&'a str> {
    let missing = wanted.iter().copied();
    missing.filter(|package| !is_installed(package)).collect()
}

fn has_lists() -> bool {
    let entries = std::fs::read_dir("/var/lib/apt/lists")
        .into_iter()
        .flatten()
        .flatten();
    entries
        .into_iter()
        .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

/// Fetches the package lists.
pub(crate) fn update() -> Result<bool> {
    Ok(apt_get().arg("update").status()?.success())
}

/// apt-get without questions, on standard error, and patient with a second one.
pub(crate) fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .args([
            "-qq",
            "-o",
            "DPkg::Lock::Timeout=300",
            "-o",
            "APT::Sandbox::User=root",
        ])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(std::io::stderr());
    command
}

pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// Whether a program can be started at all.
pub(crate) fn runs(program: &str) -> bool {
    let mut command = Command::new(program);
    command
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok()
}

/// By its program where that says enough, so that a program from elsewhere
/// counts; busybox may be there without being static, so there the package counts.
fn is_installed(package: &str) -> bool {
    match package {
        "qemu-system-x86" => runs("qemu-system-x86_64"),
        // The disk server is in the one or the other, by release.
        "qemu-system-common" => runs("qemu-storage-daemon"),
        "qemu-utils" => runs("qemu-img"),
        "iproute2" => runs("ip"),
        "iputils-ping" => runs("ping"),
        "iperf3" => runs("iperf3"),
        "systemd" => runs("systemd-analyze"),
        "strace" => runs("strace"),
        "ethtool" => runs("ethtool"),
        "gvncviewer" => runs("gvnccapture"),
        "samba" => runs("smbd"),
        "g++" => runs("c++") || runs("g++"),
        "dpkg" => runs("dpkg-deb"),
        "binutils" => runs("readelf") && runs("strip"),
        "dpdk-dev" => runs("dpdk-testpmd"),
        "gcc" | "make" | "flex" | "bison" | "bc" | "patch" => runs(package),
        "xz-utils" => runs("xz"),
        _ if runs("dpkg-query") => dpkg_knows(package),
        "busybox-static" => runs("busybox"),
        _ => false,
    }
}

fn dpkg_knows(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout.starts_with(b"install ok installed"))
}

fn install(packages: &[&str]) -> Result<bool> {
    let mut command = apt_get();
    command
        .args(["install", "-y", "--no-install-recommends"])
        .args(packages);
    Ok(command.status()?.success())
}

//! What a guest can be given by name: Debian's programs, and what each needs
//! beside the libraries that it names itself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{debs, fcopy_daemon, later_qemu, packages};

/// Something that `pack` can name.
struct Thing {
    name: &'static str,
    /// The Debian package that has it.
    package: &'static str,
    /// The package is unpacked and not installed, because it excludes another.
    unpacked: bool,
    /// Programs: names that the shell would find.
    programs: &'static [&'static str],
    /// Files, by their places on this machine; one `*` in the last part stands for anything.
    files: &'static [&'static str],
}

/// A program that needs nothing but its libraries.
const fn program(name: &'static [&'static str; 1], package: &'static str) -> Thing {
    Thing {
        name: name[0],
        package,
        unpacked: false,
        programs: name,
        files: &[],
    }
}

const THINGS: &[Thing] = &[
    program(&["vdpa"], "iproute2"),
    program(&["rdma"], "iproute2"),
    program(&["ip"], "iproute2"),
    program(&["tc"], "iproute2"),
    program(&["bridge"], "iproute2"),
    program(&["ping"], "iputils-ping"),
    program(&["mkfs.ext4"], "e2fsprogs"),
    program(&["e2fsck"], "e2fsprogs"),
    program(&["fio"], "fio"),
    program(&["strace"], "strace"),
    program(&["setpriv"], "util-linux"),
    program(&["mount.cifs"], "cifs-utils"),
    program(&["qemu-img"], "qemu-utils"),
    program(&["qemu-storage-daemon"], "qemu-system-common"),
    // An inner guest: the program, the part of it that executes code, firmware.
    // The kernel is /lab/bzImage.
    Thing {
        name: "qemu",
        package: "qemu-system-x86",
        unpacked: false,
        programs: &["qemu-system-x86_64"],
        files: &[
            "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so",
            "/usr/share/seabios/bios-256k.bin",
            "/usr/share/qemu/linuxboot_dma.bin",
            "/usr/share/qemu/kvmvapic.bin",
            "/usr/share/qemu/pvh.bin",
        ],
    },
    // dpdk-testpmd loads every driver that it finds, so it finds these alone.
    Thing {
        name: "dpdk-testpmd",
        package: "dpdk-dev",
        unpacked: false,
        programs: &["dpdk-testpmd"],
        files: &[
            "/usr/lib/x86_64-linux-gnu/dpdk/pmds-*/librte_bus_vdev.so.*",
            "/usr/lib/x86_64-linux-gnu/dpdk/pmds-*/librte_bus_pci.so.*",
            "/usr/lib/x86_64-linux-gnu/dpdk/pmds-*/librte_mempool_ring.so.*",
            "/usr/lib/x86_64-linux-gnu/dpdk/pmds-*/librte_net_virtio.so.*",
            "/usr/lib/x86_64-linux-gnu/dpdk/pmds-*/librte_net_vhost.so.*",
        ],
    },
    // rdma-core, which programs load when they want it, with the drivers of software devices.
    Thing {
        name: "verbs",
        package: "ibverbs-providers",
        unpacked: false,
        programs: &[],
        files: &[
            "/usr/lib/x86_64-linux-gnu/libibverbs.so.1",
            "/usr/lib/x86_64-linux-gnu/libibverbs/librxe-rdmav*.so",
            "/usr/lib/x86_64-linux-gnu/libibverbs/libsiw-rdmav*.so",
            "/etc/libibverbs.d/rxe.driver",
            "/etc/libibverbs.d/siw.driver",
        ],
    },
    Thing {
        name: "rdmacm",
        package: "librdmacm1",
        unpacked: false,
        programs: &[],
        files: &["/usr/lib/x86_64-linux-gnu/librdmacm.so.1"],
    },
    Thing {
        name: "rdma-tools",
        package: "rdmacm-utils",
        unpacked: false,
        programs: &["rping", "rdma_server", "rdma_client"],
        files: &[],
    },
    // Who serves files of a folder, and who adds a user.
    Thing {
        name: "samba",
        package: "samba",
        unpacked: false,
        programs: &["smbd", "smbpasswd"],
        files: &[],
    },
    program(&["tcpdump"], "tcpdump"),
    program(&["tshark"], "tshark"),
    // It excludes samba, which other tests want installed.
    Thing {
        name: "ksmbd",
        package: "ksmbd-tools",
        unpacked: true,
        programs: &[
            "ksmbd.mountd",
            "ksmbd.adduser",
            "ksmbd.addshare",
            "ksmbd.control",
        ],
        files: &[],
    },
];

/// Names that the image knows how to make.
const OURS: [&str; 4] = ["linkspan", "kernel", fcopy_daemon::NAME, later_qemu::NAME];

/// What a list of names stands for.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Each file here, and its place in the guest.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// Where else its libraries are.
    pub(crate) library_dirs: Vec<PathBuf>,
    /// Files as above that come with their libraries.
    pub(crate) complete: Vec<(PathBuf, String)>,
    /// `linkspan` was named.
    pub(crate) program: bool,
    /// `kernel` was named, or what needs it.
    pub(crate) kernel: bool,
}

/// Refuses what `find` would not know. Nothing is installed yet.
pub(crate) fn check(names: &[String]) -> Result<()> {
    for name in names {
        let known = OURS.contains(&name.as_str()) || THINGS.iter().any(|thing| thing.name == name);
        if !known && !name.starts_with('/') {
            let names: Vec<&str> = THINGS.iter().map(|thing| thing.name).collect();
            bail!(
                "`pack {name}`: nobody knows which Debian package has it; say so in \
                 xtask/src/lab/things.rs. There are: {} {}, and paths of files",
                OURS.join(" "),
                names.join(" ")
            );
        }
    }
    Ok(())
}

/// Finds what the names stand for, and installs or fetches what is missing.
pub(crate) fn find(names: &[String]) -> Result<Found> {
    check(names)?;
    let named = |thing: &&Thing| names.iter().any(|name| name == thing.name);
    let mut missing: Vec<&str> = THINGS
        .iter()
        .filter(named)
        .filter(|thing| !thing.unpacked && !thing.is_here())
        .map(|thing| thing.package)
        .collect();
    missing.dedup();
    packages::ensure(&missing)?;
    let mut found = Found {
        program: names.iter().any(|name| name == "linkspan"),
        kernel: names
            .iter()
            .any(|name| ["kernel", "qemu", later_qemu::NAME].contains(&name.as_str())),
        ..Found::default()
    };
    if names.iter().any(|name| name == fcopy_daemon::NAME) {
        let place = format!("/usr/bin/{}", fcopy_daemon::NAME);
        found.files.push((fcopy_daemon::ensure()?, place));
    }
    if names.iter().any(|name| name == later_qemu::NAME) {
        found.complete = later_qemu::files(&later_qemu::ensure()?)?;
    }
    for path in names.iter().filter(|name| name.starts_with('/')) {
        found.files.push((path.into(), path.clone()));
    }
    for thing in THINGS.iter().filter(named) {
        thing.find(&mut found)?;
    }
    Ok(found)
}

impl Thing {
    fn is_here(&self) -> bool {
        let here = |pattern: &&str| !matching(Path::new("/"), pattern).is_empty();
        self.programs.iter().all(|name| which(name).is_some()) && self.files.iter().all(here)
    }

    fn find(&self, found: &mut Found) -> Result<()> {
        let root = match self.unpacked {
            true => debs::ensure(self.package)?,
            false => PathBuf::from("/"),
        };
        for program in self.programs {
            let path = match self.unpacked {
                true => ["usr/sbin", "usr/bin"]
                    .iter()
                    .map(|dir| root.join(dir).join(program))
                    .find(|path| path.exists()),
                false => which(program),
            };
            let path = path.with_context(|| format!("{} has no {program}", self.package))?;
            found.files.push((path, format!("/usr/bin/{program}")));
        }
        for pattern in self.files {
            let paths = matching(&root, pattern);
            anyhow::ensure!(!paths.is_empty(), "{} has no {pattern}", self.package);
            for path in paths {
                let inner = path.strip_prefix(&root).unwrap_or(&path);
                let inner = format!("/{}", inner.display());
                found.files.push((path, inner));
            }
        }
        if self.unpacked {
            found
                .library_dirs
                .push(root.join("usr/lib/x86_64-linux-gnu"));
        }
        Ok(())
    }
}

/// The files below `root` whose path fits; a `*` in any part stands for anything.
fn matching(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut paths = vec![root.to_owned()];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        let Some((begin, end)) = part.split_once('*') else {
            paths.iter_mut().for_each(|path| path.push(part));
            continue;
        };
        let inside = paths
            .iter()
            .flat_map(|path| fs::read_dir(path).into_iter().flatten().flatten());
        paths = inside
            .filter(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                name.len() >= begin.len() + end.len()
                    && name.starts_with(begin)
                    && name.ends_with(end)
            })
            .map(|entry| entry.path())
            .collect();
    }
    paths.retain(|path| path.exists());
    paths.sort();
    paths
}

/// Where root's shell would find a program.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_knows_is_refused_before_anything_is_installed() {
        assert!(check(&["vdpa".into(), "linkspan".into(), "/etc/passwd".into()]).is_ok());
        let error = check(&["vpda".into()]).unwrap_err().to_string();
        assert!(error.starts_with("`pack vpda`"), "{error}");
    }

    #[test]
    fn names_are_there_once() {
        let mut names: Vec<&str> = THINGS.iter().map(|thing| thing.name).collect();
        names.extend(OURS);
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_star_stands_for_anything_in_its_part() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let found = matching(root, "/s*c/lab/th*.rs");
        assert_eq!(found, [root.join("src/lab/things.rs")]);
        assert!(matching(root, "/src/none*").is_empty());
        assert!(matching(root, "/src/none").is_empty());
    }
}

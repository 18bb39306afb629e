//! What a check looks at: files of a machine, below a folder that tests choose, and what
//! only the kernel itself can answer.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::uring::Ring;
use linkspan_sys::verbs::Library;
use linkspan_sys::{sandbox, uio};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;

/// Bytes of a file that are looked at. The lists of modules are the longest.
const FILE_MAX: u64 = 4 << 20;

/// A machine.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// What stands for `/`.
    root: PathBuf,
    /// Where programs are, in the order of PATH.
    programs: Vec<PathBuf>,
    /// What was tried.
    pub(super) tried: Tried,
}

/// What files do not tell, since a filter or a limit may stand in the way: it was tried.
#[derive(Clone, Debug)]
pub(super) struct Tried {
    /// A memory file whose size is sealed.
    pub(super) memory_file: Result<(), String>,
    /// A ring of io_uring, restricted as disks have it.
    pub(super) io_uring: Result<(), String>,
    /// The version of Landlock, if there is one.
    pub(super) landlock: Option<i32>,
    /// The libraries of rdma-core.
    pub(super) rdma_core: Result<(), String>,
    /// What QEMU for this machine's processor says of its version.
    pub(super) qemu: Option<String>,
}

/// What this process may do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// Read and write.
    Has,
    /// It is there, and others may.
    Denied,
    /// It is not there.
    Absent,
}

/// What there is of a module of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Module {
    /// It is loaded, or part of the kernel.
    Running,
    /// `modprobe` would load it.
    Loadable,
    /// This kernel has none, as far as its lists tell.
    Unknown,
}

/// A limit on what this process takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    /// What holds; `None` is no limit.
    pub(super) soft: Option<u64>,
    /// What it may be raised to without a privilege.
    pub(super) hard: Option<u64>,
}

/// A right that root has, by its number (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug)]
pub(super) enum Capability {
    /// Interfaces and devices of the network.
    NetAdmin = 12,
    /// Locked memory without a limit.
    IpcLock = 14,
    /// Mounts, among much else.
    SysAdmin = 21,
}

impl Machine {
    /// This one.
    pub(super) fn this() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut machine = Self {
            root: "/".into(),
            programs: std::env::split_paths(&path).collect(),
            tried: Tried::nothing(),
        };
        machine.tried = Tried::now(&machine);
        machine
    }

    /// One that is made of files below a folder.
    #[cfg(test)]
    pub(super) fn at(root: &Path, tried: Tried) -> Self {
        Self {
            root: root.to_owned(),
            programs: vec![root.join("usr/bin")],
            tried,
        }
    }

    /// Where a file of the machine is.
    pub(super) fn place(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// What stands in a file.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let file = File::open(self.place(path)).ok()?;
        let mut bytes = Vec::new();
        file.take(FILE_MAX).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The number that stands in a file.
    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.trim().parse().ok()
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.place(path).exists()
    }

    /// The names in a folder, in order.
    pub(super) fn names(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.place(folder)).into_iter().flatten();
        let mut names: Vec<_> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// What this process may do with a file, by all that the kernel takes into account.
    pub(super) fn right(&self, path: &str) -> Right {
        let wanted = Access::READ_OK | Access::WRITE_OK;
        match accessat(CWD, self.place(path), wanted, AtFlags::EACCESS) {
            Ok(()) => Right::Has,
            Err(Errno::NOENT | Errno::NOTDIR) => Right::Absent,
            Err(_) => Right::Denied,
        }
    }

    /// A program's file.
    pub(super) fn program(&self, name: &str) -> Option<PathBuf> {
        let mut files = self.programs.iter().map(|folder| folder.join(name));
        files.find(|file| {
            let runs = accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS);
            file.is_file() && runs.is_ok()
        })
    }

    /// The kernel's version: its first two numbers.
    pub(super) fn kernel(&self) -> Option<(u32, u32)> {
        let release = self.text("/proc/sys/kernel/osrelease")?;
        let mut numbers = release.split(|it: char| !it.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    /// Whether there is a module. The kernel writes `_` for each `-` of its name.
    pub(super) fn module(&self, name: &str) -> Module {
        if self.has(&format!("/sys/module/{name}")) {
            return Module::Running;
        }
        let release = self.text("/proc/sys/kernel/osrelease").unwrap_or_default();
        let folder = format!("/lib/modules/{}", release.trim());
        let listed = |list: &str| {
            let text = self.text(&format!("{folder}/{list}"));
            text.is_some_and(|text| text.lines().any(|line| is_of(line, name)))
        };
        if listed("modules.builtin") {
            Module::Running
        } else if listed("modules.dep") {
            Module::Loadable
        } else {
            Module::Unknown
        }
    }

    /// A limit, by its name in /proc/self/limits.
    pub(super) fn limit(&self, name: &str) -> Option<Limit> {
        let text = self.text("/proc/self/limits")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let mut words = line.split_whitespace();
        let mut value = || match words.next()? {
            "unlimited" => Some(None),
            number => number.parse().ok().map(Some),
        };
        Some(Limit {
            soft: value()?,
            hard: value()?,
        })
    }

    pub(super) fn is_capable(&self, of: Capability) -> bool {
        let text = self.text("/proc/self/status").unwrap_or_default();
        let set = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let set = set.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
        set.is_some_and(|set| set & 1 << of as u32 != 0)
    }

    /// Where the kernel shows devices.
    pub(super) fn roots(&self) -> uio::Roots {
        uio::Roots {
            sysfs: self.place("/sys"),
            dev: self.place("/dev"),
            ..uio::Roots::default()
        }
    }

    /// The name of QEMU for guests with this machine's processor.
    pub(super) fn qemu() -> String {
        format!("qemu-system-{}", std::env::consts::ARCH)
    }
}

/// Whether a line of a list of modules is of this one.
fn is_of(line: &str, name: &str) -> bool {
    let path = line.split(':').next().unwrap_or_default();
    let file = path.rsplit('/').next().unwrap_or_default();
    let module = file.split('.').next().unwrap_or_default();
    module.replace('-', "_") == name
}

impl Tried {
    fn nothing() -> Self {
        let not = || Err("not tried".to_owned());
        Self {
            memory_file: not(),
            io_uring: not(),
            landlock: None,
            rdma_core: not(),
            qemu: None,
        }
    }

    /// Tries all of it; nothing stays.
    fn now(machine: &Machine) -> Self {
        let file = memfd::create("doctor", 4096, Sealing::Fixed);
        let io_uring = match &file {
            Ok(file) => Ring::new(file.as_fd(), 1).map_err(|error| error.to_string()),
            Err(_) => Err("there is no file to try it with".to_owned()),
        };
        Self {
            io_uring: io_uring.map(drop),
            memory_file: file.map(drop).map_err(|error| error.to_string()),
            landlock: sandbox::landlock().unwrap_or_default(),
            rdma_core: Library::load().map(drop).map_err(|error| error.to_string()),
            qemu: machine.program(&Machine::qemu()).and_then(|it| says(&it)),
        }
    }
}

/// The first line of what a program says of its version.
fn says(program: &Path) -> Option<String> {
    let mut command = Command::new(program);
    let output = command
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(text.lines().next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::fixture::Files;
    use rustix::process::{Gid, Uid, geteuid};
    use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

    #[test]
    fn modules_are_found_in_each_list() {
        let files = Files::new();
        files.write("proc/sys/kernel/osrelease", "6.12.1-amd64\n");
        let lists = "lib/modules/6.12.1-amd64";
        files.write(
            &format!("{lists}/modules.builtin"),
            "kernel/drivers/net/tun.ko\n",
        );
        let dep = "kernel/drivers/vhost/vhost-vdpa.ko.xz: kernel/drivers/vdpa/vdpa.ko.xz\n\
            kernel/drivers/vdpa/vdpa.ko.xz:\n";
        files.write(&format!("{lists}/modules.dep"), dep);
        files.write("sys/module/kvm/refcnt", "0\n");
        let machine = files.machine();
        assert_eq!(machine.module("kvm"), Module::Running);
        assert_eq!(machine.module("tun"), Module::Running);
        assert_eq!(machine.module("vhost_vdpa"), Module::Loadable);
        assert_eq!(machine.module("vdpa"), Module::Loadable);
        // Not all that others need or whose name begins alike.
        for name in ["vdp", "vhost", "ko"] {
            assert_eq!(machine.module(name), Module::Unknown, "{name}");
        }
        assert_eq!(machine.kernel(), Some((6, 12)));
    }

    #[test]
    fn limits_and_capabilities_are_read() {
        let files = Files::new();
        let machine = files.machine();
        assert_eq!(machine.limit("Max open files"), None);
        assert!(!machine.is_capable(Capability::NetAdmin));
        files.write(
            "proc/self/limits",
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max open files            1024                 1048576              files     \n\
             Max locked memory         8388608              unlimited            bytes     \n\
             Max broken                many                 few                  bytes     \n",
        );
        files.write("proc/self/status", "Name:\tx\nCapEff:\t0000000000001000\n");
        let limit = |soft, hard| Some(Limit { soft, hard });
        let read = |name| machine.limit(name);
        assert_eq!(read("Max open files"), limit(Some(1024), Some(1 << 20)));
        assert_eq!(read("Max locked memory"), limit(Some(8 << 20), None));
        assert_eq!(read("Max broken"), None);
        assert!(machine.is_capable(Capability::NetAdmin));
        assert!(!machine.is_capable(Capability::SysAdmin));
    }

    /// The kernel's answer counts, also that to somebody who is not root.
    #[test]
    fn rights_are_those_of_who_asks() {
        let files = Files::new();
        files.write("dev/kvm", "");
        files.mode("dev/kvm", 0o600);
        let machine = files.machine();
        assert_eq!(machine.right("/dev/kvm"), Right::Has);
        assert_eq!(machine.right("/dev/none"), Right::Absent);
        assert_eq!(machine.right("/dev/kvm/below"), Right::Absent);
        if !geteuid().is_root() {
            files.mode("dev/kvm", 0o400);
            assert_eq!(machine.right("/dev/kvm"), Right::Denied);
            return;
        }
        // Credentials of this thread alone.
        let asked = std::thread::spawn(move || {
            let (user, group) = (Uid::from_raw(65534), Gid::from_raw(65534));
            set_thread_res_gid(group, group, group).unwrap();
            set_thread_res_uid(user, user, user).unwrap();
            machine.right("/dev/kvm")
        });
        assert_eq!(asked.join().unwrap(), Right::Denied);
    }

    #[test]
    fn programs_are_files_that_run() {
        let files = Files::new();
        files.write("usr/bin/vdpa", "");
        files.mode("usr/bin/vdpa", 0o644);
        let machine = files.machine();
        assert_eq!(machine.program("vdpa"), None);
        files.mode("usr/bin/vdpa", 0o755);
        assert!(machine.program("vdpa").is_some());
        files.write("usr/bin/qemu/x", "");
        assert_eq!(machine.program("qemu"), None);
    }

    #[test]
    fn this_machine_answers() {
        let machine = Machine::this();
        assert_eq!(machine.tried.memory_file, Ok(()));
        assert!(machine.kernel().is_some());
        assert!(machine.limit("Max open files").is_some());
    }
}

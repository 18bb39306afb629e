//! Tests that need the lab's kernel: files named `lab_*.rs`, which
//! `cargo xtask lab run` executes in the lab guest (docs/lab.md).

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::PATIENCE;

/// The lab's init sets it to 1; a test run that has the lab as a later step to `later`.
const ENV: &str = "LINKSPAN_LAB";

/// Time between two looks at what the kernel makes.
const PAUSE: Duration = Duration::from_millis(5);

/// Whether this is the lab guest.
pub(crate) fn is_here() -> bool {
    std::env::var(ENV).is_ok_and(|here| here == "1")
}

/// Whether this is the lab guest. Elsewhere it says that the test is skipped.
///
/// ```no_run
/// # use linkspan_testkit::lab;
/// fn a_test() {
///     if !lab::guest("a_test") {
///         return;
///     }
/// }
/// ```
#[must_use]
pub fn guest(test: &str) -> bool {
    let here = std::env::var(ENV).unwrap_or_default();
    // Not by `eprintln`, which the test harness captures: the summary of
    // `cargo xtask test` counts this line.
    let mut out = std::io::stderr().lock();
    match here.as_str() {
        "1" => return true,
        "later" => drop(writeln!(out, "LATER {test}: it runs in the lab")),
        _ => drop(writeln!(
            out,
            "SKIP {test}: it runs in the lab, by cargo xtask lab run"
        )),
    }
    false
}

/// A device on the kernel's vDPA bus, which ends with the value. Only in the lab;
/// the header of the test needs `//: pack vdpa`.
#[derive(Debug)]
pub struct Vdpa {
    name: String,
}

impl Vdpa {
    /// A simulated disk: one queue of 256.
    #[must_use]
    pub fn simulated_disk() -> Self {
        Self::add(&unique("blk"), "vdpasim_blk", &[])
    }

    /// A simulated network card, which loops what it sends; it has a control queue.
    #[must_use]
    pub fn simulated_card() -> Self {
        Self::add(&unique("net"), "vdpasim_net", &[])
    }

    /// A device of this name of a manager such as `vduse`; `options` as `vdpa dev add` takes them.
    #[must_use]
    pub fn add(name: &str, manager: &str, options: &[&str]) -> Self {
        let mut command = Command::new("vdpa");
        command.args(["dev", "add", "name", name, "mgmtdev", manager]);
        run(command.args(options));
        Self {
            name: name.to_owned(),
        }
    }

    /// A device of this name that something else puts on the bus.
    #[must_use]
    pub fn added_by_others(name: &str) -> Self {
        let name = name.to_owned();
        let device = Self { name };
        await_path(&device.dir());
        device
    }

    /// Its name on the bus.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder in sysfs.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        Path::new("/sys/bus/vdpa/devices").join(&self.name)
    }

    /// Gives it to the driver `vhost_vdpa` or `virtio_vdpa`.
    pub fn bind(&self, driver: &str) {
        let dir = self.dir();
        let bound = fs::read_link(dir.join("driver")).ok();
        if bound.is_some_and(|link| link.ends_with(driver)) {
            return;
        }
        write(&dir.join("driver_override"), driver);
        if dir.join("driver").exists() {
            write(&dir.join("driver/unbind"), &self.name);
        }
        let driver = Path::new("/sys/bus/vdpa/drivers").join(driver);
        write(&driver.join("bind"), &self.name);
    }

    /// Gives it to `vhost_vdpa` and tells its character device.
    #[must_use]
    pub fn char_device(&self) -> PathBuf {
        self.bind("vhost_vdpa");
        let name = await_child(&self.dir(), "vhost-vdpa-");
        let node = Path::new("/dev").join(name);
        await_path(&node);
        node
    }

    /// Gives it to the kernel's own driver and tells the disk.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.bind("virtio_vdpa");
        let virtio = self.dir().join(await_child(&self.dir(), "virtio"));
        let node = Path::new("/dev").join(await_child(&virtio.join("block"), ""));
        await_path(&node);
        node
    }

    /// Gives it to the kernel's own driver and tells the name of the interface.
    #[must_use]
    pub fn interface(&self) -> String {
        self.bind("virtio_vdpa");
        let virtio = self.dir().join(await_child(&self.dir(), "virtio"));
        await_child(&virtio.join("net"), "")
    }
}

impl Drop for Vdpa {
    fn drop(&mut self) {
        // A test may have removed it, and a second panic would hide the first.
        let mut command = Command::new("vdpa");
        drop(command.args(["dev", "del", &self.name]).output());
    }
}

/// A mediated device, which ends with the value. Only in the lab.
#[derive(Debug)]
pub struct Mdev {
    uuid: String,
}

impl Mdev {
    /// A device of this type of a driver, such as `mdpy-vga` of `mdpy`.
    #[must_use]
    pub fn new(driver: &str, kind: &str) -> Self {
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
        let uuid = uuid.trim().to_owned();
        let types = Path::new("/sys/class/mdev_bus").join(driver);
        let create = types.join("mdev_supported_types").join(kind).join("create");
        write(&create, &uuid);
        let own = Self { uuid };
        await_path(&own.dir().join("iommu_group"));
        own
    }

    /// Its name.
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Its folder in sysfs.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        Path::new("/sys/bus/mdev/devices").join(&self.uuid)
    }

    /// The node of its group.
    #[must_use]
    pub fn group(&self) -> PathBuf {
        let link = fs::read_link(self.dir().join("iommu_group")).unwrap();
        let node = Path::new("/dev/vfio").join(link.file_name().unwrap());
        await_path(&node);
        node
    }

    /// Its own node.
    #[must_use]
    pub fn node(&self) -> PathBuf {
        let name = await_child(&self.dir().join("vfio-dev"), "vfio");
        let node = Path::new("/dev/vfio/devices").join(name);
        await_path(&node);
        node
    }
}

impl Drop for Mdev {
    fn drop(&mut self) {
        // A test may have removed it, and a second panic would hide the first.
        let _ = fs::write(self.dir().join("remove"), "1");
    }
}

/// Linux's own daemon of file copy: where `cargo xtask test` says, or where the shell finds
/// it in the lab.
#[must_use]
pub fn fcopy_daemon() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let told = std::env::var_os("LINKSPAN_FCOPY_DAEMON").map(PathBuf::from);
    let mut places = std::env::split_paths(&path).map(|dir| dir.join("hv_fcopy_uio_daemon"));
    told.or_else(|| places.find(|place| place.exists()))
}

/// A network interface with an address and a software RDMA device. They stay for as long as the
/// guest: rdma-core keeps devices open, and the kernel would wait for it to let go. Only in the
/// lab; the header of the test needs `//: pack ip rdma`, and `verbs` for rdma-core.
#[derive(Debug)]
pub struct Rdma {
    interface: String,
    device: String,
    address: Ipv4Addr,
}

impl Rdma {
    /// A device of this kind: `siw` (iWARP) or `rxe` (RoCE).
    #[must_use]
    pub fn new(kind: &str) -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (interface, device) = (format!("rnet{number}"), format!("{kind}{number}"));
        let address = Ipv4Addr::new(192, 0, 2, number);
        let ip = |arguments: &[&str]| run(Command::new("ip").args(arguments));
        ip(&["link", "add", &interface, "type", "dummy"]);
        let own = Self {
            interface,
            device,
            address,
        };
        ip(&[
            "addr",
            "add",
            &format!("{address}/32"),
            "dev",
            &own.interface,
        ]);
        ip(&["link", "set", &own.interface, "up"]);
        let mut command = Command::new("rdma");
        command.args(["link", "add", &own.device, "type", kind]);
        run(command.args(["netdev", &own.interface]));
        own
    }

    /// The address of its interface.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its name.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }
}

/// What goes over an interface, captured by tcpdump for tshark, an independent decoder. Only in
/// the lab; the header of the test needs `//: pack tcpdump tshark`.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
    path: PathBuf,
}

impl Capture {
    /// Captures from now on.
    #[must_use]
    pub fn start(interface: &str, name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("{name}.pcap"));
        let mut command = Command::new("tcpdump");
        command.args([
            "--immediate-mode",
            "-Z",
            "root",
            "-U",
            "-n",
            "-B",
            "65536",
            "-i",
            interface,
        ]);
        command.arg("-w").arg(&path).args(["tcp"]);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut tcpdump = command.spawn().unwrap();
        // It says when it listens.
        let mut said = BufReader::new(tcpdump.stderr.take().unwrap());
        let mut line = String::new();
        while said.read_line(&mut line).unwrap() > 0 && !line.contains("listening on") {}
        assert!(line.contains("listening on"), "{line}");
        // And must not die of saying more.
        tcpdump.stderr = Some(said.into_inner());
        Self { tcpdump, path }
    }

    /// Ends it; tshark has to understand every frame of iWARP, of which there have to be so many
    /// at least, all with a good checksum. Gives all that it says.
    pub fn judge(mut self, frames: usize) -> String {
        let pid = rustix::process::Pid::from_child(&self.tcpdump);
        let signal = |signal| rustix::process::kill_process(pid, signal).unwrap();
        // What it has not read when it ends is lost: it says how much there is, and has read.
        // On some interfaces it never reads as much as it counts, so that has its time.
        let until = Instant::now() + Duration::from_secs(3);
        let mut said = BufReader::new(self.tcpdump.stderr.take().unwrap());
        loop {
            signal(rustix::process::Signal::USR1);
            let mut line = String::new();
            assert!(said.read_line(&mut line).unwrap() > 0, "tcpdump ended");
            let counts = line.split(", ").map(|part| {
                let mut words = part.split(' ');
                words.find_map(|word| word.parse::<u64>().ok())
            });
            if let [Some(read), Some(there), ..] = counts.collect::<Vec<_>>()[..]
                && (read >= there || Instant::now() > until)
            {
                break;
            }
        }
        signal(rustix::process::Signal::TERM);
        self.tcpdump.stderr = Some(said.into_inner());
        self.tcpdump.wait().unwrap();
        let text = self.tshark(&["-V"]);
        let count = |what: &str| text.matches(what).count();
        for bad in ["Bad CRC32", "Malformed"] {
            let line = text.lines().find(|line| line.contains(bad));
            assert_eq!(line, None);
        }
        let fields = ["-T", "fields", "-e", "iwarp_rdma.opcode", "-Y", "iwarp_ddp"];
        let opcodes = self.tshark(&fields);
        let opcodes = opcodes.split([',', '\n']);
        let seen = opcodes.filter(|word| !word.is_empty()).count();
        let good = count("Good CRC32");
        println!("tshark: {seen} frames, {good} good checksums");
        assert!(seen >= frames && good >= seen, "{seen} frames, {good} good");
        text
    }

    fn tshark(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tshark");
        command.args(["-n", "-o", "tcp.try_heuristic_first:TRUE"]);
        // What others put into their messages is theirs: ksmbd's security blob is no SPNEGO.
        command.args(["--disable-protocol", "spnego"]);
        run(command.args(arguments).arg("-r").arg(&self.path))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It is over when it was judged; a test that failed leaves nothing running.
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

/// A name that no other test of this process has.
#[must_use]
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Runs a program that has to succeed, and gives its standard output.
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Writes a word into a file of sysfs or procfs.
pub fn write(path: &Path, word: &str) {
    fs::write(path, word).unwrap_or_else(|error| panic!("{word} to {}: {error}", path.display()));
}

/// Waits until `path` is there.
pub fn await_path(path: &Path) {
    await_some(&format!("{}", path.display()), || {
        path.exists().then_some(())
    });
}

/// Waits until something is so that is bound to come, and that nobody tells of.
///
/// # Panics
/// When it does not come.
pub fn await_true(what: &str, look: impl Fn() -> bool) {
    await_some(what, || look().then_some(()));
}

/// Waits for an entry of `dir` whose name begins with `prefix`.
fn await_child(dir: &Path, prefix: &str) -> String {
    let look = || {
        let names = fs::read_dir(dir).ok()?.flatten();
        let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.find(|name| name.starts_with(prefix))
    };
    await_some(&format!("{}/{prefix}*", dir.display()), look)
}

/// Looks again and again, since the kernel tells nobody of what it makes in sysfs.
fn await_some<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "there is no {what}");
        std::thread::sleep(PAUSE);
    }
}

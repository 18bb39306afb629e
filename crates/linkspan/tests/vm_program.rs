//! `linkspan vm` and machines of planes as programs: a stock guest whose disk and network are
//! links of the same plane.

use std::fs;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use linkspan::demo::disk::{Base, Plan};
use linkspan::demo::initramfs;
use linkspan::demo::kernel::Kernel;
use linkspan::demo::process::find_program;
use linkspan::demo::report::Report;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;

mod machines;
mod programs;

use machines::{eventually, skip};
use programs::Program;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");
const BYTES: u64 = 8 << 20;
const QUEUES: u16 = 2;

/// A folder with a kernel, a first file system, a disk and a plane.
struct Host {
    folder: TempDir,
    kernel: Kernel,
}

/// What a guest needs, or `None` after saying what is missing.
fn host(test: &str) -> Option<Host> {
    let need = || -> Result<Kernel, String> {
        initramfs::find_busybox().map_err(|error| error.to_string())?;
        find_program(Path::new("qemu-system-x86_64")).ok_or("QEMU is not installed")?;
        Kernel::find(None).map_err(|error| error.to_string())
    };
    match need() {
        Ok(kernel) => Some(Host {
            folder: tempfile::tempdir().unwrap(),
            kernel,
        }),
        Err(why) => {
            skip(test, why.lines().next().unwrap_or_default());
            None
        }
    }
}

impl Host {
    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the plane; the guest does what `mode` says.
    fn write(&self, mode: &str, archive: &[u8]) {
        initramfs::store(archive, &self.at("initrd")).unwrap();
        let kernel = self.kernel.vmlinuz.display();
        let plane = format!(
            "[plane]\ncontrol = \"control.sock\"\n\
             [link.disk]\ncommand = \"blk\"\nsocket-path = \"disk.sock\"\nimage = \"disk.img\"\n\
             queues = {QUEUES}\n\
             [link.lan]\ncommand = \"net\"\nport = [\"vhost-user:lan.sock,queues={QUEUES}\", \
             \"responder,address=10.0.2.2/24,lease=10.0.2.15\"]\n\
             [vm.guest]\nlinks = [\"disk\", \"lan\"]\ncpus = {QUEUES}\nmemory = \"256M\"\n\
             accel = \"tcg\"\nkernel = \"{kernel}\"\ninitrd = \"initrd\"\n\
             append = \"console=ttyS0 no_timer_check panic=0 linkspan.mode={mode} linkspan.net=lease\"\n\
             console = \"console.log\"\nshutdown-seconds = 1\n\
             option = [\"-serial\", \"file:report.log\"]\n"
        );
        fs::write(self.at("plane.toml"), plane).unwrap();
    }

    fn up(&self) -> Program {
        Program::start("up", [self.at("plane.toml").as_os_str(), "--json".as_ref()])
    }

    fn link(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(PROGRAM);
        command.arg("link").args(arguments).arg("--control");
        command.arg(self.at("control.sock")).output().unwrap()
    }

    fn seen(&self, name: &str) -> Option<Value> {
        let output = self.link(&["list", "--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.find(|line: &Value| line["link"] == name)
    }

    fn arguments(&self, monitor: &str) -> Output {
        let mut command = Command::new(PROGRAM);
        command.args(["vm", "args", "guest", "--for", monitor, "--plane"]);
        command.arg(self.at("plane.toml")).output().unwrap()
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap_or_default()
    }
}

/// Whatever the guest read, wrote and sent went through the plane's links; it reboots and
/// goes off by itself, and is not started again.
#[test]
fn a_plane_runs_a_guest_on_its_own_links() {
    let Some(host) = host("a_plane_runs_a_guest_on_its_own_links") else {
        return;
    };
    let base = Base::Pattern(BYTES);
    base.write_to(&host.at("disk.img")).unwrap();
    let plan = Plan::new(BYTES, QUEUES, 12).unwrap();
    let archive = initramfs::build(&host.kernel, &plan.guest_files()).unwrap();
    host.write("check", &archive);
    let up = host.up();
    let mut off = || {
        host.seen("guest")
            .is_some_and(|seen| seen["state"] == "stopped")
    };
    let went_off = (0..4).any(|_| eventually(&mut off));
    let console = || host.log("console.log");
    assert!(went_off, "{}\n{}", host.log("report.log"), console());
    let seen = host.seen("guest").unwrap();
    assert_eq!(seen["last_end"], "it ended with status 0", "{}", console());
    assert_eq!(seen["starts"], 1);
    up.signal(Signal::TERM);
    assert_eq!(up.end().0, Some(0));
    let mut report = Report::default();
    for line in host.log("report.log").lines() {
        report.take(line);
    }
    let said = host.log("report.log");
    let value = |key: &str| said.contains(&format!("LINKSPAN {key}"));
    assert!(value(&format!("queues={QUEUES}")), "{said}");
    assert!(value("net.ping.0=yes") && value("net.ping.1=yes"), "{said}");
    assert!(value(&format!("net.pairs={QUEUES}")), "{said}");
    assert!(!value("problem"), "{said}");
    let mut image = fs::File::open(host.at("disk.img")).unwrap();
    let state = plan.compare(&mut base.open().unwrap(), &mut image).unwrap();
    assert!(
        state.wrong_bytes == 0 && !said.contains("=no"),
        "{state:?}\n{said}"
    );
}

/// The guest of this test does not hear its power button, so that its power goes; its disk
/// is there until then.
#[test]
fn a_guest_ends_before_its_links() {
    let Some(host) = host("a_guest_ends_before_its_links") else {
        return;
    };
    Base::Pattern(BYTES).write_to(&host.at("disk.img")).unwrap();
    host.write("remote", &initramfs::build(&host.kernel, &[]).unwrap());
    let up = host.up();
    let mut ready = || host.log("report.log").contains("remote=ready");
    assert!(eventually(&mut ready), "{}", host.log("console.log"));
    is_confined(&host);
    up.signal(Signal::TERM);
    let (status, lines, errors) = up.end();
    assert_eq!(status, Some(0), "{errors}");
    let ended = lines.iter().filter(|line| line["event"] == "ended");
    let ended: Vec<_> = ended.map(|line| line["link"].as_str().unwrap()).collect();
    assert_eq!(ended[0], "guest", "{ended:?}\n{errors}");
    assert_eq!(ended.len(), 3);
    assert!(errors.contains("loses its power"), "{errors}");
}

/// QEMU, the child of the machine's process, cannot have more rights than it has, and its
/// system calls are filtered.
fn is_confined(host: &Host) {
    let machine = host.seen("guest").unwrap()["pid"].as_u64().unwrap();
    let children = format!("/proc/{machine}/task/{machine}/children");
    let children = fs::read_to_string(children).unwrap();
    let qemu = children.split_whitespace().next().expect("QEMU runs");
    let status = fs::read_to_string(format!("/proc/{qemu}/status")).unwrap();
    let has = |line: &str| status.lines().any(|it| it == line);
    assert!(has("Seccomp:\t2") && has("NoNewPrivs:\t1"), "{status}");
}

/// Who waits for a socket ends when asked to, and starts nothing.
#[test]
fn a_machine_waits_for_its_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let disk = format!("--disk={}", socket.display());
    let machine = Program::start("vm", ["run", &disk, "--qemu=/nonexistent"]);
    machine.await_error("waiting for");
    machine.signal(Signal::TERM);
    assert_eq!(machine.end().0, Some(0));
    let _listener = UnixListener::bind(&socket).unwrap();
    let machine = Program::start("vm", ["run", &disk, "--qemu=/nonexistent"]);
    let (status, _, errors) = machine.end();
    assert_eq!(status, Some(5), "{errors}");
    assert!(errors.contains("there is no program"), "{errors}");
}

/// Ours: an interrupt at a terminal, which goes to all that runs there, took the guest's power
/// at once.
#[test]
fn an_interrupt_at_a_terminal_presses_the_button_alone() {
    let test = "an_interrupt_at_a_terminal_presses_the_button_alone";
    if find_program(Path::new("qemu-system-x86_64")).is_none() {
        return skip(test, "QEMU is not installed");
    }
    let folder = tempfile::tempdir().unwrap();
    let (console, errors) = (folder.path().join("console"), folder.path().join("errors"));
    let mut machine = linkspan_testkit::program(PROGRAM);
    machine.args([
        "vm",
        "run",
        "--accel=tcg",
        "--memory=64M",
        "--shutdown-seconds=1",
    ]);
    machine.arg("--console").arg(&console);
    machine.stderr(fs::File::create(&errors).unwrap());
    let mut machine = machine.process_group(0).spawn().unwrap();
    // QEMU makes it.
    assert!(eventually(&mut || console.exists()));
    kill_process_group(Pid::from_child(&machine), Signal::INT).unwrap();
    let status = machine.wait().unwrap();
    let errors = fs::read_to_string(errors).unwrap();
    assert_eq!(status.code(), Some(0), "{errors}");
    assert!(errors.contains("loses its power"), "{errors}");
}

/// A shell starts the guest with the words that are printed for QEMU.
#[test]
fn each_monitor_is_told_its_arguments() {
    let Some(host) = host("each_monitor_is_told_its_arguments") else {
        return;
    };
    fs::write(host.at("disk.img"), [0; 4096]).unwrap();
    host.write("probe", &initramfs::build(&host.kernel, &[]).unwrap());
    let plane = host.log("plane.toml") + "start = false\n";
    fs::write(host.at("plane.toml"), plane).unwrap();
    for (monitor, word) in [
        ("qemu", "vhost-user-blk-pci,chardev=disk0,num-queues=2"),
        ("cloud-hypervisor", ""),
        ("crosvm", ""),
        ("libvirt", "<domain type="),
    ] {
        let output = host.arguments(monitor);
        // These have no words of QEMU.
        let takes = matches!(monitor, "qemu" | "libvirt");
        assert_eq!(output.status.success(), takes, "{monitor}: {output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!takes || said.contains(word), "{said}");
    }
    let up = host.up();
    let mut served = || host.at("disk.sock").exists() && host.at("lan.sock").exists();
    assert!(eventually(&mut served));
    let words = String::from_utf8(host.arguments("qemu").stdout).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", &words]).current_dir(host.folder.path());
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(host.log("report.log").contains("probe=ok"), "{output:?}");
    assert_eq!(host.seen("guest").unwrap()["starts"], 0);
    up.signal(Signal::TERM);
    assert_eq!(up.end().0, Some(0));
    let mut unknown = Command::new(PROGRAM);
    unknown.args(["vm", "args", "nobody", "--plane"]);
    let unknown = unknown.arg(host.at("plane.toml")).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}

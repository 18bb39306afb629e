//! The demo's guest on a back end that we did not write: proves that the check
//! itself is right, and that its parts work on any socket.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use linkspan::demo::check::{self, HostView, Server};
use linkspan::demo::disk::{Base, Plan};
use linkspan::demo::initramfs;
use linkspan::demo::kernel::Kernel;
use linkspan::demo::machine::{Accel, Disk, Event, Hardware};
use linkspan::demo::process::{Process, Stop, await_socket, find_program, supervised};

const BYTES: u64 = 8 << 20;
const LIMIT: Duration = Duration::from_secs(240);

struct Setup {
    hardware: Hardware,
    daemon: PathBuf,
    dir: tempfile::TempDir,
}

/// What a guest needs, or `None` after saying what is missing.
fn setup(test: &str) -> Option<Setup> {
    let need = || -> Result<Setup, String> {
        let program =
            |name: &str| find_program(Path::new(name)).ok_or(format!("{name} is not installed"));
        initramfs::find_busybox().map_err(|error| error.to_string())?;
        let kernel = Kernel::find(None).map_err(|error| error.to_string())?;
        let qemu = program("qemu-system-x86_64")?;
        let daemon = program("qemu-storage-daemon")?;
        let hardware = Hardware {
            qemu,
            accel: Accel::Tcg,
            memory_mib: 256,
            kernel,
        };
        Ok(Setup {
            hardware,
            daemon,
            dir: tempfile::tempdir().map_err(|error| error.to_string())?,
        })
    };
    match need() {
        Ok(setup) => Some(setup),
        Err(why) => {
            // Past the test harness's capture, so that the summary can count it.
            let why = why.lines().next().unwrap_or_default().to_owned();
            let line = format!("SKIP {test}: {why}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            None
        }
    }
}

impl Setup {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn serve(&self, queues: u16) -> Process {
        let output = std::fs::File::create(self.path("daemon.log")).unwrap();
        let (image, socket) = (self.path("disk.img"), self.path("s"));
        let blockdev = format!("driver=file,node-name=f,filename={}", image.display());
        let export = format!(
            "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},num-queues={queues},writable=on",
            socket.display()
        );
        let mut command = supervised(&self.daemon);
        command
            .args(["--blockdev", &blockdev, "--export", &export])
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let mut daemon = Process::spawn("qemu-storage-daemon", &mut command).unwrap();
        let log = self.path("daemon.log");
        await_socket(&mut daemon, &socket, &log, LIMIT, &Stop::default()).unwrap();
        daemon
    }
}

#[test]
fn a_good_back_end_passes_the_check_after_qemu_was_killed_once() {
    let Some(setup) = setup("demo_peer") else {
        return;
    };
    let base = Base::Pattern(BYTES);
    let image = setup.path("disk.img");
    base.write_to(&image).unwrap();
    let mut daemon = setup.serve(2);
    let socket = setup.path("s");
    let disk = Disk {
        socket: &socket,
        queues: 2,
    };
    let plan = Plan::new(BYTES, 2, 42).unwrap();
    let stop = Stop::default();

    // QEMU dies when the guest is up and before it has written anything.
    let mut machine = check::boot(&setup.hardware, disk, &plan, setup.dir.path()).unwrap();
    let far = Instant::now() + LIMIT;
    loop {
        match machine.next_event(far, &stop).unwrap() {
            Event::Line(line) if line.contains("LINKSPAN queues=2") => break,
            Event::Line(_) => {}
            other => panic!(
                "{other:?} before the guest was up: {}",
                machine.console_tail()
            ),
        }
    }
    machine.kill().unwrap();
    drop(machine);

    let mut machine = check::boot(&setup.hardware, disk, &plan, setup.dir.path()).unwrap();
    let log = setup.path("daemon.log");
    let server = Server {
        process: &mut daemon,
        log: &log,
    };
    let report = check::collect(&mut machine, Some(server), LIMIT, &stop, |_, _| {}).unwrap();
    drop(daemon);
    let host = HostView {
        queues: 2,
        base: &base,
        image: &image,
        disk_bytes: BYTES,
    };
    let findings = check::judge(&report, &plan, host).unwrap();
    let wrong: Vec<_> = findings.iter().filter(|finding| !finding.ok).collect();
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", machine.console_tail());
    assert!(findings.len() >= 8);
}

#[test]
fn a_back_end_that_dies_ends_the_check_at_once_with_its_name() {
    let Some(setup) = setup("demo_peer_dies") else {
        return;
    };
    let base = Base::Pattern(BYTES);
    base.write_to(&setup.path("disk.img")).unwrap();
    let mut daemon = setup.serve(1);
    let socket = setup.path("s");
    let plan = Plan::new(BYTES, 1, 43).unwrap();
    let disk = Disk {
        socket: &socket,
        queues: 1,
    };
    let mut machine = check::boot(&setup.hardware, disk, &plan, setup.dir.path()).unwrap();
    daemon.kill().unwrap();
    let log = setup.path("daemon.log");
    let server = Server {
        process: &mut daemon,
        log: &log,
    };
    let stop = Stop::default();
    let error = check::collect(&mut machine, Some(server), LIMIT, &stop, |_, _| {}).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("qemu-storage-daemon ended early"),
        "{error}"
    );
}

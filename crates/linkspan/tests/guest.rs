//! A stock Linux guest on a vhost-user disk: ours, and one that we did not write,
//! which proves that the check itself is right.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use linkspan::demo::check::{self, HostView, Server};
use linkspan::demo::disk::{Base, Plan};
use linkspan::demo::initramfs::{self, GuestFile};
use linkspan::demo::kernel::Kernel;
use linkspan::demo::machine::{Accel, Devices, Disk, Event, Hardware, Machine, Mode};
use linkspan::demo::process::{Process, Stop, await_socket, find_program, supervised};
use linkspan::demo::report::{self, Report};
use rustix::process::{Pid, Signal, kill_process};

const BYTES: u64 = 8 << 20;
const LIMIT: Duration = Duration::from_secs(240);

/// Who serves the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BackEnd {
    Linkspan,
    QemuStorageDaemon,
}

impl BackEnd {
    fn program(self) -> Option<PathBuf> {
        match self {
            Self::Linkspan => Some(env!("CARGO_BIN_EXE_linkspan").into()),
            Self::QemuStorageDaemon => find_program(Path::new(self.name())),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Linkspan => "linkspan",
            Self::QemuStorageDaemon => "qemu-storage-daemon",
        }
    }
}

struct Setup {
    hardware: Hardware,
    back_end: BackEnd,
    program: PathBuf,
    dir: tempfile::TempDir,
    base: Base,
    packed: bool,
}

/// What a guest needs, or `None` after saying what is missing.
fn setup(test: &str, back_end: BackEnd) -> Option<Setup> {
    let need = || -> Result<Setup, String> {
        initramfs::find_busybox().map_err(|error| error.to_string())?;
        let kernel = Kernel::find(None).map_err(|error| error.to_string())?;
        let qemu = find_program(Path::new("qemu-system-x86_64")).ok_or("QEMU is not installed")?;
        let program = back_end
            .program()
            .ok_or(format!("{} is not installed", back_end.name()))?;
        let hardware = Hardware {
            qemu,
            accel: Accel::Tcg,
            memory_mib: 256,
            kernel,
        };
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let base = Base::Pattern(BYTES);
        base.write_to(&dir.path().join("disk.img"))
            .map_err(|error| error.to_string())?;
        Ok(Setup {
            hardware,
            back_end,
            program,
            dir,
            base,
            packed: false,
        })
    };
    match need() {
        Ok(setup) => Some(setup),
        Err(why) => {
            let why = why.lines().next().unwrap_or_default().to_owned();
            // Not by `eprintln`, which the test harness captures: the summary
            // of `cargo xtask test` counts this line.
            drop(writeln!(std::io::stderr().lock(), "SKIP {test}: {why}"));
            None
        }
    }
}

impl Setup {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn serve(&self, queues: u16) -> Process {
        self.serve_with(queues, &[])
    }

    /// The same with more options.
    fn serve_with(&self, queues: u16, options: &[&str]) -> Process {
        let log = self.path("back-end.log");
        let output = File::create(&log).unwrap();
        let (image, socket) = (self.path("disk.img"), self.path("s"));
        let mut command = supervised(&self.program);
        match self.back_end {
            BackEnd::Linkspan => command
                .args(["blk", "--socket-path"])
                .arg(&socket)
                .arg("--image")
                .arg(&image)
                .args(["--queues", &queues.to_string()]),
            BackEnd::QemuStorageDaemon => command
                .arg("--blockdev")
                .arg(format!("driver=file,node-name=f,filename={}", image.display()))
                .arg("--export")
                .arg(format!(
                    "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},num-queues={queues},writable=on",
                    socket.display()
                )),
        };
        command
            .args(options)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let mut server = Process::spawn(self.back_end.name(), &mut command).unwrap();
        await_socket(&mut server, &socket, &log, LIMIT, &Stop::default()).unwrap();
        server
    }

    fn boot(&self, plan: &Plan, queues: u16) -> Machine {
        let socket = self.path("s");
        let disk = Disk {
            socket: &socket,
            queues,
            packed: self.packed,
        };
        let devices = Devices {
            disk: Some(disk),
            nic: None,
            ..Devices::default()
        };
        check::boot(&self.hardware, devices, plan, self.dir.path()).unwrap()
    }

    /// Lets the guest finish its two boots and judges everything.
    fn passes(&self, mut machine: Machine, mut server: Process, plan: &Plan, queues: u16) {
        let log = self.path("back-end.log");
        let running = Server {
            process: &mut server,
            log: &log,
        };
        let stop = Stop::default();
        let report =
            check::collect(&mut machine, &mut [running], LIMIT, &stop, |_, _| Ok(())).unwrap();
        server.stop().unwrap();
        self.judge(&report, plan, queues, &machine);
    }

    /// Compares what the guest saw with the image.
    fn judge(&self, report: &Report, plan: &Plan, queues: u16, machine: &Machine) {
        let host = HostView {
            queues,
            base: &self.base,
            image: &self.path("disk.img"),
            disk_bytes: BYTES,
        };
        let findings = check::judge(report, plan, host).unwrap();
        let wrong: Vec<_> = findings.iter().filter(|finding| !finding.ok).collect();
        assert!(wrong.is_empty(), "{wrong:#?}\n{}", machine.console_tail());
        assert!(findings.len() >= 8);
    }
}

/// Boots, waits until the guest sees its disk, and kills QEMU.
fn kill_when_up(setup: &Setup, plan: &Plan, queues: u16) {
    let mut machine = setup.boot(plan, queues);
    let far = Instant::now() + LIMIT;
    let wanted = format!("LINKSPAN queues={queues}");
    loop {
        match machine.next_event(far, &Stop::default()).unwrap() {
            Event::Line(line) if line.contains(&wanted) => break,
            Event::Line(_) => {}
            other => panic!(
                "{other:?} before the guest was up: {}",
                machine.console_tail()
            ),
        }
    }
    machine.kill().unwrap();
}

/// Every byte both ways, over a reboot of the guest.
fn guest_passes(test: &str, queues: u16, packed: bool) {
    let Some(mut setup) = setup(test, BackEnd::Linkspan) else {
        return;
    };
    setup.packed = packed;
    let plan = Plan::new(BYTES, queues, 40 + u64::from(queues)).unwrap();
    let server = setup.serve(queues);
    let machine = setup.boot(&plan, queues);
    setup.passes(machine, server, &plan, queues);
}

#[test]
fn guest_with_1_queue_reads_and_writes_every_byte() {
    guest_passes("guest_with_1_queue", 1, false);
}

#[test]
fn guest_with_4_queues_reads_and_writes_every_byte() {
    guest_passes("guest_with_4_queues", 4, false);
}

#[test]
fn guest_with_1_packed_queue_reads_and_writes_every_byte() {
    guest_passes("guest_with_1_packed_queue", 1, true);
}

#[test]
fn guest_with_4_packed_queues_reads_and_writes_every_byte() {
    guest_passes("guest_with_4_packed_queues", 4, true);
}

/// Two queues, and QEMU goes away and comes back: the process keeps serving.
#[test]
fn guest_with_2_queues_comes_back_after_qemu_was_killed() {
    let Some(setup) = setup("guest_comes_back", BackEnd::Linkspan) else {
        return;
    };
    let plan = Plan::new(BYTES, 2, 50).unwrap();
    let server = setup.serve(2);
    kill_when_up(&setup, &plan, 2);
    let machine = setup.boot(&plan, 2);
    setup.passes(machine, server, &plan, 2);
}

/// The back end is killed at every step of the guest, under load, and another one
/// takes its place: QEMU reconnects, nothing is lost, and the guest does not notice.
fn guest_outlives_back_ends(test: &str, packed: bool) {
    let Some(mut setup) = setup(test, BackEnd::Linkspan) else {
        return;
    };
    setup.packed = packed;
    let plan = Plan::new(BYTES, 2, 51).unwrap();
    let mut server = setup.serve(2);
    let mut machine = setup.boot(&plan, 2);
    let mut kills = 0;
    let report = check::collect(&mut machine, &mut [], LIMIT, &Stop::default(), |key, _| {
        // Once for each thing that the guest reports, so with requests of every
        // kind under way. Not when it resets its machine: QEMU 7.2 was seen
        // to hang for ever when a device is lost just while it starts.
        if key == "end" {
            return Ok(());
        }
        server.kill().unwrap();
        server = setup.serve(2);
        kills += 1;
        Ok(())
    });
    let report = report.unwrap_or_else(|error| panic!("after {kills} kills: {error}"));
    assert!(kills >= 6, "the guest reported {kills} things");
    server.stop().unwrap();
    setup.judge(&report, &plan, 2, &machine);
}

#[test]
fn guest_with_2_queues_goes_on_when_the_back_end_is_killed_and_comes_back() {
    guest_outlives_back_ends("back_end_comes_back", false);
}

#[test]
fn guest_with_2_packed_queues_goes_on_when_the_back_end_is_killed_and_comes_back() {
    guest_outlives_back_ends("back_end_comes_back_packed", true);
}

/// What Linux discards becomes a hole in the image, and nothing beside it changes.
#[test]
fn guest_that_discards_gives_storage_back() {
    let Some(setup) = setup("guest_discards", BackEnd::Linkspan) else {
        return;
    };
    let image = setup.path("disk.img");
    File::open(&image).unwrap().sync_all().unwrap();
    let held = || std::fs::metadata(&image).unwrap().blocks() * 512;
    let (before, mut want) = (held(), std::fs::read(&image).unwrap());
    let mut server = setup.serve(1);
    let files = [GuestFile {
        path: "check/discard".to_owned(),
        data: b"1048576 5242880\n".to_vec(),
    }];
    let archive = setup.path("initramfs.cpio");
    let built = initramfs::build(&setup.hardware.kernel, &files).unwrap();
    initramfs::store(&built, &archive).unwrap();
    let disk = Disk {
        socket: &setup.path("s"),
        queues: 1,
        packed: false,
    };
    let console = setup.path("console.log");
    let hardware = &setup.hardware;
    let mode = Mode::Discard;
    let devices = Devices {
        disk: Some(disk),
        nic: None,
        ..Devices::default()
    };
    let mut machine = Machine::start(hardware, devices, mode, &archive, &console).unwrap();
    let deadline = Instant::now() + LIMIT;
    let mut reports = HashMap::new();
    loop {
        match machine.next_event(deadline, &Stop::default()).unwrap() {
            Event::Line(line) => {
                let report = report::parse(&line);
                reports.extend(report.map(|(key, value)| (key.to_owned(), value.to_owned())));
            }
            Event::Exited(status) => break assert!(status.success(), "{status}"),
            Event::Late => panic!("the guest does not end: {}", machine.console_tail()),
        }
    }
    server.stop().unwrap();
    let says = |key: &str| reports.get(key).map_or("nothing", String::as_str);
    assert_eq!(says("discarded"), "yes", "{}", machine.console_tail());
    assert_eq!(says("discard_max_bytes"), "2147483648");
    assert_eq!(says("discard_granularity"), "4096");
    assert_eq!(says("write_zeroes_max_bytes"), "134217728");
    assert_eq!(
        (says("logical_block_size"), says("physical_block_size")),
        ("512", "4096")
    );
    want[1 << 20..6 << 20].fill(0);
    assert!(std::fs::read(&image).unwrap() == want);
    assert_eq!(held(), before - (5 << 20));
}

/// Tells the guest a line of shell, and gives what that printed; it has to work.
#[track_caller]
fn told(machine: &mut Machine, line: &str) -> String {
    machine.tell(line).unwrap();
    let mut said = Vec::new();
    loop {
        match machine.next_event(Instant::now() + LIMIT, &Stop::default()) {
            Ok(Event::Line(text)) => match report::parse(&text) {
                Some(("status", status)) => {
                    assert_eq!(status, "0", "{line}\n{said:#?}");
                    return said.join("\n");
                }
                Some(_) => {}
                None => said.push(text),
            },
            end => panic!("{line}: {end:?}\n{}", machine.console_tail()),
        }
    }
}

/// The disk is what `linkspan blk` was told, for Linux as well; it grows while it is in use,
/// and what is written behind its old end is in the image.
#[test]
fn a_guest_sees_serial_and_block_size_and_its_disk_grow() {
    let Some(setup) = setup("guest_sees_its_disk_grow", BackEnd::Linkspan) else {
        return;
    };
    let options = ["--serial", "grows-7", "--block-size", "4096"];
    let mut server = setup.serve_with(1, &options);
    let archive = setup.path("initramfs.cpio");
    let built = initramfs::build(&setup.hardware.kernel, &[]).unwrap();
    initramfs::store(&built, &archive).unwrap();
    let devices = Devices {
        disk: Some(Disk {
            socket: &setup.path("s"),
            queues: 1,
            packed: false,
        }),
        ..Devices::default()
    };
    let console = setup.path("console.log");
    let mode = Mode::Remote;
    let mut machine = Machine::start(&setup.hardware, devices, mode, &archive, &console).unwrap();
    let far = Instant::now() + LIMIT;
    while !matches!(machine.next_event(far, &Stop::default()).unwrap(),
        Event::Line(line) if line.contains("remote=ready"))
    {}
    let there = told(
        &mut machine,
        "await_disk && echo $(cat /sys/block/vda/serial)",
    );
    assert_eq!(there, "grows-7");
    let block = told(
        &mut machine,
        "cat /sys/block/vda/queue/logical_block_size /sys/block/vda/size",
    );
    assert_eq!(block, format!("4096\n{}", BYTES / 512));
    let image = setup.path("disk.img");
    let file = File::options().write(true).open(&image).unwrap();
    file.set_len(2 * BYTES).unwrap();
    let id = server.id().try_into().unwrap();
    kill_process(Pid::from_raw(id).unwrap(), Signal::HUP).unwrap();
    let sectors = 2 * BYTES / 512;
    told(
        &mut machine,
        &format!("until [ $(cat /sys/block/vda/size) = {sectors} ]; do usleep 10000; done"),
    );
    let last = 2 * BYTES / 4096 - 1;
    told(
        &mut machine,
        &format!("echo behind the old end | dd of=/dev/vda bs=4096 seek={last} conv=sync,fsync"),
    );
    let bytes = std::fs::read(&image).unwrap();
    let at = usize::try_from(last * 4096).unwrap();
    assert!(bytes[at..].starts_with(b"behind the old end\n"));
    machine.kill().unwrap();
    server.stop().unwrap();
}

/// The check passes on a back end that we did not write.
#[test]
fn peer_back_end_passes_the_check_after_qemu_was_killed() {
    let Some(setup) = setup("peer_back_end", BackEnd::QemuStorageDaemon) else {
        return;
    };
    let plan = Plan::new(BYTES, 2, 42).unwrap();
    let server = setup.serve(2);
    kill_when_up(&setup, &plan, 2);
    let machine = setup.boot(&plan, 2);
    setup.passes(machine, server, &plan, 2);
}

#[test]
fn back_end_that_dies_ends_the_check_at_once_with_its_name() {
    let Some(setup) = setup("back_end_dies", BackEnd::Linkspan) else {
        return;
    };
    let plan = Plan::new(BYTES, 1, 43).unwrap();
    let mut server = setup.serve(1);
    let mut machine = setup.boot(&plan, 1);
    server.kill().unwrap();
    let log = setup.path("back-end.log");
    let running = Server {
        process: &mut server,
        log: &log,
    };
    let stop = Stop::default();
    let error =
        check::collect(&mut machine, &mut [running], LIMIT, &stop, |_, _| Ok(())).unwrap_err();
    assert!(
        error.to_string().starts_with("linkspan ended early"),
        "{error}"
    );
}

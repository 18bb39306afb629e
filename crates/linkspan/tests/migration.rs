//! A Linux guest migrates between two QEMUs, as docs/migration.md has it: on either side a
//! `linkspan blk` with the same image and a `linkspan net`. Meanwhile it writes to its disk
//! and reads back, and a TCP connection carries numbered lines both ways. Five times in one
//! life of the guest, there and back, and as often as wanted by `cargo xtask long migration`.
//! The memory is copied slowly, so that the guest writes to what was copied. By a QEMU of 9.0 or later:
//! before, one that emulates loses writes of the guest's processors while it migrates (its
//! commit 03bfc2188f).

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use linkspan::demo::initramfs;
use linkspan::demo::kernel::Kernel;
use linkspan::demo::machine::{Accel, Devices, Disk, Hardware, Machine, Mode, Nic, Place};
use linkspan::demo::process::{Process, find_program, tail};
use linkspan_testkit::Namespace;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

mod machines;

use machines::{LIMIT, Monitor, Told, eventually, skip};

/// How often a guest migrates, if that is not five times.
const MIGRATIONS: &str = "LINKSPAN_MIGRATIONS";

const QUEUES: u16 = 2;

/// Bytes of the disk. The guest writes places of 64 KiB in turn.
const DISK: u64 = 8 << 20;

/// What the guest does until it is told to stop: blocks that say which they are, each written
/// past the page cache, read back, and compared, as one from before is.
const DISK_LOAD: &str = "\
(n=0; place() { dd if=/dev/vda iflag=direct bs=64k skip=$(($1 % 128)) count=1 status=none; }; \
block() { yes \"block $1 of the guest\" | head -c 65536; }; \
until [ -e /tmp/stop ]; do \
block $n | dd of=/dev/vda oflag=direct iflag=fullblock bs=64k seek=$((n % 128)) conv=notrunc status=none || echo \"write $n\"; \
for back in 0 1 50; do [ $n -lt $back ] && continue; m=$((n - back)); \
[ \"$(place $m | sha256sum)\" = \"$(block $m | sha256sum)\" ] || echo \"block $m is wrong after $n\"; done; \
n=$((n + 1)); echo $n >/tmp/blocks.new; mv /tmp/blocks.new /tmp/blocks; \
done) >/tmp/disk.log 2>&1 & disk=$!";

/// Numbered lines to this machine, which sends each back.
const NET_LOAD: &str = "\
(n=0; until [ -e /tmp/stop ]; do echo \"line $n\"; n=$((n + 1)); usleep 5000; done; echo end) | \
nc 10.9.0.9 7000 >/tmp/lines 2>/tmp/net.log & net=$!";

struct Bench {
    hardware: Hardware,
    archive: PathBuf,
    dir: tempfile::TempDir,
    here: Namespace,
    packed: bool,
}

/// `None` after saying what is missing.
fn bench(test: &str, packed: bool) -> Option<Bench> {
    let need = || -> Result<_, String> {
        if std::env::var_os("LINKSPAN_TEST_QUICK").is_some() {
            return Err("left out by --quick".into());
        }
        let kernel = Kernel::find(None).map_err(|error| error.to_string())?;
        let named = std::env::var_os("LINKSPAN_LATER_QEMU").map(PathBuf::from);
        let qemu = named.and_then(|path| find_program(&path));
        let qemu = qemu.ok_or("no later QEMU in LINKSPAN_LATER_QEMU")?;
        let built = initramfs::build(&kernel, &[]).map_err(|error| error.to_string())?;
        let hardware = Hardware {
            qemu,
            accel: Accel::Tcg,
            memory_mib: 128,
            kernel,
        };
        Ok((hardware, built))
    };
    let (hardware, built) = match need() {
        Ok(found) => found,
        Err(why) => {
            skip(test, why.lines().next().unwrap_or_default());
            return None;
        }
    };
    let here = Namespace::new(test)?;
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("initramfs.cpio");
    initramfs::store(&built, &archive).unwrap();
    let disk = File::create(dir.path().join("disk.img")).unwrap();
    disk.set_len(DISK).unwrap();
    Some(Bench {
        hardware,
        archive,
        dir,
        here,
        packed,
    })
}

impl Bench {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program of ours that serves at this socket.
    fn serve(&self, args: &[&str], socket: &Path) -> Process {
        let log = socket.with_extension("log");
        let output = File::create(&log).unwrap();
        let mut command = self.here.command(env!("CARGO_BIN_EXE_linkspan"));
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let process = Process::spawn("linkspan", &mut command).unwrap();
        // Not by the kernel's list of sockets, which is one of each namespace.
        let listens = || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("listening"));
        assert!(eventually(listens), "{}", tail(&log));
        process
    }
}

/// One side: its back ends run all the time, its QEMU while the guest is there.
struct Side {
    disk: PathBuf,
    net: PathBuf,
    programs: [Process; 2],
}

impl Side {
    fn new(bench: &Bench, name: &str) -> Self {
        let [disk, net] = ["disk", "net"].map(|what| bench.path(&format!("{name}-{what}.sock")));
        let image = bench.path("disk.img");
        let [image, disk_socket] = [&image, &disk].map(|path| path.to_str().unwrap());
        let port = format!("vhost-user:{},queues={QUEUES}", net.display());
        let tap = format!("tap:{name}");
        let blk = [
            "blk",
            "--socket-path",
            disk_socket,
            "--image",
            image,
            "--migratable",
            "--queues",
            "2",
        ];
        let programs = [
            bench.serve(&blk, &disk),
            bench.serve(&["net", "--port", &port, "--port", &tap], &net),
        ];
        bench.here.run(&format!("ip link set {name} master br0 up"));
        Self {
            disk,
            net,
            programs,
        }
    }

    /// A QEMU on these back ends: with a guest that boots, or one that waits for a guest.
    fn machine(
        &self,
        bench: &Bench,
        name: &'static str,
        incoming: Option<&str>,
    ) -> (Told, Monitor) {
        let devices = Devices {
            disk: Some(Disk {
                socket: &self.disk,
                queues: QUEUES,
                packed: bench.packed,
            }),
            nic: Some(Nic {
                socket: &self.net,
                pairs: QUEUES,
                packed: bench.packed,
                mac: [0x52, 0x54, 0, 0, 0, 1],
                place: Place::None,
            }),
            more: &incoming.map_or(vec![], |from| vec!["-incoming", from]),
            ..Devices::default()
        };
        let console = bench.path(&format!("{name}.console"));
        let (hardware, archive) = (&bench.hardware, &bench.archive);
        let machine = Machine::start(hardware, devices, Mode::Remote, archive, &console).unwrap();
        let socket = linkspan::demo::machine::monitor(&console);
        assert!(eventually(|| socket.exists()), "{}", machine.console_tail());
        (Told { name, machine }, Monitor::connect(&console))
    }
}

/// Who answers the guest's lines: how many lines there were.
fn answer(listener: &TcpListener) -> u64 {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut back = stream.try_clone().unwrap();
    let mut count = 0;
    for line in BufReader::new(stream).lines() {
        let line = line.expect("the connection goes on");
        writeln!(back, "{line}").unwrap();
        if line == "end" {
            back.shutdown(Shutdown::Write).unwrap();
            return count;
        }
        assert_eq!(line, format!("line {count}"));
        count += 1;
    }
    panic!("the connection ended after {count} lines");
}

impl Bench {
    /// Starts who answers.
    fn answerer(&self) -> JoinHandle<u64> {
        let (ready, listening): (_, Receiver<()>) = channel();
        let answerer = self.here.spawn(move || {
            let listener = TcpListener::bind(("10.9.0.9", 7000)).unwrap();
            ready.send(()).unwrap();
            answer(&listener)
        });
        listening.recv().unwrap();
        answerer
    }
}

/// Blocks and lines so far.
fn progress(guest: &mut Told) -> [u64; 2] {
    let said = guest.run("cat /tmp/blocks; wc -l </tmp/lines");
    let mut numbers = said.lines().map(|line| line.trim().parse().unwrap());
    [numbers.next().unwrap(), numbers.next().unwrap()]
}

/// Waits until the guest has written and heard more than then.
fn await_progress(guest: &mut Told, then: [u64; 2]) {
    let [blocks, lines] = then;
    guest.run(&format!(
        "until [ $(cat /tmp/blocks) -gt {blocks} ] && [ $(wc -l </tmp/lines) -gt {lines} ] || \
         [ -s /tmp/disk.log ]; do usleep 50000; done; cat /tmp/disk.log /tmp/net.log >&2"
    ));
}

/// Moves the guest from one monitor's machine to the other's, which listens at `channel`.
#[track_caller]
fn migrate(source: &mut Monitor, destination: &mut Monitor, channel: &str, sides: &str) {
    // Slow enough that the guest goes on for tens of seconds, and dirties what was copied.
    let limits = json!({"max-bandwidth": 8 << 20, "downtime-limit": 300});
    source.ask(&json!({"execute": "migrate-set-parameters", "arguments": limits}));
    source.ask(&json!({"execute": "migrate", "arguments": {"uri": channel}}));
    let mut told = Value::Null;
    let ended = eventually(|| {
        told = source.ask(&json!({"execute": "query-migrate"}));
        ["completed", "failed", "cancelled"]
            .map(Value::from)
            .contains(&told["status"])
    });
    assert!(ended && told["status"] == "completed", "{sides}: {told}");
    let mut status = Value::Null;
    let runs = eventually(|| {
        status = destination.ask(&json!({"execute": "query-status"}));
        status["running"] == true
    });
    assert!(runs, "{sides}: {status}");
    let syncs = &told["ram"]["dirty-sync-count"];
    println!(
        "{sides}: {} ms, of which {} ms without the guest; the log was read {syncs} times",
        told["total-time"], told["downtime"]
    );
}

fn guest_migrates(test: &str, packed: bool) {
    let Some(bench) = bench(test, packed) else {
        return;
    };
    bench.here.run("ip link add br0 type bridge");
    bench.here.run("ip addr add 10.9.0.9/24 dev br0");
    bench.here.run("ip link set br0 up");
    let mut sides = ["side0", "side1"].map(|name| Side::new(&bench, name));
    let (mut guest, mut monitor) = sides[0].machine(&bench, "guest0", None);
    guest.report("remote");
    guest.run("ip link set lo up; ip addr add 10.9.0.1/24 dev eth0 && ip link set eth0 up");
    guest.run("until ping -c 1 -W 1 10.9.0.9 >/dev/null; do :; done");
    let answerer = bench.answerer();
    guest.run("echo 0 >/tmp/blocks; touch /tmp/lines");
    guest.run(DISK_LOAD);
    guest.run(NET_LOAD);
    await_progress(&mut guest, [60, 0]);
    let wanted = std::env::var(MIGRATIONS);
    let migrations: usize = wanted.map_or(5, |count| count.parse().unwrap());
    for number in 1..=migrations {
        let name: &str = format!("guest{number}").leak();
        let before = progress(&mut guest);
        let channel = format!(
            "unix:{}",
            bench.path(&format!("{name}.migration")).display()
        );
        let (arrived, mut there) = sides[number % 2].machine(&bench, name, Some(&channel));
        migrate(&mut monitor, &mut there, &channel, name);
        // Its QEMU has nothing to say any more, and its back ends wait for the next one.
        let mut left = std::mem::replace(&mut guest, arrived);
        left.machine.kill().unwrap();
        monitor = there;
        await_progress(&mut guest, before);
        let after = progress(&mut guest);
        println!("{name}: blocks and lines {before:?}, then {after:?}");
        await_progress(&mut guest, after);
    }
    guest.run("touch /tmp/stop; wait $disk $net");
    assert_eq!(guest.run("cat /tmp/disk.log /tmp/net.log"), "");
    let lines = answerer.join().unwrap();
    let said = guest.run(
        "(n=0; while [ $n -lt $(($(wc -l </tmp/lines) - 1)) ]; do echo line $n; n=$((n + 1)); \
         done; echo end) | cmp - /tmp/lines && wc -l </tmp/lines",
    );
    assert_eq!(said.trim().parse(), Ok(lines + 1), "all lines came back");
    // Past its page cache the guest has the disk that is in the image.
    let seen = guest.run("dd if=/dev/vda iflag=direct bs=1M status=none | sha256sum");
    let [blocks, _] = progress(&mut guest);
    drop((guest, monitor));
    for program in sides.iter_mut().flat_map(|side| &mut side.programs) {
        program.stop().unwrap();
    }
    let image = std::fs::read(bench.path("disk.img")).unwrap();
    let digest: String = Sha256::digest(&image)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(seen.split(' ').next(), Some(digest.as_str()));
    assert_eq!(image, expected(blocks));
}

/// The disk after so many blocks.
fn expected(blocks: u64) -> Vec<u8> {
    let mut disk = vec![0; usize::try_from(DISK).unwrap()];
    for number in blocks.saturating_sub(128)..blocks {
        let line = format!("block {number} of the guest\n");
        let at = usize::try_from(number % 128).unwrap() << 16;
        let text = line.bytes().cycle();
        disk[at..at + (1 << 16)]
            .iter_mut()
            .zip(text)
            .for_each(|(byte, text)| *byte = text);
    }
    disk
}

#[test]
fn a_guest_with_split_rings_migrates_again_and_again() {
    guest_migrates("migrate-split", false);
}

#[test]
fn a_guest_with_packed_rings_migrates_again_and_again() {
    guest_migrates("migrate-packed", true);
}

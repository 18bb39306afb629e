//! Linux guests in QEMU on `linkspan net`, as docs/net.md has it: two of them, and
//! one with the kernel of this machine behind a tap interface. The network code at
//! both ends is not ours.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use linkspan::demo::initramfs::{self, GuestFile};
use linkspan::demo::kernel::Kernel;
use linkspan::demo::machine::{Accel, Devices, Hardware, Machine, Mode, Nic, Place};
use linkspan::demo::process::{Process, find_program, tail};
use linkspan_devices::net::Mac;
use linkspan_testkit::Namespace;
use linkspan_testkit::net::{Card, CardOptions, frame, station};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

mod machines;

use machines::{LIMIT, Monitor, Told, answered, eventually, skip, with_libraries};

/// Bytes that a flow carries.
const FLOW_BYTES: usize = 1 << 20;

/// How often a bulk transfer carries as much: 64 MiB.
const BULK_PARTS: usize = 64;

/// Set for the short form: each kind of thing once.
fn quick() -> bool {
    std::env::var_os("LINKSPAN_TEST_QUICK").is_some()
}

/// What the guests need beside busybox.
const ETHTOOL: &str = "ethtool";

/// What all guests of a test share.
struct Bench {
    hardware: Hardware,
    archive: PathBuf,
    dir: tempfile::TempDir,
    payload: Vec<u8>,
}

/// `None` after saying what is missing.
fn bench(test: &str) -> Option<Bench> {
    let need = || -> Result<Bench, String> {
        let kernel = Kernel::find(None).map_err(|error| error.to_string())?;
        let qemu = find_program(Path::new("qemu-system-x86_64")).ok_or("QEMU is not installed")?;
        let ethtool = find_program(Path::new(ETHTOOL)).ok_or("ethtool is not installed")?;
        let payload = noise(FLOW_BYTES);
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let archive = dir.path().join("initramfs.cpio");
        // The same for all tests, and slow to make.
        static BUILT: OnceLock<Result<Vec<u8>, String>> = OnceLock::new();
        let built = BUILT.get_or_init(|| {
            let mut files = with_libraries(&ethtool);
            files.push(GuestFile {
                path: "check/payload".into(),
                data: payload.clone(),
            });
            initramfs::build(&kernel, &files).map_err(|error| error.to_string())
        });
        initramfs::store(built.as_ref().map_err(Clone::clone)?, &archive)
            .map_err(|error| error.to_string())?;
        let hardware = Hardware {
            qemu,
            accel: Accel::Tcg,
            memory_mib: 192,
            kernel,
        };
        Ok(Bench {
            hardware,
            archive,
            dir,
            payload,
        })
    };
    match need() {
        Ok(bench) => Some(bench),
        Err(why) => {
            skip(test, why.lines().next().unwrap_or_default());
            None
        }
    }
}

/// Bytes without a pattern.
fn noise(count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count);
    let mut block = Sha256::digest(b"noise");
    while bytes.len() < count {
        bytes.extend_from_slice(&block);
        block = Sha256::digest(block);
    }
    bytes.truncate(count);
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `linkspan net` with its sockets.
struct Switch {
    process: Process,
    said: std::io::Lines<BufReader<ChildStdout>>,
    ports: usize,
}

/// What was counted of a port.
#[derive(Debug)]
struct Counts(Value);

impl Counts {
    fn number(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap()
    }

    fn dropped(&self, why: &str) -> u64 {
        self.0["dropped"][why].as_u64().unwrap()
    }

    /// Frames of a queue pair, from the guest and to it.
    fn pair(&self, pair: usize) -> [u64; 2] {
        let pair = &self.0["pairs"][pair];
        ["frames_in", "frames_out"].map(|way| pair[way].as_u64().unwrap())
    }

    /// Whether the first two pairs carried frames both ways since then.
    fn both_pairs_since(&self, then: &Self) -> bool {
        (0..2).all(|pair| {
            let (now, then) = (self.pair(pair), then.pair(pair));
            now[0] > then[0] && now[1] > then[1]
        })
    }
}

impl Switch {
    fn start(bench: &Bench, sockets: &[&Path], others: &[&str], here: Option<&Namespace>) -> Self {
        let program = env!("CARGO_BIN_EXE_linkspan");
        let mut command = match here {
            Some(namespace) => namespace.command(program),
            None => linkspan_testkit::program(program),
        };
        command.args(["net", "--json"]);
        for socket in sockets {
            let port = format!("vhost-user:{},queues=2", socket.display());
            command.args(["--port", &port]);
        }
        for port in others {
            command.args(["--port", port]);
        }
        let log = bench.dir.path().join("switch.log");
        let errors = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors);
        let mut process = Process::spawn("linkspan net", &mut command).unwrap();
        let stdout = process.take_stdout().unwrap();
        let mut said = BufReader::new(stdout).lines();
        // Not by the kernel's list of sockets, which is one of each namespace.
        let mut listening = 0;
        while listening < sockets.len() {
            let line = said
                .next()
                .unwrap_or_else(|| panic!("{}", tail(&log)))
                .unwrap();
            listening += usize::from(line.contains("\"listening\""));
        }
        Self {
            process,
            said,
            ports: sockets.len() + others.len(),
        }
    }

    /// What it has counted until now, by port.
    fn counts(&mut self) -> Vec<Counts> {
        let id = Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        kill_process(id, Signal::HUP).unwrap();
        let mut counts = Vec::new();
        while counts.len() < self.ports {
            let line = self.said.next().expect("it goes on").unwrap();
            let line: Value = serde_json::from_str(&line).unwrap();
            if line["event"] == "counts" {
                counts.push(Counts(line));
            }
        }
        counts
    }
}

/// The driver has let go of the card, and QEMU as well.
fn card_is_gone(said: &Value) -> bool {
    said["event"] == "DEVICE_DELETED" && said["data"]["device"] == "card"
}

/// A guest that does what it is told.
struct Guest {
    told: Told,
    console: PathBuf,
    /// The last part of its addresses.
    number: u8,
    packed: bool,
}

impl Deref for Guest {
    type Target = Told;

    fn deref(&self) -> &Told {
        &self.told
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Told {
        &mut self.told
    }
}

impl Guest {
    /// Its address ends in `number`.
    fn boot(bench: &Bench, name: &'static str, socket: &Path, number: u8, packed: bool) -> Self {
        let nic = Nic {
            socket,
            pairs: 2,
            packed,
            mac: [0x52, 0x54, 0, 0, 0, number],
            place: Place::None,
        };
        let devices = Devices {
            disk: None,
            nic: Some(nic),
            ..Devices::default()
        };
        let console = bench.dir.path().join(format!("{name}.log"));
        let machine = Machine::start(
            &bench.hardware,
            devices,
            Mode::Remote,
            &bench.archive,
            &console,
        );
        let machine = machine.unwrap();
        Self {
            told: Told { name, machine },
            console,
            number,
            packed,
        }
    }

    /// Waits until it has booted, and has it answer on its network: 10.9.0.NUMBER.
    #[track_caller]
    fn settle(&mut self, number: u8) {
        self.report("remote");
        self.join(number);
        // Hashes what comes, and gives the hash back.
        self.run("nc -ll -p 7000 -e sha256sum & until netstat -ltn | grep -q :7000; do usleep 10000; done");
    }

    #[track_caller]
    fn join(&mut self, number: u8) {
        self.run(&format!(
            "ip link set lo up; ip addr add 10.9.0.{number}/24 dev eth0 && ip link set eth0 up"
        ));
        assert_eq!(self.pairs(), [2, 2], "at most, and now");
    }

    /// Sends flows from both of its processors at once, two from each: busybox's nc keeps
    /// no more than three callers waiting. What arrives is what was sent.
    #[track_caller]
    fn send_flows(&mut self, to: u8, bench: &Bench) {
        let said = self.run(&format!(
            "for cpu in 0 1; do (for flow in 0 1; do taskset -c $cpu nc 10.9.0.{to} 7000 \
             </check/payload; done) >/tmp/hash.$cpu 2>&1 & flows=\"$flows $!\"; done; \
             wait $flows; flows=; cat /tmp/hash.*"
        ));
        let hashes: Vec<_> = said
            .lines()
            .map(|line| line.split(' ').next().unwrap())
            .collect();
        let want = sha256(&bench.payload);
        assert_eq!(hashes, [want.as_str(); 4], "{}: {said}", self.name);
    }

    /// Sends so much in one flow that rings and windows fill many times over.
    #[track_caller]
    fn send_bulk(&mut self, to: u8, bench: &Bench) {
        let said = self.run(&format!(
            "for part in $(seq {BULK_PARTS}); do cat /check/payload; done | nc 10.9.0.{to} 7000"
        ));
        let want = sha256(&bench.payload.repeat(BULK_PARTS));
        assert_eq!(said.split(' ').next(), Some(want.as_str()));
    }

    /// Waits until a ping is answered.
    #[track_caller]
    fn ping_until_answered(&mut self, to: u8) {
        self.run(&format!(
            "until ping -c 1 -W 1 10.9.0.{to} >/dev/null; do :; done"
        ));
    }
}

/// Flows go until both pairs of a guest at this port have carried some both ways: which
/// pair a flow is put on goes by its ports, which are different each time.
#[track_caller]
fn until_both_pairs(switch: &mut Switch, port: usize, mut flows: impl FnMut()) {
    let before = switch.counts().swap_remove(port);
    let mut now = None;
    for _ in 0..8 {
        flows();
        let counts = switch.counts().swap_remove(port);
        if counts.both_pairs_since(&before) {
            return;
        }
        now = Some(counts);
    }
    panic!("not both pairs: {before:?}, then {now:?}");
}

/// The number of queue pairs changes while flows run both ways, and none is hurt.
#[track_caller]
fn pairs_change_under_traffic(switch: &mut Switch, guest: &mut Guest, other: &mut Guest) {
    let [own, others]: [u8; 2] = if guest.name == "a" { [1, 2] } else { [2, 1] };
    for (sender, to) in [(&mut *guest, others), (&mut *other, own)] {
        let from = sender.name;
        sender.run(&format!(
            "rm -f /tmp/stop; sum=$(sha256sum </check/payload); for flow in 0 1; do (n=0; \
             until [ -e /tmp/stop ]; do \
             [ \"$(taskset -c $flow nc 10.9.0.{to} 7000 </check/payload)\" = \"$sum\" ] || \
             {{ echo wrong; break; }}; n=$((n + 1)); done; echo {from} $n) >/tmp/flow.$flow 2>&1 & done"
        ));
    }
    let port = usize::from(own - 1);
    for pairs in [1, 2, 1, 2] {
        guest.run(&format!("ethtool -L eth0 combined {pairs}"));
        assert_eq!(guest.pairs(), [2, pairs]);
        // Frames that were on their way may still come; then each pair rests or moves.
        let mut then = switch.counts().swap_remove(port);
        let right = eventually(|| {
            let now = switch.counts().swap_remove(port);
            let [now_in, now_out] = now.pair(0);
            let [then_in, then_out] = then.pair(0);
            let moved = now_in > then_in + 20 && now_out > then_out + 20;
            let right = moved
                && if pairs == 1 {
                    now.pair(1) == then.pair(1)
                } else {
                    now.both_pairs_since(&then)
                };
            if moved {
                then = now;
            }
            right
        });
        assert!(right, "{pairs} pairs: {then:?}");
    }
    for guest in [guest, other] {
        let said = guest.run("touch /tmp/stop; until [ $(cat /tmp/flow.* | wc -l) -ge 2 ]; do usleep 50000; done; cat /tmp/flow.*");
        let rounds: Vec<_> = said.lines().collect();
        assert!(rounds.len() == 2 && !said.contains("wrong"), "{said}");
        for line in rounds {
            let count = line.split(' ').nth(1).and_then(|count| count.parse().ok());
            assert!(count.is_some_and(|count: u32| count > 0), "{said}");
        }
    }
}

/// A guest's driver lets go of the card: the device is reset.
#[track_caller]
fn take_card(guest: &mut Guest) {
    guest.run("basename $(readlink -f /sys/class/net/eth0/device) >/tmp/card");
    guest.run("cat /tmp/card >/sys/bus/virtio/drivers/virtio_net/unbind");
}

/// It takes the card again.
#[track_caller]
fn give_card(guest: &mut Guest, number: u8) {
    guest.run("cat /tmp/card >/sys/bus/virtio/drivers/virtio_net/bind");
    guest.join(number);
}

#[track_caller]
fn driver_leaves_and_returns(guest: &mut Guest, number: u8, other: &mut Guest) {
    take_card(guest);
    let (status, said) = other.try_run(&format!("ping -c 1 -W 1 10.9.0.{number}"));
    assert_eq!(status, 1, "{said}");
    give_card(guest, number);
    other.ping_until_answered(number);
}

#[track_caller]
fn unplug(monitor: &mut Monitor, guest: &mut Guest) {
    let unplug = json!({"execute": "device_del", "arguments": {"id": "card"}});
    monitor.command(&unplug, card_is_gone);
    guest.run("! ip link show eth0");
}

/// Puts the card in with these options more.
#[track_caller]
fn plug(monitor: &mut Monitor, guest: &mut Guest, more: &Value) {
    let number = guest.number;
    let mut card = json!({
        "driver": "virtio-net-pci", "id": "card", "netdev": "network", "mq": true, "vectors": 0,
        "packed": guest.packed, "romfile": "", "mac": format!("52:54:00:00:00:{number:02x}"),
    });
    let options = card.as_object_mut().unwrap();
    options.extend(more.as_object().unwrap().clone());
    let plug = json!({"execute": "device_add", "arguments": card});
    monitor.command(&plug, answered);
    guest.run("until ip link show eth0; do usleep 50000; done 2>/dev/null");
    guest.join(number);
}

/// The card itself is taken out of a running machine, and put in again.
#[track_caller]
fn card_is_unplugged_and_returns(switch: &mut Switch, guest: &mut Guest, other: &mut Guest) {
    let number = guest.number;
    let mut monitor = Monitor::connect(&guest.console);
    unplug(&mut monitor, guest);
    let (status, said) = other.try_run(&format!("ping -c 1 -W 1 10.9.0.{number}"));
    assert_eq!(status, 1, "{said}");
    let before = switch.counts().swap_remove(usize::from(number - 1));
    plug(&mut monitor, guest, &json!({}));
    other.ping_until_answered(number);
    let after = switch.counts().swap_remove(usize::from(number - 1));
    assert!(after.number("frames_in") > before.number("frames_in"));
}

fn two_guests(test: &str, packed: [bool; 2]) {
    let Some(bench) = bench(test) else { return };
    let [first, second] = ["a", "b"].map(|name| bench.dir.path().join(name));
    let sockets: [&Path; 2] = [&first, &second];
    let start = Instant::now();
    let said = |what: &str| println!("{test}: {what} after {:?}", start.elapsed());
    // Who answers guests that have nobody else.
    let others = ["responder,address=10.9.0.254/24"];
    let mut switch = Switch::start(&bench, &sockets, &others, None);
    let mut a = Guest::boot(&bench, "a", &first, 1, packed[0]);
    let mut b = Guest::boot(&bench, "b", &second, 2, packed[1]);
    a.settle(1);
    b.settle(2);
    said("booted");
    a.run("ping -c 3 -i 0.1 -W 20 10.9.0.2");
    // In one frame, and in several.
    b.run("ping -c 2 -i 0.1 -W 20 -s 1400 10.9.0.1");
    b.run("ping -c 2 -i 0.1 -W 20 -s 8000 10.9.0.1");
    said("pinged");
    until_both_pairs(&mut switch, 0, || a.send_flows(2, &bench));
    until_both_pairs(&mut switch, 1, || b.send_flows(1, &bench));
    said("flows");
    if !quick() {
        a.send_bulk(2, &bench);
        said("bulk");
    }
    pairs_change_under_traffic(&mut switch, &mut a, &mut b);
    said("a's pairs changed");
    if !quick() {
        pairs_change_under_traffic(&mut switch, &mut b, &mut a);
        said("b's pairs changed");
    }
    driver_leaves_and_returns(&mut a, 1, &mut b);
    driver_leaves_and_returns(&mut b, 2, &mut a);
    said("drivers came back");
    card_is_unplugged_and_returns(&mut switch, &mut a, &mut b);
    card_is_unplugged_and_returns(&mut switch, &mut b, &mut a);
    until_both_pairs(&mut switch, 0, || a.send_flows(2, &bench));
    said("cards were unplugged and came back");

    // One is unplugged while the other sends, which goes on with whoever is left.
    let down = |switch: &mut Switch| switch.counts()[1].dropped("down");
    let before = down(&mut switch);
    b.machine.kill().unwrap();
    let for_nobody = eventually(|| {
        let (status, _) = a.try_run("ping -c 1 -W 1 10.9.0.2");
        status == 1 && down(&mut switch) > before
    });
    assert!(for_nobody, "{:?}", switch.counts());
    let mut b = Guest::boot(&bench, "b", &second, 2, packed[1]);
    b.settle(2);
    a.ping_until_answered(2);
    until_both_pairs(&mut switch, 1, || a.send_flows(2, &bench));
    said("b returned");

    // The switch is killed, and another one takes its place under both guests. QEMU
    // knows where a split ring stands, but not a packed one, whose driver begins anew.
    switch.process.kill().unwrap();
    for guest in [&mut a, &mut b] {
        guest.await_carrier(false);
    }
    let mut switch = Switch::start(&bench, &sockets, &others, None);
    for (guest, number, packed) in [(&mut a, 1, packed[0]), (&mut b, 2, packed[1])] {
        guest.await_carrier(true);
        if packed {
            take_card(guest);
            give_card(guest, number);
        }
        guest.ping_until_answered(254);
    }
    a.ping_until_answered(2);
    until_both_pairs(&mut switch, 0, || b.send_flows(1, &bench));
    said("another switch");
    for counts in switch.counts() {
        assert!(counts.number("frames_in") > 0 && counts.dropped("header") == 0);
        assert_eq!(counts.dropped("broken"), 0, "{counts:?}");
    }
}

#[test]
fn two_guests_with_split_and_packed_rings_talk_change_their_pairs_leave_and_return() {
    two_guests("two_guests_split_and_packed", [false, true]);
}

/// QEMU says what the MTU is (`VHOST_USER_NET_SET_MTU`), and that the guest has arrived
/// (`VHOST_USER_SEND_RARP`), as after a migration: it does so for a card whose driver
/// cannot announce itself.
#[test]
fn qemu_sets_the_mtu_and_asks_for_an_announcement() {
    let test = "qemu_sets_the_mtu_and_asks_for_an_announcement";
    let Some(bench) = bench(test) else { return };
    let [first, second] = ["a", "b"].map(|name| bench.dir.path().join(name));
    let mut switch = Switch::start(&bench, &[&first, &second], &[], None);
    let mut card = Card::bring_up(&second, &CardOptions::default()).unwrap();
    let mut guest = Guest::boot(&bench, "a", &first, 1, false);
    guest.report("remote");
    let mut monitor = Monitor::connect(&guest.console);
    unplug(&mut monitor, &mut guest);
    let more = json!({"host_mtu": 1400, "guest_announce": false});
    plug(&mut monitor, &mut guest, &more);
    assert_eq!(guest.run("cat /sys/class/net/eth0/mtu"), "1400");
    let own = Mac([0x52, 0x54, 0, 0, 0, 1]);
    for (payload, too_long) in [(1400, 0), (1401, 1)] {
        let before = switch.counts().swap_remove(0);
        card.send(0, &frame(station(9), own, 1, payload));
        let told = eventually(|| {
            let now = switch.counts().swap_remove(0);
            now.number("frames_out") + now.dropped("too_long")
                > before.number("frames_out") + before.dropped("too_long")
        });
        let now = switch.counts().swap_remove(0);
        assert!(
            told && now.dropped("too_long") == too_long,
            "{payload}: {now:?}"
        );
    }
    // What the guest itself has to say is not that.
    let mut announced = || {
        let frames = std::iter::from_fn(|| card.poll());
        let mut rarp = frames.filter(|(_, frame)| frame[12..14] == [0x80, 0x35]);
        rarp.any(|(_, frame)| Mac::source(&frame) == own)
    };
    assert!(!announced());
    let rounds = json!({"initial": 50, "max": 550, "rounds": 1, "step": 50});
    let announce = json!({"execute": "announce-self", "arguments": rounds});
    monitor.command(&announce, answered);
    assert!(eventually(announced), "{:?}", switch.counts());
}

/// A guest and the kernel of this machine.
fn guest_and_tap(test: &str, packed: bool) {
    let (Some(bench), Some(here)) = (bench(test), Namespace::new(test)) else {
        return;
    };
    let socket = bench.dir.path().join("a");
    let mut switch = Switch::start(&bench, &[&socket], &["tap:ls0,queues=2"], Some(&here));
    let mut guest = Guest::boot(&bench, "a", &socket, 1, packed);
    here.run("ip addr add 10.9.0.9/24 dev ls0");
    here.run("ip link set ls0 up");
    guest.settle(1);
    guest.run("ping -c 3 -i 0.1 -W 20 10.9.0.9");
    here.run("ping -c 3 -i 0.1 -W 20 10.9.0.1");
    here.run("ping -c 2 -i 0.1 -W 20 -s 9000 10.9.0.1");
    // From there to the guest: the kernel puts flows on the queues of its interface.
    // Two at a time, as `send_flows` says.
    let want = sha256(&bench.payload);
    until_both_pairs(&mut switch, 0, || {
        let flows = [(); 2].map(|()| {
            let payload = bench.payload.clone();
            here.spawn(move || [(); 2].map(|()| hash_of_guest(&payload)))
        });
        let hashes = flows.map(|flow| flow.join().unwrap());
        assert_eq!(hashes.as_flattened(), [want.as_str(); 4]);
    });
}

/// Sends bytes to the guest, which says what their hash is.
fn hash_of_guest(bytes: &[u8]) -> String {
    let guest = SocketAddr::from(([10, 9, 0, 1], 7000));
    let mut stream = TcpStream::connect_timeout(&guest, LIMIT).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn a_guest_with_split_rings_and_this_machine_talk_through_a_tap() {
    if quick() {
        return skip("a tap with split rings", "left out by --quick");
    }
    guest_and_tap("split", false);
}

#[test]
fn a_guest_with_packed_rings_and_this_machine_talk_through_a_tap() {
    guest_and_tap("packed", true);
}

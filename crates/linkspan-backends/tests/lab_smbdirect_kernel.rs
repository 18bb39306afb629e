//! The kernel's own ends of SMB Direct over siw: ksmbd, to which we connect, and its cifs client,
//! which connects to us. What we say to ksmbd is written byte by byte, or said by our ends and our
//! program; tshark reads all of it.

//: about the kernel's SMB Direct, server and client, over siw
//: pack linkspan ip rdma verbs rdmacm ksmbd mount.cifs tcpdump tshark
//: memory 768
//: limit 500

mod rdma_suite;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

use linkspan_backends::rdma::{
    Carrier, Config, ConnectionId, DeviceConfig, DeviceProvider, Provider,
};
use linkspan_backends::smbdirect::{self, Endpoint, Happening, Id};
use linkspan_mem::Region;
use linkspan_rdma::depth;
use linkspan_rdma::verbs::{Depth, MemoryId, Slice, Verbs as _};
use linkspan_smbdirect::{Connection, Driver, News, Options, Role, State, private_data};
use linkspan_testkit::PATIENCE;
use linkspan_testkit::lab::{self, Capture};
use rdma_suite::{Side, established};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const PORT: u16 = 5445;
/// Where the kernel is, and where we are.
const KERNEL: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const HERE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// siw at both ends of a cable between this network namespace, where the kernel's server and client
/// are, and another, where we are: a wildcard listener of siw hears only what really comes over its
/// interface. They stay for as long as the guest.
fn siw() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for line in [
            "ip netns add peer",
            "ip link add vkernel type veth peer name vpeer netns peer",
            "ip addr add 10.9.0.1/24 dev vkernel",
            "ip link set vkernel up",
            "ip -n peer addr add 10.9.0.2/24 dev vpeer",
            "ip -n peer link set vpeer up",
            "rdma link add siw0 type siw netdev vkernel",
            "ip netns exec peer rdma link add siw1 type siw netdev vpeer",
        ] {
            let mut words = line.split(' ');
            let mut command = Command::new(words.next().unwrap());
            lab::run(command.args(words));
        }
    });
}

/// From here on this thread is in the other namespace, and what it starts.
fn enter() {
    go_to("/run/netns/peer");
}

fn go_to(namespace: &str) {
    let file = fs::File::open(namespace).unwrap();
    let network = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(file.as_fd(), network).unwrap();
}

fn side(crc: bool) -> Side<Provider> {
    let mut config = Config::default();
    config.options.crc = crc;
    config.options.depth = Depth {
        inbound: 32,
        outbound: 1,
    };
    Side::new(Provider::new(config).unwrap())
}

fn until<T>(
    side: &mut Side<Provider>,
    what: &str,
    mut found: impl FnMut(&mut Side<Provider>) -> Option<T>,
) -> T {
    let begin = Instant::now();
    loop {
        side.look();
        if let Some(found) = found(side) {
            return found;
        }
        let said = (&side.events, &side.ends);
        assert!(begin.elapsed() < PATIENCE, "no {what}: {said:?}");
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

/// A negotiate request of MS-SMBD 2.2.1.
fn request(versions: [u16; 2], credits: u16, sizes: [u32; 3]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [versions[0], versions[1], 0, credits] {
        bytes.extend(word.to_le_bytes());
    }
    for size in sizes {
        bytes.extend(size.to_le_bytes());
    }
    bytes
}

/// A data transfer message of MS-SMBD 2.2.3; 20 bytes if it has no data.
fn transfer(granted: u16, flags: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [255, granted, flags, 0] {
        bytes.extend(word.to_le_bytes());
    }
    let len = u32::try_from(data.len()).unwrap();
    let offset = if data.is_empty() { 0 } else { 24_u32 };
    for word in [0, offset, len] {
        bytes.extend(word.to_le_bytes());
    }
    if !data.is_empty() {
        bytes.extend([0; 4]);
        bytes.extend(data);
    }
    bytes
}

/// After this ksmbd says nothing more.
const SILENCE: Duration = Duration::from_secs(5);

const GOOD: [u32; 3] = [1364, 8192, 1 << 20];

fn say(side: &mut Side<Provider>, id: ConnectionId, bytes: &[u8]) {
    side.write(0, bytes);
    let gather = [side.slice(0, u32::try_from(bytes.len()).unwrap())];
    side.send(id, 1, &gather);
}

/// ksmbd with one share, over TCP and over siw, for as long as the guest.
fn ksmbd() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for folder in ["/etc/ksmbd", "/run/lock", "/tmp/share"] {
            fs::create_dir_all(folder).unwrap();
        }
        let text = "[global]\nguest account = root\nmap to guest = bad user\n\
                    [share]\npath = /tmp/share\nguest ok = yes\nread only = no\n";
        fs::write("/etc/ksmbd/ksmbd.conf", text).unwrap();
        lab::run(&mut Command::new("ksmbd.mountd"));
        let listens = || {
            let mut command = Command::new("rdma");
            let text = lab::run(command.args(["resource", "show", "cm_id"]));
            text.lines()
                .any(|line| line.contains("LISTEN") && line.contains(":5445"))
        };
        lab::await_true("ksmbd on 5445", listens);
    });
}

/// Connects to ksmbd, as its own client does.
fn connect(side: &mut Side<Provider>) -> ConnectionId {
    let address: SocketAddr = (KERNEL, PORT).into();
    let words = depth::write(Depth {
        inbound: 32,
        outbound: 1,
    });
    let id = side.provider.connect(address, &words).unwrap();
    side.receive(id, 255).unwrap();
    until(side, "connection", |side| side.find(established));
    id
}

/// Negotiates, and gives what ksmbd answers.
fn negotiate(side: &mut Side<Provider>, id: ConnectionId) -> Vec<u8> {
    say(side, id, &request([0x0100, 0x0100], 255, GOOD));
    until(side, "answer", Side::message)
}

/// SMB2 NEGOTIATE of 3.0, without a signature or anything else.
fn smb2_negotiate() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..4].copy_from_slice(b"\xFESMB");
    bytes[4] = 64;
    // Credits.
    bytes[14] = 1;
    // 36, one dialect, signing enabled; no capabilities, a client, no contexts; 3.0.
    bytes.extend([36, 0, 1, 0, 1, 0, 0, 0, 0x40, 0, 0, 0]);
    bytes.extend([7; 16]);
    bytes.extend([0; 8]);
    bytes.extend(0x0300_u16.to_le_bytes());
    bytes
}

#[test]
fn ksmbd_negotiates_and_answers() {
    if !lab::guest("ksmbd_negotiates_and_answers") {
        return;
    }
    siw();
    ksmbd();
    let capture = Capture::start("vkernel", "ksmbd");
    enter();
    let mut side = side(true);
    let id = connect(&mut side);
    let answer = negotiate(&mut side, id);
    assert_eq!(answer.len(), 32);
    assert_eq!(
        [half(&answer, 0), half(&answer, 2), half(&answer, 4)],
        [0x0100; 3]
    );
    let (wanted, granted) = (half(&answer, 8), half(&answer, 10));
    assert!(wanted > 0 && granted > 0, "{wanted} {granted}");
    assert_eq!(word(&answer, 12), 0, "status");
    let [most, send, receive, fragmented] = [16, 20, 24, 28].map(|at| word(&answer, at));
    println!(
        "ksmbd: wants {wanted} credits, grants {granted}, sends {send}, receives {receive}, \
         fragmented {fragmented}, reads and writes {most}"
    );
    assert!(send <= 8192 && receive >= 128 && fragmented >= 131_072);
    // It has no credit before our first data message.
    let message = transfer(100, 0, &smb2_negotiate());
    say(&mut side, id, &message);
    let answer = until(&mut side, "SMB2 answer", |side| {
        side.message().filter(|message| message.len() > 20)
    });
    let at = usize::try_from(word(&answer, 12)).unwrap();
    assert_eq!(&answer[at..at + 4], b"\xFESMB");
    assert_eq!(half(&answer, at + 12), 0, "command");
    // Keep-alive: whoever asks for an answer gets one.
    say(&mut side, id, &transfer(1, 1, &[]));
    let alive = until(&mut side, "sign of life", Side::message);
    assert!(alive.len() >= 20);
    side.provider.connection(id).unwrap().disconnect();
    until(&mut side, "end", |side| side.end_of(id));
    let text = capture.judge(6);
    assert!(
        text.contains("SMB-Direct") || text.contains("SMB Direct"),
        "{text}"
    );
}

#[test]
fn ksmbd_refuses_what_cannot_be() {
    if !lab::guest("ksmbd_refuses_what_cannot_be") {
        return;
    }
    siw();
    ksmbd();
    enter();
    let good = [0x0100, 0x0100];
    let cases = [
        ("later versions", request([0x0200, 0x0300], 255, GOOD)),
        ("no credits", request(good, 0, GOOD)),
        ("small receives", request(good, 255, [1364, 64, 1 << 20])),
        ("small messages", request(good, 255, [1364, 8192, 1000])),
        ("a short request", request(good, 255, GOOD)[..12].to_vec()),
    ];
    for (name, bytes) in cases {
        let mut side = side(false);
        let id = connect(&mut side);
        say(&mut side, id, &bytes);
        // It ends the connection, answers that it does not want us, or says nothing more.
        let begin = Instant::now();
        let mut said = None;
        while side.end_of(id).is_none() && said.is_none() && begin.elapsed() < SILENCE {
            side.look();
            said = side.message();
        }
        println!("{name}: {said:?}, {:?}", side.end_of(id));
        if let Some(said) = said {
            assert_eq!(said.len(), 32, "{name}");
            assert_ne!(word(&said, 12), 0, "{name}");
        }
    }
    // And whoever does better is served.
    let mut side = side(false);
    let id = connect(&mut side);
    assert_eq!(word(&negotiate(&mut side, id), 12), 0);
}

/// Our end of SMB Direct over a provider.
struct Ours<C> {
    provider: C,
    id: ConnectionId,
    driver: Driver,
    memory: MemoryId,
    begin: Instant,
}

impl<C: Carrier> Ours<C> {
    fn new(mut provider: C, options: &Options) -> Self {
        let headers = Driver::header_bytes(options);
        let mut add = |len: u32| {
            let region = Region::heap(len as usize).unwrap();
            provider.add_memory(region).unwrap()
        };
        let (header_memory, memory) = (add(headers), add(1 << 20));
        let words = private_data(options);
        let id = provider.connect((KERNEL, PORT).into(), &words).unwrap();
        let limits = provider.connection(id).unwrap().limits();
        let core = Connection::new(Role::Initiator, options, &limits, 0).unwrap();
        let headers = Slice {
            memory: header_memory,
            len: headers,
            offset: 0,
        };
        Self {
            provider,
            id,
            driver: Driver::new(core, headers),
            memory,
            begin: Instant::now(),
        }
    }

    /// Goes on until something that is wanted is told, or for so long.
    fn until(&mut self, within: Duration, wanted: impl Fn(&News) -> bool) -> Option<News> {
        let begin = Instant::now();
        while begin.elapsed() < within {
            let now = u64::try_from(self.begin.elapsed().as_millis()).unwrap();
            self.driver.core_mut().handle_timeout(now);
            let mut found = self.news(now, &wanted);
            self.provider.wait(Some(Duration::from_millis(5))).unwrap();
            while found.is_none()
                && let Some((_, event)) = self.provider.poll()
            {
                self.driver.happened(now, self.provider.memories(), event);
                // Before the next event: a connection is gone after its last one.
                found = self.news(now, &wanted);
            }
            if found.is_some() {
                return found;
            }
        }
        None
    }

    fn news(&mut self, now: u64, wanted: impl Fn(&News) -> bool) -> Option<News> {
        let mut connection = self.provider.connection(self.id)?;
        while let Some(news) = self.driver.poll(now, &mut connection) {
            if wanted(&news) {
                return Some(news);
            }
            assert!(!matches!(news, News::Ended(_)), "{news:?}");
        }
        None
    }

    /// Negotiates SMB2; gives the answer.
    fn negotiate(&mut self) -> Vec<u8> {
        let bytes = smb2_negotiate();
        let message = Slice {
            memory: self.memory,
            len: u32::try_from(bytes.len()).unwrap(),
            offset: 0,
        };
        let memory = self.provider.memories().slice(message).unwrap();
        memory.write(&bytes);
        self.driver.core_mut().send(&[message], None).unwrap();
        let received = self.until(PATIENCE, |news| *news == News::Received);
        received.expect("an answer");
        let mut answer = vec![0; 1 << 16];
        let len = self.driver.read(self.provider.memories(), &mut answer);
        answer.truncate(len);
        answer
    }

    fn disconnect(mut self) -> C {
        self.driver.core_mut().disconnect();
        let ended = self.until(PATIENCE, |news| matches!(news, News::Ended(_)));
        ended.expect("an end");
        self.provider
    }
}

/// Sizes, SMB2, and signs of life that we ask for, over `provider`.
fn talk<C: Carrier>(provider: C) {
    let options = Options {
        keepalive_interval_ms: 1000,
        ..Options::initiator()
    };
    let mut ours = Ours::new(provider, &options);
    let connected = ours.until(PATIENCE, |news| *news == News::Connected);
    connected.expect("a connection");
    let status = ours.driver.core().status();
    println!(
        "{} credits, sends {}, receives {}, fragmented {}, reads and writes {}, reads at a time {}",
        status.send_credits,
        status.max_send_size,
        status.max_receive_size,
        status.max_fragmented_send_size,
        status.max_read_write_size,
        status.outbound_reads
    );
    assert_eq!(
        (status.max_send_size, status.max_receive_size),
        (1364, 1364)
    );
    assert_eq!(&ours.negotiate()[..4], b"\xFESMB");
    let before = ours.driver.core().status().traffic;
    ours.until(Duration::from_secs(5), |_| false);
    let status = ours.driver.core().status();
    println!("signs of life: {before:?} {:?}", status.traffic);
    assert_eq!(status.state, State::Connected);
    assert_ne!(status.traffic, before, "nobody asked for a sign of life");
    // And it goes on as before.
    drop(ours.disconnect());
}

#[test]
fn our_initiator_talks_to_ksmbd_over_tcp() {
    if !lab::guest("our_initiator_talks_to_ksmbd_over_tcp") {
        return;
    }
    siw();
    ksmbd();
    let capture = Capture::start("vkernel", "ours");
    enter();
    let mut config = Config::default();
    config.options.crc = true;
    talk(Provider::new(config).unwrap());
    capture.judge(8);
}

#[test]
fn our_initiator_talks_to_ksmbd_over_siw() {
    if !lab::guest("our_initiator_talks_to_ksmbd_over_siw") {
        return;
    }
    siw();
    ksmbd();
    enter();
    talk(DeviceProvider::new(DeviceConfig::default()).unwrap());
}

/// PEERS: about 1 of 5 connections hung in siw's accept.
#[test]
fn our_initiator_is_taken_by_ksmbd_each_time() {
    if !lab::guest("our_initiator_is_taken_by_ksmbd_each_time") {
        return;
    }
    siw();
    ksmbd();
    enter();
    let mut provider = Provider::new(Config::default()).unwrap();
    for _ in 0..40 {
        let mut ours = Ours::new(provider, &Options::initiator());
        let connected = ours.until(PATIENCE, |news| *news == News::Connected);
        connected.expect("a connection");
        provider = ours.disconnect();
    }
}

/// A mount that is given up when the value is dropped.
struct Mount(Child);

impl Drop for Mount {
    fn drop(&mut self) {
        // It fails by itself once nobody answers.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// SMB2 NEGOTIATE is not answered but with an error, since SMB is not spoken here: the client gives
/// up by itself, and ends the connection.
fn smb2_refusal(request: &[u8]) -> Vec<u8> {
    let mut bytes = request[..64].to_vec();
    // STATUS_NOT_SUPPORTED.
    bytes[8..12].copy_from_slice(&0xC000_00BB_u32.to_le_bytes());
    bytes[14] = 1;
    // From a server.
    bytes[16] = 1;
    bytes.extend([9, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// Goes on until something happens that is wanted.
fn served<T>(
    ours: &mut Endpoint,
    what: &str,
    mut wanted: impl FnMut(&mut Endpoint, Id, Happening) -> Option<T>,
) -> T {
    let begin = Instant::now();
    loop {
        ours.wait(Some(Duration::from_millis(5))).unwrap();
        while let Some((id, happening)) = ours.poll() {
            if let Some(found) = wanted(ours, id, happening) {
                return found;
            }
        }
        assert!(begin.elapsed() < PATIENCE, "no {what}");
    }
}

/// k:ef71f1e0, k:fad988a2: this kernel writes its depths little-endian.
#[test]
fn the_kernels_client_connects_to_us() {
    if !lab::guest("the_kernels_client_connects_to_us") {
        return;
    }
    siw();
    let capture = Capture::start("vkernel", "cifs");
    fs::create_dir_all("/tmp/mnt").unwrap();
    enter();
    let mut config = smbdirect::Config::new(Role::Listener, Options::listener());
    config.iwarp.options.crc = true;
    let mut ours = Endpoint::new(config).unwrap();
    ours.listen((HERE, PORT).into()).unwrap();
    // The client is the kernel's, over there.
    go_to("/proc/1/ns/net");
    let options = format!("rdma,ip={HERE},port={PORT},guest,vers=3.0");
    let mut command = Command::new("mount.cifs");
    command.args([&format!("//{HERE}/share"), "/tmp/mnt", "-o", &options]);
    command.stdin(Stdio::null());
    let mount = Mount(command.spawn().unwrap());

    let id = served(&mut ours, "client", |_, id, happening| match happening {
        Happening::Connected => Some(id),
        other => panic!("{other:?}"),
    });
    let status = ours.session(id).unwrap().status();
    println!("the client: {status:?}");
    assert_eq!(
        (status.max_send_size, status.max_receive_size),
        (1364, 1364)
    );
    assert!(status.max_fragmented_send_size >= 131_072);
    assert_eq!(status.receive_credit_target, 255);
    assert_eq!(status.outbound_reads, 8, "of the 32 that it answers");
    let request = served(&mut ours, "SMB2 message", |ours, id, _| {
        ours.session(id).and_then(|mut session| session.take())
    });
    assert_eq!(&request[..4], b"\xFESMB");
    assert_eq!(half(&request, 12), 0, "command");
    let status = ours.session(id).unwrap().status();
    assert_eq!(status.state, State::Connected);
    assert!(status.send_credits > 0, "its first message is empty");
    let kmsg = lab::run(&mut Command::new("dmesg"));
    assert!(kmsg.contains("RDMA transport established"), "{kmsg}");

    let answer = smb2_refusal(&request);
    let region = Region::heap(answer.len()).unwrap();
    let memory = ours.add_memory(region).unwrap();
    ours.fill(memory, 0, &answer);
    let message = Slice {
        memory,
        len: u32::try_from(answer.len()).unwrap(),
        offset: 0,
    };
    ours.session(id).unwrap().send(&[message]).unwrap();
    let sent = served(&mut ours, "answer", |_, _, happening| match happening {
        Happening::Sent(1, result) => Some(result),
        _ => None,
    });
    assert_eq!(sent, Ok(()));
    let gone = served(&mut ours, "end", |_, _, happening| match happening {
        Happening::Ended(gone) => Some(gone),
        _ => None,
    });
    println!("the end: {gone}");
    assert!(!gone.is_broken(), "{gone:?}");
    drop(mount);
    ours.stop().unwrap();
    // Request and answer of either protocol, and a message without data.
    capture.judge(5);
}

/// The program, told nothing but where: it says who is there, and times signs of life.
#[test]
fn our_program_pings_ksmbd() {
    if !lab::guest("our_program_pings_ksmbd") {
        return;
    }
    siw();
    ksmbd();
    let capture = Capture::start("vkernel", "ping");
    enter();
    let mut command = Command::new("linkspan");
    command.args(["smbdirect", "ping", &KERNEL.to_string()]);
    let text = lab::run(command.args(["--count", "3", "--crc", "--json"]));
    println!("{text}");
    for part in [
        "\"peer\":\"an SMB server such as ksmbd, dialect 0x03",
        "\"kind\":\"keep-alive\"",
        "\"round_trips\":3",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    capture.judge(6);
}

/// Bytes of which no two pieces are the same.
fn content(len: u32) -> Vec<u8> {
    let words = 0..len.div_ceil(4);
    let mut bytes: Vec<u8> = words
        .flat_map(|word| word.wrapping_mul(0x9E37_79B9).to_be_bytes())
        .collect();
    bytes.truncate(len as usize);
    bytes
}

/// Files of our client: ksmbd moves their data by RDMA, both ways.
#[test]
fn our_program_copies_files_to_ksmbd_and_back() {
    if !lab::guest("our_program_copies_files_to_ksmbd_and_back") {
        return;
    }
    siw();
    ksmbd();
    enter();
    let smb = |args: &[&str]| {
        let mut command = Command::new("linkspan");
        let text = lab::run(
            command
                .arg("smb")
                .args(args)
                .args(["--transport", "rdma", "--json"]),
        );
        println!("{text}");
        text
    };
    let data = content(5_000_003);
    fs::write("/tmp/data", &data).unwrap();
    let (folder, file) = (
        format!("smb://{KERNEL}/share/folder"),
        format!("smb://{KERNEL}/share/folder/data"),
    );
    fs::create_dir_all("/tmp/share/folder").unwrap();
    smb(&["put", "--hash", "/tmp/data", &file]);
    assert!(fs::read("/tmp/share/folder/data").unwrap() == data);
    assert!(smb(&["ls", &folder]).contains("\"folder/data\""));
    smb(&["get", "--hash", &file, "/tmp/back"]);
    assert!(fs::read("/tmp/back").unwrap() == data);
    smb(&["rm", &file]);
    assert!(!fs::exists("/tmp/share/folder/data").unwrap());
}

/// The kernel's client, before it our gateway, and behind that the kernel's server on TCP.
#[test]
fn the_kernels_client_mounts_a_share_through_our_gateway() {
    if !lab::guest("the_kernels_client_mounts_a_share_through_our_gateway") {
        return;
    }
    siw();
    ksmbd();
    fs::create_dir_all("/tmp/mnt").unwrap();
    enter();
    let (listen, to) = (HERE.to_string(), format!("{KERNEL}:445"));
    let mut command = Command::new("linkspan");
    command.args(["smb", "gateway", "--json", "--listen", &listen, "--to", &to]);
    let mut gateway = Mount(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut said = BufReader::new(gateway.0.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("listening"), "{line}");
    go_to("/proc/1/ns/net");
    // Of 1 MiB that begins within a page siw cannot register the last one, and this kernel tries
    // again for ever.
    let options =
        format!("rdma,ip={HERE},port={PORT},guest,vers=3.0,cache=none,rsize=262144,wsize=262144");
    let mut mount = Command::new("mount.cifs");
    lab::run(mount.args([&format!("//{HERE}/share"), "/tmp/mnt", "-o", &options]));
    let data = content(3_000_001);
    fs::write("/tmp/mnt/file", &data).unwrap();
    assert!(fs::read("/tmp/share/file").unwrap() == data);
    assert!(fs::read("/tmp/mnt/file").unwrap() == data);
    fs::remove_file("/tmp/mnt/file").unwrap();
    lab::run(Command::new("umount").arg("/tmp/mnt"));
    let id = i32::try_from(gateway.0.id()).unwrap();
    kill_process(Pid::from_raw(id).unwrap(), Signal::TERM).unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    println!("{rest}");
    // Data went by RDMA, both ways.
    let ended = rest
        .lines()
        .find(|line| line.contains("\"ended\""))
        .unwrap();
    assert!(ended.contains("\"rdma\":[3000001,"), "{ended}");
    assert!(gateway.0.wait().unwrap().success());
}

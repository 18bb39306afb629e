//! 64 links of mixed kinds with 8 queues each: half of their peers misbehave in every way
//! that there is, and the others notice nothing.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use linkspan_testkit::Driven;
use linkspan_testkit::census::settled;
use linkspan_testkit::driven::{answered, ask};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

mod programs;

use programs::Program;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");
const LINKS: usize = 64;
const QUEUES: u16 = 8;

/// What a link is, by its number.
fn kind(number: usize) -> &'static str {
    ["blk", "net", "gpu"][number % 3]
}

struct Host {
    folder: TempDir,
}

impl Host {
    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn socket(&self, number: usize) -> PathBuf {
        self.at(&format!("{number}.sock"))
    }

    /// All that there is to see.
    fn seen(&self) -> Value {
        let mut command = Command::new(PROGRAM);
        command.args(["inspect", "--json", "--control"]);
        let output = command.arg(self.at("control.sock")).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    #[track_caller]
    fn all(&self, is: impl Fn(&Value) -> bool) {
        let mut now = Value::Null;
        let mut there = || {
            now = self.seen();
            let links = now.as_object();
            links.is_some_and(|links| links.len() == LINKS && links.values().all(&is))
        };
        assert!((0..6).any(|_| settled(&mut there)), "{now:#}");
    }
}

fn message(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).unwrap();
    let words = [code, flags, size];
    let header = words.iter().flat_map(|word| word.to_ne_bytes());
    header.chain(body.iter().copied()).collect()
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn pair(ring: u32, number: u32) -> Vec<u8> {
    [ring.to_ne_bytes(), number.to_ne_bytes()].concat()
}

/// What peers say who mean no good, one after the other on connections of their own.
fn misdeeds() -> Vec<Vec<u8>> {
    let owned = message(3, 1, &[]);
    let with = |bytes: Vec<u8>| [owned.clone(), bytes].concat();
    let region = words(&[0, u64::MAX, u64::MAX - 4095, 4096]);
    let mut table = pair(8, 0);
    (0..8).for_each(|_| table.extend(&region));
    let huge = [5_u32, 1, u32::MAX]
        .iter()
        .flat_map(|word| word.to_ne_bytes());
    vec![
        // It says nothing, a part of something, or nonsense.
        Vec::new(),
        message(1, 1, &[])[..7].to_vec(),
        vec![0xff; 64],
        vec![0; 64],
        // Lengths, versions, codes and descriptors that cannot be.
        huge.collect(),
        message(1, 2, &[]),
        message(1, 5, &[]),
        message(99, 9, &[]),
        message(2, 1, &[1, 2, 3]),
        with(message(5, 9, &table)),
        with(message(5, 9, &pair(u32::MAX, 0))),
        with(message(37, 9, &[&words(&[0])[..], &region].concat())),
        with(message(6, 9, &words(&[u64::MAX, u64::MAX]))),
        // Rings that there are not, or that cannot be.
        with(message(8, 9, &pair(u32::MAX, 256))),
        with(message(8, 9, &pair(0, 65535))),
        with(message(10, 9, &pair(7, u32::MAX))),
        with(message(12, 1, &words(&[0x1ff]))),
        with(message(18, 9, &pair(7, 2))),
        with(message(11, 1, &pair(3, 0))),
        with(message(
            9,
            9,
            &words(&[0, u64::MAX, u64::MAX, u64::MAX, u64::MAX]),
        )),
        // Features that were not offered, configuration space that is not there.
        with(message(2, 9, &words(&[u64::MAX]))),
        with(message(16, 9, &words(&[u64::MAX]))),
        with(message(
            24,
            1,
            &[&pair(u32::MAX, u32::MAX)[..], &[0; 4]].concat(),
        )),
        with(message(25, 9, &[&pair(0, 256)[..], &[0; 260]].concat())),
        // Many questions, whose answers nobody reads.
        (0..4096).flat_map(|_| message(1, 1, &[])).collect(),
    ]
}

/// Does all of it at this socket; a link may end a connection, and takes the next one.
fn misbehave(socket: PathBuf) {
    for deed in misdeeds() {
        let connect = || UnixStream::connect(&socket).ok();
        let mut stream = None;
        assert!(settled(|| {
            stream = connect();
            stream.is_some()
        }));
        let mut stream = stream.unwrap();
        stream.set_nonblocking(true).unwrap();
        let _ = stream.write_all(&deed);
        let _ = stream.read(&mut [0; 64]);
    }
}

/// A link that nobody bothers.
enum Good {
    Disk(Box<Driven>),
    Other(UnixStream),
}

impl Good {
    fn new(host: &Host, number: usize) -> Self {
        let socket = host.socket(number);
        if kind(number) == "blk" {
            return Self::Disk(Box::new(Driven::new(&socket, QUEUES).unwrap()));
        }
        Self::Other(UnixStream::connect(socket).unwrap())
    }

    /// A request through each queue, or a question.
    fn works(&mut self) {
        match self {
            Self::Disk(disk) => {
                for queue in &mut disk.queues {
                    ask(queue, 1);
                    assert_eq!(answered(queue).0, 1);
                }
            }
            Self::Other(stream) => {
                stream.write_all(&message(1, 1, &[])).unwrap();
                let mut answer = [0; 20];
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(answer[..4], 1_u32.to_ne_bytes());
            }
        }
    }
}

#[test]
fn half_of_many_links_misbehave_and_the_other_half_is_unharmed() {
    let host = Host {
        folder: tempfile::tempdir().unwrap(),
    };
    let mut plane = format!(
        "[plane]\ncontrol = \"control.sock\"\n\
         [defaults.blk]\nimage = \"mem:1M\"\nqueues = {QUEUES}\nworkers = 1\n\
         [defaults.net]\nworkers = 1\n"
    );
    for number in 0..LINKS {
        let (kind, pairs) = (kind(number), QUEUES / 2);
        let option = match kind {
            "net" => format!("port = [\"vhost-user:{number}.sock,queues={pairs}\", \"responder\"]"),
            _ => format!("socket-path = \"{number}.sock\""),
        };
        let _ = writeln!(plane, "[link.n{number}]\ncommand = \"{kind}\"\n{option}");
    }
    fs::write(host.at("plane.toml"), plane).unwrap();
    let up = Program::start("up", [host.at("plane.toml")]);
    host.all(|link| link["answers"] == true);
    let mut sockets = || (0..LINKS).all(|number| host.socket(number).exists());
    assert!((0..6).any(|_| settled(&mut sockets)));
    let good = (0..LINKS).filter(|number| number % 2 == 0);
    let mut good: Vec<_> = good.map(|number| Good::new(&host, number)).collect();
    good.iter_mut().for_each(Good::works);
    let bad = (0..LINKS).filter(|number| number % 2 == 1);
    let bad = bad.map(|number| host.socket(number));
    let bad: Vec<_> = bad.map(|it| thread::spawn(|| misbehave(it))).collect();
    while bad.iter().any(|it| !it.is_finished()) {
        good.iter_mut().for_each(Good::works);
    }
    for it in bad {
        it.join().unwrap();
    }
    good.iter_mut().for_each(Good::works);
    // No process ended, and each takes the next peer.
    host.all(|link| link["answers"] == true && link["starts"] == 1);
    for number in (0..LINKS).filter(|number| number % 2 == 1) {
        let mut stream = None;
        let mut answers = || {
            stream = UnixStream::connect(host.socket(number)).ok();
            stream.is_some()
        };
        assert!(settled(&mut answers), "link {number}");
        Good::Other(stream.unwrap()).works();
    }
    drop(good);
    up.signal(Signal::TERM);
    let (status, _, errors) = up.end();
    assert_eq!(status, Some(0), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
}

/// Private memory of a link's process, in bytes.
fn private(link: &Value) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", link["pid"])).unwrap();
    let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
    let kib = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.sum::<u64>() << 10
}

/// A link that waits for its peer has little memory of its own.
#[test]
fn an_idle_link_is_small() {
    let host = Host {
        folder: tempfile::tempdir().unwrap(),
    };
    let plane = "[plane]\ncontrol = \"control.sock\"\n\
        [link.a]\ncommand = \"blk\"\nsocket-path = \"0.sock\"\nimage = \"mem:1M\"\nqueues = 8\n\
        [link.b]\ncommand = \"net\"\nport = [\"vhost-user:1.sock,queues=4\", \"responder\"]\n\
        [link.c]\ncommand = \"gpu\"\nsocket-path = \"2.sock\"\n";
    fs::write(host.at("plane.toml"), plane).unwrap();
    let up = Program::start("up", [host.at("plane.toml")]);
    let mut served = || (0..3).all(|number| host.socket(number).exists());
    assert!((0..6).any(|_| settled(&mut served)));
    let seen = host.seen();
    let sizes = seen.as_object().unwrap().iter();
    let sizes: Vec<_> = sizes.map(|(name, link)| (name, private(link))).collect();
    assert!(sizes.iter().all(|(_, bytes)| *bytes < 6 << 20), "{sizes:?}");
    up.signal(Signal::TERM);
    assert_eq!(up.end().0, Some(0));
}

/// None of its threads can have more rights than it has, by a program of another user, say.
#[test]
fn a_link_gives_up_new_privileges_before_it_serves() {
    let host = Host {
        folder: tempfile::tempdir().unwrap(),
    };
    let plane = "[plane]\ncontrol = \"control.sock\"\n\
        [link.disk]\ncommand = \"blk\"\nsocket-path = \"0.sock\"\nimage = \"disk.img\"\n\
        [link.lan]\ncommand = \"net\"\nport = [\"vhost-user:1.sock\", \"responder\"]\n\
        capture = \"lan.pcapng\"\n\
        [link.screen]\ncommand = \"gpu\"\nsocket-path = \"2.sock\"\n\
        [link.smbd]\ncommand = \"smbdirect listen\"\naddr = \"127.0.0.1:0\"\ncontrol = \"3.sock\"\n\
        [link.services]\ncommand = \"ic host\"\ncontrol = \"4.sock\"\n";
    fs::write(host.at("plane.toml"), plane).unwrap();
    fs::write(host.at("disk.img"), vec![0; 1 << 20]).unwrap();
    let up = Program::start("up", [host.at("plane.toml")]);
    let mut served = || (0..5).all(|number| host.socket(number).exists());
    let served = (0..6).any(|_| settled(&mut served));
    let seen = host.seen();
    assert!(served && host.at("lan.pcapng").exists(), "{seen:#}");
    for (name, link) in seen.as_object().unwrap() {
        // Each thread of it, once it serves.
        let mut wrong = String::new();
        let mut confined = || {
            let tasks = fs::read_dir(format!("/proc/{}/task", link["pid"])).unwrap();
            wrong = tasks.flatten().fold(String::new(), |wrong, task| {
                match fs::read_to_string(task.path().join("status")) {
                    Ok(status) if !is_confined(name, &status) => status,
                    _ => wrong,
                }
            });
            wrong.is_empty()
        };
        let confined = (0..6).any(|_| settled(&mut confined));
        assert!(confined, "{name}: {wrong}");
    }
    up.signal(Signal::TERM);
    assert_eq!(up.end().0, Some(0));
    assert!((0..5).all(|number| !host.socket(number).exists()));
}

/// Whether a thread of a link has no new privileges, a filter of system calls, and of the
/// rights of root those alone that its kind keeps: to open what others own, to lock memory and
/// to set up networks, or any of those that files, networks and devices take.
fn is_confined(link: &str, status: &str) -> bool {
    const LOCK_AND_OPEN: u64 = 1 << 14 | 1 << 1;
    const SET_UP_AND_OPEN: u64 = 1 << 12 | 1 << 1;
    // Programs with other identities, modules, chroot, boot, mknod, bpf.
    const NEVER: u64 = 1 << 6 | 1 << 7 | 1 << 8 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 27 | 1 << 39;
    let kept = match link {
        "disk" | "screen" => LOCK_AND_OPEN,
        "lan" => SET_UP_AND_OPEN,
        _ => !NEVER,
    };
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
    };
    let sets = ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"];
    status.contains("NoNewPrivs:\t1")
        && status.contains("Seccomp:\t2")
        && sets.into_iter().all(|name| set(name) & !kept == 0)
}

/// How often each thread of a link's process had a processor.
fn turns(pid: &Value) -> Vec<(String, String)> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let turns = |thread: fs::DirEntry| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
        let number = thread.file_name().to_string_lossy().into_owned();
        (number, counts.collect::<Vec<_>>().join(" "))
    };
    threads.map(turns).collect()
}

/// While the guest of another link is served, links that wait for their peers, or whose
/// peers say nothing, do not have a processor once.
#[test]
fn an_idle_link_does_nothing() {
    let host = Host {
        folder: tempfile::tempdir().unwrap(),
    };
    // The watchdog asks who lives.
    let rest = "watchdog-seconds = 0\n";
    let disk = "command = \"blk\"\nimage = \"mem:1M\"\nqueues = 8\nworkers = 1\n";
    let plane = format!(
        "[plane]\ncontrol = \"control.sock\"\n\
         [link.busy]\nsocket-path = \"0.sock\"\n{disk}{rest}\
         [link.a]\nsocket-path = \"3.sock\"\n{disk}{rest}\
         [link.b]\ncommand = \"net\"\nport = [\"vhost-user:1.sock,queues=4\", \"responder\"]\n{rest}\
         [link.c]\ncommand = \"gpu\"\nsocket-path = \"2.sock\"\n{rest}"
    );
    fs::write(host.at("plane.toml"), plane).unwrap();
    let up = Program::start("up", [host.at("plane.toml")]);
    let mut served = || (0..4).all(|number| host.socket(number).exists());
    assert!((0..6).any(|_| settled(&mut served)));
    let seen = host.seen();
    // A disk that was used, a port that was asked something, a screen that nobody has.
    let mut idle = [Good::new(&host, 3), Good::new(&host, 1)];
    idle.iter_mut().for_each(Good::works);
    let mut busy = Good::new(&host, 0);
    let all = || ["a", "b", "c"].map(|name| turns(&seen[name]["pid"]));
    let (mut before, mut after) = (all(), all());
    let rested = settled(|| {
        before = all();
        let busy_before = turns(&seen["busy"]["pid"]);
        (0..200).for_each(|_| busy.works());
        after = all();
        assert_ne!(turns(&seen["busy"]["pid"]), busy_before);
        before == after
    });
    assert!(rested, "{before:?}\n{after:?}");
    drop((idle, busy));
    up.signal(Signal::TERM);
    assert_eq!(up.end().0, Some(0));
}

//! The kernel's own client (`mount.cifs -o rdma`, over siw) on our gateway before Samba, and on
//! our server: random work on files, a large copy, and what lies there in the end.

//: about the kernel's SMB client over SMB Direct: our gateway before Samba, and our server
//: pack ip rdma verbs rdmacm mount.cifs samba
//: memory 768
//: limit 500

mod programs;
#[allow(dead_code, reason = "each test uses some of it")]
#[path = "smb_mount/work.rs"]
mod work;

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use linkspan_testkit::census::settled;
use linkspan_testkit::lab;
use linkspan_testkit::samba::{PASSWORD, Samba};
use programs::Program;
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use work::Files;

/// Where we are; the kernel's client is at the other end of a cable.
const HERE: &str = "10.9.0.2";

/// There is one address and one port for both tests.
static ALONE: Mutex<()> = Mutex::new(());

/// Steps of random work.
const STEPS: usize = 60;

/// Bytes of the large copy: no whole number of anything.
const LARGE: usize = 12_000_017;

/// A cable between the network namespace of the kernel's client and ours, with siw at both ends:
/// siw hears only what really comes over its interface. They stay for as long as the guest.
fn siw() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for line in [
            "ip netns add peer",
            "ip link add vkernel type veth peer name vpeer netns peer",
            "ip addr add 10.9.0.1/24 dev vkernel",
            "ip link set vkernel up",
            "ip -n peer link set lo up",
            "ip -n peer addr add 10.9.0.2/24 dev vpeer",
            "ip -n peer link set vpeer up",
            "rdma link add siw0 type siw netdev vkernel",
            "ip netns exec peer rdma link add siw1 type siw netdev vpeer",
        ] {
            let mut words = line.split(' ');
            let mut command = Command::new(words.next().unwrap());
            lab::run(command.args(words));
        }
        // The kernel's client asks for the other end's address once and waits 5 s; what is asked
        // before the cable is up is lost. TCP asks again: once it is refused, all is known.
        let nobody = (HERE.parse::<IpAddr>().unwrap(), 9).into();
        let refused = TcpStream::connect_timeout(&nobody, Duration::from_secs(60)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    });
}

/// From here on this thread is in that namespace, and what it starts.
fn go_to(namespace: &str) {
    let file = fs::File::open(namespace).unwrap();
    let network = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(file.as_fd(), network).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A share that the kernel's client has mounted.
struct Mounted(PathBuf);

impl Mounted {
    fn new(share: &str, user: &str, options: &str) -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let credentials = folder.with_extension("credentials");
        fs::write(
            &credentials,
            format!("username={user}\npassword={PASSWORD}\n"),
        )
        .unwrap();
        // Who writes is not told what is in the cache, and locks are the client's.
        let options = format!(
            "credentials={},vers=3.0,cache=none,nobrl,{options}",
            credentials.display()
        );
        let mut command = Command::new("mount.cifs");
        lab::run(command.arg(share).arg(&folder).args(["-o", &options]));
        Self(folder)
    }

    /// Over SMB Direct, from where the kernel's client is.
    fn rdma(user: &str) -> Self {
        // Of 1 MiB that begins within a page siw cannot register the last one, and this kernel
        // tries again for ever.
        let options = format!("rdma,ip={HERE},port=5445,rsize=262144,wsize=262144");
        Self::new(&format!("//{HERE}/files"), user, &options)
    }

    fn unmount(self) {
        lab::run(Command::new("umount").arg(&self.0));
        fs::remove_dir(&self.0).unwrap();
    }
}

/// Bytes of which no two pieces are the same.
fn content() -> Vec<u8> {
    let words = 0..u32::try_from(LARGE).unwrap().div_ceil(4);
    let mut bytes: Vec<u8> = words
        .flat_map(|word| word.wrapping_mul(0x9E37_79B9).to_be_bytes())
        .collect();
    bytes.truncate(LARGE);
    bytes
}

/// Works on a share and copies a large file there and back; all of it is as on a disk, and lies
/// so in the folder of the server.
fn work_and_compare(user: &str, there: &Path, seed: u64) -> Files {
    let mounted = Mounted::rdma(user);
    let mut files = Files::replacing_closed_only(seed);
    for _ in 0..STEPS {
        files.step(&mounted.0);
    }
    files.close();
    files.compare(&mounted.0);
    let large = content();
    let hash = |path: PathBuf| Sha256::digest(fs::read(path).unwrap());
    let copy = mounted.0.join("large");
    fs::write(&copy, &large).unwrap();
    assert_eq!(hash(there.join("large")), Sha256::digest(&large));
    assert_eq!(hash(copy.clone()), Sha256::digest(&large));
    fs::remove_file(copy).unwrap();
    mounted.unmount();
    files.compare(there);
    files
}

/// `linkspan smb` with these arguments, once it listens.
fn listening(args: &[&str]) -> Program {
    let program = Program::start("smb", args);
    let mut listens = || program.said().contains("\"listening\"");
    let listens = (0..6).any(|_| settled(&mut listens));
    assert!(listens, "{}{}", program.said(), program.complained());
    program
}

/// Ends it; bytes that it has read from clients' memory and written there.
fn stop(program: Program) -> [u64; 2] {
    program.signal(Signal::TERM);
    let (status, lines, said) = program.end();
    assert_eq!(status, Some(0), "{said}");
    let ended = lines.iter().filter(|line| line["event"] == "ended");
    let moved = |line: &Value, at: usize| line["rdma"][at].as_u64().unwrap();
    ended.fold([0, 0], |[up, down], line| {
        [up + moved(line, 0), down + moved(line, 1)]
    })
}

fn has_moved([up, down]: [u64; 2]) {
    let large = LARGE as u64;
    assert!(
        up >= large && down >= large,
        "by RDMA: {up} and {down} bytes"
    );
}

#[test]
fn the_kernels_client_works_on_sambas_share_through_our_gateway() {
    if !lab::guest("the_kernels_client_works_on_sambas_share_through_our_gateway") {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    siw();
    go_to("/run/netns/peer");
    let samba = Samba::start(&[]).unwrap();
    let to = format!("127.0.0.1:{}", samba.port);
    let gateway = listening(&["gateway", "--json", "--listen", HERE, "--to", &to]);
    go_to("/proc/1/ns/net");
    let files = work_and_compare(&samba.user, &samba.share(), 11);
    has_moved(stop(gateway));
    // The same bytes as over TCP, from Samba itself.
    go_to("/run/netns/peer");
    let options = format!("ip=127.0.0.1,port={}", samba.port);
    let mounted = Mounted::new("//127.0.0.1/files", &samba.user, &options);
    files.compare(&mounted.0);
    mounted.unmount();
}

#[test]
fn the_kernels_client_works_on_our_server() {
    if !lab::guest("the_kernels_client_works_on_our_server") {
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    siw();
    go_to("/run/netns/peer");
    let folder = tempfile::tempdir().unwrap();
    let (share, credentials) = (folder.path().join("share"), folder.path().join("who"));
    fs::create_dir(&share).unwrap();
    fs::write(&credentials, format!("username=me\npassword={PASSWORD}\n")).unwrap();
    let of = format!("files={}", share.display());
    let credentials = credentials.to_str().unwrap();
    let server = listening(&[
        "serve",
        "--json",
        "--share",
        &of,
        "--credentials",
        credentials,
        "--listen-rdma",
        HERE,
    ]);
    go_to("/proc/1/ns/net");
    drop(work_and_compare("me", &share, 12));
    has_moved(stop(server));
}

//! Our link on a back end that others wrote, which is killed under it: the link
//! comes back, what was acknowledged is in the image, and nothing is left.
//!
//! A census is of the whole process, so all of this is one test.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use linkspan_backends::disk::{DiskQueue, DiskQueueLayout, link_options};
use linkspan_devices::block::Status;
use linkspan_devices::block::driver::{Command, DiskInfo};
use linkspan_engine::vhost_user::{Connection, Link, Reach};
use linkspan_engine::{DriverMemory, queue_link};
use linkspan_peers::{StorageDaemon, storage_daemon};
use linkspan_sys::EventFd;
use linkspan_testkit::census::{settled, start_reaper};
use linkspan_testkit::{Census, PATIENCE};
use linkspan_virtio::Features;

const QUEUES: u16 = 4;
const KILLS: u64 = 5;

/// Writes that are acknowledged between two kills.
const WRITES_BEFORE_KILL: u64 = 2000;

/// Blocks of each queue, and how many of them are under way at a time.
const BLOCKS: u64 = 64;
const DEPTH: u16 = 16;
const BLOCK: u32 = 4096;

/// A link with its queues.
fn open(socket: &Path) -> (Link, Vec<DiskQueue>) {
    let reach = Reach::Connect(socket.to_owned());
    let options = link_options(reach, PATIENCE, QUEUES, Features::SPLIT_QUEUE);
    let cancel = Arc::new(EventFd::new().unwrap());
    let connection = Connection::open(options, cancel).unwrap();
    let features = Features::from_bits_retain(connection.negotiated().features);
    let info = DiskInfo::from_config(&connection.negotiated().config, features);
    assert_eq!(info.size_bytes, size());
    let layout = DiskQueueLayout {
        depth: DEPTH,
        buffer_bytes: u64::from(DEPTH) * u64::from(BLOCK),
    };
    let rest = u64::from(QUEUES) * layout.bytes();
    let memory = Arc::new(DriverMemory::new(QUEUES, 128, rest).unwrap());
    let queue = |index| {
        let (link, handle) = queue_link().unwrap();
        let memory = Arc::clone(&memory);
        let queue = DiskQueue::new(memory, index, layout, features, link);
        (queue.unwrap(), handle)
    };
    let (queues, handles): (Vec<_>, Vec<_>) = (0..QUEUES).map(queue).unzip();
    (connection.start(memory, handles).unwrap(), queues)
}

fn size() -> u64 {
    u64::from(QUEUES) * BLOCKS * u64::from(BLOCK)
}

/// What a block of a version holds.
fn content(block: u64, version: u64) -> Vec<u8> {
    let words = 0..u64::from(BLOCK) / 8;
    let words = words.map(|word| (version << 32) ^ (block << 16) ^ word);
    words.flat_map(u64::to_le_bytes).collect()
}

/// Writes one version of its blocks after the other until `stop`; gives the last
/// version, of which everything was acknowledged.
fn load(mut queue: DiskQueue, number: u64, stop: &AtomicBool, acknowledged: &AtomicU64) -> u64 {
    for version in 1.. {
        let (mut next, mut answered) = (0, 0);
        while answered < BLOCKS {
            // A slot is free again when its block was answered: blocks go in waves.
            while next < BLOCKS
                && next < answered / u64::from(DEPTH) * u64::from(DEPTH) + u64::from(DEPTH)
            {
                let slot = next % u64::from(DEPTH);
                let (data, span) = queue.buffer(slot * u64::from(BLOCK), BLOCK).unwrap();
                let block = number * BLOCKS + next;
                let table = queue.memory().memory().table();
                table.slice(span).write(&content(block, version));
                let sector = block * u64::from(BLOCK) / 512;
                let command = Command::Write { sector, data };
                assert!(queue.submit(command, next).unwrap());
                next += 1;
            }
            queue.kick().unwrap();
            match queue.answer().unwrap() {
                Some(answer) => {
                    assert_eq!(answer.status, Status::Ok);
                    answered += 1;
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                None => drop(queue.wait(None).unwrap()),
            }
        }
        if stop.load(Ordering::Relaxed) {
            return version;
        }
    }
    unreachable!("versions do not end")
}

fn killed_again_and_again(folder: &Path) {
    let (socket, image) = (folder.join("socket"), folder.join("disk.img"));
    fs::write(&image, vec![0; usize::try_from(size()).unwrap()]).unwrap();
    let start = || StorageDaemon::start(&socket, &image, QUEUES);
    let mut daemon = Some(start());
    let (link, queues) = open(&socket);
    let (stop, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    let versions: Vec<u64> = std::thread::scope(|scope| {
        let (stop, acknowledged) = (&stop, &acknowledged);
        let load = |(number, queue)| scope.spawn(move || load(queue, number, stop, acknowledged));
        let loads: Vec<_> = (0..).zip(queues).map(load).collect();
        for kill in 1..=KILLS {
            let goes_on =
                settled(|| acknowledged.load(Ordering::Relaxed) >= kill * WRITES_BEFORE_KILL);
            stop.store(!goes_on || kill == KILLS, Ordering::Relaxed);
            // It has the image for itself, so first the old one goes.
            daemon.take();
            daemon = Some(start());
            assert!(goes_on, "the link does not come back");
        }
        loads.into_iter().map(|load| load.join().unwrap()).collect()
    });
    drop(link);
    drop(daemon);
    let found = fs::read(&image).unwrap();
    for (block, found) in (0..).zip(found.chunks(BLOCK as usize)) {
        let version = versions[usize::try_from(block / BLOCKS).unwrap()];
        assert!(found == content(block, version), "block {block}");
    }
}

#[test]
fn a_link_outlives_its_back_end_and_leaves_nothing() {
    if !storage_daemon::is_installed() {
        let why = "SKIP link: qemu-storage-daemon is not installed";
        drop(writeln!(std::io::stderr().lock(), "{why}"));
        return;
    }
    start_reaper();
    let folder = tempfile::tempdir().unwrap();
    let before = Census::at_rest();
    killed_again_and_again(folder.path());
    before.assert_restored("after the link ended");
}

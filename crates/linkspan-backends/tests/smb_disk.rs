//! Disks on a share of Samba's server: what a guest wrote is there, whatever happens to the
//! server and to the connection.

mod qemu;
mod smb_files;

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use linkspan_backends::image::{Image, Operation, ResizeError};
use linkspan_backends::smb::{DiskOptions, Error, Settings, Share, SmbImage};
use linkspan_smb2::status;
use linkspan_testkit::samba::Samba;
use qemu::{Rig, pattern};
use smb_files::{Running, login, open};

const SIZE: usize = 4 << 20;

fn writable() -> DiskOptions {
    DiskOptions {
        read_only: false,
        lock_wait: Duration::ZERO,
        time_limit: None,
    }
}

/// A server with an image of known content, and where that lies.
fn samba() -> Option<(Samba, PathBuf)> {
    let samba = Samba::start(&[])?;
    let path = samba.share().join("disk.img");
    fs::write(&path, pattern(SIZE, 1)).unwrap();
    Some((samba, path))
}

fn disk(samba: &Samba, options: &DiskOptions) -> Result<SmbImage, Error> {
    let share = open(samba, &Settings::default())?;
    SmbImage::open(share, "disk.img", options)
}

fn zeroes(offset: u64, len: u64) -> Operation<'static> {
    Operation::WriteZeroes {
        offset,
        len,
        unmap: true,
        durable: false,
    }
}

/// All that is done with a disk.
fn use_disk(image: &SmbImage, path: &PathBuf) {
    let mut want = pattern(SIZE, 1);
    assert_eq!((image.len(), image.read_only()), (SIZE as u64, false));
    assert!(matches!(image.measure(), Err(ResizeError::Share)));
    let mut rig = Rig::new(image);
    assert!(rig.read(0, SIZE) == want);
    for (at, len, durable) in [
        (512, 512, true),
        (65_536, 65_536, false),
        (1 << 20, 2 << 20, false),
        (SIZE - 512, 512, false),
    ] {
        let bytes = pattern(len, 2);
        rig.write(at, &bytes, durable);
        want[at..at + len].copy_from_slice(&bytes);
    }
    rig.run(zeroes(3 << 20, 1 << 19));
    rig.run(Operation::Discard {
        offset: (3 << 20) + (1 << 19),
        len: 4096,
    });
    want[3 << 20..(3 << 20) + (1 << 19) + 4096].fill(0);
    rig.run(Operation::Flush);
    assert!(rig.read(0, SIZE) == want);
    assert!(fs::read(path).unwrap() == want);
    image.sync().unwrap();
}

#[test]
fn a_disk_is_what_was_written_over_tcp_and_through_a_gateway() {
    let Some((samba, path)) = samba() else {
        return;
    };
    use_disk(&disk(&samba, &writable()).unwrap(), &path);
    // Zeroes take no room.
    assert!(fs::metadata(&path).unwrap().blocks() * 512 < SIZE as u64);
    fs::write(&path, pattern(SIZE, 1)).unwrap();
    let gateway = Running::start(([127, 0, 0, 1], samba.port).into(), |_| {});
    let share = open(&samba, &gateway.settings()).unwrap();
    assert!(share.connection().is_direct());
    use_disk(
        &SmbImage::open(share, "disk.img", &writable()).unwrap(),
        &path,
    );
    let ends = gateway.stop();
    assert!(
        ends[0].0.fetched > 0 && ends[0].0.placed > 0,
        "{:?}",
        ends[0]
    );
}

#[test]
fn a_second_writer_is_kept_out_and_readers_go_together() {
    let Some((samba, _path)) = samba() else {
        return;
    };
    let reading = DiskOptions {
        read_only: true,
        ..writable()
    };
    let taken = |result: Result<SmbImage, Error>| {
        let error = result.map(drop).unwrap_err();
        assert_eq!(error.status(), Some(status::SHARING_VIOLATION), "{error}");
    };
    let writer = disk(&samba, &writable()).unwrap();
    taken(disk(&samba, &writable()));
    taken(disk(&samba, &reading));
    let mut share = open(&samba, &Settings::default()).unwrap();
    assert!(share.open_read("disk.img").is_err());
    // What is known of it may be asked for.
    assert_eq!(share.stat("disk.img").unwrap().size, SIZE as u64);
    drop(writer);
    let readers = [
        disk(&samba, &reading).unwrap(),
        disk(&samba, &reading).unwrap(),
    ];
    taken(disk(&samba, &writable()));
    let mut rig = Rig::new(&readers[0]);
    assert!(rig.read(0, SIZE) == pattern(SIZE, 1));
    rig.run(Operation::Flush);
    readers[1].sync().unwrap();
}

#[test]
fn what_makes_no_disk_says_why() {
    let Some((samba, path)) = samba() else {
        return;
    };
    fs::create_dir(samba.share().join("folder")).unwrap();
    fs::write(samba.share().join("empty"), [1; 511]).unwrap();
    let open = |name: &str| {
        let share = open(&samba, &Settings::default()).unwrap();
        let error = SmbImage::open(share, name, &writable()).unwrap_err();
        error.to_string()
    };
    assert!(open("folder").contains("it is a folder"));
    assert!(open("nothing").contains("no such file"));
    assert!(open("empty").contains("empty"));
    let share = Share::open(
        "127.0.0.1",
        samba.port,
        "fixed",
        &login(&samba),
        &Settings::default(),
    );
    let error = SmbImage::open(share.unwrap(), "disk.img", &writable()).unwrap_err();
    assert!(error.to_string().contains("denied"), "{error}");
    // A part of a sector at the end is not of the disk.
    File::options()
        .append(true)
        .open(path)
        .unwrap()
        .write_all(b"end")
        .unwrap();
    assert_eq!(disk(&samba, &writable()).unwrap().len(), SIZE as u64);
}

/// The server was killed, and forgot what it had not been told to make durable; it had answered
/// that it was written.
#[test]
fn what_a_server_forgot_is_written_again_before_a_flush_says_that_all_is_well() {
    let Some((mut samba, path)) = samba() else {
        return;
    };
    let image = disk(&samba, &writable()).unwrap();
    let mut rig = Rig::new(&image);
    let mut want = pattern(SIZE, 1);
    let mut write = |rig: &mut Rig, at: usize, seed| {
        let bytes = pattern(1 << 20, seed);
        rig.write(at, &bytes, false);
        want[at..at + (1 << 20)].copy_from_slice(&bytes);
    };
    write(&mut rig, 0, 2);
    rig.run(Operation::Flush);
    write(&mut rig, 4096, 3);
    write(&mut rig, 8192, 4);
    rig.run(zeroes(1 << 20, 1 << 16));
    want[1 << 20..(1 << 20) + (1 << 16)].fill(0);
    samba.stop();
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&want[..4096], 0).unwrap();
    file.write_all_at(&pattern(SIZE - 4096, 9), 4096).unwrap();
    // What was there before the flush, and what was never written.
    file.write_all_at(&want[(1 << 20) + 8192..], (1 << 20) + 8192)
        .unwrap();
    samba.restart();
    rig.run(Operation::Flush);
    assert!(fs::read(&path).unwrap() == want);
    assert!(rig.read(0, SIZE) == want);
}

#[test]
fn requests_wait_for_a_server_that_is_away() {
    let Some((mut samba, path)) = samba() else {
        return;
    };
    let image = disk(&samba, &writable()).unwrap();
    let bytes = pattern(SIZE / 2, 5);
    for round in 0..3 {
        samba.stop();
        let (image, bytes) = (&image, &bytes);
        thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let mut rig = Rig::new(image);
                rig.write(round * 512, bytes, round == 1);
                rig.read(round * 512, bytes.len())
            });
            samba.restart();
            assert!(writer.join().unwrap() == *bytes);
        });
    }
    image.sync().unwrap();
    assert!(fs::read(&path).unwrap()[1024..1024 + SIZE / 2] == bytes);
}

#[test]
fn requests_fail_after_the_time_limit_and_the_disk_goes_on_when_the_server_is_back() {
    let Some((mut samba, path)) = samba() else {
        return;
    };
    let options = DiskOptions {
        time_limit: Some(Duration::from_millis(300)),
        ..writable()
    };
    let image = disk(&samba, &options).unwrap();
    let mut rig = Rig::new(&image);
    let bytes = pattern(4096, 6);
    rig.write(0, &bytes, false);
    samba.stop();
    let error = rig.try_read(0, 512).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    let error = rig.try_run(Operation::Flush).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(&[0; 4096], 0)
        .unwrap();
    samba.restart();
    while rig.try_read(0, 512).is_err() {
        thread::yield_now();
    }
    assert!(rig.read(0, 4096) == bytes);
    assert!(fs::read(&path).unwrap()[..4096] == bytes);
    // Closed while nobody is there.
    samba.stop();
    drop(rig);
    drop(image);
}

#[test]
fn another_file_of_this_name_is_not_the_disk() {
    let Some((mut samba, path)) = samba() else {
        return;
    };
    let options = DiskOptions {
        time_limit: Some(Duration::from_millis(300)),
        ..writable()
    };
    let image = disk(&samba, &options).unwrap();
    let mut rig = Rig::new(&image);
    samba.stop();
    let other = samba.share().join("other");
    fs::rename(&path, &other).unwrap();
    fs::write(&path, pattern(SIZE, 7)).unwrap();
    samba.restart();
    assert!(rig.try_read(0, 512).is_err());
    fs::rename(&other, &path).unwrap();
    while rig.try_read(0, 512).is_err() {
        thread::yield_now();
    }
    assert!(rig.read(0, SIZE) == pattern(SIZE, 1));
    // One that is shorter now.
    samba.stop();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(512)
        .unwrap();
    samba.restart();
    assert!(rig.try_read(0, 512).is_err());
}

/// Passes bytes on to a server. What a client says on the first connection is held up once that
/// is wanted, and comes late.
struct Relay {
    port: u16,
    hold: mpsc::Sender<()>,
    held: mpsc::Receiver<()>,
    late: mpsc::Sender<()>,
    over: mpsc::Receiver<()>,
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

impl Relay {
    fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (hold, holds) = mpsc::channel();
        let (tell, held) = mpsc::channel();
        let (late, lates) = mpsc::channel();
        let (ended, over) = mpsc::channel();
        let mut first = Some((holds, tell, lates, ended));
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let server = TcpStream::connect(("127.0.0.1", server)).unwrap();
                let (back, forth) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || copy(back, forth));
                match first.take() {
                    None => drop(thread::spawn(move || copy(client, server))),
                    Some((holds, tell, lates, ended)) => drop(thread::spawn(move || {
                        first_connection(client, server, &holds, &tell, &lates);
                        ended.send(()).unwrap();
                    })),
                }
            }
        });
        Self {
            port,
            hold,
            held,
            late,
            over,
        }
    }
}

/// Bytes of the write that comes late, with what is around them: at least that many.
const LATE: usize = 65_600;

fn first_connection(
    mut client: TcpStream,
    mut server: TcpStream,
    holds: &mpsc::Receiver<()>,
    tell: &mpsc::Sender<()>,
    lates: &mpsc::Receiver<()>,
) {
    let mut bytes = vec![0; 1 << 20];
    let mut kept = Vec::new();
    let mut holding = false;
    while kept.len() < LATE {
        let len = client.read(&mut bytes).unwrap();
        assert!(len > 0, "the client is gone");
        holding = holding || holds.try_recv().is_ok();
        if holding {
            kept.extend_from_slice(&bytes[..len]);
        } else {
            server.write_all(&bytes[..len]).unwrap();
        }
    }
    // The client has lost its connection, and the server has it.
    client.shutdown(Shutdown::Both).unwrap();
    tell.send(()).unwrap();
    lates.recv().unwrap();
    // It may be gone, which is what has to be.
    let _ = server.write_all(&kept);
    let _ = server.shutdown(Shutdown::Write);
    let _ = server.read_to_end(&mut kept);
}

/// A write that was on its way when the connection was given up comes to the server after it
/// was written again, and after a later one was acknowledged.
#[test]
fn a_write_that_comes_late_does_not_undo_a_later_one() {
    let Some((samba, path)) = samba() else {
        return;
    };
    let relay = Relay::start(samba.port);
    let settings = Settings::default();
    let share = Share::open("127.0.0.1", relay.port, "files", &login(&samba), &settings);
    let image = SmbImage::open(share.unwrap(), "disk.img", &writable()).unwrap();
    let mut rig = Rig::new(&image);
    assert!(rig.read(0, 512) == pattern(SIZE, 1)[..512]);
    relay.hold.send(()).unwrap();
    rig.write(0, &[1; 65_536], false);
    relay.held.recv().unwrap();
    rig.write(0, &[2; 65_536], false);
    rig.run(Operation::Flush);
    relay.late.send(()).unwrap();
    relay.over.recv().unwrap();
    assert!(rig.read(0, 65_536) == [2; 65_536]);
    assert!(fs::read(&path).unwrap()[..65_536] == [2; 65_536]);
}

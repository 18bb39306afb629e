//! Files on a share of Samba's server through a gateway, over SMB Direct: the client's end and
//! the gateway are ours, the server is not. And clients and servers that misbehave.

mod smb_files;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use linkspan_backends::smb::gateway::{End, Traffic};
use linkspan_backends::smb::{Error, Settings, Share, Wanted};
use linkspan_backends::smbdirect::{Config, Endpoint, Gone, Happening};
use linkspan_mem::Region;
use linkspan_rdma::verbs::Slice;
use linkspan_smb2::gateway as core;
use linkspan_smb2::header::flags;
use linkspan_smb2::io::{Descriptor, WriteRequest, channel};
use linkspan_smb2::negotiate::dialect;
use linkspan_smb2::{Command as Asked, Header, status};
use linkspan_smbdirect::{Options, Role};
use linkspan_testkit::samba::Samba;
use smb_files::{Running, bytes, get, login, open, put, round, ways};
use zerocopy::IntoBytes as _;

fn before(samba: &Samba) -> Running {
    Running::start(([127, 0, 0, 1], samba.port).into(), |_| {})
}

#[test]
fn samba_gives_the_same_bytes_through_the_gateway_as_over_tcp() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    for (chosen, sign, encrypt) in ways() {
        let gateway = before(&samba);
        let settings = Settings {
            dialects: vec![chosen],
            require_signing: sign,
            require_encryption: encrypt,
            // Several pieces of what has several pieces.
            max_io: 100_000,
            ..gateway.settings()
        };
        let mut share = open(&samba, &settings).unwrap();
        assert_eq!(share.connection().transport(), "SMB Direct");
        round(&samba, &mut share);
        let text = share.describe();
        drop(share);
        let ends = gateway.stop();
        let [(traffic, end)] = &ends[..] else {
            panic!("{ends:?}");
        };
        assert!(matches!(end, End::Client(_) | End::Stopped), "{end}");
        // Data goes by RDMA where nothing protects it, and only there.
        let by_rdma = chosen >= dialect::SMB_3_0 && !sign && !encrypt;
        let Traffic {
            fetched, placed, ..
        } = *traffic;
        assert_eq!(
            (fetched, placed),
            if by_rdma { (300_000, 300_000) } else { (0, 0) },
            "{text}"
        );
        assert!(
            traffic.up_bytes > 300_000 && traffic.down_bytes > 300_000,
            "{traffic:?}"
        );
    }
}

#[test]
fn large_files_of_many_clients_go_through_little_memory() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    let gateway = Running::start(([127, 0, 0, 1], samba.port).into(), |config| {
        config.memory = 4 << 20;
        config.share = 2 << 20;
    });
    let settings = gateway.settings();
    let data = bytes(12 << 20);
    thread::scope(|scope| {
        for number in 0..3 {
            let (samba, settings, data) = (&samba, &settings, &data);
            scope.spawn(move || {
                let mut share = open(samba, settings).unwrap();
                let name = format!("file {number}");
                put(&mut share, &name, data).unwrap();
                assert!(get(&mut share, &name).unwrap() == *data);
                assert!(fs::read(samba.share().join(&name)).unwrap() == *data);
            });
        }
    });
    assert_eq!(gateway.stop().len(), 3);
}

#[test]
fn refusals_of_the_server_come_through_and_others_go_on() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    let gateway = before(&samba);
    let settings = gateway.settings();
    let right = login(&samba);
    let mut other = open(&samba, &settings).unwrap();
    let mut wrong = right.clone();
    wrong.password = "another".into();
    let error = Share::open("127.0.0.1", 1, "files", &wrong, &settings).unwrap_err();
    assert_eq!(error.status(), Some(status::LOGON_FAILURE), "{error}");
    let error = Share::open("127.0.0.1", 1, "none", &right, &settings).unwrap_err();
    assert_eq!(error.status(), Some(status::BAD_NETWORK_NAME), "{error}");
    fs::write(samba.share().join("there"), bytes(100_000)).unwrap();
    let mut fixed = Share::open("127.0.0.1", 1, "fixed", &right, &settings).unwrap();
    assert!(get(&mut fixed, "there").unwrap() == bytes(100_000));
    let error = put(&mut fixed, "new", b"text").unwrap_err();
    assert_eq!(error.status(), Some(status::ACCESS_DENIED), "{error}");
    // A WRITE that is refused gives its memory back: the file is open to be read.
    let file = fixed.open_read("there").unwrap();
    for _ in 0..40 {
        let written = fixed.write(&file, 0, 100_000, |_, _| Ok(()), |_| {});
        assert_eq!(written.unwrap_err().status(), Some(status::ACCESS_DENIED));
    }
    // A file that ends before it should, likewise.
    for _ in 0..40 {
        let error = fixed
            .read(&file, 99_999, 5 << 20, |_, _| Ok(()))
            .unwrap_err();
        assert_eq!(error.status(), Some(status::END_OF_FILE), "{error}");
    }
    fixed.close(file).unwrap();
    assert!(get(&mut fixed, "there").unwrap() == bytes(100_000));
    put(&mut other, "mine", &bytes(5000)).unwrap();
    assert!(get(&mut other, "mine").unwrap() == bytes(5000));
}

/// A small file system in a folder, for as long as the value lives.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    /// `None`, and said, where that is not allowed.
    fn mount(folder: &'a Path) -> Option<Self> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=1M", "linkspan-test"]);
        let status = command.arg(folder).stderr(Stdio::null()).status();
        if status.is_ok_and(|status| status.success()) {
            return Some(Self(folder));
        }
        let skip = "SKIP a full disk: nothing may be mounted";
        drop(writeln!(std::io::stderr(), "{skip}"));
        None
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        // Lazily: the server may still have it open.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_behind_the_gateway_is_said_and_others_go_on() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    let folder = samba.share();
    let Some(_small) = Small::mount(&folder) else {
        return;
    };
    let gateway = before(&samba);
    let settings = gateway.settings();
    let [mut share, mut other] = [(); 2].map(|()| open(&samba, &settings).unwrap());
    put(&mut other, "there", &bytes(200_000)).unwrap();
    for _ in 0..3 {
        let error = put(&mut share, "large", &bytes(3 << 20)).unwrap_err();
        assert_eq!(error.status(), Some(status::DISK_FULL), "{error}");
        assert!(get(&mut other, "there").unwrap() == bytes(200_000));
    }
    // What the other requests had written is gone with it.
    drop(share);
    let mut share = open(&samba, &settings).unwrap();
    share.remove("large").unwrap();
    put(&mut share, "small", &bytes(400_000)).unwrap();
    assert!(get(&mut share, "small").unwrap() == bytes(400_000));
    drop((share, other));
    gateway.stop();
}

#[test]
fn a_connection_that_is_cut_in_the_middle_of_a_transfer_says_so_at_both_ends() {
    let Some(mut samba) = Samba::start(&[]) else {
        return;
    };
    let gateway = before(&samba);
    let settings = gateway.settings();
    let mut share = open(&samba, &settings).unwrap();
    let data = bytes(100_000);
    fs::write(samba.share().join("file"), &data).unwrap();
    // More than can be under way when the first piece is there.
    let size = 64 << 20;
    let large = fs::File::create(samba.share().join("large")).unwrap();
    large.set_len(size).unwrap();
    let file = share.open_read("large").unwrap();
    let mut cut = false;
    let read = share.read(&file, 0, size, |_, _| {
        if !cut {
            cut = true;
            samba.restart();
        }
        Ok(())
    });
    assert!(read.unwrap_err().is_unreachable());
    // The gateway serves the next one, and what is there is whole.
    let mut share = open(&samba, &settings).unwrap();
    assert!(get(&mut share, "file").unwrap() == data);
    drop(share);
    let ends = gateway.stop();
    assert!(matches!(ends[0].1, End::Closed | End::Lost(_)), "{ends:?}");
}

#[test]
fn auto_takes_tcp_where_there_is_no_smb_direct_and_says_so() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut settings = Settings {
        transport: Wanted::Auto,
        rdma_port: free.port(),
        ..Settings::default()
    };
    let mut share = open(&samba, &settings).unwrap();
    assert_eq!(share.connection().transport(), "TCP");
    let why = share.connection().instead().unwrap();
    assert!(why.contains("SMB Direct"), "{why}");
    round(&samba, &mut share);
    settings.transport = Wanted::Rdma;
    let error = open(&samba, &settings).unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    // What listens there may be something else.
    settings.rdma_port = samba.port;
    let error = open(&samba, &settings).unwrap_err();
    assert!(matches!(error, Error::Ended(_)), "{error}");
    settings.transport = Wanted::Auto;
    assert_eq!(
        open(&samba, &settings).unwrap().connection().transport(),
        "TCP"
    );
    let gateway = before(&samba);
    settings.rdma_port = gateway.port;
    let share = open(&samba, &settings).unwrap();
    assert_eq!(share.connection().transport(), "SMB Direct");
    assert_eq!(share.connection().instead(), None);
}

/// Sends one message through a gateway; how its connection ended.
fn send(gateway: &Running, message: &[u8]) -> Gone {
    let config = Config::new(Role::Initiator, Options::of(Role::Initiator));
    let mut endpoint = Endpoint::new(config).unwrap();
    let memory = endpoint
        .add_memory(Region::heap(message.len()).unwrap())
        .unwrap();
    endpoint.fill(memory, 0, message);
    let slice = Slice {
        memory,
        len: u32::try_from(message.len()).unwrap(),
        offset: 0,
    };
    let id = endpoint
        .connect(([127, 0, 0, 1], gateway.port).into())
        .unwrap();
    loop {
        endpoint.wait(None).unwrap();
        while let Some((_, happening)) = endpoint.poll() {
            match happening {
                Happening::Connected => {
                    endpoint.session(id).unwrap().send(&[slice]).unwrap();
                }
                Happening::Ended(gone) => return gone,
                _ => {}
            }
        }
    }
}

/// A server that says `bytes` when it was asked something, and closes when its client has.
fn saying(bytes: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut first = [0; 4];
            if stream.read_exact(&mut first).is_ok() {
                // Whoever has gone does not hear it.
                let _ = stream.write_all(&bytes);
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
    });
    address
}

fn echo() -> Vec<u8> {
    [Header::request(Asked::Echo).as_bytes(), &[4, 0, 0, 0]].concat()
}

#[test]
fn malformed_and_signed_requests_end_their_connection_by_name() {
    let gateway = Running::start(saying(Vec::new()), |_| {});
    send(&gateway, &b"\xFFSMB".repeat(20));
    send(&gateway, &[7; 3]);
    let request = WriteRequest {
        channel: channel::RDMA_V1.into(),
        remaining: 10.into(),
        ..WriteRequest::new()
    };
    let memory = Descriptor {
        offset: 0.into(),
        token: 7.into(),
        length: 10.into(),
    };
    let mut header = Header::request(Asked::Write);
    header.flags = flags::SIGNED.into();
    let signed = [header.as_bytes(), &request.body_with_memory(&[memory])].concat();
    send(&gateway, &signed);
    let ends = gateway.stop();
    let texts: Vec<_> = ends.iter().map(|(_, end)| end.to_string()).collect();
    assert!(
        texts[0].contains("the client's message: the message begins with"),
        "{texts:?}"
    );
    assert!(
        texts[1].contains("the client's message: an SMB2 header of 3 bytes"),
        "{texts:?}"
    );
    assert!(texts[2].contains("a gateway has no key"), "{texts:?}");
    assert!(
        ends.iter()
            .all(|(_, end)| matches!(end, End::Message(_)) && end.is_bad())
    );
}

#[test]
fn servers_that_are_no_smb_servers_have_their_names() {
    let long = [&0x0030_0000_u32.to_be_bytes()[..], &[1; 100]].concat();
    let text = b"HTTP/1.1 400 no".to_vec();
    let cut = [&100_u32.to_be_bytes()[..], &echo()[..20]].concat();
    for (bytes, why) in [(long, "a message of 3145728 bytes"), (text, "is 0x48")] {
        let gateway = Running::start(saying(bytes), |config| config.max_io = 1 << 20);
        send(&gateway, &echo());
        let ends = gateway.stop();
        let End::Message(core::Error::Server(error)) = &ends[0].1 else {
            panic!("{ends:?}");
        };
        assert!(error.to_string().contains(why), "{error}");
    }
    // One that dies in the middle of a message, and one that is not there.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&cut).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let gateway = Running::start(address, |config| {
        config.connect_within = Duration::from_secs(60);
    });
    send(&gateway, &echo());
    server.join().unwrap();
    send(&gateway, &echo());
    let ends = gateway.stop();
    assert!(matches!(&ends[0].1, End::Lost(_)), "{ends:?}");
    assert!(matches!(&ends[1].1, End::Connect { .. }), "{ends:?}");
}

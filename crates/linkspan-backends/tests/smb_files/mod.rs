//! What tests of files on shares have in common.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use linkspan_backends::smb::gateway::{self, End, FrontConfig, Gateway, Happened, Traffic};
use linkspan_backends::smb::{Error, Kind, Login, Room, Settings, Share, There, Wanted};
use linkspan_backends::smbdirect::{self, Endpoint};
use linkspan_smb2::negotiate::dialect;
use linkspan_smb2::status;
use linkspan_smbdirect::{Options, Role};
use linkspan_testkit::samba::{PASSWORD, Samba};

pub(crate) fn login(samba: &Samba) -> Login {
    Login {
        user: samba.user.clone(),
        password: PASSWORD.into(),
        ..Login::default()
    }
}

pub(crate) fn only(dialect: u16) -> Settings {
    Settings {
        dialects: vec![dialect],
        max_io: 65_536,
        ..Settings::default()
    }
}

pub(crate) fn open(samba: &Samba, settings: &Settings) -> Result<Share, Error> {
    Share::open("127.0.0.1", samba.port, "files", &login(samba), settings)
}

/// Bytes of which no two pieces are the same.
pub(crate) fn bytes(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_le_bytes()[7]
    };
    (0..len).map(|_| next()).collect()
}

pub(crate) fn put(share: &mut Share, path: &str, data: &[u8]) -> Result<(), Error> {
    let file = share.open_write(path, There::Replace)?;
    let source = |at: u64, piece: Room<'_>| {
        let at = usize::try_from(at).unwrap();
        let end = at + piece.len();
        piece.copy_from(&data[at..end]);
        Ok(())
    };
    let mut sum = 0;
    share.write(&file, 0, data.len() as u64, source, |count| sum += count)?;
    assert_eq!(sum, data.len() as u64);
    share.flush(&file)?;
    share.close(file)
}

pub(crate) fn get(share: &mut Share, path: &str) -> Result<Vec<u8>, Error> {
    let file = share.open_read(path)?;
    let mut data = vec![0; usize::try_from(file.meta.size).unwrap()];
    share.read(&file, 0, file.meta.size, |at, piece| {
        let at = usize::try_from(at).unwrap();
        piece.copy_to(&mut data[at..at + piece.len()]);
        Ok(())
    })?;
    share.close(file)?;
    Ok(data)
}

/// All that is done with files, and what lies on the server's disk then.
pub(crate) fn round(samba: &Samba, share: &mut Share) {
    // Several pieces, of which the last is short; ciphers are slow when they are not optimized.
    let data = bytes(300_000);
    share.make_folder("a folder").unwrap();
    share.make_folder("a folder").unwrap();
    put(share, "a folder/Größe €.bin", &data).unwrap();
    let there = samba.share().join("a folder/Größe €.bin");
    assert!(fs::read(&there).unwrap() == data, "{}", share.describe());
    assert!(get(share, "a folder/Größe €.bin").unwrap() == data);

    let meta = share.stat("a folder/Größe €.bin").unwrap();
    assert_eq!((meta.kind, meta.size), (Kind::File, data.len() as u64));
    assert_eq!(share.stat("a folder").unwrap().kind, Kind::Folder);
    let entries = share.list("a folder").unwrap();
    let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["Größe €.bin"]);

    let full = share.remove("a folder").unwrap_err();
    assert_eq!(full.status(), Some(status::DIRECTORY_NOT_EMPTY));
    share.rename("a folder/Größe €.bin", "b", false).unwrap();
    assert!(samba.share().join("b").exists());
    let file = share.open_write("b", There::Keep).unwrap();
    share.set_size(&file, 5).unwrap();
    share.close(file).unwrap();
    assert_eq!(get(share, "b").unwrap(), data[..5]);
    share.remove("b").unwrap();
    share.remove("a folder").unwrap();
    assert_eq!(fs::read_dir(samba.share()).unwrap().count(), 0);
    let (all, left) = share.room().unwrap();
    assert!(left <= all && all > 0);
}

/// What went over TCP: bytes both ways, how often SMB Direct was told of, and the end.
pub(crate) type Relayed = ([u64; 2], u64, End);

/// All that ended.
type Ends = (Vec<(Traffic, End)>, Vec<Relayed>);

/// A gateway on a thread of its own.
pub(crate) struct Running {
    pub(crate) port: u16,
    /// Where it hears clients over TCP.
    pub(crate) tcp_port: u16,
    thread: JoinHandle<Ends>,
    stop: UnixStream,
}

/// The number of the descriptor that ends it.
const STOP: u32 = 1;

impl Running {
    /// One before a server.
    pub(crate) fn start(server: SocketAddr, change: impl FnOnce(&mut gateway::Config)) -> Self {
        Self::start_for(server, 64, change)
    }

    /// The same, for so many clients over TCP of one address.
    pub(crate) fn start_for(
        server: SocketAddr,
        per_address: usize,
        change: impl FnOnce(&mut gateway::Config),
    ) -> Self {
        let mut config = gateway::Config::new(vec![server]);
        change(&mut config);
        let (stop, stopped) = UnixStream::pair().unwrap();
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            let options = Options::of(Role::Listener);
            let endpoint = Endpoint::new(smbdirect::Config::new(Role::Listener, options)).unwrap();
            let mut gateway = Gateway::new(endpoint, config).unwrap();
            let address = gateway.listen(([127, 0, 0, 1], 0).into()).unwrap();
            let front = FrontConfig {
                listen: ([127, 0, 0, 1], 0).into(),
                rdma: address.ip(),
                connections: 64,
                per_address,
            };
            let tcp = gateway.listen_tcp(front).unwrap();
            gateway.watch(&stopped, STOP).unwrap();
            tell.send((address.port(), tcp.port())).unwrap();
            let mut ends = Ends::default();
            let mut running = true;
            while running {
                gateway.turn(None).unwrap();
                running = gateway.watched().is_none();
                ended(&mut gateway, &mut ends);
            }
            gateway.stop().unwrap();
            ended(&mut gateway, &mut ends);
            let summary = gateway.summary();
            assert_eq!((summary.pairs, summary.buffers, summary.stalled), (0, 0, 0));
            assert_eq!(summary.relays, 0);
            ends
        });
        let (port, tcp_port) = told.recv().unwrap();
        Self {
            port,
            tcp_port,
            thread,
            stop,
        }
    }

    /// Through this gateway.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            transport: Wanted::Rdma,
            rdma_port: self.port,
            ..Settings::default()
        }
    }

    /// Ends it; what went through its connections, and why they are over.
    pub(crate) fn stop(self) -> Vec<(Traffic, End)> {
        self.stop_all().0
    }

    /// The same, with those over TCP.
    pub(crate) fn stop_all(mut self) -> Ends {
        self.stop.write_all(b"!").unwrap();
        self.thread.join().unwrap()
    }
}

fn ended(gateway: &mut Gateway, ends: &mut Ends) {
    while let Some(happened) = gateway.happened() {
        match happened {
            Happened::Ended { traffic, end, .. } => ends.0.push((traffic, end)),
            Happened::Relayed {
                bytes, told, end, ..
            } => ends.1.push((bytes, told, end)),
            Happened::Connected { .. } => {}
        }
    }
}

/// All dialects, with what has to be protected in them: signed, encrypted.
pub(crate) fn ways() -> impl Iterator<Item = (u16, bool, bool)> {
    let ways = [(false, false), (true, false), (true, true)];
    let all = dialect::ALL.iter();
    let all = all.flat_map(move |dialect| ways.map(|(sign, encrypt)| (*dialect, sign, encrypt)));
    all.filter(|(dialect, _, encrypt)| !encrypt || *dialect > dialect::SMB_2_1)
}

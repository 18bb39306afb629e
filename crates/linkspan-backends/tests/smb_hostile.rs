//! Servers that hold on to a client of files or to a disk, or that give them more than they can
//! take, and servers with few credits. Each is a thread with a script.

mod qemu;

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use linkspan_backends::image::{Image as _, Operation};
use linkspan_backends::smb::{Data, DiskOptions, Error, Login, Settings, Share, SmbImage};
use linkspan_smb2::create::{CloseResponse, CreateResponse, attributes};
use linkspan_smb2::header::{Command, Header, flags};
use linkspan_smb2::info::{Entry, EntryHeader, QueryDirectoryResponse, write_entries};
use linkspan_smb2::io::{ReadRequest, ReadResponse, WriteRequest, WriteResponse};
use linkspan_smb2::negotiate::{
    NegotiateResponse, Response as NegotiateFixed, capabilities, dialect,
};
use linkspan_smb2::notify::OplockBreak;
use linkspan_smb2::session::{DISK, SetupResponse, TreeConnectResponse, session_flags};
use linkspan_smb2::wire::Body as _;
use linkspan_smb2::{frame, spnego, status};
use qemu::{Rig, pattern};
use zerocopy::IntoBytes as _;

/// The longest READ that the server takes.
const SIZE: u32 = 1 << 20;

/// A connection, as the server has it.
struct Server {
    stream: TcpStream,
    /// Credits that the client is given when it has its share.
    credits: u16,
}

impl Server {
    /// The next message, if the client says one.
    fn message(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut prefix = [0; frame::PREFIX_LEN];
        self.stream.read_exact(&mut prefix).ok()?;
        let mut message = vec![0; frame::length(prefix, 1 << 23).unwrap()];
        self.stream.read_exact(&mut message).ok()?;
        Some((Header::parse(&message).unwrap(), message))
    }

    /// Whether the client still takes these bytes.
    fn say(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    fn answer(&mut self, request: &Header, status: u32, body: &[u8]) -> bool {
        let mut header = *request;
        header.flags = flags::RESPONSE.into();
        header.status = status.into();
        header.session_id = 7.into();
        header.credits = match request.command() {
            Ok(Command::TreeConnect) => self.credits,
            _ => request.credit_charge.get().max(1),
        }
        .into();
        self.tell(&header, body)
    }

    fn tell(&mut self, header: &Header, body: &[u8]) -> bool {
        let message = [header.as_bytes(), body].concat();
        let prefix = frame::prefix(message.len()).unwrap();
        self.say(&[&prefix[..], &message].concat())
    }

    /// Logs nobody on, and gives it the share.
    fn log_on(&mut self) {
        let (header, _) = self.message().unwrap();
        let response = NegotiateResponse {
            fixed: NegotiateFixed {
                dialect: dialect::SMB_3_0.into(),
                capabilities: capabilities::LARGE_MTU.into(),
                max_transact_size: SIZE.into(),
                max_read_size: SIZE.into(),
                max_write_size: SIZE.into(),
                ..NegotiateFixed::new()
            },
            token: b"",
            contexts: Default::default(),
        };
        self.answer(&header, status::SUCCESS, &response.body());
        let (header, _) = self.message().unwrap();
        // NTLM with Unicode and the security of version 2 (MS-NLMP 2.2.1.2).
        let mut challenge = b"NTLMSSP\0\x02\0\0\0".to_vec();
        challenge.extend([0; 8]);
        challenge.extend(0x0008_0201_u32.to_le_bytes());
        challenge.extend([9; 8]);
        challenge.extend([0; 16]);
        let token = spnego::response(&challenge, None);
        let body = SetupResponse::new().body(&token).unwrap();
        self.answer(&header, status::MORE_PROCESSING_REQUIRED, &body);
        let (header, _) = self.message().unwrap();
        let setup = SetupResponse {
            session_flags: session_flags::IS_NULL.into(),
            ..SetupResponse::new()
        };
        let body = setup.body(b"").unwrap();
        self.answer(&header, status::SUCCESS, &body);
        let (header, _) = self.message().unwrap();
        let tree = TreeConnectResponse {
            share_type: DISK,
            ..TreeConnectResponse::new()
        };
        self.answer(&header, status::SUCCESS, tree.as_bytes());
    }

    /// Opens a file of this size, or a folder.
    fn open(&mut self, size: u64) {
        let (header, _) = self.message().unwrap();
        assert_eq!(header.command(), Ok(Command::Create));
        let folder = attributes::DIRECTORY;
        let created = CreateResponse {
            end_of_file: size.into(),
            attributes: if size == 0 { folder } else { 0 }.into(),
            ..CreateResponse::new()
        };
        self.answer(&header, status::SUCCESS, &created.body(&[]));
    }

    fn close(&mut self, request: &Header) {
        assert_eq!(request.command(), Ok(Command::Close));
        self.answer(request, status::SUCCESS, CloseResponse::new().as_bytes());
    }
}

/// A server with this script, and its port.
fn serve<T: Send + 'static>(
    credits: u16,
    script: impl FnOnce(&mut Server) -> T + Send + 'static,
) -> (JoinHandle<T>, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        script(&mut Server { stream, credits })
    });
    (thread, port)
}

fn open(port: u16, patience: Duration) -> Result<Share, Error> {
    let settings = Settings {
        patience,
        ..Settings::default()
    };
    Share::open("127.0.0.1", port, "files", &Login::default(), &settings)
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

/// Ours: any byte began the time again in which the server has to answer.
#[test]
fn a_byte_now_and_then_is_no_answer() {
    let (server, port) = serve(1, |server| {
        server.message().unwrap();
        // The begin of a message of 60,000 bytes.
        server.say(&60_000_u32.to_be_bytes());
        server.stream.set_read_timeout(Some(SHORT / 20)).unwrap();
        // A moment in which the client may go, and the next one.
        let waits = |server: &mut Server| !matches!(server.stream.read(&mut [0]), Ok(0));
        (0..1000)
            .take_while(|_| waits(server) && server.say(&[0]))
            .count()
    });
    let error = open(port, SHORT).unwrap_err();
    assert!(matches!(error, Error::Silent(_)), "{error}");
    assert!(server.join().unwrap() < 1000);
}

/// Ours: so did each break of an oplock that nobody had.
#[test]
fn an_oplock_that_nobody_has_is_not_taken_back() {
    let (server, port) = serve(64, |server| {
        server.log_on();
        let (mut header, _) = server.message().unwrap();
        header.command = (Command::OplockBreak as u16).into();
        header.flags = flags::RESPONSE.into();
        header.message_id = u64::MAX.into();
        server.tell(&header, OplockBreak::new().as_bytes());
        // Nothing else comes.
        assert!(server.message().is_none());
    });
    let mut share = open(port, LONG).unwrap();
    let error = share.open_read("file").unwrap_err();
    assert!(
        error.to_string().contains("takes back an oplock"),
        "{error}"
    );
    drop(share);
    server.join().unwrap();
}

/// Ours: the limit was a number of entries, whatever they took; the folder itself, which is
/// left out, was none.
#[test]
fn a_folder_that_does_not_end_is_given_up() {
    let (server, port) = serve(64, |server| {
        server.log_on();
        server.open(0);
        let entry = Entry {
            fixed: EntryHeader::default(),
            name: ".".into(),
        };
        let mut output = write_entries(&[entry]);
        output.resize(1_000_000, 0);
        let body = QueryDirectoryResponse::new().body(&output);
        let mut answers = 0;
        loop {
            let (header, _) = server.message().unwrap();
            if header.command() != Ok(Command::QueryDirectory) {
                server.close(&header);
                return answers;
            }
            let more = answers < 400;
            let status = if more {
                status::SUCCESS
            } else {
                status::NO_MORE_FILES
            };
            server.answer(&header, status, &body);
            answers += 1;
        }
    });
    let mut share = open(port, LONG).unwrap();
    let error = share.list("folder").unwrap_err();
    assert!(error.to_string().contains("does not end"), "{error}");
    // 256 MiB, of 1 MB each.
    assert_eq!(server.join().unwrap(), 269);
}

/// Ours: a server that grants fewer than 16 credits had no piece of 1 MiB read.
#[test]
fn few_credits_make_short_pieces() {
    let total = 3 * u64::from(SIZE) + 5;
    for credits in [1, 7, 16, 20] {
        let (server, port) = serve(credits, move |server| {
            server.log_on();
            server.open(total);
            let mut lengths = Vec::new();
            loop {
                let (header, message) = server.message().unwrap();
                if header.command() != Ok(Command::Read) {
                    server.close(&header);
                    return lengths;
                }
                let length = ReadRequest::read(&message).unwrap().length.get();
                lengths.push(length);
                let body = ReadResponse::new().body(&vec![1; length as usize]);
                server.answer(&header, status::SUCCESS, &body);
            }
        });
        let mut share = open(port, LONG).unwrap();
        let file = share.open_read("file").unwrap();
        let mut got = 0;
        let sink = |_, piece: Data<'_>| {
            got += piece.len() as u64;
            Ok(())
        };
        share.read(&file, 0, total, sink).unwrap();
        share.close(file).unwrap();
        assert_eq!(got, total);
        let lengths = server.join().unwrap();
        let longest = lengths.iter().max().unwrap();
        assert_eq!(*longest, SIZE.min(u32::from(credits) * 65_536), "{credits}");
    }
}

/// The body of an error.
const ERROR: [u8; 9] = [9, 0, 0, 0, 0, 0, 0, 0, 0];

/// The file of a disk of 4096 bytes, of which all reads are cancelled as long as that is wanted.
fn disk_that_cancels(stream: TcpStream, wicked: &AtomicBool) {
    let mut server = Server {
        stream,
        credits: 64,
    };
    server.log_on();
    server.open(4096);
    while let Some((header, _)) = server.message() {
        match header.command() {
            Ok(Command::Read) if wicked.load(Ordering::Relaxed) => {
                server.answer(&header, status::CANCELLED, &ERROR);
            }
            Ok(Command::Read) => {
                let body = ReadResponse::new().body(&[1; 512]);
                server.answer(&header, status::SUCCESS, &body);
            }
            _ => server.close(&header),
        }
    }
}

/// Ours: it logged on again and again without a pause, and no request ever failed.
#[test]
fn a_server_that_cancels_all_has_pauses_and_the_time_limit() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (connections, cancels) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(true)),
    );
    let (counted, wicked) = (Arc::clone(&connections), Arc::clone(&cancels));
    thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::Relaxed);
            let stream = stream.unwrap();
            let wicked = Arc::clone(&wicked);
            // The client has the old one until it has a new one.
            thread::spawn(move || disk_that_cancels(stream, &wicked));
        }
    });
    let options = DiskOptions {
        read_only: true,
        lock_wait: Duration::ZERO,
        time_limit: Some(SHORT),
    };
    let image = SmbImage::open(open(port, LONG).unwrap(), "disk", &options).unwrap();
    let mut rig = Rig::new(&image);
    for _ in 0..2 {
        let error = rig.try_read(0, 512).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }
    // Pauses of 100 ms, 200 ms, and more, within twice 300 ms.
    let count = connections.load(Ordering::Relaxed);
    assert!(count <= 10, "{count} connections");
    cancels.store(false, Ordering::Relaxed);
    while rig.try_read(0, 512).is_err() {
        thread::yield_now();
    }
    assert_eq!(rig.read(0, 512), [1; 512]);
}

/// The file of a disk: it is read, written, flushed, and does not know how to make zeroes.
fn disk_with_credits(server: &mut Server, mut content: Vec<u8>) -> Vec<u8> {
    server.log_on();
    server.open(content.len() as u64);
    while let Some((header, message)) = server.message() {
        match header.command().unwrap() {
            Command::Read => {
                let read = ReadRequest::read(&message).unwrap();
                let (at, len) = (read.offset.get(), read.length.get() as usize);
                let at = usize::try_from(at).unwrap();
                let body = ReadResponse::new().body(&content[at..at + len]);
                server.answer(&header, status::SUCCESS, &body);
            }
            Command::Write => {
                let write = WriteRequest::read(&message).unwrap();
                let data = write.data(&message).unwrap();
                let at = usize::try_from(write.offset.get()).unwrap();
                content[at..at + data.len()].copy_from_slice(data);
                let written = WriteResponse {
                    count: write.length,
                    ..WriteResponse::new()
                };
                server.answer(&header, status::SUCCESS, written.as_bytes());
            }
            Command::Flush => {
                server.answer(&header, status::SUCCESS, &[4, 0, 0, 0]);
            }
            Command::Ioctl => {
                server.answer(&header, status::NOT_SUPPORTED, &ERROR);
            }
            _ => {
                server.close(&header);
                break;
            }
        }
    }
    content
}

#[test]
fn a_disk_gets_on_with_few_credits() {
    let before = pattern(2 << 20, 1);
    for credits in [1, 7, 20] {
        let content = before.clone();
        let script = move |server: &mut Server| disk_with_credits(server, content);
        let (server, port) = serve(credits, script);
        let options = DiskOptions {
            read_only: false,
            lock_wait: Duration::ZERO,
            time_limit: None,
        };
        let image = SmbImage::open(open(port, LONG).unwrap(), "disk", &options).unwrap();
        let mut want = before.clone();
        thread::scope(|scope| {
            for (part, want) in want.chunks_mut(1 << 20).enumerate() {
                let image = &image;
                scope.spawn(move || {
                    let begin = part << 20;
                    let mut rig = Rig::new(image);
                    let data = pattern((1 << 20) - 512, 2);
                    rig.write(begin + 512, &data, true);
                    want[512..].copy_from_slice(&data);
                    rig.run(Operation::WriteZeroes {
                        offset: (begin + 8192) as u64,
                        len: 100 << 10,
                        unmap: true,
                        durable: false,
                    });
                    want[8192..8192 + (100 << 10)].fill(0);
                    rig.run(Operation::Flush);
                    assert!(rig.read(begin, 1 << 20) == *want);
                });
            }
        });
        image.sync().unwrap();
        drop(image);
        assert!(server.join().unwrap() == want);
    }
}

/// Ours: one request that was never answered waited for ever while others went on.
#[test]
fn a_request_that_others_overtake_again_and_again_is_not_waited_for_for_ever() {
    let (server, port) = serve(64, |server| {
        server.log_on();
        server.open(4096);
        let mut answers = 0;
        while let Some((header, message)) = server.message() {
            // All but those of the first sector.
            let read = ReadRequest::read(&message);
            if read.is_ok_and(|read| read.offset.get() > 0) {
                let body = ReadResponse::new().body(&[1; 512]);
                server.answer(&header, status::SUCCESS, &body);
                answers += 1;
            }
        }
        answers
    });
    let options = DiskOptions {
        read_only: true,
        lock_wait: Duration::ZERO,
        time_limit: Some(SHORT),
    };
    let image = SmbImage::open(open(port, 10 * SHORT).unwrap(), "disk", &options).unwrap();
    let stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut rig = Rig::new(&image);
            // Answers come all the time.
            while !stopped.load(Ordering::Relaxed) {
                if rig.try_read(512, 512).is_err() {
                    break;
                }
            }
        });
        let error = Rig::new(&image).try_read(0, 512).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        stopped.store(true, Ordering::Relaxed);
        other.join().unwrap();
    });
    drop(image);
    assert!(server.join().unwrap() > 0);
}

//! A server that says what cannot be to who has mounted it, that refuses, or is lost in the middle
//! of something: that is an error where it has to be one, and the mount goes on.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use linkspan_backends::smb::{Login, Mount, MountOptions, Settings, Share};
use linkspan_smb2::create::{
    CloseResponse, CreateRequest, CreateResponse, FileId, attributes, disposition, options,
};
use linkspan_smb2::header::{Command, Header, flags};
use linkspan_smb2::info::{
    Entry, EntryHeader, QueryDirectoryRequest, QueryDirectoryResponse, SetInfoRequest, class,
    write_entries,
};
use linkspan_smb2::io::{ReadRequest, ReadResponse, WriteRequest, WriteResponse};
use linkspan_smb2::negotiate::{
    NegotiateResponse, Response as NegotiateFixed, capabilities, dialect,
};
use linkspan_smb2::session::{DISK, SetupResponse, TreeConnectResponse, session_flags};
use linkspan_smb2::wire::Body as _;
use linkspan_smb2::{frame, from_utf16, spnego, status};
use rustix::io::Errno;
use tempfile::TempDir;
use zerocopy::IntoBytes as _;

const SIZE: u32 = 1 << 20;

/// The body of an error.
const ERROR: [u8; 9] = [9, 0, 0, 0, 0, 0, 0, 0, 0];

/// What is on the share: the names, whether they are folders, and their sizes.
const THERE: &[(&str, bool, u64)] = &[
    ("", true, 0),
    ("slash", true, 0),
    ("zero", true, 0),
    ("dots", true, 0),
    ("sizes", true, 0),
    ("huge", false, u64::MAX),
    ("fine", false, 4),
    ("stranger", false, 4),
    // Nobody gives it another name.
    ("stubborn", false, 4),
    // When it has got another name the connection is lost.
    ("fragile", false, 4),
    // What is written there cannot be made durable at first.
    ("full", false, 0),
    ("endless", true, 0),
    ("empty", true, 0),
    // As the stubborn one.
    ("heavy", true, 0),
    // Whatever is made, and what others have made before.
    (MADE, false, 0),
    (MADE_FOLDER, true, 0),
    (OTHERS, false, 0),
    (OTHERS_FOLDER, true, 0),
];

const MADE: &str = "made";
const MADE_FOLDER: &str = "made folder";
const OTHERS: &str = "others'";
const OTHERS_FOLDER: &str = "others' folder";

/// When the server is asked, and when something was made: 100 ns since 1601, 1000 s later. What
/// others have is older.
const NOW: u64 = 134_000_000_000_000_000;
const LATER: u64 = NOW + 10_000_000_000;

/// Names that a server has no right to.
fn listed(folder: &str) -> Vec<(&'static str, u64)> {
    match folder {
        "slash" => vec![("fine", 1), ("a/../../b", 1)],
        "zero" => vec![("a\0b", 1)],
        "dots" => vec![(".", 1), ("..", 1), ("\u{F029}\u{F029}", 1), ("x", 1)],
        "sizes" => vec![("too large", u64::MAX), ("fine", 4)],
        _ => Vec::new(),
    }
}

/// What all connections of a server have in common.
struct Common {
    /// Where in [`THERE`] what has which name is.
    names: BTreeMap<String, usize>,
    /// What was renamed and removed.
    done: Vec<String>,
    /// Whether the connection is to be lost, and the disk is to be full: once.
    breaks: bool,
    is_full: bool,
}

/// A connection, as the server has it.
struct Server {
    stream: TcpStream,
    /// The folder that was listed last.
    listed: Option<u64>,
    common: Arc<Mutex<Common>>,
}

impl Common {
    fn new() -> Self {
        let names = THERE.iter().enumerate();
        Self {
            names: names.map(|(at, there)| (there.0.into(), at)).collect(),
            done: Vec::new(),
            breaks: true,
            is_full: true,
        }
    }

    /// Renames or removes; `None` if the connection is lost with that.
    fn set(&mut self, message: &[u8]) -> Option<u32> {
        let set = SetInfoRequest::read(message).unwrap();
        let at = usize::try_from(set.file.volatile.get()).unwrap();
        let input = set.input(message).unwrap();
        let own = self.names.iter().find(|it| *it.1 == at);
        let name = own.map(|it| it.0.clone()).unwrap_or_default();
        match set.class {
            class::RENAME => {
                let len = u32::from_le_bytes(input[16..20].try_into().unwrap());
                let len = usize::try_from(len).unwrap();
                let to = from_utf16("a name", &input[20..20 + len]).unwrap();
                if ["stubborn", "heavy"].contains(&&name[..]) || self.names.contains_key(&to) {
                    return Some(status::ACCESS_DENIED);
                }
                self.names.remove(&name);
                self.done.push(format!("{name} > {to}"));
                self.names.insert(to, at);
                if name == "fragile" && std::mem::take(&mut self.breaks) {
                    return None;
                }
            }
            class::DISPOSITION => {
                self.names.remove(&name);
                self.done.push(format!("{} removed", THERE[at].0));
            }
            _ => {}
        }
        Some(status::SUCCESS)
    }
}

/// An answer about a folder that comes again and again.
fn endless() -> &'static [u8] {
    static ANSWER: OnceLock<Vec<u8>> = OnceLock::new();
    ANSWER.get_or_init(|| {
        // One entry, and bytes behind it: only those are bounded.
        let mut output = write_entries(&[Entry {
            fixed: EntryHeader::default(),
            name: "x".into(),
        }]);
        output.resize(65_000, 0);
        QueryDirectoryResponse::new().body(&output)
    })
}

/// The place of what has this name from the beginning.
fn place(name: &str) -> usize {
    THERE.iter().position(|there| there.0 == name).unwrap()
}

impl Server {
    /// The next message, if the client says one.
    fn message(&mut self) -> Option<Vec<u8>> {
        let mut prefix = [0; frame::PREFIX_LEN];
        self.stream.read_exact(&mut prefix).ok()?;
        let mut message = vec![0; frame::length(prefix, 1 << 23).unwrap()];
        self.stream.read_exact(&mut message).ok()?;
        Some(message)
    }

    fn answer(&mut self, request: &Header, status: u32, body: &[u8]) {
        let mut header = *request;
        header.flags = flags::RESPONSE.into();
        header.status = status.into();
        header.session_id = 7.into();
        header.next_command = 0.into();
        header.credits = match request.command() {
            Ok(Command::TreeConnect) => 64,
            _ => request.credit_charge.get().max(1),
        }
        .into();
        let message = [header.as_bytes(), body].concat();
        let prefix = frame::prefix(message.len()).unwrap();
        let _ = self.stream.write_all(&[&prefix[..], &message].concat());
    }

    /// Logs nobody on, and gives it the share.
    fn negotiate(&mut self, header: &Header) {
        let response = NegotiateResponse {
            fixed: NegotiateFixed {
                dialect: dialect::SMB_3_0.into(),
                capabilities: capabilities::LARGE_MTU.into(),
                max_transact_size: SIZE.into(),
                max_read_size: SIZE.into(),
                max_write_size: SIZE.into(),
                system_time: NOW.into(),
                ..NegotiateFixed::new()
            },
            token: b"",
            contexts: Default::default(),
        };
        self.answer(header, status::SUCCESS, &response.body());
    }

    fn log_on(&mut self, header: &Header) {
        if header.session_id.get() != 0 {
            let setup = SetupResponse {
                session_flags: session_flags::IS_NULL.into(),
                ..SetupResponse::new()
            };
            return self.answer(header, status::SUCCESS, &setup.body(b"").unwrap());
        }
        // NTLM with Unicode and the security of version 2 (MS-NLMP 2.2.1.2).
        let mut challenge = b"NTLMSSP\0\x02\0\0\0".to_vec();
        challenge.extend([0; 8]);
        challenge.extend(0x0008_0201_u32.to_le_bytes());
        challenge.extend([9; 8]);
        challenge.extend([0; 16]);
        let body = SetupResponse::new().body(&spnego::response(&challenge, None));
        self.answer(header, status::MORE_PROCESSING_REQUIRED, &body.unwrap());
    }

    /// Opens or makes; `None` if the connection is lost with that.
    fn create(&mut self, header: &Header, message: &[u8]) -> Option<()> {
        let request = CreateRequest::read(message).unwrap();
        let name = from_utf16("a name", request.name(message).unwrap()).unwrap();
        let makes = request.disposition.get() == disposition::CREATE;
        let folder = request.options.get() & options::DIRECTORY_FILE != 0;
        let mut common = self.common.lock().unwrap();
        let at = match common.names.get(&name) {
            Some(_) if makes => Err(status::OBJECT_NAME_COLLISION),
            Some(at) => Ok(*at),
            None if makes => {
                let is_others = name.starts_with("taken");
                let at = place(match (is_others, folder) {
                    (false, false) => MADE,
                    (false, true) => MADE_FOLDER,
                    (true, false) => OTHERS,
                    (true, true) => OTHERS_FOLDER,
                });
                common.names.insert(name.clone(), at);
                common.done.push(format!("{name} made"));
                let is_lost = is_others || name.starts_with("lost");
                if is_lost && std::mem::take(&mut common.breaks) {
                    return None;
                }
                Ok(at)
            }
            None => Err(status::OBJECT_NAME_NOT_FOUND),
        };
        drop(common);
        let at = match at {
            Ok(at) => at,
            Err(said) => {
                self.answer(header, said, &ERROR);
                return Some(());
            }
        };
        let (_, folder, size) = THERE[at];
        let kind = if folder {
            attributes::DIRECTORY
        } else {
            attributes::NORMAL
        };
        let number = at as u64;
        let is_new = [MADE, MADE_FOLDER].contains(&THERE[at].0);
        let created = CreateResponse {
            created: if is_new { LATER } else { NOW / 2 }.into(),
            end_of_file: size.into(),
            attributes: kind.into(),
            file: FileId {
                persistent: number.into(),
                volatile: number.into(),
            },
            ..CreateResponse::new()
        };
        self.answer(header, status::SUCCESS, &created.body(&[]));
        Some(())
    }

    fn list(&mut self, header: &Header, message: &[u8]) {
        let file = QueryDirectoryRequest::read(message)
            .unwrap()
            .file
            .volatile
            .get();
        let is_endless = file == place("endless") as u64;
        if self.listed.replace(file) == Some(file) && !is_endless {
            self.listed = None;
            return self.answer(header, status::NO_MORE_FILES, &ERROR);
        }
        let names = listed(THERE[usize::try_from(file).unwrap()].0);
        let entries: Vec<_> = names
            .into_iter()
            .map(|(name, size)| Entry {
                fixed: EntryHeader {
                    end_of_file: size.into(),
                    ..EntryHeader::default()
                },
                name: name.into(),
            })
            .collect();
        if is_endless {
            return self.answer(header, status::SUCCESS, endless());
        }
        let (status, body) = match entries.is_empty() {
            true => (status::NO_MORE_FILES, ERROR.to_vec()),
            false => {
                let body = QueryDirectoryResponse::new().body(&write_entries(&entries));
                (status::SUCCESS, body)
            }
        };
        self.answer(header, status, &body);
    }

    fn read(&mut self, header: &Header, message: &[u8]) {
        let file = ReadRequest::read(message).unwrap().file.volatile.get();
        let body = ReadResponse::new().body(b"text");
        let mut header = *header;
        if THERE[usize::try_from(file).unwrap()].0 == "stranger" {
            // To a request that nobody made.
            header.message_id = (header.message_id.get() + 1000).into();
        }
        self.answer(&header, status::SUCCESS, &body);
    }

    fn write(&mut self, header: &Header, message: &[u8]) {
        let written = WriteResponse {
            count: WriteRequest::read(message).unwrap().length,
            ..WriteResponse::new()
        };
        self.answer(header, status::SUCCESS, written.as_bytes());
    }

    fn flush(&mut self, header: &Header) {
        let is_full = std::mem::take(&mut self.common.lock().unwrap().is_full);
        match is_full {
            true => self.answer(header, status::DISK_FULL, &ERROR),
            false => self.answer(header, status::SUCCESS, CloseResponse::new().as_bytes()),
        }
    }

    fn serve(&mut self) {
        while let Some(whole) = self.message() {
            let mut rest = &whole[..];
            loop {
                let header = Header::parse(rest).unwrap();
                let next = header.next_command.get() as usize;
                let message = if next > 0 { &rest[..next] } else { rest };
                match header.command().unwrap() {
                    Command::Negotiate => self.negotiate(&header),
                    Command::SessionSetup => self.log_on(&header),
                    Command::TreeConnect => {
                        let tree = TreeConnectResponse {
                            share_type: DISK,
                            ..TreeConnectResponse::new()
                        };
                        self.answer(&header, status::SUCCESS, tree.as_bytes());
                    }
                    Command::Create => {
                        if self.create(&header, message).is_none() {
                            return;
                        }
                    }
                    Command::QueryDirectory => self.list(&header, message),
                    Command::Read => self.read(&header, message),
                    Command::Write => self.write(&header, message),
                    Command::Flush => self.flush(&header),
                    Command::SetInfo => {
                        let set = self.common.lock().unwrap().set(message);
                        match set {
                            None => return,
                            Some(status::SUCCESS) => {
                                let body = CloseResponse::new();
                                self.answer(&header, status::SUCCESS, body.as_bytes());
                            }
                            Some(said) => self.answer(&header, said, &ERROR),
                        }
                    }
                    _ => self.answer(&header, status::SUCCESS, CloseResponse::new().as_bytes()),
                }
                if next == 0 {
                    break;
                }
                rest = &rest[next..];
            }
        }
    }
}

/// A server, and its port. It lives as long as this process.
fn serve() -> (Arc<Mutex<Common>>, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let common = Arc::new(Mutex::new(Common::new()));
    let all = Arc::clone(&common);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let common = Arc::clone(&all);
            thread::spawn(move || {
                let listed = None;
                let mut server = Server {
                    stream,
                    listed,
                    common,
                };
                server.serve();
            });
        }
    });
    (common, port)
}

/// A share of such a server that is mounted.
fn mounted() -> Option<(Arc<Mutex<Common>>, TempDir, Mount)> {
    if !can_mount() {
        return None;
    }
    let (common, port) = serve();
    let settings = Settings::default();
    let share = Share::open("127.0.0.1", port, "files", &Login::default(), &settings).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let options = MountOptions {
        time_limit: Some(Duration::from_secs(60)),
        ..MountOptions::default()
    };
    let mount = Mount::start(share, "", folder.path(), &options, |_| ()).unwrap();
    Some((common, folder, mount))
}

fn end(mount: Mount) {
    mount.unmount().unwrap();
    mount.join().unwrap();
}

fn can_mount() -> bool {
    let fuse = File::options().read(true).write(true).open("/dev/fuse");
    let can = fuse.is_ok() && rustix::process::geteuid().is_root();
    if !can {
        drop(writeln!(
            io::stderr(),
            "SKIP a mount by FUSE: it takes root and /dev/fuse ({fuse:?})"
        ));
    }
    can
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().into_string().unwrap());
    }
    Ok(names)
}

#[test]
fn what_cannot_be_is_refused_and_the_mount_goes_on() {
    let Some((_, folder, mount)) = mounted() else {
        return;
    };
    let at = |name: &str| folder.path().join(name);
    let errno = |error: io::Error| error.raw_os_error();
    let fails = Some(Errno::IO.raw_os_error());
    for name in ["slash", "zero"] {
        assert_eq!(names(&at(name)).map_err(errno), Err(fails), "{name}");
    }
    assert_eq!(names(&at("dots")).unwrap(), ["\u{F029}\u{F029}", "x"]);
    assert_eq!(names(&at("sizes")).unwrap(), ["fine"]);
    let huge = fs::metadata(at("huge")).map_err(errno).unwrap_err();
    assert_eq!(huge, Some(Errno::OVERFLOW.raw_os_error()));
    assert_eq!(fs::read(at("stranger")).map_err(errno), Err(fails));
    // On another connection.
    assert_eq!(fs::read(at("fine")).unwrap(), b"text");
    end(mount);
}

/// Ours: what was open where a file was to go had another name after that was refused, and was
/// removed when it was closed.
#[test]
fn what_is_not_replaced_after_all_has_its_name_back() {
    let Some((common, folder, mount)) = mounted() else {
        return;
    };
    let at = |name: &str| folder.path().join(name);
    let file = File::open(at("fine")).unwrap();
    let error = fs::rename(at("stubborn"), at("fine")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    drop(file);
    assert_eq!(fs::read(at("fine")).unwrap(), b"text");
    end(mount);
    let common = common.lock().unwrap();
    let [hidden, shown] = &common.done[..] else {
        panic!("{:?}", common.done);
    };
    assert!(hidden.starts_with("fine > .linkspan-"), "{hidden}");
    assert!(shown.ends_with(" > fine"), "{shown}");
}

/// Ours: what had another name since it was replaced while it was open kept that for ever if the
/// connection was lost with the answer.
#[test]
fn what_is_replaced_when_the_connection_is_lost_goes_when_it_is_closed() {
    let Some((common, folder, mount)) = mounted() else {
        return;
    };
    let at = |name: &str| folder.path().join(name);
    let file = File::open(at("fragile")).unwrap();
    fs::rename(at("fine"), at("fragile")).unwrap();
    drop(file);
    end(mount);
    let common = common.lock().unwrap();
    let [hidden, moved, removed] = &common.done[..] else {
        panic!("{:?}", common.done);
    };
    assert!(hidden.starts_with("fragile > .linkspan-"), "{hidden}");
    assert_eq!(
        (&moved[..], &removed[..]),
        ("fine > fragile", "fragile removed")
    );
}

/// Ours: who wrote never heard of a flush that failed before somebody asked for one.
#[test]
fn a_flush_that_fails_unasked_is_an_error_of_the_next_one() {
    const LEN: usize = 1 << 20;
    let Some((_, folder, mount)) = mounted() else {
        return;
    };
    let path = folder.path().join("full");
    let mut file = File::options().write(true).open(path).unwrap();
    // Flushes are asked for at 32 MiB each: one that fails, and one that does not.
    for _ in 0..80 {
        file.write_all(&vec![1; LEN]).unwrap();
    }
    let error = file.sync_all().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    file.sync_all().unwrap();
    drop(file);
    end(mount);
}

/// Ours: what was made with an answer that was lost was there already when it was asked for again,
/// or, worse, what others had made was taken for it, and emptied.
#[test]
fn what_has_to_be_new_is_ones_own_and_not_others_when_the_connection_is_lost() {
    for (name, is_own) in [("lost", true), ("taken", false)] {
        for folder in [false, true] {
            let Some((common, mountpoint, mount)) = mounted() else {
                return;
            };
            let path = mountpoint.path().join(name);
            let made = match folder {
                false => File::create_new(&path).map(drop),
                true => fs::create_dir(&path),
            };
            let made = made.map_err(|error| error.kind());
            let want = is_own.then_some(()).ok_or(io::ErrorKind::AlreadyExists);
            assert_eq!(made, want, "{name} {folder}");
            end(mount);
            assert_eq!(common.lock().unwrap().done, [format!("{name} made")]);
        }
    }
}

/// Ours: where a folder was to take the place of an empty one and could not, that was gone.
#[test]
fn an_empty_folder_that_is_not_replaced_after_all_is_there_again() {
    let Some((common, folder, mount)) = mounted() else {
        return;
    };
    let at = |name: &str| folder.path().join(name);
    let error = fs::rename(at("heavy"), at("empty")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    assert!(fs::metadata(at("empty")).unwrap().is_dir());
    assert!(fs::metadata(at("heavy")).unwrap().is_dir());
    end(mount);
    assert_eq!(common.lock().unwrap().done, ["empty removed", "empty made"]);
}

#[test]
fn a_folder_that_does_not_end_is_an_error_and_the_mount_goes_on() {
    let Some((_, folder, mount)) = mounted() else {
        return;
    };
    let error = fs::read_dir(folder.path().join("endless"))
        .and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let errno = error.unwrap_err().raw_os_error();
    assert_eq!(errno, Some(Errno::IO.raw_os_error()));
    assert_eq!(fs::read(folder.path().join("fine")).unwrap(), b"text");
    end(mount);
}

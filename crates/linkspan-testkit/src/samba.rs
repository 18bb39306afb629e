//! Samba's server in a folder of its own, at a port that needs no privilege.

use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use crate::census::settled;

/// The password of the one user.
pub const PASSWORD: &str = "Correct horse 1";

/// A server that runs. It ends with this.
#[derive(Debug)]
pub struct Samba {
    folder: TempDir,
    server: Child,
    /// At 127.0.0.1.
    pub port: u16,
    /// Its one user: whoever runs the test.
    pub user: String,
}

/// Ports that Linux gives to nobody who asks for any: such a one may be given to another test before
/// the server listens there, and while it is restarted.
const PORTS: Range<u16> = 16_384..32_768;

/// A port at which nobody listens.
fn free_port() -> u16 {
    let count = u64::from(PORTS.end - PORTS.start);
    let any = |_| {
        let random = RandomState::new().hash_one(std::process::id());
        PORTS.start + u16::try_from(random % count).unwrap()
    };
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (0..100).map(any).find(is_free).expect("a free port")
}

/// Lines of the configuration that every server here has.
fn common(folder: &Path, port: u16) -> String {
    let mut text = format!(
        "[global]\n server role = standalone server\n interfaces = 127.0.0.1\n \
         bind interfaces only = yes\n smb ports = {port}\n disable netbios = yes\n \
         disable spoolss = yes\n load printers = no\n server min protocol = SMB2_10\n \
         log file = {0}/log\n log level = 1\n ncalrpc dir = {0}/state/ncalrpc\n",
        folder.display()
    );
    for kind in [
        "private dir",
        "lock directory",
        "state directory",
        "cache directory",
        "pid directory",
    ] {
        text += &format!(" {kind} = {}/state\n", folder.display());
    }
    text
}

impl Samba {
    /// Starts one with these lines in its global part, and the shares `files`, and
    /// `fixed`, which is the same folder and read-only. `None`, and said, if there is no Samba.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start(global: &[&str]) -> Option<Self> {
        Self::start_below(&std::env::temp_dir(), global)
    }

    /// The same, with its files in a folder below `place`.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start_below(place: &Path, global: &[&str]) -> Option<Self> {
        if Command::new("smbd").arg("--version").output().is_err() {
            drop(writeln!(
                std::io::stderr(),
                "SKIP a real SMB server: the package samba is missing"
            ));
            return None;
        }
        let folder = tempfile::tempdir_in(place).unwrap();
        for name in ["state", "share"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let port = free_port();
        let mut text = common(folder.path(), port);
        for line in global {
            text += &format!(" {line}\n");
        }
        let share = folder.path().join("share");
        text += &format!(
            "[files]\n path = {0}\n read only = no\n guest ok = yes\n\
            [fixed]\n path = {0}\n read only = yes\n",
            share.display()
        );
        let configuration = folder.path().join("smb.conf");
        fs::write(&configuration, text).unwrap();
        let user = Command::new("id").arg("-un").output().unwrap().stdout;
        let user = String::from_utf8(user).unwrap().trim().to_string();
        add_user(&configuration, &user);
        let server = serve(&configuration, port);
        Some(Self {
            folder,
            server,
            port,
            user,
        })
    }

    /// The folder that is shared.
    #[must_use]
    pub fn share(&self) -> PathBuf {
        self.folder.path().join("share")
    }

    /// The server's process, and the group of all that serve its connections.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.server.id()
    }

    /// Ends the server and all that serve its connections.
    ///
    /// # Panics
    /// It does not end.
    pub fn stop(&mut self) {
        let group = Pid::from_child(&self.server);
        let _ = kill_process_group(group, Signal::KILL);
        self.server.wait().unwrap();
    }

    /// Starts it again, at the same port.
    ///
    /// # Panics
    /// It does not start.
    pub fn restart(&mut self) {
        self.stop();
        self.server = serve(&self.folder.path().join("smb.conf"), self.port);
    }
}

impl Drop for Samba {
    fn drop(&mut self) {
        self.stop();
    }
}

fn add_user(configuration: &Path, user: &str) {
    let mut command = Command::new("smbpasswd");
    command
        .arg("-c")
        .arg(configuration)
        .args(["-s", "-a", user]);
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let twice = format!("{PASSWORD}\n{PASSWORD}\n");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(twice.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success(), "smbpasswd adds no {user}");
}

fn serve(configuration: &Path, port: u16) -> Child {
    let mut command = crate::program("smbd");
    command
        .arg("-s")
        .arg(configuration)
        .args(["-F", "--no-process-group"]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0);
    let mut server = command.spawn().unwrap();
    let mut listens = || {
        if let Some(status) = server.try_wait().unwrap() {
            let log = fs::read_to_string(configuration.with_file_name("log"));
            panic!("smbd has ended with {status}: {}", log.unwrap_or_default());
        }
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    };
    // It has much to do before that, and others run.
    assert!(
        (0..3).any(|_| settled(&mut listens)),
        "smbd does not listen"
    );
    server
}

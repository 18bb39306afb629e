//! A mount as a program, and the servers that it is of.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use linkspan_testkit::census::settled;
use linkspan_testkit::samba::{PASSWORD, Samba};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::programs::Program;

/// Whether this machine mounts by FUSE; says why not.
pub(crate) fn can_mount() -> bool {
    let fuse = File::options().read(true).write(true).open("/dev/fuse");
    let why = match fuse {
        Err(error) => format!("/dev/fuse: {error}"),
        Ok(_) if !rustix::process::geteuid().is_root() => "only root mounts in tests".into(),
        Ok(_) => return true,
    };
    drop(writeln!(std::io::stderr(), "SKIP a mount by FUSE: {why}"));
    false
}

/// `linkspan` with these arguments.
pub(crate) fn start(args: &[&str]) -> Program {
    Program::start(args[0], &args[1..])
}

/// The lines that a program has said.
fn lines(program: &Program) -> Vec<Value> {
    let said = program.said();
    let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Waits until a program has said that this happened.
#[track_caller]
pub(crate) fn event(program: &Program, event: &str) -> Value {
    let mut found = None;
    let mut said = || {
        let mut all = lines(program).into_iter();
        found = all.find(|line| line["event"] == event);
        found.is_some()
    };
    let said = (0..3).any(|_| settled(&mut said));
    assert!(
        said,
        "no {event}: {}{}",
        program.said(),
        program.complained()
    );
    found.unwrap()
}

pub(crate) fn samba_url(samba: &Samba, share: &str) -> String {
    format!("smb://{}@127.0.0.1:{}/{share}", samba.user, samba.port)
}

/// A gateway before a server, and where it is.
pub(crate) fn gateway(samba: &Samba) -> (Program, String) {
    let to = format!("127.0.0.1:{}", samba.port);
    let listen = ["--json", "--listen", "127.0.0.1:0", "--to", &to];
    let gateway = start(&[&["smb", "gateway"], &listen[..]].concat());
    let line = event(&gateway, "listening");
    let address = line["address"].as_str().unwrap().to_string();
    (gateway, address)
}

/// A file with a password, as mount.cifs reads it.
pub(crate) fn credentials(folder: &TempDir, password: &str) -> String {
    let path = folder.path().join("credentials");
    fs::write(&path, format!("password={password}\n")).unwrap();
    path.to_str().unwrap().into()
}

/// A share that is mounted.
pub(crate) struct Mounted {
    folder: TempDir,
    pub(crate) program: Program,
}

impl Mounted {
    #[track_caller]
    pub(crate) fn start(url: &str, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("at");
        fs::create_dir(&at).unwrap();
        let credentials = credentials(&folder, PASSWORD);
        let at = at.to_str().unwrap();
        let common = ["--json", "--credentials", &credentials, url, at];
        let program = start(&[&["smb", "mount"], options, &common].concat());
        event(&program, "mounted");
        Self { folder, program }
    }

    pub(crate) fn at(&self) -> PathBuf {
        self.folder.path().join("at")
    }

    /// Waits for the end, with this status; what it said.
    #[track_caller]
    pub(crate) fn ends(self, want: i32) -> String {
        let (status, lines, said) = self.program.end();
        assert_eq!(status, Some(want), "{said}");
        let lines: Vec<_> = lines.iter().map(ToString::to_string).collect();
        lines.join("\n") + &said
    }

    /// Unmounts it.
    #[track_caller]
    pub(crate) fn stop(self) -> String {
        self.program.signal(Signal::TERM);
        self.ends(0)
    }
}

/// Our own server.
pub(crate) struct Ours {
    folder: TempDir,
    program: Program,
    /// The share, over TCP and SMB Direct.
    pub(crate) tcp: String,
    pub(crate) rdma: String,
}

impl Ours {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let share = folder.path().join("share");
        fs::create_dir(&share).unwrap();
        let path = folder.path().join("credentials");
        fs::write(&path, format!("username=me\npassword={PASSWORD}\n")).unwrap();
        let files = format!("files={}", share.display());
        let program = start(&[
            "smb",
            "serve",
            "--json",
            "--share",
            &files,
            "--credentials",
            path.to_str().unwrap(),
            "--listen-tcp",
            "127.0.0.1:0",
            "--listen-rdma",
            "127.0.0.1:0",
        ]);
        let url = |name: &str| {
            let line = event(&program, name);
            format!("smb://me@{}/files", line["address"].as_str().unwrap())
        };
        let (tcp, rdma) = (url("serving"), url("listening"));
        Self {
            folder,
            program,
            tcp,
            rdma,
        }
    }

    pub(crate) fn share(&self) -> PathBuf {
        self.folder.path().join("share")
    }

    pub(crate) fn stop(self) {
        self.program.signal(Signal::TERM);
        let (status, _, said) = self.program.end();
        assert_eq!(status, Some(0), "{said}");
    }
}

/// A file system of this size at a folder.
pub(crate) struct Small(PathBuf);

impl Small {
    pub(crate) fn mount(at: &Path, size: &str) -> Self {
        let mut command = std::process::Command::new("mount");
        command.args(["-t", "tmpfs", "-o"]);
        let status = command
            .arg(format!("size={size},mode=0777"))
            .arg("tmpfs")
            .arg(at)
            .status();
        assert!(status.unwrap().success());
        Self(at.into())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

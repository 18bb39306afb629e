//! `linkspan smb serve`: its own client, Samba's, and a guest's disk on it, over TCP and SMB
//! Direct.

mod programs;

use std::fs;
use std::io::Write as _;
use std::process::Command;

use linkspan_peers::SmbClient;
use linkspan_peers::smb_client::Carrier;
use linkspan_testkit::census::settled;
use linkspan_testkit::samba::{self, Samba};
use programs::Program;
use rustix::process::Signal;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

const PASSWORD: &str = "Correct horse 2";

/// `linkspan` with these arguments.
fn start(args: &[&str]) -> Program {
    Program::start(args[0], &args[1..])
}

/// The addresses that these events have, once both were said.
fn addresses(program: &Program, events: [&str; 2]) -> [String; 2] {
    let mut lines = Vec::new();
    assert!((0..3).any(|_| settled(|| {
        let said = program.said();
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let values = whole.lines().map(serde_json::from_str::<Value>);
        lines = values.map(Result::unwrap).collect();
        lines.len() >= events.len()
    })));
    events.map(|event| {
        let line = lines.iter().find(|line| line["event"] == event).unwrap();
        line["address"].as_str().unwrap().to_owned()
    })
}

/// A server that runs, with the shares `files` and `fixed`.
struct Server {
    folder: TempDir,
    program: Program,
    /// URLs, over TCP and SMB Direct, up to the share.
    tcp: String,
    rdma: String,
    credentials: String,
}

impl Server {
    fn start(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
        fs::create_dir(path("share")).unwrap();
        let credentials = path("credentials");
        fs::write(&credentials, format!("username=me\npassword={PASSWORD}\n")).unwrap();
        let files = format!("files={}", path("share"));
        let fixed = format!("fixed={}:ro", path("share"));
        let args = [
            "smb",
            "serve",
            "--json",
            "--share",
            &files,
            "--share",
            &fixed,
            "--credentials",
            &credentials,
            "--listen-tcp",
            "127.0.0.1:0",
            "--listen-rdma",
            "127.0.0.1:0",
        ];
        let program = start(&[&args[..], options].concat());
        let [tcp, rdma] =
            addresses(&program, ["serving", "listening"]).map(|at| format!("smb://me@{at}"));
        Self {
            folder,
            program,
            tcp,
            rdma,
            credentials,
        }
    }

    /// Runs `linkspan smb` with these arguments: its status, and what it said.
    fn smb(&self, args: &[&str]) -> (Option<i32>, Vec<Value>, String) {
        let more = ["--credentials", &self.credentials, "--json"];
        start(&[&["smb"], args, &more].concat()).end()
    }

    fn stop(self) -> String {
        self.program.signal(Signal::TERM);
        let (status, _, said) = self.program.end();
        assert_eq!(status, Some(0), "{said}");
        said
    }
}

#[test]
fn files_go_there_and_back_over_tcp_and_smb_direct() {
    let server = Server::start(&[]);
    let here = tempfile::tempdir().unwrap();
    let (file, back) = (here.path().join("file"), here.path().join("back"));
    let (file, back) = (file.to_str().unwrap(), back.to_str().unwrap());
    let data: Vec<u8> = (0..3_000_001_u32)
        .map(|at| ((at * 31) >> 3).to_le_bytes()[0])
        .collect();
    fs::write(file, &data).unwrap();
    for (base, transport, name) in [(&server.tcp, "tcp", "a"), (&server.rdma, "rdma", "b")] {
        let url = format!("{base}/files/{name}");
        let (status, _, said) =
            server.smb(&["put", "--hash", "--transport", transport, file, &url]);
        assert_eq!(status, Some(0), "{said}");
        assert!(fs::read(server.folder.path().join("share").join(name)).unwrap() == data);
        let url = format!("{base}/fixed/{name}");
        let get = [
            "get",
            "--overwrite",
            "--hash",
            "--transport",
            transport,
            &url,
            back,
        ];
        assert_eq!(server.smb(&get).0, Some(0));
        assert!(fs::read(back).unwrap() == data);
        let (status, _, said) = server.smb(&["rm", "--transport", transport, &url]);
        assert!(
            status != Some(0),
            "a file of a read-only share was removed: {said}"
        );
    }
    let root = format!("{}/files", server.tcp);
    let (_, lines, said) = server.smb(&["ls", "--transport", "tcp", &root]);
    assert_eq!(lines.len(), 2, "{said}");
    let (status, _, said) =
        server.smb(&["ls", "--transport", "tcp", &root.replace("files", "none")]);
    assert!(
        status == Some(1) && said.contains("no such share"),
        "{said}"
    );
    fs::write(&server.credentials, "username=me\npassword=wrong\n").unwrap();
    let (status, _, said) = server.smb(&["ls", "--transport", "tcp", &root]);
    assert_eq!(status, Some(5), "{said}");
    server.stop();
}

#[test]
fn what_has_to_be_protected_is() {
    for (options, want) in [
        (&["--sign"][..], "signed"),
        (&["--encrypt"], "encrypted with"),
    ] {
        let server = Server::start(options);
        for (base, transport) in [(&server.tcp, "tcp"), (&server.rdma, "rdma")] {
            let root = format!("{base}/files");
            let (status, _, said) = server.smb(&["ls", "--transport", transport, &root]);
            assert!(status == Some(0) && said.contains(want), "{said}");
            assert!(!said.contains("not signed"), "{said}");
        }
        server.stop();
    }
}

#[test]
fn a_guest_has_its_disk_on_it() {
    let server = Server::start(&[]);
    let image = server.folder.path().join("share/disk.img");
    fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
    let socket = server.folder.path().join("socket");
    let socket = socket.to_str().unwrap();
    let url = format!("{}/files/disk.img", server.rdma);
    let blk = start(&[
        "blk",
        "--json",
        "--transport",
        "rdma",
        "--credentials",
        &server.credentials,
        "--image",
        &url,
        "--socket-path",
        socket,
    ]);
    assert!(settled(|| fs::exists(socket).unwrap()));
    let (status, report, said) = start(&[
        "driver",
        "blk",
        "--socket-path",
        socket,
        "verify",
        "--overwrite",
        "--json",
        "--seconds",
        "1",
    ])
    .end();
    assert_eq!(status, Some(0), "{said}");
    assert!(report[0]["writes"].as_u64().unwrap() > 0);
    blk.signal(Signal::TERM);
    let (status, lines, said) = blk.end();
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(lines.last().unwrap()["errors"], 0);
    server.stop();
}

#[test]
fn sambas_client_reads_and_writes() {
    if Command::new("smbclient").arg("--version").output().is_err() {
        drop(writeln!(
            std::io::stderr(),
            "SKIP Samba's client: the package smbclient is missing"
        ));
        return;
    }
    let server = Server::start(&[]);
    let port = server.tcp.rsplit_once(':').unwrap().1.to_string();
    let file = server.folder.path().join("file");
    fs::write(&file, vec![7; 200_000]).unwrap();
    let commands = format!("put {0} x; get x {0}.back; ls", file.display());
    let output = Command::new("smbclient")
        .args([
            "//127.0.0.1/files",
            "-p",
            &port,
            "-A",
            &server.credentials,
            "-c",
            &commands,
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("200000"), "{said}");
    assert!(fs::read(file.with_extension("back")).unwrap() == vec![7; 200_000]);
    server.stop();
}

/// What crate `smb` does at a share over one carrier; `name` is a file that it makes, and which
/// then is in the folder.
fn peer_works(
    (carrier, at): (Carrier, &str),
    login: (&str, &str),
    folder: &std::path::Path,
    name: &str,
) {
    // Pieces that are shorter than the last, and none that are alike.
    let data: Vec<u8> = (0..1_000_003_u32)
        .map(|at| ((at * 37) >> 4).to_le_bytes()[0])
        .collect();
    let client = SmbClient::open(carrier, at.parse().unwrap(), login, "files").unwrap();
    fs::write(folder.join("ours"), &data[5..]).unwrap();
    client.write(name, &data).unwrap();
    assert!(fs::read(folder.join(name)).unwrap() == data, "{carrier:?}");
    let hash = |bytes: &[u8]| Sha256::digest(bytes);
    assert_eq!(hash(&client.read(name).unwrap()), hash(&data));
    assert_eq!(hash(&client.read("ours").unwrap()), hash(&data[5..]));
    assert_eq!(client.names().unwrap(), [name, "ours"], "{carrier:?}");
    client.remove(name).unwrap();
    assert_eq!(client.names().unwrap(), ["ours"]);
    let error = client.read(name).unwrap_err().to_string();
    assert!(
        error.to_lowercase().contains("not found") || error.contains("0xc0000034"),
        "{error}"
    );
    client.close().unwrap();
}

#[test]
fn a_client_that_others_wrote_works_over_our_smb_direct() {
    let server = Server::start(&[]);
    let [tcp, rdma] = [&server.tcp, &server.rdma].map(|url| url.rsplit_once('@').unwrap().1);
    let share = server.folder.path().join("share");
    let login = ("me", PASSWORD);
    peer_works((Carrier::Tcp, tcp), login, &share, "a");
    peer_works((Carrier::SmbDirect, rdma), login, &share, "b");
    // Nobody else is let in, and the server goes on.
    let carrier = Carrier::SmbDirect;
    assert!(SmbClient::open(carrier, rdma.parse().unwrap(), ("me", "wrong"), "files").is_err());
    peer_works((Carrier::SmbDirect, rdma), login, &share, "c");
    server.stop();
}

#[test]
fn a_client_that_others_wrote_works_through_our_gateway() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    let to = format!("127.0.0.1:{}", samba.port);
    let gateway = start(&[
        "smb",
        "gateway",
        "--json",
        "--listen",
        "127.0.0.1:0",
        "--listen-tcp",
        "127.0.0.1:0",
        "--to",
        &to,
    ]);
    let [rdma, tcp] = addresses(&gateway, ["listening", "serving"]);
    let login = (&*samba.user, samba::PASSWORD);
    peer_works((Carrier::SmbDirect, &rdma), login, &samba.share(), "a");
    peer_works((Carrier::Tcp, &tcp), login, &samba.share(), "b");
    gateway.signal(Signal::TERM);
    let (status, lines, said) = gateway.end();
    assert_eq!(status, Some(0), "{said}");
    let ended = lines.iter().find(|line| line["event"] == "ended").unwrap();
    // The crate knows no channels, so that all of it went in messages.
    assert_eq!(ended["rdma"], serde_json::json!([0, 0]), "{ended}");
}

#[test]
fn what_makes_no_server_says_why() {
    let ends = |args: &[&str]| start(&[&["smb", "serve"], args].concat()).end();
    let tcp = ["--listen-tcp", "127.0.0.1:0"];
    for (args, status, why) in [
        (&["--share", "a=/", "--public"][..], 2, "--listen-tcp"),
        (
            &["--share", "a=/", "--listen-tcp", "127.0.0.1:0"],
            2,
            "--user",
        ),
        (
            &[&tcp[..], &["--share", "a", "--public"]].concat(),
            2,
            "NAME=DIR",
        ),
        (
            &[&tcp[..], &["--share", "a=/nothing", "--public"]].concat(),
            1,
            "/nothing",
        ),
        (
            &[&tcp[..], &["--share", "a=/", "--user", "b", "--user", "c"]].concat(),
            2,
            "--credentials",
        ),
        (
            &[&tcp[..], &["--share", "a=/", "--user", "b", "--public"]].concat(),
            2,
            "--public",
        ),
    ] {
        let (got, _, said) = ends(args);
        assert!(
            got == Some(status) && said.contains(why),
            "{args:?}: {got:?} {said}"
        );
    }
}

/// Ours: a gateway with less memory than the longest message has waited for more for ever.
#[test]
fn what_makes_no_gateway_says_why() {
    let gateway = ["smb", "gateway", "--listen", "127.0.0.1:0", "--to"];
    for (more, status, why) in [
        (&["127.0.0.1:1", "--memory", "8447K"][..], 2, "8448K"),
        (&["127.0.0.1:1", "--memory", "0"], 2, "8448K"),
        (&["no.such.host.invalid"], 3, "cannot find"),
    ] {
        let (got, _, said) = start(&[&gateway[..], more].concat()).end();
        assert!(
            got == Some(status) && said.contains(why),
            "{more:?}: {got:?} {said}"
        );
    }
    let least = start(
        &[
            &gateway[..],
            &["127.0.0.1:1", "--memory", "8448K", "--json"],
        ]
        .concat(),
    );
    assert!((0..3).any(|_| settled(|| least.said().contains("listening"))));
    least.signal(Signal::TERM);
    assert_eq!(least.end().0, Some(0));
}

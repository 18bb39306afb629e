//! `linkspan blk` on an image on a share of Samba's server, which is killed again and again
//! under a load that remembers what was acknowledged.

mod programs;

use std::fs::{self, File};

use linkspan_testkit::census::settled;
use linkspan_testkit::samba::{PASSWORD, Samba};
use programs::Program;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// How often the server is killed.
const KILLS: u64 = 3;

/// Bytes that are written between two kills: the load is under way then.
const BYTES_BETWEEN: u64 = 2 << 20;

const SIZE: u64 = 8 << 20;

/// `linkspan` with these arguments.
fn start(args: &[&str]) -> Program {
    Program::start(args[0], &args[1..])
}

/// A file with the password, as mount.cifs reads it.
fn credentials(folder: &TempDir) -> String {
    let path = folder.path().join("credentials");
    fs::write(&path, format!("password={PASSWORD}\n")).unwrap();
    path.to_str().unwrap().into()
}

fn url(samba: &Samba) -> String {
    format!(
        "smb://{}@127.0.0.1:{}/files/disk.img",
        samba.user, samba.port
    )
}

/// Waits until there is such a file.
#[track_caller]
fn is_there(path: &str) {
    let mut there = || fs::exists(path).unwrap();
    assert!((0..3).any(|_| settled(&mut there)), "no {path}");
}

/// Bytes that the guest has written until now.
fn written(blk: &Program) -> u64 {
    let all = || {
        let said = blk.said();
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines
            .filter(|line| line["event"] == "counts")
            .collect::<Vec<_>>()
    };
    let before = all().len();
    blk.signal(Signal::HUP);
    let mut now = Vec::new();
    let mut said = || {
        now = all();
        now.len() > before
    };
    assert!((0..4).any(|_| settled(&mut said)), "it says nothing");
    now[before]["written_bytes"].as_u64().unwrap()
}

/// Kills the server again and again while a disk on it is used.
fn no_write_is_lost(samba: &mut Samba, url: &str, options: &[&str]) {
    let image = samba.share().join("disk.img");
    File::create(&image).unwrap().set_len(SIZE).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let socket = socket.to_str().unwrap();
    let credentials = credentials(&folder);
    let serve = [
        "blk",
        "--json",
        "-v",
        "--timeout",
        "5",
        "--credentials",
        &credentials,
        "--image",
        url,
        "--socket-path",
        socket,
    ];
    let blk = start(&[&serve[..], options].concat());
    is_there(socket);
    let driver = start(&[
        "driver",
        "blk",
        "--connect-limit",
        "60",
        "--socket-path",
        socket,
        "verify",
        "--overwrite",
        "--json",
        "--seconds",
        "3600",
        "--queues",
        "3",
        "--depth",
        "16",
    ]);
    for kill in 0..=KILLS {
        let before = written(&blk);
        let mut loaded = || written(&blk) >= before + BYTES_BETWEEN;
        assert!(
            (0..4).any(|_| settled(&mut loaded)),
            "no load reaches the server"
        );
        if kill < KILLS {
            samba.restart();
        }
    }
    driver.signal(Signal::TERM);
    let (status, report, said) = driver.end();
    assert_eq!(status, Some(0), "{said}");
    let writes = report[0]["writes"].as_u64().unwrap();
    assert!(writes * 4096 >= KILLS * BYTES_BETWEEN, "{report:?}");
    blk.signal(Signal::TERM);
    let (status, lines, said) = blk.end();
    assert_eq!(status, Some(0), "{said}");
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["event"], &last["errors"]),
        (&"counts".into(), &0.into()),
        "{lines:?}"
    );
    assert!(
        said.matches("connected again").count() as u64 >= KILLS,
        "{said}"
    );
    assert!(fs::metadata(image).unwrap().len() == SIZE);
}

#[test]
fn no_acknowledged_write_is_lost_when_the_server_is_killed() {
    let Some(mut samba) = Samba::start(&[]) else {
        return;
    };
    let url = url(&samba);
    no_write_is_lost(&mut samba, &url, &[]);
}

/// The gateway stays, and its client has to come again.
#[test]
fn no_acknowledged_write_is_lost_when_the_server_behind_a_gateway_is_killed() {
    let Some(mut samba) = Samba::start(&[]) else {
        return;
    };
    let to = format!("127.0.0.1:{}", samba.port);
    let args = [
        "smb",
        "gateway",
        "--json",
        "--listen",
        "127.0.0.1:0",
        "--to",
        &to,
    ];
    let gateway = start(&args);
    let mut address = None;
    let mut listens = || {
        let said = gateway.said();
        let first = said.lines().next().filter(|_| said.contains('\n'));
        address = first.map(|line| serde_json::from_str::<Value>(line).unwrap());
        address.is_some()
    };
    assert!((0..3).any(|_| settled(&mut listens)));
    let address = address.unwrap();
    let address = address["address"].as_str().unwrap().to_string();
    let url = format!("smb://{}@{address}/files/disk.img", samba.user);
    no_write_is_lost(&mut samba, &url, &["--transport", "rdma"]);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.end().0, Some(0));
}

/// Ours: it ended with the time limit only, ten minutes later.
#[test]
fn it_ends_though_the_server_is_away() {
    let Some(mut samba) = Samba::start(&[]) else {
        return;
    };
    let image = samba.share().join("disk.img");
    File::create(&image).unwrap().set_len(SIZE).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let socket = socket.to_str().unwrap();
    let credentials = credentials(&folder);
    let url = url(&samba);
    let serve = ["blk", "--json", "-v", "--credentials", &credentials];
    let rest = ["--image", &url, "--socket-path", socket];
    let blk = start(&[&serve[..], &rest].concat());
    is_there(socket);
    let load = ["driver", "blk", "--socket-path", socket, "verify"];
    let rest = ["--overwrite", "--json", "--seconds", "3600"];
    let driver = start(&[&load[..], &rest].concat());
    let mut loaded = || written(&blk) >= BYTES_BETWEEN / 4;
    assert!((0..4).any(|_| settled(&mut loaded)), "no load");
    samba.stop();
    blk.await_error("connecting again");
    blk.signal(Signal::TERM);
    let (status, _, said) = blk.end();
    assert!(
        status == Some(1) && said.contains("the server is away"),
        "{said}"
    );
    driver.signal(Signal::TERM);
    driver.end();
}

#[test]
fn what_makes_no_disk_ends_with_its_status() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    File::create(samba.share().join("disk.img"))
        .unwrap()
        .set_len(SIZE)
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let socket = socket.to_str().unwrap();
    let credentials = credentials(&folder);
    let good = url(&samba);
    let ends = |url: &str, more: &[&str]| {
        let args = [
            "blk",
            "--lock-wait",
            "0",
            "--credentials",
            &credentials,
            "--image",
            url,
            "--socket-path",
            socket,
        ];
        start(&[&args[..], more].concat()).end()
    };
    let closed = good.replace(&samba.port.to_string(), "1");
    for (url, more, status, why) in [
        (&closed[..], &[][..], 3, "cannot connect"),
        ("smb://127.0.0.1/files", &[], 2, "names no file"),
        ("smb://a:b@127.0.0.1/files/x", &[], 2, "command line"),
        (&good, &["--format", "qcow2"], 2, "raw"),
        (&good, &["--direct"], 2, "raw files"),
        (&good.replace("disk.img", "none"), &[], 1, "no such file"),
        (&good.replace("files", "none"), &[], 1, "no such share"),
        (&good.replace("files", "fixed"), &[], 5, "denied"),
    ] {
        let (got, _, said) = ends(url, more);
        assert!(
            got == Some(status) && said.contains(why),
            "{url} {more:?}: {got:?} {said}"
        );
    }
    let first = start(&[
        "blk",
        "--credentials",
        &credentials,
        "--image",
        &good,
        "--socket-path",
        socket,
    ]);
    is_there(socket);
    let (status, _, said) = ends(&good, &[]);
    assert!(
        status == Some(1) && said.contains("somebody else has the file open"),
        "{said}"
    );
    first.signal(Signal::TERM);
    assert_eq!(first.end().0, Some(0));
}

//! `linkspan smb` as a process, against Samba.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::thread;

use linkspan_testkit::samba::{PASSWORD, Samba};
use serde_json::Value;

/// Runs `linkspan smb` with a password in the environment.
fn run(password: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_linkspan"));
    command
        .arg("smb")
        .args(args)
        .env("SMB_PASSWORD", password)
        .stdin(Stdio::null());
    command.output().unwrap()
}

/// What it says on standard output.
fn works(args: &[&str]) -> String {
    let output = run(PASSWORD, args);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {errors}");
    assert!(errors.contains("TCP, SMB 3.1.1"), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// What it says on standard error, and its exit status.
fn fails(password: &str, args: &[&str]) -> (i32, String) {
    let output = run(password, args);
    let errors = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), errors)
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn url(samba: &Samba, path: &str) -> String {
    format!("smb://{}@127.0.0.1:{}/files/{path}", samba.user, samba.port)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn files_and_folders_go_there_and_back() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    let here = tempfile::tempdir().unwrap();
    let from = here.path().join("tree");
    fs::create_dir_all(from.join("a/b c")).unwrap();
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    fs::write(from.join("a/b c/big"), &data).unwrap();
    fs::write(from.join("empty"), b"").unwrap();

    let sent = works(&[
        "put",
        "-r",
        "--hash",
        "--json",
        text(&from),
        &url(&samba, ""),
    ]);
    assert_eq!(lines(&sent).len(), 2);
    assert!(
        lines(&sent)
            .iter()
            .all(|line| line["sha256"].as_str().unwrap().len() == 64)
    );
    assert!(fs::read(samba.share().join("tree/a/b c/big")).unwrap() == data);

    let listed = works(&["ls", "-r", "--json", &url(&samba, "tree")]);
    let mut paths: Vec<_> = lines(&listed)
        .iter()
        .map(|line| line["path"].to_string())
        .collect();
    paths.sort();
    assert_eq!(
        paths,
        [
            "\"tree/a\"",
            "\"tree/a/b c\"",
            "\"tree/a/b c/big\"",
            "\"tree/empty\""
        ]
    );
    assert!(works(&["ls", &url(&samba, "tree")]).contains("tree/a/"));
    let stat = works(&["stat", "--json", &url(&samba, "tree/a/b%20c/big")]);
    assert_eq!(lines(&stat)[0]["size"], 3_000_000);

    let back = here.path().join("back");
    works(&["get", "-r", &url(&samba, "tree"), text(&back)]);
    assert!(fs::read(back.join("a/b c/big")).unwrap() == data);
    assert_eq!(fs::read(back.join("empty")).unwrap(), b"");

    works(&["rm", "-r", &url(&samba, "tree")]);
    assert_eq!(fs::read_dir(samba.share()).unwrap().count(), 0);
}

#[test]
fn a_transfer_that_broke_goes_on_and_is_whole() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    let here = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..40_000_000_u32).map(|n| n.to_le_bytes()[2]).collect();
    // What a connection that was lost leaves: the begin, and at its end pieces that are missing.
    let part = &[&data[..20_000_000], &[0; 1_000_000]].concat();
    fs::write(samba.share().join("disk"), &data).unwrap();
    fs::write(here.path().join("disk.part"), part).unwrap();
    let got = works(&[
        "get",
        "--resume",
        "--json",
        &url(&samba, "disk"),
        text(here.path()),
    ]);
    let resumed = lines(&got)[0]["resumed"].as_u64().unwrap();
    assert!((1..20_000_000).contains(&resumed), "{resumed}");
    assert!(fs::read(here.path().join("disk")).unwrap() == data);
    assert!(!here.path().join("disk.part").exists());

    fs::write(samba.share().join("copy.part"), part).unwrap();
    let disk = here.path().join("disk");
    let put = works(&[
        "put",
        "--resume",
        "--json",
        text(&disk),
        &url(&samba, "copy"),
    ]);
    assert!(lines(&put)[0]["resumed"].as_u64().unwrap() > 0);
    assert!(fs::read(samba.share().join("copy")).unwrap() == data);
}

/// A relay before a server that lets so many bytes of the server pass and then cuts the
/// connection; those that come after it are not cut.
fn cutting(samba: &Samba, bytes: u64) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = samba.port;
    thread::spawn(move || {
        let mut left = bytes;
        for client in listener.incoming() {
            let client = client.unwrap();
            let server = TcpStream::connect(("127.0.0.1", server)).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || {
                // Either may be gone.
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            let passed = std::mem::replace(&mut left, u64::MAX);
            let (mut from, mut to) = (server, client);
            thread::spawn(move || {
                let _ = io::copy(&mut (&mut from).take(passed), &mut to);
                let _ = to.shutdown(Shutdown::Both);
                let _ = from.shutdown(Shutdown::Both);
            });
        }
    });
    port
}

#[test]
fn a_connection_that_is_lost_within_a_file_is_made_again() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    let here = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..40_000_000_u32).map(|n| n.to_le_bytes()[2]).collect();
    fs::write(samba.share().join("disk"), &data).unwrap();
    let port = cutting(&samba, 38_000_000);
    let through = |path: &str| format!("smb://{}@127.0.0.1:{port}/files/{path}", samba.user);
    let output = run(
        PASSWORD,
        &["get", "--json", &through("disk"), text(here.path())],
    );
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && errors.contains("connecting again"),
        "{errors}"
    );
    assert!(fs::read(here.path().join("disk")).unwrap() == data);
    let line = &lines(&String::from_utf8(output.stdout).unwrap())[0];
    // What had come is not fetched again, but for what may have been in flight, or on its way
    // through sockets.
    assert!(line["resumed"].as_u64().unwrap() > 0, "{line}");

    // Not asked to, it says how to go on.
    fs::remove_file(here.path().join("disk")).unwrap();
    let port = cutting(&samba, 30_000_000);
    let through = format!("smb://{}@127.0.0.1:{port}/files/disk", samba.user);
    let (code, errors) = fails(
        PASSWORD,
        &["get", "--retries", "0", &through, text(here.path())],
    );
    assert!(code == 3 && errors.contains("--resume"), "{code} {errors}");
}

#[test]
fn failures_have_their_status_and_their_reason() {
    let Some(mut samba) = Samba::start(&[]) else {
        return;
    };
    fs::write(samba.share().join("there"), b"text").unwrap();
    let there = url(&samba, "there");
    let (code, errors) = fails("wrong", &["stat", &there]);
    assert!(
        code == 5 && errors.contains("user or password is wrong"),
        "{code} {errors}"
    );
    let (code, errors) = fails(PASSWORD, &["stat", &url(&samba, "nothing")]);
    assert!(
        code == 1 && errors.contains("there is no such file"),
        "{code} {errors}"
    );
    let none = there.replace("/files/", "/none/");
    let (code, errors) = fails(PASSWORD, &["stat", &none]);
    assert!(
        code == 1 && errors.contains("there is no such share"),
        "{code} {errors}"
    );
    let fixed = there.replace("/files/", "/fixed/");
    let (code, errors) = fails(PASSWORD, &["rm", &fixed]);
    assert!(
        code == 5 && errors.contains("access is denied"),
        "{code} {errors}"
    );
    let (code, errors) = fails(PASSWORD, &["ls", "--transport", "rdma", &there]);
    assert!(
        code == 3 && errors.contains("SMB Direct"),
        "{code} {errors}"
    );
    let (code, errors) = fails(PASSWORD, &["ls", "smb://me:secret@host/share"]);
    assert!(code == 2 && errors.contains("password"), "{code} {errors}");
    let (code, errors) = fails(PASSWORD, &["get", &url(&samba, "")]);
    assert!(
        code == 2 && errors.contains("--recursive"),
        "{code} {errors}"
    );

    let here = tempfile::tempdir().unwrap();
    fs::write(here.path().join("there"), b"mine").unwrap();
    let (code, errors) = fails(PASSWORD, &["get", &there, text(here.path())]);
    assert!(
        code == 1 && errors.contains("--overwrite"),
        "{code} {errors}"
    );
    assert_eq!(fs::read(here.path().join("there")).unwrap(), b"mine");
    works(&["get", "--overwrite", &there, text(here.path())]);
    assert_eq!(fs::read(here.path().join("there")).unwrap(), b"text");

    samba.stop();
    let (code, errors) = fails(PASSWORD, &["stat", &there]);
    assert!(
        code == 3 && errors.contains("cannot connect"),
        "{code} {errors}"
    );
}

/// A gateway as a process of its own; it ends with this.
struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Puts one before a server; the port where it listens.
fn gateway(samba: &Samba) -> (Gateway, u64, BufReader<ChildStdout>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_linkspan"));
    let server = format!("127.0.0.1:{}", samba.port);
    command
        .args([
            "smb",
            "gateway",
            "--json",
            "--listen",
            "127.0.0.1:0",
            "--to",
        ])
        .arg(server)
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let child = Gateway(child);
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    let address = line["address"].as_str().unwrap();
    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    (child, port, output)
}

#[test]
fn files_go_over_smb_direct_through_a_gateway() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    let (mut gateway, port, output) = gateway(&samba);
    let here = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let from = here.path().join("from");
    fs::write(&from, &data).unwrap();
    let there = format!("smb://{}@127.0.0.1:{port}/files/there", samba.user);
    let over = |args: &[&str]| {
        let output = run(PASSWORD, &[args, &["--transport", "rdma"]].concat());
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{args:?}: {errors}");
        let said = format!("127.0.0.1:{port}: SMB Direct, SMB 3.1.1");
        assert!(errors.contains(&said), "{errors}");
    };
    over(&["put", "--hash", text(&from), &there]);
    assert!(fs::read(samba.share().join("there")).unwrap() == data);
    let back = here.path().join("back");
    over(&["get", "--sign", &there, text(&back)]);
    assert!(fs::read(&back).unwrap() == data);

    let pid = rustix::process::Pid::from_child(&gateway.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(gateway.0.wait().unwrap().success());
    let told: Vec<Value> = output
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    let events: Vec<_> = told
        .iter()
        .map(|line| line["event"].as_str().unwrap())
        .collect();
    assert_eq!(
        events,
        ["connected", "ended", "connected", "ended", "stopped"]
    );
    // What is sent is read back; what is signed goes in messages.
    assert_eq!(told[1]["rdma"], serde_json::json!([3_000_000, 3_000_000]));
    assert_eq!(told[3]["rdma"], serde_json::json!([0, 0]));
}

#[test]
fn a_file_of_credentials_counts_and_protection_is_said() {
    let Some(samba) = Samba::start(&["server signing = mandatory"]) else {
        return;
    };
    let here = tempfile::tempdir().unwrap();
    let file = here.path().join("credentials");
    fs::write(
        &file,
        format!("username={}\npassword={PASSWORD}\n", samba.user),
    )
    .unwrap();
    let anonymous = format!("smb://127.0.0.1:{}/files", samba.port);
    let output = run("wrong", &["ls", "--credentials", text(&file), &anonymous]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && errors.contains("signed with AES-"),
        "{errors}"
    );
    let output = run(
        "wrong",
        &["ls", "--encrypt", "--credentials", text(&file), &anonymous],
    );
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && errors.contains(", encrypted with AES-"),
        "{errors}"
    );
}

/// Ours: whatever was called like a file that is not whole was overwritten and renamed, at
/// either end, and through a link here.
#[test]
fn a_file_that_is_called_part_is_somebodys() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    let here = tempfile::tempdir().unwrap();
    let (mine, elsewhere) = (here.path().join("x.part"), here.path().join("elsewhere"));
    fs::write(samba.share().join("x"), b"theirs").unwrap();
    fs::write(&mine, b"mine").unwrap();
    let get = ["get", &url(&samba, "x"), text(here.path())];
    let refused = |args: &[&str]| {
        let (code, errors) = fails(PASSWORD, args);
        let named = errors.contains("x.part") && errors.contains("--resume");
        assert!(code == 1 && named, "{code} {errors}");
    };
    refused(&get);
    assert_eq!(fs::read(&mine).unwrap(), b"mine");

    fs::remove_file(&mine).unwrap();
    fs::write(&elsewhere, b"mine").unwrap();
    symlink(&elsewhere, &mine).unwrap();
    refused(&get);
    for option in ["--overwrite", "--resume"] {
        let (code, errors) = fails(PASSWORD, &[&get[..], &[option]].concat());
        assert!(code == 1 && errors.contains("x.part"), "{code} {errors}");
        assert_eq!(fs::read(&elsewhere).unwrap(), b"mine");
    }
    fs::remove_file(&mine).unwrap();
    works(&get);
    assert_eq!(fs::read(here.path().join("x")).unwrap(), b"theirs");

    // What is not there leaves nothing that is in the way of the next one.
    let (code, _) = fails(PASSWORD, &["get", &url(&samba, "y"), text(here.path())]);
    assert!(code == 1 && !here.path().join("y.part").exists());

    fs::write(samba.share().join("z.part"), b"theirs").unwrap();
    let x = here.path().join("x");
    let put = ["put", text(&x), &url(&samba, "z")];
    let (code, errors) = fails(PASSWORD, &put);
    assert!(code == 1 && errors.contains("--resume"), "{code} {errors}");
    assert_eq!(fs::read(samba.share().join("z.part")).unwrap(), b"theirs");
    works(&[&put[..], &["--overwrite"]].concat());
    assert!(!samba.share().join("z.part").exists());
}

/// Ours: of a folder with both only one was left.
#[test]
fn a_folder_with_a_file_that_is_called_part_is_copied_whole() {
    let Some(samba) = Samba::start(&[]) else {
        return;
    };
    let here = tempfile::tempdir().unwrap();
    let names = ["x", "x.part", "x.part1", "x.part.part", "y", "Y.PART"];
    let (from, back) = (here.path().join("tree"), here.path().join("back"));
    fs::create_dir(&from).unwrap();
    for name in names {
        fs::write(from.join(name), name).unwrap();
    }
    works(&["put", "-r", text(&from), &url(&samba, "")]);
    works(&["get", "-r", &url(&samba, "tree"), text(&back)]);
    for folder in [samba.share().join("tree"), back] {
        assert_eq!(fs::read_dir(&folder).unwrap().count(), names.len());
        for name in names {
            assert_eq!(fs::read(folder.join(name)).unwrap(), name.as_bytes());
        }
    }
}

/// Ours: whoever is in between could say that the user is a guest, and nothing was protected.
#[test]
fn a_guest_is_one_only_if_that_is_asked_for() {
    let Some(samba) = Samba::start(&["map to guest = bad user"]) else {
        return;
    };
    let stranger = format!("smb://nobody-of-that-name@127.0.0.1:{}/files", samba.port);
    let (code, errors) = fails(PASSWORD, &["ls", &stranger]);
    assert!(code == 5 && errors.contains("--guest"), "{code} {errors}");
    works(&["ls", "--guest", &stranger]);
    let (code, _) = fails(PASSWORD, &["ls", "--guest", "--sign", &stranger]);
    assert_eq!(code, 2);
}

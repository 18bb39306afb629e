//! What is refused, by the server or here, and servers that are not there.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::process::Command;

use linkspan_testkit::census::settled;
use linkspan_testkit::samba::{PASSWORD, Samba};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::names;
use crate::rig::{Mounted, Small, can_mount, credentials, event, samba_url, start};

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn what_cannot_be_mounted_says_why() {
    let (true, Some(samba)) = (can_mount(), Samba::start(&[])) else {
        return;
    };
    fs::write(samba.share().join("file"), "").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    fs::create_dir_all(path("full/within")).unwrap();
    fs::create_dir(path("at")).unwrap();
    let right = credentials(&folder, PASSWORD);
    let wrong = path("wrong");
    fs::write(&wrong, "password=another\n").unwrap();
    let (files, none) = (samba_url(&samba, "files"), samba_url(&samba, "none"));
    let file = format!("{files}/file");
    let (at, full) = (path("at"), path("full"));
    for (credentials, url, at, status, why) in [
        (&wrong, &files, &at, 5, "cannot log on"),
        (&right, &none, &at, 1, "no such share"),
        (&right, &files, &full, 2, "something is in it"),
        (&right, &files, &right, 2, "Not a directory"),
        (&right, &files, &path("absent"), 2, "No such file"),
        (&right, &file, &at, 2, "no folder"),
    ] {
        let args = ["smb", "mount", "--credentials", credentials, url, at];
        let (got, _, said) = start(&args).end();
        assert!(got == Some(status) && said.contains(why), "{got:?}: {said}");
    }
}

#[test]
fn what_is_read_only_is_not_written() {
    let (true, Some(samba)) = (can_mount(), Samba::start(&[])) else {
        return;
    };
    fs::write(samba.share().join("file"), "text").unwrap();
    for (share, options, want) in [
        ("fixed", &[][..], Errno::ACCESS),
        ("files", &["--read-only"], Errno::ROFS),
    ] {
        let mounted = Mounted::start(&samba_url(&samba, share), options);
        let file = mounted.at().join("file");
        let want = Some(want.raw_os_error());
        assert_eq!(errno(fs::write(mounted.at().join("new"), "text")), want);
        assert_eq!(errno(File::options().write(true).open(&file)), want);
        assert_eq!(errno(fs::remove_file(&file)), want);
        assert_eq!(errno(fs::create_dir(mounted.at().join("folder"))), want);
        assert_eq!(fs::read(&file).unwrap(), b"text");
        mounted.stop();
    }
}

#[test]
fn a_disk_that_is_full_is_an_error_and_not_the_end() {
    let (true, Some(samba)) = (can_mount(), Samba::start(&[])) else {
        return;
    };
    let small = Small::mount(&samba.share(), "2m");
    let mounted = Mounted::start(&samba_url(&samba, "files"), &["--transport", "tcp"]);
    let large = mounted.at().join("large");
    let mut file = File::create(&large).unwrap();
    let written = (0..64).try_for_each(|_| file.write_all(&[1; 65_536]));
    let written = written.and_then(|()| file.sync_all());
    assert_eq!(written.unwrap_err().kind(), ErrorKind::StorageFull);
    drop(file);
    fs::remove_file(&large).unwrap();
    // A program that is being started may have it open, too, for a moment.
    let mut there_is_room = || fs::write(mounted.at().join("small"), "text").is_ok();
    assert!(settled(&mut there_is_room));
    assert_eq!(fs::read(samba.share().join("small")).unwrap(), b"text");
    mounted.stop();
    drop(small);
}

#[test]
fn a_server_that_is_away_is_waited_for_until_the_time_limit() {
    let (true, Some(mut samba)) = (can_mount(), Samba::start(&[])) else {
        return;
    };
    fs::write(samba.share().join("file"), "text").unwrap();
    let url = samba_url(&samba, "files");
    let mounted = Mounted::start(&url, &["--time-limit", "1"]);
    samba.stop();
    event(&mounted.program, "lost");
    let result = fs::read(mounted.at().join("file"));
    assert_eq!(errno(result), Some(Errno::TIMEDOUT.raw_os_error()));
    samba.restart();
    event(&mounted.program, "connected");
    assert_eq!(fs::read(mounted.at().join("file")).unwrap(), b"text");
    samba.stop();
    // Nobody uses it, so nobody has to be waited for.
    mounted.stop();
    samba.restart();
    let mounted = Mounted::start(&url, &["--time-limit", "0"]);
    let file = File::open(mounted.at().join("file")).unwrap();
    samba.stop();
    event(&mounted.program, "lost");
    // Ours: it never ended, as it waited for the server to close this.
    drop(file);
    mounted.stop();
}

/// Ours: what was closed when the server was away for longer than the time limit stayed open, and
/// what was removed meanwhile stayed there by its other name.
#[test]
fn what_is_closed_after_the_time_limit_is_closed_when_the_server_is_back() {
    let (true, Some(mut samba)) = (can_mount(), Samba::start(&[])) else {
        return;
    };
    let mounted = Mounted::start(&samba_url(&samba, "files"), &["--time-limit", "1"]);
    let path = mounted.at().join("file");
    fs::write(&path, "text").unwrap();
    let file = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(names(&samba.share()).len(), 1, "it has another name");
    samba.stop();
    event(&mounted.program, "lost");
    drop(file);
    let result = fs::read(mounted.at().join("another"));
    assert_eq!(errno(result), Some(Errno::TIMEDOUT.raw_os_error()));
    samba.restart();
    event(&mounted.program, "connected");
    let mut gone = || names(&samba.share()).is_empty();
    assert!((0..3).any(|_| settled(&mut gone)));
    mounted.stop();
}

/// Ours: a password that was changed was tried every five seconds for ever.
#[test]
fn a_password_that_was_changed_is_not_tried_for_ever() {
    let (true, Some(mut samba)) = (can_mount(), Samba::start(&[])) else {
        return;
    };
    let url = samba_url(&samba, "files");
    let mounted = Mounted::start(&url, &["--time-limit", "1"]);
    samba.stop();
    event(&mounted.program, "lost");
    let configuration = samba.share().with_file_name("smb.conf");
    let mut command = Command::new("smbpasswd");
    command.arg("-c").arg(configuration);
    command
        .args(["-s", "-a", &samba.user])
        .stdin(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"other\nother\n")
        .unwrap();
    assert!(child.wait().unwrap().success());
    samba.restart();
    mounted.program.await_error("it is not tried again");
    assert!(fs::read_dir(mounted.at()).is_err());
    let said = mounted.program.complained();
    assert!(said.matches("cannot log on").count() <= 2, "{said}");
    mounted.program.signal(Signal::TERM);
    mounted.ends(0);
}

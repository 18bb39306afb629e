//! `linkspan smb mount` against Samba and our own server, over TCP and SMB Direct: files are what
//! they would be in a folder of this machine, whatever becomes of the server meanwhile.

#[path = "../programs/mod.rs"]
mod programs;
mod refused;
mod rig;
mod work;

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use linkspan_testkit::census::settled;
use linkspan_testkit::samba::Samba;
use rig::{Mounted, Ours, can_mount, event, gateway, samba_url};
use rustix::process::Signal;
use work::Files;

/// Steps of random work.
const STEPS: usize = 400;

/// Works, unmounts, mounts again and compares; what the server has is the same.
fn work_and_compare(url: &str, transport: &str, there: &Path, seed: u64) {
    let options = ["--transport", transport];
    let mounted = Mounted::start(url, &options);
    let mut files = Files::new(seed);
    for _ in 0..STEPS {
        files.step(mounted.at());
    }
    files.compare(mounted.at());
    files.close();
    mounted.stop();
    let mounted = Mounted::start(url, &options);
    files.compare(mounted.at());
    mounted.stop();
    files.compare(there);
}

#[test]
fn random_work_on_sambas_share_is_as_on_a_disk() {
    let (true, Some(samba)) = (can_mount(), Samba::start(&[])) else {
        return;
    };
    work_and_compare(&samba_url(&samba, "files"), "tcp", &samba.share(), 1);
}

#[test]
fn random_work_over_smb_direct_is_as_on_a_disk() {
    let (true, Some(samba)) = (can_mount(), Samba::start(&[])) else {
        return;
    };
    let (gateway, address) = gateway(&samba);
    let url = format!("smb://{}@{address}/files", samba.user);
    work_and_compare(&url, "rdma", &samba.share(), 2);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.end().0, Some(0));
}

#[test]
fn random_work_on_our_server_is_as_on_a_disk() {
    if !can_mount() {
        return;
    }
    let server = Ours::start();
    work_and_compare(&server.tcp, "tcp", &server.share(), 3);
    for name in names(&server.share()) {
        fs::remove_file(server.share().join(name)).unwrap();
    }
    work_and_compare(&server.rdma, "rdma", &server.share(), 4);
    server.stop();
}

#[test]
fn large_files_and_large_folders_are_whole() {
    let (true, Some(samba)) = (can_mount(), Samba::start(&[])) else {
        return;
    };
    let mounted = Mounted::start(&samba_url(&samba, "files"), &["--transport", "tcp"]);
    let here = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..24_000_001_u32)
        .map(|at| ((at * 31) >> 3).to_le_bytes()[0])
        .collect();
    fs::write(here.path().join("from"), &data).unwrap();
    fs::copy(here.path().join("from"), mounted.at().join("large")).unwrap();
    assert!(fs::read(samba.share().join("large")).unwrap() == data);
    fs::copy(mounted.at().join("large"), here.path().join("back")).unwrap();
    assert!(fs::read(here.path().join("back")).unwrap() == data);

    let many = samba.share().join("many");
    fs::create_dir(&many).unwrap();
    let names: BTreeSet<_> = (0..3000)
        .map(|n| format!("a rather long name, {n}"))
        .collect();
    for name in &names {
        fs::write(many.join(name), name).unwrap();
    }
    let listed: BTreeSet<_> = fs::read_dir(mounted.at().join("many"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            assert_eq!(entry.metadata().unwrap().len(), name.len() as u64);
            name
        })
        .collect();
    assert!(listed == names);
    fs::remove_dir_all(mounted.at().join("many")).unwrap();
    assert!(!many.exists());
    mounted.stop();
}

/// Where the load of another process has its mount, and what it says of itself.
const LOAD: &str = "LINKSPAN_MOUNT_LOAD";

/// What the tests below start as a process: who starts a program, a server for one, closes there
/// what is open here, and that waits for the server.
#[test]
fn load_of_another_process() {
    let Some(folder) = env::var_os(LOAD).map(PathBuf::from) else {
        return;
    };
    let mut files = Files::new(7);
    let mut steps = File::create(folder.join("steps")).unwrap();
    while !folder.join("enough").exists() {
        files.step(folder.join("at"));
        steps.write_all(b".").unwrap();
    }
    files.compare(folder.join("at"));
    files.close();
    files.save(&folder.join("want"));
}

/// Kills the server again and again while files are worked on.
fn nothing_is_lost(samba: &mut Samba, url: &str, transport: &str) {
    const KILLS: usize = 3;
    let options = ["--transport", transport, "--timeout", "5"];
    let mounted = Mounted::start(url, &options);
    let folder = mounted.at().parent().unwrap().to_path_buf();
    let mut load = Command::new(env::current_exe().unwrap())
        .args(["--exact", "load_of_another_process", "--nocapture"])
        .env(LOAD, &folder)
        .spawn()
        .unwrap();
    let steps = || fs::metadata(folder.join("steps")).map_or(0, |steps| steps.len());
    for kill in 0..=KILLS {
        let before = steps();
        let mut worked = || steps() > before + 30 || load.try_wait().unwrap().is_some();
        assert!((0..6).any(|_| settled(&mut worked)), "no work is done");
        if kill < KILLS {
            samba.restart();
        }
    }
    fs::write(folder.join("enough"), "").unwrap();
    assert!(load.wait().unwrap().success());
    let want = folder.join("want");
    let same = |at: &Path| {
        assert_eq!(names(at), names(&want));
        for name in names(&want) {
            assert!(fs::read(at.join(&name)).unwrap() == fs::read(want.join(&name)).unwrap());
        }
    };
    same(&samba.share());
    same(&mounted.at());
    event(&mounted.program, "connected");
    mounted.stop();
}

#[test]
fn nothing_is_lost_when_the_server_is_killed() {
    let (true, Some(mut samba)) = (can_mount(), Samba::start(&[])) else {
        return;
    };
    let url = samba_url(&samba, "files");
    nothing_is_lost(&mut samba, &url, "tcp");
}

#[test]
fn nothing_is_lost_when_the_server_behind_a_gateway_is_killed() {
    let (true, Some(mut samba)) = (can_mount(), Samba::start(&[])) else {
        return;
    };
    let (gateway, address) = gateway(&samba);
    let url = format!("smb://{}@{address}/files", samba.user);
    nothing_is_lost(&mut samba, &url, "rdma");
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.end().0, Some(0));
}

/// The names of a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_removed_or_moved_while_it_is_open_stays() {
    let (true, Some(samba)) = (can_mount(), Samba::start(&[])) else {
        return;
    };
    let mounted = Mounted::start(&samba_url(&samba, "files"), &["--transport", "tcp"]);
    let at = |name: &str| mounted.at().join(name);

    // What is removed or replaced while it is open stays readable, and is gone when it is closed.
    for name in ["removed", "replaced"] {
        fs::write(at(name), name).unwrap();
    }
    let mut removed = OpenOptions::new()
        .read(true)
        .write(true)
        .open(at("removed"))
        .unwrap();
    let replaced = File::open(at("replaced")).unwrap();
    fs::remove_file(at("removed")).unwrap();
    // Its other name is not to be removed as well.
    let hidden = names(&mounted.at());
    let hidden = hidden.iter().find(|name| name.starts_with(".linkspan-"));
    let error = fs::remove_file(at(hidden.unwrap())).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy);
    fs::write(at("new"), "new").unwrap();
    fs::rename(at("new"), at("replaced")).unwrap();
    removed.write_all(b"REMOVED again").unwrap();
    let mut text = [0; 8];
    replaced.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"replaced");
    assert_eq!(fs::read(at("replaced")).unwrap(), b"new");
    drop((removed, replaced));
    let mut alone = || names(&samba.share()) == ["replaced"];
    let alone = (0..3).any(|_| settled(&mut alone));
    assert!(alone, "{:?}", names(&samba.share()));

    // A folder is renamed while a file in it is open.
    fs::create_dir_all(at("folder/below")).unwrap();
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(at("folder/below/file"))
        .unwrap();
    file.write_all(b"one").unwrap();
    fs::rename(at("folder"), at("other")).unwrap();
    file.write_all(b"two").unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::read(at("other/below/file")).unwrap(), b"onetwo");
    drop(file);
    // A folder takes the place of one in which nothing is.
    fs::create_dir(at("empty")).unwrap();
    fs::rename(at("other"), at("empty")).unwrap();
    assert_eq!(names(&at("empty")), ["below"]);
    let error = fs::remove_dir(at("empty")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty);

    mounted.stop();
}

/// Ours: the rest of a listing told sizes of before, and what was appended next went there.
#[test]
fn what_is_written_while_its_folder_is_listed_is_not_cut_off() {
    const FILES: usize = 120;
    let (true, Some(samba)) = (can_mount(), Samba::start(&[])) else {
        return;
    };
    let mounted = Mounted::start(&samba_url(&samba, "files"), &["--transport", "tcp"]);
    // Names that are so long that the kernel asks more than once.
    let name = |n| format!("{n:0200}");
    for n in 0..FILES {
        fs::write(samba.share().join(name(n)), "one ").unwrap();
    }
    let mut listing = fs::read_dir(mounted.at()).unwrap();
    assert!(listing.next().unwrap().is_ok());
    let append = |n: usize| {
        let mut options = File::options();
        options.append(true).open(mounted.at().join(name(n)))
    };
    let mut files = Vec::new();
    for n in 0..FILES {
        let mut file = append(n).unwrap();
        file.write_all(b"two ").unwrap();
        // Some stay open.
        files.push((n % 2 == 0).then_some(file));
    }
    assert_eq!(listing.count(), FILES - 1);
    for (n, file) in files.into_iter().enumerate() {
        let mut file = file.unwrap_or_else(|| append(n).unwrap());
        file.write_all(b"three").unwrap();
    }
    for n in 0..FILES {
        let text = fs::read(samba.share().join(name(n))).unwrap();
        assert_eq!(text, b"one two three", "{n}");
    }
    mounted.stop();
}

#[test]
fn names_times_and_what_is_read_only_are_kept() {
    let (true, Some(samba)) = (can_mount(), Samba::start(&[])) else {
        return;
    };
    let mounted = Mounted::start(&samba_url(&samba, "files"), &["--transport", "tcp"]);
    let at = |name: &str| mounted.at().join(name);
    // Names that mean something to a server.
    for name in ["a:b", "question?", "back\\slash", "dot.", "blank ", "star*"] {
        fs::write(at(name), name).unwrap();
        assert!(names(&mounted.at()).contains(&name.into()), "{name}");
        assert_eq!(fs::read(at(name)).unwrap(), name.as_bytes());
        fs::remove_file(at(name)).unwrap();
    }

    // Times, and what is read-only.
    fs::write(at("file"), "text").unwrap();
    let time = UNIX_EPOCH + Duration::from_millis(1_600_000_000_500);
    let file = File::options().write(true).open(at("file")).unwrap();
    file.set_modified(time).unwrap();
    drop(file);
    assert_eq!(fs::metadata(at("file")).unwrap().modified().unwrap(), time);
    let mode = |mode| fs::set_permissions(at("file"), Permissions::from_mode(mode));
    mode(0o444).unwrap();
    assert_eq!(
        fs::metadata(at("file")).unwrap().permissions().mode() & 0o222,
        0
    );
    fs::remove_file(at("file")).unwrap();
    mounted.stop();
    assert!(names(&samba.share()).is_empty());
}

#[test]
fn whoever_unmounts_it_ends_it_when_nobody_uses_it() {
    let (true, Some(samba)) = (can_mount(), Samba::start(&[])) else {
        return;
    };
    let url = samba_url(&samba, "files");
    let mounted = Mounted::start(&url, &[]);
    let status = Command::new("umount").arg(mounted.at()).status();
    assert!(status.unwrap().success());
    mounted.ends(0);

    let mounted = Mounted::start(&url, &[]);
    let mut file = File::create_new(mounted.at().join("file")).unwrap();
    mounted.program.signal(Signal::TERM);
    mounted.program.await_error("in use");
    file.write_all(b"to the end").unwrap();
    drop(file);
    mounted.ends(0);
    assert_eq!(fs::read(samba.share().join("file")).unwrap(), b"to the end");

    let mounted = Mounted::start(&url, &[]);
    let mut file = File::open(mounted.at().join("file")).unwrap();
    mounted.program.signal(Signal::TERM);
    mounted.program.await_error("in use");
    mounted.program.signal(Signal::TERM);
    mounted.ends(1);
    assert!(file.read(&mut [0; 64]).is_err());
}

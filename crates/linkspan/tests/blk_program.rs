//! `linkspan blk` as people and management programs run it.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;

use linkspan_testkit::census::settled;
use linkspan_testkit::disk::SECTOR;
use linkspan_testkit::program;
use linkspan_testkit::served::{content, write_image};
use linkspan_testkit::{Disk, FrontEnd, Options};
use linkspan_vhost::message::{BackendRequest, Request};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;

/// A descriptor for one child must not reach the child of another test.
static SPAWN: Mutex<()> = Mutex::new(());

fn linkspan() -> Command {
    program(env!("CARGO_BIN_EXE_linkspan"))
}

/// Runs to the end.
fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    let _guard = SPAWN.lock().unwrap();
    linkspan().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A program that runs, and a folder with its image.
struct Program {
    child: Child,
    folder: TempDir,
}

impl Program {
    fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = Self::start_in(folder, more);
        program.expect_listening();
        program
    }

    fn start_in(folder: TempDir, more: &[&str]) -> Self {
        let socket = folder.path().join("socket");
        let mut command = linkspan();
        command
            .args(["blk", "--socket-path"])
            .arg(socket)
            .args(more);
        Self::spawn(command, folder)
    }

    fn spawn(mut command: Command, folder: TempDir) -> Self {
        let image = folder.path().join("disk");
        if !image.exists() {
            write_image(&image);
        }
        command.arg("--image").arg(image);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let _guard = SPAWN.lock().unwrap();
        let child = command.spawn().unwrap();
        Self { child, folder }
    }

    /// Starts it with a descriptor of ours as `--fd`.
    fn start_with(fd: impl AsFd) -> Self {
        let fd = fd.as_fd();
        let mut command = linkspan();
        command.args(["blk", "--fd", &fd.as_raw_fd().to_string()]);
        let folder = tempfile::tempdir().unwrap();
        write_image(&folder.path().join("disk"));
        command.arg("--image").arg(folder.path().join("disk"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let _guard = SPAWN.lock().unwrap();
        fcntl_setfd(fd, FdFlags::empty()).unwrap();
        let child = command.spawn().unwrap();
        fcntl_setfd(fd, FdFlags::CLOEXEC).unwrap();
        Self { child, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    #[track_caller]
    fn expect_listening(&self) {
        let socket = self.socket();
        assert!(
            settled(|| UnixStream::connect(&socket).is_ok()),
            "it does not listen"
        );
    }

    #[track_caller]
    fn drive(&self) -> Disk {
        let front = FrontEnd::connect(&self.socket()).unwrap();
        Disk::bring_up(front, &Options::default(), 2, 64).unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// Waits for the end: status and standard error.
    #[track_caller]
    fn end(&mut self) -> (ExitStatus, String) {
        let mut status = None;
        let ended = settled(|| {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(ended, "it does not end");
        let mut talk = String::new();
        let stderr = self.child.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut talk).unwrap();
        (status.unwrap(), talk)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn help_has_an_example_and_the_program_says_its_statuses() {
    let help = run(["blk", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    let help = text(&help.stdout);
    for part in [
        "Example",
        "qemu-system-x86_64",
        "--socket-path",
        "--queues",
        "mem:SIZE",
        "null:SIZE",
        "--format qcow2 --allow-backing",
    ] {
        assert!(help.contains(part), "{part} is not in:\n{help}");
    }
    let general = text(&run(["--help"]).stdout);
    assert!(
        general.contains("Exit status: 0 done, 1 failed"),
        "{general}"
    );
}

/// QEMU, docs/interop/vhost-user.rst, "Backend program conventions".
#[test]
fn capabilities_are_what_management_programs_read() {
    let output = run(["blk", "--print-capabilities"]);
    assert_eq!(output.status.code(), Some(0));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["type"], "block");
    let features: Vec<_> = json["features"].as_array().unwrap().iter().collect();
    assert_eq!(features, ["blk-file", "read-only"]);
}

#[test]
fn wrong_usage_has_status_2_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    write_image(&image);
    let socket = folder.path().join("socket");
    let (image, socket) = (image.to_str().unwrap(), socket.to_str().unwrap());
    let both = ["blk", "--image", image, "--socket-path", socket];
    let with = |more: &[&'static str]| [&both[..], more].concat();
    let wrong = [
        vec![],
        vec!["nonsense"],
        vec!["blk"],
        vec!["blk", "--image", image],
        vec!["blk", "--socket-path", socket],
        with(&["--nonsense"]),
        with(&["--fd", "3"]),
        with(&["--queues", "0"]),
        with(&["--queues", "257"]),
        with(&["--queues", "many"]),
        with(&["--queue-size", "0"]),
        with(&["--queue-size", "3"]),
        with(&["--queue-size", "65536"]),
        with(&["--workers", "0"]),
        with(&["--workers", "2", "--cpus", "0"]),
        with(&["--cpus", ""]),
        with(&["--cpus", "0,0"]),
        with(&["--cpus", "8000"]),
        with(&["--poll-us", "-1"]),
        with(&["--poll-us", "1000001"]),
        with(&["--iops", "0"]),
        with(&["--iops-burst", "1"]),
        with(&["--bytes-per-second", "0"]),
        with(&["--bytes-burst", "1M"]),
        vec!["blk", "--image", image, "--fd", "0"],
        vec!["blk", "--image", image, "--fd", "999"],
        vec!["blk", "--image", image, "--fd", "-1"],
    ];
    for args in wrong {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
        assert!(!Path::new(socket).exists(), "{args:?}");
    }
}

/// The processors of each worker of a program.
fn worker_cpus(program: &Program) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", program.child.id())).unwrap();
    let mut workers: Vec<_> = tasks
        .map(|task| task.unwrap().path())
        .filter_map(|task| {
            let name = fs::read_to_string(task.join("comm")).ok()?;
            let status = fs::read_to_string(task.join("status")).ok()?;
            let cpus = status.lines();
            let cpus = cpus.filter_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            let cpus = cpus.map(str::trim).next()?.to_owned();
            Some((name.trim().to_owned(), cpus))
        })
        .filter(|(name, _)| name.starts_with("worker-"))
        .collect();
    workers.sort();
    workers
}

#[test]
fn workers_are_as_many_as_asked_for_and_where() {
    let cpus = linkspan_sys::thread::allowed_cpus().unwrap();
    let last = cpus.last().unwrap().to_string();
    let one = Program::start(&["--queues", "64", "--cpus", &last]);
    let pinned = [("worker-0".to_owned(), last)];
    assert!(
        settled(|| worker_cpus(&one) == pinned),
        "{:?}",
        worker_cpus(&one)
    );
    let three = Program::start(&["--workers", "3", "--poll-us", "0"]);
    // A thread gives itself its name, when it first runs.
    let names = || worker_cpus(&three).into_iter().map(|(name, _)| name);
    let there = settled(|| names().eq(["worker-0", "worker-1", "worker-2"]));
    assert!(there, "{:?}", names().collect::<Vec<_>>());
    for program in [one, three] {
        let mut disk = program.drive();
        assert_eq!(disk.rings[0].read(3, SECTOR), content(3));
        assert_eq!(disk.rings[1].read(4, SECTOR), content(4));
    }
    // Never more than queues.
    let two = Program::start(&["--workers", "3", "--queues", "2"]);
    assert!(
        settled(|| worker_cpus(&two).len() == 2),
        "{:?}",
        worker_cpus(&two)
    );
}

#[test]
fn limits_are_of_the_whole_disk_and_let_a_large_request_pass() {
    let limits = ["--bytes-per-second", "1", "--bytes-burst", "1K"];
    let program = Program::start(&limits);
    let mut disk = program.drive();
    // Half of what there is, then more than is left, and that is paid for by both.
    assert_eq!(disk.rings[0].read(1, SECTOR), content(1));
    assert_eq!(disk.rings[1].read(0, 8 * SECTOR).len(), 8 * SECTOR);
    for ring in &mut disk.rings {
        ring.submit(linkspan_testkit::Io::GetId);
    }
    for ring in 0..2 {
        let base = disk.front.stop(ring).unwrap();
        assert_eq!(base, 1, "one of ring {ring} was taken");
    }
}

/// One request, and not another one for a second.
#[test]
fn requests_are_limited_by_their_number_too() {
    let program = Program::start(&["--iops", "1", "--iops-burst", "1"]);
    let mut disk = program.drive();
    let before = std::time::Instant::now();
    for ring in &mut disk.rings {
        assert_eq!(ring.read(0, SECTOR), content(0));
    }
    // No clock makes this come true but the limit: a second passes before the second one.
    assert!(before.elapsed().as_millis() > 900);
    disk.shut_down();
}

#[test]
fn image_that_cannot_be_has_status_1_and_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    fs::write(&empty, []).unwrap();
    let socket = folder.path().join("socket");
    let missing = folder.path().join("missing");
    let why = ["No such file", "neither a regular file nor", "is empty"];
    for (image, why) in [missing.as_path(), folder.path(), &empty]
        .into_iter()
        .zip(why)
    {
        let args = ["blk".as_ref(), "--socket-path".as_ref(), socket.as_os_str()];
        let image = [
            "--image".as_ref(),
            image.as_os_str(),
            "--read-only".as_ref(),
        ];
        let output = run(args.into_iter().chain(image));
        assert_eq!(output.status.code(), Some(1), "{image:?}");
        let talk = text(&output.stderr);
        assert!(talk.contains(image[1].to_str().unwrap()), "{talk}");
        assert!(talk.contains(why), "{talk}");
        assert!(!socket.exists());
    }
}

#[test]
fn image_without_permission_has_status_5_and_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    write_image(&image);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let socket = folder.path().join("socket");
    // Root may read everything, so it becomes somebody else, who may not be able
    // to reach the program where it was built.
    let program = folder.path().join("linkspan");
    let root = getuid().is_root();
    if root {
        fs::copy(env!("CARGO_BIN_EXE_linkspan"), &program).unwrap();
    }
    let mut command = if root {
        Command::new(&program)
    } else {
        linkspan()
    };
    if root {
        command.uid(65534).gid(65534);
    }
    command.arg("blk").arg("--socket-path").arg(&socket);
    command.arg("--image").arg(&image);
    let _guard = SPAWN.lock().unwrap();
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            println!("SKIP: the program cannot be started as another user: {error}");
            return;
        }
    };
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    let talk = text(&output.stderr);
    assert!(
        talk.contains("ermission denied") && talk.contains("try:"),
        "{talk}"
    );
    assert!(!socket.exists());
}

#[test]
fn signals_end_it_in_order_with_the_data_in_the_image() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut program = Program::start(&["--queues", "2"]);
        let mut disk = program.drive();
        disk.rings[0].write(7, &[0xA5; SECTOR]);
        disk.rings[1].write(8, &[0x5A; SECTOR]);
        program.signal(signal);
        let (status, talk) = program.end();
        assert_eq!(status.code(), Some(0), "{talk}");
        assert!(!program.socket().exists(), "the socket is gone");
        let image = fs::read(program.image()).unwrap();
        let sector = |number: usize| &image[number * SECTOR..(number + 1) * SECTOR];
        assert_eq!(sector(6), content(6));
        assert_eq!(sector(7), [0xA5; SECTOR]);
        assert_eq!(sector(8), [0x5A; SECTOR]);
        // Its front end sees the end.
        disk.front.expect_closed();
    }
}

#[test]
fn hangup_takes_over_a_larger_image_and_keeps_a_smaller_one_out() {
    let mut program = Program::start(&["--queues", "2"]);
    let mut disk = program.drive();
    let requests = disk.front.listen_to_requests().unwrap();
    let bytes = fs::metadata(program.image()).unwrap().len();
    let image = fs::File::options()
        .write(true)
        .open(program.image())
        .unwrap();
    let capacity = |disk: &Disk| {
        let body = [[0, 8, 0].map(u32::to_ne_bytes).concat(), vec![0; 8]].concat();
        disk.front.ask(Request::GetConfig, &body, &[]).unwrap()[12..].to_vec()
    };
    image.set_len(2 * bytes).unwrap();
    program.signal(Signal::HUP);
    let (header, _) = requests.receive().unwrap();
    assert_eq!(header.request, BackendRequest::ConfigChangeMsg.code());
    assert_eq!(capacity(&disk), (2 * bytes / 512).to_le_bytes());
    let last = 2 * bytes / 512 - 1;
    disk.rings[1].write(last, &[0x77; SECTOR]);

    image.set_len(bytes).unwrap();
    program.signal(Signal::HUP);
    program.signal(Signal::TERM);
    let (status, talk) = program.end();
    assert_eq!(status.code(), Some(0), "{talk}");
    let kept = format!("the image got smaller, from {} to {bytes} bytes", 2 * bytes);
    assert!(talk.contains(&kept), "{talk}");
    assert!(requests.receive().is_none(), "no change was announced");
}

#[test]
fn signal_ends_it_while_nobody_is_connected() {
    let mut program = Program::start(&[]);
    program.signal(Signal::TERM);
    assert_eq!(program.end().0.code(), Some(0));
    assert!(!program.socket().exists());
}

#[test]
fn front_ends_come_and_go_and_are_told_of() {
    let mut program = Program::start(&["--json", "--queues", "2"]);
    for round in 0..3 {
        let mut disk = program.drive();
        assert_eq!(disk.rings[0].read(round, SECTOR), content(round));
    }
    program.signal(Signal::TERM);
    let (status, _) = program.end();
    assert_eq!(status.code(), Some(0));
    let mut lines = String::new();
    let stdout = program.child.stdout.as_mut().unwrap();
    stdout.read_to_string(&mut lines).unwrap();
    let lines: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["event"], "listening");
    // One was the look whether it listens.
    let count = |event| lines.iter().filter(|line| line["event"] == event).count();
    assert_eq!((count("connected"), count("ended")), (4, 4));
}

#[test]
fn inherited_listening_socket_is_served_and_left_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut program = Program::start_with(&listener);
    for round in 0..2 {
        let front = FrontEnd::connect(&path).unwrap();
        let mut disk = Disk::bring_up(front, &Options::default(), 1, 64).unwrap();
        assert_eq!(disk.rings[0].read(round, SECTOR), content(round));
    }
    program.signal(Signal::TERM);
    let (status, talk) = program.end();
    assert_eq!(status.code(), Some(0), "{talk}");
    assert!(path.exists(), "the path belongs to who bound it");
}

#[test]
fn inherited_connection_is_served_until_it_ends() {
    let (ours, theirs) = linkspan_sys::Stream::pair().unwrap();
    let mut program = Program::start_with(&theirs);
    drop(theirs);
    let front = FrontEnd::over(ours);
    let mut disk = Disk::bring_up(front, &Options::default(), 1, 64).unwrap();
    assert_eq!(disk.rings[0].read(3, SECTOR), content(3));
    disk.shut_down();
    let (status, talk) = program.end();
    assert_eq!(status.code(), Some(0), "{talk}");
}

#[test]
fn second_program_on_a_socket_is_refused_and_the_first_goes_on() {
    let first = Program::start(&["--queues", "2"]);
    let other = tempfile::tempdir().unwrap();
    write_image(&other.path().join("disk"));
    let socket = first.socket();
    let output = run([
        "blk".as_ref(),
        "--image".as_ref(),
        other.path().join("disk").as_os_str(),
        "--socket-path".as_ref(),
        socket.as_os_str(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    let talk = text(&output.stderr);
    assert!(talk.contains("has a listener already"), "{talk}");
    assert!(talk.contains(socket.to_str().unwrap()), "{talk}");
    let mut disk = first.drive();
    assert_eq!(disk.rings[0].read(3, SECTOR), content(3));
}

#[test]
fn socket_of_a_killed_program_is_replaced() {
    let mut first = Program::start(&[]);
    first.signal(Signal::KILL);
    assert_eq!(first.end().0.code(), None);
    assert!(first.socket().exists(), "it could not clean up");
    let folder = std::mem::replace(&mut first.folder, tempfile::tempdir().unwrap());
    let mut second = Program::start_in(folder, &["--queues", "2"]);
    second.expect_listening();
    let mut disk = second.drive();
    assert_eq!(disk.rings[0].read(3, SECTOR), content(3));
    drop(disk);
    second.signal(Signal::TERM);
    assert_eq!(second.end().0.code(), Some(0));
}

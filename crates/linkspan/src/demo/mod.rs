//! `linkspan demo`: a Linux guest in QEMU whose disk is served by `linkspan blk`.
//!
//! The parts, each usable alone: [`kernel`] finds a stock kernel, [`initramfs`]
//! packs the guest, [`machine`] runs QEMU on a given socket, [`disk`] knows what
//! is on the disk, [`check`] judges what the guest [`report`]s.

use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

pub mod accel;
pub mod check;
pub mod disk;
mod error;
pub mod initramfs;
pub mod kernel;
pub mod machine;
pub mod process;
pub mod report;

pub use error::Error;

use check::{Finding, HostView, Server};
use disk::{Base, Plan};
use kernel::Kernel;
use machine::{Accel, Devices, Disk, Event, Hardware, Machine, Mode};
use process::{Process, Stop, await_socket, find_program, supervised};

/// Size of the image that is made when none is given.
const DEMO_IMAGE_BYTES: u64 = 64 << 20;

/// How long `linkspan blk` may take until it listens.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

/// Boot a Linux guest whose disk is served by Linkspan
///
/// Starts `linkspan blk` as a process of its own, boots a stock Debian kernel in QEMU with
/// that disk, and gives you a shell in it. Leave with `poweroff`, or with Ctrl-A and then X.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  linkspan demo                      a guest with a fresh 64 MiB disk, and a shell in it
  linkspan demo --image disk.img     the same with your image; the guest can change it
  linkspan demo --check --queues 4   boot, read, write, reboot, compare; exit status 0 or 1

Exit status: 0 done, 1 failed, 2 wrong usage, 5 something is missing on this machine.")]
pub struct Args {
    /// Let the guest test its disk, compare with the image, and report; no shell
    #[arg(long)]
    pub check: bool,

    /// Report as one JSON object on standard output
    #[arg(long, requires = "check")]
    pub json: bool,

    /// Raw disk image to serve [default: a fresh one of 64 MiB, deleted at the end].
    /// With --check the guest writes to a copy, never to this file
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,

    /// Queues of the disk; the guest gets as many processors
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub queues: u16,

    /// Use packed rings
    #[arg(long)]
    pub packed: bool,

    /// Memory of the guest in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(128..=65536))]
    pub memory: u32,

    /// How the guest is executed
    #[arg(long, value_enum, default_value_t)]
    pub accel: accel::Choice,

    /// Folder with boot/vmlinuz-* and lib/modules of the guest's kernel
    /// [default: $LINKSPAN_GUEST_KERNEL, the cache, then this machine's own]
    #[arg(long, value_name = "DIR")]
    pub kernel: Option<PathBuf>,

    /// The QEMU program
    #[arg(long, value_name = "PATH", default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,

    /// Seconds after which a check has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
}

/// The result of a check, for people and as JSON.
#[derive(Debug, Serialize)]
struct Summary {
    ok: bool,
    kernel: String,
    accel: Accel,
    queues: u16,
    disk_bytes: u64,
    seconds: f64,
    findings: Vec<Finding>,
}

/// Runs the command. Signals end it cleanly: children stopped, files removed.
///
/// # Errors
/// See [`Error`]; [`Error::exit_status`] is the program's exit status for it.
pub fn run(args: &Args) -> Result<(), Error> {
    if !args.check && stdin_is_void() {
        return Err(Error::NoTerminal);
    }
    let stop = Stop::on_signals()?;
    let (qemu, kernel) = requirements(args)?;
    let dir = tempfile::Builder::new()
        .prefix("linkspan-demo-")
        .tempdir()
        .map_err(Error::system("make a temporary folder"))?;
    let mut hardware = Hardware {
        qemu,
        accel: Accel::Tcg,
        memory_mib: args.memory,
        kernel,
    };
    hardware.accel = accel::choose(args.accel, &hardware, dir.path(), &stop)?;
    if args.check {
        run_check(args, &hardware, dir.path(), &stop)
    } else {
        run_shell(args, &hardware, dir.path(), &stop)
    }
}

/// Whether standard input is closed or `/dev/null`, as under a service manager:
/// a shell there would wait for ever.
fn stdin_is_void() -> bool {
    let stdin = std::io::stdin();
    match rustix::fs::fstat(&stdin) {
        Ok(stat) => {
            let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
            kind == rustix::fs::FileType::CharacterDevice && !stdin.is_terminal()
        }
        Err(_) => true,
    }
}

/// QEMU and a kernel, or everything that is missing at once.
fn requirements(args: &Args) -> Result<(PathBuf, Kernel), Error> {
    let qemu = find_program(&args.qemu).ok_or_else(|| Error::Qemu {
        program: args.qemu.clone(),
    });
    let busybox = initramfs::find_busybox().map(|_| ());
    let kernel = Kernel::find(args.kernel.as_deref());
    match (qemu, busybox, kernel) {
        (Ok(qemu), Ok(()), Ok(kernel)) => Ok((qemu, kernel)),
        (qemu, busybox, kernel) => {
            let mut all: Vec<Error> = [qemu.err(), busybox.err(), kernel.err()]
                .into_iter()
                .flatten()
                .collect();
            Err(if all.len() == 1 {
                all.remove(0)
            } else {
                Error::Missing { all }
            })
        }
    }
}

fn run_shell(args: &Args, hardware: &Hardware, dir: &Path, stop: &Stop) -> Result<(), Error> {
    let image = match &args.image {
        Some(image) => image.clone(),
        None => {
            let image = dir.join("disk.img");
            Base::Pattern(DEMO_IMAGE_BYTES).write_to(&image)?;
            image
        }
    };
    let mut blk = BlockProcess::start(&image, args.queues, dir, stop)?;
    let archive = dir.join("initramfs.cpio");
    initramfs::store(&initramfs::build(&hardware.kernel, &[])?, &archive)?;
    announce(hardware, args.queues);
    let disk = Disk {
        socket: &blk.socket,
        queues: args.queues,
        packed: args.packed,
    };
    let mut machine = Machine::start(
        hardware,
        Devices {
            disk: Some(disk),
            nic: None,
        },
        Mode::Shell,
        &archive,
        &dir.join("console.log"),
    )?;
    loop {
        blk.server().still_runs()?;
        let soon = Instant::now() + Duration::from_millis(500);
        match machine.next_event(soon, stop)? {
            Event::Exited(status) if status.success() => return Ok(()),
            Event::Exited(status) => {
                return Err(Error::Ended {
                    name: "QEMU",
                    status,
                    tail: String::new(),
                });
            }
            Event::Line(_) | Event::Late => {}
        }
    }
}

fn run_check(args: &Args, hardware: &Hardware, dir: &Path, stop: &Stop) -> Result<(), Error> {
    let started = Instant::now();
    let (base, disk_bytes) = check_base(args.image.as_deref())?;
    let image = dir.join("disk.img");
    base.write_to(&image)?;
    let plan = Plan::new(disk_bytes, args.queues, seed()).expect("the size was checked");
    let mut blk = BlockProcess::start(&image, args.queues, dir, stop)?;
    announce(hardware, args.queues);
    let disk = Disk {
        socket: &blk.socket,
        queues: args.queues,
        packed: args.packed,
    };
    let devices = Devices {
        disk: Some(disk),
        nic: None,
    };
    let mut machine = check::boot(hardware, devices, &plan, dir)?;
    let limit = Duration::from_secs(args.timeout);
    let collected = check::collect(&mut machine, Some(blk.server()), limit, stop, show_progress);
    let report = collected.inspect_err(|_| blk.show_log())?;
    let server_end = blk.process.stop()?;
    let host = HostView {
        queues: args.queues,
        base: &base,
        image: &image,
        disk_bytes,
    };
    let mut findings = check::judge(&report, &plan, host)?;
    findings.push(Finding {
        what: "server's end",
        ok: server_end.success(),
        detail: format!("asked to stop by SIGTERM: {server_end}"),
    });
    let summary = Summary {
        ok: findings.iter().all(|finding| finding.ok),
        kernel: hardware.kernel.release.clone(),
        accel: hardware.accel,
        queues: args.queues,
        disk_bytes,
        seconds: started.elapsed().as_secs_f64(),
        findings,
    };
    summary.print(args.json);
    if summary.ok {
        return Ok(());
    }
    blk.show_log();
    let failed = summary
        .findings
        .iter()
        .filter(|finding| !finding.ok)
        .count();
    Err(Error::CheckFailed {
        failed,
        total: summary.findings.len(),
        tail: machine.console_tail(),
    })
}

impl Summary {
    fn print(&self, json: bool) {
        if json {
            println!(
                "{}",
                serde_json::to_string(self).expect("a summary has only plain values")
            );
            return;
        }
        println!(
            "Linux {} under QEMU ({}), a disk of {} MiB with {} queues, {:.1} s:",
            self.kernel,
            self.accel.name(),
            self.disk_bytes >> 20,
            self.queues,
            self.seconds
        );
        for Finding { what, ok, detail } in &self.findings {
            println!("  {}  {what}: {detail}", if *ok { "ok  " } else { "FAIL" });
        }
        println!(
            "{}",
            if self.ok {
                "The disk is what it should be."
            } else {
                "The disk is NOT what it should be."
            }
        );
    }
}

/// What the check's disk holds at first, and its size.
fn check_base(image: Option<&Path>) -> Result<(Base, u64), Error> {
    let Some(path) = image else {
        return Ok((Base::Pattern(DEMO_IMAGE_BYTES), DEMO_IMAGE_BYTES));
    };
    let bytes = fs::metadata(path).map_err(Error::file("open", path))?.len();
    if bytes < disk::PLAN_DISK_BYTES_MIN || !bytes.is_multiple_of(disk::SECTOR_BYTES) {
        let min_bytes = disk::PLAN_DISK_BYTES_MIN;
        return Err(Error::ImageSize {
            path: path.to_owned(),
            bytes,
            min_bytes,
        });
    }
    Ok((Base::File(path.to_owned()), bytes))
}

/// A number that differs from run to run, so that what an earlier run left on a
/// disk is never taken for this one's.
fn seed() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    since.as_secs().rotate_left(32)
        ^ u64::from(since.subsec_nanos())
        ^ (u64::from(std::process::id()) << 40)
}

fn announce(hardware: &Hardware, queues: u16) {
    let Hardware { accel, kernel, .. } = hardware;
    eprintln!(
        "linkspan: booting Linux {} in QEMU ({}), {queues} queues",
        kernel.release,
        accel.name()
    );
}

fn show_progress(key: &str, value: &str) {
    match (key, value) {
        ("boot", n) => eprintln!("linkspan: guest is up, boot {n} of 2"),
        ("queues", n) => eprintln!("linkspan: guest sees {n} queues; it hashes the whole disk"),
        ("sha256", _) => eprintln!("linkspan: hashed; it writes or compares"),
        ("end", how) => eprintln!("linkspan: guest is done, {how}"),
        ("problem", what) => eprintln!("linkspan: guest reports a problem: {what}"),
        _ => {}
    }
}

/// `linkspan blk` as a child, with its socket and its log.
struct BlockProcess {
    process: Process,
    socket: PathBuf,
    log: PathBuf,
}

impl BlockProcess {
    fn start(image: &Path, queues: u16, dir: &Path, stop: &Stop) -> Result<Self, Error> {
        let (socket, log) = (dir.join("blk.sock"), dir.join("blk.log"));
        let program = std::env::current_exe().map_err(Error::system("find this program's file"))?;
        let output = fs::File::create(&log).map_err(Error::file("write", &log))?;
        let errors = output.try_clone().map_err(Error::file("write", &log))?;
        let mut command = supervised(&program);
        command
            .arg("blk")
            .arg("--socket-path")
            .arg(&socket)
            .arg("--image")
            .arg(image)
            .args(["--queues", &queues.to_string()])
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        eprintln!("linkspan: serving {} with linkspan blk", image.display());
        let mut process = Process::spawn("linkspan blk", &mut command)?;
        await_socket(&mut process, &socket, &log, LISTEN_LIMIT, stop)?;
        Ok(Self {
            process,
            socket,
            log,
        })
    }

    /// What it said, for somebody who has to find out why a check failed.
    fn show_log(&self) {
        for line in process::tail(&self.log).lines() {
            eprintln!("linkspan blk: {line}");
        }
    }

    fn server(&mut self) -> Server<'_> {
        Server {
            process: &mut self.process,
            log: &self.log,
        }
    }
}

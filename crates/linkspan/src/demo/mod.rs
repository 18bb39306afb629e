//! `linkspan demo`: a Linux guest in QEMU whose disk is served by `linkspan blk`,
//! whose network by `linkspan net`, and whose screen by `linkspan gpu`.
//!
//! The parts, each usable alone: [`kernel`] finds a stock kernel, [`initramfs`]
//! packs the guest, [`machine`] runs QEMU on given sockets, [`disk`] knows what
//! is on the disk, [`check`] judges what the guest [`report`]s. `serve` has the
//! children, `share` the disk's, `address` finds a network that this machine does not know, `net_check`
//! is the network's part of the check, `screen` has the guest's screen, `page` shows all of it,
//! `driver` takes the place of a guest.

use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

pub mod accel;
mod address;
pub mod check;
pub mod disk;
mod driver;
mod error;
pub mod initramfs;
pub mod kernel;
pub mod machine;
mod net_check;
mod page;
pub mod process;
pub(crate) mod qemu;
pub mod report;
mod screen;
mod serve;
mod share;

pub use error::Error;

use check::{Finding, HostView};
use disk::{Base, Plan};
use kernel::Kernel;
use machine::{Accel, Devices, Disk, Event, Hardware, Machine, Mode, Nic};
use net_check::HostSide;
use page::Page;
use process::{Stop, find_program};
use screen::Screen;
use serve::{Described, Net, Served};
use share::{GuestDisk, end};

/// The card's address: one of QEMU's own, with this program's letters.
const MAC: [u8; 6] = [0x52, 0x54, 0, b'L', b'S', 1];

/// Size of the image that is made when none is given.
const DEMO_IMAGE_BYTES: u64 = 64 << 20;

/// Boot a Linux guest whose disk, network and screen are served by Linkspan
///
/// Starts `linkspan blk`, `linkspan net` and `linkspan gpu` as processes of their own, boots a
/// stock Debian kernel in QEMU with that disk, network and screen, and gives you a shell in it.
/// Leave with `poweroff`, or with Ctrl-A and then X.
///
/// A page, whose address is printed, shows what disk and network do, and the screen with keys
/// and pointer, in a browser of this machine. The screen needs a kernel with a driver for it, and
/// without KVM a QEMU of version 10, which `cargo xtask run` fetches; without them the guest has none.
///
/// The guest and this machine reach each other through a tap interface, which is made for
/// the demo and goes with it, in a private network that this machine does not know yet.
/// Where that is not allowed the guest gets a lease from a responder that answers its pings.
/// Without QEMU the built-in driver tries the same links.
#[derive(Clone, Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("report").args(["check", "no_guest"]).multiple(true),
    after_help = "\
Examples:
  linkspan demo                      a guest with a fresh 64 MiB disk, and a shell in it
  linkspan demo --image disk.img     the same with your image; the guest can change it
  linkspan demo --check --queues 4   boot, read, write, ping, reboot, compare; exit status 0 or 1
  linkspan demo --check --net tap    the same, and fail if the guest cannot reach this machine
  linkspan demo --disk-on-share      the image on a share of our own server, over SMB Direct
  linkspan demo --no-guest           the same links with the built-in driver, without QEMU

Exit status: 0 done, 1 failed, 2 wrong usage, 5 something is missing on this machine."
)]
pub struct Args {
    /// Let the guest test its disk and network, compare, and report; no shell
    #[arg(long)]
    pub check: bool,

    /// Report as one JSON object on standard output, with --check or --no-guest
    #[arg(long, requires = "report")]
    pub json: bool,

    /// Try the links with the built-in driver in place of a guest
    #[arg(long)]
    pub no_guest: bool,

    /// Raw disk image to serve [default: a fresh one of 64 MiB, deleted at the end].
    /// With --check the guest writes to a copy, never to this file
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,

    /// Have the disk on a share of `linkspan smb serve`, over SMB Direct. The share is the
    /// folder of the image, for this machine and a password that is made up
    #[arg(long)]
    pub disk_on_share: bool,

    /// Queues of the disk; the guest gets as many processors
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub queues: u16,

    /// Who is in the guest's network
    #[arg(long, value_enum, default_value_t)]
    pub net: serve::Choice,

    /// Queue pairs of the network
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub queue_pairs: u16,

    /// No screen; with --check there is none
    #[arg(long)]
    pub no_screen: bool,

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
    /// Absent where the built-in driver was in the guest's place.
    kernel: Option<String>,
    accel: Option<Accel>,
    queues: u16,
    disk_bytes: u64,
    disk_on_share: bool,
    network: Option<Described>,
    seconds: f64,
    findings: Vec<Finding>,
}

/// Runs the command. Signals end it cleanly: children stopped, files and interfaces
/// removed.
///
/// # Errors
/// See [`Error`]; [`Error::exit_status`] is the program's exit status for it.
pub fn run(args: &Args) -> Result<(), Error> {
    let stop = Stop::on_signals()?;
    let dir = tempfile::Builder::new()
        .prefix("linkspan-demo-")
        .tempdir()
        .map_err(Error::system("make a temporary folder"))?;
    if args.no_guest {
        return run_driver(args, dir.path(), &stop);
    }
    let needs = match requirements(args) {
        Ok(needs) => needs,
        Err(error) => {
            eprintln!("linkspan: {error}");
            eprintln!("linkspan: so there is no guest; the built-in driver takes its place");
            run_driver(args, dir.path(), &stop)?;
            return Err(Error::NoGuest);
        }
    };
    if !args.check && stdin_is_void() {
        return Err(Error::NoTerminal);
    }
    let mut hardware = Hardware {
        qemu: needs.qemu,
        accel: Accel::Tcg,
        memory_mib: args.memory,
        kernel: needs.kernel,
    };
    hardware.accel = accel::choose(args.accel, &hardware, dir.path(), &stop)?;
    if args.check {
        run_check(args, &hardware, &needs.busybox, dir.path(), &stop)
    } else {
        run_shell(args, &hardware, dir.path(), &stop)
    }
}

/// What a guest is made of.
struct Needs {
    qemu: PathBuf,
    busybox: PathBuf,
    kernel: Kernel,
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

/// All of it, or everything that is missing at once.
fn requirements(args: &Args) -> Result<Needs, Error> {
    let qemu = find_program(&args.qemu).ok_or_else(|| Error::Qemu {
        program: args.qemu.clone(),
    });
    let busybox = initramfs::find_busybox().map(|(path, _)| path);
    let kernel = Kernel::find(args.kernel.as_deref());
    match (qemu, busybox, kernel) {
        (Ok(qemu), Ok(busybox), Ok(kernel)) => Ok(Needs {
            qemu,
            busybox,
            kernel,
        }),
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

/// What is plugged into the demo's machine.
fn devices<'a>(
    args: &Args,
    disk: &'a GuestDisk,
    net: Option<&'a Net>,
    screen: Option<&'a Screen>,
) -> Devices<'a> {
    Devices {
        disk: Some(Disk {
            socket: &disk.blk.socket,
            queues: args.queues,
            packed: args.packed,
        }),
        nic: net.map(|net| Nic {
            socket: &net.served.socket,
            pairs: net.pairs,
            packed: args.packed,
            mac: MAC,
            place: net.guest_place(),
        }),
        gpu: screen.map(|screen| screen.device(args.packed)),
        ..Devices::default()
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
    let mut disk = GuestDisk::start(&image, args.disk_on_share, args.queues, dir, stop)?;
    let mut net = Net::start(args.net, args.queue_pairs, dir, stop)?;
    let archive = dir.join("initramfs.cpio");
    let (hardware, bytes, mut screen) = with_screen(args, hardware, dir, stop)?;
    initramfs::store(&bytes, &archive)?;
    let mut page = page(&mut disk.blk, net.as_mut(), screen.as_mut(), dir, stop)?;
    announce(&hardware, args.queues);
    let mut machine = Machine::start(
        &hardware,
        devices(args, &disk, net.as_ref(), screen.as_ref()),
        Mode::Shell,
        &archive,
        &dir.join("console.log"),
    )?;
    loop {
        for mut server in disk.servers() {
            server.still_runs()?;
        }
        if let Some(net) = &mut net {
            net.served.server().still_runs()?;
        }
        if let Some(screen) = &mut screen {
            screen.still_runs()?;
        }
        if let Some(page) = &mut page {
            page.still_runs()?;
        }
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

/// The machine and its initramfs, with a screen where there can be one.
fn with_screen(
    args: &Args,
    hardware: &Hardware,
    dir: &Path,
    stop: &Stop,
) -> Result<(Hardware, Vec<u8>, Option<Screen>), Error> {
    let prepared = match args.no_screen {
        true => None,
        false => match screen::prepare(args, hardware, dir, stop) {
            Ok(prepared) => Some(prepared),
            Err(Error::Stopped) => return Err(Error::Stopped),
            Err(error) => {
                eprintln!("linkspan: {error}");
                None
            }
        },
    };
    match prepared {
        Some((hardware, archive, screen)) => Ok((hardware, archive, Some(screen))),
        None => {
            let archive = initramfs::build(&hardware.kernel, &[])?;
            Ok((hardware.clone(), archive, None))
        }
    }
}

/// The page with all of it, where there can be one.
fn page(
    blk: &mut Served,
    net: Option<&mut Net>,
    screen: Option<&mut Screen>,
    dir: &Path,
    stop: &Stop,
) -> Result<Option<Page>, Error> {
    let mut links = vec![blk.link("disk", None)];
    links.extend(net.map(|net| net.served.link("network", None)));
    links.extend(screen.map(Screen::link));
    match Page::start(links, dir, stop) {
        Ok(page) => {
            eprintln!("linkspan: page of the guest: {}", page.url);
            Ok(Some(page))
        }
        Err(Error::Stopped) => Err(Error::Stopped),
        Err(error) => {
            eprintln!("linkspan: {error}");
            Ok(None)
        }
    }
}

fn run_check(
    args: &Args,
    hardware: &Hardware,
    busybox: &Path,
    dir: &Path,
    stop: &Stop,
) -> Result<(), Error> {
    let started = Instant::now();
    let (base, disk_bytes) = check_base(args.image.as_deref())?;
    let image = dir.join("disk.img");
    base.write_to(&image)?;
    let plan = Plan::new(disk_bytes, args.queues, seed()).expect("the size was checked");
    let mut disk = GuestDisk::start(&image, args.disk_on_share, args.queues, dir, stop)?;
    let mut net = Net::start(args.net, args.queue_pairs, dir, stop)?;
    let mut host_side = net.as_ref().map(|net| HostSide::new(net, busybox));
    announce(hardware, args.queues);
    let devices = devices(args, &disk, net.as_ref(), None);
    let mut machine = check::boot(hardware, devices, &plan, dir)?;
    let limit = Duration::from_secs(args.timeout);
    let mut servers = disk.servers();
    servers.extend(net.as_mut().map(|net| net.served.server()));
    let collected = check::collect(&mut machine, &mut servers, limit, stop, |key, value| {
        show_progress(key, value);
        match &mut host_side {
            Some(side) => side.hear(key, value, stop),
            None => Ok(()),
        }
    });
    drop(servers);
    let report = collected.inspect_err(|_| {
        disk.show_log();
        net.iter().for_each(|net| net.served.show_log());
    })?;
    let mut findings = ends(&mut disk, net.as_mut())?;
    let host = HostView {
        queues: args.queues,
        base: &base,
        image: &image,
        disk_bytes,
    };
    findings.extend(check::judge(&report, &plan, host)?);
    if let (Some(side), Some(net)) = (&host_side, &net) {
        findings.extend(side.judge(&report, net));
    }
    let summary = Summary {
        ok: findings.iter().all(|finding| finding.ok),
        kernel: Some(hardware.kernel.release.clone()),
        accel: Some(hardware.accel),
        queues: args.queues,
        disk_bytes,
        disk_on_share: args.disk_on_share,
        network: net.as_ref().map(Net::described),
        seconds: started.elapsed().as_secs_f64(),
        findings,
    };
    if !summary.ok {
        disk.show_log();
        net.iter().for_each(|net| net.served.show_log());
    }
    summary.conclude(args.json, machine.console_tail())
}

/// The same links, with the built-in driver in the guest's place.
fn run_driver(args: &Args, dir: &Path, stop: &Stop) -> Result<(), Error> {
    let started = Instant::now();
    let (base, disk_bytes) = check_base(args.image.as_deref())?;
    // The driver overwrites it.
    let image = dir.join("disk.img");
    base.write_to(&image)?;
    let mut disk = GuestDisk::start(&image, args.disk_on_share, args.queues, dir, stop)?;
    let mut net = Net::echo(args.queue_pairs, dir, stop)?;
    let links = driver::Links {
        disk: &disk.blk,
        queues: args.queues,
        net: &net,
        packed: args.packed,
    };
    let driven = driver::check(&links, dir, stop);
    let mut findings = driven.inspect_err(|_| {
        disk.show_log();
        net.served.show_log();
    })?;
    findings.extend(ends(&mut disk, Some(&mut net))?);
    let summary = Summary {
        ok: findings.iter().all(|finding| finding.ok),
        kernel: None,
        accel: None,
        queues: args.queues,
        disk_bytes,
        disk_on_share: args.disk_on_share,
        network: Some(net.described()),
        seconds: started.elapsed().as_secs_f64(),
        findings,
    };
    summary.conclude(args.json, String::new())
}

/// Has the servers end, as they should, and looks at what they leave.
fn ends(disk: &mut GuestDisk, net: Option<&mut Net>) -> Result<Vec<Finding>, Error> {
    let mut findings = disk.end()?;
    if let Some(net) = net {
        findings.push(end("end of linkspan net", &mut net.served.process)?);
        findings.extend(net.interface().map(net_check::is_gone));
    }
    Ok(findings)
}

impl Summary {
    /// Says it, and is the command's result.
    fn conclude(&self, json: bool, tail: String) -> Result<(), Error> {
        self.print(json);
        let failed = self.findings.iter().filter(|finding| !finding.ok).count();
        if failed == 0 {
            return Ok(());
        }
        Err(Error::CheckFailed {
            failed,
            total: self.findings.len(),
            tail,
        })
    }

    fn print(&self, json: bool) {
        if json {
            println!(
                "{}",
                serde_json::to_string(self).expect("a summary has only plain values")
            );
            return;
        }
        let guest = match (&self.kernel, self.accel) {
            (Some(kernel), Some(accel)) => {
                format!("Linux {kernel} under QEMU ({})", accel.name())
            }
            _ => "The built-in driver, no guest".to_owned(),
        };
        println!(
            "{guest}, a disk of {} MiB{} with {} queues, {}, {:.1} s:",
            self.disk_bytes >> 20,
            if self.disk_on_share {
                " on a share"
            } else {
                ""
            },
            self.queues,
            self.network
                .as_ref()
                .map_or_else(|| "no network".to_owned(), ToString::to_string),
            self.seconds
        );
        for Finding { what, ok, detail } in &self.findings {
            println!("  {}  {what}: {detail}", if *ok { "ok  " } else { "FAIL" });
        }
        println!(
            "{}",
            if self.ok {
                "Everything is what it should be."
            } else {
                "Not everything is what it should be."
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
        ("net.address", address) => eprintln!("linkspan: guest is {address} in its network"),
        ("net.pinged", who) => eprintln!("linkspan: guest has pinged {who}"),
        ("end", how) => eprintln!("linkspan: guest is done, {how}"),
        ("problem", what) => eprintln!("linkspan: guest reports a problem: {what}"),
        _ => {}
    }
}

//! The self-check: a guest reads every byte of its disk, writes through every
//! queue, reboots and reads again, and the host compares all of it with the image.
//!
//! Boot and collection take nothing but a socket, so tests can put any back end
//! behind it, end QEMU in the middle, and boot again.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Error;
use super::disk::{Base, ImageState, Plan};
use super::initramfs;
use super::machine::{Devices, Event, Hardware, Machine, Mode};
use super::process::{Process, Stop, tail};
use super::report::{Boot, Report};

/// What was looked at, and whether it is as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// Whether it is right.
    pub ok: bool,
    /// The values that were compared.
    pub detail: String,
}

/// A program behind a device's socket, watched while the guest runs, with its log.
#[derive(Debug)]
pub struct Server<'a> {
    /// The process.
    pub process: &'a mut Process,
    /// What it writes.
    pub log: &'a Path,
}

impl Server<'_> {
    /// # Errors
    /// [`Error::Ended`] where it no longer runs.
    pub fn still_runs(&mut self) -> Result<(), Error> {
        match self.process.ended()? {
            None => Ok(()),
            Some(status) => Err(Error::Ended {
                name: self.process.name(),
                status,
                tail: tail(self.log),
            }),
        }
    }
}

/// Boots a guest that carries out `plan`; its files go to `dir`.
///
/// # Errors
/// Those of making the initramfs and of starting QEMU.
pub fn boot(
    hardware: &Hardware,
    devices: Devices<'_>,
    plan: &Plan,
    dir: &Path,
) -> Result<Machine, Error> {
    let archive = dir.join("initramfs.cpio");
    initramfs::store(
        &initramfs::build(&hardware.kernel, &plan.guest_files())?,
        &archive,
    )?;
    Machine::start(
        hardware,
        devices,
        Mode::Check,
        &archive,
        &dir.join("console.log"),
    )
}

/// Collects the guest's reports until QEMU ends; `seen` is told each of them.
///
/// # Errors
/// [`Error::Timeout`] after `limit`, [`Error::Panicked`], [`Error::Ended`] where
/// QEMU fails or a server dies, [`Error::Stopped`]; each with the console's end. Those
/// of `seen`.
pub fn collect(
    machine: &mut Machine,
    servers: &mut [Server<'_>],
    limit: Duration,
    stop: &Stop,
    mut seen: impl FnMut(&str, &str) -> Result<(), Error>,
) -> Result<Report, Error> {
    const LOOK: Duration = Duration::from_millis(500);
    let deadline = Instant::now() + limit;
    let mut report = Report::default();
    let mut at = "start of the kernel".to_owned();
    loop {
        let now = Instant::now();
        if now >= deadline {
            return Err(Error::Timeout {
                limit,
                at,
                tail: machine.console_tail(),
            });
        }
        for server in &mut *servers {
            server.still_runs()?;
        }
        match machine.next_event(deadline.min(now + LOOK), stop)? {
            Event::Line(line) => {
                if let Some((key, value)) = report.take(&line) {
                    at = format!("{key}={value}");
                    seen(key, value)?;
                }
            }
            Event::Exited(status) if status.success() => return Ok(report),
            Event::Exited(status) => {
                return Err(Error::Ended {
                    name: "QEMU",
                    status,
                    tail: machine.console_tail(),
                });
            }
            Event::Late => {
                let tail = machine.console_tail();
                if tail.contains("Kernel panic") {
                    return Err(Error::Panicked { tail });
                }
            }
        }
    }
}

/// The disk as the host knows it.
#[derive(Clone, Copy, Debug)]
pub struct HostView<'a> {
    /// The queues that the guest should see.
    pub queues: u16,
    /// The content before the guest ran.
    pub base: &'a Base,
    /// The image after the guest ran.
    pub image: &'a Path,
    /// The bytes of the disk.
    pub disk_bytes: u64,
}

/// Compares what the guest reported with the host's view of the disk.
///
/// # Errors
/// [`Error::File`], [`Error::System`] where base or image cannot be read.
pub fn judge(report: &Report, plan: &Plan, host: HostView<'_>) -> Result<Vec<Finding>, Error> {
    let none = Boot::default();
    let first = report.boots.first().unwrap_or(&none);
    let second = report.boots.get(1).unwrap_or(&none);
    let mut image = File::open(host.image).map_err(Error::file("open", host.image))?;
    let state = plan
        .compare(&mut host.base.open()?, &mut image)
        .map_err(Error::file("read", host.image))?;
    let queues = [first.queues, second.queues];
    let sizes = [first.bytes, second.bytes];
    let ends = [first.end.as_deref(), second.end.as_deref()];
    let rebooted = report.boots.len() == 2
        && !first.marker_found
        && second.marker_found
        && ends == [Some("reboot"), Some("poweroff")];
    let problems = match report.problems.as_slice() {
        [] => "no problem reported".to_owned(),
        problems => problems.join("; "),
    };
    let before = host.base.sha256()?;
    let finding = |what, ok, detail| Finding { what, ok, detail };
    Ok(vec![
        finding(
            "queues",
            queues == [Some(host.queues); 2],
            format!("{} wanted, {}", host.queues, seen(queues)),
        ),
        finding(
            "size",
            sizes == [Some(host.disk_bytes); 2],
            format!("{} bytes, {}", host.disk_bytes, seen(sizes)),
        ),
        finding(
            "every byte before",
            first.sha256.as_ref() == Some(&before),
            hash_text(first),
        ),
        finding(
            "writes read back",
            all_same(first, plan),
            same_text(first, plan),
        ),
        finding(
            "reboot",
            rebooted,
            format!("{} boots of 2", report.boots.len()),
        ),
        finding(
            "writes after reboot",
            all_same(second, plan),
            same_text(second, plan),
        ),
        finding(
            "image on the host",
            state.first_wrong.is_none(),
            image_text(&state, plan),
        ),
        finding(
            "every byte after",
            second.sha256.as_ref() == Some(&state.sha256),
            hash_text(second),
        ),
        finding("guest's own findings", report.problems.is_empty(), problems),
    ])
}

fn image_text(state: &ImageState, plan: &Plan) -> String {
    match state.first_wrong {
        None => format!(
            "{} writes in place, nothing else changed",
            plan.names().count()
        ),
        Some(at) => format!(
            "{} wrong bytes, the first at offset {at}",
            state.wrong_bytes
        ),
    }
}

fn seen<T: std::fmt::Display>(values: [Option<T>; 2]) -> String {
    let [first, second] =
        values.map(|value| value.map_or_else(|| "nothing".to_owned(), |value| value.to_string()));
    format!("seen {first}, after reboot {second}")
}

fn hash_text(boot: &Boot) -> String {
    boot.sha256
        .as_ref()
        .map_or_else(|| "no hash".to_owned(), |hash| format!("SHA-256 {hash}"))
}

fn all_same(boot: &Boot, plan: &Plan) -> bool {
    plan.names().all(|name| boot.same.get(name) == Some(&true))
}

fn same_text(boot: &Boot, plan: &Plan) -> String {
    let right = plan
        .names()
        .filter(|name| boot.same.get(*name) == Some(&true))
        .count();
    format!("{right} of {} places", plan.names().count())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    const BYTES: u64 = 1 << 20;

    struct Case {
        plan: Plan,
        base: Base,
        report: Report,
        image: tempfile::NamedTempFile,
    }

    /// A run in which everything went right, as the guest reports it.
    fn good() -> Case {
        let (plan, base) = (Plan::new(BYTES, 2, 1).unwrap(), Base::Pattern(BYTES));
        let mut content = Vec::new();
        base.open().unwrap().read_to_end(&mut content).unwrap();
        let table = plan.guest_files().pop().unwrap().data;
        for (line, file) in String::from_utf8(table)
            .unwrap()
            .lines()
            .zip(plan.guest_files())
        {
            let at: usize = line.split(' ').nth(1).unwrap().parse().unwrap();
            content[at..at + file.data.len()].copy_from_slice(&file.data);
        }
        let image = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(image.path(), &content).unwrap();
        let mut report = Report::default();
        let after = Base::File(image.path().to_owned()).sha256().unwrap();
        for (boot, hash, end) in [
            (1, base.sha256().unwrap(), "reboot"),
            (2, after, "poweroff"),
        ] {
            let mut take = |text: String| report.take(&format!("LINKSPAN {text}")).map(|_| ());
            take(format!("boot={boot}"));
            take("queues=2".into());
            take(format!("bytes={BYTES}"));
            take(format!("sha256={hash}"));
            for name in plan.names() {
                take(format!("same.{name}=yes"));
            }
            take(format!("end={end}"));
        }
        Case {
            plan,
            base,
            report,
            image,
        }
    }

    /// The findings that are wrong.
    fn wrong(case: &Case) -> Vec<&'static str> {
        let host = HostView {
            queues: 2,
            base: &case.base,
            image: case.image.path(),
            disk_bytes: BYTES,
        };
        let findings = judge(&case.report, &case.plan, host).unwrap();
        findings
            .into_iter()
            .filter(|finding| !finding.ok)
            .map(|finding| finding.what)
            .collect()
    }

    #[test]
    fn a_good_run_has_nothing_wrong() {
        assert_eq!(wrong(&good()), [""; 0]);
    }

    #[test]
    fn each_fault_is_named() {
        let with = |spoil: &dyn Fn(&mut Report)| {
            let mut case = good();
            spoil(&mut case.report);
            wrong(&case)
        };
        assert_eq!(with(&|r| r.boots[0].queues = Some(1)), ["queues"]);
        assert_eq!(with(&|r| r.boots[1].queues = None), ["queues"]);
        assert_eq!(with(&|r| r.boots[1].bytes = Some(BYTES - 512)), ["size"]);
        assert_eq!(with(&|r| r.boots[0].sha256 = None), ["every byte before"]);
        assert_eq!(
            with(&|r| r.boots[1].sha256 = Some("0".repeat(64))),
            ["every byte after"]
        );
        assert_eq!(
            with(&|r| {
                r.boots[0].same.remove("q1-large");
            }),
            ["writes read back"]
        );
        assert_eq!(
            with(&|r| {
                r.boots[1].same.insert("last".into(), false);
            }),
            ["writes after reboot"]
        );
        assert_eq!(with(&|r| r.boots[1].marker_found = false), ["reboot"]);
        assert_eq!(with(&|r| r.boots.push(Boot::default())), ["reboot"]);
        assert_eq!(
            with(&|r| r.problems.push("dd".into())),
            ["guest's own findings"]
        );
    }

    #[test]
    fn a_write_that_did_not_reach_the_image_is_found() {
        let case = good();
        let mut content = std::fs::read(case.image.path()).unwrap();
        content[0] ^= 1;
        std::fs::write(case.image.path(), content).unwrap();
        assert_eq!(wrong(&case), ["image on the host", "every byte after"]);
    }

    #[test]
    fn a_guest_that_said_nothing_fails() {
        let mut case = good();
        case.report = Report::default();
        assert!(wrong(&case).len() >= 7);
    }
}

//! The kernel's device of file copy: which it is, what there is of it, and who has it.

use std::process::ExitCode;

use linkspan_sys::uio::{self, Error, Found, Roots};
use linkspan_vmbus::ic::FILE_COPY;
use rustix::fs::{Access, access};
use serde::Serialize;

use crate::exit::{Failure, Status};
use crate::serving::print;

/// Options of `status`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: start what needs the device only where it is\n\n  \
        linkspan fcopy status && systemctl start linkspan-fcopy\n\n\
        Exit status: 0 ready, 3 the host's service is off, 5 no device, another driver has it, \
        or this user may not open it."
)]
pub(super) struct StatusArgs {
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// Options of `bind`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: a kernel before Linux 6.10 that gives file copy to hv_utils\n\n  \
        modprobe uio_hv_generic && linkspan fcopy bind\n\n\
        It needs root. Linux 6.10 and later do it by themselves, and nothing is changed there."
)]
pub(super) struct BindArgs {}

fn guids() -> (String, Option<String>) {
    let instance = FILE_COPY.instance.map(|instance| instance.to_string());
    (FILE_COPY.interface.to_string(), instance)
}

/// The device, if it can be opened now.
///
/// # Errors
/// What is missing.
pub(super) fn find(roots: &Roots) -> Result<Found, Error> {
    let (class, instance) = guids();
    uio::find(roots, &class, instance.as_deref())
}

/// The device; one of a kernel before Linux 6.10 is given to the driver first.
///
/// # Errors
/// What is missing.
pub(super) fn bound(roots: &Roots) -> Result<Found, Error> {
    let (class, instance) = guids();
    uio::bind(roots, &class, instance.as_deref())
}

/// How the program ends without a device.
pub(super) fn failure(error: Error) -> Failure {
    let remedy = error.remedy();
    Failure::new(status(&error), error).hint(remedy)
}

/// The host's service is the peer; all else is this machine's.
fn status(error: &Error) -> Status {
    match error {
        Error::NoDevice { .. } => Status::PeerUnreachable,
        _ => Status::Missing,
    }
}

/// What `status` tells.
#[derive(Debug, Default, Serialize)]
struct Report {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ring_size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'static str>,
}

impl Report {
    fn new(found: Result<Found, Error>) -> (Self, ExitCode) {
        match found {
            Ok(found) => Self::of(&found),
            Err(error) => Self::lacking(error),
        }
    }

    fn of(found: &Found) -> (Self, ExitCode) {
        let report = Self {
            state: "ready",
            device: Some(found.file.display().to_string()),
            ring_size: Some(found.rings / 2),
            driver: Some(uio::DRIVER.to_owned()),
            ..Self::default()
        };
        match access(&found.file, Access::READ_OK | Access::WRITE_OK) {
            Ok(()) => (report, ExitCode::SUCCESS),
            Err(errno) => {
                let error = Error::System {
                    what: "open",
                    path: found.file.clone(),
                    source: errno.into(),
                };
                let (lacking, code) = Self::lacking(error);
                let report = Self {
                    state: lacking.state,
                    reason: lacking.reason,
                    remedy: lacking.remedy,
                    ..report
                };
                (report, code)
            }
        }
    }

    fn lacking(error: Error) -> (Self, ExitCode) {
        let code = ExitCode::from(status(&error) as u8);
        let report = Self {
            state: match &error {
                Error::NoBus(_) => "absent",
                Error::NoDevice { .. } => "off",
                Error::NotBound { driver: None, .. } => "unbound",
                Error::NotBound { .. } if !error.may_come() => "other-driver",
                _ => "unusable",
            },
            driver: match &error {
                Error::NotBound { driver, .. } => driver.clone(),
                _ => None,
            },
            reason: Some(said(&error)),
            remedy: Some(error.remedy()),
            ..Self::default()
        };
        (report, code)
    }
}

/// With what the system said.
fn said(error: &Error) -> String {
    match error {
        Error::System { source, .. } => format!("{error}: {source}"),
        _ => error.to_string(),
    }
}

/// Tells what there is of the device.
pub(super) fn run_status(args: &StatusArgs) -> ExitCode {
    let (report, code) = Report::new(find(&Roots::default()));
    if args.json {
        print(&report);
        return code;
    }
    match (&report.device, &report.reason) {
        (Some(device), None) => {
            let ring = report.ring_size.unwrap_or_default();
            println!("ready: {device}, two rings of {ring} bytes");
        }
        (_, reason) => {
            println!(
                "{}: {}",
                report.state,
                reason.as_deref().unwrap_or_default()
            );
            println!("  try: {}", report.remedy.unwrap_or_default());
        }
    }
    code
}

/// Gives the device to the driver that passes it on.
///
/// # Errors
/// What is missing.
pub(super) fn run_bind(_: &BindArgs) -> Result<(), Failure> {
    let found = bound(&Roots::default()).map_err(failure)?;
    println!("{}", found.file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    const DEVICE: &str = "bus/vmbus/devices/eb765408-105f-49b6-b4aa-c123b64d17d4";

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The report, as JSON, and whether the status is this one.
    #[track_caller]
    fn expect(roots: &Roots, code: u8, state: &str) -> serde_json::Value {
        let (report, found) = Report::new(find(roots));
        assert_eq!(format!("{found:?}"), format!("{:?}", ExitCode::from(code)));
        assert_eq!(report.state, state);
        serde_json::to_value(report).unwrap()
    }

    #[test]
    fn each_state_has_its_name_and_its_exit_status() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots {
            sysfs: dir.path().join("sys"),
            dev: dir.path().join("dev"),
            page: 4096,
        };
        let device = roots.sysfs.join(DEVICE);
        expect(&roots, 5, "absent");
        fs::create_dir_all(device.parent().unwrap()).unwrap();
        let off = expect(&roots, 3, "off");
        assert!(off["remedy"].as_str().unwrap().contains("Guest Services"));
        write(
            &device.join("class_id"),
            "{34d14be3-dee4-41c8-9ae7-6b174977c192}\n",
        );
        write(
            &device.join("device_id"),
            "{eb765408-105f-49b6-b4aa-c123b64d17d4}\n",
        );
        expect(&roots, 5, "unbound");
        let link = |to: &str| {
            drop(fs::remove_file(device.join("driver")));
            std::os::unix::fs::symlink(to, device.join("driver")).unwrap();
        };
        link("../../drivers/hv_utils");
        let other = expect(&roots, 5, "other-driver");
        assert_eq!(other["driver"], "hv_utils");
        link("../../drivers/uio_hv_generic");
        write(&device.join("uio/uio4/maps/map0/size"), "0xa000\n");
        let missing = expect(&roots, 5, "unusable");
        assert!(missing["reason"].as_str().unwrap().contains("uio4"));
        write(&roots.dev.join("uio4"), "");
        let ready = expect(&roots, 0, "ready");
        assert_eq!(ready["ring_size"], 20480);
        assert_eq!(ready["device"], roots.dev.join("uio4").to_str().unwrap());
        assert!(ready.get("reason").is_none());
    }
}

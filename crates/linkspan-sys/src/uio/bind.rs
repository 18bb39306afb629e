//! Gives a device to the driver that passes it on to a process. Linux 6.10 and later do
//! so by themselves; before, file copy is hv_utils' own.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use crate::acquire;
use linkspan_mem::fault::Site;

use super::{DRIVER, Error, Found, Roots, bare, driver, find, system};

/// The driver that has file copy before Linux 6.10. From no other is a device taken.
const BEFORE: &str = "hv_utils";

/// Finds the device as [`find`] does, and first gives it to [`DRIVER`] if nobody has it,
/// or the driver that has it before Linux 6.10. What is tried in vain is taken back.
///
/// # Errors
/// [`Error`]: the driver is not there, does not take it, or this process may not ask.
pub fn bind(roots: &Roots, class: &str, instance: Option<&str>) -> Result<Found, Error> {
    with(&mut write, roots, class, instance)
}

/// What the kernel is told, a word to a file.
type Tell<'a> = &'a mut dyn FnMut(&Path, &str) -> io::Result<()>;

pub(super) fn with(
    tell: Tell<'_>,
    roots: &Roots,
    class: &str,
    instance: Option<&str>,
) -> Result<Found, Error> {
    let (device, has) = match find(roots, class, instance) {
        Err(Error::NotBound { folder, driver }) => (folder, driver),
        done => return done,
    };
    if !matches!(has.as_deref(), None | Some(BEFORE)) {
        let (folder, driver) = (device, has);
        return Err(Error::NotBound { folder, driver });
    }
    let drivers = roots.sysfs.join("bus/vmbus/drivers");
    let ours = drivers.join(DRIVER);
    if !ours.is_dir() {
        return Err(Error::NoDriver);
    }
    let name = device.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    let before = has.map(|_| drivers.join(BEFORE));
    if let Some(before) = &before {
        let file = before.join("unbind");
        tell(&file, name).map_err(system("write to", &file))?;
    }
    if let Err(error) = take(tell, &device, &ours, class) {
        if let Some(before) = &before {
            // As it was. If that fails it has no driver, which is told next time.
            let _ = tell(&before.join("bind"), name);
        }
        return Err(error);
    }
    find(roots, class, instance)
}

/// By the device's own file where there is one, else by its class.
fn take(tell: Tell<'_>, device: &Path, ours: &Path, class: &str) -> Result<(), Error> {
    let name = device.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    let mut ask = |file: &Path, word: &str| {
        tell(file, word).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                system("write to", file)(source)
            }
            _ => Error::NotTaken {
                folder: device.to_owned(),
                source,
            },
        })
    };
    let choice = device.join("driver_override");
    if choice.exists() {
        ask(&choice, DRIVER)?;
        let bound = ask(&ours.join("bind"), name);
        if bound.is_err() {
            // An empty line ends the choice.
            let _ = ask(&choice, "\n");
        }
        return bound;
    }
    // The driver takes what is there of that class at once.
    ask(&ours.join("new_id"), &bare(class))?;
    if driver(device).is_some() {
        return Ok(());
    }
    ask(&ours.join("bind"), name)
}

/// With one write, as sysfs wants it.
fn write(file: &Path, word: &str) -> io::Result<()> {
    acquire(Site::Fd)?;
    let mut open = File::options().write(true).open(file)?;
    open.write_all(word.as_bytes())
}

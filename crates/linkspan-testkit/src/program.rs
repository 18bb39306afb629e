//! Programs as processes of their own.

use std::ffi::OsStr;
use std::process::Command;

/// A program that hears SIGHUP, which whoever was started by `nohup` ignores, as do all
/// processes that it starts.
pub fn program(path: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP").arg(path);
    command
}

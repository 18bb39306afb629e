//! Programs as processes of their own.

use std::ffi::OsStr;
use std::process::Command;

/// A program that hears SIGHUP, which whoever was started by `nohup` ignores, as do all
/// processes that it starts.
pub fn program(path: impl AsRef<OsStr>) -> Command {
    // In the lab's guest nobody ignores it, and its `env` is busybox's.
    if crate::lab::is_here() {
        return Command::new(path);
    }
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP").arg(path);
    command
}

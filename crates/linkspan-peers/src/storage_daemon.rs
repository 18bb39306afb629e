//! QEMU's `qemu-storage-daemon` as back end, from Debian's `qemu-system-common`
//! (or `qemu-utils`).

use std::path::Path;
use std::process::{Child, Command, Stdio};

const PROGRAM: &str = "qemu-storage-daemon";

/// Whether it is installed.
pub fn is_installed() -> bool {
    let mut command = Command::new(PROGRAM);
    command.arg("--version").stdout(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// What serves a raw image on a socket. It listens soon after it is started;
/// drivers try until it does.
pub fn command(socket: &Path, image: &Path, queues: u16) -> Command {
    let (socket, image) = (socket.display(), image.display());
    let mut command = Command::new(PROGRAM);
    command
        .arg("--blockdev")
        .arg(format!("driver=file,node-name=f,filename={image}"))
        .arg("--export")
        .arg(format!(
            "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={socket},num-queues={queues},writable=on"
        ))
        .stdin(Stdio::null());
    command
}

/// A daemon that runs until it is dropped, which kills it as `kill -9` does.
pub struct StorageDaemon(Child);

impl StorageDaemon {
    /// Starts it.
    ///
    /// # Panics
    /// When it is not installed.
    pub fn start(socket: &Path, image: &Path, queues: u16) -> Self {
        let child = command(socket, image, queues).spawn();
        Self(child.expect("it is installed"))
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        // It has ended already, or this ends it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

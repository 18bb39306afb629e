//! QEMU's `qemu-storage-daemon` as back end, from Debian's `qemu-system-common`
//! (or `qemu-utils`).

use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The program.
const PROGRAM: &str = "qemu-storage-daemon";

/// A daemon that runs until it is dropped, which kills it as `kill -9` does.
pub struct StorageDaemon {
    child: Child,
}

impl StorageDaemon {
    /// Whether it is installed.
    pub fn is_installed() -> bool {
        let mut command = Command::new(PROGRAM);
        command.arg("--version").stdout(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// Serves an image on a socket. It listens soon; drivers try until it does.
    ///
    /// # Panics
    /// When it is not installed.
    pub fn start(socket: &Path, image: &Path, queues: u16) -> Self {
        let (socket, image) = (socket.display(), image.display());
        let child = Command::new(PROGRAM)
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=f,filename={image}"))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={socket},num-queues={queues},writable=on"
            ))
            .stdin(Stdio::null())
            .spawn();
        Self {
            child: child.expect("it is installed"),
        }
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        // It has ended already, or this ends it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

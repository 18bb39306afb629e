//! A target that is started here, and anew when it has died.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// A command that serves on the socket. It ends with this value.
#[derive(Debug)]
pub struct Starter {
    command: String,
    socket: PathBuf,
    child: Option<Child>,
}

impl Starter {
    /// A command for the shell that serves on `socket`; nothing is started yet.
    #[must_use]
    pub fn new(command: String, socket: PathBuf) -> Self {
        Self {
            command,
            socket,
            child: None,
        }
    }

    /// Starts it, or ends what there is and starts it anew.
    ///
    /// # Errors
    /// When there is no shell or no process, or something else than a socket where it is to be.
    pub(crate) fn start(&mut self) -> io::Result<()> {
        self.end();
        // Some fail at the socket of one that was killed.
        match fs::symlink_metadata(&self.socket) {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(&self.socket)?,
            Ok(_) => {
                let text = format!("{} is there, and is no socket", self.socket.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) => {}
        }
        let child = Command::new("sh")
            .args(["-c", &self.command])
            // Its end is not the end of the commands that it starts.
            .process_group(0)
            // Some end with their standard input: it stays open.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<String> {
        let id = Pid::from_raw(i32::try_from(self.child.as_ref()?.id()).ok()?)?;
        // It stays to be waited for: until then its group has its number, and no other has.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::Pid(id), options).ok()??;
        Some(match status.terminating_signal() {
            Some(signal) => format!("its process ended by signal {signal}"),
            None => format!("its process ended with status {}", status.exit_status()?),
        })
    }

    fn end(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        // A group whose processes have all ended is no error.
        let _ = id.map(|id| kill_process_group(id, Signal::KILL));
        let _ = child.wait();
    }
}

impl Drop for Starter {
    fn drop(&mut self) {
        self.end();
    }
}

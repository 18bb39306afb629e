//! A target that is started here, and anew when it has died.

use std::fs;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

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
    /// When there is no shell or no process.
    pub(crate) fn start(&mut self) -> io::Result<()> {
        self.end();
        // Some fail at the socket of one that was killed.
        match fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
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
    pub(crate) fn ended(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        Some(match status.signal() {
            Some(signal) => format!("its process ended by signal {signal}"),
            None => format!("its process ended with status {}", status.code()?),
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

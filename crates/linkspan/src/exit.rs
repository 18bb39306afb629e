//! How the program ends: one status per kind of failure, and messages that say
//! what, why, and what to try.

use std::fmt::{self, Write as _};
use std::process::ExitCode;

use crate::log;

/// The exit status of every command. Scripts rely on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Something that was asked for did not work.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The peer cannot be reached.
    PeerUnreachable = 3,
    /// The peer broke the protocol.
    PeerBroke = 4,
    /// A permission, a program or a kernel feature is missing.
    Missing = 5,
}

/// An error with the status that it ends the program with.
#[derive(Debug)]
pub struct Failure {
    /// The exit status.
    pub status: Status,
    /// What happened and why.
    pub error: anyhow::Error,
    /// What to try, if there is something.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(status: Status, error: impl Into<anyhow::Error>) -> Self {
        Self {
            status,
            error: error.into(),
            hint: None,
        }
    }

    /// Adds what to try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(Status::Failed, error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        shown(f, &format!("{:#}", self.error))?;
        if let Some(hint) = &self.hint {
            f.write_str("\n  try: ")?;
            shown(f, hint)?;
        }
        Ok(())
    }
}

/// Peers name files and say why: what they say goes to a terminal, without control
/// characters, which move its cursor and more.
fn shown(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for c in text.chars() {
        match c {
            '\n' => f.write_char(c)?,
            c if c.is_control() => write!(f, "{}", c.escape_default())?,
            c => f.write_char(c)?,
        }
    }
    Ok(())
}

/// The exit code of a finished command; a failure is told on standard error.
pub fn code(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            log::say(format_args!("{}: {failure}", log::speaker()));
            ExitCode::from(failure.status as u8)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ours: a server's name of a file cleared the terminal.
    #[test]
    fn what_a_peer_says_does_nothing_to_the_terminal() {
        let error = anyhow::anyhow!("a\x1b[2Jb\r\u{9b}1m: denied");
        let failure = Failure::new(Status::Failed, error).hint("c\x07");
        let text = failure.to_string();
        assert_eq!(text, "a\\u{1b}[2Jb\\r\\u{9b}1m: denied\n  try: c\\u{7}");
    }
}

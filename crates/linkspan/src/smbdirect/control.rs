//! What a listener, a `ping` or a `bench` that runs can be asked: how it is, and to log something else.

use std::path::Path;

use linkspan_backends::smbdirect::Classes;

use crate::control;
use crate::exit::Failure;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// How everything is.
    Status,
    /// These classes are logged from now on.
    Log(Classes),
}

impl control::Question for Question {
    fn line(&self) -> String {
        match self {
            Self::Status => "status".to_owned(),
            Self::Log(classes) => format!("log {classes}"),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            None if line == "status" => Some(Self::Status),
            Some(("log", classes)) => Some(Self::Log(classes.parse().ok()?)),
            _ => None,
        }
    }
}

/// Asks one of them; its answer is lines of JSON.
pub(super) fn ask(path: &Path, question: Question) -> Result<String, Failure> {
    control::ask(path, &question).map_err(|failure| {
        failure.hint("linkspan smbdirect listen, ping or bench with --control PATH")
    })
}

#[cfg(test)]
mod tests {
    use super::Question;
    use crate::control::Question as _;
    use linkspan_backends::smbdirect::Classes;

    #[test]
    fn questions_are_lines() {
        for question in [
            Question::Status,
            Question::Log(Classes::NONE),
            Question::Log("send,keep-alive".parse().unwrap()),
        ] {
            assert_eq!(Question::parse(&question.line()), Some(question));
        }
        for line in ["", "statu", "status now", "log", "log nothing", "log send;"] {
            assert_eq!(Question::parse(line), None, "{line}");
        }
    }
}

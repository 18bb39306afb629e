//! Links that go on in another process: the supervisor starts it, gives both a socket to each
//! other, and hears from the new one how that went. Whoever of them is left has the link.

use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;

use super::core::{End, Unknown};
use super::line::Heard;
use super::processes::installed;
use super::up::{Supervisor, words};
use crate::control::refusal;

/// How long a successor has in all: longer than the two processes give each other.
const LIMIT: Duration = Duration::from_secs(90);

/// A link that another process is to take over.
#[derive(Debug)]
pub(super) struct Succession {
    answer: SyncSender<String>,
    due: Instant,
    /// How its process ended meanwhile.
    old_end: Option<End>,
    /// Why the successor did not take it over, as it says.
    error: Option<String>,
}

/// What a successor says.
#[derive(Deserialize)]
#[serde(untagged)]
enum Said {
    Error { error: String },
    Taken { pause_us: Option<u64> },
}

impl Succession {
    /// When its successor has had long enough.
    pub(super) fn due(&self) -> Instant {
        self.due
    }
}

impl Supervisor {
    /// Has a link go on in a new process of this program; who asked hears how that went.
    pub(super) fn upgrade(
        &mut self,
        name: String,
        program: Option<PathBuf>,
        answer: SyncSender<String>,
        now: Instant,
    ) {
        let begun = self.begin_upgrade(&name, program);
        if let Err(why) = begun {
            // Whoever asked may have left.
            let _ = answer.send(refusal(&why));
            return;
        }
        let succession = Succession {
            answer,
            due: now + LIMIT,
            old_end: None,
            error: None,
        };
        self.successions.insert(name, succession);
    }

    fn begin_upgrade(&mut self, name: &str, program: Option<PathBuf>) -> Result<(), String> {
        if !self.core.links().any(|seen| seen.name == name) {
            return Err(Unknown(name.to_owned()).to_string());
        }
        let arguments = self.core.running(name).ok_or("it does not run")?.to_vec();
        let program = program.unwrap_or_else(installed);
        let begun = self
            .processes
            .succeed(name, &arguments, program.clone(), &self.epoll);
        begun.map_err(|error| format!("{} cannot take it over: {error}", program.display()))
    }

    /// Whether how a link's process ended is of no account before its successor's fate is known.
    pub(super) fn waits_for_successor(&mut self, name: &str, end: End) -> bool {
        let succession = self.successions.get_mut(name);
        succession.is_some_and(|it| {
            it.old_end = Some(end);
            true
        })
    }

    /// Something happened to a successor, or to who handed its link over.
    pub(super) fn succession(&mut self, token: u64, now: Instant) {
        self.processes.left(token, &self.epoll);
        if let Some((name, answers)) = self.processes.heard_of_successor(token) {
            for Heard { text, .. } in answers {
                self.successor_said(&name, &text, now);
            }
        }
        if let Some((name, end)) = self.processes.successor_ended(token, &self.epoll) {
            self.successor_ended(&name, end, now);
        }
    }

    fn successor_said(&mut self, name: &str, text: &str, now: Instant) {
        match serde_json::from_str(text) {
            Ok(Said::Taken { pause_us }) => self.succeeded(name, pause_us, now),
            Ok(Said::Error { error }) => {
                if let Some(succession) = self.successions.get_mut(name) {
                    succession.error = Some(error);
                }
            }
            // It is no process of a link.
            Err(_) => self.processes.kill_successor(name),
        }
    }

    fn succeeded(&mut self, name: &str, pause_us: Option<u64>, now: Instant) {
        let Some(pid) = self.processes.swap(name, &self.epoll, now) else {
            return;
        };
        // What the old one was asked last the new one does not know.
        self.core.heard(name, now);
        self.is_news();
        self.tell("upgraded", name, Some(pid), None);
        if let Some(succession) = self.successions.remove(name) {
            let told = json!({ "link": name, "pid": pid, "pause_us": pause_us });
            // Whoever asked may have left.
            let _ = succession.answer.send(format!("{told}\n"));
        }
    }

    fn successor_ended(&mut self, name: &str, end: End, now: Instant) {
        let Some(succession) = self.successions.remove(name) else {
            return;
        };
        let why = succession.error.unwrap_or_else(|| words(end));
        tracing::warn!("link {name}: its successor has not taken it over: {why}");
        let _ = succession.answer.send(refusal(&why));
        if let Some(end) = succession.old_end {
            self.has_ended(name, end, now);
        }
    }

    /// Ends successors that had long enough.
    pub(super) fn end_late_successors(&mut self, now: Instant) {
        for (name, succession) in &mut self.successions {
            if succession.due <= now {
                self.processes.kill_successor(name);
                succession.due = now + LIMIT;
            }
        }
    }
}

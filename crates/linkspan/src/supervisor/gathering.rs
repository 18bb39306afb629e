//! What links say who were all asked what there is to see of them, until all have or had long
//! enough.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::listed::Listed;
use crate::tether::Question;

/// How long links have. Who asks waits a little longer for each step.
const LIMIT: Duration = Duration::from_secs(2);

/// The same for a page, which says within a second that a link is silent.
pub(crate) const PAGE_LIMIT: Duration = Duration::from_millis(400);

/// Bytes of an answer at most: links for which there is no room are told without what they said.
const TEXT_MAX: usize = 32 << 20;

/// Answers under way.
#[derive(Debug)]
pub(crate) struct Gathering {
    answer: SyncSender<String>,
    waiting: BTreeSet<String>,
    said: BTreeMap<String, Vec<Value>>,
    due: Instant,
    /// The link whose messages are wanted, if not what there is to see of all.
    traced: Option<String>,
}

impl Gathering {
    /// Of these links, for who waits at `answer`.
    pub(super) fn new(answer: SyncSender<String>, asked: BTreeSet<String>, now: Instant) -> Self {
        Self::within(LIMIT, answer, asked, now)
    }

    /// The same for who does not wait as long.
    pub(crate) fn within(
        limit: Duration,
        answer: SyncSender<String>,
        asked: BTreeSet<String>,
        now: Instant,
    ) -> Self {
        Self {
            answer,
            waiting: asked,
            said: BTreeMap::new(),
            due: now + limit,
            traced: None,
        }
    }

    /// Of the messages of this link.
    pub(super) fn of(
        answer: SyncSender<String>,
        asked: BTreeSet<String>,
        now: Instant,
        link: String,
    ) -> Self {
        Self {
            traced: Some(link),
            ..Self::new(answer, asked, now)
        }
    }

    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A link has answered: lines of JSON, of which those that are none are left out.
    pub(crate) fn take(&mut self, question: Question, name: &str, text: &str) {
        // An answer that comes late is to an earlier question of its kind, and as good.
        let wanted = match self.traced {
            Some(_) => Question::Trace,
            None => Question::Inspect,
        };
        if question == wanted && self.waiting.remove(name) {
            let lines = text
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok());
            let objects = lines.filter(|value: &Value| value.is_object());
            self.said.insert(name.to_owned(), objects.collect());
        }
    }

    /// A link's process has ended.
    pub(crate) fn leave(&mut self, name: &str) {
        self.waiting.remove(name);
    }

    /// Tells it all: a line for each of these links.
    pub(crate) fn answer(mut self, links: impl Iterator<Item = Listed>) {
        let mut text = String::new();
        let traced = self.traced.take();
        let wanted = |link: &Listed| traced.as_ref().is_none_or(|it| *it == link.link);
        let key = if traced.is_some() {
            "messages"
        } else {
            "endpoints"
        };
        for link in links.filter(wanted) {
            let mut value = serde_json::to_value(&link).unwrap_or_default();
            let said = self.said.remove(&link.link);
            value["answers"] = said.is_some().into();
            let bare = value.clone();
            value[key] = said.unwrap_or_default().into();
            let mut line = value.to_string();
            if text.len() + line.len() > TEXT_MAX {
                value = bare;
                value[key] = Value::Array(Vec::new());
                line = value.to_string();
            }
            text += &line;
            text.push('\n');
        }
        // Whoever asked may have left.
        let _ = self.answer.send(text);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn all_that_is_said_is_told_once() {
        let (sender, _answer) = sync_channel(1);
        let names = ["a", "b", "c"].map(str::to_owned);
        let mut gathering = Gathering::new(sender, names.into(), Instant::now());
        gathering.take(
            Question::Inspect,
            "a",
            "{\"x\":1}\nnonsense\n[1]\n{\"y\":2}\n",
        );
        gathering.take(Question::Inspect, "a", "{\"z\":1}\n");
        gathering.take(Question::Inspect, "d", "{\"z\":1}\n");
        // To another question.
        gathering.take(Question::Trace, "b", "{}\n");
        assert!(!gathering.is_complete());
        gathering.leave("b");
        gathering.take(Question::Inspect, "c", "");
        assert!(gathering.is_complete());
        assert_eq!(gathering.said["a"].len(), 2);
        assert!(gathering.said["c"].is_empty() && !gathering.said.contains_key("d"));
    }
}

//! A link's end of the line to its supervisor: it says that it lives, and what there is to
//! see of it.
//!
//! The line is what a process has as standard input when a supervisor starts it. One line
//! in, lines of JSON and an empty one out. What there is to see is the whole process's, as
//! its log is, so it is registered here by whoever has it.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use linkspan_engine::{Endpoint, Latency, Messages, Passed, View, WorkerCounters, Workers};
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_sys::{EventFd, Stream};
use linkspan_vhost::vdpa::feature_name;
use rustix::io::fcntl_dupfd_cloexec;
use serde_json::{Map, Value, json};

use crate::upgrade;

/// Bytes of a question at most.
const QUESTION_MAX: usize = 64;

/// Bytes of an answer at most: who says more is not heard any more.
pub(crate) const ANSWER_MAX: usize = 4 << 20;

/// How long workers have until it is said that they take long.
const ROUND: Duration = Duration::from_secs(2);

/// How long a thread that has something to show may take to show it: less than a page waits.
const SHOW: Duration = Duration::from_millis(200);

/// What a supervisor asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// Whether it lives.
    Beat,
    /// What there is to see.
    Inspect,
    /// The last messages of each endpoint.
    Trace,
    /// To hand what it serves over to who is at the other end of the socket that comes with
    /// it. How that went is answered there.
    HandOver,
    /// Of a process that is to take a link over: how that went, once it is known.
    TakenOver,
}

impl Question {
    /// As it is sent.
    pub(crate) fn line(self) -> &'static str {
        match self {
            Self::Beat => "beat\n",
            Self::Inspect => "inspect\n",
            Self::Trace => "trace\n",
            Self::HandOver => "hand-over\n",
            Self::TakenOver => "taken-over\n",
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let all = [
            Self::Beat,
            Self::Inspect,
            Self::Trace,
            Self::HandOver,
            Self::TakenOver,
        ];
        all.into_iter().find(|it| it.line() == line)
    }
}

type Sight = Box<dyn Fn() -> Option<Value> + Send>;

#[derive(Default)]
struct Seen {
    sights: Vec<Sight>,
    workers: Vec<Weak<Workers>>,
    watched: Vec<(String, Arc<Messages>)>,
    /// Nothing will be watched.
    mute: bool,
    /// There is a supervisor's line.
    given: bool,
}

static SEEN: Mutex<Seen> = Mutex::new(Seen {
    sights: Vec::new(),
    workers: Vec::new(),
    watched: Vec::new(),
    mute: false,
    given: false,
});

fn seen() -> MutexGuard<'static, Seen> {
    // What is within is whole after each change.
    SEEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This is to be seen of this process from now on: an object, or nothing once it is gone.
pub(crate) fn show(sight: impl Fn() -> Option<Value> + Send + 'static) {
    seen().sights.push(Box::new(sight));
}

/// These messages can be watched from now on.
pub(crate) fn watch(name: &str, messages: &Arc<Messages>) {
    seen().watched.push((name.to_owned(), Arc::clone(messages)));
}

/// If nothing can be watched by now, nothing ever can.
pub(crate) fn settle() {
    let mut seen = seen();
    seen.mute = seen.watched.is_empty();
}

/// Where a thread is asked what there is to see of what is its alone.
pub(crate) struct Desk {
    asked: Receiver<SyncSender<Value>>,
    event: Arc<EventFd>,
}

impl Desk {
    /// A new one, whose owner is asked from now on.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(crate) fn new() -> io::Result<Self> {
        let event = Arc::new(EventFd::new()?);
        let (ask, asked) = sync_channel::<SyncSender<Value>>(1);
        let wake = Arc::clone(&event);
        show(move || {
            let (answer, answered) = sync_channel(1);
            ask.try_send(answer).ok()?;
            wake.signal().ok()?;
            answered.recv_timeout(SHOW).ok()
        });
        Ok(Self { asked, event })
    }

    /// Readable when its owner is asked.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Answers who asks.
    pub(crate) fn answer(&self, look: impl Fn() -> Value) {
        let _ = self.event.drain();
        while let Ok(answer) = self.asked.try_recv() {
            // Whoever asked may not have waited.
            let _ = answer.send(look());
        }
    }
}

/// The process lives as long as these come round.
pub(crate) fn depend_on(workers: &Arc<Workers>) {
    let workers = Arc::downgrade(workers);
    seen().workers.push(Weak::clone(&workers));
    show(move || {
        let counted = count(&*workers.upgrade()?);
        Some(json!({ "endpoint": "workers", "workers": counted }))
    });
}

/// This process has a line to a supervisor, to be held once.
pub(crate) fn give() {
    seen().given = true;
}

/// Takes the line to the supervisor, if there is one, and answers on a thread of its own; nor
/// does the log wait for anybody from then on.
///
/// # Errors
/// What was given is no line, or no thread can be had.
pub(crate) fn hold() -> io::Result<()> {
    if !std::mem::take(&mut seen().given) {
        return Ok(());
    }
    crate::log::wait_for_nobody()?;
    let line = UnixStream::from(fcntl_dupfd_cloexec(io::stdin(), 3)?);
    line.peer_addr()?;
    let answer = move || {
        // The supervisor is gone then, and this process ends by its signal.
        let _ = answer(&line);
    };
    let thread = std::thread::Builder::new().name("tether".to_owned());
    thread.spawn(answer).map(drop)
}

fn answer(line: &UnixStream) -> io::Result<()> {
    let mut questions = Questions {
        stream: Stream::check(line.try_clone()?.into())?,
        text: Vec::new(),
        fds: VecDeque::new(),
    };
    let mut writer = line;
    while let Some(text) = questions.next()? {
        let question = Question::parse(&text);
        let mut answer = match question {
            Some(Question::Beat) => {
                come_round();
                String::new()
            }
            Some(Question::Inspect) => look(),
            Some(Question::Trace) => messages(),
            Some(Question::HandOver) => {
                upgrade::hand_over(questions.fds.pop_front());
                String::new()
            }
            Some(Question::TakenOver) => upgrade::outcome(),
            None => return Err(io::ErrorKind::InvalidData.into()),
        };
        answer.push('\n');
        writer.write_all(answer.as_bytes())?;
        if question == Some(Question::TakenOver) {
            upgrade::told();
        }
    }
    Ok(())
}

/// What a supervisor asks, with the descriptors that come with it.
struct Questions {
    stream: Stream,
    text: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Questions {
    /// The next line, with its end; `None` once there is no supervisor.
    fn next(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line = self.text.drain(..=end).collect();
                return String::from_utf8(line).map(Some).map_err(io::Error::other);
            }
            if self.text.len() >= QUESTION_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let (mut bytes, mut fds) = ([0; QUESTION_MAX], Vec::new());
            match self.stream.receive(&mut bytes, &mut fds, 1) {
                Ok(received) if received.bytes == 0 => return Ok(None),
                Ok(received) => self.text.extend_from_slice(&bytes[..received.bytes]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_for(self.stream.as_fd(), Direction::Read, None, None)?;
                }
                Err(error) => return Err(error),
            }
            self.fds.extend(fds);
        }
    }
}

/// Returns once all workers have come round, which may be never.
fn come_round() {
    let workers: Vec<_> = seen().workers.iter().filter_map(Weak::upgrade).collect();
    while !workers.iter().all(|workers| workers.come_round(ROUND)) {
        tracing::warn!("a worker is held up");
    }
}

/// A line for each thing that there is to see.
fn look() -> String {
    let seen = seen();
    let sights = seen.sights.iter().filter_map(|sight| sight());
    fitting(sights, ANSWER_MAX - 1)
}

/// As many of these lines as there is room for, and no part of one.
fn fitting(lines: impl Iterator<Item = Value>, room: usize) -> String {
    let mut text = String::new();
    for line in lines {
        let line = format!("{line}\n");
        if line.len() <= room - text.len() {
            text += &line;
        }
    }
    text
}

/// A line for each message that is kept; where there are too many for an answer, the last
/// ones of each endpoint.
fn messages() -> String {
    let seen = seen();
    if seen.mute {
        return format!("{}\n", json!({ "mute": true }));
    }
    let room = (ANSWER_MAX - 1) / seen.watched.len().max(1);
    let each = seen.watched.iter();
    let each = each.map(|(name, messages)| {
        messages.watch();
        last(name, &messages.last(0), room)
    });
    each.collect()
}

/// The last messages of an endpoint that have room.
fn last(name: &str, messages: &[Passed], room: usize) -> String {
    let line = |message: &Passed| {
        let line = json!({
            "endpoint": name,
            "number": message.number,
            "from": if message.by_peer { "peer" } else { "us" },
            "message": message.text,
        });
        format!("{line}\n")
    };
    let (mut lines, mut left) = (Vec::new(), room);
    for line in messages.iter().rev().map(line) {
        let Some(less) = left.checked_sub(line.len()) else {
            break;
        };
        left = less;
        lines.push(line);
    }
    lines.reverse();
    lines.concat()
}

/// An endpoint with what was agreed upon, for a device of this type.
pub(crate) fn endpoint(name: &str, device: u32, endpoint: &Endpoint) -> Value {
    let View {
        features,
        protocol_features,
        regions,
        rings,
    } = endpoint.view();
    let regions = regions.iter().map(|region| {
        json!({
            "guest_address": format!("{:#x}", region.guest_address.0),
            "bytes": region.size,
        })
    });
    let rings = rings.iter().map(|ring| {
        let place = json!({
            "ring": ring.index,
            "size": ring.size,
            "enabled": ring.enabled,
        });
        let Some(counters) = &ring.counters else {
            return place;
        };
        let counted = json!({
            "available_index": counters.available.value(),
            "used_index": counters.used.value(),
            "in_flight": counters.in_flight.value(),
            "kicks": counters.kicks.value(),
            "passes": counters.passes.value(),
            "notifications": counters.notifications.value(),
            "errors": counters.ring_errors.value(),
        });
        with(place, counted)
    });
    let protocol: Vec<_> = protocol_features
        .iter_names()
        .map(|(name, _)| name)
        .collect();
    let agreed = json!({
        "features": features.map(|features| names(device, features)),
        "protocol_features": protocol,
        "memory": regions.collect::<Vec<_>>(),
        "rings": rings.collect::<Vec<_>>(),
    });
    with(life(name, endpoint), agreed)
}

/// How an endpoint is, whatever its kind.
pub(crate) fn life(name: &str, endpoint: &Endpoint) -> Value {
    json!({
        "endpoint": name,
        "phase": endpoint.phase().to_string(),
        "generation": endpoint.generation(),
        "last_error": endpoint.last_error(),
    })
}

/// How long things took, in nanoseconds.
pub(crate) fn latency(latency: &Latency) -> Value {
    let Latency {
        count,
        sum,
        p50,
        p99,
        p999,
        longest,
    } = *latency;
    json!({
        "count": count,
        "sum_ns": sum,
        "p50_ns": p50,
        "p99_ns": p99,
        "p99_9_ns": p999,
        "max_ns": longest,
    })
}

/// Feature bits by name, or by number where the specification gives none.
fn names(device: u32, features: u64) -> Vec<String> {
    let bits = (0..64_u8).filter(|bit| features >> bit & 1 != 0);
    let name = |bit| match feature_name(device, bit) {
        Some(name) => name.to_owned(),
        None => format!("bit {bit}"),
    };
    bits.map(name).collect()
}

/// What workers have counted.
fn count(workers: &Workers) -> Value {
    let worker = |(number, counters): (usize, &WorkerCounters)| {
        json!({
            "worker": number,
            "passes": counters.passes.value(),
            "polls": counters.polls.value(),
            "sleeps": counters.sleeps.value(),
        })
    };
    workers.counters().enumerate().map(worker).collect()
}

/// An endpoint with more to see of it.
pub(crate) fn with(mut endpoint: Value, more: Value) -> Value {
    if let (Value::Object(endpoint), Value::Object(more)) = (&mut endpoint, more) {
        endpoint.extend::<Map<_, _>>(more);
    }
    endpoint
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _};

    use linkspan_sys::poll::Wake;
    use linkspan_testkit::census::settled;

    use super::*;

    #[test]
    fn bits_have_the_names_of_their_device() {
        assert_eq!(
            names(2, 1 << 12 | 1 << 32 | 1 << 63),
            ["MQ", "VERSION_1", "bit 63"]
        );
    }

    #[test]
    fn who_asks_is_answered_and_nonsense_ends_it() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || answer(&theirs));
        let mut ours = BufReader::new(ours);
        for question in [Question::Beat, Question::Inspect, Question::Trace] {
            ours.get_mut()
                .write_all(question.line().as_bytes())
                .unwrap();
            let mut line = String::new();
            while line != "\n" {
                line.clear();
                assert!(ours.read_line(&mut line).unwrap() > 0);
            }
        }
        ours.get_mut().write_all(b"beat it\n").unwrap();
        assert!(thread.join().unwrap().is_err());
        assert_eq!(ours.read(&mut [0; 8]).unwrap(), 0);
    }

    /// Ours: the messages of a network with more than a hundred ports were too long an answer,
    /// so that its supervisor heard nothing more of it, and killed it.
    #[test]
    fn no_answer_is_longer_than_is_heard() {
        let message = |number| Passed {
            number,
            by_peer: true,
            text: "x".repeat(800),
        };
        let all: Vec<_> = (1..=256).map(message).collect();
        let lines = last("a", &all, 10_000);
        assert!(lines.len() <= 10_000 && lines.len() > 9_000);
        let numbers = lines.lines().map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            line["number"].as_u64().unwrap()
        });
        let numbers: Vec<_> = numbers.collect();
        assert!(numbers.iter().copied().eq(257 - numbers.len() as u64..=256));
        assert_eq!(last("a", &all, 1 << 20).lines().count(), 256);
        assert_eq!(last("a", &all, 10), "");
        let sights = [json!("x".repeat(50)), json!("y".repeat(100)), json!("z")];
        let text = fitting(sights.into_iter(), 60);
        assert_eq!(text, format!("\"{}\"\n\"z\"\n", "x".repeat(50)));
    }

    /// A thread is asked, and one that does nothing is not waited for long.
    #[test]
    fn a_desk_answers_for_its_thread() {
        let desk = Desk::new().unwrap();
        let done = Arc::new(EventFd::new().unwrap());
        let asker = std::thread::spawn({
            let done = Arc::clone(&done);
            move || {
                // Other tests look here too, and this thread may be slower than it is waited for.
                let told = settled(|| look().contains("\"desk\""));
                done.signal().unwrap();
                told
            }
        });
        let event = desk.event().as_fd();
        let wakes = || wait_for(event, Direction::Read, Some(done.as_fd()), None);
        while let Wake::Ready = wakes().unwrap() {
            desk.answer(|| json!({ "endpoint": "desk" }));
        }
        assert!(asker.join().unwrap());
        drop(desk);
        assert!(!look().contains("\"desk\""));
    }

    /// A worker that does nothing comes round; one that is gone is not waited for.
    #[test]
    fn workers_come_round() {
        let workers = Arc::new(Workers::new(2).unwrap());
        depend_on(&workers);
        come_round();
        assert_eq!(count(&workers).as_array().unwrap().len(), 2);
        drop(workers);
        come_round();
    }
}

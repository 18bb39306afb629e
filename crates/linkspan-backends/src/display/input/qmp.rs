//! QEMU's monitor protocol: a JSON object a line, one command at a time.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use linkspan_sys::poll::{Direction, Interest, Ready, Wake, wait_for};
use linkspan_sys::{Epoll, Stream};
use serde_json::{Value, json};

use super::dbus::Display;
use super::{Event, Shared, Size};

/// The longest line that is heard. QEMU's are a few hundred bytes.
const LINE_MAX: usize = 64 << 10;
/// How long QEMU may take to greet, and to answer a command.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The pause after a key: QEMU drops those of a PS/2 keyboard that come faster than the guest
/// takes them, and its own VNC server waits as long.
const KEY_PAUSE: Duration = Duration::from_millis(10);
/// The pause before QEMU is looked for again, at first and at most.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

const SOCKET: u64 = 0;
const WAKE: u64 = 1;

/// Why a monitor is not to be had, or not any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// Nobody listens there.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// It closed the connection.
    #[error("QEMU closed its monitor")]
    Closed,
    /// It says nothing in time.
    #[error("no answer: QEMU's monitor serves one at a time, so another program may have it")]
    Silent,
    /// A line that is longer than any.
    #[error("a line of more than {LINE_MAX} bytes")]
    Long,
    /// A line that is no object of JSON.
    #[error("no QMP: {0}")]
    Json(String),
    /// It refused a command.
    #[error("QEMU refused {command}: {why}")]
    Refused {
        /// Which.
        command: &'static str,
        /// QEMU's reason.
        why: String,
    },
    /// Its D-Bus display is not there, or fails.
    #[error("QEMU's D-Bus display: {0}")]
    Display(String),
    /// The system said no.
    #[error("the monitor: {0}")]
    System(io::Error),
}

impl QmpError {
    /// Whether QEMU did what the protocol does not have.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        matches!(self, Self::Long | Self::Json(_))
    }
}

/// What QEMU says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Its greeting.
    Greeting,
    /// The last command is done.
    Done,
    /// The last command was refused, and why.
    Refused(String),
}

/// QEMU's lines, from bytes in any pieces.
#[derive(Debug, Default)]
pub struct Replies {
    line: Vec<u8>,
}

impl Replies {
    /// Takes bytes in; gives what was said. Events are nothing of interest.
    ///
    /// # Errors
    /// It is not QMP.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Vec<Reply>, QmpError> {
        let mut replies = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.append(&rest[..end])?;
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.line);
            replies.extend(reply(&line)?);
        }
        self.append(rest)?;
        Ok(replies)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), QmpError> {
        if self.line.len() + bytes.len() > LINE_MAX {
            return Err(QmpError::Long);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }
}

fn reply(line: &[u8]) -> Result<Option<Reply>, QmpError> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Ok(None);
    }
    let value: Value =
        serde_json::from_slice(line).map_err(|error| QmpError::Json(error.to_string()))?;
    let has = |name: &str| value.get(name).is_some();
    if has("return") {
        return Ok(Some(Reply::Done));
    }
    if let Some(error) = value.get("error") {
        let why = error["desc"].as_str().unwrap_or("it does not say why");
        // What is logged of it is short, and one line.
        let why = why.chars().filter(|c| !c.is_control()).take(200).collect();
        return Ok(Some(Reply::Refused(why)));
    }
    match (has("QMP"), has("event")) {
        (true, _) => Ok(Some(Reply::Greeting)),
        (false, true) => Ok(None),
        _ => Err(QmpError::Json("an object that is no answer".into())),
    }
}

/// A monitor that takes commands.
#[derive(Debug)]
pub(super) struct Monitor {
    stream: Stream,
    replies: Replies,
}

impl Monitor {
    /// Connects, and leaves the stage of negotiation.
    pub(super) fn connect(path: &Path) -> Result<Self, QmpError> {
        let mut monitor = Self {
            stream: Stream::connect(path).map_err(QmpError::Connect)?,
            replies: Replies::default(),
        };
        let deadline = Instant::now() + ANSWER_LIMIT;
        if monitor.await_reply(deadline)? != Reply::Greeting {
            return Err(QmpError::Json("no greeting".into()));
        }
        monitor.say(&json!({ "execute": "qmp_capabilities" }), &[])?;
        monitor.await_done("qmp_capabilities", deadline)?;
        Ok(monitor)
    }

    fn say(&self, command: &Value, fds: &[BorrowedFd<'_>]) -> Result<(), QmpError> {
        let line = format!("{command}\n");
        let deadline = Instant::now() + ANSWER_LIMIT;
        let sent = self.stream.send(line.as_bytes(), fds, deadline);
        sent.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => QmpError::Closed,
            _ => QmpError::System(error),
        })
    }

    /// What is there of answers.
    fn hear(&mut self) -> Result<Vec<Reply>, QmpError> {
        let mut buffer = [0; 4096];
        match self.stream.receive(&mut buffer, &mut Vec::new(), 0) {
            Ok(received) if received.bytes == 0 => Err(QmpError::Closed),
            Ok(received) => self.replies.receive(&buffer[..received.bytes]),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => Ok(Vec::new()),
                io::ErrorKind::ConnectionReset => Err(QmpError::Closed),
                _ => Err(QmpError::System(error)),
            },
        }
    }

    fn await_reply(&mut self, deadline: Instant) -> Result<Reply, QmpError> {
        loop {
            // Nothing is said but what was asked for, so there is one at a time.
            if let Some(reply) = self.hear()?.pop() {
                return Ok(reply);
            }
            // Events may come faster than they are heard.
            if Instant::now() >= deadline {
                return Err(QmpError::Silent);
            }
            let waited = wait_for(self.stream.as_fd(), Direction::Read, None, Some(deadline));
            if waited.map_err(QmpError::System)? == Wake::Deadline {
                return Err(QmpError::Silent);
            }
        }
    }

    fn await_done(&mut self, command: &'static str, deadline: Instant) -> Result<(), QmpError> {
        match self.await_reply(deadline)? {
            Reply::Done => Ok(()),
            Reply::Refused(why) => Err(QmpError::Refused { command, why }),
            Reply::Greeting => Err(QmpError::Json("a second greeting".into())),
        }
    }
}

impl Monitor {
    /// The D-Bus display, on a socket of its own.
    fn display(&mut self) -> Result<Display, QmpError> {
        const NAME: &str = "linkspan-display";
        let (ours, its) = Stream::pair().map_err(QmpError::System)?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        let named = json!({ "fdname": NAME });
        let getfd = json!({ "execute": "getfd", "arguments": named });
        self.say(&getfd, &[its.as_fd()])?;
        self.await_done("getfd", deadline)?;
        drop(its);
        let arguments = json!({ "protocol": "@dbus-display", "fdname": NAME });
        self.say(
            &json!({ "execute": "add_client", "arguments": arguments }),
            &[],
        )?;
        if let Err(error) = self.await_done("add_client", deadline) {
            self.say(&json!({ "execute": "closefd", "arguments": named }), &[])?;
            self.await_done("closefd", deadline)?;
            return Err(error);
        }
        Display::new(ours)
    }
}

/// Events as a command.
fn command(events: &[Event]) -> Value {
    let of = |kind: &str, data: Value| json!({ "type": kind, "data": data });
    let axis = |axis: &str, value: u16| of("abs", json!({ "axis": axis, "value": value }));
    let mut all = Vec::new();
    for event in events {
        match *event {
            Event::Key { name, down } => {
                let key = json!({ "type": "qcode", "data": name });
                all.push(of("key", json!({ "down": down, "key": key })));
            }
            Event::Button { name, down } => {
                all.push(of("btn", json!({ "down": down, "button": name })));
            }
            Event::Place { x, y } => all.extend([axis("x", x), axis("y", y)]),
        }
    }
    json!({ "execute": "input-send-event", "arguments": { "events": all } })
}

/// Tells a monitor what comes from viewers, until nobody is left.
pub(super) fn run(mut monitor: Option<Monitor>, path: &Path, shared: &Shared) {
    let mut pause = PAUSE;
    while !shared.is_ending() {
        match monitor.take() {
            Some(mut monitor) => {
                pause = PAUSE;
                let ended = pass_on(&mut monitor, shared);
                shared.set_connected(false);
                match ended {
                    Ok(()) => return,
                    Err(error) => tracing::info!("keys and the pointer go nowhere: {error}"),
                }
            }
            None => {
                if wait_for(
                    shared.wake.as_fd(),
                    Direction::Read,
                    None,
                    Some(Instant::now() + pause),
                )
                .is_ok_and(|woken| woken == Wake::Ready)
                {
                    let _ = shared.wake.drain();
                    continue;
                }
                pause = (pause * 2).min(PAUSE_MAX);
                monitor = Monitor::connect(path).ok();
                if monitor.is_some() {
                    shared.set_connected(true);
                    tracing::info!("keys and the pointer go to QEMU");
                }
            }
        }
    }
}

/// The same until QEMU is gone; `Ok` when nobody is left.
fn pass_on(monitor: &mut Monitor, shared: &Shared) -> Result<(), QmpError> {
    let epoll = Epoll::new().map_err(QmpError::System)?;
    let watched = epoll
        .add(&monitor.stream, SOCKET, Interest::READ)
        .and_then(|()| epoll.add(&shared.wake, WAKE, Interest::READ));
    watched.map_err(QmpError::System)?;
    let mut ready = Ready::with_capacity(2);
    // Until when an answer is awaited, if one is.
    let mut awaited: Option<Instant> = None;
    // Nothing is said before this, so that keys keep their order.
    let mut rests = None;
    let mut refused = false;
    let mut display = None;
    loop {
        if shared.is_ending() && awaited.is_none() {
            return Ok(());
        }
        rests = rests.filter(|until| *until > Instant::now());
        if awaited.or(rests).is_none() {
            if let Some(size) = shared.take_size() {
                resize(monitor, &mut display, size)?;
            }
            let events = shared.take();
            if !events.is_empty() {
                monitor.say(&command(&events), &[])?;
                awaited = Some(Instant::now() + ANSWER_LIMIT);
                let is_key = events.iter().any(|event| event.is_key());
                rests = is_key.then(|| Instant::now() + KEY_PAUSE);
            }
        }
        let left = awaited.or(rests);
        let left = left.map(|until| until.saturating_duration_since(Instant::now()));
        epoll.wait(&mut ready, left).map_err(QmpError::System)?;
        if awaited.is_some_and(|until| until <= Instant::now()) {
            return Err(QmpError::Silent);
        }
        for event in ready.iter() {
            if event.token == WAKE {
                shared.wake.drain().map_err(QmpError::System)?;
                continue;
            }
            for reply in monitor.hear()? {
                awaited = None;
                match reply {
                    // Once: a guest without a tablet has each move refused.
                    Reply::Refused(why) if !refused => {
                        refused = true;
                        tracing::warn!(
                            "QEMU does not pass on keys or the pointer: {why}. A pointer needs -device virtio-tablet-pci or usb-tablet"
                        );
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Asks for another size; that QEMU does not have the display for it is no error.
fn resize(
    monitor: &mut Monitor,
    display: &mut Option<Display>,
    size: Size,
) -> Result<(), QmpError> {
    let (known, pixels) = (display.take(), (size.width, size.height));
    let mut ask = |open: Result<Display, QmpError>| {
        let mut open = open?;
        open.resize(size.head, pixels)?;
        *display = Some(open);
        Ok(())
    };
    // QEMU has one client of this kind, so another one may have put ours out.
    let asked = match known {
        Some(open) => ask(Ok(open)).or_else(|_| ask(monitor.display())),
        None => ask(monitor.display()),
    };
    match asked {
        Err(error @ (QmpError::Refused { .. } | QmpError::Display(_))) => {
            tracing::info!("no other size: {error}. QEMU needs -display dbus,p2p=yes");
            Ok(())
        }
        other => other,
    }
}

/// Says this again and again, until nobody hears it, or for so long that a test has failed.
#[cfg(test)]
pub(super) fn flood(stream: Stream, what: &[u8]) -> std::thread::JoinHandle<()> {
    let many = what.repeat((64 << 10) / what.len());
    std::thread::spawn(move || {
        let until = Instant::now() + Duration::from_secs(20);
        while stream.send(&many, &[], until).is_ok() && Instant::now() < until {}
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_heard_in_any_pieces() {
        let said = "{\"QMP\": {\"version\": {}}}\r\n{\"event\": \"RESUME\"}\n\n\
                    {\"return\": {}}\n{\"error\": {\"class\": \"x\", \"desc\": \"no\\nway\"}}\n";
        let wanted = [Reply::Greeting, Reply::Done, Reply::Refused("noway".into())];
        for size in 1..said.len() {
            let mut replies = Replies::default();
            let all: Vec<Reply> = said
                .as_bytes()
                .chunks(size)
                .flat_map(|piece| replies.receive(piece).unwrap())
                .collect();
            assert_eq!(all, wanted);
        }
    }

    /// It says much, and never what was asked.
    #[test]
    fn a_monitor_that_only_has_events_is_silent() {
        let (ours, its) = Stream::pair().unwrap();
        let flood = flood(its, b"{\"event\": \"RTC_CHANGE\", \"data\": {}}\r\n");
        let mut monitor = Monitor {
            stream: ours,
            replies: Replies::default(),
        };
        let soon = Instant::now() + Duration::from_millis(100);
        let error = monitor.await_reply(soon).unwrap_err();
        assert!(matches!(error, QmpError::Silent), "{error}");
        drop(monitor);
        flood.join().unwrap();
    }

    #[test]
    fn what_is_no_monitor_is_named() {
        for line in [
            "RFB 003.008\n",
            "[]\n",
            "7\n",
            "{}\n",
            "{\"return\"\n",
            "\u{0}\n",
        ] {
            let error = Replies::default().receive(line.as_bytes()).unwrap_err();
            assert!(error.is_broken(), "{line:?}: {error}");
        }
        let nested = "[".repeat(50_000) + "\n";
        assert!(Replies::default().receive(nested.as_bytes()).is_err());
        let mut replies = Replies::default();
        let long = vec![b' '; LINE_MAX];
        assert_eq!(replies.receive(&long).unwrap(), []);
        assert!(matches!(replies.receive(b" "), Err(QmpError::Long)));
    }

    #[test]
    fn events_are_what_qemu_documents() {
        let events = [
            Event::Place { x: 1, y: 32767 },
            Event::Button {
                name: "left",
                down: true,
            },
        ];
        assert_eq!(
            command(&events).to_string(),
            r#"{"arguments":{"events":[{"data":{"axis":"x","value":1},"type":"abs"},{"data":{"axis":"y","value":32767},"type":"abs"},{"data":{"button":"left","down":true},"type":"btn"}]},"execute":"input-send-event"}"#
        );
        let key = Event::Key {
            name: "shift_r",
            down: false,
        };
        assert_eq!(
            command(&[key])["arguments"]["events"][0],
            json!({"type": "key", "data": {"down": false, "key": {"type": "qcode", "data": "shift_r"}}})
        );
    }
}

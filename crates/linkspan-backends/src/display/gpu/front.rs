//! Shows the screens to the front end, over the socket that it gave (vhost-user-gpu), and
//! asks it what the guest is to be told. A thread of its own: a front end that does not
//! read holds up nobody else.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use linkspan_display::{Cursor, Position, TILE, Tiles};
use linkspan_engine::Messages;
use linkspan_sys::poll::{Interest, Ready};
use linkspan_sys::thread::spawn;
use linkspan_sys::{Epoll, EventFd, Stream};
use linkspan_vhost::gpu::{
    Answer, AnswerError, Answers, CURSOR_SIDE, F_EDID, Question, Said, Tell, Watcher, update,
};

use super::super::hub::{Hub, OwnSource};
use super::super::pace::REST;
use super::super::screen::Screen;

/// How long it may take for an answer. The guest is told our own then.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// The most bytes of an update: the front end reads one at a time, with all else waiting.
const UPDATE_MAX: usize = 1 << 20;

const SOCKET: u64 = 0;
const CANCEL: u64 = 1;
const ASKED: u64 = 2;
const SCREENS: u64 = 3;

/// What a queue asks.
#[derive(Debug)]
struct Asked {
    question: Question,
    answer: Asker,
}

/// Who has to give an answer: none, if he never does.
#[derive(Debug)]
struct Asker(Arc<Waiting>);

impl Drop for Asker {
    fn drop(&mut self) {
        self.0.answer(None);
    }
}

/// An answer that a queue waits for.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Signalled when it is there.
    done: Arc<EventFd>,
    answer: Mutex<Option<Option<Vec<u8>>>>,
}

impl Waiting {
    /// The answer, if it is there; `Some(None)`: there will be none.
    pub(super) fn take(&self) -> Option<Option<Vec<u8>>> {
        let mut answer = self
            .answer
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        answer.take()
    }

    fn answer(&self, bytes: Option<Vec<u8>>) {
        let mut answer = self
            .answer
            .lock()
            .unwrap_or_else(|error| error.into_inner());
        answer.get_or_insert(bytes);
        drop(answer);
        let _ = self.done.signal();
    }
}

/// The front end's socket and the thread that serves it.
#[derive(Debug)]
pub(super) struct Front {
    cancel: Arc<EventFd>,
    asked: Arc<EventFd>,
    questions: SyncSender<Asked>,
}

/// Why it is shown no more.
#[derive(Debug, thiserror::Error)]
enum FrontError {
    #[error("it closed the socket")]
    Closed,
    #[error(transparent)]
    Answer(#[from] AnswerError),
    #[error(transparent)]
    Socket(#[from] io::Error),
}

impl Front {
    /// Shows the screens over this socket from now on.
    pub(super) fn start(
        stream: Stream,
        hub: &Arc<Hub>,
        messages: &Arc<Messages>,
    ) -> io::Result<Self> {
        let (questions, receiver) = sync_channel(16);
        let (cancel, asked) = (Arc::new(EventFd::new()?), Arc::new(EventFd::new()?));
        let shown = Shown::new(stream, hub, receiver, &cancel, &asked, messages)?;
        let hub = Arc::clone(hub);
        hub.front_comes();
        let seen = Arc::clone(&hub);
        let thread = spawn("gpu-front", move || {
            let mut shown = shown;
            match shown.run() {
                Ok(()) => {}
                Err(FrontError::Closed) => tracing::debug!("the front end shows nothing more"),
                Err(error) => tracing::warn!("the front end is shown nothing more: {error}"),
            }
            hub.front_goes();
        });
        if let Err(error) = thread {
            seen.front_goes();
            return Err(error);
        }
        Ok(Self {
            cancel,
            asked,
            questions,
        })
    }

    /// Asks the front end; `done` is signalled when the answer is there. `None` if it
    /// cannot be asked.
    pub(super) fn ask(&self, question: Question, done: &Arc<EventFd>) -> Option<Arc<Waiting>> {
        let answer = Arc::new(Waiting {
            done: Arc::clone(done),
            answer: Mutex::new(None),
        });
        let asked = Asked {
            question,
            answer: Asker(Arc::clone(&answer)),
        };
        match self.questions.try_send(asked) {
            Ok(()) => {
                let _ = self.asked.signal();
                Some(answer)
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => None,
        }
    }
}

impl Drop for Front {
    /// Nobody waits for the thread, which may have to wait for the front end.
    fn drop(&mut self) {
        let _ = self.cancel.signal();
    }
}

/// A question that the front end has not answered.
struct Waiter {
    /// Who waits for it, if still somebody does.
    who: Option<Asker>,
    /// Until when.
    due: Option<Instant>,
}

/// A screen, as the front end knows it.
struct Head {
    screen: Screen,
    /// There is something new.
    stale: bool,
    /// What it is told next of pixels, and of the pointer behind them.
    parts: Tiles,
    pointing: Vec<u8>,
    /// When it is looked at again, after a look that failed.
    again: Option<Instant>,
    size: (u32, u32),
    pointer: bool,
}

struct Shown {
    stream: Stream,
    /// What is on its way: a message or a few small ones, of which so many bytes are gone. A
    /// front end that does not read has no more than this, and gets the newest picture when it
    /// reads again.
    out: Vec<u8>,
    gone: usize,
    interest: Interest,
    epoll: Epoll,
    /// Watched, so kept.
    _cancel: Arc<EventFd>,
    asked: Arc<EventFd>,
    receiver: Receiver<Asked>,
    answers: Answers,
    /// Who waits for the answers, in order.
    waiting: Vec<Waiter>,
    /// Whether it has EDID, once it has said what it has. Nothing is asked before.
    has_edid: Option<bool>,
    heads: Vec<Head>,
    messages: Arc<Messages>,
    /// What the front end says, and what it is told.
    watchers: [Watcher; 2],
}

impl Shown {
    fn new(
        stream: Stream,
        hub: &Arc<Hub>,
        receiver: Receiver<Asked>,
        cancel: &Arc<EventFd>,
        asked: &Arc<EventFd>,
        messages: &Arc<Messages>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(&stream, SOCKET, Interest::READ)?;
        epoll.add(&**cancel, CANCEL, Interest::READ)?;
        epoll.add(&**asked, ASKED, Interest::READ)?;
        let mut heads = Vec::new();
        for head in 0..hub.heads() {
            let screen =
                Screen::new(Box::new(OwnSource::new(hub)?), head).map_err(io::Error::other)?;
            if let Some(wake) = screen.source().wake_fd() {
                // Told once: it may be long until it is looked at.
                epoll.add(wake, SCREENS + u64::from(head), Interest::READ.edge())?;
            }
            heads.push(Head {
                screen,
                stale: false,
                parts: Tiles::new(0, 0),
                pointing: Vec::new(),
                again: None,
                size: (0, 0),
                pointer: false,
            });
        }
        Ok(Self {
            stream,
            out: Vec::new(),
            gone: 0,
            interest: Interest::READ,
            epoll,
            _cancel: Arc::clone(cancel),
            asked: Arc::clone(asked),
            receiver,
            answers: Answers::default(),
            waiting: Vec::new(),
            has_edid: None,
            heads,
            messages: Arc::clone(messages),
            watchers: Default::default(),
        })
    }

    fn run(&mut self) -> Result<(), FrontError> {
        self.ask(Question::ProtocolFeatures, None);
        self.advance()?;
        let mut ready = Ready::with_capacity(8);
        loop {
            self.epoll.wait(&mut ready, self.pause())?;
            for event in ready.iter() {
                match event.token {
                    CANCEL => return Ok(()),
                    SOCKET if event.readable || event.closed => {
                        self.hear()?;
                    }
                    SOCKET => {}
                    ASKED => {
                        self.asked.drain()?;
                    }
                    token => {
                        let head = usize::try_from(token - SCREENS).unwrap_or(0);
                        if let Some(head) = self.heads.get_mut(head) {
                            head.stale = true;
                        }
                    }
                }
            }
            self.look_again();
            self.expire()?;
            self.pass_on();
            self.advance()?;
        }
    }

    /// Sends what there is to say, as far as there is room.
    fn advance(&mut self) -> Result<(), FrontError> {
        loop {
            while self.gone < self.out.len() {
                let sent = self.stream.send_now(&self.out[self.gone..]);
                let sent = sent.map_err(|error| match error.kind() {
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                        FrontError::Closed
                    }
                    _ => error.into(),
                })?;
                if sent == 0 {
                    return self.want(Interest::READ_WRITE);
                }
                let (messages, gone) = (&self.messages, self.gone);
                let each = |said: Said<'_>| pass(messages, false, said);
                self.watchers[1].take(&self.out[gone..gone + sent], each);
                self.gone += sent;
            }
            self.out.clear();
            self.gone = 0;
            let heads = 0..self.heads.len();
            for at in heads {
                self.next_of(at)?;
                if !self.out.is_empty() {
                    break;
                }
            }
            if self.out.is_empty() {
                return self.want(Interest::READ);
            }
        }
    }

    fn want(&mut self, interest: Interest) -> Result<(), FrontError> {
        if self.interest != interest {
            self.epoll.modify(&self.stream, SOCKET, interest)?;
            self.interest = interest;
        }
        Ok(())
    }

    fn pause(&self) -> Option<Duration> {
        let due = self.waiting.iter().filter_map(|waiter| waiter.due);
        let again = self.heads.iter().filter_map(|head| head.again);
        let first = due.chain(again).min()?;
        let left = first.saturating_duration_since(Instant::now());
        // Not before it: the system counts whole milliseconds.
        Some(left + Duration::from_micros(100))
    }

    fn look_again(&mut self) {
        let now = Instant::now();
        for head in &mut self.heads {
            head.stale |= head.again.is_some_and(|again| again <= now);
        }
    }

    /// Who has waited for too long gets our own answer. The front end may be busy and answer
    /// later, which is for nobody then.
    fn expire(&mut self) -> Result<(), FrontError> {
        let now = Instant::now();
        let is_late = |waiter: &Waiter| waiter.due.is_some_and(|due| due <= now);
        if !self.waiting.iter().any(is_late) {
            return Ok(());
        }
        // What was sent meanwhile may have taken long, and the answer be there.
        while self.hear()? {}
        for waiter in self.waiting.iter_mut().filter(|waiter| is_late(waiter)) {
            tracing::debug!("the front end is late with an answer");
            waiter.who = None;
            waiter.due = None;
        }
        Ok(())
    }

    /// Asks what queues ask. Before it has said what it has nothing is asked, and if it is
    /// late with that nobody waits.
    fn pass_on(&mut self) {
        let knows = self.has_edid.is_some();
        let is_late = self
            .waiting
            .first()
            .is_some_and(|first| first.due.is_none());
        while (knows || is_late)
            && let Ok(Asked { question, answer }) = self.receiver.try_recv()
        {
            if knows {
                self.ask(question, Some(answer));
            }
        }
    }

    fn ask(&mut self, question: Question, who: Option<Asker>) {
        let known = !matches!(question, Question::Edid { .. }) || self.has_edid == Some(true);
        let asked = known.then(|| self.answers.ask(question)).flatten();
        let Some(bytes) = asked else {
            return;
        };
        self.out.extend(bytes);
        let due = Some(Instant::now() + ANSWER_LIMIT);
        self.waiting.push(Waiter { who, due });
    }

    /// Takes in what is there of an answer; whether that was anything.
    fn hear(&mut self) -> Result<bool, FrontError> {
        let mut buffer = [0; 2048];
        let wanted = self.answers.wanted().min(buffer.len());
        let received = match self
            .stream
            .receive(&mut buffer[..wanted], &mut Vec::new(), 0)
        {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if received.bytes == 0 {
            return Err(FrontError::Closed);
        }
        let messages = &self.messages;
        let each = |said: Said<'_>| pass(messages, true, said);
        self.watchers[0].take(&buffer[..received.bytes], each);
        let Some(answer) = self.answers.receive(&buffer[..received.bytes])? else {
            return Ok(true);
        };
        let who = match self.waiting.is_empty() {
            true => None,
            false => self.waiting.remove(0).who,
        };
        let bytes = match answer {
            Answer::ProtocolFeatures(bits) => {
                self.has_edid = Some(bits & F_EDID != 0);
                let tell = Tell::ProtocolFeatures(bits & F_EDID);
                self.out.extend(tell.to_bytes());
                return Ok(true);
            }
            Answer::DisplayInfo(bytes) | Answer::Edid(bytes) => bytes,
        };
        if let Some(who) = who {
            who.0.answer(Some(bytes));
        }
        Ok(true)
    }

    /// Makes what is said next of a screen, if there is anything.
    fn next_of(&mut self, at: usize) -> Result<(), FrontError> {
        let head = u32::try_from(at).unwrap_or(0);
        let Some(known) = self.heads.get_mut(at) else {
            return Ok(());
        };
        // What is newer waits until all of this is said.
        if known.has_more() {
            known.say_part(head, &mut self.out);
        } else if std::mem::take(&mut known.stale) {
            known.look(head, &mut self.out)?;
        }
        Ok(())
    }
}

/// What changes with the picture is of interest to who watches alone.
fn pass(messages: &Messages, by_peer: bool, said: Said<'_>) {
    if said.is_picture() {
        messages.pass_watched(by_peer, || said.text());
    } else {
        messages.pass(by_peer, said.text());
    }
}

impl Head {
    fn has_more(&self) -> bool {
        !self.parts.is_empty() || !self.pointing.is_empty()
    }

    /// Looks, and says another size at once.
    fn look(&mut self, head: u32, out: &mut Vec<u8>) -> Result<(), FrontError> {
        let news = self.screen.look().map_err(io::Error::other)?;
        let failed = self.screen.has_failed();
        self.again = failed.then(|| Instant::now() + REST);
        let scene = self.screen.scene();
        let size = scene.map_or((0, 0), |scene| (scene.frame.width(), scene.frame.height()));
        let other = std::mem::replace(&mut self.size, size) != size;
        let had_pointer = self.pointer;
        self.pointer = self.screen.cursor().is_some();
        if other {
            let (width, height) = size;
            let tell = Tell::Scanout {
                head,
                width,
                height,
            };
            out.extend(tell.to_bytes());
        }
        if other || news.damaged {
            self.parts = self.screen.damage().clone();
        }
        self.pointing = self.pointing(head, had_pointer, news.reshaped, news.pointed);
        if out.is_empty() {
            self.say_part(head, out);
        }
        Ok(())
    }

    /// Says the next part of the picture, or where the pointer is.
    fn say_part(&mut self, head: u32, out: &mut Vec<u8>) {
        let (Some(scene), false) = (self.screen.scene(), self.parts.is_empty()) else {
            self.parts = Tiles::new(0, 0);
            out.append(&mut self.pointing);
            return;
        };
        let parts = self.parts.rectangles(linkspan_display::RECTANGLES_MAX);
        let Some(mut part) = parts.into_iter().next() else {
            return;
        };
        // Rows of whole tiles, so that what is left can be told by tiles.
        let tile = u32::try_from(TILE).unwrap_or(1);
        let lines = u32::try_from(UPDATE_MAX / (part.width as usize * 4)).unwrap_or(tile);
        let lines = (lines / tile * tile).max(tile);
        part.height = part.height.min(lines);
        out.extend(update(head, part.x, part.y, part.width, part.height));
        for line in part.y..part.bottom() {
            let pixels = scene.frame.line(line, part.x, part.width).iter();
            out.extend(pixels.flat_map(|pixel| pixel.to_ne_bytes()));
        }
        self.parts.forget(part);
    }

    /// What is said of the pointer.
    fn pointing(&self, head: u32, had: bool, reshaped: bool, pointed: bool) -> Vec<u8> {
        let tell = |place: Position, visible| Tell::CursorPosition {
            head,
            x: place.x.cast_unsigned(),
            y: place.y.cast_unsigned(),
            visible,
        };
        match self.screen.cursor() {
            Some((cursor, place)) if reshaped || !had => {
                let pixels = side_by_side(cursor);
                let hot = cursor.hot_spot().map_or((0, 0), |spot| (spot.x, spot.y));
                let tell = Tell::Cursor {
                    head,
                    x: place.x.cast_unsigned(),
                    y: place.y.cast_unsigned(),
                    hot,
                    pixels: &pixels,
                };
                tell.to_bytes()
            }
            Some((_, place)) if pointed => tell(place, true).to_bytes(),
            None if had => tell(Position::default(), false).to_bytes(),
            _ => Vec::new(),
        }
    }
}

/// The upper left 64 by 64 pixels of a pointer; what it does not have is clear.
fn side_by_side(cursor: &Cursor) -> Vec<u32> {
    let mut pixels = vec![0; CURSOR_SIDE * CURSOR_SIDE];
    let width = cursor.width() as usize;
    let lines = cursor.pixels().chunks(width.max(1));
    for (line, target) in lines.zip(pixels.chunks_mut(CURSOR_SIDE)) {
        let count = width.min(CURSOR_SIDE);
        target[..count].copy_from_slice(&line[..count]);
    }
    pixels
}

//! Shows the screens to the front end, over the socket that it gave (vhost-user-gpu), and
//! asks it what the guest is to be told. A thread of its own: a front end that does not
//! read holds up nobody else.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use linkspan_display::{Cursor, Position, Rectangle};
use linkspan_sys::poll::{Interest, Ready};
use linkspan_sys::thread::spawn;
use linkspan_sys::{Epoll, EventFd, Stream};
use linkspan_vhost::gpu::{
    Answer, AnswerError, Answers, CURSOR_SIDE, F_EDID, Question, Tell, update,
};

use super::super::screen::Screen;
use super::hub::{Hub, OwnSource};

/// How long the front end may leave a message unread.
const SEND_LIMIT: Duration = Duration::from_secs(2);
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
    #[error("it does not answer")]
    Late,
    #[error(transparent)]
    Socket(#[from] io::Error),
}

impl Front {
    /// Shows the screens over this socket from now on.
    pub(super) fn start(stream: Stream, hub: &Arc<Hub>) -> io::Result<Self> {
        let (questions, receiver) = sync_channel(16);
        let (cancel, asked) = (Arc::new(EventFd::new()?), Arc::new(EventFd::new()?));
        let shown = Shown::new(stream, hub, receiver, &cancel, &asked)?;
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

/// A screen, as the front end knows it.
struct Head {
    screen: Screen,
    size: (u32, u32),
    pointer: bool,
}

struct Shown {
    stream: Stream,
    epoll: Epoll,
    /// Watched, so kept.
    _cancel: Arc<EventFd>,
    asked: Arc<EventFd>,
    receiver: Receiver<Asked>,
    answers: Answers,
    /// Who waits for the answers, in order, and until when.
    waiting: Vec<(Option<Asker>, Instant)>,
    /// Whether it has EDID, once it has said what it has. Nothing is asked before.
    has_edid: Option<bool>,
    heads: Vec<Head>,
}

impl Shown {
    fn new(
        stream: Stream,
        hub: &Arc<Hub>,
        receiver: Receiver<Asked>,
        cancel: &Arc<EventFd>,
        asked: &Arc<EventFd>,
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
                epoll.add(wake, SCREENS + u64::from(head), Interest::READ)?;
            }
            heads.push(Head {
                screen,
                size: (0, 0),
                pointer: false,
            });
        }
        Ok(Self {
            stream,
            epoll,
            _cancel: Arc::clone(cancel),
            asked: Arc::clone(asked),
            receiver,
            answers: Answers::default(),
            waiting: Vec::new(),
            has_edid: None,
            heads,
        })
    }

    fn run(&mut self) -> Result<(), FrontError> {
        self.ask(Question::ProtocolFeatures, None)?;
        let mut ready = Ready::with_capacity(8);
        loop {
            let due = self.waiting.first().map(|(_, due)| *due);
            let left = due.map(|due| due.saturating_duration_since(Instant::now()));
            self.epoll.wait(&mut ready, left)?;
            if due.is_some_and(|due| due <= Instant::now()) {
                return Err(FrontError::Late);
            }
            for event in ready.iter() {
                match event.token {
                    CANCEL => return Ok(()),
                    SOCKET => self.hear()?,
                    ASKED => {
                        self.asked.drain()?;
                    }
                    token => {
                        let head = usize::try_from(token - SCREENS).unwrap_or(0);
                        self.show(head)?;
                    }
                }
            }
            while self.has_edid.is_some()
                && let Ok(Asked { question, answer }) = self.receiver.try_recv()
            {
                self.ask(question, Some(answer))?;
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), FrontError> {
        let sent = self.stream.send(bytes, &[], Instant::now() + SEND_LIMIT);
        sent.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => FrontError::Closed,
            _ => error.into(),
        })
    }

    fn ask(&mut self, question: Question, who: Option<Asker>) -> Result<(), FrontError> {
        let known = !matches!(question, Question::Edid { .. }) || self.has_edid == Some(true);
        let asked = known.then(|| self.answers.ask(question)).flatten();
        let Some(bytes) = asked else {
            return Ok(());
        };
        self.waiting.push((who, Instant::now() + ANSWER_LIMIT));
        self.send(&bytes)
    }

    fn hear(&mut self) -> Result<(), FrontError> {
        let mut buffer = [0; 2048];
        let wanted = self.answers.wanted().min(buffer.len());
        let received = match self
            .stream
            .receive(&mut buffer[..wanted], &mut Vec::new(), 0)
        {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if received.bytes == 0 {
            return Err(FrontError::Closed);
        }
        let Some(answer) = self.answers.receive(&buffer[..received.bytes])? else {
            return Ok(());
        };
        let who = match self.waiting.is_empty() {
            true => None,
            false => self.waiting.remove(0).0,
        };
        let bytes = match answer {
            Answer::ProtocolFeatures(bits) => {
                self.has_edid = Some(bits & F_EDID != 0);
                self.send(&Tell::ProtocolFeatures(bits & F_EDID).to_bytes())?;
                return Ok(());
            }
            Answer::DisplayInfo(bytes) | Answer::Edid(bytes) => bytes,
        };
        if let Some(who) = who {
            who.0.answer(Some(bytes));
        }
        Ok(())
    }

    /// Tells what is new on a screen.
    fn show(&mut self, at: usize) -> Result<(), FrontError> {
        let head = u32::try_from(at).unwrap_or(0);
        let Some(known) = self.heads.get_mut(at) else {
            return Ok(());
        };
        let news = known.screen.look().map_err(io::Error::other)?;
        let size = known
            .screen
            .scene()
            .map_or((0, 0), |scene| (scene.frame.width(), scene.frame.height()));
        let other = std::mem::replace(&mut known.size, size) != size;
        let had_pointer = known.pointer;
        known.pointer = known.screen.cursor().is_some();
        if other {
            let (width, height) = size;
            let tell = Tell::Scanout {
                head,
                width,
                height,
            };
            self.send(&tell.to_bytes())?;
        }
        if other || news.damaged {
            self.send_parts(at)?;
        }
        self.send_pointer(at, had_pointer, news.reshaped, news.pointed)
    }

    fn send_parts(&self, at: usize) -> Result<(), FrontError> {
        let (screen, head) = (&self.heads[at].screen, u32::try_from(at).unwrap_or(0));
        let Some(scene) = screen.scene() else {
            return Ok(());
        };
        for part in screen.damage().rectangles(linkspan_display::RECTANGLES_MAX) {
            let Rectangle { x, width, .. } = part;
            let lines = u32::try_from(UPDATE_MAX / (width as usize * 4)).unwrap_or(1);
            let mut y = part.y;
            while y < part.bottom() {
                let height = lines.max(1).min(part.bottom() - y);
                let mut bytes = update(head, x, y, width, height);
                for line in y..y + height {
                    let pixels = scene.frame.line(line, x, width).iter();
                    bytes.extend(pixels.flat_map(|pixel| pixel.to_ne_bytes()));
                }
                self.send(&bytes)?;
                y += height;
            }
        }
        Ok(())
    }

    fn send_pointer(
        &self,
        at: usize,
        had: bool,
        reshaped: bool,
        pointed: bool,
    ) -> Result<(), FrontError> {
        let head = u32::try_from(at).unwrap_or(0);
        let tell = |place: Position, visible| Tell::CursorPosition {
            head,
            x: place.x.cast_unsigned(),
            y: place.y.cast_unsigned(),
            visible,
        };
        match self.heads[at].screen.cursor() {
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
                self.send(&tell.to_bytes())
            }
            Some((_, place)) if pointed => self.send(&tell(place, true).to_bytes()),
            None if had => self.send(&tell(Position::default(), false).to_bytes()),
            _ => Ok(()),
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

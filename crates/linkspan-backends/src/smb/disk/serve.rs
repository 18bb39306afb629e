//! The thread of a disk on a share: takes what queues handed over, asks the server, answers.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_smb2::client::{RequestId, Response};
use linkspan_smb2::io::{ReadRequest, WriteRequest, WriteResponse};
use linkspan_smb2::status;
use linkspan_smb2::wire::Body as _;

use super::super::again::{Pace, is_over, is_unknown, to_usize, zeroes};
use super::super::data::{Data, Room};
use super::super::error::Error;
use super::super::kept::{Content, Kept};
use super::super::share::{Open, Share, flush_request, refused};
use super::super::transfer::CREDIT;
use super::file::Target;
use super::reconnect::Away;
use super::work::{self, Piece, Task, Waiter, What};
use crate::image::handed::{Handed, Job};

/// Requests in flight, but for a flush.
const WINDOW: usize = 32;

/// Bytes that may have been written and not be durable. What is beyond waits for a flush, which
/// begins at half of it.
const KEPT_MAX: u64 = 64 << 20;

/// A flush that is under way.
pub(super) struct Flush {
    id: RequestId,
    /// The last change that it makes durable.
    last: u64,
    pub(super) waiters: Vec<Waiter>,
}

/// The thread's.
pub(super) struct Server {
    pub(super) share: Share,
    pub(super) target: Target,
    pub(super) open: Open,
    pub(super) handed: Arc<Handed>,
    pub(super) time_limit: Option<Duration>,
    tasks: BTreeMap<u64, Task>,
    next_task: u64,
    /// What is to be asked for.
    pub(super) todo: VecDeque<Piece>,
    /// What is asked for.
    pub(super) flying: BTreeMap<RequestId, Piece>,
    /// Who waits for a flush that is not asked for.
    pub(super) waiting: Vec<Waiter>,
    pub(super) flush: Option<Flush>,
    pub(super) kept: Kept,
    /// Why nothing can be made durable any more.
    failed: Option<String>,
    /// Whether the server makes zeroes, as far as is known.
    pub(super) makes_zeroes: bool,
    pub(super) pace: Pace,
    pub(super) away: Option<Away>,
    /// Since when there is little time.
    pub(super) hurry: Option<Instant>,
}

impl Server {
    pub(super) fn new(
        mut share: Share,
        target: Target,
        open: Open,
        handed: &Arc<Handed>,
        time_limit: Option<Duration>,
    ) -> Result<Self, Error> {
        share.connection.watch(handed.event())?;
        Ok(Self {
            share,
            target,
            open,
            handed: Arc::clone(handed),
            time_limit,
            tasks: BTreeMap::new(),
            next_task: 0,
            todo: VecDeque::new(),
            flying: BTreeMap::new(),
            waiting: Vec::new(),
            flush: None,
            kept: Kept::default(),
            failed: None,
            makes_zeroes: true,
            pace: Pace::new(),
            away: None,
            hurry: None,
        })
    }

    /// Serves until there will be nothing more.
    pub(super) fn run(mut self) {
        loop {
            let more = self.take();
            if !more && self.is_idle() {
                break;
            }
            match self.turn() {
                Ok(()) => self.look_whether_back(),
                // There is no connection on which anything could be closed.
                Err(why) if !self.reconnect(&why) => return,
                Err(_) => {}
            }
        }
        // What goes wrong here comes too late for anybody.
        let _ = self.share.close(self.open);
    }

    /// Takes what queues handed over; whether more may come.
    pub(super) fn take(&mut self) -> bool {
        let mut jobs = VecDeque::new();
        let more = self.handed.take(&mut jobs);
        for job in jobs {
            match job {
                Job::Sync(sender) => self.waiting.push(Waiter::Sync(sender)),
                Job::Request(request) => {
                    let id = self.next_task;
                    self.next_task += 1;
                    let pieces = work::pieces(id, &request);
                    let task = Task {
                        request,
                        left: pieces.len(),
                        error: None,
                    };
                    let done = task.left == 0;
                    self.tasks.insert(id, task);
                    self.todo.extend(pieces);
                    if done {
                        self.finish(id);
                    }
                }
            }
        }
        more
    }

    fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.waiting.is_empty() && self.flush.is_none()
    }

    /// The number of the next request that comes.
    pub(super) fn next_task(&self) -> u64 {
        self.next_task
    }

    /// Whether a request before this one is not done, or somebody waits for all to be durable.
    pub(super) fn waits(&self, before: u64) -> bool {
        let flying = self.flush.iter().flat_map(|flush| &flush.waiters);
        let mut waiters = self.waiting.iter().chain(flying);
        let first = self.tasks.keys().next();
        first.is_some_and(|id| *id < before) || waiters.any(|it| matches!(it, Waiter::Sync(_)))
    }

    /// Asks for what can be asked for, and hears what is answered.
    fn turn(&mut self) -> Result<(), Error> {
        self.ask()?;
        self.share.connection.turn()?;
        self.target.let_go(&mut self.share)?;
        while let Some(response) = self.share.connection.answer() {
            self.answered(&response)?;
        }
        Ok(())
    }

    fn ask(&mut self) -> Result<(), Error> {
        self.ask_flush()?;
        while self.flying.len() < WINDOW {
            let Some(mut piece) = self.todo.pop_front() else {
                break;
            };
            let Some(len) = self.may_have(&piece) else {
                self.todo.push_front(piece);
                break;
            };
            if len < piece.len {
                let rest = piece.cut(len);
                self.todo.push_front(rest);
                self.task(piece.task).left += 1;
            }
            self.ask_piece(piece)?;
        }
        Ok(())
    }

    fn task(&mut self, id: u64) -> &mut Task {
        match self.tasks.get_mut(&id) {
            Some(task) => task,
            None => unreachable!("a piece is of a request that is not done"),
        }
    }

    /// Whether something may be asked for now, or no answer is to come that brings credits.
    fn has_credit(&self) -> bool {
        let connection = &self.share.connection;
        connection.affordable() > 0 || connection.in_flight() == 0
    }

    /// How much of a piece may be asked for now; none of it if it has to wait.
    fn may_have(&self, piece: &Piece) -> Option<u64> {
        if piece.is_change() {
            let mut flying = self.flying.values().filter(|other| other.is_change());
            if flying.any(|other| other.overlaps(piece)) || self.kept.cost() >= KEPT_MAX {
                return None;
            }
        }
        let (read, write) = self.share.connection.io_max();
        let max = match piece.what {
            What::Read { .. } => read,
            What::Write { .. } => write,
            What::Zero { .. } if self.makes_zeroes => {
                return self.has_credit().then_some(piece.len);
            }
            What::Zero { .. } => write,
        };
        let len = piece.len.min(max.into());
        let affordable = self.share.connection.affordable();
        if len <= affordable.into() {
            return Some(len);
        }
        // Answers bring credits; where none is to come, a shorter piece has to do.
        let alone = self.share.connection.in_flight() == 0;
        alone.then_some(len.min(affordable.max(CREDIT).into()))
    }

    fn ask_piece(&mut self, mut piece: Piece) -> Result<(), Error> {
        if let What::Zero { or_anything } = piece.what
            && !self.makes_zeroes
        {
            if or_anything {
                self.done(&piece, Ok(()));
                return Ok(());
            }
            let data = vec![0; to_usize(piece.len)].into();
            piece.what = What::Write {
                at: 0,
                data: Some(data),
            };
        }
        // At most what the server takes at once.
        let len = u32::try_from(piece.len).unwrap_or(u32::MAX);
        let (file, offset) = (self.open.file, piece.offset.into());
        let asked = match piece.what {
            What::Read { .. } => {
                let request = ReadRequest {
                    length: len.into(),
                    offset,
                    file,
                    ..ReadRequest::new()
                };
                self.share.connection.read(request, len)
            }
            What::Write { .. } => {
                let data = match piece.fetch(self.task(piece.task)) {
                    Ok(data) => data,
                    Err(error) => {
                        self.done(&piece, Err(error));
                        return Ok(());
                    }
                };
                let request = WriteRequest {
                    offset,
                    file,
                    ..WriteRequest::new()
                };
                let fill = |room: Room<'_>| {
                    room.copy_from(&data);
                    Ok(())
                };
                self.share.connection.write(request, len, fill)
            }
            What::Zero { .. } => {
                let request = zeroes(&self.open, &piece.range());
                self.share.connection.submit(request)
            }
        };
        match asked {
            Ok(id) => {
                self.flying.insert(id, piece);
                Ok(())
            }
            Err(error) => {
                self.todo.push_front(piece);
                Err(error)
            }
        }
    }

    /// Asks for a flush if somebody waits for one, or too much is not durable.
    fn ask_flush(&mut self) -> Result<(), Error> {
        if self.flush.is_some() {
            return Ok(());
        }
        if self.failed.is_some() || self.kept.is_empty() {
            for waiter in std::mem::take(&mut self.waiting) {
                self.flushed(waiter);
            }
            return Ok(());
        }
        let wanted = !self.waiting.is_empty() || self.kept.cost() >= KEPT_MAX / 2;
        if !wanted || !self.has_credit() {
            return Ok(());
        }
        let id = self.share.connection.submit(flush_request(&self.open))?;
        self.flush = Some(Flush {
            id,
            last: self.kept.last(),
            waiters: std::mem::take(&mut self.waiting),
        });
        Ok(())
    }

    fn answered(&mut self, response: &Response) -> Result<(), Error> {
        if is_over(response.status()) {
            // What was asked for stays, and is asked for again.
            return Err(refused(&self.target.path, response.status()));
        }
        if let Some(flush) = self.flush.take_if(|flush| flush.id == response.id) {
            self.flush_answered(flush, response.status());
            return Ok(());
        }
        let Some(piece) = self.flying.remove(&response.id) else {
            return Ok(());
        };
        let result = match self.outcome(&piece, response) {
            Ok(result) => result,
            Err(error) => {
                self.flying.insert(response.id, piece);
                return Err(error);
            }
        };
        match result {
            Ok(len) if len < piece.len => {
                let mut piece = piece;
                let rest = piece.cut(len);
                self.todo.push_front(rest);
            }
            Ok(_) => self.done(&piece, Ok(())),
            Err(said) if !piece.is_change() || !self.has_no_zeroes(&piece, said) => {
                self.done(&piece, Err(work::error(said)));
            }
            Err(_) => self.todo.push_front(piece),
        }
        Ok(())
    }

    /// Whether the server does not know how to make zeroes: another way has to be found.
    fn has_no_zeroes(&mut self, piece: &Piece, said: u32) -> bool {
        let unknown = matches!(piece.what, What::Zero { .. }) && is_unknown(said);
        if unknown {
            self.makes_zeroes = false;
        }
        unknown
    }

    /// How many bytes of a piece were done, or what the server says.
    fn outcome(&mut self, piece: &Piece, response: &Response) -> Result<Result<u64, u32>, Error> {
        if response.status() != status::SUCCESS {
            return Ok(Err(response.status()));
        }
        match &piece.what {
            What::Read { at } => {
                let tasks = &mut self.tasks;
                let len = self.share.connection.data(response, |data| {
                    // The protocol's end has checked that it is not more than was asked for.
                    if let Some(task) = tasks.get_mut(&piece.task)
                        && let Err(error) = scatter(task, *at, data)
                    {
                        task.error.get_or_insert(error);
                    }
                    data.len() as u64
                })?;
                if len == 0 {
                    return Ok(Err(status::END_OF_FILE));
                }
                Ok(Ok(len))
            }
            What::Write { data, .. } => {
                let count = WriteResponse::read(response.message())?.count.get();
                if count == 0 {
                    return Ok(Err(status::DISK_FULL));
                }
                let range = piece.offset..piece.offset + u64::from(count);
                if let Some(data) = data {
                    self.keep(range, Content::Data(Arc::clone(data), 0));
                }
                Ok(Ok(count.into()))
            }
            What::Zero { .. } => {
                self.keep(piece.range(), Content::Zeroes);
                Ok(Ok(piece.len))
            }
        }
    }

    fn keep(&mut self, range: std::ops::Range<u64>, content: Content) {
        // Where nothing can be made durable any more, nobody believes that it is.
        if self.failed.is_none() {
            self.kept.add(range, content);
        }
    }

    fn flush_answered(&mut self, flush: Flush, said: u32) {
        match said {
            status::SUCCESS => self.kept.durable(flush.last),
            said => {
                let error = work::error(said);
                tracing::error!("{}: cannot be made durable: {error}", self.target.path);
                self.failed = Some(error.to_string());
                self.kept = Kept::default();
            }
        }
        for waiter in flush.waiters {
            self.flushed(waiter);
        }
    }

    /// Tells one who waited for a flush how that ended.
    fn flushed(&mut self, waiter: Waiter) {
        let result = match &self.failed {
            None => Ok(()),
            Some(why) => Err(io::Error::other(format!("a flush failed: {why}"))),
        };
        self.tell(waiter, result);
    }

    fn tell(&mut self, waiter: Waiter, result: io::Result<()>) {
        match waiter {
            // Nobody may wait any more.
            Waiter::Sync(sender) => drop(sender.send(result)),
            Waiter::Task(id) => {
                if let Some(task) = self.tasks.remove(&id) {
                    task.request.complete(result);
                }
            }
        }
    }

    /// A piece was done, or not.
    fn done(&mut self, piece: &Piece, result: io::Result<()>) {
        let task = self.task(piece.task);
        task.left -= 1;
        if let Err(error) = result {
            task.error.get_or_insert(error);
        }
        if task.left == 0 {
            self.finish(piece.task);
        }
    }

    /// All pieces of a request are done.
    fn finish(&mut self, id: u64) {
        let task = self.task(id);
        match task.error.take() {
            Some(error) => self.tell(Waiter::Task(id), Err(error)),
            None if work::is_durable(task.request.work) => self.waiting.push(Waiter::Task(id)),
            None => self.tell(Waiter::Task(id), Ok(())),
        }
    }

    /// All that is to be done fails, and is not asked for again.
    pub(super) fn fail(&mut self, why: &str) {
        self.todo.clear();
        self.flying.clear();
        let error = || io::Error::new(io::ErrorKind::TimedOut, why.to_string());
        for waiter in std::mem::take(&mut self.waiting) {
            self.tell(waiter, Err(error()));
        }
        for task in std::mem::take(&mut self.tasks).into_values() {
            task.request.complete(Err(error()));
        }
    }
}

/// Puts data to where a request wants it, from a byte of it on.
fn scatter(task: &Task, at: u64, data: Data<'_>) -> io::Result<()> {
    let (spans, memory) = (&task.request.spans, &task.request.memory);
    let done = match data {
        Data::Message(bytes) => memory.scatter(spans, at, bytes),
        Data::Placed(place) => memory.scatter_shared(spans, at, place),
    };
    done.map_err(io::Error::other)
}

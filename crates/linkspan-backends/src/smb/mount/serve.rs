//! The thread of a mount: takes what the kernel asks, asks the server, answers.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::Errno;
use linkspan_smb2::client::RequestId;
use linkspan_smb2::status;
use linkspan_sys::poll::{Direction, wait_for};

use super::super::again::{self, Pace, write_again};
use super::super::error::Error;
use super::super::share::{Meta, Open, Share};
use super::ask::{Ask, Job, Reply};
use super::asked::Asked;
use super::data::{Data, Flush, Piece};
use super::nodes::Nodes;
use super::{Happened, Report, errno};

/// Why something that was asked is not done.
#[derive(Debug)]
pub(super) enum Failed {
    /// It is refused here.
    Here(Errno),
    /// What the server says, or that it is away.
    There(Error),
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        Self::Here(errno)
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::There(error)
    }
}

/// A question that is not answered.
#[derive(Debug)]
pub(super) struct Question {
    ask: Ask,
    reply: Reply,
    /// Since when the server is away for it.
    away: Option<Instant>,
    /// It may have been done on a connection that was lost: the server's clock when it was
    /// first asked.
    again: Option<u64>,
}

/// What is open.
#[derive(Debug)]
pub(super) enum Handle {
    File(File),
    /// A folder, with what is in it once that was asked for.
    Folder {
        node: u64,
        entries: Vec<(String, Meta)>,
        /// When that was.
        listed: Instant,
    },
}

/// An open file.
#[derive(Debug)]
pub(super) struct File {
    pub(super) node: u64,
    pub(super) open: Open,
    /// What it was opened for.
    pub(super) rights: u32,
    pub(super) writes: bool,
    /// It could not be opened again.
    pub(super) dead: Option<Errno>,
}

/// The thread's.
pub(super) struct Server {
    pub(super) share: Share,
    pub(super) asked: Arc<Asked>,
    pub(super) report: Report,
    pub(super) read_only: bool,
    time_limit: Option<Duration>,
    /// Whose files all are.
    pub(super) owner: (u32, u32),
    pub(super) nodes: Nodes,
    pub(super) handles: BTreeMap<u64, Handle>,
    pub(super) next_handle: u64,
    questions: VecDeque<Question>,
    pub(super) data: BTreeMap<u64, Data>,
    pub(super) next_data: u64,
    /// What is to be asked for.
    pub(super) todo: VecDeque<Piece>,
    /// What is asked for.
    pub(super) flying: BTreeMap<RequestId, Piece>,
    /// Who waits for a flush that is not asked for.
    pub(super) waiting: Vec<super::data::Waiter>,
    pub(super) flushes: BTreeMap<RequestId, Flush>,
    /// From which hidden names are made: nobody else has them.
    pub(super) secret: u64,
    /// What is being renamed, from and to.
    pub(super) moving: Option<(String, String)>,
    pace: Pace,
    /// Since when the server is away.
    away: Option<Instant>,
}

impl Server {
    pub(super) fn new(
        mut share: Share,
        root: &str,
        asked: &Arc<Asked>,
        options: &super::MountOptions,
        owner: (u32, u32),
        report: Report,
    ) -> Result<Self, Error> {
        share.connection.watch(asked.event())?;
        Ok(Self {
            share,
            asked: Arc::clone(asked),
            report,
            read_only: options.read_only,
            time_limit: options.time_limit,
            owner,
            nodes: Nodes::new(root),
            handles: BTreeMap::new(),
            next_handle: 1,
            questions: VecDeque::new(),
            data: BTreeMap::new(),
            next_data: 0,
            todo: VecDeque::new(),
            flying: BTreeMap::new(),
            waiting: Vec::new(),
            flushes: BTreeMap::new(),
            secret: super::random()?,
            moving: None,
            pace: Pace::new(),
            away: None,
        })
    }

    /// Serves until there will be nothing more.
    pub(super) fn run(mut self) {
        let asked = Arc::clone(&self.asked);
        loop {
            let more = self.take();
            if !more && self.is_idle() {
                break;
            }
            match self.turn() {
                Ok(()) => {}
                Err(why) if !self.reconnect(&why) => break,
                Err(_) => {}
            }
        }
        asked.deafen();
        self.finish();
    }

    /// Whether nobody waits for anything.
    fn is_idle(&self) -> bool {
        let mut replies = self.questions.iter().map(|question| &question.reply);
        replies.all(|reply| matches!(reply, Reply::Nobody))
            && self.data.is_empty()
            && self.waiting.is_empty()
            && self.flushes.is_empty()
    }

    /// Takes what the kernel asks; whether more may come.
    fn take(&mut self) -> bool {
        let (jobs, more) = self.asked.take();
        let away = self.away;
        for job in jobs {
            match job {
                Job::Forget { node, lookups } => self.nodes.forget(node, lookups),
                Job::Ask(ask, reply) => self.questions.push_back(Question {
                    ask,
                    reply,
                    away,
                    again: None,
                }),
                other => self.add_data(other, away),
            }
        }
        if away.is_some() {
            self.tell_clean();
        }
        more
    }

    /// Asks for what can be asked for, and hears what is answered.
    fn turn(&mut self) -> Result<(), Error> {
        self.ask_data()?;
        if let Some(question) = self.questions.pop_front() {
            return self.question(question);
        }
        self.asked.rest();
        self.share.connection.turn()?;
        self.hear()
    }

    /// Hears what is answered.
    pub(super) fn hear(&mut self) -> Result<(), Error> {
        while let Some(response) = self.share.connection.answer() {
            self.answered(&response)?;
        }
        Ok(())
    }

    /// Whether the connection is of no use any more for this reason.
    pub(super) fn is_over(&self, error: &Error) -> bool {
        match error {
            Error::Refused { status, .. } => again::is_over(*status),
            Error::Protocol(linkspan_smb2::Error::Unasked) | Error::Ended(_) | Error::Rdma(_) => {
                true
            }
            // What stands in an answer may be refused, and the next one taken.
            Error::Protocol(_) => self.share.connection.is_over(),
            error => error.is_unreachable(),
        }
    }

    fn question(&mut self, question: Question) -> Result<(), Error> {
        let asked = question
            .again
            .unwrap_or(self.share.connection.server_time());
        match self.answer(&question.ask, question.again) {
            Ok(answer) => {
                match question.reply {
                    Reply::List(..) | Reply::ListAll(..) => {
                        self.list(&question.ask, question.reply)
                    }
                    reply => reply.give(answer),
                }
                self.hear()
            }
            Err(Failed::Here(errno)) => {
                question.reply.fail(errno);
                self.hear()
            }
            Err(Failed::There(error)) if self.is_over(&error) => {
                // A server that breaks the protocol would do so again.
                match error.is_broken() {
                    true => question.reply.fail(Errno::EIO),
                    false => self.questions.push_front(Question {
                        again: Some(asked),
                        ..question
                    }),
                }
                Err(error)
            }
            Err(Failed::There(error)) => {
                if error.status().is_none() {
                    tracing::warn!("{error}");
                }
                question.reply.fail(errno::of(&error));
                self.hear()
            }
        }
    }

    /// Connects again, as often as it takes; false if all is over meanwhile.
    fn reconnect(&mut self, why: &Error) -> bool {
        (self.report)(Happened::Lost { why });
        let lost = *self.away.get_or_insert_with(Instant::now);
        match why.is_broken() {
            true => self.fail_flying(),
            false => self.put_back(),
        }
        let waits = |away: &mut Option<Instant>| {
            away.get_or_insert(lost);
        };
        self.questions.iter_mut().for_each(|it| waits(&mut it.away));
        self.data.values_mut().for_each(|it| waits(&mut it.away));
        self.waiting.iter_mut().for_each(|it| waits(&mut it.away));
        let mut said = why.to_string();
        let mut pause = self.pace.lost();
        while self.rest(Instant::now() + pause) {
            match self.again() {
                Ok(()) => {
                    self.away = None;
                    self.pace.connected();
                    (self.report)(Happened::Connected {
                        after: lost.elapsed(),
                        connection: &self.share,
                    });
                    return true;
                }
                Err(error) => {
                    let text = error.to_string();
                    if text != said {
                        (self.report)(Happened::NotConnected { why: &error });
                        said = text;
                    }
                    match self.pace.after(&error, self.time_limit) {
                        Some(next) => pause = next,
                        None => {
                            tracing::error!("{said}; it is not tried again");
                            self.refuse();
                            break;
                        }
                    }
                }
            }
        }
        false
    }

    /// All that is asked fails, until it is unmounted.
    fn refuse(&mut self) {
        loop {
            let more = self.take();
            self.fail_overdue(&|_| true);
            if !more {
                return;
            }
            self.asked.rest();
            let event = self.asked.event().as_fd();
            if let Err(error) = wait_for(event, Direction::Read, None, None) {
                panic!("our own eventfd cannot be waited for: {error}");
            }
        }
    }

    /// Waits until then, and takes what is asked meanwhile, which fails where the time limit is
    /// over; false if all is to end.
    fn rest(&mut self, until: Instant) -> bool {
        loop {
            let more = self.take();
            let now = Instant::now();
            if let Some(limit) = self.time_limit {
                self.fail_overdue(&|away| away.is_some_and(|away| away + limit <= now));
            }
            if !more {
                // Who asked is gone, and nothing is open any more.
                self.fail_overdue(&|_| true);
                return false;
            }
            if now >= until {
                return true;
            }
            self.asked.rest();
            let event = self.asked.event().as_fd();
            if let Err(error) = wait_for(event, Direction::Read, None, Some(until)) {
                panic!("our own eventfd cannot be waited for: {error}");
            }
        }
    }

    /// What waits for too long fails.
    fn fail_overdue(&mut self, is_overdue: &dyn Fn(Option<Instant>) -> bool) {
        for _ in 0..self.questions.len() {
            let Some(mut question) = self.questions.pop_front() else {
                break;
            };
            let mut stays = true;
            if is_overdue(question.away) {
                let reply = std::mem::replace(&mut question.reply, Reply::Nobody);
                reply.fail(Errno::ETIMEDOUT);
                // The kernel says only once that something is closed.
                stays = matches!(question.ask, Ask::Release { .. });
            }
            if stays {
                self.questions.push_back(question);
            }
        }
        let overdue = self.data.iter().filter(|it| is_overdue(it.1.away));
        let overdue: Vec<_> = overdue.map(|(number, _)| *number).collect();
        for number in overdue {
            self.fail_data(number, Errno::ETIMEDOUT);
        }
        for waiter in std::mem::take(&mut self.waiting) {
            match is_overdue(waiter.away) {
                true => waiter.reply.error(Errno::ETIMEDOUT),
                false => self.waiting.push(waiter),
            }
        }
    }

    /// One attempt. What is not durable is written again before anything else is asked for.
    fn again(&mut self) -> Result<(), Error> {
        self.share.reopen()?;
        self.open_again(|_| true)?;
        self.moving = None;
        let nodes: Vec<_> = self.nodes.all().map(|(number, _)| number).collect();
        for number in nodes {
            self.restore(number)?;
        }
        // Not before: it stays readable until somebody takes what was asked.
        self.share.connection.watch(self.asked.event())
    }

    /// Opens the files of some nodes again. One that is not there any more is lost.
    pub(super) fn open_again(&mut self, which: impl Fn(u64) -> bool) -> Result<(), Error> {
        let Self {
            share,
            handles,
            nodes,
            moving,
            secret,
            ..
        } = self;
        let mut was_moved = false;
        for handle in handles.values_mut() {
            let Handle::File(file) = handle else {
                continue;
            };
            if file.dead.is_some() || !which(file.node) {
                continue;
            }
            let opened = match nodes.path(file.node) {
                Ok(path) => match share.open_file(&path, file.rights) {
                    Err(error) if error.status() == Some(status::OBJECT_NAME_NOT_FOUND) => {
                        match moved(moving.as_ref(), &path) {
                            Some(path) => {
                                let opened = share.open_file(&path, file.rights);
                                was_moved |= opened.is_ok();
                                opened
                            }
                            None => Err(error),
                        }
                    }
                    result => result,
                },
                Err(errno) => {
                    file.dead = Some(errno);
                    continue;
                }
            };
            match opened {
                Ok(open) => file.open = open,
                Err(error) if error.status().is_some_and(|said| !again::is_over(said)) => {
                    tracing::error!("cannot be opened again: {error}");
                    file.dead = Some(Errno::ESTALE);
                    if let Ok(node) = nodes.get(file.node)
                        && node.is_dirty()
                    {
                        node.failed = Some(errno::of(&error));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if was_moved && let Some((from, to)) = moving.take() {
            // Who asked for it does not find it where it was any more.
            nodes.was_moved(&from, &to, *secret);
        }
        Ok(())
    }

    /// Writes again what is not durable of a node.
    fn restore(&mut self, number: u64) -> Result<(), Error> {
        let open = self.writer(number).map(|file| file.open.clone());
        let Ok(node) = self.nodes.get(number) else {
            return Ok(());
        };
        let (Some(open), true) = (open, node.is_dirty()) else {
            return Ok(());
        };
        let (cut, size) = (node.cut, node.size);
        let restored = (|| {
            if let Some(cut) = cut {
                self.share.set_size(&open, cut)?;
            }
            write_again(&mut self.share, &open, &node.kept)?;
            match cut {
                Some(_) => self.share.set_size(&open, size),
                None => Ok(()),
            }
        })();
        match restored {
            Err(error) if error.status().is_some_and(|said| !again::is_over(said)) => {
                // A disk that is full, for one: who wrote hears of it with the next flush.
                tracing::error!("what was not flushed may be lost: {error}");
                node.failed = Some(errno::of(&error));
                Ok(())
            }
            result => result,
        }
    }

    /// A file of this node that is open to be written.
    pub(super) fn writer(&self, number: u64) -> Option<&File> {
        self.handles.values().find_map(|handle| match handle {
            Handle::File(file) if file.node == number && file.writes && file.dead.is_none() => {
                Some(file)
            }
            _ => None,
        })
    }

    /// All is closed, and what was removed while it was open goes.
    fn finish(mut self) {
        for question in std::mem::take(&mut self.questions) {
            question.reply.fail(Errno::EIO);
        }
        if self.away.is_some() {
            let lost: Vec<_> = self.nodes.all().filter(|it| it.1.is_dirty()).collect();
            if !lost.is_empty() {
                tracing::error!("what was not flushed of {} files may be lost", lost.len());
            }
            let hidden = self.nodes.all().filter(|it| it.1.hidden).count();
            if hidden > 0 {
                tracing::warn!("{hidden} files that were removed stay there as .linkspan-…");
            }
            return;
        }
        let files: Vec<_> = self.handles.keys().copied().collect();
        for file in files {
            match self.release(file) {
                Ok(()) => {}
                Err(Failed::There(error)) if self.is_over(&error) => {
                    tracing::error!("{error}; what was not flushed may be lost");
                    return;
                }
                Err(failed) => tracing::warn!("a file is not closed: {failed:?}"),
            }
        }
    }
}

/// Where a path is if what is being renamed was.
fn moved(moving: Option<&(String, String)>, path: &str) -> Option<String> {
    let (from, to) = moving?;
    let rest = path.strip_prefix(from.as_str())?;
    (rest.is_empty() || rest.starts_with('/')).then(|| format!("{to}{rest}"))
}

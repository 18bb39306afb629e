//! A virtual GPU of ours, from its viewers' side: the socket of `linkspan gpu --display`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use linkspan_display::link::{Got, HEADER, LinkError, Message, Resized, Told, VERSION};
use linkspan_display::{Loss, Rectangle, RefusedPlane};
use linkspan_sys::dmabuf::DmaBuf;
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::{PeerMemory, Stream, View, reaper};

use super::source::{Change, Memory, Shown, Source, SourceError};

/// How long the GPU may take for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Messages that are heard in a row: one that never stops holds up nobody.
const TURN: usize = 256;

/// A virtual GPU of ours.
#[derive(Debug)]
pub struct GpuSource {
    name: String,
    stream: Stream,
    incoming: Incoming,
    planes: Vec<Told>,
    refused: Vec<RefusedPlane>,
    loss: Option<Loss>,
    /// Nobody says when pixels change.
    silent: bool,
    /// Whether the planes were told anew since that was asked.
    fresh: bool,
    /// What of them has changed; or more of it than is kept has.
    parts: Vec<(u8, Rectangle)>,
    all: bool,
    /// There may be more than was heard.
    more: bool,
    gone: bool,
}

/// A message that is on its way.
#[derive(Debug, Default)]
struct Incoming {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl From<LinkError> for SourceError {
    fn from(error: LinkError) -> Self {
        Self::Broken(error.to_string())
    }
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> SourceError {
    move |source| SourceError::System { what, source }
}

impl GpuSource {
    /// Connects to a GPU, and hears what it shows.
    ///
    /// # Errors
    /// Nobody listens there, or it is not one of ours.
    pub fn connect(path: &Path) -> Result<Self, SourceError> {
        let stream = Stream::connect(path).map_err(system("cannot connect"))?;
        let mut source = Self {
            name: path.display().to_string(),
            stream,
            incoming: Incoming::default(),
            planes: Vec::new(),
            refused: Vec::new(),
            loss: None,
            silent: false,
            fresh: false,
            parts: Vec::new(),
            all: false,
            more: false,
            gone: false,
        };
        let deadline = Instant::now() + ANSWER_LIMIT;
        match source.await_message(deadline)?.0 {
            Message::Hello { version: VERSION } => {}
            Message::Hello { version } => {
                let text = format!("it speaks version {version} of this socket, not {VERSION}");
                return Err(SourceError::Unsupported(text));
            }
            other => return Err(unexpected(&other)),
        }
        while !source.fresh {
            let (message, fds) = source.await_message(deadline)?;
            source.take_in(message, fds)?;
            in_time(deadline)?;
        }
        Ok(source)
    }

    /// The next message that is there, with its descriptors, which are **unchecked**.
    fn next_message(&mut self) -> Result<Option<(Message, Vec<OwnedFd>)>, SourceError> {
        let mut buffer = [0; 4096];
        loop {
            let have = self.incoming.bytes.len();
            let want = match self.incoming.bytes.first_chunk::<HEADER>() {
                None => HEADER,
                Some(header) => HEADER + Message::body_len(*header)?,
            };
            if let (true, Some((header, body))) = (
                have >= HEADER && have == want,
                self.incoming.bytes.split_first_chunk(),
            ) {
                let message = Message::parse(*header, body)?;
                let incoming = std::mem::take(&mut self.incoming);
                return Ok(Some((message, incoming.fds)));
            }
            let room = &mut buffer[..(want - have).min(4096)];
            let received = match self.stream.receive(room, &mut self.incoming.fds, 1) {
                Ok(received) => received,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(system("cannot hear the GPU")(error)),
            };
            if received.surplus > 0 || self.incoming.fds.len() > 1 {
                return Err(SourceError::Broken("several descriptors at once".into()));
            }
            if received.bytes == 0 {
                self.gone = true;
                return Err(SourceError::Lost(Loss::Ended));
            }
            self.incoming
                .bytes
                .extend_from_slice(&buffer[..received.bytes]);
        }
    }

    fn await_message(&mut self, deadline: Instant) -> Result<(Message, Vec<OwnedFd>), SourceError> {
        loop {
            if let Some(message) = self.next_message()? {
                return Ok(message);
            }
            let waited = wait_for(self.stream.as_fd(), Direction::Read, None, Some(deadline));
            if waited.map_err(system("cannot wait for the GPU"))? == Wake::Deadline {
                return Err(late());
            }
        }
    }

    /// Takes in what is told without being asked.
    fn take_in(&mut self, message: Message, fds: Vec<OwnedFd>) -> Result<(), SourceError> {
        if !fds.is_empty() {
            fds.into_iter().for_each(reaper::dispose);
            return Err(SourceError::Broken(
                "a descriptor that was not asked for".into(),
            ));
        }
        match message {
            Message::Planes {
                loss,
                planes,
                refused,
            } => {
                (self.loss, self.planes, self.refused) = (loss, planes, refused);
                self.fresh = true;
            }
            Message::Silent => self.silent = true,
            Message::Damage { head, parts } => {
                let parts = parts.into_iter().map(|part| (head, part));
                // Nobody has looked for long: all may have changed.
                if self.parts.len() > 1024 {
                    self.parts.clear();
                    self.all = true;
                }
                self.parts.extend(parts);
            }
            other => return Err(unexpected(&other)),
        }
        Ok(())
    }

    /// Takes in what is there, as far as one may say in a row.
    fn hear(&mut self) -> Result<(), SourceError> {
        self.more = false;
        for _ in 0..TURN {
            let Some((message, fds)) = self.next_message()? else {
                return Ok(());
            };
            self.take_in(message, fds)?;
        }
        self.more = true;
        Ok(())
    }

    /// Says something and waits for what `answers` takes.
    fn ask<T>(
        &mut self,
        question: &Message,
        answers: impl Fn(&Message) -> Option<T>,
    ) -> Result<(T, Vec<OwnedFd>), SourceError> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        let said = self.stream.send(&question.to_bytes(), &[], deadline);
        said.map_err(system("cannot ask the GPU"))?;
        loop {
            let (message, fds) = self.await_message(deadline)?;
            match answers(&message) {
                Some(answer) => return Ok((answer, fds)),
                None => self.take_in(message, fds)?,
            }
            in_time(deadline)?;
        }
    }

    /// The memory of an id as a descriptor of its own: a memory file or a dma-buf. It is not
    /// checked.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn descriptor(&mut self, id: u32, dma_buf: bool) -> Result<OwnedFd, SourceError> {
        Ok(self.get(id, dma_buf)?.1)
    }

    /// The same, and which of them it is.
    fn get(&mut self, id: u32, dma_buf: bool) -> Result<(Got, OwnedFd), SourceError> {
        let question = Message::Get { id, dma_buf };
        let (got, mut fds) = self.ask(&question, |message| match message {
            Message::Buffer { id: asked, got } if *asked == id => Some(*got),
            _ => None,
        })?;
        match (got, fds.pop()) {
            (Got::Memory | Got::DmaBuf, Some(fd)) => Ok((got, fd)),
            (Got::Unknown | Got::Retired, None) => Err(SourceError::Retired { id }),
            (Got::Failed, None) => {
                // What is scattered has a dma-buf or nothing.
                let why = match dma_buf {
                    true => "its machine makes no dma-buf of it",
                    false => "its machine makes no descriptor of it",
                };
                Err(SourceError::Unsupported(why.into()))
            }
            (_, fd) => {
                fd.into_iter().for_each(reaper::dispose);
                Err(SourceError::Broken(
                    "an answer and its descriptor differ".into(),
                ))
            }
        }
    }
}

/// A dma-buf that a peer gave.
pub(super) fn peer_dma_buf(fd: OwnedFd, len: u64) -> Result<Memory, SourceError> {
    match DmaBuf::of_peer(fd, len) {
        Ok(memory) => Ok(Memory::DmaBuf(memory.into())),
        Err((error, fd)) => {
            reaper::dispose(fd);
            Err(error.into())
        }
    }
}

fn late() -> SourceError {
    SourceError::Broken("it does not answer".into())
}

/// One that says much else does not answer either.
fn in_time(deadline: Instant) -> Result<(), SourceError> {
    match Instant::now() < deadline {
        true => Ok(()),
        false => Err(late()),
    }
}

fn unexpected(message: &Message) -> SourceError {
    SourceError::Broken(format!("{message:?} where that is not said"))
}

impl Source for GpuSource {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn planes(&mut self) -> Result<Vec<Shown>, SourceError> {
        if !self.gone {
            self.hear()?;
        }
        if self.gone {
            return Err(SourceError::Lost(Loss::Ended));
        }
        match (self.planes.is_empty(), self.loss) {
            (true, Some(loss)) => {
                // Its device is there still, and may come back.
                let loss = if loss == Loss::Ended { Loss::Off } else { loss };
                Err(SourceError::Lost(loss))
            }
            _ => Ok(self.planes.iter().copied().map(Shown::from).collect()),
        }
    }

    fn refused(&self) -> &[RefusedPlane] {
        &self.refused
    }

    fn memory(&mut self, shown: &Shown) -> Result<Memory, SourceError> {
        let (got, fd) = self.get(shown.id, false)?;
        if got == Got::DmaBuf {
            return peer_dma_buf(fd, shown.plane.size);
        }
        let memory = PeerMemory::check(fd)?;
        let view = View::of_peer(&memory, 0, memory.file_len())?;
        Ok(view.into())
    }

    fn change(&mut self) -> Change {
        // An error is told by `planes`, which is asked unless nothing has changed.
        let heard = !self.gone && self.hear().is_ok();
        if !heard || std::mem::take(&mut self.all) || self.silent {
            self.fresh = false;
            self.parts.clear();
            return Change::Compare;
        }
        let fresh = std::mem::take(&mut self.fresh);
        match !fresh && self.parts.is_empty() {
            true => Change::None,
            false => Change::Parts(std::mem::take(&mut self.parts)),
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.silent).then(|| self.stream.as_fd())
    }

    fn has_news(&self) -> bool {
        !self.gone && (self.more || self.fresh || self.all || !self.parts.is_empty())
    }

    fn resize(&mut self, head: u8, width: u32, height: u32) -> Result<(), SourceError> {
        let question = Message::Resize {
            head,
            width,
            height,
        };
        let (resized, fds) = self.ask(&question, |message| match message {
            Message::Size { resized } => Some(*resized),
            _ => None,
        })?;
        fds.into_iter().for_each(reaper::dispose);
        let why = match resized {
            Resized::Told => return Ok(()),
            Resized::Invalid => format!("{width}x{height} is no size for this screen"),
            Resized::NotOurs => {
                "the virtual machine monitor has the say: change the size of its own display".into()
            }
        };
        Err(SourceError::Unsupported(why))
    }
}

impl From<Told> for Shown {
    fn from(told: Told) -> Self {
        let Told {
            head,
            kind,
            id,
            content,
            plane,
        } = told;
        Self {
            head,
            kind,
            id,
            plane,
            content,
        }
    }
}

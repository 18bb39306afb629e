//! A virtual GPU of ours, from its viewers' side: the socket of `linkspan gpu --display`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use linkspan_display::link::{Got, HEADER, LinkError, Message, Resized, Told, VERSION};
use linkspan_display::{Loss, Rectangle};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::{PeerMemory, Stream, View, reaper};

use super::source::{Change, Memory, Shown, Source, SourceError};

/// How long the GPU may take for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A virtual GPU of ours.
#[derive(Debug)]
pub struct GpuSource {
    name: String,
    stream: Stream,
    incoming: Incoming,
    planes: Vec<Told>,
    loss: Option<Loss>,
    /// The planes were told anew, or parts of them have changed, since that was asked.
    fresh: bool,
    parts: Vec<(u8, Rectangle)>,
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
            loss: None,
            fresh: true,
            parts: Vec::new(),
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
        let (message, fds) = source.await_message(deadline)?;
        source.take_in(message, fds)?;
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
                return Err(SourceError::Broken("it does not answer".into()));
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
            Message::Planes { loss, planes } => {
                (self.loss, self.planes) = (loss, planes);
                self.fresh = true;
            }
            Message::Damage { head, parts } => {
                let parts = parts.into_iter().map(|part| (head, part));
                // One whole screen says as much as very many parts.
                if self.parts.len() > 1024 {
                    self.parts.clear();
                    self.fresh = true;
                }
                self.parts.extend(parts);
            }
            other => return Err(unexpected(&other)),
        }
        Ok(())
    }

    /// Takes in all that is there.
    fn hear(&mut self) -> Result<(), SourceError> {
        while let Some((message, fds)) = self.next_message()? {
            self.take_in(message, fds)?;
        }
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
        }
    }

    /// The memory of an id as a descriptor of its own: a memory file or a dma-buf.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn descriptor(&mut self, id: u32, dma_buf: bool) -> Result<OwnedFd, SourceError> {
        let question = Message::Get { id, dma_buf };
        let (got, mut fds) = self.ask(&question, |message| match message {
            Message::Buffer { id: asked, got } if *asked == id => Some(*got),
            _ => None,
        })?;
        match (got, fds.pop()) {
            (Got::Memory | Got::DmaBuf, Some(fd)) => Ok(fd),
            (Got::Unknown | Got::Retired, None) => Err(SourceError::Retired { id }),
            (Got::Failed, None) if dma_buf => Err(SourceError::Unsupported(
                "the GPU's machine makes no dma-buf of it".into(),
            )),
            (Got::Failed, None) => Err(SourceError::Unsupported(
                "the GPU has no descriptors left".into(),
            )),
            (_, fd) => {
                fd.into_iter().for_each(reaper::dispose);
                Err(SourceError::Broken(
                    "an answer and its descriptor differ".into(),
                ))
            }
        }
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

    fn memory(&mut self, shown: &Shown) -> Result<Memory, SourceError> {
        let fd = self.descriptor(shown.id, false)?;
        let memory = PeerMemory::check(fd)?;
        let view = View::of_peer(&memory, 0, memory.file_len())?;
        Ok(view.into())
    }

    fn change(&mut self) -> Change {
        // An error is told by `planes`, which is asked unless nothing has changed.
        if self.gone || self.hear().is_err() || std::mem::take(&mut self.fresh) {
            self.parts.clear();
            return Change::Compare;
        }
        match self.parts.is_empty() {
            true => Change::None,
            false => Change::Parts(std::mem::take(&mut self.parts)),
        }
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.stream.as_fd())
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

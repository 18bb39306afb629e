//! The end of a hand-over that takes a link over from the process that has it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use linkspan_sys::{EventFd, Listener, Stream, reaper};

use super::handing::{HandOverError, PAUSE_LIMIT, PREPARE_LIMIT, Wire, Word, hello};
use super::lending::{Handed, Placed, part};
use super::saved::{FDS_MAX, HandedFd, SavedLink};
use super::session::BackendSession;
use crate::device::Device;
use crate::worker::Workers;

/// A process that takes a link over from another one, which runs
/// [`Giver::hand_over`](super::Giver::hand_over) at the other end of a socket.
#[derive(Debug)]
pub struct Successor {
    wire: Wire,
}

/// A link that was taken over, ready to be served.
pub(super) struct TakenLink {
    pub(super) listener: Option<Listener>,
    pub(super) generation: u32,
    /// When its rings were stopped, as [`SavedLink::paused_at`].
    pub(super) paused_at: u64,
    pub(super) session: Option<(BackendSession, Stream)>,
}

impl Successor {
    /// Asks for what the device is to be opened with while the other process still serves
    /// its own.
    ///
    /// # Errors
    /// The other process refuses, or is gone.
    pub fn begin(stream: Stream) -> Result<(Self, Vec<OwnedFd>), HandOverError> {
        let wire = Wire(stream);
        let until = Instant::now() + PREPARE_LIMIT;
        wire.send(Word::Hello, &hello(), &[], until)?;
        let (_, lent) = wire.receive(&[Word::Lent], until)?;
        Ok((Self { wire }, lent.fds))
    }

    /// Says that this process cannot take over what it wanted to.
    pub fn give_up(self, why: &impl ToString) {
        self.wire.refuse(why);
    }

    /// Takes the link over; after an error the other process goes on with it.
    pub(super) fn take(
        self,
        device: &Arc<dyn Device>,
        workers: &Arc<Workers>,
        changes: &Arc<EventFd>,
        path: Option<&Path>,
    ) -> Result<TakenLink, HandOverError> {
        let until = Instant::now() + PREPARE_LIMIT;
        self.wire.send(Word::Prepared, &[], &[], until)?;
        let placed = self.place(device, workers, changes, path);
        let placed = placed.inspect_err(|error| self.wire.refuse(error))?;
        let until = Instant::now() + PAUSE_LIMIT;
        self.wire.send(Word::Ready, &[], &[], until)?;
        self.wire.receive(&[Word::Go], until)?;
        // From here on it is ours, if this can be sent; else it never was.
        self.wire.send(Word::Taken, &[], &[], until)?;
        Ok(placed.launch())
    }

    fn place(
        &self,
        device: &Arc<dyn Device>,
        workers: &Arc<Workers>,
        changes: &Arc<EventFd>,
        path: Option<&Path>,
    ) -> Result<PlacedLink, HandOverError> {
        // Its front end may have to finish a sentence first, and its requests to end.
        let until = Instant::now() + 3 * PAUSE_LIMIT;
        let mut fds = Unchecked::default();
        let saved = loop {
            match self.wire.receive(&[Word::Saved, Word::Fds], until)? {
                (Word::Saved, message) => break SavedLink::parse(&message.body)?,
                (_, message) => fds.0.extend(message.fds),
            }
            if fds.0.len() > FDS_MAX {
                let (count, want) = (fds.0.len(), FDS_MAX);
                return Err(HandOverError::Count { count, want });
            }
        };
        let (got, own) = (saved.device_id, device.device_id());
        if got != own {
            return Err(HandOverError::Device { got, own });
        }
        let mut fds = Handed::new(&saved.fds, std::mem::take(&mut fds.0))?;
        let listener = fds.find(HandedFd::Listener);
        let listener = listener.map(Listener::handed).transpose()?;
        let session = saved.session.as_ref().map(|session| {
            let stream = Stream::check(fds.take(HandedFd::Connection)?)
                .map_err(|error| part("the connection", &error))?;
            let (device, workers) = (Arc::clone(device), Arc::clone(workers));
            let changes = Arc::clone(changes);
            let placed = Placed::new(device, workers, changes, session, &mut fds)?;
            Ok::<_, HandOverError>((placed, stream))
        });
        Ok(PlacedLink {
            listener,
            bound: path.map(Path::to_owned).zip(saved.socket),
            generation: saved.generation,
            paused_at: saved.paused_at,
            session: session.transpose()?,
        })
    }
}

/// A link with everything in its place, and of which nothing runs.
struct PlacedLink {
    listener: Option<Listener>,
    /// The listener's path, which is the other process's until the link is taken.
    bound: Option<(PathBuf, (u64, u64))>,
    generation: u32,
    paused_at: u64,
    session: Option<(Placed, Stream)>,
}

impl PlacedLink {
    fn launch(self) -> TakenLink {
        let (session, mut listener) = (self.session, self.listener);
        if let (Some(listener), Some((path, inode))) = (&mut listener, self.bound) {
            listener.own(&path, inode);
        }
        TakenLink {
            listener,
            generation: self.generation,
            paused_at: self.paused_at,
            session: session.map(|(placed, stream)| (placed.launch(), stream)),
        }
    }
}

/// Descriptors that nobody has looked at: closing them could block.
#[derive(Default)]
struct Unchecked(Vec<OwnedFd>);

impl Drop for Unchecked {
    fn drop(&mut self) {
        self.0.drain(..).for_each(reaper::dispose);
    }
}

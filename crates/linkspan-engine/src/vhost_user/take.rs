//! The end of a hand-over that takes links over from the process that has them.

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
use crate::shared::{Held, Shared};
use crate::worker::Workers;

/// A process that takes links over from another one, which runs
/// [`Giver::hand_over`](super::Giver::hand_over) at the other end of a socket.
#[derive(Debug)]
pub struct Successor {
    wire: Wire,
}

/// What a link goes on with.
pub(super) struct Ground<'a> {
    pub(super) device: &'a Arc<dyn Device>,
    pub(super) workers: &'a Arc<Workers>,
    pub(super) changes: &'a Arc<EventFd>,
    /// Where its listener is, if it has one.
    pub(super) path: Option<&'a Path>,
}

/// A link that was taken over, ready to be served.
pub(super) struct TakenLink {
    pub(super) listener: Option<Listener>,
    pub(super) generation: u32,
    /// When its rings were stopped, as [`SavedLink::paused_at`].
    pub(super) paused_at: u64,
    pub(super) session: Option<(BackendSession, Stream)>,
    /// What it shares with others, until it runs.
    pub(super) held: Option<Arc<Held>>,
}

impl Successor {
    /// Asks for what the devices are to be opened with while the other process still serves
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

    /// Takes the links over, and what they share; after an error the other process goes on with
    /// all of them.
    pub(super) fn take(
        self,
        grounds: &[Ground<'_>],
        shared: Option<&Arc<dyn Shared>>,
    ) -> Result<Vec<TakenLink>, HandOverError> {
        let until = Instant::now() + PREPARE_LIMIT;
        self.wire.send(Word::Prepared, &[], &[], until)?;
        let placed = self.place(grounds, shared);
        let placed = placed.inspect_err(|error| self.wire.refuse(error))?;
        let until = Instant::now() + PAUSE_LIMIT;
        self.wire.send(Word::Ready, &[], &[], until)?;
        self.wire.receive(&[Word::Go], until)?;
        // From here on it is ours, if this can be sent; else it never was.
        self.wire.send(Word::Taken, &[], &[], until)?;
        let held = shared.map(Held::new);
        let launch = |link: PlacedLink| link.launch(held.clone());
        Ok(placed.into_iter().map(launch).collect())
    }

    fn place(
        &self,
        grounds: &[Ground<'_>],
        shared: Option<&Arc<dyn Shared>>,
    ) -> Result<Vec<PlacedLink>, HandOverError> {
        // Its front ends may have to finish a sentence first, and their requests to end.
        let until = Instant::now() + 3 * PAUSE_LIMIT;
        if let Some(shared) = shared {
            let (_, message) = self.wire.receive(&[Word::Shared], until)?;
            shared.load(&message.body)?;
        }
        let place = |ground: &Ground<'_>| self.place_next(ground, until);
        grounds.iter().map(place).collect()
    }

    fn place_next(&self, ground: &Ground<'_>, until: Instant) -> Result<PlacedLink, HandOverError> {
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
        let (got, own) = (saved.device_id, ground.device.device_id());
        if got != own {
            return Err(HandOverError::Device { got, own });
        }
        let mut fds = Handed::new(&saved.fds, std::mem::take(&mut fds.0))?;
        let listener = fds.find(HandedFd::Listener);
        let listener = listener.map(Listener::handed).transpose()?;
        let session = saved.session.as_ref().map(|session| {
            let stream = Stream::check(fds.take(HandedFd::Connection)?)
                .map_err(|error| part("the connection", &error))?;
            let (device, workers) = (Arc::clone(ground.device), Arc::clone(ground.workers));
            let changes = Arc::clone(ground.changes);
            let placed = Placed::new(device, workers, changes, session, &mut fds)?;
            Ok::<_, HandOverError>((placed, stream))
        });
        Ok(PlacedLink {
            listener,
            bound: ground.path.map(Path::to_owned).zip(saved.socket),
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
    fn launch(self, held: Option<Arc<Held>>) -> TakenLink {
        let (session, mut listener) = (self.session, self.listener);
        if let (Some(listener), Some((path, inode))) = (&mut listener, self.bound) {
            listener.own(&path, inode);
        }
        TakenLink {
            listener,
            generation: self.generation,
            paused_at: self.paused_at,
            session: session.map(|(placed, stream)| (placed.launch(), stream)),
            held,
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

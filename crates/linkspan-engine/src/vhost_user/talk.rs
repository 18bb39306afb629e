//! What a session with a front end consists of, whatever device is behind it: the
//! protocol core, descriptors on their way in, messages on their way out, and the
//! socket on which the front end is told of changes.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use linkspan_sys::poll::Interest;
use linkspan_sys::{Epoll, EventFd, PeerEventFd, reaper};
use linkspan_vhost::Disposition;
use linkspan_vhost::backend::{Answer, Backend, Effect, FdSlot, Offer};
use linkspan_vhost::describe::Watcher;

use super::error::{Reason, SessionError};
use super::requests::RequestSocket;
use crate::endpoint::{Endpoint, RingView, View};
use crate::limit::LogLimit;
use crate::session::Outgoing;

/// A front end and our side of the protocol with it.
#[derive(Debug)]
pub(crate) struct Talk {
    pub(crate) core: Backend,
    /// Descriptors of the message that is being handled, by position.
    fds: Vec<Option<OwnedFd>>,
    outgoing: VecDeque<Outgoing>,
    /// All that wakes the session: its own descriptor, `changes`, and the request
    /// socket.
    watch: Epoll,
    /// Signalled when configuration space changed.
    changes: Arc<EventFd>,
    /// It changed before there was a way to say so.
    changed: bool,
    requests: Option<RequestSocket>,
    closing: bool,
    refusals: LogLimit,
    endpoint: Option<Arc<Endpoint>>,
    /// What the front end says, and what it is told.
    watchers: [Watcher; 2],
}

impl Talk {
    /// Before the first message. `wake` wakes the session.
    pub(crate) fn new(offer: Offer, changes: Arc<EventFd>, wake: &EventFd) -> io::Result<Self> {
        let core = Backend::new(offer).map_err(io::Error::other)?;
        Self::with(core, changes, wake)
    }

    /// Between two messages, as `core` has it.
    pub(crate) fn with(core: Backend, changes: Arc<EventFd>, wake: &EventFd) -> io::Result<Self> {
        let watch = Epoll::new()?;
        watch.add(wake, 0, Interest::READ)?;
        watch.add(&*changes, 0, Interest::READ)?;
        // What changed before nobody has read yet.
        changes.drain()?;
        Ok(Self {
            core,
            fds: Vec::new(),
            outgoing: VecDeque::new(),
            watch,
            changes,
            changed: false,
            requests: None,
            closing: false,
            refusals: LogLimit::default(),
            endpoint: None,
            watchers: Default::default(),
        })
    }

    /// What is agreed upon, and each message, can be seen there from now on.
    pub(crate) fn be_seen(&mut self, endpoint: Arc<Endpoint>) {
        self.endpoint = Some(endpoint);
    }

    /// For who looks at the endpoint: it costs each message a little, and requests nothing.
    /// `rings` are those that run.
    pub(crate) fn show(&self, rings: impl FnOnce(&dyn Fn(u16) -> bool) -> Vec<RingView>) {
        let Some(endpoint) = &self.endpoint else {
            return;
        };
        let known = self.core.rings();
        let enabled = |ring: u16| known.get(usize::from(ring)).is_some_and(|it| it.enabled);
        endpoint.show(View {
            features: self.core.features(),
            protocol_features: self.core.protocol_features(),
            regions: self.core.regions().to_vec(),
            rings: rings(&enabled),
        });
    }

    /// Takes bytes of the front end, with the descriptors that came with them.
    pub(crate) fn receive(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Result<(), SessionError> {
        let count = fds.len();
        if let Some(endpoint) = &self.endpoint {
            let pass = |text| endpoint.messages().pass(true, text);
            self.watchers[0].take(bytes, count, pass);
        }
        self.fds.extend(fds.into_iter().map(Some));
        self.core
            .receive(bytes, count)
            .or_else(|error| self.judge(error, None))
    }

    /// What is to be done next; `None` when a message is dealt with.
    pub(crate) fn poll_effect(&mut self) -> Option<Effect> {
        let effect = self.core.poll_effect();
        if effect.is_none() && !self.core.is_mid_message() {
            // What the message left unclaimed goes.
            self.dispose();
        }
        effect
    }

    /// Says how an effect went.
    pub(crate) fn answer(&mut self, done: Result<Answer, Reason>) -> Result<(), SessionError> {
        let (answer, reason) = match done {
            Ok(answer) => (Ok(answer), None),
            Err(reason) => (Err(reason.failure()), Some(reason)),
        };
        self.core
            .answer(answer)
            .or_else(|error| self.judge(error, reason))
    }

    /// A message that was refused ends the session, or the peer is told and the
    /// session goes on.
    fn judge(
        &mut self,
        error: linkspan_vhost::Error,
        reason: Option<Reason>,
    ) -> Result<(), SessionError> {
        let nack = error.disposition() == Disposition::Nack;
        let error = match reason {
            Some(reason) => SessionError::Refused { error, reason },
            None => SessionError::Protocol(error),
        };
        if self.closing {
            tracing::debug!("refused at the end: {error}");
        } else if !nack {
            return Err(error);
        } else {
            match self.refusals.allow() {
                Some(more) => tracing::warn!(more, "refused: {error}"),
                None => tracing::debug!("refused: {error}"),
            }
        }
        Ok(())
    }

    /// Sends a message.
    pub(crate) fn send(&mut self, bytes: Vec<u8>, fds: Vec<OwnedFd>) {
        self.outgoing.push_back(Outgoing { bytes, fds });
    }

    /// The next message to send.
    pub(crate) fn poll_send(&mut self) -> Option<Outgoing> {
        let message = self.outgoing.pop_front()?;
        if let Some(endpoint) = &self.endpoint {
            let pass = |text| endpoint.messages().pass(false, text);
            self.watchers[1].take(&message.bytes, message.fds.len(), pass);
        }
        Some(message)
    }

    /// A descriptor of the message.
    pub(crate) fn take_fd(&mut self, slot: FdSlot) -> Result<OwnedFd, Reason> {
        let fd = self.fds.get_mut(slot.0).and_then(Option::take);
        fd.ok_or(Reason::NoDescriptor)
    }

    /// All descriptors of the message that are left.
    pub(crate) fn take_fds(&mut self) -> Vec<OwnedFd> {
        self.fds.drain(..).flatten().collect()
    }

    /// A descriptor of the message that is to be an eventfd.
    pub(crate) fn take_event(
        &mut self,
        slot: Option<FdSlot>,
    ) -> Result<Option<PeerEventFd>, Reason> {
        let fd = slot.map(|slot| self.take_fd(slot)).transpose()?;
        Ok(fd.map(PeerEventFd::check).transpose()?)
    }

    /// Those of a message that was refused or cut short are unchecked.
    fn dispose(&mut self) {
        self.fds.drain(..).flatten().for_each(reaper::dispose);
    }

    /// From now on the front end is asked over this socket.
    pub(crate) fn set_request_socket(&mut self, fd: FdSlot) -> Result<(), Reason> {
        let fd = self.take_fd(fd)?;
        self.ask_over(fd).map_err(Reason::Socket)
    }

    /// The same with a descriptor that is no message's.
    pub(crate) fn ask_over(&mut self, fd: OwnedFd) -> io::Result<()> {
        let features = self.core.protocol_features();
        let socket = RequestSocket::open(fd, features, &self.watch)?;
        if let Some(before) = self.requests.replace(socket) {
            before.close(&self.watch);
        }
        self.announce();
        Ok(())
    }

    /// Takes in what woke the session.
    ///
    /// # Panics
    /// When a descriptor of ours fails.
    pub(crate) fn woken(&mut self, wake: &EventFd) {
        let drained = wake.drain().and_then(|_| self.changes.drain());
        match drained {
            Ok(changes) => self.changed |= changes > 0,
            Err(error) => panic!("our own eventfd cannot be read: {error}"),
        }
    }

    /// Whether nothing is half said, so that another process can go on from here.
    pub(crate) fn is_calm(&self) -> bool {
        let quiet = self.requests.as_ref().is_none_or(RequestSocket::is_quiet);
        quiet && self.outgoing.is_empty() && self.core.snapshot().is_ok()
    }

    /// The socket for requests to the front end, if there is one.
    pub(crate) fn request_socket(&self) -> Option<BorrowedFd<'_>> {
        self.requests.as_ref().map(AsFd::as_fd)
    }

    /// Configuration space changed in the life before this one, and nobody was told.
    pub(crate) fn set_changed(&mut self) {
        self.changed = true;
    }

    /// Whether configuration space changed and the front end was not told yet.
    pub(crate) fn has_changed(&self) -> bool {
        self.changed
    }

    /// What is signalled when configuration space changed.
    pub(crate) fn changes(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }

    /// Tells the front end of a change, if there was one and there is a way, and
    /// takes in what it answered.
    pub(crate) fn announce(&mut self) {
        let Some(requests) = &mut self.requests else {
            return;
        };
        if std::mem::take(&mut self.changed) {
            requests.config_changed();
        }
        if let Err(error) = requests.pump(&self.watch)
            && let Some(requests) = self.requests.take()
        {
            tracing::debug!("the socket for requests to the front end is given up: {error}");
            requests.close(&self.watch);
        }
    }

    /// Whether the session comes to its end.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    /// The front end is gone, or is to be.
    pub(crate) fn close(&mut self) {
        self.closing = true;
        self.dispose();
        if let Some(requests) = self.requests.take() {
            requests.close(&self.watch);
        }
    }
}

impl AsFd for Talk {
    /// Readable when the session is to be woken.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

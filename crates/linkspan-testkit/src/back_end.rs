//! A vhost-user back end for tests, which serves nothing. It knows the honest
//! answer to every message, and a test may give any other, or none.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::{Listener, Stream};
use linkspan_vhost::message::{self, FRONTEND_REQUESTS, Reply, Request};
use linkspan_vhost::wire::{
    self, ConfigHeader, HEADER_BYTES, Header, InflightDescription, VringState,
};
use linkspan_vhost::{ProtocolFeatures, VHOST_USER_F_PROTOCOL_FEATURES};
use linkspan_virtio::Features;
use zerocopy::{FromBytes, IntoBytes};

use crate::PATIENCE;

/// What a back end says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Says {
    /// Virtio features.
    pub features: u64,
    /// Protocol features.
    pub protocol: ProtocolFeatures,
    /// In reply to `VHOST_USER_GET_QUEUE_NUM`.
    pub queues: u64,
    /// In reply to `VHOST_USER_GET_MAX_MEM_SLOTS`.
    pub memory_slots: u64,
    /// Configuration space: what is behind it cannot be read.
    pub config: Vec<u8>,
    /// Bytes of the in-flight region.
    pub inflight: u64,
}

impl Default for Says {
    /// A disk of 2 MiB with 4 queues that a driver can use.
    fn default() -> Self {
        let mut config = vec![0; 96];
        config[..8].copy_from_slice(&4096u64.to_le_bytes());
        config[34..36].copy_from_slice(&4u16.to_le_bytes());
        Self {
            features: Features::SPLIT_QUEUE.bits() | VHOST_USER_F_PROTOCOL_FEATURES,
            protocol: ProtocolFeatures::MQ
                | ProtocolFeatures::REPLY_ACK
                | ProtocolFeatures::CONFIG
                | ProtocolFeatures::BACKEND_REQ
                | ProtocolFeatures::INFLIGHT_SHMFD
                | ProtocolFeatures::CONFIGURE_MEM_SLOTS,
            queues: 4,
            memory_slots: 32,
            config,
            inflight: 1 << 20,
        }
    }
}

/// Where front ends connect.
#[derive(Debug)]
pub struct BackEnd {
    listener: Listener,
}

/// A front end that has connected, or the other end of the socket on which it
/// takes requests.
#[derive(Debug)]
pub struct Caller {
    stream: Stream,
}

/// A message of the front end.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Which it is.
    pub request: Request,
    /// Its body.
    pub body: Vec<u8>,
    /// What came with it.
    pub fds: Vec<OwnedFd>,
}

/// A message of ours.
#[derive(Debug)]
pub struct Answer {
    /// All bytes.
    pub bytes: Vec<u8>,
    /// What goes with the first.
    pub fds: Vec<OwnedFd>,
}

impl BackEnd {
    /// Listens.
    ///
    /// # Panics
    /// When it cannot.
    #[track_caller]
    pub fn listen(path: &Path) -> Self {
        let listener = Listener::bind(path).expect("a socket");
        Self { listener }
    }

    /// Where.
    ///
    /// # Panics
    /// Never: it listens at a path.
    pub fn path(&self) -> PathBuf {
        self.listener.path().expect("a path").to_owned()
    }

    /// The next front end.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn accept(&self) -> Caller {
        let deadline = Some(Instant::now() + PATIENCE);
        loop {
            match self.listener.accept() {
                Ok(stream) => return Caller::over(stream),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("no front end can be accepted: {error}"),
            }
            let waited = wait_for(self.listener.as_fd(), Direction::Read, None, deadline);
            assert_eq!(waited.expect("a socket"), Wake::Ready, "no front end comes");
        }
    }
}

impl Message {
    /// The socket that comes with `VHOST_USER_SET_BACKEND_REQ_FD`.
    ///
    /// # Panics
    /// When none came.
    #[track_caller]
    pub fn request_socket(&mut self) -> Caller {
        assert_eq!(
            (self.request, self.fds.len()),
            (Request::SetBackendReqFd, 1)
        );
        let stream = Stream::check(self.fds.remove(0)).expect("a connected socket");
        Caller::over(stream)
    }
}

impl Caller {
    /// What speaks on this socket.
    pub fn over(stream: Stream) -> Self {
        Self { stream }
    }

    /// The next message; `None` when the front end closed the connection.
    ///
    /// # Panics
    /// When neither comes, or it is no message.
    #[track_caller]
    pub fn next(&self) -> Option<Message> {
        let mut fds = Vec::new();
        let head = self.receive_exactly(HEADER_BYTES, &mut fds)?;
        let header = Header::read_from_bytes(&head).expect("the sizes are equal");
        let row = message::find(&FRONTEND_REQUESTS, header.request);
        let row = row.unwrap_or_else(|| panic!("no message: {header:?}"));
        let size = usize::try_from(header.size).expect("it fits");
        let body = self.receive_exactly(size, &mut fds)?;
        let request = row.request;
        Some(Message {
            header,
            request,
            body,
            fds,
        })
    }

    /// Answers honestly until a message like this comes, which is returned
    /// unanswered; `None` when the front end closed the connection before.
    #[track_caller]
    pub fn until(&self, says: &Says, wanted: impl Fn(&Message) -> bool) -> Option<Message> {
        loop {
            let message = self.next()?;
            if wanted(&message) {
                return Some(message);
            }
            self.answer(says, &message);
        }
    }

    /// Answers honestly until the front end has closed the connection; what it
    /// asked for.
    #[track_caller]
    pub fn serve(&self, says: &Says) -> Vec<Request> {
        let mut asked = Vec::new();
        while let Some(message) = self.next() {
            asked.push(message.request);
            self.answer(says, &message);
        }
        asked
    }

    /// The honest answer, if there is one to be sent.
    pub fn answer(&self, says: &Says, message: &Message) {
        if let Some(answer) = honest(says, message) {
            self.say(&answer);
        }
    }

    /// Sends something; whether the front end still takes it.
    pub fn say(&self, answer: &Answer) -> bool {
        let fds: Vec<_> = answer.fds.iter().map(AsFd::as_fd).collect();
        self.say_raw(&answer.bytes, &fds)
    }

    /// Makes a request of the back end's own and waits for what the front end says
    /// to it; `None` when it closed the socket instead.
    ///
    /// # Panics
    /// When it does neither, or answers another request.
    #[track_caller]
    pub fn ask(&self, code: u32, body: &[u8]) -> Option<u64> {
        let bytes = wire::encode(code, Header::NEED_REPLY, body);
        if !self.say_raw(&bytes, &[]) {
            return None;
        }
        self.reply(code)
    }

    /// What the front end says to a request; `None` when it closed the socket.
    ///
    /// # Panics
    /// When it does neither, or answers another request.
    #[track_caller]
    pub fn reply(&self, code: u32) -> Option<u64> {
        let head = self.receive_exactly(HEADER_BYTES, &mut Vec::new())?;
        let header = Header::read_from_bytes(&head).expect("the sizes are equal");
        let flags = Header::VERSION | Header::REPLY;
        assert_eq!(
            (header.request, header.flags, header.size),
            (code, flags, 8)
        );
        let body = self.receive_exactly(8, &mut Vec::new())?;
        Some(u64::read_from_bytes(&body).expect("8 bytes"))
    }

    /// Sends bytes as they are, descriptors with the first of them.
    pub fn say_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let deadline = Instant::now() + PATIENCE;
        self.stream.send(bytes, fds, deadline).is_ok()
    }

    /// Sends bytes if there is room for them so soon. Fewer than a kilobyte go
    /// whole or not at all.
    pub fn say_within(&self, bytes: &[u8], limit: Duration) -> bool {
        self.stream.send(bytes, &[], Instant::now() + limit).is_ok()
    }

    /// Waits until the front end closes the connection, without an answer.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn expect_closed(&self) {
        while self.next().is_some() {}
    }

    #[track_caller]
    fn receive_exactly(&self, len: usize, fds: &mut Vec<OwnedFd>) -> Option<Vec<u8>> {
        let deadline = Some(Instant::now() + PATIENCE);
        let (mut bytes, mut done) = (vec![0; len], 0);
        while done < len {
            match self.stream.receive(&mut bytes[done..], fds, 8) {
                Ok(received) if received.bytes == 0 => return None,
                Ok(received) => done += received.bytes,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let waited = wait_for(self.stream.as_fd(), Direction::Read, None, deadline);
                    let ready = matches!(waited, Ok(Wake::Ready));
                    assert!(ready, "the front end neither speaks nor closes");
                }
                // It closed with an answer of ours unread.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("the socket failed: {error}"),
            }
        }
        Some(bytes)
    }
}

/// The honest answer to a message; `None` when there is none.
///
/// # Panics
/// When the message itself is wrong.
#[track_caller]
pub fn honest(says: &Says, message: &Message) -> Option<Answer> {
    let number = |value: u64| Some(value.as_bytes().to_vec());
    let mut fds = Vec::new();
    let body = match message.request {
        Request::GetFeatures => number(says.features),
        Request::GetProtocolFeatures => number(says.protocol.bits()),
        Request::GetQueueNum => number(says.queues),
        Request::GetMaxMemSlots => number(says.memory_slots),
        Request::GetConfig => Some(config(says, &message.body)),
        Request::GetVringBase => {
            let state = VringState::read_from_bytes(&message.body).expect("8 bytes");
            Some(VringState { num: 0, ..state }.as_bytes().to_vec())
        }
        Request::GetInflightFd => {
            let wish = InflightDescription::read_from_bytes(&message.body).expect("24 bytes");
            if says.inflight > 0 {
                let region = memfd::create("region", says.inflight, Sealing::Fixed);
                fds.push(region.expect("a memory file"));
            }
            let region = InflightDescription {
                mmap_size: says.inflight,
                ..wish
            };
            Some(region.as_bytes().to_vec())
        }
        request => {
            let asked = message.header.flags & Header::NEED_REPLY != 0;
            assert_eq!(request.message().reply, Reply::Ack, "{request:?}");
            asked.then(|| vec![0; 8])
        }
    };
    let bytes = wire::encode(message.header.request, Header::REPLY, &body?);
    Some(Answer { bytes, fds })
}

/// The part of configuration space that is asked for, or nothing.
fn config(says: &Says, body: &[u8]) -> Vec<u8> {
    let (header, _) = ConfigHeader::read_from_prefix(body).expect("12 bytes");
    let part = |offset: u32| usize::try_from(offset).expect("it fits");
    let (start, len) = (part(header.offset), part(header.size));
    match says.config.get(start..start + len) {
        Some(bytes) => [header.as_bytes(), bytes].concat(),
        None => Vec::new(),
    }
}

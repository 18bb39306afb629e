//! A connection to a server, for tests and viewers: one question at a time.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::{Stream, reaper};
use linkspan_vfio::client::{Answer, Ask, Client, ClientError, Heard, Question};
use linkspan_vfio::server::Agreed;
use linkspan_vfio::wire::{FDS_MAX, errno};
use linkspan_vfio::{Capabilities, VersionError};

/// How long a server may take for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Why a server cannot be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// Nobody is there, or the socket failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// It broke the protocol, or cannot be asked this.
    #[error(transparent)]
    Protocol(#[from] ClientError),
    /// It has closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// It does not answer.
    #[error("the server did not answer within {} seconds", ANSWER_LIMIT.as_secs())]
    Late,
    /// It does not do it.
    #[error("the server refuses with error {errno}")]
    Refused {
        /// Its reason.
        errno: u32,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> ConnectionError {
    move |source| ConnectionError::System { what, source }
}

/// What answers the server: the bytes that it reads, none if it writes, or an error of Linux.
type Memory = Box<dyn FnMut(&Question) -> Result<Vec<u8>, u32> + Send>;

/// A connection to a server. What the server asks is refused, unless somebody answers it
/// ([`answer_by`](Self::answer_by)).
pub struct Connection {
    stream: Stream,
    core: Client,
    agreed: Agreed,
    memory: Option<Memory>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("core", &self.core)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to the server that listens at `path`, and agrees with it.
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub fn open(path: &Path, wish: Capabilities) -> Result<Self, ConnectionError> {
        let stream = Stream::connect(path).map_err(system("cannot connect"))?;
        let (core, first) = Client::new(wish);
        let agreed = Agreed {
            version: (0, 0),
            capabilities: wish,
        };
        let mut connection = Self {
            stream,
            core,
            agreed,
            memory: None,
        };
        match connection.exchange(&first, &[])? {
            (Heard::Agreed(agreed), _) => connection.agreed = agreed,
            _ => return Err(ClientError::Version(VersionError::NoReply).into()),
        }
        Ok(connection)
    }

    /// What was agreed upon.
    #[must_use]
    pub fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// From now on what the server asks of memory that came without a descriptor is
    /// answered by this, while an answer of its own is waited for.
    pub fn answer_by(
        &mut self,
        memory: impl FnMut(&Question) -> Result<Vec<u8>, u32> + Send + 'static,
    ) {
        self.memory = Some(Box::new(memory));
    }

    /// Asks, and waits for the answer and its descriptors, which are **unchecked**.
    ///
    /// # Errors
    /// [`ConnectionError`]; after [`Refused`](ConnectionError::Refused) it may be asked on.
    pub fn ask(
        &mut self,
        ask: &Ask<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Answer, Vec<OwnedFd>), ConnectionError> {
        let (id, bytes) = self.core.ask(ask)?;
        match self.exchange(&bytes, fds)? {
            (
                Heard::Answer {
                    id: answered,
                    answer,
                },
                fds,
            ) if answered == id => match answer {
                Answer::Refused(errno) => Err(ConnectionError::Refused { errno }),
                answer => Ok((answer, fds)),
            },
            (_, fds) => {
                fds.into_iter().for_each(reaper::dispose);
                Err(ClientError::Over.into())
            }
        }
    }

    /// Sends a message and waits for what is not a question.
    fn exchange(
        &mut self,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Heard, Vec<OwnedFd>), ConnectionError> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        let sent = self.stream.send(bytes, fds, deadline);
        sent.map_err(system("cannot ask"))?;
        let mut kept = Vec::new();
        let heard = self.await_answer(deadline, &mut kept);
        if heard.is_err() {
            kept.drain(..).for_each(reaper::dispose);
        }
        Ok((heard?, kept))
    }

    fn await_answer(
        &mut self,
        deadline: Instant,
        kept: &mut Vec<OwnedFd>,
    ) -> Result<Heard, ConnectionError> {
        let mut buffer = [0; 4096];
        loop {
            // One that always has something to say is as late.
            if Instant::now() >= deadline {
                return Err(ConnectionError::Late);
            }
            let room = self.core.wanted().min(buffer.len());
            let mut fds = Vec::new();
            let received = match self.stream.receive(&mut buffer[..room], &mut fds, FDS_MAX) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let waited =
                        wait_for(self.stream.as_fd(), Direction::Read, None, Some(deadline));
                    match waited.map_err(system("cannot wait"))? {
                        Wake::Deadline => return Err(ConnectionError::Late),
                        _ => continue,
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(ConnectionError::Closed);
                }
                Err(error) => return Err(system("cannot hear")(error)),
            };
            let count = fds.len() + received.surplus;
            kept.append(&mut fds);
            if received.bytes == 0 {
                return Err(ConnectionError::Closed);
            }
            match self.core.receive(&buffer[..received.bytes], count)? {
                None => {}
                Some(Heard::Asked(question)) => {
                    let result = match &mut self.memory {
                        Some(memory) => memory(&question),
                        None => Err(errno::EOPNOTSUPP),
                    };
                    let result = result.as_deref().map_err(|errno| *errno);
                    let answer = self.core.answer(&question, result);
                    if let Some(answer) = answer {
                        let sent = self.stream.send(&answer, &[], deadline);
                        sent.map_err(system("cannot answer"))?;
                    }
                }
                Some(heard) => return Ok(heard),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use linkspan_vfio::message::Command;
    use linkspan_vfio::server::{Effect, Offer, Server};
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    /// A question of the server: 16 bytes of memory.
    fn question() -> Vec<u8> {
        let (id, command) = (7_u16, Command::DmaRead.code());
        let words = [32_u32, 0, 0, 0, 0, 16, 0];
        let mut bytes = [id.to_ne_bytes(), command.to_ne_bytes()].concat();
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        bytes
    }

    /// The server's answer to the first message.
    fn answer(first: &[u8]) -> Vec<u8> {
        let mut server = Server::new(Offer::default());
        let mut rest = first;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(server.wanted().min(rest.len()));
            server.receive(now, 0).unwrap();
            rest = later;
        }
        match server.poll_effect() {
            Some(Effect::Send { bytes, .. }) => bytes,
            other => panic!("{other:?}"),
        }
    }

    /// One that floods its client with questions would hold it for ever.
    #[test]
    fn questions_of_the_server_do_not_put_the_deadline_off() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let wish = Capabilities::default();
        let (core, first) = Client::new(wish);
        let mut connection = Connection {
            stream: Stream::check(ours.into()).unwrap(),
            core,
            agreed: Agreed {
                version: (0, 0),
                capabilities: wish,
            },
            memory: None,
        };
        let said = [question(), question(), answer(&first)].concat();
        theirs.write_all(&said).unwrap();
        let mut kept = Vec::new();
        let late = connection.await_answer(Instant::now(), &mut kept);
        assert!(matches!(late, Err(ConnectionError::Late)), "{late:?}");
        // With time left they are refused, and the answer behind them is heard.
        let deadline = Instant::now() + ANSWER_LIMIT;
        let heard = connection.await_answer(deadline, &mut kept);
        assert!(matches!(heard, Ok(Heard::Agreed(_))), "{heard:?}");
    }
}

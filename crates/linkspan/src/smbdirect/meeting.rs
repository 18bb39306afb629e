//! How `ping` and `bench` meet a peer: connecting, the hello, and who answers it.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use linkspan_backends::rdma::Host;
use linkspan_backends::smbdirect::{Endpoint, Gone, HELLO_LEN, Happening, Hello, Id, Peer};
use linkspan_mem::Region;
use linkspan_rdma::verbs::{Failure as Lost, MemoryId, Slice};
use linkspan_smbdirect::{Misuse, Status as Core};
use linkspan_sys::signals::{Signal, Signals};

use super::control::Question;
use super::parameters::Provider;
use super::status;
use crate::control::{Askers, Control};
use crate::exit::{Failure, Status};

/// What epoll calls signals, and somebody who asks.
const SIGNALS: u32 = 0;
const CONTROL: u32 = 1;

/// The addresses that `HOST[:PORT]` stands for, in the order in which they are tried.
///
/// # Errors
/// There are none.
pub(super) fn resolve(target: &str, provider: Provider) -> Result<Vec<SocketAddr>, Failure> {
    let bare = target
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let with_port = bare.is_none() && (target.contains("]:") || target.matches(':').count() == 1);
    let found = if with_port {
        target.to_socket_addrs()
    } else {
        (bare.unwrap_or(target), 0).to_socket_addrs()
    };
    let unreachable = |error| Failure::new(Status::PeerUnreachable, error);
    let found = found
        .map_err(|error| unreachable(anyhow!(error).context(format!("cannot find {target}"))))?;
    let with_ports = |mut address: SocketAddr| {
        let ports = provider.ports().iter();
        let other = ports.map(move |port| {
            address.set_port(*port);
            address
        });
        let as_it_is = with_port.then_some(address);
        let other = other.filter(move |_| !with_port);
        as_it_is.into_iter().chain(other)
    };
    let addresses: Vec<_> = found.flat_map(with_ports).collect();
    if addresses.is_empty() {
        return Err(unreachable(anyhow!("{target} has no address")));
    }
    Ok(addresses)
}

/// A peer that has negotiated, and said who it is.
pub(super) struct Met {
    pub(super) id: Id,
    pub(super) address: SocketAddr,
    /// From the first step of connecting until all was negotiated.
    pub(super) negotiation: Duration,
    /// Nothing if it does not answer.
    pub(super) peer: Option<Peer>,
    /// What was negotiated.
    pub(super) core: Core,
}

/// This end, and the wish to stop it.
pub(super) struct Initiator<C: Host> {
    pub(super) endpoint: Endpoint<C>,
    signals: Signals,
    control: Option<Control<Question>>,
    /// A hello lies at its begin.
    hello: MemoryId,
}

/// Why there is no connection.
struct Missed {
    failure: Failure,
    /// Nobody was asked: the port is not for the device.
    wrong_device: bool,
}

impl From<Failure> for Missed {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            wrong_device: false,
        }
    }
}

/// A connection that is over, as the program ends with it.
pub(super) fn failure(address: SocketAddr, gone: &Gone) -> Failure {
    let status = if gone.is_broken() {
        Status::PeerBroke
    } else {
        Status::PeerUnreachable
    };
    let error = anyhow!("{gone}").context(format!("{address}"));
    Failure::new(status, error)
}

/// What was asked for is under way, or the connection has ended, which is told next.
///
/// # Errors
/// It cannot be asked for.
pub(super) fn started<T>(asked: Result<T, Misuse>) -> Result<(), Failure> {
    match asked {
        Ok(_) | Err(Misuse::NotConnected { .. }) => Ok(()),
        Err(misuse) => Err(Failure::new(Status::Usage, misuse)),
    }
}

impl<C: Host> Initiator<C> {
    /// `control`: where `status` connects.
    pub(super) fn new(mut endpoint: Endpoint<C>, control: Option<&Path>) -> Result<Self, Failure> {
        let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
            .context("cannot watch for signals")?;
        endpoint.watch(&signals, SIGNALS).context("cannot wait")?;
        let control = control
            .map(|path| Control::new(path, Askers::All))
            .transpose()?;
        if let Some(control) = &control {
            let watched = endpoint.watch(control.event(), CONTROL);
            watched.context("cannot wait")?;
        }
        let hello = Region::heap(HELLO_LEN).context("memory")?;
        let hello = endpoint.add_memory(hello).context("memory")?;
        Ok(Self {
            endpoint,
            signals,
            control,
            hello,
        })
    }

    /// Whether somebody wants us to end; whoever asks how it is has an answer.
    pub(super) fn is_stopped(&mut self) -> bool {
        let mut stopped = false;
        while let Some(number) = self.endpoint.watched() {
            match number {
                CONTROL => self.answer(),
                _ => stopped |= self.signals.take().is_ok_and(|came| !came.is_empty()),
            }
        }
        stopped
    }

    fn answer(&mut self) {
        while let Some((question, answer)) = self.control.as_ref().and_then(Control::take) {
            if let Question::Log(classes) = question {
                self.endpoint.log(classes);
            }
            // Whoever asked may have left.
            let _ = answer.send(status::initiator_lines(&self.endpoint));
        }
    }

    /// Waits until something has happened, at most until `deadline`.
    ///
    /// # Errors
    /// Somebody wants us to end.
    pub(super) fn wait(&mut self, deadline: Option<Instant>) -> Result<(), Failure> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        self.endpoint.wait(left).context("cannot wait")?;
        if self.is_stopped() {
            return Err(anyhow!("stopped").into());
        }
        Ok(())
    }

    /// The next message that is whole.
    pub(super) fn take(&mut self, id: Id) -> Option<Vec<u8>> {
        self.endpoint.session(id)?.take()
    }

    /// The length of the next message that is whole, which is dropped.
    pub(super) fn skip(&mut self, id: Id) -> Option<u32> {
        self.endpoint.session(id)?.skip()
    }

    /// Sends a hello; it is the first message.
    pub(super) fn greet(&mut self, id: Id, hello: Hello) -> Result<(), Failure> {
        self.endpoint.fill(self.hello, 0, &hello.to_bytes());
        let len = u32::try_from(HELLO_LEN).unwrap_or(0);
        let slice = Slice {
            memory: self.hello,
            len,
            offset: 0,
        };
        let mut session = self
            .endpoint
            .session(id)
            .context("the connection is gone")?;
        started(session.send(&[slice]))
    }

    /// Connects to the first of `addresses` that answers and asks who it is. Of a peer that
    /// does not say so within `patience` that is not known.
    ///
    /// # Errors
    /// Unreachable, or it breaks the protocol; the last address says how.
    pub(super) fn meet(
        &mut self,
        addresses: &[SocketAddr],
        hello: Hello,
        patience: Duration,
    ) -> Result<Met, Failure> {
        let mut last = None;
        for &address in addresses {
            let begin = Instant::now();
            let met = match self.connect(address) {
                Ok(id) => self.connected(id, address),
                Err(failure) => Err(failure.into()),
            };
            match met {
                Ok((id, core)) => {
                    let negotiation = begin.elapsed();
                    let peer = self.introduced(id, address, hello, patience)?;
                    return Ok(Met {
                        id,
                        address,
                        negotiation,
                        peer,
                        core,
                    });
                }
                // What another port came to says more.
                Err(missed) if missed.wrong_device => {
                    last.get_or_insert(missed.failure);
                }
                Err(missed) => last = Some(missed.failure),
            }
        }
        Err(last.unwrap_or_else(|| anyhow!("no address").into()))
    }

    /// Begins to connect.
    pub(super) fn connect(&mut self, address: SocketAddr) -> Result<Id, Failure> {
        self.endpoint.connect(address).map_err(|error| {
            let error = anyhow!(error).context(format!("{address}"));
            Failure::new(Status::PeerUnreachable, error)
        })
    }

    fn connected(&mut self, id: Id, address: SocketAddr) -> Result<(Id, Core), Missed> {
        loop {
            self.wait(None)?;
            while let Some((_, happening)) = self.endpoint.poll() {
                match happening {
                    Happening::Connected => {
                        let session = self.endpoint.session(id);
                        let session = session.context("the connection is gone");
                        return Ok((id, session.map_err(Failure::from)?.status()));
                    }
                    Happening::Ended(gone) => {
                        return Err(Missed {
                            failure: failure(address, &gone),
                            wrong_device: matches!(gone.failure, Lost::WrongDevice { .. }),
                        });
                    }
                    _ => {}
                }
            }
        }
    }

    fn introduced(
        &mut self,
        id: Id,
        address: SocketAddr,
        hello: Hello,
        patience: Duration,
    ) -> Result<Option<Peer>, Failure> {
        self.greet(id, hello)?;
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            self.wait(Some(deadline))?;
            while let Some((_, happening)) = self.endpoint.poll() {
                match happening {
                    Happening::Received => {
                        if let Some(answer) = self.take(id) {
                            return Ok(Some(Peer::of(hello, &answer)));
                        }
                    }
                    Happening::Ended(gone) => return Err(failure(address, &gone)),
                    _ => {}
                }
            }
        }
        Ok(None)
    }

    /// Ends all connections in order.
    pub(super) fn end(&mut self) {
        // What goes wrong here is of no interest any more.
        let _ = self.endpoint.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_ports_or_the_port() {
        for (text, address) in [
            ("127.0.0.1", "127.0.0.1:5445"),
            ("127.0.0.1:7", "127.0.0.1:7"),
            ("::1", "[::1]:5445"),
            ("[::1]", "[::1]:5445"),
            ("[::1]:7", "[::1]:7"),
        ] {
            let found = resolve(text, Provider::Tcp).unwrap();
            assert_eq!(found, [address.parse().unwrap()], "{text}");
        }
        // Over devices the port says which kind of them is meant.
        let both = resolve("::1", Provider::Verbs).unwrap();
        assert_eq!(
            both.iter().map(SocketAddr::port).collect::<Vec<_>>(),
            [5445, 445]
        );
        assert_eq!(resolve("[::1]:7", Provider::Verbs).unwrap().len(), 1);
        for text in ["", "127.0.0.1:port", "127.0.0.1:99999"] {
            assert_eq!(
                resolve(text, Provider::Tcp).unwrap_err().status,
                Status::PeerUnreachable,
                "{text}"
            );
        }
    }
}

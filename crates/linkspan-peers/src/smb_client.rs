//! Crate `smb`, a client that others wrote: over TCP, or over a connection of our SMB Direct,
//! which it takes as a transport of its own kind.
//!
//! It sends no RDMA channel information, so that all data goes in messages.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use linkspan_backends::smbdirect::{Config, Endpoint, Happening, Id, PORT_IWARP};
use linkspan_mem::Region;
use linkspan_rdma::verbs::Slice;
use linkspan_smbdirect::{Options, Role};
use linkspan_sys::EventFd;
use linkspan_testkit::PATIENCE;
use smb::transport::{
    IoVec, SmbTransport, SmbTransportRead, SmbTransportWrite, TcpTransport, TransportError,
};
use smb::{
    Connection, ConnectionConfig, CreateDisposition, FileAccessMask, FileDirectoryInformation,
    FileDispositionInformation, Guid, ReadAt as _, Session, Tree, UncPath, WriteAt as _,
};
use sspi::{AuthIdentity, Secret, Username};

/// Bytes of one READ or WRITE: with its header within a message of SMB Direct, which has at
/// least 128 KiB (MS-SMBD 3.1.1.1).
const PIECE: usize = 64 << 10;

/// The longest message that the crate may send.
const MESSAGE: u32 = 128 << 10;

/// What carries the crate's messages.
#[derive(Clone, Copy, Debug)]
pub enum Carrier {
    /// Its own TCP.
    Tcp,
    /// Our SMB Direct.
    SmbDirect,
}

/// A share that the crate is logged on to.
pub struct SmbClient {
    tree: Tree,
    session: Session,
    connection: Connection,
    endpoint: Option<JoinHandle<()>>,
}

impl SmbClient {
    /// Connects, logs on, and opens a share.
    ///
    /// # Errors
    /// What the crate says.
    ///
    /// # Panics
    /// There is no connection of SMB Direct.
    pub fn open(
        carrier: Carrier,
        address: SocketAddr,
        (user, password): (&str, &str),
        share: &str,
    ) -> smb::Result<Self> {
        let (transport, endpoint): (Box<dyn SmbTransport>, _) = match carrier {
            Carrier::Tcp => {
                let mut tcp = TcpTransport::new(PATIENCE);
                SmbTransport::connect(&mut tcp, "server", address)?;
                (Box::new(tcp), None)
            }
            Carrier::SmbDirect => {
                let (direct, endpoint) = SmbDirect::connect(address);
                (Box::new(direct), Some(endpoint))
            }
        };
        let config = ConnectionConfig {
            timeout: Some(PATIENCE),
            // SMB 1 is never spoken over SMB Direct.
            smb2_only_negotiate: true,
            ..ConnectionConfig::default()
        };
        let server = address.ip().to_string();
        let connection = Connection::from_transport(transport, &server, Guid::generate(), config)?;
        let session = connection.authenticate(AuthIdentity {
            username: Username::parse(user).expect("a name"),
            password: Secret::from(password.to_owned()),
        })?;
        let tree = session.tree_connect(&UncPath::new(&server)?.with_share(share)?)?;
        Ok(Self {
            tree,
            session,
            connection,
            endpoint,
        })
    }

    /// The names in the folder of the share, without `.` and `..`.
    ///
    /// # Errors
    /// What the crate says.
    pub fn names(&self) -> smb::Result<Vec<String>> {
        let access = FileAccessMask::new().with_generic_read(true);
        let folder = self.tree.open_existing("", access)?.unwrap_dir();
        let entries: smb::Result<Vec<_>> = folder.query::<FileDirectoryInformation>("*")?.collect();
        let names = entries?
            .into_iter()
            .map(|entry| entry.file_name.to_string());
        let mut names: Vec<String> = names.filter(|name| name != "." && name != "..").collect();
        names.sort_unstable();
        folder.close()?;
        Ok(names)
    }

    /// Makes a file of these bytes, and flushes it.
    ///
    /// # Errors
    /// What the crate says.
    pub fn write(&self, name: &str, bytes: &[u8]) -> smb::Result<()> {
        let access = FileAccessMask::new()
            .with_generic_read(true)
            .with_generic_write(true);
        let disposition = CreateDisposition::OverwriteIf;
        let file = self
            .tree
            .create_file(name, disposition, access)?
            .unwrap_file();
        for (piece, at) in bytes.chunks(PIECE).zip((0..).step_by(PIECE)) {
            let mut done = 0;
            while done < piece.len() {
                done += file.write_at(&piece[done..], at + done as u64)?;
            }
        }
        file.flush()?;
        file.close()
    }

    /// All bytes of a file.
    ///
    /// # Errors
    /// What the crate says.
    pub fn read(&self, name: &str) -> smb::Result<Vec<u8>> {
        let access = FileAccessMask::new().with_generic_read(true);
        let file = self.tree.open_existing(name, access)?.unwrap_file();
        let mut bytes = Vec::new();
        loop {
            let mut piece = vec![0; PIECE];
            let len = file.read_at(&mut piece, bytes.len() as u64)?;
            if len == 0 {
                break;
            }
            bytes.extend_from_slice(&piece[..len]);
        }
        file.close()?;
        Ok(bytes)
    }

    /// Removes a file.
    ///
    /// # Errors
    /// What the crate says.
    pub fn remove(&self, name: &str) -> smb::Result<()> {
        let access = FileAccessMask::new().with_delete(true);
        let file = self.tree.open_existing(name, access)?.unwrap_file();
        file.set_info(FileDispositionInformation::default())?;
        file.close()
    }

    /// Logs off, and ends the connection.
    ///
    /// # Errors
    /// What the crate says.
    ///
    /// # Panics
    /// The endpoint of SMB Direct had an error.
    pub fn close(self) -> smb::Result<()> {
        self.tree.disconnect()?;
        self.session.logoff()?;
        self.connection.close()?;
        // Its transport goes with it, and the endpoint with that.
        drop((self.tree, self.session, self.connection));
        if let Some(endpoint) = self.endpoint {
            endpoint.join().expect("the endpoint ends in order");
        }
        Ok(())
    }
}

/// A connection of SMB Direct as the crate wants its transports: what was sent waits for a
/// thread with the endpoint, which hands over what was received.
struct SmbDirect {
    peer: SocketAddr,
    received: Option<Receiver<Vec<u8>>>,
    sender: Option<Out>,
    patience: std::sync::Mutex<Duration>,
}

/// The way to the thread: it ends when this is gone.
struct Out {
    messages: Option<Sender<Vec<u8>>>,
    wake: Arc<EventFd>,
}

impl Drop for Out {
    fn drop(&mut self) {
        // In this order: whoever is woken sees that nobody sends any more.
        self.messages = None;
        let _ = self.wake.signal();
    }
}

impl SmbDirect {
    fn connect(peer: SocketAddr) -> (Self, JoinHandle<()>) {
        let config = Config::new(Role::Initiator, Options::of(Role::Initiator));
        let mut endpoint = Endpoint::new(config).expect("an endpoint");
        let id = endpoint.connect(peer).expect("a connection");
        let mut connected = false;
        while !connected {
            // The protocol has its own time limits.
            endpoint.wait(None).expect("a wait");
            while let Some((_, happening)) = endpoint.poll() {
                assert!(matches!(happening, Happening::Connected), "{happening:?}");
                connected = true;
            }
        }
        let wake = Arc::new(EventFd::new().expect("an eventfd"));
        endpoint.watch(&*wake, 0).expect("a watch");
        let (messages, to_send) = mpsc::channel();
        let (receiver, received) = mpsc::channel();
        let thread = thread::spawn({
            let wake = Arc::clone(&wake);
            move || carry(&mut endpoint, id, &to_send, &receiver, &wake)
        });
        let direct = Self {
            peer,
            received: Some(received),
            sender: Some(Out {
                messages: Some(messages),
                wake,
            }),
            patience: PATIENCE.into(),
        };
        (direct, thread)
    }
}

/// Moves messages until the connection is over, or nobody sends any more.
fn carry(
    endpoint: &mut Endpoint,
    id: Id,
    to_send: &Receiver<Vec<u8>>,
    received: &Sender<Vec<u8>>,
    wake: &EventFd,
) {
    let region = Region::heap(MESSAGE as usize).expect("memory");
    let memory = endpoint.add_memory(region).expect("memory");
    let mut waiting = VecDeque::new();
    let mut sending = false;
    loop {
        endpoint.wait(None).expect("a wait");
        while let Some((_, happening)) = endpoint.poll() {
            match happening {
                Happening::Received => {
                    // One word for several, or for one that was taken already.
                    let mut take = || endpoint.session(id)?.take();
                    while let Some(message) = take() {
                        // Nobody reads what comes after the crate has ended its connection.
                        let _ = received.send(message);
                    }
                }
                Happening::Sent(_, result) => {
                    result.expect("a message is sent");
                    sending = false;
                }
                Happening::Ended(_) => return,
                other => panic!("{other:?}"),
            }
        }
        if endpoint.watched().is_some() {
            wake.drain().expect("a counter");
        }
        loop {
            match to_send.try_recv() {
                Ok(message) => waiting.push_back(message),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    endpoint.stop().expect("an end in order");
                    return;
                }
            }
        }
        // One at a time, in one place.
        if !sending && let Some(message) = waiting.pop_front() {
            let slice = Slice {
                memory,
                len: u32::try_from(message.len()).expect("a message"),
                offset: 0,
            };
            endpoint.fill(memory, 0, &message);
            let mut session = endpoint.session(id).expect("a connection");
            session.send(&[slice]).expect("room for one message");
            sending = true;
        }
    }
}

type Result<T> = std::result::Result<T, TransportError>;

impl SmbTransport for SmbDirect {
    fn connect(&mut self, _: &str, _: SocketAddr) -> Result<()> {
        Err(TransportError::AlreadyConnected)
    }

    fn default_port(&self) -> u16 {
        PORT_IWARP
    }

    fn split(
        mut self: Box<Self>,
    ) -> Result<(Box<dyn SmbTransportRead>, Box<dyn SmbTransportWrite>)> {
        let writer = Self {
            peer: self.peer,
            received: None,
            sender: self.sender.take(),
            patience: PATIENCE.into(),
        };
        Ok((self, Box::new(writer)))
    }

    fn remote_address(&self) -> Result<SocketAddr> {
        Ok(self.peer)
    }
}

impl SmbTransportWrite for SmbDirect {
    /// A message goes whole, without the length that TCP has before it.
    fn send(&mut self, data: &IoVec) -> Result<()> {
        let message: Vec<u8> = data
            .iter()
            .flat_map(|piece| piece.iter().copied())
            .collect();
        let out = self.sender.as_ref().ok_or(TransportError::NotConnected)?;
        let messages = out.messages.as_ref().ok_or(TransportError::NotConnected)?;
        messages
            .send(message)
            .map_err(|_| TransportError::NotConnected)?;
        Ok(out.wake.signal()?)
    }

    fn send_raw(&mut self, _: &[u8]) -> Result<()> {
        Err(TransportError::InvalidMessage)
    }
}

impl SmbTransportRead for SmbDirect {
    fn receive(&mut self) -> Result<Vec<u8>> {
        let patience = *self.patience.lock().expect("nobody panics with it");
        let received = self.received.as_ref().ok_or(TransportError::NotConnected)?;
        received
            .recv_timeout(patience)
            .map_err(|error| match error {
                // As a socket with a time limit says it.
                RecvTimeoutError::Timeout => {
                    std::io::Error::from(std::io::ErrorKind::WouldBlock).into()
                }
                RecvTimeoutError::Disconnected => TransportError::NotConnected,
            })
    }

    fn receive_exact(&mut self, _: &mut [u8]) -> Result<()> {
        Err(TransportError::InvalidMessage)
    }

    fn set_read_timeout(&self, timeout: Duration) -> Result<()> {
        *self.patience.lock().expect("nobody panics with it") = timeout;
        Ok(())
    }
}

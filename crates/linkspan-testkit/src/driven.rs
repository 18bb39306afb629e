//! A disk that this process drives over a link, whatever back end there is.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use linkspan_backends::disk::{DiskQueue, DiskQueueLayout, link_options, vdpa_options};
use linkspan_devices::block::Status;
use linkspan_devices::block::driver::Command;
use linkspan_engine::vdpa::{self, Opener, VdpaError};
use linkspan_engine::vhost_user::{Connection, Link, LinkError, Reach};
use linkspan_engine::{DriverMemory, Phase, QueueHandle, queue_link};
use linkspan_sys::EventFd;
use linkspan_virtio::Features;

use crate::PATIENCE;
use crate::census::settled;
use crate::disk::SECTOR;

const LAYOUT: DiskQueueLayout = DiskQueueLayout {
    depth: 8,
    buffer_bytes: 1 << 16,
};

/// Queues of a disk, and the link that keeps them on a back end.
#[derive(Debug)]
pub struct Driven {
    /// The queues.
    pub queues: Vec<DiskQueue>,
    /// The link; the queues end with it.
    pub link: Link,
}

/// Connects and negotiates.
///
/// # Errors
/// When the back end does not do, or no descriptor can be had.
pub fn connect(path: &Path, queues: u16, limit: Duration) -> Result<Connection, LinkError> {
    let reach = Reach::Connect(path.to_owned());
    let options = link_options(reach, limit, queues, Features::SPLIT_QUEUE);
    let cancel = EventFd::new().map_err(ours)?;
    Connection::open(options, Arc::new(cancel))
}

fn ours(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> LinkError {
    LinkError::System {
        what: "the test's own part",
        source: io::Error::other(source),
    }
}

impl Driven {
    /// Queues on a back end that appears and answers in time.
    ///
    /// # Errors
    /// When it does not do.
    pub fn new(path: &Path, queues: u16) -> Result<Self, LinkError> {
        Self::start(connect(path, queues, PATIENCE)?, queues)
    }

    /// Starts as many queues as the connection was made for.
    ///
    /// # Errors
    /// When the back end refuses, or anything of ours cannot be had.
    pub fn start(connection: Connection, queues: u16) -> Result<Self, LinkError> {
        let features = Features::from_bits_retain(connection.negotiated().features);
        let (driven, memory, handles) = set_up(queues, features).map_err(ours)?;
        let link = connection.start(memory, handles)?;
        Ok(Self {
            queues: driven,
            link,
        })
    }

    /// Queues on a vDPA device.
    ///
    /// # Errors
    /// When it does not do.
    pub fn vdpa(open: Opener, queues: u16) -> Result<Self, VdpaError> {
        let ours = |source: Box<dyn std::error::Error + Send + Sync>| VdpaError::System {
            what: "the test's own part",
            source: io::Error::other(source),
        };
        let options = vdpa_options(open, queues, Features::SPLIT_QUEUE);
        let cancel = EventFd::new().map_err(|error| ours(error.into()))?;
        let connection = vdpa::Connection::open(options, Arc::new(cancel))?;
        let features = Features::from_bits_retain(connection.negotiated().features);
        let (driven, memory, handles) = set_up(queues, features).map_err(ours)?;
        let link = connection.start(memory, handles)?;
        Ok(Self {
            queues: driven,
            link,
        })
    }

    /// Waits until the link is like this.
    ///
    /// # Panics
    /// When it does not come to be.
    #[track_caller]
    pub fn expect_phase(&self, phase: Phase) {
        let endpoint = self.link.endpoint();
        let there = settled(|| endpoint.phase() == phase);
        assert!(there, "{} instead of {phase}", endpoint.phase());
    }
}

type SetUp = (Vec<DiskQueue>, Arc<DriverMemory>, Vec<QueueHandle>);

/// So many queues, and what a link needs to start them.
fn set_up(
    queues: u16,
    features: Features,
) -> Result<SetUp, Box<dyn std::error::Error + Send + Sync>> {
    let rest = u64::from(queues) * LAYOUT.bytes();
    let memory = Arc::new(DriverMemory::new(queues, 32, rest)?);
    let (mut driven, mut handles) = (Vec::new(), Vec::new());
    for index in 0..queues {
        let (link, handle) = queue_link()?;
        let memory = Arc::clone(&memory);
        driven.push(DiskQueue::new(memory, index, LAYOUT, features, link)?);
        handles.push(handle);
    }
    Ok((driven, memory, handles))
}

/// Asks for sector `number`, with the number as token.
///
/// # Panics
/// When the queue is full or over.
#[track_caller]
pub fn ask(queue: &mut DiskQueue, number: u64) {
    let slot = number % u64::from(LAYOUT.depth);
    let len = u32::try_from(SECTOR).expect("512");
    let buffer = queue.buffer(slot * SECTOR as u64, len);
    let (data, _) = buffer.expect("a buffer for each request");
    let command = Command::Read {
        sector: number,
        data,
    };
    let room = queue.submit(command, number).expect("a queue");
    assert!(room, "there is room for it");
    queue.kick().expect("a queue");
}

/// The next answer: the number of the sector, and what is in it.
///
/// # Panics
/// When the request failed or the queue is over.
#[track_caller]
pub fn answered(queue: &mut DiskQueue) -> (u64, Vec<u8>) {
    let answer = loop {
        match queue.answer().expect("a queue") {
            Some(answer) => break answer,
            None => queue.wait(None).map(drop).expect("a queue"),
        }
    };
    assert_eq!(answer.status, Status::Ok, "sector {}", answer.token);
    let slot = answer.token % u64::from(LAYOUT.depth);
    let len = u32::try_from(SECTOR).expect("512");
    let (_, span) = queue.buffer(slot * SECTOR as u64, len).expect("as before");
    let mut bytes = vec![0; SECTOR];
    queue.memory().memory().table().slice(span).read(&mut bytes);
    (answer.token, bytes)
}

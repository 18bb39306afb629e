//! The control queue of a network device from its driver's side (virtio 1.3
//! 5.1.6.5): what is wanted of the device, said again to each that takes the place
//! of a lost one.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_devices::net::control::{COMMAND_BYTES_MAX, Code, Command, accepted};
use linkspan_devices::net::features::{
    VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MQ,
};
use linkspan_devices::net::{CONFIG_LEN, Mac, NetInfo, ReceiveModes};
use linkspan_engine::vhost_user::Link;
use linkspan_engine::{DriverMemory, QueueLink};
use linkspan_mem::{Gpa, Span, Window};
use linkspan_sys::Epoll;
use linkspan_sys::poll::{Direction, Interest, Ready, Wake, wait_for};
use linkspan_virtio::{Buffer, DriverQueue, Features};

use super::{NicError, show};

/// Features that a driver with a control queue has.
pub(super) const FEATURES: Features = VIRTIO_NET_F_CTRL_VQ
    .union(VIRTIO_NET_F_CTRL_RX)
    .union(VIRTIO_NET_F_CTRL_MAC_ADDR)
    .union(VIRTIO_NET_F_GUEST_ANNOUNCE);

/// How long a device may take for a command.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// Bytes of memory that commands and answers lie in.
pub(super) const AREA: u32 = 1024 + 64;
const _: () = assert!(COMMAND_BYTES_MAX < AREA as usize);

/// The ring of the control queue of a device with these features and configuration
/// space, if it has one: it is behind all pairs (virtio 1.3 5.1.2). A device that
/// does not say how many there are has none that can be found.
pub fn control_ring(features: Features, config: &[u8]) -> Option<u16> {
    if !features.contains(VIRTIO_NET_F_CTRL_VQ) || config.len() < CONFIG_LEN {
        return None;
    }
    NetInfo::from_config(config, features).pairs.checked_mul(2)
}

/// What a driver wants of its device beside frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Queue pairs in use, where there are several.
    pub pairs: u16,
    /// The address that the device is to have.
    pub mac: Option<Mac>,
    /// Whether frames for others are received as well.
    pub promiscuous: Option<bool>,
}

impl Wanted {
    /// The commands that say so to a device with these features.
    fn commands(self, features: Features) -> impl Iterator<Item = Command<'static>> {
        let pairs = features.contains(VIRTIO_NET_F_MQ);
        let pairs = pairs.then_some(Command::Pairs(self.pairs));
        let mac = self.mac.map(Command::MacAddress);
        let promiscuous = self.promiscuous.map(|on| Command::Receive {
            mode: ReceiveModes::PROMISC,
            on,
        });
        [pairs, mac, promiscuous].into_iter().flatten()
    }
}

/// A control queue, driven.
#[derive(Debug)]
pub struct NicControl {
    queue: DriverQueue<Window>,
    memory: Arc<DriverMemory>,
    link: QueueLink,
    features: Features,
    ring: u16,
    place: (Gpa, Span),
    wanted: Wanted,
}

impl NicControl {
    pub(super) fn new(
        memory: Arc<DriverMemory>,
        link: QueueLink,
        features: Features,
        (ring, place): (u16, (Gpa, Span)),
    ) -> Result<Self, NicError> {
        Ok(Self {
            queue: memory.new_queue(ring, features)?,
            memory,
            link,
            features,
            ring,
            place,
            wanted: Wanted::default(),
        })
    }

    /// Has the device do what is wanted, and each that takes its place while
    /// [`keep`](Self::keep) runs.
    ///
    /// # Errors
    /// When the device refuses, or does not answer.
    pub fn want(&mut self, wanted: Wanted) -> Result<(), NicError> {
        self.wanted = wanted;
        'device: loop {
            for command in wanted.commands(self.features) {
                match self.ask(&command)? {
                    Some(true) => {}
                    Some(false) => {
                        let code = command.code();
                        return Err(NicError::Refused { code });
                    }
                    // Another one, which knows of nothing.
                    None => continue 'device,
                }
            }
            return Ok(());
        }
    }

    /// Says what is wanted to each device that comes, and says that an announcement
    /// was made when it is asked for one, after `announce` made it. Until `stop` is
    /// readable or the link ends.
    ///
    /// # Errors
    /// When a device does not answer, or the link has ended.
    pub fn keep(
        &mut self,
        link: &Link,
        stop: BorrowedFd<'_>,
        mut announce: impl FnMut(),
    ) -> Result<(), NicError> {
        const STOP: u64 = 0;
        let epoll = Epoll::new()?;
        epoll.add(stop, STOP, Interest::READ)?;
        epoll.add(self.link.events.call.as_fd(), 1, Interest::READ)?;
        epoll.add(link.config_changed(), 2, Interest::READ)?;
        let mut ready = Ready::with_capacity(3);
        loop {
            self.link.events.call.drain()?;
            if self.hear()? {
                match self.want(self.wanted) {
                    Err(NicError::Refused { code }) => tracing::warn!(
                        "the new device refuses class {} command {}",
                        code.class,
                        code.command
                    ),
                    done => done?,
                }
            }
            let info = NetInfo::from_config(&link.config(), self.features);
            if info.announce && self.features.contains(VIRTIO_NET_F_GUEST_ANNOUNCE) {
                announce();
                // One that is new by now asks again.
                self.ask(&Command::AnnounceAck)?;
            }
            if self.link.has_news() {
                continue;
            }
            epoll.wait(&mut ready, None)?;
            if ready.iter().any(|event| event.token == STOP) {
                return Ok(());
            }
        }
    }

    /// Whether the device did what was asked; `None` when it is lost and another one
    /// is there.
    fn ask(&mut self, command: &Command<'_>) -> Result<Option<bool>, NicError> {
        let bytes = command.to_bytes();
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let answer_at = AREA - 1;
        let (address, span) = self.place;
        let memory = Arc::clone(self.memory.memory());
        let table = memory.table();
        table.slice(span.part(0, len)).write(&bytes);
        table.slice(span.part(answer_at, 1)).write(&[u8::MAX]);
        let readable = Buffer { address, len };
        let writable = Buffer {
            address: Gpa(address.0 + u64::from(answer_at)),
            len: 1,
        };
        self.queue.add(&[readable], &[writable], None)?;
        show(&mut self.queue, &self.link)?;
        let deadline = Instant::now() + COMMAND_LIMIT;
        loop {
            if self.hear()? {
                return Ok(None);
            }
            self.queue.refresh()?;
            if self.queue.pop()?.is_some() {
                let mut answer = [u8::MAX];
                table.slice(span.part(answer_at, 1)).read(&mut answer);
                return Ok(Some(accepted(answer[0])));
            }
            let call = &self.link.events.call;
            call.drain()?;
            let waits = self.queue.arm()? || self.link.has_news();
            if !waits {
                let woken = wait_for(call.as_fd(), Direction::Read, None, Some(deadline))?;
                if woken == Wake::Deadline {
                    let code = command.code();
                    return Err(NicError::Unanswered { code });
                }
            }
            self.queue.disarm()?;
        }
    }

    /// Waits for another device if this one is lost; whether there is a new one.
    fn hear(&mut self) -> Result<bool, NicError> {
        if !self.link.has_news() || self.link.take_news()?.is_none() {
            return Ok(false);
        }
        // Nothing is written down about what is in flight: the ring begins anew.
        self.queue = self.memory.new_queue(self.ring, self.features)?;
        self.link.kick()?;
        Ok(true)
    }
}

/// Class and command, for messages.
pub(super) fn name(code: &Code) -> String {
    format!("class {} command {}", code.class, code.command)
}

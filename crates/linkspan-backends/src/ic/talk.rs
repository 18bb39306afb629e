//! A host's conversation with one guest about one service, on one channel.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use linkspan_engine::Messages;
use linkspan_engine::vmbus::{Channel, ChannelError, FlushError};
use linkspan_vmbus::ic::heartbeat::{self, Health, Monitor};
use linkspan_vmbus::ic::shutdown::{self, Requester};
use linkspan_vmbus::ic::timesync::{self, Clock, Purpose, Sample};
use linkspan_vmbus::ic::{HEARTBEAT, HostError, SHUTDOWN, Service, Status, TIME_SYNC, Version};
use linkspan_vmbus::packet::{Contents, Header};
use linkspan_vmbus::{Outgoing, Packet, RingError, SendError};
use rustix::time::{ClockId, clock_gettime};

use crate::fcopy::pass;

/// Messages of a guest at a time before others have their turn.
const MESSAGES_MAX: usize = 64;

/// How a host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostOptions {
    /// What is offered.
    pub services: Vec<&'static Service>,
    /// Between two beats, and between two times.
    pub interval: Duration,
    /// How long a guest may leave a negotiation or a wish without answer.
    pub patience: Duration,
    /// What each guest is asked, once.
    pub wish: Option<shutdown::Request>,
    /// Whether the first time is to be set, not only compared with.
    pub set_time: bool,
}

/// What happens at a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// A guest has the channel of a service.
    Joined,
    /// Both ends agree upon a version.
    Ready {
        /// Of the service.
        version: Version,
    },
    /// The guest lives: its first beat, one after others were missed, or a change.
    Alive {
        /// What it says of its applications.
        health: Health,
    },
    /// Beats in a row were not answered.
    Missed {
        /// How many.
        count: u32,
    },
    /// A beat was answered with nonsense.
    Strange,
    /// The guest answered a wish, or the first time.
    Answered {
        /// With this.
        status: Status,
    },
    /// The guest is gone.
    Left {
        /// Why.
        reason: String,
        /// How.
        parting: Parting,
    },
}

/// How a guest left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// By itself.
    Went,
    /// It did not answer, and was given up.
    Silent,
    /// It broke the protocol, and was given up.
    Broke,
}

/// Why a guest is not served any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum Fault {
    #[error("the guest broke a ring: {0}")]
    Ring(#[from] RingError),
    #[error("the channel cannot be used: {0}")]
    Channel(#[from] ChannelError),
    #[error("the guest broke the protocol: {0}")]
    Protocol(#[from] HostError),
    #[error("the guest does not answer")]
    Silent,
    #[error(transparent)]
    Flush(FlushError),
}

impl Fault {
    pub(super) fn parting(&self) -> Parting {
        match self {
            Self::Silent => Parting::Silent,
            _ => Parting::Broke,
        }
    }
}

impl From<FlushError> for Fault {
    fn from(error: FlushError) -> Self {
        match error {
            FlushError::Ring(error) => Self::Ring(error),
            other => Self::Flush(other),
        }
    }
}

enum End {
    Heartbeat(Monitor),
    Shutdown(Requester),
    Time(Clock),
}

/// The conversation.
pub(super) struct Talk {
    pub(super) channel: Channel,
    packet: Packet,
    end: End,
    /// What the guest said last of itself; nothing before it did, or after a miss.
    health: Option<Health>,
    /// Whether the answer that comes is to be told of.
    telling: bool,
    /// When the next beat or time is due, once there was a negotiation.
    next: Option<Instant>,
    /// By when the guest has to have answered.
    until: Option<Instant>,
    messages: Arc<Messages>,
}

impl Talk {
    /// Begins it. There is no service of ours but these.
    pub(super) fn new(
        service: &'static Service,
        channel: Channel,
        options: &HostOptions,
        messages: &Arc<Messages>,
    ) -> Result<Self, Fault> {
        let end = match service.kind {
            kind if kind == HEARTBEAT.kind => End::Heartbeat(Monitor::default()),
            kind if kind == SHUTDOWN.kind => End::Shutdown(Requester::default()),
            kind => {
                debug_assert_eq!(kind, TIME_SYNC.kind);
                End::Time(Clock::default())
            }
        };
        let mut talk = Self {
            packet: channel.packet()?,
            channel,
            end,
            health: None,
            telling: false,
            next: None,
            until: Some(Instant::now() + options.patience),
            messages: Arc::clone(messages),
        };
        let start = match &mut talk.end {
            End::Heartbeat(monitor) => monitor.start(),
            End::Shutdown(requester) => requester.start(),
            End::Time(clock) => clock.start(),
        };
        talk.send(&start)?;
        talk.channel.flush()?;
        Ok(talk)
    }

    /// When a turn is due at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.next, self.until].into_iter().flatten().min()
    }

    /// Takes what has come and says what is due; whether there is more to do at once.
    pub(super) fn turn(
        &mut self,
        now: Instant,
        options: &HostOptions,
        tell: &mut dyn FnMut(HostEvent),
    ) -> Result<bool, Fault> {
        self.channel.incoming.refresh()?;
        let mut count = 0;
        while count < MESSAGES_MAX && self.channel.incoming.receive(&mut self.packet)? {
            count += 1;
            self.hear(options, tell)?;
        }
        if self.until.is_some_and(|until| until <= now) {
            return Err(Fault::Silent);
        }
        if self.next.is_some_and(|next| next <= now) {
            self.next = Some(now + options.interval);
            self.say(options, tell)?;
        }
        self.channel.flush()?;
        Ok(self.channel.arm()?)
    }

    fn hear(
        &mut self,
        options: &HostOptions,
        tell: &mut dyn FnMut(HostEvent),
    ) -> Result<(), Fault> {
        // What is no message is no answer, and the guest's time goes on.
        let Ok(Contents::InBand { payload }) = self.packet.contents() else {
            return Ok(());
        };
        pass(&self.messages, true, payload);
        let agreed = match &mut self.end {
            End::Heartbeat(monitor) => match monitor.receive(payload)? {
                heartbeat::Event::Ready(agreed) => agreed,
                heartbeat::Event::Alive(health) => {
                    if self.health.replace(health) != Some(health) {
                        tell(HostEvent::Alive { health });
                    }
                    return Ok(());
                }
                heartbeat::Event::Strange => {
                    self.health = None;
                    tell(HostEvent::Strange);
                    return Ok(());
                }
                _ => return Ok(()),
            },
            End::Shutdown(requester) => match requester.receive(payload)? {
                shutdown::Event::Ready(agreed) => agreed,
                shutdown::Event::Answered(status) => {
                    self.until = None;
                    tell(HostEvent::Answered { status });
                    return Ok(());
                }
                _ => return Ok(()),
            },
            End::Time(clock) => match clock.receive(payload)? {
                timesync::Event::Ready(agreed) => agreed,
                timesync::Event::Answered(status) => {
                    if std::mem::take(&mut self.telling) {
                        tell(HostEvent::Answered { status });
                    }
                    return Ok(());
                }
                _ => return Ok(()),
            },
        };
        tell(HostEvent::Ready {
            version: agreed.service,
        });
        self.until = None;
        self.telling = true;
        self.begin(options, tell)
    }

    /// The first message of a service.
    fn begin(
        &mut self,
        options: &HostOptions,
        tell: &mut dyn FnMut(HostEvent),
    ) -> Result<(), Fault> {
        let now = Instant::now();
        let End::Shutdown(requester) = &mut self.end else {
            self.next = Some(now + options.interval);
            return self.say(options, tell);
        };
        if let Some(wish) = &options.wish {
            let message = requester.request(wish)?;
            self.until = Some(now + options.patience);
            self.send(&message)?;
        }
        Ok(())
    }

    /// The next beat, or the time.
    fn say(&mut self, options: &HostOptions, tell: &mut dyn FnMut(HostEvent)) -> Result<(), Fault> {
        let message = match &mut self.end {
            End::Heartbeat(monitor) => {
                let before = monitor.missed();
                let beat = monitor.beat()?;
                let count = monitor.missed();
                if count > before {
                    self.health = None;
                    tell(HostEvent::Missed { count });
                }
                beat
            }
            End::Shutdown(_) => return Ok(()),
            End::Time(clock) => {
                let first = self.telling && options.set_time;
                clock.tell(sample(if first { Purpose::Set } else { Purpose::Sample }))?
            }
        };
        self.send(&message)
    }

    /// A guest that does not take its messages, asleep or stopped, misses this one.
    fn send(&mut self, message: &[u8]) -> Result<(), Fault> {
        let room = Outgoing::<linkspan_mem::Window>::room_of(message.len());
        let free = self.channel.outgoing.refresh()?;
        if (free as usize) < room {
            return Ok(());
        }
        pass(&self.messages, false, message);
        match self.channel.outgoing.send(Header::in_band(1), &[message]) {
            Ok(()) => Ok(()),
            Err(SendError::Ring(error)) => Err(error.into()),
            // There was room for it.
            Err(_) => Ok(()),
        }
    }
}

/// What time it is.
fn sample(purpose: Purpose) -> Sample {
    let hundreds = |time: Duration| u64::try_from(time.as_nanos() / 100).unwrap_or(u64::MAX);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let counter = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(counter.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(counter.tv_nsec).unwrap_or(0);
    Sample {
        purpose,
        unix_100ns: now.map_or(0, hundreds),
        reference_100ns: Some(hundreds(Duration::new(seconds, nanoseconds))),
    }
}

//! A disk as the commands of `linkspan driver blk` use it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use linkspan_backends::disk::{DiskError, DiskQueue, DiskQueueLayout, link_options};
use linkspan_devices::block::driver::{Answer, Command, DiskInfo};
use linkspan_devices::block::{ID_BYTES, Status as Answered};
use linkspan_engine::vhost_user::{Connection, Link, LinkError, Reach};
use linkspan_engine::{DriverMemory, queue_link};
use linkspan_mem::Span;
use linkspan_sys::EventFd;
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::frontend::{Misfit, Negotiated};
use linkspan_virtio::Features;
use serde::Serialize;
use std::os::fd::AsFd;

use crate::exit::{Failure, Status};

/// Which disk, and how a command is stopped.
pub(super) struct Target {
    path: PathBuf,
    /// What the queues are to be like.
    queue_features: Features,
    connect_limit: Duration,
    cancel: Arc<EventFd>,
    stopped: Arc<AtomicBool>,
    /// Whether requests are under way, which a stop lets end first.
    running: Arc<AtomicBool>,
}

/// How long what is under way may take to end after a signal.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A disk with its queues, in use.
pub(super) struct Disk {
    pub(super) info: DiskInfo,
    negotiated: Negotiated,
    pub(super) queues: Vec<DiskQueue>,
    /// Ends when dropped, and the queues with it.
    _link: Link,
}

impl Target {
    pub(super) fn new(path: PathBuf, connect_seconds: u64, packed: bool) -> Result<Self, Failure> {
        let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
            .context("cannot watch for SIGINT and SIGTERM")?;
        let target = Self {
            path,
            queue_features: if packed {
                Features::PACKED_QUEUE
            } else {
                Features::SPLIT_QUEUE
            },
            connect_limit: Duration::from_secs(connect_seconds),
            cancel: Arc::new(EventFd::new().context("no descriptor can be had")?),
            stopped: Arc::new(AtomicBool::new(false)),
            running: Arc::new(AtomicBool::new(false)),
        };
        let cancel = Arc::clone(&target.cancel);
        let (stopped, running) = (Arc::clone(&target.stopped), Arc::clone(&target.running));
        // Ends with the process: it has nothing to clean up.
        let watch = move || {
            if wait_for(signals.as_fd(), Direction::Read, None, None).is_err() {
                return;
            }
            stopped.store(true, Ordering::Relaxed);
            if running.load(Ordering::Relaxed) {
                // A back end that is gone keeps nobody waiting for ever.
                std::thread::sleep(STOP_LIMIT);
            }
            // It fails only when the counter is full, and then it is readable.
            let _ = cancel.signal();
        };
        linkspan_sys::thread::spawn("signals", watch).context("no thread can be had")?;
        Ok(target)
    }

    /// Whether a person or a service wants the command to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// An error of a queue as the end of the command.
    pub(super) fn failure(&self, error: DiskError) -> Failure {
        if self.is_stopped() {
            return Failure::new(Status::Failed, anyhow!("interrupted"));
        }
        let status = match &error {
            DiskError::Device(_) => Status::PeerBroke,
            DiskError::Link(_) => Status::PeerUnreachable,
            _ => Status::Failed,
        };
        Failure::new(status, error)
    }

    fn connect(&self, queues: u16) -> Result<Connection, Failure> {
        let reach = Reach::Connect(self.path.clone());
        let options = link_options(reach, self.connect_limit, queues, self.queue_features);
        Connection::open(options, Arc::clone(&self.cancel))
            .map_err(|error| self.link_failure(error))
    }

    fn link_failure(&self, error: LinkError) -> Failure {
        let status = match &error {
            LinkError::Cancelled => return Failure::new(Status::Failed, anyhow!("interrupted")),
            LinkError::Wish(_) => Status::Usage,
            error if error.is_peer() => Status::PeerBroke,
            LinkError::Unreachable { .. } | LinkError::Closed | LinkError::Silent { .. } => {
                Status::PeerUnreachable
            }
            _ => Status::Failed,
        };
        let hint = match &error {
            LinkError::Unreachable { .. } => Some(format!(
                "is a back end running? for example: linkspan blk --socket-path {} --image FILE",
                self.path.display()
            )),
            error if matches!(error.misfit(), Some(Misfit::Queues { .. })) => {
                Some("fewer --queues, or a back end with more".into())
            }
            LinkError::Silent { .. } => {
                Some("a back end serves one front end at a time; is another one connected?".into())
            }
            _ => None,
        };
        let failure = Failure::new(status, error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }

    /// Opens the disk with `queues` queues, each for `depth` requests at a time
    /// and with `buffer_bytes` for their data.
    pub(super) fn open(&self, queues: u16, depth: u16, buffer_bytes: u64) -> Result<Disk, Failure> {
        let connection = self.connect(queues)?;
        let negotiated = connection.negotiated().clone();
        let features = Features::from_bits_retain(negotiated.features);
        let info = DiskInfo::from_config(&negotiated.config, features);
        let layout = DiskQueueLayout {
            depth,
            buffer_bytes,
        };
        // A request takes one descriptor with an indirect table, else three.
        let per_request = if features.contains(Features::VIRTIO_F_INDIRECT_DESC) {
            1
        } else {
            4
        };
        let queue_size = (u32::from(depth) * per_request)
            .next_power_of_two()
            .max(128);
        let queue_size = u16::try_from(queue_size)
            .ok()
            .filter(|size| *size <= 1 << 15)
            .ok_or_else(|| {
                Failure::new(
                    Status::Usage,
                    anyhow!("--depth {depth} is more than a queue can hold"),
                )
            })?;
        let memory = DriverMemory::new(queues, queue_size, u64::from(queues) * layout.bytes())
            .context("no memory to share with the back end")?;
        let memory = Arc::new(memory);
        let mut disk_queues = Vec::new();
        let mut handles = Vec::new();
        for index in 0..queues {
            let (link, handle) = queue_link().context("no descriptor can be had")?;
            let queue = DiskQueue::new(Arc::clone(&memory), index, layout, features, link);
            disk_queues.push(queue.map_err(|error| self.failure(error))?);
            handles.push(handle);
        }
        let link = connection
            .start(memory, handles)
            .map_err(|error| self.link_failure(error))?;
        self.running.store(true, Ordering::Relaxed);
        Ok(Disk {
            info,
            negotiated,
            queues: disk_queues,
            _link: link,
        })
    }
}

/// Submits one command and waits for its answer.
pub(super) fn ask(
    target: &Target,
    queue: &mut DiskQueue,
    command: impl Fn(linkspan_virtio::Buffer<linkspan_mem::Gpa>) -> Command<linkspan_mem::Gpa>,
    len: u32,
) -> Result<(Answered, Span), Failure> {
    let (data, span) = queue
        .buffer(0, len)
        .ok_or_else(|| anyhow!("the queue has no buffer of {len} bytes"))?;
    let answer = (|| {
        queue.submit(command(data), 0)?;
        queue.kick()?;
        next_answer(queue)
    })();
    Ok((answer.map_err(|error| target.failure(error))?.status, span))
}

/// Waits for the next answer.
pub(super) fn next_answer(queue: &mut DiskQueue) -> Result<Answer, DiskError> {
    loop {
        if let Some(answer) = queue.answer()? {
            return Ok(answer);
        }
        queue.wait(None)?;
    }
}

/// Options of `info`.
#[derive(Debug, clap::Args)]
pub(super) struct InfoArgs {
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Info {
    size_bytes: u64,
    block_size: u32,
    queues_max: u64,
    queues_in_config: u16,
    read_only: bool,
    flush: bool,
    serial: String,
    features_offered: String,
    features_used: String,
    protocol_features: String,
    memory_slots: u64,
    in_flight_region: bool,
}

/// Says what the disk is.
pub(super) fn info(target: &Target, args: &InfoArgs) -> Result<(), Failure> {
    let mut disk = target.open(1, 1, 4096)?;
    let serial_len = u32::try_from(ID_BYTES).unwrap_or(20);
    let (status, span) = ask(
        target,
        &mut disk.queues[0],
        |data| Command::Serial { data },
        serial_len,
    )?;
    let mut serial = [0; ID_BYTES];
    disk.queues[0]
        .memory()
        .memory()
        .table()
        .slice(span)
        .read(&mut serial);
    let end = serial
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(ID_BYTES);
    let serial = String::from_utf8_lossy(&serial[..end]);
    let serial = if status == Answered::Ok {
        serial.into_owned()
    } else {
        String::new()
    };
    let info = Info::new(&disk, serial);
    if args.json {
        println!("{}", serde_json::to_string(&info)?);
    } else {
        info.print();
    }
    Ok(())
}

impl Info {
    fn new(disk: &Disk, serial: String) -> Self {
        let negotiated = &disk.negotiated;
        let protocol = negotiated.protocol_features;
        let names: Vec<_> = protocol.iter_names().map(|(name, _)| name).collect();
        Self {
            size_bytes: disk.info.size_bytes,
            block_size: disk.info.block_size,
            queues_max: negotiated.queues_max,
            queues_in_config: disk.info.queues,
            read_only: disk.info.read_only,
            flush: disk.info.flush,
            serial,
            features_offered: format!("{:#x}", negotiated.offered),
            features_used: format!("{:#x}", negotiated.features),
            protocol_features: names.join(" "),
            memory_slots: negotiated.memory_slots,
            in_flight_region: protocol.contains(ProtocolFeatures::INFLIGHT_SHMFD),
        }
    }

    fn print(&self) {
        let (size, block) = (self.size_bytes, self.block_size);
        let (queues, config) = (self.queues_max, self.queues_in_config);
        let access = if self.read_only {
            "read only"
        } else {
            "read and write"
        };
        let flush = if self.flush {
            "on request"
        } else {
            "each write is durable"
        };
        println!("size          {size} bytes in blocks of {block}");
        println!("queues        at most {queues} (the disk says {config})");
        println!("serial        {}", self.serial);
        println!("access        {access}");
        println!("flush         {flush}");
        println!("features      {} offered", self.features_offered);
        println!("              {} used", self.features_used);
        println!("protocol      {}", self.protocol_features);
        println!("memory slots  {}", self.memory_slots);
    }
}

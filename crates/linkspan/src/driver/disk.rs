//! A disk as the commands of `linkspan driver blk` use it.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use linkspan_backends::disk::{DiskError, DiskQueue, DiskQueueLayout, link_options, vdpa_options};
use linkspan_devices::block::driver::{Answer, Command, DiskInfo, RangeLimits};
use linkspan_devices::block::{ID_BYTES, SECTOR, Status as Answered};
use linkspan_engine::vhost_user::Link;
use linkspan_engine::{DriverMemory, queue_link};
use linkspan_mem::Span;
use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::frontend::Negotiated;
use linkspan_virtio::Features;
use serde::Serialize;

use super::target::{Hints, Target, Ways};
use crate::exit::{Failure, Status};

const HINTS: Hints = Hints {
    serve: |path| format!("linkspan blk --socket-path {} --image FILE", path.display()),
    unit: "queues",
    rings: 1,
};

/// A disk with its queues, in use.
pub(super) struct Disk {
    pub(super) info: DiskInfo,
    negotiated: Negotiated,
    pub(super) queues: Vec<DiskQueue>,
    /// Ends when dropped, and the queues with it.
    _link: Link,
}

impl Target {
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

    /// Opens the disk with `queues` queues, each for `depth` requests at a time
    /// and with `buffer_bytes` for their data.
    pub(super) fn open(&self, queues: u16, depth: u16, buffer_bytes: u64) -> Result<Disk, Failure> {
        let kind = self.queue_features;
        let wanted = Ways {
            socket: &|reach| link_options(reach, self.connect_limit, queues, kind),
            vdpa: &|open| vdpa_options(open, queues, kind),
        };
        let connection = self.connect(&wanted, &HINTS)?;
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
        let least = u16::try_from(u32::from(depth) * per_request).unwrap_or(u16::MAX);
        let queue_size = connection.queue_size(queues, queue_size, least)?;
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
        let link = connection.start(memory, handles, &HINTS)?;
        self.begins();
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
    physical_block_size: u64,
    discard: Option<Limits>,
    write_zeroes: Option<Limits>,
    serial: String,
    features_offered: String,
    features_used: String,
    protocol_features: String,
    memory_slots: u64,
    in_flight_region: bool,
}

/// What the disk takes in one request without data.
#[derive(Serialize)]
struct Limits {
    range_bytes_max: u64,
    ranges_max: u32,
    alignment_bytes: u64,
    may_unmap: bool,
}

impl From<RangeLimits> for Limits {
    fn from(limits: RangeLimits) -> Self {
        Self {
            range_bytes_max: u64::from(limits.sectors_max) * SECTOR,
            ranges_max: limits.ranges_max,
            alignment_bytes: limits.alignment,
            may_unmap: limits.may_unmap,
        }
    }
}

impl Limits {
    fn line(limits: Option<&Self>, more: impl Fn(&Self) -> String) -> String {
        match limits {
            None => "no".to_owned(),
            Some(limits) => format!(
                "at most {} ranges of {} bytes, {}",
                limits.ranges_max,
                limits.range_bytes_max,
                more(limits)
            ),
        }
    }
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
            physical_block_size: disk.info.physical_block_size,
            discard: disk.info.discard.map(Limits::from),
            write_zeroes: disk.info.write_zeroes.map(Limits::from),
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
        let physical = self.physical_block_size;
        let discard = Limits::line(self.discard.as_ref(), |limits| {
            format!("multiples of {}", limits.alignment_bytes)
        });
        let zeroes = Limits::line(self.write_zeroes.as_ref(), |limits| {
            let text = if limits.may_unmap {
                "storage may be given back"
            } else {
                "storage is kept"
            };
            text.to_owned()
        });
        println!("size          {size} bytes in blocks of {block}, physically {physical}");
        println!("queues        at most {queues} (the disk says {config})");
        println!("serial        {}", self.serial);
        println!("access        {access}");
        println!("flush         {flush}");
        println!("discard       {discard}");
        println!("write zeroes  {zeroes}");
        println!("features      {} offered", self.features_offered);
        println!("              {} used", self.features_used);
        println!("protocol      {}", self.protocol_features);
        println!("memory slots  {}", self.memory_slots);
    }
}

//! Memory that is shared wrongly, taken back, or not what it is said to be.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use linkspan_sys::EventFd;
use linkspan_sys::memfd::{self, Sealing};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{
    InflightDescription, LogDescription, MemoryRegionDescription, SingleMemoryRegion,
};
use linkspan_vhost::{ProtocolFeatures, VHOST_F_LOG_ALL};
use zerocopy::IntoBytes as _;

use super::BOTH;
use super::rings::{outcome, tried};
use crate::device::{Device, Manner};
use crate::memory::{GUEST, LEN, Memory, USER, table};
use crate::ring::BUFFERS;
use crate::{Rule, Stop, Target};

/// More regions than anybody takes.
const MANY: u64 = 1024;

pub(super) const RULES: &[Rule] = &[
    memory(
        "table-empty",
        "A memory table without regions does no harm.",
        |target| tabled(target, 0, &[]),
    ),
    memory(
        "table-count-lies",
        "A memory table that claims more regions than it has does no harm.",
        |target| {
            let device = target.negotiated(Manner::default())?;
            let body = table(u32::MAX, &[device.memory.description()]);
            let fds = [device.memory.as_fd()];
            device
                .front
                .try_it(Request::SetMemTable, &body, &fds)?
                .seen()
        },
    ),
    memory(
        "table-of-9",
        "A memory table of 9 regions, one more than there may be, does no harm.",
        |target| {
            let regions: Vec<_> = (0..9).map(page).collect();
            let device = target.negotiated(Manner::default())?;
            let fds = [device.memory.as_fd(); 9];
            device
                .front
                .try_it(Request::SetMemTable, &table(9, &regions), &fds)?
                .seen()
        },
    ),
    memory(
        "table-without-descriptors",
        "A memory table without its descriptors does no harm.",
        |target| {
            let device = target.negotiated(Manner::default())?;
            let body = table(1, &[device.memory.description()]);
            device
                .front
                .try_it(Request::SetMemTable, &body, &[])?
                .seen()
        },
    ),
    memory(
        "regions-overlap",
        "Regions that overlap do no harm.",
        |target| tabled(target, 2, &[page(0), page(0)]),
    ),
    memory(
        "region-empty",
        "A region of 0 bytes does no harm.",
        |target| described(target, |region| region.size = 0),
    ),
    memory(
        "region-wraps",
        "A region whose end is beyond the largest guest address does no harm.",
        |target| described(target, |region| region.guest_address = u64::MAX - 0xfff),
    ),
    memory(
        "region-user-wraps",
        "A region whose end is beyond the largest front-end address does no harm.",
        |target| described(target, |region| region.user_address = u64::MAX - 0xfff),
    ),
    memory(
        "region-huge",
        "A region of 2^63 bytes does no harm.",
        |target| described(target, |region| region.size = 1 << 63),
    ),
    memory(
        "region-offset-wraps",
        "A region whose place in its file is beyond the largest number does no harm.",
        |target| described(target, |region| region.mmap_offset = u64::MAX - 0xfff),
    ),
    memory(
        "region-offset-odd",
        "A region that begins within a page of its file does no harm.",
        |target| {
            described(target, |region| {
                region.mmap_offset = 0x801;
                region.size = 0x1000;
            })
        },
    ),
    memory(
        "region-is-an-eventfd",
        "A region whose descriptor is an eventfd does no harm.",
        |target| {
            let device = target.negotiated(Manner::default())?;
            let body = table(1, &[device.memory.description()]);
            let event = EventFd::new()?;
            device
                .front
                .try_it(Request::SetMemTable, &body, &[event.as_fd()])?
                .seen()
        },
    ),
    memory(
        "region-beyond-file",
        "A region that is larger than its file does no harm, whatever is asked of its end.",
        |target| {
            let mut device = target.negotiated(Manner::default())?;
            let region = MemoryRegionDescription {
                size: 4 * LEN,
                ..device.memory.description()
            };
            let shared = device.share(&[region]).and_then(|()| device.start());
            outcome(shared.and_then(|()| redirected(&mut device, GUEST + 2 * LEN)))
        },
    ),
    memory(
        "file-shrinks",
        "Memory whose file loses the buffers of a request does no harm.",
        |target| shrunk(target, BUFFERS),
    ),
    memory(
        "file-shrinks-to-nothing",
        "Memory whose file loses its rings does no harm.",
        |target| shrunk(target, 0),
    ),
    memory(
        "table-replaced-while-running",
        "Memory that is taken back from a running ring does no harm.",
        |target| {
            let mut device = target.serving()?;
            let region = MemoryRegionDescription {
                guest_address: GUEST + 64 * LEN,
                user_address: USER + GUEST + 64 * LEN,
                ..device.memory.description()
            };
            let fds = [device.memory.as_fd()];
            let seen = device
                .front
                .try_it(Request::SetMemTable, &table(1, &[region]), &fds)?
                .seen()?;
            outcome(tried(&mut device))?;
            Ok(seen)
        },
    ),
    memory(
        "slot-added-twice",
        "A region that is added twice does no harm.",
        |target| {
            let device = slotted(target)?;
            let body = single(device.memory.description());
            let fds = [device.memory.as_fd()];
            device
                .front
                .try_it(Request::AddMemReg, &body, &fds)?
                .seen()?;
            device.front.try_it(Request::AddMemReg, &body, &fds)?.seen()
        },
    ),
    memory(
        "slots-run-out",
        "Regions beyond the number of slots do no harm.",
        |target| {
            let device = slotted(target)?;
            let slots = device.front.number(Request::GetMaxMemSlots)?;
            let fds = [device.memory.as_fd()];
            let mut seen = String::new();
            for index in 0..=slots.min(MANY) {
                let reaction =
                    device
                        .front
                        .try_it(Request::AddMemReg, &single(page(index)), &fds)?;
                seen = format!("region {} of {slots}: {}", index + 1, reaction.seen()?);
                if seen.ends_with("connection") {
                    break;
                }
            }
            Ok(seen)
        },
    ),
    memory(
        "slot-unknown-removed",
        "A region that was never added cannot be removed, and trying does no harm.",
        |target| {
            let device = slotted(target)?;
            device
                .front
                .try_it(Request::RemMemReg, &single(page(7)), &[])?
                .seen()
        },
    ),
    memory(
        "slot-removed-while-running",
        "A region that is removed under a running ring does no harm.",
        |target| {
            let mut device = slotted(target)?;
            let body = single(device.memory.description());
            device
                .front
                .tell(Request::AddMemReg, &body, &[device.memory.as_fd()])?;
            device.start()?;
            device.serve()?;
            let seen = device
                .front
                .try_it(Request::RemMemReg, &body, &[])?
                .seen()?;
            outcome(tried(&mut device))?;
            Ok(seen)
        },
    ),
    memory(
        "log-too-small",
        "A log that is too small for the memory does no harm.",
        |target| logged(target, 8, 0),
    ),
    memory(
        "log-beyond-file",
        "A log that is larger than its file does no harm.",
        |target| logged(target, 1 << 30, 0),
    ),
    memory(
        "log-offset-wraps",
        "A log whose place in its file is beyond the largest number does no harm.",
        |target| logged(target, 4096, u64::MAX - 0xfff),
    ),
    memory(
        "inflight-lies",
        "A region of requests in flight that is larger than its file does no harm.",
        |target| inflight(target, u64::MAX, 0xffff, 0xffff),
    ),
    memory(
        "inflight-garbage",
        "A region of requests in flight that is full of nonsense does no harm.",
        |target| inflight(target, LEN, 4, crate::ring::SIZE),
    ),
];

const fn memory(
    name: &'static str,
    says: &'static str,
    check: fn(&Target) -> Result<String, Stop>,
) -> Rule {
    Rule {
        name,
        says,
        clause: "safety; vhost-user, Memory region description",
        kinds: BOTH,
        check,
    }
}

/// A region of one page, each in another place.
fn page(index: u64) -> MemoryRegionDescription {
    MemoryRegionDescription {
        guest_address: GUEST + index * 0x1000,
        size: 0x1000,
        user_address: USER + GUEST + index * 0x1000,
        mmap_offset: index % 16 * 0x1000,
    }
}

fn single(region: MemoryRegionDescription) -> Vec<u8> {
    let single = SingleMemoryRegion { padding: 0, region };
    single.as_bytes().to_vec()
}

/// Shares memory with this table.
fn tabled(
    target: &Target,
    count: u32,
    regions: &[MemoryRegionDescription],
) -> Result<String, Stop> {
    let device = target.negotiated(Manner::default())?;
    let fds: Vec<BorrowedFd<'_>> = regions.iter().map(|_| device.memory.as_fd()).collect();
    let request = Request::SetMemTable;
    device
        .front
        .try_it(request, &table(count, regions), &fds)?
        .seen()
}

/// Shares memory that is described in another way than it is, and makes a request.
fn described(target: &Target, change: fn(&mut MemoryRegionDescription)) -> Result<String, Stop> {
    let mut device = target.negotiated(Manner::default())?;
    let mut region = device.memory.description();
    change(&mut region);
    let fds = [device.memory.as_fd()];
    let body = table(1, &[region]);
    let seen = device
        .front
        .try_it(Request::SetMemTable, &body, &fds)?
        .seen()?;
    outcome(device.start().and_then(|()| tried(&mut device)))?;
    Ok(seen)
}

/// Makes an honest request but for one of its buffers, which is there.
fn redirected(device: &mut Device, address: u64) -> Result<(), Stop> {
    let mut chain = device.request()?;
    let middle = chain.len() / 2;
    chain[middle].0 = address;
    device.submit(&chain)?;
    device.watch(device.settle)?;
    Ok(())
}

/// Has the file of memory lose what is behind `len`, and makes a request.
fn shrunk(target: &Target, len: u64) -> Result<String, Stop> {
    let front = target.connect()?;
    let mut device = target.negotiated_on(front, Manner::default(), Sealing::Open)?;
    let shared = device
        .share(&[device.memory.description()])
        .and_then(|()| device.start())
        .and_then(|()| device.serve());
    if let Err(Stop::Refused(why)) = shared {
        return Ok(format!("takes no memory that can shrink: {why}"));
    }
    shared?;
    let chain = device.request()?;
    device.make_available(&chain)?;
    match device.memory.truncate(len) {
        // A seal on the file of whoever shares it is a way to be safe.
        Err(Stop::Ours(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok("keeps the file from shrinking".into());
        }
        truncated => truncated?,
    }
    device.ring().kick()?;
    device.watch(target.settle)?;
    outcome(device.front.number(Request::GetFeatures).map(drop))
}

/// A device whose memory comes by slots, with none yet.
fn slotted(target: &Target) -> Result<Device, Stop> {
    let device = target.negotiated(Manner::default())?;
    device.needs(ProtocolFeatures::CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS")?;
    Ok(device)
}

/// Logs writes to such a log, and makes requests.
fn logged(target: &Target, size: u64, offset: u64) -> Result<String, Stop> {
    let mut device = target.shared()?;
    device.needs(ProtocolFeatures::LOG_SHMFD, "LOG_SHMFD")?;
    if device.offered & VHOST_F_LOG_ALL == 0 {
        return Err(Stop::NotApplicable("VHOST_F_LOG_ALL is not offered".into()));
    }
    let file = memfd::create("log", 4096, Sealing::Fixed)?;
    let log = LogDescription {
        mmap_size: size,
        mmap_offset: offset,
    };
    let request = Request::SetLogBase;
    let seen = device
        .front
        .try_it(request, log.as_bytes(), &[file.as_fd()])?
        .seen()?;
    let features = device.features | VHOST_F_LOG_ALL;
    let logs = device
        .front
        .tell(Request::SetFeatures, features.as_bytes(), &[]);
    outcome(
        logs.and_then(|()| device.start())
            .and_then(|()| tried(&mut device)),
    )?;
    Ok(seen)
}

/// Gives a region of requests in flight that is full of ones, and starts.
fn inflight(target: &Target, size: u64, queues: u16, entries: u16) -> Result<String, Stop> {
    let mut device = target.shared()?;
    device.needs(ProtocolFeatures::INFLIGHT_SHMFD, "INFLIGHT_SHMFD")?;
    let file = Memory::new(Sealing::Fixed)?;
    file.write(0, &vec![0xff; 0x1_0000])?;
    let region = InflightDescription {
        mmap_size: size,
        mmap_offset: 0,
        num_queues: queues,
        queue_size: entries,
        padding: 0,
    };
    let request = Request::SetInflightFd;
    let seen = device
        .front
        .try_it(request, region.as_bytes(), &[file.as_fd()])?
        .seen()?;
    outcome(device.start().and_then(|()| tried(&mut device)))?;
    Ok(seen)
}

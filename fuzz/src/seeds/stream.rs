//! Seeds of `vhost_user_stream`: sessions as front ends have them, and messages
//! that break off, contradict or overflow.

use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::message::{FRONTEND_REQUESTS, Reply, Request};
use linkspan_vhost::wire::{
    self, Header, MemoryRegionDescription, MemoryTableHeader, SingleMemoryRegion, VringAddr,
    VringState,
};
use zerocopy::IntoBytes;

use super::{Expected, Seed};
use crate::vhost_user_stream::{answer, step};

const NEED: u8 = 8;
const VERSION_1: u64 = 1 << 32;
const BIT_30: u64 = 1 << 30;

/// What the front end takes: spelled out, so that a back end that offers more
/// leaves the seeds as they are.
const PROTOCOL: ProtocolFeatures = ProtocolFeatures::MQ
    .union(ProtocolFeatures::LOG_SHMFD)
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::BACKEND_REQ)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::INFLIGHT_SHMFD)
    .union(ProtocolFeatures::RESET_DEVICE)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(ProtocolFeatures::STATUS)
    .union(ProtocolFeatures::DEVICE_STATE);

pub(super) fn seeds() -> Vec<Seed> {
    let features = VERSION_1 | BIT_30;
    let save = [step::SAVE];
    let raw = |bytes: &[u8], fds: u8| {
        let len = u8::try_from(bytes.len()).expect("short");
        [&[step::RAW, len, fds][..], bytes].concat()
    };
    let header = |request: u32, flags: u32, size: u32| {
        let header = Header {
            request,
            flags,
            size,
        };
        raw(header.as_bytes(), 0)
    };
    let add = wire::encode(Request::AddMemReg.code(), 0, &single(region(0)));
    let late = [raw(&add[..20], 1), raw(&add[20..], 1)].concat();
    vec![
        seed("qemu", 27, 2, false, qemu(features, 0).concat()),
        seed(
            "qemu_byte_by_byte",
            27,
            2,
            false,
            qemu(features, 1).concat(),
        ),
        seed(
            "qemu_saved_after_each_message",
            27,
            2,
            false,
            qemu(features, 0).join(&save[..]),
        ),
        seed("qemu_before_7_2", 27, 2, false, qemu(VERSION_1, 5).concat()),
        seed("stopped_and_started", 33, 4, false, restarted()),
        seed("memory_slots", 11, 0, false, slots()),
        seed("every_message_empty", 50, 0, false, every_message()),
        seed("effects_that_fail", 24, 0, false, failing()),
        seed("wrong_answer", 7, 0, false, wrong_answer()),
        seed("device_messages", 32, 2, false, device_messages()),
        seed("config", 14, 0, false, config()),
        seed(
            "nine_descriptors",
            0,
            0,
            true,
            raw(&wire::encode(3, 0, &[]), 9),
        ),
        seed("late_descriptors", 0, 0, true, late),
        seed("body_too_long", 0, 0, true, header(1, 1, u32::MAX)),
        seed("reply_from_a_front_end", 0, 0, true, header(1, 5, 0)),
        seed("no_version", 0, 0, true, header(1, 0, 0)),
        seed("half_a_message", 0, 0, false, raw(&add[..30], 1)),
    ]
}

fn seed(name: &str, replies: usize, starts: usize, closed: bool, bytes: Vec<u8>) -> Seed {
    Seed {
        target: "vhost_user_stream",
        name: name.to_owned(),
        bytes,
        expected: Expected::Stream {
            replies,
            starts,
            closed,
        },
    }
}

fn say(request: Request, body: &[u8], fds: u8, piece: u8) -> Vec<u8> {
    let code = u8::try_from(request.code()).expect("44 at most");
    let size = u16::try_from(body.len()).expect("bounded").to_le_bytes();
    let head = [step::MESSAGE, code, NEED, fds, piece, size[0], size[1]];
    [&head, body].concat()
}

fn state(ring: u32, num: u32) -> Vec<u8> {
    let index = ring;
    VringState { index, num }.as_bytes().to_vec()
}

fn region(number: u64) -> MemoryRegionDescription {
    MemoryRegionDescription {
        guest_address: number << 32,
        size: 1 << 20,
        user_address: 0x7000_0000 + (number << 32),
        mmap_offset: 0,
    }
}

fn single(region: MemoryRegionDescription) -> Vec<u8> {
    SingleMemoryRegion { padding: 0, region }
        .as_bytes()
        .to_vec()
}

fn table(regions: &[MemoryRegionDescription]) -> Vec<u8> {
    let num_regions = u32::try_from(regions.len()).expect("few");
    let header = MemoryTableHeader {
        num_regions,
        padding: 0,
    };
    [header.as_bytes(), regions.as_bytes()].concat()
}

fn negotiation(features: u64, piece: u8) -> Vec<Vec<u8>> {
    vec![
        say(Request::GetFeatures, &[], 0, piece),
        say(Request::GetProtocolFeatures, &[], 0, piece),
        say(
            Request::SetProtocolFeatures,
            PROTOCOL.bits().as_bytes(),
            0,
            piece,
        ),
        say(Request::GetQueueNum, &[], 0, piece),
        say(Request::SetOwner, &[], 0, piece),
        say(Request::SetFeatures, features.as_bytes(), 0, piece),
    ]
}

fn start(ring: u32, piece: u8) -> Vec<Vec<u8>> {
    let at = 0x7000_0000 + u64::from(ring) * 0x1_0000;
    let addr = VringAddr {
        index: ring,
        flags: 0,
        descriptor: at,
        used: at + 0x8000,
        available: at + 0x4000,
        log: 0,
    };
    let number = u64::from(ring);
    vec![
        say(Request::SetVringNum, &state(ring, 256), 0, piece),
        say(Request::SetVringBase, &state(ring, 0), 0, piece),
        say(Request::SetVringAddr, addr.as_bytes(), 0, piece),
        say(Request::SetVringErr, number.as_bytes(), 1, piece),
        say(Request::SetVringKick, number.as_bytes(), 1, piece),
        say(Request::SetVringCall, number.as_bytes(), 1, piece),
        say(Request::SetVringEnable, &state(ring, 1), 0, piece),
    ]
}

/// What QEMU says to a disk of two queues, to the end.
fn qemu(features: u64, piece: u8) -> Vec<Vec<u8>> {
    let regions = [region(0), region(1)];
    let mut steps = negotiation(features, piece);
    steps.push(say(Request::SetMemTable, &table(&regions), 2, piece));
    steps.extend(start(0, piece));
    steps.extend(start(1, piece));
    // A module of memory comes while they run.
    let regions = [region(0), region(1), region(2)];
    steps.push(say(Request::SetMemTable, &table(&regions), 3, piece));
    for ring in 0..2 {
        steps.push(say(Request::SetVringEnable, &state(ring, 0), 0, piece));
        steps.push(say(Request::GetVringBase, &state(ring, 0), 0, piece));
    }
    steps.push(say(Request::GetFeatures, &[], 0, piece));
    steps
}

fn restarted() -> Vec<u8> {
    let mut steps = negotiation(VERSION_1 | BIT_30, 0);
    steps.push(say(Request::SetMemTable, &table(&[region(0)]), 1, 0));
    for ring in [0, 1, 0] {
        steps.extend(start(ring, 0));
        steps.push(say(Request::GetVringBase, &state(ring, 0), 0, 0));
    }
    // One runs at the end of the connection.
    steps.extend(start(1, 0).into_iter().skip(2).take(1));
    steps.extend(start(1, 0).into_iter().skip(4).take(1));
    steps.push(vec![step::DISCONNECT]);
    steps.concat()
}

fn slots() -> Vec<u8> {
    let mut steps = negotiation(VERSION_1 | BIT_30, 0);
    steps.push(say(Request::GetMaxMemSlots, &[], 0, 0));
    steps.push(say(Request::AddMemReg, &single(region(0)), 1, 0));
    // Twice the same, which is refused, and the descriptor that QEMU sends along.
    steps.push(say(Request::AddMemReg, &single(region(0)), 1, 0));
    steps.push(say(Request::RemMemReg, &single(region(0)), 1, 0));
    steps.push(say(Request::RemMemReg, &single(region(0)), 0, 0));
    steps.concat()
}

/// Those that are acknowledged: others have no way to say no but to close.
fn every_message() -> Vec<u8> {
    let mut steps = negotiation(VERSION_1 | BIT_30, 0);
    let rows = FRONTEND_REQUESTS.iter();
    let acked = rows.filter(|row| row.reply == Reply::Ack);
    for code in acked.map(|row| row.code).chain(45..=60) {
        let code = u8::try_from(code).expect("60 at most");
        steps.push(vec![step::MESSAGE, code, NEED, 0, 0, 0, 0]);
        steps.push(vec![step::SAVE]);
    }
    steps.concat()
}

/// Each way to fail, for each kind of effect.
fn failing() -> Vec<u8> {
    let mut steps = negotiation(VERSION_1 | BIT_30, 0);
    for how in [answer::UNSUPPORTED, answer::REJECTED, answer::SYSTEM] {
        steps.push(vec![step::ANSWER, how]);
        steps.push(say(Request::SetMemTable, &table(&[region(0)]), 1, 0));
    }
    for how in [answer::UNSUPPORTED, answer::REJECTED, answer::SYSTEM] {
        let mut start = start(2, 0);
        start.truncate(4);
        steps.extend(start);
        steps.push(vec![step::ANSWER, how]);
        steps.push(say(Request::SetVringKick, 2u64.as_bytes(), 1, 0));
    }
    steps.concat()
}

fn wrong_answer() -> Vec<u8> {
    let mut steps = negotiation(VERSION_1 | BIT_30, 0);
    steps.insert(3, vec![step::ANSWER, answer::WRONG]);
    steps.insert(4, say(Request::SetFeatures, VERSION_1.as_bytes(), 0, 0));
    steps.concat()
}

fn config() -> Vec<u8> {
    let mut steps = negotiation(VERSION_1 | BIT_30, 0);
    for (offset, size) in [(0u32, 60u32), (95, 1), (96, 1), (u32::MAX, 2)] {
        let head = [offset, size, 0].map(u32::to_ne_bytes).concat();
        let body = [head, vec![0; size as usize]].concat();
        steps.push(say(Request::GetConfig, &body, 0, 0));
        steps.push(say(Request::SetConfig, &body, 0, 0));
    }
    steps.concat()
}

/// Log, in-flight region, status, reset under running rings, transfer of state.
fn device_messages() -> Vec<u8> {
    let log = [0x1000u64, 0].map(u64::to_ne_bytes).concat();
    let inflight = [
        &[0x3000u64, 0].map(u64::to_ne_bytes).concat()[..],
        &[2u16, 256, 0, 0].map(u16::to_ne_bytes).concat(),
    ]
    .concat();
    let mut steps = negotiation(VERSION_1 | BIT_30, 0);
    steps.push(say(Request::SetMemTable, &table(&[region(0)]), 1, 0));
    steps.extend([
        say(Request::SetBackendReqFd, &[], 1, 0),
        say(Request::SetLogBase, &log, 1, 0),
        say(Request::SetLogFd, &[], 1, 0),
        say(Request::GetInflightFd, &inflight, 0, 0),
        say(Request::SetInflightFd, &inflight, 1, 0),
        say(Request::SetStatus, 15u64.as_bytes(), 0, 0),
    ]);
    steps.extend(start(0, 0));
    steps.extend(start(1, 0));
    steps.extend([
        vec![step::SAVE],
        say(Request::GetStatus, &[], 0, 0),
        say(Request::ResetDevice, &[], 0, 0),
        vec![step::ANSWER, answer::OTHER_CHANNEL],
        say(Request::SetDeviceStateFd, &[0; 8], 1, 0),
        say(Request::CheckDeviceState, &[], 0, 0),
        vec![step::SAVE],
        say(Request::SetStatus, 0u64.as_bytes(), 0, 0),
    ]);
    steps.concat()
}

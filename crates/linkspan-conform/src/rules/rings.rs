//! The life of a ring: how it starts, stops, goes on, and cannot start.

use linkspan_vhost::VHOST_USER_F_PROTOCOL_FEATURES;
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::VringAddr;
use linkspan_virtio::Features;
use zerocopy::IntoBytes as _;

use super::BOTH;
use crate::device::{Device, Manner, state};
use crate::front_end::broken;
use crate::memory::{GUEST, LEN, USER};
use crate::ring::{SIZE, Watched};
use crate::{Rule, Stop, Target};

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "serves",
        says: "A chain that is in order is used, with no more bytes than could be written of it, and nothing else is written.",
        clause: "virtio 1.3 2.7.8.2",
        kinds: BOTH,
        check: |target| {
            // The first request: what it wrote where it must not would be there already.
            let mut device = target.shared()?;
            device.start()?;
            let chain = device.request()?;
            device.make_available(&chain)?;
            let picture = device.picture()?;
            device.ring().kick()?;
            let used = device.used()?;
            let room = crate::device::writable(&chain);
            if u64::from(used.len) > room {
                return Err(broken(format!(
                    "says it wrote {} bytes of {room}",
                    used.len
                )));
            }
            device.untouched(&picture, &super::chains::may_write(&chain))?;
            Ok(format!("used, {} bytes written", used.len))
        },
    },
    Rule {
        name: "serves-many",
        says: "Chains are used again and again, past the end of the ring and past the last index.",
        clause: "virtio 1.3 2.7.6, 2.7.8",
        kinds: BOTH,
        check: |target| {
            let mut device = target.shared()?;
            // Where the index wraps.
            go_on_at(&mut device, 0xffff - 2 * SIZE)?;
            device.start()?;
            for _ in 0..4 * SIZE {
                device.serve()?;
            }
            Ok(format!("{} chains", 4 * SIZE))
        },
    },
    Rule {
        name: "notifies",
        says: "The driver is notified of used chains unless it asked not to be.",
        clause: "virtio 1.3 2.7.7.2; vhost-user, VHOST_USER_SET_VRING_CALL",
        kinds: BOTH,
        check: |target| {
            let mut device = target.serving()?;
            device.ring().call.drain()?;
            let chain = device.request()?;
            device.submit(&chain)?;
            notified(&mut device)
        },
    },
    Rule {
        name: "kick-before-enable",
        says: "A kick that comes before the ring is enabled is not lost.",
        clause: "vhost-user, Ring states",
        kinds: BOTH,
        check: |target| {
            let mut device = target.shared()?;
            if device.features & VHOST_USER_F_PROTOCOL_FEATURES == 0 {
                return Err(Stop::NotApplicable("rings have no such state".into()));
            }
            device.place()?;
            let chain = device.request()?;
            device.submit(&chain)?;
            // The next answer says that it has seen all that came before.
            device.front.number(Request::GetFeatures)?;
            device.enable(1)?;
            device.used()?;
            Ok("served".into())
        },
    },
    Rule {
        name: "start-without-kick",
        says: "What was made available before the ring started is served without a kick.",
        clause: "vhost-user, Ring states (since 2026)",
        kinds: BOTH,
        check: |target| {
            let mut device = target.shared()?;
            let chain = device.request()?;
            let Device { memory, .. } = &device;
            let mut ring = crate::ring::Ring::new(device.index())?;
            ring.describe(memory, 0, &chain)?;
            ring.publish(memory, 0)?;
            device.start()?;
            device.used()?;
            Ok("served".into())
        },
    },
    Rule {
        name: "enabled-without-bit-30",
        says: "Without VHOST_USER_F_PROTOCOL_FEATURES acknowledged, a ring is enabled from its start.",
        clause: "vhost-user, Ring states",
        kinds: BOTH,
        check: |target| {
            let manner = Manner {
                bit_30: false,
                ..Manner::default()
            };
            let mut device = target.negotiated(manner)?;
            device.share(&[device.memory.description()])?;
            device.start()?;
            device.serve()?;
            Ok("served".into())
        },
    },
    Rule {
        name: "stops",
        says: "A stopped ring says where it goes on, and serves nothing.",
        clause: "vhost-user, VHOST_USER_GET_VRING_BASE",
        kinds: BOTH,
        check: |target| {
            let mut device = target.serving()?;
            expect_base(&device, 1)?;
            let chain = device.request()?;
            device.submit(&chain)?;
            match device.watch(target.settle)? {
                Watched::Used(used) => Err(broken(format!("still used chain {}", used.id))),
                _ => Ok("serves nothing".into()),
            }
        },
    },
    Rule {
        name: "goes-on",
        says: "A ring that was stopped goes on at its base when it is started again.",
        clause: "vhost-user, VHOST_USER_SET_VRING_BASE",
        kinds: BOTH,
        check: |target| {
            let mut device = target.serving()?;
            device.serve()?;
            for index in 0..target.kind.rings() {
                device
                    .front
                    .ask(Request::GetVringBase, &state(index, 0), &[])?;
            }
            device.start()?;
            device.serve()?;
            expect_base(&device, 3)?;
            Ok("goes on".into())
        },
    },
    Rule {
        name: "base-is-kept",
        says: "A ring that served nothing is where it was set to be.",
        clause: "vhost-user, VHOST_USER_GET_VRING_BASE",
        kinds: BOTH,
        check: |target| {
            let mut device = target.shared()?;
            go_on_at(&mut device, 40_000)?;
            device.start()?;
            expect_base(&device, 40_000)?;
            Ok("40000".into())
        },
    },
    unstartable(
        "ring-address-outside",
        "A ring outside the memory that was shared does no harm.",
        |target| misplaced(target, USER + GUEST + 16 * LEN),
    ),
    unstartable(
        "ring-address-wraps",
        "A ring whose end is beyond the largest address does no harm.",
        |target| misplaced(target, u64::MAX - 0xf),
    ),
    unstartable(
        "ring-address-null",
        "A ring at address 0 does no harm.",
        |target| misplaced(target, 0),
    ),
    unstartable(
        "ring-across-end",
        "A ring that begins in memory and ends beyond it does no harm.",
        |target| misplaced(target, USER + GUEST + LEN - 16),
    ),
    unstartable(
        "ring-address-odd",
        "A ring at an odd address does no harm.",
        |target| misplaced(target, USER + GUEST + 0x1001),
    ),
    unstartable(
        "start-without-memory",
        "A ring that is started before memory is shared does no harm.",
        |target| {
            let mut device = target.negotiated(Manner::default())?;
            outcome(device.start().and_then(|()| tried(&mut device)))
        },
    ),
    unstartable(
        "start-without-anything",
        "A kick descriptor for a ring without size and addresses does no harm.",
        |target| {
            let mut device = target.shared()?;
            let kick = device.ring().kick.try_clone()?;
            let started = device
                .event(Request::SetVringKick, device.index(), &kick)
                .and_then(|()| device.enable(1))
                .and_then(|()| tried(&mut device));
            outcome(started)
        },
    ),
    unstartable(
        "set-up-while-running",
        "Size, base and addresses that are set while the ring runs do no harm.",
        |target| {
            let mut device = target.serving()?;
            let index = device.index();
            let mut seen = Vec::new();
            let address = VringAddr {
                index: index.into(),
                ..at(USER + GUEST + LEN - 64)
            };
            for (request, body) in [
                (Request::SetVringNum, state(index, 0x8000)),
                (Request::SetVringBase, state(index, 0x1234)),
                (Request::SetVringAddr, address.as_bytes().to_vec()),
            ] {
                seen.push(device.front.try_it(request, &body, &[])?.seen()?);
                if seen.last().is_some_and(|it| it.starts_with("closed")) {
                    break;
                }
            }
            outcome(tried(&mut device))?;
            Ok(seen.join(", "))
        },
    ),
];

const fn unstartable(
    name: &'static str,
    says: &'static str,
    check: fn(&Target) -> Result<String, Stop>,
) -> Rule {
    Rule {
        name,
        says,
        clause: "safety; vhost-user, VHOST_USER_SET_VRING_ADDR",
        kinds: BOTH,
        check,
    }
}

/// Waits for the notification, and for nothing else.
fn notified(device: &mut Device) -> Result<String, Stop> {
    use linkspan_sys::poll::{Direction, Wake, wait_for};
    use std::os::fd::AsFd as _;
    let deadline = std::time::Instant::now() + device.patience;
    let call = &device.ring().call;
    match wait_for(call.as_fd(), Direction::Read, None, Some(deadline))? {
        Wake::Ready => Ok("notified".into()),
        _ => Err(broken("no notification".into())),
    }
}

/// Has both sides of the ring at this index.
fn go_on_at(device: &mut Device, index: u16) -> Result<(), Stop> {
    device.ring().go_on_at(index);
    let Device { memory, .. } = device;
    let ring = crate::ring::Ring::new(device.kind.rings() - 1)?;
    ring.set_index(memory, index)?;
    memory.write(ring.parts()[2] + 2, &index.to_le_bytes())
}

/// Stops the ring of requests, which has to be there.
fn expect_base(device: &Device, base: u32) -> Result<(), Stop> {
    match device.stop()? {
        found if found == base => Ok(()),
        found => Err(broken(format!("the base is {found}, not {base}"))),
    }
}

fn at(address: u64) -> VringAddr {
    VringAddr {
        index: 0,
        flags: 0,
        descriptor: address,
        used: address,
        available: address,
        log: 0,
    }
}

/// Starts the ring of requests there.
fn misplaced(target: &Target, address: u64) -> Result<String, Stop> {
    let mut device = target.shared()?;
    let address = VringAddr {
        index: device.index().into(),
        ..at(address)
    };
    let started = device.place_at(&address).and_then(|()| device.enable(1));
    outcome(started.and_then(|()| tried(&mut device)))
}

/// Makes an honest request, whatever becomes of it.
pub(super) fn tried(device: &mut Device) -> Result<(), Stop> {
    let chain = device.request()?;
    device.submit(&chain)?;
    device.watch(device.settle)?;
    device.front.number(Request::GetFeatures)?;
    Ok(())
}

/// What became of a start that cannot work.
pub(super) fn outcome(started: Result<(), Stop>) -> Result<String, Stop> {
    match started {
        Ok(()) => Ok("goes on".into()),
        Err(Stop::Refused(what)) => Ok(what),
        Err(stop) => Err(stop),
    }
}

/// For rules about tables of indirect descriptors.
pub(super) fn needs_indirect(device: &Device) -> Result<(), Stop> {
    device.needs_feature(Features::VIRTIO_F_INDIRECT_DESC, "VIRTIO_F_INDIRECT_DESC")
}

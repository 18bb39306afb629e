//! Messages that nobody should send. What the target makes of one is its own affair, as long as
//! it answers or closes the connection, and serves the next front end.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Instant;

use linkspan_sys::EventFd;
use linkspan_sys::memfd::{self, Sealing};
use linkspan_vhost::ProtocolFeatures;
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{self, ConfigHeader, Header, VringAddr};
use rustix::event::{EventfdFlags, eventfd};
use zerocopy::IntoBytes as _;

use super::BOTH;
use crate::device::{Manner, raw_state, state};
use crate::front_end::{Answer, broken};
use crate::{Rule, Stop, Target};

const SURVIVES: &str = "safety; vhost-user, Message Specification";

/// Descriptors that come with each of the messages of a flood.
const FLOOD: usize = 8;

/// Front ends that come one after the other.
const FRONT_ENDS: usize = 16;

pub(super) const RULES: &[Rule] = &[
    hostile(
        "size-4-gib",
        "A header that announces 4 GiB does no harm.",
        |target| cut(target, &header(1, Header::VERSION, u32::MAX)),
    ),
    hostile(
        "cut-in-header",
        "A connection that ends within a header does no harm.",
        |target| cut(target, &header(1, Header::VERSION, 0)[..5]),
    ),
    hostile(
        "cut-in-body",
        "A connection that ends within a body does no harm.",
        |target| {
            let message = wire::encode(Request::SetVringNum.code(), 0, &state(0, 64));
            cut(target, &message[..15])
        },
    ),
    hostile(
        "unknown-request",
        "A request with a number that does not exist does no harm.",
        |target| {
            let front = target.negotiated(Manner::default())?.front;
            let flags = Header::NEED_REPLY;
            front
                .react(0x7fff, &wire::encode(0x7fff, flags, &[]), &[])?
                .seen()
        },
    ),
    hostile(
        "request-0",
        "A request with the number 0 does no harm.",
        |target| {
            let front = target.negotiated(Manner::default())?.front;
            front.react(0, &wire::encode(0, 0, &[]), &[])?.seen()
        },
    ),
    hostile(
        "version-2",
        "A request with another version than 1 does no harm.",
        |target| {
            let front = target.negotiated(Manner::default())?.front;
            front.react(3, &header(3, 2, 0), &[])?.seen()
        },
    ),
    hostile(
        "reply-bit",
        "A request that says it is a reply does no harm.",
        |target| {
            let front = target.negotiated(Manner::default())?.front;
            let flags = Header::VERSION | Header::REPLY;
            front.react(3, &header(3, flags, 0), &[])?.seen()
        },
    ),
    hostile(
        "body-short",
        "A body that is shorter than its request needs does no harm.",
        |target| wrong(target, Request::SetVringAddr, &[0; 4]),
    ),
    hostile(
        "body-missing",
        "A request without the body that it needs does no harm.",
        |target| wrong(target, Request::SetVringAddr, &[]),
    ),
    hostile(
        "body-long",
        "A body that is longer than its request needs does no harm.",
        |target| wrong(target, Request::SetVringNum, &[0; 64]),
    ),
    hostile(
        "ring-index-huge",
        "Rings that do not exist, up to the largest number, are none.",
        |target| {
            let mut seen = Vec::new();
            for index in [300, 0xffff, 0x8000_0000, u32::MAX] {
                seen.push(wrong(target, Request::SetVringNum, &raw_state(index, 64))?);
            }
            Ok(seen.join(", "))
        },
    ),
    hostile(
        "ring-address-index-huge",
        "An address for a ring that does not exist does no harm.",
        |target| {
            let address = VringAddr {
                index: u32::MAX,
                ..crate::ring::Ring::new(0)?.address()
            };
            wrong(target, Request::SetVringAddr, address.as_bytes())
        },
    ),
    hostile(
        "ring-stop-index-huge",
        "The base of a ring that does not exist cannot be had, and asking does no harm.",
        |target| wrong(target, Request::GetVringBase, &raw_state(u32::MAX, 0)),
    ),
    hostile(
        "ring-enable-index-huge",
        "Enabling a ring that does not exist does no harm.",
        |target| wrong(target, Request::SetVringEnable, &raw_state(u32::MAX, 1)),
    ),
    hostile(
        "kick-index-huge",
        "A kick descriptor for a ring that does not exist does no harm.",
        |target| {
            let event = EventFd::new()?;
            let front = target.shared()?.front;
            let body = 255_u64;
            front
                .try_it(Request::SetVringKick, body.as_bytes(), &[event.as_fd()])?
                .seen()
        },
    ),
    hostile(
        "ring-size-wrong",
        "Ring sizes of 0, of no power of two and above 32768 do no harm.",
        |target| {
            let mut seen = Vec::new();
            for size in [0, 3, 0xffff, 0x8000_0000] {
                let index = target.kind.rings() - 1;
                seen.push(wrong(target, Request::SetVringNum, &state(index, size))?);
            }
            Ok(seen.join(", "))
        },
    ),
    hostile(
        "descriptors-unneeded",
        "Descriptors that come with a request that takes none do no harm.",
        |target| {
            let event = EventFd::new()?;
            let front = target.negotiated(Manner::default())?.front;
            let fds = [event.as_fd(); FLOOD];
            front.try_it(Request::SetOwner, &[], &fds)?.seen()
        },
    ),
    hostile(
        "descriptors-kept",
        "Descriptors that came without need are closed: none is left when the connection is.",
        descriptors_kept,
    ),
    hostile(
        "descriptors-too-many",
        "A message with more descriptors than any may have does no harm.",
        |target| {
            let event = EventFd::new()?;
            let front = target.negotiated(Manner::default())?.front;
            let fds = vec![event.as_fd(); 250];
            let body = u64::from(target.kind.rings() - 1);
            front
                .try_it(Request::SetVringKick, body.as_bytes(), &fds)?
                .seen()
        },
    ),
    hostile(
        "kick-without-descriptor",
        "A kick message without its descriptor does no harm.",
        |target| {
            let body = u64::from(target.kind.rings() - 1);
            wrong(target, Request::SetVringKick, body.as_bytes())
        },
    ),
    hostile(
        "kick-is-a-file",
        "A kick descriptor that is a memory file does no harm.",
        |target| {
            let file = memfd::create("kick", 4096, Sealing::Open)?;
            odd_event(target, Request::SetVringKick, file)
        },
    ),
    hostile(
        "kick-is-closed",
        "A kick descriptor that is a pipe without a writer does no harm.",
        |target| {
            let (reader, _) = rustix::pipe::pipe().map_err(std::io::Error::from)?;
            odd_event(target, Request::SetVringKick, reader)
        },
    ),
    hostile(
        "call-is-full",
        "A call descriptor that cannot be written to without waiting holds nobody up.",
        |target| {
            let made = eventfd(0, EventfdFlags::CLOEXEC).map_err(std::io::Error::from)?;
            rustix::io::write(&made, &(u64::MAX - 1).to_ne_bytes())
                .map_err(std::io::Error::from)?;
            odd_event(target, Request::SetVringCall, made)
        },
    ),
    hostile(
        "call-is-a-file",
        "A call descriptor that is a memory file does no harm.",
        |target| {
            let file = memfd::create("call", 4096, Sealing::Open)?;
            odd_event(target, Request::SetVringCall, file)
        },
    ),
    hostile(
        "config-beyond",
        "Configuration space beyond its end, with offsets that wrap, cannot be had, and asking does no harm.",
        |target| config(target, Request::GetConfig, u32::MAX - 7, 8),
    ),
    hostile(
        "config-size-lies",
        "A configuration request whose size is not that of its bytes does no harm.",
        |target| config(target, Request::GetConfig, 0, u32::MAX),
    ),
    hostile(
        "config-written-beyond",
        "Configuration space cannot be written beyond its end.",
        |target| config(target, Request::SetConfig, 4096, 8),
    ),
    hostile(
        "requests-socket-is-a-file",
        "A memory file in place of the socket for requests of the back end does no harm.",
        |target| {
            let device = target.shared()?;
            device.needs(ProtocolFeatures::BACKEND_REQ, "BACKEND_REQ")?;
            let file = memfd::create("socket", 4096, Sealing::Open)?;
            let request = Request::SetBackendReqFd;
            device.front.try_it(request, &[], &[file.as_fd()])?.seen()
        },
    ),
    hostile(
        "features-not-offered",
        "Virtio features that were not offered, all of them, do no harm.",
        |target| wrong(target, Request::SetFeatures, u64::MAX.as_bytes()),
    ),
];

/// A rule about what must do no harm.
const fn hostile(
    name: &'static str,
    says: &'static str,
    check: fn(&Target) -> Result<String, Stop>,
) -> Rule {
    Rule {
        name,
        says,
        clause: SURVIVES,
        kinds: BOTH,
        check,
    }
}

fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    let header = Header {
        request,
        flags,
        size,
    };
    header.as_bytes().to_vec()
}

/// Sends this to a device that was set up, without rings.
fn wrong(target: &Target, request: Request, body: &[u8]) -> Result<String, Stop> {
    let front = target.shared()?.front;
    front.try_it(request, body, &[])?.seen()
}

/// Sends what is no whole message, and goes. Whoever waits for the rest waits in vain.
fn cut(target: &Target, bytes: &[u8]) -> Result<String, Stop> {
    let front = target.negotiated(Manner::default())?.front;
    front.send(bytes, &[]);
    Ok(match front.receive(target.settle)? {
        Answer::Closed => "closed the connection".into(),
        Answer::Nothing => "waits for the rest".into(),
        Answer::Message(header, _) => {
            let request = header.request;
            return Err(broken(format!(
                "a reply to request {request}, which nobody made"
            )));
        }
    })
}

/// Asks for configuration space that is not there; 8 bytes come with it.
fn config(target: &Target, request: Request, offset: u32, size: u32) -> Result<String, Stop> {
    let device = target.shared()?;
    device.needs(ProtocolFeatures::CONFIG, "CONFIG")?;
    let header = ConfigHeader {
        offset,
        size,
        flags: 0,
    };
    let body = [header.as_bytes(), &[0; 8]].concat();
    device.front.try_it(request, &body, &[])?.seen()
}

/// Starts a ring with this in place of one of its eventfds, and makes a request.
fn odd_event(target: &Target, what: Request, odd: OwnedFd) -> Result<String, Stop> {
    let mut device = target.shared()?;
    device.place()?;
    let body = u64::from(device.index());
    let reaction = device.front.try_it(what, body.as_bytes(), &[odd.as_fd()])?;
    let seen = reaction.seen()?;
    if seen == "closed the connection" || device.enable(1).is_err() {
        return Ok(seen);
    }
    let chain = device.request()?;
    device.submit(&chain)?;
    device.watch(target.settle)?;
    Ok(seen)
}

/// What the process of the target has open more after a flood of descriptors than after as many
/// front ends without one: some keep a few for each front end, which is another matter.
fn descriptors_kept(target: &Target) -> Result<String, Stop> {
    let event = EventFd::new()?;
    let flood: [BorrowedFd<'_>; FLOOD] = [event.as_fd(); FLOOD];
    let met = |fds: &[BorrowedFd<'_>]| {
        for _ in 0..FRONT_ENDS {
            let front = target.negotiated(Manner::default())?.front;
            front.try_it(Request::SetOwner, &[], fds)?.seen()?;
        }
        open(target)
    };
    let before = open(target)?;
    let honest = met(&[])?;
    let mut after = met(&flood)?;
    let deadline = Instant::now() + target.patience;
    // Some close later what they do not know.
    while after + before > 2 * honest + FRONT_ENDS * FLOOD / 2 {
        if Instant::now() >= deadline {
            return Err(broken(format!(
                "{before} were open, {honest} after {FRONT_ENDS} honest front ends, {after} after \
                 as many with {FLOOD} descriptors each"
            )));
        }
        thread::sleep(target.settle);
        after = open(target)?;
    }
    Ok(format!("{before} were open, {after} in the end"))
}

/// How many descriptors the process has open while it serves a front end.
fn open(target: &Target) -> Result<usize, Stop> {
    let device = target.serving()?;
    let unseen = || Stop::NotApplicable("its process cannot be looked at".into());
    let pid = device.front.pid().ok_or_else(unseen)?;
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).map_err(|_| unseen())?;
    Ok(entries.count())
}

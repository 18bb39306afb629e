//! What an honest front end relies on when it talks.

use std::thread;
use std::time::Duration;

use linkspan_vhost::message::Request;
use linkspan_vhost::wire::{self, Header};
use linkspan_vhost::{ProtocolFeatures, VHOST_USER_F_PROTOCOL_FEATURES};
use linkspan_virtio::Features;
use zerocopy::IntoBytes as _;

use super::BOTH;
use crate::device::{Manner, state};
use crate::front_end::{broken, number};
use crate::{Rule, Stop, Target};

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "reply-header",
        says: "A reply has the number of its request, version 1 and the reply bit, and a body of the size that it says.",
        clause: "vhost-user, Message Specification: Header",
        kinds: BOTH,
        check: |target| {
            let front = target.connect()?;
            let features = front.number(Request::GetFeatures)?;
            Ok(format!("features {features:#x}"))
        },
    },
    Rule {
        name: "version-1",
        says: "The device offers VIRTIO_F_VERSION_1.",
        clause: "virtio 1.3 6.1",
        kinds: BOTH,
        check: |target| {
            let offered = target.connect()?.number(Request::GetFeatures)?;
            match offered & Features::VIRTIO_F_VERSION_1.bits() {
                0 => Err(broken(format!("offers {offered:#x}"))),
                _ => Ok("offered".into()),
            }
        },
    },
    Rule {
        name: "protocol-features-at-once",
        says: "If VHOST_USER_F_PROTOCOL_FEATURES is offered, protocol features are told and taken before it is acknowledged.",
        clause: "vhost-user, VHOST_USER_GET_PROTOCOL_FEATURES",
        kinds: BOTH,
        check: protocol_features_at_once,
    },
    Rule {
        name: "acknowledges",
        says: "With REPLY_ACK negotiated, a request that asks for it is acknowledged with 0 when it is done.",
        clause: "vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK",
        kinds: BOTH,
        check: |target| {
            let device = target.negotiated(Manner::default())?;
            device.needs(ProtocolFeatures::REPLY_ACK, "REPLY_ACK")?;
            let body = state(device.index(), 64);
            device.front.tell(Request::SetVringNum, &body, &[])?;
            Ok("acknowledged with 0".into())
        },
    },
    Rule {
        name: "acknowledges-only-if-asked",
        says: "A request that does not ask for an acknowledgement gets none.",
        clause: "vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK",
        kinds: BOTH,
        check: |target| {
            let device = target.negotiated(Manner::default())?;
            let message = wire::encode(Request::SetVringNum.code(), 0, &state(device.index(), 64));
            let took = device.front.send(&message, &[]);
            let features = device.front.number(Request::GetFeatures)?;
            Ok(format!("taken: {took}; then features {features:#x}"))
        },
    },
    Rule {
        name: "one-reply",
        says: "A request that is always replied to gets one reply, also if it asks for an acknowledgement.",
        clause: "vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK",
        kinds: BOTH,
        check: |target| {
            let device = target.negotiated(Manner::default())?;
            device.needs(ProtocolFeatures::REPLY_ACK, "REPLY_ACK")?;
            let ask = Request::GetFeatures;
            device
                .front
                .send(&wire::encode(ask.code(), Header::NEED_REPLY, &[]), &[]);
            device.front.reply(ask)?;
            device.front.number(Request::GetProtocolFeatures)?;
            Ok("one".into())
        },
    },
    Rule {
        name: "queue-number",
        says: "With MQ offered, the number of queues is told and is enough for one device.",
        clause: "vhost-user, Multiple queue support",
        kinds: BOTH,
        check: |target| {
            let device = target.negotiated(Manner::default())?;
            device.needs(ProtocolFeatures::MQ, "MQ")?;
            match device.front.number(Request::GetQueueNum)? {
                count @ 1..=0x1_0000 => Ok(format!("{count}")),
                count => Err(broken(format!("{count} queues"))),
            }
        },
    },
    Rule {
        name: "memory-slots",
        says: "With CONFIGURE_MEM_SLOTS offered, there is at least one slot.",
        clause: "vhost-user, VHOST_USER_GET_MAX_MEM_SLOTS",
        kinds: BOTH,
        check: |target| {
            let device = target.negotiated(Manner::default())?;
            device.needs(ProtocolFeatures::CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS")?;
            match device.front.number(Request::GetMaxMemSlots)? {
                0 => Err(broken("no slot".into())),
                count => Ok(format!("{count}")),
            }
        },
    },
    Rule {
        name: "split-message",
        says: "A message is the same message if its bytes come one by one.",
        clause: "vhost-user, Communication: a stream socket",
        kinds: BOTH,
        check: |target| {
            let front = target.connect()?;
            let ask = Request::GetFeatures;
            for byte in wire::encode(ask.code(), 0, &[]) {
                front.send(&[byte], &[]);
                // Else they come together after all.
                thread::sleep(Duration::from_millis(5));
            }
            match number(&front.reply(ask)?) {
                Some(_) => Ok("answered".into()),
                None => Err(broken("another answer".into())),
            }
        },
    },
    Rule {
        name: "messages-at-once",
        says: "Messages that come in one piece are answered one by one, in order.",
        clause: "vhost-user, Communication: a stream socket",
        kinds: BOTH,
        check: |target| {
            let device = target.negotiated(Manner::default())?;
            let ask = |request: Request| wire::encode(request.code(), 0, &[]);
            let asks = [Request::GetFeatures, Request::GetProtocolFeatures];
            if device.offered & VHOST_USER_F_PROTOCOL_FEATURES == 0 {
                return Err(Stop::NotApplicable("no second question".into()));
            }
            device.front.send(&asks.map(ask).concat(), &[]);
            for request in asks {
                device.front.reply(request)?;
            }
            Ok("answered in order".into())
        },
    },
    Rule {
        name: "config-space",
        says: "With CONFIG offered, configuration space is read with the offset and the size that were asked for.",
        clause: "vhost-user, VHOST_USER_GET_CONFIG",
        kinds: BOTH,
        check: config_space,
    },
    Rule {
        name: "reconnects",
        says: "After a front end has gone in good order, the next one is served.",
        clause: "safety; vhost-user, Communication",
        kinds: BOTH,
        check: |target| {
            for _ in 0..3 {
                target.serving()?.stop()?;
            }
            Ok("three times".into())
        },
    },
];

fn protocol_features_at_once(target: &Target) -> Result<String, Stop> {
    let front = target.connect()?;
    if front.number(Request::GetFeatures)? & VHOST_USER_F_PROTOCOL_FEATURES == 0 {
        return Err(Stop::NotApplicable(
            "VHOST_USER_F_PROTOCOL_FEATURES is not offered".into(),
        ));
    }
    let offered = front.number(Request::GetProtocolFeatures)?;
    front.tell(
        Request::SetProtocolFeatures,
        (offered & ProtocolFeatures::MQ.bits()).as_bytes(),
        &[],
    )?;
    front.number(Request::GetFeatures)?;
    Ok(format!("protocol features {offered:#x}"))
}

fn config_space(target: &Target) -> Result<String, Stop> {
    let device = target.negotiated(Manner::default())?;
    let space = device.config()?;
    Ok(format!("{space:x?}"))
}

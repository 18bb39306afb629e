//! Messages about the whole device: log, in-flight region, reset, status,
//! request socket, state transfer.

use linkspan_vhost::backend::{Answer, Effect, Failure, FdSlot};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::InflightDescription;
use linkspan_vhost::{
    AreaError, Backend, Cause, Direction, Disposition, FdId, ProtocolFeatures, VHOST_F_LOG_ALL,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{BIT_30, INFLIGHT_BYTES, INFLIGHT_FD, Session, VERSION_1, addr, inflight};

const NOFD: u64 = 1 << 8;

fn log_body(size: u64, offset: u64) -> Vec<u8> {
    [size, offset].as_bytes().to_vec()
}

/// QEMU, DPDK and libvhost-user differ in what is in the reply; rust-vmm's
/// front end waits for the whole body (vhost #217, #342).
#[test]
fn set_log_base_is_answered_with_its_own_body() {
    let mut session = Session::ready();
    let body = log_body(0x2000, 0x1000);
    let outcome = session.send_fds(Request::SetLogBase, &body, 1);
    let [Effect::SetLog { log, fd }] = outcome.effects[..] else {
        panic!("{outcome:?}");
    };
    assert_eq!((log.size, log.offset, fd), (0x2000, 0x1000, FdSlot(0)));
    assert_eq!(outcome.reply(Request::SetLogBase), body);
    assert_eq!(session.backend.log(), Some(log));
}

/// QEMU 69a5daec06, 7f27d20ded: two replies to one message.
#[test]
fn need_reply_brings_no_second_reply_to_set_log_base() {
    let mut session = Session::ready();
    let outcome = session.ask(Request::SetLogBase, &log_body(1, 0), 1);
    assert_eq!(outcome.reply(Request::SetLogBase), log_body(1, 0));
}

/// QEMU 7c211eb078: a front end with many queues sent it once for each.
#[test]
fn a_second_log_replaces_the_first() {
    let mut session = Session::ready();
    session.run(0);
    for offset in [0, 0x1000] {
        let body = log_body(0x1000, offset);
        let outcome = session.send_fds(Request::SetLogBase, &body, 1);
        assert_eq!(outcome.reply(Request::SetLogBase), body);
        assert_eq!(session.backend.log().expect("a log").offset, offset);
    }
}

#[test]
fn a_log_that_wraps_or_is_empty_is_refused() {
    for (size, offset) in [(0, 0), (2, u64::MAX)] {
        let mut session = Session::ready();
        let body = log_body(size, offset);
        let error = session.send_fds(Request::SetLogBase, &body, 1).closed();
        let expected = AreaError::Range { size, offset };
        assert_eq!(error.cause(), &Cause::Area(expected));
        assert_eq!(session.backend.log(), None);
    }
}

#[test]
fn a_running_ring_begins_and_ceases_to_log() {
    let mut session = Session::ready();
    session.run(0);
    session
        .send_fds(Request::SetLogBase, &log_body(0x1000, 0), 1)
        .reply(Request::SetLogBase);
    for features in [VHOST_F_LOG_ALL, 0] {
        let features = VERSION_1 | BIT_30 | features;
        let effects = session.send(Request::SetFeatures, features.as_bytes()).ok();
        assert_eq!(effects, [Effect::SetFeatures(features)]);
        let mut logged = addr(0);
        logged.flags = u32::from(features & VHOST_F_LOG_ALL != 0);
        let effects = session.send(Request::SetVringAddr, logged.as_bytes()).ok();
        assert!(matches!(effects[..], [Effect::SetRingLog { ring: 0, .. }]));
    }
}

#[test]
fn the_log_descriptor_is_kept() {
    let mut session = Session::ready();
    let effects = session.send_fds(Request::SetLogFd, &[], 1).ok();
    assert_eq!(effects, [Effect::SetLogFd { fd: FdSlot(0) }]);
    assert!(session.backend.has_log_fd());
}

#[test]
fn an_inflight_region_is_made_and_sent() {
    // Those who pack their structures send 20 bytes and want 20 back.
    for len in [24, 20] {
        let mut session = Session::ready();
        let outcome = session.send(Request::GetInflightFd, &inflight(0, 3)[..len]);
        let effect = Effect::CreateInflight {
            queues: 3,
            queue_size: 64,
            features: Some(VERSION_1 | BIT_30),
        };
        assert_eq!(outcome.effects, [effect]);
        assert_eq!(outcome.fds, [INFLIGHT_FD]);
        let body = outcome.reply(Request::GetInflightFd);
        assert_eq!(body, inflight(INFLIGHT_BYTES, 3)[..len]);
        let known = session.backend.inflight().expect("a region");
        assert_eq!((known.queues, known.queue_size), (3, 64));
    }
}

/// libvhost-user ebdede644b: where no memfd can be had the session goes on without.
#[test]
fn without_memory_for_it_there_is_no_inflight_region() {
    let mut session = Session::ready();
    session.failure = Some(Failure::System);
    let outcome = session.ask(Request::GetInflightFd, &inflight(0, 3), 0);
    assert_eq!(outcome.fds, []);
    let body = outcome.reply(Request::GetInflightFd);
    let body = InflightDescription::read_from_bytes(&body).expect("24 bytes");
    assert_eq!(body.mmap_size, 0);
    assert_eq!(session.backend.inflight(), None);
}

/// libvhost-user fbdfdbb992: the number of queues was not checked.
#[test]
fn an_inflight_region_for_rings_that_do_not_exist_is_refused() {
    let rings = |queues, max| Cause::Area(AreaError::Queues { queues, max });
    for (request, fds) in [(Request::GetInflightFd, 0), (Request::SetInflightFd, 1)] {
        for queues in [0, 5, u16::MAX] {
            let mut session = Session::ready();
            let error = session.send_fds(request, &inflight(0x1000, queues), fds);
            assert_eq!(error.closed().cause(), &rings(queues, 4));
        }
        for size in [0u16, 1025] {
            let mut body = inflight(0x1000, 4);
            body[18..20].copy_from_slice(size.as_bytes());
            let error = Session::ready().send_fds(request, &body, fds).closed();
            assert!(
                matches!(error.cause(), Cause::Area(AreaError::QueueSize { .. })),
                "{error}"
            );
        }
    }
}

#[test]
fn an_inflight_region_is_adopted() {
    let mut session = Session::ready();
    let effects = session
        .send_fds(Request::SetInflightFd, &inflight(0x4000, 2), 1)
        .ok();
    let known = session.backend.inflight().expect("a region");
    assert_eq!((known.size, known.queues), (0x4000, 2));
    let effect = Effect::AdoptInflight {
        inflight: known,
        fd: FdSlot(0),
    };
    assert_eq!(effects, [effect]);
    let empty = session.ask(Request::SetInflightFd, &inflight(0, 2), 1);
    assert!(matches!(
        empty.nacked().cause(),
        Cause::Area(AreaError::Range { size: 0, .. })
    ));
    assert_eq!(session.backend.inflight(), Some(known));
}

#[test]
fn requests_in_flight_are_not_moved_under_a_running_ring() {
    let mut session = Session::ready();
    session.run(1);
    let outcome = session.ask(Request::SetInflightFd, &inflight(0x4000, 2), 1);
    let expected = AreaError::Running { ring: 1 };
    assert_eq!(outcome.nacked().cause(), &Cause::Area(expected));
}

#[test]
fn a_reset_stops_every_ring_before_the_device() {
    let mut session = Session::ready();
    session.run(0);
    session.run(2);
    session.send(Request::SetStatus, 15u64.as_bytes()).ok();
    let effects = session.ask(Request::ResetDevice, &[], 0);
    let expected = [
        Effect::StopRing { ring: 0 },
        Effect::StopRing { ring: 2 },
        Effect::ResetDevice,
    ];
    assert_eq!(effects.effects, expected);
    assert_eq!(effects.reply_u64(Request::ResetDevice), 0);
    assert_eq!(session.backend.features(), None);
    assert_eq!(session.backend.status(), 0);
    for ring in session.backend.rings() {
        assert!(!ring.running && !ring.enabled && ring.size.is_none());
    }
    // QEMU keeps its list of regions over a reset: it does not add them again.
    assert_eq!(session.backend.regions().len(), 1);
    let features = VERSION_1 | BIT_30;
    session.send(Request::SetFeatures, features.as_bytes()).ok();
    session.run(2);
    assert!(session.backend.rings()[2].running);
}

#[test]
fn a_connection_lost_within_a_reset_stops_the_rest() {
    let mut session = Session::ready();
    session.run(0);
    session.run(1);
    let message = linkspan_vhost::wire::encode(Request::ResetDevice.code(), 0, &[]);
    session.backend.receive(&message, 0).expect("a reset");
    let first = session.backend.poll_effect();
    assert_eq!(first, Some(Effect::StopRing { ring: 0 }));
    session.backend.disconnect();
    let stopped = Answer::RingStopped { base: 9 };
    session.backend.answer(Ok(stopped)).expect("an answer");
    assert_eq!(session.disconnect(), [Effect::StopRing { ring: 1 }]);
    assert_eq!(session.backend.rings()[0].base, 9);
}

#[test]
fn a_reset_owner_is_ignored() {
    let mut session = Session::ready();
    session.run(0);
    let before = session.backend.snapshot().expect("quiet");
    session.send(Request::ResetOwner, &[]).quiet();
    assert_eq!(session.backend.snapshot().expect("quiet"), before);
}

#[test]
fn the_status_is_kept_and_0_stops_all_rings() {
    let mut session = Session::ready();
    session.run(3);
    let effects = session.send(Request::SetStatus, 15u64.as_bytes()).ok();
    assert_eq!(effects, [Effect::SetStatus(15)]);
    let status = |session: &mut Session| {
        session
            .send(Request::GetStatus, &[])
            .reply_u64(Request::GetStatus)
    };
    assert_eq!(status(&mut session), 15);
    session.backend.set_needs_reset();
    assert_eq!(status(&mut session), 15 | 64);
    let effects = session.send(Request::SetStatus, 0u64.as_bytes()).ok();
    assert_eq!(
        effects,
        [Effect::StopRing { ring: 3 }, Effect::SetStatus(0)]
    );
    assert_eq!(status(&mut session), 0);
}

#[test]
fn a_status_has_8_bits() {
    let mut session = Session::ready();
    let error = session.ask(Request::SetStatus, 0x100u64.as_bytes(), 0);
    assert_eq!(error.nacked().cause(), &Cause::Status { value: 0x100 });
}

#[test]
fn a_socket_for_requests_is_kept() {
    let mut session = Session::ready();
    let outcome = session.ask(Request::SetBackendReqFd, &[], 1);
    assert_eq!(
        outcome.effects,
        [Effect::SetRequestSocket { fd: FdSlot(0) }]
    );
    assert_eq!(outcome.reply_u64(Request::SetBackendReqFd), 0);
    assert!(session.backend.has_request_socket());
}

#[test]
fn the_state_of_a_device_goes_through_the_channel_given_or_another() {
    for (wire, direction) in [(0u32, Direction::Save), (1, Direction::Load)] {
        let body = [wire, 0].as_bytes().to_vec();
        let mut session = Session::ready();
        let outcome = session.send_fds(Request::SetDeviceStateFd, &body, 1);
        let fd = FdSlot(0);
        assert_eq!(outcome.effects, [Effect::MoveState { direction, fd }]);
        assert_eq!(outcome.fds, []);
        assert_eq!(outcome.reply_u64(Request::SetDeviceStateFd), NOFD);
        session.answer = Some(Answer::StateChannel { fd: FdId(5) });
        let outcome = session.send_fds(Request::SetDeviceStateFd, &body, 1);
        assert_eq!(outcome.fds, [FdId(5)]);
        assert_eq!(outcome.reply_u64(Request::SetDeviceStateFd), 0);
        let checked = session.ask(Request::CheckDeviceState, &[], 0);
        assert_eq!(checked.effects, [Effect::CheckState]);
        assert_eq!(checked.reply_u64(Request::CheckDeviceState), 0);
    }
}

/// The reply to a state transfer can say that it failed; the session goes on,
/// since the source resumes after a failed migration.
#[test]
fn a_state_that_cannot_be_moved_is_an_error_in_the_reply() {
    let nack = |outcome: crate::Outcome| {
        let error = outcome.error.expect("an error");
        assert_eq!(error.disposition(), Disposition::Nack);
        assert_eq!(outcome.fds, []);
        let value = u64::read_from_bytes(&outcome.replies[0].1).expect("8 bytes");
        assert_eq!((value & 0xff != 0, value & NOFD), (true, NOFD));
        error
    };
    let save = [0u32, 0];
    let mut session = Session::ready();
    session.failure = Some(Failure::System);
    nack(session.send_fds(Request::SetDeviceStateFd, save.as_bytes(), 1));
    session.failure = Some(Failure::Rejected);
    nack(session.send(Request::CheckDeviceState, &[]));
    for (direction, phase) in [(2u32, 0u32), (0, 1)] {
        let body = [direction, phase];
        let error = nack(session.send_fds(Request::SetDeviceStateFd, body.as_bytes(), 1));
        assert_eq!(error.cause(), &Cause::DeviceState { direction, phase });
    }
    session.run(1);
    let error = nack(session.send_fds(Request::SetDeviceStateFd, save.as_bytes(), 1));
    assert_eq!(error.cause(), &Cause::StateOfRunning { ring: 1 });
}

/// A ring whose front end gives no kick descriptor is polled: the effect says so.
#[test]
fn a_polled_ring_is_an_effect_without_kick() {
    let mut session = Session::ready();
    session.set_up(0);
    let effects = session.send(Request::SetVringKick, NOFD.as_bytes()).ok();
    assert!(matches!(
        effects[..],
        [Effect::StartRing { kick: None, .. }]
    ));
    assert!(session.backend.rings()[0].running);
    let effects = session.send(Request::SetVringKick, NOFD.as_bytes()).ok();
    assert_eq!(
        effects,
        [Effect::SetKick {
            ring: 0,
            kick: None
        }]
    );
}

#[test]
fn nothing_of_it_is_done_without_its_feature() {
    let mut session = Session::ready_with(VERSION_1 | BIT_30, ProtocolFeatures::empty());
    let before = session.backend.snapshot().expect("quiet");
    let outcome = session.send_fds(Request::SetDeviceStateFd, &[0; 8], 1);
    assert_eq!(outcome.effects, []);
    assert_eq!(session.backend.snapshot().expect("quiet"), before);
    for (request, body, fds) in [
        (Request::SetLogBase, log_body(1, 0), 1),
        (Request::SetBackendReqFd, vec![], 1),
        (Request::ResetDevice, vec![], 0),
        (Request::SetStatus, vec![0; 8], 0),
        (Request::SetInflightFd, inflight(1, 1), 1),
    ] {
        let mut session = Session::ready_with(VERSION_1 | BIT_30, ProtocolFeatures::empty());
        let error = session.send_fds(request, &body, fds).closed();
        assert!(matches!(error.cause(), Cause::NotNegotiated { .. }));
    }
}

#[test]
fn saved_and_restored_with_everything() {
    let mut session = Session::ready();
    session
        .send_fds(Request::SetLogBase, &log_body(0x1000, 0x2000), 1)
        .reply(Request::SetLogBase);
    session.send_fds(Request::SetLogFd, &[], 1).ok();
    session.send_fds(Request::SetBackendReqFd, &[], 1).ok();
    session
        .send_fds(Request::SetInflightFd, &inflight(0x4000, 2), 1)
        .ok();
    session.send(Request::SetStatus, 15u64.as_bytes()).ok();
    session.backend.set_needs_reset();
    let saved = session.backend.snapshot().expect("quiet");
    let restored = Backend::restore(crate::offer(), &saved).expect("a session");
    let old = &session.backend;
    assert_eq!(restored.log(), old.log());
    assert_eq!(restored.inflight(), old.inflight());
    assert_eq!(restored.status(), 15 | 64);
    assert!(restored.has_log_fd() && restored.has_request_socket());
    assert_eq!(restored.snapshot().expect("quiet"), saved);
}

/// No reply can say that some rings are stopped and others are not.
#[test]
fn half_a_reset_ends_the_session() {
    for request in [Request::ResetDevice, Request::SetStatus] {
        let body = vec![0; *request.message().payload.sizes().start()];
        for wrong in [false, true] {
            let mut session = Session::ready();
            session.run(0);
            session.run(1);
            let message = linkspan_vhost::wire::encode(request.code(), 8, &body);
            let (head, rest) = message.split_at(12);
            session.backend.receive(head, 0).expect("a header");
            if !rest.is_empty() {
                session.backend.receive(rest, 0).expect("a body");
            }
            session.backend.poll_effect().expect("a ring to stop");
            let answer = if wrong {
                Ok(Answer::Done)
            } else {
                Err(Failure::System)
            };
            let error = session.backend.answer(answer).expect_err("failed");
            assert_eq!(error.disposition(), Disposition::CloseLink);
            assert!(!session.backend.rings()[0].running);
            assert_eq!(session.disconnect(), [Effect::StopRing { ring: 1 }]);
        }
    }
}

/// vhost-user, `VHOST_USER_NET_SET_MTU` and `VHOST_USER_SEND_RARP`.
#[test]
fn a_network_is_told_an_mtu_and_who_has_come() {
    let protocol = ProtocolFeatures::NET_MTU | ProtocolFeatures::RARP | ProtocolFeatures::REPLY_ACK;
    let mut session = Session::ready_with(VERSION_1 | BIT_30, protocol);
    for mtu in [68, 1500, 65535] {
        let outcome = session.send(Request::NetSetMtu, &u64::from(mtu).to_ne_bytes());
        assert_eq!(outcome.ok(), [Effect::SetMtu { mtu }]);
    }
    for mtu in [0, 67, 65536, u64::MAX] {
        let error = session
            .ask(Request::NetSetMtu, &mtu.to_ne_bytes(), 0)
            .nacked();
        assert_eq!(*error.cause(), Cause::Mtu { mtu });
    }
    let mac = [2, 3, 4, 5, 6, 7];
    let outcome = session.send(Request::SendRarp, &[2, 3, 4, 5, 6, 7, 0, 0]);
    assert_eq!(outcome.ok(), [Effect::SendRarp { mac }]);
    session.failure = Some(Failure::Rejected);
    let refused = session.ask(Request::SendRarp, &[0xFF; 8], 0);
    assert_eq!(*refused.nacked().cause(), Cause::Failed(Failure::Rejected));
}

#[test]
fn what_is_for_networks_needs_its_feature() {
    for request in [Request::NetSetMtu, Request::SendRarp] {
        let mut session = Session::ready_with(VERSION_1 | BIT_30, ProtocolFeatures::empty());
        session.send(request, &1500_u64.to_ne_bytes()).closed();
    }
}

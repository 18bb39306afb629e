//! Random conversations.

use linkspan_vhost::backend::{Answer, Effect, Failure};
use linkspan_vhost::message::FRONTEND_REQUESTS;
use linkspan_vhost::wire::{self, Header};
use linkspan_vhost::{Backend, Disposition, FdId, ProtocolFeatures};
use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use crate::{BIT_30, Session, VERSION_1, addr, offer, region, single, state, table_of};

#[derive(Clone, Debug)]
struct Step {
    request: u32,
    flags: u32,
    body: Vec<u8>,
    fds: usize,
    piece: usize,
    fails: bool,
}

fn message() -> impl Strategy<Value = (u32, Vec<u8>, usize)> {
    let ring = || 0u16..5;
    let place = (0u64..6, 1u64..4).prop_map(|(at, size)| region(at << 12, size << 12, at << 12));
    let features = prop_oneof![
        Just(VERSION_1),
        Just(VERSION_1 | BIT_30),
        Just(VERSION_1 | BIT_30 | 1 << 26),
        Just(VERSION_1 | BIT_30 | 1 << 34),
        any::<u64>(),
    ];
    let state_code = prop_oneof![Just(8u32), Just(10), Just(11), Just(18)];
    let num = prop_oneof![0u32..3, Just(256), Just(1000), any::<u32>()];
    let fd_code = 12u32..=14;
    let fd_value = (0u64..5, any::<bool>()).prop_map(|(ring, nofd)| (ring, nofd));
    prop_oneof![
        1 => features.prop_map(|bits| (2, bits.as_bytes().to_vec(), 0)),
        1 => Just((16, Backend::PROTOCOL_FEATURES.bits().as_bytes().to_vec(), 0)),
        6 => (state_code, ring(), num).prop_map(|(code, ring, num)| (code, state(ring, num), 0)),
        3 => (ring(), 0u32..3).prop_map(|(ring, flags)| {
            let mut addr = addr(ring);
            addr.flags = flags;
            (9, addr.as_bytes().to_vec(), 0)
        }),
        6 => (fd_code, fd_value).prop_map(|(code, (ring, nofd))| {
            let value = ring | u64::from(nofd) << 8;
            (code, value.as_bytes().to_vec(), usize::from(!nofd))
        }),
        2 => (37u32..=38, place.clone()).prop_map(|(code, place)| {
            (code, single(place), usize::from(code == 37))
        }),
        1 => vec(place, 0..4).prop_map(|places| (5, table_of(&places), places.len())),
        2 => (24u32..=25, 0u32..100, 0u32..100, 0u32..3).prop_map(|(code, offset, size, flags)| {
            let mut body = [offset, size, flags].as_bytes().to_vec();
            body.resize(12 + size as usize, 0);
            (code, body, 0)
        }),
        2 => (31u32..=32, 0u64..2, 0u16..6, 0u16..3).prop_map(|(code, size, queues, entries)| {
            let mut body = [size, 0].as_bytes().to_vec();
            body.extend([queues, entries, 0, 0].as_bytes());
            (code, body, usize::from(code == 32))
        }),
        1 => Just((34, Vec::new(), 0)),
        1 => (0u64..16).prop_map(|status| (39, status.as_bytes().to_vec(), 0)),
        1 => (0u32..3).prop_map(|way| (42, [way, 0].as_bytes().to_vec(), 1)),
        2 => (0u32..50, vec(any::<u8>(), 0..80), 0usize..4),
        1 => (0usize..44).prop_map(|at| {
            let row = &FRONTEND_REQUESTS[at];
            (row.code, vec![0; *row.payload.sizes().start()], row.min_fds)
        }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![1 => Just(0u32), 6 => Just(Header::NEED_REPLY)];
    (message(), flags, 1usize..60, proptest::bool::weighted(0.1)).prop_map(
        |((request, body, fds), flags, piece, fails)| Step {
            request,
            flags,
            body,
            fds,
            piece,
            fails,
        },
    )
}

/// What a naive engine knows, to tell whether the effects make sense to it.
#[derive(Debug, Default)]
struct Engine {
    running: [bool; 4],
    enabled: [bool; 4],
    regions: Vec<(u64, u64)>,
    features: Option<u64>,
}

impl Engine {
    fn carry_out(&mut self, effect: &Effect, fds: usize) -> Answer {
        if let Some(answer) = self.carry_out_on_ring(effect, fds) {
            return answer;
        }
        match effect {
            Effect::SetFeatures(features) => {
                let running = self.running.contains(&true);
                let changed = self.features.unwrap_or(0) ^ features;
                assert!(!running || changed & !(1 << 26) == 0);
                self.features = Some(*features);
            }
            Effect::SetMemory(regions) => {
                assert_eq!(regions.len(), fds);
                self.regions = regions
                    .iter()
                    .map(|r| (r.guest_address.0, r.size))
                    .collect();
            }
            Effect::AddRegion(region) => {
                assert_eq!(fds, 1);
                self.regions.push((region.guest_address.0, region.size));
            }
            Effect::RemoveRegion(region) => {
                let gone = (region.guest_address.0, region.size);
                let at = self.regions.iter().position(|known| *known == gone);
                self.regions
                    .remove(at.expect("only a known region is removed"));
            }
            Effect::ReadConfig { offset, size } => {
                assert!(*size > 0 && offset + size <= 96);
                return Answer::Config(vec![0; *size as usize]);
            }
            Effect::WriteConfig { offset, bytes, .. } => {
                assert!(!bytes.is_empty() && *offset as usize + bytes.len() <= 96);
            }
            Effect::SetLog { fd, .. }
            | Effect::SetLogFd { fd }
            | Effect::SetGpuSocket { fd }
            | Effect::SetRequestSocket { fd }
            | Effect::AdoptInflight { fd, .. }
            | Effect::MoveState { fd, .. } => {
                assert!(fd.0 < fds);
                let moves = matches!(effect, Effect::MoveState { .. });
                let adopts = matches!(effect, Effect::AdoptInflight { .. });
                assert!(!(moves || adopts) || self.running == [false; 4]);
            }
            Effect::CreateInflight {
                queues, queue_size, ..
            } => {
                assert!((1..=4).contains(queues) && (1..=1024).contains(queue_size));
                return Answer::Inflight {
                    size: 4096,
                    offset: 0,
                    fd: FdId(1),
                };
            }
            Effect::ResetDevice => {
                assert_eq!(self.running, [false; 4]);
                self.features = None;
            }
            Effect::SetStatus(status) => {
                assert!(*status != 0 || self.running == [false; 4]);
            }
            Effect::CheckState | Effect::SendRarp { .. } => {}
            Effect::SetMtu { mtu } => assert!(*mtu >= 68),
            other => panic!("{other:?}"),
        }
        Answer::Done
    }

    /// `None`: the effect is not one on a ring.
    fn carry_out_on_ring(&mut self, effect: &Effect, fds: usize) -> Option<Answer> {
        match effect {
            Effect::StartRing { ring, setup, kick } => {
                let ring = usize::from(*ring);
                assert!(!self.running[ring]);
                assert!((1..=1024).contains(&setup.size));
                let packed = setup.features & (1 << 34) != 0;
                assert!(packed || (setup.size.is_power_of_two() && setup.base <= 0xffff));
                assert_eq!(Some(setup.features), self.features);
                assert!(kick.is_none_or(|slot| slot.0 < fds));
                self.running[ring] = true;
                self.enabled[ring] = setup.enabled;
            }
            Effect::SetKick { ring, .. } | Effect::SetRingLog { ring, .. } => {
                assert!(self.running[usize::from(*ring)]);
            }
            Effect::SetCall { call: fd, .. } | Effect::SetErr { err: fd, .. } => {
                assert!(fd.is_none_or(|slot| slot.0 < fds));
            }
            Effect::EnableRing { ring, enabled } => {
                let ring = usize::from(*ring);
                assert!(self.running[ring] && self.enabled[ring] != *enabled);
                self.enabled[ring] = *enabled;
            }
            Effect::StopRing { ring } => {
                assert!(core::mem::take(&mut self.running[usize::from(*ring)]));
                return Some(Answer::RingStopped { base: 3 });
            }
            _ => return None,
        }
        Some(Answer::Done)
    }

    fn agree(&self, backend: &Backend) {
        assert_eq!(backend.features(), self.features);
        let regions: Vec<_> = backend
            .regions()
            .iter()
            .map(|r| (r.guest_address.0, r.size))
            .collect();
        assert_eq!(regions, self.regions);
        for (at, ring) in backend.rings().iter().enumerate() {
            assert_eq!(ring.running, self.running[at]);
            assert!(!ring.running || ring.enabled == self.enabled[at]);
        }
    }
}

/// Sends one message; returns whether the session goes on.
fn exchange(session: &mut Session, engine: &mut Engine, step: &Step) -> bool {
    let message = wire::encode(step.request, step.flags, &step.body);
    let mut rest = message.as_slice();
    let mut fds = step.fds;
    let mut replies = 0;
    let mut fails = step.fails;
    let mut errors = Vec::new();
    while !rest.is_empty() {
        let count = session.backend.wanted().min(step.piece).min(rest.len());
        assert!(count > 0);
        let (now, later) = rest.split_at(count);
        rest = later;
        errors.extend(session.backend.receive(now, fds).err());
        fds = 0;
        while let Some(effect) = session.backend.poll_effect() {
            if let Effect::Send { bytes, .. } = effect {
                let (header, body) = Header::read_from_prefix(&bytes).expect("a header");
                assert_eq!((header.request, header.flags), (step.request, 5));
                assert_eq!(header.size as usize, body.len());
                replies += 1;
                continue;
            }
            let stops = matches!(effect, Effect::StopRing { .. });
            let answer = if core::mem::take(&mut fails) && !stops {
                Err(Failure::System)
            } else {
                Ok(engine.carry_out(&effect, step.fds))
            };
            errors.extend(session.backend.answer(answer).err());
        }
    }
    assert!(replies <= 1 && errors.len() <= 1);
    match errors.pop() {
        Some(error) if error.disposition() == Disposition::CloseLink => false,
        Some(_) => {
            assert_eq!(replies, 1);
            true
        }
        None => {
            let asked = step.flags & Header::NEED_REPLY != 0
                && session
                    .backend
                    .protocol_features()
                    .contains(ProtocolFeatures::REPLY_ACK);
            assert!(!asked || replies == 1);
            true
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn effects_always_make_sense_to_an_engine(steps in vec(step(), 0..80)) {
        let mut session = Session::ready();
        let mut engine = Engine {
            features: session.backend.features(),
            regions: vec![(0, 0x10_0000)],
            ..Engine::default()
        };
        for step in &steps {
            let goes_on = exchange(&mut session, &mut engine, step);
            engine.agree(&session.backend);
            if !goes_on {
                break;
            }
            let saved = session.backend.snapshot().expect("quiet");
            session.backend = Backend::restore(offer(), &saved).expect("a session");
            engine.agree(&session.backend);
        }
        session.backend.disconnect();
        while let Some(effect) = session.backend.poll_effect() {
            let answer = engine.carry_out(&effect, 0);
            session.backend.answer(Ok(answer)).expect("a ring that stops");
        }
        prop_assert!(session.backend.is_over());
        prop_assert_eq!(engine.running, [false; 4]);
    }

    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..200), fds in vec(0usize..10, 0..20)) {
        let mut backend = Backend::new(offer()).expect("an offer");
        let mut rest = bytes.as_slice();
        let mut fds = fds.into_iter();
        while !rest.is_empty() {
            let count = backend.wanted().min(rest.len());
            if count == 0 || backend.receive(&rest[..count], fds.next().unwrap_or(0)).is_err() {
                break;
            }
            rest = &rest[count..];
            while let Some(effect) = backend.poll_effect() {
                if effect.needs_answer() && backend.answer(Err(Failure::Rejected)).is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_no_session(bytes in vec(any::<u8>(), 0..400)) {
        prop_assert!(Backend::restore(offer(), &bytes).is_err());
    }
}

//! Rings against a queue that cannot be wrong.

use std::collections::VecDeque;

use linkspan_vmbus::SendError;
use linkspan_vmbus::packet::Header;
use proptest::prelude::*;

use crate::Rig;

/// Packets of every length, in rings of all sizes that devices have, so that they go
/// over the end at every 8 bytes.
#[test]
fn packets_wrap_at_any_8_bytes() {
    for (len, header) in [
        (16 << 10, 4 << 10),
        (20 << 10, 4 << 10),
        (68 << 10, 4 << 10),
        (2 << 20, 4 << 10),
        (32 << 10, 16 << 10),
        (80 << 10, 64 << 10),
    ] {
        let mut rig = Rig::shaped(len, header);
        let mut id = 0_u64;
        // The whole ring twice, in steps that leave no place out in the small ones.
        for payload in (0..3000_usize).chain((6000..6300).step_by(7)).take(4000) {
            id += 1;
            let bytes: Vec<u8> = (0..payload)
                .map(|at| (at as u64 ^ id).to_le_bytes()[0])
                .collect();
            assert!(rig.post(id, &bytes), "it was empty");
            rig.incoming.refresh().unwrap();
            let (got, mut found) = rig.take().expect("a packet");
            assert_eq!(got, id);
            assert!(found.len() < payload + 8 && found[payload..].iter().all(|byte| *byte == 0));
            found.truncate(payload);
            assert_eq!(found, bytes);
            rig.incoming.release().unwrap();
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send(Vec<usize>),
    Publish,
    Receive(usize),
    Release,
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => proptest::collection::vec(0..3000_usize, 1..4).prop_map(Step::Send),
        3 => Just(Step::Publish),
        3 => (1..6_usize).prop_map(Step::Receive),
        2 => Just(Step::Release),
        1 => Just(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_pair_agrees_with_a_naive_model(steps in proptest::collection::vec(step(), 1..200)) {
        let mut rig = Rig::new(16 << 10);
        let (mut hidden, mut shown) = (VecDeque::new(), VecDeque::new());
        // Bytes that each packet takes, until they are given back.
        let (mut used, mut read) = (0, 0);
        let mut id = 0;
        for step in steps {
            match step {
                Step::Send(parts) => {
                    id += 1;
                    let parts: Vec<Vec<u8>> = parts.iter().map(|len| vec![id; *len]).collect();
                    let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                    let payload: usize = parts.iter().map(Vec::len).sum();
                    let need = (payload + 16).next_multiple_of(8) + 8;
                    let sent = rig.outgoing.send(Header::in_band(id.into()), &slices);
                    if used + need < 12288 {
                        prop_assert_eq!(sent, Ok(()));
                        used += need;
                        hidden.push_back((id, payload, need));
                    } else {
                        let full = matches!(sent, Err(SendError::Full { need: told, free })
                            if told as usize == need && free as usize == 12288 - used);
                        prop_assert!(full, "{sent:?} with {used} used");
                    }
                }
                Step::Publish => {
                    let empty = shown.is_empty() && read == 0;
                    let any = !hidden.is_empty();
                    shown.append(&mut hidden);
                    prop_assert_eq!(rig.outgoing.publish(), Ok(empty && any));
                }
                Step::Receive(count) => {
                    rig.incoming.refresh().unwrap();
                    for _ in 0..count {
                        let want = shown.pop_front();
                        let got = rig.take();
                        prop_assert_eq!(got.is_some(), want.is_some());
                        if let (Some((got, bytes)), Some((id, payload, need))) = (got, want) {
                            prop_assert_eq!(got, u64::from(id));
                            prop_assert!(bytes[..payload].iter().all(|byte| *byte == id));
                            read += need;
                        }
                    }
                }
                Step::Release => {
                    rig.incoming.release().unwrap();
                    used -= std::mem::take(&mut read);
                }
                Step::Wait => {
                    shown.append(&mut hidden);
                    rig.outgoing.publish().unwrap();
                    let room = rig.outgoing.wait_for(4000).unwrap();
                    prop_assert_eq!(room, 12288 - used > 4000);
                    rig.outgoing.stop_waiting();
                }
            }
            if id == u8::MAX {
                break;
            }
        }
    }
}

//! The end that drives the device, and has the memory.

use std::collections::BTreeMap;

use linkspan_mem::Iova;
use linkspan_vfio::client::{Answer, Ask, Heard, Question};
use linkspan_vfio::wire::errno;
use linkspan_vfio::{self as vfio, Capabilities, DmaMap, IrqAction, IrqData, SetIrqs};

use super::{Plan, REGION};
use crate::{Rng, Sim};

/// Bytes of a map.
const MAP: u64 = 0x1000;

/// What is in the client's memory.
pub(crate) fn memory(address: u64, count: usize) -> Vec<u8> {
    let byte = |at: u64| (at.wrapping_mul(31) >> 3).to_le_bytes()[0];
    (address..).map(byte).take(count).collect()
}

/// What waits for its answer.
#[derive(Clone, Debug)]
enum Waiting {
    /// A read, and what it has to bring.
    Read(Vec<u8>),
    Writes(Vec<(usize, Vec<u8>)>),
    Map(DmaMap),
    Unmap(DmaMap),
    Irqs,
    Reset,
    Info,
}

pub(crate) struct Client {
    pub(crate) core: vfio::Client,
    pub(crate) agreed: bool,
    pub(crate) waiting: BTreeMap<u16, WaitingOf>,
    /// What the device asks.
    pub(crate) questions: Vec<Question>,
    /// Memory that is mapped, in the order of its addresses.
    pub(crate) maps: Vec<DmaMap>,
    /// The region, once all is done that was asked for.
    pub(crate) region: Vec<u8>,
    next: u64,
}

/// In the order in which they were asked.
pub(crate) struct WaitingOf(u64, Waiting);

impl Client {
    /// The first message comes with it.
    pub(crate) fn new(plan: &Plan, region: Vec<u8>) -> (Self, Vec<u8>) {
        let wish = Capabilities {
            msg_fds: 8,
            write_multiple: plan.write_multiple,
            ..Capabilities::default()
        };
        let (core, first) = vfio::Client::new(wish);
        let client = Self {
            core,
            agreed: false,
            waiting: BTreeMap::new(),
            questions: Vec::new(),
            maps: Vec::new(),
            region,
            next: 0,
        };
        (client, first)
    }

    /// Asks for something: a message, and its descriptors.
    pub(crate) fn ask(&mut self, plan: &Plan, sim: &mut Sim) -> Option<(Vec<u8>, usize)> {
        let rng = &mut sim.rng;
        let at = rng.index(REGION - 16);
        let (waiting, ask, fds) = match rng.below(12) {
            0..4 => {
                let bytes = self.write(at, rng);
                let (region, offset) = (0, at as u64);
                let id = self.core.ask(&Ask::Write {
                    region,
                    offset,
                    bytes: &bytes,
                });
                (Waiting::Writes(vec![(at, bytes)]), id, 0)
            }
            4 if plan.write_multiple => {
                let places = [at, rng.index(REGION - 8)];
                let writes = places.map(|at| {
                    let len = 1 << rng.below(4);
                    (at, self.write_len(at, len, rng))
                });
                let asked = writes
                    .each_ref()
                    .map(|(at, bytes)| (0, *at as u64, &bytes[..]));
                let id = self.core.ask(&Ask::WriteMulti(&asked));
                (Waiting::Writes(writes.to_vec()), id, 0)
            }
            5 | 6 => {
                let map = new_map(rng);
                let id = self.core.ask(&Ask::Map(map));
                (Waiting::Map(map), id, map.shared.into())
            }
            7 if !self.maps.is_empty() => {
                let map = self.maps[rng.index(self.maps.len())];
                let (address, size) = (map.address, map.size);
                let id = self.core.ask(&Ask::Unmap { address, size });
                (Waiting::Unmap(map), id, 0)
            }
            8 => {
                let count = 1 + rng.small(4);
                let set = SetIrqs {
                    index: 0,
                    start: 0,
                    count,
                    action: IrqAction::Trigger,
                    data: IrqData::Events,
                };
                let id = self.core.ask(&Ask::SetIrqs(&set));
                (Waiting::Irqs, id, count as usize)
            }
            9 => (Waiting::Reset, self.core.ask(&Ask::Reset), 0),
            10 => (Waiting::Info, self.core.ask(&Ask::Info), 0),
            _ => {
                let count = 1 + rng.index(16);
                let want = self.region[at..at + count].to_vec();
                let (region, offset) = (0, at as u64);
                let count = u32::try_from(count).expect("small");
                let id = self.core.ask(&Ask::Read {
                    region,
                    offset,
                    count,
                });
                (Waiting::Read(want), id, 0)
            }
        };
        let (id, bytes) = ask.expect("few questions, of which each is agreed upon");
        self.next += 1;
        let waits = self.waiting.insert(id, WaitingOf(self.next, waiting));
        assert!(waits.is_none(), "number {id} is used twice");
        Some((bytes, fds))
    }

    fn write(&mut self, at: usize, rng: &mut Rng) -> Vec<u8> {
        let len = 1 + rng.index(16);
        self.write_len(at, len, rng)
    }

    fn write_len(&mut self, at: usize, len: usize, rng: &mut Rng) -> Vec<u8> {
        let bytes = rng.bytes(len);
        self.region[at..at + len].copy_from_slice(&bytes);
        bytes
    }

    /// Answers one of the device's questions.
    pub(crate) fn reply(&mut self, sim: &mut Sim, changed: bool) -> Option<Vec<u8>> {
        let at = sim.rng.index(self.questions.len());
        let question = self.questions.swap_remove(at);
        let address = question.address.0;
        let mut bytes = memory(address, question.count as usize);
        let read = match &question.write {
            Some(written) => {
                assert_eq!(*written, bytes, "other memory was written");
                Vec::new()
            }
            None => {
                bytes[0] ^= u8::from(changed && sim.rng.percent(5));
                bytes
            }
        };
        self.core.answer(&question, Ok(&read))
    }

    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        fds: usize,
        acknowledged: &mut [u8],
        sim: &mut Sim,
    ) {
        let heard = self.core.receive(bytes, fds);
        match heard.expect("a server of ours keeps to the protocol") {
            None => {}
            Some(Heard::Agreed(_)) => self.agreed = true,
            Some(Heard::Asked(question)) => self.questions.push(question),
            Some(Heard::Answer { id, answer }) => self.answered(id, answer, acknowledged, sim),
            Some(other) => panic!("{other:?}"),
        }
    }

    fn answered(&mut self, id: u16, answer: Answer, acknowledged: &mut [u8], sim: &mut Sim) {
        let waiting = self.waiting.remove(&id);
        let WaitingOf(_, waiting) = waiting.unwrap_or_else(|| panic!("{id} is answered twice"));
        let refused = |answer: &Answer, numbers: &[u32]| matches!(answer, Answer::Refused(number) if numbers.contains(number));
        match waiting {
            Waiting::Read(want) => {
                sim.count("reads");
                assert!(
                    answer == Answer::Bytes(want.clone()),
                    "{answer:?} is read, and not {want:?}"
                );
            }
            Waiting::Writes(writes) => {
                sim.count("writes");
                assert_eq!(answer, Answer::Done);
                for (at, bytes) in writes {
                    acknowledged[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
            Waiting::Map(map) => self.mapped(map, &answer, sim),
            Waiting::Unmap(map) => match answer {
                Answer::Done => {
                    sim.count("maps taken back");
                    self.maps.retain(|it| it.address != map.address);
                }
                // It was taken back by a question before.
                _ => assert!(refused(&answer, &[errno::ENOENT]), "{answer:?}"),
            },
            Waiting::Irqs => {
                sim.count("interrupts set");
                assert_eq!(answer, Answer::Done);
            }
            Waiting::Reset => {
                let known = answer == Answer::Done || refused(&answer, &[errno::ENOMEM]);
                assert!(known, "{answer:?}");
            }
            Waiting::Info => assert!(matches!(answer, Answer::Info(_)), "{answer:?}"),
        }
    }

    /// What became of a map: as the maps say that are answered before it.
    fn mapped(&mut self, map: DmaMap, answer: &Answer, sim: &mut Sim) {
        let there = self.maps.iter().find(|it| it.address == map.address);
        match answer {
            Answer::Done if there == Some(&map) => {}
            Answer::Done => {
                assert_eq!(there, None, "two maps of one address");
                sim.count("maps");
                self.maps.push(map);
                self.maps.sort_by_key(|it| it.address.0);
            }
            Answer::Refused(errno::EEXIST) => assert!(there.is_some(), "no other map is there"),
            Answer::Refused(errno::ENOMEM | errno::ENOSPC) => sim.count("maps refused"),
            other => panic!("{other:?}"),
        }
    }

    /// Writes that were not answered, in the order in which they were asked for.
    pub(crate) fn unknown(self) -> Vec<(usize, Vec<u8>)> {
        let mut waiting: Vec<_> = self.waiting.into_values().collect();
        waiting.sort_by_key(|it| it.0);
        let writes = waiting.into_iter().filter_map(|it| match it.1 {
            Waiting::Writes(writes) => Some(writes),
            _ => None,
        });
        writes.flatten().collect()
    }
}

fn new_map(rng: &mut Rng) -> DmaMap {
    DmaMap {
        address: Iova(MAP * rng.below(6)),
        size: MAP,
        offset: 0,
        readable: true,
        writable: true,
        shared: rng.percent(30),
    }
}

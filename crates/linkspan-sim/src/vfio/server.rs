//! The end with the device.

use std::collections::BTreeMap;

use linkspan_mem::Iova;
use linkspan_vfio::server::{Answer, Effect};
use linkspan_vfio::wire::errno;
use linkspan_vfio::{self as vfio, Disposition, FdId};

use super::Plan;
use super::client::memory;
use crate::{Rng, Sim};

pub(crate) struct Server {
    pub(crate) core: vfio::Server,
    /// What the device is asked for.
    pub(crate) work: Option<Effect>,
    /// Effects that are refused.
    pub(crate) refuses: u64,
    pub(crate) questions_left: u64,
    /// What the device asked for and was not told: where, and how many bytes if it reads.
    pub(crate) asked: BTreeMap<u16, (u64, Option<usize>)>,
    /// A write that is done once more, as a fault of the model.
    again: Option<(usize, Vec<u8>)>,
}

impl Server {
    pub(crate) fn new(plan: &Plan, rng: &mut Rng) -> Self {
        Self {
            core: vfio::Server::new(plan.offer()),
            work: None,
            refuses: 0,
            questions_left: rng.below(20),
            asked: BTreeMap::new(),
            again: None,
        }
    }

    /// Carries out what takes no time; what is to be sent, with its descriptors.
    pub(crate) fn proceed(&mut self, sim: &mut Sim) -> Vec<(Vec<u8>, usize)> {
        let mut sent = Vec::new();
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::Send { bytes, fds } => sent.push((bytes, fds.len())),
                Effect::Told { id, result } => {
                    let asked = self.asked.remove(&id);
                    let (address, count) = asked.unwrap_or_else(|| panic!("{id} is told twice"));
                    let bytes = result.expect("the client answers all");
                    match count {
                        Some(count) => {
                            sim.count("memory read");
                            assert!(bytes == memory(address, count), "other memory was read");
                        }
                        None => sim.count("memory written"),
                    }
                }
                effect => {
                    assert!(self.work.is_none(), "the device is asked for two things");
                    self.work = Some(effect);
                }
            }
        }
        sent
    }

    /// The device does what it was asked for.
    pub(crate) fn work(&mut self, region: &mut [u8], lost: bool, twice: bool) {
        let Some(effect) = self.work.take() else {
            return;
        };
        let answer = match effect {
            Effect::Map { .. } | Effect::Reset if self.refuses > 0 => {
                self.refuses -= 1;
                Err(errno::ENOMEM)
            }
            Effect::Read { offset, count, .. } => {
                let at = usize::try_from(offset).expect("small");
                Ok(Answer::Bytes(region[at..at + count as usize].to_vec()))
            }
            Effect::Write { offset, bytes, .. } => {
                let at = usize::try_from(offset).expect("small");
                if !lost {
                    region[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                if let Some((at, bytes)) = self.again.take() {
                    region[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                self.again = twice.then_some((at, bytes));
                Ok(Answer::Done)
            }
            Effect::RegionFd { .. } => Ok(Answer::Fd(FdId(1))),
            _ => Ok(Answer::Done),
        };
        told(self.core.answer(answer));
    }

    /// What a device that dies had been asked to write.
    pub(crate) fn ghost(self) -> Option<(usize, Vec<u8>)> {
        match self.work? {
            Effect::Write { offset, bytes, .. } => {
                let at = usize::try_from(offset).expect("small");
                // Of a connection that comes later nobody knows anything.
                Some((at, bytes.iter().map(|byte| !byte).collect()))
            }
            _ => None,
        }
    }

    /// The device asks for memory.
    pub(crate) fn question(&mut self, sim: &mut Sim) {
        self.questions_left -= 1;
        let maps = self.core.maps();
        if maps.is_empty() {
            return;
        }
        let map = maps[sim.rng.index(maps.len())];
        let count = 1 + sim.rng.index(32);
        let address = map.address.0 + sim.rng.below(map.size - count as u64);
        let asked = if sim.rng.percent(50) {
            let asked = self
                .core
                .ask_read(Iova(address), u32::try_from(count).expect("small"));
            asked.map(|id| (id, Some(count)))
        } else {
            let asked = self.core.ask_write(Iova(address), &memory(address, count));
            asked.map(|id| (id, None))
        };
        // Too many at a time are refused, and so is memory that came with a descriptor.
        if let Ok((id, count)) = asked {
            assert!(self.asked.insert(id, (address, count)).is_none());
        }
    }

    /// Another process goes on, if it can; says whether it did.
    pub(crate) fn hand_over(&mut self, plan: &Plan) -> bool {
        let Ok(saved) = self.core.snapshot() else {
            return false;
        };
        let core = vfio::Server::restore(plan.offer(), &saved).expect("its own bytes");
        assert_eq!(core.snapshot(), Ok(saved));
        assert_eq!(core.maps(), self.core.maps());
        self.core = core;
        true
    }
}

/// What a server makes of a message: it may refuse it, and its client is told.
pub(crate) fn told(result: Result<(), vfio::Error>) {
    if let Err(error) = result {
        let goes_on = error.disposition() == Disposition::Nack;
        assert!(goes_on, "a client of ours keeps to the protocol: {error}");
    }
}

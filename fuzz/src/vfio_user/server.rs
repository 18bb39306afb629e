//! A client's stream against the server's session.
//!
//! The bytes are a script: messages and raw bytes with descriptors, how they are split,
//! how effects are answered, what the device asks meanwhile, and when the client leaves
//! and another one comes.

use linkspan_devices::bochs::Bochs;
use linkspan_mem::Iova;
use linkspan_vfio::describe::Watcher;
use linkspan_vfio::pci::{self, Bar, Config, Identity, Msix, MsixTable};
use linkspan_vfio::server::{Answer, Effect, PlaneState};
use linkspan_vfio::wire::{
    BODY_MAX, HEADER_BYTES, Header, IRQ_EVENTFD, PlaneBuffer, PlaneInfo, WRITES_MAX,
};
use linkspan_vfio::{Disposition, FdId, Irq, Offer, Region, Server};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Outcome, watch};
use crate::input::Input;

/// Steps of a script, the first byte of each.
pub(crate) mod step {
    /// Length and descriptors, 8 bits each, and the bytes.
    pub(crate) const RAW: u8 = 0;
    /// Number of the message, 16 bits; flags, descriptors, piece size, 8 bits each; body
    /// size, 16 bits; the body.
    pub(crate) const MESSAGE: u8 = 1;
    /// How the next effect is answered, 8 bits: an error of that number, or right.
    pub(crate) const ANSWER: u8 = 2;
    /// The device asks: address, 32 bits; count, 16 bits; whether it writes, 8 bits.
    pub(crate) const ASK: u8 = 3;
    /// The client leaves, and another one comes.
    pub(crate) const LEAVE: u8 = 4;
    /// The session is saved, and goes on as another one.
    pub(crate) const SAVE: u8 = 5;
    /// How many there are.
    pub(crate) const COUNT: u8 = 6;
}

/// An answer that does not fit its effect.
pub(crate) const WRONG: u8 = 0xFF;

const REGISTERS: u64 = 4096;
const MAPS: u64 = 8;

fn offer() -> Offer {
    let mut regions = vec![Region::default(); pci::REGIONS];
    regions[0] = Region::mapped(0x4000);
    regions[2] = Region {
        doorbells: vec![0x700..0x702, 0x704..0x706],
        ..Region::of(REGISTERS)
    };
    regions[pci::CONFIG as usize] = Region::of(pci::CONFIG_BYTES);
    regions.push(Region {
        writable: false,
        kind: Some((1, 1)),
        ..Region::of(64)
    });
    let mut irqs = vec![Irq::default(); pci::IRQS];
    irqs[pci::MSIX as usize] = Irq {
        count: 4,
        flags: IRQ_EVENTFD,
    };
    Offer {
        regions,
        irqs,
        reset: true,
        dma_maps: MAPS,
        planes: true,
    }
}

fn config() -> Config {
    let mut config = Config::new(&Identity::default());
    let prefetch = true;
    let size = 0x4000;
    config
        .add_bar(0, Bar::Memory64 { size, prefetch })
        .expect("a base address that is free");
    let msix = Msix {
        vectors: 4,
        table: (2, 0x800),
        pending: (2, 0xC00),
    };
    config.add_msix(&msix).expect("there is room");
    config
}

struct Script {
    server: Server,
    config: Config,
    bochs: Bochs,
    table: MsixTable,
    next_answer: u8,
    /// Of what the client says, and of what it is told.
    watchers: [Watcher; 2],
    outcome: Outcome,
}

/// Runs a script to the end.
pub(super) fn run(data: &[u8]) -> Outcome {
    let mut script = Script {
        server: Server::new(offer()),
        config: config(),
        bochs: Bochs::new(1 << 20),
        table: MsixTable::new(4),
        next_answer: 0,
        watchers: Default::default(),
        outcome: Outcome::default(),
    };
    let mut input = Input::new(data);
    while script.step(&mut input).is_some() {}
    script.server.disconnect();
    assert!(script.server.is_over() && script.server.maps().is_empty());
    script.outcome
}

impl Script {
    fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        match input.u8()? % step::COUNT {
            step::RAW => {
                let (len, fds) = (input.u8()?, input.u8()?);
                let bytes = input.bytes(len.into());
                self.give(bytes, fds.into(), usize::MAX);
            }
            step::MESSAGE => {
                let (command, flags) = (input.u16()?, input.u8()?);
                let (fds, piece, len) = (input.u8()?, input.u8()?, input.u16()?);
                let body = input.bytes(len.into());
                let header = Header {
                    id: 5,
                    command,
                    size: u32::try_from(HEADER_BYTES + body.len()).unwrap_or(u32::MAX),
                    flags: flags.into(),
                    error: 0,
                };
                let bytes = [header.as_bytes(), body].concat();
                self.give(&bytes, fds.into(), usize::from(piece).max(1));
            }
            step::ANSWER => self.next_answer = input.u8()?,
            step::ASK => {
                let (address, count) = (Iova(input.u32()?.into()), input.u16()?);
                let asked = match input.u8()? & 1 {
                    0 => self.server.ask_read(address, count.into()),
                    _ => self.server.ask_write(address, &vec![7; count.into()]),
                };
                if let Err(error) = asked {
                    self.outcome.error = Some(error.to_string());
                }
                self.effects();
            }
            step::SAVE => {
                if let Ok(saved) = self.server.snapshot() {
                    let restored = Server::restore(offer(), &saved);
                    self.server = restored.expect("what was saved can be restored");
                    assert_eq!(self.server.snapshot(), Ok(saved));
                }
            }
            _ => {
                self.server.disconnect();
                assert_eq!(self.server.wanted(), 0);
                self.server = Server::new(offer());
                self.watchers = Default::default();
            }
        }
        Some(())
    }

    /// Bytes of the client, with descriptors at their begin.
    fn give(&mut self, bytes: &[u8], fds: usize, piece: usize) {
        let (mut rest, mut fds) = (bytes, fds);
        while !rest.is_empty() && !self.server.is_over() {
            let wanted = self.server.wanted();
            assert!(wanted > 0 && wanted <= BODY_MAX);
            let (now, later) = rest.split_at(wanted.min(piece).min(rest.len()));
            rest = later;
            watch(&mut self.watchers[0], now, fds);
            let received = self.server.receive(now, std::mem::take(&mut fds));
            self.judge(received.err());
            self.effects();
        }
    }

    fn judge(&mut self, error: Option<linkspan_vfio::Error>) {
        let Some(error) = error else {
            return;
        };
        self.outcome.error = Some(error.to_string());
        match error.disposition() {
            Disposition::Nack => self.outcome.refused += 1,
            Disposition::CloseLink => assert!(self.server.is_over()),
        }
    }

    fn effects(&mut self) {
        for _ in 0..WRITES_MAX + 32 {
            let Some(effect) = self.server.poll_effect() else {
                self.check();
                return;
            };
            if let Effect::Send { bytes, .. } = &effect {
                assert_eq!(watch(&mut self.watchers[1], bytes, 0), 1);
                let (header, _) = Header::read_from_prefix(bytes).expect("a whole header");
                assert_eq!(header.size as usize, bytes.len());
                let is_reply = header.flags & Header::TYPE_MASK == Header::REPLY;
                let failed = header.flags & Header::ERROR != 0;
                assert!(!failed || bytes.len() == HEADER_BYTES);
                self.outcome.done += usize::from(is_reply && !failed);
            }
            if effect.needs_answer() {
                let right = self.carry_out(&effect);
                let answer = match std::mem::take(&mut self.next_answer) {
                    0 => Ok(right),
                    WRONG => Ok(Answer::Fd(FdId(99))),
                    number => Err(number.into()),
                };
                let answered = self.server.answer(answer);
                self.judge(answered.err());
            }
        }
        panic!("effects without an end");
    }

    /// What the device does; all that it is asked is inside.
    fn carry_out(&mut self, effect: &Effect) -> Answer {
        let offer = offer();
        let inside = |region: u32, offset: u64, count: u64| {
            let region = &offer.regions[usize::try_from(region).expect("a small number")];
            assert!(count > 0 && offset + count <= region.size);
        };
        match effect {
            Effect::Read {
                region,
                offset,
                count,
            } => {
                inside(*region, *offset, (*count).into());
                let mut bytes = vec![0; *count as usize];
                match *region {
                    pci::CONFIG => self.config.read(*offset, &mut bytes),
                    2 if *offset < 0x700 => self.bochs.read(*offset, &mut bytes),
                    2 if *offset < 0xC00 => self.table.read(*offset - 0x700, &mut bytes),
                    2 => self.table.read_pending(*offset - 0xC00, &mut bytes),
                    _ => {}
                }
                Answer::Bytes(bytes)
            }
            Effect::Write {
                region,
                offset,
                bytes,
            } => {
                inside(*region, *offset, bytes.len() as u64);
                match *region {
                    pci::CONFIG => {
                        self.config.write(*offset, bytes);
                    }
                    2 if *offset < 0x700 => {
                        self.bochs.write(*offset, bytes);
                    }
                    2 => self.table.write(*offset - 0x700, bytes),
                    region => assert_eq!(region, 0, "it cannot be written"),
                }
                Answer::Done
            }
            Effect::RegionFd { region } => {
                assert_eq!(*region, 0);
                Answer::Fd(FdId(1))
            }
            Effect::DoorbellFds { region, count } => {
                assert!(*region == 2 && (1..=2).contains(count));
                Answer::Fds(vec![FdId(3); *count])
            }
            Effect::SetIrqs(set) => {
                let count = offer.irqs[set.index as usize].count;
                assert!(set.meant().all(|number| number < count));
                Answer::Done
            }
            Effect::QueryPlane { kind } => {
                assert!(*kind < 3);
                Answer::Plane(match kind {
                    0 => PlaneState::Off,
                    1 => PlaneState::Shown(PlaneInfo::new_zeroed()),
                    _ => {
                        PlaneState::Refused("a plane of the fuzzer, which nobody shows. ".repeat(8))
                    }
                })
            }
            Effect::GetPlane { id } => {
                let mut buffer = PlaneBuffer::new_zeroed();
                buffer.id = *id;
                Answer::Buffer(buffer, FdId(2))
            }
            Effect::Reset => {
                self.config.reset();
                self.bochs.reset();
                self.table.reset();
                Answer::Done
            }
            _ => Answer::Done,
        }
    }

    /// What always holds.
    fn check(&self) {
        let maps = self.server.maps();
        assert!(maps.len() as u64 <= MAPS);
        assert!(maps.windows(2).all(|pair| pair[0].last() < pair[1].address));
        assert_eq!(self.server.wanted() == 0, self.server.is_over());
        // What says what it is stays, whatever is written.
        assert_eq!(self.config.bytes()[..4], [0; 4]);
        assert_eq!(self.bochs.registers()[0], 0xB0C5);
    }
}

//! A driver's accesses to the registers of a virtio function on a PCI bus, of any width
//! at any place and time, and a device that does what it is asked or does not.
//!
//! The device runs only with features that were offered and agreed upon, is asked one
//! thing at a time, and of its queues nothing is said that cannot be.

use linkspan_virtio::pci::{Effect, Function, NO_VECTOR, Offer, Read, pieces, status};

use crate::input::Input;

const VERSION_1: u64 = 1 << 32;
const RING_RESET: u64 = 1 << 40;

/// Bytes of device configuration.
const CONFIG_LEN: u32 = 60;

/// What came of an input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What the device was asked for, kicks and writes of its configuration included.
    pub effects: usize,
    /// Accesses without effect.
    pub strays: usize,
    /// The device status at the end.
    pub status: u8,
}

/// Feeds any bytes.
pub fn target(bytes: &[u8]) {
    run(bytes);
}

/// The same, and what came of it.
///
/// # Panics
/// Upon a fault of ours.
pub fn run(bytes: &[u8]) -> Outcome {
    let mut input = Input::new(bytes);
    let mut world = World::new(input.u8().unwrap_or(0));
    while world.step(&mut input).is_some() {
        world.check();
    }
    Outcome {
        status: world.function.status(),
        ..world.outcome
    }
}

struct World {
    function: Function,
    offered: u64,
    sizes: Vec<u16>,
    /// What the device has not answered yet.
    asked: bool,
    outcome: Outcome,
}

impl World {
    /// The first byte says how many queues there are, and what is offered.
    fn new(kind: u8) -> Self {
        let queues = u16::from(kind & 0x0f) + 1;
        let sizes: Vec<u16> = (0..queues).map(|queue| 256 >> (queue % 9)).collect();
        let reset = if kind & 0x10 != 0 { RING_RESET } else { 0 };
        let offered = VERSION_1 | reset | 0x41;
        Self {
            function: Function::new(Offer {
                features: offered,
                queue_sizes: sizes.clone(),
                config_len: CONFIG_LEN,
            }),
            offered,
            sizes,
            asked: false,
            outcome: Outcome::default(),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        match input.u8()? {
            code @ 0..=0x0f => {
                let (bar, at) = (code & 3, place(input)?);
                let len = usize::from(input.u8()?);
                self.read(bar, at, len);
            }
            code @ 0x10..=0x1f => {
                let (bar, at) = (code & 3, place(input)?);
                let len = usize::from(input.u8()? & 0x1f);
                let bytes = input.bytes(len);
                self.write(bar, at, bytes);
            }
            code @ 0x20..=0x21 => {
                let answered = self.function.answer(code & 1 != 0);
                assert_eq!(answered.is_ok(), self.asked);
                self.asked = false;
            }
            0x22 => self.function.used(),
            0x23 => self.function.config_changed(),
            0x24 => {
                let told = self.function.broken();
                assert!(!told || self.function.runs());
                assert!(!self.function.broken(), "once");
            }
            0x25 => {
                self.function.reset();
                self.asked = false;
                assert_eq!(self.function.status(), 0);
            }
            0x26 => {
                let (bar, offset, len) = (input.u8()?, input.u32()?, input.u32()?);
                self.function.set_window(bar, offset, len);
                if let Some((bar, offset, len)) = self.function.window() {
                    self.write(bar, offset, &[0xff; 4][..len]);
                    self.read(bar, offset, len);
                }
            }
            _ => {}
        }
        Some(())
    }

    fn read(&mut self, bar: u8, at: u64, len: usize) {
        let mut bytes = vec![0xee; len];
        let mut whole = 0;
        for piece in pieces(at, len) {
            assert_eq!(piece.at, whole);
            whole += piece.len;
            let target = &mut bytes[piece.at..whole];
            match self.function.read(bar, piece.offset, target) {
                Ok(Read::Done) => {}
                Ok(Read::Config { offset, len }) => {
                    assert!(len <= piece.len);
                    assert!(len == 0 || offset as usize + len <= CONFIG_LEN as usize);
                    assert!(target.iter().all(|byte| *byte == 0));
                }
                Err(error) => {
                    self.outcome.strays += 1;
                    assert!(!error.to_string().is_empty());
                    assert!(target.iter().all(|byte| *byte == 0));
                }
            }
        }
        assert_eq!(whole, len);
    }

    fn write(&mut self, bar: u8, at: u64, bytes: &[u8]) {
        for piece in pieces(at, bytes.len()) {
            let bytes = &bytes[piece.at..piece.at + piece.len];
            let before = (self.function.status(), self.asked);
            match self.function.write(bar, piece.offset, bytes) {
                Ok(None) => assert!(!before.1),
                Ok(Some(effect)) => {
                    self.outcome.effects += 1;
                    assert!(!before.1, "one thing at a time");
                    self.asked = self.effect(effect);
                }
                Err(error) => {
                    self.outcome.strays += 1;
                    assert!(!error.to_string().is_empty());
                }
            }
        }
    }

    /// Whether it is to be answered.
    fn effect(&self, effect: Effect) -> bool {
        let queues = self.function.queues();
        let runs = self.function.runs();
        match effect {
            Effect::Agree { features } => {
                assert_eq!(features & !self.offered, 0);
                assert!(features & VERSION_1 != 0);
                assert_eq!(features, self.function.features());
            }
            Effect::Start => {
                assert!(!runs && self.function.status() & status::FEATURES_OK != 0);
            }
            Effect::Reset => {}
            Effect::ResetQueue { queue } | Effect::EnableQueue { queue } => {
                assert!(runs && self.function.features() & RING_RESET != 0);
                let on = matches!(effect, Effect::EnableQueue { .. });
                assert!(!on || !self.function.needs_reset());
                assert_eq!(queues[usize::from(queue)].enabled, on);
            }
            Effect::Kick { queue } | Effect::Vector { queue } => {
                assert!(runs && queues[usize::from(queue)].enabled);
                return false;
            }
            Effect::WriteConfig { offset, bytes } => {
                assert!(!bytes.is_empty());
                assert!(offset as usize + bytes.len() <= CONFIG_LEN as usize);
                return false;
            }
        }
        true
    }

    fn check(&self) {
        let vectors = self.function.layout().vectors();
        assert_eq!(self.function.queues().len(), self.sizes.len());
        for (queue, max) in self.function.queues().iter().zip(&self.sizes) {
            assert!(queue.size.is_power_of_two() && queue.size <= *max);
            assert!(queue.vector == NO_VECTOR || queue.vector < vectors);
        }
        let vector = self.function.config_vector();
        assert!(vector == NO_VECTOR || vector < vectors);
        let now = self.function.status();
        assert!(now & status::DRIVER_OK == 0 || now & status::FEATURES_OK != 0);
    }
}

/// Mostly where something is; else anywhere.
fn place(input: &mut Input<'_>) -> Option<u64> {
    Some(match input.u8()? {
        at @ 0..=0x7f => at.into(),
        page @ 0x80..=0x8f => u64::from(page & 0x0f) << 12 | u64::from(input.u8()?),
        _ => u64::from(input.u32()?) << 32 | u64::from(input.u32()?),
    })
}

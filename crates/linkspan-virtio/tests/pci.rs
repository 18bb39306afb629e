//! A virtio device as a PCI function: what a driver reads and writes in its registers.

use linkspan_virtio::pci::{
    AccessError, BAR_DOORBELLS, BAR_INTERRUPTS, BAR_REGISTERS, Effect, Function, NO_VECTOR, Offer,
    Read, Unasked, pieces, status,
};
use proptest::prelude::*;

const VERSION_1: u64 = 1 << 32;
const RING_RESET: u64 = 1 << 40;
const OFFERED: u64 = VERSION_1 | RING_RESET | 0x40;

/// Where registers of common configuration are (virtio 1.3, 4.1.4.3).
const DEVICE_FEATURE_SELECT: u64 = 0;
const DEVICE_FEATURE: u64 = 4;
const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
const CONFIG_VECTOR: u64 = 16;
const QUEUE_COUNT: u64 = 18;
const STATUS: u64 = 20;
const GENERATION: u64 = 21;
const SELECT: u64 = 22;
const SIZE: u64 = 24;
const VECTOR: u64 = 26;
const ENABLE: u64 = 28;
const NOTIFY_OFFSET: u64 = 30;
const DESCRIPTORS: u64 = 32;
const RESET: u64 = 58;

const ISR: u64 = 0x1000;
const CONFIG: u64 = 0x2000;

struct Driver(Function);

impl Driver {
    fn new() -> Self {
        Self(Function::new(Offer {
            features: OFFERED,
            queue_sizes: vec![256, 64],
            config_len: 60,
        }))
    }

    #[track_caller]
    fn get<const N: usize>(&mut self, at: u64) -> u64 {
        let mut bytes = [0xee; N];
        let read = self.0.read(BAR_REGISTERS, at, &mut bytes);
        assert_eq!(read, Ok(Read::Done));
        let mut whole = [0; 8];
        whole[..N].copy_from_slice(&bytes);
        u64::from_le_bytes(whole)
    }

    fn set<const N: usize>(&mut self, at: u64, value: u64) -> Result<Option<Effect>, AccessError> {
        let bytes = value.to_le_bytes();
        self.0.write(BAR_REGISTERS, at, &bytes[..N])
    }

    /// Writes something that asks for nothing.
    #[track_caller]
    fn put<const N: usize>(&mut self, at: u64, value: u64) {
        assert_eq!(self.set::<N>(at, value), Ok(None));
    }

    /// Writes something that the device does.
    #[track_caller]
    fn ask<const N: usize>(&mut self, at: u64, value: u64, effect: Effect) {
        assert_eq!(self.set::<N>(at, value), Ok(Some(effect)));
        assert_eq!(self.0.answer(true), Ok(false));
    }

    fn accept(&mut self, features: u64) {
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.put::<4>(DRIVER_FEATURE_SELECT, select);
            self.put::<4>(DRIVER_FEATURE, half);
        }
    }

    /// Up to a device that runs with queue 0 (virtio 1.3, 3.1.1).
    #[track_caller]
    fn start(&mut self, features: u64) {
        self.ask::<1>(STATUS, 0, Effect::Reset);
        self.put::<1>(STATUS, 1);
        self.put::<1>(STATUS, 3);
        self.accept(features);
        self.ask::<1>(STATUS, 11, Effect::Agree { features });
        assert_eq!(self.get::<1>(STATUS), 11);
        self.put::<2>(SELECT, 0);
        self.put::<2>(SIZE, 128);
        self.put::<2>(VECTOR, 1);
        for area in 0..3 {
            let at = DESCRIPTORS + 8 * area;
            self.put::<4>(at, 0x8000_1000 + area);
            self.put::<4>(at + 4, 0x12);
        }
        self.put::<2>(ENABLE, 1);
        self.ask::<1>(STATUS, 15, Effect::Start);
        assert_eq!(self.get::<1>(STATUS), 15);
    }
}

#[test]
fn a_driver_brings_the_device_up_and_resets_it() {
    let mut driver = Driver::new();
    assert_eq!(driver.get::<2>(QUEUE_COUNT), 2);
    driver.put::<4>(DEVICE_FEATURE_SELECT, 1);
    assert_eq!(driver.get::<4>(DEVICE_FEATURE), OFFERED >> 32);
    driver.put::<4>(DEVICE_FEATURE_SELECT, 0);
    assert_eq!(driver.get::<4>(DEVICE_FEATURE), 0x40);
    driver.put::<4>(DEVICE_FEATURE_SELECT, 2);
    assert_eq!(driver.get::<4>(DEVICE_FEATURE), 0);
    for _ in 0..2 {
        driver.start(VERSION_1);
        let queue = driver.0.queues()[0];
        assert_eq!((queue.size, queue.vector, queue.enabled), (128, 1, true));
        assert_eq!(queue.areas, [0, 1, 2].map(|area| 0x12_8000_1000 + area));
        assert!(!driver.0.queues()[1].enabled && driver.0.runs());
        let kick = driver.0.write(BAR_DOORBELLS, 0, &[0, 0]);
        assert_eq!(kick, Ok(Some(Effect::Kick { queue: 0 })));
        // The queue that was left out.
        let kick = driver.0.write(BAR_DOORBELLS, 0x1000, &[1, 0]);
        assert!(matches!(kick, Err(AccessError::State { .. })));
        driver.ask::<1>(STATUS, 0, Effect::Reset);
        assert_eq!(driver.get::<1>(STATUS), 0);
        assert_eq!(driver.get::<2>(SIZE), 256);
        assert_eq!(driver.get::<2>(VECTOR), u64::from(NO_VECTOR));
        assert_eq!(driver.get::<8>(DESCRIPTORS), 0);
    }
}

/// Virtio 1.3, 4.1.4.3.2: a driver waits until it reads 0.
#[test]
fn a_reset_is_over_when_the_device_says_so() {
    let mut driver = Driver::new();
    driver.start(VERSION_1);
    assert_eq!(driver.set::<1>(STATUS, 0), Ok(Some(Effect::Reset)));
    assert_eq!(driver.get::<1>(STATUS), 15);
    // Nothing else is begun meanwhile.
    assert_eq!(driver.set::<1>(STATUS, 1), Err(AccessError::Busy));
    let kick = driver.0.write(BAR_DOORBELLS, 0, &[0, 0]);
    assert_eq!(kick, Err(AccessError::Busy));
    assert_eq!(driver.0.answer(true), Ok(false));
    assert_eq!(driver.get::<1>(STATUS), 0);
    assert_eq!(driver.0.answer(true), Err(Unasked));
}

/// Virtio 1.3, 3.1.1, step 6.
#[test]
fn features_are_agreed_upon_or_are_not() {
    let mut driver = Driver::new();
    driver.put::<1>(STATUS, 3);
    for refused in [0x40, VERSION_1 | 0x80, 0] {
        driver.accept(refused);
        driver.put::<1>(STATUS, 11);
        assert_eq!(driver.get::<1>(STATUS), 3, "{refused:#x}");
    }
    driver.accept(VERSION_1);
    let features = VERSION_1;
    let agree = Ok(Some(Effect::Agree { features }));
    assert_eq!(driver.set::<1>(STATUS, 11), agree);
    assert_eq!(driver.0.answer(false), Ok(false));
    assert_eq!(driver.get::<1>(STATUS), 3);
    let start = driver.set::<1>(STATUS, 7);
    assert!(matches!(start, Err(AccessError::State { .. })));
    driver.ask::<1>(STATUS, 11, Effect::Agree { features });
    // From now on they stay.
    let changed = driver.set::<4>(DRIVER_FEATURE, 0);
    assert!(matches!(changed, Err(AccessError::State { .. })));
    // And no bit goes but by a reset.
    let less = driver.set::<1>(STATUS, 3);
    assert!(matches!(less, Err(AccessError::Value { .. })));
    driver.put::<4>(DRIVER_FEATURE_SELECT, 7);
    assert_eq!(driver.get::<4>(DRIVER_FEATURE), 0);
}

#[test]
fn a_start_that_fails_is_a_device_that_needs_a_reset() {
    let mut driver = Driver::new();
    driver.start(VERSION_1);
    driver.ask::<1>(STATUS, 0, Effect::Reset);
    driver.put::<1>(STATUS, 3);
    driver.accept(VERSION_1);
    let features = VERSION_1;
    driver.ask::<1>(STATUS, 11, Effect::Agree { features });
    assert_eq!(driver.set::<1>(STATUS, 15), Ok(Some(Effect::Start)));
    assert_eq!(driver.0.answer(false), Ok(true), "the driver is told");
    assert_eq!(driver.get::<1>(STATUS), 15 | u64::from(status::NEEDS_RESET));
    assert_eq!(driver.get::<1>(ISR), 2);
    assert!(!driver.0.broken(), "once");
    driver.start(VERSION_1);
}

/// Virtio 1.3, 4.1.5.1.2.1.
#[test]
fn vectors_that_do_not_exist_read_as_none() {
    let mut driver = Driver::new();
    for (written, read) in [
        (0, 0),
        (2, 2),
        (3, 0xffff),
        (0xffff, 0xffff),
        (0x8000, 0xffff),
    ] {
        driver.put::<2>(CONFIG_VECTOR, written);
        assert_eq!(driver.get::<2>(CONFIG_VECTOR), read);
        driver.put::<2>(SELECT, 1);
        driver.put::<2>(VECTOR, written);
        assert_eq!(driver.get::<2>(VECTOR), read);
    }
    // Of a queue that runs it is another descriptor.
    driver.start(VERSION_1);
    let moved = driver.set::<2>(VECTOR, 2);
    assert_eq!(moved, Ok(Some(Effect::Vector { queue: 0 })));
}

#[test]
fn queues_are_written_only_as_they_can_be() {
    let mut driver = Driver::new();
    driver.put::<2>(SELECT, 1);
    assert_eq!(driver.get::<2>(NOTIFY_OFFSET), 1);
    for size in [0, 3, 128, 0x8000] {
        let refused = driver.set::<2>(SIZE, size);
        assert!(matches!(refused, Err(AccessError::Value { .. })), "{size}");
    }
    driver.put::<2>(SIZE, 32);
    assert!(driver.set::<2>(ENABLE, 0).is_err() && driver.set::<2>(ENABLE, 2).is_err());
    driver.put::<2>(ENABLE, 1);
    for at in [SIZE, DESCRIPTORS] {
        let refused = if at == SIZE {
            driver.set::<2>(at, 16)
        } else {
            driver.set::<8>(at, 16)
        };
        assert!(matches!(
            refused,
            Err(AccessError::Enabled { queue: 1, .. })
        ));
    }
    // One that does not exist has no size (virtio 1.3, 4.1.4.3.1).
    driver.put::<2>(SELECT, 2);
    assert_eq!((driver.get::<2>(SIZE), driver.get::<2>(ENABLE)), (0, 0));
    assert_eq!(driver.get::<2>(VECTOR), u64::from(NO_VECTOR));
    let refused = driver.set::<2>(ENABLE, 1);
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("queue 2, of 2"), "{error}");
}

/// Virtio 1.3, 2.6.1 and 4.1.4.3.1.
#[test]
fn one_queue_is_reset_and_comes_back() {
    let mut driver = Driver::new();
    driver.start(VERSION_1);
    let refused = driver.set::<2>(RESET, 1);
    assert!(
        matches!(refused, Err(AccessError::Value { .. })),
        "not agreed"
    );
    driver.start(VERSION_1 | RING_RESET);
    let queue = 0;
    let reset = driver.set::<2>(RESET, 1);
    assert_eq!(reset, Ok(Some(Effect::ResetQueue { queue })));
    assert_eq!((driver.get::<2>(RESET), driver.get::<2>(ENABLE)), (1, 0));
    assert_eq!(driver.0.answer(true), Ok(false));
    assert_eq!((driver.get::<2>(RESET), driver.get::<2>(ENABLE)), (0, 0));
    assert_eq!(driver.get::<2>(SIZE), 256);
    driver.put::<2>(RESET, 1);
    driver.ask::<2>(ENABLE, 1, Effect::EnableQueue { queue });
    assert_eq!(driver.get::<2>(ENABLE), 1);
    let kick = driver.0.write(BAR_DOORBELLS, 0, &[0, 0]);
    assert_eq!(kick, Ok(Some(Effect::Kick { queue: 0 })));
}

/// One that needs a reset as a whole lets go of a queue, as drivers wait for that, and
/// takes none.
#[test]
fn no_queue_comes_to_a_device_that_needs_a_reset() {
    let mut driver = Driver::new();
    driver.start(VERSION_1 | RING_RESET);
    assert!(driver.0.broken() && driver.0.needs_reset());
    driver.ask::<2>(RESET, 1, Effect::ResetQueue { queue: 0 });
    assert_eq!((driver.get::<2>(RESET), driver.get::<2>(ENABLE)), (0, 0));
    let refused = driver.set::<2>(ENABLE, 1);
    let status = 15 | status::NEEDS_RESET;
    let register = "queue_enable";
    assert_eq!(refused, Err(AccessError::State { register, status }));
    assert_eq!(driver.get::<2>(ENABLE), 0);
    driver.start(VERSION_1 | RING_RESET);
    assert!(!driver.0.needs_reset());
}

#[test]
fn reading_the_isr_status_takes_it_back() {
    let mut driver = Driver::new();
    driver.0.used();
    assert!(driver.0.is_pending());
    driver.0.config_changed();
    // Its neighbours are not it.
    assert_eq!(driver.get::<2>(ISR + 2), 0);
    assert_eq!(driver.get::<4>(ISR), 3);
    assert_eq!(driver.get::<1>(ISR), 0);
    assert!(!driver.0.is_pending());
    let written = driver.set::<1>(ISR, 1);
    assert!(matches!(written, Err(AccessError::ReadOnly { .. })));
}

#[test]
fn configuration_has_a_generation_and_its_own_length() {
    let mut driver = Driver::new();
    let before = driver.get::<1>(GENERATION);
    driver.0.config_changed();
    assert_eq!(driver.get::<1>(GENERATION), before + 1);
    let mut bytes = [0; 8];
    let mut read = |at, len| driver.0.read(BAR_REGISTERS, CONFIG + at, &mut bytes[..len]);
    assert_eq!(read(0, 8), Ok(Read::Config { offset: 0, len: 8 }));
    assert_eq!(read(56, 8), Ok(Read::Config { offset: 56, len: 4 }));
    assert_eq!(read(60, 4), Ok(Read::Config { offset: 60, len: 0 }));
    let Ok(Some(Effect::WriteConfig { offset, bytes })) = driver.set::<4>(CONFIG + 32, 0x0403_0201)
    else {
        panic!("it is written");
    };
    assert_eq!((offset, &bytes[..]), (32, &[1, 2, 3, 4][..]));
    let beyond = driver.set::<8>(CONFIG + 56, 0);
    assert!(matches!(beyond, Err(AccessError::Nothing { .. })));
}

/// Virtio 1.3, 4.1.3.1: registers are written whole; areas by halves too.
#[test]
fn registers_are_read_in_any_width_and_written_in_their_own() {
    let mut driver = Driver::new();
    driver.put::<8>(DESCRIPTORS, 0x1122_3344_5566_7788);
    assert_eq!(driver.get::<8>(DESCRIPTORS), 0x1122_3344_5566_7788);
    assert_eq!(driver.get::<2>(DESCRIPTORS + 2), 0x5566);
    assert_eq!(driver.get::<4>(QUEUE_COUNT - 2), 0x0002_ffff);
    for refused in [
        driver.set::<1>(SIZE, 1),
        driver.set::<4>(SIZE, 1),
        driver.set::<2>(DESCRIPTORS, 1),
        driver.set::<1>(DRIVER_FEATURE + 3, 1),
        driver.set::<2>(STATUS, 1),
    ] {
        assert!(
            matches!(refused, Err(AccessError::Width { .. })),
            "{refused:?}"
        );
    }
    for refused in [
        driver.set::<4>(DEVICE_FEATURE, 1),
        driver.set::<2>(QUEUE_COUNT, 1),
        driver.set::<1>(GENERATION, 1),
        driver.set::<2>(NOTIFY_OFFSET, 1),
        driver.set::<2>(56, 1),
        driver.set::<2>(60, 1),
    ] {
        assert!(
            matches!(refused, Err(AccessError::ReadOnly { .. })),
            "{refused:?}"
        );
    }
    for (bar, at, len) in [
        (BAR_REGISTERS, 0x40, 4),
        (BAR_REGISTERS, 0x3c, 8),
        (BAR_REGISTERS, 0x3000, 1),
        (BAR_REGISTERS, u64::MAX, 2),
        (BAR_INTERRUPTS, 0, 4),
        (BAR_DOORBELLS, 0x2000, 2),
        (3, 0, 1),
        (BAR_REGISTERS, 0, 9),
        (BAR_REGISTERS, 0, 0),
    ] {
        let mut bytes = [0xee; 9];
        let read = driver.0.read(bar, at, &mut bytes[..len]);
        let nothing = AccessError::Nothing {
            bar,
            offset: at,
            len,
        };
        assert_eq!(read, Err(nothing));
        assert_eq!(bytes[..len], [0; 9][..len]);
        assert_eq!(driver.0.write(bar, at, &bytes[..len]), Err(nothing));
    }
}

/// Virtio 1.3, 4.1.4.9.1.
#[test]
fn the_window_leads_into_bars_that_exist() {
    let mut driver = Driver::new();
    assert_eq!(driver.0.window(), None);
    for (bar, offset, len, there) in [
        (0, 20, 1, true),
        (2, 0x1000, 2, true),
        (0, 22, 4, false),
        (0, 0, 3, false),
        (0, 0, 8, false),
        (3, 0, 4, false),
        (255, 0, 4, false),
    ] {
        driver.0.set_window(bar, offset, len);
        let wanted = there.then_some((bar, u64::from(offset), len as usize));
        assert_eq!(driver.0.window(), wanted);
    }
}

fn access() -> impl Strategy<Value = (u8, u64, Vec<u8>, bool)> {
    let at = prop_oneof![
        8 => 0..0x48_u64,
        1 => 0x0ff8..0x1010_u64,
        1 => 0x1ff8..0x2050_u64,
        1 => any::<u64>(),
    ];
    let bytes = prop_oneof![
        prop::collection::vec(
            prop_oneof![Just(0), Just(1), Just(3), Just(11), Just(15)],
            0..9
        ),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    (0..4_u8, at, bytes, any::<bool>())
}

proptest! {
    /// Whatever a driver does: the device runs only with agreed features and is asked
    /// one thing at a time, and what it says of queues can be used.
    #[test]
    fn any_accesses_leave_a_function_that_makes_sense(
        accesses in prop::collection::vec(access(), 0..200),
        lazy in any::<bool>(),
    ) {
        let mut function = Driver::new().0;
        let mut asked = false;
        for (bar, at, bytes, done) in accesses {
            let mut target = vec![0; bytes.len()];
            for piece in pieces(at, bytes.len()) {
                let range = piece.at..piece.at + piece.len;
                let _ = function.read(bar, piece.offset, &mut target[range.clone()]);
                let Ok(Some(effect)) = function.write(bar, piece.offset, &bytes[range]) else {
                    continue;
                };
                prop_assert!(!asked);
                match effect {
                    Effect::Agree { features } => {
                        prop_assert_eq!(features & !OFFERED, 0);
                        prop_assert!(features & VERSION_1 != 0);
                        asked = true;
                    }
                    Effect::Start => {
                        prop_assert!(function.status() & status::FEATURES_OK != 0);
                        prop_assert!(!function.runs());
                        asked = true;
                    }
                    Effect::Reset => asked = true,
                    Effect::ResetQueue { queue } | Effect::EnableQueue { queue } => {
                        prop_assert!(function.runs() && queue < 2);
                        asked = true;
                    }
                    Effect::Kick { queue } | Effect::Vector { queue } => {
                        prop_assert!(function.runs() && function.queues()[usize::from(queue)].enabled);
                    }
                    Effect::WriteConfig { offset, bytes } => {
                        prop_assert!(offset as usize + bytes.len() <= 60);
                    }
                }
                if asked && !lazy {
                    prop_assert!(function.answer(done).is_ok());
                    asked = false;
                }
            }
            if asked {
                prop_assert!(function.answer(done).is_ok());
                asked = false;
            }
            for (queue, max) in function.queues().iter().zip([256, 64]) {
                prop_assert!(queue.size.is_power_of_two() && queue.size <= max);
                prop_assert!(queue.vector == NO_VECTOR || queue.vector < 3);
            }
        }
    }
}

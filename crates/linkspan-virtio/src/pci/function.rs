//! The registers of a function, and the life of a device as its driver writes it.

use alloc::vec::Vec;

use super::effect::{Bytes, Effect, Offer, Queue, Read};
use super::error::{AccessError, Unasked};
use super::layout::{
    BAR_DOORBELLS, BAR_REGISTERS, COMMON_AT, COMMON_LEN, CONFIG_AT, CONFIG_LEN, DOORBELL_LEN,
    ISR_AT, ISR_LEN, Layout,
};
use super::registers::{self, Register, Row, TABLE};
use super::{NO_VECTOR, QUEUES_MAX, isr, status};

/// The registers of a function.
#[derive(Clone, Debug)]
pub struct Function {
    offer: Offer,
    layout: Layout,
    status: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    generation: u8,
    queue_select: u16,
    queues: Vec<Queue>,
    isr: u8,
    /// What the device was asked and has not answered.
    asked: Option<Effect>,
    /// BAR, offset and length of the capability through which BARs are reached.
    window: [u32; 3],
}

impl Function {
    /// A function whose driver has not come yet.
    #[must_use]
    pub fn new(mut offer: Offer) -> Self {
        offer.queue_sizes.truncate(QUEUES_MAX.into());
        let count = u16::try_from(offer.queue_sizes.len()).unwrap_or(QUEUES_MAX);
        let mut function = Self {
            layout: Layout::new(count, offer.config_len),
            status: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            generation: 0,
            queue_select: 0,
            queues: Vec::with_capacity(count.into()),
            isr: 0,
            asked: None,
            window: [0; 3],
            offer,
        };
        function.reset();
        function
    }

    /// Where its parts are.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The device status, as a driver reads it.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.status
    }

    /// Whether the driver wants the device to run.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.status & status::DRIVER_OK != 0
    }

    /// Whether the device cannot go on without a reset.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.status & status::NEEDS_RESET != 0
    }

    /// The features that the driver accepted.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.driver_features
    }

    /// What the driver says of its queues.
    #[must_use]
    pub fn queues(&self) -> &[Queue] {
        &self.queues
    }

    /// The interrupt for changes of configuration, or [`NO_VECTOR`].
    #[must_use]
    pub fn config_vector(&self) -> u16 {
        self.config_vector
    }

    /// Whether a line interrupt is to be seen by the driver.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.isr != 0
    }

    /// As it is before its driver comes, and after the driver has reset it.
    pub fn reset(&mut self) {
        self.status = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.config_vector = NO_VECTOR;
        self.queue_select = 0;
        self.isr = 0;
        self.asked = None;
        self.queues.clear();
        let sizes = self.offer.queue_sizes.iter();
        self.queues.extend(sizes.map(|size| Queue::unused(*size)));
    }

    /// A queue was used, and the driver is interrupted by the line.
    pub fn used(&mut self) {
        self.isr |= isr::QUEUE;
    }

    /// Device configuration changed.
    pub fn config_changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.isr |= isr::CONFIG;
    }

    /// The device cannot go on without a reset; whether the driver is to hear of it
    /// (virtio 1.3, 2.1.2), as of a change of configuration.
    pub fn broken(&mut self) -> bool {
        let tell = self.runs() && !self.needs_reset();
        self.status |= status::NEEDS_RESET;
        if tell {
            self.isr |= isr::CONFIG;
        }
        tell
    }

    /// Reads at most 8 bytes of a BAR, one of its [`pieces`](super::pieces). Where
    /// nothing is there are zeroes.
    ///
    /// # Errors
    /// When nothing is there.
    pub fn read(&mut self, bar: u8, offset: u64, target: &mut [u8]) -> Result<Read, AccessError> {
        target.fill(0);
        let len = target.len();
        match self.place(bar, offset, len)? {
            Place::Common(at) => {
                for (byte, at) in target.iter_mut().zip(at..) {
                    *byte = self.common_byte(at);
                }
            }
            Place::Isr(at) => {
                if at == 0
                    && let Some(first) = target.first_mut()
                {
                    // Virtio 1.3, 4.1.4.5.1: reading takes it back.
                    *first = core::mem::take(&mut self.isr);
                }
            }
            Place::Config(offset) => {
                let there = self.offer.config_len.saturating_sub(offset);
                let len = len.min(usize::try_from(there).unwrap_or(len));
                return Ok(Read::Config { offset, len });
            }
            Place::Doorbell { .. } => {}
        }
        Ok(Read::Done)
    }

    /// Writes at most 8 bytes of a BAR, one of its [`pieces`](super::pieces).
    ///
    /// # Errors
    /// When the write has no effect.
    pub fn write(
        &mut self,
        bar: u8,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Option<Effect>, AccessError> {
        let place = self.place(bar, offset, bytes.len())?;
        if self.asked.is_some() {
            return Err(AccessError::Busy);
        }
        let effect = match place {
            Place::Common(at) => self.write_common(at, bytes)?,
            Place::Isr(_) => {
                return Err(AccessError::ReadOnly {
                    register: "the ISR status",
                });
            }
            Place::Config(offset) => {
                let len = bytes.len();
                let end = u64::from(offset) + len as u64;
                let bytes = Bytes::new(bytes).filter(|_| end <= self.offer.config_len.into());
                let nothing = nothing(bar, CONFIG_AT + u64::from(offset), len);
                let bytes = bytes.ok_or(nothing)?;
                Some(Effect::WriteConfig { offset, bytes })
            }
            Place::Doorbell { queue, at } => Some(self.kick(queue, at, bytes.len())?),
        };
        let answered = !matches!(
            effect,
            None | Some(Effect::Kick { .. } | Effect::WriteConfig { .. } | Effect::Vector { .. })
        );
        self.asked = effect.filter(|_| answered);
        Ok(effect)
    }

    /// Says how an effect went that is to be answered. A device that cannot do what it
    /// was asked is broken, but for features, of which the driver reads that they are
    /// not agreed upon (virtio 1.3, 3.1.1, step 6). Whether the driver is to hear of
    /// that, as of a change of configuration.
    ///
    /// # Errors
    /// When nothing was asked.
    pub fn answer(&mut self, done: bool) -> Result<bool, Unasked> {
        let asked = self.asked.take().ok_or(Unasked)?;
        match asked {
            Effect::Agree { .. } if done => self.status |= status::FEATURES_OK,
            Effect::Start => self.status |= status::DRIVER_OK,
            Effect::Reset => self.reset(),
            Effect::ResetQueue { queue } => {
                let max = self.offer.queue_sizes.get(usize::from(queue)).copied();
                if let Some(reset) = self.queues.get_mut(usize::from(queue)) {
                    *reset = Queue::unused(max.unwrap_or(0));
                }
            }
            _ => {}
        }
        let broken = !done && !matches!(asked, Effect::Agree { .. } | Effect::Reset);
        Ok(broken && self.broken())
    }

    /// The bytes of [`Layout::capabilities`]'s last one that a driver writes, from
    /// `bar` (the fifth byte of the capability) on: where the window is.
    pub fn set_window(&mut self, bar: u8, offset: u32, len: u32) {
        self.window = [bar.into(), offset, len];
    }

    /// Where in a BAR an access to the last 4 bytes of that capability goes, if
    /// anywhere (virtio 1.3, 4.1.4.9).
    #[must_use]
    pub fn window(&self) -> Option<(u8, u64, usize)> {
        let [bar, offset, len] = self.window;
        let bar = u8::try_from(bar).ok()?;
        let fits = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len);
        let len = usize::try_from(len).ok().filter(|_| fits)?;
        (self.layout.bar_len(bar) > 0).then_some((bar, offset.into(), len))
    }

    fn place(&self, bar: u8, offset: u64, len: usize) -> Result<Place, AccessError> {
        let nothing = nothing(bar, offset, len);
        let end = offset.checked_add(len as u64).ok_or(nothing)?;
        if len == 0 || len > 8 || end > self.layout.bar_len(bar) {
            return Err(nothing);
        }
        let within = |from: u64, len: u64| offset >= from && end <= from + len;
        match bar {
            BAR_REGISTERS if within(COMMON_AT, COMMON_LEN.into()) => {
                Ok(Place::Common(offset - COMMON_AT))
            }
            BAR_REGISTERS if within(ISR_AT, ISR_LEN.into()) => Ok(Place::Isr(offset - ISR_AT)),
            BAR_REGISTERS if within(CONFIG_AT, CONFIG_LEN.into()) => {
                let offset = u32::try_from(offset - CONFIG_AT).map_err(|_| nothing)?;
                Ok(Place::Config(offset))
            }
            BAR_DOORBELLS => {
                let step = u64::from(DOORBELL_LEN);
                let queue = u16::try_from(offset / step).map_err(|_| nothing)?;
                let at = offset % step;
                if usize::from(queue) < self.queues.len() {
                    Ok(Place::Doorbell { queue, at })
                } else {
                    Err(nothing)
                }
            }
            _ => Err(nothing),
        }
    }

    /// The address says which queue it is, so what is written is not looked at.
    fn kick(&self, queue: u16, at: u64, len: usize) -> Result<Effect, AccessError> {
        let register = "a doorbell";
        if at != 0 || !matches!(len, 2 | 4) {
            let width = 2;
            return Err(AccessError::Width {
                register,
                width,
                len,
            });
        }
        let enabled = self.queues[usize::from(queue)].enabled;
        if !self.runs() || !enabled {
            let status = self.status;
            return Err(AccessError::State { register, status });
        }
        Ok(Effect::Kick { queue })
    }

    fn common_byte(&self, at: u64) -> u8 {
        let Some(row) = registers::find(at) else {
            return 0;
        };
        let bytes = self.value(row.register).to_le_bytes();
        let index = usize::try_from(at - row.at).unwrap_or(0);
        bytes.get(index).copied().unwrap_or(0)
    }

    fn value(&self, register: Register) -> u64 {
        let queue = self.queues.get(usize::from(self.queue_select));
        let of_queue = |value: fn(&Queue) -> u64| queue.map_or(0, value);
        match register {
            Register::DeviceFeatureSelect => self.device_feature_select.into(),
            Register::DeviceFeature => half(self.offer.features, self.device_feature_select),
            Register::DriverFeatureSelect => self.driver_feature_select.into(),
            Register::DriverFeature => half(self.driver_features, self.driver_feature_select),
            Register::ConfigVector => self.config_vector.into(),
            Register::QueueCount => self.queues.len() as u64,
            Register::Status => self.status.into(),
            Register::Generation => self.generation.into(),
            Register::QueueSelect => self.queue_select.into(),
            Register::QueueSize => of_queue(|queue| queue.size.into()),
            Register::QueueVector => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            Register::QueueEnable => of_queue(|queue| queue.enabled.into()),
            Register::QueueNotifyOffset => queue.map_or(0, |_| u64::from(self.queue_select)),
            Register::QueueArea(area) => queue.map_or(0, |queue| queue.areas[area]),
            // Virtio 1.3, 4.1.4.3.1: 1 as long as it lasts.
            Register::QueueReset => {
                let queue = self.queue_select;
                u64::from(self.asked == Some(Effect::ResetQueue { queue }))
            }
            Register::QueueNotifyData | Register::AdminQueueIndex | Register::AdminQueueCount => 0,
        }
    }

    fn write_common(&mut self, at: u64, bytes: &[u8]) -> Result<Option<Effect>, AccessError> {
        // Areas are written whole or by halves, all else as it is.
        let row = registers::find(at).filter(|row| {
            let half = row.len == 8 && bytes.len() == 4 && (at - row.at).is_multiple_of(4);
            half || at == row.at && bytes.len() == row.len
        });
        let Some(row) = row else {
            let row = registers::find(at).unwrap_or(&TABLE[0]);
            let (register, width, len) = (row.name, row.len, bytes.len());
            return Err(AccessError::Width {
                register,
                width,
                len,
            });
        };
        let register = row.name;
        if !row.written {
            return Err(AccessError::ReadOnly { register });
        }
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        let value = u64::from_le_bytes(whole);
        match row.register {
            Register::DeviceFeatureSelect => self.device_feature_select = low(value),
            Register::DriverFeatureSelect => self.driver_feature_select = low(value),
            Register::DriverFeature => self.write_features(row, value)?,
            Register::ConfigVector => self.config_vector = self.vector(value),
            Register::Status => return self.write_status(row, value),
            Register::QueueSelect => self.queue_select = short(value),
            _ => return self.write_queue(row, at - row.at, value, bytes.len()),
        }
        Ok(None)
    }

    /// Virtio 1.3, 4.1.5.1.2.1: what cannot be mapped reads as no interrupt.
    fn vector(&self, value: u64) -> u16 {
        let vector = short(value);
        if vector < self.layout.vectors() {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn write_features(&mut self, row: &Row, value: u64) -> Result<(), AccessError> {
        if self.status & status::FEATURES_OK != 0 {
            return Err(self.state(row));
        }
        let shift = match self.driver_feature_select {
            0 => 0,
            1 => 32,
            _ if value == 0 => return Ok(()),
            _ => {
                let register = row.name;
                return Err(AccessError::Value { register, value });
            }
        };
        let keep = self.driver_features & !(u64::from(u32::MAX) << shift);
        self.driver_features = keep | u64::from(low(value)) << shift;
        Ok(())
    }

    /// Virtio 1.3, 2.1.1 and 3.1.1: bits are added one after the other, and only a
    /// reset takes them back.
    fn write_status(&mut self, row: &Row, value: u64) -> Result<Option<Effect>, AccessError> {
        let written = value.to_le_bytes()[0];
        if written == 0 {
            return Ok(Some(Effect::Reset));
        }
        if self.status & !written & !status::NEEDS_RESET != 0 {
            let register = row.name;
            return Err(AccessError::Value { register, value });
        }
        let new = written & !self.status & !status::NEEDS_RESET;
        let (agrees, starts) = (new & status::FEATURES_OK, new & status::DRIVER_OK);
        self.status |= new & !(status::FEATURES_OK | status::DRIVER_OK);
        let ready = self.status & (status::FEATURES_OK | status::NEEDS_RESET);
        if starts != 0 && ready != status::FEATURES_OK {
            return Err(self.state(row));
        }
        if agrees != 0 {
            let features = self.driver_features;
            // What nobody offered is not agreed upon, nor is a legacy driver's wish.
            let extra = features & !self.offer.features;
            let legacy = features & VERSION_1 == 0;
            return Ok((extra == 0 && !legacy).then_some(Effect::Agree { features }));
        }
        Ok((starts != 0).then_some(Effect::Start))
    }

    fn write_queue(
        &mut self,
        row: &Row,
        at: u64,
        value: u64,
        len: usize,
    ) -> Result<Option<Effect>, AccessError> {
        let (register, index) = (row.name, self.queue_select);
        let queues = self.layout.vectors() - 1;
        let (runs, broken) = (self.runs(), self.needs_reset());
        let resets = self.driver_features & RING_RESET != 0;
        let (vector, state) = (self.vector(value), self.state(row));
        let max = self.offer.queue_sizes.get(usize::from(index)).copied();
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            let queue = index;
            return Err(AccessError::NoQueue {
                register,
                queue,
                queues,
            });
        };
        let refused = AccessError::Value { register, value };
        match row.register {
            Register::QueueVector => {
                queue.vector = vector;
                let queue_runs = runs && queue.enabled;
                return Ok(queue_runs.then_some(Effect::Vector { queue: index }));
            }
            Register::QueueReset if value == 1 && resets && runs && queue.enabled => {
                queue.enabled = false;
                return Ok(Some(Effect::ResetQueue { queue: index }));
            }
            // One that was not enabled is as after its reset.
            Register::QueueReset if value == 1 && resets => return Ok(None),
            Register::QueueReset => return Err(refused),
            Register::QueueEnable if value != 1 => return Err(refused),
            Register::QueueEnable if queue.enabled => return Ok(None),
            // Once the device runs only those come that were reset, and none to one that
            // needs a reset as a whole.
            Register::QueueEnable if broken || runs && !resets => return Err(state),
            Register::QueueEnable => {
                queue.enabled = true;
                return Ok(runs.then_some(Effect::EnableQueue { queue: index }));
            }
            _ if queue.enabled => {
                let queue = index;
                return Err(AccessError::Enabled { register, queue });
            }
            Register::QueueSize => {
                let size = short(value);
                if !size.is_power_of_two() || max.is_none_or(|max| size > max) {
                    return Err(refused);
                }
                queue.size = size;
            }
            Register::QueueArea(area) => {
                let known = queue.areas[area];
                queue.areas[area] = match (len, at) {
                    (4, 0) => known & !LOW | value,
                    (4, _) => known & LOW | value << 32,
                    _ => value,
                };
            }
            _ => return Err(refused),
        }
        Ok(None)
    }

    fn state(&self, row: &Row) -> AccessError {
        AccessError::State {
            register: row.name,
            status: self.status,
        }
    }
}

/// Where an access goes.
enum Place {
    Common(u64),
    Isr(u64),
    Config(u32),
    Doorbell { queue: u16, at: u64 },
}

/// `VIRTIO_F_VERSION_1`.
const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_RING_RESET`.
const RING_RESET: u64 = 1 << 40;

const LOW: u64 = 0xffff_ffff;

fn nothing(bar: u8, offset: u64, len: usize) -> AccessError {
    AccessError::Nothing { bar, offset, len }
}

/// 32 of 64 bits.
fn half(bits: u64, select: u32) -> u64 {
    match select {
        0 => bits & LOW,
        1 => bits >> 32,
        _ => 0,
    }
}

fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn short(value: u64) -> u16 {
    let [a, b, ..] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

//! Interrupts of a device: what is said of each kind, and what is asked of them.

use alloc::vec::Vec;

use thiserror::Error;

use crate::wire::{
    IRQ_ACTION_MASK, IRQ_ACTION_TRIGGER, IRQ_ACTION_UNMASK, IRQ_DATA_BOOL, IRQ_DATA_EVENTFD,
    IRQ_DATA_NONE, IrqSet,
};

/// The most interrupts of one kind (PCI 3.0, 6.8.2: MSI-X).
pub const IRQS_MAX: u32 = 2048;

/// One kind of interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Irq {
    /// How many there are; 0: none of this kind.
    pub count: u32,
    /// `VFIO_IRQ_INFO_*`.
    pub flags: u32,
}

/// What happens to interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// They are held back.
    Mask,
    /// They are not held back any more.
    Unmask,
    /// They happen; with descriptors: this is how they are told.
    Trigger,
}

/// What comes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IrqData {
    /// All of the range are meant.
    None,
    /// Those with `true` are.
    Bool(Vec<bool>),
    /// A descriptor for each of the range: those of the message, in their order.
    Events,
    /// No descriptor: those of the range are told nobody any more.
    Unassign,
}

/// What is asked (vfio-user: `VFIO_USER_DEVICE_SET_IRQS`), checked: the kind exists, and
/// the range is inside of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetIrqs {
    /// Which kind.
    pub index: u32,
    /// The first that is meant.
    pub start: u32,
    /// How many are.
    pub count: u32,
    /// What happens.
    pub action: IrqAction,
    /// What comes with it.
    pub data: IrqData,
}

/// Why it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IrqError {
    /// No such kind.
    #[error("interrupts of kind {index}; {kinds} kinds exist")]
    Kind {
        /// Which.
        index: u32,
        /// How many there are.
        kinds: usize,
    },
    /// A range that is not inside.
    #[error("interrupts {start} and {count} from there, of {have}")]
    Range {
        /// The first.
        start: u32,
        /// How many.
        count: u32,
        /// How many there are.
        have: u32,
    },
    /// Not one action and one kind of data, or two that do not go together.
    #[error("flags {flags:#x} of interrupts")]
    Flags {
        /// They.
        flags: u32,
    },
    /// Another length than flags and range want.
    #[error("{got} bytes for interrupts instead of {want}")]
    Length {
        /// Bytes that came.
        got: usize,
        /// Bytes that should.
        want: usize,
    },
    /// Neither none nor one for each.
    #[error("{got} descriptors for {want} interrupts")]
    Fds {
        /// Descriptors that came.
        got: usize,
        /// How many are meant.
        want: u32,
    },
    /// A descriptor that tells when the client masks them itself.
    #[error("a descriptor for masking interrupts")]
    MaskEvent,
}

impl SetIrqs {
    /// Reads what is asked of these kinds; `data` is what follows the structure.
    pub(crate) fn new(
        set: &IrqSet,
        data: &[u8],
        fds: usize,
        kinds: &[Irq],
    ) -> Result<Self, IrqError> {
        let IrqSet {
            flags,
            index,
            start,
            count,
            ..
        } = *set;
        let kind = usize::try_from(index)
            .ok()
            .and_then(|index| kinds.get(index));
        let Some(kind) = kind else {
            let kinds = kinds.len();
            return Err(IrqError::Kind { index, kinds });
        };
        let have = kind.count;
        if start.checked_add(count).is_none_or(|end| end > have) {
            return Err(IrqError::Range { start, count, have });
        }
        let bad = IrqError::Flags { flags };
        let action = match flags & (IRQ_ACTION_MASK | IRQ_ACTION_UNMASK | IRQ_ACTION_TRIGGER) {
            IRQ_ACTION_MASK => IrqAction::Mask,
            IRQ_ACTION_UNMASK => IrqAction::Unmask,
            IRQ_ACTION_TRIGGER => IrqAction::Trigger,
            _ => return Err(bad),
        };
        let kind = flags & !(IRQ_ACTION_MASK | IRQ_ACTION_UNMASK | IRQ_ACTION_TRIGGER);
        // None at all: the whole kind is switched off, and that is only said in one way.
        if count == 0 && (kind, action, start) != (IRQ_DATA_NONE, IrqAction::Trigger, 0) {
            return Err(bad);
        }
        let bytes = if kind == IRQ_DATA_BOOL {
            count as usize
        } else {
            0
        };
        if data.len() != bytes {
            let (got, want) = (data.len(), bytes);
            return Err(IrqError::Length { got, want });
        }
        if fds > 0 && (kind != IRQ_DATA_EVENTFD || fds != count as usize) {
            let (got, want) = (fds, count);
            return Err(IrqError::Fds { got, want });
        }
        let data = match kind {
            IRQ_DATA_NONE => IrqData::None,
            IRQ_DATA_BOOL => IrqData::Bool(data.iter().map(|byte| *byte != 0).collect()),
            IRQ_DATA_EVENTFD if action != IrqAction::Trigger => return Err(IrqError::MaskEvent),
            IRQ_DATA_EVENTFD if fds == 0 => IrqData::Unassign,
            IRQ_DATA_EVENTFD => IrqData::Events,
            _ => return Err(bad),
        };
        Ok(Self {
            index,
            start,
            count,
            action,
            data,
        })
    }

    /// The interrupts that are meant.
    pub fn meant(&self) -> impl Iterator<Item = u32> + '_ {
        // Inside of the kind, so it does not wrap.
        (self.start..self.start + self.count).filter(|number| match &self.data {
            IrqData::Bool(meant) => meant
                .get((number - self.start) as usize)
                .copied()
                .unwrap_or(false),
            _ => true,
        })
    }
}

//! Why an access has no effect.

use thiserror::Error;

/// Why an access has no effect. What is read is zeroes then; what is written is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AccessError {
    /// Nothing is there.
    #[error("{len} bytes at {offset:#x} of BAR {bar} hold nothing")]
    Nothing {
        /// The BAR.
        bar: u8,
        /// Where.
        offset: u64,
        /// How many bytes.
        len: usize,
    },
    /// A register is written as a whole (virtio 1.3, 4.1.3.1).
    #[error("{len} bytes were written to {register}, which has {width}")]
    Width {
        /// The register.
        register: &'static str,
        /// Its bytes.
        width: usize,
        /// How many were written.
        len: usize,
    },
    /// The driver only reads it.
    #[error("{register} was written, which can only be read")]
    ReadOnly {
        /// The register.
        register: &'static str,
    },
    /// A value that the register cannot have.
    #[error("{register} was written with {value:#x}, which it cannot have")]
    Value {
        /// The register.
        register: &'static str,
        /// The value.
        value: u64,
    },
    /// The queue that is selected does not exist.
    #[error("{register} was written of queue {queue}, of {queues}")]
    NoQueue {
        /// The register.
        register: &'static str,
        /// The queue.
        queue: u16,
        /// How many there are.
        queues: u16,
    },
    /// Not in this state.
    #[error("{register} was written while the device status was {status:#x}")]
    State {
        /// The register.
        register: &'static str,
        /// The status.
        status: u8,
    },
    /// The queue is enabled, so it stays as it is.
    #[error("{register} was written of queue {queue}, which is enabled")]
    Enabled {
        /// The register.
        register: &'static str,
        /// The queue.
        queue: u16,
    },
    /// The device has not done yet what it was asked for last.
    #[error("a register was written while the device was at work")]
    Busy,
}

/// An answer that nothing waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("nothing was asked of the device")]
pub struct Unasked;

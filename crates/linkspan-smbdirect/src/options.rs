//! What a connection may be told, the values that are possible, and what a device makes
//! of them.

use alloc::format;
use alloc::string::String;

use linkspan_rdma::verbs::Limits;
use thiserror::Error;

use crate::connection::Role;
use crate::gather::GATHER_MAX;
use crate::wire;

/// Parameters of one end (MS-SMBD 3.1.1.1 and what Linux adds).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The most receives that are posted for the peer.
    pub receive_credit_max: u16,
    /// Credits that we want to hold.
    pub send_credit_target: u16,
    /// The most that is sent at once, in bytes, header included.
    pub max_send_size: u32,
    /// The most that is received at once, in bytes, header included.
    pub max_receive_size: u32,
    /// The longest message that is received, in bytes.
    pub max_fragmented_receive_size: u32,
    /// The longest RDMA transfer, in bytes.
    pub max_read_write_size: u32,
    /// Silence after which the peer is asked whether it is there, in milliseconds.
    pub keepalive_interval_ms: u32,
    /// How long its answer is awaited, in milliseconds.
    pub keepalive_wait_ms: u32,
    /// How long a negotiation may take, in milliseconds.
    pub negotiate_timeout_ms: u32,
    /// How long the transport may take to connect, in milliseconds.
    pub connect_timeout_ms: u32,
    /// RDMA reads of the peer that are answered at a time (IRD); over TCP a peer that asks for
    /// more has up to 128 answered, as siw does it.
    pub inbound_reads: u16,
    /// RDMA reads of ours at a time (ORD).
    pub outbound_reads: u16,
    /// Elements of the gather list of a send, its header included.
    pub send_gather: u16,
    /// Bytes from which on an upper layer transfers by RDMA.
    pub rdma_threshold: u32,
    /// Sends that are posted and not done.
    pub send_depth: u16,
    /// RDMA reads and writes that are posted and not done.
    pub transfer_depth: u16,
    /// Messages that wait to be sent; and transfers of each direction, a quarter of it.
    pub queue: u16,
    /// Registrations of memory at a time.
    pub registrations: u16,
}

/// What there is to know about a parameter.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it counts.
    pub unit: &'static str,
    /// The least.
    pub min: u32,
    /// The most.
    pub max: u32,
    /// What it is.
    pub about: &'static str,
    get: fn(&Options) -> u32,
    set: fn(&mut Options, u32),
}

impl Parameter {
    /// Its value.
    #[must_use]
    pub fn get(&self, options: &Options) -> u32 {
        (self.get)(options)
    }

    /// Gives it a value.
    ///
    /// # Errors
    /// The value is out of its bounds; then the options are as before.
    pub fn set(&self, options: &mut Options, value: u32) -> Result<(), OptionsError> {
        self.check(value)?;
        (self.set)(options, value);
        Ok(())
    }

    fn check(&self, value: u32) -> Result<(), OptionsError> {
        let Self { name, min, max, .. } = *self;
        if (min..=max).contains(&value) {
            return Ok(());
        }
        Err(OptionsError::Value {
            name,
            value,
            min,
            max,
        })
    }
}

macro_rules! parameter {
    ($name:ident, $unit:literal, $min:literal ..= $max:literal, $about:literal) => {
        Parameter {
            name: stringify!($name),
            unit: $unit,
            min: $min,
            max: $max,
            about: $about,
            get: |options| options.$name.into(),
            // Whatever is within the bounds fits.
            set: |options, value| options.$name = value.try_into().unwrap_or(!0),
        }
    };
}

/// All parameters.
pub const OPTIONS: &[Parameter] = &[
    parameter!(
        receive_credit_max,
        "receives",
        1..=4096,
        "receives posted for the peer; one or two more where a last credit has to go with a grant"
    ),
    parameter!(
        send_credit_target,
        "credits",
        1..=65535,
        "credits that we ask the peer for"
    ),
    parameter!(
        max_send_size,
        "bytes",
        128..=65536,
        "the most that is sent at once; Windows refuses more than 8136"
    ),
    parameter!(
        max_receive_size,
        "bytes",
        128..=65536,
        "the most that is received at once"
    ),
    parameter!(
        max_fragmented_receive_size,
        "bytes",
        131_072..=16_777_216,
        "the longest message that is received"
    ),
    parameter!(
        max_read_write_size,
        "bytes",
        524_288..=16_777_216,
        "the longest RDMA transfer"
    ),
    parameter!(
        keepalive_interval_ms,
        "ms",
        1000..=3_600_000,
        "silence after which the peer is asked for a sign of life"
    ),
    parameter!(
        keepalive_wait_ms,
        "ms",
        100..=600_000,
        "how long that is awaited"
    ),
    parameter!(
        negotiate_timeout_ms,
        "ms",
        100..=600_000,
        "how long negotiation may take"
    ),
    parameter!(
        connect_timeout_ms,
        "ms",
        100..=600_000,
        "how long the transport may take to connect"
    ),
    parameter!(
        inbound_reads,
        "reads",
        1..=128,
        "RDMA reads of the peer at a time (IRD); over TCP one that asks for more gets up to 128"
    ),
    parameter!(
        outbound_reads,
        "reads",
        1..=128,
        "RDMA reads of ours at a time (ORD)"
    ),
    parameter!(
        send_gather,
        "elements",
        2..=8,
        "elements of the gather list of a send, its header included; a receive has one"
    ),
    parameter!(
        rdma_threshold,
        "bytes",
        1..=16_777_216,
        "from where on an upper layer transfers by RDMA, as `bench --mode auto` does"
    ),
    parameter!(
        send_depth,
        "sends",
        1..=4096,
        "sends that are posted and not done"
    ),
    parameter!(
        transfer_depth,
        "works",
        1..=1024,
        "RDMA reads and writes that are posted and not done"
    ),
    parameter!(
        queue,
        "messages",
        4..=65535,
        "messages that wait to be sent; a quarter as many transfers each way"
    ),
    parameter!(
        registrations,
        "registrations",
        1..=4096,
        "registrations of memory at a time"
    ),
];

/// A value that cannot be, or a device that cannot do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// A value out of its bounds.
    #[error("{name} is {value}, where {min} to {max} are possible")]
    Value {
        /// Which.
        name: &'static str,
        /// What was given.
        value: u32,
        /// The least.
        min: u32,
        /// The most.
        max: u32,
    },
    /// A device that is too small for the protocol.
    #[error("the device has {got} {what}, and SMB Direct needs {want}")]
    Device {
        /// What it lacks.
        what: &'static str,
        /// What it has.
        got: u64,
        /// What is needed.
        want: u64,
    },
    /// The machine refused memory.
    #[error(transparent)]
    Machine(#[from] linkspan_mem::fault::Injected),
}

/// What a provider can do on a connection.
pub type Device = Limits;

impl Options {
    /// What Linux's client has.
    #[must_use]
    pub fn initiator() -> Self {
        Self {
            receive_credit_max: 255,
            send_credit_target: 255,
            max_send_size: 1364,
            max_receive_size: 1364,
            max_fragmented_receive_size: 173_910,
            max_read_write_size: 8 << 20,
            keepalive_interval_ms: 120_000,
            keepalive_wait_ms: 5000,
            negotiate_timeout_ms: 120_000,
            connect_timeout_ms: 5000,
            inbound_reads: 32,
            outbound_reads: 1,
            send_gather: 6,
            rdma_threshold: 4096,
            send_depth: 255,
            transfer_depth: 64,
            queue: 256,
            registrations: 64,
        }
    }

    /// What Linux's server has.
    #[must_use]
    pub fn listener() -> Self {
        Self {
            negotiate_timeout_ms: 5000,
            inbound_reads: 1,
            outbound_reads: 8,
            ..Self::initiator()
        }
    }

    /// What an end of this role has unless told otherwise.
    #[must_use]
    pub fn of(role: Role) -> Self {
        match role {
            Role::Initiator => Self::initiator(),
            Role::Listener => Self::listener(),
        }
    }

    /// Whether an upper layer should transfer so many bytes by RDMA. What has to be encrypted
    /// is never: it would pass the session as it is (m:1422bba9b).
    #[must_use]
    pub fn by_rdma(&self, len: u64, encrypted: bool) -> bool {
        !encrypted && len >= u64::from(self.rdma_threshold)
    }

    /// Checks every value against its bounds.
    ///
    /// # Errors
    /// The first one that is out of them.
    pub fn check(&self) -> Result<(), OptionsError> {
        OPTIONS
            .iter()
            .try_for_each(|parameter| parameter.check(parameter.get(self)))
    }

    /// These values with what a device cannot do taken off.
    ///
    /// # Errors
    /// A value is out of its bounds, or the device is too small for the protocol.
    pub fn fit(&self, device: &Device) -> Result<Self, OptionsError> {
        self.check()?;
        let needs = |what, got: u64, want: u64| {
            let lacking = OptionsError::Device { what, got, want };
            (got >= want).then_some(()).ok_or(lacking)
        };
        let receives = u64::from(device.receives);
        needs("elements of a gather list", device.gather as u64, 2)?;
        needs("elements of the list of a read", device.read_into as u64, 1)?;
        needs("works", device.works as u64, 4)?;
        needs("receives", receives, 3)?;
        let len = u64::from(device.receive_size);
        needs(
            "bytes of a receive",
            len,
            u64::from(wire::NEGOTIATE_RECEIVE_LEN),
        )?;
        let len = u64::from(device.work_bytes);
        needs(
            "bytes of a send",
            len,
            u64::from(wire::NEGOTIATE_RECEIVE_LEN),
        )?;
        let most = |value: u16, max: usize| u16::try_from(max).map_or(value, |max| value.min(max));
        // A quarter of all works is for invalidations and for transfers each, the rest
        // for sends.
        let works = device.works / 4;
        Ok(Self {
            // One more is posted with a last credit.
            receive_credit_max: u16::try_from(device.receives - 1)
                .map_or(self.receive_credit_max, |max| {
                    self.receive_credit_max.min(max)
                }),
            max_send_size: self.max_send_size.min(device.work_bytes),
            max_receive_size: self.max_receive_size.min(device.receive_size),
            send_gather: most(self.send_gather, device.gather.min(GATHER_MAX + 1)),
            send_depth: most(self.send_depth, works * 2),
            transfer_depth: most(self.transfer_depth, works),
            registrations: most(self.registrations, works.min(device.exposures.max(1))),
            ..*self
        })
    }
}

/// The table as a page of the book has it.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from(
        "| option | initiator | listener | least | most | unit | what it is |\n|---|---|---|---|---|---|---|\n",
    );
    let (initiator, listener) = (Options::initiator(), Options::listener());
    for parameter in OPTIONS {
        let Parameter {
            name,
            unit,
            min,
            max,
            about,
            ..
        } = *parameter;
        let (initiator, listener) = (parameter.get(&initiator), parameter.get(&listener));
        page += &format!(
            "| `{name}` | {initiator} | {listener} | {min} | {max} | {unit} | {about} |\n"
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_out_of_its_bounds_is_refused_and_changes_nothing() {
        for parameter in OPTIONS {
            let mut options = Options::initiator();
            for value in [parameter.min.checked_sub(1), parameter.max.checked_add(1)] {
                let Some(value) = value else { continue };
                let refused = OptionsError::Value {
                    name: parameter.name,
                    value,
                    min: parameter.min,
                    max: parameter.max,
                };
                assert_eq!(parameter.set(&mut options, value), Err(refused));
            }
            assert_eq!(options, Options::initiator());
            assert_eq!(parameter.set(&mut options, parameter.max), Ok(()));
            assert_eq!(parameter.get(&options), parameter.max);
        }
    }
}

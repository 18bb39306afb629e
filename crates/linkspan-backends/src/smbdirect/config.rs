//! What an endpoint is made with, and where SMB Direct is.

use std::time::Duration;

use linkspan_rdma::verbs::Limits;
use linkspan_smbdirect::{Options, Role, wire};

use crate::rdma::{self, DeviceConfig};

/// What an endpoint is made with.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Which end of each connection it is.
    pub role: Role,
    /// Parameters of SMB Direct.
    pub options: Options,
    /// The same of iWARP and TCP. What is not of them holds for devices as well.
    pub iwarp: rdma::Config,
}

impl Config {
    /// iWARP as these parameters need it.
    #[must_use]
    pub fn new(role: Role, options: Options) -> Self {
        let mut iwarp = rdma::Config::default();
        let limits = &mut iwarp.options.limits;
        limits.receive_size = options.max_receive_size.max(wire::NEGOTIATE_RECEIVE_LEN);
        // As the protocol shares them out.
        let quarters = options.transfer_depth.max(options.registrations);
        let works = (2 * usize::from(options.send_depth)).max(4 * usize::from(quarters));
        limits.works = limits.works.max(works);
        iwarp.options.depth.inbound = options.inbound_reads;
        iwarp.options.depth.outbound = options.outbound_reads;
        iwarp.options.reply_within = Duration::from_millis(options.connect_timeout_ms.into());
        Self {
            role,
            options,
            iwarp,
        }
    }

    /// Devices as these parameters need them.
    #[must_use]
    pub fn device(&self) -> DeviceConfig {
        let rdma::Config {
            options: iwarp,
            connections,
            per_address,
            half_open,
            ..
        } = self.iwarp;
        let own = DeviceConfig::default();
        DeviceConfig {
            limits: Limits {
                works: iwarp.limits.works,
                // Two more go with last credits.
                receives: u32::from(self.options.receive_credit_max) + 2,
                receive_size: iwarp.limits.receive_size,
                gather: usize::from(self.options.send_gather).max(own.limits.gather),
                ..own.limits
            },
            depth: iwarp.depth,
            connections,
            per_address,
            half_open,
            reply_within: iwarp.reply_within,
            port_fits,
        }
    }
}

/// The port of SMB Direct over iWARP, which has the ports of TCP, where 445 is SMB.
pub const PORT_IWARP: u16 = 5445;

/// The port over what has ports of its own: InfiniBand and RoCE.
pub const PORT: u16 = 445;

/// Both are for their kind of device alone, so that iWARP and RoCE beside each other are not
/// mixed up (m:a1038688a); others are for any.
fn port_fits(port: u16, is_iwarp: bool) -> bool {
    match port {
        PORT_IWARP => is_iwarp,
        PORT => !is_iwarp,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fault 30 (m:a1038688a).
    #[test]
    fn each_port_is_for_its_kind_of_device() {
        let kinds = |port| [true, false].map(|is_iwarp| port_fits(port, is_iwarp));
        assert_eq!(kinds(PORT_IWARP), [true, false]);
        assert_eq!(kinds(PORT), [false, true]);
        assert_eq!(kinds(4791), [true, true]);
    }
}

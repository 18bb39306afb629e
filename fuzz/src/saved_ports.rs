//! Ports of a network as the bytes with which a process hands them to the next one: whatever
//! they are, they are refused by name, or are ports that can be handed on again.

use std::sync::Arc;

use linkspan_backends::port::{Fabric, Kind, Mode, PortOptions};
use linkspan_devices::net::Mac;
use linkspan_devices::net::frame::Responder;
use linkspan_devices::net::switch::{PortVlans, Station};

/// The target `saved_ports`.
pub fn target(bytes: &[u8]) {
    run(bytes);
}

/// What they are.
///
/// # Panics
/// When ports that were taken over are none that can be handed on.
pub fn run(bytes: &[u8]) -> &'static str {
    let fabric = ports();
    if fabric.go_on_from(bytes).is_err() {
        assert!(fabric.counts(0).is_some_and(|counts| counts.frames_in == 0));
        return "refused";
    }
    let next = ports();
    let again = next.go_on_from(&fabric.saved(Vec::new()));
    again.expect("its own bytes");
    for port in 0..fabric.ports() {
        assert_eq!(fabric.counts(port), next.counts(port));
        assert_eq!(fabric.link_is_up(port), next.link_is_up(port));
        assert!(
            fabric
                .counts(port)
                .is_some_and(|it| it.dropped_all() < 1 << 61)
        );
    }
    match fabric.link_is_up(0) {
        true => "up",
        false => "shut",
    }
}

/// A guest and a host that is not there.
///
/// # Panics
/// When memory or a descriptor cannot be had.
#[must_use]
pub fn ports() -> Arc<Fabric> {
    let port = |name: &str, kind| PortOptions {
        name: name.to_owned(),
        kind,
        vlans: PortVlans::Unaware,
        mtu: 1500,
        limit: None,
    };
    let responder = Responder {
        mac: Mac([2, 0, 0, 0, 0, 1]),
        address: [10, 0, 2, 2],
        lease: None,
    };
    let ports = vec![
        port("guest", Kind::Guest { pairs: 1 }),
        port("host", Kind::Responder(responder)),
    ];
    Fabric::new(Mode::Switch, ports, 1).expect("ports")
}

/// A station of the guest.
#[must_use]
pub fn station() -> Station {
    Station {
        vlan: 0,
        mac: Mac([2, 0, 0, 0, 0, 2]),
        seen_s: 5,
        port: 0,
    }
}

//! Interfaces when a descriptor cannot be had: alone in its process, as whoever makes
//! steps fail has to be.

use std::net::Ipv4Addr;

use linkspan_mem::fault;
use linkspan_sys::interface::{Interfaces, give_address};

#[test]
fn without_a_descriptor_no_address_is_given_and_nothing_is_watched() {
    let address = Ipv4Addr::new(198, 51, 100, 1);
    let sweep = fault::arm(1);
    assert!(give_address("no-such-name", address, 24).is_err());
    assert!(sweep.fired());
    drop(sweep);
    let sweep = fault::arm(1);
    assert!(Interfaces::watch().is_err());
    assert!(sweep.fired());
    drop(sweep);
    Interfaces::watch().unwrap().drain().unwrap();
    let error = give_address("no-such-name", address, 24).unwrap_err();
    assert_ne!(error.raw_os_error(), None, "what the system says: {error}");
}

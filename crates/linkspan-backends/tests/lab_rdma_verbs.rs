//! Devices of the kernel in software (siw, rxe), through rdma-core: among themselves, and siw with
//! our iWARP over TCP, which connects and is connected to.

//: about the RDMA seam over siw and rxe, and siw with our iWARP over TCP
//: pack ip rdma verbs rdmacm
//: memory 512
//: limit 400

mod rdma_suite;

use std::net::SocketAddr;
use std::time::Duration;

use linkspan_backends::rdma::{
    Carrier as _, Config, DeviceConfig, DeviceProvider, Host as _, Provider,
};
use linkspan_rdma::verbs::Failure;
use linkspan_testkit::lab::{self, Rdma};
use rdma_suite::{DEPTH, Kind, RECEIVE_SIZE, Side, requested};

fn device() -> DeviceProvider {
    let mut config = DeviceConfig {
        depth: DEPTH,
        ..DeviceConfig::default()
    };
    config.limits.receive_size = RECEIVE_SIZE;
    DeviceProvider::new(config).unwrap()
}

fn tcp() -> Provider {
    let mut config = Config::default();
    config.options.depth = DEPTH;
    config.options.limits.receive_size = RECEIVE_SIZE;
    Provider::new(config).unwrap()
}

fn at(interface: &Rdma) -> SocketAddr {
    (interface.address(), 4791).into()
}

#[test]
fn siw_among_itself() {
    if !lab::guest("siw_among_itself") {
        return;
    }
    let siw = Rdma::new("siw");
    rdma_suite::all(device(), device(), at(&siw), Kind::default());
}

#[test]
fn rxe_among_itself() {
    if !lab::guest("rxe_among_itself") {
        return;
    }
    let rxe = Rdma::new("rxe");
    rdma_suite::all(device(), device(), at(&rxe), Kind::default());
}

#[test]
fn siw_connects_to_iwarp_over_tcp() {
    if !lab::guest("siw_connects_to_iwarp_over_tcp") {
        return;
    }
    let siw = Rdma::new("siw");
    let kind = Kind {
        tells_invalidation: true,
        ..Kind::default()
    };
    rdma_suite::all(device(), tcp(), at(&siw), kind);
}

#[test]
fn iwarp_over_tcp_connects_to_siw() {
    if !lab::guest("iwarp_over_tcp_connects_to_siw") {
        return;
    }
    let siw = Rdma::new("siw");
    rdma_suite::all(tcp(), device(), at(&siw), Kind::default());
}

/// PEERS: a first frame that follows the reply at once stays in siw's socket.
#[test]
fn the_accept_race_of_siw_hurts_no_connection() {
    if !lab::guest("the_accept_race_of_siw_hurts_no_connection") {
        return;
    }
    let siw = Rdma::new("siw");
    let (mut a, mut b) = (Side::new(tcp()), Side::new(device()));
    let address = rdma_suite::listen(&mut b, at(&siw));
    for _ in 0..40 {
        let (at_a, _) = rdma_suite::connect(&mut a, &mut b, address);
        a.send(at_a, 1, &[a.slice(0, 20)]);
        let message = rdma_suite::until(&mut a, &mut b, |_, b| b.message());
        assert_eq!(message.len(), 20);
        rdma_suite::disconnect(&mut a, &mut b, at_a);
    }
}

/// Who begins and does not go on takes no room for long, and one address not all of it.
#[test]
fn half_open_connections_of_devices_have_limits() {
    if !lab::guest("half_open_connections_of_devices_have_limits") {
        return;
    }
    let siw = Rdma::new("siw");
    let config = DeviceConfig {
        depth: DEPTH,
        per_address: 2,
        half_open: 4,
        reply_within: Duration::from_millis(500),
        ..DeviceConfig::default()
    };
    let mut a = Side::new(tcp());
    let mut b = Side::new(DeviceProvider::new(config).unwrap());
    let address = rdma_suite::listen(&mut b, at(&siw));
    // One of four is all that one address has, and nobody accepts it.
    let connect = |a: &mut Side<Provider>| a.provider.connect(address, b"hello").unwrap();
    let waits = connect(&mut a);
    let (at_b, _) = rdma_suite::until(&mut a, &mut b, |_, b| b.find(requested));
    assert_eq!(b.provider.guests(), (1, 0));
    let second = connect(&mut a);
    rdma_suite::until(&mut a, &mut b, |a, _| a.end_of(second));
    assert_eq!(b.provider.guests().1, 1);
    // Its time comes to an end.
    let end = rdma_suite::until(&mut a, &mut b, |_, b| b.end_of(at_b));
    assert_eq!(end, Failure::TimedOut);
    rdma_suite::until(&mut a, &mut b, |a, _| a.end_of(waits));
    assert_eq!(b.provider.guests(), (0, 1));
    // Whoever is admitted is not half open, and counts for its address.
    for _ in 0..2 {
        let (_, at_b) = rdma_suite::connect(&mut a, &mut b, address);
        assert_eq!(b.provider.guests(), (1, 1));
        b.provider.admit(at_b);
        assert_eq!(b.provider.guests(), (0, 1));
    }
    let third = connect(&mut a);
    rdma_suite::until(&mut a, &mut b, |a, _| a.end_of(third));
    assert_eq!(b.provider.guests(), (0, 2));
    assert_eq!(b.provider.count(), 2);
}

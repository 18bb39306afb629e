//! Devices of the kernel in software (siw, rxe), through rdma-core: among themselves, and siw with
//! our iWARP over TCP, which connects and is connected to.

//: about the RDMA seam over siw and rxe, and siw with our iWARP over TCP
//: pack ip rdma verbs rdmacm
//: memory 512
//: limit 400

mod rdma_suite;

use std::net::SocketAddr;

use linkspan_backends::rdma::{Config, DeviceConfig, DeviceProvider, Provider};
use linkspan_testkit::lab::{self, Rdma};
use rdma_suite::{DEPTH, Kind, RECEIVE_SIZE, Side};

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

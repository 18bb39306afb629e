//! Guests joined into a network: their cards are driven over real vhost-user
//! connections, by what is between them.

use std::sync::Arc;

use linkspan_backends::port::{
    Count, Drop, Fabric, Kind, Mode, NetDevice, PortCounts, PortOptions, Running,
};
use linkspan_devices::net::features::{VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF};
use linkspan_devices::net::switch::PortVlans;
use linkspan_devices::net::{Mac, NetOptions, OFFLOADS, Speed};
use linkspan_engine::{Device, Workers};
use linkspan_testkit::census::settled;
use linkspan_testkit::net::{Card, CardOptions, frame, station};
use linkspan_testkit::{Options, Served};
use linkspan_virtio::Features;

/// A network with guests at its ports, on so many workers.
struct Net {
    fabric: Arc<Fabric>,
    _running: Running,
    guests: Vec<Served>,
    _workers: Arc<Workers>,
}

fn card_options(number: u16, pairs: u16) -> NetOptions {
    NetOptions {
        mac: station(u8::try_from(number).unwrap()),
        mtu: 1500,
        pairs,
        queue_size: 1024,
        speed: Speed::default(),
        to_device: OFFLOADS,
        to_driver: OFFLOADS,
        control_queue: false,
    }
}

impl Net {
    fn new(mode: Mode, ports: u16, pairs: u16, workers: usize) -> Self {
        Self::with(mode, ports, pairs, workers, |_| PortVlans::Unaware)
    }

    fn with(
        mode: Mode,
        ports: u16,
        pairs: u16,
        workers: usize,
        vlans: impl Fn(u16) -> PortVlans,
    ) -> Self {
        let workers = Arc::new(Workers::new(workers).unwrap());
        let options = (0..ports).map(|port| PortOptions {
            name: format!("guest{port}"),
            kind: Kind::Guest { pairs },
            vlans: vlans(port),
            mtu: 1500,
            limit: None,
        });
        let fabric = Fabric::new(mode, options.collect(), workers.count()).unwrap();
        let running = fabric.run(&workers).unwrap();
        let guests = (0..ports).map(|port| {
            let device =
                NetDevice::new(&fabric, port, card_options(port + 1, pairs), Count::Pairs);
            let device: Arc<dyn Device> = Arc::new(device.unwrap());
            Served::device(tempfile::tempdir().unwrap(), device, Arc::clone(&workers))
        });
        let guests = guests.collect();
        Self {
            fabric,
            _running: running,
            guests,
            _workers: workers,
        }
    }

    #[track_caller]
    fn card(&self, port: usize, options: &CardOptions) -> Card {
        Card::bring_up(&self.guests[port].socket(), options).expect("a card")
    }

    fn counts(&self, port: u16) -> PortCounts {
        self.fabric.counts(port).unwrap()
    }

    #[track_caller]
    fn expect_dropped(&self, port: u16, why: Drop, count: u64) {
        let there = settled(|| self.counts(port).dropped(why) == count);
        assert!(there, "{:?} instead of {count} {why:?}", self.counts(port));
    }
}

/// Split and packed, in order or not, with mergeable buffers or without.
fn ways() -> Vec<Options> {
    let (order, merge) = (Features::VIRTIO_F_IN_ORDER, VIRTIO_NET_F_MRG_RXBUF);
    let ways = [Features::empty(), order, merge, order | merge];
    let ways = ways.into_iter().flat_map(|without| {
        [false, true].map(|packed| Options {
            without: without.bits(),
            packed,
            ..Options::default()
        })
    });
    ways.collect()
}

#[test]
fn frames_arrive_as_they_were_sent_over_every_kind_of_ring() {
    for front in ways() {
        let net = Net::new(Mode::Switch, 2, 1, 1);
        let options = CardOptions {
            front,
            ..CardOptions::default()
        };
        let (mut a, mut b) = (net.card(0, &options), net.card(1, &options));
        for round in 0..16 {
            for len in [46, 60, 100, 1000, 1500] {
                let there = frame(station(1), station(2), round, len);
                a.send(0, &there);
                assert_eq!(b.expect().1, there, "{front:?}");
                let back = frame(station(2), station(1), round, len);
                b.send(0, &back);
                assert_eq!(a.expect().1, back, "{front:?}");
            }
        }
        for port in 0..2 {
            let counts = net.counts(port);
            assert_eq!((counts.frames_in, counts.frames_out), (80, 80));
            assert_eq!(counts.dropped_all(), 0, "{counts:?}");
        }
        // Only the first was for somebody of whom nothing was known.
        assert_eq!(net.counts(0).flooded, 1);
        assert_eq!(net.counts(1).flooded, 0);
    }
}

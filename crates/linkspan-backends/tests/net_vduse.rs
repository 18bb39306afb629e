//! Network cards served through VDUSE to a model of the kernel: what the kernel's own
//! driver makes of them is in the lab.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use linkspan_backends::port::{Count, Fabric, Kind, Mode, NetDevice, PortOptions, Running};
use linkspan_devices::net::switch::PortVlans;
use linkspan_devices::net::{NetOptions, OFFLOADS, Speed};
use linkspan_engine::vduse::{self, Event, Options};
use linkspan_engine::{Device, Server, Workers};
use linkspan_mem::Gpa;
use linkspan_sys::memfd::Sealing;
use linkspan_testkit::census::settled;
use linkspan_testkit::net::{CardOptions, Pair, frame, station};
use linkspan_testkit::{ModelKernel, PATIENCE, SharedMemory};
use linkspan_virtio::Features;

const NAMES: [&str; 2] = ["card0", "card1"];
const NETWORK: u32 = 1;
/// `VIRTIO_NET_F_CTRL_VQ`, which VDUSE takes from nobody.
const CONTROL_QUEUE: u64 = 1 << 17;

/// Two cards that are joined.
struct Rig {
    kernel: Arc<ModelKernel>,
    servers: Vec<Server>,
    events: Vec<Receiver<Event>>,
    fabric: Arc<Fabric>,
    _running: Running,
    _folder: tempfile::TempDir,
}

/// What the driver at the other end has.
struct Driver {
    pair: Pair,
    kernel: Arc<ModelKernel>,
    name: &'static str,
}

impl Driver {
    fn send(&mut self, frame: &[u8]) {
        self.pair
            .send(&linkspan_devices::net::header::Offload::NONE, frame);
        self.kernel.kick(self.name, 1);
    }

    #[track_caller]
    fn expect(&mut self, frame: &[u8]) {
        let mut got = None;
        assert!(settled(|| {
            got = self.pair.poll();
            got.is_some()
        }));
        assert!(got.unwrap().1 == frame);
    }
}

impl Rig {
    fn new() -> Self {
        let workers = Arc::new(Workers::new(1).unwrap());
        let ports = NAMES.map(|name| PortOptions {
            name: name.into(),
            kind: Kind::Guest { pairs: 1 },
            vlans: PortVlans::Unaware,
            mtu: 1500,
            limit: None,
        });
        let fabric = Fabric::new(Mode::Pair, ports.into(), 1).unwrap();
        let running = fabric.run(&workers).unwrap();
        let kernel = ModelKernel::new();
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let (mut servers, mut all_events) = (Vec::new(), Vec::new());
        for (port, name) in (0..).zip(NAMES) {
            let options = NetOptions {
                mac: station(u8::try_from(port + 1).unwrap()),
                mtu: 1500,
                pairs: 1,
                queue_size: 256,
                speed: Speed::default(),
                to_device: OFFLOADS,
                to_driver: OFFLOADS,
                control_queue: false,
            };
            let device = NetDevice::new(&fabric, port, options, Count::Pairs).unwrap();
            let device: Arc<dyn Device> = Arc::new(device);
            let options = Options {
                name: name.parse().unwrap(),
                timeout_seconds: 0,
                state: folder.path().join("state"),
                kernel: Arc::clone(&kernel) as Arc<_>,
            };
            let (sender, events) = mpsc::channel();
            let report = move |event| drop(sender.send(event));
            let server = vduse::serve(options, device, Arc::clone(&workers), report).unwrap();
            assert_eq!(events.recv_timeout(PATIENCE).unwrap(), Event::Offered);
            kernel.attach(name);
            servers.push(server);
            all_events.push(events);
        }
        Self {
            kernel,
            servers,
            events: all_events,
            fabric,
            _running: running,
            _folder: folder,
        }
    }

    /// The driver of a card, up to `DRIVER_OK`.
    fn drive(&self, card: usize) -> Driver {
        let name = NAMES[card];
        let offered = self.kernel.config(name).features;
        let features = Features::from_bits_retain(offered) - Features::VIRTIO_F_RING_PACKED;
        let memory = SharedMemory::new(8 << 20, Gpa(1 << 20), Sealing::Fixed);
        let mut pair = Pair::new(Arc::clone(&memory), 0, features, &CardOptions::default());
        self.kernel.accept(name, features.bits());
        pair.ready(&self.kernel, name);
        self.kernel.map(name, &[&memory]);
        pair.post();
        assert!(self.kernel.bring_up(name));
        let running = self.events[card].recv_timeout(PATIENCE).unwrap();
        assert!(matches!(running, Event::Running { .. }), "{running:?}");
        let kernel = Arc::clone(&self.kernel);
        Driver { pair, kernel, name }
    }

    /// Whether the kernel's copy of configuration space says that the link is up.
    fn link_is_up(&self, card: usize) -> bool {
        self.kernel.config(NAMES[card]).config[6] & 1 != 0
    }
}

#[test]
fn cards_of_the_kernel_are_offered_joined_and_told_of_their_links() {
    let rig = Rig::new();
    let config = rig.kernel.config(NAMES[0]);
    assert_eq!((config.device_id, config.queues), (NETWORK, 2));
    assert_eq!(config.features & CONTROL_QUEUE, 0);
    assert_eq!(config.config[..6], station(1).0);
    assert!(!rig.link_is_up(0), "nobody is at the other end");
    let mut a = rig.drive(0);
    for round in 0..3 {
        let told = rig.kernel.config_interrupts(NAMES[0]);
        let mut b = rig.drive(1);
        assert!(settled(|| rig.link_is_up(0) && rig.link_is_up(1)));
        assert!(settled(|| rig.kernel.config_interrupts(NAMES[0]) > told));
        for len in [46, 100, 1500] {
            let there = frame(station(1), station(2), round, len);
            a.send(&there);
            b.expect(&there);
            let back = frame(station(2), station(1), round, len);
            b.send(&back);
            a.expect(&back);
        }
        let told = rig.kernel.config_interrupts(NAMES[0]);
        assert!(rig.kernel.set_status(NAMES[1], 0));
        assert!(settled(|| !rig.link_is_up(0)));
        assert!(settled(|| rig.kernel.config_interrupts(NAMES[0]) > told));
        let reset = rig.events[1].recv_timeout(PATIENCE).unwrap();
        assert!(matches!(reset, Event::Reset { .. }), "{reset:?}");
    }
    assert_eq!(rig.fabric.counts(0).unwrap().frames_out, 9);
    for name in NAMES {
        rig.kernel.set_status(name, 0);
        rig.kernel.detach(name);
    }
    for server in rig.servers {
        server.stop().unwrap();
    }
    assert!(rig.kernel.names().is_empty());
}

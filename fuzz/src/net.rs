//! A driver's control commands, frame headers and frames against the network
//! device: its control queue, its offloads, and the switch behind it.
//!
//! The bytes are a script. What is believed of a header has to stay inside its
//! frame, what goes on has to be legal for its receiver, and the state has to
//! survive being saved.

use linkspan_devices::net::control::{COMMAND_BYTES_MAX, Command, Control};
use linkspan_devices::net::features::Offloads;
use linkspan_devices::net::frame::{Lease, RESPONSE_MAX, Responder};
use linkspan_devices::net::header::{HEADER_LEN_MAX, Header, HeaderLayout, Offload};
use linkspan_devices::net::offload::{Plan, Receiver, complete_checksum, plan};
use linkspan_devices::net::switch::{FloodLimit, Forward, PortVlans, Switch, SwitchOptions};
use linkspan_devices::net::{
    HEAD_LEN, Mac, Net, NetOptions, Packet, SEGMENT_HEADERS_MAX, Speed, VlanSet,
};
use linkspan_virtio::Features;

use crate::input::Input;

/// Steps of a script, the first byte of each.
pub(crate) mod step {
    /// Length, 8 bits; bytes that the command has beyond those, 16 bits; the bytes.
    pub(crate) const COMMAND: u8 = 0;
    /// Port, 8 bits; the header, 20 bytes; bytes of the frame, and how many of them
    /// follow, 16 bits each; those.
    pub(crate) const FRAME: u8 = 1;
    /// Milliseconds that pass, 16 bits.
    pub(crate) const WAIT: u8 = 2;
    /// Port, 8 bits; VLAN, 16 bits: what becomes of the port depends on its upper bits.
    pub(crate) const VLAN: u8 = 3;
    /// Port, 8 bits; VLAN, 16 bits; address, 6 bytes: a station is configured, or
    /// not any more.
    pub(crate) const STATION: u8 = 4;
    /// Port, 8 bits: its link goes down.
    pub(crate) const FORGET: u8 = 5;
    /// Bytes of the receiver's packets, 16 bits.
    pub(crate) const MTU: u8 = 6;
    /// How many there are.
    pub(crate) const COUNT: u8 = 7;
}

/// Ports of the switch.
const PORTS: u16 = 4;

/// The host's addresses, and what it leases.
pub(crate) const HOST: Mac = Mac([2, 0, 0, 0, 0, 1]);
pub(crate) const HOST_ADDRESS: [u8; 4] = [10, 0, 2, 2];
const CLIENT: [u8; 4] = [10, 0, 2, 15];

/// What came of a script, for tests that seeds do what they say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Commands that were done.
    pub done: usize,
    /// Commands that were refused.
    pub refused: usize,
    /// Frames that reach the receiver, segments counted each.
    pub delivered: usize,
    /// Frames that were dropped, for whatever reason.
    pub dropped: usize,
    /// Frames that the host answers.
    pub answered: usize,
}

/// The target.
pub fn target(data: &[u8]) {
    run(data);
}

/// Runs a script to the end. Its first four bytes say which of the features that are
/// offered, in the order of their bits, the driver does not accept.
pub fn run(data: &[u8]) -> Outcome {
    let mut input = Input::new(data);
    let Some(mask) = input.u32() else {
        return Outcome::default();
    };
    let mut run = Run::new(mask);
    while let Some(step) = input.u8() {
        if run.step(step % step::COUNT, &mut input).is_none() {
            break;
        }
    }
    run.outcome
}

struct Run {
    net: Net,
    accepted: Features,
    control: Control,
    switch: Switch,
    mtu: u16,
    now_ms: u64,
    outcome: Outcome,
}

impl Run {
    fn new(mask: u32) -> Self {
        let net = Net::new(NetOptions {
            mac: Mac([2, 0, 0, 0, 0, 9]),
            mtu: 1500,
            pairs: 4,
            queue_size: 64,
            speed: Speed::default(),
            to_device: Offloads::all(),
            to_driver: Offloads::all(),
            control_queue: true,
        })
        .expect("a device");
        let offered = net.features().bits();
        let offered = (0..64).filter(|bit| offered >> bit & 1 != 0);
        let accepted = offered.enumerate().filter(|(at, _)| mask >> at & 1 == 0);
        let accepted = accepted.fold(0, |all, (_, bit)| all | 1 << bit);
        let accepted = Features::from_bits_retain(accepted);
        // What cannot be is refused, and then there is a driver that takes all.
        let accepted = net.settle(accepted).unwrap_or(net.features());
        let switch = Switch::new(SwitchOptions {
            ports: PORTS,
            stations: 16,
            stations_per_port: 6,
            ageing_s: 10,
            flood: Some(FloodLimit {
                frames_per_s: 10,
                burst: 20,
            }),
            seed: 7,
        });
        Self {
            control: Control::new(&net, accepted),
            switch: switch.expect("memory"),
            net,
            accepted,
            mtu: 1500,
            now_ms: 0,
            outcome: Outcome::default(),
        }
    }

    fn step(&mut self, step: u8, input: &mut Input<'_>) -> Option<()> {
        match step {
            step::COMMAND => {
                let (len, more) = (input.u8()?, input.u16()?);
                let bytes = input.bytes(len.into());
                self.command(bytes, u64::from(more));
            }
            step::FRAME => {
                let port = input.u8()?;
                let header = *input.bytes(HEADER_LEN_MAX).first_chunk()?;
                let (len, given) = (input.u16()?, input.u16()?);
                let mut frame = input.bytes(given.into()).to_vec();
                frame.resize(usize::from(len), 0x5A);
                self.frame(u16::from(port) % (PORTS + 1), &header, frame);
            }
            step::WAIT => self.now_ms += u64::from(input.u16()?),
            step::VLAN => {
                let (port, vlan) = (input.u8()?, input.u16()?);
                let vlans = match vlan >> 14 {
                    0 => PortVlans::Unaware,
                    1 => PortVlans::Access(vlan & 0x3FFF),
                    _ => PortVlans::Trunk {
                        native: (vlan >> 14 == 2).then_some(vlan & 0x3FFF),
                        allowed: VlanSet::ALL,
                    },
                };
                self.switch.set_vlans(u16::from(port) % (PORTS + 1), vlans);
            }
            step::STATION => {
                let (port, vlan) = (input.u8()?, input.u16()?);
                let mac = Mac(*input.bytes(6).first_chunk()?);
                if !self.switch.remove_static(vlan, mac) {
                    self.switch
                        .add_static(u16::from(port) % (PORTS + 1), vlan, mac);
                }
            }
            step::FORGET => {
                let port = u16::from(input.u8()?);
                self.switch.forget(port);
                assert_eq!(self.switch.learned(port), 0);
            }
            _ => self.mtu = input.u16()?,
        }
        Some(())
    }

    fn command(&mut self, bytes: &[u8], more: u64) {
        assert!(bytes.len() <= COMMAND_BYTES_MAX);
        let before = self.control.clone();
        let parsed = Command::parse(bytes, bytes.len() as u64 + more);
        match parsed.and_then(|command| self.control.apply(&command)) {
            Ok(_) => self.outcome.done += 1,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert_eq!(self.control, before, "a refusal changes nothing");
                self.outcome.refused += 1;
            }
        }
        assert!((1..=4).contains(&self.control.pairs()));
        let saved = self.control.snapshot();
        let restored = Control::restore(&self.net, self.accepted, &saved);
        assert_eq!(restored.as_ref(), Ok(&self.control));
    }

    fn frame(&mut self, port: u16, header: &[u8; HEADER_LEN_MAX], mut frame: Vec<u8>) {
        let layout = HeaderLayout::of(self.accepted);
        let header = Header::read(layout, header);
        let len = u32::try_from(frame.len()).expect("16 bits");
        let offloads = Offloads::to_device(self.accepted);
        let Ok(offload) = header.check(len.into(), offloads) else {
            self.outcome.dropped += 1;
            return;
        };
        assert_eq!(
            Header::of(&offload).check(len.into(), offloads),
            Ok(offload)
        );
        let head = &frame[..frame.len().min(HEAD_LEN)];
        let packet = Packet::parse(head);
        assert!(packet.network_at <= head.len() && packet.transport_at <= head.len());
        if !self.forward(port, head) || self.control.filter().check(head).is_err() {
            self.outcome.dropped += 1;
            return;
        }
        let (pair, hash) = self.control.steer(head);
        assert!(self.control.receives(pair));
        // What a port asks: the same, but that any pair does where no table says which.
        let (placed, same_hash) = self.control.placed(head);
        assert!(placed.is_none_or(|placed| placed == pair && placed < 4));
        assert_eq!(hash, same_hash);
        self.answer(&offload, &frame);
        let receiver = Receiver {
            offloads: self.control.offloads(),
            mtu: self.mtu,
        };
        let head = &frame[..frame.len().min(SEGMENT_HEADERS_MAX)];
        let longest = usize::from(self.mtu) + 18;
        match plan(&offload, head, len, &receiver) {
            Plan::Forward(offload) => {
                let header = Header::of(&offload);
                let taken = header.check(len.into(), receiver.offloads);
                assert_eq!(taken, Ok(offload), "its receiver takes it");
                self.outcome.delivered += 1;
            }
            Plan::Checksum(partial) => {
                complete_checksum(&mut frame, partial);
                assert!(frame.len() <= longest);
                self.outcome.delivered += 1;
            }
            Plan::Segment(segmentation) => {
                let mut segments = segmentation.cut(&frame);
                let (mut count, mut payload) = (0, 0);
                while let Some(segment) = segments.next() {
                    count += 1;
                    payload += segment.payload.len();
                    assert!(segment.headers.len() + segment.payload.len() <= longest);
                    assert_eq!(Packet::parse(segment.headers).network, packet.network);
                }
                assert_eq!(count, segmentation.count());
                assert!(payload < frame.len());
                self.outcome.delivered += count as usize;
            }
            Plan::Drop(error) => {
                assert!(!error.to_string().is_empty());
                self.outcome.dropped += 1;
            }
        }
    }

    /// Whether the frame goes anywhere.
    fn forward(&mut self, port: u16, head: &[u8]) -> bool {
        let forward = self.switch.forward(port, head, self.now_ms);
        let learned = (0..PORTS).map(|port| self.switch.learned(port));
        assert!(learned.clone().all(|count| count <= 6));
        assert!(learned.sum::<u32>() <= 16);
        match forward {
            Forward::One { port: to, vlan } => {
                assert!(to < PORTS && to != port);
                self.switch.egress(to, vlan, head).is_some()
            }
            Forward::Flood { vlan } => {
                (0..PORTS).any(|to| to != port && self.switch.egress(to, vlan, head).is_some())
            }
            Forward::Drop(_) => false,
        }
    }

    fn answer(&mut self, offload: &Offload, frame: &[u8]) {
        let host = Responder {
            mac: HOST,
            address: HOST_ADDRESS,
            lease: Some(Lease {
                client: CLIENT,
                prefix_len: 24,
                router: Some(HOST_ADDRESS),
                dns: None,
                seconds: 3600,
                mtu: 1500,
            }),
        };
        let mut out = [0; RESPONSE_MAX];
        if *offload == Offload::NONE
            && let Some(len) = host.respond(frame, &mut out)
        {
            assert_eq!(Mac::source(&out[..len]), HOST);
            assert_ne!(Packet::parse(&out[..len]).transport_at, 0);
            self.outcome.answered += 1;
        }
    }
}

//! What the network device offers, what it lets a driver accept, and what of a
//! peer's header it believes.

use linkspan_devices::net::features::{
    MissingFeature, Offloads, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_RSS, settle,
};
use linkspan_devices::net::header::{
    Checksum, FRAME_LEN_MAX, Gso, GsoKind, HEADER_LEN_MAX, Header, HeaderError, HeaderLayout,
    Offload, PartialChecksum,
};
use linkspan_devices::net::{
    CONFIG_LEN, Duplex, HashTypes, Live, Mac, Net, NetInfo, NetOptions, OFFLOADS, OptionsError,
    QueueRole, Speed,
};
use linkspan_virtio::Features;
use proptest::prelude::*;

const MAC: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);

fn options() -> NetOptions {
    NetOptions {
        mac: MAC,
        mtu: 1500,
        pairs: 4,
        queue_size: 256,
        speed: Speed {
            mbit: Some(10_000),
            duplex: Duplex::Full,
        },
        to_device: OFFLOADS,
        to_driver: OFFLOADS,
        control_queue: true,
    }
}

/// The numbers of virtio 1.3 5.1.3.
fn bits(numbers: &[u32]) -> u64 {
    numbers.iter().fold(0, |all, number| all | 1 << number)
}

#[test]
fn everything_is_offered_that_the_options_allow() {
    let net = Net::new(options()).unwrap();
    let offloads = [0, 1, 7, 8, 9, 11, 12, 13, 54, 55, 56];
    let control = [2, 17, 18, 19, 20, 23, 57, 60];
    let rest = [3, 5, 15, 16, 21, 22, 35, 63];
    let all = [&offloads[..], &control, &rest].concat();
    assert_eq!(net.features().bits(), bits(&all));

    // Over vhost-user as QEMU does it nothing that the control queue carries.
    let without = NetOptions {
        control_queue: false,
        ..options()
    };
    let all = [&offloads[..], &rest].concat();
    assert_eq!(Net::new(without).unwrap().features().bits(), bits(&all));

    let bare = NetOptions {
        pairs: 1,
        to_device: Offloads::empty(),
        to_driver: Offloads::empty(),
        ..without
    };
    let net = Net::new(bare).unwrap();
    assert_eq!(net.features().bits(), bits(&[3, 5, 15, 16, 21, 35, 63]));
}

#[test]
fn options_that_make_no_device_are_refused() {
    let group = Mac([1, 0, 0x5E, 0, 0, 1]);
    for (options, error) in [
        (
            NetOptions {
                mac: group,
                ..options()
            },
            OptionsError::Mac { mac: group },
        ),
        (
            NetOptions {
                mtu: 67,
                ..options()
            },
            OptionsError::Mtu { mtu: 67 },
        ),
        (
            NetOptions {
                pairs: 0,
                ..options()
            },
            OptionsError::Pairs { pairs: 0 },
        ),
        (
            NetOptions {
                pairs: 0x8001,
                ..options()
            },
            OptionsError::Pairs { pairs: 0x8001 },
        ),
        (
            NetOptions {
                queue_size: 0,
                ..options()
            },
            OptionsError::EmptyQueue,
        ),
        (
            NetOptions {
                speed: Speed {
                    mbit: Some(1 << 31),
                    duplex: Duplex::Full,
                },
                ..options()
            },
            OptionsError::Speed { mbit: 1 << 31 },
        ),
        (
            NetOptions {
                to_device: Offloads::TSO4,
                ..options()
            },
            OptionsError::Offloads(MissingFeature { bit: 11, needs: 1 }),
        ),
    ] {
        assert_eq!(Net::new(options).unwrap_err(), error);
    }
}

/// Every row of 5.1.3.1 by the numbers of the specification.
#[test]
fn a_feature_without_what_it_needs_is_refused() {
    let rows: [(u32, &[u32]); 17] = [
        (7, &[1]),
        (8, &[1]),
        (9, &[7, 8]),
        (10, &[1]),
        (54, &[1]),
        (55, &[1]),
        (11, &[0]),
        (12, &[0]),
        (13, &[11, 12]),
        (14, &[0]),
        (56, &[0]),
        (18, &[17]),
        (19, &[17]),
        (21, &[17]),
        (22, &[17]),
        (23, &[17]),
        (60, &[17]),
    ];
    // What those need in turn.
    let base = bits(&[0, 1, 17]);
    for (bit, needs) in rows {
        let accepted = |others: &[u32]| {
            let dropped = if needs.contains(&17) { 17 } else { needs[0] };
            let base = base & !(1 << dropped);
            Features::from_bits_retain(base | 1 << bit | bits(others))
        };
        let needs_bits = bits(needs);
        let error = MissingFeature {
            bit,
            needs: needs_bits,
        };
        assert_eq!(settle(accepted(&[]), true), Err(error), "{bit}");
        for need in needs {
            let set = accepted(&[*need]);
            assert_eq!(settle(set, true), Ok(set), "{bit} with {need}");
        }
    }
}

#[test]
fn features_that_are_of_no_use_alone_are_dropped() {
    let useless = VIRTIO_NET_F_CTRL_RX_EXTRA | VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
    // The header is as long as the driver thinks that it is.
    let kept = VIRTIO_NET_F_CSUM | VIRTIO_NET_F_HASH_REPORT | Features::SPLIT_QUEUE;
    assert_eq!(settle(kept | useless, true), Ok(kept));
    let with_queue = kept | useless | VIRTIO_NET_F_CTRL_VQ;
    assert_eq!(settle(with_queue, true), Ok(with_queue));
}

/// QEMU acknowledges `VIRTIO_NET_F_MQ` to the back end and keeps the control queue.
#[test]
fn a_front_end_may_keep_the_control_queue_to_itself() {
    let set = VIRTIO_NET_F_MQ | VIRTIO_NET_F_MRG_RXBUF;
    assert!(settle(set, true).is_err());
    assert_eq!(settle(set, false), Ok(set));
    // Other rules hold all the same.
    assert!(settle(set | VIRTIO_NET_F_HOST_TSO4, false).is_err());
}

#[test]
fn queues_are_numbered_in_pairs_and_the_control_queue_is_last() {
    let net = Net::new(options()).unwrap();
    assert_eq!(net.queues(), 9);
    let many = VIRTIO_NET_F_MQ | VIRTIO_NET_F_CTRL_VQ;
    assert_eq!(net.role(0, many), Some(QueueRole::Receive(0)));
    assert_eq!(net.role(1, many), Some(QueueRole::Transmit(0)));
    assert_eq!(net.role(7, many), Some(QueueRole::Transmit(3)));
    assert_eq!(net.role(8, many), Some(QueueRole::Control));
    assert_eq!(net.role(9, many), None);
    assert_eq!(net.role(8, VIRTIO_NET_F_MQ), None);
    let rss = VIRTIO_NET_F_RSS | VIRTIO_NET_F_CTRL_VQ;
    assert_eq!(net.role(8, rss), Some(QueueRole::Control));
    // A driver that accepted one pair looks for it behind that (5.1.2).
    assert_eq!(net.role(2, VIRTIO_NET_F_CTRL_VQ), Some(QueueRole::Control));
    assert_eq!(net.role(3, VIRTIO_NET_F_CTRL_VQ), None);
    assert_eq!(net.role(u32::MAX, many), None);
}

#[test]
fn the_configuration_has_its_fields_in_their_places() {
    let net = Net::new(options()).unwrap();
    let live = Live {
        announce: true,
        ..net.live(true)
    };
    let mut config = [0xFF; CONFIG_LEN];
    assert!(net.read_config(&live, 0, &mut config));
    let want = [
        0x52, 0x54, 0, 1, 2, 3, // mac
        3, 0, // status: up, announce
        4, 0, // max_virtqueue_pairs
        0xDC, 5, // mtu
        0x10, 0x27, 0, 0,  // speed
        1,  // duplex
        40, // rss_max_key_size
        128, 0, // rss_max_indirection_table_length
        0x3F, 0, 0, 0, // supported_hash_types
    ];
    assert_eq!(config, want);
    let mut part = [0xAA; 2];
    assert!(net.read_config(&live, 22, &mut part));
    for (offset, len) in [(23, 2), (24, 1), (usize::MAX, 1)] {
        assert!(!net.read_config(&live, offset, &mut vec![0; len]));
    }
}

#[test]
fn a_driver_reads_what_the_device_shows() {
    let net = Net::new(options()).unwrap();
    let mut config = [0; CONFIG_LEN];
    assert!(net.read_config(&net.live(true), 0, &mut config));
    let info = NetInfo::from_config(&config, net.features());
    assert_eq!(
        info,
        NetInfo {
            mac: Some(MAC),
            link_up: true,
            announce: false,
            pairs: 4,
            mtu: Some(1500),
            speed: options().speed,
            hash_key_max: 40,
            rss_table_max: 128,
            hash_types: HashTypes::all(),
        }
    );
    // Without features nothing of it counts, and a device without status is up.
    let info = NetInfo::from_config(&config[..6], Features::empty());
    assert_eq!((info.mac, info.link_up, info.pairs), (None, true, 1));
    assert_eq!((info.mtu, info.speed), (None, Speed::default()));
    // A number of pairs that cannot be.
    config[8..10].fill(0xFF);
    assert_eq!(NetInfo::from_config(&config, net.features()).pairs, 1);
}

#[test]
fn the_layout_follows_the_features() {
    for (features, len) in [
        (Features::empty(), 10),
        (VIRTIO_NET_F_MRG_RXBUF, 12),
        (Features::VIRTIO_F_VERSION_1, 12),
        (Features::VIRTIO_F_VERSION_1 | VIRTIO_NET_F_HASH_REPORT, 20),
    ] {
        assert_eq!(HeaderLayout::of(features).len(), len);
    }
}

#[test]
fn a_header_has_its_fields_in_their_places() {
    let bytes: [u8; HEADER_LEN_MAX] = std::array::from_fn(|i| i.to_le_bytes()[0] + 1);
    let header = Header::from_bytes(&bytes);
    let want = Header {
        flags: 1,
        gso_type: 2,
        hdr_len: 0x0403,
        gso_size: 0x0605,
        csum_start: 0x0807,
        csum_offset: 0x0A09,
        num_buffers: 0x0C0B,
        hash_value: 0x100F_0E0D,
        hash_report: 0x1211,
    };
    assert_eq!(header, want);
    assert_eq!(header.to_bytes()[..18], bytes[..18]);
    assert_eq!(Header::read(HeaderLayout::Hash, &bytes), want);
    let buffers = Header::read(HeaderLayout::Buffers, &bytes);
    assert_eq!((buffers.num_buffers, buffers.hash_value), (0x0C0B, 0));
    assert_eq!(Header::read(HeaderLayout::Short, &bytes).num_buffers, 0);
}

fn header(flags: u8, gso_type: u8) -> Header {
    Header {
        flags,
        gso_type,
        hdr_len: 54,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 16,
        ..Header::default()
    }
}

/// Refuses the header before a frame of `len` bytes with exactly this error.
fn refused(header: Header, len: u64, offloads: Offloads, error: HeaderError) {
    let found = header.check(len, offloads).unwrap_err();
    assert_eq!(found, error);
    assert!(!found.to_string().is_empty());
}

#[test]
fn a_checksum_that_does_not_fit_its_frame_is_named() {
    let all = Offloads::all();
    let at = |start, offset| Header {
        csum_start: start,
        csum_offset: offset,
        ..header(1, 0)
    };
    for len in [0, 13, u64::from(FRAME_LEN_MAX) + 1, u64::MAX] {
        refused(header(0, 0), len, all, HeaderError::FrameLength { len });
    }
    let unwanted = HeaderError::ChecksumNotNegotiated;
    refused(header(1, 0), 2000, Offloads::empty(), unwanted);
    for (start, offset, len) in [
        (99, 0, 100),
        (0, 99, 100),
        (50, 49, 100),
        (u16::MAX, u16::MAX, 2000),
    ] {
        let error = HeaderError::ChecksumOutside { start, offset, len };
        refused(at(start, offset), len.into(), all, error);
    }
}

#[test]
fn a_segmentation_that_cannot_be_is_named() {
    let (all, checksum) = (Offloads::all(), Offloads::CHECKSUM);
    for flags in [0, 2] {
        let error = HeaderError::GsoWithoutChecksum;
        refused(header(flags, 1), 2000, all, error);
    }
    for gso_type in [2, 6, 0x80] {
        let error = HeaderError::UnknownGso { gso_type };
        refused(header(1, gso_type), 2000, all, error);
    }
    for (gso_type, offloads) in [(1, checksum), (0x81, checksum | Offloads::TSO4)] {
        let error = HeaderError::GsoNotNegotiated { gso_type };
        refused(header(1, gso_type), 2000, offloads, error);
    }
    for gso_type in [0x83, 0x85] {
        let error = HeaderError::EcnWithoutTcp { gso_type };
        refused(header(1, gso_type), 2000, all, error);
    }
    let empty = Header {
        gso_size: 0,
        ..header(1, 1)
    };
    refused(empty, 2000, all, HeaderError::GsoSize);
    let long = Header {
        hdr_len: 2001,
        ..header(1, 1)
    };
    let (hdr_len, len) = (2001, 2000);
    let error = HeaderError::HeaderLength { hdr_len, len };
    refused(long, 2000, all, error);
}

#[test]
fn a_header_that_fits_says_what_is_left_to_do() {
    let all = Offloads::all();
    let partial = PartialChecksum {
        start: 34,
        offset: 16,
    };
    assert_eq!(header(0, 0).check(14, all), Ok(Offload::NONE));
    // Unknown flags are ignored, and so is a check that nobody may claim.
    assert_eq!(header(0xFC, 0).check(60, all), Ok(Offload::NONE));
    assert_eq!(header(2, 0).check(60, Offloads::empty()), Ok(Offload::NONE));
    assert_eq!(
        header(2, 0).check(60, all),
        Ok(Offload::Whole(Checksum::Valid))
    );
    assert_eq!(
        header(1, 0).check(52, all),
        Ok(Offload::Whole(Checksum::Partial(partial)))
    );
    for (gso_type, kind, ecn) in [
        (1, GsoKind::Tcp4, false),
        (0x81, GsoKind::Tcp4, true),
        (3, GsoKind::UdpFragments, false),
        (4, GsoKind::Tcp6, false),
        (0x84, GsoKind::Tcp6, true),
        (5, GsoKind::UdpSegments, false),
    ] {
        let offload = Offload::Segments(Gso {
            kind,
            ecn,
            size: 1000.try_into().unwrap(),
            header_len: 54,
            checksum: partial,
        });
        let header = header(1, gso_type);
        assert_eq!(header.check(3000, all), Ok(offload));
        assert_eq!(Header::of(&offload), header);
    }
}

#[test]
fn negotiated_offloads_are_those_of_the_right_direction() {
    let features = VIRTIO_NET_F_GUEST_CSUM | VIRTIO_NET_F_GUEST_TSO4 | VIRTIO_NET_F_CSUM;
    assert_eq!(Offloads::to_device(features), Offloads::CHECKSUM);
    assert_eq!(
        Offloads::to_driver(features),
        Offloads::CHECKSUM | Offloads::VALIDATED | Offloads::TSO4
    );
}

proptest! {
    /// Whatever a peer writes, what is believed lies inside its frame.
    #[test]
    fn what_is_believed_is_inside_the_frame(
        bytes in any::<[u8; HEADER_LEN_MAX]>(),
        flags in 0_u8..8,
        gso in prop_oneof![0_u8..6, Just(0x81), Just(0x84), any::<u8>()],
        len in prop_oneof![0_u64..200, any::<u64>()],
        offloads in any::<u8>(),
    ) {
        let mut bytes = bytes;
        (bytes[0], bytes[1]) = (flags, gso);
        let header = Header::from_bytes(&bytes);
        let offloads = Offloads::from_bits_retain(offloads);
        if let Ok(offload) = header.check(len, offloads) {
            prop_assert!((14..=u64::from(FRAME_LEN_MAX)).contains(&len));
            let partial = match offload {
                Offload::Whole(Checksum::Partial(partial)) => Some(partial),
                Offload::Segments(gso) => {
                    prop_assert!(u64::from(gso.header_len) <= len);
                    Some(gso.checksum)
                }
                _ => None,
            };
            if let Some(PartialChecksum { start, offset }) = partial {
                prop_assert!(offloads.contains(Offloads::CHECKSUM));
                prop_assert!(u64::from(start) + u64::from(offset) + 2 <= len);
            }
            // It can be passed on, and means the same there.
            prop_assert_eq!(Header::of(&offload).check(len, offloads), Ok(offload));
        }
    }
}

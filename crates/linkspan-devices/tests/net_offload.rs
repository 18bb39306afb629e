//! Offloads between two ports: what goes on as it is, and what is done in software,
//! against checksums and segments made in the obvious way.

use linkspan_devices::net::features::Offloads;
use linkspan_devices::net::header::{Checksum, Gso, GsoKind, Offload, PartialChecksum};
use linkspan_devices::net::offload::{
    Plan, PlanError, Receiver, complete_checksum, plan, pseudo_header_sum,
};
use linkspan_devices::net::{SEGMENT_HEADERS_MAX, SEGMENTS_MAX, SegmentError, Segmentation, Sum};
use proptest::prelude::*;

const TCP: u8 = 6;
const UDP: u8 = 17;

const FIN: u8 = 1;
const PSH: u8 = 8;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// Sums 16 bits at a time (RFC 1071 4.1).
fn naive_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// RFC 1071 3: its numerical example.
#[test]
fn the_example_of_the_rfc() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(Sum::default().with(&bytes).folded(), [0xdd, 0xf2]);
    assert_eq!(Sum::default().with(&bytes).checksum(), [0x22, 0x0d]);
    // An IPv4 header as Wikipedia and many books have it.
    let header = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8, 0x00,
        0x01, 0xc0, 0xa8, 0x00, 0xc7,
    ];
    assert_eq!(Sum::default().with(&header).checksum(), [0xb8, 0x61]);
}

/// Zero says that there is no checksum (RFC 768), so that a sum of it is written
/// as all ones.
#[test]
fn a_checksum_is_never_zero() {
    let bytes = [0xFF, 0xFF];
    assert_eq!(Sum::default().with(&bytes).checksum(), [0, 0]);
    assert_eq!(Sum::default().with(&bytes).transport_checksum(), [0xFF; 2]);
    let mut frame = [0; 60];
    frame[20] = 0xFF;
    frame[21] = 0xFF;
    let partial = PartialChecksum {
        start: 14,
        offset: 6,
    };
    complete_checksum(&mut frame, partial);
    assert_eq!(frame[20..22], [0xFF; 2]);
}

#[test]
fn a_checksum_outside_the_frame_changes_nothing() {
    for (start, offset) in [(60, 0), (59, 0), (0, 59), (u16::MAX, u16::MAX), (58, 3)] {
        let mut frame = [7; 60];
        complete_checksum(&mut frame, PartialChecksum { start, offset });
        assert_eq!(frame, [7; 60]);
    }
}

/// A packet as a driver sends it that leaves the checksum to others.
#[derive(Clone, Debug)]
struct Large {
    version: u8,
    protocol: u8,
    tags: usize,
    /// In words of 4 bytes.
    ip_options: usize,
    tcp_options: usize,
    extensions: usize,
    flags: u8,
    payload: Vec<u8>,
    addresses: [u8; 32],
}

impl Large {
    fn new(version: u8, protocol: u8, payload: usize) -> Self {
        Self {
            version,
            protocol,
            tags: 0,
            ip_options: 0,
            tcp_options: 0,
            extensions: 0,
            flags: ACK | PSH | FIN | CWR,
            payload: (0..payload)
                .map(|i| (i * 31 + 5).to_le_bytes()[0])
                .collect(),
            addresses: std::array::from_fn(|i| (i * 7 + 1).to_le_bytes()[0]),
        }
    }

    fn network_at(&self) -> usize {
        14 + 4 * self.tags
    }

    fn transport_at(&self) -> usize {
        self.network_at()
            + if self.version == 4 {
                20 + 4 * self.ip_options
            } else {
                40 + 8 * self.extensions
            }
    }

    fn headers(&self) -> usize {
        self.transport_at()
            + if self.protocol == TCP {
                20 + 4 * self.tcp_options
            } else {
                8
            }
    }

    fn len(&self) -> usize {
        self.headers() + self.payload.len()
    }

    /// The bytes of the frame with `payload`, the `index`-th of its segments, with
    /// the sum of the pseudo header where the checksum goes.
    fn frame(&self, payload: &[u8], index: usize, at: usize, flags: u8) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in 0..self.tags {
            frame.extend([0x81, 0, 0, tag.to_le_bytes()[0]]);
        }
        let length = self.headers() - self.transport_at() + payload.len();
        let be = |value: usize| u16::try_from(value).unwrap().to_be_bytes();
        let (source, destination): (&[u8], &[u8]) = if self.version == 4 {
            (&self.addresses[..4], &self.addresses[4..8])
        } else {
            (&self.addresses[..16], &self.addresses[16..])
        };
        if self.version == 4 {
            frame.extend([8, 0]);
            let mut header = vec![0x45 + self.ip_options.to_le_bytes()[0], 0];
            header.extend(be(20 + 4 * self.ip_options + length));
            header.extend(be((0xFFFE + index) % 65536));
            header.extend([0x40, 0, 64, self.protocol, 0, 0]);
            header.extend(source);
            header.extend(destination);
            header.resize(20 + 4 * self.ip_options, 1);
            let checksum = !naive_sum(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            frame.extend(header);
        } else {
            frame.extend([0x86, 0xDD, 0x60, 0, 0, 0]);
            frame.extend(be(8 * self.extensions + length));
            let next = |left: usize| if left > 0 { 60 } else { self.protocol };
            frame.extend([next(self.extensions), 64]);
            frame.extend(source);
            frame.extend(destination);
            for left in (0..self.extensions).rev() {
                frame.extend([next(left), 0, 1, 4, 0, 0, 0, 0]);
            }
        }
        let be32 = |value: usize| u32::try_from(value).unwrap().to_be_bytes();
        let field = if self.protocol == TCP {
            frame.extend([0x30, 0x39, 0x01, 0xBB]);
            frame.extend(be32((0xFFFF_F000 + at) % (1 << 32)));
            frame.extend([
                0,
                0,
                0,
                1,
                (5 + self.tcp_options).to_le_bytes()[0] << 4,
                flags,
            ]);
            frame.extend([0x20, 0, 0, 0, 0, 0]);
            frame.extend(vec![1; 4 * self.tcp_options]);
            16
        } else {
            frame.extend([0x30, 0x39, 0x01, 0xBB]);
            frame.extend(be(length));
            frame.extend([0, 0]);
            6
        };
        let length = u16::try_from(length).unwrap();
        let pseudo = pseudo_header_sum(source, destination, self.protocol, length);
        let at = self.transport_at() + field;
        frame[at..at + 2].copy_from_slice(&pseudo);
        frame.extend(payload);
        frame
    }

    fn whole(&self) -> Vec<u8> {
        self.frame(&self.payload, 0, 0, self.flags)
    }

    /// The obvious way: each segment made from nothing, with a whole checksum.
    fn segments(&self, size: usize) -> Vec<Vec<u8>> {
        let chunks: Vec<&[u8]> = if self.payload.is_empty() {
            vec![&[]]
        } else {
            self.payload.chunks(size).collect()
        };
        let count = chunks.len();
        let mut at = 0;
        let mut frames = Vec::new();
        for (index, chunk) in chunks.into_iter().enumerate() {
            let mut flags = self.flags;
            if index + 1 < count {
                flags &= !(FIN | PSH);
            }
            if index > 0 {
                flags &= !CWR;
            }
            let mut frame = self.frame(chunk, index, at, flags);
            let start = self.transport_at();
            let field = start + if self.protocol == TCP { 16 } else { 6 };
            let sum = match !naive_sum(&frame[start..]) {
                0 => 0xFFFF,
                sum => sum,
            };
            frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
            frames.push(frame);
            at += chunk.len();
        }
        frames
    }

    fn gso(&self, size: u16) -> Gso {
        Gso {
            kind: match (self.protocol, self.version) {
                (UDP, _) => GsoKind::UdpSegments,
                (_, 4) => GsoKind::Tcp4,
                _ => GsoKind::Tcp6,
            },
            ecn: false,
            size: size.try_into().unwrap(),
            header_len: 0,
            checksum: PartialChecksum {
                start: u16::try_from(self.transport_at()).unwrap(),
                offset: if self.protocol == TCP { 16 } else { 6 },
            },
        }
    }
}

fn cut(segmentation: &Segmentation, frame: &[u8]) -> Vec<Vec<u8>> {
    let mut segments = segmentation.cut(frame);
    let mut frames = Vec::new();
    while let Some(segment) = segments.next() {
        frames.push([segment.headers, segment.payload].concat());
    }
    frames
}

fn large() -> impl Strategy<Value = Large> {
    let parts = (0_usize..=2, 0_usize..=10, 0_usize..=10, 0_usize..=3);
    let payload = prop::collection::vec(any::<u8>(), 0..6000);
    let kind = (
        prop_oneof![Just(4), Just(6)],
        prop_oneof![Just(TCP), Just(UDP)],
    );
    (kind, parts, any::<u8>(), payload, any::<[u8; 32]>()).prop_map(
        |(
            (version, protocol),
            (tags, ip_options, tcp_options, extensions),
            flags,
            payload,
            addresses,
        )| Large {
            version,
            protocol,
            tags,
            ip_options,
            tcp_options,
            extensions,
            flags,
            payload,
            addresses,
        },
    )
}

proptest! {
    #[test]
    fn a_checksum_is_that_of_the_definition(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        more in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let sum = Sum::default().with(&bytes);
        prop_assert_eq!(u16::from_be_bytes(sum.folded()), naive_sum(&bytes));
        let even = &bytes[..bytes.len() & !1];
        let both = Sum::default().with(even).with(&more);
        prop_assert_eq!(u16::from_be_bytes(both.folded()), naive_sum(&[even, &more].concat()));
    }

    /// A checksum that was completed is right: all of it sums up to all ones.
    #[test]
    fn a_completed_checksum_is_right(large in large()) {
        let mut frame = large.whole();
        complete_checksum(&mut frame, large.gso(1).checksum);
        prop_assert_eq!(vec![frame], large.segments(usize::MAX));
    }

    #[test]
    fn segments_are_those_of_the_obvious_way(large in large(), size in 50_u16..3000) {
        let frame = large.whole();
        let len = u32::try_from(frame.len()).unwrap();
        let segmentation = Segmentation::new(&large.gso(size), &frame, len, 10_000).unwrap();
        let expected = large.segments(size.into());
        prop_assert_eq!(segmentation.count() as usize, expected.len());
        prop_assert_eq!(cut(&segmentation, &frame), expected);
    }

    /// TCP is cut into what fits the receiver, datagrams are not.
    #[test]
    fn segments_fit_the_receiver(large in large(), size in 50_u16..3000, mtu in 200_u16..2000) {
        let frame = large.whole();
        let len = u32::try_from(frame.len()).unwrap();
        let receiver = Receiver { offloads: Offloads::empty(), mtu };
        let gso = large.gso(size);
        let max = usize::from(mtu) + 14 + if large.tags > 0 { 4 } else { 0 };
        let fits = large.headers() + large.payload.len().min(size.into()) <= max;
        match plan(&Offload::Segments(gso), &frame, len, &receiver) {
            Plan::Segment(segmentation) => {
                prop_assert!(large.protocol == TCP || fits);
                let frames = cut(&segmentation, &frame);
                let size = usize::from(size).min(max - large.headers());
                prop_assert_eq!(&frames, &large.segments(size));
                prop_assert!(frames.iter().all(|frame| frame.len() <= max));
            }
            Plan::Drop(PlanError::Segment(SegmentError::TooLong { .. })) => {
                prop_assert!(large.protocol == UDP && !fits);
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    /// Headers that lie in any way: refused, or cut without a panic.
    #[test]
    fn hostile_frames_are_refused_or_cut(
        large in large(),
        changes in prop::collection::vec((12_usize..120, any::<u8>()), 0..6),
        size in 1_u16..2000,
        head in 14_usize..300,
        start in prop::option::of(any::<u16>()),
    ) {
        let mut frame = large.whole();
        for (at, byte) in changes {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        let mut gso = large.gso(size);
        if let Some(start) = start {
            gso.checksum.start = start;
        }
        let len = u32::try_from(frame.len()).unwrap();
        let receiver = Receiver { offloads: Offloads::empty(), mtu: 1500 };
        let head = &frame[..head.min(frame.len())];
        if let Plan::Segment(segmentation) = plan(&Offload::Segments(gso), head, len, &receiver) {
            let frames = cut(&segmentation, &frame);
            prop_assert_eq!(frames.len(), segmentation.count() as usize);
            prop_assert!(frames.iter().all(|frame| frame.len() <= 1518));
        }
    }
}

fn receiver(offloads: Offloads) -> Receiver {
    Receiver {
        offloads,
        mtu: 1500,
    }
}

#[test]
fn a_frame_goes_on_as_it_is_where_the_receiver_does_the_rest() {
    let partial = PartialChecksum {
        start: 34,
        offset: 16,
    };
    let (checksum, valid) = (
        Offload::Whole(Checksum::Partial(partial)),
        Offload::Whole(Checksum::Valid),
    );
    let large = Large::new(4, TCP, 3000);
    let head = large.whole();
    let decide = |offload: &Offload, offloads| plan(offload, &head, 1000, &receiver(offloads));
    let all = Offloads::all();
    assert_eq!(
        decide(&Offload::NONE, Offloads::empty()),
        Plan::Forward(Offload::NONE)
    );
    assert_eq!(decide(&checksum, all), Plan::Forward(checksum));
    assert_eq!(decide(&checksum, Offloads::TSO4), Plan::Checksum(partial));
    assert_eq!(decide(&valid, all), Plan::Forward(valid));
    // Without GUEST_CSUM the flags must be zero (5.1.6.4.1).
    assert_eq!(
        decide(&valid, Offloads::empty()),
        Plan::Forward(Offload::NONE)
    );
}

#[test]
fn a_large_frame_goes_on_as_it_is_only_with_every_feature_that_it_needs() {
    let csum = Offloads::CHECKSUM;
    for (version, protocol, ecn, need) in [
        (4, TCP, false, Offloads::TSO4),
        (4, TCP, true, Offloads::TSO4 | Offloads::ECN),
        (6, TCP, false, Offloads::TSO6),
        (6, TCP, true, Offloads::TSO6 | Offloads::ECN),
        (4, UDP, false, Offloads::USO4),
        (6, UDP, false, Offloads::USO6),
    ] {
        let large = Large {
            tcp_options: 3,
            ..Large::new(version, protocol, 3000)
        };
        let (frame, len) = (large.whole(), u32::try_from(large.len()).unwrap());
        let gso = Gso {
            ecn,
            // Nothing that the sender says of it is passed on.
            header_len: 7,
            ..large.gso(1000)
        };
        let decide = |offloads| plan(&Offload::Segments(gso), &frame, len, &receiver(offloads));
        let clean = Gso {
            header_len: u16::try_from(large.headers()).unwrap(),
            ..gso
        };
        let forward = Plan::Forward(Offload::Segments(clean));
        assert_eq!(decide(csum | need), forward);
        assert_eq!(decide(Offloads::all()), forward);
        for missing in need.iter().chain([csum]) {
            let Plan::Segment(segmentation) = decide(Offloads::all() - missing) else {
                panic!("{version} {protocol} without {missing:?}");
            };
            assert_eq!(segmentation.count(), 3);
        }
    }
}

#[test]
fn what_cannot_reach_a_receiver_is_dropped_with_a_reason() {
    let none = receiver(Offloads::empty());
    let frame = Large::new(4, UDP, 3000).whole();
    let too_long = |len, max| Plan::Drop(PlanError::TooLong { len, max });
    let whole = |head: &[u8], len| plan(&Offload::NONE, head, len, &none);
    assert_eq!(whole(&frame, 1514), Plan::Forward(Offload::NONE));
    assert_eq!(whole(&frame, 1515), too_long(1515, 1514));
    // A tag does not count.
    let tagged = Large {
        tags: 1,
        ..Large::new(4, UDP, 3000)
    }
    .whole();
    assert_eq!(whole(&tagged, 1518), Plan::Forward(Offload::NONE));
    assert_eq!(whole(&tagged, 1519), too_long(1519, 1518));

    let gso = Large::new(4, UDP, 3000).gso(1000);
    let fragments = Offload::Segments(Gso {
        kind: GsoKind::UdpFragments,
        ..gso
    });
    let decide = |offload: &Offload, receiver: &Receiver| plan(offload, &frame, 3042, receiver);
    let dropped = Plan::Drop(PlanError::Fragmentation);
    assert_eq!(decide(&fragments, &none), dropped);
    let takes = receiver(Offloads::UFO | Offloads::CHECKSUM);
    assert!(matches!(decide(&fragments, &takes), Plan::Forward(_)));

    let segment = |error| Plan::Drop(PlanError::Segment(error));
    let tcp = Offload::Segments(Gso {
        kind: GsoKind::Tcp4,
        ..gso
    });
    assert_eq!(decide(&tcp, &none), segment(SegmentError::Protocol));
    let tiny = Offload::Segments(Gso {
        size: 1.try_into().unwrap(),
        ..gso
    });
    let error = SegmentError::TooMany { count: 3000 };
    assert_eq!(decide(&tiny, &none), segment(error));
    const { assert!(3000 > SEGMENTS_MAX) };
    let elsewhere = Offload::Segments(Gso {
        checksum: PartialChecksum {
            start: 30,
            offset: 16,
        },
        ..gso
    });
    let error = SegmentError::Checksum {
        start: 30,
        offset: 16,
        want_start: 34,
        want_offset: 6,
    };
    assert_eq!(decide(&elsewhere, &none), segment(error));
    let error = SegmentError::Headers {
        len: 42,
        frame_len: 3042,
    };
    let head = &frame[..40];
    let found = plan(&Offload::Segments(gso), head, 3042, &none);
    assert_eq!(found, segment(error));
}

/// Extension headers without end do not reach past what is copied of headers.
#[test]
fn headers_have_a_bound() {
    for extensions in [8, 9] {
        let large = Large {
            extensions,
            tcp_options: 10,
            tags: 2,
            ..Large::new(6, TCP, 500)
        };
        assert!(large.headers() < SEGMENT_HEADERS_MAX);
        let frame = large.whole();
        let len = u32::try_from(frame.len()).unwrap();
        let cut = Segmentation::new(&large.gso(100), &frame, len, 10_000);
        assert_eq!(cut.is_ok(), extensions == 8);
    }
}

/// 64 KiB, as guests send them: 45 frames of 1514 bytes or less.
#[test]
fn the_largest_frame_becomes_frames_of_the_usual_size() {
    let large = Large::new(4, TCP, 65535 - 40);
    let frame = large.whole();
    let len = u32::try_from(frame.len()).unwrap();
    let gso = Offload::Segments(large.gso(1460));
    let Plan::Segment(segmentation) = plan(&gso, &frame, len, &receiver(Offloads::empty())) else {
        panic!("it is to be cut");
    };
    let frames = cut(&segmentation, &frame);
    assert_eq!(frames.len(), 45);
    assert_eq!(frames, large.segments(1460));
}

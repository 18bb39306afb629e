//! A client and a server, back to back.

use linkspan_mem::Iova;
use linkspan_vfio::client::{Answer, Ask, ClientError, Heard};
use linkspan_vfio::server::{AskError, Effect, NotQuiet};
use linkspan_vfio::wire::{PLANE_DMABUF, PLANE_PROBE, RegionInfo, errno};
use linkspan_vfio::{
    Capabilities, Client, DmaMap, FdSlot, IrqAction, IrqData, Offer, Server, SetIrqs,
};

use crate::rig::{Device, offer};

/// Both ends, and how many bytes are moved at a time.
struct Pair {
    client: Client,
    server: Server,
    device: Device,
    piece: usize,
}

impl Pair {
    fn new(piece: usize) -> Self {
        let wish = Capabilities {
            msg_fds: 8,
            write_multiple: true,
            gfx_plane: true,
            ..Capabilities::default()
        };
        let (client, first) = Client::new(wish);
        let mut pair = Self {
            client,
            server: Server::new(offer()),
            device: Device::new(),
            piece,
        };
        let heard = pair.move_all(&first, 0);
        let Some(Heard::Agreed(agreed)) = heard.first() else {
            panic!("{heard:?}");
        };
        assert_eq!(agreed.version, (0, 2));
        assert!(agreed.capabilities.write_multiple && agreed.capabilities.gfx_plane);
        assert_eq!(agreed.capabilities.dma_maps, 3);
        pair
    }

    /// Moves a message to the server and all that it says back.
    fn move_all(&mut self, bytes: &[u8], fds: usize) -> Vec<Heard> {
        let mut heard = Vec::new();
        let mut fds = fds;
        for piece in bytes.chunks(self.piece) {
            let (sent, _) = self
                .device
                .serve(&mut self.server, piece, std::mem::take(&mut fds));
            for (bytes, fds) in sent {
                heard.extend(hear(&mut self.client, &bytes, fds, self.piece).unwrap());
            }
        }
        heard
    }

    fn ask(&mut self, ask: &Ask<'_>, fds: usize) -> Answer {
        let (id, bytes) = self.client.ask(ask).unwrap();
        let mut heard = self.move_all(&bytes, fds);
        match (heard.pop(), heard.len()) {
            (
                Some(Heard::Answer {
                    id: answered,
                    answer,
                }),
                0,
            ) if answered == id => answer,
            other => panic!("{other:?}"),
        }
    }
}

fn hear(
    client: &mut Client,
    bytes: &[u8],
    fds: usize,
    piece: usize,
) -> Result<Vec<Heard>, ClientError> {
    let (mut rest, mut fds, mut heard) = (bytes, fds, Vec::new());
    while !rest.is_empty() {
        let (now, later) = rest.split_at(client.wanted().min(piece).min(rest.len()));
        rest = later;
        heard.extend(client.receive(now, std::mem::take(&mut fds))?);
    }
    Ok(heard)
}

fn map(address: u64, size: u64, shared: bool) -> DmaMap {
    DmaMap {
        address: Iova(address),
        size,
        offset: 0,
        readable: true,
        writable: true,
        shared,
    }
}

/// Of nine parts that are eventfds as many as there are descriptors in a message.
fn doorbells(pair: &mut Pair) {
    for (index, room, want) in [
        (0, 4096, 0),
        (1, 16, 0),
        (1, 16 + 8 * 48 - 1, 0),
        (1, 4096, 8),
    ] {
        let Answer::Doorbells(parts) = pair.ask(&Ask::Doorbells { index, room }, 0) else {
            panic!("no parts");
        };
        assert_eq!(parts.len(), want, "{index} {room}");
        for (number, part) in (0..).zip(parts) {
            let place = (part.offset, part.size, part.fd_index);
            assert_eq!(place, (number, 1, u32::try_from(number).unwrap()));
        }
    }
}

fn all(pair: &mut Pair) {
    let Answer::Info(info) = pair.ask(&Ask::Info, 0) else {
        panic!("no info");
    };
    assert_eq!((info.flags, info.num_regions, info.num_irqs), (3, 3, 2));
    doorbells(pair);
    // Less room than there is: only the head, and how much there is; no descriptor.
    let Answer::Region(info, bytes) = pair.ask(&Ask::Region { index: 0, room: 32 }, 0) else {
        panic!("no region");
    };
    let RegionInfo {
        argsz,
        flags,
        cap_offset,
        size,
        ..
    } = info;
    assert_eq!(
        (argsz, flags, cap_offset, size, bytes.len()),
        (80, 15, 32, 0x2000, 32)
    );
    let (before, room) = (pair.device.done.len(), argsz);
    let Answer::Region(_, bytes) = pair.ask(&Ask::Region { index: 0, room }, 0) else {
        panic!("no region");
    };
    assert_eq!(bytes.len(), 80);
    assert_eq!(pair.device.done[before..], [Effect::RegionFd { region: 0 }]);
    let words: Vec<u64> = bytes[32..]
        .chunks_exact(8)
        .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
        .collect();
    // The sparse area, then the type.
    assert_eq!(
        words,
        [
            1 | 1 << 16 | 64 << 32,
            1,
            0,
            0x2000,
            2 | 1 << 16,
            1 | 1 << 32
        ]
    );
    let Answer::Irq(irq) = pair.ask(&Ask::Irq { index: 1 }, 0) else {
        panic!("no interrupts");
    };
    assert_eq!((irq.count, irq.flags), (4, 1));
    for width in [1, 2, 3, 4, 8, 100, 0x1FFF] {
        let bytes: Vec<u8> = (0..width)
            .map(|at: u32| at.to_le_bytes()[0] ^ 0x5A)
            .collect();
        let write = Ask::Write {
            region: 0,
            offset: 1,
            bytes: &bytes,
        };
        assert_eq!(pair.ask(&write, 0), Answer::Done);
        let read = Ask::Read {
            region: 0,
            offset: 1,
            count: width,
        };
        assert_eq!(pair.ask(&read, 0), Answer::Bytes(bytes));
    }
    let writes: [(u32, u64, &[u8]); 3] = [(0, 0, &[1]), (0, 2, &[2, 3]), (0, 8, &[4; 8])];
    assert_eq!(pair.ask(&Ask::WriteMulti(&writes), 0), Answer::Done);
    assert_eq!(pair.device.memory[..4], [1, 0x5A, 2, 3]);
    assert_eq!(pair.ask(&Ask::WriteMulti(&[]), 0), Answer::Done);
    assert_eq!(pair.ask(&Ask::Reset, 0), Answer::Done);
    interrupts(pair);
    planes(pair);
}

fn interrupts(pair: &mut Pair) {
    for (data, fds) in [
        (IrqData::Events, 3),
        (IrqData::Unassign, 0),
        (IrqData::None, 0),
        (IrqData::Bool(vec![true, false, true]), 0),
    ] {
        let set = SetIrqs {
            index: 1,
            start: 1,
            count: 3,
            action: IrqAction::Trigger,
            data,
        };
        assert_eq!(pair.ask(&Ask::SetIrqs(&set), fds), Answer::Done);
        assert_eq!(pair.device.done.last(), Some(&Effect::SetIrqs(set.clone())));
        let meant: Vec<u32> = set.meant().collect();
        let wanted: &[u32] = if matches!(set.data, IrqData::Bool(_)) {
            &[1, 3]
        } else {
            &[1, 2, 3]
        };
        assert_eq!(meant, wanted);
    }
    let off = SetIrqs {
        index: 1,
        start: 0,
        count: 0,
        action: IrqAction::Trigger,
        data: IrqData::None,
    };
    assert_eq!(pair.ask(&Ask::SetIrqs(&off), 0), Answer::Done);
}

fn planes(pair: &mut Pair) {
    let probe = Ask::QueryPlane {
        flags: PLANE_PROBE | PLANE_DMABUF,
        kind: 1,
    };
    assert!(matches!(pair.ask(&probe, 0), Answer::Plane(_)));
    let Answer::Plane(plane) = pair.ask(
        &Ask::QueryPlane {
            flags: PLANE_DMABUF,
            kind: 1,
        },
        0,
    ) else {
        panic!("no plane");
    };
    assert_eq!((plane.argsz, plane.flags, plane.plane_type), (64, 2, 1));
    assert_eq!((plane.width, plane.handle), (640, 5));
    let Answer::Plane(none) = pair.ask(
        &Ask::QueryPlane {
            flags: PLANE_DMABUF,
            kind: 2,
        },
        0,
    ) else {
        panic!("no plane");
    };
    assert_eq!(
        (none.format, none.size, none.width, none.height),
        (0, 0, 0, 0)
    );
    let refused = Ask::QueryPlane {
        flags: PLANE_DMABUF,
        kind: 0,
    };
    assert_eq!(
        pair.ask(&refused, 0),
        Answer::PlaneRefused(b"rotation".to_vec())
    );
    let Answer::Buffer(buffer) = pair.ask(&Ask::GetPlane { id: 5 }, 0) else {
        panic!("no buffer");
    };
    assert_eq!((buffer.offset, buffer.len), (4096, 8192));
    assert_eq!(
        pair.ask(&Ask::GetPlane { id: 6 }, 0),
        Answer::Refused(errno::ENOENT)
    );
}

#[test]
fn both_ends_understand_each_other_however_bytes_are_split() {
    for piece in [usize::MAX, 4096, 17, 16, 7, 1] {
        all(&mut Pair::new(piece));
    }
}

/// Firmware shadows memory over and over: what is there already is no error, what overlaps
/// it is, and what is gone can come back.
#[test]
fn memory_may_be_mapped_again_and_again() {
    let mut pair = Pair::new(usize::MAX);
    let (rom, ram) = (map(0xC_0000, 0x2_0000, false), map(0, 0xA_0000, true));
    for _ in 0..40 {
        assert_eq!(pair.ask(&Ask::Map(rom), 0), Answer::Done);
        assert_eq!(pair.ask(&Ask::Map(ram), 1), Answer::Done);
    }
    let maps = |pair: &Pair| {
        pair.device
            .done
            .iter()
            .filter(|effect| matches!(effect, Effect::Map { .. }))
            .count()
    };
    assert_eq!(maps(&pair), 2);
    // Whether the file is the same is for whoever has it to say.
    let fd = FdSlot(0);
    let again = Effect::MapAgain { map: ram, fd };
    let asked = pair.device.done.iter().filter(|it| **it == again);
    assert_eq!(asked.count(), 39);
    assert_eq!(pair.server.maps(), [ram, rom]);
    for other in [
        map(0x9_FFFF, 1, false),
        map(0, 0xA_0001, true),
        map(0xC_0000, 1, false),
        map(0, u64::MAX, false),
    ] {
        assert_eq!(
            pair.ask(&Ask::Map(other), usize::from(other.shared)),
            Answer::Refused(errno::EEXIST),
            "{other:?}"
        );
    }
    let last = map(u64::MAX - 0xFFF, 0x1000, false);
    assert_eq!(pair.ask(&Ask::Map(last), 0), Answer::Done);
    let many = pair.ask(&Ask::Map(map(0x10_0000, 1, false)), 0);
    assert_eq!(many, Answer::Refused(errno::ENOSPC));
    let part = Ask::Unmap {
        address: Iova(0),
        size: 0x1000,
    };
    assert_eq!(pair.ask(&part, 0), Answer::Refused(errno::ENOENT));
    let whole = Ask::Unmap {
        address: Iova(0),
        size: 0xA_0000,
    };
    assert_eq!(pair.ask(&whole, 0), Answer::Done);
    assert_eq!(pair.ask(&whole, 0), Answer::Refused(errno::ENOENT));
    assert_eq!(pair.ask(&Ask::UnmapAll, 0), Answer::Done);
    assert_eq!(
        pair.device.done.last(),
        Some(&Effect::Unmap(vec![rom, last]))
    );
    assert!(pair.server.maps().is_empty());
}

/// The device asks for memory that came without a descriptor, while it is asked itself.
#[test]
fn the_server_asks_too() {
    let mut pair = Pair::new(3);
    let outside = pair.server.ask_read(Iova(0), 1);
    assert!(matches!(outside, Err(AskError::Outside { .. })));
    pair.ask(&Ask::Map(map(0x1000, 0x1000, false)), 0);
    let rest = DmaMap {
        readable: true,
        writable: false,
        ..map(0x2000, 0x1000, false)
    };
    pair.ask(&Ask::Map(rest), 0);
    // Across both; the second can only be read.
    let read = pair.server.ask_read(Iova(0x1FFE), 4).unwrap();
    assert!(matches!(
        pair.server.ask_write(Iova(0x1FFE), &[0; 4]),
        Err(AskError::Outside { .. })
    ));
    let write = pair.server.ask_write(Iova(0x1000), b"guest").unwrap();
    let (sent, _) = pair.device.serve(&mut pair.server, &[], 0);
    let mut answers = Vec::new();
    for (bytes, _) in sent {
        for heard in hear(&mut pair.client, &bytes, 0, 3).unwrap() {
            let Heard::Asked(question) = heard else {
                panic!("{heard:?}");
            };
            let data: &[u8] = match &question.write {
                Some(bytes) => {
                    assert_eq!((question.address.0, &bytes[..]), (0x1000, &b"guest"[..]));
                    &[]
                }
                None => &[7; 4],
            };
            answers.push(pair.client.answer(&question, Ok(data)).unwrap());
        }
    }
    // In any order.
    for answer in answers.iter().rev() {
        pair.move_all(answer, 0);
    }
    let told: Vec<_> = pair
        .device
        .done
        .iter()
        .filter(|effect| matches!(effect, Effect::Told { .. }))
        .collect();
    assert_eq!(
        told,
        [
            &Effect::Told {
                id: write,
                result: Ok(Vec::new())
            },
            &Effect::Told {
                id: read,
                result: Ok(vec![7; 4])
            },
        ]
    );
    let failed = pair.server.ask_read(Iova(0x1000), 1).unwrap();
    let (sent, _) = pair.device.serve(&mut pair.server, &[], 0);
    let heard = hear(&mut pair.client, &sent[0].0, 0, 99).unwrap();
    let [Heard::Asked(question)] = &heard[..] else {
        panic!("{heard:?}");
    };
    let answer = pair.client.answer(question, Err(errno::EIO)).unwrap();
    pair.move_all(&answer, 0);
    let wanted = Effect::Told {
        id: failed,
        result: Err(errno::EIO),
    };
    assert_eq!(pair.device.done.last(), Some(&wanted));
    for _ in 0..16 {
        pair.server.ask_read(Iova(0x1000), 1).unwrap();
    }
    assert_eq!(pair.server.ask_read(Iova(0x1000), 1), Err(AskError::Busy));
}

/// Several clients, one after the other: each agrees anew, and finds no map of another.
#[test]
fn a_client_leaves_nothing_to_the_next_one() {
    let mut pair = Pair::new(64);
    pair.ask(&Ask::Map(map(0, 0x1000, true)), 1);
    pair.server.disconnect();
    assert!(pair.server.is_over() && pair.server.maps().is_empty());
    assert_eq!(pair.server.wanted(), 0);
    assert!(matches!(
        pair.server.ask_read(Iova(0), 1),
        Err(AskError::NotConnected)
    ));
    let next = Pair::new(64);
    assert!(next.server.maps().is_empty());
}

/// A client is safe from its server too.
#[test]
fn a_server_that_answers_otherwise_is_left() {
    let mut pair = Pair::new(usize::MAX);
    let reply = |id: u16, command: u16, body: &[u8]| {
        let mut bytes = crate::rig::message(command, 1, body);
        bytes[..2].copy_from_slice(&id.to_ne_bytes());
        bytes
    };
    let unasked = hear(&mut pair.client, &reply(99, 4, &[0; 16]), 0, 99);
    assert_eq!(unasked, Err(ClientError::Unasked { id: 99, command: 4 }));
    assert_eq!(pair.client.ask(&Ask::Info), Err(ClientError::Over));
    let heard = |command: u16, ask: &Ask<'_>, body: &[u8], fds: usize| {
        let mut pair = Pair::new(usize::MAX);
        let (id, _) = pair.client.ask(ask).unwrap();
        hear(&mut pair.client, &reply(id, command, body), fds, usize::MAX).unwrap_err()
    };
    let short = heard(4, &Ask::Info, &[0; 15], 0);
    assert!(matches!(short, ClientError::Length { got: 15, .. }));
    let fds = heard(4, &Ask::Info, &[0; 16], 1);
    assert!(matches!(fds, ClientError::Fds { got: 1, max: 0, .. }));
    let read = Ask::Read {
        region: 0,
        offset: 0,
        count: 4,
    };
    let more = heard(9, &read, &[0; 24], 0);
    assert!(matches!(
        more,
        ClientError::Length {
            got: 24,
            max: 20,
            ..
        }
    ));
    let other = heard(9, &read, &[0; 20], 0);
    assert!(matches!(
        other,
        ClientError::Other {
            got: 0,
            want: 4,
            ..
        }
    ));
    let mut pair = Pair::new(usize::MAX);
    let asks = hear(
        &mut pair.client,
        &crate::rig::message(9, 0, &[0; 16]),
        0,
        99,
    );
    assert_eq!(asks, Err(ClientError::NotIts { command: 9 }));
    // What was not agreed upon is not asked.
    let (mut client, first) = Client::new(Capabilities::default());
    assert_eq!(
        client.ask(&Ask::Info),
        Err(ClientError::NotAgreed { command: 4 })
    );
    let mut server = Server::new(Offer::default());
    let (sent, _) = Device::new().serve(&mut server, &first, 0);
    hear(&mut client, &sent[0].0, 0, 99).unwrap();
    let query = Ask::QueryPlane { flags: 2, kind: 1 };
    assert_eq!(
        client.ask(&query),
        Err(ClientError::NotAgreed { command: 0x8000 })
    );
}

/// Cut between any two messages, the successor goes on.
#[test]
fn a_session_is_saved_and_goes_on() {
    let mut pair = Pair::new(usize::MAX);
    let maps = [map(0, 0x1000, true), map(0x1000, 0x1000, false)];
    for map in maps {
        pair.ask(&Ask::Map(map), usize::from(map.shared));
        let saved = pair.server.snapshot().unwrap();
        pair.server = Server::restore(offer(), &saved).unwrap();
        assert_eq!(pair.server.snapshot(), Ok(saved));
    }
    assert_eq!(pair.server.maps(), maps);
    all(&mut pair);
    // Not in the middle of something.
    let (id, bytes) = pair.client.ask(&Ask::Info).unwrap();
    pair.server.receive(&bytes[..10], 0).unwrap();
    assert_eq!(pair.server.snapshot(), Err(NotQuiet::Receiving));
    pair.server.receive(&bytes[10..16], 0).unwrap();
    pair.server.receive(&bytes[16..], 0).unwrap();
    assert_eq!(
        (id > 0, pair.server.snapshot()),
        (true, Err(NotQuiet::Working))
    );
    pair.device.serve(&mut pair.server, &[], 0).1.unwrap();
    pair.server.ask_read(Iova(0x1000), 1).unwrap();
    pair.device.serve(&mut pair.server, &[], 0).1.unwrap();
    assert_eq!(pair.server.snapshot(), Err(NotQuiet::Working));
    pair.server.disconnect();
    assert_eq!(pair.server.snapshot(), Err(NotQuiet::Over));
}

/// Bytes of a file are checked like messages.
#[test]
fn bytes_that_are_no_session_are_refused() {
    let mut pair = Pair::new(usize::MAX);
    pair.ask(&Ask::Map(map(0, 0x1000, true)), 1);
    pair.ask(&Ask::Map(map(0x1000, 0x1000, false)), 0);
    let saved = pair.server.snapshot().unwrap();
    for len in 0..saved.len() {
        assert!(Server::restore(offer(), &saved[..len]).is_err(), "{len}");
    }
    let more = [&saved[..], &[0]].concat();
    assert!(Server::restore(offer(), &more).is_err());
    for at in 0..saved.len() {
        for change in [1, 0x80, 0xFF] {
            let mut bytes = saved.clone();
            bytes[at] ^= change;
            if let Ok(server) = Server::restore(offer(), &bytes) {
                assert_eq!(server.snapshot(), Ok(bytes));
            }
        }
    }
    let without = Offer {
        planes: false,
        ..offer()
    };
    assert!(Server::restore(without, &saved).is_err());
}

//! Broken messages of every kind, connections that end anywhere: the process goes on
//! serving and holds afterwards what it held before.
//!
//! A census is of the whole process, so all of this is one test.

#[allow(dead_code, reason = "another test uses all of it")]
#[path = "vfio_user/rig.rs"]
mod rig;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use linkspan_backends::display::{DisplayOptions, Model, PciDisplay, Script};
use linkspan_engine::vdpa::PciDevice;
use linkspan_mem::Iova;
use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_sys::{EventFd, Stream, reaper};
use linkspan_testkit::census::{Census, settled, start_reaper};
use linkspan_testkit::vdpa::{Machine, Quirks};
use linkspan_vfio::client::{Answer, Ask};
use linkspan_vfio::message::{Gate, MESSAGES, Sender};
use linkspan_vfio::pci::MSIX;
use linkspan_vfio::wire::{BODY_MAX, HEADER_BYTES, Header, PLANE_DMABUF};
use linkspan_vfio::{Capabilities, DmaMap, IrqAction, IrqData, SetIrqs};
use rig::Served;
use zerocopy::IntoBytes;

type Case = fn(&Served);

const CASES: [(&str, Case); 7] = [
    ("orderly sessions", orderly),
    ("every message with wrong size and descriptors", matrix),
    ("numbers and flags that mean nothing", unknown),
    ("a connection that ends after each byte", ends_anywhere),
    ("too many descriptors, and late ones", descriptors),
    ("a conversation in one piece", one_piece),
    ("one hundred quick reconnects", reconnects),
];

#[test]
fn nothing_is_left_whatever_a_client_does() {
    start_reaper();
    every_case(Served::new);
    // The same of a vDPA device as a virtio function, which gives its own descriptors too.
    let machine = Machine::disk(2, Quirks::default());
    every_case(|| {
        let device = PciDevice::open(machine.opener(), 0).unwrap();
        Served::of(device)
    });
    assert!(machine.is_empty());
    // And of displays, which give memory that viewers and clients see.
    let script = "memory guest\nregister 0x70008 0x80000000\nregister 0x70180 0x84000000\n\
                  register 0x70188 1\nregister 0x7019C 0x10000\ntable 16 0\n";
    let script = Script::parse(script).unwrap();
    for model in [Model::Bochs, Model::Fixed, Model::Intel(Box::new(script))] {
        println!("{model:?}");
        every_case(|| {
            let options = DisplayOptions {
                model: model.clone(),
                mode: (64, 64),
                memory: 1 << 20,
            };
            Served::of(PciDisplay::new(options).unwrap())
        });
    }
}

fn every_case(serve: impl Fn() -> Served) {
    let outside = Census::at_rest();
    let served = serve();
    expect_serves(&served);
    let before = Census::at_rest();
    for (name, case) in CASES {
        println!("{name}");
        case(&served);
        expect_serves(&served);
        before.assert_restored(name);
        assert!(settled(|| reaper::backlog() == 0), "{name}");
    }
    drop(served);
    outside.assert_restored("after the server stopped");
}

fn expect_serves(served: &Served) {
    let mut client = served.connect();
    let (answer, _) = client.ask(&Ask::Info, &[]).unwrap();
    assert!(matches!(answer, Answer::Info(_)));
}

fn message(command: u16, flags: u32, size: usize, body: &[u8]) -> Vec<u8> {
    let header = Header {
        id: 1,
        command,
        size: u32::try_from(size).unwrap(),
        flags,
        error: 0,
    };
    [header.as_bytes(), body].concat()
}

fn whole(command: u16, body: &[u8]) -> Vec<u8> {
    message(command, 0, HEADER_BYTES + body.len(), body)
}

fn version() -> Vec<u8> {
    whole(1, b"\0\0\0\0{\"capabilities\":{\"write_multiple\":true}}\0")
}

fn send(stream: &Stream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    // The server may have left.
    let deadline = Instant::now() + Duration::from_secs(5);
    drop(stream.send(bytes, fds, deadline));
}

/// Waits until the server has said something or has left.
fn hear(stream: &Stream) -> usize {
    let deadline = Instant::now() + Duration::from_secs(5);
    wait_for(stream.as_fd(), Direction::Read, None, Some(deadline)).unwrap();
    let mut fds = Vec::new();
    let received = stream.receive(&mut [0; 4096], &mut fds, 8);
    received.map_or(0, |received| received.bytes)
}

/// The server takes them one after the other, and the system keeps only so many waiting.
fn connect(served: &Served) -> Stream {
    let mut stream = None;
    let came = settled(|| {
        stream = Stream::connect(&served.path()).ok();
        stream.is_some()
    });
    assert!(came, "nobody listens");
    stream.expect("it came")
}

fn agreed(served: &Served) -> Stream {
    let stream = connect(served);
    send(&stream, &version(), &[]);
    assert!(hear(&stream) > HEADER_BYTES);
    stream
}

fn orderly(served: &Served) {
    for _ in 0..3 {
        let mut client = served.connect_with(Capabilities {
            msg_fds: 8,
            gfx_plane: true,
            ..Capabilities::default()
        });
        let memory = memfd::create("guest", 4096, Sealing::Fixed).unwrap();
        let map = DmaMap {
            address: Iova(0),
            size: 4096,
            offset: 0,
            readable: true,
            writable: true,
            shared: true,
        };
        client.ask(&Ask::Map(map), &[memory.as_fd()]).unwrap();
        let room = 4096;
        client.ask(&Ask::Region { index: 0, room }, &[]).unwrap();
        let event = EventFd::new().unwrap();
        let set = SetIrqs {
            index: MSIX,
            start: 0,
            count: 1,
            action: IrqAction::Trigger,
            data: IrqData::Events,
        };
        let (answer, _) = client.ask(&Ask::Irq { index: MSIX }, &[]).unwrap();
        let has = matches!(answer, Answer::Irq(info) if info.count > 0);
        let told = client.ask(&Ask::SetIrqs(&set), &[event.as_fd()]);
        assert_eq!(told.is_ok(), has, "{told:?}");
        // Of a function these are kept by nobody but the client.
        let index = 2;
        drop(client.ask(&Ask::Doorbells { index, room }, &[]));
        // Nor are these of a display, if there is a plane.
        let (flags, kind) = (PLANE_DMABUF, 1);
        if let Ok((Answer::Plane(plane), _)) = client.ask(&Ask::QueryPlane { flags, kind }, &[]) {
            let id = plane.handle;
            let got = client.ask(&Ask::GetPlane { id }, &[]);
            assert_eq!(got.is_ok(), plane.format != 0, "{got:?}");
        }
    }
}

fn matrix(served: &Served) {
    let event = EventFd::new().unwrap();
    for stage in [false, true] {
        for row in MESSAGES.iter().filter(|row| row.sender == Sender::Client) {
            let lengths = [
                0,
                row.body_min.saturating_sub(1),
                row.body_min,
                row.body_min + 1,
            ];
            for len in lengths {
                for fds in [0, 1, 8] {
                    let stream = match stage {
                        true => agreed(served),
                        false => connect(served),
                    };
                    let fds = vec![event.as_fd(); fds];
                    send(&stream, &whole(row.code, &vec![0xFF; len]), &fds);
                    hear(&stream);
                    // The session goes on, but for a version that cannot be.
                    let goes_on = stage || row.gate != Gate::First || len != row.body_min;
                    send(
                        &stream,
                        &whole(4, &[16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                        &[],
                    );
                    let heard = hear(&stream);
                    assert!(heard > 0 || !goes_on || !stage, "{} {len}", row.name);
                }
            }
        }
    }
}

fn unknown(served: &Served) {
    for command in [0, 19, 0x7FFF, 0x8000, 0xFFFF] {
        let stream = agreed(served);
        send(&stream, &whole(command, &[0; 64]), &[]);
        assert_eq!(hear(&stream), HEADER_BYTES);
    }
    for flags in [1, 2, 0x20, 0x31, u32::MAX] {
        let stream = agreed(served);
        send(&stream, &message(4, flags, 32, &[0; 16]), &[]);
        send(&stream, &whole(13, &[]), &[]);
        hear(&stream);
    }
    for size in [0, 15, BODY_MAX + HEADER_BYTES + 1, u32::MAX as usize] {
        let stream = agreed(served);
        send(&stream, &message(4, 0, size, &[]), &[]);
        assert_eq!(hear(&stream), 0, "{size}");
    }
}

fn ends_anywhere(served: &Served) {
    let memory = memfd::create("guest", 4096, Sealing::Fixed).unwrap();
    let mut map = [0u8; 32];
    map[0] = 32;
    map[4] = 3;
    map[25] = 0x10;
    let map = whole(2, &map);
    for len in 0..map.len() {
        let stream = agreed(served);
        if len > 0 {
            send(&stream, &map[..len], &[memory.as_fd()]);
        }
    }
    let version = version();
    for len in 0..version.len() {
        let stream = connect(served);
        send(&stream, &version[..len], &[]);
    }
}

fn descriptors(served: &Served) {
    let event = EventFd::new().unwrap();
    let stream = agreed(served);
    send(&stream, &whole(4, &[0; 16]), &[event.as_fd(); 9]);
    assert_eq!(hear(&stream), 0);
    for at in [1, 16, 17] {
        let stream = agreed(served);
        let bytes = whole(4, &[0; 16]);
        send(&stream, &bytes[..at], &[]);
        send(&stream, &bytes[at..], &[event.as_fd()]);
        // Parts of a header that are there together are read together. Then the descriptor
        // came with the message, and is one too many.
        let heard = hear(&stream);
        assert!(
            heard == 0 || at == 1 && heard == HEADER_BYTES,
            "{at}: {heard}"
        );
    }
}

/// Commands that nobody waits for, and the last one's answer.
fn one_piece(served: &Served) {
    let stream = agreed(served);
    let mut bytes = Vec::new();
    for _ in 0..200 {
        bytes.extend(message(13, Header::NO_REPLY, HEADER_BYTES, &[]));
        bytes.extend(message(99, Header::NO_REPLY, HEADER_BYTES, &[]));
    }
    bytes.extend(whole(13, &[]));
    for byte in bytes.chunks(7) {
        send(&stream, byte, &[]);
    }
    assert_eq!(hear(&stream), HEADER_BYTES);
}

fn reconnects(served: &Served) {
    for round in 0..100 {
        let stream = Stream::connect(&served.path());
        match (round % 3, stream) {
            (0, _) => {}
            (_, Ok(stream)) => send(&stream, &version(), &[]),
            // Too many wait to be accepted.
            (_, Err(_)) => expect_serves(served),
        }
    }
}

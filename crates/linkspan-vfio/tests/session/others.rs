//! What clients that others wrote really say, byte by byte: libvfio-user's sample client
//! (0.2, as it runs against its own sample server) and SPDK's.

use linkspan_mem::Iova;
use linkspan_vfio::server::{AskError, Effect};
use linkspan_vfio::wire::{HEADER_BYTES, Header, IRQ_EVENTFD, errno};
use linkspan_vfio::{Irq, Offer, Region, Server, pci};

use crate::rig::{Device, header};

/// The bytes that a line of hexadecimal digits says; what is no digit is for people.
fn bytes(line: &str) -> Vec<u8> {
    let digits: Vec<u8> = line.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits.chunks_exact(2);
    let pairs = pairs.map(|pair| std::str::from_utf8(pair).unwrap());
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

/// What the sample server offers: 8 bytes, memory of which two pages can be mapped,
/// configuration space, and an interrupt of each kind but two.
fn offer() -> Offer {
    let mut regions = vec![Region::default(); pci::REGIONS];
    regions[0] = Region::of(8);
    regions[1] = Region {
        mappable: vec![0..0x1000, 0x2000..0x3000],
        ..Region::of(0x4000)
    };
    regions[7] = Region::of(256);
    let irq = |count| Irq {
        count,
        flags: IRQ_EVENTFD,
    };
    Offer {
        regions,
        irqs: [1, 0, 0, 1, 1].map(irq).to_vec(),
        reset: true,
        dma_maps: 512,
        planes: false,
    }
}

struct Talk {
    server: Server,
    device: Device,
}

impl Talk {
    fn new() -> Self {
        Self {
            server: Server::new(offer()),
            device: Device::new(),
        }
    }

    /// Says a message with so many descriptors; the header of the answer, its body, and
    /// how many descriptors came with it.
    #[track_caller]
    fn say(&mut self, message: &str, fds: usize) -> (Header, Vec<u8>, usize) {
        let message = bytes(message);
        let (mut sent, _) = self.device.serve(&mut self.server, &message, fds);
        let (reply, fds) = sent.pop().expect("every message is answered");
        assert!(sent.is_empty());
        let known = header(&reply);
        assert_eq!(known.id.to_ne_bytes(), message[..2]);
        assert_eq!(known.command.to_ne_bytes(), message[2..4]);
        (known, reply[HEADER_BYTES..].to_vec(), fds)
    }

    /// The body of an answer that is no error and has no descriptor.
    #[track_caller]
    fn done(&mut self, message: &str, fds: usize) -> Vec<u8> {
        let (header, body, answered) = self.say(message, fds);
        assert_eq!((header.flags, header.error, answered), (1, 0, 0));
        body
    }

    /// The error of an answer.
    #[track_caller]
    fn refused(&mut self, message: &str) -> u32 {
        let (header, body, fds) = self.say(message, 0);
        assert_eq!((header.flags, body.len(), fds), (0x21, 0, 0));
        header.error
    }
}

/// All of it in the machine's order of bytes, which is that of the capture.
#[cfg(target_endian = "little")]
#[test]
fn libvfio_user_sample_client_is_understood() {
    let mut talk = Talk::new();
    let version = talk.done(
        "55da 0100 52000000 00000000 00000000 0000 0200 \
         7b226361706162696c6974696573223a7b226d61785f6d73675f666473223a33322c\
         226d61785f646174615f786665725f73697a65223a313032347d7d00",
        0,
    );
    assert_eq!(version[..4], [0, 0, 2, 0]);
    assert_eq!(version.last(), Some(&0));
    // It begins with a region that there is not.
    let error =
        talk.refused("0ff00900 20000000 00000000 00000000 0000000000000000 efbeadde 04000000");
    assert_eq!(error, errno::EINVAL);
    let info = talk.done(
        "0cb10400 20000000 00000000 00000000 10000000 00000000 00000000 00000000",
        0,
    );
    assert_eq!(info, bytes("10000000 03000000 09000000 05000000"));
    // A region twice: with room for the head, and with a body as long as the answer.
    let head = talk.done(
        "cdab0500 30000000 00000000 00000000 20000000 00000000 01000000 00000000 \
         0000000000000000 0000000000000000",
        0,
    );
    assert_eq!((head.len(), head[0]), (32, 80));
    let (header, whole, fds) = talk.say(
        "cdab0500 60000000 00000000 00000000 50000000 00000000 01000000 00000000 \
         0000000000000000 0000000000000000 \
         0000000000000000 0000000000000000 0000000000000000 \
         0000000000000000 0000000000000000 0000000000000000",
        0,
    );
    assert_eq!((header.flags, whole.len(), fds), (1, 80, 1));
    // Byte for byte what its own server answers.
    assert_eq!(
        whole,
        bytes(
            "50000000 0f000000 01000000 20000000 0040000000000000 0000000000000000 \
             0100 0100 00000000 02000000 00000000 \
             0000000000000000 0010000000000000 0020000000000000 0010000000000000"
        )
    );
    let space = talk.done(
        "0ef00900 20000000 00000000 00000000 0000000000000000 07000000 40000000",
        0,
    );
    assert_eq!(space.len(), 16 + 64);
    assert!(
        talk.done("01000d00 10000000 00000000 00000000", 0)
            .is_empty()
    );
    its_memory_and_what_it_writes(&mut talk);
    its_answers_to_questions(&mut talk);
    for line in [
        "07000300 28000000 00000000 00000000 18000000 00000000 0000000000000000 0010000000000000",
        "07000300 28000000 00000000 00000000 18000000 00000000 0010000000000000 0010000000000000",
    ] {
        assert_eq!(talk.done(line, 0).len(), 24);
    }
    assert!(talk.server.maps().is_empty());
}

#[cfg(target_endian = "little")]
fn its_memory_and_what_it_writes(talk: &mut Talk) {
    // Pages of one file, each with its descriptor.
    for line in [
        "34120200 30000000 00000000 00000000 20000000 03000000 0000000000000000 0000000000000000 0010000000000000",
        "35120200 30000000 00000000 00000000 20000000 03000000 0010000000000000 0010000000000000 0010000000000000",
    ] {
        assert!(talk.done(line, 1).is_empty());
    }
    for index in 0..5 {
        let line = format!(
            "ad1b0700 20000000 00000000 00000000 10000000 00000000 0{index}000000 00000000"
        );
        assert_eq!(talk.done(&line, 0)[8], index);
    }
    let line = "ae1b0800 24000000 00000000 00000000 14000000 24000000 00000000 00000000 01000000";
    assert!(talk.done(line, 1).is_empty());
    // It wants to log what is written, and to migrate.
    for line in [
        "00001000 28000000 00000000 00000000 18000000 06000200 0010000000000000 00000000 00000000",
        "b1fa1000 20000000 00000000 00000000 10000000 02000200 06000000 ffffffff",
        "04691100 18000000 00000000 00000000 08040000 00040000",
    ] {
        assert_eq!(talk.refused(line), errno::EOPNOTSUPP);
    }
    let line =
        "0df00a00 28000000 00000000 00000000 0000000000000000 00000000 08000000 b08a096b00000000";
    assert_eq!(talk.done(line, 0).len(), 16);
    let line = "0cf00900 20000000 00000000 00000000 0000000000000000 00000000 08000000";
    let read = talk.done(line, 0);
    assert_eq!(read[16..], bytes("b08a096b00000000"));
}

/// What it takes at once is 1 KiB, and it repeats address and count as 8 bytes each.
#[cfg(target_endian = "little")]
fn its_answers_to_questions(talk: &mut Talk) {
    let Talk { server, device } = talk;
    let much = server.ask_write(Iova(0), &[0; 1025]);
    assert_eq!(
        much,
        Err(AskError::Transfer {
            count: 1025,
            max: 1024
        })
    );
    let mut told = |server: &mut Server, answer: Vec<u8>| {
        let (sent, result) = device.serve(server, &answer, 0);
        assert_eq!(result, Ok(()));
        let question = &sent[0].0;
        assert_eq!(question[..2], answer[..2]);
        assert!(matches!(device.done.last(), Some(Effect::Told { .. })));
        match device.done.pop() {
            Some(Effect::Told { result, .. }) => result,
            other => panic!("{other:?}"),
        }
    };
    // Its numbers are those of the questions, of which its own server begins with 1.
    assert_eq!(server.ask_write(Iova(0), b"first"), Ok(0));
    let line = "00000c00 20000000 01000000 00000000 0000000000000000 0500000000000000";
    assert_eq!(told(server, bytes(line)), Ok(vec![]));
    assert_eq!(server.ask_write(Iova(0), &[0x41; 1024]), Ok(1));
    let line = "01000c00 20000000 01000000 00000000 0000000000000000 0004000000000000";
    assert_eq!(told(server, bytes(line)), Ok(vec![]));
    assert_eq!(server.ask_read(Iova(0), 1024), Ok(2));
    let line = "02000b00 20040000 01000000 00000000 0000000000000000 0004000000000000";
    let answer = [bytes(line), vec![0x41; 1024]].concat();
    assert_eq!(told(server, answer), Ok(vec![0x41; 1024]));
}

/// Flags that libvfio-user has: memory to be mapped, to be read and written by calls, and
/// memory that may only be written.
#[test]
fn libvfio_user_flags_of_maps_are_taken() {
    let map = |flags: u32, address: u64| {
        let words = [flags].map(u32::to_ne_bytes).concat();
        let longs = [0, address, 0x1000].map(u64::to_ne_bytes).concat();
        crate::rig::message(
            2,
            0,
            &[32_u32.to_ne_bytes().to_vec(), words, longs].concat(),
        )
    };
    let mut talk = Talk::new();
    let Talk { server, device } = &mut talk;
    let text = crate::rig::version();
    assert_eq!(device.serve(server, &text, 0).1, Ok(()));
    for (number, (flags, fds)) in [(7, 1), (11, 1), (15, 1), (2, 1), (2, 0), (1, 0)]
        .into_iter()
        .enumerate()
    {
        let address = number as u64 * 0x1000;
        let (sent, result) = device.serve(server, &map(flags, address), fds);
        assert_eq!((sent.len(), result), (1, Ok(())), "flags {flags}");
    }
    let rights = server.maps().iter();
    let rights: Vec<_> = rights
        .map(|map| (map.readable, map.writable, map.shared))
        .collect();
    assert_eq!(
        rights,
        [
            (true, true, true),
            (true, true, true),
            (true, true, true),
            (false, true, true),
            (false, true, false),
            (true, false, false)
        ]
    );
    // What may only be written cannot be asked for, what may only be read cannot be written.
    for (address, write) in [(0x4000, false), (0x5000, true)] {
        let asked = match write {
            true => server.ask_write(Iova(address), &[1]),
            false => server.ask_read(Iova(address), 1),
        };
        assert!(matches!(asked, Err(AskError::Outside { .. })), "{asked:?}");
    }
    assert!(server.ask_write(Iova(0x4000), &[1]).is_ok());
    assert!(server.ask_read(Iova(0x5000), 1).is_ok());
}

/// SPDK's client: a version without text, a body with all the room of its answer, and the
/// descriptor of a map with the message that takes it back.
#[cfg(target_endian = "little")]
#[test]
fn spdk_client_is_understood() {
    let mut talk = Talk::new();
    let version = talk.done("00000100 14000000 00000000 00000000 0000 0100", 0);
    assert_eq!(version[..4], [0, 0, 1, 0]);
    let room = 4096 - 32;
    let mut message = bytes("00000500 f00f0000 00000000 00000000 e00f0000 00000000 01000000");
    message.resize(HEADER_BYTES + room, 0);
    let size = u32::try_from(message.len()).unwrap();
    message[4..8].copy_from_slice(&size.to_ne_bytes());
    let (sent, result) = talk.device.serve(&mut talk.server, &message, 0);
    assert_eq!(result, Ok(()));
    assert_eq!((sent[0].0.len(), sent[0].1), (HEADER_BYTES + 80, 1));
    let line = "00000200 30000000 00000000 00000000 20000000 03000000 0000000000000000 0000200000000000 0000200000000000";
    assert!(talk.done(line, 1).is_empty());
    let line =
        "00000300 28000000 00000000 00000000 18000000 00000000 0000200000000000 0000200000000000";
    assert_eq!(talk.done(line, 1).len(), 24);
    assert!(talk.server.maps().is_empty());
}

//! Seeds of `vfio_user_server` and `vfio_user_client`: what monitors and devices say, and
//! what neither should.

use super::{Expected, Seed};
use crate::vfio_user::{client, server};

/// What QEMU 11.1 proposes.
const QEMU: &str = "{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,\
    \"pgsizes\":4096,\"max_dma_maps\":65535,\"write_multiple\":true}}\0";
/// A client of ours.
const OURS: &str = "{\"capabilities\":{\"write_multiple\":true,\"gfx_plane\":true}}\0";

pub(super) fn seeds() -> Vec<Seed> {
    [servers(), clients()].concat()
}

fn seed(
    target: &'static str,
    name: &str,
    (done, refused): (usize, usize),
    error: Option<&'static str>,
    bytes: Vec<u8>,
) -> Seed {
    Seed {
        target,
        name: name.into(),
        bytes,
        expected: Expected::VfioUser {
            done,
            refused,
            error,
        },
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A message of a client.
fn say(command: u16, fds: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![server::step::MESSAGE];
    bytes.extend(command.to_le_bytes());
    bytes.extend([0, fds, 200]);
    bytes.extend(u16::try_from(body.len()).expect("short").to_le_bytes());
    bytes.extend(body);
    bytes
}

fn version(text: &str) -> Vec<u8> {
    say(1, 0, &[&[0; 4], text.as_bytes()].concat())
}

fn map(address: u32, size: u32, fds: u8) -> Vec<u8> {
    say(2, fds, &words(&[32, 3, 0, 0, address, 0, size, 0]))
}

fn read(region: u32, offset: u32, count: u32) -> Vec<u8> {
    say(9, 0, &words(&[offset, 0, region, count]))
}

fn write(region: u32, offset: u32, data: &[u8]) -> Vec<u8> {
    let count = u32::try_from(data.len()).expect("short");
    say(10, 0, &[&words(&[offset, 0, region, count]), data].concat())
}

fn servers() -> Vec<Seed> {
    let seed = |name, counts, error, parts: &[&[u8]]| {
        seed("vfio_user_server", name, counts, error, parts.concat())
    };
    let (qemu, ours) = (version(QEMU), version(OURS));
    let info = |index| say(5, 0, &words(&[4096, 0, index, 0, 0, 0, 0, 0]));
    let irqs = |flags, count, fds| say(8, fds, &words(&[20, flags, 2, 0, count]));
    let dispi = |index: u32, value: u16| write(2, 0x500 + 2 * index, &value.to_le_bytes());
    let mode = [dispi(3, 32), dispi(1, 640), dispi(2, 480), dispi(4, 0x41)].concat();
    let one: Vec<u8> = [words(&[0x10, 0, 7, 4]), vec![0xFF; 8]].concat();
    let many = say(15, 0, &[words(&[2, 0]), one.clone(), one].concat());
    let ask = |write: u8| [server::step::ASK, 0, 0x10, 0, 0, 8, 0, write];
    let answered = |body: &[u8]| {
        let mut bytes = say(11, 0, body);
        bytes[3] = 1;
        // The first question has number 0, and this message number 5.
        bytes
    };
    vec![
        seed("nothing", (0, 0), None, &[]),
        seed("version", (1, 0), None, &[&qemu]),
        seed(
            "version_twice",
            (1, 1),
            Some("agreed upon already"),
            &[&qemu, &qemu],
        ),
        seed("version_without_data", (1, 0), None, &[&say(1, 0, &[0; 4])]),
        seed(
            "version_of_another",
            (0, 0),
            Some("version 1.0"),
            &[&say(1, 0, &[1, 0, 0, 0])],
        ),
        seed(
            "version_without_an_end",
            (0, 0),
            Some("without a zero"),
            &[&say(1, 0, b"\0\0\0\0{}")],
        ),
        seed(
            "version_too_short",
            (0, 1),
            Some("a body of 3 bytes"),
            &[&say(1, 0, &[0; 3])],
        ),
        seed(
            "before_the_version",
            (0, 1),
            Some("before the version"),
            &[&info(0)],
        ),
        seed(
            "what_qemu_asks",
            (9, 0),
            None,
            &[
                &qemu,
                &say(4, 0, &words(&[16, 0, 0, 0])),
                &info(0),
                &info(2),
                &info(9),
                &say(7, 0, &words(&[16, 0, 2, 0])),
                &read(7, 0, 256),
                &write(7, 4, &[7, 1]),
                &say(13, 0, &[]),
            ],
        ),
        seed(
            "maps",
            (4, 2),
            Some("overlap"),
            &[
                &qemu,
                &map(0, 0xA_0000, 1),
                &map(0xC_0000, 0x2_0000, 0),
                &map(0xC_0000, 0x2_0000, 0),
                &map(0x9_F000, 0x1000, 1),
                &map(0, 0xFFFF_FFFF, 1),
            ],
        ),
        seed(
            "a_map_that_fails",
            (1, 1),
            Some("failed with error 22"),
            &[&qemu, &[server::step::ANSWER, 22], &map(0, 4096, 1)],
        ),
        seed(
            "unmaps",
            (4, 1),
            Some("no map of"),
            &[
                &qemu,
                &map(0, 0x1000, 0),
                &say(3, 0, &words(&[24, 0, 0, 0, 0x1000, 0])),
                &say(3, 0, &words(&[24, 0, 0, 0, 0x1000, 0])),
                &say(3, 0, &words(&[24, 2, 0, 0, 0, 0])),
            ],
        ),
        seed(
            "interrupts",
            (4, 2),
            Some("descriptors"),
            &[
                &qemu,
                &irqs(0x24, 4, 4),
                &irqs(0x24, 4, 0),
                &irqs(0x21, 0, 0),
                &irqs(0x21, 5, 0),
                &irqs(0x24, 2, 1),
            ],
        ),
        seed("a_mode", (6, 0), None, &[&qemu, &mode, &read(2, 0x500, 22)]),
        seed(
            "config_and_vectors",
            (7, 0),
            None,
            &[
                &qemu,
                &write(7, 0x10, &[0xFF; 8]),
                &write(7, 0x42, &[0xFF; 4]),
                &write(2, 0x700, &[0xFF; 64]),
                &read(2, 0x700, 64),
                &read(2, 0xC00, 8),
                &many,
            ],
        ),
        seed(
            "outside",
            (1, 3),
            Some("cannot be written"),
            &[&qemu, &read(7, 0xFF, 2), &read(1, 0, 1), &write(9, 0, &[1])],
        ),
        seed(
            "planes",
            (4, 1),
            Some("a plane of type"),
            &[
                &ours,
                &say(0x8000, 0, &[words(&[64, 3, 1]), vec![0; 52]].concat()),
                &say(0x8000, 0, &[words(&[64, 2, 1]), vec![0; 52]].concat()),
                &say(0x8001, 0, &words(&[5])),
                &say(0x8000, 0, &[words(&[64, 2, 9]), vec![0; 52]].concat()),
            ],
        ),
        seed(
            "planes_not_agreed",
            (1, 1),
            Some("not agreed upon"),
            &[&qemu, &say(0x8001, 0, &[0; 4])],
        ),
        seed(
            "the_device_asks",
            (2, 1),
            Some("a reply to nothing"),
            &[
                &qemu,
                &map(0x1000, 0x1000, 0),
                &ask(0),
                &ask(1),
                &answered(&[0; 24]),
            ],
        ),
        seed(
            "memory_to_be_written_only",
            (2, 0),
            Some("are not shared"),
            &[
                &qemu,
                &say(2, 0, &words(&[32, 2, 0, 0, 0x1000, 0, 0x1000, 0])),
                &[server::step::SAVE],
                &ask(1),
                &ask(0),
            ],
        ),
        seed(
            "doorbells",
            (4, 2),
            Some("a count of 5"),
            &[
                &qemu,
                &say(6, 0, &words(&[4096, 0, 2, 0])),
                &say(6, 0, &words(&[16, 0, 2, 0])),
                &say(6, 0, &words(&[4096, 0, 0, 0])),
                &say(6, 0, &words(&[4096, 1, 2, 0])),
                &say(6, 0, &words(&[4096, 0, 2, 5])),
            ],
        ),
        seed(
            "an_answer_of_the_wrong_kind",
            (1, 0),
            Some("does not fit its question"),
            &[
                &qemu,
                &[server::step::ANSWER, server::WRONG],
                &read(7, 0, 4),
            ],
        ),
        seed(
            "another_client",
            (4, 0),
            None,
            &[
                &qemu,
                &map(0, 4096, 1),
                &[server::step::LEAVE],
                &qemu,
                &map(0, 4096, 1),
            ],
        ),
        seed(
            "saved",
            (3, 1),
            Some("overlap"),
            &[
                &[server::step::SAVE],
                &qemu,
                &map(0, 4096, 1),
                &[server::step::SAVE],
                &map(0, 8192, 1),
                &map(8192, 4096, 0),
            ],
        ),
        seed(
            "short_and_long",
            (0, 0),
            Some("are possible"),
            &[&[
                server::step::RAW,
                16,
                0,
                1,
                0,
                4,
                0,
                15,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
            ]],
        ),
        seed(
            "descriptors_too_many",
            (0, 0),
            Some("9 file descriptors"),
            &[&say(4, 9, &[])],
        ),
    ]
}

/// A message of a server.
fn tell(id: u8, command: u16, flags: u8, fds: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![client::step::MESSAGE, id];
    bytes.extend(command.to_le_bytes());
    bytes.extend([flags, fds, 200]);
    bytes.extend(u16::try_from(body.len()).expect("short").to_le_bytes());
    bytes.extend(body);
    bytes
}

fn clients() -> Vec<Seed> {
    let seed = |name, counts, error, parts: &[&[u8]]| {
        seed("vfio_user_client", name, counts, error, parts.concat())
    };
    let agreed = tell(0, 1, 1, 0, &[&[0, 0, 1, 0], OURS.as_bytes()].concat());
    let ask = |kind: u8, number: u16| {
        let [low, high] = number.to_le_bytes();
        [client::step::ASK, kind, low, high]
    };
    let reply = |command: u16, fds: u8, body: &[u8]| tell(1, command, 1, fds, body);
    let region = [
        words(&[80, 15, 0, 32, 0x4000, 0, 0, 0]),
        words(&[0x1_0001, 64, 1, 0, 0, 0, 0x4000, 0]),
        words(&[0x1_0002, 0, 1, 1]),
    ]
    .concat();
    vec![
        seed("nothing", (0, 0), None, &[]),
        seed("agreed", (1, 0), None, &[&agreed]),
        seed(
            "doorbells",
            (2, 0),
            None,
            &[
                &agreed,
                &ask(12, 64),
                &reply(6, 1, &[words(&[64, 0, 64, 1]), vec![0; 48]].concat()),
            ],
        ),
        seed(
            "asked_too_early",
            (0, 1),
            Some("was not agreed upon"),
            &[&ask(0, 0)],
        ),
        seed(
            "a_newer_version",
            (0, 0),
            Some("version 0.9"),
            &[&tell(0, 1, 1, 0, &[0, 0, 9, 0])],
        ),
        seed(
            "another_protocol",
            (0, 0),
            Some("version 1.0"),
            &[&tell(0, 1, 1, 0, &[1, 0, 0, 0])],
        ),
        seed(
            "refused",
            (0, 0),
            Some("refuses the version"),
            &[&tell(0, 1, 0x21, 0, &[])],
        ),
        seed(
            "info",
            (2, 0),
            None,
            &[&agreed, &ask(0, 0), &reply(4, 0, &words(&[16, 3, 10, 5]))],
        ),
        seed(
            "a_region",
            (2, 0),
            None,
            &[&agreed, &ask(1, 4096), &reply(5, 1, &region)],
        ),
        seed(
            "a_region_with_too_much",
            (1, 0),
            Some("instead of"),
            &[&agreed, &ask(1, 32), &reply(5, 1, &region)],
        ),
        seed(
            "another_region",
            (1, 0),
            Some("where 0x0 was asked"),
            &[
                &agreed,
                &ask(1, 4096),
                &reply(5, 0, &words(&[32, 3, 7, 0, 0, 0, 0, 0])),
            ],
        ),
        seed(
            "bytes",
            (2, 0),
            None,
            &[
                &agreed,
                &ask(4, 8),
                &reply(9, 0, &words(&[8, 0, 4, 8, 1, 2])),
            ],
        ),
        seed(
            "fewer_bytes",
            (1, 0),
            Some("that says"),
            &[&agreed, &ask(4, 8), &reply(9, 0, &words(&[8, 0, 4, 8, 1]))],
        ),
        seed(
            "an_error",
            (2, 0),
            None,
            &[&agreed, &ask(7, 0), &tell(1, 13, 0x21, 0, &[])],
        ),
        seed(
            "an_error_with_a_descriptor",
            (1, 0),
            Some("file descriptors"),
            &[&agreed, &ask(7, 0), &tell(1, 13, 0x21, 1, &[])],
        ),
        seed(
            "nothing_was_asked",
            (1, 0),
            Some("which was not asked"),
            &[&agreed, &reply(4, 0, &[0; 16])],
        ),
        seed(
            "the_server_asks",
            (3, 0),
            None,
            &[
                &agreed,
                &tell(9, 11, 0, 0, &words(&[0x1000, 0, 64, 0])),
                &tell(9, 12, 0x10, 0, &words(&[0x1000, 0, 4, 0, 7])),
            ],
        ),
        seed(
            "the_server_asks_for_much",
            (1, 0),
            Some("bytes at once"),
            &[&agreed, &tell(9, 11, 0, 0, &words(&[0, 0, 0, 1]))],
        ),
        seed(
            "the_server_asks_otherwise",
            (1, 0),
            Some("the server sends message 9"),
            &[&agreed, &tell(9, 9, 0, 0, &[0; 16])],
        ),
        seed(
            "planes",
            (3, 0),
            None,
            &[
                &agreed,
                &ask(8, 0),
                &tell(1, 0x8000, 1, 0, &[words(&[64, 2, 1]), vec![0; 52]].concat()),
                &ask(9, 5),
                &tell(2, 0x8001, 1, 1, &words(&[5, 1, 0, 0, 4096, 0])),
            ],
        ),
        seed(
            "every_question",
            (1, 0),
            None,
            &[
                &agreed,
                &ask(0, 1),
                &ask(1, 1),
                &ask(2, 1),
                &ask(3, 1),
                &ask(4, 1),
                &ask(5, 1),
                &ask(6, 1),
                &ask(7, 1),
                &ask(8, 1),
                &ask(9, 1),
                &ask(10, 1),
                &ask(11, 1),
            ],
        ),
    ]
}

//! Seeds of `smbdirect_hello`.

use linkspan_backends::smbdirect::{Hello, Mode, Welcome};
use linkspan_smbdirect::Descriptor;

use super::{Expected, Seed};

fn first(message: &[u8]) -> Vec<u8> {
    [&[0], message].concat()
}

fn answer(message: &[u8]) -> Vec<u8> {
    [&[16], message].concat()
}

fn welcome(mode: Mode, lengths: &[u32]) -> Vec<u8> {
    let memory = lengths.iter().map(|length| Descriptor {
        offset: 1 << 16,
        token: 7,
        length: *length,
    });
    let memory = memory.collect();
    Welcome { mode, memory }.to_bytes()
}

/// The begin of an answer of SMB2: the header, and a dialect if there is room for it.
fn smb(len: usize, flags: u8, command: u8) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (at, byte) in [
        (0, 0xFE),
        (1, b'S'),
        (2, b'M'),
        (3, b'B'),
        (4, 64),
        (12, command),
        (16, flags),
    ] {
        bytes[at] = byte;
    }
    if let Some(dialect) = bytes.get_mut(68..70) {
        dialect.copy_from_slice(&[0x11, 3]);
    }
    bytes
}

pub(super) fn seeds() -> Vec<Seed> {
    let hello = Hello { memory: 4096 }.to_bytes();
    let mut other = hello;
    other[76] = b'L';
    let mut counted = welcome(Mode::Sink, &[4096]);
    counted[12] = 2;
    #[rustfmt::skip]
    let rows: [(&str, Vec<u8>, &str); 14] = [
        ("hello", first(&hello), "hello"),
        ("hello_without_memory", first(&Hello::default().to_bytes()), "hello"),
        ("hello_of_another", first(&other), "message"),
        ("hello_and_more", first(&[&hello[..], &[0]].concat()), "message"),
        ("no_hello", first(b"anything"), "message"),
        ("echo", answer(&hello), "echo"),
        ("welcome_to_an_echo", answer(&welcome(Mode::Echo, &[])), "ours"),
        ("welcome_with_memory", answer(&welcome(Mode::Sink, &[1 << 20, 5])), "ours"),
        ("welcome_with_nothing_described", answer(&welcome(Mode::Sink, &[0])), "other"),
        ("welcome_with_another_count", answer(&counted), "other"),
        ("smb", answer(&smb(128, 1, 0)), "smb"),
        ("smb_error", answer(&smb(73, 1, 0)), "smb"),
        ("smb_request", answer(&smb(128, 0, 0)), "other"),
        ("smb_of_another_command", answer(&smb(128, 1, 1)), "other"),
    ];
    let seed = |(name, bytes, what): (&str, Vec<u8>, &'static str)| Seed {
        target: "smbdirect_hello",
        name: name.to_owned(),
        bytes,
        expected: Expected::Hello(what),
    };
    rows.into_iter().map(seed).collect()
}

//! Messages: what is written is read, and what cannot be has a name.

use linkspan_smb2::create::{
    ContextHeader, CreateRequest, DurableRequestV2, LeaseV2, context, find,
};
use linkspan_smb2::frame::{Framer, prefix};
use linkspan_smb2::header::{COMMANDS, COMPOUND_MAX, Compound, compound};
use linkspan_smb2::info::{Entry, EntryHeader, entries, write_entries};
use linkspan_smb2::io::{
    DESCRIPTORS_MAX, Descriptor, LockElement, LockRequest, ReadRequest, WriteRequest, channel,
    reach,
};
use linkspan_smb2::ioctl::{Range, ranges};
use linkspan_smb2::wire::Body as _;
use linkspan_smb2::{Command, Header, from_utf16, to_utf16};
use proptest::prelude::*;
use zerocopy::IntoBytes as _;

fn message(command: Command, body: &[u8]) -> Vec<u8> {
    [Header::request(command).as_bytes(), body].concat()
}

fn descriptor(length: u32) -> Descriptor {
    Descriptor {
        offset: 4096.into(),
        token: 7.into(),
        length: length.into(),
    }
}

fn write_with(memory: &[Descriptor]) -> Vec<u8> {
    let request = WriteRequest {
        channel: channel::RDMA_V1_INVALIDATE.into(),
        ..WriteRequest::new()
    };
    message(Command::Write, &request.body_with_memory(memory))
}

#[test]
fn ksmbd_memory_descriptors_are_counted_and_summed() {
    let read = |bytes: &[u8]| WriteRequest::read(bytes)?.descriptors(bytes);
    let bytes = write_with(&[descriptor(1), descriptor(2)]);
    assert_eq!(reach(&read(&bytes).unwrap()), Ok(3));
    for len in Header::LEN..bytes.len() {
        assert!(read(&bytes[..len]).is_err(), "{len}");
    }
    // A part of a descriptor, none, and more than anybody needs.
    let mut part = bytes.clone();
    part[Header::LEN + 42..Header::LEN + 44].copy_from_slice(&17_u16.to_le_bytes());
    assert!(
        read(&part)
            .unwrap_err()
            .to_string()
            .contains("channel information is 0x11")
    );
    assert!(read(&write_with(&[])).is_err());
    let many = vec![descriptor(1); DESCRIPTORS_MAX + 1];
    assert!(
        read(&write_with(&many))
            .unwrap_err()
            .to_string()
            .contains("more than 512")
    );
    // Lengths and addresses that cannot be.
    assert!(reach(&[descriptor(0)]).is_err());
    assert!(reach(&[descriptor(u32::MAX), descriptor(1)]).is_err());
    let mut end = descriptor(2);
    end.offset = (u64::MAX - 1).into();
    assert!(reach(&[end]).is_err());
}

#[test]
fn windows_sends_thirty_one_descriptors() {
    let request = ReadRequest {
        length: (31 * 4096).into(),
        channel: channel::RDMA_V1.into(),
        ..ReadRequest::new()
    };
    let bytes = message(Command::Read, &request.body(&[descriptor(4096); 31]));
    let memory = ReadRequest::read(&bytes)
        .unwrap()
        .descriptors(&bytes)
        .unwrap();
    assert_eq!((memory.len(), reach(&memory)), (31, Ok(31 * 4096)));
}

#[test]
fn every_command_has_its_code_and_no_other_has_one() {
    for (index, (command, _, _)) in COMMANDS.iter().enumerate() {
        assert_eq!(*command as usize, index);
        assert_eq!(Command::of(u16::try_from(index).unwrap()), Ok(*command));
    }
    assert!(Command::of(19).is_err());
}

#[test]
fn contexts_of_a_create_are_found_by_name() {
    let (lease, durable) = (
        LeaseV2 {
            state: 7.into(),
            ..LeaseV2::default()
        },
        DurableRequestV2::default(),
    );
    let contexts = [
        (&context::LEASE[..], lease.as_bytes()),
        (&context::DISK_ID[..], &[][..]),
        (&context::DURABLE_V2[..], durable.as_bytes()),
    ];
    let bytes = message(
        Command::Create,
        &CreateRequest::new().body("a\\b", &contexts),
    );
    let request = CreateRequest::read(&bytes).unwrap();
    assert_eq!(request.name(&bytes).unwrap(), to_utf16("a\\b"));
    let read = request.contexts(&bytes).unwrap();
    assert_eq!(read, contexts);
    assert_eq!(find::<LeaseV2>(&read, context::LEASE), Some(lease));
    assert_eq!(find::<LeaseV2>(&read, context::MAXIMAL_ACCESS), None);
    // A list that leads back or nowhere has an end.
    let at = request.contexts_offset.get() as usize;
    for next in [1_u32, 4, 7, 12, 1000, u32::MAX] {
        let mut broken = bytes.clone();
        broken[at..at + 4].copy_from_slice(&next.to_le_bytes());
        let read = request.contexts(&broken);
        assert!(read.is_err(), "{next}: {:?}", size_of::<ContextHeader>());
    }
}

#[test]
fn names_of_entries_stay_in_their_folder() {
    let entry = |name: &str| Entry {
        fixed: EntryHeader::default(),
        name: name.into(),
    };
    let names = |names: &[&str]| {
        let list: Vec<_> = names.iter().map(|name| entry(name)).collect();
        entries(&write_entries(&list))
    };
    let read = names(&[".", "..", "ä", "b c"]).unwrap();
    let read: Vec<_> = read.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(read, ["ä", "b c"]);
    for name in ["a/b", "a\\b", "../x", "", "a\0"] {
        assert!(names(&[name]).is_err(), "{name:?}");
    }
}

#[test]
fn ranges_are_in_order_and_end() {
    let range = |offset: u64, length: u64| Range {
        offset: offset.into(),
        length: length.into(),
    };
    let read = |list: &[Range]| ranges(list.as_bytes());
    assert_eq!(read(&[range(0, 5), range(5, 1)]).unwrap().len(), 2);
    assert!(read(&[range(0, 5), range(4, 1)]).is_err());
    assert!(read(&[range(u64::MAX, 1)]).is_err());
    assert!(ranges(&[0; 17]).is_err());
    let lock = LockRequest::new().body(&[LockElement::default(); 3]);
    let bytes = message(Command::Lock, &lock);
    let request = LockRequest::read(&bytes).unwrap();
    assert_eq!(request.elements(&bytes).unwrap().len(), 3);
    assert!(request.elements(&bytes[..bytes.len() - 1]).is_err());
}

#[test]
fn a_compound_without_end_has_one() {
    let one = message(Command::Echo, &[4, 0, 0, 0, 0, 0, 0, 0]);
    let read = |count| Compound::new(&compound(&vec![one.clone(); count])).all(|part| part.is_ok());
    assert!(read(COMPOUND_MAX));
    assert!(!read(COMPOUND_MAX + 1));
    let mut itself = one.clone();
    itself[20] = 72;
    assert!(Compound::new(&itself).all(|part| part.is_err()));
}

proptest! {
    /// However a stream is cut, the same messages come out of it.
    #[test]
    fn a_stream_may_be_cut_anywhere(
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 1..8),
        pieces in proptest::collection::vec(1_usize..40, 1..20),
    ) {
        let mut stream = Vec::new();
        for message in &messages {
            stream.extend_from_slice(&prefix(message.len()).unwrap());
            stream.extend_from_slice(message);
        }
        let (mut framer, mut got, mut rest) = (Framer::new(50), Vec::new(), &stream[..]);
        for piece in pieces.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let room = framer.room();
            let len = room.len().min(*piece).min(rest.len());
            room[..len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
            got.extend(framer.filled(len).unwrap());
        }
        prop_assert_eq!(got, messages);
    }

    /// Names are the same afterwards.
    #[test]
    fn names_come_back(name in ".*") {
        prop_assert_eq!(from_utf16("a name", &to_utf16(&name)), Ok(name));
    }
}

/// Ours: a name could have as many bytes as a message.
#[test]
fn a_name_is_no_longer_than_any_file_system_has_them() {
    let named = |len: usize| {
        let entry = Entry {
            fixed: EntryHeader::default(),
            name: "\u{20AC}".repeat(len),
        };
        entries(&write_entries(&[entry]))
    };
    assert_eq!(named(255).unwrap().len(), 1);
    let error = named(256).unwrap_err().to_string();
    assert_eq!(error, "the name of an entry of 512 bytes, more than 510");
}

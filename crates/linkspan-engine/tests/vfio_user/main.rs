//! A PCI device over vfio-user, on a real socket with a client of ours that may lie.

mod rig;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use linkspan_engine::vfio_user::{Connection, ConnectionError};
use linkspan_mem::Iova;
use linkspan_sys::memfd::{self, Sealing};
use linkspan_sys::{EventFd, PeerMemory, View};
use linkspan_testkit::census::settled;
use linkspan_vfio::client::{Answer, Ask};
use linkspan_vfio::pci::{INTX, MSIX};
use linkspan_vfio::wire::errno;
use linkspan_vfio::{DmaMap, IrqAction, IrqData, SetIrqs};

use rig::{BYTES, COPY, FETCH, HOLD, RAISE, Served};

fn map(address: u64, size: u64, offset: u64) -> DmaMap {
    DmaMap {
        address: Iova(address),
        size,
        offset,
        readable: true,
        writable: true,
        shared: true,
    }
}

fn irqs(index: u32, action: IrqAction, data: IrqData, start: u32, count: u32) -> SetIrqs {
    SetIrqs {
        index,
        start,
        count,
        action,
        data,
    }
}

#[track_caller]
fn refused(result: Result<(Answer, Vec<OwnedFd>), ConnectionError>, number: u32) {
    match result {
        Err(ConnectionError::Refused { errno }) => assert_eq!(errno, number),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_region_is_the_same_memory_for_both_ends() {
    let served = Served::new();
    let mut client = served.connect();
    let (_, fds) = client
        .ask(
            &Ask::Region {
                index: 0,
                room: 4096,
            },
            &[],
        )
        .unwrap();
    let [fd] = <[OwnedFd; 1]>::try_from(fds).unwrap();
    let view = View::of_peer(&PeerMemory::check(fd).unwrap(), 0, BYTES).unwrap();
    let write = Ask::Write {
        region: 0,
        offset: 100,
        bytes: b"device",
    };
    client.ask(&write, &[]).unwrap();
    let mut bytes = [0; 6];
    view.read(100, &mut bytes).unwrap();
    assert_eq!(&bytes, b"device");
}

#[test]
fn memory_that_is_none_is_refused_and_the_rest_goes_on() {
    let served = Served::new();
    let mut client = served.connect();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, [0; 8192]).unwrap();
    let open = |path: &str| File::options().read(true).write(true).open(path).unwrap();
    let regular = open(path.to_str().unwrap());
    let zero = open("/dev/zero");
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    let event: OwnedFd = EventFd::new().unwrap().into();
    let memory = memfd::create("guest", 8192, Sealing::Fixed).unwrap();
    let lies: [(BorrowedFd<'_>, DmaMap); 7] = [
        (regular.as_fd(), map(0, 4096, 0)),
        (zero.as_fd(), map(0, 4096, 0)),
        (pipe.as_fd(), map(0, 4096, 0)),
        (event.as_fd(), map(0, 4096, 0)),
        (memory.as_fd(), map(0, 8193, 0)),
        (memory.as_fd(), map(0, 4096, 4097)),
        (memory.as_fd(), map(0, 1 << 40, 0)),
    ];
    for (fd, map) in lies {
        refused(client.ask(&Ask::Map(map), &[fd]), errno::EINVAL);
    }
    // A descriptor where none belongs, and none where one does: the map is one of messages.
    let without = DmaMap {
        shared: false,
        ..map(0, 4096, 0)
    };
    client.ask(&Ask::Map(without), &[]).unwrap();
    refused(
        client.ask(&Ask::Map(map(0, 8192, 0)), &[memory.as_fd()]),
        errno::EEXIST,
    );
    client.ask(&Ask::UnmapAll, &[]).unwrap();
    client
        .ask(&Ask::Map(map(0x1000, 8192, 0)), &[memory.as_fd()])
        .unwrap();
    rustix::io::pwrite(&memory, b"from the guest", 0x10).unwrap();
    let copy = |client: &mut Connection, at: u64| {
        let write = Ask::Write {
            region: 1,
            offset: COPY,
            bytes: &at.to_ne_bytes(),
        };
        client.ask(&write, &[]).map(drop)
    };
    copy(&mut client, 0x1010).unwrap();
    let read = Ask::Read {
        region: 0,
        offset: 0,
        count: 14,
    };
    let (answer, _) = client.ask(&read, &[]).unwrap();
    assert_eq!(answer, Answer::Bytes(b"from the guest".to_vec()));
    // What is not mapped is not read.
    for at in [0, 0xFFF, 0x2FFF, 0x3000, u64::MAX] {
        assert!(
            matches!(copy(&mut client, at), Err(ConnectionError::Refused { .. })),
            "{at:#x}"
        );
    }
    // Nor what was unmapped, even while the device keeps what it had.
    client
        .ask(
            &Ask::Write {
                region: 1,
                offset: HOLD,
                bytes: &[1],
            },
            &[],
        )
        .unwrap();
    let (address, size) = (Iova(0x1000), 8192);
    client.ask(&Ask::Unmap { address, size }, &[]).unwrap();
    assert!(copy(&mut client, 0x1010).is_err());
}

/// Firmware has the same mapped again and again. With another file it is not the same.
#[test]
fn the_same_place_of_another_file_is_refused() {
    let served = Served::new();
    let mut client = served.connect();
    let [first, other] = ["first", "other"].map(|text| {
        let memory = memfd::create(text, 8192, Sealing::Fixed).unwrap();
        rustix::io::pwrite(&memory, format!("{text} in memory").as_bytes(), 0).unwrap();
        memory
    });
    let ram = Ask::Map(map(0x1000, 4096, 0));
    for _ in 0..3 {
        client.ask(&ram, &[first.as_fd()]).unwrap();
        refused(client.ask(&ram, &[other.as_fd()]), errno::EEXIST);
        let part = Ask::Map(map(0x1000, 4096, 4096));
        refused(client.ask(&part, &[first.as_fd()]), errno::EEXIST);
    }
    // What is no memory is not even looked at.
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    refused(client.ask(&ram, &[pipe.as_fd()]), errno::EINVAL);
    // The device has the first one.
    let write = Ask::Write {
        region: 1,
        offset: COPY,
        bytes: &0x1000_u64.to_ne_bytes(),
    };
    client.ask(&write, &[]).unwrap();
    let read = Ask::Read {
        region: 0,
        offset: 0,
        count: 14,
    };
    let (answer, _) = client.ask(&read, &[]).unwrap();
    assert_eq!(answer, Answer::Bytes(b"first in memor".to_vec()));
    // Once it is gone the other one may come.
    let (address, size) = (Iova(0x1000), 4096);
    client.ask(&Ask::Unmap { address, size }, &[]).unwrap();
    client.ask(&ram, &[other.as_fd()]).unwrap();
}

/// A monitor that truncates its memory under the device: zeroes, and the end of the link.
#[test]
fn memory_that_is_taken_back_ends_the_link_and_not_the_server() {
    let served = Served::new();
    let mut client = served.connect();
    let memory = memfd::create("guest", 8192, Sealing::Open).unwrap();
    client
        .ask(&Ask::Map(map(0, 8192, 0)), &[memory.as_fd()])
        .unwrap();
    client
        .ask(
            &Ask::Write {
                region: 0,
                offset: 0,
                bytes: b"before",
            },
            &[],
        )
        .unwrap();
    rustix::fs::ftruncate(&memory, 0).unwrap();
    let write = Ask::Write {
        region: 1,
        offset: COPY,
        bytes: &64u64.to_ne_bytes(),
    };
    let result = client.ask(&write, &[]);
    let gone = match result {
        // The answer may have been on its way.
        Ok(_) => settled(|| client.ask(&Ask::Info, &[]).is_err()),
        Err(_) => true,
    };
    assert!(gone);
    let mut next = served.connect();
    assert!(matches!(
        next.ask(&Ask::Info, &[]).unwrap().0,
        Answer::Info(_)
    ));
    assert!(
        served
            .reasons()
            .iter()
            .any(|why| why.contains("took back memory"))
    );
}

#[test]
fn interrupts_are_told_as_the_client_wants() {
    let served = Served::new();
    let mut client = served.connect();
    let raise = |client: &mut Connection, index: u32, number: u32| {
        let bytes = [index.to_ne_bytes(), number.to_ne_bytes()].concat();
        client
            .ask(
                &Ask::Write {
                    region: 1,
                    offset: RAISE,
                    bytes: &bytes,
                },
                &[],
            )
            .unwrap();
    };
    let events: Vec<EventFd> = (0..4).map(|_| EventFd::new().unwrap()).collect();
    let counts = || {
        events
            .iter()
            .map(|event| event.drain().unwrap())
            .collect::<Vec<_>>()
    };
    let fds: Vec<_> = events.iter().map(AsFd::as_fd).collect();
    // Nobody wants to know yet.
    raise(&mut client, MSIX, 0);
    let set = irqs(MSIX, IrqAction::Trigger, IrqData::Events, 0, 4);
    client.ask(&Ask::SetIrqs(&set), &fds).unwrap();
    (0..4).for_each(|number| raise(&mut client, MSIX, number));
    raise(&mut client, MSIX, 3);
    raise(&mut client, MSIX, 4);
    raise(&mut client, 9, 0);
    assert_eq!(counts(), [1, 1, 1, 2]);
    // What is masked is told later.
    let mask = irqs(
        MSIX,
        IrqAction::Mask,
        IrqData::Bool(vec![true, false]),
        1,
        2,
    );
    client.ask(&Ask::SetIrqs(&mask), &[]).unwrap();
    (0..4).for_each(|number| raise(&mut client, MSIX, number));
    assert_eq!(counts(), [1, 0, 1, 1]);
    let unmask = irqs(MSIX, IrqAction::Unmask, IrqData::None, 0, 4);
    client.ask(&Ask::SetIrqs(&unmask), &[]).unwrap();
    assert_eq!(counts(), [0, 1, 0, 0]);
    // The client has some happen, and some told nobody.
    let own = irqs(
        MSIX,
        IrqAction::Trigger,
        IrqData::Bool(vec![true, false, true]),
        0,
        3,
    );
    client.ask(&Ask::SetIrqs(&own), &[]).unwrap();
    assert_eq!(counts(), [1, 0, 1, 0]);
    let none = irqs(MSIX, IrqAction::Trigger, IrqData::Unassign, 0, 2);
    client.ask(&Ask::SetIrqs(&none), &[]).unwrap();
    (0..4).for_each(|number| raise(&mut client, MSIX, number));
    assert_eq!(counts(), [0, 0, 1, 1]);
    // A descriptor that could block changes nothing, whatever came with it.
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    let lies = irqs(MSIX, IrqAction::Trigger, IrqData::Events, 2, 2);
    refused(
        client.ask(&Ask::SetIrqs(&lies), &[fds[0], pipe.as_fd()]),
        errno::EINVAL,
    );
    let hear = irqs(MSIX, IrqAction::Mask, IrqData::Events, 2, 1);
    refused(
        client.ask(&Ask::SetIrqs(&hear), &[fds[0]]),
        errno::EOPNOTSUPP,
    );
    let off = irqs(MSIX, IrqAction::Trigger, IrqData::None, 0, 0);
    (2..4).for_each(|number| raise(&mut client, MSIX, number));
    client.ask(&Ask::SetIrqs(&off), &[]).unwrap();
    (0..4).for_each(|number| raise(&mut client, MSIX, number));
    assert_eq!(counts(), [0, 0, 1, 1]);
}

/// A line masks itself, and happens anew while the device holds it up.
#[test]
fn a_line_happens_until_the_device_lets_it_down() {
    let served = Served::new();
    let mut client = served.connect();
    let hold = |client: &mut Connection, up: u32| {
        let bytes = [INTX.to_ne_bytes(), (0x8000_0000 | up).to_ne_bytes()].concat();
        client
            .ask(
                &Ask::Write {
                    region: 1,
                    offset: RAISE,
                    bytes: &bytes,
                },
                &[],
            )
            .unwrap();
    };
    let event = EventFd::new().unwrap();
    let told = || event.drain().unwrap();
    // It is up before anybody wants to know.
    hold(&mut client, 1);
    let set = irqs(INTX, IrqAction::Trigger, IrqData::Events, 0, 1);
    client.ask(&Ask::SetIrqs(&set), &[event.as_fd()]).unwrap();
    assert_eq!(told(), 1);
    let unmask = irqs(INTX, IrqAction::Unmask, IrqData::None, 0, 1);
    client.ask(&Ask::SetIrqs(&unmask), &[]).unwrap();
    assert_eq!(told(), 1);
    hold(&mut client, 0);
    client.ask(&Ask::SetIrqs(&unmask), &[]).unwrap();
    assert_eq!(told(), 0);
    hold(&mut client, 1);
    assert_eq!(told(), 1);
}

#[test]
fn clients_come_one_after_the_other_and_the_device_stays() {
    let served = Served::new();
    let event = EventFd::new().unwrap();
    for round in 0..8u8 {
        let mut client = served.connect();
        let (answer, _) = client
            .ask(
                &Ask::Read {
                    region: 0,
                    offset: 0,
                    count: 1,
                },
                &[],
            )
            .unwrap();
        assert_eq!(answer, Answer::Bytes(vec![round]));
        let memory = memfd::create("guest", 4096, Sealing::Fixed).unwrap();
        client
            .ask(&Ask::Map(map(0, 4096, 0)), &[memory.as_fd()])
            .unwrap();
        let set = irqs(MSIX, IrqAction::Trigger, IrqData::Events, 0, 1);
        client.ask(&Ask::SetIrqs(&set), &[event.as_fd()]).unwrap();
        let next = [round + 1];
        client
            .ask(
                &Ask::Write {
                    region: 0,
                    offset: 0,
                    bytes: &next,
                },
                &[],
            )
            .unwrap();
    }
    let mut last = served.connect();
    last.ask(&Ask::Reset, &[]).unwrap();
    let (answer, _) = last
        .ask(
            &Ask::Read {
                region: 0,
                offset: 0,
                count: 1,
            },
            &[],
        )
        .unwrap();
    assert_eq!(answer, Answer::Bytes(vec![0]));
}

/// Memory without a descriptor: the device asks for it and writes to it by messages, while
/// the client asks too.
#[test]
fn memory_without_a_descriptor_is_read_and_written_by_messages() {
    let served = Served::new();
    let mut client = served.connect();
    let memory = Arc::new(Mutex::new(b"Hello, device.".to_vec()));
    memory.lock().unwrap().resize(64, 0);
    let guest = Arc::clone(&memory);
    client.answer_by(move |question| {
        let mut memory = guest.lock().unwrap();
        let start = usize::try_from(question.address.0 - 0x1000).unwrap();
        let place = memory.get_mut(start..start + question.count as usize);
        let place = place.ok_or(errno::EINVAL)?;
        match &question.write {
            Some(bytes) => place.copy_from_slice(bytes),
            None => return Ok(place.to_vec()),
        }
        Ok(Vec::new())
    });
    let read_only = DmaMap {
        writable: false,
        shared: false,
        ..map(0x3000, 0x1000, 0)
    };
    let ours = DmaMap {
        shared: false,
        ..map(0x1000, 0x1000, 0)
    };
    for map in [ours, read_only] {
        client.ask(&Ask::Map(map), &[]).unwrap();
    }
    let fetch = |client: &mut Connection, address: u64| {
        let (region, offset) = (1, FETCH);
        let bytes = &address.to_ne_bytes();
        client.ask(
            &Ask::Write {
                region,
                offset,
                bytes,
            },
            &[],
        )
    };
    let seen = |client: &mut Connection, want: &[u8]| {
        let (region, offset, count) = (0, 0, 14);
        let ask = Ask::Read {
            region,
            offset,
            count,
        };
        settled(|| match client.ask(&ask, &[]).unwrap().0 {
            Answer::Bytes(bytes) => bytes.starts_with(want),
            _ => false,
        })
    };
    fetch(&mut client, 0x1000).unwrap();
    assert!(seen(&mut client, b"Hello, device."));
    assert!(settled(|| {
        client.ask(&Ask::Info, &[]).unwrap();
        memory.lock().unwrap()[14..28] == *b".ecived ,olleH"
    }));
    // What the client refuses, and what may only be read, is an error of the device alone.
    fetch(&mut client, 0x1800).unwrap();
    assert!(seen(&mut client, &errno::EINVAL.to_ne_bytes()));
    refused(fetch(&mut client, 0x5000), errno::EINVAL);
    client.answer_by(|question| Ok(vec![b'x'; question.count as usize]));
    fetch(&mut client, 0x3000).unwrap();
    assert!(seen(&mut client, &u32::MAX.to_ne_bytes()));
    // A client that leaves with a question open leaves nothing.
    fetch(&mut client, 0x1000).unwrap();
    drop(client);
    let mut next = served.connect();
    refused(fetch(&mut next, 0x1000), errno::EINVAL);
}

/// Errors of a device are the client's to hear, and no line of the log.
#[test]
fn what_a_device_does_not_do_is_told() {
    let served = Served::new();
    let mut client = served.connect();
    refused(
        client.ask(
            &Ask::Read {
                region: 1,
                offset: 4095,
                count: 1,
            },
            &[],
        ),
        errno::EINVAL,
    );
    assert!(client.ask(&Ask::Info, &[]).is_ok());
}

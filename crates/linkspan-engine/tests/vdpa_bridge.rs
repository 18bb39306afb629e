//! A vDPA device passed on over vhost-user, against a model of the kernel.

use std::sync::Arc;

use linkspan_engine::Workers;
use linkspan_mem::Gpa;
use linkspan_sys::memfd::Sealing;
use linkspan_sys::vdpa::BackendFeatures;
use linkspan_testkit::census::settled;
use linkspan_testkit::disk::{SECTOR, expect_signal, room};
use linkspan_testkit::driven::{answered, ask};
use linkspan_testkit::front_end::state;
use linkspan_testkit::vdpa::{Card, Entropy, Machine, Quirks};
use linkspan_testkit::{
    Disk, DiskRing, Driven, FrontEnd, Io, Options, Refused, Served, SharedMemory,
};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire::ConfigHeader;
use linkspan_vhost::{ProtocolFeatures, VHOST_F_LOG_ALL};
use zerocopy::IntoBytes;

const FIRST: Io<'static> = Io::Read {
    sector: 0,
    len: SECTOR,
};

fn disk(queues: u16) -> (Machine, Served) {
    let machine = Machine::disk(queues, Quirks::default());
    let served = Served::bridge(&machine).unwrap();
    (machine, served)
}

/// A device whose kernel cannot suspend it, as VDUSE.
fn plain() -> Quirks {
    Quirks {
        backend_features: BackendFeatures::IOTLB_MSG_V2,
        ..Quirks::default()
    }
}

/// The next front end is served as if nothing had happened.
fn expect_serves(served: &Served) {
    served.forget_events();
    let mut disk = served.drive(1);
    let data = [0x5a; SECTOR];
    disk.rings[0].write(9, &data);
    assert_eq!(disk.rings[0].read(9, SECTOR), data);
    disk.shut_down();
    let (reason, fault) = served.next_end();
    assert!(!fault, "{reason}");
}

#[test]
fn a_front_end_writes_reads_stops_and_comes_back() {
    for quirks in [Quirks::default(), plain()] {
        let machine = Machine::disk(2, quirks);
        let served = Served::bridge(&machine).unwrap();
        for round in 0..3_u8 {
            let mut disk = served.drive(2);
            for (number, ring) in (0..).zip(&mut disk.rings) {
                let data = [round + 1; SECTOR];
                ring.write(number, &data);
                assert_eq!(ring.read(number, SECTOR), data);
                ring.flush();
            }
            assert!(machine.is_live());
            disk.shut_down();
            let (reason, fault) = served.next_end();
            assert!(!fault, "{reason}");
            assert!(settled(|| !machine.is_live() && machine.mapped().is_empty()));
        }
        served.stop();
        assert!(machine.is_empty());
    }
}

/// The front end dies with rings that run: the next one finds a device at rest.
#[test]
fn a_front_end_that_leaves_at_once_leaves_nothing() {
    let (machine, served) = disk(2);
    for _ in 0..3 {
        let mut disk = served.drive(2);
        disk.rings[0].add(FIRST);
        disk.rings[0].kick();
        drop(disk);
        served.next_end();
        assert!(settled(|| !machine.is_live() && machine.mapped().is_empty()));
    }
    expect_serves(&served);
    served.stop();
    assert!(machine.is_empty());
}

#[test]
fn our_own_driver_runs_over_the_bridge() {
    let (_machine, served) = disk(2);
    let mut driven = Driven::new(&served.socket(), 2).unwrap();
    for queue in &mut driven.queues {
        for number in 0..50 {
            ask(queue, number);
            assert_eq!(answered(queue).0, number);
        }
    }
    drop(driven);
    served.stop();
}

/// Kicks and calls go to and come from the kernel: after the start there is no call
/// of ours, whatever the driver does.
#[test]
fn the_data_path_makes_no_call_of_ours() {
    let (machine, served) = disk(1);
    let mut disk = served.drive(1);
    disk.front.sync().unwrap();
    machine.calls();
    for number in 0..500 {
        disk.rings[0].read(number, SECTOR);
    }
    assert_eq!(machine.calls(), Vec::<String>::new());
    disk.shut_down();
}

/// There is no dirty log, so no migration, and it is said when features are
/// agreed upon.
#[test]
fn migration_is_refused_by_name_at_negotiation() {
    let (_machine, served) = disk(1);
    let front = served.connect();
    let offered = front.ask(Request::GetFeatures, &[], &[]).unwrap();
    let offered = u64::from_ne_bytes(offered.try_into().unwrap());
    assert_eq!(offered & VHOST_F_LOG_ALL, 0);
    assert_eq!(offered & 1 << 33, 0, "ACCESS_PLATFORM is ours to deal with");
    let protocol = front.ask(Request::GetProtocolFeatures, &[], &[]).unwrap();
    let protocol = u64::from_ne_bytes(protocol.try_into().unwrap());
    let protocol = ProtocolFeatures::from_bits_retain(protocol);
    for hidden in [
        ProtocolFeatures::LOG_SHMFD,
        ProtocolFeatures::INFLIGHT_SHMFD,
        ProtocolFeatures::DEVICE_STATE,
    ] {
        assert!(!protocol.contains(hidden));
    }
    front
        .tell(
            Request::SetFeatures,
            (offered | VHOST_F_LOG_ALL).as_bytes(),
            &[],
        )
        .unwrap();
    front.expect_closed();
    let (reason, _) = served.next_end();
    assert!(reason.contains("0x4000000"), "{reason}");
}

/// QEMU bc85aae420, and vdpa-dev to this day: a start that failed was success.
#[test]
fn a_start_that_fails_is_acknowledged_with_an_error() {
    for (call, quirks) in [
        ("SET_STATUS 15", Quirks::default()),
        ("SET_VRING_NUM", plain()),
        ("SET_VRING_ENABLE", Quirks::default()),
    ] {
        let machine = Machine::disk(1, quirks);
        let served = Served::bridge(&machine).unwrap();
        machine.refuse(call, 5);
        let error = Disk::bring_up(served.connect(), &Options::default(), 1, 64).unwrap_err();
        assert!(matches!(error, Refused::Nack { .. }), "{call}: {error}");
        machine.allow();
        expect_serves(&served);
        // Without acknowledgements the connection ends.
        machine.refuse(call, 5);
        let options = Options {
            reply_ack: false,
            ..Options::default()
        };
        let front = served.connect();
        if let Ok(disk) = Disk::bring_up(front, &options, 1, 64) {
            disk.front.expect_closed();
        }
        machine.allow();
        expect_serves(&served);
        served.stop();
        assert!(machine.is_empty());
    }
}

/// The same by SET_STATUS, as QEMU starts devices; before it nothing runs.
#[test]
fn set_status_starts_the_device_and_says_if_that_failed() {
    let (machine, served) = disk(1);
    let mut front = served.connect();
    let memory = SharedMemory::new(room(1, 64), Gpa(0x10_0000), Sealing::Fixed);
    front.negotiate(&Options::default()).unwrap();
    let status =
        |front: &FrontEnd, status: u64| front.tell(Request::SetStatus, status.as_bytes(), &[]);
    status(&front, 0).unwrap();
    status(&front, 11).unwrap();
    front.share(std::slice::from_ref(&memory)).unwrap();
    let mut ring = DiskRing::new(&memory, 0, 64, front.features());
    front.start(&ring).unwrap();
    front.enable(0, true).unwrap();
    assert!(!machine.is_live());
    machine.refuse("SET_STATUS 15", 5);
    let error = status(&front, 15).unwrap_err();
    assert!(matches!(
        error,
        Refused::Nack {
            request: Request::SetStatus
        }
    ));
    assert!(!machine.is_live());
    machine.allow();
    status(&front, 15).unwrap();
    assert!(machine.is_live());
    ring.add(FIRST);
    ring.kick();
    ring.wait();
    status(&front, 0).unwrap();
    assert!(!machine.is_live());
}

/// QEMU pauses a VM: rings stop one after the other, and say where they are.
#[test]
fn rings_that_are_stopped_say_where_they_are_and_go_on_from_there() {
    for quirks in [Quirks::default(), plain()] {
        let machine = Machine::disk(3, quirks);
        let served = Served::bridge(&machine).unwrap();
        let mut disk = served.drive(3);
        for round in 0..3 {
            for ring in &mut disk.rings {
                for number in 0..=round {
                    ring.read(number, SECTOR);
                }
            }
            for ring in &disk.rings {
                assert_eq!(disk.front.stop(ring.index()).unwrap(), ring.base());
            }
            assert!(!machine.is_live());
            for ring in &disk.rings {
                disk.front.start(ring).unwrap();
            }
        }
        disk.rings[2].read(7, SECTOR);
        disk.shut_down();
        served.stop();
    }
}

/// One ring is stopped for good; the others go on without it.
#[test]
fn one_ring_stops_and_the_others_go_on() {
    let (machine, served) = disk(2);
    let mut disk = served.drive(2);
    disk.rings[1].read(1, SECTOR);
    disk.front.stop(0).unwrap();
    disk.rings[1].read(2, SECTOR);
    assert!(machine.is_live());
    disk.front.start(&disk.rings[0]).unwrap();
    disk.rings[0].read(3, SECTOR);
    disk.rings[1].read(4, SECTOR);
    disk.shut_down();
}

#[test]
fn a_ring_that_is_disabled_rests_and_goes_on() {
    let (_machine, served) = disk(2);
    let mut disk = served.drive(2);
    for _ in 0..5 {
        disk.front.enable(0, false).unwrap();
        disk.rings[0].add(FIRST);
        disk.rings[0].kick();
        disk.rings[1].read(1, SECTOR);
        disk.front.sync().unwrap();
        assert_eq!(disk.rings[0].poll(), None);
        disk.front.enable(0, true).unwrap();
        disk.rings[0].wait();
    }
    disk.shut_down();
}

/// QEMU 494c50dcc0: mapped when memory is known, not when the device starts; only
/// what changes is mapped and unmapped, under rings that run.
#[test]
fn memory_is_mapped_as_it_comes_and_goes_under_running_rings() {
    for quirks in [Quirks::default(), plain()] {
        let persists = quirks
            .backend_features
            .contains(BackendFeatures::IOTLB_PERSIST);
        let machine = Machine::disk(1, quirks);
        let served = Served::bridge(&machine).unwrap();
        let memory = SharedMemory::new(room(1, 64), Gpa(0x10_0000), Sealing::Fixed);
        let more = SharedMemory::new(1 << 16, Gpa(0x100_0000), Sealing::Fixed);
        let options = Options {
            mem_slots: true,
            ..Options::default()
        };
        let mut front = served.connect();
        front.negotiate(&options).unwrap();
        front.share(std::slice::from_ref(&memory)).unwrap();
        assert_eq!(machine.mapped().len(), usize::from(persists));
        let mut ring = DiskRing::new(&memory, 0, 64, front.features());
        front.start(&ring).unwrap();
        front.enable(0, true).unwrap();
        ring.read(0, SECTOR);
        for _ in 0..3 {
            front.add(&more).unwrap();
            assert!(machine.mapped().contains(&(0, 0x100_0000, 1 << 16)));
            ring.read(1, SECTOR);
            front.remove(&more).unwrap();
            assert_eq!(machine.mapped().len(), 1);
            ring.read(2, SECTOR);
        }
        // A change that makes no sense leaves all as it was.
        machine.refuse("IOTLB_UPDATE 0 0x1000000", 12);
        front.add(&more).unwrap_err();
        machine.allow();
        ring.read(3, SECTOR);
        drop(front);
        served.stop();
        assert!(machine.is_empty());
    }
}

/// QEMU 421f45d03f wrote the cached space, 6ae72f609a read a stale one.
#[test]
fn configuration_is_read_each_time_and_only_written_bytes_are_written() {
    let (machine, served) = disk(1);
    let mut front = served.connect();
    front.negotiate(&Options::default()).unwrap();
    let config = |offset: u32, size: u32, bytes: &[u8]| {
        let header = ConfigHeader {
            offset,
            size,
            flags: 0,
        };
        [header.as_bytes(), bytes].concat()
    };
    machine.calls();
    for _ in 0..2 {
        let reply = front.ask(Request::GetConfig, &config(0, 60, &[0; 60]), &[]);
        assert_eq!(reply.unwrap().len(), 12 + 60);
        assert_eq!(machine.calls(), ["GET_CONFIG 60 at 0"]);
    }
    front
        .tell(Request::SetConfig, &config(32, 1, &[1]), &[])
        .unwrap();
    assert_eq!(machine.calls(), ["SET_CONFIG [01] at 32"]);
}

#[test]
fn a_change_of_configuration_reaches_the_front_end() {
    let (machine, served) = disk(1);
    let disk = served.drive(1);
    let requests = disk.front.listen_to_requests().unwrap();
    machine.config_changed();
    assert!(settled(|| requests.has_message()));
    disk.shut_down();
}

/// A device that breaks ends the connection; the next one finds it opened anew.
#[test]
fn a_device_that_breaks_is_there_for_the_next_front_end() {
    let (machine, served) = disk(1);
    let disk = served.drive(1);
    machine.break_device();
    let (reason, fault) = served.next_end();
    assert!(fault && reason.contains("broken"), "{reason}");
    drop(disk);
    expect_serves(&served);
    served.stop();
    assert!(machine.is_empty());
}

/// QEMU b276524386 and 9ed62809b6 lost the call descriptor; it can be another one
/// under a ring that runs, and outlives a restart of the device.
#[test]
fn the_last_call_descriptor_counts_whatever_restarts() {
    let (_machine, served) = disk(2);
    let mut disk = served.drive(2);
    disk.rings[1].read(0, SECTOR);
    let call = linkspan_sys::EventFd::new().unwrap();
    disk.front
        .set_event(Request::SetVringCall, 1, &call)
        .unwrap();
    disk.rings[1].call = call;
    disk.rings[1].read(1, SECTOR);
    // The other ring stops, so the device is started anew without it.
    disk.front.stop(0).unwrap();
    disk.rings[1].read(2, SECTOR);
    let kick = linkspan_sys::EventFd::new().unwrap();
    disk.front
        .set_event(Request::SetVringKick, 1, &kick)
        .unwrap();
    disk.rings[1].kick = kick;
    disk.rings[1].read(3, SECTOR);
}

/// QEMU 1ba9a52203: a front end that does not wait for SET_VRING_CALL loses what went
/// to the old descriptor meanwhile.
#[test]
fn another_call_descriptor_is_signalled_once() {
    let (_machine, served) = disk(1);
    let mut disk = served.drive(1);
    disk.rings[0].read(0, SECTOR);
    disk.rings[0].add(FIRST);
    disk.rings[0].kick();
    // Its answer may go here or there.
    let call = linkspan_sys::EventFd::new().unwrap();
    disk.front
        .set_event(Request::SetVringCall, 0, &call)
        .unwrap();
    expect_signal(&call, "it was not signalled");
    disk.rings[0].call = call;
    disk.rings[0].wait();
}

/// The front end takes its memory back (hostile-peer rule 1).
#[test]
fn memory_that_shrinks_ends_the_connection() {
    let (machine, served) = disk(1);
    let memory = SharedMemory::new(room(1, 64), Gpa(0x10_0000), Sealing::Open);
    let front = served.connect();
    let mut disk = Disk::bring_up_in(front, &Options::default(), &memory, 1, 64).unwrap();
    disk.rings[0].read(0, SECTOR);
    memory.truncate(0);
    disk.rings[0].kick();
    drop(disk);
    served.next_end();
    assert!(settled(|| !machine.is_live() && machine.mapped().is_empty()));
    expect_serves(&served);
}

/// A ring outside the memory is refused before the kernel hears of it.
#[test]
fn a_ring_outside_the_memory_is_refused() {
    let (machine, served) = disk(1);
    let mut front = served.connect();
    let memory = SharedMemory::new(room(1, 64), Gpa(0x10_0000), Sealing::Fixed);
    front.negotiate(&Options::default()).unwrap();
    front.share(std::slice::from_ref(&memory)).unwrap();
    let ring = DiskRing::new(&memory, 0, 64, front.features());
    machine.calls();
    front
        .tell(Request::SetVringNum, &state(0, 64), &[])
        .unwrap();
    let mut address = ring.address();
    address.used = memory.user(memory.len() - 8).0;
    front
        .tell(Request::SetVringAddr, address.as_bytes(), &[])
        .unwrap();
    front.enable(0, true).unwrap();
    let error = front
        .set_event(Request::SetVringKick, 0, &ring.kick)
        .unwrap_err();
    assert!(matches!(error, Refused::Nack { .. }));
    assert_eq!(machine.calls(), Vec::<String>::new());
}

/// QEMU 77812aa7b1 leaves out what is no whole pages; the kernel would map others.
#[test]
fn memory_that_no_pages_can_hold_is_refused_and_not_left_out() {
    let (machine, served) = disk(1);
    let mut front = served.connect();
    front.negotiate(&Options::default()).unwrap();
    for guest in [0x10_0008, 0x10_0800] {
        let memory = SharedMemory::new(room(1, 64), Gpa(guest), Sealing::Fixed);
        let error = front.share(std::slice::from_ref(&memory)).unwrap_err();
        assert!(matches!(error, Refused::Nack { .. }));
    }
    assert!(machine.mapped().is_empty());
}

/// A device type that no driver of ours knows: entropy.
#[test]
fn a_device_type_without_a_driver_of_ours_runs_the_whole_way() {
    let workers = Arc::new(Workers::new(1).unwrap());
    let machine = Machine::new(Arc::new(Entropy), workers, Quirks::default());
    let served = Served::bridge(&machine).unwrap();
    let mut front = served.connect();
    let memory = SharedMemory::new(room(1, 64), Gpa(0x10_0000), Sealing::Fixed);
    front.negotiate(&Options::default()).unwrap();
    front.share(std::slice::from_ref(&memory)).unwrap();
    let mut ring = DiskRing::new(&memory, 0, 64, front.features());
    front.start(&ring).unwrap();
    front.enable(0, true).unwrap();
    // A disk's identity is a request for bytes as far as this device can tell.
    ring.add(Io::GetId);
    ring.kick();
    let done = ring.wait();
    assert_eq!(done.data[..4], [1, 2, 3, 4]);
    drop(front);
    served.stop();
    assert!(machine.is_empty());
}

const CTRL_VQ: u64 = 1 << 17;
const MQ: u64 = 1 << 22;
const CTRL_MAC: u64 = 1 << 23;

fn card(pairs: u16, own_space: bool) -> (Arc<Card>, Machine, Served) {
    let card = Arc::new(Card::new(pairs, CTRL_VQ | MQ | CTRL_MAC | 1 << 5));
    let mut groups = vec![0; usize::from(2 * pairs) + 1];
    groups[usize::from(2 * pairs)] = u32::from(own_space);
    let quirks = Quirks {
        groups,
        address_spaces: 2,
        ..Quirks::default()
    };
    let workers = Arc::new(Workers::new(1).unwrap());
    let device = Arc::clone(&card) as Arc<dyn linkspan_engine::Device>;
    let machine = Machine::new(device, workers, quirks);
    let served = Served::bridge(&machine).unwrap();
    (card, machine, served)
}

/// Brings up all data rings of a card, as QEMU does; the first pair is enabled.
fn bring_up(served: &Served, pairs: u16) -> (FrontEnd, Vec<DiskRing>) {
    let mut front = served.connect();
    let memory = SharedMemory::new(room(2 * pairs + 1, 64), Gpa(0x10_0000), Sealing::Fixed);
    front.negotiate(&Options::default()).unwrap();
    front.share(std::slice::from_ref(&memory)).unwrap();
    let rings: Vec<_> = (0..2 * pairs)
        .map(|index| DiskRing::new(&memory, index, 64, front.features()))
        .collect();
    for ring in &rings {
        front.start(ring).unwrap();
    }
    for ring in 0..2 {
        front.enable(ring, true).unwrap();
    }
    (front, rings)
}

#[test]
fn enabled_pairs_and_the_address_become_commands_on_the_control_queue() {
    let (card, machine, served) = card(4, true);
    let (front, _rings) = bring_up(&served, 4);
    assert_ne!(front.features() & (CTRL_VQ | MQ), 0);
    assert!(machine.is_live());
    card.commands();
    for ring in 2..6 {
        front.enable(ring, true).unwrap();
    }
    assert_eq!(card.commands(), [vec![4, 0, 2, 0], vec![4, 0, 3, 0]]);
    front.enable(5, false).unwrap();
    front.enable(4, false).unwrap();
    assert_eq!(card.commands(), [vec![4, 0, 2, 0]]);
    let header = ConfigHeader {
        offset: 0,
        size: 6,
        flags: 0,
    };
    let body = [header.as_bytes(), &[2, 9, 9, 9, 9, 9]].concat();
    front.tell(Request::SetConfig, &body, &[]).unwrap();
    assert_eq!(card.commands(), [vec![1, 1, 2, 9, 9, 9, 9, 9]]);
    // The control queue's memory is in a space of its own.
    let spaces: Vec<_> = machine.mapped().iter().map(|(asid, ..)| *asid).collect();
    assert_eq!(spaces.iter().filter(|asid| **asid == 1).count(), 1);
    drop(front);
    served.stop();
    assert!(machine.is_empty());
}

/// The next command must not take the late answer to this one for its own, so the device
/// is started anew, with an empty queue.
#[test]
fn a_command_that_is_not_answered_is_refused_and_the_next_one_has_its_own_answer() {
    let (card, machine, served) = card(2, true);
    let (front, _rings) = bring_up(&served, 2);
    let address = |last: u8| {
        let header = ConfigHeader {
            offset: 0,
            size: 6,
            flags: 0,
        };
        let body = [header.as_bytes(), &[2, 9, 9, 9, 9, last]].concat();
        front.tell(Request::SetConfig, &body, &[])
    };
    card.commands();
    machine.calls();
    card.answer_next(None);
    let error = address(1).unwrap_err();
    assert!(matches!(error, Refused::Nack { .. }), "{error}");
    // It answers again, and does not want the next one.
    assert!(settled(|| machine.is_live()));
    let calls = machine.calls();
    assert!(calls.contains(&"SET_STATUS 0".to_owned()), "{calls:?}");
    card.answer_next(Some(1));
    let error = address(2).unwrap_err();
    assert!(matches!(error, Refused::Nack { .. }), "{error}");
    address(3).unwrap();
    let told = [1, 2, 3].map(|last| vec![1, 1, 2, 9, 9, 9, 9, last]);
    assert_eq!(card.commands(), told);
    // What it is to do counts for pairs too, and the device that starts anew has the
    // address that it was given.
    card.answer_next(None);
    front.enable(2, true).unwrap_err();
    let mut commands = Vec::new();
    assert!(settled(|| {
        commands.extend(card.commands());
        commands == [vec![4, 0, 2, 0], told[2].clone()]
    }));
    front.enable(2, true).unwrap();
    front.enable(3, true).unwrap();
    assert_eq!(card.commands(), [vec![4, 0, 2, 0]]);
    drop(front);
    served.stop();
    assert!(machine.is_empty());
}

/// A front end without an emulation of the control queue, such as our own driver.
#[test]
fn a_front_end_that_brings_a_control_queue_has_the_devices_own() {
    let (card, machine, served) = card(2, true);
    let (front, rings) = bring_up(&served, 2);
    card.commands();
    let memory = rings[0].memory();
    let mut control = DiskRing::new(memory, 4, 64, front.features());
    front.start(&control).unwrap();
    front.enable(4, true).unwrap();
    // Any bytes are a command to this card.
    control.add(Io::Flush);
    control.kick();
    assert!(settled(|| !card.commands().is_empty()));
    assert!(machine.is_live());
    // The bridge gives no command of its own any more.
    front.enable(2, true).unwrap();
    front.enable(3, true).unwrap();
    assert_eq!(card.commands(), Vec::<Vec<u8>>::new());
    front.stop(4).unwrap();
    assert!(settled(|| card.commands() == [vec![4, 0, 2, 0]]));
    drop(front);
    served.stop();
    assert!(machine.is_empty());
}

/// QEMU 2c66de61f8 and what it says of the control queue: it is enabled first, and
/// data queues when it has said what they do.
#[test]
fn the_control_queue_is_enabled_first() {
    let (_card, machine, served) = card(1, true);
    machine.calls();
    let (front, _rings) = bring_up(&served, 1);
    let calls = machine.calls();
    let at = |call: &str| calls.iter().rposition(|it| it == call).expect(call);
    assert!(at("SET_VRING_ENABLE 2 true") < at("SET_STATUS 15"));
    assert!(at("SET_STATUS 15") < at("SET_VRING_ENABLE 0 true"));
    drop(front);
}

#[test]
fn an_mtu_is_a_limit_of_the_guest_where_the_device_has_none() {
    let (_card, machine, served) = card(2, true);
    let (front, _rings) = bring_up(&served, 2);
    let mtu = |bytes: u64| front.tell(Request::NetSetMtu, bytes.as_bytes(), &[]);
    mtu(9000).unwrap();
    drop(front);
    served.stop();
    assert!(machine.is_empty());
}

#[test]
fn without_an_address_space_of_its_own_control_queue_and_mq_are_hidden() {
    let (card, machine, served) = card(2, false);
    let (front, _rings) = bring_up(&served, 1);
    assert_eq!(front.features() & (CTRL_VQ | MQ | CTRL_MAC), 0);
    assert_eq!(machine.accepted() & (CTRL_VQ | MQ | CTRL_MAC), 0);
    assert_eq!(card.commands(), Vec::<Vec<u8>>::new());
    drop(front);
}

/// What the front end says, and what becomes calls of the device, can be seen; so can what
/// was agreed upon.
#[test]
fn messages_and_calls_are_said_in_order() {
    let (_machine, served) = disk(1);
    let disk = served.drive(1);
    let endpoint = served.server().endpoint();
    let view = endpoint.view();
    assert!(view.features.is_some() && view.regions.len() == 1);
    let ring = &view.rings[0];
    assert!(ring.enabled && ring.counters.is_none());
    let said = endpoint.messages().last(0);
    let at = |text: &str| {
        let place = said.iter().position(|it| it.text.contains(text));
        place.unwrap_or_else(|| panic!("{text}: {said:#?}"))
    };
    assert!(at("VHOST_USER_SET_MEM_TABLE") < at("VHOST_IOTLB_UPDATE of"));
    assert!(at("VHOST_IOTLB_UPDATE of") < at("VHOST_VDPA_SET_STATUS to 0xf"));
    assert!(said[at("VHOST_USER_GET_FEATURES")].by_peer);
    disk.shut_down();
    served.next_end();
    served.stop();
}

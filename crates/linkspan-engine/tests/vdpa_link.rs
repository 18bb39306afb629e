//! A disk driven over vhost-vdpa, against a model of the kernel.

use std::io;

use linkspan_engine::Phase;
use linkspan_engine::vdpa::{VdpaDevice, VdpaError};
use linkspan_mem::Iova;
use linkspan_sys::vdpa::BackendFeatures;
use linkspan_testkit::PATIENCE;
use linkspan_testkit::driven::{answered, ask};
use linkspan_testkit::vdpa::{Machine, Quirks};
use linkspan_testkit::{Driven, census::settled};
use linkspan_vhost::vdpa::FactsError;

/// A device that can do nothing beside what every one can.
fn plain() -> Quirks {
    Quirks {
        backend_features: BackendFeatures::IOTLB_MSG_V2,
        ..Quirks::default()
    }
}

#[test]
fn a_disk_is_driven_and_nothing_is_left() {
    for quirks in [Quirks::default(), plain()] {
        let machine = Machine::disk(2, quirks);
        for _ in 0..3 {
            let mut driven = Driven::vdpa(machine.opener(), 2).unwrap();
            for queue in &mut driven.queues {
                for number in 0..20 {
                    ask(queue, number);
                    assert_eq!(answered(queue).0, number);
                }
            }
            driven.expect_phase(Phase::Running);
            assert!(machine.is_live());
            drop(driven);
            assert!(machine.is_empty());
        }
    }
}

/// vdpa_sim refuses a driver that does not take it.
#[test]
fn access_platform_is_set_towards_the_device() {
    let machine = Machine::disk(1, Quirks::default());
    let driven = Driven::vdpa(machine.opener(), 1).unwrap();
    assert_ne!(machine.accepted() & 1 << 33, 0);
    drop(driven);
}

/// Cloud Hypervisor takes the number of queues from its user (vdpa.rs), QEMU
/// crashed over more than 1024.
#[test]
fn queue_counts_that_cannot_be_are_refused() {
    for queues in [0, 1025, u32::MAX] {
        let quirks = Quirks {
            queues: Some(queues),
            ..Quirks::default()
        };
        let machine = Machine::disk(1, quirks);
        let error = Driven::vdpa(machine.opener(), 1).unwrap_err();
        let VdpaError::Facts(error) = error else {
            panic!("{error}");
        };
        assert_eq!(error, FactsError::Queues { queues });
        assert!(machine.is_empty());
    }
    let machine = Machine::disk(1, Quirks::default());
    let error = Driven::vdpa(machine.opener(), 2).unwrap_err();
    let (wanted, max) = (2, 1);
    assert!(matches!(error, VdpaError::Queues { wanted: w, max: m } if (w, m) == (wanted, max)));
}

#[test]
fn a_device_has_one_user() {
    let machine = Machine::disk(1, Quirks::default());
    let driven = Driven::vdpa(machine.opener(), 1).unwrap();
    let error = Driven::vdpa(machine.opener(), 1).unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
    drop(driven);
    assert!(machine.is_empty());
}

/// Cloud Hypervisor does not read FEATURES_OK back; QEMU printed a failed start.
#[test]
fn a_device_that_does_not_agree_or_start_is_named_and_left_as_it_was() {
    let refuses = Quirks {
        refuses_features: true,
        ..Quirks::default()
    };
    let machine = Machine::disk(1, refuses);
    let error = Driven::vdpa(machine.opener(), 1).unwrap_err();
    assert!(
        matches!(error, VdpaError::Refused { status: 3, .. }),
        "{error}"
    );
    assert!(machine.is_empty());
    let broken = Quirks {
        does_not_start: true,
        ..Quirks::default()
    };
    let machine = Machine::disk(1, broken);
    let error = Driven::vdpa(machine.opener(), 1).unwrap_err();
    assert!(matches!(error, VdpaError::NotStarted { .. }), "{error}");
    assert!(machine.is_empty());
}

/// QEMU 2c66de61f8: VDUSE never hears of a queue that is enabled later.
#[test]
fn a_device_that_is_deaf_after_driver_ok_serves() {
    let quirks = Quirks {
        deaf_to_late_enable: true,
        ..plain()
    };
    let machine = Machine::disk(1, quirks);
    let mut driven = Driven::vdpa(machine.opener(), 1).unwrap();
    ask(&mut driven.queues[0], 3);
    assert_eq!(answered(&mut driven.queues[0]).0, 3);
}

/// QEMU c672f348cb: the range was not asked for by whoever mapped.
#[test]
fn memory_that_the_device_does_not_reach_is_named_before_it_is_mapped() {
    let quirks = Quirks {
        iova: (Iova(0), Iova(0xffff)),
        ..Quirks::default()
    };
    let machine = Machine::disk(1, quirks);
    let error = Driven::vdpa(machine.opener(), 1).unwrap_err();
    assert!(error.to_string().contains("0xffff"), "{error}");
    assert!(!machine.calls().iter().any(|call| call.starts_with("IOTLB")));
    assert!(machine.is_empty());
}

/// A physical parent pins memory. Linux says EFAULT where it means ENOMEM.
#[test]
fn memory_that_cannot_be_pinned_says_what_to_do() {
    let machine = Machine::disk(1, Quirks::default());
    for errno in [12, 14] {
        machine.refuse("IOTLB_UPDATE", errno);
        let error = Driven::vdpa(machine.opener(), 1).unwrap_err();
        assert!(error.hint().unwrap().contains("RLIMIT_MEMLOCK"), "{error}");
        assert!(machine.is_empty());
    }
}

/// QEMU 259f3acc1c: a configuration interrupt; 6ae72f609a: read each time.
#[test]
fn a_change_of_configuration_is_read_from_the_device() {
    let machine = Machine::disk(1, Quirks::default());
    let driven = Driven::vdpa(machine.opener(), 1).unwrap();
    machine.calls();
    machine.config_changed();
    let read = || {
        machine
            .calls()
            .iter()
            .any(|call| call.starts_with("GET_CONFIG"))
    };
    assert!(settled(read), "nobody reads");
    drop(driven);
}

#[test]
fn a_device_that_breaks_is_opened_again_and_the_queue_goes_on() {
    let machine = Machine::disk(1, Quirks::default());
    let mut driven = Driven::vdpa(machine.opener(), 1).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    for round in 0..3 {
        ask(&mut driven.queues[0], round);
        assert_eq!(answered(&mut driven.queues[0]).0, round);
        machine.set_absent(true);
        machine.break_device();
        driven.expect_phase(Phase::Reconnecting);
        // It is closed, so that the kernel can take it away, and it comes back.
        assert!(settled(|| machine.is_empty()));
        machine.set_absent(false);
        ask(&mut driven.queues[0], 9);
        assert_eq!(answered(&mut driven.queues[0]).0, 9);
        driven.expect_phase(Phase::Running);
        assert!(std::time::Instant::now() < deadline);
    }
    assert_eq!(driven.link.endpoint().generation(), 4);
    drop(driven);
    assert!(machine.is_empty());
}

/// The facts of a device are asked for once and not believed.
#[test]
fn what_a_device_says_is_checked() {
    let machine = Machine::disk(3, Quirks::default());
    let device = VdpaDevice::new(machine.open().unwrap()).unwrap();
    assert_eq!(
        (device.facts().queues, device.facts().queue_sizes.len()),
        (3, 3)
    );
    assert_eq!(device.facts().queue_size(3, 0).unwrap(), 256);
    drop(device);
    machine.refuse("GET_DEVICE_ID", 5);
    let error = VdpaDevice::new(machine.open().unwrap()).unwrap_err();
    let text = io::Error::from_raw_os_error(5).to_string();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains(&text), "{error}: {source}");
}

/// Pages that a device has for that are where its rings are kicked, and they go with
/// it, whoever still has a queue: the kernel keeps a device for whoever maps it.
#[test]
#[cfg(target_arch = "x86_64")]
fn rings_are_kicked_on_pages_of_the_device() {
    let quirks = Quirks {
        doorbells: true,
        ..Quirks::default()
    };
    let machine = Machine::disk(1, quirks);
    let mut driven = Driven::vdpa(machine.opener(), 1).unwrap();
    for round in 0..3 {
        assert_eq!(Machine::doorbells(), 1);
        ask(&mut driven.queues[0], round);
        assert!(machine.kicked(0), "round {round}");
        machine.take_kick(0);
        assert_eq!(answered(&mut driven.queues[0]).0, round);
        machine.set_absent(true);
        machine.break_device();
        driven.expect_phase(Phase::Reconnecting);
        // The queue has not looked.
        assert!(settled(|| machine.is_empty() && Machine::doorbells() == 0));
        machine.set_absent(false);
        let news = driven.queues[0].answer();
        assert!(news.unwrap().is_none());
        driven.expect_phase(Phase::Running);
    }
    let Driven { queues, link } = driven;
    drop(link);
    assert_eq!(Machine::doorbells(), 0);
    drop(queues);
    assert!(machine.is_empty());
}

/// A page that cannot be had costs nothing: the eventfd is there.
#[test]
fn a_device_without_pages_is_kicked_by_its_descriptor() {
    let quirks = Quirks {
        doorbells: true,
        ..Quirks::default()
    };
    let machine = Machine::disk(1, quirks);
    machine.refuse("MMAP", 12);
    let mut driven = Driven::vdpa(machine.opener(), 1).unwrap();
    ask(&mut driven.queues[0], 3);
    assert_eq!(answered(&mut driven.queues[0]).0, 3);
}

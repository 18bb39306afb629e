//! Used rings that a device broke. Each retires the driver's queue.

mod rig;

use linkspan_mem::{UsedElement, Window};
use linkspan_virtio::NotQuiet;
use linkspan_virtio::split::{AddError, SplitDriver, UsedError};
use rig::{ALL, BASE, Rig, buffer};

/// A driver with two published chains, 0 of 4 writable bytes in two descriptors
/// and 2 with none, and a third that is not published.
fn busy_driver(rig: &Rig) -> SplitDriver<Window> {
    let mut driver = rig.driver(ALL);
    driver
        .add(&[buffer(BASE, 1)], &[buffer(BASE, 4)], None)
        .unwrap();
    driver.add(&[buffer(BASE, 1)], &[], None).unwrap();
    driver.publish().unwrap();
    driver.add(&[buffer(BASE, 1)], &[], None).unwrap();
    driver
}

fn use_first(element: UsedElement) -> Result<(), UsedError> {
    let rig = Rig::new(8);
    let mut driver = busy_driver(&rig);
    rig.ring().set_used_element(0, element);
    rig.ring().publish_used_index(1);
    driver.refresh()?;
    let result = driver.pop();
    if let Err(error) = result {
        assert_retired(&mut driver, error);
    }
    result.map(|_| ())
}

fn assert_retired(driver: &mut SplitDriver<Window>, error: UsedError) {
    let available = driver.ring().available_index();
    assert_eq!(driver.retired(), Some(error));
    assert_eq!(driver.refresh(), Err(error));
    assert_eq!(driver.pop(), Err(error));
    assert_eq!(driver.publish(), Err(error));
    assert_eq!(driver.kick_wanted(), Err(error));
    assert_eq!(driver.arm(), Err(error));
    assert_eq!(driver.disarm(), Err(error));
    assert_eq!(
        driver.add(&[buffer(BASE, 1)], &[], None),
        Err(AddError::Retired(error))
    );
    assert_eq!(driver.snapshot(), Err(NotQuiet::Retired));
    assert_eq!(driver.ring().available_index(), available);
}

#[test]
fn a_used_index_that_jumps_or_goes_back() {
    for index in [3, u16::MAX] {
        let rig = Rig::new(8);
        let mut driver = busy_driver(&rig);
        rig.ring().publish_used_index(index);
        let error = UsedError::UsedJump {
            index,
            next: 0,
            outstanding: 2,
        };
        assert_eq!(driver.arm(), Err(error));
        assert_retired(&mut driver, error);
    }
    let rig = Rig::new(8);
    let mut driver = busy_driver(&rig);
    rig.ring().publish_used_index(2);
    assert_eq!(driver.refresh(), Ok(2));
    rig.ring().publish_used_index(1);
    assert!(matches!(
        driver.refresh(),
        Err(UsedError::UsedJump { index: 1, .. })
    ));
}

#[test]
fn a_used_id_that_the_device_does_not_have() {
    // 3 was added and not published.
    for id in [1, 3, 4, 7, 8, 0x1_0000, u32::MAX] {
        let error = Err(UsedError::NotOutstanding { id });
        assert_eq!(use_first(UsedElement { id, len: 0 }), error);
    }
    assert_eq!(use_first(UsedElement { id: 2, len: 0 }), Ok(()));
}

#[test]
fn a_chain_that_is_used_twice() {
    let rig = Rig::new(8);
    let mut driver = busy_driver(&rig);
    rig.ring()
        .set_used_element(0, UsedElement { id: 0, len: 4 });
    rig.ring()
        .set_used_element(1, UsedElement { id: 0, len: 4 });
    rig.ring().publish_used_index(2);
    driver.refresh().unwrap();
    assert!(driver.pop().unwrap().is_some());
    assert_eq!(driver.free(), 6);
    let error = UsedError::NotOutstanding { id: 0 };
    assert_eq!(driver.pop(), Err(error));
    assert_retired(&mut driver, error);
}

/// QEMU 8e7fd6f623: wrong used length.
#[test]
fn a_used_length_beyond_the_writable_bytes() {
    for (id, len, writable) in [(0, 5, 4), (0, u32::MAX, 4), (2, 1, 0)] {
        let error = UsedError::UsedLength { id, len, writable };
        let id = u32::from(id);
        assert_eq!(use_first(UsedElement { id, len }), Err(error));
    }
    assert_eq!(use_first(UsedElement { id: 0, len: 4 }), Ok(()));
}

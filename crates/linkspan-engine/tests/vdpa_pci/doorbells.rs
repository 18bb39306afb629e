//! Kicks by the eventfds of doorbells, which the client and the device share.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};

use linkspan_testkit::Io;
use linkspan_testkit::disk::SECTOR;
use linkspan_testkit::pci::Refused;
use linkspan_vfio::pci::CONFIG;
use rustix::fs::{OFlags, fcntl_setfl};

use super::{connect, disk, expect_works};

/// A client that asks for the eventfds of the doorbells kicks without a message: before and
/// after a start of the driver, and whatever it does to the eventfds itself.
#[test]
fn rings_are_kicked_by_eventfds_that_the_client_has() {
    let (machine, served) = disk(2);
    for early in [true, false] {
        let mut driver = connect(&served);
        let mut early = early.then(|| driver.client.doorbells(2).unwrap());
        let mut rings = driver.bring_up(2);
        let places: Vec<_> = (0..2).map(|queue| driver.doorbell(queue)).collect();
        let (events, fds) = match early.take() {
            Some(known) => known,
            None => driver.client.doorbells(2).unwrap(),
        };
        let known = events.iter().map(|it| (2, it.offset));
        assert_eq!(known.collect::<Vec<_>>(), places);
        assert!(
            events
                .iter()
                .all(|it| (it.size, it.kind, it.flags) == (2, 0, 0))
        );
        let mut doorbells: Vec<_> = fds.into_iter().map(File::from).collect();
        for round in 0..3 {
            for (ring, doorbell) in rings.iter_mut().zip(&mut doorbells) {
                let (sector, len) = (round, SECTOR);
                ring.add(Io::Read { sector, len });
                doorbell.write_all(&1_u64.to_ne_bytes()).unwrap();
                assert_eq!(ring.wait().status, 0);
            }
            // The same eventfds are asked for again, and messages kick as before.
            assert_eq!(driver.client.doorbells(2).unwrap().1.len(), 2);
            expect_works(&driver, &mut rings[0], round);
            // A driver that begins anew has them too.
            rings = driver.bring_up_again(rings);
        }
        // One that is full, and would hold whoever writes to it, holds nobody.
        let (mut old, mut full) = (doorbells.remove(1), doorbells.remove(0));
        let _ = full.read(&mut [0; 8]);
        full.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        fcntl_setfl(&full, OFlags::empty()).unwrap();
        driver.kick(0);
        expect_works(&driver, &mut rings[1], 7);
        drop(driver);
        served.next_end();
        // The next driver's rings are kicked by others.
        let mut next = connect(&served);
        let mut rings = next.bring_up(2);
        let _ = old.read(&mut [0; 8]);
        machine.take_kick(1);
        let nothing = old.read(&mut [0; 8]).unwrap_err();
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
        expect_works(&next, &mut rings[1], 3);
        drop(next);
        served.next_end();
    }
    served.stop();
    assert!(machine.is_empty());
}

/// What there is no room for, no descriptor for, or no part of.
#[test]
fn doorbells_that_cannot_be_given_are_left_out() {
    let (machine, served) = disk(16);
    let driver = connect(&served);
    // This client takes 8 descriptors with a message.
    let (events, fds) = driver.client.doorbells(2).unwrap();
    assert_eq!((events.len(), fds.len()), (8, 8));
    // Other regions have none, and some do not exist.
    for region in [0, 1, CONFIG] {
        assert_eq!(driver.client.doorbells(region).unwrap().0, []);
    }
    assert!(matches!(
        driver.client.doorbells(99),
        Err(Refused::Errno(22))
    ));
    drop(driver);
    served.stop();
    assert!(machine.is_empty());
}

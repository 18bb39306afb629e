//! Rings that a driver must not write, one test for each kind: that ring is given
//! up with its named error and its err descriptor, the other ring and the session
//! go on, and the ring serves again once it was stopped and started.

use linkspan_mem::Descriptor;
use linkspan_testkit::disk::SECTOR;
use linkspan_testkit::served::content;
use linkspan_testkit::{Disk, DiskRing, Options, Served, logs};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const INDIRECT_DESC: u64 = 1 << 28;

/// What the tests need to write a chain by hand: where it goes, and memory for it.
struct Saboteur<'a> {
    ring: &'a DiskRing,
    base: u16,
    /// Offset of memory that nothing else uses.
    spare: u64,
}

impl Saboteur<'_> {
    /// A descriptor of valid memory.
    fn valid(&self, len: u32, flags: u16, next: u16) -> Descriptor {
        Descriptor {
            address: self.ring.memory().guest(self.spare).0,
            len,
            flags,
            next,
        }
    }

    /// Writes descriptors from index 0 on and makes the chain at 0 available.
    fn chain(&self, descriptors: &[Descriptor]) {
        for (index, descriptor) in (0..).zip(descriptors) {
            self.ring.raw().set_descriptor(index, *descriptor);
        }
        self.head(0);
    }

    fn head(&self, head: u16) {
        self.ring.raw().set_available_entry(self.base, head);
        self.publish(1);
    }

    fn publish(&self, count: u16) {
        let index = self.base.wrapping_add(count);
        self.ring.raw().publish_available_index(index);
    }

    /// Makes a chain available that is an indirect table of these descriptors.
    fn table(&self, descriptors: &[Descriptor]) {
        let bytes: Vec<u8> = descriptors.iter().flat_map(|d| d.to_bytes()).collect();
        self.ring.memory().write(self.spare, &bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        self.chain(&[self.valid(len, INDIRECT, 0)]);
    }
}

/// Lets `sabotage` break ring 0 of two. `taken`: chains that the device took
/// before it noticed.
fn breaks_with(options: &Options, named: &str, taken: u16, sabotage: impl FnOnce(&Saboteur<'_>)) {
    logs::capture();
    let served = Served::disk(2);
    let mut disk = Disk::bring_up(served.connect(), options, 2, 64).unwrap();
    for ring in &mut disk.rings {
        assert_eq!(ring.read(1, SECTOR), content(1));
    }
    let base = disk.rings[0].base();
    let spare = disk.memory.take(32 << 10);
    let ring = &disk.rings[0];
    sabotage(&Saboteur { ring, base, spare });
    ring.kick();
    ring.expect_broken();
    logs::expect_line(&["retired", "ring=0", named]);
    assert_eq!(
        ring.raw().used_index(),
        base,
        "nothing of the broken ring is answered"
    );

    assert_eq!(disk.rings[1].read(7, SECTOR), content(7));
    disk.front.sync().unwrap();
    let stopped = disk.front.stop(0).unwrap();
    assert_eq!(stopped, base.wrapping_add(taken));
    disk.rings[0].reset(stopped);
    disk.front.start(&disk.rings[0]).unwrap();
    assert_eq!(disk.rings[0].read(9, SECTOR), content(9));
    assert_eq!(disk.rings[1].read(8, SECTOR), content(8));
    disk.shut_down();
    assert!(!served.next_end().1, "a broken ring does not end the link");
    served.expect_serves();
    served.stop();
}

fn breaks(named: &str, sabotage: impl FnOnce(&Saboteur<'_>)) {
    breaks_with(&Options::default(), named, 0, sabotage);
}

#[test]
fn loop_of_two() {
    breaks("loops in a table of 64 descriptors", |by| {
        by.chain(&[by.valid(16, NEXT, 1), by.valid(16, NEXT, 0)]);
    });
}

#[test]
fn descriptor_that_follows_itself() {
    breaks("loops in a table of 64 descriptors", |by| {
        by.chain(&[by.valid(0, NEXT, 0)]);
    });
}

#[test]
fn head_out_of_range() {
    breaks("head 64 is outside a queue of 64 entries", |by| by.head(64));
}

#[test]
fn head_far_out_of_range() {
    breaks("head 65535 is outside a queue of 64", |by| {
        by.head(u16::MAX)
    });
}

#[test]
fn next_out_of_range() {
    breaks("goes on at descriptor 64 of a table of 64", |by| {
        by.chain(&[by.valid(16, NEXT, 64)]);
    });
}

#[test]
fn descriptor_outside_memory() {
    breaks(
        "guest address 0xdead00000000 with 512 bytes is outside",
        |by| {
            let mut stray = by.valid(512, WRITE, 0);
            stray.address = 0xdead_0000_0000;
            by.chain(&[by.valid(16, NEXT, 1), stray]);
        },
    );
}

#[test]
fn descriptor_that_leaves_memory_with_its_last_byte() {
    breaks("leaves the driver's memory: guest address", |by| {
        let memory = by.ring.memory();
        let mut stray = by.valid(0, WRITE, 0);
        stray.address = memory.guest(memory.len() - 512).0;
        stray.len = 513;
        by.chain(&[by.valid(16, NEXT, 1), stray]);
    });
}

#[test]
fn descriptor_that_wraps_the_address_space() {
    breaks("guest address 0xffffffffffffffff with 2 bytes", |by| {
        let mut stray = by.valid(2, 0, 0);
        stray.address = u64::MAX;
        by.chain(&[stray]);
    });
}

#[test]
fn descriptor_of_four_gigabytes() {
    breaks("with 4294967295 bytes is outside", |by| {
        by.chain(&[by.valid(u32::MAX, WRITE, 0)]);
    });
}

#[test]
fn readable_behind_writable() {
    breaks("has a readable descriptor behind a writable one", |by| {
        by.chain(&[
            by.valid(16, NEXT, 1),
            by.valid(1, NEXT | WRITE, 2),
            by.valid(512, 0, 0),
        ]);
    });
}

#[test]
fn indirect_without_negotiation() {
    let options = Options {
        without: INDIRECT_DESC,
        ..Options::default()
    };
    breaks_with(&options, "which was not negotiated", 0, |by| {
        by.table(&[by.valid(16, NEXT, 1), by.valid(1, WRITE, 0)]);
    });
}

#[test]
fn indirect_in_indirect() {
    breaks("an indirect table inside an indirect table", |by| {
        by.table(&[by.valid(16, INDIRECT, 0)]);
    });
}

#[test]
fn indirect_with_next() {
    breaks("goes on behind an indirect table", |by| {
        by.chain(&[by.valid(16, INDIRECT | NEXT, 1), by.valid(1, WRITE, 0)]);
    });
}

#[test]
fn indirect_without_entries() {
    breaks("an indirect table of 0 bytes", |by| {
        by.chain(&[by.valid(0, INDIRECT, 0)]);
    });
}

#[test]
fn indirect_of_a_part_of_an_entry() {
    breaks("an indirect table of 24 bytes", |by| {
        by.chain(&[by.valid(24, INDIRECT, 0)]);
    });
}

#[test]
fn indirect_too_long() {
    breaks("an indirect table of 4294967280 bytes", |by| {
        by.chain(&[by.valid(0xffff_fff0, INDIRECT, 0)]);
    });
}

#[test]
fn indirect_table_outside_memory() {
    breaks("guest address 0xdead00000000 with", |by| {
        let mut table = by.valid(32, INDIRECT, 0);
        table.address = 0xdead_0000_0000;
        by.chain(&[table]);
    });
}

#[test]
fn indirect_loop() {
    breaks("loops in a table of 2 descriptors", |by| {
        by.table(&[by.valid(16, NEXT, 1), by.valid(0, NEXT, 0)]);
    });
}

#[test]
fn indirect_next_out_of_range() {
    breaks("goes on at descriptor 2 of a table of 2", |by| {
        by.table(&[by.valid(16, NEXT, 1), by.valid(0, NEXT, 2)]);
    });
}

#[test]
fn more_descriptors_than_a_chain_may_have() {
    breaks("has more than 1024 descriptors", |by| {
        let links = (1..=2000).map(|next| by.valid(0, NEXT, next));
        by.table(&links.collect::<Vec<_>>());
    });
}

#[test]
fn available_index_jumps_ahead() {
    breaks("available index jumped to", |by| by.publish(65));
}

#[test]
fn available_index_goes_back() {
    breaks("available index jumped to 0: 1 is next", |by| {
        by.publish(u16::MAX);
    });
}

#[test]
fn no_status_byte() {
    breaks_with(
        &Options::default(),
        "has 0 device-writable bytes where 1 are needed",
        1,
        |by| by.chain(&[by.valid(16, 0, 0)]),
    );
}

#[test]
fn no_whole_header() {
    breaks_with(
        &Options::default(),
        "has 15 device-readable bytes where 16 are needed",
        1,
        |by| by.chain(&[by.valid(15, NEXT, 1), by.valid(1, WRITE, 0)]),
    );
}

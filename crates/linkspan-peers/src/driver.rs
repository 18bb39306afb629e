//! What the drivers have in common, and what a test does with each of them.

use std::fs;
use std::path::Path;

use linkspan_testkit::served::content;

/// Bytes of a request.
pub const CHUNK: usize = 4096;

/// Requests that are under way at a time on each queue.
pub const DEPTH: usize = 32;

/// A disk, driven by code that others wrote. Requests of at most [`CHUNK`] bytes
/// are given to it, [`DEPTH`] of them at a time.
pub trait Driver {
    /// How many queues run.
    fn queues(&self) -> usize;

    /// Bytes of the disk as the device says.
    fn capacity(&self) -> u64;

    /// Reads from byte `offset` on.
    ///
    /// # Panics
    /// When the disk reports an error or does not answer.
    fn read(&mut self, queue: usize, offset: u64, into: &mut [u8]);

    /// Writes from byte `offset` on.
    ///
    /// # Panics
    /// When the disk reports an error or does not answer.
    fn write(&mut self, queue: usize, offset: u64, data: &[u8]);

    /// Makes durable what was written.
    ///
    /// # Panics
    /// When the disk reports an error or does not answer.
    fn flush(&mut self, queue: usize);
}

/// Bytes for a part of the disk that say who wrote them, and where.
fn pattern(seed: u8, queue: usize, bytes: usize) -> Vec<u8> {
    let word = |at: usize| ((at as u64) << 16) ^ (queue as u64) << 8 ^ u64::from(seed);
    (0..bytes / 8)
        .flat_map(|at| word(at).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes())
        .collect()
}

/// Reads what is on a disk made by
/// [`write_image`](linkspan_testkit::served::write_image), gives each queue a part
/// of it, which it writes, flushes and reads back, and compares the image with
/// what was read before and written then. The image is as new afterwards.
///
/// # Panics
/// When any byte is not what it has to be.
pub fn exercise(driver: &mut impl Driver, image: &Path, seed: u8) {
    let before = fs::read(image).expect("the image");
    assert_eq!(driver.capacity(), before.len() as u64);
    assert_eq!(before[512..1024], content(1), "an image of the test kit");
    // Every queue reads everything.
    for queue in 0..driver.queues() {
        let mut found = vec![0; before.len()];
        driver.read(queue, 0, &mut found);
        assert!(found == before, "queue {queue} reads something else");
    }
    // More than fits under way at once, so that rings go round.
    let part = before.len() / driver.queues() / CHUNK * CHUNK;
    let place = |queue: usize| (queue * part) as u64;
    let mut expected = before.clone();
    for queue in 0..driver.queues() {
        let data = pattern(seed, queue, part);
        driver.write(queue, place(queue), &data);
        expected[queue * part..][..part].copy_from_slice(&data);
    }
    for queue in 0..driver.queues() {
        driver.flush(queue);
        // Another queue than the one that wrote it.
        let of = (queue + 1) % driver.queues();
        let mut found = vec![0; part];
        driver.read(queue, place(of), &mut found);
        assert!(found == pattern(seed, of, part), "queue {queue} reads {of}");
    }
    assert!(fs::read(image).expect("the image") == expected, "the image");
    // A piece that is smaller than a page and not aligned to one.
    driver.write(0, 512, &[seed; 1536]);
    expected[512..2048].fill(seed);
    assert!(fs::read(image).expect("the image") == expected, "sectors");
    driver.write(0, 0, &before);
    assert!(fs::read(image).expect("the image") == before, "as before");
}

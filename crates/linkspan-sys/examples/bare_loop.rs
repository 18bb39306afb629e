//! What a machine can do at most: random reads of 4 KiB from a file by nothing but
//! system calls. `cargo xtask bench blk` holds the disk against it, and `bench vdpa`
//! measures disks of the kernel with it: `direct` passes the page cache.
//!
//! ```text
//! cargo run --release -p linkspan-sys --example bare_loop -- preadv disk.img 1 2.0
//! cargo run --release -p linkspan-sys --example bare_loop -- uring disk.img 32 2.0
//! cargo run --release -p linkspan-sys --example bare_loop -- direct /dev/vda 32 2.0
//! ```

use std::error::Error;
use std::fs::File;
use std::io::{IoSliceMut, Seek as _, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};

const BLOCK: usize = 4096;

/// Requests between two looks at the clock.
const BATCH: u64 = 256;

struct Places {
    state: u64,
    blocks: u64,
}

impl Places {
    /// The place in bytes of a block (xorshift64*).
    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) % self.blocks * BLOCK as u64
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, path, depth, seconds] = &arguments[..] else {
        return Err("usage: bare_loop preadv|uring|direct FILE DEPTH SECONDS".into());
    };
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let flags = if mode == "direct" { direct } else { 0 };
    let mut file = File::options().read(true).custom_flags(flags).open(path)?;
    // The end of a block device is not in its metadata.
    let places = Places {
        state: 0x9E37_79B9_7F4A_7C15,
        blocks: file.seek(SeekFrom::End(0))? / BLOCK as u64,
    };
    let length = Duration::from_secs_f64(seconds.parse()?);
    let start = Instant::now();
    let operations = match mode.as_str() {
        "preadv" => by_preadv(&file, places, start + length)?,
        "uring" => by_uring(&file, places, depth.parse()?, start + length)?,
        // One at a time is cheapest by the plainest call.
        "direct" if depth == "1" => alone(&file, places, start + length)?,
        "direct" => full(&file, places, depth.parse()?, start + length)?,
        _ => return Err("the mode is preadv, uring or direct".into()),
    };
    let seconds = start.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let iops = operations as f64 / seconds;
    println!("{{\"operations\":{operations},\"seconds\":{seconds},\"iops\":{iops}}}");
    Ok(())
}

fn by_preadv(file: &File, mut places: Places, end: Instant) -> Result<u64, Box<dyn Error>> {
    // As many buffers as a driver at depth 32 has, so that caches see the same.
    let mut buffers = vec![0_u8; 32 * BLOCK];
    let mut operations = 0;
    while Instant::now() < end {
        for _ in 0..BATCH / 32 {
            for buffer in buffers.chunks_mut(BLOCK) {
                let mut target = [IoSliceMut::new(buffer)];
                let read = rustix::io::preadv(file.as_fd(), &mut target, places.next())?;
                if read != BLOCK {
                    return Err("a short read".into());
                }
            }
        }
        operations += BATCH;
    }
    Ok(operations)
}

fn by_uring(
    file: &File,
    mut places: Places,
    depth: u32,
    end: Instant,
) -> Result<u64, Box<dyn Error>> {
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .build(depth.next_power_of_two())?;
    ring.submitter().register_files(&[file.as_raw_fd()])?;
    let depth = usize::try_from(depth)?;
    let mut buffers = vec![0_u8; depth * BLOCK];
    let mut operations = 0;
    while Instant::now() < end {
        for _ in 0..BATCH.div_ceil(depth as u64) {
            for buffer in buffers.chunks_mut(BLOCK) {
                let length = u32::try_from(BLOCK)?;
                let read = opcode::Read::new(types::Fixed(0), buffer.as_mut_ptr(), length)
                    .offset(places.next())
                    .build();
                // SAFETY: the buffer lives until the ring has answered all, below.
                unsafe { ring.submission().push(&read)? };
            }
            ring.submit_and_wait(depth)?;
            for answer in ring.completion() {
                if usize::try_from(answer.result()) != Ok(BLOCK) {
                    return Err("a failed or short read".into());
                }
                operations += 1;
            }
        }
    }
    Ok(operations)
}

/// Buffers that begin at whole blocks, as reads past the page cache need them.
fn aligned(memory: &mut Vec<u8>, count: usize) -> &mut [u8] {
    memory.resize((count + 1) * BLOCK, 0);
    let start = memory.as_ptr().align_offset(BLOCK);
    &mut memory[start..start + count * BLOCK]
}

/// One read after the other.
fn alone(file: &File, mut places: Places, end: Instant) -> Result<u64, Box<dyn Error>> {
    let mut memory = Vec::new();
    let buffer = aligned(&mut memory, 1);
    let mut operations = 0;
    while Instant::now() < end {
        for _ in 0..16 {
            if rustix::io::pread(file.as_fd(), &mut *buffer, places.next())? != BLOCK {
                return Err("a short read".into());
            }
        }
        operations += 16;
    }
    Ok(operations)
}

/// Always `depth` reads at a time: whatever is answered is asked for anew.
fn full(file: &File, mut places: Places, depth: u32, end: Instant) -> Result<u64, Box<dyn Error>> {
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .build(depth.next_power_of_two())?;
    ring.submitter().register_files(&[file.as_raw_fd()])?;
    let mut memory = Vec::new();
    let mut buffers: Vec<&mut [u8]> = aligned(&mut memory, usize::try_from(depth)?)
        .chunks_mut(BLOCK)
        .collect();
    let mut free: Vec<usize> = (0..buffers.len()).collect();
    let mut operations = 0;
    let mut over = false;
    while !over || free.len() < buffers.len() {
        over = over || Instant::now() >= end;
        while !over && let Some(number) = free.pop() {
            let buffer = buffers[number].as_mut_ptr();
            let read = opcode::Read::new(types::Fixed(0), buffer, u32::try_from(BLOCK)?)
                .offset(places.next())
                .build()
                .user_data(number as u64);
            // SAFETY: the buffer lives until the ring has answered all: the loop ends
            // when each is free, and an error below ends the process.
            unsafe { ring.submission().push(&read)? };
        }
        if free.len() < buffers.len() {
            ring.submit_and_wait(1)?;
        }
        for answer in ring.completion() {
            if usize::try_from(answer.result()) != Ok(BLOCK) {
                return Err("a failed or short read".into());
            }
            free.push(usize::try_from(answer.user_data())?);
            operations += 1;
        }
    }
    Ok(operations)
}

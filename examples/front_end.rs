//! A vhost-user front end without the engine: the protocol core, one ring, and
//! a loop. It asks an entropy device for bytes and prints them.
//!
//! ```text
//! cargo run --release --example entropy -- /tmp/rng.sock &
//! cargo run --release --example front_end -- /tmp/rng.sock
//! ```

use std::error::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_mem::{Gpa, GuestMemory, Region, UserVa};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::{EventFd, PeerMemory, Stream, memfd};
use linkspan_vhost::frontend::{Command, Effect, FdId, Frontend, QueueUnit, RingStart, Wish};
use linkspan_vhost::{MemoryRegion, ProtocolFeatures};
use linkspan_virtio::{Buffer, DriverQueue, Features, QueueLayout};

/// One page each for the parts of the ring, and one for the data.
const DESCRIPTORS: u64 = 0x0000;
const DRIVER: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const DATA: u64 = 0x3000;
const LEN: u64 = 0x4000;
const SIZE: u16 = 16;

/// Where the memory is for the device, and in messages.
const GUEST: u64 = 0x1_0000;
const USER: u64 = 0x7000_0000;

const FEATURES: Features = Features::SPLIT_QUEUE;

struct FrontEnd {
    core: Frontend,
    stream: Stream,
    /// What messages carry: memory, kick, call.
    fds: [OwnedFd; 3],
}

impl FrontEnd {
    /// Moves bytes until the core has nothing under way.
    fn settle(&mut self) -> Result<(), Box<dyn Error>> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            while let Some(effect) = self.core.poll_effect() {
                match effect {
                    Effect::Send { bytes, fds } => {
                        let of = |id: &FdId| {
                            self.fds[usize::try_from(id.0).unwrap_or(usize::MAX)].as_fd()
                        };
                        let fds: Vec<_> = fds.iter().map(of).collect();
                        self.stream.send(&bytes, &fds, deadline)?;
                    }
                    Effect::Report(event) => eprintln!("{event:?}"),
                }
            }
            if self.core.is_idle() {
                return Ok(());
            }
            let socket = self.stream.as_fd();
            if wait_for(socket, Direction::Read, None, Some(deadline))? != Wake::Ready {
                return Err("the back end does not answer".into());
            }
            let mut bytes = vec![0; self.core.wanted()];
            let mut fds = Vec::new();
            let received = self.stream.receive(&mut bytes, &mut fds, 8)?;
            if received.bytes == 0 {
                return Err("the back end closed the connection".into());
            }
            self.core.receive(&bytes[..received.bytes], fds.len())?;
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: front_end SOCKET")?;
    let file = memfd::create("example", LEN, memfd::Sealing::Fixed)?;
    let mapping = PeerMemory::check(file.try_clone()?)?.map(0, LEN, None)?;
    let region = Region::new(Arc::new(mapping));
    let memory = GuestMemory::new(vec![(region.clone(), Gpa(GUEST), UserVa(USER))])?;
    let (kick, call) = (EventFd::new()?, EventFd::new()?);

    let mut front_end = FrontEnd {
        core: Frontend::new(Wish {
            features: FEATURES.bits(),
            required_features: Features::VIRTIO_F_VERSION_1.bits(),
            protocol_features: ProtocolFeatures::MQ | ProtocolFeatures::REPLY_ACK,
            required_protocol_features: ProtocolFeatures::empty(),
            queues: 1,
            queue_unit: QueueUnit::Rings,
            config_size: 0,
            memory_slots: 1,
        })?,
        stream: Stream::connect(Path::new(&path))?,
        fds: [file, kick.try_clone()?.into(), call.try_clone()?.into()],
    };
    front_end.settle()?;
    let negotiated = front_end.core.negotiated().ok_or("not negotiated")?;
    let features = Features::from_bits_retain(negotiated.features);
    let (guest_address, user_address) = (Gpa(GUEST), UserVa(USER));
    #[rustfmt::skip]
    let table = MemoryRegion { guest_address, size: LEN, user_address, mmap_offset: 0 };
    let ring = RingStart {
        ring: 0,
        size: SIZE,
        base: QueueLayout::Split.base(QueueLayout::Split.start()),
        descriptor: UserVa(USER + DESCRIPTORS),
        driver: UserVa(USER + DRIVER),
        device: UserVa(USER + DEVICE),
        log: None,
        kick: Some(FdId(1)),
        call: Some(FdId(2)),
        err: None,
        enabled: true,
    };
    for command in [
        Command::SetFeatures(features.bits()),
        Command::SetMemory(vec![(table, FdId(0))]),
        Command::StartRings(vec![ring]),
    ] {
        front_end.core.command(command)?;
        front_end.settle()?;
    }

    let lens = QueueLayout::Split.part_lens(SIZE);
    let parts = [DESCRIPTORS, DRIVER, DEVICE].map(|at| Gpa(GUEST + at));
    let [descriptors, driver, device] =
        std::array::from_fn(|part| memory.guest.window(parts[part], lens[part]));
    let start = QueueLayout::Split.start();
    let mut queue = DriverQueue::new([descriptors?, driver?, device?], SIZE, features, start)?;
    let (address, len) = (Gpa(GUEST + DATA), 32);
    queue.add(&[], &[Buffer { address, len }], None)?;
    queue.publish()?;
    kick.signal()?;
    while !queue.arm()? {
        wait_for(call.as_fd(), Direction::Read, None, None)?;
        call.drain()?;
    }
    let used = queue.pop()?.ok_or("nothing came back")?;
    let mut bytes = vec![0; used.written as usize];
    region
        .slice(DATA, u64::from(used.written))?
        .read(&mut bytes);
    println!("{bytes:02x?}");
    Ok(())
}

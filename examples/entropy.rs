//! An entropy device (virtio 1.3 5.4), served over vhost-user: the smallest
//! device there is, and what a device of your own needs.
//!
//! ```text
//! cargo run --release --example entropy -- /tmp/rng.sock
//! qemu-system-x86_64 … -chardev socket,id=r,path=/tmp/rng.sock -device vhost-user-rng-pci,chardev=r
//! ```

use std::path::Path;
use std::sync::Arc;

use linkspan_engine::vhost_user;
use linkspan_engine::{
    ActiveRing, Budget, Device, OpenQueueError, Progress, QueueHandler, Workers,
};
use linkspan_sys::Listener;
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_sys::socket::Inherited;
use linkspan_virtio::{Chain, Features, QueueError};
use rustix::rand::{GetRandomFlags, getrandom};

/// What the transport needs to know: one queue, and nothing else.
struct Entropy;

impl Device for Entropy {
    fn name(&self) -> &'static str {
        "entropy"
    }

    fn device_id(&self) -> u32 {
        // Virtio 1.3, 5.4.
        4
    }

    fn features(&self) -> Features {
        Features::empty()
    }

    fn queues(&self) -> u16 {
        1
    }

    fn queue_size_max(&self) -> u16 {
        256
    }

    fn open_queue(&self, _: u16, _: Features) -> Result<Box<dyn QueueHandler>, OpenQueueError> {
        Ok(Box::new(EntropyQueue {
            chain: Chain::new(64)?,
        }))
    }
}

/// What a worker runs: fills every buffer that the driver offers.
struct EntropyQueue {
    chain: Chain,
}

impl QueueHandler for EntropyQueue {
    fn run(&mut self, ring: &mut ActiveRing, budget: Budget) -> Result<Progress, QueueError> {
        for _ in 0..budget.chains {
            if !ring.queue.pop(&ring.memory.guest, &mut self.chain)? {
                return Ok(Progress::Idle);
            }
            // A driver may offer any amount; a page is enough for an answer.
            let mut bytes = [0; 4096];
            let wanted = self.chain.writable_total().min(4096);
            let got = getrandom(&mut bytes[..wanted as usize], GetRandomFlags::NONBLOCK);
            let got = got.unwrap_or(0);
            let table = ring.memory.table();
            let whole = table
                .scatter(self.chain.writable(), 0, &bytes[..got])
                .is_ok();
            let written = u32::try_from(got).ok().filter(|_| whole).unwrap_or(0);
            ring.queue.push(&self.chain, written)?;
        }
        Ok(Progress::More)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: entropy SOCKET")?;
    let listener = Inherited::Listener(Listener::bind(Path::new(&path))?);
    let workers = Arc::new(Workers::new(1)?);
    let server = vhost_user::serve(listener, Arc::new(Entropy), workers, |event| {
        eprintln!("{event:?}");
    })?;
    wait_for(server.ended(), Direction::Read, None, None)?;
    Ok(())
}

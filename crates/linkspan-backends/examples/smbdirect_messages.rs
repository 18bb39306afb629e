//! Both ends of SMB Direct over iWARP in one thread, for profilers: what a message costs at
//! each end.
//!
//! ```text
//! smbdirect_messages COUNT BYTES [crc]
//! ```
//!
//! `valgrind --tool=callgrind` counts instructions; those of the ends are in `sender` and
//! `listener`, and what they call.

use std::error::Error;
use std::net::Ipv4Addr;
use std::time::Duration;

use linkspan_backends::smbdirect::{
    Classes, Config, Endpoint, Happening, Hello, Id, Mode, Service,
};
use linkspan_mem::Region;
use linkspan_rdma::Pool;
use linkspan_rdma::verbs::{MemoryId, Slice};
use linkspan_smbdirect::{Options, Role};

/// Messages under way, and places that they are in.
const DEPTH: u64 = 255;
const PLACES: u64 = 64;

struct Sender {
    endpoint: Endpoint,
    id: Id,
    memory: MemoryId,
    bytes: u32,
    count: u64,
    posted: u64,
    done: u64,
}

impl Sender {
    #[inline(never)]
    fn sender(&mut self) -> Result<(), Box<dyn Error>> {
        while self.posted < self.count && self.posted - self.done < DEPTH {
            let slice = Slice {
                memory: self.memory,
                len: self.bytes,
                offset: self.posted % PLACES * u64::from(self.bytes),
            };
            let session = self.endpoint.session(self.id);
            session.ok_or("the connection is gone")?.send(&[slice])?;
            self.posted += 1;
        }
        self.endpoint.wait(Some(Duration::ZERO))?;
        while let Some((_, happening)) = self.endpoint.poll() {
            match happening {
                Happening::Sent(count, result) => {
                    result?;
                    self.done += u64::from(count);
                }
                Happening::Ended(gone) => return Err(gone.to_string().into()),
                _ => {}
            }
        }
        Ok(())
    }
}

#[inline(never)]
fn listener(service: &mut Service) -> Result<(), Box<dyn Error>> {
    Ok(service.turn_within(Some(Duration::ZERO))?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (count, bytes, crc) = match words[..] {
        [count, bytes] => (count, bytes, false),
        [count, bytes, "crc"] => (count, bytes, true),
        _ => return Err("usage: smbdirect_messages COUNT BYTES [crc]".into()),
    };
    let (count, bytes): (u64, u32) = (count.parse()?, bytes.parse()?);
    let config = Config::new(Role::Listener, Options::listener());
    let mut service = Service::new(Endpoint::new(config)?, Mode::Sink, 1 << 20, Classes::NONE);
    let address = service.listen((Ipv4Addr::LOCALHOST, 0).into())?;
    let mut config = Config::new(Role::Initiator, Options::initiator());
    config.iwarp.options.crc = crc;
    let mut endpoint = Endpoint::new(config)?;
    let all = usize::try_from(PLACES * u64::from(bytes))?;
    let memory = endpoint.add_memory(Region::heap(all)?)?;
    let id = endpoint.connect(address)?;
    let mut connected = false;
    while !connected {
        listener(&mut service)?;
        endpoint.wait(Some(Duration::ZERO))?;
        while let Some((_, happening)) = endpoint.poll() {
            connected |= matches!(happening, Happening::Connected);
        }
    }
    let mut headers = Pool::new(4096, 4096);
    let hello = endpoint.buffer(&mut headers).ok_or("no memory")?;
    let greeting = Hello::default().to_bytes();
    endpoint.fill(hello.memory, hello.offset, &greeting);
    let session = endpoint.session(id).ok_or("the connection is gone")?;
    let mut session = session;
    session.send(&[hello.part(0, u32::try_from(greeting.len())?)])?;
    let mut sender = Sender {
        endpoint,
        id,
        memory,
        bytes,
        count: count + 1,
        posted: 1,
        done: 0,
    };
    while sender.done < sender.count {
        sender.sender()?;
        listener(&mut service)?;
    }
    println!("{count} messages of {bytes} bytes");
    Ok(())
}

//! Each acquisition of a provider of devices fails in turn, and everything is as it was before.
//! One test, since a sweep is the process's.

//: about each step of bringing up a device's connection fails in turn
//: pack ip rdma verbs rdmacm
//: limit 300

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use linkspan_backends::rdma::{Carrier, ConnectionId, DeviceConfig, DeviceProvider};
use linkspan_mem::{Region, fault};
use linkspan_rdma::verbs::{Access, Event, Key, MemoryId, Post, Remote, Slice, Verbs as _, Work};
use linkspan_testkit::PATIENCE;
use linkspan_testkit::lab::{self, Rdma};

fn told(error: &dyn std::fmt::Display) -> String {
    error.to_string()
}

/// Where the bytes of both ends are: what is sent, what the other may reach, what is read.
const SENT: u64 = 0;
const REACHED: u64 = 1024;
const READ: u64 = 2048;
const LEN: u32 = 100;

/// The numbers of the works.
const SEND: u64 = 1;
const WRITE: u64 = 2;
const READS: u64 = 3;

/// One end and its memory.
struct End {
    provider: DeviceProvider,
    memory: MemoryId,
    region: Region,
}

impl End {
    fn new() -> Result<Self, String> {
        let mut config = DeviceConfig::default();
        config.limits.works = 16;
        config.limits.receives = 16;
        let mut provider = DeviceProvider::new(config).map_err(|it| told(&it))?;
        let region = Region::heap(4096).map_err(|it| told(&it))?;
        let memory = provider.add_memory(region.clone());
        Ok(Self {
            memory: memory.map_err(|it| told(&it))?,
            provider,
            region,
        })
    }

    fn slice(&self, offset: u64) -> Slice {
        Slice {
            memory: self.memory,
            len: LEN,
            offset,
        }
    }

    fn bytes(&self, offset: u64) -> Vec<u8> {
        let mut bytes = vec![0; LEN as usize];
        let slice = self.region.slice(offset, LEN.into()).unwrap();
        slice.read(&mut bytes);
        bytes
    }

    fn fill(&self, offset: u64, bytes: &[u8]) {
        let slice = self.region.slice(offset, bytes.len() as u64).unwrap();
        slice.write(bytes);
    }

    fn post(&mut self, to: ConnectionId, id: u64, work: Work<'_>) -> Result<(), String> {
        let mut connection = self.provider.connection(to).ok_or("gone")?;
        let post = Post {
            id,
            signalled: true,
            work,
        };
        connection.post(&post).map_err(|it| told(&it))
    }

    fn send(&mut self, to: ConnectionId) -> Result<(), String> {
        let gather = [self.slice(SENT)];
        let work = Work::Send {
            gather: &gather,
            invalidate: None,
            solicited: false,
        };
        self.post(to, SEND, work)
    }
}

/// Two providers from nothing to a message, a write and a read that are done; says what failed.
fn all(at: SocketAddr) -> Result<(), String> {
    let (mut a, mut b) = (End::new()?, End::new()?);
    let at = a.provider.listen(at).map_err(|it| told(&it))?;
    let at_b = b.provider.connect(at, b"").map_err(|it| told(&it))?;
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < PATIENCE, "nothing happens");
        for end in [&mut a, &mut b] {
            let wait = end.provider.wait(Some(Duration::from_millis(1)));
            wait.map_err(|it| told(&it))?;
        }
        while let Some((id, event)) = a.provider.poll() {
            listens(&mut a, id, event)?;
        }
        while let Some((id, event)) = b.provider.poll() {
            if let Event::Ended(failure) = event {
                return Err(told(&failure));
            }
            assert_eq!(id, at_b);
            if connects(&mut b, id, event)? {
                assert_eq!(a.bytes(REACHED), [7; LEN as usize]);
                assert_eq!(b.bytes(READ), [7; LEN as usize]);
                return Ok(());
            }
        }
    }
}

/// Tells whoever says something what memory it may reach.
fn listens(end: &mut End, id: ConnectionId, event: Event) -> Result<(), String> {
    let reached = end.slice(REACHED);
    let Some(mut connection) = end.provider.connection(id) else {
        return Ok(());
    };
    match event {
        Event::Requested(greeting) => {
            connection.post_receives(1).map_err(|it| told(&it))?;
            let accepted = connection.accept(b"", greeting.depth);
            accepted.map_err(|it| told(&it))
        }
        Event::Received(received) => {
            connection.release(received.buffer);
            let both = Access {
                read: true,
                write: true,
            };
            let exposed = connection.expose(&[reached], both);
            let place = exposed.map_err(|it| told(&it))?;
            end.fill(SENT, &place.address.to_le_bytes());
            end.fill(SENT + 8, &place.key.0.to_le_bytes());
            end.send(id)
        }
        Event::Ended(failure) => Err(told(&failure)),
        _ => Ok(()),
    }
}

/// Says something, and then writes and reads where it may; whether that is done.
fn connects(end: &mut End, id: ConnectionId, event: Event) -> Result<bool, String> {
    let Some(mut connection) = end.provider.connection(id) else {
        return Ok(false);
    };
    match event {
        Event::Established(_) => {
            connection.post_receives(1).map_err(|it| told(&it))?;
            end.send(id)?;
        }
        Event::Received(received) => {
            let mut words = [0; 12];
            let message = connection.memories().slice(received.buffer);
            message.ok_or("no buffer")?.read(&mut words);
            connection.release(received.buffer);
            let (address, key) = words.split_first_chunk().unwrap();
            let place = Remote {
                address: u64::from_le_bytes(*address),
                key: Key(u32::from_le_bytes(key.try_into().unwrap())),
            };
            end.fill(SENT, &[7; LEN as usize]);
            let gather = [end.slice(SENT)];
            let write = Work::Write {
                gather: &gather,
                to: place,
            };
            end.post(id, WRITE, write)?;
            let into = [end.slice(READ)];
            let read = Work::Read {
                into: &into,
                from: place,
            };
            end.post(id, READS, read)?;
        }
        Event::Completed(done) => return Ok(done.done && done.id == READS),
        _ => {}
    }
    Ok(false)
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// What the kernel has of RDMA's: queues, completions, registrations, domains, identifiers.
fn resources(device: &str) -> String {
    let text = lab::run(std::process::Command::new("rdma").args(["resource", "show"]));
    let line = text.lines().find(|line| line.contains(device));
    line.unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[test]
fn every_step_fails_in_turn_and_leaves_nothing() {
    if !lab::guest("every_step_fails_in_turn_and_leaves_nothing") {
        return;
    }
    let siw = Rdma::new("siw");
    let at = (siw.address(), 7000).into();
    all(at).unwrap();
    let before = (descriptors(), resources(siw.device()));
    let mut failed = 0;
    for nth in 1.. {
        let sweep = fault::arm(nth);
        let result = all(at);
        let fired = sweep.fired();
        drop(sweep);
        let after = (descriptors(), resources(siw.device()));
        assert_eq!(after, before, "step {nth}: {result:?}");
        if !fired {
            result.unwrap();
            break;
        }
        failed += usize::from(result.is_err());
    }
    println!("{failed} steps failed");
    assert!(failed > 17, "only {failed} steps failed");
    all(at).unwrap();
}

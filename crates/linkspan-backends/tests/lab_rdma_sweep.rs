//! Each acquisition of a provider of devices fails in turn, and everything is as it was before.
//! One test, since a sweep is the process's.

//: about each step of bringing up a device's connection fails in turn
//: pack ip rdma verbs rdmacm
//: limit 300

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use linkspan_backends::rdma::{Carrier, DeviceConfig, DeviceProvider};
use linkspan_mem::{Region, fault};
use linkspan_rdma::verbs::{Access, Event, Post, Slice, Verbs as _, Work};
use linkspan_testkit::PATIENCE;
use linkspan_testkit::lab::{self, Rdma};

fn told(error: &dyn std::fmt::Display) -> String {
    error.to_string()
}

/// Two providers from nothing to a read and a message that have arrived; says what failed.
fn all(at: SocketAddr) -> Result<(), String> {
    let mut config = DeviceConfig::default();
    config.limits.works = 16;
    config.limits.receives = 16;
    let mut a = DeviceProvider::new(config).map_err(|it| told(&it))?;
    let mut b = DeviceProvider::new(config).map_err(|it| told(&it))?;
    let region = Region::heap(4096).map_err(|it| told(&it))?;
    let ours = a.add_memory(region.clone()).map_err(|it| told(&it))?;
    let theirs = b.add_memory(region).map_err(|it| told(&it))?;
    let at = a.listen(at).map_err(|it| told(&it))?;
    let at_b = b.connect(at, b"").map_err(|it| told(&it))?;
    let begin = Instant::now();
    let mut messages = 0;
    loop {
        assert!(begin.elapsed() < PATIENCE, "nothing happens");
        for provider in [&mut a, &mut b] {
            let wait = provider.wait(Some(Duration::from_millis(1)));
            wait.map_err(|it| told(&it))?;
        }
        while let Some((id, event)) = a.poll() {
            let Some(mut connection) = a.connection(id) else {
                continue;
            };
            match event {
                Event::Requested(greeting) => {
                    connection.post_receives(1).map_err(|it| told(&it))?;
                    let accepted = connection.accept(b"", greeting.depth);
                    accepted.map_err(|it| told(&it))?;
                }
                Event::Received(received) => {
                    connection.release(received.buffer);
                    messages += 1;
                    let slice = slice(ours);
                    let exposed = connection.expose(&[slice], Access::READ);
                    exposed.map_err(|it| told(&it))?;
                    let gather = [slice];
                    send(&mut connection, &gather)?;
                }
                Event::Ended(failure) => return Err(told(&failure)),
                _ => {}
            }
        }
        while let Some((id, event)) = b.poll() {
            let Some(mut connection) = b.connection(id) else {
                continue;
            };
            match event {
                Event::Established(_) => {
                    connection.post_receives(1).map_err(|it| told(&it))?;
                    send(&mut connection, &[slice(theirs)])?;
                }
                Event::Received(received) => {
                    connection.release(received.buffer);
                    assert_eq!(messages, 1);
                    return Ok(());
                }
                Event::Ended(failure) if id == at_b => return Err(told(&failure)),
                _ => {}
            }
        }
    }
}

fn slice(memory: linkspan_rdma::verbs::MemoryId) -> Slice {
    Slice {
        memory,
        len: 100,
        offset: 0,
    }
}

fn send(
    connection: &mut linkspan_backends::rdma::DeviceHandle<'_>,
    gather: &[Slice],
) -> Result<(), String> {
    let work = Work::Send {
        gather,
        invalidate: None,
        solicited: false,
    };
    let post = Post {
        id: 1,
        signalled: false,
        work,
    };
    connection.post(&post).map_err(|it| told(&it))
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
    assert!(failed > 15, "only {failed} steps failed");
    all(at).unwrap();
}

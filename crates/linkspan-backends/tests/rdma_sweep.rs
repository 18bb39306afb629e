//! Each acquisition of a provider fails in turn, and everything is as it was before. One
//! test, since a sweep is the process's.

use std::net::Ipv4Addr;
use std::time::Duration;

use linkspan_backends::rdma::{Config, Provider};
use linkspan_mem::{Region, fault};
use linkspan_rdma::verbs::{Access, Event, Post, Slice, Verbs as _, Work};

/// Everything from nothing to a message and a write that have arrived; says what failed.
fn all(peer: &mut Provider) -> Result<(), String> {
    let error = |error: &dyn std::fmt::Display| error.to_string();
    let mut a = Provider::new(Config::default()).map_err(|it| error(&it))?;
    let region = Region::heap(4096).map_err(|it| error(&it))?;
    let memory = a.add_memory(region).map_err(|it| error(&it))?;
    let address = a
        .listen((Ipv4Addr::LOCALHOST, 0).into())
        .map_err(|it| error(&it))?;
    let at_peer = peer.connect(address, b"").map_err(|it| error(&it))?;
    let slice = Slice {
        memory,
        len: 100,
        offset: 0,
    };
    let mut sent = false;
    loop {
        a.wait(Some(Duration::from_millis(1)))
            .map_err(|it| error(&it))?;
        peer.wait(Some(Duration::from_millis(1)))
            .map_err(|it| error(&it))?;
        while let Some((id, event)) = a.poll() {
            let Some(mut connection) = a.connection(id) else {
                continue;
            };
            match event {
                Event::Requested(greeting) => {
                    connection.post_receives(1).map_err(|it| error(&it))?;
                    connection
                        .accept(b"", greeting.depth)
                        .map_err(|it| error(&it))?;
                    let exposed = connection.expose(&[slice], Access::WRITE);
                    exposed.map_err(|it| error(&it))?;
                }
                Event::Received(received) => {
                    connection.release(received.buffer);
                    return Ok(());
                }
                Event::Ended(failure) => return Err(error(&failure)),
                _ => {}
            }
        }
        while let Some((id, event)) = peer.poll() {
            match event {
                Event::Established(_) if !sent => {
                    sent = true;
                    let work = Work::Send {
                        gather: &[],
                        invalidate: None,
                        solicited: false,
                    };
                    let post = Post {
                        id: 1,
                        signalled: false,
                        work,
                    };
                    let posted = peer.connection(id).map(|mut it| it.post(&post));
                    posted.ok_or("gone")?.map_err(|it| error(&it))?;
                }
                Event::Ended(failure) if id == at_peer => return Err(error(&failure)),
                _ => {}
            }
        }
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn every_step_fails_in_turn_and_leaves_nothing() {
    let mut peer = Provider::new(Config::default()).unwrap();
    all(&mut peer).unwrap();
    let settle = |peer: &mut Provider| {
        while peer.count() > 0 {
            peer.wait(Some(Duration::from_millis(1))).unwrap();
            while peer.poll().is_some() {}
        }
    };
    settle(&mut peer);
    let before = descriptors();
    let mut failed = 0;
    for nth in 1.. {
        let sweep = fault::arm(nth);
        let result = all(&mut peer);
        let fired = sweep.fired();
        drop(sweep);
        settle(&mut peer);
        assert_eq!(descriptors(), before, "step {nth}: {result:?}");
        assert_eq!(peer.buffers().1, 0);
        if !fired {
            result.unwrap();
            break;
        }
        failed += usize::from(result.is_err());
    }
    assert!(failed > 5, "only {failed} steps failed");
    all(&mut peer).unwrap();
}

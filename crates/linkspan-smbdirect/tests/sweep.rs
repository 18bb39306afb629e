//! Each allocation, registration, element of a list and post of bring-up and of one send,
//! write and read fails in turn; afterwards credits, buffers and registrations are as
//! before. The seam is of the whole process, so this is one test file with one thread.

use std::sync::Mutex;

use linkspan_mem::fault;
use linkspan_rdma::verbs::{Access, MemoryId, PostError, Slice};
use linkspan_sim::smbdirect::ends::{LIMITS, Pair};
use linkspan_smbdirect::{Error, Misuse, News, Options, Refusal, RegistrationId, State, Status};

/// One test at a time may arm the seam.
static ALONE: Mutex<()> = Mutex::new(());

fn options() -> [Options; 2] {
    [Options::initiator(), Options::listener()].map(|all| Options {
        receive_credit_max: 8,
        send_credit_target: 8,
        registrations: 4,
        queue: 16,
        ..all
    })
}

/// What has to be the same at rest.
fn resources(pair: &Pair) -> [(Vec<u64>, usize); 2] {
    let statuses = pair
        .sides
        .each_ref()
        .map(|side| side.driver.core().status());
    [0, 1].map(|at| {
        let (own, other): (&Status, &Status) = (&statuses[at], &statuses[1 - at]);
        assert_eq!(own.send_credits, other.receives_granted, "{own:?}");
        let posted = u32::from(own.receives_available + own.receives_granted);
        assert_eq!(pair.sides[at].end.receives(), posted);
        let busy = own.works + own.waiting + own.transfers + own.messages + own.held_buffers;
        assert_eq!(busy, 0, "{own:?}");
        let registrations = own.registrations.map(|count| count as u64).to_vec();
        let all = [u64::from(posted)].into_iter().chain(registrations);
        (all.collect(), pair.sides[at].end.lent())
    })
}

/// Until nothing happens, what was refused tried again, and all that came read.
fn settle(pair: &mut Pair) {
    for _ in 0..4 {
        pair.settle();
        pair.now += 200;
        for side in &mut pair.sides {
            while side.driver.core().message().is_some() && !side.read().is_empty() {}
            side.driver.core_mut().handle_timeout(pair.now);
        }
        pair.settle();
    }
}

fn connect() -> Result<Pair, String> {
    let options = options();
    let [asks, answers] = options.each_ref();
    let mut pair = Pair::new([asks, answers], LIMITS).map_err(|why| why.to_string())?;
    settle(&mut pair);
    Ok(pair)
}

/// Ends registrations; a refusal is tried once more.
fn deregister(pair: &mut Pair, id: RegistrationId) {
    for _ in 0..2 {
        pair.sides[0].news.clear();
        if pair.sides[0].driver.core_mut().deregister(id).is_err() {
            return;
        }
        settle(pair);
        let ended = News::Deregistered { id, result: Ok(()) };
        if pair.sides[0].news.contains(&ended) {
            return;
        }
    }
}

/// A message, a write and a read; how many of them were refused.
fn exchange(pair: &mut Pair) -> usize {
    let mut refused = 0;
    for side in &mut pair.sides {
        side.news.clear();
    }
    let message = pair.sides[0].slice(0, 3000);
    refused += usize::from(
        pair.sides[0]
            .driver
            .core_mut()
            .send(&[message], None)
            .is_err(),
    );
    settle(pair);
    for access in [Access::WRITE, Access::READ] {
        let there = [
            pair.sides[0].slice(8192, 100),
            pair.sides[0].slice(9000, 200),
        ];
        let Ok((id, descriptor)) = pair.sides[0].register(&there, access) else {
            refused += 1;
            continue;
        };
        let local = [pair.sides[1].slice(0, 300)];
        let core = pair.sides[1].driver.core_mut();
        let started = if access.write {
            core.write(&local, &[descriptor], 0)
        } else {
            core.read(&local, &[descriptor], 0)
        };
        refused += usize::from(started.is_err());
        settle(pair);
        deregister(pair, id);
    }
    settle(pair);
    let news = pair.sides.iter().flat_map(|side| &side.news);
    refused
        + news
            .filter(|news| {
                matches!(
                    news,
                    News::Sent { result: Err(_), .. } | News::Transferred { result: Err(_), .. }
                )
            })
            .count()
}

/// Everything came back, and both know that it is over.
#[track_caller]
fn assert_over(pair: &mut Pair) {
    for side in &mut pair.sides {
        side.driver.core_mut().disconnect();
    }
    settle(pair);
    for side in &mut pair.sides {
        while let Some(message) = side.driver.core().message() {
            side.driver.core_mut().consume(message.len);
        }
        side.turn(pair.now);
        let status = side.driver.core().status();
        assert_eq!(status.state, State::Disconnected);
        let busy = status.works + status.waiting + status.transfers + status.held_buffers;
        assert_eq!((busy, side.end.lent()), (0, 0), "{status:?}");
        assert_eq!(status.registrations[..4], [0; 4]);
    }
}

/// After a failure: all is as it was and goes on, or the connection is over as a whole.
#[track_caller]
fn assert_as_before(pair: &mut Pair, before: &[(Vec<u64>, usize); 2]) -> bool {
    let connected = |pair: &Pair| {
        let mut sides = pair.sides.iter();
        sides.all(|side| side.driver.core().state() == State::Connected)
    };
    if connected(pair) {
        assert_eq!(&resources(pair), before);
        assert_eq!(exchange(pair), 0, "it works again");
        assert_eq!(&resources(pair), before);
        return true;
    }
    assert_over(pair);
    false
}

#[test]
fn each_allocation_fails_in_turn() {
    let _alone = ALONE.lock().unwrap();
    let mut healthy = connect().unwrap();
    let before = resources(&healthy);
    assert_eq!(exchange(&mut healthy), 0);
    assert_eq!(resources(&healthy), before);
    let (mut failed, mut lived, mut ended, mut nth) = (0, 0, 0, 1);
    loop {
        let armed = fault::arm(nth);
        let result = connect().map(|mut pair| {
            exchange(&mut pair);
            pair
        });
        let fired = armed.fired();
        drop(armed);
        match result {
            Err(why) => {
                assert!(why.contains("refused"), "{why}");
                failed += 1;
            }
            Ok(mut pair) => {
                let lives = assert_as_before(&mut pair, &before);
                lived += usize::from(lives);
                ended += usize::from(!lives);
            }
        }
        if !fired {
            break;
        }
        nth += 1;
    }
    println!("{nth} points: {failed} prevent a connection, {lived} cost nothing, {ended} end it");
    assert!(
        failed > 20 && lived > 5 && ended > 0,
        "{failed} {lived} {ended}"
    );
}

#[test]
fn each_call_of_the_provider_is_refused_in_turn() {
    let _alone = ALONE.lock().unwrap();
    let healthy = connect().unwrap();
    let before = resources(&healthy);
    let (mut lived, mut ended) = (0, 0);
    for at in [0, 1] {
        let mut nth = 1;
        loop {
            let options = options();
            let [asks, answers] = options.each_ref();
            let mut pair = Pair::new([asks, answers], LIMITS).unwrap();
            pair.sides[at].refuses = nth;
            settle(&mut pair);
            exchange(&mut pair);
            let fired = pair.sides[at].refuses == 0;
            pair.sides[at].refuses = 0;
            if assert_as_before(&mut pair, &before) {
                lived += 1;
            } else {
                ended += 1;
            }
            if !fired {
                break;
            }
            nth += 1;
        }
    }
    println!("{lived} refusals cost nothing, {ended} end the connection");
    assert!(lived > 8 && ended > 2, "{lived} {ended}");
}

#[test]
fn each_element_of_a_list_fails_in_turn() {
    let _alone = ALONE.lock().unwrap();
    let gone = Slice {
        memory: MemoryId(77),
        len: 10,
        offset: 0,
    };
    for at in 0..5 {
        let mut pair = connect().unwrap();
        let before = resources(&pair);
        let side = &mut pair.sides[0];
        let mut list = [0, 100, 200, 300, 400].map(|offset| side.slice(offset, 10));
        list[at] = gone;
        let message = side.send(&list);
        // A registration of it is not there either.
        let refused = Refusal::Post(PostError::Memory { slice: gone });
        assert_eq!(side.register(&list, Access::READ), Err(refused));
        settle(&mut pair);
        let result = Err(refused);
        assert!(pair.sides[0].news.contains(&News::Sent { message, result }));
        // The same of a write and a read.
        let there = [pair.sides[1].slice(0, 50)];
        let both = Access {
            read: true,
            write: true,
        };
        let (id, descriptor) = pair.sides[1].register(&there, both).unwrap();
        let core = pair.sides[0].driver.core_mut();
        let transfers = [
            core.write(&list, &[descriptor], 0).unwrap(),
            core.read(&list, &[descriptor], 0).unwrap(),
        ];
        settle(&mut pair);
        for (transfer, write) in transfers.into_iter().zip([true, false]) {
            let news = &pair.sides[0].news;
            let told = News::Transferred {
                transfer,
                write,
                result,
            };
            assert!(news.contains(&told), "{news:?}");
        }
        pair.sides[1].driver.core_mut().deregister(id).unwrap();
        settle(&mut pair);
        assert!(assert_as_before(&mut pair, &before));
    }
}

/// A later element: a part is sent, and nothing can follow but its rest.
#[test]
fn an_element_of_a_later_fragment_ends_the_connection() {
    let _alone = ALONE.lock().unwrap();
    let mut pair = connect().unwrap();
    let gone = Slice {
        memory: MemoryId(77),
        len: 10,
        offset: 0,
    };
    let first = pair.sides[0].slice(0, 3000);
    let message = pair.sides[0].send(&[first, gone]);
    let waiting = pair.sides[0].send(&[first]);
    settle(&mut pair);
    let result = Err(Refusal::Ended(Error::Post));
    for message in [message, waiting] {
        let news = &pair.sides[0].news;
        let told = News::Sent { message, result };
        assert_eq!(
            news.iter().filter(|news| **news == told).count(),
            1,
            "{news:?}"
        );
    }
    let state = State::Disconnected;
    let again = pair.sides[0].driver.core_mut().send(&[first], None);
    assert_eq!(again, Err(Misuse::NotConnected { state }));
    assert_over(&mut pair);
}

//! Back ends that are silent, leave, answer wrongly or twice, at every step of a
//! bring-up: each is an error with its name, and the process holds afterwards
//! what it held before. Of later ones none ends a link.
//!
//! A census is of the whole process, so all of this is one test.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use linkspan_engine::Phase;
use linkspan_engine::vhost_user::LinkError;
use linkspan_sys::{EventFd, Stream};
use linkspan_testkit::back_end::{Answer, Caller, Message, Says, honest};
use linkspan_testkit::census::{settled, start_reaper};
use linkspan_testkit::driven::connect;
use linkspan_testkit::{BackEnd, Census, Driven, PATIENCE, logs};
use linkspan_vhost::frontend::Error;
use linkspan_vhost::message::{Reply, Request};
use linkspan_vhost::wire::{self, HEADER_BYTES, Header};

/// What a silent back end costs.
const IMPATIENCE: Duration = Duration::from_millis(500);

/// What each link of these tests asks for, in this order, from the first back end.
const STEPS: [Request; 16] = [
    Request::GetFeatures,
    Request::GetProtocolFeatures,
    Request::GetQueueNum,
    Request::GetMaxMemSlots,
    Request::SetOwner,
    Request::GetConfig,
    Request::SetBackendReqFd,
    Request::SetFeatures,
    Request::AddMemReg,
    Request::GetInflightFd,
    Request::SetVringNum,
    Request::SetVringBase,
    Request::SetVringAddr,
    Request::SetVringCall,
    Request::SetVringKick,
    Request::SetVringEnable,
];

/// What a back end does instead of the honest answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Silent,
    Close,
    HalfThenClose,
    Twice,
    AnswerToAnother,
    LongerByOne,
    Empty,
    WithDescriptor,
    WithNineDescriptors,
    NoReplyFlag,
    WrongVersion,
    EndlessBody,
    Nack,
    ByteByByte,
}

const ACTS: [Act; 14] = [
    Act::Silent,
    Act::Close,
    Act::HalfThenClose,
    Act::Twice,
    Act::AnswerToAnother,
    Act::LongerByOne,
    Act::Empty,
    Act::WithDescriptor,
    Act::WithNineDescriptors,
    Act::NoReplyFlag,
    Act::WrongVersion,
    Act::EndlessBody,
    Act::Nack,
    Act::ByteByByte,
];

#[test]
fn nothing_is_left_whatever_a_back_end_does() {
    logs::capture();
    start_reaper();
    let folder = tempfile::tempdir().unwrap();
    let back = BackEnd::listen(&folder.path().join("socket"));
    let before = Census::at_rest();
    orderly(&back);
    before.assert_restored("after an orderly link");
    for act in ACTS {
        for step in STEPS {
            if makes_sense(act, step) {
                println!("{act:?} at {step:?}");
                first(&back, act, step);
            }
        }
        before.assert_restored(&format!("{act:?}"));
    }
    descriptors_that_are_no_memory(&back);
    before.assert_restored("after regions that are no memory");
    for misuse in MISUSES {
        misused(&back, misuse);
        before.assert_restored(&format!("after {misuse:?}"));
    }
    anew(&back);
    before.assert_restored("after a link that had many sockets for requests");
    later(&back);
    before.assert_restored("after a link that had many back ends");
}

fn makes_sense(act: Act, step: Request) -> bool {
    let is_ack = step.message().reply == Reply::Ack;
    match act {
        // While it negotiates a back end has a second at least.
        Act::Silent => !matches!(
            step,
            Request::GetProtocolFeatures
                | Request::GetQueueNum
                | Request::GetMaxMemSlots
                | Request::SetOwner
        ),
        Act::Nack => is_ack,
        // An empty body says that it could not be read.
        Act::Empty => step != Request::GetConfig,
        Act::WithDescriptor => step != Request::GetInflightFd,
        _ => true,
    }
}

/// Only those that are silent are not waited for.
fn bring_up(back: &BackEnd, act: Act) -> Result<Driven, LinkError> {
    let (connect_limit, step_limit) = match act {
        Act::Silent => (Duration::ZERO, IMPATIENCE),
        _ => (PATIENCE, PATIENCE),
    };
    let connection = connect(&back.path(), 2, connect_limit)?;
    Driven::start(connection.with_step_limit(step_limit), 2)
}

/// Answers honestly until both rings run; whether the link let it come so far.
fn enables_both(caller: &Caller, says: &Says) -> bool {
    let mut enabled = 0;
    while enabled < 2 {
        let Some(message) = caller.next() else {
            return false;
        };
        enabled += u32::from(message.request == Request::SetVringEnable);
        caller.answer(says, &message);
    }
    true
}

fn orderly(back: &BackEnd) {
    std::thread::scope(|scope| {
        let front = scope.spawn(|| Driven::new(&back.path(), 2));
        let caller = back.accept();
        let says = Says::default();
        assert!(enables_both(&caller, &says));
        let driven = front.join().unwrap().unwrap();
        driven.expect_phase(Phase::Running);
        drop(driven);
        assert_eq!(caller.serve(&says), []);
    });
}

/// The first back end does this at that step.
fn first(back: &BackEnd, act: Act, step: Request) {
    let (says, error) = (Says::default(), std::sync::OnceLock::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let outcome = bring_up(back, act);
            match (act, outcome) {
                // What comes twice after the last message ends no command.
                (Act::ByteByByte | Act::Twice, Ok(driven)) => drop(driven),
                (_, outcome) => drop(error.set(outcome.map(drop).unwrap_err())),
            }
        });
        let caller = back.accept();
        let message = caller.until(&says, |message| message.request == step);
        let message = message.expect("the link asks for it");
        misbehave(&caller, act, &says, &message);
        match act {
            Act::Silent => caller.expect_closed(),
            Act::Close | Act::HalfThenClose => drop(caller),
            _ => drop(caller.serve(&says)),
        }
    });
    if let Some(error) = error.get() {
        judge(act, step, error);
    } else {
        assert!(matches!(act, Act::ByteByByte | Act::Twice));
    }
}

#[track_caller]
fn judge(act: Act, step: Request, error: &LinkError) {
    let named = match act {
        Act::Silent => matches!(error, LinkError::Silent { awaited: Some(at) } if *at == step),
        Act::Close | Act::HalfThenClose => matches!(error, LinkError::Closed),
        Act::Twice => matches!(
            error,
            LinkError::Protocol(Error::WrongReply { .. } | Error::Unasked { .. })
        ),
        Act::AnswerToAnother => matches!(
            error,
            LinkError::Protocol(Error::WrongReply { request, got: 40 }) if *request == step
        ),
        Act::LongerByOne | Act::Empty => matches!(
            error,
            LinkError::Protocol(Error::ReplySize { .. } | Error::ReplyConfig { .. })
        ),
        Act::WithDescriptor => {
            matches!(error, LinkError::Protocol(Error::ReplyFds { got: 1, .. }))
        }
        Act::WithNineDescriptors => matches!(error, LinkError::TooManyFds { count: 9.. }),
        Act::NoReplyFlag | Act::WrongVersion | Act::EndlessBody => {
            matches!(error, LinkError::Protocol(Error::Framing(_)))
        }
        Act::Nack => match error {
            LinkError::Refused { request, code } => (*request, *code) == (step, 1),
            LinkError::Protocol(Error::Refused { request, code }) => (*request, *code) == (step, 1),
            _ => false,
        },
        Act::ByteByByte => false,
    };
    assert!(named, "{act:?} at {step:?}: {error:?}");
    // Those who broke the protocol, and those who are not there.
    let absent = matches!(act, Act::Silent | Act::Close | Act::HalfThenClose);
    assert_eq!(error.is_peer(), !absent, "{error:?}");
}

fn misbehave(caller: &Caller, act: Act, says: &Says, message: &Message) {
    let right = honest(says, message);
    let Some(Answer { mut bytes, fds }) = right else {
        panic!("there is an answer to {:?}", message.request);
    };
    let event = EventFd::new().unwrap();
    let mut with: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    match act {
        Act::Silent | Act::Close => return,
        Act::HalfThenClose => bytes.truncate(HEADER_BYTES - 1),
        Act::Twice => {
            caller.say_raw(&bytes, &with);
        }
        Act::AnswerToAnother => bytes[0] = 40,
        Act::LongerByOne => {
            let mut body = bytes[HEADER_BYTES..].to_vec();
            body.push(0);
            bytes = wire::encode(message.header.request, Header::REPLY, &body);
        }
        Act::Empty => bytes = wire::encode(message.header.request, Header::REPLY, &[]),
        Act::WithDescriptor => with.push(event.as_fd()),
        Act::WithNineDescriptors => with = vec![event.as_fd(); 9],
        Act::NoReplyFlag => bytes[4] = 1,
        Act::WrongVersion => bytes[4] = 4 | 2,
        Act::EndlessBody => bytes[8..12].fill(0xff),
        Act::Nack => bytes[HEADER_BYTES] = 1,
        Act::ByteByByte => {
            for (at, byte) in bytes.iter().enumerate() {
                let with = if at == 0 { with.as_slice() } else { &[] };
                caller.say_raw(&[*byte], with);
            }
            return;
        }
    }
    caller.say_raw(&bytes, &with);
}

/// A region for requests in flight in a pipe, a socket or an eventfd: whoever
/// kept it would hand it to the next back end.
fn descriptors_that_are_no_memory(back: &BackEnd) {
    let kinds: [fn() -> OwnedFd; 3] = [
        || rustix::pipe::pipe().unwrap().0,
        || {
            Stream::pair()
                .unwrap()
                .0
                .as_fd()
                .try_clone_to_owned()
                .unwrap()
        },
        || EventFd::new().unwrap().into(),
    ];
    let says = Says::default();
    for kind in kinds {
        std::thread::scope(|scope| {
            let front = scope.spawn(|| bring_up(back, Act::WithDescriptor).unwrap_err());
            let caller = back.accept();
            let wanted = |message: &Message| message.request == Request::GetInflightFd;
            let message = caller.until(&says, wanted).unwrap();
            let Answer { bytes, .. } = honest(&says, &message).unwrap();
            caller.say_raw(&bytes, &[kind().as_fd()]);
            caller.expect_closed();
            let error = front.join().unwrap();
            assert!(matches!(error, LinkError::Inflight(_)), "{error:?}");
            assert!(error.is_peer());
        });
    }
}

/// What a back end does with the socket on which it may make requests.
#[derive(Clone, Copy, Debug)]
enum Misuse {
    Close,
    HalfThenClose,
    Half,
    Descriptors,
    WrongVersion,
    UnreadAnswers,
}

const MISUSES: [Misuse; 6] = [
    Misuse::Close,
    Misuse::HalfThenClose,
    Misuse::Half,
    Misuse::Descriptors,
    Misuse::WrongVersion,
    Misuse::UnreadAnswers,
];

/// Answers honestly until one ring runs; the socket for requests that came.
fn enables_one(caller: &Caller, says: &Says) -> Caller {
    let wanted = |message: &Message| message.request == Request::SetBackendReqFd;
    let mut message = caller.until(says, wanted).unwrap();
    caller.answer(says, &message);
    let enabled = |message: &Message| message.request == Request::SetVringEnable;
    caller.answer(says, &caller.until(says, enabled).unwrap());
    message.request_socket()
}

fn with_requests(back: &BackEnd) -> (Driven, Caller, Caller) {
    std::thread::scope(|scope| {
        let front = scope.spawn(|| Driven::new(&back.path(), 1).unwrap());
        let caller = back.accept();
        let requests = enables_one(&caller, &Says::default());
        (front.join().unwrap(), caller, requests)
    })
}

fn misused(back: &BackEnd, misuse: Misuse) {
    println!("{misuse:?} of the socket for requests");
    let whole = Census::at_rest();
    let (driven, caller, requests) = with_requests(back);
    let running = Census::at_rest();
    let request = wire::encode(99, Header::NEED_REPLY, &[]);
    let event = EventFd::new().unwrap();
    match misuse {
        Misuse::Close => {}
        Misuse::HalfThenClose => {
            requests.say_raw(&request[..HEADER_BYTES - 1], &[event.as_fd()]);
        }
        Misuse::Half => {
            requests.say_raw(&request[..HEADER_BYTES - 1], &[]);
        }
        Misuse::Descriptors => {
            requests.say_raw(&wire::encode(2, 0, &[]), &[event.as_fd(); 8]);
            requests.expect_closed();
        }
        Misuse::WrongVersion => {
            requests.say_raw(&wire::encode(2, 2, &[]), &[]);
            requests.expect_closed();
        }
        Misuse::UnreadAnswers => while requests.say_within(&request, IMPATIENCE) {},
    }
    drop(event);
    let kept = matches!(misuse, Misuse::Half | Misuse::UnreadAnswers).then_some(requests);
    if kept.is_none() {
        // Both ends, while the link runs.
        let closed = || Census::take().count("fd socket") + 2 == running.count("fd socket");
        assert!(settled(closed), "{}", running.difference(&Census::take()));
    }
    driven.expect_phase(Phase::Running);
    drop(driven);
    assert_eq!(caller.serve(&Says::default()), []);
    drop((kept, caller));
    whole.assert_restored("after the link");
}

/// Each connection has a socket for requests of its own, and leaves none.
fn anew(back: &BackEnd) {
    let (mut driven, mut caller, mut requests) = with_requests(back);
    std::thread::scope(|scope| {
        let mut queue = driven.queues.pop().unwrap();
        // It ends with the link.
        scope.spawn(move || while queue.answer().is_ok() && queue.wait(None).is_ok() {});
        let running = Census::at_rest();
        for _ in 0..10 {
            drop((caller, requests));
            caller = back.accept();
            requests = enables_one(&caller, &Says::default());
            assert_eq!(requests.ask(99, &[]), Some(1));
            running.assert_restored("after a reconnect");
        }
        drop(driven);
        assert_eq!(requests.reply(99), None);
    });
}

/// A link that runs meets one unfit back end after the other, and then one
/// that does.
fn later(back: &BackEnd) {
    let says = Says::default();
    std::thread::scope(|scope| {
        let front = scope.spawn(|| {
            let connection = connect(&back.path(), 2, PATIENCE).unwrap();
            Driven::start(connection.with_step_limit(IMPATIENCE), 2).unwrap()
        });
        let caller = back.accept();
        assert!(enables_both(&caller, &says));
        let mut driven = front.join().unwrap();
        driven.expect_phase(Phase::Running);
        // Both queues wait for their device, as those of a load do.
        let mut threads = Vec::new();
        for mut queue in driven.queues.drain(..) {
            threads.push(scope.spawn(move || {
                // No back end here answers requests: it ends with the link.
                while queue.answer().is_ok() && queue.wait(None).is_ok() {}
            }));
        }
        drop(caller);
        let mut generation = driven.link.endpoint().generation();
        for (act, step) in LATER {
            println!("later: {act:?} at {step:?}");
            // A machine that is busy may make an honest answer come too late.
            let (caller, message) = loop {
                let caller = back.accept();
                if let Some(message) = caller.until(&says, |message| message.request == step) {
                    break (caller, message);
                }
            };
            // It asks, so this is its generation.
            let now = driven.link.endpoint().generation();
            assert!(now > generation, "each back end is another generation");
            generation = now;
            misbehave(&caller, act, &says, &message);
            if !matches!(act, Act::Close | Act::HalfThenClose) {
                caller.expect_closed();
            }
            let phase = driven.link.endpoint().phase();
            assert_ne!(phase, Phase::Stopped, "{act:?} at {step:?}");
        }
        for (what, says) in misfits() {
            println!("later: {what}");
            let caller = back.accept();
            let asked = caller.serve(&says);
            assert!(!asked.contains(&Request::SetVringNum), "{what}: {asked:?}");
            driven.expect_phase(Phase::Reconnecting);
        }
        logs::expect_line(&["a back end that does not do", "2 rings are wanted", "has 0"]);
        let mut caller = back.accept();
        while !enables_both(&caller, &says) {
            caller = back.accept();
        }
        driven.expect_phase(Phase::Running);
        drop(driven);
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
}

const LATER: [(Act, Request); 12] = [
    (Act::Close, Request::GetFeatures),
    (Act::Silent, Request::GetFeatures),
    (Act::Nack, Request::SetOwner),
    (Act::Twice, Request::GetQueueNum),
    (Act::Nack, Request::SetFeatures),
    (Act::WithNineDescriptors, Request::SetInflightFd),
    (Act::Nack, Request::SetInflightFd),
    (Act::Silent, Request::SetVringAddr),
    (Act::Nack, Request::SetVringKick),
    (Act::HalfThenClose, Request::SetVringKick),
    (Act::EndlessBody, Request::SetVringEnable),
    (Act::Close, Request::SetVringEnable),
];

/// Back ends that keep to the protocol and have less than the first one.
fn misfits() -> [(&'static str, Says); 4] {
    let says = Says::default;
    [
        (
            "no queues",
            Says {
                queues: 0,
                ..says()
            },
        ),
        (
            "fewer queues",
            Says {
                queues: 1,
                ..says()
            },
        ),
        (
            "fewer features",
            Says {
                features: 1 << 30,
                ..says()
            },
        ),
        (
            "fewer memory slots",
            Says {
                memory_slots: 31,
                ..says()
            },
        ),
    ]
}

//! A host's messages against the services of a guest, and a guest's replies against
//! the host's ends.
//!
//! The bytes are a script; the first one says who is under test. A guest answers all
//! that has a header, in its own buffer; what is written of a file lies in what was
//! received and within the file; a sender ends each file with one word.

use linkspan_vmbus::describe::{describe, is_setup};
use linkspan_vmbus::fcopy::{
    self, Effect, Failure, Job, Options, Output, Policy, Receiver, Roots, Sender,
};
use linkspan_vmbus::ic::heartbeat::{Monitor, Pulse};
use linkspan_vmbus::ic::shutdown::{Obedience, Requester};
use linkspan_vmbus::ic::timesync::{Clock, Follower, Purpose, Sample};
use linkspan_vmbus::ic::{Echo, Guest, GuestService, HEADER_BYTES, Reaction, Status};

use super::Outcome;
use crate::input::Input;

/// Who is under test, the first byte.
pub(crate) mod end {
    pub(crate) const FILE_COPY: u8 = 0;
    pub(crate) const HEARTBEAT: u8 = 1;
    pub(crate) const SHUTDOWN: u8 = 2;
    pub(crate) const TIME_SYNC: u8 = 3;
    pub(crate) const SENDER: u8 = 4;
    pub(crate) const HOSTS: u8 = 5;
    pub(crate) const COUNT: u8 = 6;
}

/// Steps against a guest, the first byte of each.
pub(crate) mod step {
    /// A message as it is: bytes, 16 bits; those.
    pub(crate) const RAW: u8 = 0;
    /// A message with a sound frame: kind, 8 bits; bytes of the body, 16 bits, and how many
    /// of them follow, 16 bits, the rest being zero; those.
    pub(crate) const BODY: u8 = 1;
    /// How effects end from now on, 8 bits.
    pub(crate) const ANSWER: u8 = 2;
    /// It is saved and restored.
    pub(crate) const SAVE: u8 = 3;
    /// The channel goes away.
    pub(crate) const END: u8 = 4;
    /// START: bytes of the file's name, 8 bits; those; the same of the path; bytes of the
    /// file, 64 bits.
    pub(crate) const START: u8 = 5;
    /// How many there are.
    pub(crate) const COUNT: u8 = 6;
}

/// Steps against a host's end, the first byte of each.
pub(crate) mod host_step {
    /// What it sends next comes back changed: status, 8 bits; a place, 16 bits, and what is
    /// there exclusive-ored with 8 bits.
    pub(crate) const REPLY: u8 = 0;
    /// A message as it is: bytes, 16 bits; those.
    pub(crate) const RAW: u8 = 1;
    /// A file begins: its bytes, 32 bits.
    pub(crate) const SEND: u8 = 2;
    /// It is stopped.
    pub(crate) const CANCEL: u8 = 3;
    /// Time is over.
    pub(crate) const EXPIRE: u8 = 4;
    /// It is saved and restored.
    pub(crate) const SAVE: u8 = 5;
    /// How many there are.
    pub(crate) const COUNT: u8 = 6;
}

const STATUSES: [Status; 4] = [
    Status::OK,
    Status::FAIL,
    Status::DISK_FULL,
    Status::ALREADY_EXISTS,
];

/// The target.
pub fn target(data: &[u8]) {
    run(data);
}

/// Runs a script to the end.
pub fn run(data: &[u8]) -> Outcome {
    let mut input = Input::new(data);
    let Some(end) = input.u8() else {
        return Outcome::default();
    };
    match end % end::COUNT {
        end::FILE_COPY => {
            let policy = Policy {
                roots: Roots::new(&["/tmp", "/srv/in"]).expect("roots"),
                max_size: 1 << 40,
            };
            let mut size = 0;
            guest(
                &mut input,
                || Receiver::new(policy.clone()),
                |effect, len| {
                    check_effect(effect, len, &mut size);
                },
            )
        }
        end::HEARTBEAT => guest(&mut input, Pulse::default, |effect, _| match *effect {}),
        end::SHUTDOWN => guest(
            &mut input,
            || Obedience,
            |wish, _| {
                assert!(wish.message.len() <= 3 * 2048);
            },
        ),
        end::TIME_SYNC => guest(&mut input, || Follower, |_, _| ()),
        end::SENDER => sender(&mut input),
        _ => hosts(&mut input),
    }
}

/// Whatever goes by can be put into words.
fn watch(payload: &[u8]) {
    assert!(!describe(payload).is_empty());
    assert!(!is_setup(payload) || payload.len() >= HEADER_BYTES);
}

/// `size` is that of the file that is open.
fn check_effect(effect: &Effect, len: usize, size: &mut u64) {
    match effect {
        Effect::Open(place) => {
            assert!(place.root < 2 && i64::try_from(place.size).is_ok());
            let target = match &place.target {
                fcopy::Target::In { name } => [name, ""],
                fcopy::Target::At { last, name } => [last.as_str(), name],
            };
            let parts = place.folder.split('/').chain(target);
            for part in parts {
                assert!(part.len() <= 255 && part != ".." && part != ".");
                assert!(!part.contains(['/', '\\', '\0']));
            }
            *size = place.size;
        }
        Effect::Write { offset, data } => {
            assert!(data.end <= len && (1..=6144).contains(&data.len()));
            assert!(offset + data.len() as u64 <= *size);
        }
        Effect::Finish | Effect::Discard => {}
    }
}

fn framed(kind: u8, size: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, 0, 0, 0];
    bytes.extend((u32::from(size) + 20).to_le_bytes());
    bytes.extend([3, 0, 0, 0, kind, 0, 1, 0, 1, 0]);
    bytes.extend(size.to_le_bytes());
    bytes.extend([0, 0, 0, 0, 9, 3, 0, 0]);
    bytes.extend(body);
    bytes.resize((HEADER_BYTES + usize::from(size)).next_multiple_of(8), 0);
    bytes
}

/// The body of START. Its flags are the low bits of its size.
fn start(input: &mut Input<'_>) -> Option<Vec<u8>> {
    let mut body = vec![0; 1088];
    for at in [36, 556] {
        let len = input.u8()?;
        let name = input.bytes(len.into());
        body[at..at + name.len()].copy_from_slice(name);
    }
    let size: [u8; 8] = *input.bytes(8).first_chunk()?;
    body[1076] = size[0] & 3;
    body[1080..].copy_from_slice(&size);
    Some(body)
}

fn guest<S: GuestService>(
    input: &mut Input<'_>,
    make: impl Fn() -> S,
    mut look: impl FnMut(&S::Effect, usize),
) -> Outcome {
    let mut outcome = Outcome::default();
    let (mut guest, mut answer) = (Guest::new(make(), Echo::Full), Status::OK);
    let mut steps = || -> Option<()> {
        loop {
            let mut payload = match input.u8()? % step::COUNT {
                step::RAW => {
                    let len = input.u16()?;
                    input.bytes(len.into()).to_vec()
                }
                step::BODY => {
                    let (kind, size, given) = (input.u8()?, input.u16()?, input.u16()?);
                    let body = input.bytes(given.min(size).into());
                    framed(
                        kind,
                        size % 16_000,
                        &body[..body.len().min(usize::from(size % 16_000))],
                    )
                }
                step::START => framed(7, 1088, &start(input)?),
                step::ANSWER => {
                    answer = STATUSES[usize::from(input.u8()?) % STATUSES.len()];
                    continue;
                }
                step::SAVE => {
                    let saved = guest.snapshot().expect("nothing is under way");
                    guest = Guest::restore(make(), Echo::Full, &saved).expect("just saved");
                    assert_eq!(guest.snapshot().expect("quiet"), saved);
                    continue;
                }
                _ => {
                    if let Some(effect) = guest.end() {
                        look(&effect, 0);
                        guest.ended(answer);
                    }
                    assert!(guest.end().is_none());
                    continue;
                }
            };
            let len = payload.len();
            watch(&payload);
            let Some(mut reaction) = outcome.count(guest.receive(&mut payload)) else {
                assert!(len < HEADER_BYTES || payload[25] & 4 != 0);
                continue;
            };
            outcome.done -= 1;
            let mut effects = 0;
            while let Reaction::Do(effect) = reaction {
                look(&effect, len);
                effects += 1;
                assert!(effects <= 3, "one request has an end");
                reaction = guest.answer(answer, &mut payload);
            }
            watch(&payload);
            assert!(matches!(reaction, Reaction::Reply(sent) if sent == len));
            assert_eq!(payload[25], 5);
            let status = u32::from_le_bytes(payload[20..24].try_into().expect("4 bytes"));
            if status == 0 {
                outcome.done += 1;
            } else {
                outcome.refused += 1;
                outcome.error = Some(Status(status).to_string());
            }
        }
    };
    let _ = steps();
    outcome
}

fn sender(input: &mut Input<'_>) -> Outcome {
    let options = Options { outstanding: 4 };
    let mut outcome = Outcome::default();
    let mut sender = Sender::new(options).expect("options");
    // Files whose outcome is still to come: the next can begin before it is taken.
    let mut files = 0_usize;
    let mut steps = || -> Option<()> {
        loop {
            match input.u8()? % host_step::COUNT {
                host_step::REPLY => {
                    let (status, at, change) = (input.u8()?, input.u16()?, input.u8()?);
                    let mut payload = match sender.poll_output() {
                        Some(Output::Send(bytes)) => bytes,
                        Some(Output::Write {
                            head,
                            offset,
                            len,
                            padding,
                        }) => {
                            assert!(files > 0 && len + padding == 6144 && offset < 1 << 32);
                            [&head[..], &[0; 6144]].concat()
                        }
                        Some(Output::Ready) | None => continue,
                        Some(Output::Done) => {
                            assert!(files > 0);
                            files -= 1;
                            outcome.done += 1;
                            continue;
                        }
                        Some(Output::Failed(failure)) => {
                            files = files.saturating_sub(1);
                            outcome.count::<(), _>(Err(failure));
                            continue;
                        }
                    };
                    watch(&payload);
                    reply(&mut payload, status, at, change);
                    watch(&payload);
                    sender.receive(&payload);
                }
                host_step::RAW => {
                    let len = input.u16()?;
                    let payload = input.bytes(len.into());
                    watch(payload);
                    sender.receive(payload);
                }
                host_step::SEND => {
                    let job = Job {
                        file: "file".into(),
                        path: "/tmp/".into(),
                        overwrite: true,
                        create_path: true,
                        size: input.u32()?.into(),
                    };
                    files += usize::from(sender.send(&job).is_ok());
                }
                host_step::CANCEL => sender.cancel(Failure::Stopped),
                host_step::EXPIRE => {
                    sender.expired();
                    assert!(!sender.awaiting());
                }
                _ => {
                    if let Ok(saved) = sender.snapshot() {
                        sender = Sender::restore(options, &saved).expect("just saved");
                        assert_eq!(sender.snapshot().expect("quiet"), saved);
                    }
                }
            }
        }
    };
    let _ = steps();
    outcome
}

/// Turns a request into a reply, with a change.
fn reply(payload: &mut Vec<u8>, status: u8, at: u16, change: u8) {
    if payload[12] == 0 {
        // The last of the versions that were offered, as the only ones.
        payload[18] = 16;
        let (frameworks, versions) = (usize::from(payload[28]), usize::from(payload[30]));
        let framework: [u8; 4] = *payload[36 + 4 * (frameworks - 1)..]
            .first_chunk()
            .expect("a version");
        let version: [u8; 4] = *payload[36 + 4 * (frameworks + versions - 1)..]
            .first_chunk()
            .expect("a version");
        payload[28] = 1;
        payload[30] = 1;
        payload[36..40].copy_from_slice(&framework);
        payload[40..44].copy_from_slice(&version);
    }
    let status = STATUSES[usize::from(status) % STATUSES.len()];
    payload[20..24].copy_from_slice(&status.0.to_le_bytes());
    payload[25] = 5;
    payload.resize(payload.len().next_multiple_of(8), 0);
    let at = usize::from(at) % payload.len();
    payload[at] ^= change;
}

/// The three small host's ends, each with the same replies.
fn hosts(input: &mut Input<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let (mut monitor, mut requester, mut clock) =
        (Monitor::default(), Requester::default(), Clock::default());
    let mut last = [monitor.start(), requester.start(), clock.start()];
    let wish = linkspan_vmbus::ic::shutdown::Request {
        action: linkspan_vmbus::ic::shutdown::Action::Restart,
        force: false,
        reason: 1,
        timeout_s: 2,
        message: "now".into(),
    };
    let sample = Sample {
        purpose: Purpose::Sample,
        unix_100ns: 5,
        reference_100ns: Some(6),
    };
    let mut steps = || -> Option<()> {
        loop {
            let step = input.u8()? % host_step::COUNT;
            let mut given = [const { Vec::new() }; 3];
            match step {
                host_step::REPLY => {
                    let (status, at, change) = (input.u8()?, input.u16()?, input.u8()?);
                    given.clone_from(&last);
                    for payload in &mut given {
                        reply(payload, status, at, change);
                    }
                }
                host_step::RAW => {
                    let len = input.u16()?;
                    given.fill(input.bytes(len.into()).to_vec());
                }
                host_step::CANCEL => {
                    last = [monitor.start(), requester.start(), clock.start()];
                    continue;
                }
                _ => {
                    let next = [monitor.beat(), requester.request(&wish), clock.tell(sample)];
                    for (last, next) in last.iter_mut().zip(next) {
                        if let Ok(next) = next {
                            *last = next;
                        }
                    }
                    continue;
                }
            }
            given.iter().for_each(|payload| watch(payload));
            outcome.count(monitor.receive(&given[0]));
            outcome.count(requester.receive(&given[1]));
            outcome.count(clock.receive(&given[2]));
        }
    };
    let _ = steps();
    outcome
}

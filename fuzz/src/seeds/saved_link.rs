//! Seeds of `saved_link`.

use linkspan_engine::vhost_user::{HandedFd, SavedLink, SavedRing, SavedSession};
use linkspan_vhost::backend::Backend;
use linkspan_virtio::QueueState;

use super::{Expected, Seed};
use crate::saved_link::offer;

fn fresh() -> SavedLink {
    let core = Backend::new(offer()).expect("an offer");
    SavedLink {
        device_id: 2,
        generation: 1,
        paused_at: 1,
        socket: Some((1, 2)),
        session: Some(SavedSession {
            core: core.snapshot().expect("nothing is half done"),
            device: vec![0, 0, 16, 0, 0, 0, 0, 0],
            rings: Vec::new(),
            changed: false,
        }),
        fds: vec![HandedFd::Listener, HandedFd::Connection],
    }
}

fn with(change: impl Fn(&mut SavedSession)) -> Vec<u8> {
    let mut link = fresh();
    change(link.session.as_mut().expect("a session"));
    link.bytes()
}

/// One byte of a link is another one.
fn spoilt(at: usize, byte: u8) -> Vec<u8> {
    let mut bytes = fresh().bytes();
    bytes[at] = byte;
    bytes
}

/// The session as the form before the one that is written has it: 40 bytes of head.
fn earlier(session: &mut SavedSession) {
    session.core.drain(40..size_of_head());
    session.core[8] = 1;
}

/// Bytes of the head of a session: what is not of its 4 rings, of 40 bytes each.
fn size_of_head() -> usize {
    let core = Backend::new(offer()).expect("an offer");
    core.snapshot().expect("nothing is half done").len() - 4 * 40
}

pub(super) fn seeds() -> Vec<Seed> {
    let idle = SavedLink {
        session: None,
        ..fresh()
    };
    let ring = |index| SavedRing {
        index,
        retired: false,
        state: QueueState::default(),
    };
    let twice = SavedLink {
        fds: vec![HandedFd::Log, HandedFd::Log],
        ..fresh()
    };
    let all = SavedLink {
        fds: vec![
            HandedFd::Region(0),
            HandedFd::Kick(0),
            HandedFd::Call(0),
            HandedFd::Err(0),
            HandedFd::Inflight,
            HandedFd::LogTold,
            HandedFd::Requests,
        ],
        ..fresh()
    };
    #[rustfmt::skip]
    let rows: [(&str, Vec<u8>, &str); 13] = [
        ("fresh", fresh().bytes(), "session"),
        ("idle", idle.bytes(), "idle"),
        ("all_descriptors", all.bytes(), "session"),
        ("earlier_session", with(earlier), "session"),
        ("changed", with(|it| it.changed = true), "session"),
        ("rings", with(|it| it.rings = vec![ring(0), ring(3)]), "session"),
        ("ring_twice", with(|it| it.rings = vec![ring(3), ring(3)]), "refused"),
        ("session_cut", with(|it| it.core.truncate(60)), "no session"),
        ("session_of_others", with(|it| it.core[0] = b'x'), "no session"),
        ("descriptor_twice", twice.bytes(), "refused"),
        ("newer", spoilt(8, 2), "refused"),
        ("of_others", spoilt(0, b'x'), "refused"),
        ("many_rings", spoilt(35, 0xff), "refused"),
    ];
    let seed = |(name, bytes, what): (&str, Vec<u8>, &'static str)| Seed {
        target: "saved_link",
        name: name.to_owned(),
        bytes,
        expected: Expected::Saved(what),
    };
    rows.into_iter().map(seed).collect()
}

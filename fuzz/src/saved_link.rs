//! A link as the bytes with which a process hands it to the next one: whatever they are, they
//! are refused by name, or are a link whose session could have come to be by messages.

use linkspan_engine::vhost_user::SavedLink;
use linkspan_vhost::VHOST_F_LOG_ALL;
use linkspan_vhost::backend::{Backend, Offer};

/// The target `saved_link`.
pub fn target(bytes: &[u8]) {
    run(bytes);
}

/// What they are.
pub fn run(bytes: &[u8]) -> &'static str {
    let Ok(link) = SavedLink::parse(bytes) else {
        return "refused";
    };
    assert_eq!(SavedLink::parse(&link.bytes()).as_ref(), Ok(&link));
    let Some(session) = link.session else {
        return "idle";
    };
    let Ok(backend) = Backend::restore(offer(), &session.core) else {
        return "no session";
    };
    for (index, ring) in (0..).zip(backend.rings()) {
        assert_eq!(ring.running, backend.running_setup(index).is_some());
    }
    let again = backend.snapshot().expect("nothing is half done");
    let again = Backend::restore(offer(), &again).expect("its own bytes");
    assert_eq!(again.regions(), backend.regions());
    assert_eq!(again.rings(), backend.rings());
    "session"
}

/// A disk of 4 queues.
pub fn offer() -> Offer {
    Offer {
        // VERSION_1 and RING_PACKED, which decides about sizes and bases.
        features: 1 << 32 | 1 << 34 | VHOST_F_LOG_ALL,
        protocol_features: Backend::PROTOCOL_FEATURES,
        queues: 4,
        queue_num: 4,
        queue_size_max: 1024,
        config_size: 60,
        memory_slots: 32,
    }
}

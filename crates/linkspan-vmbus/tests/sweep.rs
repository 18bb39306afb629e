//! Memory that the machine refuses: each acquisition fails in turn, and everything is
//! as it was before. One test, since a sweep is the process's.

use linkspan_mem::fault::{self, Injected, Site};
use linkspan_vmbus::channel::{Guest, Host, Offer, guest, host};
use linkspan_vmbus::ic::FILE_COPY;
use linkspan_vmbus::{Guid, Packet};

const REFUSED: Injected = Injected { site: Site::Alloc };

/// Carries messages until both are silent; errors of the host are handed back.
fn talk(host: &mut Host, guest: &mut Guest) -> (Vec<guest::Output>, Vec<host::Error>) {
    let (mut events, mut errors) = (Vec::new(), Vec::new());
    loop {
        if let Some(output) = host.poll_output() {
            if let host::Output::Send(message) = output {
                guest.receive(&message).unwrap();
            }
        } else if let Some(output) = guest.poll_output() {
            match output {
                guest::Output::Send { message, .. } => {
                    errors.extend(host.receive(&message).err());
                }
                event => events.push(event),
            }
        } else {
            return (events, errors);
        }
    }
}

#[test]
fn refused_memory_changes_nothing() {
    let sweep = fault::arm(1);
    assert_eq!(Packet::new(4096).err(), Some(REFUSED));
    drop(sweep);
    assert!(Packet::new(4096).is_ok());

    let mut host = Host::new(host::Limits::default());
    let relid = host
        .offer(Offer::service(&FILE_COPY, Guid::default(), 1))
        .unwrap();
    let mut guest = Guest::new(guest::Limits::default());
    guest.connect().unwrap();
    talk(&mut host, &mut guest);
    let saved = (host.snapshot().unwrap(), guest.snapshot().unwrap());
    let pages = [7; 100];
    let len = 100 * 4096;

    // The guest keeps the page numbers until they are sent.
    let sweep = fault::arm(1);
    let refused = guest.share(relid, len, &pages);
    assert_eq!(refused, Err(guest::Misuse::Refused(REFUSED)));
    drop(sweep);
    assert_eq!(guest.snapshot().unwrap(), saved.1);

    // The host keeps them for as long as the memory is shared.
    let gpadl = guest.share(relid, len, &pages).unwrap();
    let sweep = fault::arm(1);
    let (events, errors) = talk(&mut host, &mut guest);
    assert!(sweep.fired());
    drop(sweep);
    let told = |event: &guest::Output| matches!(event, guest::Output::NotShared { gpadl: name, .. } if *name == gpadl);
    assert!(matches!(&events[..], [event] if told(event)), "{events:?}");
    assert_eq!(errors[0], host::Error::Refused(REFUSED));
    assert_eq!(host.snapshot().unwrap(), saved.0);

    let gpadl = guest.share(relid, len, &pages).unwrap();
    let (events, errors) = talk(&mut host, &mut guest);
    assert_eq!(
        (events, errors),
        (vec![guest::Output::Shared(gpadl)], vec![])
    );
}

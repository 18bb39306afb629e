//! Services that nobody has here, key-value pairs and backups, on the frame as it is: a row
//! of the table and a type are all that they need.

use super::*;
use crate::Guid;
use linkspan_mem::record::RestoreError;

const fn version(major: u16) -> Version {
    Version { major, minor: 0 }
}

/// Versions and classes as in Linux (drivers/hv: `kvp_versions`, `vss_versions`; hyperv.h:
/// ICMSGTYPE_KVPEXCHANGE and ICMSGTYPE_VSS).
const PAIRS: Service = Service {
    name: "key-value pairs",
    kind: 2,
    interface: Guid::new(0xa9a0f4e7_5a45_4d96_b827_8a841e8c03e6),
    instance: Some(Guid::new(0x242ff919_07db_4180_9c2e_b86cb68c8c55)),
    frameworks: &[version(3), version(1)],
    versions: &[version(5), version(4), version(3)],
};

const BACKUP: Service = Service {
    name: "backup",
    kind: 5,
    interface: Guid::new(0x35fa2e29_ea23_4236_96ae_3a6ebacba440),
    instance: None,
    frameworks: &[version(3)],
    versions: &[version(5)],
};

/// Its effect is the operation, the first byte of both services' messages; the answer to a
/// pair is written over what was asked.
#[derive(Debug, Default, PartialEq, Eq)]
struct Other<const KIND: u16> {
    last: u8,
}

impl<const KIND: u16> GuestService for Other<KIND> {
    const SERVICE: &'static Service = if KIND == PAIRS.kind { &PAIRS } else { &BACKUP };
    type Effect = u8;

    fn request(&mut self, _: Version, body: &mut [u8]) -> Handled<u8> {
        let Some((operation, rest)) = body.split_first_mut() else {
            return Handled::Answer(Status::INVALID_ARGUMENT);
        };
        self.last = *operation;
        rest.fill(b'!');
        Handled::Do(*operation)
    }

    fn done(&mut self, status: Status) -> Handled<u8> {
        Handled::Answer(status)
    }

    fn reset(&mut self) -> Option<u8> {
        None
    }

    fn save(&self, to: Saver<'_>) {
        to.0.u8(self.last);
    }

    fn load(&mut self, from: Loader<'_, '_>) -> Result<(), RestoreError> {
        self.last = from.0.u8()?;
        Ok(())
    }
}

/// A negotiation, a request of `len` bytes, and the same after a restart.
#[track_caller]
fn converses<const KIND: u16>(len: usize) {
    let service = Other::<KIND>::SERVICE;
    let (mut host, mut guest) = (
        Host::new(service),
        Guest::new(Other::<KIND>::default(), Echo::Full),
    );
    let mut message = host.negotiate();
    let reaction = guest.receive(&mut message);
    assert_eq!(reaction, Ok(Reaction::Reply(message.len())));
    let agreed = Agreed {
        framework: version(3),
        service: service.versions[0],
    };
    assert_eq!(host.receive(&message), Ok(HostEvent::Negotiated(agreed)));
    for operation in [1, 3] {
        let (transaction, header) = host.request(len).unwrap();
        let mut message = header.to_vec();
        message.resize(header.len() + len, operation);
        assert_eq!(guest.receive(&mut message), Ok(Reaction::Do(operation)));
        let reaction = guest.answer(Status::OK, &mut message);
        assert_eq!(reaction, Reaction::Reply(message.len()));
        let event = host.receive(&message).unwrap();
        let HostEvent::Reply {
            transaction: answered,
            status: Status::OK,
            body,
        } = event
        else {
            panic!("{event:?}");
        };
        assert_eq!(
            (answered, body.len(), body[len - 1]),
            (transaction, len, b'!')
        );
        let saved = guest.snapshot().unwrap();
        guest = Guest::restore(Other::default(), Echo::Full, &saved).unwrap();
        assert_eq!(*guest.service(), Other { last: operation });
        let saved = host.snapshot();
        host = Host::restore(service, &saved).unwrap();
    }
}

#[test]
fn key_value_pairs_and_backups_fit_without_change() {
    // The longest messages of each in Linux: struct hv_kvp_msg, and a backup's AUTO_RECOVER.
    converses::<2>(2576);
    converses::<5>(12_500);
}

//! The table of services, and the versions that are negotiated.

use alloc::format;
use alloc::string::String;
use core::fmt::{self, Write};

use crate::guid::Guid;

/// A version of the frame or of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// What has to agree.
    pub major: u16,
    /// What was added since.
    pub minor: u16,
}

impl Version {
    const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    pub(crate) fn from_bytes(bytes: [u8; 4]) -> Self {
        let [a, b, c, d] = bytes;
        Self::new(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
    }

    pub(crate) fn to_bytes(self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.major.to_le_bytes(), self.minor.to_le_bytes());
        [a, b, c, d]
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What both ends agreed upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The version of the frame.
    pub framework: Version,
    /// The version of the service.
    pub service: Version,
}

/// The most versions of each kind that a negotiation has.
pub const NEGOTIATION_VERSIONS_MAX: u16 = 100;

/// One integration service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Service {
    /// Its name.
    pub name: &'static str,
    /// The number of its messages (`icmsgtype`).
    pub kind: u16,
    /// The interface that its channel is offered with.
    pub interface: Guid,
    /// The instance, where it is always the same.
    pub instance: Option<Guid>,
    /// Versions of the frame, the best one first.
    pub frameworks: &'static [Version],
    /// Its own versions, the best one first.
    pub versions: &'static [Version],
}

const V1_0: Version = Version::new(1, 0);
const V3_0: Version = Version::new(3, 0);

/// Files from the host into the guest. Linux's own daemon has framework 3.0 only;
/// its kernel accepts both for every other service, and so do we here.
pub const FILE_COPY: Service = Service {
    name: "file copy",
    kind: 7,
    interface: Guid::new(0x34d14be3_dee4_41c8_9ae7_6b174977c192),
    instance: Some(Guid::new(0xeb765408_105f_49b6_b4aa_c123b64d17d4)),
    frameworks: &[V3_0, V1_0],
    versions: &[Version::new(1, 1)],
};

/// Whether the guest lives.
pub const HEARTBEAT: Service = Service {
    name: "heartbeat",
    kind: 1,
    interface: Guid::new(0x57164f39_9115_4e78_ab55_382f3bd5422d),
    instance: None,
    frameworks: &[V3_0, V1_0],
    versions: &[V3_0, V1_0],
};

/// The guest shuts down, restarts or hibernates.
pub const SHUTDOWN: Service = Service {
    name: "shutdown",
    kind: 3,
    interface: Guid::new(0x0e0b6031_5213_4934_818b_38d90ced39db),
    instance: Some(Guid::new(0xb6650ff7_33bc_4840_8048_e0676786f393)),
    frameworks: &[V3_0, V1_0],
    versions: &[Version::new(3, 2), Version::new(3, 1), V3_0, V1_0],
};

/// The host's time.
pub const TIME_SYNC: Service = Service {
    name: "time synchronisation",
    kind: 4,
    interface: Guid::new(0x9527e630_d0ae_497b_adce_e80ab0175caf),
    instance: Some(Guid::new(0x2dd1ce17_079e_403c_b352_a1921ee207ee)),
    frameworks: &[V3_0, V1_0],
    versions: &[Version::new(4, 0), V3_0, V1_0],
};

/// All of them.
pub const SERVICES: [&Service; 4] = [&FILE_COPY, &HEARTBEAT, &SHUTDOWN, &TIME_SYNC];

/// The table as a page of the book has it.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from(
        "| service | messages | interface | frame | versions |\n|---|---|---|---|---|\n",
    );
    for service in SERVICES {
        let list = |versions: &[Version]| {
            let mut list = String::new();
            for version in versions {
                let comma = if list.is_empty() { "" } else { ", " };
                let _ = write!(list, "{comma}{version}");
            }
            list
        };
        page += &format!(
            "| {} | {} | {} | {} | {} |\n",
            service.name,
            service.kind,
            service.interface,
            list(service.frameworks),
            list(service.versions)
        );
    }
    page
}

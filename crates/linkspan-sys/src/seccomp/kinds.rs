//! What each kind of process does once it is set up.

use super::Group;

/// A kind of process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disk whose image is on this machine.
    Block,
    /// A disk whose image is on a share.
    BlockOnShare,
    /// A network.
    Net,
    /// A virtual GPU.
    Gpu,
    /// A PCI display.
    DisplayServe,
    /// A screen by VNC, or on a page.
    DisplayView,
    /// A vDPA device that is passed on.
    Vdpa,
    /// The host of file copy.
    FcopyHost,
    /// A guest of file copy.
    FcopyGuest,
    /// The host of the small services.
    IcHost,
    /// A listener of SMB Direct.
    SmbDirect,
    /// A gateway to an SMB server.
    SmbGateway,
    /// An SMB server.
    SmbServe,
    /// A share that is mounted.
    SmbMount,
    /// The page of a plane.
    Page,
    /// A device plugin of a kubelet.
    DevicePlugin,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Block,
        Self::BlockOnShare,
        Self::Net,
        Self::Gpu,
        Self::DisplayServe,
        Self::DisplayView,
        Self::Vdpa,
        Self::FcopyHost,
        Self::FcopyGuest,
        Self::IcHost,
        Self::SmbDirect,
        Self::SmbGateway,
        Self::SmbServe,
        Self::SmbMount,
        Self::Page,
        Self::DevicePlugin,
    ];

    /// What it does beside what each process does.
    pub(super) fn groups(self) -> &'static [Group] {
        use Group::{
            Durable, Files, Fuse, Interfaces, IoUring, Listen, OpenDevices, Pictures, Remove,
            Resolve, Tap, Tcp, Unix, VhostVdpa,
        };
        match self {
            Self::Block => &[Durable, IoUring, Remove],
            Self::BlockOnShare => &[Durable, Remove, Resolve, Tcp],
            Self::Net => &[Durable, Interfaces, Remove, Tap, Unix],
            Self::Gpu | Self::DisplayServe => &[OpenDevices, Pictures, Remove],
            Self::DisplayView => &[OpenDevices, Pictures, Unix],
            Self::Vdpa => &[OpenDevices, Remove, VhostVdpa],
            Self::FcopyHost | Self::IcHost => &[Remove],
            Self::FcopyGuest => &[Files, Unix],
            Self::SmbDirect => &[Durable, Remove],
            Self::SmbGateway => &[Tcp],
            Self::SmbServe => &[Files, Tcp],
            Self::SmbMount => &[Fuse, Remove, Resolve, Tcp],
            Self::Page => &[Pictures, Unix],
            // A kubelet that starts removes its socket, and it makes it anew.
            Self::DevicePlugin => &[Listen, Remove, Unix],
        }
    }
}

#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod conform_replies;
pub mod display;
mod input;
pub mod net;
pub mod rdma;
pub mod ring_memory;
pub mod saved_link;
pub mod saved_ports;
pub mod seeds;
pub mod smb2;
pub mod smb2_gateway;
pub mod smbdirect;
pub mod smbdirect_hello;
pub mod supervisor;
pub mod uio;
pub mod vdpa;
pub mod vduse;
pub mod vfio_user;
pub mod vhost_user_replies;
pub mod vhost_user_stream;
pub mod virtio_pci;
pub mod vmbus;

/// A function that takes any bytes and panics upon a fault of ours.
pub type Target = fn(&[u8]);

/// All targets, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("conform_replies", conform_replies::target),
    ("display_link", display::gpu::link_target),
    ("display_planes", display::planes::target),
    ("gpu_commands", display::gpu::commands_target),
    ("gpu_front", display::gpu::front_target),
    ("net", net::target),
    ("qmp_replies", display::monitor::target),
    ("rdma_ddp", rdma::ddp),
    ("rdma_mpa", rdma::mpa),
    ("rfb_input", display::rfb::target),
    ("ring_memory", ring_memory::target),
    ("saved_link", saved_link::target),
    ("saved_ports", saved_ports::target),
    ("smb2", smb2::target),
    ("smb2_gateway", smb2_gateway::target),
    ("smbdirect", smbdirect::target),
    ("smbdirect_hello", smbdirect_hello::target),
    ("uio_file", uio::target),
    ("supervisor", supervisor::target),
    ("vduse", vduse::target),
    ("vdpa", vdpa::target),
    ("vfio_user_client", vfio_user::client_target),
    ("vfio_user_server", vfio_user::server_target),
    ("vhost_user_replies", vhost_user_replies::target),
    ("vhost_user_stream", vhost_user_stream::target),
    ("virtio_pci", virtio_pci::target),
    ("vmbus_channel", vmbus::channel::target),
    ("vmbus_link", vmbus::link::target),
    ("vmbus_ring", vmbus::ring::target),
    ("vmbus_services", vmbus::services::target),
    ("web_input", display::web::target),
];

/// The target of this name.
pub fn find(name: &str) -> Option<Target> {
    let mut targets = TARGETS.iter();
    targets.find(|(known, _)| *known == name).map(|row| row.1)
}

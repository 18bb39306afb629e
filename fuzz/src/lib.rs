#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod display;
mod input;
pub mod net;
pub mod rdma;
pub mod ring_memory;
pub mod seeds;
pub mod smbdirect;
pub mod smbdirect_hello;
pub mod uio;
pub mod vdpa;
pub mod vduse;
pub mod vhost_user_replies;
pub mod vhost_user_stream;
pub mod vmbus;

/// A function that takes any bytes and panics upon a fault of ours.
pub type Target = fn(&[u8]);

/// All targets, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("display_link", display::gpu::link_target),
    ("display_planes", display::planes::target),
    ("gpu_commands", display::gpu::commands_target),
    ("gpu_front", display::gpu::front_target),
    ("net", net::target),
    ("rdma_ddp", rdma::ddp),
    ("rdma_mpa", rdma::mpa),
    ("rfb_input", display::rfb::target),
    ("ring_memory", ring_memory::target),
    ("smbdirect", smbdirect::target),
    ("smbdirect_hello", smbdirect_hello::target),
    ("uio_file", uio::target),
    ("vduse", vduse::target),
    ("vdpa", vdpa::target),
    ("vhost_user_replies", vhost_user_replies::target),
    ("vhost_user_stream", vhost_user_stream::target),
    ("vmbus_channel", vmbus::channel::target),
    ("vmbus_link", vmbus::link::target),
    ("vmbus_ring", vmbus::ring::target),
    ("vmbus_services", vmbus::services::target),
];

/// The target of this name.
pub fn find(name: &str) -> Option<Target> {
    let mut targets = TARGETS.iter();
    targets.find(|(known, _)| *known == name).map(|row| row.1)
}

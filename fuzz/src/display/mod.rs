//! A guest's screen: registers that describe planes (`display_planes`), and what a VNC
//! client says (`rfb_input`); the virtual GPU ([`gpu`]); QEMU's monitor (`qmp_replies`);
//! its page ([`web`]).

pub mod gpu;
pub mod monitor;
pub mod planes;
pub mod rfb;
pub mod web;

/// What came of a script.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Pictures that were shown, or updates and events.
    pub done: usize,
    /// Pictures that were refused, or snapshots that were not to be had.
    pub refused: usize,
    /// The last error, by its words.
    pub error: Option<String>,
}

/// Runs a script of this target.
#[must_use]
pub fn run(target: &str, bytes: &[u8]) -> Outcome {
    match target {
        "display_link" => gpu::link(bytes),
        "gpu_commands" => gpu::commands(bytes),
        "gpu_front" => gpu::front(bytes),
        "qmp_replies" => monitor::run(bytes),
        "rfb_input" => rfb::run(bytes),
        "web_input" => web::run(bytes),
        _ => planes::run(bytes),
    }
}

//! VMBus: rings, services, the control path and the socket of our own programs against peers that may do anything.

pub mod channel;
pub mod link;
pub mod ring;
pub mod services;

/// Runs a script of one of these targets.
pub fn run(target: &str, bytes: &[u8]) -> Outcome {
    match target {
        "vmbus_link" => link::run(bytes),
        "vmbus_ring" => ring::run(bytes),
        "vmbus_services" => services::run(bytes),
        _ => channel::run(bytes),
    }
}

/// What came of a script, for tests that seeds do what they say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Packets received, requests answered with success, messages taken.
    pub done: usize,
    /// What was refused, or dropped.
    pub refused: usize,
    /// The last error.
    pub error: Option<String>,
}

impl Outcome {
    fn count<T, E: ToString>(&mut self, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => {
                self.done += 1;
                Some(value)
            }
            Err(error) => {
                self.refused += 1;
                self.error = Some(error.to_string());
                assert_ne!(self.error.as_deref(), Some(""));
                None
            }
        }
    }
}

//! The messages of vfio-user against both ends: a hostile client against the server with
//! the registers of a display behind it, and a hostile server against the client.

pub(crate) mod client;
pub(crate) mod server;

use linkspan_vfio::describe::Watcher;

/// What came of a script, for tests that seeds do what they say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Answers that the peer got, or that were heard.
    pub done: usize,
    /// Messages that were refused while the session went on, or questions.
    pub refused: usize,
    /// Why it ended, or was refused last.
    pub error: Option<String>,
}

/// Runs a script of this target to the end.
///
/// # Panics
/// On a fault of ours.
pub fn run(target: &str, data: &[u8]) -> Outcome {
    match target {
        "vfio_user_client" => client::run(data),
        _ => server::run(data),
    }
}

/// Whatever goes by can be put into words. How many messages it was.
fn watch(watcher: &mut Watcher, bytes: &[u8], fds: usize) -> usize {
    let mut count = 0;
    watcher.take(bytes, fds, |said| {
        assert!(!said.text().is_empty());
        let _ = said.is_access();
        count += 1;
    });
    count
}

/// The target of the server's end.
pub fn server_target(data: &[u8]) {
    server::run(data);
}

/// The target of the client's end.
pub fn client_target(data: &[u8]) {
    client::run(data);
}

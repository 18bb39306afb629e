//! What the process logs, for tests that look for a named error.

use std::io::{self, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::census::settled;

static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Keeps everything that is logged from now on. Tests of one binary share it.
pub fn capture() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(|| Sink)
            .init();
    });
}

/// All lines so far.
fn logged() -> String {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(&lines).into_owned()
}

/// The lines so far that contain all of `parts`.
pub fn lines(parts: &[&str]) -> Vec<String> {
    let there = |line: &&str| parts.iter().all(|part| line.contains(part));
    let logged = logged();
    logged.lines().filter(there).map(str::to_owned).collect()
}

/// Waits for a line that contains all of `parts`.
///
/// # Panics
/// When none comes.
#[track_caller]
pub fn expect_line(parts: &[&str]) {
    if !settled(|| !lines(parts).is_empty()) {
        panic!("no line with {parts:?} was logged:\n{}", logged());
    }
}

struct Sink;

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        lines.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

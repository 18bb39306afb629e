//! What the program says of itself: on standard error, or to the system's log when
//! nobody looks at that.

use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixDatagram;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Where the system's log listens.
const SYSLOG: &str = "/dev/log";

fn filter(verbose: u8) -> EnvFilter {
    let default = match verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    EnvFilter::try_from_env("LINKSPAN_LOG").unwrap_or_else(|_| EnvFilter::new(default))
}

/// To standard error from now on.
pub(crate) fn to_stderr(verbose: u8) {
    tracing_subscriber::fmt()
        .with_env_filter(filter(verbose))
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// To the system's log from now on, under this name.
pub(crate) fn to_syslog(name: &'static str) {
    let Ok(socket) = UnixDatagram::unbound().and_then(|socket| {
        // A log that does not keep up loses lines, and holds nobody up.
        socket.set_nonblocking(true)?;
        Ok(socket)
    }) else {
        return to_stderr(0);
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter(0))
        .with_writer(Syslog { socket, name })
        .with_target(false)
        .with_ansi(false)
        .with_level(false)
        .without_time()
        .init();
}

struct Syslog {
    socket: UnixDatagram,
    name: &'static str,
}

/// A line under way, with its priority (RFC 3164: facility daemon).
struct Line<'a> {
    log: &'a Syslog,
    priority: u8,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (priority, name) = (self.priority, self.log.name);
        let mut line = format!("<{priority}>{name}[{}]: ", std::process::id()).into_bytes();
        line.extend_from_slice(bytes.trim_ascii_end());
        // Without a log, or with one that is full, there is nobody to tell.
        let _ = self.log.socket.send_to(&line, SYSLOG);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const DAEMON: u8 = 3 << 3;

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            log: self,
            priority: DAEMON + 6,
        }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<'a> {
        let severity = match *meta.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        Line {
            log: self,
            priority: DAEMON + severity,
        }
    }
}

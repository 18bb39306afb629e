//! What the program says of itself: on standard error, or to the system's log when
//! nobody looks at that.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

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

/// The link that this process is, if it is one of a plane.
static LINK: OnceLock<String> = OnceLock::new();

/// Says all under the name of this link from now on.
pub(crate) fn speak_as(link: String) {
    // The first name stays.
    let _ = LINK.set(link);
}

/// Who speaks: the program, and which link it is.
pub(crate) fn speaker() -> String {
    match LINK.get() {
        Some(link) => format!("linkspan: link {link}"),
        None => "linkspan".to_owned(),
    }
}

/// Lines that wait for somebody who reads slowly; those that come then are lost.
const LINES: usize = 256;

/// How long the program's end waits for such a reader.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A file that a thread writes to, for who cannot wait until it is read.
struct Aside {
    to: SyncSender<Said>,
    lost: Arc<AtomicU64>,
}

/// What goes to that thread.
enum Said {
    Text(Vec<u8>),
    /// Answered once all lines before it were written.
    End(SyncSender<()>),
}

impl Aside {
    /// Writes to `file` on a thread of its own; `tell` says how many lines were lost.
    fn new(
        mut file: impl Write + Send + 'static,
        tell: impl Fn(u64) -> String + Send + 'static,
    ) -> io::Result<Self> {
        let (to, lines) = mpsc::sync_channel(LINES);
        let lost = Arc::new(AtomicU64::new(0));
        let uncounted = Arc::clone(&lost);
        let write = move || {
            for line in lines {
                // Whoever read it may have left, and who serves goes on.
                match line {
                    Said::Text(text) => drop(file.write_all(&text)),
                    // Who waits may have gone on.
                    Said::End(done) => drop(done.send(())),
                }
                let count = uncounted.swap(0, Ordering::Relaxed);
                if count > 0 {
                    let _ = file.write_all(tell(count).as_bytes());
                }
                let _ = file.flush();
            }
        };
        let thread = std::thread::Builder::new().name("log".to_owned());
        thread.spawn(write)?;
        Ok(Self { to, lost })
    }

    fn put(&self, text: Vec<u8>) {
        if self.to.try_send(Said::Text(text)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all is written, but no longer than that.
    fn finish(&self) {
        let (done, is_done) = mpsc::sync_channel(1);
        if self.to.try_send(Said::End(done)).is_ok() {
            let _ = is_done.recv_timeout(LAST_WORDS);
        }
    }
}

/// Standard output and standard error of a process that waits for no reader.
static OUT: OnceLock<Aside> = OnceLock::new();
static ERRORS: OnceLock<Aside> = OnceLock::new();

/// From now on nobody here waits until what is said is read: a supervisor would keep no link
/// running meanwhile, and a link serve nobody. What does not fit is lost, and counted. What a
/// link, whose name is known, says on standard output goes nowhere anyway.
///
/// # Errors
/// No thread can be had.
pub(crate) fn wait_for_nobody() -> io::Result<()> {
    // The first ones stay.
    if LINK.get().is_none() {
        let tell = |count| format!("{{\"event\":\"lost\",\"lines\":{count}}}\n");
        let _ = OUT.set(Aside::new(io::stdout(), tell)?);
    }
    let tell = |count| {
        format!(
            "{}: {count} lines are lost, as nobody read them\n",
            speaker()
        )
    };
    let _ = ERRORS.set(Aside::new(io::stderr(), tell)?);
    Ok(())
}

/// Before the program ends: gives a reader who is slow a last chance.
pub(crate) fn finish() {
    for aside in [&OUT, &ERRORS] {
        if let Some(aside) = aside.get() {
            aside.finish();
        }
    }
}

/// Says a line on standard output.
pub(crate) fn print(line: String) {
    match OUT.get() {
        Some(out) => out.put((line + "\n").into_bytes()),
        // Whoever read it may have left, and who serves goes on.
        None => drop(writeln!(io::stdout().lock(), "{line}")),
    }
}

/// Standard error, whose lines have the link's name before them: many links share one.
/// Whoever read it may have left, and who serves goes on.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // At once, or lines of others come in between.
        let line = match LINK.get() {
            Some(link) => &[link.as_bytes(), b": ", bytes].concat(),
            None => bytes,
        };
        match ERRORS.get() {
            Some(errors) => errors.put(line.to_owned()),
            None => drop(io::stderr().lock().write_all(line)),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Says this on standard error, to whoever reads it.
pub(crate) fn say(line: fmt::Arguments<'_>) {
    match ERRORS.get() {
        Some(errors) => errors.put(format!("{line}\n").into_bytes()),
        None => drop(writeln!(io::stderr().lock(), "{line}")),
    }
}

/// To standard error from now on.
pub(crate) fn to_stderr(verbose: u8) {
    tracing_subscriber::fmt()
        .with_env_filter(filter(verbose))
        .with_writer(|| Stderr)
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

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Ours: a supervisor whose standard error was a pipe that nobody read waited there, and
    /// meanwhile started and ended no link.
    #[test]
    fn who_does_not_read_is_not_waited_for_and_hears_what_was_lost() {
        let (mut read, write) = io::pipe().unwrap();
        let aside = Aside::new(write, |count| format!("lost {count}\n")).unwrap();
        let lines = 4 * LINES;
        for _ in 0..lines {
            aside.put([&[b'x'; 1023][..], b"\n"].concat());
        }
        let lost = aside.lost.load(Ordering::Relaxed);
        assert!(lost > 0);
        drop(aside);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        let (told, whole): (Vec<_>, Vec<_>) = text.lines().partition(|it| it.starts_with("lost"));
        assert!(whole.iter().all(|line| line.len() == 1023));
        let told = told
            .iter()
            .map(|it| it["lost ".len()..].parse::<usize>().unwrap());
        assert_eq!(whole.len() + told.sum::<usize>(), lines);
    }

    #[test]
    fn an_end_waits_for_what_is_read() {
        let (mut read, write) = io::pipe().unwrap();
        let aside = Aside::new(write, |_| String::new()).unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            read.read_to_string(&mut text).map(|_| text)
        });
        aside.put(b"last\n".to_vec());
        aside.finish();
        drop(aside);
        assert_eq!(reader.join().unwrap().unwrap(), "last\n");
    }
}

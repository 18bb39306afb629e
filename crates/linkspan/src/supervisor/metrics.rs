//! Metrics over HTTP, for Prometheus: what `linkspan inspect --metrics` prints, at a loopback
//! address unless another one is given.
//!
//! Each who asks has a thread, a limit of time, and a number that is bounded; what there is to
//! see is asked for over the control socket, as by anybody else, and by one after the other: a
//! link that hangs takes two seconds of each, in which nobody else is heard there.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use linkspan_backends::web::http::{self, HEAD_MAX};
use linkspan_backends::web::{Page, Site};
use linkspan_sys::EventFd;
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::thread::spawn;

use crate::exit::Failure;
use crate::inspect;

/// The one page that there is; its body is made anew for each who asks.
const SITE: Site = Site {
    pages: &[Page {
        path: "/metrics",
        kind: "text/plain; version=0.0.4; charset=utf-8",
        body: b"",
    }],
    sockets: &[],
};

/// Who may be answered at a time.
const ASKERS: usize = 8;

/// How long a question may take to come, and how long the answer may take to be read.
const LIMIT: Duration = Duration::from_secs(5);

/// How long until it is tried again to accept somebody, where that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// The server; it ends when it is dropped.
pub(super) struct Metrics {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Metrics {
    /// Serves at this address what the supervisor at `control` says.
    ///
    /// # Errors
    /// The address cannot be had, or no thread.
    pub(super) fn start(address: SocketAddr, control: PathBuf) -> Result<Self, Failure> {
        let cannot = || format!("cannot listen at {address}");
        let listener = TcpListener::bind(address).with_context(cannot)?;
        listener.set_nonblocking(true).with_context(cannot)?;
        let address = listener.local_addr().with_context(cannot)?;
        let stop = Arc::new(EventFd::new().context("an event")?);
        let stopped = Arc::clone(&stop);
        let thread = spawn("metrics", move || serve(&listener, &control, &stopped));
        let thread = thread.context("cannot start a thread")?;
        tracing::info!("metrics at http://{address}/metrics");
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        // Without it the process ends, and the thread with it.
        let told = self.stop.signal().is_ok();
        if let Some(thread) = self.thread.take().filter(|_| told) {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, control: &Path, stop: &EventFd) {
    // Each asker has a part of it for as long as it is answered, and it whole while it asks.
    let askers = Arc::new(Mutex::new(()));
    loop {
        let woken = wait_for(listener.as_fd(), Direction::Read, Some(stop.as_fd()), None);
        if !matches!(woken, Ok(Wake::Ready)) {
            return;
        }
        let full = Arc::strong_count(&askers) > ASKERS;
        let begun = listener.accept().and_then(|(stream, _)| match full {
            // Whoever comes then hears nothing.
            true => Ok(()),
            false => answer_apart(stream, control, Arc::clone(&askers)),
        });
        if begun.is_err() {
            let until = Some(Instant::now() + PAUSE);
            if let Ok(Wake::Ready) = wait_for(stop.as_fd(), Direction::Read, None, until) {
                return;
            }
        }
    }
}

fn answer_apart(stream: TcpStream, control: &Path, asker: Arc<Mutex<()>>) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let control = control.to_owned();
    spawn("metrics-asker", move || {
        // Whoever leaves, or is too slow, gets no answer.
        let _ = answer(stream, &control, &asker);
    })
    .map(drop)
}

fn answer(mut stream: TcpStream, control: &Path, turn: &Mutex<()>) -> io::Result<()> {
    let until = Instant::now() + LIMIT;
    let mut head = Vec::new();
    let response = loop {
        match http::parse(&head, &SITE) {
            Ok(Some(_)) => {
                let turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                let told = inspect::metrics_of(control);
                drop(turn);
                break match told {
                    Ok(text) => response(200, "OK", SITE.pages[0].kind, &text),
                    Err(failure) => {
                        let said = format!("{failure}\n");
                        response(503, "Service Unavailable", "text/plain", &said)
                    }
                };
            }
            Ok(None) => {}
            Err(refusal) => break refusal.answer(),
        }
        if head.len() >= HEAD_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = [0; 1024];
        match stream.read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => head.extend_from_slice(&bytes[..count]),
            Err(error) => wait(&stream, error, Direction::Read, until)?,
        }
    };
    // The supervisor may have taken long.
    let until = Instant::now() + LIMIT;
    let mut left = response.as_slice();
    while !left.is_empty() {
        match stream.write(left) {
            Ok(count) => left = &left[count..],
            Err(error) => wait(&stream, error, Direction::Write, until)?,
        }
    }
    Ok(())
}

/// Waits for a socket that was not ready.
fn wait(
    stream: &TcpStream,
    error: io::Error,
    direction: Direction,
    until: Instant,
) -> io::Result<()> {
    if error.kind() != io::ErrorKind::WouldBlock {
        return Err(error);
    }
    match wait_for(stream.as_fd(), direction, None, Some(until))? {
        Wake::Ready => Ok(()),
        _ => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn response(status: u16, reason: &str, kind: &str, body: &str) -> Vec<u8> {
    let len = body.len();
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\n\
         Connection: close\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\r\n\
         {body}"
    )
    .into_bytes()
}

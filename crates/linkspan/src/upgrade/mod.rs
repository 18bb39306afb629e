//! Live upgrade: the process of a link hands it over to another one, which may be of another
//! program; the guest notices a pause of milliseconds. `linkspan upgrade` asks a supervisor for
//! it, which starts the other process and gives both a socket to each other.

use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use linkspan_engine::vhost_user::{Giver, HandOverError, Successor, refuse};
use linkspan_sys::Stream;
use linkspan_sys::socket::{Inherited, inherit};
use serde_json::json;

use crate::exit::{Failure, Status};

mod command;

pub use command::{Args, run};

/// How long a process that could not take a link over waits until somebody has asked why.
const TELL_LIMIT: Duration = Duration::from_secs(2);

/// What this process has to do with a hand-over. It is the whole process's, as its line to the
/// supervisor is.
struct Part {
    /// Hands over what this process serves.
    giver: Option<Giver>,
    /// Whose link it is to take over.
    from: Option<Stream>,
    /// How many of its links are not here yet, and the longest pause of those that are.
    awaited: usize,
    pause: Option<Duration>,
    outcome: Outcome,
}

enum Outcome {
    /// It was not to take anything over.
    None,
    Unknown,
    Known(String),
    Told,
}

static PART: Mutex<Part> = Mutex::new(Part {
    giver: None,
    from: None,
    awaited: 1,
    pause: None,
    outcome: Outcome::None,
});
static CHANGED: Condvar = Condvar::new();

fn part() -> MutexGuard<'static, Part> {
    // What is within is whole after each change.
    PART.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This process was started to take a link over, at the other end of this inherited socket.
///
/// # Errors
/// There is no such socket.
pub(crate) fn take_from(fd: i32) -> Result<(), Failure> {
    let usage = |error: anyhow::Error| Failure::new(Status::Usage, error);
    let Inherited::Stream(stream) = inherit(fd).map_err(|error| usage(error.into()))? else {
        return Err(usage(anyhow::anyhow!("descriptor {fd} is not connected")));
    };
    let mut part = part();
    part.from = Some(stream);
    part.outcome = Outcome::Unknown;
    Ok(())
}

/// If this process is to take a link over: who does it, and what the other process lends for
/// that.
///
/// # Errors
/// The other process refuses, or is gone.
pub(crate) fn begin() -> Result<Option<(Successor, Vec<OwnedFd>)>, HandOverError> {
    let from = part().from.take();
    from.map(Successor::begin).transpose()
}

/// So many links are taken over at once: how that went is known once all of them are here.
pub(crate) fn expect(links: usize) {
    part().awaited = links;
}

/// A link was taken over; for so long its guest was not served, if there was one.
pub(crate) fn taken(pause: Option<Duration>) {
    let mut part = part();
    part.awaited = part.awaited.saturating_sub(1);
    part.pause = part.pause.max(pause);
    if part.awaited > 0 {
        return;
    }
    let pause = part.pause;
    drop(part);
    know(json!({ "pause_us": pause.map(|pause| pause.as_micros()) }).to_string());
}

/// No link was taken over, if one was to be. Waits until somebody was told why, since this
/// process ends now.
pub(crate) fn not_taken(why: &Failure) {
    know(json!({ "error": why.to_string() }).to_string());
    let waits = |part: &mut Part| matches!(part.outcome, Outcome::Known(_));
    // Nobody may ask.
    drop(CHANGED.wait_timeout_while(part(), TELL_LIMIT, waits));
}

/// The first that is known counts.
fn know(line: String) {
    let mut part = part();
    if let Outcome::Unknown = part.outcome {
        part.outcome = Outcome::Known(line);
        CHANGED.notify_all();
    }
}

/// How taking the link over went, as a line, once that is known.
pub(crate) fn outcome() -> String {
    let waits = |part: &mut Part| matches!(part.outcome, Outcome::Unknown);
    let part = CHANGED.wait_while(part(), waits);
    let part = part.unwrap_or_else(PoisonError::into_inner);
    match &part.outcome {
        Outcome::Known(line) => format!("{line}\n"),
        _ => format!("{}\n", json!({ "error": "nothing was to be taken over" })),
    }
}

/// Somebody was told.
pub(crate) fn told() {
    part().outcome = Outcome::Told;
    CHANGED.notify_all();
}

/// What this process serves can be handed over from now on.
pub(crate) fn offer(giver: Option<Giver>) {
    part().giver = giver;
}

/// Hands over what this process serves, if it can be, on a thread of its own: the supervisor's
/// line is not held up.
pub(crate) fn hand_over(to: Option<OwnedFd>) {
    // Without it nobody is there to be told.
    let Some(stream) = to.and_then(|fd| Stream::check(fd).ok()) else {
        return;
    };
    let Some(giver) = part().giver.clone() else {
        refuse(
            stream,
            "a link of this kind, or one that only starts, cannot be handed over; restart it",
        );
        return;
    };
    let hand_over = move || {
        if let Err(error) = giver.hand_over(stream) {
            tracing::warn!("the link was not handed over: {error}");
        }
    };
    let thread = std::thread::Builder::new().name("hand-over".to_owned());
    if let Err(error) = thread.spawn(hand_over) {
        tracing::warn!("no thread to hand the link over: {error}");
    }
}

//! `linkspan trace`: the protocol messages of a link as they go by, in words.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::signals::{Signal, Signals};
use serde::{Deserialize, Serialize};

use crate::control::ask;
use crate::exit::{Failure, Status};
use crate::supervisor::Question;

/// How long until it is asked for more. A link keeps the last 2048 messages while somebody watches.
const PAUSE: Duration = Duration::from_millis(200);

/// Options of `linkspan trace`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: what a monitor and a disk say to each other\n\n  \
    linkspan trace disk-a --control examples/control.sock\n\n\
    Messages are in the words of their specification: `>` comes from the peer, `<` goes to\n\
    it. Each endpoint keeps the last 256 of those with which a connection is set up, which are\n\
    shown first; what is about single requests or register accesses is shown from now on,\n\
    and what a link had to leave out is counted.\n\
    SIGINT ends it."
)]
pub struct Args {
    /// The link
    #[arg(value_name = "LINK")]
    name: String,

    /// The control socket of the plane: `control` in [plane]
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/linkspan/control.sock"
    )]
    control: PathBuf,

    /// Only what is kept at this moment
    #[arg(long)]
    once: bool,

    /// As JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// A link's answer.
#[derive(Deserialize)]
struct Line {
    pid: Option<u32>,
    answers: bool,
    messages: Vec<Said>,
}

/// What a link said of its messages.
#[derive(Deserialize)]
#[serde(untagged)]
enum Said {
    Message(Message),
    /// It never has any.
    Mute {
        mute: bool,
    },
}

/// A message that went by.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Message {
    endpoint: String,
    number: u64,
    from: String,
    message: String,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// Runs the command.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let mut shown = Shown::default();
    loop {
        let line = look(args)?;
        if args.once && !line.answers {
            let error = anyhow!("link {} does not answer", args.name);
            return Err(Failure::new(Status::PeerUnreachable, error));
        }
        let mute = |said: &Said| matches!(said, Said::Mute { mute: true });
        if line.messages.iter().any(mute) {
            let error = anyhow!("link {} has no messages of a protocol", args.name);
            let failure = Failure::new(Status::Usage, error);
            let hint = format!(
                "`linkspan inspect {}` shows what there is to see",
                args.name
            );
            return Err(failure.hint(hint));
        }
        print(args, shown.fresh(line))?;
        if args.once {
            return Ok(());
        }
        let until = Some(Instant::now() + PAUSE);
        let woken = wait_for(signals.as_fd(), Direction::Read, None, until);
        if let Wake::Ready = woken.context("cannot wait for a signal")? {
            return Ok(());
        }
    }
}

fn print(args: &Args, messages: Vec<(Message, u64)>) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for (message, missed) in messages {
        if args.json {
            writeln!(out, "{}", serde_json::to_string(&message)?)?;
            continue;
        }
        // What a link says does nothing to the terminal.
        let clean = |text: &str| text.replace(char::is_control, "\u{fffd}");
        let endpoint = clean(&message.endpoint);
        if missed > 0 {
            writeln!(out, "{endpoint}: {missed} messages were missed")?;
        }
        let mark = if message.from == "peer" { '>' } else { '<' };
        writeln!(out, "{endpoint} {mark} {}", clean(&message.message))?;
    }
    Ok(out.flush()?)
}

fn look(args: &Args) -> Result<Line, Failure> {
    let question = Question::Trace(args.name.clone());
    let answer = ask(&args.control, &question).map_err(|failure| {
        failure.hint("`control` in [plane], and --control with the same path")
    })?;
    if let Ok(Refusal { error }) = serde_json::from_str(&answer) {
        return Err(Failure::new(Status::Failed, anyhow!(error)));
    }
    serde_json::from_str(&answer).map_err(|error| Failure::new(Status::PeerBroke, error))
}

/// What was shown already.
#[derive(Default)]
struct Shown {
    pid: Option<u32>,
    /// The last number of each endpoint.
    last: BTreeMap<String, u64>,
}

impl Shown {
    /// Messages that were not shown, and how many before each were missed.
    fn fresh(&mut self, line: Line) -> Vec<(Message, u64)> {
        if self.pid != line.pid {
            // Another process counts anew.
            self.pid = line.pid;
            self.last.clear();
        }
        let mut fresh = Vec::new();
        for said in line.messages {
            let Said::Message(message) = said else {
                continue;
            };
            let last = self.last.get(&message.endpoint).copied();
            if last.is_none_or(|last| message.number > last) {
                let missed = last.map_or(0, |last| message.number - last - 1);
                self.last.insert(message.endpoint.clone(), message.number);
                fresh.push((message, missed));
            }
        }
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(pid: u32, numbers: &[u64]) -> Line {
        let message = |number: &u64| Message {
            endpoint: "disk".into(),
            number: *number,
            from: "peer".into(),
            message: "m".into(),
        };
        Line {
            pid: Some(pid),
            answers: true,
            messages: numbers.iter().map(message).map(Said::Message).collect(),
        }
    }

    #[test]
    fn each_message_is_shown_once_and_gaps_are_told() {
        let mut shown = Shown::default();
        let mut fresh = |pid, numbers: &[u64]| -> Vec<_> {
            let fresh = shown.fresh(line(pid, numbers)).into_iter();
            fresh
                .map(|(message, missed)| (message.number, missed))
                .collect()
        };
        assert_eq!(fresh(1, &[5, 6]), [(5, 0), (6, 0)]);
        assert_eq!(fresh(1, &[5, 6, 7]), [(7, 0)]);
        assert_eq!(fresh(1, &[10, 11]), [(10, 2), (11, 0)]);
        assert_eq!(fresh(2, &[1]), [(1, 0)]);
    }
}

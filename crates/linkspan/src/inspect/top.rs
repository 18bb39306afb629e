//! `linkspan top`: what the links of a plane do, each second anew.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::signals::{Signal, Signals};
use serde_json::Value;

use super::look;
use crate::exit::Failure;

/// Options of `linkspan top`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: the plane of the examples, until a signal and for two rounds\n\n  \
    linkspan top --control examples/control.sock\n  \
    linkspan top --control examples/control.sock --rounds 2\n\n\
    Rates are those since the round before; the first round has none.\n\
    SIGINT ends it."
)]
pub struct Args {
    /// The control socket of the plane: `control` in [plane]
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/linkspan/control.sock"
    )]
    control: PathBuf,

    /// Seconds between two rounds
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,

    /// How often it looks [default: until a signal comes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rounds: Option<u64>,
}

/// Runs the command.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let (mut before, mut looked): (Option<Value>, _) = (None, Instant::now());
    let mut round = 0;
    loop {
        let tree = look(&args.control)?;
        let now = Instant::now();
        let since = before.as_ref().map(|before| (before, now - looked));
        let mut out = std::io::stdout().lock();
        if out.is_terminal() {
            // To the first place, and nothing of before below it.
            out.write_all(b"\x1b[H\x1b[2J")?;
        }
        out.write_all(table(&tree, since).as_bytes())?;
        out.flush()?;
        drop(out);
        (before, looked) = (Some(tree), now);
        round += 1;
        if args.rounds.is_some_and(|rounds| round >= rounds) {
            return Ok(());
        }
        let until = Some(now + Duration::from_secs(args.every));
        let woken = wait_for(signals.as_fd(), Direction::Read, None, until);
        if let Wake::Ready = woken.context("cannot wait for a signal")? {
            return Ok(());
        }
    }
}

/// What of a link moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) operations: u64,
    pub(crate) bytes: u64,
    pub(crate) in_flight: u64,
    pub(crate) errors: u64,
}

impl Sums {
    pub(crate) fn of(link: &Value) -> Self {
        let mut sums = Self::default();
        let inner = link.as_object().into_iter().flatten();
        for (_, endpoint) in inner.filter(|(_, value)| value.is_object()) {
            let sum = |group: &str, keys: &[&str]| -> u64 {
                let numbers = keys.iter().filter_map(|key| endpoint[group][*key].as_u64());
                numbers.fold(0, u64::saturating_add)
            };
            let requests = sum("requests", &["reads", "writes", "flushes"]);
            let frames = sum("frames", &["frames_in"]);
            let messages = sum("traffic", &["messages"]);
            let bytes = sum("requests", &["read_bytes", "written_bytes"]);
            let frame_bytes = sum("frames", &["bytes_in"]);
            let message_bytes = sum("traffic", &["bytes"]);
            sums.add(requests, bytes);
            sums.add(frames, frame_bytes);
            sums.add(messages, message_bytes);
            sums.errors = sums.errors.saturating_add(sum("requests", &["errors"]));
            for ring in endpoint["rings"].as_array().into_iter().flatten() {
                let of = |key: &str| ring[key].as_u64().unwrap_or(0);
                sums.in_flight = sums.in_flight.saturating_add(of("in_flight"));
                sums.errors = sums.errors.saturating_add(of("errors"));
            }
        }
        sums
    }

    fn add(&mut self, operations: u64, bytes: u64) {
        self.operations = self.operations.saturating_add(operations);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// A line for each link.
fn table(tree: &Value, since: Option<(&Value, Duration)>) -> String {
    let mut text = format!(
        "{:<24} {:<8} {:>8} {:>10} {:>10} {:>9} {:>8}\n",
        "link", "state", "pid", "ops/s", "MiB/s", "in flight", "errors"
    );
    for (name, link) in tree.as_object().into_iter().flatten() {
        let now = Sums::of(link);
        // One that was started anew begins anew, and of one that was silent nothing is known.
        let before = since.filter(|(before, _)| {
            let before = &before[name];
            before["pid"] == link["pid"] && before["answers"] == true
        });
        let (old, seconds) = match before {
            Some((before, time)) => (Sums::of(&before[name]), time.as_secs_f64()),
            None => (now, 1.0),
        };
        let rate = |now: u64, old: u64| now.saturating_sub(old) as f64 / seconds.max(0.001);
        let state = match (&link["state"], &link["answers"]) {
            (Value::String(state), Value::Bool(false)) if state == "running" => "silent",
            (Value::String(state), _) => state,
            _ => "-",
        };
        let _ = writeln!(
            text,
            "{name:<24} {state:<8} {:>8} {:>10.0} {:>10.1} {:>9} {:>8}",
            link["pid"]
                .as_u64()
                .map_or("-".to_owned(), |pid| pid.to_string()),
            rate(now.operations, old.operations),
            rate(now.bytes, old.bytes) / f64::from(1 << 20),
            now.in_flight,
            now.errors,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(pid: u64, reads: u64, answers: bool) -> Value {
        serde_json::json!({ "a": {
            "state": "running", "pid": pid, "answers": answers,
            "disk": {
                "requests": { "reads": reads, "read_bytes": reads << 20, "errors": 1 },
                "rings": [{ "in_flight": 2, "errors": 0 }, { "in_flight": 3, "errors": 1 }],
            },
        }})
    }

    fn words(text: &str) -> Vec<&str> {
        text.lines().nth(1).unwrap().split_whitespace().collect()
    }

    #[test]
    fn rates_are_those_since_the_round_before() {
        let before = tree(7, 100, true);
        let since = |pid| {
            table(
                &tree(pid, 300, true),
                Some((&before, Duration::from_secs(2))),
            )
        };
        assert_eq!(
            words(&since(7)),
            ["a", "running", "7", "100", "100.0", "5", "2"]
        );
        // Another process has begun anew.
        assert_eq!(
            words(&since(8)),
            ["a", "running", "8", "0", "0.0", "5", "2"]
        );
        // Ours: all that a link had ever done was its rate after a round of silence.
        let mut silent = tree(7, 0, false);
        silent["a"]["disk"].take();
        let since = Some((&silent, Duration::from_secs(2)));
        assert_eq!(
            words(&table(&tree(7, 300, true), since))[3..5],
            ["0", "0.0"]
        );
        let first = table(&tree(7, 300, false), None);
        assert_eq!(words(&first)[..4], ["a", "silent", "7", "0"]);
    }
}

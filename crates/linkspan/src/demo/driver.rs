//! The same links without a guest: `linkspan driver` in its place, for machines that
//! have no QEMU.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Error;
use super::check::Finding;
use super::process::{Process, Stop, supervised, tail};
use super::serve::{Net, PairFrames, Served, this_program};

/// How long a driver may take; each runs for a second.
const LIMIT: Duration = Duration::from_secs(60);

/// What is driven.
pub(super) struct Links<'a> {
    pub(super) disk: &'a Served,
    pub(super) queues: u16,
    pub(super) net: &'a Net,
    pub(super) packed: bool,
}

/// Drives both links, and says what came of it.
///
/// # Errors
/// [`Error::Ended`] where a driver fails, [`Error::Stopped`], [`Error::System`].
pub(super) fn check(links: &Links<'_>, dir: &Path, stop: &Stop) -> Result<Vec<Finding>, Error> {
    let disk = disk(links, dir, stop)?;
    let net = net(links, dir, stop)?;
    let frames = links.net.counts().take(stop)?.unwrap_or_default();
    Ok(vec![disk, net, pairs(links.net.pairs, &frames)])
}

fn disk(links: &Links<'_>, dir: &Path, stop: &Stop) -> Result<Finding, Error> {
    let queues = links.queues.to_string();
    let verb = [
        "verify",
        "--overwrite",
        "--seconds",
        "1",
        "--queues",
        &queues,
    ];
    let counts = drive(
        ("blk", &links.disk.socket),
        &[],
        &verb,
        links.packed,
        dir,
        stop,
    )?;
    let number = |name: &str| counts[name].as_u64().unwrap_or(0);
    let (writes, blocks) = (number("writes"), number("blocks"));
    Ok(Finding {
        what: "disk",
        ok: writes > 0 && blocks > 0,
        detail: format!(
            "{queues} queues, {writes} writes, {} reads, {blocks} blocks right at the end",
            number("reads")
        ),
    })
}

fn net(links: &Links<'_>, dir: &Path, stop: &Stop) -> Result<Finding, Error> {
    let pairs = links.net.pairs.to_string();
    let verb = [
        "bench",
        "--mode",
        "loop",
        "--seconds",
        "1",
        "--size",
        "1000",
    ];
    let queues = ["--queues", &pairs];
    let socket = &links.net.served.socket;
    let figures = drive(("net", socket), &queues, &verb, links.packed, dir, stop)?;
    let number = |name: &str| figures[name].as_u64().unwrap_or(u64::MAX);
    let (sent, received) = (number("sent"), number("received"));
    let wrong = ["lost", "damaged", "disordered"].map(number);
    Ok(Finding {
        what: "network",
        ok: received > 0 && received == sent && wrong == [0; 3],
        detail: format!(
            "{sent} frames sent, {received} came back, {} lost, {} damaged, {} out of order",
            wrong[0], wrong[1], wrong[2]
        ),
    })
}

fn pairs(count: u16, frames: &[PairFrames]) -> Finding {
    let used = frames
        .iter()
        .filter(|pair| pair.from_guest > 0 && pair.to_guest > 0)
        .count();
    Finding {
        what: "queue pairs used",
        ok: used == usize::from(count),
        detail: format!("{used} of {count}, both ways"),
    }
}

/// Runs `linkspan driver KIND --socket-path … VERB --json`: what it reports.
fn drive(
    (kind, socket): (&str, &Path),
    options: &[&str],
    verb: &[&str],
    packed: bool,
    dir: &Path,
    stop: &Stop,
) -> Result<Value, Error> {
    let (out, log) = (
        dir.join(format!("driver-{kind}.out")),
        dir.join(format!("driver-{kind}.log")),
    );
    let create = |path: &Path| std::fs::File::create(path).map_err(Error::file("write", path));
    let mut command = supervised(&this_program()?);
    command
        .args(["driver", kind, "--socket-path"])
        .arg(socket)
        .args(options)
        .args(packed.then_some("--packed"))
        .args(verb)
        .arg("--json")
        .stdin(Stdio::null())
        .stdout(create(&out)?)
        .stderr(create(&log)?);
    let mut process = Process::spawn("linkspan driver", &mut command)?;
    let ended = process.wait_until(Instant::now() + LIMIT, stop)?;
    let name = process.name();
    let Some(status) = ended else {
        return Err(Error::Timeout {
            limit: LIMIT,
            at: format!("linkspan driver {kind}"),
            tail: tail(&log),
        });
    };
    if !status.success() {
        let tail = tail(&log);
        return Err(Error::Ended { name, status, tail });
    }
    let text = std::fs::read_to_string(&out).map_err(Error::file("read", &out))?;
    Ok(serde_json::from_str(text.trim()).unwrap_or_default())
}

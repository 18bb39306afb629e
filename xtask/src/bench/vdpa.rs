//! `cargo xtask bench vdpa`: drivers of vDPA devices, the bridge, and VDUSE disks,
//! in the lab guest.
//!
//! lab/bench/vdpa.sh takes the turns; here its lines become tables. The guest is
//! emulated, so nothing but ratios within it counts.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::blk::example;
use super::{Args, Series, Turn, machine, number};
use crate::lab;
use crate::packages;
use crate::project::Project;

/// One of ours against one of others.
struct Row {
    /// As the script calls it.
    name: &'static str,
    title: &'static str,
    ours: &'static str,
    peer: &'static str,
    peer_is: &'static str,
}

const LOOP: &str = "virtio_vdpa, a loop of O_DIRECT";

/// The simulator reaches memory by physical addresses under either driver.
const SAME: &str = "vdpa_sim.use_va=0";

/// Behind the names of rows in which it has our process's addresses, as it comes.
const BY_USER: &str = "-user";

#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { name: "driver-1", title: "simulated disk, depth 1", ours: "sleeps", peer: "kernel", peer_is: LOOP },
    Row { name: "driver-1", title: "simulated disk, depth 1, we poll", ours: "polls", peer: "kernel", peer_is: LOOP },
    Row { name: "driver-32", title: "simulated disk, depth 32", ours: "sleeps", peer: "kernel", peer_is: LOOP },
    Row { name: "driver-32", title: "simulated disk, depth 32, we poll", ours: "polls", peer: "kernel", peer_is: LOOP },
    Row { name: "driver-1-user", title: "by user addresses, depth 1", ours: "sleeps", peer: "kernel", peer_is: LOOP },
    Row { name: "driver-1-user", title: "by user addresses, depth 1, we poll", ours: "polls", peer: "kernel", peer_is: LOOP },
    Row { name: "driver-32-user", title: "by user addresses, depth 32", ours: "sleeps", peer: "kernel", peer_is: LOOP },
    Row { name: "driver-32-user", title: "by user addresses, depth 32, we poll", ours: "polls", peer: "kernel", peer_is: LOOP },
    Row { name: "vduse-1", title: "VDUSE disk, depth 1", ours: "ours", peer: "default", peer_is: "qemu-storage-daemon" },
    Row { name: "vduse-1", title: "VDUSE disk, depth 1", ours: "ours", peer: "polls", peer_is: "the same, iothread that polls, io_uring" },
    Row { name: "vduse-32", title: "VDUSE disk, depth 32", ours: "ours", peer: "default", peer_is: "qemu-storage-daemon" },
    Row { name: "vduse-32", title: "VDUSE disk, depth 32", ours: "ours", peer: "polls", peer_is: "the same, iothread that polls, io_uring" },
];

/// System calls of the bridge while so many requests went by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Calls {
    calls: u64,
    sleeps: u64,
    requests: u64,
    connections: u64,
}

/// What the guest said.
#[derive(Default)]
struct Told {
    /// By row and contestant.
    turns: BTreeMap<(String, String), Vec<Turn>>,
    /// `short` and `long`.
    calls: BTreeMap<String, Calls>,
}

impl Told {
    /// Takes a line, if it is one of ours.
    fn take(&mut self, line: &str) -> Result<()> {
        let place = || format!("the guest said `{line}`");
        let words: Vec<&str> = line.splitn(5, ' ').collect();
        if let ["turn", row, who, ticks, report] = words[..] {
            let report: Value = serde_json::from_str(report).with_context(place)?;
            let operations = number(&report, "operations")?;
            ensure!(operations > 0.0, "{}", place());
            // Linux shows programs 100 ticks a second everywhere.
            let seconds = ticks.parse::<f64>().with_context(place)? / 100.0;
            let turn = Turn {
                rate: number(&report, "iops")?,
                cpu: seconds / operations * 1e6,
            };
            let key = (row.to_owned(), who.to_owned());
            self.turns.entry(key).or_default().push(turn);
        } else if let ["calls", what, rest @ ..] = &words[..] {
            let rest = rest.join(" ");
            let numbers: Vec<u64> = rest
                .split(' ')
                .map(str::parse)
                .collect::<Result<_, _>>()
                .with_context(place)?;
            let [calls, sleeps, requests, connections] = numbers[..] else {
                anyhow::bail!("{}", place());
            };
            let calls = Calls {
                calls,
                sleeps,
                requests,
                connections,
            };
            self.calls.insert((*what).to_owned(), calls);
        }
        Ok(())
    }

    fn series(&self, row: &str, who: &str) -> Option<Series> {
        let turns = self.turns.get(&(row.to_owned(), who.to_owned()))?.clone();
        Some(Series { turns })
    }
}

pub(super) fn run(project: &Project, args: &Args) -> Result<String> {
    packages::ensure(packages::TESTS)?;
    let bare_loop = example(project, "linkspan-sys", "bare_loop")?;
    let bare_loop = bare_loop.to_str().context("the path is text")?.to_owned();
    let only = args.only.as_deref().unwrap_or_default();
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    ensure!(
        plain(only),
        "rows are driver-1, driver-32, both with {BY_USER} behind, serve, vduse-1 and vduse-32, not `{only}`"
    );
    let append = format!(
        "bench_rounds={} bench_seconds={} bench_only={only} bench_loop={bare_loop}",
        args.rounds, args.seconds
    );
    let script = project.root.join("lab/bench/vdpa.sh");
    let (mut told, mut wrong) = (Told::default(), None);
    let mut boots = vec![format!("{append} {SAME}")];
    if ROWS
        .iter()
        .any(|row| row.name.ends_with(BY_USER) && row.name.contains(only))
    {
        boots.push(format!("{append} bench_by={BY_USER}"));
    }
    for append in boots {
        lab::measure(
            project,
            &script,
            std::slice::from_ref(&bare_loop),
            &append,
            |line| {
                eprintln!("{line}");
                if let Err(error) = told.take(line) {
                    wrong.get_or_insert(error);
                }
            },
        )?;
    }
    wrong.map_or(Ok(()), Err)?;
    Ok(page(args, &told))
}

fn page(args: &Args, told: &Told) -> String {
    let mut text = format!(
        "`cargo xtask bench vdpa --rounds {} --seconds {}` on {}; in the lab guest, which is\n\
         emulated and has 2 processors, so rates are small and only ratios count. 4 KiB random reads. Operations a\n\
         second and, for VDUSE, processor seconds of the serving process per million operations: medians. The ratio is\n\
         that of the medians, and in parentheses the lowest and highest of a round. The simulated disk reaches memory\n\
         by physical addresses (`{SAME}`), as it does under the kernel's own driver whatever that says; in rows\n\
         `by user addresses` it has its default and reaches ours by the addresses of our process.\n\n\
         | row | ours | CPU | peer | its rate | its CPU | ratio | target |\n|---|---|---|---|---|---|---|---|\n",
        args.rounds,
        args.seconds,
        machine()
    );
    for row in ROWS {
        let (ours, theirs) = (
            told.series(row.name, row.ours),
            told.series(row.name, row.peer),
        );
        if let (Some(ours), Some(theirs)) = (ours, theirs) {
            text += &line(row, &ours, &theirs);
        }
    }
    if let (Some(short), Some(long)) = (told.calls.get("short"), told.calls.get("long")) {
        text += &calls(short, long);
    }
    text
}

fn line(row: &Row, ours: &Series, theirs: &Series) -> String {
    let (low, high) = ours.spread(theirs);
    // A driver's time is also that of the kernel's threads, which serve it.
    let cpu = |series: &Series| match row.name.starts_with("vduse") {
        true => format!("{:.0}", series.cpu()),
        false => String::new(),
    };
    format!(
        "| {} | {:.0} | {} | {} | {:.0} | {} | **{:.2}** ({low:.2}–{high:.2}) | 1.00 |\n",
        row.title,
        ours.rate(),
        cpu(ours),
        row.peer_is,
        theirs.rate(),
        cpu(theirs),
        ours.rate() / theirs.rate(),
    )
}

/// What the bridge did for few and for many requests.
fn calls(short: &Calls, long: &Calls) -> String {
    let mut text = String::from(
        "\nSystem calls of `linkspan vdpa serve`, all its threads, counted by the kernel (`raw_syscalls:sys_enter`), with\n\
         the connections, bringing the device up and down, and one more connection that asks for nothing:\n\n\
         | requests | connections | system calls | times a thread went to sleep |\n|---|---|---|---|\n",
    );
    for Calls {
        calls,
        sleeps,
        requests,
        connections,
    } in [short, long]
    {
        let _ = writeln!(text, "| {requests} | {connections} | {calls} | {sleeps} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_guest_become_rows() {
        let mut told = Told::default();
        for line in [
            "turn vduse-1 ours 50 {\"operations\": 1000, \"iops\": 2000.0}",
            "turn vduse-1 default 100 {\"operations\": 1000, \"iops\": 1000.0}",
            "calls short 90 40 12 1",
            "calls long 91 41 100001 1",
            "qemu-storage-daemon: words of somebody",
            "ok everything",
        ] {
            told.take(line).unwrap();
        }
        let args = Args {
            rounds: 1,
            seconds: 1.0,
            only: None,
        };
        let page = page(&args, &told);
        let row = "| VDUSE disk, depth 1 | 2000 | 500 | qemu-storage-daemon | 1000 | 1000 | **2.00** (2.00–2.00) | 1.00 |\n";
        assert!(page.contains(row), "{page}");
        assert!(page.contains("| 100001 | 1 | 91 | 41 |\n"), "{page}");
    }

    #[test]
    fn a_line_with_nonsense_is_shown() {
        for line in [
            "turn a b 1 {",
            "turn a b x {\"operations\":1,\"iops\":1}",
            "calls a 1 2",
        ] {
            let error = Told::default().take(line).unwrap_err();
            assert!(format!("{error:#}").contains(line), "{error:#}");
        }
    }
}

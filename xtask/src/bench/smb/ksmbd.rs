//! The rows of the lab: ksmbd has SMB Direct and TCP without a relay.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::super::blk::example;
use super::super::{Args, Series, Turn, number};
use crate::lab;
use crate::packages;
use crate::project::Project;

/// One of ours against one of others, as the script calls them.
struct Row {
    name: &'static str,
    title: &'static str,
    ours: &'static str,
    peer: &'static str,
    peer_is: &'static str,
    target: &'static str,
}

#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { name: "read", title: "read from ksmbd", ours: "rdma", peer: "tcp", peer_is: "TCP", target: "1.00" },
    Row { name: "write", title: "write to ksmbd", ours: "rdma", peer: "tcp", peer_is: "TCP", target: "1.00" },
    Row { name: "disk", title: "disk on a share, SMB Direct", ours: "ours-rdma", peer: "kernel-tcp", peer_is: "the kernel's mount, TCP", target: "" },
    Row { name: "disk", title: "disk on a share, TCP", ours: "ours-tcp", peer: "kernel-tcp", peer_is: "the kernel's mount, TCP", target: "" },
];

/// Turns of the guest, by row and contestant.
#[derive(Default)]
struct Told(BTreeMap<(String, String), Vec<Turn>>);

impl Told {
    /// Takes a line, if it is one of ours.
    fn take(&mut self, line: &str) -> Result<()> {
        let place = || format!("the guest said `{line}`");
        let words: Vec<&str> = line.splitn(5, ' ').collect();
        let ["turn", row, who, ticks, report] = words[..] else {
            return Ok(());
        };
        let report: Value = serde_json::from_str(report).with_context(place)?;
        // Linux shows programs 100 ticks a second everywhere.
        let seconds = ticks.parse::<f64>().with_context(place)? / 100.0;
        let (rate, count, unit) = match row {
            "disk" => (
                number(&report, "iops")?,
                number(&report, "operations")?,
                1e6,
            ),
            _ => {
                let rate = number(&report, "bytes_per_second")? / 1e6;
                (rate, number(&report, "bytes")?, 1e9)
            }
        };
        ensure!(count > 0.0, "{}", place());
        let turn = Turn {
            rate,
            cpu: seconds / count * unit,
        };
        let key = (row.to_owned(), who.to_owned());
        self.0.entry(key).or_default().push(turn);
        Ok(())
    }

    fn series(&self, row: &str, who: &str) -> Option<Series> {
        let turns = self.0.get(&(row.to_owned(), who.to_owned()))?.clone();
        Some(Series { turns })
    }

    fn page(&self) -> String {
        let mut text = String::from(
            "\nThe same in the lab guest, where the server is ksmbd and nothing is between: siw at its end of a cable, and ours at the other, over which\n\
             TCP goes too. The guest is emulated, so only ratios count. 10^6 bytes a second and nanoseconds of all processors of the\n\
             guest a byte; of disks, 4 KiB random reads at depth 32 a second, and microseconds of all processors a read: ours is under\n\
             our driver, the kernel's mount, which cannot reach this kernel's own server by SMB Direct, under a loop of O_DIRECT.\n\n\
             | row | ours | CPU | peer | its rate | its CPU | ratio | target |\n|---|---|---|---|---|---|---|---|\n",
        );
        for row in ROWS {
            let (ours, theirs) = (
                self.series(row.name, row.ours),
                self.series(row.name, row.peer),
            );
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                text += &line(row, &ours, &theirs);
            }
        }
        text
    }
}

pub(super) fn run(project: &Project, args: &Args) -> Result<String> {
    let only = args.only.as_deref().unwrap_or_default();
    if !["ksmbd-read", "ksmbd-write", "ksmbd-disk"]
        .iter()
        .any(|row| row.contains(only))
    {
        return Ok(String::new());
    }
    packages::ensure(packages::TESTS)?;
    let stream = example(project, "linkspan-backends", "smb_stream")?;
    let bare_loop = example(project, "linkspan-sys", "bare_loop")?;
    let [stream, bare_loop] = [stream, bare_loop].map(|path| path.display().to_string());
    let append = format!(
        "bench_rounds={} bench_seconds={} bench_only={only} bench_stream={stream} bench_loop={bare_loop}",
        args.rounds, args.seconds
    );
    let script = project.root.join("lab/bench/smb.sh");
    let (mut told, mut wrong) = (Told::default(), None);
    lab::measure(project, &script, &[stream, bare_loop], &append, |line| {
        eprintln!("{line}");
        if let Err(error) = told.take(line) {
            wrong.get_or_insert(error);
        }
    })?;
    wrong.map_or(Ok(()), Err)?;
    Ok(told.page())
}

fn line(row: &Row, ours: &Series, theirs: &Series) -> String {
    let (low, high) = ours.spread(theirs);
    format!(
        "| {} | {:.0} | {:.1} | {} | {:.0} | {:.1} | **{:.2}** ({low:.2}–{high:.2}) | {} |\n",
        row.title,
        ours.rate(),
        ours.cpu(),
        row.peer_is,
        theirs.rate(),
        theirs.cpu(),
        ours.rate() / theirs.rate(),
        row.target,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_guest_become_rows() {
        let mut told = Told::default();
        for line in [
            "turn read rdma 50 {\"bytes\": 1000000000, \"bytes_per_second\": 2000000.0}",
            "turn read tcp 100 {\"bytes\": 1000000000, \"bytes_per_second\": 1000000.0}",
            "turn disk ours-tcp 10 {\"operations\": 1000, \"iops\": 500}",
            "ok everything",
        ] {
            told.take(line).unwrap();
        }
        let page = told.page();
        let row = "| read from ksmbd | 2 | 0.5 | TCP | 1 | 1.0 | **2.00** (2.00–2.00) | 1.00 |\n";
        assert!(page.contains(row), "{page}");
        assert!(!page.contains("disk on a share, TCP"), "{page}");
        let error = told.take("turn read rdma x {\"bytes\":1,\"bytes_per_second\":1}");
        assert!(error.is_err());
    }
}

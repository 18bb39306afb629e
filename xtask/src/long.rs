//! `cargo xtask long NAME`: what takes longer than tests may. It goes in rounds;
//! each round appends a line to docs/ledger.tsv, and a run that is interrupted
//! goes on behind the last one for the same commit.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::project::{Project, cargo};

/// A long run.
struct Long {
    name: &'static str,
    about: &'static str,
    /// Things done in all, and in a round.
    total: u64,
    round: u64,
    /// The test that does them, as arguments of `cargo test`.
    test: &'static [&'static str],
    /// The variable that tells it how many to do.
    count_env: &'static str,
}

const ALL: &[Long] = &[Long {
    name: "kill-blk",
    about: "kills the back end of a verifying load, again and again",
    total: 100,
    round: 20,
    test: &["--release", "--package", "linkspan", "--test", "kill"],
    count_env: "LINKSPAN_KILLS",
}];

/// The names, each with a word on it, for the help.
pub(crate) fn names() -> String {
    let lines = ALL
        .iter()
        .map(|long| format!("  {:12} {}", long.name, long.about));
    lines.collect::<Vec<_>>().join("\n")
}

pub(crate) fn run(name: &str) -> Result<bool> {
    let Some(long) = ALL.iter().find(|long| long.name == name) else {
        bail!("there is no long run `{name}`; there are:\n{}", names());
    };
    let project = Project::load()?;
    let ledger = project.root.join("docs/ledger.tsv");
    let commit = commit()?;
    let text = fs::read_to_string(&ledger).unwrap_or_default();
    let mut done = done_before(&text, &commit, name);
    if done > 0 {
        eprintln!("xtask: {name}: {done} of {} were done before", long.total);
    }
    while done < long.total {
        let count = long.round.min(long.total - done);
        let started = Instant::now();
        let status = cargo()
            .arg("test")
            .args(long.test)
            .args(["--", "--nocapture"])
            .env(long.count_env, count.to_string())
            .current_dir(&project.root)
            .status()?;
        let seconds = started.elapsed().as_secs();
        let result = if status.success() { "ok" } else { "FAILED" };
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&ledger)
            .with_context(|| format!("cannot write {}", ledger.display()))?;
        writeln!(
            file,
            "{}\t{commit}\t{name}\t{count}\t{seconds}\t{result}",
            today()
        )?;
        if !status.success() {
            return Ok(false);
        }
        done += count;
        eprintln!("xtask: {name}: {done} of {}", long.total);
    }
    Ok(true)
}

/// How many were done without a failure, by the ledger.
fn done_before(ledger: &str, commit: &str, name: &str) -> u64 {
    let rows = ledger
        .lines()
        .map(|line| line.split('\t').collect::<Vec<_>>());
    rows.filter_map(|row| match row[..] {
        [_, of, what, count, _, "ok"] if of == commit && what == name => count.parse::<u64>().ok(),
        _ => None,
    })
    .sum()
}

/// The commit that is being tested; a changed tree has none.
fn commit() -> Result<String> {
    let git = |args: &[&str]| -> Result<String> {
        let output = Command::new("git").args(args).output().context("git")?;
        ensure!(output.status.success(), "git {args:?} failed");
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = git(&["status", "--porcelain", "--", ":!docs/ledger.tsv"])?;
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    Ok(if changed.is_empty() {
        commit
    } else {
        format!("{commit}+")
    })
}

/// The date as the Gregorian calendar has it (UTC).
fn today() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (mut year, mut days) = (1970, seconds / 86_400);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}

#[cfg(test)]
mod tests {
    use super::done_before;

    #[test]
    fn a_run_goes_on_behind_the_rounds_of_its_commit_that_passed() {
        let ledger = "date\tcommit\trun\tcount\tseconds\tresult\n\
            2026-11-20\tabc\tkill-blk\t20\t9\tok\n\
            2026-11-20\tabc\tother\t20\t9\tok\n\
            2026-11-20\tabd\tkill-blk\t20\t9\tok\n\
            2026-11-20\tabc\tkill-blk\t20\t9\tFAILED\n\
            2026-11-20\tabc\tkill-blk\t7\t9\tok\n";
        assert_eq!(done_before(ledger, "abc", "kill-blk"), 27);
        assert_eq!(done_before("", "abc", "kill-blk"), 0);
    }
}

//! `cargo xtask long NAME`: what takes longer than tests may. It goes in rounds;
//! each round appends a line to docs/ledger.tsv, and a run that is interrupted
//! goes on behind the last one: for the same commit, or where there are seeds
//! behind the last seed of any commit.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::project::{Project, cargo};
use crate::run::{KERNEL_ENV, LATER_QEMU_ENV};
use crate::sim;
use crate::tally::stream;
use crate::{kernel, later_qemu};

/// A long run.
struct Long {
    name: &'static str,
    about: &'static str,
    /// Things done in all, and in a round.
    total: u64,
    round: u64,
    what: What,
}

enum What {
    Test {
        /// The test that does them, as arguments of `cargo test`.
        test: &'static [&'static str],
        /// The variable that tells it how many to do.
        count_env: &'static str,
    },
    /// The same of a test that boots guests: in a later QEMU than the distribution's.
    Guests {
        test: &'static [&'static str],
        count_env: &'static str,
    },
    /// Seeds of the simulation of this kind of link. They are done once, whatever the
    /// commit: a later run does others.
    Seeds(&'static str),
}

/// How many seeds tests do anyway.
const SEEDS_OF_TESTS: u64 = 1000;

/// What the simulation's line of results begins with; the number of failures follows behind
/// the first comma.
const RESULTS: &str = "simulation: ";

/// The run that is all simulations, one after the other.
const ALL_SIMULATIONS: &str = "sim";

const fn simulated(name: &'static str, link: &'static str, about: &'static str) -> Long {
    Long {
        name,
        about,
        total: 1_000_000,
        round: 50_000,
        what: What::Seeds(link),
    }
}

const ALL: &[Long] = &[
    Long {
        name: "kill-blk",
        about: "kills the back end of a verifying load, again and again",
        total: 100,
        round: 20,
        what: What::Test {
            test: &["--release", "--package", "linkspan", "--test", "kill"],
            count_env: "LINKSPAN_KILLS",
        },
    },
    Long {
        name: "upgrade",
        about: "hands a disk under a verifying load over to new processes, again and again",
        total: 100,
        round: 50,
        what: What::Test {
            test: &[
                "--release",
                "--package",
                "linkspan",
                "--test",
                "upgrade_program",
                "loses_nothing_in_split_rings",
            ],
            count_env: "LINKSPAN_UPGRADES",
        },
    },
    Long {
        name: "upgrade-net",
        about: "hands a network with traffic over to new processes, again and again",
        total: 100,
        round: 50,
        what: What::Test {
            test: &[
                "--release",
                "--package",
                "linkspan",
                "--test",
                "upgrade_net",
                "lose_no_frame_in_split_rings",
            ],
            count_env: "LINKSPAN_UPGRADES",
        },
    },
    Long {
        name: "migration",
        about: "moves a guest between two QEMUs while it writes, slowly, again and again",
        total: 10,
        round: 5,
        what: What::Guests {
            test: &["--package", "linkspan", "--test", "migration"],
            count_env: "LINKSPAN_MIGRATIONS",
        },
    },
    simulated(
        "sim-blk",
        "blk",
        "simulates a disk over vhost-user with seeds that were not done yet",
    ),
    simulated(
        "sim-smbdirect",
        "smbdirect",
        "simulates both ends of SMB Direct with seeds that were not done yet",
    ),
    simulated(
        "sim-iwarp",
        "iwarp",
        "simulates them over iWARP with seeds that were not done yet",
    ),
    simulated(
        "sim-fcopy",
        "fcopy",
        "simulates files into a guest over VMBus with seeds that were not done yet",
    ),
    simulated(
        "sim-smb2",
        "smb2",
        "simulates a file on a share, through a gateway with seeds that were not done yet",
    ),
    simulated(
        "sim-vfio-user",
        "vfio-user",
        "simulates a PCI device over vfio-user with seeds that were not done yet",
    ),
];

/// The names, each with a word on it, for the help.
pub(crate) fn names() -> String {
    let all = (
        ALL_SIMULATIONS,
        "all the simulations below, one after the other (--seeds N)",
    );
    let runs = ALL.iter().map(|long| (long.name, long.about));
    let lines = std::iter::once(all).chain(runs);
    let lines = lines.map(|(name, about)| format!("  {name:14} {about}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// `seeds`: how many to do, if it is a run that has them.
pub(crate) fn run(name: &str, seeds: Option<u64>) -> Result<bool> {
    if name == ALL_SIMULATIONS {
        let simulations = ALL.iter().filter(|it| matches!(it.what, What::Seeds(_)));
        let mut ok = true;
        for long in simulations {
            ok &= run_one(long, seeds)?;
        }
        return Ok(ok);
    }
    match ALL.iter().find(|long| long.name == name) {
        Some(long) => run_one(long, seeds),
        None => bail!("there is no long run `{name}`; there are:\n{}", names()),
    }
}

fn run_one(long: &Long, seeds: Option<u64>) -> Result<bool> {
    let (name, has_seeds) = (long.name, matches!(long.what, What::Seeds(_)));
    ensure!(has_seeds || seeds.is_none(), "{name} has no seeds");
    let project = Project::load()?;
    let ledger = project.root.join("docs/ledger.tsv");
    let commit = commit()?;
    let text = fs::read_to_string(&ledger).unwrap_or_default();
    let before = done_before(&text, (!has_seeds).then_some(commit.as_str()), name);
    let (mut done, total) = match seeds {
        // So many more.
        Some(seeds) => (0, seeds),
        None => (before, long.total),
    };
    let first = before - done;
    if before > 0 {
        eprintln!("xtask: {name}: {before} were done before");
    }
    while done < total {
        let count = long.round.min(total - done);
        let mut command = command(long, SEEDS_OF_TESTS + first + done, count)?;
        command.current_dir(&project.root);
        let started = Instant::now();
        let result = round(long, &mut command)?;
        let seconds = started.elapsed().as_secs_f64();
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&ledger)
            .with_context(|| format!("cannot write {}", ledger.display()))?;
        writeln!(
            file,
            "{}\t{commit}\t{name}\t{count}\t{seconds:.1}\t{result}",
            today()
        )?;
        if result != OK {
            return Ok(false);
        }
        done += count;
        eprintln!("xtask: {name}: {done} of {total}");
    }
    Ok(true)
}

/// What does a round.
fn command(long: &Long, first: u64, count: u64) -> Result<Command> {
    let of_test = |test: &[&str], count_env| {
        let mut command = cargo();
        command
            .arg("test")
            .args(test)
            .args(["--", "--nocapture"])
            .env(count_env, count.to_string());
        command
    };
    Ok(match long.what {
        What::Test { test, count_env } => of_test(test, count_env),
        What::Guests { test, count_env } => {
            let mut command = of_test(test, count_env);
            command
                .env(KERNEL_ENV, kernel::ensure()?)
                .env(LATER_QEMU_ENV, later_qemu::program(&later_qemu::ensure()?));
            command
        }
        What::Seeds(link) => sim::command(&sim::Args {
            seeds: Some(count),
            first_seed: first,
            link: Some(link.to_owned()),
        }),
    })
}

/// The result of a round that did not fail.
const OK: &str = "ok";

/// Does a round; what the ledger says of it.
fn round(long: &Long, command: &mut Command) -> Result<String> {
    let mut failures = None;
    let ok = stream(command, |line| {
        if let What::Seeds(_) = long.what {
            failures = failures.or(failed(line));
        }
    })?;
    Ok(match failures {
        _ if ok => OK.to_owned(),
        Some(count) => format!("{count} FAILED"),
        None => "FAILED".to_owned(),
    })
}

/// How many seeds failed, if this is the line that says so.
fn failed(line: &str) -> Option<u64> {
    let (_, rest) = line.strip_prefix(RESULTS)?.split_once(", ")?;
    rest.split(' ').next()?.parse().ok()
}

/// How many were done without a failure, by the ledger, for this commit or any.
fn done_before(ledger: &str, commit: Option<&str>, name: &str) -> u64 {
    let rows = ledger
        .lines()
        .map(|line| line.split('\t').collect::<Vec<_>>());
    rows.filter_map(|row| match row[..] {
        [_, of, what, count, _, OK] if commit.is_none_or(|commit| of == commit) && what == name => {
            count.parse::<u64>().ok()
        }
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
    use super::{done_before, failed};

    #[test]
    fn a_run_goes_on_behind_the_rounds_of_its_commit_that_passed() {
        let ledger = "date\tcommit\trun\tcount\tseconds\tresult\n\
            2026-11-20\tabc\tkill-blk\t20\t9\tok\n\
            2026-11-20\tabc\tother\t20\t9\tok\n\
            2026-11-20\tabd\tkill-blk\t20\t9\tok\n\
            2026-11-20\tabc\tkill-blk\t20\t9\tFAILED\n\
            2026-11-20\tabc\tkill-blk\t7\t9\tok\n";
        assert_eq!(done_before(ledger, Some("abc"), "kill-blk"), 27);
        assert_eq!(done_before(ledger, None, "kill-blk"), 47);
        assert_eq!(done_before("", None, "kill-blk"), 0);
    }
    #[test]
    fn failures_are_read_from_what_the_simulation_says() {
        let line = "simulation: blk 10000 seeds, 3 failures, 0.10 ms of CPU a seed";
        assert_eq!(failed(line), Some(3));
        assert_eq!(failed("test simulation: ok"), None);
    }
}

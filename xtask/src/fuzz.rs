//! The fuzzers, on a stable compiler: LLVM's coverage pass is asked for with
//! code-generation options instead of the nightly `-Z sanitizer`. Memory errors
//! are therefore not detected, panics and hangs are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::packages;
use crate::project::{Project, cache_dir, cargo};
use crate::tally::{Tally, headline, stream};

/// The one program of all targets, and the variable that chooses among them.
const PROGRAM: &str = "linkspan-libfuzzer";
const TARGET_ENV: &str = "LINKSPAN_FUZZ_TARGET";

/// Seconds of fuzzing in all, shared by the targets.
const BUDGET_SECONDS: u64 = 60;

/// An explicit target keeps build scripts and macros free of the flags below.
const TARGET: &str = "x86_64-unknown-linux-gnu";

const RUSTFLAGS: &[&str] = &[
    "--cfg fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    // One unit per crate, so that no coverage table is lost at link time.
    "-Ccodegen-units=1",
    "-Cdebug-assertions=on",
    "-Coverflow-checks=on",
];

/// Builds the targets, replays the corpora, and fuzzes unless `quick`.
pub(crate) fn run(project: &Project, tally: &mut Tally, quick: bool) -> Result<()> {
    let fuzz = project.root.join("fuzz");
    let names = target_names(&fuzz);
    if names.is_empty() {
        tally.check("fuzz: there are targets", false);
        return Ok(());
    }
    if !packages::runs("c++") && !packages::runs("g++") {
        tally.skip("fuzz", "libFuzzer needs a C++ compiler, Debian package g++");
        return Ok(());
    }
    let target_dir = project.target.join("fuzz");
    if !tally.step("fuzz build", &mut build(&fuzz, &target_dir))? {
        return Ok(());
    }
    let seconds = (BUDGET_SECONDS / names.len() as u64).max(1);
    for name in &names {
        let session = Session::new(&fuzz, &target_dir, name)?;
        session.replay(tally)?;
        if !quick {
            session.fuzz(tally, seconds)?;
        }
    }
    Ok(())
}

/// Each target has a corpus of its name.
fn target_names(fuzz: &Path) -> Vec<String> {
    let entries = fs::read_dir(fuzz.join("corpus")).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn build(fuzz: &Path, target_dir: &Path) -> Command {
    let mut command = cargo();
    command
        .args([
            "build",
            "--release",
            "--bins",
            "--target",
            TARGET,
            "--manifest-path",
        ])
        .arg(fuzz.join("libfuzzer/Cargo.toml"))
        .env("RUSTFLAGS", RUSTFLAGS.join(" "))
        .env("CARGO_TARGET_DIR", target_dir);
    command
}

/// One fuzz target and its folders.
struct Session<'a> {
    name: &'a str,
    program: PathBuf,
    /// Inputs that are part of the source.
    seeds: PathBuf,
    /// Inputs that earlier runs on this machine found.
    finds: PathBuf,
    /// Inputs that made it fail in earlier runs on this machine.
    failures: PathBuf,
}

impl<'a> Session<'a> {
    fn new(fuzz: &Path, target_dir: &Path, name: &'a str) -> Result<Self> {
        let session = Self {
            name,
            program: target_dir.join(TARGET).join("release").join(PROGRAM),
            seeds: fuzz.join("corpus").join(name),
            finds: cache_dir().join("fuzz").join(name),
            failures: cache_dir().join("fuzz-failures").join(name),
        };
        for dir in [&session.finds, &session.failures] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        Ok(session)
    }

    /// Runs every seed, and what failed before, once.
    fn replay(&self, tally: &mut Tally) -> Result<()> {
        let name = format!("fuzz {} replay", self.name);
        let mut seeds: Vec<PathBuf> = [&self.seeds, &self.failures]
            .into_iter()
            .flat_map(fs::read_dir)
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        if seeds.is_empty() {
            tally.skip(&name, "it has no corpus");
            return Ok(());
        }
        seeds.sort();
        headline(&name);
        let ok = self.watched(self.command().args(&seeds), false)?;
        tally.check(&name, ok);
        Ok(())
    }

    fn fuzz(&self, tally: &mut Tally, seconds: u64) -> Result<()> {
        let name = format!("fuzz {} for {seconds} s", self.name);
        headline(&name);
        let mut command = self.command();
        command
            .arg(format!("-max_total_time={seconds}"))
            .arg("-print_final_stats=1")
            .arg(&self.finds);
        if self.seeds.is_dir() {
            command.arg(&self.seeds);
        }
        let ok = self.watched(&mut command, true)?;
        tally.check(&name, ok);
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env(TARGET_ENV, self.name)
            .args(["-timeout=10", "-rss_limit_mb=2048"])
            .arg(format!("-artifact_prefix={}/", self.failures.display()));
        command
    }

    /// Runs the fuzzer; blind fuzzing, without coverage, counts as a failure.
    fn watched(&self, command: &mut Command, needs_coverage: bool) -> Result<bool> {
        let mut counters = 0;
        let ok = stream(command, |line| {
            counters = counters.max(coverage_counters(line).unwrap_or(0))
        })
        .with_context(|| format!("cannot run {}", self.program.display()))?;
        if needs_coverage && counters == 0 {
            println!(
                "{} was built without coverage counters, so it would fuzz blindly",
                self.name
            );
        }
        Ok(ok && (counters > 0 || !needs_coverage))
    }
}

/// N in libFuzzer's "Loaded 1 modules   (N inline 8-bit counters)".
fn coverage_counters(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("INFO: Loaded ")?;
    let (_, rest) = rest.split_once('(')?;
    rest.split_once(" inline 8-bit counters")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_libfuzzers_greeting() {
        let line = "INFO: Loaded 1 modules   (5034 inline 8-bit counters): 5034 [0x1, 0x2), ";
        assert_eq!(coverage_counters(line), Some(5034));
        assert_eq!(
            coverage_counters("INFO: Loaded 1 PC tables (5034 PCs): 5034"),
            None
        );
        assert_eq!(coverage_counters("INFO: Seed: 12"), None);
    }
}

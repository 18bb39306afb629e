//! The fuzzers, on a stable compiler: LLVM's coverage pass is asked for with
//! code-generation options instead of the nightly `-Z sanitizer`. Memory errors
//! are therefore not detected, panics and hangs are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result};

use crate::packages;
use crate::project::{Project, cache_dir, cargo};
use crate::tally::{Tally, headline};

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
    "-Cdebug-assertions=on",
    "-Coverflow-checks=on",
];

/// `cargo xtask fuzz`.
pub(crate) fn alone(quick: bool) -> Result<bool> {
    let project = Project::load()?;
    let mut tally = Tally::default();
    build(&project, &mut tally)?;
    run(&project, &mut tally, quick)?;
    println!("\n{}", tally.summary());
    Ok(tally.failed == 0)
}

/// Builds the targets.
pub(crate) fn build(project: &Project, tally: &mut Tally) -> Result<()> {
    if !packages::runs("c++") && !packages::runs("g++") {
        tally.skip("fuzz", "libFuzzer needs a C++ compiler, Debian package g++");
        return Ok(());
    }
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
        .arg(project.root.join("fuzz/libfuzzer/Cargo.toml"))
        .env("RUSTFLAGS", RUSTFLAGS.join(" "))
        .env("CARGO_TARGET_DIR", project.target.join("fuzz"));
    tally.step("fuzz build", &mut command)?;
    Ok(())
}

/// Replays the corpora, and fuzzes unless `quick`: as many targets at a time as there are
/// processors. Where the build has failed, or could not be, that is counted already.
pub(crate) fn run(project: &Project, tally: &mut Tally, quick: bool) -> Result<()> {
    let fuzz = project.root.join("fuzz");
    let program = project.target.join("fuzz").join(TARGET).join("release");
    let program = program.join(PROGRAM);
    let names = target_names(&fuzz);
    if names.is_empty() {
        tally.check("fuzz: there are targets", false);
    }
    if !program.exists() {
        return Ok(());
    }
    let seconds = (BUDGET_SECONDS / names.len().max(1) as u64).max(1);
    let next = AtomicUsize::new(0);
    let (to_us, done) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (to_us, next, names, fuzz, program) =
                (to_us.clone(), &next, &names, &fuzz, &program);
            scope.spawn(move || {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let runs = Session::new(fuzz, program, name).and_then(|session| {
                        let replay = session.replay()?;
                        Ok((replay, (!quick).then(|| session.fuzz(seconds)).transpose()?))
                    });
                    if to_us.send(runs).is_err() {
                        return;
                    }
                }
            });
        }
        drop(to_us);
        for runs in done {
            let (replay, fuzzes) = runs?;
            for run in [Some(replay), fuzzes].into_iter().flatten() {
                headline(&run.name);
                println!("{}", run.said);
                match run.ok {
                    Some(ok) => tally.check(&run.name, ok),
                    None => tally.skip(&run.name, "it has no corpus"),
                }
            }
        }
        Ok(())
    })
}

/// Each target has a corpus of its name.
fn target_names(fuzz: &Path) -> Vec<String> {
    let entries = fs::read_dir(fuzz.join("corpus")).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// A run of one target.
struct Run {
    name: String,
    said: String,
    /// `None` where there was nothing to run.
    ok: Option<bool>,
}

/// One fuzz target and its folders.
struct Session<'a> {
    name: &'a str,
    program: &'a Path,
    /// Inputs that are part of the source.
    seeds: PathBuf,
    /// Inputs that earlier runs on this machine found.
    finds: PathBuf,
    /// Inputs that made it fail in earlier runs on this machine.
    failures: PathBuf,
}

impl<'a> Session<'a> {
    fn new(fuzz: &Path, program: &'a Path, name: &'a str) -> Result<Self> {
        let session = Self {
            name,
            program,
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
    fn replay(&self) -> Result<Run> {
        let name = format!("fuzz {} replay", self.name);
        let mut seeds: Vec<PathBuf> = [&self.seeds, &self.failures]
            .into_iter()
            .flat_map(fs::read_dir)
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        if seeds.is_empty() {
            let (said, ok) = (String::new(), None);
            return Ok(Run { name, said, ok });
        }
        seeds.sort();
        self.watched(name, self.command().args(&seeds), false)
    }

    fn fuzz(&self, seconds: u64) -> Result<Run> {
        let name = format!("fuzz {} for {seconds} s", self.name);
        let mut command = self.command();
        command
            .arg(format!("-max_total_time={seconds}"))
            .arg("-print_final_stats=1")
            .arg(&self.finds);
        if self.seeds.is_dir() {
            command.arg(&self.seeds);
        }
        self.watched(name, &mut command, true)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command
            .env(TARGET_ENV, self.name)
            .args(["-timeout=10", "-rss_limit_mb=2048"])
            .arg(format!("-artifact_prefix={}/", self.failures.display()));
        command
    }

    /// Runs the fuzzer; blind fuzzing, without coverage, counts as a failure.
    fn watched(&self, name: String, command: &mut Command, needs_coverage: bool) -> Result<Run> {
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said += &String::from_utf8_lossy(&output.stderr);
        let counters = said.lines().find_map(coverage_counters).unwrap_or(0);
        if needs_coverage && counters == 0 {
            said += "it was built without coverage counters, so it would fuzz blindly\n";
        }
        let ok = output.status.success() && (counters > 0 || !needs_coverage);
        let ok = Some(ok);
        Ok(Run { name, said, ok })
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

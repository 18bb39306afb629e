//! Runs steps, lets their output through as it comes, and counts what passed.

use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use anyhow::{Context, Result};

/// The counts of a whole run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// What failed, and what it said, for the end of a long output: often only that
    /// end is at hand.
    names: Vec<String>,
    /// The same of what failed, and passed when it ran once more with nothing beside it.
    /// The run goes on with it, and says so: each is a fault to mend.
    unstable: Vec<String>,
}

/// What one program's output said about tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    tests: Tally,
    /// Tests that said SKIP. Their harness counts them as passed.
    said_skip: u64,
    /// Tests that said LATER: they run in another step, and count there.
    said_later: u64,
    /// The failed test whose words come now, by its place in `tests.names`.
    telling: Option<usize>,
}

/// So much of what a failed test said is told again.
const TOLD_LINES: usize = 24;
const TOLD_CHARS: usize = 400;

/// More failed tests than these are no accident, and do not run again.
pub(crate) const AGAIN_MOST: usize = 3;

impl Tally {
    /// Counts one check of ours.
    pub(crate) fn check(&mut self, name: &str, ok: bool) {
        if ok {
            self.passed += 1;
        } else {
            println!("FAIL {name}");
            self.failed += 1;
            self.names.push(name.to_owned());
        }
    }

    /// Says why a check cannot run, and counts it.
    pub(crate) fn skip(&mut self, name: &str, why: &str) {
        println!("SKIP {name}: {why}");
        self.skipped += 1;
    }

    /// Runs a command as one check.
    pub(crate) fn step(&mut self, name: &str, command: &mut Command) -> Result<bool> {
        headline(name);
        let started = Instant::now();
        let status = command
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("cannot run {name}"))?;
        println!("{name}: {:.1} s", started.elapsed().as_secs_f64());
        self.check(name, status.success());
        Ok(status.success())
    }

    /// Runs a command that runs tests, and adds up their results.
    pub(crate) fn tests(&mut self, name: &str, command: &mut Command) -> Result<()> {
        headline(name);
        let started = Instant::now();
        let mut counted = Counted::default();
        let success = stream(command, |line| counted.take(line))
            .with_context(|| format!("cannot run {name}"))?;
        println!("{name}: {:.1} s", started.elapsed().as_secs_f64());
        self.add(name, success, &counted);
        Ok(())
    }

    /// [`Tally::tests`] of a harness that takes names. Few that fail run once more.
    pub(crate) fn tests_and_again(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let mut first = Self::default();
        first.tests(name, command)?;
        first.again(name, |tests| {
            let mut second = Self::default();
            command.args(["--", "--exact", "--test-threads", "1"]);
            second.tests(&format!("{name}, what failed"), command.args(tests))?;
            Ok(second)
        })?;
        self.merge(first);
        Ok(())
    }

    /// Runs the tests of the step `name` that failed once more, if they are few.
    fn again(&mut self, name: &str, run: impl FnOnce(&[&str]) -> Result<Self>) -> Result<()> {
        let prefix = format!("{name}: ");
        let test = |told: &'_ String| Some(told.lines().next()?.strip_prefix(&prefix)?.to_owned());
        // Without names for all of them, something else failed too.
        let Some(tests) = self.names.iter().map(test).collect::<Option<Vec<_>>>() else {
            return Ok(());
        };
        if (1..=AGAIN_MOST).contains(&tests.len()) {
            let tests: Vec<&str> = tests.iter().map(String::as_str).collect();
            let second = run(&tests)?;
            if second.failed == 0 && second.passed >= self.failed {
                self.forgive();
            }
        }
        Ok(())
    }

    /// What failed has passed since.
    pub(crate) fn forgive(&mut self) {
        self.passed += std::mem::take(&mut self.failed);
        self.unstable.append(&mut self.names);
    }

    /// Adds what a program said. Without success something has failed, said or not.
    pub(crate) fn add(&mut self, name: &str, success: bool, counted: &Counted) {
        let tests = counted.finish();
        self.passed += tests.passed;
        self.failed += tests.failed;
        self.skipped += tests.skipped;
        let whole = tests
            .names
            .into_iter()
            .map(|test| format!("{name}: {test}"));
        self.names.extend(whole);
        // It did not build, or died: no line of results tells of that.
        if !success && tests.failed == 0 {
            self.check(name, false);
        }
    }

    /// Adds the counts of another run.
    pub(crate) fn merge(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.names.extend(other.names);
        self.unstable.extend(other.unstable);
    }

    /// What a run has counted that ended with [`Tally::summary`], by all that it said.
    pub(crate) fn of_summary(said: &str) -> Option<Self> {
        let mut lines = said.trim_end().lines().rev();
        let mut counts = lines.next()?.split(", ");
        let mut count = |what: &str| counts.next()?.strip_suffix(what)?.parse::<u64>().ok();
        let (passed, failed, skipped) = (count(" passed")?, count(" failed")?, count(" skipped")?);
        let (mut names, mut behind) = (Vec::new(), String::new());
        for line in lines {
            match line.strip_prefix("FAIL ") {
                Some(name) => names.push(name.to_owned() + &std::mem::take(&mut behind)),
                // What it said.
                None if line.starts_with("    ") => behind = format!("\n{line}{behind}"),
                None => break,
            }
        }
        names.reverse();
        Some(Self {
            passed,
            failed,
            skipped,
            names,
            unstable: Vec::new(),
        })
    }

    /// The lines with which a test run ends: what failed, and the counts.
    pub(crate) fn summary(&self) -> String {
        let lines = |word: &str, names: &[String]| -> String {
            let each = names.iter().map(|name| format!("{word} {name}\n"));
            each.collect()
        };
        let unstable = lines("UNSTABLE, passed when run again:", &self.unstable);
        let failed = lines("FAIL", &self.names);
        format!(
            "{unstable}{failed}{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

impl Counted {
    fn take(&mut self, line: &str) {
        let line = without_colours(line);
        self.tell(&line);
        if line.starts_with("SKIP ") {
            self.said_skip += 1;
        } else if line.starts_with("LATER ") {
            self.said_later += 1;
        } else if let Some(test) = line.strip_prefix("test ").and_then(failed_test) {
            self.tests.names.push(test.to_owned());
        } else if let Some(result) = line.trim_start().strip_prefix("test result: ") {
            let count = |what: &str| {
                let words: Vec<&str> = result
                    .split([' ', ';', '.'])
                    .filter(|word| !word.is_empty())
                    .collect();
                let at = words.iter().position(|word| *word == what)?;
                words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
            };
            self.tests.passed += count("passed").unwrap_or(0);
            self.tests.failed += count("failed").unwrap_or(0);
            self.tests.skipped += count("ignored").unwrap_or(0);
        }
    }

    /// The harness repeats what each failed test said, behind a line with its name.
    fn tell(&mut self, line: &str) {
        let begins = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(test) = begins {
            self.telling = self.tests.names.iter().rposition(|name| name == test);
        } else if line.starts_with("test result: ") || line == "failures:" {
            self.telling = None;
        } else if let Some(at) = self.telling
            && !line.is_empty()
        {
            let told = &mut self.tests.names[at];
            if told.lines().count() <= TOLD_LINES {
                told.push_str("\n    ");
                told.extend(line.chars().take(TOLD_CHARS));
            }
        }
    }

    /// A line of a guest: results of its script, or of tests. Gives whether it is one.
    pub(crate) fn take_check(&mut self, line: &str) -> bool {
        let count = if line.starts_with("ok ") {
            &mut self.tests.passed
        } else if let Some(name) = line.strip_prefix("not ok ") {
            self.tests.names.push(name.to_owned());
            &mut self.tests.failed
        } else if line.starts_with("skip ") {
            &mut self.tests.skipped
        } else {
            self.take(line);
            return ["SKIP ", "test "]
                .iter()
                .any(|start| line.starts_with(start));
        };
        *count += 1;
        true
    }

    pub(crate) fn finish(&self) -> Tally {
        let Self {
            tests,
            said_skip,
            said_later,
            ..
        } = self;
        Tally {
            passed: tests.passed.saturating_sub(said_skip + said_later),
            skipped: tests.skipped + said_skip,
            ..tests.clone()
        }
    }
}

/// The name of a test whose line of the harness says that it failed.
fn failed_test(line: &str) -> Option<&str> {
    line.strip_suffix(" ... FAILED")
}

pub(crate) fn headline(name: &str) {
    println!("\n== {name}");
}

/// Runs `command`, passes its two outputs on line by line, and shows each line
/// to `see`. Gives whether it succeeded.
pub(crate) fn stream(command: &mut Command, mut see: impl FnMut(&str)) -> Result<bool> {
    if std::io::stderr().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (to_us, lines) = mpsc::channel();
    let out = child.stdout.take().context("no pipe for standard output")?;
    let err = child.stderr.take().context("no pipe for standard error")?;
    let readers = [
        pass_on(out, std::io::stdout(), to_us.clone()),
        pass_on(err, std::io::stderr(), to_us),
    ];
    for line in lines {
        see(&line);
    }
    for reader in readers {
        reader.join().expect("a reader does not panic");
    }
    Ok(child.wait()?.success())
}

fn pass_on(
    from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
    lines: mpsc::Sender<String>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from
            .read_until(b'\n', &mut line)
            .is_ok_and(|count| count > 0)
        {
            // A closed terminal is no reason to lose the counts.
            let _ = to.write_all(&line).and_then(|()| to.flush());
            let _ = lines.send(String::from_utf8_lossy(&line).trim_end().to_owned());
            line.clear();
        }
    })
}

fn without_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        rest = after
            .find(|c: char| c.is_ascii_alphabetic())
            .map_or("", |end| &after[end + 1..]);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(lines: &[&str]) -> Counted {
        let mut counted = Counted::default();
        for line in lines {
            counted.take(line);
        }
        counted
    }

    #[test]
    fn results_of_several_programs_add_up() {
        let counted = counted(&[
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s",
            "\x1b[1mtest result: \x1b[31mFAILED\x1b[0m. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
        ]);
        assert_eq!(
            counted.finish(),
            Tally {
                passed: 13,
                failed: 2,
                skipped: 1,
                ..Tally::default()
            }
        );
    }

    #[test]
    fn a_test_that_said_skip_did_not_pass() {
        let counted = counted(&[
            "SKIP guest: no QEMU",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ]);
        assert_eq!(
            counted.finish(),
            Tally {
                passed: 2,
                failed: 0,
                skipped: 1,
                ..Tally::default()
            }
        );
    }

    #[test]
    fn a_test_that_runs_later_counts_later() {
        let counted = counted(&[
            "LATER a: in the lab",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
        ]);
        assert_eq!(counted.finish().passed, 2);
        assert_eq!(counted.finish().skipped, 0);
    }

    #[test]
    fn lines_of_a_guest_are_results() {
        let mut counted = Counted::default();
        let lines = [
            ("ok a", true),
            ("not ok b: why", true),
            ("skip c: why", true),
            ("okay", false),
            ("test d ... ok", true),
            ("test result: ok. 1 passed; 0 failed; 0 ignored", true),
        ];
        for (line, is_result) in lines {
            assert_eq!(counted.take_check(line), is_result, "{line}");
        }
        let want = Tally {
            passed: 2,
            failed: 1,
            skipped: 1,
            names: vec!["b: why".to_owned()],
            ..Tally::default()
        };
        assert_eq!(counted.finish(), want);
    }

    #[test]
    fn a_program_that_dies_without_results_counts_as_a_failure() {
        let mut tally = Tally::default();
        tally.add("does not build", false, &Counted::default());
        assert_eq!((tally.passed, tally.failed), (0, 1));
        let lines = [
            "test a::b ... FAILED",
            "test a::c ... ok",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored",
        ];
        tally.add("fails", false, &counted(&lines));
        assert_eq!((tally.passed, tally.failed), (1, 3));
        assert_eq!(tally.names, ["does not build", "fails: a::b"]);
    }

    #[test]
    fn what_failed_is_told_again_with_what_it_said() {
        let mut lines = vec![
            "test a::b ... FAILED",
            "test c ... FAILED",
            "failures:",
            "---- a::b stdout ----",
            "thread 'a::b' panicked at src/a.rs:1:2:",
            "",
            "left: 1",
            "---- c stdout ----",
        ];
        lines.extend(["more"; 2 * TOLD_LINES]);
        lines.extend(["failures:", "    a::b", "    c"]);
        lines.push("test result: FAILED. 0 passed; 2 failed; 0 ignored");
        let names = counted(&lines).finish().names;
        assert_eq!(
            names[0],
            "a::b\n    thread 'a::b' panicked at src/a.rs:1:2:\n    left: 1"
        );
        assert_eq!(names[1], "c".to_owned() + &"\n    more".repeat(TOLD_LINES));
    }

    #[test]
    fn a_test_that_fails_once_is_told_and_does_not_fail_the_run() {
        let lines = [
            "test a ... FAILED",
            "---- a stdout ----",
            "left: 1",
            "test result: FAILED. 4 passed; 1 failed; 0 ignored",
        ];
        let mut first = Tally::default();
        first.add("b", false, &counted(&lines));
        let run = |second: &str| {
            let mut tally = first.clone();
            let again = tally.again("b", |tests| {
                assert_eq!(tests, ["a"]);
                Ok(Tally::of_summary(second).unwrap())
            });
            again.unwrap();
            tally.summary()
        };
        let (told, counts) = ("b: a\n    left: 1", "5 passed, 0 failed, 0 skipped");
        let unstable = format!("UNSTABLE, passed when run again: {told}\n{counts}");
        assert_eq!(run("1 passed, 0 failed, 0 skipped"), unstable);
        // It fails again, or does not run.
        assert_eq!(run("0 passed, 1 failed, 0 skipped"), first.summary());
        assert_eq!(run("0 passed, 0 failed, 0 skipped"), first.summary());
    }

    #[test]
    fn what_did_not_build_and_many_that_fail_do_not_run_again() {
        let never = |_: &[&str]| panic!("it ran");
        let mut tally = Tally::default();
        tally.again("b", never).unwrap();
        tally.add("b", false, &Counted::default());
        tally.again("b", never).unwrap();
        let mut tally = Tally::default();
        let lines: Vec<&str> = vec!["test a ... FAILED"; AGAIN_MOST + 1];
        tally.add("b", false, &counted(&lines));
        tally.again("b", never).unwrap();
    }

    #[test]
    fn both_outputs_are_seen_and_the_status_is_kept() {
        let mut seen = Vec::new();
        let script = "echo out; echo err >&2; exit 3";
        let ok = stream(Command::new("sh").args(["-c", script]), |line| {
            seen.push(line.to_owned())
        })
        .unwrap();
        seen.sort();
        assert_eq!(
            (ok, seen),
            (false, vec!["err".to_owned(), "out".to_owned()])
        );
    }

    #[test]
    fn the_summary_names_what_failed_and_ends_with_one_plain_line() {
        let mut tally = Tally {
            passed: 12,
            skipped: 3,
            ..Tally::default()
        };
        assert_eq!(tally.summary(), "12 passed, 0 failed, 3 skipped");
        tally.check("a", false);
        assert_eq!(tally.summary(), "FAIL a\n12 passed, 1 failed, 3 skipped");
        // Which another run understands.
        tally.check("b: c\n    one\n    two", false);
        let said = format!("FAIL a\nmuch else\n\n{}\n", tally.summary());
        assert_eq!(Tally::of_summary(&said), Some(tally.clone()));
        for cut in ["", "FAIL a", "12 passed", "12 passed, x failed, 3 skipped"] {
            assert_eq!(Tally::of_summary(cut), None, "{cut}");
        }
        let mut both = tally.clone();
        both.merge(tally);
        assert_eq!((both.passed, both.failed, both.skipped), (24, 4, 6));
        assert_eq!(both.names[1..3], ["b: c\n    one\n    two", "a"]);
    }
}

//! What a test run builds and checks beside its tests, which wait for much of their time:
//! `cargo xtask builds` as a process that has the processors when no test wants them. What
//! it says is shown once the tests are done.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::package::portable;
use crate::project::{Project, cargo};
use crate::tally::{Tally, headline};
use crate::{fuzz, lint, loom, processors, run};

/// `cargo xtask builds`: all of it, as a run of its own.
pub(crate) fn run(quick: bool) -> Result<bool> {
    let project = Project::load()?;
    let mut tally = Tally::default();
    fuzz::build(&project, &mut tally)?;
    tally.step("build of the program", &mut run::command(&project))?;
    if quick {
        tally.skip("loom", "left out by --quick");
        tally.skip("packages of the pure crates", "left out by --quick");
        tally.skip("static program", "left out by --quick");
        tally.skip("other processors", "left out by --quick");
    } else {
        loom::run(&project, &mut tally)?;
        pack(&project, &mut tally)?;
        portable::test(&project, &mut tally)?;
        // Last, as it shares a folder with what the lab builds.
        processors::run(&project, &mut tally)?;
    }
    println!("\n{}", tally.summary());
    Ok(tally.failed == 0)
}

/// The pure crates, and the memory that they stand on, build from their packages
/// alone, as whoever takes them from a registry gets them.
fn pack(project: &Project, tally: &mut Tally) -> Result<()> {
    // A folder of its own each time: cargo takes a version that it once saw of a crate for
    // the same for ever, by the path of the folder.
    remove_left(&project.target);
    let target = project.target.join(format!("{PACK}{}", std::process::id()));
    let mut command = cargo();
    command
        .args(["package", "--allow-dirty", "-p", "linkspan-mem"])
        .env("CARGO_TARGET_DIR", &target)
        .current_dir(&project.root);
    for package in &project.packages {
        if lint::PURE.contains(&package.name.as_str()) {
            command.args(["-p", &package.name]);
        }
    }
    let done = tally.step("packages of the pure crates", &mut command);
    let _ = fs::remove_dir_all(&target);
    done.map(|_| ())
}

/// Folders of packages are called so, with the number of the process behind it.
const PACK: &str = "pack.";

/// Removes the folders of processes that were killed.
fn remove_left(target: &Path) {
    for entry in fs::read_dir(target).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PACK));
        let process = process.and_then(|number| number.parse::<u32>().ok());
        if process.is_some_and(|number| !Path::new(&format!("/proc/{number}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Builds under way. They are ended with the value.
pub(crate) struct Beside {
    child: Child,
    log: PathBuf,
    started: Instant,
}

impl Beside {
    pub(crate) fn start(project: &Project, quick: bool) -> Result<Self> {
        let log = project.target.join("builds.log");
        // Builds of a run that was killed may write to theirs until they are done.
        let _ = fs::remove_file(&log);
        let said = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let ourselves = std::env::current_exe().context("where is xtask?")?;
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(ourselves).arg("builds");
        if quick {
            command.arg("--quick");
        }
        let child = command
            .current_dir(&project.root)
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()
            .context("cannot run nice")?;
        Ok(Self {
            child,
            log,
            started: Instant::now(),
        })
    }

    /// Waits for the builds, shows what they said, and counts it.
    pub(crate) fn end(mut self, tally: &mut Tally) -> Result<()> {
        headline("builds beside the tests");
        let waits = Instant::now();
        let status = self.child.wait()?;
        let said = fs::read(&self.log)?;
        let said = String::from_utf8_lossy(&said);
        println!("{said}");
        println!(
            "builds: {:.1} s, of which {:.1} s were waited for",
            self.started.elapsed().as_secs_f64(),
            waits.elapsed().as_secs_f64()
        );
        match Tally::of_summary(&said) {
            Some(builds) if status.success() == (builds.failed == 0) => tally.merge(builds),
            _ => tally.check("builds beside the tests", false),
        }
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_processes_that_are_gone_go() {
        let target = std::env::temp_dir().join(format!("linkspan-left-{}", std::process::id()));
        // No process has the largest number.
        let own = format!("{PACK}{}", std::process::id());
        let names = ["debug", "pack.x", &own, "pack.4294967295"];
        for name in names {
            fs::create_dir_all(target.join(name).join("debug")).unwrap();
        }
        remove_left(&target);
        let left = names.map(|name| target.join(name).exists());
        fs::remove_dir_all(&target).unwrap();
        assert_eq!(left, [true, true, true, false]);
    }
}

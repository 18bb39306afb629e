//! `cargo xtask test`: sets up and runs all tests; ends with one line of counts.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::beside::Beside;
use crate::packages::Missing;
use crate::project::{Project, cargo};
use crate::run::{self, KERNEL_ENV, LATER_QEMU_ENV};
use crate::tally::{Tally, headline};
use crate::{fcopy_daemon, fuzz, kernel, lab, later_qemu, lint, package, packages};

/// Set for tests that have a short form.
const QUICK_ENV: &str = "LINKSPAN_TEST_QUICK";

/// Says to tests of the lab whether the lab comes later in this run.
const LAB_ENV: &str = "LINKSPAN_LAB";

/// Where Linux's daemon of file copy is, for the tests that run it.
const FCOPY_DAEMON_ENV: &str = "LINKSPAN_FCOPY_DAEMON";

/// The exit status of the program where something is missing on the machine.
const MISSING: i32 = 5;

pub(crate) fn run(quick: bool) -> Result<bool> {
    let project = Project::load()?;
    let mut tally = Tally::default();
    // Who may not install packages, or cannot get one, still has the tests that can run.
    let lacking = match packages::ensure(packages::TESTS) {
        Err(error) if !error.is::<Missing>() => return Err(error),
        result => result.err(),
    };
    if let Some(error) = &lacking {
        tally.skip("Debian packages for tests", &format!("{error:#}"));
    }
    let kernel = kernel::ensure()
        .inspect_err(|error| eprintln!("xtask: {error:#}"))
        .ok();

    // Tests of screens say for themselves that they are skipped.
    if let Err(error) = kernel::ensure_with_screen() {
        eprintln!("xtask: {error:#}");
    }

    let lab_kernel = lab::prepare(&project, &mut tally, quick)?;

    lint::steps(&project, &mut tally)?;
    let builds = Beside::start(&project, quick)?;

    let mut tests = cargo();
    tests
        .args(["test", "--workspace", "--no-fail-fast"])
        .current_dir(&project.root);
    if quick {
        tests.env(QUICK_ENV, "1");
    }
    if let Some(kernel) = &kernel {
        tests.env(KERNEL_ENV, kernel);
    }
    if lab_kernel.is_some() && !quick {
        tests.env(LAB_ENV, "later");
    }
    // Those tests say for themselves that they are skipped.
    match fcopy_daemon::ensure() {
        Ok(daemon) => {
            tests.env(FCOPY_DAEMON_ENV, daemon);
        }
        Err(error) => eprintln!("xtask: {error:#}"),
    }
    match later_qemu::ensure() {
        Ok(root) => {
            tests.env(LATER_QEMU_ENV, later_qemu::program(&root));
        }
        Err(error) => eprintln!("xtask: {error:#}"),
    }
    tally.tests_and_again("tests of the workspace", &mut tests)?;

    if let Some(kernel) = &lab_kernel {
        lab::steps(&project, &mut tally, kernel, quick)?;
    }
    builds.end(&mut tally)?;
    demo(&project, &mut tally, kernel.as_deref(), quick)?;
    package::test(&project, &package::place(&project), &mut tally)?;
    fuzz::run(&project, &mut tally, quick)?;

    if let Some(error) = &lacking {
        eprintln!("xtask: not everything could run: {error:#}");
    }
    println!("\n{}", tally.summary());
    Ok(tally.failed == 0)
}

/// The README's second command, with several numbers of queues, packed rings, and
/// each kind of network.
fn demo(project: &Project, tally: &mut Tally, kernel: Option<&Path>, quick: bool) -> Result<()> {
    let program = run::program(project);
    // Whose build has failed, which is counted.
    if !program.exists() {
        return Ok(());
    }
    let all = [
        "--check --queues 4",
        "--check --queues 1 --net responder",
        "--check --queues 2 --packed",
        "--no-guest",
    ];
    for options in if quick { &all[..1] } else { &all[..] } {
        let name = format!("demo {options}");
        headline(&name);
        let mut demo = Command::new(&program);
        demo.arg("demo")
            .args(options.split(' '))
            .stdin(Stdio::null());
        if let Some(kernel) = kernel {
            demo.env(KERNEL_ENV, kernel);
        }
        let status = demo
            .status()
            .with_context(|| format!("cannot run {}", program.display()))?;
        match status.code() {
            Some(MISSING) => tally.skip(&name, "something is missing on this machine, see above"),
            code => tally.check(&name, code == Some(0)),
        }
    }
    Ok(())
}

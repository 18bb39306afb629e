//! `cargo xtask test`: sets up and runs all tests; ends with one line of counts.

use std::process::Command;

use anyhow::Result;

use crate::project::{Project, cargo};
use crate::run::{KERNEL_ENV, build};
use crate::tally::{Tally, headline};
use crate::{fuzz, kernel, lint, loom, packages};

/// Set for tests that have a short form.
const QUICK_ENV: &str = "LINKSPAN_TEST_QUICK";

pub(crate) fn run(quick: bool) -> Result<bool> {
    let project = Project::load()?;
    packages::ensure(packages::TESTS)?;
    let kernel = kernel::ensure()?;
    println!("guest kernel: {}", kernel.display());
    let mut tally = Tally::default();

    lint::steps(&project, &mut tally)?;

    let mut tests = cargo();
    tests
        .args(["test", "--workspace", "--no-fail-fast"])
        .current_dir(&project.root)
        .env(KERNEL_ENV, &kernel);
    if quick {
        tests.env(QUICK_ENV, "1");
    }
    tally.tests("tests of the workspace", &mut tests)?;

    headline("the program as a user gets it");
    match build(&project) {
        Ok(program) => {
            let all: &[u16] = if quick { &[4] } else { &[1, 2, 4] };
            for queues in all {
                let mut demo = Command::new(&program);
                demo.args(["demo", "--check", "--queues", &queues.to_string()])
                    .env(KERNEL_ENV, &kernel);
                tally.step(&format!("demo --check --queues {queues}"), &mut demo)?;
            }
        }
        Err(error) => {
            println!("{error:#}");
            tally.check("build of the program", false);
        }
    }

    if quick {
        tally.skip("loom", "left out by --quick");
    } else {
        loom::run(&project, &mut tally)?;
    }
    fuzz::run(&project, &mut tally, quick)?;

    println!("\n{}", tally.summary());
    Ok(tally.failed == 0)
}

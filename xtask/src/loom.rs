//! The model checker: tests in `tests/loom*.rs`, built with `--cfg loom`.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::project::{Project, cargo};
use crate::tally::Tally;

/// The crates whose memory ordering is checked.
const CRATES: [&str; 3] = ["linkspan-mem", "linkspan-virtio", "linkspan-vmbus"];

pub(crate) fn run(project: &Project, tally: &mut Tally) -> Result<()> {
    for package in project
        .packages
        .iter()
        .filter(|package| CRATES.contains(&package.name.as_str()))
    {
        let tests = loom_tests(&package.dir);
        let name = format!("loom {}", package.name);
        if tests.is_empty() {
            tally.skip(&name, "it has no tests/loom*.rs");
            continue;
        }
        let mut command = cargo();
        // Another cfg rebuilds everything, so it gets a target folder of its own.
        command
            .args([
                "test",
                "--release",
                "--no-fail-fast",
                "--package",
                &package.name,
            ])
            .current_dir(&project.root)
            .env("RUSTFLAGS", "--cfg loom")
            .env("CARGO_TARGET_DIR", project.target.join("loom"));
        for test in &tests {
            command.args(["--test", test]);
        }
        tally.tests(&name, &mut command)?;
    }
    Ok(())
}

fn loom_tests(package: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(package.join("tests"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".rs")?.to_owned()))
        .filter(|name| name.starts_with("loom"))
        .collect();
    names.sort();
    names
}

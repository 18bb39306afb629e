//! `cargo xtask lint`: format, clippy, and the rules that only this project has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::project::{Project, cargo};
use crate::tally::{Tally, headline};

mod crates;
mod mask;
mod source;

pub(crate) use crates::PURE;
use mask::Source;

/// Something that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Where: a file with its line, or a crate.
    pub(crate) at: String,
    /// What is wrong there and what the rule wants.
    pub(crate) what: String,
}

impl Fault {
    fn new(at: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            at: at.into(),
            what: what.into(),
        }
    }
}

pub(crate) fn run() -> Result<bool> {
    let mut tally = Tally::default();
    steps(&Project::load()?, &mut tally)?;
    println!("\n{}", tally.summary());
    Ok(tally.failed == 0)
}

/// All of it as steps of a longer run.
pub(crate) fn steps(project: &Project, tally: &mut Tally) -> Result<()> {
    component(
        tally,
        project,
        "fmt",
        "rustfmt",
        &["fmt", "--all", "--check"],
    )?;
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    component(tally, project, "clippy", "clippy", &clippy)?;
    house_rules(project, tally)
}

/// Runs a cargo command that needs a toolchain component.
fn component(
    tally: &mut Tally,
    project: &Project,
    name: &str,
    component: &str,
    args: &[&str],
) -> Result<()> {
    let mut trial = cargo();
    trial
        .args([args[0], "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if !trial.status().is_ok_and(|status| status.success()) {
        tally.skip(
            name,
            &format!("it is not installed; try: rustup component add {component}"),
        );
        return Ok(());
    }
    tally.step(name, cargo().args(args).current_dir(&project.root))?;
    Ok(())
}

fn house_rules(project: &Project, tally: &mut Tally) -> Result<()> {
    headline("house rules");
    let files = read_sources(project)?;
    let rules: [(&str, Vec<Fault>); 6] = [
        (
            "who depends on whom",
            crates::dependencies(&project.packages),
        ),
        ("pure crates stay pure", source::purity(&files)),
        ("unsafe only in mem and sys", source::unsafe_code(&files)),
        ("crate attributes", source::crate_attributes(&files)),
        ("files open with //!", source::opening(&files)),
        ("tests neither sleep nor are ignored", source::tests(&files)),
    ];
    for (name, faults) in rules {
        for fault in &faults {
            println!("{}: {}", fault.at, fault.what);
        }
        tally.check(name, faults.is_empty());
    }
    for warning in source::sizes(&files) {
        println!("warning: {}: {}", warning.at, warning.what);
    }
    Ok(())
}

/// Every Rust file of the source tree, in a fixed order.
fn read_sources(project: &Project) -> Result<Vec<Source>> {
    let mut paths = Vec::new();
    for dir in ["crates", "xtask", "fuzz", "benches", "examples", "lab"] {
        collect(&project.root.join(dir), &mut paths);
    }
    paths.sort();
    let read = |path: &PathBuf| {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let path = path.strip_prefix(&project.root).unwrap_or(path);
        Ok(Source::new(&path.to_string_lossy(), &text))
    };
    paths.iter().map(read).collect()
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && name != "target" => collect(&path, found),
            Ok(kind) if kind.is_file() && path.extension().is_some_and(|e| e == "rs") => {
                found.push(path)
            }
            _ => {}
        }
    }
}

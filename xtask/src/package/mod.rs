//! `cargo xtask package`: a Debian package, or a static program, and whether each works.

mod debian;
mod installed;
pub(crate) mod portable;
mod root;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::packages::{self, Missing};
use crate::project::Project;
use crate::tally::{Tally, headline};

/// Of the program and of the tasks, which have one.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the packages are made with, by their Debian packages.
const TOOLS: &[&str] = &["dpkg", "binutils"];

/// Options of `cargo xtask package`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask package                  target/package/linkspan_VERSION_ARCH.deb
  cargo xtask package --check          the same, and whether it works
  cargo xtask package --static         target/package/linkspan-VERSION-ARCH-static
  cargo xtask package --static --check whether that works, built as tests are
  SOURCE_DATE_EPOCH=1764000000 cargo xtask package --out /tmp/a

What is made depends on the source and on the time that it says, not on when it is made:
SOURCE_DATE_EPOCH, or else the time of the commit, or of CHANGELOG.md where git knows none.")]
pub(crate) struct Args {
    /// Where to put it [default: package, in cargo's target folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A program for every Linux of this processor in place of a package: static, without verbs
    #[arg(long = "static")]
    portable: bool,
    /// Install the package in a root of its own, use and remove it (as root); with --static,
    /// use that program, built as tests are, where nothing else is
    #[arg(long)]
    check: bool,
}

/// Makes what was asked for, and says where it is.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let project = Project::load()?;
    packages::ensure(TOOLS)?;
    let out = args.out.clone().unwrap_or_else(|| place(&project));
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    if args.check {
        let mut tally = Tally::default();
        match args.portable {
            true => portable::test(&project, &mut tally)?,
            false => test(&project, &out, &mut tally)?,
        }
        println!("{}", tally.summary());
        return Ok(tally.failed == 0);
    }
    let made = if args.portable {
        portable::make(&project, &out)?
    } else {
        debian::make(&project, &out)?
    };
    println!("{}", made.display());
    Ok(true)
}

/// Makes the Debian package, and installs, uses and removes it in a root of its own.
pub(crate) fn test(project: &Project, out: &Path, tally: &mut Tally) -> Result<()> {
    let name = "Debian package: installed, used, removed";
    headline(name);
    match packages::ensure(TOOLS) {
        Err(error) if error.is::<Missing>() => {
            tally.skip(name, &format!("{error:#}"));
            return Ok(());
        }
        there => there?,
    }
    fs::create_dir_all(out)?;
    match debian::make(project, out).and_then(|package| installed::check(&package)) {
        Ok(installed::Done::Works) => tally.check(name, true),
        Ok(installed::Done::Impossible(why)) => tally.skip(name, &why),
        Err(error) => {
            println!("{error:#}");
            tally.check(name, false);
        }
    }
    Ok(())
}

/// Where packages go unless somebody says otherwise.
pub(crate) fn place(project: &Project) -> PathBuf {
    project.target.join("package")
}

/// The program without symbols of debuggers, which are most of it.
fn strip(program: &Path, to: &Path) -> Result<()> {
    let mut strip = Command::new("strip");
    said(strip.arg("-o").arg(to).arg(program)).map(drop)
}

/// What a command says on standard output; that it failed is an error with what it said.
fn said(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{name}: {}: {errors}{text}",
        output.status
    );
    Ok(text)
}

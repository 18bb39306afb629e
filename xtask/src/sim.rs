//! `cargo xtask sim`: both ends of links in one world that a seed decides. The crate
//! `linkspan-sim` does it; it is built as programs are, with debug assertions.

use std::process::Command;

use anyhow::{Context, Result};

use crate::project::{Project, cargo};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many seeds of each kind of link [default: 1000]
    #[arg(long, value_name = "N")]
    pub(crate) seeds: Option<u64>,
    /// The first of them
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) first_seed: u64,
    /// Only this kind of link; one that is not known lists them all
    #[arg(long, value_name = "KIND")]
    pub(crate) link: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    let project = Project::load()?;
    let status = command(args).current_dir(project.root).status();
    Ok(status.context("cannot run cargo")?.success())
}

/// What does it.
pub(crate) fn command(args: &Args) -> Command {
    let mut command = cargo();
    command.args(["run", "--quiet", "--profile", "sim"]);
    command.args(["--package", "linkspan-sim", "--"]);
    command.args(["--first-seed", &args.first_seed.to_string()]);
    if let Some(seeds) = args.seeds {
        command.args(["--seeds", &seeds.to_string()]);
    }
    if let Some(link) = &args.link {
        command.args(["--link", link]);
    }
    command
}

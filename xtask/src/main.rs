//! The project's tasks: `cargo xtask run`, `test`, `lab`, `lint`, `bench` and `long`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod bench;
mod debs;
mod fcopy_daemon;
mod fuzz;
mod kernel;
mod lab;
mod later_qemu;
mod lint;
mod long;
mod loom;
mod packages;
mod processors;
mod project;
mod run;
mod tally;
mod test;

/// The project's tasks
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    after_help = "\
Examples:
  cargo xtask run                        a Linux guest whose disk is ours, and a shell in it
  cargo xtask run --check --queues 4     the same as a test: exit status 0 or 1
  cargo xtask test --quick               the tests that take seconds
  cargo xtask lab run kernel -v          what the lab's kernel has, each peer by its own check

What is slow to get is kept in ~/.cache/linkspan (or $XDG_CACHE_HOME/linkspan).
As root, missing Debian packages are installed; otherwise you are told the apt line.
Exit status: 0 done, 1 failed, 2 wrong usage, 5 something is missing on this machine."
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Set up what a guest needs, build, and run `linkspan demo`
    Run(RunArgs),
    /// Set up and run all tests; ends with one line of counts
    Test {
        /// Leave out the model checker, the fuzzers and the longer guest tests
        #[arg(long)]
        quick: bool,
    },
    /// Run scripts and tests in a guest whose kernel has every peer (docs/lab.md)
    Lab(lab::Args),
    /// Check format, clippy, and the project's own rules
    Lint,
    /// Measure against peers, in alternating runs; figures go to docs/PERFORMANCE.md
    #[command(after_help = format!("Benches:\n{}", bench::NAMES))]
    Bench {
        /// Which bench
        name: String,
        #[command(flatten)]
        args: bench::Args,
    },
    /// Do what takes longer than a test may; results go to docs/ledger.tsv
    #[command(after_help = format!("Runs:\n{}", long::names()))]
    Long {
        /// Which run
        name: String,
        /// How many seeds, for a run that has them
        #[arg(long, value_name = "N")]
        seeds: Option<u64>,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Options for `linkspan demo`, such as --check, --queues N, --image FILE; see `run -- --help`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    demo: Vec<String>,
}

/// What was asked for does not exist.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Run(args) => run::run(&args.demo),
        Task::Test { quick } => test::run(quick),
        Task::Lab(args) => lab::run(&args),
        Task::Lint => lint::run(),
        Task::Bench { name, args } => bench::run(&name, &args),
        Task::Long { name, seeds } => long::run(&name, seeds),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(
                if error.is::<packages::Missing>() || error.is::<later_qemu::Unavailable>() {
                    5
                } else if error.is::<Usage>() {
                    2
                } else {
                    1
                },
            )
        }
    }
}

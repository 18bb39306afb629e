//! The project's tasks: `cargo xtask run`, `test`, `builds`, `fuzz`, `lab`, `lint`, `package`,
//! `bench`, `sim` and `long`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod bench;
mod beside;
mod debs;
mod fcopy_daemon;
mod fuzz;
mod kernel;
mod lab;
mod later_qemu;
mod lint;
mod long;
mod loom;
mod package;
mod packages;
mod processors;
mod project;
mod run;
mod sim;
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
    /// What a test run builds beside its tests, alone: fuzzers, the program, the model checker,
    /// packages, other processors
    Builds {
        /// Only what `test --quick` needs
        #[arg(long)]
        quick: bool,
    },
    /// Build the fuzzers, replay all seeds, and fuzz for a minute
    Fuzz {
        /// Only replay
        #[arg(long)]
        quick: bool,
    },
    /// Run scripts and tests in a guest whose kernel has every peer (docs/lab.md)
    Lab(lab::Args),
    /// Check format, clippy, and the project's own rules
    Lint,
    /// Make a Debian package of the release program, or a static program
    Package(package::Args),
    /// Measure against peers, in alternating runs; figures go to docs/PERFORMANCE.md
    #[command(after_help = format!("Benches:\n{}", bench::NAMES))]
    Bench {
        /// Which bench
        name: String,
        #[command(flatten)]
        args: bench::Args,
    },
    /// Simulate both ends of links: a seed decides all that happens, what goes wrong included
    #[command(after_help = "\
Examples:
  cargo xtask sim --seeds 10000                               of each kind of link
  cargo xtask sim --link blk --first-seed 4711 --seeds 1      one seed again, with its last steps")]
    Sim(sim::Args),
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
        Task::Builds { quick } => beside::run(quick),
        Task::Fuzz { quick } => fuzz::alone(quick),
        Task::Lab(args) => lab::run(&args),
        Task::Lint => lint::run(),
        Task::Package(args) => package::run(&args),
        Task::Bench { name, args } => bench::run(&name, &args),
        Task::Sim(args) => sim::run(&args),
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Lines between fences of a shell, and spans of code.
    fn shown(page: &str) -> Vec<&str> {
        let parts = page.split("```").enumerate();
        let parts = parts.flat_map(|(at, part)| match at % 2 {
            0 => part.split('`').skip(1).step_by(2).collect::<Vec<_>>(),
            _ => part.lines().collect(),
        });
        parts
            .filter(|line| line.starts_with("cargo xtask "))
            .collect()
    }

    /// Tasks that pages show are tasks, and so are benches and runs.
    #[test]
    fn tasks_of_the_pages_exist() {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let docs = fs::read_dir(project.join("docs")).unwrap();
        let docs = docs.map(|entry| entry.unwrap().path());
        let pages = ["README.md", "ARCHITECTURE.md"].map(|page| project.join(page));
        let is_page = |path: &std::path::PathBuf| path.extension().is_some_and(|it| it == "md");
        let mut seen = 0;
        for path in docs.filter(is_page).chain(pages) {
            let page = fs::read_to_string(&path).unwrap();
            for line in shown(&page) {
                let line = line.split('#').next().unwrap_or_default();
                // What is quoted is one word, and three dots stand for any.
                let parts = line.split('"').enumerate();
                let words = parts.flat_map(|(at, part)| match at % 2 {
                    0 => part.split_whitespace().collect(),
                    _ => vec![part],
                });
                let words: Vec<&str> = words.skip(1).filter(|word| *word != "…").collect();
                let task = Cli::try_parse_from(&words);
                let task =
                    task.unwrap_or_else(|error| panic!("{}: {line}: {error}", path.display()));
                let known = match &task.task {
                    Task::Bench { name, .. } => bench::NAMES.contains(name.as_str()),
                    Task::Long { name, .. } => long::names().contains(name.as_str()),
                    _ => true,
                };
                assert!(
                    known || words.contains(&"NAME"),
                    "{}: {line}",
                    path.display()
                );
                seen += 1;
            }
        }
        assert!(seen > 20, "{seen} tasks");
    }
}

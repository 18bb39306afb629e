//! `cargo xtask sim`: simulates links with the seeds that are asked for.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use linkspan_sim::{KINDS, seeds};
use rustix::time::{ClockId, clock_gettime};

/// Simulate both ends of links: a seed decides all that happens
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask sim",
    after_help = "\
Example:
  cargo xtask sim --link blk --first-seed 4711 --seeds 1    one seed again, with its last steps"
)]
struct Cli {
    /// How many seeds of each link
    #[arg(long, value_name = "N", default_value_t = seeds::SEEDS)]
    seeds: u64,
    /// The first one
    #[arg(long, value_name = "S", default_value_t = 0)]
    first_seed: u64,
    /// Only this kind of link
    #[arg(long, value_name = "KIND", value_parser = KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>())]
    link: Option<String>,
}

/// CPU time of this process, in milliseconds.
#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn cpu_ms() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let wanted = |name: &str| cli.link.as_deref().is_none_or(|link| link == name);
    let mut failed = false;
    for kind in KINDS.iter().filter(|kind| wanted(kind.name)) {
        let before = cpu_ms();
        let outcome = (kind.run)(cli.first_seed, cli.seeds, usize::MAX);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let cost = (cpu_ms() - before) / cli.seeds.max(1) as f64;
        let failures = outcome.failures.len();
        // What `cargo xtask long` reads.
        println!(
            "simulation: {} {} seeds, {failures} failures, {cost:.2} ms of CPU a seed",
            kind.name, cli.seeds
        );
        println!("  {}", seeds::line(&outcome.counts));
        let missing = (kind.missing)(&outcome.counts);
        if cli.seeds >= seeds::SEEDS && !missing.is_empty() {
            println!("  never happened: {}", missing.join(", "));
        }
        for (_, failure) in outcome.failures.iter().take(3) {
            println!("{failure}\n");
        }
        failed |= failures > 0;
    }
    ExitCode::from(u8::from(failed))
}

//! The worker threads of a command that serves a device: how many, where they
//! run, and how long they look for work before they sleep.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use linkspan_engine::{WorkerOptions, Workers};
use linkspan_sys::thread::{allowed_cpus, available_cpus};

use crate::exit::{Failure, Status};
use crate::tether;

/// No machine has more processors.
const CPU_MAX: u32 = 8191;

/// Options of the worker threads.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Worker threads")]
pub struct WorkerArgs {
    /// How many threads serve the queues [default: one for each processor, or each
    /// of --cpus]. Queue i goes to worker i modulo N; there are never more workers
    /// than queues
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,

    /// The processors that they run on, such as 0,2-3: the first worker on the
    /// first and on no other, and so on [default: anywhere]
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    cpus: Option<CpuList>,

    /// The longest time in microseconds that a worker without work looks for some
    /// before it sleeps, which it does only while that pays; 0: never
    #[arg(long, value_name = "N", default_value_t = default_poll(), value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    poll_us: u64,

    /// Never sleep: each worker takes a whole processor, and drivers that poll are
    /// answered without a wake-up
    #[arg(long, conflicts_with = "poll_us")]
    busy: bool,
}

/// Processors in the order of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CpuList(Vec<u32>);

fn default_poll() -> u64 {
    u64::try_from(WorkerOptions::POLL.as_micros()).unwrap_or(0)
}

fn cpu_list(text: &str) -> Result<CpuList, String> {
    let number = |text: &str| {
        let number = text.parse().ok().filter(|cpu| *cpu <= CPU_MAX);
        number.ok_or_else(|| format!("{text:?} is no processor from 0 to {CPU_MAX}"))
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("{part:?} runs backwards"));
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return Err(format!("CPU {cpu} is there twice"));
            }
            cpus.push(cpu);
        }
    }
    Ok(CpuList(cpus))
}

impl WorkerArgs {
    /// Starts the workers of a device with so many queues.
    ///
    /// # Errors
    /// [`Status::Usage`] when there are fewer processors in the list than workers,
    /// or one is not ours to use; else when a thread or descriptor cannot be had.
    pub fn start(&self, queues: u16) -> Result<Arc<Workers>, Failure> {
        let cpus = self.cpus.as_ref().map_or(&[][..], |list| &list.0);
        let count = match (self.workers, cpus.len()) {
            (None, 0) => available_cpus().get(),
            (None, listed) => listed,
            (Some(workers), listed) if listed > 0 && listed < usize::from(workers) => {
                let text = anyhow!("--cpus has {listed} processors for {workers} workers");
                return Err(Failure::new(Status::Usage, text));
            }
            (Some(workers), _) => workers.into(),
        };
        check(cpus)?;
        let options = WorkerOptions {
            count: count.min(queues.into()),
            cpus: cpus.to_vec(),
            poll: Duration::from_micros(self.poll_us),
            busy: self.busy,
        };
        let workers = Workers::with(&options).context("cannot start the worker threads")?;
        let workers = Arc::new(workers);
        tether::depend_on(&workers);
        Ok(workers)
    }
}

/// All of the list may be used, not only those that get a worker.
fn check(cpus: &[u32]) -> Result<(), Failure> {
    // Where it is not known, the kernel says it when a thread goes there.
    let Ok(allowed) = allowed_cpus() else {
        return Ok(());
    };
    match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        None => Ok(()),
        Some(cpu) => {
            let text = anyhow!("--cpus: CPU {cpu} is not there, or not allowed");
            let failure = Failure::new(Status::Usage, text);
            Err(failure.hint(format!("this process may use the processors {allowed:?}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_numbers_and_ranges() {
        let list = |text| cpu_list(text).map(|list| list.0);
        assert_eq!(list("0"), Ok(vec![0]));
        assert_eq!(list("0,2-3"), Ok(vec![0, 2, 3]));
        assert_eq!(list("5,1-2,0"), Ok(vec![5, 1, 2, 0]));
        for (text, why) in [
            ("", "\"\" is no processor"),
            ("1,", "\"\" is no processor"),
            ("x", "\"x\" is no processor"),
            ("-1", "\"\" is no processor"),
            ("8192", "\"8192\" is no processor"),
            ("0-99999999999", "\"99999999999\" is no processor"),
            ("3-1", "runs backwards"),
            ("0-3,2", "CPU 2 is there twice"),
        ] {
            let error = list(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}

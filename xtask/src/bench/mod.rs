//! `cargo xtask bench NAME`: figures against peers, in alternating runs.
//!
//! Machines differ and are shared, so a figure alone says little. Each row here has
//! several contestants; they run in turn, round after round, and what counts is
//! the ratio of medians. A bench ends by writing its tables into
//! docs/PERFORMANCE.md, between the marks that bear its name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::project::Project;

mod blk;
mod display;
mod fcopy;
mod namespaces;
mod net;
mod smb;
mod smbdirect;
mod vdpa;

/// What every bench is told.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Turns that each contestant of a row has
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// Length of a turn
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    seconds: f64,
    /// Only rows whose name contains this; docs/PERFORMANCE.md is left alone then
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// The benches, for the help.
pub(crate) const NAMES: &str = "  blk          disks: against qemu-storage-daemon, vhost-user-backend and bare loops\n  \
     display      screens: passes over pictures, the page, VNC against QEMU's own server\n  \
     net          network devices and their driver: against DPDK's net_vhost and virtio-user, and a bridge\n  \
     fcopy        files into a guest: our guest against Linux's daemon, both ends of ours against cp\n  \
     smb          files: SMB Direct against SMB over TCP, our gateway against a relay of TCP, a disk on a share\n  \
     smbdirect    SMB Direct over user-space iWARP on loopback: against TCP alone\n  \
     vdpa         in the lab: our driver and our VDUSE disk against the kernel's driver and qemu-storage-daemon";

pub(crate) fn run(name: &str, args: &Args) -> Result<bool> {
    let project = Project::load()?;
    let text = match name {
        "blk" => blk::run(&project, args)?,
        "display" => display::run(&project, args)?,
        "fcopy" => fcopy::run(&project, args)?,
        "net" => net::run(&project, args)?,
        "smb" => smb::run(&project, args)?,
        "smbdirect" => smbdirect::run(&project, args)?,
        "vdpa" => vdpa::run(&project, args)?,
        _ => bail!("there is no bench `{name}`; there are:\n{NAMES}"),
    };
    println!("\n{text}");
    if args.only.is_none() {
        write_down(&project.root.join("docs/PERFORMANCE.md"), name, &text)?;
    }
    Ok(true)
}

/// Replaces what stands between the marks of a bench.
fn write_down(path: &Path, name: &str, text: &str) -> Result<()> {
    let page = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    fs::write(path, replaced(&page, name, text)?)?;
    eprintln!("xtask: written to {}", path.display());
    Ok(())
}

fn replaced(page: &str, name: &str, text: &str) -> Result<String> {
    let (begin, end) = (
        format!("<!-- bench {name} -->\n"),
        format!("<!-- end of bench {name} -->"),
    );
    let found = page.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some(format!("{before}{begin}{}\n{end}{after}", text.trim_end()))
    });
    found.with_context(|| format!("the page has no marks for the bench `{name}`"))
}

/// What one turn of a contestant gave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    /// Operations a second.
    rate: f64,
    /// Processor seconds that the contestant used for a million operations.
    cpu: f64,
}

/// All turns of one contestant.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    turns: Vec<Turn>,
}

impl Series {
    fn rate(&self) -> f64 {
        median(self.turns.iter().map(|turn| turn.rate).collect())
    }

    fn cpu(&self) -> f64 {
        median(self.turns.iter().map(|turn| turn.cpu).collect())
    }

    /// The ratio of rates in each round, lowest and highest.
    fn spread(&self, to: &Self) -> (f64, f64) {
        let ratios = self.turns.iter().zip(&to.turns);
        ratios.fold((f64::MAX, 0.0), |(low, high), (ours, theirs)| {
            let ratio = ours.rate / theirs.rate;
            (f64::min(low, ratio), f64::max(high, ratio))
        })
    }
}

/// Lets every contestant have `rounds` turns, in alternation.
fn alternate(
    rounds: usize,
    contestants: &[Box<dyn Fn() -> Result<Turn> + '_>],
) -> Result<Vec<Series>> {
    let mut all = vec![Series { turns: Vec::new() }; contestants.len()];
    for round in 0..rounds {
        for number in 0..contestants.len() {
            // Each begins a round as often as any other.
            let number = (number + round) % contestants.len();
            all[number].turns.push(contestants[number]()?);
        }
    }
    Ok(all)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// A process that serves while others measure; it ends with the value.
struct Server {
    child: Child,
}

impl Server {
    /// Starts it on one processor and waits until its socket is there.
    fn start(mut command: Command, socket: &Path) -> Result<Self> {
        drop(fs::remove_file(socket));
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let mut server = Self { child };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            if let Some(status) = server.child.try_wait()? {
                bail!("{command:?} ended: {status}");
            }
            ensure!(Instant::now() < deadline, "{command:?} makes no socket");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(server)
    }

    /// Processor seconds of all its threads so far, to a hundredth.
    fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name in parentheses may contain anything.
        let rest = stat.rsplit_once(')').context("no name")?.1;
        let field = |number: usize| -> Result<f64> {
            let text = rest.split_whitespace().nth(number - 3);
            Ok(text.context("no such field")?.parse()?)
        };
        // In ticks, of which Linux shows programs 100 a second everywhere.
        Ok((field(14)? + field(15)?) / 100.0)
    }

    /// Bytes of memory of its own, page tables included; and those that hold unchanged
    /// pages of its program and libraries, which belong to the page cache: all devices of
    /// a machine have them together. The page cache of `image` is in neither.
    fn memory_bytes(&self, image: &Path) -> Result<(u64, u64)> {
        let folder = format!("/proc/{}", self.child.id());
        let image = image.to_str().context("the path is text")?;
        let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
        let (mut of_image, mut own, mut of_files) = (false, 0, 0);
        for line in fs::read_to_string(format!("{folder}/smaps"))?.lines() {
            match line.split_whitespace().next() {
                // The first line of a mapping begins with its addresses.
                Some(word) if !word.ends_with(':') => of_image = line.ends_with(image),
                Some("Private_Dirty:") if !of_image => own += kib(line).unwrap_or(0),
                Some("Private_Clean:") if !of_image => of_files += kib(line).unwrap_or(0),
                _ => {}
            }
        }
        let status = fs::read_to_string(format!("{folder}/status"))?;
        let tables = status.lines().find(|line| line.starts_with("VmPTE:"));
        own += tables.and_then(kib).unwrap_or(0);
        Ok((own * 1024, of_files * 1024))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A command that is bound to one processor.
fn pinned(cpu: usize, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &cpu.to_string()]).arg(program.as_ref());
    command
}

/// The JSON object that a command prints.
fn answer(mut command: Command) -> Result<serde_json::Value> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn number(value: &serde_json::Value, name: &str) -> Result<f64> {
    value[name]
        .as_f64()
        .with_context(|| format!("no `{name}` in {value}"))
}

/// A folder that ends with the value.
struct Folder(PathBuf);

impl Folder {
    fn new(parent: &Path) -> Result<Self> {
        let path = parent.join(format!("linkspan-bench-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("{}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// What the figures were taken on: processor, kernel, load before.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let count = cpuinfo.matches("processor\t").count();
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or("?").to_owned();
    format!(
        "{count} virtual processors ({model}), Linux {}, load {load} before",
        read("/proc/sys/kernel/osrelease").trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_odd_and_even_numbers_of_values() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let page = "a\n<!-- bench x -->\nold\n<!-- end of bench x -->\nb\n";
        let new = replaced(page, "x", "new\n\n").unwrap();
        assert_eq!(
            new,
            "a\n<!-- bench x -->\nnew\n<!-- end of bench x -->\nb\n"
        );
        assert!(replaced(page, "y", "new").is_err());
    }

    #[test]
    fn contestants_take_turns() {
        let order = std::cell::RefCell::new(Vec::new());
        let contestant = |number: u32| -> Box<dyn Fn() -> Result<Turn> + '_> {
            let order = &order;
            Box::new(move || {
                order.borrow_mut().push(number);
                let rate = f64::from(number) + 1.0;
                Ok(Turn { rate, cpu: 0.0 })
            })
        };
        let all = alternate(3, &[contestant(0), contestant(1)]).unwrap();
        assert_eq!(*order.borrow(), [0, 1, 1, 0, 0, 1]);
        assert_eq!(all[1].rate(), 2.0);
        assert_eq!(all[1].spread(&all[0]), (2.0, 2.0));
    }
}

//! `cargo xtask lab`: scripts and tests that run in a guest of its own, whose kernel
//! carries every peer that a kernel can be: vDPA, VDUSE, RDMA, SMB, VFIO displays.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::Usage;
use crate::later_qemu::{self, Unavailable};
use crate::packages::{self, Missing};
use crate::project::Project;
use crate::tally::{AGAIN_MOST, Counted, Tally, headline};

mod guest;
mod image;
pub(crate) mod kernel;
mod machine;
mod things;

use guest::{Body, Guest};
use image::Build;
use machine::{End, Machine};

/// Arguments of `cargo xtask lab`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask lab list
  cargo xtask lab run kernel                   one script
  cargo xtask lab run lab_vdpa -v -- reset     tests of one file whose names contain `reset`
  cargo xtask lab shell kernel                 a shell where that script would run
  cargo xtask lab shell --pack linkspan,vdpa   a shell with our program

Exit status: 0 done, 1 failed, 2 wrong usage, 5 something is missing on this machine.")]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build the kernel into the cache, if it is not there; prints its path
    Build,
    /// Fetch QEMU of a later Debian into the cache, if it is not there; prints its path
    Qemu,
    /// List what can run
    List,
    /// Run scripts of lab/scripts and test files `lab_*.rs`; all, if none is named
    Run(RunArgs),
    /// A shell in the guest
    Shell {
        /// Whose guest; an empty one if nobody is named
        name: Option<String>,
        /// What else to pack
        #[arg(long, value_name = "NAMES", value_delimiter = ',')]
        pack: Vec<String>,
        /// Pack release builds of our programs
        #[arg(long)]
        release: bool,
    },
}

#[derive(Debug, Default, clap::Args)]
struct RunArgs {
    /// Names, as `list` shows them
    names: Vec<String>,
    /// Show everything that the guest says, not only results
    #[arg(long, short)]
    verbose: bool,
    /// Seconds after which a guest has failed, instead of its own limit
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Keep image and logs in target/lab/NAME, as is done for one that fails
    #[arg(long)]
    keep: bool,
    /// Pack release builds of our programs
    #[arg(long)]
    release: bool,
    /// For the test programs: filters, and options such as --nocapture
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    let project = Project::load()?;
    match &args.task {
        Task::Build => {
            println!("{}", kernel::ensure(&project)?.display());
            Ok(true)
        }
        Task::Qemu => {
            println!("{}", later_qemu::program(&later_qemu::ensure()?).display());
            Ok(true)
        }
        Task::List => {
            for Guest { name, needs, .. } in guest::all(&project)? {
                println!("{name:20} {}", needs.about);
            }
            Ok(true)
        }
        Task::Run(args) => {
            let guests = chosen(&project, &args.names)?;
            packages::ensure(packages::GUEST)?;
            let kernel = kernel::ensure(&project)?;
            let mut tally = Tally::default();
            for (_, failed) in all(&project, &kernel, guests, args, &mut tally)? {
                tally.merge(failed);
            }
            println!("\n{}", tally.summary());
            Ok(tally.failed == 0)
        }
        Task::Shell {
            name,
            pack,
            release,
        } => {
            let build = Build { release: *release };
            shell(&project, name.as_deref(), pack, build)
        }
    }
}

/// The guests of these names; all, if there are none.
fn chosen(project: &Project, names: &[String]) -> Result<Vec<Guest>> {
    let all = guest::all(project)?;
    if names.is_empty() {
        return Ok(all);
    }
    let one = |name: &String| {
        let found = all.iter().find(|guest| guest.name == *name);
        let known = || {
            let names: Vec<&str> = all.iter().map(|guest| guest.name.as_str()).collect();
            Usage(format!(
                "the lab has no `{name}`; it has {}",
                names.join(", ")
            ))
        };
        Ok(found.with_context(known)?.clone())
    };
    names.iter().map(one).collect()
}

/// The kernel for the guests of a test run, or `None` after saying why there is none.
pub(crate) fn prepare(
    project: &Project,
    tally: &mut Tally,
    quick: bool,
) -> Result<Option<PathBuf>> {
    if quick {
        let cached = kernel::cached(project)?;
        if cached.is_none() {
            let why =
                "its kernel is not built yet, which --quick does not do; cargo xtask lab build";
            tally.skip("lab", why);
        }
        return Ok(cached);
    }
    match kernel::ensure(project) {
        Ok(kernel) => Ok(Some(kernel)),
        Err(error) if error.is::<Missing>() && !packages::is_root() => {
            tally.skip("lab", &format!("{error:#}"));
            Ok(None)
        }
        Err(error) => {
            println!("{error:#}");
            tally.check("lab kernel", false);
            Ok(None)
        }
    }
}

/// All guests as steps of a test run; the quick ones alone, if that is asked for.
pub(crate) fn steps(
    project: &Project,
    tally: &mut Tally,
    kernel: &Path,
    quick: bool,
) -> Result<()> {
    let mut guests = guest::all(project)?;
    guests.retain(|guest| !quick || guest.needs.quick);
    let mut failed = all(project, kernel, guests, &RunArgs::default(), tally)?;
    // Few that fail run once more, each alone.
    let again = failed.len() <= AGAIN_MOST;
    for (guest, first) in &mut failed {
        let mut second = Tally::default();
        let guest = vec![guest.clone()];
        let runs = |second| all(project, kernel, guest, &RunArgs::default(), second);
        if again && runs(&mut second)?.is_empty() && second.failed == 0 && second.passed > 0 {
            first.forgive();
        }
        tally.merge(first.clone());
    }
    Ok(())
}

/// Guests that run at a time: an emulated one mostly keeps one processor busy, or waits.
const AT_A_TIME: usize = 2;

/// Packs and runs guests, and counts what they say, but for those that failed, which are
/// given back. What one says comes when it is done, unless it is the only one.
fn all(
    project: &Project,
    kernel: &Path,
    guests: Vec<Guest>,
    args: &RunArgs,
    tally: &mut Tally,
) -> Result<Vec<(Guest, Tally)>> {
    let mut failed = Vec::new();
    let alone = guests.len() == 1;
    thread::scope(|scope| {
        let mut running = VecDeque::new();
        for guest in guests {
            let name = format!("lab {}", guest.name);
            if alone {
                headline(&name);
            }
            let packed = match Packed::new(project, kernel, guest, args) {
                // Root can have every package, but not one that nobody serves.
                Err(error)
                    if error.is::<Unavailable>()
                        || error.is::<Missing>() && !packages::is_root() =>
                {
                    tally.skip(&name, &format!("{error:#}"));
                    continue;
                }
                Err(error) => {
                    println!("{name}: {error:#}");
                    tally.check(&name, false);
                    continue;
                }
                Ok(packed) => packed,
            };
            if running.len() == AT_A_TIME {
                failed.extend(
                    running
                        .pop_front()
                        .map_or(Ok(None), |run| end(run, tally))?,
                );
            }
            running.push_back(scope.spawn(move || packed.run(kernel, args, alone)));
        }
        for run in running {
            failed.extend(end(run, tally)?);
        }
        Ok(failed)
    })
}

/// Waits for a guest, says what it said, and counts it, or gives it back as failed.
fn end(
    run: ScopedJoinHandle<'_, Result<Report>>,
    tally: &mut Tally,
) -> Result<Option<(Guest, Tally)>> {
    let report = run.join().expect("a run does not panic")?;
    print!("{}", report.said);
    let mut counts = Tally::default();
    counts.add(&report.name, report.success, &report.counted);
    if report.success {
        tally.merge(counts);
        return Ok(None);
    }
    Ok(Some((report.guest, counts)))
}

/// A guest that can run.
struct Packed {
    guest: Guest,
    dir: PathBuf,
    image: PathBuf,
    image_bytes: u64,
    took: Duration,
}

/// What a guest said.
struct Report {
    guest: Guest,
    name: String,
    /// Its lines, unless they were shown at once.
    said: String,
    success: bool,
    counted: Counted,
}

impl Packed {
    fn new(project: &Project, kernel: &Path, mut guest: Guest, args: &RunArgs) -> Result<Self> {
        if let Some(limit) = args.limit {
            guest.needs.limit = Duration::from_secs(limit);
        }
        let dir = project.target.join("lab").join(&guest.name);
        drop(fs::remove_dir_all(&dir));
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let image = dir.join("image.cpio");
        let build = Build {
            release: args.release,
        };
        let started = Instant::now();
        let image_bytes = image::pack(project, &guest, kernel, &args.arguments, build, &image)?;
        Ok(Self {
            guest,
            dir,
            image,
            image_bytes,
            took: started.elapsed(),
        })
    }

    fn run(self, kernel: &Path, args: &RunArgs, alone: bool) -> Result<Report> {
        let Self {
            guest, dir, image, ..
        } = &self;
        let name = format!("lab {}", guest.name);
        let mut said = if alone {
            String::new()
        } else {
            format!("\n== {name}\n")
        };
        let mut say = |line: &str| {
            if alone {
                println!("{line}");
            } else {
                said += line;
                said.push('\n');
            }
        };
        let machine = Machine {
            kernel,
            image,
            image_bytes: self.image_bytes,
            needs: &guest.needs,
        };
        let started = Instant::now();
        let mut counted = Counted::default();
        let end = machine.run(dir, |line| {
            if counted.take_check(line) || args.verbose {
                say(line);
            }
        })?;
        say(&format!(
            "{name}: {:.1} s, and {:.1} s to build and pack {} MiB",
            started.elapsed().as_secs_f64(),
            self.took.as_secs_f64(),
            self.image_bytes >> 20
        ));
        let problem = problem(end, &counted, guest);
        if let Some(problem) = &problem {
            explain(problem, dir, end, args.verbose, &mut say);
        }
        let success = problem.is_none();
        if success && !args.keep {
            drop(fs::remove_dir_all(dir));
        }
        Ok(Report {
            guest: self.guest,
            name,
            said,
            success,
            counted,
        })
    }
}

/// Runs a script that measures, with release builds of ours and the kernel's words
/// `append`, which its shell has as variables. `see` gets each line that it says.
pub(crate) fn measure(
    project: &Project,
    script: &Path,
    pack: &[String],
    append: &str,
    mut see: impl FnMut(&str),
) -> Result<()> {
    packages::ensure(packages::GUEST)?;
    let kernel = kernel::ensure(project)?;
    let mut guest = guest::script(script)?;
    guest.needs.pack.extend_from_slice(pack);
    guest.needs.append = format!("{} {append}", guest.needs.append);
    let dir = project.target.join("lab/bench").join(&guest.name);
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let image = dir.join("image.cpio");
    let build = Build { release: true };
    let image_bytes = image::pack(project, &guest, &kernel, &[], build, &image)?;
    let machine = Machine {
        kernel: &kernel,
        image: &image,
        image_bytes,
        needs: &guest.needs,
    };
    let mut counted = Counted::default();
    let end = machine.run(&dir, |line| {
        counted.take_check(line);
        see(line);
    })?;
    drop(fs::remove_file(&image));
    if let Some(problem) = problem(end, &counted, &guest) {
        explain(&problem, &dir, end, false, &mut |line| println!("{line}"));
        bail!("{} measured nothing: {problem}", script.display());
    }
    Ok(())
}

/// What is wrong with a run, if anything is.
fn problem(end: End, counted: &Counted, guest: &Guest) -> Option<String> {
    let tally = counted.finish();
    match end {
        End::Late => Some(format!(
            "it was not done after its {} s",
            guest.needs.limit.as_secs()
        )),
        End::Died => Some("it died before its last line".to_owned()),
        End::Status(status) if status != 0 => Some(format!("it ended with status {status}")),
        End::Status(_) if tally.failed > 0 => Some(format!("{} failed", tally.failed)),
        End::Status(_) if tally == Tally::default() && matches!(guest.body, Body::Script(_)) => {
            Some("it checked nothing".to_owned())
        }
        End::Status(_) => None,
    }
}

/// Shows what helps to find out why.
fn explain(problem: &str, dir: &Path, end: End, verbose: bool, say: &mut impl FnMut(&str)) {
    let mut show = |what: &str, file: &str| {
        let lines = machine::tail(&dir.join(file));
        if !lines.is_empty() {
            say(&format!("--- the last lines of its {what}"));
            lines.iter().for_each(|line| say(&format!("    {line}")));
        }
    };
    if !verbose {
        show("report", "report.log");
    }
    if matches!(end, End::Late | End::Died) {
        show("console", "console.log");
        show("QEMU", "qemu.log");
    }
    say(&format!(
        "--- {problem}; everything is in {}",
        dir.display()
    ));
}

fn shell(project: &Project, name: Option<&str>, pack: &[String], build: Build) -> Result<bool> {
    let mut guest = match name {
        Some(name) => chosen(project, &[name.to_owned()])?.remove(0),
        None => Guest {
            name: "shell".to_owned(),
            body: Body::Script(project.root.join("lab/functions.sh")),
            needs: guest::Needs::default(),
        },
    };
    guest.needs.pack.extend_from_slice(pack);
    if let Err(error) = things::check(&guest.needs.pack) {
        bail!(Usage(error.to_string()));
    }
    packages::ensure(packages::GUEST)?;
    let kernel = kernel::ensure(project)?;
    let dir = project.target.join(format!("lab/{}-shell", guest.name));
    fs::create_dir_all(&dir)?;
    let image = dir.join("image.cpio");
    let image_bytes = image::pack(project, &guest, &kernel, &[], build, &image)?;
    let machine = Machine {
        kernel: &kernel,
        image: &image,
        image_bytes,
        needs: &guest.needs,
    };
    let done = machine.shell();
    drop(fs::remove_dir_all(&dir));
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script() -> Guest {
        Guest {
            name: "a".into(),
            body: Body::Script("a.sh".into()),
            needs: guest::Needs::default(),
        }
    }

    fn said(lines: &[&str]) -> Counted {
        let mut counted = Counted::default();
        for line in lines {
            counted.take_check(line);
        }
        counted
    }

    #[test]
    fn a_guest_that_died_hung_or_checked_nothing_has_failed() {
        let ok = said(&["ok a"]);
        assert_eq!(problem(End::Status(0), &ok, &script()), None);
        for (end, counted, want) in [
            (End::Died, ok.clone(), "died"),
            (End::Late, ok.clone(), "120 s"),
            (End::Status(3), ok, "status 3"),
            (End::Status(0), said(&[]), "nothing"),
            (End::Status(0), said(&["ok a", "not ok b: c"]), "1 failed"),
        ] {
            let problem = problem(end, &counted, &script()).unwrap();
            assert!(problem.contains(want), "{problem}");
        }
    }

    #[test]
    fn every_guest_of_this_tree_has_a_good_header() {
        let project = Project::load().unwrap();
        let guests = guest::all(&project).unwrap();
        assert!(guests.iter().any(|guest| guest.name == "kernel"));
        for guest in guests {
            things::check(&guest.needs.pack).unwrap();
            assert!(
                !guest.needs.about.is_empty(),
                "{} has no `about`",
                guest.name
            );
        }
    }
}

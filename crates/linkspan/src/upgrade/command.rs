//! `linkspan upgrade`: links of a plane go on in new processes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::control::{ask, ask_within};
use crate::exit::{Failure, Status};
use crate::supervisor::Question;

/// How long one link may take: longer than each of the processes gives the other.
const LIMIT: Duration = Duration::from_secs(120);

/// Options of `linkspan upgrade`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: another linkspan was installed; disks and networks of guests go on in it\n\n  \
    linkspan upgrade disk-a\n  \
    linkspan upgrade --all --json\n  \
    linkspan upgrade disk-a --program ./linkspan --control examples/control.sock\n\n\
    The new process opens everything while the old one serves. Then requests in flight end, the\n\
    new one takes memory, rings and sockets over, and the guest goes on: that pause is printed.\n\
    Whatever goes wrong, the old process goes on, and says why. Disks (raw files, block devices,\n\
    null:) and networks over vhost-user can be handed over; other links are named, and can be\n\
    restarted."
)]
pub struct Args {
    /// Its name in the plane
    #[arg(value_name = "LINK", required_unless_present = "all")]
    name: Option<String>,

    /// All links that run, one after the other
    #[arg(long, conflicts_with = "name")]
    all: bool,

    /// The program that goes on with it, and that it is started with from now on [default:
    /// what is now in the place of the supervisor's]
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,

    /// The control socket of the plane: `control` in [plane]
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/linkspan/control.sock"
    )]
    control: PathBuf,

    /// What became of each link: one JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Listed {
    link: String,
    state: String,
}

#[derive(Deserialize)]
struct Upgraded {
    pid: u32,
    pause_us: Option<u64>,
}

/// Runs the command.
///
/// # Errors
/// With the status that the program is to end with: a link was not handed over.
pub fn run(args: &Args) -> Result<(), Failure> {
    let program = args.program.as_ref().map(|path| {
        let whole = path.canonicalize();
        whole.with_context(|| format!("no program {}", path.display()))
    });
    let program = program.transpose()?;
    let names = match &args.name {
        Some(name) => vec![name.clone()],
        None => running(args)?,
    };
    let mut failed = Vec::new();
    for name in names {
        let question = Question::Upgrade(name.clone(), program.clone());
        let answer = ask_within(&args.control, &question, LIMIT)?;
        let value: Value = serde_json::from_str(&answer)
            .map_err(|error| Failure::new(Status::PeerBroke, error))?;
        if let Some(error) = value["error"].as_str() {
            failed.push(format!("{name}: {error}"));
            if args.json {
                println!("{}", json!({ "link": name, "error": error }));
            } else {
                println!("{name:<24} not handed over: {error}");
            }
            continue;
        }
        if args.json {
            print!("{answer}");
            continue;
        }
        let Upgraded { pid, pause_us } = serde_json::from_value(value)
            .map_err(|error| Failure::new(Status::PeerBroke, error))?;
        match pause_us {
            #[expect(clippy::cast_precision_loss, reason = "for people")]
            Some(pause) => println!("{name:<24} {pid:>8}  {:.3} ms", pause as f64 / 1000.0),
            None => println!("{name:<24} {pid:>8}  nobody was connected"),
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    let error = anyhow!("not handed over: {}", failed.join("; "));
    Err(Failure::new(Status::Failed, error))
}

/// The links that run.
fn running(args: &Args) -> Result<Vec<String>, Failure> {
    let answer = ask(&args.control, &Question::List)?;
    let lines = answer.lines().map(|line| {
        let listed: Listed =
            serde_json::from_str(line).map_err(|error| Failure::new(Status::PeerBroke, error))?;
        Ok(listed)
    });
    let lines = lines.collect::<Result<Vec<_>, Failure>>()?;
    let running = lines.into_iter().filter(|it| it.state == "running");
    Ok(running.map(|it| it.link).collect())
}

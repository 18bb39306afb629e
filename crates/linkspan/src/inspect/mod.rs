//! `linkspan inspect`: what there is to see of the links of a plane that runs, as one tree,
//! and as metrics.

pub mod metrics;
pub mod top;
pub mod trace;
mod tree;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use serde_json::Value;

use crate::control::ask;
use crate::exit::{Failure, Status};
use crate::supervisor::INSPECT;
pub(crate) use top::Sums;
pub(crate) use tree::of as tree_of;
use tree::{descend, shown};

/// Options of `linkspan inspect`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: all of it, one link, and one number for a script\n\n  \
    linkspan inspect --control examples/control.sock\n  \
    linkspan inspect disk-a --control examples/control.sock\n  \
    linkspan inspect disk-a/disk/rings/0/in_flight --control examples/control.sock --json\n\n\
    A link that does not answer within two seconds is shown without its endpoints.\n\
    Root may ask, and the user that the supervisor runs as."
)]
pub struct Args {
    /// A part of the tree: names and numbers with slashes between [default: all of it]
    #[arg(value_name = "PATH", default_value = "", hide_default_value = true)]
    path: String,

    /// The control socket of the plane: `control` in [plane]
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/linkspan/control.sock"
    )]
    control: PathBuf,

    /// As JSON
    #[arg(long)]
    json: bool,

    /// As metrics in the text format of Prometheus; docs/plane.md has their names
    #[arg(long, conflicts_with_all = ["json", "path"])]
    metrics: bool,
}

/// Runs the command.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    let tree = look(&args.control)?;
    let text = if args.metrics {
        metrics::text(&tree)
    } else {
        let part = descend(&tree, &args.path).ok_or_else(|| {
            let error = anyhow!("there is no {} to see", args.path);
            Failure::new(Status::Failed, error).hint("`linkspan inspect` shows all of it")
        })?;
        if args.json {
            format!("{part:#}\n")
        } else {
            shown(part)
        }
    };
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

/// All metrics of the plane whose supervisor is asked there.
///
/// # Errors
/// Nobody answers, or not as a supervisor does.
pub(crate) fn metrics_of(control: &Path) -> Result<String, Failure> {
    look(control).map(|tree| metrics::text(&tree))
}

/// What a supervisor's answer shows to people, and as metrics; `None` for one that is none.
pub(crate) fn told(answer: &str) -> Option<String> {
    let tree = tree::of(answer).ok()?;
    // Metrics are for programs: what is in them is escaped, not left out.
    drop(metrics::text(&tree));
    Some(shown(&tree))
}

/// All links by name, each with its endpoints by name.
///
/// # Errors
/// Nobody answers, or not as a supervisor does.
fn look(control: &Path) -> Result<Value, Failure> {
    let answer = ask(control, &INSPECT).map_err(|failure| {
        failure.hint("`control` in [plane], and --control with the same path")
    })?;
    tree::of(&answer).map_err(|error| match error {
        tree::Error::Refused(why) => Failure::new(Status::Failed, anyhow!(why)),
        error => Failure::new(Status::PeerBroke, error),
    })
}

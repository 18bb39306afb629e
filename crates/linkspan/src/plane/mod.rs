//! Planes: files that declare links, checked before any of them is started.
//!
//! A link is a command of the program with its options, whose names are keys here. So the
//! command line is the one place where an option is defined, and the parser of the command
//! line the one judge of its value; what is here gives its answers a line and a column.

mod document;
mod lookout;
mod merge;
mod problem;
mod schema;
mod settings;
mod uses;
mod viewers;

use std::borrow::Cow;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::Subcommand;
use serde::Serialize;

use crate::exit::Failure;
use crate::vm::Machine;
use crate::{cli, log};
pub(crate) use lookout::Plane;
use merge::Link;
use problem::{Place, Problem};
pub(crate) use schema::COMMANDS as LINKS;
use schema::Form;
use settings::{Origin, Setting};
pub(crate) use settings::{Policy, metrics_address};
pub(crate) use uses::{Use, Used};
pub(crate) use viewers::{Shows, Viewers};

/// Options of `linkspan plane`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: a plane with a disk\n\n  \
    cat >plane.toml <<'END'\n  \
    [link.disk0]\n  \
    command = \"blk\"\n  \
    socket-path = \"disk0.sock\"\n  \
    image = \"mem:1G\"\n  \
    END\n  \
    linkspan plane check plane.toml")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Says what a plane amounts to, where each value comes from, and all that is wrong
    Check(CheckArgs),
}

/// Options of `check`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  linkspan plane check /etc/linkspan/plane.toml\n\n\
    A link is `command`, the words of a command that serves, and the long options of that\n\
    command as keys; docs/plane.md has the rest. Nothing is started or changed.\n\
    Exit status: 0 nothing is wrong, 1 a file is missing, 2 something makes no sense,\n\
    5 rights are missing."
)]
struct CheckArgs {
    /// The plane
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.verb {
        Verb::Check(args) => check(args),
    }
}

fn check(args: &CheckArgs) -> Result<(), Failure> {
    let plane = Plane::read(&args.file)?;
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&Report::of(&plane))?)
    } else {
        plane.merged()
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    plane.verdict()?;
    if let Some(note) = plane.without_links() {
        log::say(format_args!("{note}"));
    }
    Ok(())
}

impl Plane {
    /// Says all that is wrong.
    ///
    /// # Errors
    /// Something is.
    pub(crate) fn verdict(&self) -> Result<(), Failure> {
        let Some(status) = self.status() else {
            return Ok(());
        };
        for problem in &self.problems {
            log::say(format_args!("{}", self.said(problem)));
        }
        let count = self.problems.len();
        let things = if count == 1 { "thing is" } else { "things are" };
        let error = anyhow!("{count} {things} wrong with {}", self.file.display());
        Err(Failure::new(status, error))
    }

    /// What to do for there to be links, where there are none.
    pub(crate) fn without_links(&self) -> Option<String> {
        let file = self.file.display();
        let why = || {
            format!(
                "there are no links yet: add one to {file}, and have it read again (SIGHUP, or systemctl reload)"
            )
        };
        self.links.is_empty().then(why)
    }

    /// Where `linkspan link` connects.
    pub(crate) fn control(&self) -> Option<PathBuf> {
        let control = self.settings.control.as_ref();
        control.map(|path| self.folder.join(path))
    }

    /// The virtual machine of this name.
    pub(crate) fn machine(&self, name: &str) -> Option<Machine> {
        let mut links = self.links.iter();
        let link = links.find(|link| link.is_machine && link.name == name)?;
        cli::machine(&link.arguments)
    }

    /// A problem as people read it, and as editors jump to it.
    fn said(&self, problem: &Problem) -> String {
        let mut said = self.file.display().to_string();
        if let Some(Place { line, column }) = self.place(problem.at) {
            said += &format!(":{line}:{column}");
        }
        said += &format!(": {}", problem.message);
        if let Some(hint) = &problem.hint {
            said += &format!("\n  try: {hint}");
        }
        said
    }

    /// All that it says, and as comments all that it leaves out: a plane with the same
    /// meaning.
    pub(crate) fn merged(&self) -> String {
        let mut lines = vec!["[plane]".to_owned()];
        lines.extend(self.told.iter().map(|setting| self.line(setting)));
        for link in &self.links {
            lines.push(format!("\n[{}.{}]", link.kind(), quoted(&link.name)));
            lines.extend(link.told.iter().map(|setting| self.line(setting)));
        }
        lines.push(String::new());
        lines.join("\n")
    }

    fn line(&self, setting: &Setting) -> String {
        let text = format!("{} = {}", setting.key, setting.toml());
        // What the program decides may be refused where it is said: an option that is for
        // another one, say.
        let mark = match setting.origin {
            Origin::Program => "# ",
            Origin::Given(_) | Origin::Defaults(_) => "",
        };
        format!(
            "{:<40} # {}",
            format!("{mark}{text}"),
            self.from(setting.origin)
        )
    }

    fn from(&self, origin: Origin) -> String {
        let place = self.place(origin.at());
        match (origin, place) {
            (Origin::Given(_), Some(place)) => format!("line {}", place.line),
            (Origin::Defaults(_), Some(place)) => format!("defaults, line {}", place.line),
            _ => "default".to_owned(),
        }
    }
}

impl Setting {
    /// Its value in TOML.
    fn toml(&self) -> String {
        let mut values = self.values.iter().map(|value| match self.form {
            Form::Flag => value.clone(),
            Form::Value | Form::List => quoted(value),
        });
        match self.form {
            Form::Flag | Form::Value => values.next().unwrap_or_default(),
            Form::List => format!("[{}]", values.collect::<Vec<_>>().join(", ")),
        }
    }
}

/// What `check --json` tells.
#[derive(Serialize)]
struct Report<'a> {
    works: bool,
    problems: Vec<Wrong<'a>>,
    plane: Vec<ToldSetting<'a>>,
    links: Vec<ToldLink<'a>>,
}

/// A problem.
#[derive(Serialize)]
struct Wrong<'a> {
    #[serde(flatten)]
    place: Option<Place>,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
}

/// A link.
#[derive(Serialize)]
struct ToldLink<'a> {
    /// `link` or `vm`.
    kind: &'static str,
    name: &'a str,
    /// What the program is started with.
    arguments: Vec<Cow<'a, str>>,
    options: Vec<ToldSetting<'a>>,
}

/// A key, its values, and who says so.
#[derive(Serialize)]
struct ToldSetting<'a> {
    key: &'a str,
    values: &'a [String],
    from: &'static str,
    #[serde(flatten)]
    place: Option<Place>,
}

impl<'a> Report<'a> {
    fn of(plane: &'a Plane) -> Self {
        let setting = |told: &'a Setting| ToldSetting {
            key: &told.key,
            values: &told.values,
            from: match told.origin {
                Origin::Given(_) => "plane",
                Origin::Defaults(_) => "defaults",
                Origin::Program => "program",
            },
            place: plane.place(told.origin.at()),
        };
        let link = |link: &'a Link| ToldLink {
            kind: link.kind(),
            name: &link.name,
            arguments: link
                .arguments
                .iter()
                .map(|it| it.to_string_lossy())
                .collect(),
            options: link.told.iter().map(setting).collect(),
        };
        let wrong = |problem: &'a Problem| Wrong {
            place: plane.place(problem.at),
            message: &problem.message,
            hint: problem.hint.as_deref(),
        };
        Self {
            works: plane.problems.is_empty(),
            problems: plane.problems.iter().map(wrong).collect(),
            plane: plane.told.iter().map(setting).collect(),
            links: plane.links.iter().map(link).collect(),
        }
    }
}

/// A text of TOML. JSON's escapes are TOML's too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests;

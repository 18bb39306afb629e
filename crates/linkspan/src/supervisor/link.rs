//! `linkspan link`: the links of a plane that runs.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Subcommand;
use serde::Deserialize;
use serde_json::Value;

use super::question::{self, Question};
use crate::control::ask;
use crate::exit::{Failure, Status};

/// Options of `linkspan link`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: a disk is taken away and given back\n\n  \
    linkspan link stop disk-b --control examples/control.sock\n  \
    linkspan link list --control examples/control.sock\n  \
    linkspan link start disk-b --control examples/control.sock\n\n\
    Root may ask, and the user that the supervisor runs as.")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Says how all links are
    List(Asking),
    /// Ends a link, which has `drain-seconds` to finish, and does not start it again
    Stop(Naming),
    /// Starts a link, now if it is in a pause
    Start(Naming),
    /// Ends a link once it has finished, however long that takes
    Drain(Naming),
    /// Ends a link, which has `drain-seconds` to finish, and starts it again
    Restart(Naming),
    /// Prints the address of the plane's page; who has it may change links
    Page(Asking),
}

/// Who is asked.
#[derive(Debug, clap::Args)]
struct Asking {
    /// The control socket of the plane: `control` in [plane]
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/linkspan/control.sock"
    )]
    control: PathBuf,

    /// The answer as it comes: one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Which link.
#[derive(Debug, clap::Args)]
struct Naming {
    /// Its name in the plane
    #[arg(value_name = "LINK")]
    name: String,

    #[command(flatten)]
    asking: Asking,
}

/// A line of the answer.
#[derive(Deserialize)]
struct Line {
    link: String,
    state: String,
    pid: Option<u32>,
    starts: u64,
    last_end: Option<String>,
    #[serde(default)]
    last_error: Option<String>,
}

#[derive(Deserialize)]
struct Page {
    url: String,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// Runs the command.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    let change = |verb, naming: &Naming| Question::Change(verb, naming.name.clone());
    let (asking, question) = match &args.verb {
        // Of what went wrong a link's process knows, not its supervisor.
        Verb::List(asking) => (asking, Question::Inspect),
        Verb::Page(asking) => (asking, Question::Page),
        Verb::Stop(naming) => (&naming.asking, change(question::Verb::Stop, naming)),
        Verb::Start(naming) => (&naming.asking, change(question::Verb::Start, naming)),
        Verb::Drain(naming) => (&naming.asking, change(question::Verb::Drain, naming)),
        Verb::Restart(naming) => (&naming.asking, change(question::Verb::Restart, naming)),
    };
    let answer = ask(&asking.control, &question).map_err(|failure| {
        failure.hint("`control` in [plane], and --control with the same path")
    })?;
    if let Ok(Refusal { error }) = serde_json::from_str(&answer) {
        return Err(Failure::new(Status::Failed, anyhow!(error)));
    }
    let answer = answer.lines().map(with_error).collect::<String>();
    if asking.json {
        print!("{answer}");
        return Ok(());
    }
    let broken = |error| Failure::new(Status::PeerBroke, error);
    if let Verb::Page(_) = &args.verb {
        let Page { url } = serde_json::from_str(&answer).map_err(broken)?;
        println!("{url}");
        return Ok(());
    }
    for line in answer.lines() {
        let line: Line = serde_json::from_str(line).map_err(broken)?;
        let named = match &args.verb {
            Verb::List(_) | Verb::Page(_) => true,
            Verb::Stop(it) | Verb::Start(it) | Verb::Drain(it) | Verb::Restart(it) => {
                it.name == line.link
            }
        };
        if named {
            let pid = line
                .pid
                .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            let last = [line.last_end, line.last_error];
            let last = last.into_iter().flatten().collect::<Vec<_>>().join("; ");
            // What a peer of the link says does nothing to the terminal.
            let last = last.replace(char::is_control, "\u{fffd}");
            let (link, state, starts) = (line.link, line.state, line.starts);
            println!("{link:<24} {state:<8} {pid:>8} {starts:>6}  {last}");
        }
    }
    Ok(())
}

/// A line of the answer with the last error of an endpoint in place of all that there is to
/// see of them. What is none stays as it is, for whoever reads it.
fn with_error(line: &str) -> String {
    let Ok(Value::Object(mut link)) = serde_json::from_str(line) else {
        return format!("{line}\n");
    };
    if let Some(Value::Array(endpoints)) = link.remove("endpoints") {
        let mut errors = endpoints.iter().filter_map(|it| {
            let error = it["last_error"].as_str()?;
            let name = it["endpoint"].as_str().unwrap_or("endpoint");
            Some(format!("{name}: {error}"))
        });
        link.remove("answers");
        link.insert("last_error".to_owned(), errors.next().into());
    }
    format!("{}\n", Value::Object(link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_of_an_endpoint_is_that_of_its_link() {
        let line = "{\"link\":\"a\",\"answers\":true,\"endpoints\":[{\"endpoint\":\"workers\"},\
            {\"endpoint\":\"disk\",\"last_error\":\"it broke\"}]}";
        let value: Value = serde_json::from_str(&with_error(line)).unwrap();
        let expected = serde_json::json!({ "link": "a", "last_error": "disk: it broke" });
        assert_eq!(value, expected);
        // Of the other verbs nothing more is known than the supervisor says.
        assert_eq!(with_error("{\"link\":\"a\"}"), "{\"link\":\"a\"}\n");
        assert_eq!(with_error("x"), "x\n");
    }
}

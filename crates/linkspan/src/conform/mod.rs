//! `linkspan conform`: whether a back end of others holds the rules, also with a hostile
//! front end, and a verdict for each of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use clap::Subcommand;
use linkspan_conform::{
    Finding, Kind, Rule, RunError, Starter, Target, Verdict, rules, run as tried,
};
use linkspan_sys::signals::{Signal, Signals};
use serde::Serialize;

use crate::exit::{Failure, Status};
use crate::log;

/// Options of `linkspan conform`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    linkspan conform list\n  \
    linkspan conform vhost-user-blk --socket-path /tmp/disk.sock\n  \
    linkspan conform vhost-user-blk --socket-path /tmp/d.sock --start 'my-disk /tmp/d.sock'\n  \
    linkspan conform vhost-user-net --socket-path /tmp/net.sock --rule descriptors-loop --json\n\n\
    The target is sent what no front end and no driver may send. Use none that you need:\n\
    it may die, or harm its own process. Nothing is written to a disk; a network device\n\
    gets frames of type 0x88b5. Exit status: 0 all rules hold, 3 the target cannot be\n\
    reached, 4 it broke a rule.")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Lists the rules
    List(ListArgs),
    /// Tries a disk that listens on a socket
    VhostUserBlk(TargetArgs),
    /// Tries a network device that listens on a socket
    VhostUserNet(TargetArgs),
}

/// Options of `linkspan conform list`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  linkspan conform list --json")]
struct ListArgs {
    /// As one JSON array
    #[arg(long)]
    json: bool,
}

/// Which target, and how it is tried.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    linkspan conform vhost-user-blk --socket-path /tmp/disk.sock --rule descriptors-loop\n\n\
    A rule is held, broken, not for this target (n/a), or the target died: after it no\n\
    front end is served. With --start it is then started anew; else no other rule is tried.")]
struct TargetArgs {
    /// Where the target listens
    #[arg(long, value_name = "PATH")]
    socket_path: PathBuf,

    /// Start the target with this command of the shell, and again when it has died
    #[arg(long, value_name = "COMMAND")]
    start: Option<String>,

    /// Try this rule only; may be given again
    #[arg(long = "rule", value_name = "NAME")]
    rules: Vec<String>,

    /// Seconds that the target may take for what it has to do
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    patience: u64,

    /// Milliseconds for which it is watched for what it must not do
    #[arg(long, value_name = "MS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    watch: u64,

    /// The whole report as one JSON object, at the end
    #[arg(long)]
    json: bool,
}

/// A rule as programs read it.
#[derive(Serialize)]
struct ShownRule {
    name: &'static str,
    says: &'static str,
    clause: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    concerns: Vec<&'static str>,
}

/// A verdict as programs read it.
#[derive(Serialize)]
struct ShownFinding<'a> {
    #[serde(flatten)]
    rule: ShownRule,
    verdict: &'static str,
    seen: &'a str,
}

/// The whole report.
#[derive(Serialize)]
struct Report<'a> {
    target: &'static str,
    socket: &'a Path,
    held: usize,
    broken: usize,
    died: usize,
    not_applicable: usize,
    not_run: usize,
    rules: Vec<ShownFinding<'a>>,
}

/// Runs the command.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.what {
        What::List(args) => list(args),
        What::VhostUserBlk(args) => conform(Kind::Blk, args),
        What::VhostUserNet(args) => conform(Kind::Net, args),
    }
}

/// What the command of a kind is called.
fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Blk => "vhost-user-blk",
        Kind::Net => "vhost-user-net",
    }
}

fn shown(rule: &Rule, concerns: Vec<&'static str>) -> ShownRule {
    ShownRule {
        name: rule.name,
        says: rule.says,
        clause: rule.clause,
        concerns,
    }
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let mut all: Vec<&Rule> = rules(Kind::Blk).collect();
    all.extend(rules(Kind::Net).filter(|rule| !rule.concerns(Kind::Blk)));
    let concerns = |rule: &Rule| {
        let kinds = [Kind::Blk, Kind::Net].into_iter();
        kinds
            .filter(|kind| rule.concerns(*kind))
            .map(name)
            .collect()
    };
    if args.json {
        let all: Vec<_> = all.iter().map(|rule| shown(rule, concerns(rule))).collect();
        log::print(serde_json::to_string(&all)?);
        return Ok(());
    }
    for rule in all {
        log::print(format!("{:<30} {}", rule.name, rule.says));
        log::print(format!("{:<30} ({})", "", rule.clause));
    }
    Ok(())
}

/// The rules that are asked for.
fn wanted(kind: Kind, names: &[String]) -> Result<Vec<&'static Rule>, Failure> {
    if names.is_empty() {
        return Ok(rules(kind).collect());
    }
    let find = |wanted: &String| {
        let found = rules(kind).find(|rule| rule.name == wanted);
        found.ok_or_else(|| {
            let error = anyhow!("there is no rule {wanted} for {}", name(kind));
            Failure::new(Status::Usage, error).hint("`linkspan conform list`")
        })
    };
    names.iter().map(find).collect()
}

fn conform(kind: Kind, args: &TargetArgs) -> Result<(), Failure> {
    let rules = wanted(kind, &args.rules)?;
    let target = Target {
        socket: args.socket_path.clone(),
        kind,
        patience: Duration::from_secs(args.patience),
        settle: Duration::from_millis(args.watch),
    };
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])?;
    let mut stopped = false;
    let mut ends = || {
        stopped |= signals.take().is_ok_and(|signals| !signals.is_empty());
        stopped
    };
    let command = args.start.clone();
    let mut starter = command.map(|command| Starter::new(command, args.socket_path.clone()));
    let total = rules.len();
    let mut done = 0;
    let mut each = |finding: &Finding| {
        done += 1;
        let (word, name) = (finding.verdict.word(), finding.rule.name);
        let seen = finding.verdict.seen();
        if args.json {
            tracing::info!("{done} of {total}: {name}: {word}: {seen}");
        } else {
            log::print(format!("{word:<8} {name:<30} {seen}"));
        }
    };
    let findings = tried(&target, &rules, starter.as_mut(), &mut ends, &mut each);
    let findings = findings.map_err(failure)?;
    report(&target, &findings, args.json)
}

fn failure(error: RunError) -> Failure {
    let status = match error {
        RunError::Unreachable(_) => Status::PeerUnreachable,
        _ => Status::Failed,
    };
    Failure::new(status, error)
}

/// Says how many rules hold; a failure if not all do that concern the target.
fn report(target: &Target, findings: &[Finding], json: bool) -> Result<(), Failure> {
    let count = |word: &str| {
        let of = findings.iter().filter(|it| it.verdict.word() == word);
        of.count()
    };
    let report = Report {
        target: name(target.kind),
        socket: &target.socket,
        held: count("held"),
        broken: count("broken"),
        died: count("died"),
        not_applicable: count("n/a"),
        not_run: count("not run"),
        rules: findings
            .iter()
            .map(|Finding { rule, verdict }| ShownFinding {
                rule: shown(rule, Vec::new()),
                verdict: verdict.word(),
                seen: verdict.seen(),
            })
            .collect(),
    };
    let summary = format!(
        "{} held, {} broken, {} died, {} not applicable, {} not run",
        report.held, report.broken, report.died, report.not_applicable, report.not_run
    );
    match json {
        true => log::print(serde_json::to_string(&report)?),
        false => log::print(summary),
    }
    let against = findings.iter().filter(|it| it.verdict.is_against());
    let names: Vec<_> = against.map(|it| it.rule.name).collect();
    if !names.is_empty() {
        let error = anyhow!("the target does not hold {}", names.join(", "));
        return Err(Failure::new(Status::PeerBroke, error));
    }
    if findings
        .iter()
        .any(|it| matches!(it.verdict, Verdict::NotRun(_)))
    {
        return Err(Failure::new(Status::Failed, anyhow!("ended early")));
    }
    Ok(())
}

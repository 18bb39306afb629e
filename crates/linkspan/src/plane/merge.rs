//! A link of a plane as a command line: the options that it has, where each comes from, and
//! what the parser of the command line says of them.

use std::error::Error as _;
use std::ffi::OsString;
use std::path::Path;

use clap::ArgMatches;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;

use super::document::{Document, Entry, Section, Value};
use super::problem::Problem;
use super::schema::{COMMAND, COMMANDS, Form, Grammar, Schema};
use super::settings::{LINK_KEYS, LINKS, Origin, Policy, Setting};
use super::uses::{Use, Used};
use crate::cli;
use crate::vm::Offer;

/// A link, checked.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) name: String,
    /// What the program is started with.
    pub(crate) arguments: Vec<OsString>,
    pub(crate) policy: Policy,
    /// Where its name stands.
    pub(super) at: usize,
    /// The command, the policy and all options that have a value.
    pub(super) told: Vec<Setting>,
    pub(super) uses: Vec<Used>,
    /// What it gives to virtual machines.
    pub(super) offers: Vec<Offer>,
    /// Whether it is a virtual machine.
    pub(crate) is_machine: bool,
}

/// An entry that counts for a link.
#[derive(Clone, Copy)]
struct Given<'a> {
    entry: &'a Entry,
    origin: Origin,
}

/// All links that make sense; the others are told of.
pub(super) fn links(document: &Document, problems: &mut Vec<Problem>) -> Vec<Link> {
    let grammar = Grammar::get();
    for defaults in &document.defaults {
        check_defaults(grammar, defaults, problems);
    }
    let mut links = Vec::new();
    for (kind, section) in document.sections() {
        let made = match kind {
            "vm" => machine(grammar, section, document, &links),
            _ => link(grammar, section, document),
        };
        match made {
            Ok(link) => links.push(link),
            Err(mut wrong) => {
                for problem in &mut wrong {
                    problem.message = format!("{kind} {}: {}", section.name, problem.message);
                }
                problems.append(&mut wrong);
            }
        }
    }
    links
}

impl Link {
    /// The table that it is.
    pub(super) fn kind(&self) -> &'static str {
        if self.is_machine { "vm" } else { "link" }
    }
}

/// Keys that no link would take are wrong even if there is no such link.
fn check_defaults(grammar: &Grammar, defaults: &Section, problems: &mut Vec<Problem>) {
    let Some(schema) = grammar.defaults(&defaults.name) else {
        problems.push(no_command(&defaults.name, defaults.at));
        return;
    };
    let unknown = defaults.entries.iter();
    problems.extend(unknown.filter_map(|entry| unknown_key(schema, entry)));
}

fn no_command(name: &str, at: usize) -> Problem {
    let message = format!("{name:?} is no command that serves a link");
    Problem::new(Some(at), message).hint(format!("one of {}", COMMANDS.join(", ")))
}

fn unknown_key(schema: &Schema, entry: &Entry) -> Option<Problem> {
    let key = entry.key.as_str();
    if schema.key(key).is_some() || LINK_KEYS.contains(&key) {
        return None;
    }
    let message = format!("`{}` has no option `{key}`", schema.words);
    let problem = Problem::new(Some(entry.at), message);
    Some(match schema.like(key) {
        Some(like) => problem.hint(format!("`{like}`")),
        None => problem.hint(format!("`linkspan {} --help` lists them", schema.words)),
    })
}

/// A link as its command sees it.
///
/// # Errors
/// All that is wrong with it.
fn link(grammar: &Grammar, section: &Section, document: &Document) -> Result<Link, Vec<Problem>> {
    let schema = schema(grammar, section).map_err(|problem| vec![problem])?;
    command_line(grammar, schema, section, document, &[])
}

/// A virtual machine with its links as the command that runs it sees it.
///
/// # Errors
/// All that is wrong with it; nothing where one of its links is.
fn machine(
    grammar: &Grammar,
    section: &Section,
    document: &Document,
    links: &[Link],
) -> Result<Link, Vec<Problem>> {
    let schema = grammar.machine().ok_or_else(Vec::new)?;
    let plugs = match section.entry(LINKS) {
        Some(entry) => plugs(entry, document, links)?,
        None => Vec::new(),
    };
    command_line(grammar, schema, section, document, &plugs)
}

/// The options that links of a machine become.
fn plugs(
    entry: &Entry,
    document: &Document,
    links: &[Link],
) -> Result<Vec<OsString>, Vec<Problem>> {
    let list = match &entry.value {
        Value::List(list) => list.as_slice(),
        Value::Text(text) => std::slice::from_ref(text),
        Value::Flag(_) => {
            let message = format!("`{LINKS}` is {}, not a list of links", entry.value);
            return Err(vec![Problem::new(Some(entry.at), message)]);
        }
    };
    let (mut options, mut problems) = (Vec::new(), Vec::new());
    for text in list {
        let (name, socket) = match text.text.split_once(':') {
            Some((name, socket)) => (name, Some(socket)),
            None => (text.text.as_str(), None),
        };
        let Some(link) = links.iter().find(|link| link.name == name) else {
            // One that makes no sense was told of.
            if document.links.iter().all(|link| link.name != name) {
                problems.push(Problem::new(
                    Some(text.at),
                    format!("there is no link {name}"),
                ));
            }
            continue;
        };
        let wanted = |offer: &&Offer| socket.is_none_or(|it| offer.socket == Path::new(it));
        let offers: Vec<_> = link.offers.iter().filter(wanted).collect();
        match offers[..] {
            [offer] => options.push(offer.option().into()),
            [] => {
                let message = match socket {
                    Some(socket) => format!("link {name} has no socket {socket} for machines"),
                    None => format!("link {name} has nothing for a virtual machine"),
                };
                problems.push(Problem::new(Some(text.at), message));
            }
            [..] => {
                let all = offers
                    .iter()
                    .map(|it| format!("{name}:{}", it.socket.display()));
                let all: Vec<_> = all.collect();
                let message = format!("link {name} has {} sockets for machines", all.len());
                let problem = Problem::new(Some(text.at), message);
                problems.push(problem.hint(all.join(" or ")));
            }
        }
    }
    // What is left of a machine some of whose links were told of makes no sense.
    if options.len() < list.len() {
        return Err(problems);
    }
    Ok(options)
}

/// A link as the command of this schema sees it, with more options.
fn command_line(
    grammar: &Grammar,
    schema: &Schema,
    section: &Section,
    document: &Document,
    more: &[OsString],
) -> Result<Link, Vec<Problem>> {
    let mut defaults = document.defaults.iter();
    let defaults = defaults.find(|it| it.name == schema.defaults());
    let given = given(schema, section, defaults);
    let mut problems = Vec::new();
    let mut policy = Policy::default();
    let mut command = vec![OsString::from("linkspan")];
    command.extend(schema.words.split(' ').map(OsString::from));
    let mut positional = Vec::new();
    for it in &given {
        let entry = it.entry;
        if LINK_KEYS.contains(&entry.key.as_str()) {
            problems.extend(policy.take(entry).err());
        } else if schema.is_machine() && it.origin == Origin::Given(entry.at) && entry.key == LINKS
        {
            // They are among the options to come.
        } else if let Some(problem) = unknown_key(schema, entry) {
            // What [defaults] has wrong was told once.
            problems.extend(matches!(it.origin, Origin::Given(_)).then_some(problem));
        } else {
            match arguments(schema, entry) {
                Ok(Arguments::Options(options)) => command.extend(options),
                Ok(Arguments::Positional(value)) => positional.push(value),
                Err(problem) => problems.push(problem),
            }
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    command.extend(more.iter().cloned());
    if !positional.is_empty() {
        command.push("--".into());
        command.append(&mut positional);
    }
    let wrong = |error: clap::Error| vec![problem(&error, schema, &given, section.at)];
    let matches = grammar.parse(&command).map_err(wrong)?;
    let mut uses = cli::uses(&matches).map_err(wrong)?;
    for (key, used) in &mut uses {
        let by_link = matches!(used, Use::Connects(_)) && origin(&given, key) == Origin::Program;
        if by_link {
            *key = LINKS;
        }
    }
    let mut told = vec![subject(schema, section)];
    told.extend(policy.told(|key| origin(&given, key)));
    told.extend(options(schema, &given, innermost(&matches), more));
    Ok(Link {
        name: section.name.clone(),
        arguments: command.split_off(1),
        policy,
        at: section.at,
        told,
        uses,
        offers: cli::offers(&matches).map_err(wrong)?,
        is_machine: schema.is_machine(),
    })
}

/// What it is, or has, as the first of its settings.
fn subject(schema: &Schema, section: &Section) -> Setting {
    let key = if schema.is_machine() { LINKS } else { COMMAND };
    let entry = section.entry(key);
    let (form, values) = match entry.map(|entry| &entry.value) {
        _ if !schema.is_machine() => (Form::Value, vec![schema.words.to_owned()]),
        Some(Value::List(list)) => {
            let texts = list.iter().map(|text| text.text.clone());
            (Form::List, texts.collect())
        }
        Some(Value::Text(text)) => (Form::List, vec![text.text.clone()]),
        _ => (Form::List, Vec::new()),
    };
    Setting {
        key: key.to_owned(),
        form,
        values,
        origin: entry.map_or(Origin::Program, |entry| Origin::Given(entry.at)),
    }
}

/// The schema of the command that a link names.
fn schema<'a>(grammar: &'a Grammar, section: &Section) -> Result<&'a Schema, Problem> {
    let Some(entry) = section.entry(COMMAND) else {
        let message = format!("it has no `{COMMAND}`");
        let hint = format!("{COMMAND} = \"blk\", or one of {}", COMMANDS.join(", "));
        return Err(Problem::new(Some(section.at), message).hint(hint));
    };
    match &entry.value {
        Value::Text(word) => {
            let schema = grammar.schema(&word.text);
            schema.ok_or_else(|| no_command(&word.text, word.at))
        }
        _ => {
            let message = format!("`{COMMAND}` is {}, not text", entry.value);
            Err(Problem::new(Some(entry.at), message))
        }
    }
}

/// The link's own entries, and those of the defaults that it does not have.
fn given<'a>(
    schema: &Schema,
    section: &'a Section,
    defaults: Option<&'a Section>,
) -> Vec<Given<'a>> {
    let is_option = |entry: &&Entry| schema.is_machine() || entry.key != COMMAND;
    let own = section.entries.iter().filter(is_option);
    let own = own.map(|entry| Given {
        entry,
        origin: Origin::Given(entry.at),
    });
    let others = defaults.iter().flat_map(|section| &section.entries);
    let others = others.filter(|entry| section.entry(&entry.key).is_none());
    let others = others.map(|entry| Given {
        entry,
        origin: Origin::Defaults(entry.at),
    });
    own.chain(others).collect()
}

/// What an entry is on a command line.
enum Arguments {
    Options(Vec<OsString>),
    Positional(OsString),
}

fn arguments(schema: &Schema, entry: &Entry) -> Result<Arguments, Problem> {
    let wrong = |wanted: &str| {
        let message = format!("`{}` is {}, not {wanted}", entry.key, entry.value);
        Problem::new(Some(entry.at), message)
    };
    let Some(key) = schema.key(&entry.key) else {
        return Err(wrong("an option"));
    };
    let option = |value: &str| OsString::from(format!("--{}={value}", key.name));
    match (key.form, &entry.value) {
        (Form::Flag, Value::Flag(true)) => {
            Ok(Arguments::Options(vec![format!("--{}", key.name).into()]))
        }
        (Form::Flag, Value::Flag(false)) => Ok(Arguments::Options(Vec::new())),
        (Form::Flag, _) => Err(wrong("true or false")),
        (_, Value::Flag(_)) => Err(wrong("text or a number")),
        (Form::Value, Value::List(_)) => Err(wrong("one value")),
        (_, Value::Text(value)) if key.positional => {
            Ok(Arguments::Positional(value.text.clone().into()))
        }
        (_, Value::Text(value)) => Ok(Arguments::Options(vec![option(&value.text)])),
        (Form::List, Value::List(list)) => {
            let options = list.iter().map(|value| option(&value.text));
            Ok(Arguments::Options(options.collect()))
        }
    }
}

/// The arguments of the last word.
fn innermost(matches: &ArgMatches) -> &ArgMatches {
    match matches.subcommand() {
        Some((_, inner)) => innermost(inner),
        None => matches,
    }
}

/// Who says what a key is.
fn origin(given: &[Given<'_>], key: &str) -> Origin {
    let found = given.iter().find(|it| it.entry.key == key);
    found.map_or(Origin::Program, |it| it.origin)
}

/// All options that have a value, in the order of the command's help, without those that
/// came by links.
fn options(
    schema: &Schema,
    given: &[Given<'_>],
    matches: &ArgMatches,
    by_links: &[OsString],
) -> Vec<Setting> {
    let keys = schema.keys.iter();
    let options = keys.filter_map(|key| {
        let origin = match matches.value_source(&key.id)? {
            ValueSource::CommandLine => origin(given, &key.name),
            _ => Origin::Program,
        };
        let values = matches.get_raw(&key.id)?;
        let values = values.map(|it| it.to_string_lossy().into_owned());
        let values = values.filter(|value| {
            let option = OsString::from(format!("--{}={value}", key.name));
            !by_links.contains(&option)
        });
        let values: Vec<_> = values.collect();
        (!values.is_empty()).then(|| Setting {
            key: key.name.clone(),
            form: key.form,
            values,
            origin,
        })
    });
    options.collect()
}

/// What the parser of the command line says, in the words of a plane and with its place.
fn problem(error: &clap::Error, schema: &Schema, given: &[Given<'_>], header: usize) -> Problem {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        Some(ContextValue::Strings(texts)) => texts.first().map(String::as_str),
        _ => None,
    };
    let key = text(ContextKind::InvalidArg).and_then(|shown| schema.shown(shown));
    let entry = key.and_then(|key| given.iter().find(|it| it.entry.key == key.name));
    let value = text(ContextKind::InvalidValue);
    let at = entry.map_or(header, |it| place(it.entry, value));
    let name = key.map_or_else(String::new, |key| format!("`{}`: ", key.name));
    let message = match error.kind() {
        ErrorKind::MissingRequiredArgument => missing(error, schema),
        ErrorKind::ArgumentConflict => match text(ContextKind::PriorArg) {
            Some(prior) => {
                let prior = schema.shown(prior).map_or(prior, |key| &key.name);
                let name = key.map_or("this", |key| &key.name);
                format!("`{name}` and `{prior}` exclude each other")
            }
            None => format!("{name}it excludes others that are here"),
        },
        ErrorKind::InvalidValue => match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(valid)) if !valid.is_empty() => {
                let value = value.unwrap_or_default();
                format!("{name}{value:?} is none of {}", valid.join(", "))
            }
            _ => format!("{name}it has no value"),
        },
        _ => match error.source() {
            Some(why) => format!("{name}{why}"),
            None => {
                let text = error.to_string();
                let line = text.lines().next().unwrap_or_default();
                line.trim_start_matches("error: ").to_owned()
            }
        },
    };
    Problem::new(Some(at), message)
}

/// Where an entry, or one of its values, stands.
fn place(entry: &Entry, value: Option<&str>) -> usize {
    match &entry.value {
        Value::Flag(_) => entry.at,
        Value::Text(text) => text.at,
        Value::List(list) => {
            let found = list.iter().find(|text| Some(text.text.as_str()) == value);
            found.map_or(entry.at, |text| text.at)
        }
    }
}

/// Which keys are missing, of those that a plane may have.
fn missing(error: &clap::Error, schema: &Schema) -> String {
    let Some(ContextValue::Strings(missing)) = error.get(ContextKind::InvalidArg) else {
        return "something is missing".to_owned();
    };
    let missing = missing.iter().map(|shown| {
        let choices = shown.split('|').filter_map(|choice| {
            let choice = choice.trim_matches(['<', '>', '[', ']', '.', ' ']);
            match choice.strip_prefix("--") {
                Some(name) => {
                    let name = name.split([' ', '=']).next()?;
                    schema.key(name)
                }
                None => schema.shown(choice),
            }
        });
        let choices: Vec<_> = choices.map(|key| format!("`{}`", key.name)).collect();
        choices.join(" or ")
    });
    let missing: Vec<_> = missing.filter(|names| !names.is_empty()).collect();
    format!("{} is missing", missing.join(", and "))
}

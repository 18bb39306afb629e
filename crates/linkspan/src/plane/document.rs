//! A plane as it is written: keys and values with their places, nothing of what they mean.

use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problem;

/// Links of a plane at most.
const LINKS_MAX: usize = 4096;

/// Bytes of a link's name at most: it is a part of file names and of log lines.
const NAME_MAX: usize = 64;

/// A file of a plane.
#[derive(Debug, Default)]
pub(super) struct Document {
    /// `[plane]`: the settings of all.
    pub(super) plane: Vec<Entry>,
    /// Whether there is a `[plane]`, though it may say nothing.
    pub(super) has_plane: bool,
    /// `[defaults."COMMAND"]`: options that all links with this command have, unless they say
    /// otherwise.
    pub(super) defaults: Vec<Section>,
    /// `[link.NAME]`, in the order of the file.
    pub(super) links: Vec<Section>,
    /// `[vm.NAME]`, in the order of the file.
    pub(super) vms: Vec<Section>,
}

/// A table of options.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) name: String,
    /// Where its name stands.
    pub(super) at: usize,
    pub(super) entries: Vec<Entry>,
}

/// A key and its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Where the key stands: bytes from the beginning.
    pub(super) at: usize,
    pub(super) value: Value,
}

/// A value. Numbers are the text that stands for them on a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Flag(bool),
    Text(Text),
    List(Vec<Text>),
}

/// A text and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) at: usize,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(value) => write!(f, "{value}"),
            Self::Text(text) => write!(f, "{:?}", text.text),
            Self::List(list) => write!(f, "a list of {}", list.len()),
        }
    }
}

impl Document {
    /// All links and machines, and what they are.
    pub(super) fn sections(&self) -> impl Iterator<Item = (&'static str, &Section)> {
        let links = self.links.iter().map(|link| ("link", link));
        links.chain(self.vms.iter().map(|vm| ("vm", vm)))
    }
}

impl Section {
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }
}

type Table<'a> = DeTable<'a>;

/// Reads a plane; what cannot be understood is left out and told of.
pub(super) fn parse(text: &str) -> (Document, Vec<Problem>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    // One slip makes many errors; what follows it may mean anything.
    let mut problems: Vec<Problem> = errors
        .first()
        .map(|error| Problem::new(error.span().map(|span| span.start), error.message()))
        .into_iter()
        .collect();
    let mut document = Document::default();
    if !problems.is_empty() {
        return (document, problems);
    }
    for (key, value) in table.get_ref() {
        let at = key.span().start;
        let name: &str = key.get_ref();
        let Some(inner) = value.get_ref().as_table() else {
            problems.push(no_table(name, at));
            continue;
        };
        match name {
            "plane" => {
                document.plane = entries(inner, &mut problems);
                document.has_plane = true;
            }
            "defaults" => document.defaults = sections(name, inner, &mut problems),
            "link" => document.links = sections(name, inner, &mut problems),
            "vm" => document.vms = sections(name, inner, &mut problems),
            _ => problems.push(no_table(name, at)),
        }
    }
    for (what, list) in [("links", &mut document.links), ("vms", &mut document.vms)] {
        if list.len() > LINKS_MAX {
            let many = list.split_off(LINKS_MAX);
            let message = format!("more than {LINKS_MAX} {what}");
            problems.push(Problem::new(many.first().map(|it| it.at), message));
        }
    }
    names(&document, &mut problems);
    (document, problems)
}

/// Links and machines are told apart by their names.
fn names(document: &Document, problems: &mut Vec<Problem>) {
    for (kind, section) in document.sections() {
        if !is_name(&section.name) {
            let message = format!(
                "a {kind} is not called {:?}: 1 to {NAME_MAX} letters, digits, `-`, `_` and `.`, \
                 the first a letter or a digit",
                section.name
            );
            problems.push(Problem::new(Some(section.at), message));
        }
    }
    for vm in &document.vms {
        if document.links.iter().any(|link| link.name == vm.name) {
            let message = format!("{} is the name of a link already", vm.name);
            problems.push(Problem::new(Some(vm.at), message));
        }
    }
}

fn no_table(name: &str, at: usize) -> Problem {
    let message = format!("there is no `{name}` here");
    Problem::new(Some(at), message).hint("[plane], [defaults.COMMAND], [link.NAME] or [vm.NAME]")
}

fn is_name(name: &str) -> bool {
    let of = |it: char| it.is_ascii_alphanumeric() || matches!(it, '-' | '_' | '.');
    name.starts_with(|it: char| it.is_ascii_alphanumeric())
        && name.len() <= NAME_MAX
        && name.chars().all(of)
}

fn sections(kind: &str, table: &Table<'_>, problems: &mut Vec<Problem>) -> Vec<Section> {
    let mut sections = Vec::new();
    for (key, value) in table {
        let (name, at) = (key.get_ref().to_string(), key.span().start);
        match value.get_ref().as_table() {
            Some(inner) => sections.push(Section {
                name,
                at,
                entries: entries(inner, problems),
            }),
            None => {
                let message = format!("`{name}` is no table");
                problems.push(Problem::new(Some(at), message).hint(format!("[{kind}.{name}]")));
            }
        }
    }
    sections.sort_by_key(|section| section.at);
    sections
}

fn entries(table: &Table<'_>, problems: &mut Vec<Problem>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (key, value) in table {
        match of(value) {
            Ok(value) => entries.push(Entry {
                key: key.get_ref().to_string(),
                at: key.span().start,
                value,
            }),
            Err(what) => {
                let message = format!("`{}` is {what}", key.get_ref());
                let hint = "text, a number, true or false, or a list of texts and numbers";
                problems.push(Problem::new(Some(value.span().start), message).hint(hint));
            }
        }
    }
    entries.sort_by_key(|entry| entry.at);
    entries
}

fn of(value: &Spanned<DeValue<'_>>) -> Result<Value, &'static str> {
    match value.get_ref() {
        DeValue::Boolean(flag) => Ok(Value::Flag(*flag)),
        DeValue::Array(list) => {
            let texts: Result<_, _> = list.iter().map(text).collect();
            Ok(Value::List(texts?))
        }
        _ => Ok(Value::Text(text(value)?)),
    }
}

fn text(value: &Spanned<DeValue<'_>>) -> Result<Text, &'static str> {
    let text = match value.get_ref() {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => {
            let value = i128::from_str_radix(number.as_str(), number.radix());
            value.map_err(|_| "too large a number")?.to_string()
        }
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(_) => return Err("a list with true or false in it"),
        DeValue::Array(_) => return Err("a list of lists"),
        DeValue::Datetime(_) => return Err("a date"),
        DeValue::Table(_) => return Err("a table"),
    };
    let at = value.span().start;
    Ok(Text { text, at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn good(text: &str) -> Document {
        let (document, problems) = parse(text);
        assert!(problems.is_empty(), "{problems:?}");
        document
    }

    #[test]
    fn links_keep_their_order_and_places() {
        let text = "[link.z]\ncommand = \"blk\"\nqueues = 0x10\n\n[link.a]\nport = [\"x\", 2]\n\
            read-only = true\n[defaults.\"display serve\"]\nmode = \"a\"\n";
        let document = good(text);
        let names: Vec<_> = document.links.iter().map(|link| &link.name).collect();
        assert_eq!(names, ["z", "a"]);
        let entry = |link: usize, key| document.links[link].entry(key).unwrap();
        let queues = entry(0, "queues");
        assert_eq!(&text[queues.at..queues.at + 6], "queues");
        let Value::Text(value) = &queues.value else {
            panic!("{queues:?}");
        };
        assert_eq!(
            (value.text.as_str(), &text[value.at..value.at + 4]),
            ("16", "0x10")
        );
        let Value::List(ports) = &entry(1, "port").value else {
            panic!("no list");
        };
        assert_eq!((ports[0].text.as_str(), ports[1].text.as_str()), ("x", "2"));
        assert_eq!(entry(1, "read-only").value, Value::Flag(true));
        assert_eq!(document.defaults[0].name, "display serve");
    }

    #[test]
    fn what_is_no_plane_is_told_with_its_place() {
        for (text, at, word) in [
            ("[link.a\n", 7, "unclosed"),
            ("x = 1\n", 0, "no `x` here"),
            ("\n[links.a]\n", 2, "no `links` here"),
            ("[link]\na = 1\n", 7, "`a` is no table"),
            ("[link.a]\nx = 1979-05-27\n", 13, "a date"),
            ("[link.a]\nx = { y = 1 }\n", 13, "a table"),
            ("[link.a]\nx = [[1]]\n", 13, "a list of lists"),
            ("[link.a]\nx = [true]\n", 13, "true or false"),
            ("[link.\"a/b\"]\n", 6, "not called"),
            ("[link.\"\"]\n", 6, "not called"),
            ("[link.\".a\"]\n", 6, "not called"),
            ("[link.a]\nx = 1\nx = 2\n", 15, "duplicate"),
        ] {
            let (_, problems) = parse(text);
            let [problem, ..] = &problems[..] else {
                panic!("{text} is a plane");
            };
            assert!(problem.message.contains(word), "{text}: {problem:?}");
            assert_eq!(problem.at, Some(at), "{text}: {problem:?}");
        }
    }
}

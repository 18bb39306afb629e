//! What can stand in a plane. The options of a link are those of its command, taken from
//! the command line's own definition: each is defined once.

use std::ffi::OsString;
use std::sync::LazyLock;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::cli;

/// The commands that serve a link until a signal ends them, by their words.
pub(crate) const COMMANDS: &[&str] = &[
    "blk",
    "net",
    "gpu",
    "display serve",
    "vdpa serve",
    "fcopy host",
    "fcopy guest",
    "ic host",
    "ic guest",
    "smbdirect listen",
    "smb gateway",
    "smb serve",
];

/// The words of the command that runs a virtual machine.
const MACHINE: &str = "vm run";

/// Options that a plane has no use for: descriptors that are inherited, other files of
/// options, and what the supervisor decides.
const NOT_HERE: &[&str] = &[
    "fd",
    "print-capabilities",
    "json",
    "config",
    "help",
    "version",
    "verbose",
];

/// The key that says which command a link is.
pub(super) const COMMAND: &str = "command";

/// The options of a command, as keys.
pub(super) struct Schema {
    pub(super) words: &'static str,
    pub(super) keys: Vec<Key>,
}

/// An option of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Its long name; of an argument without one, the name of its value, in small letters.
    pub(super) name: String,
    /// What it is called among the parsed arguments.
    pub(super) id: String,
    /// How the parser of the command line shows it in what it says.
    pub(super) shown: String,
    pub(super) form: Form,
    /// Whether it stands behind the options.
    pub(super) positional: bool,
}

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// true or false.
    Flag,
    /// One value.
    Value,
    /// One or more values.
    List,
}

/// The command line, and what of it can stand in a plane.
pub(super) struct Grammar {
    root: Command,
    schemas: Vec<Schema>,
}

impl Grammar {
    /// Of the program.
    pub(super) fn get() -> &'static Self {
        static GRAMMAR: LazyLock<Grammar> = LazyLock::new(Grammar::new);
        &GRAMMAR
    }

    fn new() -> Self {
        let mut root = cli::command();
        root.build();
        let all = COMMANDS.iter().chain([&MACHINE]);
        let schemas = all.filter_map(|words| {
            let command = find(&root, words)?;
            let keys = command.get_arguments().filter_map(Key::of).collect();
            Some(Schema { words, keys })
        });
        let schemas = schemas.collect();
        Self { root, schemas }
    }

    /// Of a command that serves a link, by its words.
    pub(super) fn schema(&self, words: &str) -> Option<&Schema> {
        let mut schemas = self.schemas.iter().filter(|schema| !schema.is_machine());
        schemas.find(|schema| schema.words == words)
    }

    /// Of virtual machines.
    pub(super) fn machine(&self) -> Option<&Schema> {
        self.schemas.iter().find(|schema| schema.is_machine())
    }

    /// Of what `[defaults.NAME]` is for.
    pub(super) fn defaults(&self, name: &str) -> Option<&Schema> {
        let mut schemas = self.schemas.iter();
        schemas.find(|schema| schema.defaults() == name)
    }

    /// What the program makes of a command line, its own name included.
    pub(super) fn parse(&self, line: &[OsString]) -> Result<ArgMatches, clap::Error> {
        self.root.clone().try_get_matches_from(line)
    }
}

impl Schema {
    /// Whether it is that of virtual machines.
    pub(super) fn is_machine(&self) -> bool {
        self.words == MACHINE
    }

    /// The name of the defaults that are for it.
    pub(super) fn defaults(&self) -> &str {
        if self.is_machine() { "vm" } else { self.words }
    }

    pub(super) fn key(&self, name: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// The key that the parser of the command line means.
    pub(super) fn shown(&self, shown: &str) -> Option<&Key> {
        let named = |key: &&Key| {
            let plain = key.shown.trim_matches(['[', ']', '<', '>']);
            key.shown == shown
                || key.positional && plain == shown.trim_matches(['[', ']', '<', '>'])
        };
        self.keys.iter().find(named)
    }

    /// The names of keys that are much like this one.
    pub(super) fn like(&self, name: &str) -> Option<&str> {
        let names = self.keys.iter().map(|key| key.name.as_str());
        let near = names.map(|key| (distance(key, name), key));
        let (distance, key) = near.min()?;
        (distance <= 2 + name.len() / 6).then_some(key)
    }
}

impl Key {
    fn of(arg: &Arg) -> Option<Self> {
        let long = arg.get_long();
        if long.is_some_and(|name| NOT_HERE.contains(&name)) || arg.is_last_set() {
            return None;
        }
        let name = match long {
            Some(name) => name.to_owned(),
            None => arg.get_value_names()?.first()?.to_ascii_lowercase(),
        };
        let form = match arg.get_action() {
            ArgAction::SetTrue => Form::Flag,
            ArgAction::Append => Form::List,
            _ => Form::Value,
        };
        Some(Self {
            name,
            id: arg.get_id().to_string(),
            shown: arg.to_string(),
            form,
            positional: long.is_none(),
        })
    }
}

fn find<'a>(root: &'a Command, words: &str) -> Option<&'a Command> {
    let mut words = words.split(' ');
    words.try_fold(root, |command, word| command.find_subcommand(word))
}

/// In how many letters two names differ, moved ones included.
fn distance(one: &str, two: &str) -> usize {
    let two: Vec<char> = two.chars().collect();
    let mut row: Vec<usize> = (0..=two.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in two.iter().enumerate() {
            let change = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[two.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plane::settings::LINK_KEYS;

    /// Each command of the list is one, and no option hides a key of the plane's own.
    #[test]
    fn every_command_has_its_keys() {
        let grammar = Grammar::new();
        for words in COMMANDS {
            let schema = grammar.schema(words).expect(words);
            assert!(!schema.keys.is_empty(), "{words}");
            for key in &schema.keys {
                assert!(key.name != COMMAND, "{words}: {key:?}");
                assert!(!LINK_KEYS.contains(&key.name.as_str()), "{words}: {key:?}");
                assert_eq!(schema.shown(&key.shown), Some(key), "{words}");
            }
            for name in NOT_HERE {
                assert_eq!(schema.key(name), None, "{words}");
            }
        }
        assert!(grammar.schema("driver").is_none());
        assert!(grammar.schema("").is_none());
    }

    #[test]
    fn forms_are_those_of_the_command_line() {
        let grammar = Grammar::new();
        let form = |words, key| grammar.schema(words).unwrap().key(key).map(|key| key.form);
        assert_eq!(form("blk", "image"), Some(Form::Value));
        assert_eq!(form("blk", "read-only"), Some(Form::Flag));
        assert_eq!(form("blk", "allow-backing"), Some(Form::List));
        assert_eq!(form("net", "port"), Some(Form::List));
        assert_eq!(form("vdpa serve", "device"), Some(Form::Value));
        assert_eq!(form("ic host", "services"), Some(Form::List));
        // Arguments for another program are none of ours.
        assert_eq!(form("fcopy host", "command"), None);
    }

    #[test]
    fn a_slip_finds_what_was_meant() {
        let grammar = Grammar::new();
        let blk = grammar.schema("blk").unwrap();
        assert_eq!(blk.like("socket_path"), Some("socket-path"));
        assert_eq!(blk.like("quees"), Some("queues"));
        assert_eq!(blk.like("entirely-different"), None);
    }
}

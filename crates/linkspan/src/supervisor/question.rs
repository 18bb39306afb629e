//! What a supervisor can be asked over its control socket, and by its page.

use std::path::PathBuf;

use crate::control;

/// A question: `list`, `inspect`, `page`, or a verb and the name of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// How all links are.
    List,
    /// All that there is to see of them.
    Inspect,
    /// Where the page is.
    Page,
    /// The last messages of this link.
    Trace(String),
    /// Do this to this link.
    Change(Verb, String),
    /// Have this link go on in a new process, of this program if one is named.
    Upgrade(String, Option<PathBuf>),
}

/// What can be done to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Start,
    Stop,
    Drain,
    Restart,
}

impl Verb {
    const ALL: [Self; 4] = [Self::Start, Self::Stop, Self::Drain, Self::Restart];

    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Drain => "drain",
            Self::Restart => "restart",
        }
    }
}

impl control::Question for Question {
    fn line(&self) -> String {
        match self {
            Self::List => "list".to_owned(),
            Self::Inspect => "inspect".to_owned(),
            Self::Page => "page".to_owned(),
            Self::Trace(name) => format!("trace {name}"),
            Self::Change(verb, name) => format!("{} {name}", verb.name()),
            Self::Upgrade(name, None) => format!("upgrade {name}"),
            Self::Upgrade(name, Some(program)) => format!("upgrade {name} {}", program.display()),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let Some((word, name)) = line.split_once(' ') else {
            return match line {
                "list" => Some(Self::List),
                "inspect" => Some(Self::Inspect),
                "page" => Some(Self::Page),
                _ => None,
            };
        };
        if word == "trace" {
            return Some(Self::Trace(name.to_owned()));
        }
        if word == "upgrade" {
            // A name has no space, and a path may.
            let (name, program) = match name.split_once(' ') {
                Some((name, program)) => (name, Some(PathBuf::from(program))),
                None => (name, None),
            };
            return Some(Self::Upgrade(name.to_owned(), program));
        }
        let verb = Verb::ALL.into_iter().find(|verb| verb.name() == word)?;
        Some(Self::Change(verb, name.to_owned()))
    }

    fn is_slow(&self) -> bool {
        matches!(self, Self::Upgrade(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Question as _;

    #[test]
    fn questions_are_lines() {
        let mut all = vec![
            Question::List,
            Question::Inspect,
            Question::Page,
            Question::Trace("disk-a".to_owned()),
            Question::Upgrade("disk-a".to_owned(), None),
            Question::Upgrade("disk-a".to_owned(), Some("/opt/a b/linkspan".into())),
        ];
        all.extend(Verb::ALL.map(|verb| Question::Change(verb, "disk-a".to_owned())));
        for question in all {
            assert_eq!(Question::parse(&question.line()), Some(question));
        }
        for line in [
            "",
            "list ",
            "lists",
            "inspect a",
            "trace",
            "start",
            "kill a",
            " start a",
        ] {
            assert_eq!(Question::parse(line), None, "{line:?}");
        }
    }
}

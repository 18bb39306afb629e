//! What can be logged of connections, each class by itself and while they run.

use std::fmt;
use std::str::FromStr;

/// A set of classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Classes(u8);

impl Classes {
    /// Connections that come, are ready, and end.
    pub const EVENT: Self = Self(1);
    /// What is sent.
    pub const SEND: Self = Self(2);
    /// What is received, and what becomes of it.
    pub const RECEIVE: Self = Self(4);
    /// Credits of both directions.
    pub const CREDIT: Self = Self(8);
    /// Signs of life.
    pub const KEEP_ALIVE: Self = Self(16);
    /// Registrations and RDMA transfers.
    pub const MEMORY: Self = Self(32);
    /// Nothing.
    pub const NONE: Self = Self(0);

    /// All of them, with their names.
    pub const NAMES: [(&'static str, Self); 6] = [
        ("event", Self::EVENT),
        ("send", Self::SEND),
        ("receive", Self::RECEIVE),
        ("credit", Self::CREDIT),
        ("keep-alive", Self::KEEP_ALIVE),
        ("memory", Self::MEMORY),
    ];

    /// Whether these are among them.
    #[must_use]
    pub fn contains(self, classes: Self) -> bool {
        self.0 & classes.0 == classes.0
    }

    /// The names of those that are in it.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let names = Self::NAMES.into_iter();
        let within = names.filter(move |(_, class)| self.contains(*class));
        within.map(|(name, _)| name)
    }
}

/// What is no class.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no class: there are event, send, receive, credit, keep-alive and memory, \
     with commas between them, or all, or none"
)]
pub struct NoClass(String);

impl FromStr for Classes {
    type Err = NoClass;

    fn from_str(text: &str) -> Result<Self, NoClass> {
        let class = |word: &str| match word {
            "all" => Ok(Self::NAMES.iter().fold(0, |all, (_, class)| all | class.0)),
            "none" => Ok(0),
            _ => {
                let found = Self::NAMES.iter().find(|(name, _)| *name == word);
                found
                    .map(|(_, class)| class.0)
                    .ok_or_else(|| NoClass(word.to_owned()))
            }
        };
        let bits: Result<Vec<u8>, NoClass> = text.split(',').map(class).collect();
        Ok(Self(bits?.into_iter().fold(0, |all, bits| all | bits)))
    }
}

impl fmt::Display for Classes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.names().collect();
        match names[..] {
            [] => f.write_str("none"),
            _ => f.write_str(&names.join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_as_they_are_written() {
        for bits in 0..64 {
            let classes = Classes(bits);
            assert_eq!(classes.to_string().parse(), Ok(classes));
        }
        assert_eq!("all".parse(), Ok(Classes(63)));
        assert_eq!("send,none".parse(), Ok(Classes::SEND));
        let wrong = "send,sent".parse::<Classes>().unwrap_err();
        assert!(
            wrong.to_string().starts_with("\"sent\" is no class"),
            "{wrong}"
        );
    }
}

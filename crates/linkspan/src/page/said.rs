//! What is said at a page, beside that it has seen a message.

use crate::control::Question as _;
use crate::supervisor::{Question, Verb};

/// One message of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// `seen`: it has shown a message.
    Seen,
    /// `open HEAD LINK`: this WebSocket is for that screen of this link.
    Open(u8, String),
    /// A verb and a link.
    Change(Verb, String),
}

impl Said {
    /// What this message says; `None` where no page of ours says it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text == "seen" {
            return Some(Self::Seen);
        }
        if text.contains(char::is_control) {
            return None;
        }
        if let Some(screen) = text.strip_prefix("open ") {
            let (head, link) = screen.split_once(' ')?;
            let digits = head.bytes().all(|byte| byte.is_ascii_digit());
            let head = head.parse().ok().filter(|head| digits && *head < 16)?;
            return Some(Self::Open(head, link.to_owned()));
        }
        match Question::parse(text) {
            Some(Question::Change(verb, link)) => Some(Self::Change(verb, link)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard_and_what_no_page_says_is_nothing() {
        let link = || "disk-a".to_owned();
        for (text, said) in [
            ("seen", Said::Seen),
            ("open 0 disk-a", Said::Open(0, link())),
            ("open 15 disk-a", Said::Open(15, link())),
            ("restart disk-a", Said::Change(Verb::Restart, link())),
            ("drain disk-a", Said::Change(Verb::Drain, link())),
        ] {
            assert_eq!(Said::parse(text), Some(said));
        }
        for text in [
            "",
            "seen ",
            "open",
            "open 0",
            "open +1 a",
            "open 16 a",
            "open -1 a",
            "list",
            "inspect",
            "trace a",
            "kill a",
            "stop a\nstop b",
            "stop\u{0}a",
            "stop",
        ] {
            assert_eq!(Said::parse(text), None, "{text:?}");
        }
    }
}

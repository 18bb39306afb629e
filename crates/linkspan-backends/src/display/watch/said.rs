//! What a page says: a line for each thing that its user does, and for each message that
//! it has seen.

use std::fmt;

/// The longest name of a place on a keyboard; those of browsers are half as long.
const CODE_MAX: usize = 32;

/// One message of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// `seen`: it has drawn a message.
    Seen,
    /// `down CODE`, `up CODE`: a key, by its place (the DOM's `KeyboardEvent.code`).
    Key {
        /// Down, or up.
        down: bool,
        /// Its place: letters and digits.
        code: &'a str,
    },
    /// `at X Y BUTTONS`: the pointer is at a pixel, and these buttons are down, a bit for
    /// each as in RFB.
    Pointer {
        /// Its pixel, which the picture may not have any more.
        place: (u16, u16),
        /// What is down.
        buttons: u16,
    },
    /// `free`: nobody is at the page, so nothing is down.
    Free,
}

impl<'a> Said<'a> {
    /// What this message says; `None` where no page of ours says it.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut words = text.split(' ');
        let said = match words.next()? {
            "seen" => Self::Seen,
            "free" => Self::Free,
            kind @ ("down" | "up") => Self::Key {
                down: kind == "down",
                code: words.next().filter(|code| is_code(code))?,
            },
            "at" => Self::Pointer {
                place: (number(words.next()?)?, number(words.next()?)?),
                buttons: number(words.next()?)?,
            },
            _ => return None,
        };
        words.next().is_none().then_some(said)
    }
}

fn is_code(word: &str) -> bool {
    let is_short = (1..=CODE_MAX).contains(&word.len());
    is_short && word.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Digits alone; what parses numbers takes a sign too.
fn number(word: &str) -> Option<u16> {
    let digits = word.bytes().all(|byte| byte.is_ascii_digit());
    word.parse().ok().filter(|_| digits)
}

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seen => f.write_str("seen"),
            Self::Key { down, code } => write!(f, "{} {code}", if *down { "down" } else { "up" }),
            Self::Pointer {
                place: (x, y),
                buttons,
            } => write!(f, "at {x} {y} {buttons}"),
            Self::Free => f.write_str("free"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let longest = "x".repeat(CODE_MAX);
        for said in [
            Said::Seen,
            Said::Free,
            Said::Key {
                down: true,
                code: "KeyA",
            },
            Said::Key {
                down: false,
                code: &longest,
            },
            Said::Pointer {
                place: (0, u16::MAX),
                buttons: 511,
            },
        ] {
            assert_eq!(Said::parse(&said.to_string()), Some(said));
        }
    }

    #[test]
    fn what_no_page_says_is_nothing() {
        for text in [
            "",
            " ",
            "seen ",
            " seen",
            "Seen",
            "seen seen",
            "free 1",
            "down",
            "down ",
            "down KeyA ",
            "down KeyA KeyB",
            "down Key\u{e9}",
            "down \"}",
            "at",
            "at 1 2",
            "at 1 2 3 4",
            "at +1 2 3",
            "at -1 2 3",
            "at 65536 2 3",
            "at 1  2 3",
            "at 1 2 0x3",
            "at 1.5 2 3",
        ] {
            assert_eq!(Said::parse(text), None, "{text:?}");
        }
        let long = format!("up {}", "x".repeat(CODE_MAX + 1));
        assert_eq!(Said::parse(&long), None);
    }
}

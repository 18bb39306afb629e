//! What comes to a supervisor from outside, as a function of bytes: for fuzzers and for the
//! tests that replay what they found.
//!
//! Whoever writes a plane is trusted to say what runs, not to write it without a slip; who
//! may connect to a control socket, and a link whose process is under somebody else's hand,
//! are not trusted at all.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::control::Question as _;
use crate::page::board::Board;
use crate::page::feed::Feed;
use crate::page::said::Said;
use crate::plane::Plane;
use crate::supervisor::{Line, Question};
use crate::tether;
use crate::{inspect, k8s};

/// Bytes of an input that are looked at.
const INPUT_MAX: usize = 1 << 16;

/// Takes an input, whose first byte says what it is, and tells what came of it:
///
/// 0: a plane; 1: a question at the control socket; 2: what a link answers, of which the next
/// byte says in how long pieces it comes; 4: what the page's process says to its supervisor;
/// 5: what is said at the page; 6: a kubelet's call, of which the next byte is the method;
/// anything else: what a supervisor answers who is asked what there is to see.
///
/// # Panics
/// Upon a fault of ours.
pub fn take(input: &[u8]) -> &'static str {
    let Some((&kind, rest)) = input.split_first() else {
        return "nothing";
    };
    let rest = &rest[..rest.len().min(INPUT_MAX)];
    match kind {
        0 => plane(&String::from_utf8_lossy(rest)),
        1 => question(&String::from_utf8_lossy(rest)),
        2 => answers(rest),
        4 => page(rest),
        6 => match rest.split_first() {
            Some((&method, body)) => k8s::take(method, body),
            None => "nothing",
        },
        5 => said(&String::from_utf8_lossy(rest)),
        _ => tree(&String::from_utf8_lossy(rest)),
    }
}

/// Either it is right, and then it is right as it is printed, or something is wrong that has
/// a place within it.
fn plane(text: &str) -> &'static str {
    let of = |text: &str| Plane::of("p.toml".into(), text.to_owned(), "/nowhere".into());
    let plane = of(text);
    assert!(plane.problems_are_within());
    if !plane.makes_sense() {
        return "wrong";
    }
    assert!(of(&plane.merged()).makes_sense(), "{}", plane.merged());
    "plane"
}

fn question(line: &str) -> &'static str {
    match Question::parse(line) {
        Some(question) => {
            assert_eq!(Question::parse(&question.line()), Some(question));
            "question"
        }
        None => "no question",
    }
}

fn answers(bytes: &[u8]) -> &'static str {
    let Some((&piece, bytes)) = bytes.split_first() else {
        return "nothing";
    };
    // Without a descriptor there is nothing to try.
    let Ok((mut line, theirs)) = Line::new() else {
        return "nothing";
    };
    let mut link = UnixStream::from(theirs);
    line.ask(tether::Question::Inspect);
    line.ask(tether::Question::Beat);
    let mut count = 0;
    for piece in bytes.chunks(usize::from(piece).max(1)) {
        if link.write_all(piece).is_err() {
            break;
        }
        match line.hear() {
            Ok(heard) => count += heard.len(),
            Err(_) => return "refused",
        }
    }
    assert!(count <= 2);
    if count == 0 { "waits" } else { "answered" }
}

fn page(bytes: &[u8]) -> &'static str {
    // Without a descriptor there is nothing to try.
    let Ok((mut feed, theirs)) = Feed::new("token") else {
        return "nothing";
    };
    let mut page = UnixStream::from(theirs);
    for piece in bytes.chunks(1 << 10) {
        if page.write_all(piece).is_err() {
            break;
        }
        if feed.hear().is_err() {
            return "refused";
        }
    }
    "heard"
}

fn said(text: &str) -> &'static str {
    match Said::parse(text) {
        Some(Said::Seen) => "seen",
        Some(Said::Open(head, link)) => {
            assert!(head < 16 && !link.contains(char::is_control));
            "open"
        }
        Some(Said::Change(verb, link)) => {
            // It is a line of its own for the supervisor.
            let question = Question::Change(verb, link);
            assert_eq!(Question::parse(&question.line()), Some(question));
            assert!(!text.contains('\n'));
            "change"
        }
        None => "nonsense",
    }
}

fn tree(answer: &str) -> &'static str {
    let mut board = Board::default();
    board.look(answer, Instant::now());
    let told = board.told(true, None);
    assert!(serde_json::from_str::<serde_json::Value>(&told).is_ok());
    match inspect::told(answer) {
        Some(text) => {
            let control = |c: char| c.is_control() && c != '\n';
            assert!(!text.contains(control), "{text:?}");
            "tree"
        }
        None => "no tree",
    }
}

impl Plane {
    /// Whether each problem has a place in the text, or none.
    fn problems_are_within(&self) -> bool {
        let lines = self.lines();
        self.places().all(|line| (1..=lines).contains(&line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_told() {
        assert_eq!(take(b""), "nothing");
        assert_eq!(take(b"\x00x"), "wrong");
        assert_eq!(take(b"\x01list"), "question");
        assert_eq!(take(b"\x02\x01\n"), "answered");
        assert_eq!(take(b"\x03x"), "no tree");
        assert_eq!(take(b"\x04list\n"), "heard");
        assert_eq!(take(b"\x05seen"), "seen");
    }
}

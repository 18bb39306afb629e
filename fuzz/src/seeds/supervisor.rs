//! Seeds of `supervisor`.

use super::{Expected, Seed};

const DISK: &str = "[link.a]\ncommand=\"blk\"\nsocket-path=\"a\"\nimage=\"mem:1M\"\n";

/// Of a kind, with what follows.
fn of(kind: u8, rest: &str) -> Vec<u8> {
    [&[kind], rest.as_bytes()].concat()
}

/// A kubelet's call of a method with a message.
fn call(method: u8, message: &[u8]) -> Vec<u8> {
    let length = u8::try_from(message.len()).expect("a short one");
    [&[6, method, 0, 0, 0, 0, length], message].concat()
}

pub(super) fn seeds() -> Vec<Seed> {
    let vm = "[vm.v]\nlinks=[\"a\"]\n";
    let shown =
        r#"{"link":"a","state":"running","endpoints":[{"endpoint":"d","rings":[{"ring":0}]}]}"#;
    #[rustfmt::skip]
    let rows: [(&str, Vec<u8>, &str); 30] = [
        ("plane", of(0, DISK), "plane"),
        ("plane_with_a_machine", of(0, &(DISK.to_owned() + vm)), "plane"),
        ("plane_with_defaults", of(0, &(DISK.to_owned() + "[defaults.blk]\nqueues=2\n")), "plane"),
        ("plane_with_a_slip", of(0, &(DISK.to_owned() + "quees=1")), "wrong"),
        ("plane_without_a_link", of(0, "[plane]\ncontrol=\"c\""), "plane"),
        ("list", of(1, "list"), "question"),
        ("stop", of(1, "stop a"), "question"),
        ("trace", of(1, "trace a"), "question"),
        ("no_question", of(1, "kill a"), "no question"),
        ("answers", of(2, "\x03{\"a\":1}\n\n\n"), "answered"),
        ("half_an_answer", of(2, "\x01{\"a\":1}\n"), "waits"),
        ("more_than_was_asked", of(2, "\x02\n\n\n"), "refused"),
        ("tree", of(3, shown), "tree"),
        ("tree_of_nothing", of(3, ""), "tree"),
        ("no_tree", of(3, "{}"), "no tree"),
        ("page_asks", of(4, "at 127.0.0.1:80\ninspect\nrestart a\n"), "heard"),
        ("page_says_nonsense", of(4, "at home\n"), "refused"),
        ("page_says_too_much", of(4, &"list\n".repeat(200)), "refused"),
        ("seen_at_the_page", of(5, "seen"), "seen"),
        ("open_at_the_page", of(5, "open 0 a"), "open"),
        ("restart_at_the_page", of(5, "restart a"), "change"),
        ("kubelet_asks_for_options", call(0, b""), "answered"),
        ("kubelet_asks_what_is_best", call(1, b"\x0a\x08\x0a\x01b\x0a\x01a\x18\x01"), "answered"),
        ("kubelet_wants_two", call(2, b"\x0a\x06\x0a\x01a\x0a\x01b"), "answered"),
        ("kubelet_wants_one_twice", call(2, b"\x0a\x06\x0a\x01a\x0a\x01a"), "refused"),
        ("kubelet_wants_one_that_is_not_there", call(2, b"\x0a\x03\x0a\x01z"), "unknown"),
        ("kubelet_wants_one_that_does_not_serve", call(2, b"\x0a\x03\x0a\x01c"), "unhealthy"),
        ("kubelet_says_nonsense", call(2, b"zzzz"), "refused"),
        ("kubelet_starts_a_container", call(3, b"\x0a\x01a"), "answered"),
        ("two_lines_at_the_page", of(5, "stop a\nstop b"), "nonsense"),
    ];
    let seed = |(name, bytes, what): (&str, Vec<u8>, &'static str)| Seed {
        target: "supervisor",
        name: name.to_owned(),
        bytes,
        expected: Expected::Told(what),
    };
    rows.into_iter().map(seed).collect()
}

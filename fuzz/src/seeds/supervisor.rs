//! Seeds of `supervisor`.

use super::{Expected, Seed};

const DISK: &str = "[link.a]\ncommand=\"blk\"\nsocket-path=\"a\"\nimage=\"mem:1M\"\n";

/// Of a kind, with what follows.
fn of(kind: u8, rest: &str) -> Vec<u8> {
    [&[kind], rest.as_bytes()].concat()
}

pub(super) fn seeds() -> Vec<Seed> {
    let vm = "[vm.v]\nlinks=[\"a\"]\n";
    let shown =
        r#"{"link":"a","state":"running","endpoints":[{"endpoint":"d","rings":[{"ring":0}]}]}"#;
    #[rustfmt::skip]
    let rows: [(&str, Vec<u8>, &str); 22] = [
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

//! Seeds of `qmp_replies`.

use super::{Expected, Seed};

pub(super) fn seeds() -> Vec<Seed> {
    let seed = |name: &str, size: u8, said: &str, done, error: Option<&'static str>| Seed {
        target: "qmp_replies",
        name: name.into(),
        bytes: [&[size], said.as_bytes()].concat(),
        expected: Expected::Display {
            done,
            refused: usize::from(error.is_some()),
            error,
        },
    };
    let greeting =
        "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 11}}, \"capabilities\": [\"oob\"]}}\r\n";
    let done = "{\"return\": {}}\r\n";
    let refused =
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no \\u0007 handler\"}}\r\n";
    let event =
        "{\"timestamp\": {\"seconds\": 1}, \"event\": \"RESET\", \"data\": {\"guest\": true}}\r\n";
    let whole = [greeting, done, event, refused, done].concat();
    vec![
        seed("conversation", 255, &whole, 4, None),
        seed("conversation_by_bytes", 1, &whole, 4, None),
        seed("an_event_alone", 7, event, 0, None),
        seed("empty_lines", 1, "\n\r\n \n", 0, None),
        seed("half_a_line", 9, "{\"return\": {", 0, None),
        seed("an_error_without_words", 255, "{\"error\": 7}\n", 1, None),
        seed("no_json", 255, "RFB 003.008\n", 0, Some("no QMP")),
        seed(
            "an_answer_that_is_none",
            255,
            "{\"id\": 1}\n",
            0,
            Some("no answer"),
        ),
        seed("a_list", 255, "[1, 2]\n", 0, Some("no answer")),
        seed(
            "nested",
            255,
            &("[".repeat(300) + "\n"),
            0,
            Some("recursion"),
        ),
        seed(
            "no_text",
            255,
            "{\"return\": \"\u{1}\"}\n",
            0,
            Some("no QMP"),
        ),
        seed(
            "cut_in_a_number",
            2,
            "{\"return\": 1e}\n",
            0,
            Some("no QMP"),
        ),
    ]
}

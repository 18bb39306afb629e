//! Seeds of `web_input`.

use super::Seed;
use super::display::seed;
use crate::display::web::{END, FRAME, REPEAT, ROOM, SAY, SEND, SOCKET, TOKEN};

fn say(text: &str) -> Vec<u8> {
    let len = u8::try_from(text.len()).expect("it is short");
    [&[SAY, len], text.as_bytes()].concat()
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let len = u8::try_from(payload.len()).expect("it is short");
    [&[FRAME, first, len], payload].concat()
}

pub(super) fn seeds() -> Vec<Seed> {
    let of = |name: &str, parts: &[Vec<u8>], counts, error| {
        seed("web_input", name, parts.concat(), counts, error)
    };
    let get = |path: &str, more: &str| say(&format!("GET {path} HTTP/1.1\r\n{more}\r\n"));
    let host = "Host: localhost:80\r\n";
    let open = || vec![SOCKET, TOKEN];
    let upgrade = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: k\r\n";
    let socket = |more: &str| get("/screen", &format!("{host}{upgrade}{more}"));
    vec![
        of("page", &[get("/", host)], (0, 0), Some("200 OK")),
        of(
            "page_in_pieces",
            &[
                say("GET / HT"),
                say("TP/1.1\r\nHost: [::1]\r"),
                say("\n\r\n"),
            ],
            (0, 0),
            Some("200 OK"),
        ),
        of(
            "page_asked_twice",
            &[get("/", host), get("/", host), vec![END, 0]],
            (0, 1),
            Some("200 OK"),
        ),
        of(
            "page_without_room",
            &[
                vec![ROOM, 1],
                get("/", host),
                vec![ROOM, 1],
                vec![ROOM, 255],
            ],
            (0, 0),
            Some("200 OK"),
        ),
        of(
            "name",
            &[get("/", "Host: a.example\r\n")],
            (0, 0),
            Some("421"),
        ),
        of("hosts", &[get("/", &host.repeat(2))], (0, 0), Some("400")),
        of("query", &[get("/?a", host)], (0, 0), Some("404")),
        of(
            "origin_other",
            &[socket("Origin: http://a.example\r\n")],
            (0, 0),
            Some("403"),
        ),
        of("origin_none", &[socket("")], (0, 0), Some("403")),
        of("no_socket", &[get("/screen", host)], (0, 0), Some("426")),
        of(
            "post",
            &[say("POST / HTTP/1.1\r\n\r\n")],
            (0, 0),
            Some("405"),
        ),
        of("binary", &[vec![REPEAT, 0, 1]], (0, 0), Some("400")),
        of(
            "long_line",
            &[say("GET /"), vec![REPEAT, b'x', 128]],
            (0, 0),
            Some("431"),
        ),
        of(
            "long_head_slowly",
            &[say("GET / HTTP/1.1\r\nA:"), vec![REPEAT, b'x', 100]],
            (0, 0),
            None,
        ),
        of("socket", &[vec![SOCKET]], (0, 0), None),
        of(
            "socket_from_anywhere",
            &[socket("Origin: http://localhost:80\r\n")],
            (0, 0),
            None,
        ),
        of("token", &[open()], (1, 0), None),
        of(
            "token_wrong",
            &[vec![SOCKET], frame(0x81, b"x")],
            (0, 1),
            None,
        ),
        of(
            "token_as_bytes",
            &[vec![SOCKET], frame(0x82, b"x")],
            (0, 1),
            None,
        ),
        of(
            "seen",
            &[open(), vec![SEND, 9], frame(0x81, b"seen")],
            (2, 0),
            None,
        ),
        of(
            "keys",
            &[
                open(),
                frame(0x81, b"down KeyA"),
                frame(0x81, b"up KeyA"),
                frame(0x81, b"at 1279 799 5"),
                frame(0x81, b"free"),
            ],
            (5, 0),
            None,
        ),
        of(
            "no_keys",
            &[
                open(),
                frame(0x81, b"down \"}"),
                frame(0x81, b"at 65536 0 0"),
                frame(0x81, b"at 007 0 0"),
            ],
            (4, 0),
            None,
        ),
        of(
            "many_at_once",
            &[open(), frame(0x81, b"a").repeat(40)],
            (41, 0),
            None,
        ),
        of(
            "fragments",
            &[open(), frame(1, b"se"), frame(0x80, b"en")],
            (2, 0),
            None,
        ),
        of(
            "fragments_too_long",
            &[
                open(),
                frame(1, &[b'x'; 200]),
                frame(0, &[b'x'; 250]).repeat(4),
            ],
            (1, 1),
            None,
        ),
        of("no_text", &[open(), frame(0x81, &[0xFF])], (1, 1), None),
        of("ping", &[open(), frame(0x89, b"x")], (1, 1), None),
        of("pong", &[open(), frame(0x8A, b"x")], (1, 1), None),
        of("close", &[open(), frame(0x88, &[3, 232])], (1, 1), None),
        of("reserved", &[open(), frame(0xF1, b"x")], (1, 1), None),
        of("without_mask", &[open(), say("\u{1}\u{1}x")], (1, 1), None),
        of(
            "huge",
            &[
                open(),
                vec![
                    SAY, 14, 0x82, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0,
                ],
            ],
            (1, 1),
            None,
        ),
        of(
            "who_takes_nothing_is_not_heard",
            &[
                open(),
                vec![ROOM, 0, SEND, 200],
                frame(0x81, b"seen"),
                vec![ROOM, 255],
            ],
            (2, 0),
            None,
        ),
        of("end", &[open(), vec![END, 0]], (1, 1), None),
    ]
}

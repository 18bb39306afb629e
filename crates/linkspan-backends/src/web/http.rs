//! The little of HTTP/1.1 (RFC 9112) that pages with WebSockets need: what is asked for, and
//! whether whoever asks may.

use std::net::{Ipv4Addr, Ipv6Addr};

use httparse::{EMPTY_HEADER, Error, Header, Status};

use super::Site;

/// The longest head of a request, and the most fields in it.
pub const HEAD_MAX: usize = 8192;
const FIELDS_MAX: usize = 64;

/// Where an answer comes from and goes to: for this machine's pages alone, which load nothing
/// from elsewhere and are in nobody's frame.
const FIELDS: &str = "Connection: close\r\nCache-Control: no-store\r\n\
    X-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\nReferrer-Policy: no-referrer\r\n\
    Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Resource-Policy: same-origin\r\n\
    Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'\r\n";

/// What is asked for, by its number among pages or sockets of the site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A page.
    Page(usize),
    /// A WebSocket (RFC 6455, 4.2.1), with the key that the client made for it.
    Socket {
        /// Which.
        number: usize,
        /// `Sec-WebSocket-Key`.
        key: String,
    },
}

/// Why a request is refused. Its words are for whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no HTTP.
    #[error("this is no request of HTTP/1.1")]
    Malformed,
    /// Another method than GET.
    #[error("only GET is known here")]
    Method,
    /// There is nothing of this name. A query is part of it: nothing here has one.
    #[error("there is nothing here")]
    NotFound,
    /// Its head has no end.
    #[error(
        "the head of the request is longer than {HEAD_MAX} bytes, or has more than {FIELDS_MAX} fields"
    )]
    TooLong,
    /// It is for a name, which whoever owns it can lead here (DNS rebinding).
    #[error("this server is known by its address, or as localhost, and not by a name")]
    Host,
    /// A page of another server asks.
    #[error("a page of another server asks for this")]
    Origin,
    /// It would be a WebSocket, but is none of version 13.
    #[error("this is a WebSocket, and the request is not for one of version 13")]
    NoSocket,
}

impl Refusal {
    /// The status (RFC 9110, 15.5) and its usual words.
    fn status(self) -> (u16, &'static str) {
        match self {
            Self::Malformed => (400, "Bad Request"),
            Self::Method => (405, "Method Not Allowed"),
            Self::NotFound => (404, "Not Found"),
            Self::TooLong => (431, "Request Header Fields Too Large"),
            Self::Host => (421, "Misdirected Request"),
            Self::Origin => (403, "Forbidden"),
            Self::NoSocket => (426, "Upgrade Required"),
        }
    }

    /// The whole answer.
    #[must_use]
    pub fn answer(self) -> Vec<u8> {
        let (status, reason) = self.status();
        let more = match self {
            Self::Method => "Allow: GET\r\n",
            Self::NoSocket => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            _ => "",
        };
        let said = format!("{self}\n");
        let kind = "text/plain; charset=utf-8";
        answer(status, reason, more, kind, said.as_bytes())
    }
}

/// What the head of a request asks for, as soon as it is whole; `None` until then.
///
/// What comes behind it is not looked at.
///
/// # Errors
/// [`Refusal`].
pub fn parse(bytes: &[u8], site: &Site) -> Result<Option<Request>, Refusal> {
    let mut fields = [EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(&bytes[..bytes.len().min(HEAD_MAX)]) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
        Ok(Status::Partial) | Err(Error::TooManyHeaders) => return Err(Refusal::TooLong),
        Err(_) => return Err(Refusal::Malformed),
    }
    if request.version != Some(1) {
        return Err(Refusal::Malformed);
    }
    if request.method != Some("GET") {
        return Err(Refusal::Method);
    }
    let fields = Fields(request.headers);
    let host = fields.one("host")?.unwrap_or_default();
    if !is_address(host) {
        return Err(Refusal::Host);
    }
    let path = request.path.unwrap_or_default();
    if let Some(number) = site.pages.iter().position(|page| page.path == path) {
        return Ok(Some(Request::Page(number)));
    }
    let number = site.sockets.iter().position(|socket| *socket == path);
    let number = number.ok_or(Refusal::NotFound)?;
    let upgrade = fields.one("upgrade")?.unwrap_or_default();
    let version = fields.one("sec-websocket-version")?;
    let key = fields.one("sec-websocket-key")?;
    let is_socket = upgrade.eq_ignore_ascii_case("websocket") && version == Some("13");
    let key = key.filter(|_| is_socket).ok_or(Refusal::NoSocket)?;
    // Browsers always say whose page asks, and pages cannot say anything else.
    let origin = fields.one("origin")?.unwrap_or_default();
    let ours = ["http://", "https://"].iter().any(|scheme| {
        let rest = origin.strip_prefix(scheme);
        rest.is_some_and(|rest| rest.eq_ignore_ascii_case(host))
    });
    if !ours {
        return Err(Refusal::Origin);
    }
    let key = key.to_owned();
    Ok(Some(Request::Socket { number, key }))
}

/// Fields of a head.
struct Fields<'a>(&'a [Header<'a>]);

impl<'a> Fields<'a> {
    /// The value of a field that may be there once.
    fn one(&self, name: &str) -> Result<Option<&'a str>, Refusal> {
        let mut found = self
            .0
            .iter()
            .filter(|field| field.name.eq_ignore_ascii_case(name));
        let first = found.next();
        if found.next().is_some() {
            return Err(Refusal::Malformed);
        }
        let text = |field: &Header<'a>| str::from_utf8(field.value);
        let value = first.map(text).transpose();
        Ok(value.map_err(|_| Refusal::Malformed)?.map(str::trim))
    }
}

/// Whether a host is an address or `localhost`, with or without a port. Any port: who comes
/// through a tunnel has another one than we have.
fn is_address(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        // The colons of an address of version 6 are inside of brackets.
        Some((name, port)) if !port.ends_with(']') => (name, port),
        _ => (host, "0"),
    };
    if port.parse::<u16>().is_err() {
        return false;
    }
    let six = name.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    match six {
        Some(six) => six.parse::<Ipv6Addr>().is_ok(),
        None => name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok(),
    }
}

/// A page as an answer.
pub(super) fn page(kind: &str, body: &[u8]) -> Vec<u8> {
    answer(200, "OK", "", kind, body)
}

fn answer(status: u16, reason: &str, more: &str, kind: &str, body: &[u8]) -> Vec<u8> {
    let len = body.len();
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\n\
         {more}{FIELDS}\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// The answer that begins a WebSocket.
pub(super) fn upgrade(accept: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::Page;

    const SITE: Site = Site {
        pages: &[Page {
            path: "/",
            kind: "text/html",
            body: b"a page",
        }],
        sockets: &["/screen"],
    };

    const SOCKET: &str = "GET /screen HTTP/1.1\r\nHost: localhost:80\r\nUpgrade: WebSocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: k\r\nOrigin: http://localhost:80\r\n\r\n";

    fn ask(text: &str) -> Result<Request, Refusal> {
        Ok(parse(text.as_bytes(), &SITE)?.expect("it is whole"))
    }

    #[test]
    fn pages_are_for_addresses_and_sockets_for_our_own_pages() {
        let page = |host: &str| ask(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"));
        for host in [
            "127.0.0.1:80",
            "localhost",
            "LOCALHOST:1",
            "[::1]:8080",
            "[::1]",
            "10.0.0.2",
        ] {
            assert_eq!(page(host), Ok(Request::Page(0)), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:80",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:x",
            "127.0.0.1:99999",
            "[::1",
            "::1",
            "",
        ] {
            assert_eq!(page(host), Err(Refusal::Host), "{host}");
        }
        let (number, key) = (0, "k".into());
        assert_eq!(ask(SOCKET), Ok(Request::Socket { number, key }));
    }

    #[test]
    fn each_thing_that_is_wrong_is_refused_by_its_name() {
        for (from, to, refusal) in [
            ("Host: localhost:80", "Host: evil.example", Refusal::Host),
            ("Host: localhost:80\r\n", "", Refusal::Host),
            (
                "Host: localhost:80",
                "Host: localhost:80\r\nHost: localhost:80",
                Refusal::Malformed,
            ),
            (
                "http://localhost:80",
                "http://evil.example",
                Refusal::Origin,
            ),
            (
                "http://localhost:80",
                "http://localhost:81",
                Refusal::Origin,
            ),
            ("http://localhost:80", "null", Refusal::Origin),
            ("Origin: http://localhost:80\r\n", "", Refusal::Origin),
            ("WebSocket\r\n", "h2c\r\n", Refusal::NoSocket),
            ("Version: 13", "Version: 8", Refusal::NoSocket),
            ("/screen", "/screens", Refusal::NotFound),
            ("/screen", "/screen?token=1", Refusal::NotFound),
            ("/screen", "http://localhost:80/screen", Refusal::NotFound),
            ("GET", "POST", Refusal::Method),
            ("HTTP/1.1", "HTTP/1.0", Refusal::Malformed),
            ("HTTP/1.1", "HTTP/2", Refusal::Malformed),
            ("Host: ", "Host : ", Refusal::Malformed),
            ("Upgrade: ", " Upgrade: ", Refusal::Malformed),
        ] {
            let text = SOCKET.replacen(from, to, 1);
            assert_eq!(ask(&text), Err(refusal), "{text}");
            let answer = String::from_utf8(refusal.answer()).unwrap();
            assert!(
                answer.ends_with(&format!("\r\n\r\n{refusal}\n")),
                "{answer}"
            );
        }
    }

    #[test]
    fn a_head_is_whole_at_its_end_and_has_a_limit() {
        for end in 0..SOCKET.len() {
            assert_eq!(parse(&SOCKET.as_bytes()[..end], &SITE), Ok(None), "{end}");
        }
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(HEAD_MAX));
        assert_eq!(parse(long.as_bytes(), &SITE), Err(Refusal::TooLong));
        let many = "a: b\r\n".repeat(FIELDS_MAX + 1);
        let many = format!("GET / HTTP/1.1\r\n{many}\r\n");
        assert_eq!(ask(&many), Err(Refusal::TooLong));
    }
}

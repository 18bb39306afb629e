//! Clients that keep to no rule, and one that does.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use linkspan_testkit::census::settled;
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tungstenite::handshake::client::generate_key;
use tungstenite::http::Request;
use tungstenite::{Message, WebSocket};

use crate::Host;

/// Without a browser.
struct Client(WebSocket<TcpStream>);

impl Client {
    fn open(host: &Host, path: &str, origin: &str) -> Option<Self> {
        let (address, _) = host.parts();
        let stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(linkspan_testkit::PATIENCE))
            .unwrap();
        let request = Request::builder()
            .uri(format!("ws://{address}{path}"))
            .header("Host", address)
            .header("Origin", origin)
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", generate_key())
            .body(())
            .unwrap();
        Some(Self(tungstenite::client(request, stream).ok()?.0))
    }

    /// One who knows the token.
    fn known(host: &Host, path: &str) -> Self {
        let (address, token) = host.parts();
        let mut client = Self::open(host, path, &format!("http://{address}")).unwrap();
        client.say(token);
        client
    }

    fn say(&mut self, text: &str) {
        self.0.send(Message::text(text)).unwrap();
    }

    /// The next message; the reason where it is the end.
    fn hear(&mut self) -> Result<Value, String> {
        match self.0.read() {
            Ok(Message::Text(text)) => Ok(serde_json::from_str(&text).unwrap()),
            Ok(Message::Close(Some(frame))) => Err(frame.reason.to_string()),
            other => Err(format!("{other:?}")),
        }
    }

    /// Shows what comes until something is true of it.
    #[track_caller]
    fn until(&mut self, is: impl Fn(&Value) -> bool) -> Value {
        loop {
            let heard = self.hear().unwrap();
            let beat = heard.as_object().is_some_and(serde_json::Map::is_empty);
            if !beat {
                self.say("seen");
            }
            if is(&heard) {
                return heard;
            }
        }
    }
}

fn link<'a>(told: &'a Value, name: &str) -> &'a Value {
    let links = told["links"].as_array().map_or(&[][..], Vec::as_slice);
    links
        .iter()
        .find(|it| it["name"] == name)
        .unwrap_or(&Value::Null)
}

#[test]
fn pages_of_others_and_names_of_others_get_nothing() {
    let host = Host::new();
    let (address, token) = host.parts();
    let ours = format!("http://{address}");
    // Pages of others and other names, with the token or without.
    for path in ["/links", "/screen"] {
        assert!(Client::open(&host, path, "http://evil.example").is_none());
        assert!(Client::open(&host, path, "null").is_none());
    }
    assert!(Client::open(&host, &format!("/links?token={token}"), &ours).is_none());
    let get = |path: &str, name: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {name}\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(get("/", "evil.example").starts_with("HTTP/1.1 421 "));
    for path in ["/", "/plane.js", "/plane.css", "/screen.js", "/screen.css"] {
        let answer = get(path, address);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer:.60}");
        assert!(answer.contains("Content-Security-Policy: default-src 'none'"));
        assert!(
            !answer.contains(token) && !answer.contains("style="),
            "{path}"
        );
    }
    host.end();
}

#[test]
fn who_breaks_the_rules_is_sent_away_and_changes_nothing() {
    let host = Host::new();
    let (address, _) = host.parts();
    let ours = format!("http://{address}");
    let mut watcher = Client::known(&host, "/links");
    let running = |told: &Value| link(told, "disk")["state"] == "running";
    let told = watcher.until(running);
    assert_eq!(told["changes"], true);
    // Orders of who has not said the token.
    let mut stranger = Client::open(&host, "/links", &ours).unwrap();
    stranger.say("stop disk");
    assert!(stranger.hear().unwrap_err().contains("token is wrong"));
    // Words that no page says, on either socket, and more than is taken.
    let long = format!("stop {}", "x".repeat(2000));
    let ours = "not what a page of ours says";
    for (path, words, reason) in [
        ("/links", "kill disk", ours),
        ("/links", "list", ours),
        ("/links", "stop disk\nstop lan", ours),
        ("/links", "open 0 screen", ours),
        ("/screen", "stop disk", ours),
        ("/screen", "seen", ours),
        ("/screen", "open 0 nobody", "has no screen"),
        ("/screen", "open 0 disk", "has no screen"),
        // More than is taken, which is not even read.
        ("/links", &long, ""),
    ] {
        let mut client = Client::known(&host, path);
        client.say(words);
        let said = std::iter::repeat_with(|| client.hear());
        let ended = said.take(20).find_map(Result::err).unwrap();
        assert!(ended.contains(reason), "{path} {words:.40}: {ended}");
    }
    // One that has shown more than it was told.
    let mut hasty = Client::known(&host, "/links");
    for _ in 0..9 {
        // It may be sent away already.
        let _ = hasty.0.send(Message::text("seen"));
    }
    while hasty.hear().is_ok() {}
    // One that never shows what it is told gets two messages, and no more.
    let mut slow = Client::known(&host, "/links");
    let heard: Vec<_> = (0..2).map(|_| slow.hear().unwrap()).collect();
    assert!(heard.iter().all(|it| it["links"].is_array()), "{heard:?}");
    for round in 0..3 {
        watcher.until(|told| told["round"].as_u64() > Some(round));
    }
    // What a link is called that there is not, is told to whoever asks.
    watcher.say("stop nobody");
    watcher.until(|told| told["refusal"] == "there is no link nobody");
    let told = watcher.until(running);
    assert_eq!(link(&told, "disk")["starts"], 1, "{told:#}");
    assert_eq!(link(&told, "lan")["state"], "running");
    watcher.say("stop disk");
    watcher.until(|told| link(told, "disk")["state"] == "stopped");
    watcher.say("start disk");
    let told = watcher.until(running);
    assert_eq!(link(&told, "disk")["starts"], 2, "{told:#}");
    host.end();
}

/// The process that talks to browsers may die as any link may: the supervisor has another.
#[test]
fn the_pages_process_comes_back_and_links_are_unharmed() {
    let host = Host::new();
    let disk = host.process("disk");
    let mut watcher = Client::known(&host, "/links");
    watcher.until(|told| link(told, "disk")["state"] == "running");
    kill_process(host.process("(page)"), Signal::KILL).unwrap();
    while watcher.hear().is_ok() {}
    // It is at another port, and its viewers are known by the same token.
    let again = || {
        let said = host.up.said();
        let lines = said
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        let pages = lines.filter(|line: &Value| line["event"] == "page");
        let urls: Vec<_> = pages
            .map(|it| it["url"].as_str().unwrap().to_owned())
            .collect();
        urls.len() == 2 && urls[1].ends_with(host.parts().1)
    };
    assert!((0..3).any(|_| settled(again)), "{}", host.up.said());
    assert_eq!(host.process("disk"), disk);
    // As the page has it restarted, so has the command.
    let mut command = std::process::Command::new(crate::PROGRAM);
    command.args(["link", "restart", "disk", "--control"]);
    let output = command.arg(host.at("control.sock")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let again = || {
        let disk = host.seen("disk");
        disk.is_some_and(|it| it["starts"] == 2 && it["state"] == "running")
    };
    assert!((0..3).any(|_| settled(again)), "{:?}", host.seen("disk"));
    host.end();
}

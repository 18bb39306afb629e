//! `linkspan trace`, latencies and metrics of links of every kind, each with a real peer.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use linkspan_testkit::census::settled;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

mod host;
mod programs;

use host::Host;
use programs::Program;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

impl Host {
    fn new(folder: TempDir, links: &str, options: &[&str]) -> Self {
        let plane = format!("[plane]\ncontrol = \"control.sock\"\n{links}");
        Self::start(folder, &plane, options)
    }

    /// All messages of a link that are kept.
    fn traced(&self, link: &str) -> String {
        let output = self.run(&["trace", link, "--once"]);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Has `act` done, again and again, while somebody watches, until all of this was said.
    #[track_caller]
    fn says(&self, link: &str, lines: &[&str], act: impl Fn()) {
        let mut text = String::new();
        let mut said = || {
            self.traced(link);
            act();
            text = self.traced(link);
            lines.iter().all(|line| text.contains(line))
        };
        let said = (0..6).any(|_| settled(&mut said));
        assert!(said, "{link}: {lines:#?}\n{text}");
    }
}

#[track_caller]
fn works(arguments: &[&str]) {
    let mut command = linkspan_testkit::program(PROGRAM);
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A PCI display over vfio-user, and a viewer that is its client.
#[test]
fn messages_of_vfio_user_are_traced() {
    let links = "[link.vga]\ncommand = \"display serve\"\nsocket-path = \"vga.sock\"\n\
        model = \"fixed\"\nmode = \"320x200\"\nmemory = \"1M\"\n";
    let host = Host::new(folder(), links, &[]);
    host.becomes("vga/display", Value::is_object);
    let device = format!("vfio-user:{}", host.at("vga.sock").display());
    let lines = [
        "display > VFIO_USER_VERSION: 0.",
        "display < VFIO_USER_VERSION reply: 0.",
        "display > LINKSPAN_QUERY_GFX_PLANE: type ",
        "display < LINKSPAN_QUERY_GFX_PLANE reply: 320 by 200",
    ];
    host.says("vga", &lines, || works(&["display", "show", &device]));
    host.end();
}

/// A listener, and a client that measures round trips.
#[test]
fn messages_of_smb_direct_are_traced_and_credits_shown() {
    let links = "[link.rdma]\ncommand = \"smbdirect listen\"\naddr = \"127.0.0.1:0\"\n";
    let host = Host::new(folder(), links, &[]);
    let address = host.becomes("rdma/smbdirect/address", Value::is_string);
    let address = address.as_str().unwrap();
    let lines = [
        "smbdirect > 1: Negotiate Request: versions 0x100 to 0x100, wants ",
        "smbdirect < 1: Negotiate Response: status 0x0, version 0x100, ",
        ": Data Transfer: ",
    ];
    host.says("rdma", &lines, || works(&["smbdirect", "ping", address]));
    host.becomes("rdma/smbdirect/traffic/messages", |it| {
        it.as_u64() > Some(0)
    });
    // One that stays shows its credits and registrations.
    let stays = Program::start(
        "smbdirect",
        ["ping", address, "--json", "--count", "1000000"],
    );
    let connections = host.becomes("rdma/smbdirect/connections", |it| {
        it.as_object().is_some_and(|all| !all.is_empty())
    });
    let (_, connection) = connections.as_object().unwrap().iter().next().unwrap();
    for key in ["send_credits", "receives_granted", "receive_credit_target"] {
        assert!(connection[key].is_u64(), "{connection:#}");
    }
    assert!(connection["registrations"]["registered"].is_u64());
    stays.signal(Signal::INT);
    stays.end();
    host.end();
}

/// A gateway in front of a server, and a client that comes by SMB Direct.
#[test]
fn messages_of_smb_are_traced_and_timed_at_a_gateway() {
    let folder = folder();
    let share = folder.path().join("share");
    fs::create_dir(&share).unwrap();
    fs::write(share.join("a"), vec![7; 300_000]).unwrap();
    let files = format!("files={}", share.display());
    let serve = ["serve", "--json", "--public", "--share", &files];
    let server = Program::start(
        "smb",
        [&serve[..], &["--listen-tcp", "127.0.0.1:0"]].concat(),
    );
    let mut address = String::new();
    assert!((0..3).any(|_| settled(|| {
        let said = server.said();
        let line = said
            .lines()
            .next()
            .and_then(|line| serde_json::from_str(line).ok());
        let line: Value = line.unwrap_or_default();
        address = line["address"].as_str().unwrap_or_default().to_owned();
        !address.is_empty()
    })));
    let links = format!(
        "[link.files]\ncommand = \"smb gateway\"\nlisten = \"127.0.0.1:0\"\nto = \"{address}\"\n"
    );
    let host = Host::new(folder, &links, &[]);
    let address = host.becomes("files/gateway/address", Value::is_string);
    let url = format!("smb://{}/files/a", address.as_str().unwrap());
    let target = host.at("copy");
    let get = [
        "smb",
        "get",
        "--transport",
        "rdma",
        &url,
        target.to_str().unwrap(),
    ];
    let lines = [
        "smb > 1: Negotiate 0: ",
        "smb < 1: Negotiate 0 response: SUCCESS, dialect 0x3",
        ": SessionSetup ",
        ": TreeConnect ",
        ": Create ",
        " bytes at 0 by channel ",
        " response: SUCCESS, 300000 bytes, 0 by RDMA",
        "smbdirect > 1: Negotiate Request: ",
        ": RDMA write: ",
    ];
    host.says("files", &lines, || {
        let _ = fs::remove_file(&target);
        works(&get);
    });
    assert_eq!(fs::read(&target).unwrap(), vec![7; 300_000]);
    let latency = host.becomes("files/gateway/latency", |it| it["count"].as_u64() > Some(5));
    assert!(latency["p50_ns"].as_u64() > Some(0), "{latency:#}");
    assert!(latency["p50_ns"].as_u64() <= latency["max_ns"].as_u64());
    host.end();
    server.signal(Signal::TERM);
    server.end();
}

/// Both ends of file copy and of the small services, as links of one plane.
#[test]
fn messages_of_vmbus_are_traced_and_timed() {
    let folder = folder();
    fs::create_dir(folder.path().join("in")).unwrap();
    fs::write(folder.path().join("a"), vec![5; 20_000]).unwrap();
    let links = "[link.copy]\ncommand = \"fcopy host\"\ncontrol = \"copy.sock\"\n\
        [link.guest]\ncommand = \"fcopy guest\"\nconnect = \"copy.sock\"\nroot = [\"in\"]\n\
        [link.small]\ncommand = \"ic host\"\ncontrol = \"ic.sock\"\ninterval = 1\n\
        [link.inside]\ncommand = \"ic guest\"\nconnect = \"ic.sock\"\n";
    // A path of the guest has no detours.
    let root = folder.path().canonicalize().unwrap().join("in");
    let links = links.replace("\"in\"", &format!("{root:?}"));
    let host = Host::new(folder, &links, &[]);
    host.becomes("copy/guest/phase", |phase| phase == "running");
    let (control, file) = (host.at("copy.sock"), host.at("a"));
    let send = || {
        let _ = fs::remove_file(root.join("a"));
        works(&[
            "fcopy",
            "send",
            "--control",
            control.to_str().unwrap(),
            "--to",
            root.to_str().unwrap(),
            file.to_str().unwrap(),
        ]);
    };
    let lines = [
        "guest < NEGOTIATE ",
        "guest > NEGOTIATE ",
        ": START of \"a\" to ",
        ": WRITE of 6144 bytes at 0",
        ": COMPLETE",
        " response: done, ",
    ];
    host.says("copy", &lines, send);
    let lines = ["host > NEGOTIATE ", ": WRITE of 6144 bytes at 6144"];
    host.says("guest", &lines, send);
    let latency = host.becomes("copy/guest/latency", |it| it["count"].as_u64() > Some(5));
    assert!(latency["p99_ns"].as_u64() > Some(0), "{latency:#}");
    let lines = ["heartbeat > NEGOTIATE ", "heartbeat < heartbeat "];
    host.says("small", &lines, || {});
    host.says("inside", &["heartbeat > heartbeat "], || {});
    host.becomes("small/heartbeat/phase", |phase| phase == "running");
    host.end();
}

/// One without messages says so; a disk that is timed shows how long its requests take; what
/// went wrong is in the list.
#[test]
fn what_there_is_not_is_said_and_what_there_is_shown() {
    let links = "[link.a]\ncommand = \"blk\"\nsocket-path = \"a.sock\"\nimage = \"mem:1M\"\n\
        queues = 2\nlatency = true\n\
        [link.lan]\ncommand = \"net\"\nport = [\"responder\", \"responder\"]\n";
    let host = Host::new(folder(), links, &["--metrics", "0"]);
    host.becomes("lan/responder", Value::is_object);
    let mut mute = host.run(&["trace", "lan", "--once"]);
    let is_mute = (0..3).any(|_| {
        settled(|| {
            mute = host.run(&["trace", "lan", "--once"]);
            mute.status.code() == Some(2)
        })
    });
    assert!(is_mute, "{mute:?}");
    let why = String::from_utf8_lossy(&mute.stderr).into_owned();
    assert!(
        why.contains("no messages") && why.contains("inspect lan"),
        "{why}"
    );
    host.becomes("a/disk", Value::is_object);
    let socket = host.at("a.sock");
    let socket = socket.to_str().unwrap();
    let bench = ["bench", "--seconds", "0.1"];
    works(&[&["driver", "blk", "--socket-path", socket][..], &bench].concat());
    let disk = host.becomes("a/disk", |disk| disk["latency"]["count"].as_u64() > Some(0));
    let queues = disk["latency_of_queues"].as_array().unwrap();
    let counts = queues.iter().map(|queue| queue["count"].as_u64().unwrap());
    assert_eq!(Some(counts.sum()), disk["latency"]["count"].as_u64());
    let names = [
        "linkspan_link_state{link=\"a\",state=\"running\"} 1\n",
        "linkspan_latency_seconds_count{link=\"a\",endpoint=\"disk\"} ",
        "linkspan_latency_seconds{link=\"a\",endpoint=\"disk\",quantile=\"0.99\"} ",
    ];
    // A link that is held up for two seconds is told without what it says.
    let mut text = String::new();
    let told = settled(|| {
        text = metrics(&host);
        names.iter().all(|name| text.contains(name))
    });
    assert!(told, "{names:#?}\n{text}");
    assert_exposition(&text);
    // What a peer broke is in the list of links.
    let mut peer = std::os::unix::net::UnixStream::connect(socket).unwrap();
    peer.write_all(&[0xff; 64]).unwrap();
    let _ = peer.read_to_end(&mut Vec::new());
    host.becomes("a/disk/last_error", Value::is_string);
    let mut list = String::new();
    let told = settled(|| {
        list = String::from_utf8(host.run(&["link", "list"]).stdout).unwrap();
        let line = list.lines().find(|line| line.starts_with("a "));
        line.is_some_and(|line| line.contains("disk: "))
    });
    assert!(told, "{list}");
    host.end();
}

/// Where the metrics are.
fn metrics_address(host: &Host) -> SocketAddr {
    host.up.await_error("metrics at http://");
    let said = host.up.complained();
    let (_, rest) = said.split_once("metrics at http://").unwrap();
    rest.split_once("/metrics").unwrap().0.parse().unwrap()
}

fn asked(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn metrics(host: &Host) -> String {
    let address = metrics_address(host);
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let answer = asked(address, &request);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains("Content-Type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(
        head.contains(&format!("Content-Length: {}", body.len())),
        "{head}"
    );
    body.to_owned()
}

/// Prometheus' text format, version 0.0.4: each metric is described once, before its samples,
/// which all have its name, labels in quotes, and a number; none is there twice.
#[track_caller]
fn assert_exposition(text: &str) {
    let mut described = std::collections::BTreeMap::new();
    let mut samples = std::collections::BTreeSet::new();
    let (mut helped, mut now) = (String::new(), String::new());
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped = help.split_once(' ').expect(line).0.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect(line);
            assert_eq!(name, helped);
            assert!(["counter", "gauge", "summary"].contains(&kind), "{line}");
            now = name.to_owned();
            assert!(described.insert(now.clone(), kind).is_none(), "{line}");
        } else {
            let (sample, value) = line.rsplit_once(' ').expect(line);
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(samples.insert(sample), "{line} is there twice");
            let (name, labels) = sample.split_once('{').expect(line);
            let suffix = name.strip_prefix(now.as_str()).expect(line);
            let is_part = described[&now] == "summary" && ["_sum", "_count"].contains(&suffix);
            assert!(suffix.is_empty() || is_part, "{line}");
            let labels = labels.strip_suffix('}').expect(line);
            for label in labels.split("\",") {
                let (key, value) = label.split_once("=\"").expect(line);
                assert!(
                    key.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                    "{line}"
                );
                assert!(!value.trim_end_matches('"').contains('\n'));
            }
        }
    }
    assert!(!samples.is_empty());
}

/// Strangers on this machine ask nonsense, or nothing, and are in nobody's way.
#[test]
fn who_asks_for_metrics_in_bad_faith_is_refused() {
    let links = "[link.lan]\ncommand = \"net\"\nport = [\"responder\", \"responder\"]\n";
    let host = Host::new(folder(), links, &["--metrics", "127.0.0.1:0"]);
    let address = metrics_address(&host);
    // With those who were answered below, and the last, as many as may ask at a time.
    let silent: Vec<_> = (0..3)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", "405"),
        ("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", "421"),
        ("\x01\x02\r\n\r\n", "400"),
    ] {
        let answer = asked(address, request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {answer}"
        );
    }
    assert_exposition(&metrics(&host));
    drop(silent);
    host.end();
    // Without a control socket there is nobody to ask.
    let folder = folder();
    let file = folder.path().join("p.toml");
    fs::write(&file, links).unwrap();
    let up = Program::start("up", [file.to_str().unwrap(), "--metrics", "0"]);
    let (status, _, errors) = up.end();
    assert_eq!(status, Some(2), "{errors}");
}

/// Ours: as many as may ask for metrics at a time asked the supervisor at once, and while a link
/// hung each of them took two seconds there, in which nobody was heard who would have mended it.
#[test]
fn who_asks_for_metrics_without_end_keeps_nobody_from_the_control_socket() {
    let disk = "command = \"blk\"\nimage = \"mem:1M\"\nwatchdog-seconds = 0\n";
    let links = format!(
        "[link.hangs]\nsocket-path = \"a.sock\"\n{disk}[link.b]\nsocket-path = \"b.sock\"\n{disk}"
    );
    let host = Host::new(folder(), &links, &["--metrics", "0"]);
    let address = metrics_address(&host);
    host.becomes("hangs/disk", Value::is_object);
    host.becomes("b/disk", Value::is_object);
    let pid = host.seen("hangs/pid").as_i64().unwrap();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let askers: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            stream
        })
        .collect();
    let stopped = host.run(&["link", "stop", "b"]);
    assert!(stopped.status.success(), "{stopped:?}");
    kill_process(pid, Signal::CONT).unwrap();
    for mut asker in askers {
        let mut answer = String::new();
        asker.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    host.end();
}

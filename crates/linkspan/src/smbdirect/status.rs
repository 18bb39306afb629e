//! `linkspan smbdirect status`: the connections of a listener, or of a `ping` or `bench`, that runs.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::anyhow;
use linkspan_backends::rdma::Host;
use linkspan_backends::smbdirect::{Classes, Ended, Endpoint, Happened, Service};
use linkspan_smbdirect::{Role, Status as Core};
use serde_json::{Value, json};

use super::control::{Question, ask};
use crate::exit::{Failure, Status};

/// Options of `status`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: log credits and signs of life of the listener from now on\n\n  \
        linkspan smbdirect status --control /run/smbd.sock --log credit,keep-alive"
)]
pub(super) struct Args {
    /// The socket of the program: what it was given as --control
    #[arg(long, value_name = "PATH")]
    control: PathBuf,

    /// Classes that it logs from now on: event, send, receive, credit,
    /// keep-alive, memory, with commas between them; or all, or none
    #[arg(long, value_name = "CLASSES")]
    log: Option<Classes>,

    /// As JSON, one object a line: the program, its connections, and, of a listener, the last
    /// ones that ended
    #[arg(long)]
    json: bool,
}

/// Asks and shows.
///
/// # Errors
/// With the status that the program is to end with.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let question = args.log.map_or(Question::Status, Question::Log);
    let text = ask(&args.control, question)?;
    let broken = |line: &str| {
        let error = anyhow!("the program said {line:?}");
        Failure::new(Status::PeerBroke, error)
    };
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).map_err(|_| broken(line))?;
        if value["kind"] == "error" {
            return Err(broken(line));
        }
        if args.json {
            println!("{line}");
        } else {
            print!("{}", show(&value));
        }
    }
    Ok(())
}

/// What a listener answers.
pub(super) fn lines<C: Host>(service: &Service<C>) -> String {
    let summary = service.summary();
    let mut text = String::new();
    let mut add = |value: Value| {
        let _ = writeln!(text, "{value}");
    };
    add(json!({
        "kind": "listener",
        "address": summary.address,
        "mode": summary.mode.name(),
        "connections": summary.connections,
        "half_open": summary.half_open,
        "turned_away": summary.turned_away,
        "unasked": summary.unasked,
        "ended": summary.ended,
        "receive_bytes": summary.receive_bytes,
        "receive_buffers": summary.receive_buffers,
        "short_of_share": summary.short_of_share,
        "memory_bytes": summary.memory_bytes,
        "log": summary.log.names().collect::<Vec<_>>(),
    }));
    for connection in service.connections() {
        let mut value = core(&connection.status);
        value["kind"] = "connection".into();
        value["connection"] = connection.number.into();
        value["peer"] = connection.peer.to_string().into();
        value["messages"] = connection.messages.into();
        value["bytes"] = connection.bytes.into();
        add(value);
    }
    for ended in service.ended() {
        add(gone(ended));
    }
    text
}

/// What was, of connections that are over.
#[derive(Debug, Default)]
pub(super) struct Past {
    messages: u64,
    bytes: u64,
    last_error: Option<String>,
}

impl Past {
    /// Takes note of what has happened.
    pub(super) fn take(&mut self, happened: &Happened) {
        if let Happened::Ended { ended, .. } = happened {
            self.messages += ended.messages;
            self.bytes += ended.bytes;
            if ended.is_fault() {
                self.last_error = Some(format!("{}: {}", ended.peer, ended.reason()));
            }
        }
    }
}

/// Connections that are shown one by one.
const SHOWN: usize = 256;

/// Connections by their numbers, with who each is; a part of them if there are very many.
pub(crate) fn each(connections: impl Iterator<Item = (u64, SocketAddr, Core)>) -> Value {
    let shown = connections.take(SHOWN).map(|(number, peer, status)| {
        let mut value = core(&status);
        value["peer"] = peer.to_string().into();
        (number.to_string(), value)
    });
    Value::Object(shown.collect())
}

/// The credits of all these connections together.
pub(crate) fn credits(connections: impl Iterator<Item = Core>) -> Value {
    let mut sums = [0_u64; 4];
    for it in connections {
        let these = [
            it.send_credits,
            it.send_credit_target,
            it.receives_granted,
            it.receive_credit_target,
        ];
        for (sum, number) in sums.iter_mut().zip(these) {
            *sum += u64::from(number);
        }
    }
    let [send_credits, send_wanted, granted, receives_wanted] = sums;
    json!({
        "send_credits": send_credits,
        "send_credits_wanted": send_wanted,
        "receives_granted": granted,
        "receives_wanted": receives_wanted,
    })
}

/// What there is to see of a listener in a plane.
pub(super) fn seen<C: Host>(service: &Service<C>, past: &Past) -> Value {
    let summary = service.summary();
    let (mut messages, mut bytes) = (past.messages, past.bytes);
    for connection in service.connections() {
        messages += connection.messages;
        bytes += connection.bytes;
    }
    let connections = service.connections();
    json!({
        "endpoint": "smbdirect",
        "address": summary.address,
        "last_error": past.last_error,
        "traffic": { "messages": messages, "bytes": bytes },
        "peers": summary.connections,
        "half_open": summary.half_open,
        "turned_away": summary.turned_away,
        "ended": summary.ended,
        "receive_buffers": { "bytes": summary.receive_bytes, "used": summary.receive_buffers },
        "exposed_memory": { "bytes": summary.memory_bytes },
        "credits": credits(service.connections().map(|it| it.status)),
        "connections": each(connections.map(|it| (it.number, it.peer, it.status))),
    })
}

/// What an initiator answers.
pub(super) fn initiator_lines<C: Host>(endpoint: &Endpoint<C>) -> String {
    let (bytes, buffers) = endpoint.buffers();
    let mut text = String::new();
    let mut add = |value: Value| {
        let _ = writeln!(text, "{value}");
    };
    add(json!({
        "kind": "initiator",
        "connections": endpoint.count(),
        "receive_bytes": bytes,
        "receive_buffers": buffers,
        "log": endpoint.classes().names().collect::<Vec<_>>(),
    }));
    for (_, number, peer, status) in endpoint.sessions() {
        let mut value = core(&status);
        value["kind"] = "connection".into();
        value["connection"] = number.into();
        value["peer"] = peer.to_string().into();
        add(value);
    }
    text
}

fn gone(ended: &Ended) -> Value {
    json!({
        "kind": "ended",
        "connection": ended.number,
        "peer": ended.peer.to_string(),
        "connected": ended.connected,
        "messages": ended.messages,
        "bytes": ended.bytes,
        "first_error": ended.reason(),
    })
}

/// All that there is to see of a connection.
pub(super) fn core(status: &Core) -> Value {
    let traffic = &status.traffic;
    let [ready, registered, invalidated, error, disabled] = status.registrations;
    json!({
        "role": match status.role {
            Role::Initiator => "initiator",
            Role::Listener => "listener",
        },
        "state": status.state.to_string(),
        "max_send_size": status.max_send_size,
        "max_receive_size": status.max_receive_size,
        "max_fragmented_send_size": status.max_fragmented_send_size,
        "max_fragmented_receive_size": status.max_fragmented_receive_size,
        "max_read_write_size": status.max_read_write_size,
        "send_credits": status.send_credits,
        "send_credit_target": status.send_credit_target,
        "receives_available": status.receives_available,
        "receives_granted": status.receives_granted,
        "receive_credit_target": status.receive_credit_target,
        "outbound_reads": status.outbound_reads,
        "waiting": status.waiting,
        "transfers": status.transfers,
        "works": status.works,
        "reassembly": {
            "messages": status.messages,
            "bytes": status.message_bytes,
            "kept_bytes": status.kept_bytes,
            "missing_bytes": status.missing_bytes,
            "held_buffers": status.held_buffers,
        },
        "registrations": {
            "ready": ready,
            "registered": registered,
            "invalidated": invalidated,
            "error": error,
            "disabled": disabled,
        },
        "awaits_sign_of_life": status.awaits_sign_of_life,
        "sends": traffic.sends,
        "empty_sends": traffic.empty_sends,
        "bytes_sent": traffic.bytes_sent,
        "receives": traffic.receives,
        "empty_receives": traffic.empty_receives,
        "bytes_received": traffic.bytes_received,
        "writes": traffic.writes,
        "reads": traffic.reads,
        "keepalives": traffic.keepalives,
        "refused": traffic.refused,
        "first_error": status.first_error.map(|error| error.to_string()),
    })
}

/// For people.
fn show(value: &Value) -> String {
    let text = |name: &str| match &value[name] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    match value["kind"].as_str() {
        Some("listener") => format!(
            "listening at {} ({}): {} connections, {} half open, {} turned away, {} ended; \
             {} bytes for messages, {} wait for their address's share, {} exposed; logs {}\n",
            text("address"),
            text("mode"),
            text("connections"),
            text("half_open"),
            text("turned_away"),
            text("ended"),
            text("receive_bytes"),
            text("short_of_share"),
            text("memory_bytes"),
            text("log"),
        ),
        Some("initiator") => format!(
            "{} connections; {} bytes for messages; logs {}\n",
            text("connections"),
            text("receive_bytes"),
            text("log"),
        ),
        Some("connection") => connection(value, &text),
        _ => format!(
            "{} {} ended after {} messages: {}\n",
            text("connection"),
            text("peer"),
            text("messages"),
            text("first_error"),
        ),
    }
}

fn connection(value: &Value, text: &dyn Fn(&str) -> String) -> String {
    let inner = |group: &str, name: &str| value[group][name].to_string();
    // A listener counts messages; an initiator has its own figures.
    let got = match &value["messages"] {
        Value::Null => String::new(),
        count => format!(": {count} messages, {} bytes", text("bytes")),
    };
    format!(
        "{} {} {}{got}\n  \
         sizes: send {}, receive {}, message {} out and {} in, RDMA {}\n  \
         credits: {} held of {} wanted; {} granted and {} more posted of {} wanted\n  \
         sent {} ({} empty), received {} ({} empty), {} keep-alives; {} wait\n  \
         reassembly: {} messages, {} bytes in {} buffers and {} kept, {} missing\n  \
         registrations: {} ready, {} registered, {} invalidated, {} in error, {} disabled; \
         first error: {}\n",
        text("connection"),
        text("peer"),
        text("state"),
        text("max_send_size"),
        text("max_receive_size"),
        text("max_fragmented_send_size"),
        text("max_fragmented_receive_size"),
        text("max_read_write_size"),
        text("send_credits"),
        text("send_credit_target"),
        text("receives_granted"),
        text("receives_available"),
        text("receive_credit_target"),
        text("sends"),
        text("empty_sends"),
        text("receives"),
        text("empty_receives"),
        text("keepalives"),
        text("waiting"),
        inner("reassembly", "messages"),
        inner("reassembly", "bytes"),
        inner("reassembly", "held_buffers"),
        inner("reassembly", "kept_bytes"),
        inner("reassembly", "missing_bytes"),
        inner("registrations", "ready"),
        inner("registrations", "registered"),
        inner("registrations", "invalidated"),
        inner("registrations", "error"),
        inner("registrations", "disabled"),
        text("first_error"),
    )
}

//! The tree as metrics, in the text format of Prometheus (version 0.0.4).

use std::fmt::Write as _;

use serde_json::Value;

/// A metric: its name, what it counts, and where it is found.
struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    from: From,
}

/// Where a metric is found in the tree.
#[derive(Clone, Copy)]
enum From {
    /// A number, or true and false, of a link.
    Link(&'static str),
    /// 1 for the state or the phase that it is in.
    State,
    /// A number of an endpoint, or of a group within.
    Endpoint(&'static str, &'static str),
    /// A number of each ring of an endpoint.
    Ring(&'static str),
    /// A number for each cause of an endpoint.
    Dropped,
    /// How long requests took: a summary.
    Latency,
}

const fn metric(name: &'static str, kind: &'static str, help: &'static str, from: From) -> Metric {
    Metric {
        name,
        kind,
        help,
        from,
    }
}

/// All metrics. Their names stay as they are.
const METRICS: &[Metric] = &[
    metric(
        "linkspan_link_state",
        "gauge",
        "1 for the state that a link is in",
        From::State,
    ),
    metric(
        "linkspan_link_answers",
        "gauge",
        "Whether the link's process answers",
        From::Link("answers"),
    ),
    metric(
        "linkspan_link_starts_total",
        "counter",
        "Starts of the link's process",
        From::Link("starts"),
    ),
    metric(
        "linkspan_endpoint_generation",
        "counter",
        "Peers that the endpoint has had",
        From::Endpoint("", "generation"),
    ),
    metric(
        "linkspan_disk_reads_total",
        "counter",
        "Reads",
        From::Endpoint("requests", "reads"),
    ),
    metric(
        "linkspan_disk_read_bytes_total",
        "counter",
        "Bytes read",
        From::Endpoint("requests", "read_bytes"),
    ),
    metric(
        "linkspan_disk_writes_total",
        "counter",
        "Writes",
        From::Endpoint("requests", "writes"),
    ),
    metric(
        "linkspan_disk_written_bytes_total",
        "counter",
        "Bytes written",
        From::Endpoint("requests", "written_bytes"),
    ),
    metric(
        "linkspan_disk_flushes_total",
        "counter",
        "Flushes",
        From::Endpoint("requests", "flushes"),
    ),
    metric(
        "linkspan_disk_errors_total",
        "counter",
        "Requests answered with an error",
        From::Endpoint("requests", "errors"),
    ),
    metric(
        "linkspan_port_received_frames_total",
        "counter",
        "Frames that came from a port",
        From::Endpoint("frames", "frames_in"),
    ),
    metric(
        "linkspan_port_received_bytes_total",
        "counter",
        "Bytes that came from a port",
        From::Endpoint("frames", "bytes_in"),
    ),
    metric(
        "linkspan_port_sent_frames_total",
        "counter",
        "Frames that went to a port",
        From::Endpoint("frames", "frames_out"),
    ),
    metric(
        "linkspan_port_sent_bytes_total",
        "counter",
        "Bytes that went to a port",
        From::Endpoint("frames", "bytes_out"),
    ),
    metric(
        "linkspan_port_dropped_frames_total",
        "counter",
        "Frames that were dropped, by cause",
        From::Dropped,
    ),
    metric(
        "linkspan_latency_seconds",
        "summary",
        "From a request to its answer",
        From::Latency,
    ),
    metric(
        "linkspan_peers",
        "gauge",
        "Connections of an endpoint that has many",
        From::Endpoint("", "peers"),
    ),
    metric(
        "linkspan_messages_total",
        "counter",
        "Messages of an endpoint that carries messages",
        From::Endpoint("traffic", "messages"),
    ),
    metric(
        "linkspan_message_bytes_total",
        "counter",
        "Bytes of such messages, of a gateway those at its server's end",
        From::Endpoint("traffic", "bytes"),
    ),
    metric(
        "linkspan_receive_buffer_bytes",
        "gauge",
        "Memory for messages that arrive by RDMA",
        From::Endpoint("receive_buffers", "bytes"),
    ),
    metric(
        "linkspan_exposed_bytes",
        "gauge",
        "Memory that peers may reach by RDMA",
        From::Endpoint("exposed_memory", "bytes"),
    ),
    metric(
        "linkspan_ring_in_flight",
        "gauge",
        "Requests taken and not answered",
        From::Ring("in_flight"),
    ),
    metric(
        "linkspan_ring_passes_total",
        "counter",
        "Passes over the ring",
        From::Ring("passes"),
    ),
    metric(
        "linkspan_ring_kicks_total",
        "counter",
        "Kicks of the driver",
        From::Ring("kicks"),
    ),
    metric(
        "linkspan_ring_notifications_total",
        "counter",
        "Notifications to the driver",
        From::Ring("notifications"),
    ),
    metric(
        "linkspan_ring_errors_total",
        "counter",
        "Times that the peer broke the ring",
        From::Ring("errors"),
    ),
];

/// All metrics of a tree.
pub(super) fn text(tree: &Value) -> String {
    let mut text = String::new();
    for metric in METRICS {
        let mut samples = String::new();
        for (link, value) in tree.as_object().into_iter().flatten() {
            metric.samples(&mut samples, link, value);
        }
        if !samples.is_empty() {
            let Metric {
                name, kind, help, ..
            } = metric;
            let _ = write!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}"
            );
        }
    }
    text
}

/// The names as a table of Markdown.
pub fn markdown() -> String {
    let mut table = String::from("| name | | what |\n|---|---|---|\n");
    for Metric {
        name, kind, help, ..
    } in METRICS
    {
        let _ = writeln!(table, "| `{name}` | {kind} | {help} |");
    }
    table
}

impl Metric {
    fn sample(&self, text: &mut String, suffix: &str, labels: &[(&str, &str)], value: Option<f64>) {
        if let Some(value) = value {
            let labels = labels.iter();
            let labels = labels.map(|(key, value)| format!("{key}=\"{}\"", escaped(value)));
            let labels = labels.collect::<Vec<_>>().join(",");
            let _ = writeln!(text, "{}{suffix}{{{labels}}} {value}", self.name);
        }
    }

    fn samples(&self, text: &mut String, link: &str, value: &Value) {
        let mut add = |suffix: &str, labels: &[(&str, &str)], value: Option<f64>| {
            let labels = [&[("link", link)], labels].concat();
            self.sample(text, suffix, &labels, value);
        };
        match self.from {
            From::Link(key) => return add("", &[], number(&value[key])),
            From::State => {
                let state = value["state"].as_str();
                return add(
                    "",
                    &[("state", state.unwrap_or_default())],
                    state.map(|_| 1.0),
                );
            }
            _ => {}
        }
        let inner = value.as_object().into_iter().flatten();
        for (name, endpoint) in inner.filter(|(_, value)| value.is_object()) {
            let endpoint_label = ("endpoint", name.as_str());
            match self.from {
                From::Endpoint("", key) => add("", &[endpoint_label], number(&endpoint[key])),
                From::Endpoint(group, key) => {
                    add("", &[endpoint_label], number(&endpoint[group][key]))
                }
                From::Ring(key) => {
                    for ring in endpoint["rings"].as_array().into_iter().flatten() {
                        let index = ring["ring"].to_string();
                        add("", &[endpoint_label, ("ring", &index)], number(&ring[key]));
                    }
                }
                From::Dropped => {
                    let causes = endpoint["frames"]["dropped"].as_object();
                    for (cause, count) in causes.into_iter().flatten() {
                        add("", &[endpoint_label, ("cause", cause)], number(count));
                    }
                }
                From::Latency => {
                    for (suffix, quantile, value) in quantiles(&endpoint["latency"]) {
                        let quantile = quantile.map(|quantile| ("quantile", quantile));
                        let labels: Vec<_> = [endpoint_label].into_iter().chain(quantile).collect();
                        add(suffix, &labels, value);
                    }
                }
                From::Link(_) | From::State => {}
            }
        }
    }
}

/// What a summary says of how long things took, in seconds.
fn quantiles(latency: &Value) -> [(&'static str, Option<&'static str>, Option<f64>); 6] {
    let seconds = |key: &str| Some(latency[key].as_f64()? / 1e9);
    [
        ("", Some("0.5"), seconds("p50_ns")),
        ("", Some("0.99"), seconds("p99_ns")),
        ("", Some("0.999"), seconds("p99_9_ns")),
        ("", Some("1"), seconds("max_ns")),
        ("_sum", None, seconds("sum_ns")),
        ("_count", None, latency["count"].as_f64()),
    ]
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(is) => Some(f64::from(u8::from(*is))),
        other => other.as_f64(),
    }
}

/// A label's value as the format has it.
fn escaped(text: &str) -> String {
    let mut to = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => to.push_str("\\\\"),
            '"' => to.push_str("\\\""),
            '\n' => to.push_str("\\n"),
            c => to.push(c),
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_has_its_labels() {
        let tree = serde_json::json!({
            "a": { "state": "running", "answers": true, "starts": 2, "disk": {
                "generation": 3, "requests": { "reads": 5 },
                "rings": [{ "ring": 1, "in_flight": 7 }],
                "latency": { "count": 2, "sum_ns": 3000, "p50_ns": 1000, "p99_ns": 2000,
                    "p99_9_ns": 2000, "max_ns": 2000 },
            }},
            "b\"\n": { "state": "stopped", "answers": false, "starts": 0, "tap:x": {
                "frames": { "frames_in": 9, "dropped": { "full": 4 } },
            }},
        });
        let text = text(&tree);
        for line in [
            "# TYPE linkspan_link_state gauge\nlinkspan_link_state{link=\"a\",state=\"running\"} 1\n",
            "linkspan_link_answers{link=\"b\\\"\\n\"} 0\n",
            "linkspan_link_starts_total{link=\"a\"} 2\n",
            "linkspan_endpoint_generation{link=\"a\",endpoint=\"disk\"} 3\n",
            "linkspan_disk_reads_total{link=\"a\",endpoint=\"disk\"} 5\n",
            "linkspan_ring_in_flight{link=\"a\",endpoint=\"disk\",ring=\"1\"} 7\n",
            "# TYPE linkspan_latency_seconds summary\n\
                linkspan_latency_seconds{link=\"a\",endpoint=\"disk\",quantile=\"0.5\"} 0.000001\n",
            "linkspan_latency_seconds_sum{link=\"a\",endpoint=\"disk\"} 0.000003\n",
            "linkspan_latency_seconds_count{link=\"a\",endpoint=\"disk\"} 2\n",
            "linkspan_port_received_frames_total{link=\"b\\\"\\n\",endpoint=\"tap:x\"} 9\n",
            "linkspan_port_dropped_frames_total{link=\"b\\\"\\n\",endpoint=\"tap:x\",cause=\"full\"} 4\n",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        // Nothing is said of what there is not.
        assert!(!text.contains("linkspan_disk_writes"));
    }

    #[test]
    fn names_are_as_prometheus_wants_them() {
        for metric in METRICS {
            let counts = metric.kind == "counter" && metric.name != "linkspan_endpoint_generation";
            assert_eq!(metric.name.ends_with("_total"), counts, "{}", metric.name);
            let plain = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(metric.name.chars().all(plain), "{}", metric.name);
            assert!(markdown().contains(metric.name));
        }
    }
}

//! What `linkspan net` says of its ports: what they are, and what was counted.

use linkspan_backends::port::{DropCause, Fabric, PortCounts};
use linkspan_devices::net::control::ControlError;
use serde_json::{Map, Value};

use crate::serving::print;

/// An interface of this machine is a port now.
pub(super) fn opened(port: &str, interface: &str, json: bool) {
    tracing::info!(port, "the interface is {interface}");
    if json {
        print(&serde_json::json!({ "event": "opened", "port": port, "interface": interface }));
    }
}

/// What was counted of a port until now.
pub(super) fn port(fabric: &Fabric, number: u16) -> Option<Value> {
    let counts = fabric.counts(number)?;
    let mut value = value(fabric.name(number), &counts, fabric.captures(number));
    value["link_up"] = fabric.link_is_up(number).into();
    Some(value)
}

/// Says what was counted of each port until now.
pub(super) fn counts(fabric: &Fabric, json: bool) {
    for number in 0..fabric.ports() {
        let Some(counts) = fabric.counts(number) else {
            continue;
        };
        let port = fabric.name(number);
        if json {
            print(&self::port(fabric, number));
            continue;
        }
        let drops = DropCause::ALL
            .into_iter()
            .map(|why| (why, counts.dropped(why)));
        let drops = drops.filter(|(_, count)| *count > 0);
        let drops: Vec<_> = drops
            .map(|(why, count)| format!("{} {count}", why.name()))
            .collect();
        let drops = if drops.is_empty() {
            "nothing".to_owned()
        } else {
            drops.join(", ")
        };
        let refused = ControlError::NAMES.into_iter().zip(counts.refused);
        let refused: Vec<_> = refused
            .filter(|(_, count)| *count > 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        if let Some((captured, missing)) = fabric.captures(number) {
            tracing::info!("{port}: {captured} frames were captured, {missing} were not");
        }
        if counts.commands > 0 || !refused.is_empty() {
            tracing::info!(
                "{port}: {} control commands were done, {} kinds refused: {}",
                counts.commands,
                refused.len(),
                refused.join(", "),
            );
        }
        let pairs = counts.pairs.iter().enumerate().map(|(number, pair)| {
            let (came, went) = (pair.frames_in, pair.frames_out);
            format!(", pair {number}: {came} came, {went} went")
        });
        tracing::info!(
            "{port}: {} frames of {} bytes came, {} of {} went, dropped: {drops}{}",
            counts.frames_in,
            counts.bytes_in,
            counts.frames_out,
            counts.bytes_out,
            pairs.collect::<String>(),
        );
    }
}

fn value(port: &str, counts: &PortCounts, captures: Option<(u64, u64)>) -> Value {
    let drops = DropCause::ALL.into_iter().map(|why| {
        let name = why.name().to_owned();
        (name, Value::from(counts.dropped(why)))
    });
    let pairs = counts.pairs.iter().map(
        |pair| serde_json::json!({ "frames_in": pair.frames_in, "frames_out": pair.frames_out }),
    );
    let refused = ControlError::NAMES.into_iter().zip(counts.refused);
    let refused = refused.map(|(name, count)| (name.to_owned(), Value::from(count)));
    let mut value = serde_json::json!({
        "event": "counts",
        "port": port,
        "frames_in": counts.frames_in,
        "bytes_in": counts.bytes_in,
        "frames_out": counts.frames_out,
        "bytes_out": counts.bytes_out,
        "flooded": counts.flooded,
        "pairs": pairs.collect::<Vec<_>>(),
        "dropped": drops.collect::<Map<_, _>>(),
        "commands": counts.commands,
        "commands_refused": refused.collect::<Map<_, _>>(),
    });
    if let Some((captured, missing)) = captures {
        value["captured"] = captured.into();
        value["not_captured"] = missing.into();
    }
    value
}

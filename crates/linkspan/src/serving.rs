//! What commands that serve have in common: what they say of a link, and of
//! themselves.

use linkspan_engine::vhost_user::Event;
use serde::Serialize;

use crate::exit::Failure;
use crate::log;
use crate::upgrade;

/// What management software reads (docs/interop/vhost-user.json of QEMU).
#[derive(Serialize)]
struct Capabilities {
    r#type: &'static str,
    features: &'static [&'static str],
}

/// Prints what a program of this type can do, for `--print-capabilities`.
pub(crate) fn print_capabilities(
    r#type: &'static str,
    features: &'static [&'static str],
) -> Result<(), Failure> {
    let capabilities = Capabilities { r#type, features };
    println!("{}", serde_json::to_string_pretty(&capabilities)?);
    Ok(())
}

/// Something that happened to a link, as a line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// For how long a guest was not served while another process took the link over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_us: Option<u128>,
}

/// Says what happens to a link, to people or to programs; `port` names it where
/// there are several.
pub(crate) fn reporter(port: Option<String>, json: bool) -> impl Fn(Event) + Send + 'static {
    move |event| {
        let port = port.as_deref();
        if let Event::TakenOver { pause, .. } = &event {
            upgrade::taken(*pause);
        }
        if json {
            let pause_us = match &event {
                Event::TakenOver { pause, .. } => pause.map(|pause| pause.as_micros()),
                _ => None,
            };
            let (event, generation, reason) = match &event {
                Event::Listening => ("listening", None, None),
                Event::TakenOver { generation, .. } => ("taken-over", Some(*generation), None),
                Event::HandedOver => ("handed-over", None, None),
                Event::Connected { generation } => ("connected", Some(*generation), None),
                Event::Ended {
                    generation, reason, ..
                } => ("ended", Some(*generation), Some(reason.as_str())),
            };
            print(&Line {
                event,
                port,
                generation,
                reason,
                pause_us,
            });
        }
        match event {
            Event::Listening => tracing::info!(port, "listening"),
            Event::TakenOver { generation, pause } => {
                let pause = pause.map(|pause| pause.as_micros());
                tracing::info!(
                    port,
                    generation,
                    pause_us = pause,
                    "the link was taken over"
                );
            }
            Event::HandedOver => tracing::info!(port, "another process has the link now"),
            Event::Connected { generation } => {
                tracing::info!(port, generation, "a front end connected");
            }
            Event::Ended {
                generation,
                reason,
                fault: true,
            } => tracing::warn!(port, generation, "the link ended: {reason}"),
            Event::Ended {
                generation, reason, ..
            } => tracing::info!(port, generation, "the link ended: {reason}"),
        }
    }
}

/// Prints a line of JSON.
pub(crate) fn print(line: &impl Serialize) {
    if let Ok(line) = serde_json::to_string(line) {
        log::print(line);
    }
}

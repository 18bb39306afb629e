//! What commands that serve have in common: what they say of a link, and of
//! themselves.

use linkspan_engine::vhost_user::Event;
use serde::Serialize;

use crate::exit::Failure;
use crate::log;

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
}

/// Says what happens to a link, to people or to programs; `port` names it where
/// there are several.
pub(crate) fn reporter(port: Option<String>, json: bool) -> impl Fn(Event) + Send + 'static {
    move |event| {
        let port = port.as_deref();
        if json {
            let (event, generation, reason) = match &event {
                Event::Listening => ("listening", None, None),
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
            });
        }
        match event {
            Event::Listening => tracing::info!(port, "listening"),
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

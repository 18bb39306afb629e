//! Sockets that a service manager has listening (sd_listen_fds(3)): the control socket, and
//! those of links, by their names. They are there before a link is, and stay when it ends:
//! who connects meanwhile waits for the next process.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use anyhow::anyhow;
use linkspan_sys::socket::{Inherited, Listener, inherit};

use crate::exit::{Failure, Status};

/// The first descriptor that a service manager hands over.
const FIRST: u32 = 3;

/// Descriptors that are taken at most.
const COUNT_MAX: u32 = 4096;

/// Commands whose `--fd` is in place of `--socket-path`; that of `vdpa serve` is a device.
const TAKERS: [&str; 3] = ["blk", "gpu", "display"];

/// What a service manager calls the control socket.
const CONTROL: &str = "control";

/// What a service manager handed over.
#[derive(Debug, Default)]
pub(super) struct Activated {
    /// The control socket.
    pub(super) control: Option<Listener>,
    /// Those of links.
    pub(super) links: Sockets,
}

/// Sockets of links, by the links' names.
#[derive(Debug, Default)]
pub struct Sockets(BTreeMap<String, Listener>);

impl Activated {
    /// All that this process was started with. An only socket that has no link's name is the
    /// control socket.
    ///
    /// # Errors
    /// Something is no socket that listens, or two have one name.
    pub(super) fn of_this_process(is_link: impl Fn(&str) -> bool) -> Result<Self, Failure> {
        let variable = |name| std::env::var(name).ok();
        let number = |name| variable(name).and_then(|text| text.parse::<u32>().ok());
        let mut activated = Self::default();
        if number("LISTEN_PID") != Some(std::process::id()) {
            return Ok(activated);
        }
        let count = number("LISTEN_FDS").unwrap_or(0).min(COUNT_MAX);
        let names = variable("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        for number in FIRST..FIRST + count {
            let name = names.next().unwrap_or_default();
            let listener = listener(number)?;
            let only = count == 1 && !is_link(name);
            let before = if name == CONTROL || only {
                activated.control.replace(listener)
            } else {
                if !is_link(name) {
                    tracing::warn!("the socket {name:?} has the name of no link");
                }
                activated.links.0.insert(name.to_owned(), listener)
            };
            if before.is_some() {
                let error = anyhow!("two sockets are called {name:?}");
                return Err(Failure::new(Status::Usage, error)
                    .hint("FileDescriptorName= with the name of a link, once each"));
            }
        }
        Ok(activated)
    }
}

fn listener(number: u32) -> Result<Listener, Failure> {
    let usage = |error: anyhow::Error| Failure::new(Status::Usage, error);
    let fd = i32::try_from(number).map_err(|error| usage(error.into()))?;
    match inherit(fd).map_err(|error| usage(error.into()))? {
        Inherited::Listener(listener) => Ok(listener),
        Inherited::Stream(_) => {
            let error = anyhow!("descriptor {number} does not listen");
            Err(usage(error).hint("Accept=no in the socket unit"))
        }
    }
}

impl Sockets {
    /// What a link is started with that has a socket here: its arguments, with the socket in
    /// place of the path, and the socket, which its process is to inherit.
    pub(super) fn give(
        &self,
        name: &str,
        arguments: &[OsString],
    ) -> Option<(Vec<OsString>, BorrowedFd<'_>)> {
        let socket = self.0.get(name)?.as_fd();
        let given = with_descriptor(arguments, socket.as_raw_fd());
        if given.is_none() {
            tracing::warn!("link {name}: it cannot take the service manager's socket");
        }
        Some((given?, socket))
    }
}

/// These arguments with a descriptor in place of the one path at which they listen.
fn with_descriptor(arguments: &[OsString], number: i32) -> Option<Vec<OsString>> {
    let takes = |word: &OsString| TAKERS.iter().any(|it| word == it);
    let takes = arguments.first().is_some_and(takes);
    let replaced = |argument: &OsString| {
        let text = argument.to_str()?;
        if text.starts_with("--socket-path=") && takes {
            return Some(format!("--fd={number}"));
        }
        let port = text.strip_prefix("--port=vhost-user:")?;
        let options = port.find(',').map_or("", |at| &port[at..]);
        let connects = options.split(',').any(|option| option == "client");
        (!connects).then(|| format!("--port=vhost-user-fd:{number}{options}"))
    };
    let places = arguments.iter().enumerate();
    let mut places = places.filter_map(|(at, argument)| Some((at, replaced(argument)?)));
    let (at, given) = places.next()?;
    // Of several, nobody says which it is.
    if places.next().is_some() {
        return None;
    }
    let mut arguments = arguments.to_vec();
    arguments[at] = given.into();
    Some(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_takes_the_place_of_a_path() {
        let given = |line: &str| {
            let arguments: Vec<_> = line.split(' ').map(OsString::from).collect();
            let given = with_descriptor(&arguments, 7)?;
            let words = given.iter().map(|word| word.to_str().unwrap());
            Some(words.collect::<Vec<_>>().join(" "))
        };
        for (line, expected) in [
            (
                "blk --socket-path=a --image=mem:1M",
                Some("blk --fd=7 --image=mem:1M"),
            ),
            ("gpu --socket-path=a", Some("gpu --fd=7")),
            (
                "display serve --socket-path=a",
                Some("display serve --fd=7"),
            ),
            (
                "net --port=vhost-user:a,queues=2 --port=responder",
                Some("net --port=vhost-user-fd:7,queues=2 --port=responder"),
            ),
            (
                "net --port=vhost-user:a --port=vhost-user:b,client",
                Some("net --port=vhost-user-fd:7 --port=vhost-user:b,client"),
            ),
            ("net --port=vhost-user:a --port=vhost-user:b", None),
            ("vdpa serve --socket-path=a -- /dev/vhost-vdpa-0", None),
            ("blk --vduse=a --image=mem:1M", None),
        ] {
            assert_eq!(given(line).as_deref(), expected, "{line}");
        }
    }
}

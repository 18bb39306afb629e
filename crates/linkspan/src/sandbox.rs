//! What the process of a link gives up before it talks to its peer: new privileges, programs,
//! and the files that are not its own. Its own are what its options name, as `plane check`
//! has it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use linkspan_sys::sandbox::{self, Access, Network, Rule, Sandbox};

use crate::exit::Failure;
use crate::plane::{Use, Used};

/// How much of this machine a kind of link needs beside what its options name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// These devices; no other file but what shows this process and the machine, and no TCP.
    Devices(&'static [&'static str]),
    /// TCP; no other file but what shows this process and the machine.
    Network,
    /// All files to read, all devices and settings of the kernel, and TCP.
    Machine,
    /// Files that its options do not name: new privileges alone are given up.
    Files,
}

/// Where the system tells a process of itself and of its machine.
const SHOWN: [&str; 2] = ["/proc", "/sys"];

/// Gives up what a link with these options does not need.
///
/// # Errors
/// The system refuses.
pub(crate) fn enter(needs: Needs, used: &[Used]) -> Result<(), Failure> {
    let (mut rules, network): (Vec<Rule>, _) = match needs {
        Needs::Files => {
            let given_up = rustix::thread::set_no_new_privs(true);
            return Ok(given_up.context("cannot give up new privileges")?);
        }
        Needs::Devices(devices) => {
            let devices = devices.iter().map(|path| Rule::new(path, Access::Device));
            (shown().chain(devices).collect(), Network::Without)
        }
        Needs::Network => (shown().collect(), Network::With),
        Needs::Machine => {
            let mut rules = vec![
                Rule::new("/", Access::Read),
                Rule::new("/dev", Access::Device),
            ];
            rules.extend(SHOWN.map(|path| Rule::new(path, Access::ReadWrite)));
            (rules, Network::With)
        }
    };
    rules.extend(used.iter().filter_map(rule));
    // What is not there is told of by who wants it.
    rules.retain(|rule| rule.path.exists());
    match sandbox::enter(&rules, network).context("cannot enter the sandbox")? {
        Sandbox::Landlock(version) => tracing::debug!("sandboxed, with Landlock {version}"),
        Sandbox::PrivilegesOnly => tracing::info!("this kernel has no Landlock to be held by"),
    }
    Ok(())
}

/// What tells a process of itself and of its machine, to read.
fn shown() -> impl Iterator<Item = Rule> {
    // Whose symbols are looked up for the words of a panic.
    let program = std::env::current_exe().into_iter();
    let read = SHOWN.into_iter().map(PathBuf::from).chain(program);
    read.map(|path| Rule::new(path, Access::Read))
}

/// What an option allows.
fn rule((option, used): &Used) -> Option<Rule> {
    let folder = |path: &Path| match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    Some(match used {
        Use::Socket(path) | Use::Makes(path) => Rule::new(folder(path), Access::Beside),
        Use::Reads(path) => Rule::new(path, Access::Read),
        Use::Writes(path) => Rule::new(path, Access::Device),
        // The data of an image may be in a file of its own.
        Use::Folder(path) if *option == "allow-backing" => Rule::new(path, Access::ReadWrite),
        Use::Folder(path) => Rule::new(path, Access::Read),
        Use::Fills(path) => Rule::new(path, Access::All),
        Use::Connects(_) | Use::Vduse(_) | Use::Interface(_) | Use::Listens(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_allow_what_they_name_and_no_more() {
        let dir = || PathBuf::from("/d");
        let of = |option, used: Use| rule(&(option, used)).map(|it| (it.path, it.access));
        for (option, used, access, path) in [
            (
                "socket-path",
                Use::Socket("/d/s".into()),
                Access::Beside,
                dir(),
            ),
            ("pcap", Use::Makes("/d/p".into()), Access::Beside, dir()),
            (
                "socket-path",
                Use::Socket("s".into()),
                Access::Beside,
                ".".into(),
            ),
            (
                "image",
                Use::Writes("/d/i".into()),
                Access::Device,
                "/d/i".into(),
            ),
            (
                "image",
                Use::Reads("/d/i".into()),
                Access::Read,
                "/d/i".into(),
            ),
            (
                "allow-backing",
                Use::Folder(dir()),
                Access::ReadWrite,
                dir(),
            ),
            ("share", Use::Folder(dir()), Access::Read, dir()),
            ("share", Use::Fills(dir()), Access::All, dir()),
        ] {
            assert_eq!(of(option, used), Some((path, access)), "{option}");
        }
        assert_eq!(of("monitor", Use::Connects("/d/q".into())), None);
        assert_eq!(of("listen", Use::Listens(([127, 0, 0, 1], 1).into())), None);
    }
}

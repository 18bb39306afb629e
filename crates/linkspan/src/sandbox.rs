//! What the process of a link gives up before it talks to its peer: new privileges, programs,
//! and the files that are not its own. Its own are what its options name, as `plane check`
//! has it. Once it is set up it gives up all system calls that its kind has no use for.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command, ValueEnum};
use linkspan_sys::capabilities::{self, CapabilitySet};
use linkspan_sys::sandbox::{self, Access, Network, Rule, Sandbox};
use linkspan_sys::seccomp::{self, Mode};
pub(crate) use linkspan_sys::seccomp::{Group, Kind};

use crate::exit::Failure;
use crate::plane::{LINKS, Use, Used};

/// The commands that give something up, by their words: those of links, and what else serves.
fn commands() -> impl Iterator<Item = &'static str> {
    let others = [
        "display vnc",
        "display watch",
        "smb mount",
        "page",
        "k8s device-plugin",
    ];
    LINKS.iter().copied().chain(others)
}

/// The option, by its name among parsed arguments.
const OPTION: &str = "sandbox";

/// What becomes of the sandbox of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Setting {
    /// It is entered.
    #[default]
    On,
    /// Files and privileges are given up; a system call that would end the process is done,
    /// and told of in the kernel's log.
    Log,
    /// Nothing is given up.
    Off,
}

static SETTING: OnceLock<Setting> = OnceLock::new();

/// Each command that has a sandbox with the option for it.
pub(crate) fn with_option(root: Command) -> Command {
    let option = || {
        Arg::new(OPTION)
            .long(OPTION)
            .value_name("SETTING")
            .default_value("on")
            .value_parser(clap::builder::EnumValueParser::<Setting>::new())
            .hide_possible_values(true)
            // Not below that of what comes before it.
            .help_heading(None::<&'static str>)
            .help(
                "Whether this process gives up what it has no use for before it serves: on, off, \
                 or log, with which a system call that would end it is told of in the kernel's \
                 log instead",
            )
    };
    commands().fold(root, |root, words| match words.split_once(' ') {
        Some((noun, verb)) => root.mut_subcommand(noun, |noun| {
            noun.mut_subcommand(verb, |command| command.arg(option()))
        }),
        None => root.mut_subcommand(words, |command| command.arg(option())),
    })
}

/// Takes the option of a command line, for the whole process.
pub(crate) fn set(matches: &ArgMatches) {
    let mut last = matches;
    while let Some((_, next)) = last.subcommand() {
        last = next;
    }
    let setting = last.try_get_one(OPTION).ok().flatten();
    if let Some(&setting) = setting {
        choose(setting);
    }
}

/// The same without an option.
pub(crate) fn choose(setting: Setting) {
    if SETTING.set(setting).is_ok() {
        match setting {
            Setting::On => {}
            Setting::Log => tracing::warn!(
                "--sandbox log: what a system call does that should end this process is done, and \
                 the kernel's log has it"
            ),
            Setting::Off => {
                tracing::warn!("--sandbox off: this process keeps all that its user may do");
            }
        }
    }
}

/// Whether nothing is to be given up.
pub(crate) fn is_off() -> bool {
    SETTING.get() == Some(&Setting::Off)
}

/// Leaves this process, with all its threads, the system calls of its kind and of these
/// groups. All that it serves with is open, and it has talked to no peer.
///
/// # Errors
/// The system refuses, though it has filters.
pub(crate) fn seal(kind: Kind, more: &[Group]) -> Result<(), Failure> {
    let mode = match SETTING.get() {
        Some(Setting::On) => Mode::Kill,
        Some(Setting::Log) => Mode::Log,
        Some(Setting::Off) | None => return Ok(()),
    };
    match seccomp::enter(kind, more, mode) {
        Ok(()) => tracing::debug!("sealed, as {kind:?} with {more:?}"),
        Err(error @ seccomp::Error::Missing) => tracing::warn!("{error}"),
        Err(error) => return Err(anyhow::Error::new(error).into()),
    }
    Ok(())
}

/// How much of this machine a kind of link needs beside what its options name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// These devices; no other file but what shows this process and the machine, and no TCP.
    Devices(&'static [&'static str]),
    /// TCP; no other file but what shows this process and the machine.
    Network,
    /// All files to read, all devices with their settings, and TCP.
    Machine,
    /// Files that its options do not name: new privileges alone are given up.
    Files,
}

impl Needs {
    /// What a process of root keeps of its rights: to open what others own, where it may open
    /// it at all, and to set up what it was asked for.
    fn capabilities(self) -> CapabilitySet {
        use CapabilitySet as Of;
        match self {
            Self::Devices([TUN]) => Of::DAC_OVERRIDE | Of::NET_ADMIN,
            Self::Devices(_) => Of::DAC_OVERRIDE | Of::IPC_LOCK,
            Self::Network => Of::DAC_OVERRIDE | Of::NET_BIND_SERVICE,
            Self::Machine | Self::Files => {
                let files = Of::DAC_OVERRIDE | Of::DAC_READ_SEARCH | Of::CHOWN | Of::FOWNER;
                let network = Of::NET_ADMIN | Of::NET_BIND_SERVICE | Of::NET_RAW;
                let devices = Of::SYS_RAWIO | Of::SYS_PTRACE | Of::SYS_ADMIN | Of::IPC_LOCK;
                files | network | devices | Of::FSETID | Of::SYS_RESOURCE | Of::SYS_TIME
            }
        }
    }
}

/// Where tap interfaces are opened.
pub(crate) const TUN: &str = "/dev/net/tun";

/// Where the system tells a process of itself and of its machine.
const SHOWN: [&str; 2] = ["/proc", "/sys"];

/// Gives up what a link with these options does not need.
///
/// # Errors
/// The system refuses.
pub(crate) fn enter(needs: Needs, used: &[Used]) -> Result<(), Failure> {
    if is_off() {
        return Ok(());
    }
    capabilities::keep(needs.capabilities()).context("cannot give up capabilities")?;
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
            let rules = vec![
                Rule::new("/", Access::Read),
                Rule::new("/dev", Access::Device),
                // Not /proc: by its memory there a process gets other programs.
                Rule::new("/sys", Access::ReadWrite),
            ];
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

    /// No command came into being by a slip, and each parses its option.
    #[test]
    fn each_command_that_serves_has_the_option() {
        let root = crate::cli::command();
        for words in commands() {
            let find = |command: &Command, word: &str| command.find_subcommand(word).cloned();
            let command = words
                .split(' ')
                .try_fold(root.clone(), |command, word| find(&command, word));
            let command = command.expect(words);
            assert!(command.get_about().is_some(), "{words}");
            let mut options = command.get_arguments();
            assert!(options.any(|option| option.get_id() == OPTION), "{words}");
        }
    }

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

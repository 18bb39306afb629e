//! `linkspan vm args`: what a machine of a plane is started with, for those who start it by
//! themselves.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::anyhow;

use super::machine::Machine;
use super::qemu::{Kind, arguments, kvm_opens};
use super::{libvirt, others};
use crate::exit::{Failure, Status};
use crate::plane::Plane;

/// Options of `args`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: the plane's links here, its guest by libvirt\n\n  \
    linkspan vm args guest --plane examples/guest.toml --for libvirt >guest.xml\n  \
    virsh define guest.xml\n\n\
    Words are quoted for a shell; with --json they are a list.\n\
    Exit status 1: that monitor has no such device."
)]
pub(super) struct Args {
    /// The machine: NAME of [vm.NAME]
    #[arg(value_name = "NAME")]
    name: String,

    /// The plane
    #[arg(long, value_name = "FILE", default_value = "/etc/linkspan/plane.toml")]
    plane: PathBuf,

    /// Who starts it
    #[arg(long = "for", value_name = "MONITOR", default_value = "qemu")]
    monitor: Monitor,

    /// As JSON: a list of words, or for libvirt one text
    #[arg(long)]
    json: bool,
}

/// What starts virtual machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Monitor {
    Qemu,
    CloudHypervisor,
    Crosvm,
    Libvirt,
}

/// What a monitor takes.
enum Told {
    Words(Vec<String>),
    Text(String),
}

/// Prints the arguments.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let plane = Plane::read(&args.plane)?;
    plane.verdict()?;
    let machine = plane.machine(&args.name).ok_or_else(|| {
        let error = anyhow!("{} has no [vm.{}]", args.plane.display(), args.name);
        Failure::new(Status::Usage, error)
    })?;
    // Whoever starts it stands elsewhere.
    let machine = machine.below(&plane.folder);
    let told = told(args, &machine)?;
    let text = match &told {
        Told::Words(words) if args.json => format!("{}\n", serde_json::to_string(words)?),
        Told::Text(text) if args.json => format!("{}\n", serde_json::to_string(text)?),
        Told::Words(words) => {
            let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
            format!("{}\n", words.join(" "))
        }
        Told::Text(text) => text.clone(),
    };
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

fn told(args: &Args, machine: &Machine) -> Result<Told, Failure> {
    Ok(match args.monitor {
        Monitor::Qemu => {
            let kind = Kind::of(&machine.qemu);
            let mut words = vec![machine.qemu.display().to_string()];
            words.extend(arguments(machine, kind));
            Told::Words(words)
        }
        Monitor::CloudHypervisor => Told::Words(others::cloud_hypervisor(machine)?),
        Monitor::Crosvm => Told::Words(others::crosvm(machine)?),
        Monitor::Libvirt => Told::Text(libvirt::domain(&args.name, machine, kvm_opens())),
    })
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_change_them() {
        for (word, text) in [
            ("socket,id=a,path=/tmp/s", "socket,id=a,path=/tmp/s"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("{\"a\":1}", "'{\"a\":1}'"),
            ("$HOME", "'$HOME'"),
        ] {
            assert_eq!(quoted(word), text);
        }
    }
}

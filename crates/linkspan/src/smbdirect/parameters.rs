//! Options for every parameter: those of SMB Direct from the table that the protocol has,
//! those of iWARP beside them.

use std::ops::RangeInclusive;

use clap::builder::{Arg, Command, PossibleValuesParser, TypedValueParser as _, ValueParser};
use clap::{ArgMatches, FromArgMatches, ValueEnum};
use linkspan_backends::smbdirect::{Config, PORT, PORT_IWARP};
use linkspan_rdma::iwarp::FrameSize;
use linkspan_smbdirect::{OPTIONS, Options, Parameter, Role};

use crate::driver::bytes;

/// What the command line says of SMB Direct.
#[derive(Clone, Debug)]
pub(super) struct Parameters {
    /// In the order of the table; nothing where the default holds.
    values: Vec<Option<u32>>,
    credits: Option<u16>,
}

const HEADING: &str = "Parameters of SMB Direct";

/// Other names, by which some know them.
const ALIASES: [(&str, &str); 2] = [("inbound_reads", "ird"), ("outbound_reads", "ord")];

impl clap::Args for Parameters {
    fn augment_args(command: Command) -> Command {
        let credits = Arg::new("credits")
            .long("credits")
            .value_name("N")
            .help("Credits each way: the most receives that are posted, and credits that are asked for")
            .value_parser(clap::value_parser!(u16).range(1..=4096))
            .help_heading(HEADING);
        OPTIONS
            .iter()
            .map(option)
            .fold(command, Command::arg)
            .arg(credits)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Parameters {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let value = |parameter: &Parameter| matches.get_one::<u32>(parameter.name).copied();
        Ok(Self {
            values: OPTIONS.iter().map(value).collect(),
            credits: matches.get_one::<u16>("credits").copied(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn option(parameter: &'static Parameter) -> Arg {
    let Parameter {
        name,
        unit,
        min,
        max,
        about,
        ..
    } = *parameter;
    let defaults =
        [Options::initiator(), Options::listener()].map(|options| parameter.get(&options));
    let default = match defaults {
        [one, other] if one == other => format!("{one}"),
        [initiator, listener] => format!("{initiator}; a listener {listener}"),
    };
    let alias = ALIASES.into_iter().find(|(of, _)| *of == name);
    let arg = Arg::new(name)
        .long(name.replace('_', "-"))
        .value_name(unit.to_uppercase())
        .help(format!(
            "{}: {min} to {max} [default: {default}]",
            capital(about)
        ))
        .value_parser(ValueParser::new(move |text: &str| {
            number(text, unit, min..=max)
        }))
        .help_heading(HEADING);
    match alias {
        Some((_, alias)) => arg.visible_alias(alias),
        None => arg,
    }
}

fn capital(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(rest).collect()
    })
}

/// A value within its bounds; bytes may have a K or M.
fn number(text: &str, unit: &str, bounds: RangeInclusive<u32>) -> Result<u32, String> {
    let value = match unit {
        "bytes" => bytes(text).map_err(|error| error.to_string())?,
        _ => text.parse::<u64>().map_err(|error| error.to_string())?,
    };
    let within = u32::try_from(value)
        .ok()
        .filter(|value| bounds.contains(value));
    within.ok_or_else(|| format!("{} to {} {unit} are possible", bounds.start(), bounds.end()))
}

impl Parameters {
    /// What an end of this role has.
    pub(super) fn options(&self, role: Role) -> Options {
        let mut options = Options::of(role);
        if let Some(credits) = self.credits {
            options.receive_credit_max = credits;
            options.send_credit_target = credits;
        }
        for (parameter, value) in OPTIONS.iter().zip(&self.values) {
            if let Some(value) = *value {
                let set = parameter.set(&mut options, value);
                set.expect("the bounds of an option are the parameter's");
            }
        }
        options
    }
}

/// Over what connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Provider {
    /// iWARP over TCP, in this process
    Tcp,
    /// The RDMA device that has the address, or leads to it, through rdma-core
    Verbs,
}

impl Provider {
    /// Where SMB Direct is, in the order in which that is tried.
    pub(super) fn ports(self) -> &'static [u16] {
        match self {
            Self::Tcp => &[PORT_IWARP],
            Self::Verbs => &[PORT_IWARP, PORT],
        }
    }
}

/// Over what connections go, and how frames of iWARP are made.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Transport")]
pub(super) struct Wire {
    /// Over what: iWARP over TCP, or the RDMA device (iWARP, InfiniBand, RoCE) that has the
    /// address of a listener or leads to it. Frames and --budget are the device's own then
    #[arg(long, value_enum, default_value = "tcp")]
    pub(super) provider: Provider,

    /// Asks for checksums (CRC32C); if the peer asks they are there in any case
    #[arg(long)]
    crc: bool,

    /// Bytes of a frame that is sent: max is 64 KiB, for siw and for us; for hardware the
    /// size of a segment of TCP, such as 1448
    #[arg(long, value_name = "max|BYTES", default_value = "max", value_parser = frame)]
    fpdu: FrameSize,

    /// Revision of MPA that an initiator begins with
    #[arg(long, value_name = "N", default_value = "2", value_parser = PossibleValuesParser::new(["1", "2"]).map(|text| u8::from(text == "2") + 1))]
    mpa_revision: u8,

    /// Bytes of all buffers that messages arrive in
    #[arg(long, value_name = "BYTES", default_value = "64M", value_parser = bytes)]
    budget: u64,
}

fn frame(text: &str) -> Result<FrameSize, String> {
    if text == "max" {
        return Ok(FrameSize::Max);
    }
    let size = text
        .parse()
        .ok()
        .filter(|size| (128..=u16::MAX).contains(size));
    size.map(FrameSize::Segment)
        .ok_or_else(|| "max, or 128 to 65535 bytes".to_owned())
}

/// All that an end is told.
pub(super) fn config(role: Role, parameters: &Parameters, wire: &Wire) -> Config {
    let mut config = Config::new(role, parameters.options(role));
    let iwarp = &mut config.iwarp.options;
    iwarp.crc = wire.crc;
    iwarp.frame = wire.fpdu;
    iwarp.revision = wire.mpa_revision;
    config.iwarp.budget = usize::try_from(wire.budget).unwrap_or(usize::MAX);
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Args as _;

    fn parse(args: &[&str]) -> Result<Parameters, clap::Error> {
        let command = Parameters::augment_args(Command::new("x").no_binary_name(true));
        Parameters::from_arg_matches(&command.try_get_matches_from(args)?)
    }

    #[test]
    fn every_parameter_is_an_option_with_its_bounds() {
        for role in [Role::Initiator, Role::Listener] {
            assert_eq!(parse(&[]).unwrap().options(role), Options::of(role));
        }
        for parameter in OPTIONS {
            let option = format!("--{}", parameter.name.replace('_', "-"));
            for value in [parameter.min, parameter.max] {
                let parsed = parse(&[&option, &value.to_string()]).unwrap();
                let options = parsed.options(Role::Listener);
                assert_eq!(parameter.get(&options), value, "{option}");
                assert_eq!(options.check(), Ok(()));
            }
            for value in [
                u64::from(parameter.min) - 1,
                u64::from(parameter.max) + 1,
                1 << 40,
            ] {
                assert!(
                    parse(&[&option, &value.to_string()]).is_err(),
                    "{option} {value}"
                );
            }
        }
    }

    #[test]
    fn words_of_others_and_sizes_are_understood() {
        let parsed = parse(&[
            "--ird",
            "7",
            "--ord=9",
            "--credits",
            "33",
            "--max-read-write-size",
            "1M",
        ]);
        let options = parsed.unwrap().options(Role::Initiator);
        assert_eq!((options.inbound_reads, options.outbound_reads), (7, 9));
        assert_eq!(
            (options.receive_credit_max, options.send_credit_target),
            (33, 33)
        );
        assert_eq!(options.max_read_write_size, 1 << 20);
        let both = parse(&["--credits", "33", "--send-credit-target", "4"]).unwrap();
        assert_eq!(both.options(Role::Initiator).send_credit_target, 4);
        assert_eq!(frame("max"), Ok(FrameSize::Max));
        assert_eq!(frame("1448"), Ok(FrameSize::Segment(1448)));
        assert!(frame("127").is_err() && frame("big").is_err());
    }
}

//! `linkspan driver net`: a network device, driven without a guest.

use anyhow::anyhow;
use clap::{Subcommand, ValueEnum};
use linkspan_backends::nic::{
    Nic, NicControl, NicError, NicLayout, NicOptions, NicPair, PAIRS_MAX, Wanted, control_ring,
    pairs_of,
};
use linkspan_devices::net::{Mac, NetInfo};
use linkspan_engine::vhost_user::Link;
use linkspan_vhost::frontend::{Negotiated, QueueUnit};
use linkspan_virtio::Features;
use serde::Serialize;

use super::target::{Connection, Hints, Place, Target, Ways};
use super::{ReachArgs, net_bench};
use crate::exit::{Failure, Status};
use crate::net::mac;

/// Options of `linkspan driver net`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    linkspan driver net --socket-path /tmp/net.sock info\n  \
    linkspan driver net --socket-path /tmp/net.sock bench --mode tx --size 64 --poll --seconds 5\n  \
    linkspan driver net --socket-path /tmp/net.sock --server bench --mode loop --queues 2 --packed\n  \
    linkspan driver net --vdpa /dev/vhost-vdpa-0 info\n\n\
    A back end that dies while a bench runs is waited for: all queue pairs go on with\n\
    the next one, and the frames that were under way count as lost.")]
pub(super) struct Args {
    #[command(flatten)]
    reach: ReachArgs,

    /// Queue pairs; a bench has a thread for each
    #[arg(long, global = true, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(PAIRS_MAX)))]
    queues: u16,

    /// What the back end counts when it says how many queues it has. Where it offers
    /// several pairs, configuration space says how many too, and the smaller number holds
    /// [default: pairs]
    #[arg(long, global = true, value_enum)]
    count: Option<CountArg>,

    /// Use packed rings; the back end must have them
    #[arg(long, global = true)]
    packed: bool,

    /// Have buffers used in order; the back end must do so
    #[arg(long, global = true)]
    in_order: bool,

    /// Let no frame take several receive buffers
    #[arg(long, global = true)]
    no_mergeable: bool,

    /// Do not use the control queue, where the back end has one
    #[arg(long, global = true)]
    no_control_queue: bool,

    /// The address that the device is to have; needs its control queue
    #[arg(long, global = true, value_name = "ADDRESS", value_parser = mac,
        conflicts_with = "no_control_queue")]
    mac: Option<Mac>,

    /// Whether frames for other stations are received as well; needs the control queue
    #[arg(long, global = true, value_name = "on|off", value_parser = on_or_off,
        conflicts_with = "no_control_queue")]
    promiscuous: Option<bool>,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CountArg {
    /// QEMU, DPDK, `linkspan net`
    Pairs,
    /// Programs made with rust-vmm, `linkspan net` with count=rings
    Rings,
}

impl From<CountArg> for QueueUnit {
    fn from(count: CountArg) -> Self {
        match count {
            CountArg::Pairs => Self::Pairs,
            CountArg::Rings => Self::Rings,
        }
    }
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off".into()),
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Says what the network device is
    Info(InfoArgs),
    /// Measures it
    Bench(net_bench::Args),
}

const HINTS: Hints = Hints {
    serve: |path| format!("linkspan net --port vhost-user:{}", path.display()),
    unit: "queue pairs",
    rings: 2,
};

/// A network device in use.
pub(super) struct Device {
    pub(super) features: Features,
    pub(super) pairs: Vec<NicPair>,
    pub(super) control: Option<NicControl>,
    /// Ends when dropped, and the pairs with it.
    pub(super) link: Link,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let target = args.reach.target(args.packed)?;
    // clap cannot say so of an option that holds for all verbs.
    if args.count.is_some() && matches!(target.place, Place::Vdpa { .. }) {
        let error = anyhow!("--count is for back ends behind a socket");
        return Err(Failure::new(Status::Usage, error));
    }
    let options = NicOptions {
        pairs: args.queues,
        count: args.count.map_or(QueueUnit::Pairs, QueueUnit::from),
        packed: args.packed,
        in_order: args.in_order,
        mergeable: !args.no_mergeable,
        control: !args.no_control_queue,
    };
    let wanted = Wanted {
        pairs: args.queues,
        mac: args.mac,
        promiscuous: args.promiscuous,
    };
    match &args.verb {
        Verb::Info(verb) => info(&target, options, verb),
        Verb::Bench(verb) => net_bench::run(&target, (options, wanted), verb),
    }
}

fn connect(target: &Target, options: NicOptions) -> Result<Connection, Failure> {
    let wanted = Ways {
        socket: &|reach| options.link_options(reach, target.connect_limit),
        vdpa: &|open| options.vdpa_options(open),
    };
    let connection = target.connect(&wanted, &HINTS)?;
    let (pairs, max) = (options.pairs, pairs_of(connection.negotiated()));
    if u64::from(pairs) > max {
        let error = NicError::Pairs { pairs, max };
        return Err(failure(target, error).hint("fewer --queues, or a back end with more"));
    }
    Ok(connection)
}

/// Connects and starts all pairs.
pub(super) fn open(
    target: &Target,
    (options, wanted): (NicOptions, Wanted),
    layout: NicLayout,
) -> Result<Device, Failure> {
    let mut connection = connect(target, options)?;
    let control = find_control(&mut connection, options)?;
    if control.is_none() && (wanted.mac.is_some() || wanted.promiscuous.is_some()) {
        let error =
            anyhow!("the back end has no control queue, which --mac and --promiscuous need");
        return Err(Failure::new(Status::PeerBroke, error));
    }
    let features = Features::from_bits_retain(connection.negotiated().features);
    let mut layout = layout;
    let rings = control.map_or(options.pairs * 2, |ring| ring.saturating_add(1));
    layout.queue_size = connection.queue_size(rings, layout.queue_size, 1)?;
    let nic = Nic::new(options.pairs, layout, features, control);
    let nic = nic.map_err(|error| failure(target, error))?;
    let link = connection.start(nic.memory, nic.handles, &HINTS)?;
    target.begins();
    let mut control = nic.control;
    if let Some(control) = &mut control {
        control
            .want(wanted)
            .map_err(|error| failure(target, error))?;
    }
    Ok(Device {
        features,
        pairs: nic.pairs,
        control,
        link,
    })
}

/// The ring of the control queue, with which the connection has as many rings as it
/// needs; without one, what needs it is given up.
fn find_control(connection: &mut Connection, options: NicOptions) -> Result<Option<u16>, Failure> {
    let negotiated = connection.negotiated();
    let features = Features::from_bits_retain(negotiated.features);
    let ring = control_ring(features, &negotiated.config);
    let (queues, without) = match ring {
        Some(ring) => (ring.saturating_add(1), Features::empty()),
        None => (2 * options.pairs, NicOptions::OF_CONTROL),
    };
    connection.revise(queues, without, &HINTS)?;
    Ok(ring)
}

/// An error of a pair as the end of the command.
pub(super) fn failure(target: &Target, error: NicError) -> Failure {
    if target.is_stopped() {
        return Failure::new(Status::Failed, anyhow!("interrupted"));
    }
    let status = match &error {
        error if error.is_peer() => Status::PeerBroke,
        NicError::Link(_) => Status::PeerUnreachable,
        _ => Status::Failed,
    };
    Failure::new(status, error)
}

/// Options of `info`.
#[derive(Debug, clap::Args)]
struct InfoArgs {
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Info {
    queue_pairs_max: u64,
    mac: Option<String>,
    mtu: Option<u16>,
    link_up: bool,
    /// Whether there is one that can be used.
    control_queue: bool,
    features_offered: String,
    features_used: String,
    protocol_features: String,
    memory_slots: u64,
}

fn info(target: &Target, options: NicOptions, args: &InfoArgs) -> Result<(), Failure> {
    let connection = connect(target, options)?;
    let info = Info::new(connection.negotiated());
    if args.json {
        println!("{}", serde_json::to_string(&info)?);
    } else {
        info.print();
    }
    Ok(())
}

impl Info {
    fn new(negotiated: &Negotiated) -> Self {
        // Without a configuration space nothing in it is known.
        let features = if negotiated.config.is_empty() {
            Features::empty()
        } else {
            Features::from_bits_retain(negotiated.features)
        };
        let known = NetInfo::from_config(&negotiated.config, features);
        let protocol = negotiated.protocol_features.iter_names();
        let names: Vec<_> = protocol.map(|(name, _)| name).collect();
        Self {
            queue_pairs_max: pairs_of(negotiated),
            mac: known.mac.map(|mac| mac.to_string()),
            mtu: known.mtu,
            link_up: known.link_up,
            control_queue: control_ring(features, &negotiated.config).is_some(),
            features_offered: format!("{:#x}", negotiated.offered),
            features_used: format!("{:#x}", negotiated.features),
            protocol_features: names.join(" "),
            memory_slots: negotiated.memory_slots,
        }
    }

    fn print(&self) {
        println!("queue pairs   at most {}", self.queue_pairs_max);
        println!(
            "address       {}",
            self.mac.as_deref().unwrap_or("not given")
        );
        match self.mtu {
            Some(mtu) => println!("MTU           {mtu} bytes"),
            None => println!("MTU           not given"),
        }
        println!("link          {}", if self.link_up { "up" } else { "down" });
        let control = if self.control_queue { "yes" } else { "no" };
        println!("control queue {control}");
        println!(
            "features      {} of {}",
            self.features_used, self.features_offered
        );
        println!("protocol      {}", self.protocol_features);
        println!("memory slots  {}", self.memory_slots);
    }
}

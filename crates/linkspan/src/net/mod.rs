//! `linkspan net`: joins guests and interfaces of this machine into a network.

mod link;
mod report;
mod spec;
mod upgrade;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow};
use clap::{ArgGroup, ValueEnum};
use linkspan_backends::port::{
    Capture, CaptureFile, Fabric, FabricError, FabricOptions, Kind, Mode, NetDevice,
    NetDeviceError, PortOptions, SNAP_LENGTH_MAX, SharedFabric, from_kernel,
};
use linkspan_devices::net::frame::{Lease, Responder};
use linkspan_devices::net::switch::PortVlans;
use linkspan_devices::net::{NetOptions, OFFLOADS, Speed};
use linkspan_engine::vhost_user;
use linkspan_engine::{Device, NETWORK_DEVICE, Rate, RateLimit, Server, Workers};
use linkspan_sys::poll::{Interest, Ready};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_sys::socket::{Inherited, inherit};
use linkspan_sys::tap::{TapError, TapQueue, open_tap};
use linkspan_sys::{Epoll, Listener};

use crate::exit::{Failure, Status};
use crate::plane::{Use, Used};
use crate::sandbox;
use crate::serving;
use crate::tether;
use crate::vduse::VduseArgs;
use crate::vm::{Offer, Plug};
use crate::workers::WorkerArgs;
use link::Links;
use spec::{Behind, PortSpec};
pub(crate) use spec::{mac, mac_of};
use upgrade::Lent;

/// Options of `linkspan net`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Ports:\n  \
        vhost-user:PATH      a guest whose virtual machine monitor connects here\n  \
        vhost-user-fd:N      the same over an inherited socket\n    \
          queues=N           queue pairs [1]\n    \
          queue-size=N       entries of each queue [1024]\n    \
          mac=ADDRESS        [one that goes with PATH]\n    \
          mtu=BYTES          [1500]\n    \
          client             connect to PATH, where the monitor listens\n    \
          count=pairs|rings  how queues are counted for the monitor: pairs for QEMU\n                       \
          and DPDK, rings for Cloud Hypervisor [pairs]\n    \
          control-queue      have a control queue, for monitors that pass it on to us\n  \
        vduse:NAME           a vDPA device of this machine's kernel, with one queue pair;\n                       \
          queue-size, mac and mtu as above\n  \
        tap:NAME             an interface of this machine, made if there is none\n    \
          queues=N           [1]\n  \
        tap-fd:N             an inherited queue of such an interface\n  \
        responder            answers ARP, ping and DHCP, for guests without a network\n    \
          mac=ADDRESS        [one that goes with its name]\n    \
          address=IP/BITS    its own address [10.0.2.2/24]\n    \
          lease=IP           what it leases to a guest that asks [none]\n  \
        All ports have\n    \
          vlan=N             the VLAN that it is in, without tags\n  \
        and all but the responder\n    \
          trunk=5+7-9|all    the VLANs whose frames carry a tag; those without go to\n                       \
          vlan=N, or nowhere\n    \
          packets-per-second=N, bytes-per-second=N   what may come from it\n\n\
        Example: two guests and this machine\n\n  \
        linkspan net --port vhost-user:/tmp/a.sock,queues=2 \\\n    \
          --port vhost-user:/tmp/b.sock,queues=2 --port tap:tap0,queues=2 &\n  \
        ip addr add 192.168.7.1/24 dev tap0; ip link set tap0 up\n  \
        qemu-system-x86_64 -m 1G \\\n    \
          -object memory-backend-memfd,id=m,size=1G,share=on -machine q35,memory-backend=m \\\n    \
          -chardev socket,id=c,path=/tmp/a.sock \\\n    \
          -netdev vhost-user,id=n,chardev=c,queues=2 \\\n    \
          -device virtio-net-pci,netdev=n,mq=on,vectors=6 …\n\n\
        An interface of this machine's own kernel, with the module vduse:\n\n  \
        linkspan net --port vduse:net0 --port responder &\n  \
        vdpa dev add name net0 mgmtdev vduse\n\n\
        With --capture FILE, `tshark -r FILE` and Wireshark show what went through each port.\n\n\
        SIGHUP makes it say what was counted of each port, SIGUSR1 takes the links of all\n\
        ports down and SIGUSR2 up again, SIGINT or SIGTERM ends it.",
    group = ArgGroup::new("what").args(["port", "print_capabilities"]).required(true)
)]
pub struct Args {
    /// A port: what is behind it, and options after commas; see below
    #[arg(long, value_name = "PORT[,OPTION]…")]
    port: Vec<PortSpec>,

    /// What becomes of frames
    #[arg(long, value_enum, default_value = "switch")]
    mode: ModeArg,

    /// Seconds after which the switch forgets a station that sends nothing
    #[arg(long, value_name = "SECONDS", default_value_t = FabricOptions::AGEING_S, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    ageing: u32,

    /// Frames a second that a port may send to all others, as those for an unknown
    /// station are, on each worker; a tenth of them at once; 0: no limit
    #[arg(long, value_name = "FRAMES", default_value_t = FabricOptions::FLOOD_PER_S)]
    flood_limit: u32,

    /// Print what this program can do, in the form that management software
    /// expects of a vhost-user program, and exit
    #[arg(long)]
    print_capabilities: bool,

    /// Print what happens to the ports on standard output, one JSON object a line
    #[arg(long)]
    json: bool,

    /// Write what goes through the ports to a file that Wireshark reads (pcapng), one
    /// interface for each port; replaces the file
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,

    /// Bytes of each frame that are captured at most [default: all]
    #[arg(long, value_name = "BYTES", requires = "capture", value_parser = clap::value_parser!(u32).range(14..=i64::from(SNAP_LENGTH_MAX)))]
    snap_length: Option<u32>,

    #[command(flatten)]
    workers: WorkerArgs,

    #[command(flatten)]
    vduse: VduseArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeArg {
    /// A learning switch
    Switch,
    /// Two ports, each of which gets what the other sends
    Pair,
    /// Frames are copied out whole, looked at and dropped
    Sink,
    /// Each guest gets as many frames as it takes
    Source,
    /// Each port gets its frames back, with the addresses swapped
    Echo,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Switch => Self::Switch,
            ModeArg::Pair => Self::Pair,
            ModeArg::Sink => Self::Sink,
            ModeArg::Source => Self::Source,
            ModeArg::Echo => Self::Echo,
        }
    }
}

/// Joins the ports until a signal ends it, or until all guests are gone for good.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    if args.print_capabilities {
        return serving::print_capabilities("net", &[]);
    }
    let (successor, lent) = crate::upgrade::begin()?.unzip();
    // Before signals are kept for us: the other end of a pipe may never come.
    let (capture, file) = args.capture()?.unzip();
    let signals = Signals::install(&[
        Signal::Interrupt,
        Signal::Terminate,
        Signal::Hangup,
        Signal::User1,
        Signal::User2,
    ]);
    let signals = signals.context("cannot watch for signals")?;
    let pairs = args.port.iter().map(|port| port.queues).max();
    let workers = args.workers.start(pairs.unwrap_or(1))?;
    let mut lent = lent.map(Lent::new);
    let ports = args.port.iter();
    let ports = ports.map(|port| open_port(port, args.json, lent.as_mut()));
    let ports: Result<Vec<_>, Failure> = ports.collect();
    let limit = args.flood_limit;
    let fabric = Fabric::with(FabricOptions {
        capture,
        ageing_s: args.ageing,
        flood: (limit > 0).then(|| FabricOptions::flood_per_second(limit)),
        held: successor.is_some(),
        ..FabricOptions::new(args.mode.into(), ports?, workers.count())
    });
    let fabric = fabric.map_err(no_fabric)?;
    let shared = SharedFabric::new(&fabric, &workers).map_err(no_fabric)?;
    let servers = match successor {
        Some(successor) => {
            seal(args)?;
            upgrade::take_over(successor, args, &fabric, &workers, &shared)?
        }
        None => begin(args, &fabric, &workers)?,
    };
    // Before it can be seen that the ports are there.
    crate::upgrade::offer(upgrade::giver(&servers, &shared));
    for number in 0..fabric.ports() {
        let server = servers.iter().find(|(port, _)| *port == number);
        show(number, &fabric, server.map(|(_, server)| server));
    }
    tether::settle();
    wait(&signals, &servers, &fabric, args.json)?;
    let away = servers.iter().any(|(_, server)| server.is_away());
    if !away {
        tracing::info!("ending: finishing what is in flight");
    }
    for (_, server) in servers {
        server.stop()?;
    }
    shared.stop();
    let captured = file.map_or(Ok(()), CaptureFile::finish);
    report::counts(&fabric, args.json);
    captured.context("the capture is not complete")?;
    if away {
        // The supervisor looks at this end only if the other one died before it said so: then
        // there has to be a new one.
        let error = anyhow!("another process has the network now");
        return Err(Failure::new(Status::Failed, error));
    }
    Ok(())
}

/// Begins to serve all ports that have servers: each with its number.
fn begin(
    args: &Args,
    fabric: &Arc<Fabric>,
    workers: &Arc<Workers>,
) -> Result<Vec<(u16, Server)>, Failure> {
    let sockets: Result<Vec<_>, Failure> = args.port.iter().map(socket).collect();
    let sockets = sockets?;
    seal(args)?;
    let mut servers = Vec::new();
    for ((number, port), socket) in (0..).zip(&args.port).zip(sockets) {
        let server = serve(port, socket, number, fabric, workers, args)?;
        servers.extend(server.map(|server| (number, server)));
    }
    Ok(servers)
}

/// Enters the sandbox of a network, some of whose ports may be devices in the kernel.
fn seal(args: &Args) -> Result<(), Failure> {
    let mut ports = args.port.iter();
    match ports.any(|port| matches!(port.behind, Behind::Vduse(_))) {
        true => args.vduse.seal(sandbox::Kind::Net),
        false => sandbox::seal(sandbox::Kind::Net, &[]),
    }
}

/// What there is to see of a port while it is served.
fn show(port: u16, fabric: &Arc<Fabric>, server: Option<&Server>) {
    let endpoint = server.map(|server| Arc::clone(server.endpoint()));
    if let Some(endpoint) = &endpoint {
        tether::watch(fabric.name(port), endpoint.messages());
    }
    let fabric = Arc::downgrade(fabric);
    tether::show(move || {
        let fabric = fabric.upgrade()?;
        let name = fabric.name(port);
        let counted = report::port(&fabric, port)?;
        let seen = match &endpoint {
            Some(endpoint) => tether::endpoint(name, NETWORK_DEVICE, endpoint),
            None => serde_json::json!({ "endpoint": name }),
        };
        Some(tether::with(seen, serde_json::json!({ "frames": counted })))
    });
}

impl Args {
    /// What it takes of this machine.
    pub(crate) fn uses(&self) -> Vec<Used> {
        let ports = self.port.iter().filter_map(|port| match &port.behind {
            Behind::Listen(path) => Some(Use::Socket(path.clone())),
            Behind::Vduse(name) => Some(Use::Vduse(name.as_str().to_owned())),
            Behind::Tap(name) => Some(Use::Interface(name.clone())),
            Behind::Connect(_) | Behind::GuestFd(_) | Behind::TapFd(_) | Behind::Responder => None,
        });
        let capture = self.capture.iter().cloned().map(Use::Makes);
        ports
            .map(|used| ("port", used))
            .chain(capture.map(|used| ("capture", used)))
            .collect()
    }

    /// What it gives to virtual machines.
    pub(crate) fn offers(&self) -> Vec<Offer> {
        let ports = self.port.iter().filter_map(|port| match &port.behind {
            Behind::Listen(socket) => Some(Offer {
                plug: Plug::Nic {
                    pairs: port.queues,
                    mac: port.mac.unwrap_or_else(|| mac_of(&port.name)),
                },
                socket: socket.clone(),
            }),
            _ => None,
        });
        ports.collect()
    }

    /// Opens the file for what goes through the ports, if there is to be one.
    fn capture(&self) -> Result<Option<(Arc<Capture>, CaptureFile)>, Failure> {
        let Some(path) = &self.capture else {
            return Ok(None);
        };
        let cannot = || format!("cannot capture to {}", path.display());
        let file = File::create(path).with_context(cannot)?;
        let names: Vec<_> = self.port.iter().map(|port| port.name.clone()).collect();
        let snap_length = self.snap_length.unwrap_or(SNAP_LENGTH_MAX);
        let capture = Capture::begin(file, &names, snap_length).with_context(cannot)?;
        Ok(Some(capture))
    }
}

/// Waits for a signal to end, or for the end of all guests.
fn wait(
    signals: &Signals,
    servers: &[(u16, Server)],
    fabric: &Fabric,
    json: bool,
) -> Result<(), Failure> {
    const SIGNALS: u64 = u64::MAX;
    const CARRIERS: u64 = SIGNALS - 1;
    const INTERFACES: u64 = SIGNALS - 2;
    let links = Links::watch(fabric)?;
    let epoll = Epoll::new().context("cannot wait for a signal")?;
    epoll.add(signals.as_fd(), SIGNALS, Interest::READ)?;
    epoll.add(fabric.carriers(), CARRIERS, Interest::READ)?;
    if let Some(news) = links.news() {
        epoll.add(news, INTERFACES, Interest::READ)?;
    }
    for (number, (_, server)) in (0..).zip(servers) {
        epoll.add(server.ended(), number, Interest::READ)?;
    }
    let mut left = servers.len();
    let mut ready = Ready::with_capacity(16);
    loop {
        epoll
            .wait(&mut ready, None)
            .context("cannot wait for a signal")?;
        for event in ready.iter() {
            match event.token {
                CARRIERS => links.set_carriers(),
                INTERFACES => links.look(),
                _ => {}
            }
            if let Some((_, server)) = usize::try_from(event.token)
                .ok()
                .and_then(|at| servers.get(at))
            {
                epoll.delete(server.ended())?;
                left -= 1;
                if left == 0 {
                    return Ok(());
                }
                continue;
            }
            for signal in signals.take().context("cannot take a signal")? {
                match signal {
                    Signal::Hangup => report::counts(fabric, json),
                    Signal::User1 => links.set_all(false, json),
                    Signal::User2 => links.set_all(true, json),
                    Signal::Interrupt | Signal::Terminate => return Ok(()),
                }
            }
        }
    }
}

fn no_fabric(error: FabricError) -> Failure {
    let status = match error {
        FabricError::System(_) | FabricError::Switch(_) => Status::Failed,
        _ => Status::Usage,
    };
    Failure::new(status, error)
}

/// Opens a port, an interface with what another process lent if it has one.
fn open_port(port: &PortSpec, json: bool, lent: Option<&mut Lent>) -> Result<PortOptions, Failure> {
    let kind = match (&port.behind, lent) {
        (Behind::Tap(_) | Behind::TapFd(_), Some(lent)) => Kind::Tap(lent.queues(port.queues)?),
        (behind, _) => open_anew(port, behind, json)?,
    };
    let rate = |tokens: u64| Rate::per_second(tokens, None);
    Ok(PortOptions {
        name: port.name.clone(),
        kind,
        vlans: match (&port.trunk, port.vlan) {
            (Some(allowed), native) => PortVlans::Trunk {
                native,
                allowed: allowed.clone(),
            },
            (None, Some(vlan)) => PortVlans::Access(vlan),
            (None, None) => PortVlans::Unaware,
        },
        mtu: port.mtu,
        limit: RateLimit::new(
            Instant::now(),
            port.packets_per_second.map(rate),
            port.bytes_per_second.map(rate),
        ),
    })
}

fn open_anew(port: &PortSpec, behind: &Behind, json: bool) -> Result<Kind, Failure> {
    Ok(match behind {
        Behind::Listen(_) | Behind::Connect(_) | Behind::GuestFd(_) | Behind::Vduse(_) => {
            Kind::Guest { pairs: port.queues }
        }
        Behind::Tap(name) => {
            let (name, queues) = open_tap(name, port.queues, from_kernel()).map_err(no_tap)?;
            report::opened(&port.name, &name, json);
            Kind::Tap(queues)
        }
        Behind::TapFd(fd) => {
            let queue = TapQueue::inherit(*fd, from_kernel());
            let queue = queue.map_err(|error| Failure::new(Status::Usage, error))?;
            Kind::Tap(vec![queue])
        }
        Behind::Responder => Kind::Responder(responder(port)),
    })
}

fn responder(port: &PortSpec) -> Responder {
    let address = port.address.octets();
    Responder {
        mac: port.mac.unwrap_or_else(|| mac_of(&port.name)),
        address,
        lease: port.lease.map(|client| Lease {
            client: client.octets(),
            prefix_len: port.prefix_len,
            router: Some(address),
            dns: None,
            seconds: 3600,
            mtu: port.mtu,
        }),
    }
}

fn no_tap(error: TapError) -> Failure {
    let status = match error {
        TapError::Name(_) => Status::Usage,
        TapError::NoTun | TapError::Permission(_) => Status::Missing,
        _ => Status::Failed,
    };
    Failure::new(status, error)
}

/// Where the front end of a port's guest connects to this process, if it is to.
fn socket(port: &PortSpec) -> Result<Option<Inherited>, Failure> {
    Ok(Some(match &port.behind {
        Behind::Listen(path) => {
            let listener = Listener::bind(path);
            let place = || format!("cannot listen at {}", path.display());
            Inherited::Listener(listener.with_context(place)?)
        }
        Behind::GuestFd(fd) => {
            let socket = inherit(*fd);
            socket.map_err(|error| Failure::new(Status::Usage, anyhow!(error)))?
        }
        _ => return Ok(None),
    }))
}

/// The device of the guest at a port.
fn device(
    port: &PortSpec,
    number: u16,
    fabric: &Arc<Fabric>,
) -> Result<Arc<dyn Device>, NetDeviceError> {
    let options = NetOptions {
        mac: port.mac.unwrap_or_else(|| mac_of(&port.name)),
        mtu: port.mtu,
        pairs: port.queues,
        queue_size: port.queue_size,
        speed: Speed::default(),
        to_device: OFFLOADS,
        to_driver: OFFLOADS,
        control_queue: port.control_queue,
    };
    let device = NetDevice::new(fabric, number, options, port.count)?;
    Ok(Arc::new(device))
}

/// Serves the guest at a port, if there is to be one.
fn serve(
    port: &PortSpec,
    socket: Option<Inherited>,
    number: u16,
    fabric: &Arc<Fabric>,
    workers: &Arc<Workers>,
    args: &Args,
) -> Result<Option<Server>, Failure> {
    let workers = Arc::clone(workers);
    let report = serving::reporter(Some(port.name.clone()), args.json);
    let guest = || device(port, number, fabric);
    let server = match (&port.behind, socket) {
        (_, Some(socket)) => vhost_user::serve(socket, guest()?, workers, report),
        (Behind::Connect(path), None) => {
            vhost_user::connect(path.clone(), guest()?, workers, report)
        }
        (Behind::Vduse(name), None) => {
            let port = Some(port.name.clone());
            let server = args.vduse.serve(name, guest()?, workers, port, args.json)?;
            return Ok(Some(server));
        }
        _ => return Ok(None),
    };
    let server = server.context("cannot start serving")?;
    Ok(Some(server))
}

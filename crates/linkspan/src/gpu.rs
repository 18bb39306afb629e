//! `linkspan gpu`: serves a virtual GPU over vhost-user.

use std::os::fd::{AsFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::ArgGroup;
use linkspan_backends::display::{DisplayServer, GpuDevice, GpuOptions};
use linkspan_backends::image::parse_size;
use linkspan_engine::vhost_user::{self, Event};
use linkspan_engine::{Device, GPU_DEVICE, WorkerOptions, Workers};
use linkspan_sys::Listener;
use linkspan_sys::poll::{Direction, wait_for};
use linkspan_sys::signals::{Signal, Signals};
use linkspan_sys::socket::{Inherited, inherit};

use crate::exit::{Failure, Status};
use crate::plane::{Shows, Use, Used};
use crate::sandbox::{self, Kind};
use crate::serving;
use crate::tether;
use crate::vm::{Offer, Plug};

/// Options of `linkspan gpu`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: a guest's screen, and a picture of it\n\n  \
        linkspan gpu --socket-path /tmp/gpu.sock --display /tmp/screen.sock &\n  \
        qemu-system-x86_64 -m 1G \\\n    \
          -object memory-backend-memfd,id=m,size=1G,share=on -machine q35,memory-backend=m \\\n    \
          -chardev socket,id=g,path=/tmp/gpu.sock \\\n    \
          -device vhost-user-gpu-pci,chardev=g -vga none -display none …\n  \
        linkspan display shot /tmp/screen.sock -o screen.png\n\n\
        QEMU says how large the screen is: xres=, yres= of its device.\n\
        SIGINT or SIGTERM ends it.",
    group = ArgGroup::new("where").args(["socket_path", "fd", "print_capabilities"]).required(true)
)]
pub struct Args {
    /// Where the virtual machine monitor connects: a Unix socket that is made here
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,

    /// Use this inherited descriptor in place of a socket path: one that listens,
    /// or one that is connected already
    #[arg(long, value_name = "N")]
    fd: Option<RawFd>,

    /// Where viewers (`linkspan display`) connect: a Unix socket that is made here. Who may
    /// connect sees the guest's screen
    #[arg(long, value_name = "PATH")]
    display: Option<PathBuf>,

    /// The size that the guest is told, if the virtual machine monitor does not tell it
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value = "1280x800", value_parser = mode)]
    mode: (u32, u32),

    /// Screens; as many as max_outputs= of QEMU's device
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    heads: u8,

    /// Memory that all that the guest draws may take
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    memory: u64,

    /// Print what this program can do, in the form that management software
    /// expects of a vhost-user program, and exit
    #[arg(long)]
    print_capabilities: bool,

    /// Print what happens to the link on standard output, one JSON object a line
    #[arg(long)]
    json: bool,
}

impl Args {
    /// What it takes of this machine.
    pub(crate) fn uses(&self) -> Vec<Used> {
        let makes = |path: &PathBuf| Use::Socket(path.clone());
        let socket = self.socket_path.as_ref().map(makes);
        let display = self.display.as_ref().map(makes);
        let socket = socket.map(|used| ("socket-path", used));
        let display = display.map(|used| ("display", used));
        socket.into_iter().chain(display).collect()
    }

    /// What it shows to viewers.
    pub(crate) fn shows(&self) -> Option<Shows> {
        Some(Shows {
            display: self.display.clone()?,
            heads: self.heads,
            socket: self.socket_path.clone(),
        })
    }

    /// What it gives to virtual machines.
    pub(crate) fn offers(&self) -> Vec<Offer> {
        let socket = self.socket_path.clone();
        let plug = Plug::Gpu;
        let offer = socket.map(|socket| Offer { plug, socket });
        offer.into_iter().collect()
    }
}

/// A size as WIDTHxHEIGHT.
pub(crate) fn mode(text: &str) -> Result<(u32, u32), String> {
    let sides = text
        .split_once('x')
        .and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    sides.ok_or_else(|| "a size such as 1280x800".into())
}

/// Serves the GPU until a signal ends it.
///
/// # Errors
/// With the status that the program is to end with.
pub fn run(args: &Args) -> Result<(), Failure> {
    if args.print_capabilities {
        return serving::print_capabilities("gpu", &[]);
    }
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let options = GpuOptions {
        heads: args.heads,
        mode: args.mode,
        memory: args.memory,
    };
    let device = GpuDevice::new(&options).map_err(|error| Failure::new(Status::Usage, error))?;
    let device = Arc::new(device);
    let workers = Workers::with(&WorkerOptions {
        count: 1,
        ..WorkerOptions::default()
    });
    let workers = Arc::new(workers.context("cannot start the worker thread")?);
    tether::depend_on(&workers);
    let viewers = match &args.display {
        Some(path) => {
            let listener = Listener::bind(path);
            let listener =
                listener.with_context(|| format!("cannot listen at {}", path.display()))?;
            let viewers = DisplayServer::start(&device, listener);
            Some(viewers.context("cannot serve viewers")?)
        }
        None => None,
    };
    let tell = serving::reporter(None, args.json);
    let shown = Arc::clone(&device);
    let report = move |event| {
        if matches!(event, Event::Ended { .. }) {
            shown.front_end_is_gone();
        }
        tell(event);
    };
    let socket = listen(args)?;
    sandbox::seal(Kind::Gpu, &[])?;
    let server = vhost_user::serve(
        socket,
        Arc::clone(&device) as Arc<dyn Device>,
        workers,
        report,
    );
    let server = server.context("cannot start serving")?;
    let endpoint = Arc::clone(server.endpoint());
    tether::watch("screen", endpoint.messages());
    tether::watch("front end", device.messages());
    tether::show(move || Some(tether::endpoint("screen", GPU_DEVICE, &endpoint)));
    wait_for(server.ended(), Direction::Read, Some(signals.as_fd()), None)
        .context("cannot wait for a signal")?;
    tracing::info!("ending");
    server.stop()?;
    drop(viewers);
    Ok(())
}

fn listen(args: &Args) -> Result<Inherited, Failure> {
    if let Some(fd) = args.fd {
        return inherit(fd).map_err(|error| Failure::new(Status::Usage, error));
    }
    let path = args.socket_path.as_deref().unwrap_or(Path::new(""));
    let listener =
        Listener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
    Ok(Inherited::Listener(listener))
}

//! `linkspan k8s device-plugin`: a plugin of a kubelet for each resource, with what their
//! supervisor says of its links.
//!
//! A kubelet that starts removes all sockets in its folder and makes its own anew. So that
//! folder is watched, and whatever happens there, what is to be there is put there again: our
//! socket, and our registration with the kubelet that is there now.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_sys::signals::{Signal, Signals};
use rustix::fs::inotify;
use rustix::io::Errno;
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::api;
use super::devices::{Devices, Link, Resource};
use super::grpc::{self, Answer, Code, Service, Status, body, decoded};
use crate::control::ask;
use crate::exit::{Failure, Status as Exit};
use crate::sandbox::{self, Kind};
use crate::serving::print;
use crate::supervisor::Question;

/// How often the supervisor is asked how its links are.
const ROUND: Duration = Duration::from_secs(1);

/// The first pause before a kubelet that did not take a registration is asked again.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest; and how often it is made sure that a kubelet which took one still has it.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The kubelet's own socket.
const KUBELET: &str = "kubelet.sock";

/// Options of `device-plugin`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: all links that are called disk-… are devices of one resource\n\n  \
    linkspan k8s device-plugin --resource 'linkspan.dev/disk=disk-*'\n\n\
    A container that asks for `linkspan.dev/disk: 1` gets the folder of one link's socket at\n\
    /run/linkspan/disk/0, and the socket's path there in LINKSPAN_DISK. A link is a device if\n\
    it has one socket, in a folder without sockets of other links; it is healthy while it\n\
    serves. See docs/kubernetes.md. SIGTERM and SIGINT end it; pods keep what they have."
)]
pub(super) struct Args {
    /// A resource, and the links of the plane that are its devices; `*` stands for anything. May
    /// be given again
    #[arg(long = "resource", value_name = "DOMAIN/NAME=LINKS", required = true)]
    resources: Vec<Resource>,

    /// The control socket of the plane: `control` in [plane]
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/linkspan/control.sock"
    )]
    control: PathBuf,

    /// The folder of the kubelet's device plugins
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/kubelet/device-plugins"
    )]
    kubelet_dir: PathBuf,

    /// Where containers have their devices: NAME/0, NAME/1 … of each resource below it
    #[arg(long, value_name = "DIR", default_value = "/run/linkspan", value_parser = folder)]
    mount_below: String,

    /// Prints what happens on standard output, one JSON object a line
    #[arg(long)]
    json: bool,
}

fn folder(text: &str) -> Result<String, String> {
    let plain = text.starts_with('/') && !text.ends_with('/') && !text.contains(',');
    plain
        .then(|| text.to_owned())
        .ok_or_else(|| "a whole path, without a comma".to_owned())
}

/// What happens, as a line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    event: &'static str,
    resource: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    devices: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthy: Option<usize>,
}

/// Serves until a signal ends it.
///
/// # Errors
/// With the status that the program is to end with.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    for (at, resource) in args.resources.iter().enumerate() {
        let earlier = &args.resources[..at];
        if let Some(other) = earlier.iter().find(|it| it.is_taken_for(resource)) {
            let (one, two) = (other.whole_name(), resource.whole_name());
            let error = anyhow!("containers could not tell {one} from {two}");
            return Err(Failure::new(Exit::Usage, error).hint("another NAME for one of them"));
        }
    }
    // Before there are threads, which would take them otherwise.
    let signals = Signals::install(&[Signal::Interrupt, Signal::Terminate])
        .context("cannot watch for signals")?;
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot wait")?;
    runtime.block_on(serve(args, signals))
}

async fn serve(args: &Args, signals: Signals) -> Result<(), Failure> {
    // Before it is looked into, so that nothing is missed.
    let mut news = watch_folder(&args.kubelet_dir, signals)?;
    let resources: Arc<[Resource]> = args.resources.clone().into();
    let (tell, mut devices) = watch::channel(Arc::new(Vec::new()));
    let control = args.control.clone();
    let asked = (Arc::clone(&resources), args.json);
    thread::Builder::new()
        .name("links".to_owned())
        .spawn(move || watch_links(&control, &asked.0, &tell, asked.1))
        .context("cannot start a thread")?;
    sandbox::seal(Kind::DevicePlugin, &[])?;
    // A kubelet that heard of no devices would take pods for those that cannot be there.
    while devices.borrow_and_update().is_empty() {
        tokio::select! {
            changed = devices.changed() => changed.context("nobody asks how links are")?,
            happened = news.recv() => if args.ends(happened)? { return Ok(()) },
        }
    }
    let plugin = |(index, resource): (usize, &Resource)| Plugin {
        socket: args.kubelet_dir.join(resource.endpoint()),
        resource: resource.clone(),
        desk: Desk::new(index, resource, &args.mount_below, devices.clone()),
        served: None,
        registered: None,
        json: args.json,
    };
    // Their sockets go with them.
    let mut plugins: Vec<Plugin> = resources.iter().enumerate().map(plugin).collect();
    let (mut pause, mut next) = (PAUSE_MIN, Instant::now());
    loop {
        for plugin in &mut plugins {
            if plugin.listens_anew()? {
                next = Instant::now();
            }
        }
        if next <= Instant::now() {
            let mut all = true;
            for plugin in &mut plugins {
                all &= plugin.is_taken(&args.kubelet_dir.join(KUBELET)).await;
            }
            (pause, next) = match all {
                true => (PAUSE_MIN, Instant::now() + PAUSE_MAX),
                false => ((pause * 2).min(PAUSE_MAX), Instant::now() + pause),
            };
        }
        let happened = tokio::select! {
            happened = news.recv() => happened,
            () = sleep_until(next) => continue,
        };
        if args.ends(happened)? {
            return Ok(());
        }
        if happened.is_some_and(|it| it.has_kubelet) {
            (pause, next) = (PAUSE_MIN, Instant::now());
        }
    }
}

impl Args {
    /// Whether the process is to end.
    ///
    /// # Errors
    /// It cannot go on.
    fn ends(&self, happened: Option<News>) -> Result<bool, Failure> {
        let folder = self.kubelet_dir.display();
        match happened {
            Some(News {
                is_gone: false,
                is_signal,
                ..
            }) => Ok(is_signal),
            Some(_) => Err(Failure::new(Exit::Missing, anyhow!("{folder} is gone"))),
            None => Err(anyhow!("cannot watch {folder} any more").into()),
        }
    }
}

/// Asks how links are, again and again, and tells of it when that has changed.
fn watch_links(
    control: &Path,
    resources: &[Resource],
    tell: &watch::Sender<Arc<Vec<Devices>>>,
    json: bool,
) {
    let (mut is_silent, mut told) = (false, BTreeSet::new());
    while !tell.is_closed() {
        let answer = ask(control, &Question::List)
            .map_err(|failure| failure.to_string())
            .and_then(|text| Link::list(&text).map_err(|error| error.to_string()));
        let now: Vec<Devices> = match answer {
            Ok(links) => {
                is_silent = false;
                // Without detours, as the supervisor tells of the sockets of links: folders are
                // compared.
                let straight = control.canonicalize();
                let control = straight.as_deref().unwrap_or(control);
                let of = |(index, resource): (usize, &Resource)| {
                    Devices::of(resource, &resources[..index], &links, control, is_socket)
                };
                let (devices, refused): (_, Vec<_>) = resources.iter().enumerate().map(of).unzip();
                let refused: BTreeSet<String> = refused.into_iter().flatten().collect();
                for why in refused.difference(&told) {
                    tracing::warn!("no device: {why}");
                }
                told = refused;
                devices
            }
            Err(why) => {
                if !is_silent {
                    tracing::warn!("no device is healthy: {why}");
                }
                is_silent = true;
                let before: Vec<Devices> = tell.borrow().as_ref().clone();
                before.into_iter().map(Devices::unknown).collect()
            }
        };
        if now != **tell.borrow() {
            for (resource, devices) in resources.iter().zip(&now) {
                counted(resource, devices, json);
            }
            tell.send_replace(Arc::new(now));
        }
        thread::sleep(ROUND);
    }
}

fn counted(resource: &Resource, devices: &Devices, json: bool) {
    let (count, healthy) = devices.count();
    let resource = &resource.whole_name();
    tracing::info!("{resource}: {healthy} of {count} devices are healthy");
    if json {
        print(&Line {
            event: "devices",
            resource,
            devices: Some(count),
            healthy: Some(healthy),
        });
    }
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket())
}

/// What tells the socket at a path from one that is made there later.
type SocketId = Option<(u64, i64, i64)>;

fn socket_id(path: &Path) -> SocketId {
    let socket = fs::symlink_metadata(path).ok()?;
    Some((socket.ino(), socket.ctime(), socket.ctime_nsec()))
}

/// A plugin for one resource, as a kubelet sees it.
struct Plugin {
    resource: Resource,
    socket: PathBuf,
    desk: Desk,
    served: Option<JoinHandle<()>>,
    /// When a kubelet took it, and the socket of that one.
    registered: Option<(Instant, SocketId)>,
    json: bool,
}

impl Plugin {
    /// Listens, unless it does; whether that is new.
    ///
    /// # Errors
    /// It cannot.
    fn listens_anew(&mut self) -> Result<bool, Failure> {
        let is_new = self.served.is_none() || !is_socket(&self.socket);
        if is_new {
            self.listen()?;
            self.registered = None;
        }
        Ok(is_new)
    }

    /// Whether the kubelet that is there now has taken it. One whose stream of devices ended
    /// has let go of it, and neither says so nor comes back.
    async fn is_taken(&mut self, kubelet: &Path) -> bool {
        let is_new = |at: Instant| at.elapsed() < PAUSE_MAX;
        let holds = |(at, socket): (Instant, SocketId)| {
            socket == socket_id(kubelet) && (is_new(at) || self.desk.is_watched())
        };
        if self.registered.is_some_and(holds) {
            return true;
        }
        self.registered = None;
        let request = api::RegisterRequest {
            version: api::VERSION.to_owned(),
            endpoint: self.resource.endpoint(),
            resource_name: self.resource.whole_name(),
            options: Some(OPTIONS),
        };
        let resource = &self.resource.whole_name();
        match grpc::ask(kubelet, api::REGISTER, &request).await {
            Ok(()) => {
                self.registered = Some((Instant::now(), socket_id(kubelet)));
                tracing::info!("the kubelet has {resource}");
                if self.json {
                    print(&Line {
                        event: "registered",
                        resource,
                        devices: None,
                        healthy: None,
                    });
                }
            }
            Err(error) => tracing::warn!("the kubelet does not take {resource}: {error:#}"),
        }
        self.registered.is_some()
    }

    fn listen(&mut self) -> Result<(), Failure> {
        if let Some(served) = self.served.take() {
            served.abort();
        }
        let at = self.socket.display();
        // That of an earlier process, which nobody listens at, or which ends now.
        match fs::remove_file(&self.socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {at}"))?;
            }
            _ => {}
        }
        let listener =
            UnixListener::bind(&self.socket).with_context(|| format!("cannot listen at {at}"))?;
        self.served = Some(tokio::spawn(grpc::serve(listener, self.desk.clone())));
        Ok(())
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        if self.served.is_some() {
            // One that the kubelet has removed is gone already.
            let _ = fs::remove_file(&self.socket);
        }
    }
}

/// What a plugin says that it can do.
const OPTIONS: api::DevicePluginOptions = api::DevicePluginOptions {
    pre_start_required: false,
    get_preferred_allocation_available: true,
};

/// Who answers a kubelet.
#[derive(Clone)]
struct Desk {
    index: usize,
    resource: Arc<Resource>,
    below: Arc<str>,
    devices: watch::Receiver<Arc<Vec<Devices>>>,
    /// The devices as a message; those who wait for the newest are its receivers.
    list: Arc<watch::Sender<Bytes>>,
}

impl Desk {
    fn new(
        index: usize,
        resource: &Resource,
        below: &str,
        mut devices: watch::Receiver<Arc<Vec<Devices>>>,
    ) -> Self {
        let now = body(&devices.borrow()[index].list());
        let list = Arc::new(watch::Sender::new(now));
        let tell = Arc::clone(&list);
        let from = devices.clone();
        tokio::spawn(async move {
            // It ends with who says how links are.
            while devices.changed().await.is_ok() {
                let now = body(&devices.borrow_and_update()[index].list());
                tell.send_if_modified(|before| {
                    let is_new = *before != now;
                    *before = now;
                    is_new
                });
            }
        });
        Self {
            index,
            resource: Arc::new(resource.clone()),
            below: below.into(),
            devices: from,
            list,
        }
    }

    /// Whether somebody waits for the newest devices.
    fn is_watched(&self) -> bool {
        self.list.receiver_count() > 0
    }
}

impl Service for Desk {
    fn call(&self, method: &str, message: &[u8]) -> Result<Answer, Status> {
        if method == api::LIST_AND_WATCH {
            decoded::<api::Empty>(message)?;
            return Ok(Answer::Newest(self.list.subscribe()));
        }
        let devices = Arc::clone(&self.devices.borrow());
        let answer = answer(
            &devices[self.index],
            &self.resource,
            &self.below,
            method,
            message,
        )?;
        if method == api::ALLOCATE {
            tracing::info!("{}: a container gets devices", self.resource.whole_name());
        }
        Ok(Answer::One(answer))
    }
}

/// The answer to a call that has one.
fn answer(
    devices: &Devices,
    resource: &Resource,
    below: &str,
    method: &str,
    message: &[u8],
) -> Result<Bytes, Status> {
    Ok(match method {
        api::OPTIONS => {
            decoded::<api::Empty>(message)?;
            body(&OPTIONS)
        }
        api::PREFER => body(&devices.prefer(&decoded(message)?)?),
        api::ALLOCATE => body(&devices.allocate(resource, below, &decoded(message)?)?),
        api::PRE_START => {
            devices.pre_start(&decoded(message)?)?;
            body(&api::Empty {})
        }
        _ => {
            let why = "a device plugin has no such method";
            return Err(Status::new(Code::Unimplemented, why));
        }
    })
}

/// What a fuzzer's call of a method comes to.
pub(super) fn take(method: u8, bytes: &[u8]) -> &'static str {
    let link = |name: &str, state: &str| {
        format!("{{\"link\":\"{name}\",\"state\":\"{state}\",\"sockets\":[\"/r/{name}/s\"]}}\n")
    };
    let links = [
        link("a", "running"),
        link("b", "running"),
        link("c", "stopped"),
    ]
    .concat();
    let links = Link::list(&links).unwrap_or_default();
    let resource: Resource = "linkspan.dev/disk=*".parse().expect("a resource");
    let (devices, _) = Devices::of(&resource, &[], &links, Path::new("/c"), |_| true);
    let methods = [api::OPTIONS, api::PREFER, api::ALLOCATE, api::PRE_START, ""];
    let method = methods[usize::from(method) % methods.len()];
    let called = grpc::message(bytes)
        .and_then(|message| answer(&devices, &resource, "/run/linkspan", method, message));
    match called.map_err(|it| it.code) {
        Ok(_) => "answered",
        Err(Code::NotFound) => "unknown",
        Err(Code::FailedPrecondition) => "unhealthy",
        Err(_) => "refused",
    }
}

/// What has happened.
#[derive(Clone, Copy, Debug, Default)]
struct News {
    /// The process is to end.
    is_signal: bool,
    /// A socket of a kubelet was made.
    has_kubelet: bool,
    /// The folder is no more.
    is_gone: bool,
}

/// Watches for signals and what happens in a folder, on a thread of its own.
fn watch_folder(folder: &Path, signals: Signals) -> Result<mpsc::Receiver<News>, Failure> {
    use inotify::{CreateFlags, WatchFlags};
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
    let fd = fd.context("cannot watch folders")?;
    let what = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
    let what = what | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
    inotify::add_watch(&fd, folder, what).map_err(|error| {
        let status = match error {
            Errno::NOENT | Errno::NOTDIR | Errno::ACCESS => Exit::Missing,
            _ => Exit::Failed,
        };
        let error = anyhow!(error).context(format!("cannot watch {}", folder.display()));
        Failure::new(status, error).hint("--kubelet-dir, on a node of a cluster")
    })?;
    let (tell, news) = mpsc::channel(1);
    let watch = move || {
        // What cannot be watched ends the process, as does nobody who listens.
        let _ = watch(&fd, &signals, &tell);
    };
    let thread = thread::Builder::new().name("folder".to_owned());
    thread.spawn(watch).context("cannot start a thread")?;
    Ok(news)
}

fn watch(fd: &OwnedFd, signals: &Signals, tell: &mpsc::Sender<News>) -> anyhow::Result<()> {
    loop {
        let news = match wait_for(fd.as_fd(), Direction::Read, Some(signals.as_fd()), None)? {
            Wake::Cancelled => News {
                is_signal: true,
                ..News::default()
            },
            Wake::Ready | Wake::Deadline => read(fd)?,
        };
        tell.blocking_send(news)?;
        if news.is_signal {
            return Ok(());
        }
    }
}

/// All that has happened in the folder by now.
fn read(fd: &OwnedFd) -> Result<News, Errno> {
    use inotify::ReadFlags;
    let mut bytes = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(fd, &mut bytes);
    let mut news = News::default();
    let made = ReadFlags::CREATE | ReadFlags::MOVED_TO;
    let gone = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED;
    loop {
        match reader.next() {
            Ok(event) => {
                let flags = event.events();
                let name = event.file_name().map(CStr::to_bytes);
                let is_kubelet = name == Some(KUBELET.as_bytes()) && flags.intersects(made);
                news.has_kubelet |= is_kubelet || flags.contains(ReadFlags::QUEUE_OVERFLOW);
                news.is_gone |= flags.intersects(gone);
            }
            Err(Errno::AGAIN) => return Ok(news),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

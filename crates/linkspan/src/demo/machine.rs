//! One run of QEMU: a machine with a kernel, an initramfs and, if given, a disk and
//! a network card over vhost-user. It only needs their sockets, so that any back end
//! can stand behind them.

use std::io::{Read, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::Error;
use super::kernel::Kernel;
use super::process::{Process, Stop, supervised, tail, wait_readable};
use super::qemu::{comma_escaped, reconnect, version};

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Software emulation: works everywhere, slow.
    Tcg,
    /// The host kernel's virtualization.
    Kvm,
}

impl Accel {
    /// QEMU's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        }
    }
}

/// What the guest's init does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A shell on the terminal, for a person.
    Shell,
    /// The disk check.
    Check,
    /// Discards a part of the disk.
    Discard,
    /// Says that it runs, and powers off.
    Probe,
    /// Carries out what it is told by [`Machine::tell`]. QEMU's own monitor (QMP) listens
    /// at [`monitor`].
    Remote,
}

/// The machine apart from what is plugged into it.
#[derive(Clone, Debug)]
pub struct Hardware {
    /// The QEMU program.
    pub qemu: PathBuf,
    /// How the guest is executed.
    pub accel: Accel,
    /// The guest's memory in MiB.
    pub memory_mib: u32,
    /// The kernel to boot.
    pub kernel: Kernel,
}

/// A disk behind a vhost-user socket.
#[derive(Clone, Copy, Debug)]
pub struct Disk<'a> {
    /// Where the back end listens.
    pub socket: &'a Path,
    /// Queues of the device. The machine gets as many processors, because a
    /// guest uses at most one queue for each.
    pub queues: u16,
    /// Whether the rings are packed.
    pub packed: bool,
}

/// A network card behind a vhost-user socket.
#[derive(Clone, Copy, Debug)]
pub struct Nic<'a> {
    /// Where the back end listens.
    pub socket: &'a Path,
    /// Queue pairs. The machine gets as many processors, as for a disk.
    pub pairs: u16,
    /// Whether the rings are packed.
    pub packed: bool,
    /// The card's address, which no other card of its network may have: QEMU gives
    /// the first card of every machine the same one.
    pub mac: [u8; 6],
    /// What the guest does with the card by itself.
    pub place: Place,
}

/// How a guest finds its place in a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is told later.
    None,
    /// It asks for a lease, and the router that comes with it answers its pings.
    Lease,
    /// It takes an address.
    Fixed {
        /// The address.
        own: Ipv4Addr,
        /// Bits of the network in it.
        prefix_len: u8,
        /// Who answers its pings.
        peer: Ipv4Addr,
    },
}

/// What is plugged into a machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Devices<'a> {
    /// A disk.
    pub disk: Option<Disk<'a>>,
    /// A network card.
    pub nic: Option<Nic<'a>>,
    /// A virtual GPU.
    pub gpu: Option<Gpu<'a>>,
    /// More options of QEMU.
    pub more: &'a [&'a str],
}

/// A virtual GPU behind a vhost-user socket.
#[derive(Clone, Copy, Debug)]
pub struct Gpu<'a> {
    /// Where the back end listens.
    pub socket: &'a Path,
    /// Whether the rings are packed.
    pub packed: bool,
    /// Where QEMU's monitor is to listen for what viewers type and point at, if they may.
    pub keys: Option<&'a Path>,
}

/// What a machine said or did.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A line on the report port, without its end.
    Line(String),
    /// QEMU ended.
    Exited(ExitStatus),
    /// The deadline passed.
    Late,
}

/// A running machine. Dropping it ends QEMU.
#[derive(Debug)]
pub struct Machine {
    qemu: Process,
    report: Option<ChildStdout>,
    orders: Option<ChildStdin>,
    buffer: Vec<u8>,
    console: PathBuf,
}

/// The socket of QEMU's monitor for a machine in [`Mode::Remote`] with this console.
#[must_use]
pub fn monitor(console: &Path) -> PathBuf {
    console.with_extension("qmp")
}

/// A report line longer than this is no report; the rest is dropped.
const LINE_BYTES_MAX: usize = 4096;

impl Machine {
    /// Boots the machine. In [`Mode::Shell`] its console is this terminal; in
    /// the other modes it is the file `console`, and reports come as events.
    ///
    /// # Errors
    /// [`Error::System`] where QEMU cannot be started.
    pub fn start(
        hardware: &Hardware,
        devices: Devices<'_>,
        mode: Mode,
        initramfs: &Path,
        console: &Path,
    ) -> Result<Self, Error> {
        let mut command = supervised(&hardware.qemu);
        let reconnect = reconnect(version(&hardware.qemu));
        command.args(arguments(
            hardware, reconnect, devices, mode, initramfs, console,
        ));
        if mode != Mode::Shell {
            let remote = mode == Mode::Remote;
            command
                .stdin(if remote {
                    Stdio::piped()
                } else {
                    Stdio::null()
                })
                .stdout(Stdio::piped());
            // What QEMU itself has to say belongs beside what the guest said.
            let log = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(console);
            command.stderr(log.map_err(Error::file("write", console))?);
        }
        let mut qemu = Process::spawn("QEMU", &mut command)?;
        let (report, orders) = (qemu.take_stdout(), qemu.take_stdin());
        Ok(Self {
            qemu,
            report,
            orders,
            buffer: Vec::new(),
            console: console.to_owned(),
        })
    }

    /// Has a guest in [`Mode::Remote`] run a line of shell, once it has reported that
    /// it is ready. What the line prints comes as events, and at its end the report
    /// `status`.
    ///
    /// # Errors
    /// [`Error::System`] where QEMU takes nothing any more.
    pub fn tell(&mut self, line: &str) -> Result<(), Error> {
        let told = match &mut self.orders {
            Some(orders) => orders.write_all(format!("{line}\n").as_bytes()),
            None => Err(std::io::ErrorKind::NotConnected.into()),
        };
        told.map_err(Error::system("tell the guest what to do"))
    }

    /// The next thing that happens, until `deadline`.
    ///
    /// # Errors
    /// [`Error::Stopped`], [`Error::System`].
    pub fn next_event(&mut self, deadline: Instant, stop: &Stop) -> Result<Event, Error> {
        loop {
            if let Some(line) = self.take_line() {
                return Ok(Event::Line(line));
            }
            let Some(report) = &mut self.report else {
                let status = self.qemu.wait_until(deadline, stop)?;
                return Ok(status.map_or(Event::Late, Event::Exited));
            };
            stop.check()?;
            if Instant::now() >= deadline {
                return Ok(Event::Late);
            }
            if !wait_readable(&[report.as_fd()], deadline)?[0] {
                continue;
            }
            let mut chunk = [0; 1024];
            match report.read(&mut chunk) {
                Ok(0) => self.report = None,
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) => return Err(Error::system("read the guest's reports")(error)),
            }
        }
    }

    /// Ends QEMU as `kill -9` does, as if the host had failed.
    ///
    /// # Errors
    /// [`Error::System`] where its end cannot be collected.
    pub fn kill(&mut self) -> Result<ExitStatus, Error> {
        self.qemu.kill()
    }

    /// The end of the guest's console, for messages.
    #[must_use]
    pub fn console_tail(&self) -> String {
        tail(&self.console)
    }

    fn take_line(&mut self) -> Option<String> {
        let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') else {
            // A guest that never ends its line must not fill our memory.
            self.buffer.truncate(LINE_BYTES_MAX);
            return None;
        };
        let line: Vec<u8> = self.buffer.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).trim_end().to_owned())
    }
}

/// QEMU's command line.
fn arguments(
    hardware: &Hardware,
    reconnect: &str,
    devices: Devices<'_>,
    mode: Mode,
    initramfs: &Path,
    console: &Path,
) -> Vec<String> {
    let Hardware {
        accel,
        memory_mib,
        kernel,
        ..
    } = hardware;
    let Devices {
        disk,
        nic,
        gpu,
        more,
    } = devices;
    let queues = disk.map_or(1, |disk| disk.queues);
    let cpus = nic.map_or(queues, |nic| queues.max(nic.pairs));
    // Reading the initramfs needs no terminal messages; a check keeps them for its tail.
    let (mode_name, loglevel) = match mode {
        Mode::Shell => ("shell", 4),
        Mode::Check => ("check", 6),
        Mode::Discard => ("discard", 6),
        Mode::Probe => ("probe", 6),
        Mode::Remote => ("remote", 6),
    };
    let mut args: Vec<String> = ["-nodefaults", "-no-user-config", "-display", "none"]
        .map(String::from)
        .into();
    let mut add = |option: &str, value: String| args.extend([option.to_owned(), value]);
    add("-machine", "pc,memory-backend=memory".into());
    add("-accel", accelerator(*accel).into());
    if *accel == Accel::Kvm {
        add("-cpu", "host".into());
    }
    add("-smp", cpus.to_string());
    add("-m", format!("{memory_mib}M"));
    // The back end maps the guest's memory, so it has to be a shared file.
    add(
        "-object",
        format!("memory-backend-memfd,id=memory,size={memory_mib}M,share=on"),
    );
    for (option, value) in disk.iter().flat_map(|disk| drive(disk, reconnect)) {
        add(option, value);
    }
    for (option, value) in nic.iter().flat_map(|nic| card(nic, *accel, reconnect)) {
        add(option, value);
    }
    for (option, value) in gpu.iter().flat_map(screen) {
        add(option, value);
    }
    add("-kernel", kernel.vmlinuz.display().to_string());
    add("-initrd", initramfs.display().to_string());
    // A person looks at the screen too; the last console is the one of programs.
    let looked_at = mode == Mode::Shell && gpu.is_some();
    let screen = if looked_at { "console=tty0 " } else { "" };
    // panic=0: a panic stays visible instead of becoming an endless reboot.
    add(
        "-append",
        // The timer's self-test needs a timely host, which a busy one is not.
        format!(
            "{screen}console=ttyS0 no_timer_check loglevel={loglevel} panic=0 linkspan.mode={mode_name}{}",
            nic.map_or_else(String::new, |nic| nic.place.kernel_options())
        ),
    );
    args.extend(serial_ports(mode, console));
    args.extend(more.iter().map(|&word| word.to_owned()));
    args
}

fn drive(disk: &Disk<'_>, reconnect: &str) -> [(&'static str, String); 2] {
    let Disk {
        socket,
        queues,
        packed,
    } = disk;
    let packed = if *packed { "on" } else { "off" };
    [
        (
            "-chardev",
            format!("socket,id=disk,{reconnect},path={}", comma_escaped(socket)),
        ),
        (
            "-device",
            format!("vhost-user-blk-pci,chardev=disk,num-queues={queues},packed={packed}"),
        ),
    ]
}

/// A virtual GPU as docs/display.md has it.
fn screen(gpu: &Gpu<'_>) -> Vec<(&'static str, String)> {
    let packed = if gpu.packed { "on" } else { "off" };
    let mut options = vec![
        (
            "-chardev",
            format!("socket,id=gpu,path={}", comma_escaped(gpu.socket)),
        ),
        (
            "-device",
            format!("vhost-user-gpu-pci,chardev=gpu,packed={packed}"),
        ),
    ];
    if let Some(path) = gpu.keys {
        let socket = "socket,id=keys,server=on,wait=off,path=";
        options.extend([
            ("-chardev", format!("{socket}{}", comma_escaped(path))),
            ("-mon", "chardev=keys,mode=control".into()),
            ("-device", "virtio-tablet-pci".into()),
        ]);
    }
    options
}

/// A network card as docs/net.md has it.
fn card(nic: &Nic<'_>, accel: Accel, reconnect: &str) -> [(&'static str, String); 3] {
    let Nic {
        socket,
        pairs,
        packed,
        mac: [a, b, c, d, e, f],
        place: _,
    } = nic;
    let packed = if *packed { "on" } else { "off" };
    let vectors = match accel {
        // With MSI-X and without KVM, QEMU 7.2 crashes when the guest starts the card.
        Accel::Tcg => 0,
        // One for each queue, one for the control queue, one for the configuration.
        Accel::Kvm => 2 * pairs + 2,
    };
    [
        (
            "-chardev",
            format!("socket,id=net,{reconnect},path={}", comma_escaped(socket)),
        ),
        (
            "-netdev",
            format!("vhost-user,id=network,chardev=net,queues={pairs}"),
        ),
        (
            "-device",
            // Without the program to boot from it, which may not be installed.
            format!(
                "virtio-net-pci,id=card,netdev=network,mq=on,vectors={vectors},packed={packed},\
                 romfile=,mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"
            ),
        ),
    ]
}

impl Place {
    /// What the guest's init reads of it.
    fn kernel_options(self) -> String {
        match self {
            Self::None => String::new(),
            Self::Lease => " linkspan.net=lease".to_owned(),
            Self::Fixed {
                own,
                prefix_len,
                peer,
            } => format!(" linkspan.net={own}/{prefix_len} linkspan.peer={peer}"),
        }
    }
}

/// The console, and where a check reports: on a terminal, or one of them in a file.
fn serial_ports(mode: Mode, console: &Path) -> Vec<String> {
    let mut options = match mode {
        Mode::Shell => vec![("-serial", "mon:stdio".into())],
        Mode::Check | Mode::Discard | Mode::Probe | Mode::Remote => vec![
            (
                "-chardev",
                format!("file,id=console,path={},append=on", comma_escaped(console)),
            ),
            ("-chardev", "stdio,id=report,signal=off".into()),
            ("-serial", "chardev:console".into()),
            ("-serial", "chardev:report".into()),
        ],
    };
    if mode == Mode::Remote {
        let path = monitor(console);
        let socket = "socket,id=monitor,server=on,wait=off,path=";
        options.extend([
            ("-chardev", format!("{socket}{}", comma_escaped(&path))),
            ("-mon", "chardev=monitor,mode=control".into()),
        ]);
    }
    let pairs = options.into_iter();
    pairs
        .flat_map(|(option, value): (&str, String)| [option.to_owned(), value])
        .collect()
}

fn accelerator(accel: Accel) -> &'static str {
    match accel {
        // One thread: with several, QEMU 7.2 now and then runs a guest into code
        // that its kernel is just patching, and the guest dies.
        Accel::Tcg => "tcg,thread=single",
        Accel::Kvm => "kvm",
    }
}

/// Boots without a disk to see whether `accel` works; at most `limit`.
///
/// # Errors
/// [`Error::Stopped`], [`Error::System`]; a machine that does not boot is `Ok(false)`.
pub fn probe(
    hardware: &Hardware,
    initramfs: &Path,
    console: &Path,
    limit: Duration,
    stop: &Stop,
) -> Result<bool, Error> {
    let deadline = Instant::now() + limit;
    let mut machine = Machine::start(
        hardware,
        Devices::default(),
        Mode::Probe,
        initramfs,
        console,
    )?;
    loop {
        match machine.next_event(deadline, stop)? {
            Event::Line(line) if super::report::parse(&line) == Some(("probe", "ok")) => {
                return Ok(true);
            }
            Event::Line(_) => {}
            Event::Exited(_) | Event::Late => return Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware() -> Hardware {
        Hardware {
            qemu: "qemu-system-x86_64".into(),
            accel: Accel::Tcg,
            memory_mib: 256,
            kernel: Kernel {
                release: "6.12".into(),
                vmlinuz: "/k/vmlinuz".into(),
                modules: "/k".into(),
            },
        }
    }

    #[test]
    fn the_guest_gets_a_processor_for_each_queue_and_shared_memory() {
        let disk = Disk {
            socket: Path::new("/tmp/a,b/s"),
            queues: 4,
            packed: false,
        };
        let nic = Nic {
            socket: Path::new("/tmp/n"),
            pairs: 2,
            packed: true,
            mac: [2, 0, 0, 0, 0, 0x1a],
            place: Place::Fixed {
                own: Ipv4Addr::new(10, 0, 0, 2),
                prefix_len: 30,
                peer: Ipv4Addr::new(10, 0, 0, 1),
            },
        };
        let devices = Devices {
            disk: Some(disk),
            nic: Some(nic),
            ..Devices::default()
        };
        let args = arguments(
            &hardware(),
            reconnect(Some(7)),
            devices,
            Mode::Check,
            Path::new("/i"),
            Path::new("/c"),
        );
        let value = |option: &str| {
            let at = args.iter().position(|arg| arg == option).unwrap();
            args[at + 1].clone()
        };
        assert_eq!(value("-smp"), "4");
        assert_eq!(
            value("-object"),
            "memory-backend-memfd,id=memory,size=256M,share=on"
        );
        assert_eq!(
            value("-chardev"),
            "socket,id=disk,reconnect=1,path=/tmp/a,,b/s"
        );
        assert!(
            args.contains(&"vhost-user-blk-pci,chardev=disk,num-queues=4,packed=off".to_owned())
        );
        assert_eq!(
            value("-netdev"),
            "vhost-user,id=network,chardev=net,queues=2"
        );
        let card = "virtio-net-pci,id=card,netdev=network,mq=on,vectors=0,packed=on,romfile=,\
                    mac=02:00:00:00:00:1a";
        assert!(args.contains(&card.to_owned()));
        let line = value("-append");
        assert!(line.ends_with(" linkspan.net=10.0.0.2/30 linkspan.peer=10.0.0.1"));
    }

    #[test]
    fn a_guest_that_never_ends_its_line_does_not_fill_memory() {
        let mut qemu = supervised(Path::new("sh"));
        qemu.args([
            "-c",
            "head -c 300000 /dev/zero; echo; echo LINKSPAN end=yes",
        ])
        .stdout(Stdio::piped());
        let mut qemu = Process::spawn("guest", &mut qemu).unwrap();
        let report = qemu.take_stdout();
        let mut machine = Machine {
            qemu,
            report,
            orders: None,
            buffer: Vec::new(),
            console: PathBuf::new(),
        };
        let far = Instant::now() + Duration::from_secs(60);
        let Event::Line(first) = machine.next_event(far, &Stop::default()).unwrap() else {
            panic!("no line")
        };
        assert!(first.len() <= LINE_BYTES_MAX + 1024);
        let second = machine.next_event(far, &Stop::default()).unwrap();
        assert_eq!(second, Event::Line("LINKSPAN end=yes".into()));
        let third = machine.next_event(far, &Stop::default()).unwrap();
        assert!(matches!(third, Event::Exited(status) if status.success()));
    }
}

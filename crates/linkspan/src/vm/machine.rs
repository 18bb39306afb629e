//! A virtual machine as it is described: what it has, and the sockets behind its devices.

use std::path::{Path, PathBuf};

use linkspan_backends::image::parse_size;
use linkspan_devices::net::Mac;

use crate::net::{mac, mac_of};
use crate::plane::{Use, Used};

/// The least memory of a machine, in bytes.
const MEMORY_MIN: u64 = 16 << 20;

/// What its memory is a multiple of, since others count it in MiB.
const MIB: u64 = 1 << 20;

/// Processors of a machine at most: what QEMU's q35 takes without an IOMMU.
const CPUS_MAX: i64 = 255;

/// A virtual machine: options of `linkspan vm run`, keys of `[vm.NAME]`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Example: two processors, a disk and a network card\n\n  \
    linkspan vm run --cpus 2 --memory 1G --kernel vmlinuz --append 'root=/dev/vda console=ttyS0' \\\n    \
      --disk /tmp/disk.sock,queues=2 --nic /tmp/lan.sock,queues=2 --console guest.log\n\n\
    It waits until all sockets are there. SIGTERM and SIGINT press the machine's power button;\n\
    who has not gone off after --shutdown-seconds loses its power, or at the second signal.\n\
    Exit status 0: the guest has gone off."
)]
pub(crate) struct Machine {
    /// A disk: the socket of `linkspan blk`, and how many queues it has there. May be given
    /// again
    #[arg(long, value_name = "SOCKET[,queues=N]", value_parser = socket)]
    pub(super) disk: Vec<Socket>,

    /// A network card: the socket of a port of `linkspan net`, and how many queue pairs it
    /// has there. May be given again
    #[arg(long, value_name = "SOCKET[,queues=N][,mac=MAC]", value_parser = card)]
    pub(super) nic: Vec<Socket>,

    /// A screen: the socket of `linkspan gpu`
    #[arg(long, value_name = "SOCKET")]
    pub(super) gpu: Option<PathBuf>,

    /// Where viewers' keys and pointer come in: a monitor (QMP) that QEMU makes here, for
    /// `linkspan display watch --qmp` or the page of a plane. The guest gets a keyboard and a
    /// tablet. Who may connect controls the machine
    #[arg(long, value_name = "SOCKET")]
    pub(super) keys: Option<PathBuf>,

    /// A PCI device: the socket of `linkspan display serve` or of `linkspan vdpa serve
    /// --vfio-user`. QEMU has it from 10.1 on. May be given again
    #[arg(long, value_name = "SOCKET")]
    pub(super) vfio_user: Vec<PathBuf>,

    /// Its memory, a multiple of 1M; links share it
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = memory)]
    pub(super) memory: u64,

    /// Its processors. A disk and a card have as many queues, unless there are fewer
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=CPUS_MAX))]
    pub(super) cpus: u16,

    /// What executes it; auto: KVM if this user may open it
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub(super) accel: Accel,

    /// The kernel that it boots, in place of what is on its disk
    #[arg(long, value_name = "FILE")]
    pub(super) kernel: Option<PathBuf>,

    /// The kernel's first file system
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(super) initrd: Option<PathBuf>,

    /// The kernel's command line
    #[arg(
        long,
        value_name = "TEXT",
        requires = "kernel",
        allow_hyphen_values = true
    )]
    pub(super) append: Option<String>,

    /// Where its first serial port writes
    #[arg(long, value_name = "FILE")]
    pub(super) console: Option<PathBuf>,

    /// The program that runs it
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    pub(super) qemu: PathBuf,

    /// One more word of QEMU's command line. May be given again
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub(super) option: Vec<String>,

    /// How long the guest has to go off once its power button was pressed
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub(super) shutdown_seconds: u64,
}

/// What executes a guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Accel {
    Auto,
    Kvm,
    Tcg,
}

/// A device behind a vhost-user socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) path: PathBuf,
    /// Queues, or queue pairs, that the other end has.
    queues: u16,
    mac: Option<Mac>,
}

fn socket(text: &str) -> Result<Socket, String> {
    let mut parts = text.split(',');
    let path = parts.next().filter(|path| !path.is_empty());
    let mut socket = Socket {
        path: path.ok_or("a path")?.into(),
        queues: 1,
        mac: None,
    };
    for part in parts {
        match part.split_once('=') {
            Some(("queues", value)) => {
                let number = value.parse().ok().filter(|it| (1..=256).contains(it));
                socket.queues = number.ok_or(format!("queues={value}: a number from 1 to 256"))?;
            }
            Some(("mac", value)) => {
                let address = mac(value).map_err(|why| format!("mac={value}: {why}"))?;
                socket.mac = Some(address);
            }
            _ => return Err(format!("{part:?} is neither queues=N nor mac=MAC")),
        }
    }
    Ok(socket)
}

/// A card has an address, which goes with its socket if nobody says one: QEMU gives the
/// first card of every machine the same one.
fn card(text: &str) -> Result<Socket, String> {
    let mut card = socket(text)?;
    card.mac.get_or_insert(mac_of(&card.path.to_string_lossy()));
    Ok(card)
}

fn memory(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    match bytes {
        MEMORY_MIN.. if bytes % MIB == 0 => Ok(bytes),
        _ => Err("a multiple of 1M, 16M at least".into()),
    }
}

impl Machine {
    /// What it takes of this machine.
    pub(super) fn uses(&self) -> Vec<Used> {
        let connects = |key, path: &Path| (key, Use::Connects(path.to_owned()));
        let disks = self.disk.iter().map(|disk| connects("disk", &disk.path));
        let cards = self.nic.iter().map(|card| connects("nic", &card.path));
        let gpu = self.gpu.iter().map(|path| connects("gpu", path));
        let pci = self.vfio_user.iter();
        let pci = pci.map(|path| connects("vfio-user", path));
        let reads = |key, path: &Option<PathBuf>| {
            let path = path.clone()?;
            Some((key, Use::Reads(path)))
        };
        let keys = self.keys.clone().map(Use::Socket);
        let keys = keys.map(|used| ("keys", used));
        let kernel = reads("kernel", &self.kernel);
        let initrd = reads("initrd", &self.initrd);
        let console = self.console.clone().map(Use::Makes);
        let console = console.map(|used| ("console", used));
        disks
            .chain(cards)
            .chain(gpu)
            .chain(pci)
            .chain(keys)
            .chain(kernel)
            .chain(initrd)
            .chain(console)
            .collect()
    }

    /// Where its keys and pointer come in.
    pub(crate) fn keys(&self) -> Option<&Path> {
        self.keys.as_deref()
    }

    /// The sockets of its screens, and of other PCI devices.
    pub(crate) fn screens(&self) -> impl Iterator<Item = &Path> {
        let screens = self.gpu.iter().chain(&self.vfio_user);
        screens.map(PathBuf::as_path)
    }

    /// Where other processes listen for it.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &Path> {
        let disks = self.disk.iter().chain(&self.nic);
        let disks = disks.map(|socket| socket.path.as_path());
        disks.chain(self.screens())
    }

    /// Its paths as seen from a folder.
    pub(super) fn below(mut self, folder: &Path) -> Self {
        let of = |path: &mut PathBuf| *path = folder.join(&*path);
        for socket in self.disk.iter_mut().chain(&mut self.nic) {
            of(&mut socket.path);
        }
        self.gpu.iter_mut().for_each(of);
        self.vfio_user.iter_mut().for_each(of);
        for file in [&mut self.kernel, &mut self.initrd, &mut self.console] {
            file.iter_mut().for_each(of);
        }
        self
    }

    /// Its memory in MiB.
    pub(super) fn memory_mib(&self) -> u64 {
        self.memory / MIB
    }

    /// Queues that a device of this machine uses: a guest uses at most one, or one pair, for
    /// each processor.
    pub(super) fn queues(&self, socket: &Socket) -> u16 {
        socket.queues.min(self.cpus)
    }
}

impl Socket {
    /// A card's address.
    pub(super) fn mac(&self) -> Mac {
        self.mac.unwrap_or_default()
    }
}

/// What a link gives to a virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) plug: Plug,
    /// Where it listens.
    pub(crate) socket: PathBuf,
}

/// The device that a virtual machine makes of a link's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plug {
    /// With so many queues.
    Disk {
        queues: u16,
    },
    /// With so many queue pairs, and the address that the link has for it.
    Nic {
        pairs: u16,
        mac: Mac,
    },
    Gpu,
    VfioUser,
}

impl Offer {
    /// The option of a machine that takes it.
    pub(crate) fn option(&self) -> String {
        let socket = self.socket.display();
        match self.plug {
            Plug::Disk { queues } => format!("--disk={socket},queues={queues}"),
            Plug::Nic { pairs, mac } => {
                format!("--nic={socket},queues={pairs},mac={mac}")
            }
            Plug::Gpu => format!("--gpu={socket}"),
            Plug::VfioUser => format!("--vfio-user={socket}"),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        machine: Machine,
    }

    /// A machine by its options.
    pub(in crate::vm) fn machine(options: &[&str]) -> Machine {
        Line::parse_from([&["vm"], options].concat()).machine
    }

    #[test]
    fn a_socket_has_queues_and_a_card_an_address() {
        let disk = socket("/tmp/a,queues=4").unwrap();
        assert_eq!((disk.path.to_str(), disk.queues), (Some("/tmp/a"), 4));
        let own = card("/tmp/a,mac=52:54:00:12:34:56").unwrap();
        assert_eq!(own.mac().to_string(), "52:54:00:12:34:56");
        assert_eq!(card("/tmp/a").unwrap(), card("/tmp/a").unwrap());
        assert_ne!(card("/tmp/a").unwrap().mac, card("/tmp/b").unwrap().mac);
        for (text, why) in [
            ("", "a path"),
            (",queues=1", "a path"),
            ("a,queues=0", "from 1 to 256"),
            ("a,queues=257", "from 1 to 256"),
            ("a,quees=1", "neither queues=N"),
            ("a,mac=1", "six bytes"),
        ] {
            let error = socket(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn memory_is_whole_mib() {
        assert_eq!(memory("1G"), Ok(1 << 30));
        for text in ["1", "15M", "512M1", "1048577", "16777217"] {
            assert!(memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_guest_has_no_more_queues_than_processors_or_than_there_are() {
        let machine = machine(&["--cpus=2", "--disk=a,queues=64", "--disk=b"]);
        let queues: Vec<_> = machine.disk.iter().map(|it| machine.queues(it)).collect();
        assert_eq!(queues, [2, 1]);
    }

    /// An option that a link becomes is one that a machine takes.
    #[test]
    fn what_links_offer_is_taken() {
        let offer = |plug| Offer {
            plug,
            socket: "s.sock".into(),
        };
        let (pairs, mac) = (2, mac_of("a"));
        let options = [
            offer(Plug::Disk { queues: 3 }).option(),
            offer(Plug::Nic { pairs, mac }).option(),
            offer(Plug::Gpu).option(),
            offer(Plug::VfioUser).option(),
        ];
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        let machine = machine(&options);
        assert_eq!(machine.sockets().count(), 4);
        assert_eq!(machine.nic[0].mac(), mac);
        let below = machine.below(Path::new("/srv"));
        assert!(below.sockets().all(|path| path == Path::new("/srv/s.sock")));
    }
}

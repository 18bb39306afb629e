//! QEMU's command line of a machine.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;

use super::machine::{Accel, Machine};
use crate::demo::qemu::{comma_escaped, reconnect, version};

/// What a QEMU of this machine is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// How a back end that is gone is connected to again.
    pub(super) reconnect: &'static str,
    /// Whether KVM is there.
    pub(super) kvm: bool,
    /// Whether it can be kept from calls that it does not need: it may be built without.
    pub(super) sandbox: bool,
}

impl Kind {
    /// What this program is like here; what Debian's is like if it is not there.
    pub(super) fn of(qemu: &Path) -> Self {
        let mut trial = Command::new(qemu);
        let trial = trial.args(["-sandbox", "off", "--version"]).output();
        Self {
            reconnect: reconnect(version(qemu)),
            kvm: kvm_opens(),
            sandbox: trial.is_ok_and(|it| it.status.success()) || version(qemu).is_none(),
        }
    }
}

/// What QEMU cannot do once it runs a guest: start programs, become somebody else, raise its
/// priority, or call what is obsolete. It then cannot have more rights than it has, either.
const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Whether this user may open KVM.
pub(super) fn kvm_opens() -> bool {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    kvm.is_ok()
}

/// Its arguments, the program not included.
pub(super) fn arguments(machine: &Machine, kind: Kind) -> Vec<String> {
    let fixed = ["-nodefaults", "-no-user-config", "-display", "none"];
    let mut words: Vec<String> = fixed.map(String::from).into();
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    let kvm = match machine.accel {
        Accel::Auto => kind.kvm,
        Accel::Kvm => true,
        Accel::Tcg => false,
    };
    let memory = machine.memory_mib();
    add("-machine", "q35,memory-backend=memory".into());
    if kvm {
        add("-accel", "kvm".into());
        add("-cpu", "host".into());
    } else {
        // One thread: with several, QEMU 7.2 now and then runs a guest into code that its
        // kernel is just patching.
        add("-accel", "tcg,thread=single".into());
    }
    add("-smp", machine.cpus.to_string());
    add("-m", format!("{memory}M"));
    // Links map the guest's memory, so it has to be a shared file.
    let memory = format!("memory-backend-memfd,id=memory,size={memory}M,share=on");
    add("-object", memory);
    devices(machine, kind, kvm, &mut add);
    for (option, file) in [("-kernel", &machine.kernel), ("-initrd", &machine.initrd)] {
        if let Some(file) = file {
            add(option, file.display().to_string());
        }
    }
    if let Some(line) = &machine.append {
        add("-append", line.clone());
    }
    // Who needs QEMU's helpers has a sandbox of their own among the words to come.
    if kind.sandbox && !machine.option.iter().any(|word| word == "-sandbox") {
        add("-sandbox", SANDBOX.into());
    }
    if let Some(console) = &machine.console {
        let file = comma_escaped(console);
        add("-chardev", format!("file,id=console,append=on,path={file}"));
        add("-serial", "chardev:console".into());
    }
    words.extend(machine.option.iter().cloned());
    words
}

fn devices(machine: &Machine, kind: Kind, kvm: bool, add: &mut impl FnMut(&str, String)) {
    let reconnect = kind.reconnect;
    let socket = |id: &str, path: &Path, more: &str| {
        let path = comma_escaped(path);
        format!("socket,id={id}{more},path={path}")
    };
    let again = format!(",{reconnect}");
    for (number, disk) in machine.disk.iter().enumerate() {
        let (id, queues) = (format!("disk{number}"), machine.queues(disk));
        add("-chardev", socket(&id, &disk.path, &again));
        let device = format!("vhost-user-blk-pci,chardev={id},num-queues={queues}");
        add("-device", device);
    }
    for (number, card) in machine.nic.iter().enumerate() {
        let (id, pairs, mac) = (format!("nic{number}"), machine.queues(card), card.mac());
        // With MSI-X and without KVM, QEMU 7.2 crashes when the guest starts the card. With
        // it: one for each queue, one for the control queue, one for the configuration.
        let vectors = if kvm { 2 * pairs + 2 } else { 0 };
        add("-chardev", socket(&id, &card.path, &again));
        let back_end = format!("vhost-user,id=net{number},chardev={id},queues={pairs}");
        add("-netdev", back_end);
        // Without the program to boot from it, which may not be installed.
        let device =
            format!("virtio-net-pci,netdev=net{number},mq=on,vectors={vectors},romfile=,mac={mac}");
        add("-device", device);
    }
    if let Some(path) = &machine.gpu {
        add("-chardev", socket("gpu", path, ""));
        add("-device", "vhost-user-gpu-pci,chardev=gpu".into());
    }
    for path in &machine.vfio_user {
        add("-device", vfio_user(path));
    }
    for (option, value) in machine.keys.iter().flat_map(|path| keys(path)) {
        add(option, value);
    }
}

/// A monitor for viewers, and what the guest has of it.
pub(super) fn keys(path: &Path) -> [(&'static str, String); 4] {
    let socket = "socket,id=keys,server=on,wait=off,path=";
    [
        ("-chardev", format!("{socket}{}", comma_escaped(path))),
        ("-mon", "chardev=keys,mode=control".into()),
        ("-device", "virtio-keyboard-pci".into()),
        ("-device", "virtio-tablet-pci".into()),
    ]
}

/// A PCI device behind a socket, which QEMU takes as JSON alone.
pub(super) fn vfio_user(path: &Path) -> String {
    let socket = serde_json::json!({ "type": "unix", "path": path.to_string_lossy() });
    serde_json::json!({ "driver": "vfio-user-pci", "socket": socket }).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::machine::tests::machine;
    use super::*;

    const KIND: Kind = Kind {
        reconnect: "reconnect=1",
        kvm: true,
        sandbox: true,
    };

    #[test]
    fn each_link_is_a_device_on_shared_memory() {
        let machine = machine(&[
            "--cpus=2",
            "--memory=1G",
            "--disk=/tmp/a,queues=4",
            "--disk=/tmp/b",
            "--nic=/tmp/n,queues=2,mac=52:54:00:12:34:56",
            "--gpu=/tmp/g",
            "--vfio-user=/tmp/v",
            "--keys=/tmp/q",
            "--kernel=/k",
            "--append=-x console=ttyS0",
            "--console=/tmp/c",
            "--option=-no-reboot",
        ]);
        let words = arguments(&machine, KIND).join(" ");
        for part in [
            "-machine q35,memory-backend=memory -accel kvm -cpu host -smp 2 -m 1024M",
            "memory-backend-memfd,id=memory,size=1024M,share=on",
            "-chardev socket,id=disk0,reconnect=1,path=/tmp/a \
             -device vhost-user-blk-pci,chardev=disk0,num-queues=2",
            "vhost-user-blk-pci,chardev=disk1,num-queues=1",
            "-netdev vhost-user,id=net0,chardev=nic0,queues=2 \
             -device virtio-net-pci,netdev=net0,mq=on,vectors=6,romfile=,mac=52:54:00:12:34:56",
            "-chardev socket,id=gpu,path=/tmp/g -device vhost-user-gpu-pci,chardev=gpu",
            r#"-device {"driver":"vfio-user-pci","socket":{"path":"/tmp/v","type":"unix"}}"#,
            "-chardev socket,id=keys,server=on,wait=off,path=/tmp/q -mon chardev=keys,mode=control",
            "-kernel /k -append -x console=ttyS0",
            "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-chardev file,id=console,append=on,path=/tmp/c -serial chardev:console -no-reboot",
        ] {
            assert!(words.contains(part), "{part}\n{words}");
        }
    }

    #[test]
    fn who_says_what_the_sandbox_is_has_no_other() {
        let machine = machine(&["--option=-sandbox", "--option=off"]);
        let words = arguments(&machine, KIND).join(" ");
        assert!(words.ends_with("-sandbox off"), "{words}");
        assert_eq!(words.matches("-sandbox").count(), 1);
    }

    #[test]
    fn without_kvm_a_card_has_no_vectors() {
        let machine = machine(&["--accel=tcg", "--nic=/tmp/n"]);
        let words = arguments(&machine, KIND).join(" ");
        assert!(words.contains("-accel tcg,thread=single") && words.contains("vectors=0"));
        assert!(!words.contains("-cpu host"));
    }
}

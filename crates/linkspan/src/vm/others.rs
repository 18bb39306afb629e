//! The command lines of monitors beside QEMU.

use super::machine::Machine;

/// A machine that a monitor does not start.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{monitor} has no {what}")]
pub(super) struct No {
    pub(super) monitor: &'static str,
    pub(super) what: &'static str,
}

/// Cloud Hypervisor's.
///
/// # Errors
/// It has no device over `gpu` sockets, and no words of QEMU.
pub(super) fn cloud_hypervisor(machine: &Machine) -> Result<Vec<String>, No> {
    let monitor = "Cloud Hypervisor";
    let no = |what| Err(No { monitor, what });
    if machine.gpu.is_some() {
        return no("GPU over vhost-user");
    }
    if machine.keys.is_some() {
        return no("monitor for keys");
    }
    if !machine.option.is_empty() {
        return no("option of QEMU");
    }
    let mut words = vec!["cloud-hypervisor".to_owned()];
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    add("--cpus", format!("boot={}", machine.cpus));
    let memory = machine.memory_mib();
    add("--memory", format!("size={memory}M,shared=on"));
    if let Some(kernel) = &machine.kernel {
        add("--kernel", kernel.display().to_string());
    }
    if let Some(initrd) = &machine.initrd {
        add("--initramfs", initrd.display().to_string());
    }
    if let Some(line) = &machine.append {
        add("--cmdline", line.clone());
    }
    // All devices of a kind follow one option.
    let disks = machine.disk.iter().map(|disk| {
        let (socket, queues) = (disk.path.display(), machine.queues(disk));
        format!("vhost_user=true,socket={socket},num_queues={queues}")
    });
    let cards = machine.nic.iter().map(|card| {
        let (socket, mac) = (card.path.display(), card.mac());
        // It counts both queues of a pair.
        let queues = 2 * machine.queues(card);
        format!("vhost_user=true,socket={socket},num_queues={queues},mac={mac}")
    });
    let pci = machine.vfio_user.iter();
    let pci = pci.map(|path| format!("socket={}", path.display()));
    let mut list = |option: &str, values: Vec<String>| {
        if !values.is_empty() {
            words.push(option.to_owned());
            words.extend(values);
        }
    };
    list("--disk", disks.collect());
    list("--net", cards.collect());
    list("--user-device", pci.collect());
    if let Some(console) = &machine.console {
        list("--serial", vec![format!("file={}", console.display())]);
        list("--console", vec!["off".to_owned()]);
    }
    Ok(words)
}

/// crosvm's.
///
/// # Errors
/// It has no devices over `gpu` and vfio-user sockets as these links serve them, no words
/// of QEMU, and wants a kernel.
pub(super) fn crosvm(machine: &Machine) -> Result<Vec<String>, No> {
    let monitor = "crosvm";
    let no = |what| No { monitor, what };
    let kernel = machine.kernel.as_ref();
    let kernel = kernel.ok_or_else(|| no("firmware: say `kernel`"))?;
    if machine.gpu.is_some() {
        return Err(no("GPU over vhost-user as QEMU has it"));
    }
    if !machine.vfio_user.is_empty() {
        return Err(no("device over vfio-user"));
    }
    if machine.keys.is_some() {
        return Err(no("monitor for keys"));
    }
    if !machine.option.is_empty() {
        return Err(no("option of QEMU"));
    }
    let mut words = vec!["crosvm".to_owned(), "run".to_owned()];
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    add("--cpus", machine.cpus.to_string());
    add("--mem", machine.memory_mib().to_string());
    for (kind, sockets) in [("block", &machine.disk), ("net", &machine.nic)] {
        for socket in sockets {
            let path = socket.path.display();
            add("--vhost-user", format!("{kind},socket={path}"));
        }
    }
    if let Some(console) = &machine.console {
        let path = console.display();
        let serial = format!("type=file,path={path},hardware=serial,num=1,console=true");
        add("--serial", serial);
    }
    if let Some(initrd) = &machine.initrd {
        add("--initrd", initrd.display().to_string());
    }
    if let Some(line) = &machine.append {
        add("--params", line.clone());
    }
    words.push(kernel.display().to_string());
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::super::machine::tests::machine;
    use super::*;

    const PLAIN: &[&str] = &[
        "--cpus=2",
        "--disk=/a,queues=2",
        "--nic=/n,queues=2,mac=52:54:00:12:34:56",
        "--kernel=/k",
        "--append=quiet",
        "--console=/c",
    ];

    #[test]
    fn each_monitor_has_its_words() {
        let words = cloud_hypervisor(&machine(PLAIN)).unwrap().join(" ");
        assert_eq!(
            words,
            "cloud-hypervisor --cpus boot=2 --memory size=512M,shared=on --kernel /k --cmdline quiet \
             --disk vhost_user=true,socket=/a,num_queues=2 \
             --net vhost_user=true,socket=/n,num_queues=4,mac=52:54:00:12:34:56 \
             --serial file=/c --console off"
        );
        let words = crosvm(&machine(PLAIN)).unwrap().join(" ");
        assert_eq!(
            words,
            "crosvm run --cpus 2 --mem 512 --vhost-user block,socket=/a --vhost-user net,socket=/n \
             --serial type=file,path=/c,hardware=serial,num=1,console=true --params quiet /k"
        );
    }

    #[test]
    fn what_a_monitor_lacks_is_said() {
        for (more, cloud, crosvm_has) in [
            ("--gpu=/g", false, false),
            ("--vfio-user=/v", true, false),
            ("--option=-x", false, false),
        ] {
            let machine = machine(&[PLAIN, &[more]].concat());
            assert_eq!(cloud_hypervisor(&machine).is_ok(), cloud, "{more}");
            assert_eq!(crosvm(&machine).is_ok(), crosvm_has, "{more}");
        }
        assert!(crosvm(&machine(&["--disk=/a"])).is_err());
    }
}

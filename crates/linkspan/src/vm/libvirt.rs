//! A machine as libvirt's domain XML.

use std::fmt::Write as _;
use std::path::Path;

use super::machine::{Accel, Machine};
use super::qemu::{keys, vfio_user};

/// The domain of this name. What libvirt has no element for is in its `qemu:commandline`.
pub(super) fn domain(name: &str, machine: &Machine, kvm: bool) -> String {
    let kind = match machine.accel {
        Accel::Kvm => "kvm",
        Accel::Auto if kvm => "kvm",
        Accel::Auto | Accel::Tcg => "qemu",
    };
    let mut xml = format!(
        "<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n  \
         <name>{}</name>\n  <memory unit='MiB'>{}</memory>\n  \
         <memoryBacking>\n    <source type='memfd'/>\n    <access mode='shared'/>\n  \
         </memoryBacking>\n  <vcpu>{}</vcpu>\n  <os>\n    \
         <type arch='x86_64' machine='q35'>hvm</type>\n",
        escaped(name),
        machine.memory_mib(),
        machine.cpus,
    );
    for (element, file) in [("kernel", &machine.kernel), ("initrd", &machine.initrd)] {
        if let Some(file) = file {
            let _ = writeln!(xml, "    <{element}>{}</{element}>", path(file));
        }
    }
    if let Some(line) = &machine.append {
        let _ = writeln!(xml, "    <cmdline>{}</cmdline>", escaped(line));
    }
    xml += "  </os>\n  <features>\n    <acpi/>\n  </features>\n  <devices>\n";
    if machine.qemu.is_absolute() {
        let _ = writeln!(xml, "    <emulator>{}</emulator>", path(&machine.qemu));
    }
    devices(machine, &mut xml);
    xml += "    <memballoon model='none'/>\n  </devices>\n";
    command_line(machine, &mut xml);
    xml + "</domain>\n"
}

fn devices(machine: &Machine, xml: &mut String) {
    for (number, disk) in machine.disk.iter().enumerate() {
        let _ = write!(
            xml,
            "    <disk type='vhostuser' device='disk'>\n      \
             <driver name='qemu' type='raw' queues='{}'/>\n      \
             <source type='unix' path='{}'>\n        \
             <reconnect enabled='yes' timeout='1'/>\n      </source>\n      \
             <target dev='{}' bus='virtio'/>\n    </disk>\n",
            machine.queues(disk),
            path(&disk.path),
            target(number),
        );
    }
    for card in &machine.nic {
        let _ = write!(
            xml,
            "    <interface type='vhostuser'>\n      <mac address='{}'/>\n      \
             <source type='unix' path='{}' mode='client'>\n        \
             <reconnect enabled='yes' timeout='1'/>\n      </source>\n      \
             <model type='virtio'/>\n      <driver queues='{}'/>\n    </interface>\n",
            card.mac(),
            path(&card.path),
            machine.queues(card),
        );
    }
    if let Some(console) = &machine.console {
        let _ = write!(
            xml,
            "    <serial type='file'>\n      <source path='{}' append='on'/>\n      \
             <target port='0'/>\n    </serial>\n",
            path(console),
        );
    }
}

/// libvirt starts the program behind a GPU by itself, and knows no vfio-user.
fn command_line(machine: &Machine, xml: &mut String) {
    let mut words = Vec::new();
    if let Some(gpu) = &machine.gpu {
        let gpu = crate::demo::qemu::comma_escaped(gpu);
        words.extend(["-chardev".to_owned(), format!("socket,id=gpu,path={gpu}")]);
        words.extend([
            "-device".to_owned(),
            "vhost-user-gpu-pci,chardev=gpu".into(),
        ]);
    }
    for path in &machine.vfio_user {
        words.extend(["-device".to_owned(), vfio_user(path)]);
    }
    for (option, value) in machine.keys.iter().flat_map(|path| keys(path)) {
        words.extend([option.to_owned(), value]);
    }
    words.extend(machine.option.iter().cloned());
    if words.is_empty() {
        return;
    }
    *xml += "  <qemu:commandline>\n";
    for word in words {
        let _ = writeln!(xml, "    <qemu:arg value='{}'/>", escaped(&word));
    }
    *xml += "  </qemu:commandline>\n";
}

/// Names of disks as libvirt counts: vda to vdz, vdaa and so on.
fn target(mut number: usize) -> String {
    let mut letters = Vec::new();
    loop {
        letters.push(char::from(b'a' + u8::try_from(number % 26).unwrap_or(0)));
        match number / 26 {
            0 => break,
            more => number = more - 1,
        }
    }
    letters.extend(['d', 'v']);
    letters.into_iter().rev().collect()
}

fn path(path: &Path) -> String {
    escaped(&path.to_string_lossy())
}

/// As it stands in XML, within quotes too. Characters that XML cannot have are left out.
fn escaped(text: &str) -> String {
    let mut to = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => to += "&lt;",
            '>' => to += "&gt;",
            '&' => to += "&amp;",
            '\'' => to += "&apos;",
            '"' => to += "&quot;",
            '\n' | '\t' | '\r' => {
                let _ = write!(to, "&#{};", u32::from(c));
            }
            c if c < ' ' || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => to.push(c),
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::super::machine::tests::machine;
    use super::*;

    #[test]
    fn disks_are_counted_as_libvirt_counts() {
        for (number, name) in [
            (0, "vda"),
            (25, "vdz"),
            (26, "vdaa"),
            (701, "vdzz"),
            (702, "vdaaa"),
        ] {
            assert_eq!(target(number), name);
        }
    }

    #[test]
    fn no_text_leaves_its_place() {
        assert_eq!(escaped("a'\"<&>\n\0b"), "a&apos;&quot;&lt;&amp;&gt;&#10;b");
    }

    /// libvirt's own schema is content with all that a machine may have.
    #[test]
    fn libvirt_takes_the_domain() {
        let machine = machine(&[
            "--cpus=2",
            "--disk=/tmp/it's <a>,queues=2",
            "--disk=/tmp/b",
            "--nic=/tmp/n,queues=2",
            "--gpu=/tmp/g",
            "--vfio-user=/tmp/v",
            "--kernel=/k",
            "--initrd=/i",
            "--append=console=ttyS0 a=\"b & c\"",
            "--console=/tmp/c",
            "--qemu=/usr/bin/qemu-system-x86_64",
            "--option=-no-reboot",
        ]);
        let xml = domain("guest.a", &machine, true);
        let Ok(mut child) = Command::new("virt-xml-validate")
            .args(["-", "domain"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
        else {
            // Not by `eprintln`, which the test harness captures.
            let mut out = std::io::stderr().lock();
            drop(writeln!(
                out,
                "SKIP libvirt_takes_the_domain: virt-xml-validate is not installed"
            ));
            return;
        };
        child
            .stdin
            .take()
            .unwrap()
            .write_all(xml.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{xml}\n{output:?}");
    }
}

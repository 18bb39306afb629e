//! The report, of machines that are made of files.

use super::fixture::{Files, tried};
use super::machine::Tried;
use super::*;

#[track_caller]
fn row<'a>(report: &'a Report, check: &str) -> &'a Row {
    let found = report.checks.iter().find(|row| row.check == check);
    found.expect(check)
}

fn state(report: &Report, link: Link) -> State {
    let found = report.links.iter().find(|it| it.link == link);
    found.unwrap().state
}

#[test]
fn a_machine_with_everything_lacks_nothing() {
    let report = Report::of(&Files::with_everything().machine(), &[]);
    let lacking: Vec<_> = report
        .checks
        .iter()
        .filter(|row| row.mend.is_some())
        .collect();
    assert!(lacking.is_empty(), "{lacking:#?}");
    assert!(report.works && report.verdict().is_ok());
    assert_eq!(report.links.len(), Link::ALL.len());
    assert!(!report.table().contains("try:"));
}

/// One thing at a time goes, and the check that is about it says so, with what mends it.
#[test]
fn each_thing_that_goes_is_named_with_what_mends_it() {
    let release = "proc/sys/kernel/osrelease";
    let cases: &[(&str, &str, State, &str)] = &[
        (release, "kernel", State::Less, "mount -t proc"),
        ("proc/self/status", "/proc", State::Missing, "mount -t proc"),
        (
            "proc/self/limits",
            "open files",
            State::Less,
            "ulimit -n 4096",
        ),
        ("dev/net/tun", "tap interfaces", State::Less, "modprobe tun"),
        (
            "proc/meminfo",
            "huge pages",
            State::Less,
            "CONFIG_HUGETLBFS",
        ),
        (
            "dev/hugepages",
            "huge pages",
            State::Less,
            "mount -t hugetlbfs",
        ),
        ("dev/kvm", "KVM", State::Less, "modprobe kvm_intel"),
        ("dev/udmabuf", "udmabuf", State::Less, "modprobe udmabuf"),
        (
            "sys/bus/mdev",
            "VFIO devices",
            State::Less,
            "modprobe vfio_pci",
        ),
        ("dev/vfio", "VFIO devices", State::Less, "modprobe vfio"),
        ("sys/bus/vdpa", "vDPA bus", State::Missing, "modprobe vdpa"),
        (
            "sys/bus/vdpa/drivers",
            "vhost_vdpa",
            State::Missing,
            "modprobe vhost_vdpa",
        ),
        (
            "dev/vhost-vdpa-0",
            "vDPA devices",
            State::Missing,
            "echo blk0 > driver/unbind",
        ),
        ("dev/vduse", "VDUSE", State::Missing, "modprobe vduse"),
        ("run", "/run/linkspan", State::Less, "--vduse-state"),
        ("usr/bin/vdpa", "program vdpa", State::Less, "iproute2"),
        (
            "sys/class/infiniband",
            "RDMA devices",
            State::Less,
            "rdma link add",
        ),
        (
            "dev/infiniband",
            "RDMA devices",
            State::Less,
            "modprobe rdma_ucm",
        ),
        (
            "dev/infiniband/uverbs0",
            "RDMA devices",
            State::Less,
            "modprobe ib_uverbs",
        ),
        (
            "sys/bus/vmbus",
            "Hyper-V's file copy",
            State::Less,
            "a guest of Hyper-V",
        ),
        (
            "sys/bus/vmbus/devices/b",
            "Hyper-V's heartbeat",
            State::Less,
            "at its host",
        ),
        ("dev/uio0", "Hyper-V's file copy", State::Less, "udevadm"),
        (
            "dev/fuse",
            "a device for others",
            State::Less,
            "modprobe fuse",
        ),
        (
            "proc/self/net",
            "SMB over TCP",
            State::Missing,
            "CONFIG_INET",
        ),
    ];
    for (gone, check, expected, mend) in cases {
        let files = Files::with_everything();
        files.remove(gone);
        let report = Report::of(&files.machine(), &[]);
        let row = row(&report, check);
        assert_eq!(row.state, *expected, "{gone}: {row:?}");
        let said = row.mend.as_deref().unwrap_or_default();
        assert!(said.contains(mend), "{gone}: {said}");
        for link in row.links {
            assert!(state(&report, *link) >= *expected, "{gone}: {link:?}");
        }
        assert!(report.table().contains(said), "{gone}");
    }
}

/// Makes something that was tried a failure, for this reason.
type Spoil = fn(&mut Tried, Result<(), String>);

#[test]
fn what_was_tried_in_vain_is_told() {
    let files = Files::with_everything();
    let why = || Err("it is refused".to_owned());
    let cases: &[(Spoil, &str, State)] = &[
        (
            |it, why| it.memory_file = why,
            "memory files",
            State::Missing,
        ),
        (|it, why| it.io_uring = why, "io_uring", State::Less),
        (|it, _| it.landlock = None, "Landlock", State::Less),
        (|it, why| it.rdma_core = why, "rdma-core", State::Less),
        (|it, _| it.qemu = None, "QEMU", State::Missing),
        (|it, _| it.qemu = None, "QEMU's vfio-user-pci", State::Less),
    ];
    for (change, check, expected) in cases {
        let mut tried = tried();
        change(&mut tried, why());
        let report = Report::of(&files.machine_with(tried), &[]);
        assert_eq!(row(&report, check).state, *expected, "{check}");
    }
    let mut old = tried();
    old.qemu = Some("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)".to_owned());
    let report = Report::of(&files.machine_with(old), &[]);
    let row = row(&report, "QEMU's vfio-user-pci");
    assert!(row.found.contains("7.2.22") && row.state == State::Less);
}

/// Who refuses io_uring decides what mends it.
#[test]
fn a_refused_ring_is_mended_where_it_is_refused() {
    let files = Files::with_everything();
    let mut refused = tried();
    refused.io_uring = Err("EPERM".to_owned());
    let mend = || {
        let report = Report::of(&files.machine_with(refused.clone()), &[Link::Blk]);
        row(&report, "io_uring").mend.clone().unwrap()
    };
    assert!(mend().contains("seccomp"));
    files.write("proc/sys/kernel/io_uring_disabled", "2\n");
    assert!(mend().contains("sysctl kernel.io_uring_disabled=0"));
    files.remove("proc/sys/kernel/io_uring_disabled");
    assert!(mend().contains("CONFIG_IO_URING"));
}

#[test]
fn limits_count_as_far_as_they_bind() {
    let files = Files::with_everything();
    let limits = |files_soft: u64, hard: u64, locked: u64| {
        let text = format!(
            "Max open files            {files_soft}   {hard}   files\n\
             Max locked memory         {locked}   {locked}   bytes\n"
        );
        files.write("proc/self/limits", &text);
        Report::of(&files.machine(), &[])
    };
    let report = limits(1024, 1 << 20, 65536);
    let open = row(&report, "open files").mend.clone().unwrap();
    assert!(!open.contains("as root"), "{open}");
    // Root may lock what it likes.
    assert_eq!(row(&report, "locked memory").state, State::Works);
    files.write("proc/self/status", "CapEff:\t0000000000000000\n");
    let report = limits(1024, 1024, 65536);
    let open = row(&report, "open files").mend.clone().unwrap();
    assert!(open.contains("as root"), "{open}");
    let locked = row(&report, "locked memory");
    assert_eq!(
        (locked.state, locked.found.as_str()),
        (State::Less, "65536 bytes")
    );
    // Without capabilities, the rest that wants them.
    for check in ["tap interfaces", "a device for others"] {
        assert_eq!(row(&report, check).state, State::Less, "{check}");
    }
    assert_eq!(row(&report, "VDUSE").state, State::Missing);
}

/// The status is about what was named, or about what needs no special kernel.
#[test]
fn only_links_that_count_decide() {
    let files = Files::with_everything();
    files.remove("sys/bus/vdpa");
    let machine = files.machine();
    assert!(Report::of(&machine, &[]).works);
    assert!(Report::of(&machine, &[Link::Blk, Link::Smb]).works);
    let report = Report::of(&machine, &[Link::Blk, Link::Vdpa]);
    assert!(!report.works);
    let failure = report.verdict().unwrap_err();
    assert_eq!(failure.status, Status::Missing);
    assert!(failure.to_string().ends_with("for vdpa"), "{failure}");
    // What the others want was not looked at.
    assert!(report.checks.iter().all(|row| row.check != "KVM"));
    // What every link wants counts always.
    files.remove("proc/self");
    assert!(!Report::of(&files.machine(), &[]).works);
}

/// A machine of which nothing can be read is a report, not an error.
#[test]
fn an_empty_machine_is_told_of() {
    let files = Files::new();
    let nothing = Err("nothing is here".to_owned());
    let tried = Tried {
        memory_file: nothing.clone(),
        io_uring: nothing.clone(),
        landlock: None,
        rdma_core: nothing,
        qemu: None,
    };
    let report = Report::of(&files.machine_with(tried), &[]);
    assert!(report.checks.iter().all(|row| row.mend.is_some()));
    assert!(report.links.iter().all(|it| it.state == State::Missing));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["works"], false);
    assert_eq!(json["checks"][0]["state"], "less");
}

#[test]
fn names_are_those_of_the_command_line() {
    for link in Link::ALL {
        assert_eq!(link.to_possible_value().unwrap().get_name(), link.name());
        assert_eq!(serde_json::to_value(link).unwrap(), link.name());
        assert!(CHECKS.iter().any(|check| check.links.contains(link)));
    }
    assert_eq!(Link::ALL.len(), Link::value_variants().len());
}

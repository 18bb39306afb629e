//! Our guest of file copy over the device as a guest's kernel shows it: every ring,
//! kernels before and after b15b7d2a1b09, devices that go and come back.
//!
//! On this machine where a program can have the device, and always in the lab.

//: about our guest of Hyper-V's file copy over the kernel's device
//: limit 400

mod fcopy_device;

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::process::Command;

use fcopy_device::{Machine, PROGRAM, RING, bytes, fragment, guest, job, message, names};
use linkspan_backends::uio::Offer;
use linkspan_testkit::VmbusHost;
use linkspan_testkit::census::settled;
use linkspan_vmbus::fcopy::Job;
use linkspan_vmbus::ic::{FILE_COPY, Host, Status};
use rustix::process::Signal;

/// The device's folder.
const DEVICE: &str = "/sys/bus/vmbus/devices/eb765408-105f-49b6-b4aa-c123b64d17d4";

fn offer(ring: u64, masks: bool) -> Offer {
    Offer {
        masks,
        ..VmbusHost::offer(ring)
    }
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

/// Known bugs 4 and 7 of Linux: one size of ring, and a mask that nobody cleared.
#[test]
fn files_arrive_through_every_ring_on_either_kernel() {
    for ring in [16384, RING, 69632, 2 << 20] {
        for masks in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let test = "files_arrive_through_every_ring_on_either_kernel";
            let machine = Machine::start(test, offer(ring, masks), guest(dir.path()), |_| {});
            let Some(machine) = machine else {
                return;
            };
            let mut host = machine.host();
            let files: Vec<(String, Vec<u8>)> = [0, 1, 6143, 6144, 6145, 1 << 18]
                .into_iter()
                .map(|len| (format!("naïve-日本-{len}"), bytes(len)))
                .collect();
            let to = dir.path().join("new/folder/");
            let jobs: Vec<(Job, &[u8])> = files
                .iter()
                .map(|(name, data)| (job(name, &to, data), &data[..]))
                .collect();
            let done = host.copy(&machine.program, &jobs);
            assert_eq!(done, vec![Ok(()); files.len()]);
            for (name, data) in &files {
                assert!(fs::read(to.join(name)).unwrap() == *data, "{name}");
            }
            machine.stop();
        }
    }
}

/// Known bug 7 of Linux: a message that was there before the mask was cleared, with or
/// without an interrupt that came too early, was waited for for ever.
#[test]
fn a_message_that_is_there_before_the_guest_is_answered() {
    for masks in [false, true] {
        for quiet in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let test = "a_message_that_is_there_before_the_guest_is_answered";
            let first = move |host: &mut VmbusHost| {
                let negotiation = Host::new(&FILE_COPY).negotiate();
                host.post(&[&negotiation], quiet);
            };
            let machine = Machine::start(test, offer(RING, masks), guest(dir.path()), first);
            let Some(machine) = machine else {
                return;
            };
            let mut host = machine.host();
            assert!(host.receive(&machine.program).is_some());
            machine.stop();
        }
    }
}

/// Known bugs 17 and 18 of Linux's daemon: the second message of one interrupt stalled,
/// and a ring without room for the reply ended it.
#[test]
fn many_messages_of_one_interrupt_are_all_answered() {
    for masks in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let test = "many_messages_of_one_interrupt_are_all_answered";
        let machine = Machine::start(test, offer(RING, masks), guest(dir.path()), |_| {});
        let Some(machine) = machine else {
            return;
        };
        let mut host = machine.host();
        let mut core = Host::new(&FILE_COPY);
        let negotiation = core.negotiate();
        host.post(&[&negotiation], false);
        core.receive(&host.receive(&machine.program).unwrap())
            .unwrap();
        // CANCEL, more often than there is room for replies.
        let cancel = [&[3, 0, 0, 0][..], &[0; 32]].concat();
        for _ in 0..3 {
            assert!(settled(|| host.room() > 70 * 88));
            for _ in 0..70 {
                let cancel = message(&mut core, &cancel);
                host.post(&[&cancel], true);
                core.forget(cancel[24]);
            }
            host.interrupt();
        }
        for at in 0..210 {
            let reply = host.receive(&machine.program).expect("it lives");
            assert_eq!(fcopy_device::status(&reply), Status::OK, "{at}");
        }
        assert!(host.take().is_none());
        machine.stop();
    }
}

/// Known bugs 1 and 9 of Linux: Guest Services are switched off and on again, which its
/// daemon read EIO of for ever.
#[test]
fn a_device_that_goes_while_a_file_is_copied_comes_back_20_times() {
    let dir = tempfile::tempdir().unwrap();
    let test = "a_device_that_goes_while_a_file_is_copied_comes_back_20_times";
    let machine = Machine::start(test, offer(RING, true), guest(dir.path()), |_| {});
    let Some(mut machine) = machine else {
        return;
    };
    let open = |machine: &Machine| fs::read_dir(machine.process("fd")).unwrap().count();
    let mut before = 0;
    for round in 0..20 {
        let mut host = machine.host();
        machine.event("joined");
        machine.begin(&mut host, dir.path().to_str().unwrap(), 1 << 20);
        if round == 0 {
            before = open(&machine);
        }
        assert_eq!(open(&machine), before, "{round}");
        host.rescind();
        machine.event("left");
        assert_eq!(names(dir.path()), [""; 0], "{round}");
    }
    let (mut host, data) = (machine.host(), bytes(2_000_000));
    let large = job("large", dir.path(), &data);
    machine.copy(&mut host, large, &data).unwrap();
    assert!(fs::read(dir.path().join("large")).unwrap() == data);
    machine.stop();
}

/// Known bug 9 of Linux: the device leaves sysfs, and is another file when it returns.
#[test]
fn a_device_that_returns_under_another_number_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let test = "a_device_that_returns_under_another_number_is_found";
    let machine = Machine::start(test, offer(RING, false), guest(dir.path()), |_| {});
    let Some(mut machine) = machine else {
        return;
    };
    let host = machine.host();
    machine.event("joined");
    let (device, gone) = (
        machine.inside(DEVICE),
        machine.inside("/sys/bus/vmbus/gone"),
    );
    fs::rename(&device, &gone).unwrap();
    host.rescind();
    machine.event("left");
    // The file that it was is now another's.
    symlink("uio0", machine.inside("/dev/uio7")).unwrap();
    fs::rename(gone.join("uio/uio0"), gone.join("uio/uio7")).unwrap();
    assert!(machine.hosts.try_recv().is_err());
    fs::rename(&gone, &device).unwrap();
    let (mut host, data) = (machine.host(), bytes(100_000));
    machine.event("joined");
    let again = job("again", dir.path(), &data);
    machine.copy(&mut host, again, &data).unwrap();
    // Another driver gets it: that is no matter of waiting.
    fs::rename(device.join("uio"), device.join("away")).unwrap();
    fs::remove_file(device.join("driver")).unwrap();
    symlink("../../drivers/hv_utils", device.join("driver")).unwrap();
    host.rescind();
    machine.event("left");
    machine.ends(5);
}

/// Known bugs 6, 8, 10 and 26 of Linux: other devices, subchannels, folders that are no
/// device, and a file `ring` of the wrong size or none.
#[test]
fn what_else_sysfs_shows_confuses_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "set -e; cd {DEVICE}
         mkdir -p ../00000000-0000-0000-0000-000000000001/uio/uio0/maps/map0 uio/power
         echo '{{57164f39-9115-4e78-ab55-382f3bd5422d}}' > ../00000000-0000-0000-0000-000000000001/class_id
         echo 0x4000 > ../00000000-0000-0000-0000-000000000001/uio/uio0/maps/map0/size
         mkdir -p ../00000000-0000-0000-0000-000000000002/uio/uio1 channels/12
         cat class_id > ../00000000-0000-0000-0000-000000000002/class_id
         truncate -s 4194304 channels/12/ring
         rm channels/11/ring
         exec {PROGRAM} fcopy guest --json --root {}",
        dir.path().display()
    );
    let test = "what_else_sysfs_shows_confuses_nobody";
    let machine = Machine::start(test, offer(RING, false), shell(&script), |_| {});
    let Some(machine) = machine else {
        return;
    };
    let (mut host, data) = (machine.host(), bytes(50_000));
    let file = job("file", dir.path(), &data);
    machine.copy(&mut host, file, &data).unwrap();
    machine.stop();
}

#[test]
fn a_guest_that_is_stopped_leaves_nothing_of_what_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let test = "a_guest_that_is_stopped_leaves_nothing_of_what_is_under_way";
    for signal in [Signal::TERM, Signal::INT] {
        let machine = Machine::start(test, offer(RING, true), guest(dir.path()), |_| {});
        let Some(mut machine) = machine else {
            return;
        };
        let mut host = machine.host();
        machine.begin(&mut host, dir.path().to_str().unwrap(), 1 << 20);
        machine.program.signal(signal).unwrap();
        machine.event("stopped");
        machine.ends(0);
        assert_eq!(names(dir.path()), [""; 0]);
    }
}

/// Sends a request and gives the status of its answer; there may be any number of them.
fn asked(machine: &Machine, host: &mut VmbusHost, core: &mut Host, body: &[u8]) -> Status {
    let message = message(core, body);
    core.forget(message[24]);
    machine.ask(host, &message)
}

/// Known bug 22 of Linux's daemon: a disk that is full was any failure. Somebody else takes
/// the room that was there when the copy began.
#[test]
fn a_disk_that_fills_up_while_a_file_is_copied_is_told_and_the_next_copy_works() {
    const FRAGMENTS: u64 = 80;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("small");
    fs::create_dir(&root).unwrap();
    // Nobody else sees this mount.
    let script = format!(
        "mount -t tmpfs -o size=1m none {0} && exec {PROGRAM} fcopy guest --json --root {0}",
        root.display()
    );
    let test = "a_disk_that_fills_up_while_a_file_is_copied_is_told_and_the_next_copy_works";
    let Some(machine) = Machine::start(test, offer(RING, false), shell(&script), |_| {}) else {
        return;
    };
    let mut host = machine.host();
    let disk = machine.inside(root.to_str().unwrap());
    let folder = format!("{}/new/", root.display());
    // The host cancels what was refused; one that completes it is refused again.
    for end in [3, 2] {
        let size = 100 + FRAGMENTS * 6144;
        let mut core = machine.begin(&mut host, &folder, size);
        let full = fs::write(disk.join("other"), bytes(2 << 20)).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let mut refused = 0;
        for number in 0..FRAGMENTS {
            let write = fragment(100 + number * 6144, 6144);
            match asked(&machine, &mut host, &mut core, &write) {
                Status::OK => assert_eq!(refused, 0, "what was lost is forgotten"),
                status => {
                    assert_eq!(status, Status::DISK_FULL);
                    refused += 1;
                }
            }
        }
        assert!(refused > FRAGMENTS / 2, "{refused}");
        let last = [&[end, 0, 0, 0][..], &[0; 32]].concat();
        let ended = asked(&machine, &mut host, &mut core, &last);
        assert_eq!(ended == Status::OK, end == 3, "{ended}");
        // Neither the file nor the folder that was made for it.
        assert_eq!(names(&disk), ["other"]);
        fs::remove_file(disk.join("other")).unwrap();
        let data = bytes(600_000);
        let next = job("next", &root.join("new/"), &data);
        machine.copy(&mut host, next, &data).unwrap();
        assert!(fs::read(disk.join("new/next")).unwrap() == data);
        fs::remove_dir_all(disk.join("new")).unwrap();
    }
    machine.stop();
}

/// Known bug 19 of Linux's daemon, and a host that writes anything into the rings.
#[test]
fn rings_of_nonsense_cost_a_channel_each() {
    let dir = tempfile::tempdir().unwrap();
    let test = "rings_of_nonsense_cost_a_channel_each";
    let machine = Machine::start(test, offer(RING, true), guest(dir.path()), |_| {});
    let Some(mut machine) = machine else {
        return;
    };
    let word = |value: u32| value.to_le_bytes();
    // Indices that cannot be, and a descriptor of no length.
    for (at, bytes) in [
        (RING, word(4).to_vec()),
        (RING, word(1 << 31).to_vec()),
        (RING, [word(64), word(60)].concat()),
        (RING, word(64).to_vec()),
        (4, word(12).to_vec()),
    ] {
        let mut host = machine.host();
        machine.event("joined");
        if at == 4 {
            // Its own ring is looked at when it answers.
            let negotiation = Host::new(&FILE_COPY).negotiate();
            host.scribble(at, &bytes);
            host.post(&[&negotiation], false);
        } else {
            host.scribble(at, &bytes);
        }
        host.interrupt();
        let left = machine.event("left");
        assert!(left["reason"].as_str().unwrap().contains("ring"), "{left}");
    }
    let (mut host, data) = (machine.host(), bytes(10));
    let file = job("file", dir.path(), &data);
    machine.copy(&mut host, file, &data).unwrap();
    machine.stop();
}

#[test]
fn the_guest_is_in_a_sandbox_before_it_hears_of_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let (log, test) = (dir.path().join("log"), "the_guest_is_in_a_sandbox");
    let mut command = guest(dir.path());
    let file = fs::File::create(&log).unwrap();
    command.env("LINKSPAN_LOG", "debug").stderr(file);
    let Some(machine) = Machine::start(test, offer(RING, false), command, |_| {}) else {
        return;
    };
    let mut host = machine.host();
    machine.begin(&mut host, dir.path().to_str().unwrap(), 1 << 20);
    let status = fs::read_to_string(machine.process("status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let said = fs::read_to_string(&log).unwrap();
    let open = said.find("the channel is open").expect("it says so");
    let held = said.find("sandboxed, with Landlock");
    let held = held.or_else(|| said.find("this kernel has no Landlock"));
    assert!(held.expect("it says so") < open, "{said}");
    machine.stop();
}

#[test]
fn status_tells_what_there_is() {
    let program = format!("{PROGRAM} fcopy status");
    let script = format!(
        "{program}; echo $?; {program} --json; echo $?
         {PROGRAM} fcopy bind; echo $?
         cd /sys/bus/vmbus
         mv {DEVICE}/uio {DEVICE}/away; rm {DEVICE}/driver; {program} --json; echo $?
         ln -s ../../drivers/hv_other {DEVICE}/driver; {program} --json; echo $?
         {PROGRAM} fcopy bind 2>&1; echo $?
         mv {DEVICE} gone; {program} --json; echo $?
         {PROGRAM} fcopy guest --root /tmp 2>&1; echo $?
         mv devices none; {program} --json; echo $?"
    );
    let test = "status_tells_what_there_is";
    let Some(mut machine) = Machine::start(test, offer(RING, false), shell(&script), |_| {}) else {
        return;
    };
    let mut said = Vec::new();
    while let Some(line) = machine.line() {
        said.push(line);
    }
    let said = said.join("\n");
    let expected = [
        "ready: /dev/uio0, two rings of 20480 bytes\n0\n",
        "{\"state\":\"ready\",\"device\":\"/dev/uio0\",\"ring_size\":20480,\"driver\":\"uio_hv_generic\"}\n0\n",
        "/dev/uio0\n0\n",
        "{\"state\":\"unbound\",",
        "}\n5\n{\"state\":\"other-driver\",\"driver\":\"hv_other\",",
        "}\n5\nlinkspan: /sys/bus/vmbus/devices/eb765408-105f-49b6-b4aa-c123b64d17d4 has no uio \
         device: hv_other has it\n  try: ",
        "\n5\n{\"state\":\"off\",\"reason\":\"the host offers no device of class",
        "Guest Services",
        "}\n3\nlinkspan: the host offers no device",
        "\n3\n{\"state\":\"absent\",",
        "}\n5",
    ];
    let mut rest = &said[..];
    for part in expected {
        let at = rest
            .find(part)
            .unwrap_or_else(|| panic!("{part}\nis not in\n{rest}\nof\n{said}"));
        rest = &rest[at + part.len() - usize::from(part.ends_with('\n'))..];
    }
    machine.ends(0);
}

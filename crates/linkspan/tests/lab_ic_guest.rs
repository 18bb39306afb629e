//! `linkspan ic guest` with the devices of heartbeat, shutdown and time synchronisation as a
//! guest's kernel shows them, and hosts that can say anything.
//!
//! On this machine where a program can have the device, and always in the lab.

//: about heartbeat, shutdown and time synchronisation over the kernel's devices
//: limit 240

mod fcopy_device;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use fcopy_device::{Machine, PROGRAM, RING};
use linkspan_backends::uio::Offer;
use linkspan_testkit::VmbusHost;
use linkspan_testkit::lab::{self, await_path};
use linkspan_vmbus::Guid;
use linkspan_vmbus::ic::heartbeat::{self, Health, Monitor};
use linkspan_vmbus::ic::shutdown::{self, Action, Request, Requester};
use linkspan_vmbus::ic::timesync::{self, Clock, Purpose, Sample};
use linkspan_vmbus::ic::{HEARTBEAT, SHUTDOWN, Service, Status, TIME_SYNC};
use tempfile::tempdir;

/// An instance of a service that has no fixed one.
const INSTANCE: Guid = Guid(*b"linkspan-beats-1");

/// The service's device with the guest that serves it. `None` and a word where a program
/// cannot have it; never in the lab.
fn machine(test: &str, service: &Service, name: &str, options: &[&str]) -> Option<Machine> {
    let offer = Offer {
        interface: service.interface,
        instance: service.instance.unwrap_or(INSTANCE),
        ..VmbusHost::offer(RING)
    };
    let mut guest = Command::new(PROGRAM);
    guest.args(["ic", "guest", "--json", "--services", name]);
    guest.args(options);
    Machine::start(test, offer, guest, |_| {})
}

/// Sends a message and gives the answer.
fn ask(machine: &Machine, host: &mut VmbusHost, message: &[u8]) -> Vec<u8> {
    host.post(&[message], false);
    host.receive(&machine.program).expect("it answers")
}

#[test]
fn a_heartbeat_is_answered_until_the_device_goes_and_when_it_is_back() {
    let test = "a_heartbeat_is_answered";
    let Some(mut machine) = machine(test, &HEARTBEAT, "heartbeat", &[]) else {
        return;
    };
    for _ in 0..2 {
        let mut host = machine.host();
        machine.event("joined");
        let mut monitor = Monitor::default();
        let start = monitor.start();
        let answer = ask(&machine, &mut host, &start);
        let ready = monitor.receive(&answer);
        assert!(matches!(ready, Ok(heartbeat::Event::Ready(_))), "{ready:?}");
        for _ in 0..20 {
            let beat = monitor.beat().unwrap();
            let answer = ask(&machine, &mut host, &beat);
            // As Linux does, it says nothing of its applications.
            let alive = heartbeat::Event::Alive(Health::Unknown);
            assert_eq!(monitor.receive(&answer), Ok(alive));
        }
        host.rescind();
        machine.event("left");
    }
    drop(machine.host());
    machine.stop();
}

#[test]
fn a_wish_is_refused_unless_it_is_allowed_and_then_it_is_done_after_the_answer() {
    let test = "a_wish_is_refused_unless_it_is_allowed";
    let dir = tempdir().unwrap();
    let (program, told) = (dir.path().join("end"), dir.path().join("told"));
    let script = format!("#!/bin/sh\necho $1 >{}\n", told.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let program = ["--shutdown-command", program.to_str().unwrap()];
    for allowed in [false, true] {
        let mut options = program.to_vec();
        if allowed {
            options.push("--allow-shutdown");
        }
        let Some(mut machine) = machine(test, &SHUTDOWN, "shutdown", &options) else {
            return;
        };
        let mut host = machine.host();
        let mut requester = Requester::default();
        let start = requester.start();
        let answer = ask(&machine, &mut host, &start);
        let ready = requester.receive(&answer);
        assert!(matches!(ready, Ok(shutdown::Event::Ready(_))), "{ready:?}");
        let wish = Request {
            action: Action::Restart,
            force: true,
            reason: 0,
            timeout_s: 0,
            message: "a new kernel".into(),
        };
        let message = requester.request(&wish).unwrap();
        let answer = ask(&machine, &mut host, &message);
        let status = if allowed { Status::OK } else { Status::FAIL };
        let answered = shutdown::Event::Answered(status);
        assert_eq!(requester.receive(&answer), Ok(answered));
        let event = machine.event("shutdown");
        assert_eq!(
            (&event["action"], &event["allowed"]),
            (&"reboot".into(), &allowed.into())
        );
        assert_eq!(event["message"], "a new kernel");
        if allowed {
            await_path(&told);
        }
        machine.stop();
        // Whatever was started has ended or was refused: nothing comes later.
        assert_eq!(told.exists(), allowed);
    }
}

/// Negotiates with the guest of time synchronisation.
fn clock(machine: &Machine, host: &mut VmbusHost) -> Clock {
    let mut clock = Clock::default();
    let start = clock.start();
    let answer = ask(machine, host, &start);
    let ready = clock.receive(&answer);
    assert!(matches!(ready, Ok(timesync::Event::Ready(_))), "{ready:?}");
    clock
}

/// Of this machine, since 1970.
fn now() -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("after 1970")
}

/// In the lab alone: nobody else goes by its clock, and its tests run one at a time.
#[test]
fn a_clock_is_set_ahead_and_back_where_that_is_allowed() {
    let test = "a_clock_is_set_ahead_and_back_where_that_is_allowed";
    if !lab::guest(test) {
        return;
    }
    let options = ["--allow-time-set"];
    let machine = machine(test, &TIME_SYNC, "timesync", &options);
    let mut machine = machine.expect("the lab has the device");
    let mut host = machine.host();
    let mut clock = clock(&machine, &mut host);
    let (begun, since) = (now(), Instant::now());
    let hour = Duration::from_secs(3600);
    for (ahead, sign) in [(hour, 1.0), (Duration::ZERO, -1.0)] {
        let sample = Sample {
            purpose: Purpose::Set,
            unix_100ns: u64::try_from((begun + ahead + since.elapsed()).as_nanos() / 100).unwrap(),
            reference_100ns: Some(1),
        };
        let message = clock.tell(sample).unwrap();
        let answer = ask(&machine, &mut host, &message);
        let answered = timesync::Event::Answered(Status::OK);
        assert_eq!(clock.receive(&answer), Ok(answered));
        // Forward by an hour, and then back by one.
        let event = machine.event("set");
        assert_eq!(event["set"], true, "{event}");
        let offset = event["offset_seconds"].as_f64().unwrap() * sign;
        assert!((3500.0..=3700.0).contains(&offset), "{event}");
        let wrong = now().abs_diff(begun + ahead + since.elapsed());
        assert!(wrong < Duration::from_secs(60), "{wrong:?}");
    }
    machine.stop();
}

#[test]
fn times_are_compared_and_none_is_set_unless_that_is_allowed() {
    let test = "times_are_compared";
    let Some(mut machine) = machine(test, &TIME_SYNC, "timesync", &[]) else {
        return;
    };
    let mut host = machine.host();
    let mut clock = clock(&machine, &mut host);
    let ahead = now() + Duration::from_secs(60 * 60);
    for (purpose, status, name) in [
        (Purpose::Sample, Status::OK, "sample"),
        (Purpose::Set, Status::FAIL, "set"),
    ] {
        let sample = Sample {
            purpose,
            unix_100ns: u64::try_from(ahead.as_nanos() / 100).unwrap(),
            reference_100ns: Some(1),
        };
        let message = clock.tell(sample).unwrap();
        let answer = ask(&machine, &mut host, &message);
        let answered = timesync::Event::Answered(status);
        assert_eq!(clock.receive(&answer), Ok(answered), "{purpose:?}");
        let event = machine.event(name);
        let offset = event["offset_seconds"].as_f64().unwrap();
        assert!((3000.0..=3600.0).contains(&offset), "{event}");
    }
    machine.stop();
}

/// Nonsense is dropped or refused, a broken ring ends that channel, and the next host
/// finds the guest as it was.
#[test]
fn a_hostile_host_gets_errors_and_the_guest_takes_the_next_channel() {
    let test = "a_hostile_host_gets_errors";
    let Some(mut machine) = machine(test, &SHUTDOWN, "shutdown", &[]) else {
        return;
    };
    let mut host = machine.host();
    machine.event("joined");
    for nonsense in [&[][..], &[1; 27], &[0xFF; 64], &[0; 3000]] {
        host.post(&[nonsense], false);
    }
    // An index that no ring has: the guest's incoming ring is the second one.
    host.scribble(RING, &(1_u32 << 30).to_le_bytes());
    host.interrupt();
    let left = machine.event("left");
    assert!(left["reason"].as_str().unwrap().contains("ring"), "{left}");
    let mut host = machine.host();
    let mut requester = Requester::default();
    let start = requester.start();
    let answer = ask(&machine, &mut host, &start);
    let ready = requester.receive(&answer);
    assert!(matches!(ready, Ok(shutdown::Event::Ready(_))), "{ready:?}");
    machine.stop();
}

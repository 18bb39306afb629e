//! The state of a device on its way to the next back end (vhost-user: Migrating
//! back-end state), over pipes that do all that pipes can.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use linkspan_testkit::census::{settled, start_reaper};
use linkspan_testkit::disk::SECTOR;
use linkspan_testkit::served::content;
use linkspan_testkit::{Census, FrontEnd, Options, Served, logs};
use linkspan_vhost::message::Request;
use linkspan_vhost::wire;
use rustix::pipe::PipeFlags;
use zerocopy::FromBytes;

const SAVE: u32 = 0;
const LOAD: u32 = 1;

/// A pipe that the child of another test does not have as well.
fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap()
}

/// Begins a transfer; whether the back end did.
fn begin(front: &FrontEnd, direction: u32, fd: impl AsFd) -> bool {
    let body = [direction, 0].map(u32::to_ne_bytes).concat();
    let reply = front
        .ask(Request::SetDeviceStateFd, &body, &[fd.as_fd()])
        .unwrap();
    let reply = u64::read_from_bytes(&reply).unwrap();
    assert_ne!(
        reply & wire::DEVICE_STATE_NOFD_MASK,
        0,
        "our channel is used"
    );
    reply & wire::DEVICE_STATE_ERROR_MASK == 0
}

/// Whether the state was moved whole.
fn check(front: &FrontEnd) -> bool {
    let reply = front.ask(Request::CheckDeviceState, &[], &[]).unwrap();
    u64::read_from_bytes(&reply).unwrap() == 0
}

fn negotiated(served: &Served) -> FrontEnd {
    let mut front = served.connect();
    front.negotiate(&Options::default()).unwrap();
    front
}

fn save(front: &FrontEnd) -> Vec<u8> {
    let (reader, writer) = pipe();
    assert!(begin(front, SAVE, &writer));
    drop(writer);
    let mut state = Vec::new();
    File::from(reader).read_to_end(&mut state).unwrap();
    assert!(check(front));
    state
}

/// Loads these bytes, in pieces.
fn load(front: &FrontEnd, pieces: &[&[u8]]) -> bool {
    let (reader, writer) = pipe();
    assert!(begin(front, LOAD, &reader));
    drop(reader);
    let mut writer = File::from(writer);
    for piece in pieces {
        // Who has read too much has gone.
        let _ = writer.write_all(piece);
    }
    drop(writer);
    check(front)
}

#[test]
fn saved_state_is_loaded_by_the_next_one() {
    let served = Served::disk(1);
    let front = negotiated(&served);
    let state = save(&front);
    assert!((8..64).contains(&state.len()), "{state:?}");
    drop(front);
    let front = negotiated(&served);
    assert!(load(&front, &[&state]));
    let bytes: Vec<&[u8]> = state.chunks(1).collect();
    assert!(load(&front, &bytes));
    assert_eq!(save(&front), state, "it can be saved again");
    drop(front);
    // A device that was loaded serves.
    let mut disk = served.drive(1);
    assert_eq!(disk.rings[0].read(3, SECTOR), content(3));
    disk.shut_down();
}

#[test]
fn state_that_is_not_ours_is_refused() {
    logs::capture();
    let served = Served::disk(1);
    let front = negotiated(&served);
    let state = save(&front);
    let mut cases: Vec<Vec<u8>> = (0..state.len()).map(|len| state[..len].to_vec()).collect();
    cases.extend((0..state.len()).map(|at| {
        let mut state = state.clone();
        state[at] ^= 0x20;
        state
    }));
    cases.push([&state[..], &[0]].concat());
    for case in cases {
        assert!(!load(&front, &[&case]), "{case:?}");
    }
    logs::expect_line(&[
        "VHOST_USER_CHECK_DEVICE_STATE",
        "are not the state of a block device",
    ]);
    assert!(!load(&front, &[&vec![0; 1 << 20]]));
    logs::expect_line(&[
        "VHOST_USER_CHECK_DEVICE_STATE",
        "a state of more than 512 bytes",
    ]);
    assert!(!check(&front), "nothing was moved since");
    logs::expect_line(&["there was no transfer of the device's state"]);
    assert!(load(&front, &[&state]), "the session goes on");
}

#[test]
fn channel_that_does_not_work_is_no_harm() {
    let served = Served::disk(1);
    let front = negotiated(&served);
    let (reader, writer) = pipe();
    // The wrong end of a pipe, and one whose other end is gone.
    assert!(begin(&front, SAVE, &reader));
    assert!(!check(&front));
    assert!(begin(&front, LOAD, &writer));
    assert!(!check(&front));
    drop(reader);
    // A child of another test has it until it is a program of its own.
    assert!(settled(|| {
        assert!(begin(&front, SAVE, &writer));
        !check(&front)
    }));
    // What was begun before ends when the next one begins.
    let (reader, _writer) = pipe();
    for _ in 0..8 {
        assert!(begin(&front, LOAD, &reader));
    }
    save(&front);
}

#[test]
fn device_that_runs_moves_no_state() {
    let served = Served::disk(1);
    let disk = served.drive(1);
    let (_reader, writer) = pipe();
    assert!(!begin(&disk.front, SAVE, &writer));
    disk.front.stop(0).unwrap();
    save(&disk.front);
}

/// The census is of the whole process, so this test has what it needs in a child.
#[test]
fn front_end_that_leaves_in_the_middle_leaves_nothing() {
    const CHILD: &str = "LINKSPAN_TEST_CHILD";
    if std::env::var_os(CHILD).is_none() {
        let program = std::env::current_exe().unwrap();
        let name = "front_end_that_leaves_in_the_middle_leaves_nothing";
        let mut child = std::process::Command::new(program);
        child.args([name, "--exact", "--nocapture"]).env(CHILD, "1");
        assert!(child.status().unwrap().success());
        return;
    }
    start_reaper();
    let served = Served::disk(1);
    served.expect_serves();
    let before = Census::at_rest();
    for waits in [false, true] {
        let front = negotiated(&served);
        let (reader, writer) = pipe();
        assert!(begin(&front, LOAD, &reader));
        if waits {
            // Its answer will never come.
            let check = wire::encode(Request::CheckDeviceState.code(), 0, &[]);
            assert!(front.send_raw(&check, &[]));
        }
        drop(front);
        let end = served.next_end();
        assert!(!end.1, "{}", end.0);
        drop((reader, writer));
        before.assert_restored("after a front end that left");
    }
    served.expect_serves();
    before.assert_restored("at the end");
}

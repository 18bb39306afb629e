//! Keys and the pointer of viewers, before a monitor of QEMU that does what it is told.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use linkspan_backends::display::{Input, QmpError};

/// A monitor's end of one connection.
pub(crate) struct Monitor {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Monitor {
    fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        let mut monitor = Self { stream, lines };
        monitor.say("{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}");
        assert!(monitor.hear().contains("qmp_capabilities"));
        monitor.say("{\"return\": {}}");
        monitor
    }

    fn say(&mut self, line: &str) {
        writeln!(self.stream, "{line}").unwrap();
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    /// The next command, which is answered like this after an event that is nothing.
    pub(crate) fn answer(&mut self, line: &str) -> String {
        let heard = self.hear();
        self.say("{\"event\": \"RTC_CHANGE\", \"data\": {}}");
        self.say(line);
        heard
    }
}

/// Connects, to a monitor in this thread.
pub(crate) fn connect(path: &Path, listener: &UnixListener) -> (Input, Monitor) {
    let path = path.to_owned();
    let input = thread::spawn(move || Input::connect(&path).unwrap());
    let monitor = Monitor::accept(listener);
    (input.join().unwrap(), monitor)
}

#[test]
fn keys_go_to_qemu_and_to_its_next_life() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let (input, mut monitor) = connect(&path, &listener);
    let mut seat = input.seat();
    seat.keysym(true, 0x6B);
    seat.pointer(0, (1, 1), (2, 2));
    let key = monitor.answer("{\"return\": {}}");
    assert!(key.contains("\"qcode\"") && key.contains("\"k\""), "{key}");
    // QEMU refuses: the guest has no tablet. Keys go on.
    let pointer = monitor.answer("{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}");
    assert!(pointer.contains("\"abs\""), "{pointer}");
    seat.code(true, "Escape");
    assert!(monitor.answer("{\"return\": {}}").contains("\"esc\""));
    // Without its display there is no other size, and all else goes on.
    assert!(input.resize(1, 640, 480));
    assert!(monitor.answer("{\"return\": {}}").contains("getfd"));
    let refused = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"D-Bus is not active\"}}";
    assert!(monitor.answer(refused).contains("@dbus-display"));
    assert!(monitor.answer("{\"return\": {}}").contains("closefd"));
    seat.code(false, "Escape");
    assert!(monitor.answer("{\"return\": {}}").contains("\"esc\""));
    // QEMU ends, and comes again.
    drop(monitor);
    let mut monitor = Monitor::accept(&listener);
    // It may be the same guest, and has not heard that this key is up.
    let up = monitor.answer("{\"return\": {}}");
    assert!(
        up.contains("\"k\"") && up.contains("\"down\":false"),
        "{up}"
    );
    let mut seat = input.seat();
    let mut heard = String::new();
    // Until it is known that it is there again, keys are for nobody.
    while !heard.contains("\"z\"") {
        seat.code(true, "KeyZ");
        monitor
            .stream
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        drop(monitor.lines.read_line(&mut heard));
    }
    // Whoever leaves lets go of what is down.
    monitor.say("{\"return\": {}}");
    drop(seat);
    monitor
        .stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    while !monitor
        .answer("{\"return\": {}}")
        .contains("\"down\":false")
    {}
    drop(input);
    assert_eq!(monitor.hear(), "", "the connection ends");
}

/// A page may be there before its guest is.
#[test]
fn qemu_may_come_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let input = Input::later(&path).unwrap();
    let mut seat = input.seat();
    seat.code(true, "KeyA");
    assert!(!input.resize(0, 640, 480));
    let listener = UnixListener::bind(&path).unwrap();
    let mut monitor = Monitor::accept(&listener);
    // What was typed before it came is for nobody.
    let soon = Some(Duration::from_millis(50));
    monitor.stream.set_read_timeout(soon).unwrap();
    let mut heard = String::new();
    while heard.is_empty() {
        seat.code(true, "KeyZ");
        drop(monitor.lines.read_line(&mut heard));
    }
    assert!(heard.contains("\"z\""), "{heard}");
}

#[test]
fn what_is_no_monitor_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    assert!(matches!(Input::connect(&path), Err(QmpError::Connect(_))));
    let listener = UnixListener::bind(&path).unwrap();
    let (sender, receiver): (Sender<String>, Receiver<String>) = channel();
    let server = thread::spawn(move || {
        for said in receiver {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(said.as_bytes()).unwrap();
        }
    });
    let refused = |said: &str| {
        sender.send(said.to_owned()).unwrap();
        Input::connect(&path).unwrap_err()
    };
    assert!(refused("RFB 003.008\n").is_broken());
    assert!(refused("{\"return\": {}}\n").is_broken());
    assert!(refused(&"x".repeat(100_000)).is_broken());
    let gone = refused("");
    assert!(matches!(gone, QmpError::Closed), "{gone}");
    drop(sender);
    server.join().unwrap();
}

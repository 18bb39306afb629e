//! Viewers before a GPU that never stops saying something.

use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use linkspan_backends::display::{Change, GpuSource, Source as _, SourceError};
use linkspan_display::link::{Message, VERSION};
use linkspan_display::{Loss, Rectangle};
use tempfile::TempDir;

/// A GPU that says that parts of its screen have changed, until nobody hears it, or for so
/// long that a test has failed.
fn flooding() -> (GpuSource, JoinHandle<()>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let flood = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        stream
            .set_write_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let planes = Message::Planes {
            loss: Some(Loss::Off),
            planes: Vec::new(),
            refused: Vec::new(),
        };
        let area = Rectangle {
            x: 0,
            y: 0,
            width: 1,
            height: 1,
        };
        let damage = Message::Damage {
            head: 0,
            parts: vec![area],
        };
        let mut bytes = Message::Hello { version: VERSION }.to_bytes();
        bytes.extend(planes.to_bytes());
        let many = damage.to_bytes().repeat(1000);
        while stream.write_all(&bytes).is_ok() && Instant::now() < until {
            bytes.clone_from(&many);
        }
    });
    (GpuSource::connect(&path).unwrap(), flood, folder)
}

#[test]
fn what_never_stops_is_heard_for_a_while() {
    let (mut source, flood, _folder) = flooding();
    for _ in 0..10 {
        // The first time it may be that nothing came yet.
        assert_ne!(source.change(), Change::Compare);
        let error = source.planes().unwrap_err();
        assert!(matches!(error, SourceError::Lost(Loss::Off)), "{error}");
    }
    while !source.has_news() {
        let _ = source.planes();
    }
    drop(source);
    flood.join().unwrap();
}

#[test]
fn who_says_all_but_the_answer_does_not_answer() {
    let (mut source, flood, _folder) = flooding();
    let error = source.descriptor(1, false).unwrap_err();
    assert!(matches!(&error, SourceError::Broken(why) if why == "it does not answer"));
    drop(source);
    flood.join().unwrap();
}

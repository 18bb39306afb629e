//! A thousand connections that say nothing.

use std::fs;
use std::path::Path;

use rustix::process::Signal;

use crate::rig::{Listener, Script, data, status};

/// Bytes of a process that are in memory and no file's.
fn resident(process: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// How often a thread has waited until now.
pub(crate) fn waits(thread: &Path) -> u64 {
    let text = fs::read_to_string(thread.join("status")).unwrap();
    let mut lines = text.lines();
    let line = lines.find(|line| line.starts_with("voluntary_ctxt_switches:"));
    let count = line.unwrap().split_whitespace().nth(1).unwrap();
    count.parse::<u64>().unwrap()
}

/// The same of all threads.
fn all_waits(process: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    threads.map(|thread| waits(&thread.unwrap().path())).sum()
}

#[test]
fn a_thousand_idle_connections_take_less_than_64_mib_and_no_processor() {
    const CONNECTIONS: usize = 1000;
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum,
            ..rustix::process::getrlimit(rustix::process::Resource::Nofile)
        },
    )
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("s");
    let listener = Listener::start(&["--control", control.to_str().unwrap()]);
    let process = listener.child.id();
    let before = resident(process);
    let mut scripts = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut script = Script::negotiated(listener.raw());
        // Each has been used.
        script.send(&data(0, 0, &[1; 1000]));
        let echo = std::iter::repeat_with(|| script.message()).find(|message| message.len() > 20);
        assert_eq!(echo.unwrap().len(), 1024);
        scripts.push(script);
    }
    let (summary, connections, _) = status(&control, &[]);
    assert_eq!(
        (&summary["connections"], connections.len()),
        (&CONNECTIONS.into(), CONNECTIONS)
    );
    // As many receives as each wanted are posted, and no buffer is in use.
    assert!(connections.iter().all(|it| it["receives_granted"] == 10));
    assert_eq!(summary["receive_buffers"], 0);
    let took = resident(process) - before;
    println!("{CONNECTIONS} idle connections take {} KiB", took >> 10);
    assert!(took < 64 << 20, "{took} bytes");
    // While others work, nobody here wakes up.
    let waited = all_waits(process);
    let other = Listener::start(&[]);
    other.run("ping", &["--count", "1000"]);
    other.stop(Signal::TERM);
    assert_eq!(all_waits(process), waited);
    // And each still lives.
    scripts[CONNECTIONS - 1].send(&data(1, 0, &[]));
    assert_eq!(scripts[CONNECTIONS - 1].message().len(), 20);
    drop(scripts);
    listener.stop(Signal::TERM);
}

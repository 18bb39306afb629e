//! The guest's end of file copy on machines with pages of 4, 16 and 64 KiB, over the
//! device as their kernels show it.
//!
//! On this machine where a program can have the device, and always in the lab.

//: about file copy on machines with pages of 4, 16 and 64 KiB
//: limit 240

use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use linkspan_backends::fcopy::{Guest, GuestEnd, Tree, TreeOptions};
use linkspan_backends::uio::{Offer, Program};
use linkspan_engine::vmbus::Channel;
use linkspan_sys::EventFd;
use linkspan_sys::uio::{self, Device};
use linkspan_testkit::{PATIENCE, VmbusHost};
use linkspan_vmbus::fcopy::{Job, Policy, Roots};
use linkspan_vmbus::ic::FILE_COPY;
use std::os::fd::AsFd as _;

/// What the process that has the device is told: its pages, and where files go.
const PAGE: &str = "LINKSPAN_TEST_PAGE";
const ROOT: &str = "LINKSPAN_TEST_ROOT";

/// Linux's pages, and the ring that each makes of 16 KiB that were asked for (known bug
/// 10): whole pages, and one more for the header.
const PAGES: [(u64, u64); 3] = [(4096, 20480), (16384, 32768), (65536, 131_072)];

#[test]
fn files_arrive_whatever_a_page_is() {
    for (page, ring) in PAGES {
        for masks in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (connect, hosts) = VmbusHost::for_each_guest_of(ring, page, |_| {});
            let offer = Offer {
                masks,
                ..VmbusHost::offer(ring)
            };
            let mut command = Command::new(env::current_exe().unwrap());
            command
                .args(["--exact", "inside"])
                .env(PAGE, page.to_string())
                .env(ROOT, dir.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            let program = match Program::start(offer, connect, command) {
                Ok(program) => program,
                Err(error) => {
                    let remedy = error.remedy().unwrap_or_else(|| panic!("{error:?}"));
                    assert_ne!(env::var("LINKSPAN_LAB").as_deref(), Ok("1"), "{error}");
                    let mut out = io::stderr().lock();
                    drop(writeln!(
                        out,
                        "SKIP files_arrive_whatever_a_page_is: {error}: {remedy}"
                    ));
                    return;
                }
            };
            let mut host = hosts.recv_timeout(PATIENCE).expect("it opens the device");
            let data: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
            let jobs: Vec<(Job, &[u8])> = ["a", "b"]
                .into_iter()
                .map(|name| (job(name, dir.path(), &data), &data[..]))
                .collect();
            assert_eq!(host.copy(&program, &jobs), [Ok(()), Ok(())], "{page}");
            for name in ["a", "b"] {
                assert!(fs::read(dir.path().join(name)).unwrap() == data, "{page}");
            }
            // It ends when its host does.
            host.rescind();
            assert!(program.wait().unwrap().success(), "{page}");
        }
    }
}

fn job(file: &str, to: &Path, data: &[u8]) -> Job {
    Job {
        file: file.into(),
        path: to.to_str().unwrap().into(),
        overwrite: false,
        create_path: false,
        size: data.len() as u64,
    }
}

/// What has the device: one channel, on a machine with such pages.
#[test]
fn inside() {
    let Ok(page) = env::var(PAGE) else {
        return;
    };
    let root = env::var(ROOT).unwrap();
    let roots = uio::Roots {
        page: page.parse().unwrap(),
        ..uio::Roots::default()
    };
    let class = FILE_COPY.interface.to_string();
    let found = uio::find(&roots, &class, None).unwrap();
    let channel = Channel::device(Device::open(&found).unwrap()).unwrap();
    let policy = Policy {
        roots: Roots::new(&[&root]).unwrap(),
        max_size: u64::MAX,
    };
    let tree = Tree::new(&[&root], TreeOptions::default()).unwrap();
    let never = EventFd::new().unwrap();
    let end = Guest::new(policy, tree).serve(channel, None, never.as_fd());
    assert!(matches!(end, GuestEnd::Rescinded), "{end}");
}

//! A disk that fills up while a file is written. The limit is of the whole process, so
//! this is one test.

use std::fs;

use linkspan_backends::fcopy::{Tree, TreeOptions};
use linkspan_sys::signals::ignore_file_limit;
use linkspan_vmbus::fcopy::{Effect, Place, Target};
use linkspan_vmbus::ic::Status;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Known bug 22 of Linux's daemon: what was lost was any failure, or none.
#[test]
fn what_could_not_be_written_is_told_at_once_or_later_and_never_forgotten() {
    ignore_file_limit().unwrap();
    let whole = getrlimit(Resource::Fsize);
    let limit = Rlimit {
        current: Some(200_000),
        ..whole
    };
    setrlimit(Resource::Fsize, limit).unwrap();
    let root = tempfile::tempdir().unwrap();
    let mut tree = Tree::new(&[root.path()], TreeOptions::default()).unwrap();
    let place = Place {
        root: 0,
        folder: String::new(),
        target: Target::In {
            name: "file".into(),
        },
        overwrite: false,
        create_path: false,
        // What is reserved fits; what is written does not.
        size: 150_000,
    };
    tree.carry_out(&Effect::Open(place), &[]).unwrap();
    let (data, mut refused) = (vec![7; 6144], 0);
    for number in 0..60 {
        let write = Effect::Write {
            offset: number * 6144,
            data: 0..data.len(),
        };
        match tree.carry_out(&write, &data) {
            Ok(()) => assert_eq!(refused, 0, "what was lost is forgotten"),
            Err(error) => {
                assert_eq!(error.status(), Status::DISK_FULL, "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 10, "{refused}");
    let finished = tree.carry_out(&Effect::Finish, &[]).unwrap_err();
    assert_eq!(finished.status(), Status::DISK_FULL);
    tree.carry_out(&Effect::Discard, &[]).unwrap();
    assert!(fs::read_dir(root.path()).unwrap().next().is_none());
}

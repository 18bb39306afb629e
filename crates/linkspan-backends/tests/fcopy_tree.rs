//! Files below roots: where they go, what they become, and that nothing is left of
//! what is refused, given up or not finished.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use linkspan_backends::fcopy::{FileError, Temporary, Tree, TreeOptions};
use linkspan_vmbus::fcopy::{Effect, Place, Target};
use linkspan_vmbus::ic::Status;
use tempfile::{TempDir, tempdir, tempdir_in};

struct Rig {
    root: TempDir,
    tree: Tree,
}

const KINDS: [Temporary; 2] = [Temporary::Unnamed, Temporary::Named];

impl Rig {
    fn new(temporary: Temporary) -> Self {
        Self::with(TreeOptions {
            temporary,
            overwrite: true,
            ..TreeOptions::default()
        })
    }

    fn with(options: TreeOptions) -> Self {
        Self::below(&std::env::temp_dir(), options)
    }

    /// With a root that is made in this folder.
    fn below(folder: &Path, options: TreeOptions) -> Self {
        let root = tempdir_in(folder).unwrap();
        let tree = Tree::new(&[root.path()], options).unwrap();
        Self { root, tree }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.root.path().join(name)
    }

    fn open(&mut self, place: Place) -> Result<(), FileError> {
        self.tree.carry_out(&Effect::Open(place), &[])
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), FileError> {
        let effect = Effect::Write {
            offset,
            data: 3..3 + data.len(),
        };
        let payload = [&[0; 3], data].concat();
        self.tree.carry_out(&effect, &payload)
    }

    fn finish(&mut self) -> Result<(), FileError> {
        self.tree.carry_out(&Effect::Finish, &[])
    }

    fn discard(&mut self) {
        self.tree.carry_out(&Effect::Discard, &[]).unwrap();
    }

    fn copy(&mut self, place: Place, data: &[u8]) -> Result<(), FileError> {
        self.open(Place {
            size: data.len() as u64,
            ..place
        })?;
        self.write(0, data)?;
        let finished = self.finish();
        if finished.is_err() {
            self.discard();
        }
        finished
    }

    /// All that is below the root.
    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        list(self.root.path(), "", &mut names);
        names.sort();
        names
    }
}

fn list(folder: &Path, prefix: &str, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            list(&entry.path(), &format!("{name}/"), names);
        }
        names.push(name);
    }
}

fn place(folder: &str, name: &str) -> Place {
    Place {
        root: 0,
        folder: folder.into(),
        target: Target::In { name: name.into() },
        overwrite: false,
        create_path: false,
        size: 0,
    }
}

fn at(last: &str, name: &str) -> Place {
    Place {
        target: Target::At {
            last: last.into(),
            name: name.into(),
        },
        ..place("", "")
    }
}

fn replacing(place: Place) -> Place {
    Place {
        overwrite: true,
        ..place
    }
}

fn making(place: Place) -> Place {
    Place {
        create_path: true,
        ..place
    }
}

#[test]
fn a_file_is_seen_when_it_is_whole_and_not_before() {
    for kind in KINDS {
        let mut rig = Rig::new(kind);
        rig.open(Place {
            size: 10,
            ..place("", "file")
        })
        .unwrap();
        rig.write(5, b"world").unwrap();
        assert!(!rig.path("file").exists());
        let hidden = rig.names();
        let named = kind == Temporary::Named;
        assert_eq!(hidden.len(), usize::from(named));
        assert!(hidden.iter().all(|name| name.starts_with(".linkspan-")));
        rig.write(0, b"hello").unwrap();
        rig.finish().unwrap();
        assert_eq!(fs::read(rig.path("file")).unwrap(), b"helloworld");
        assert_eq!(rig.names(), ["file"]);
        assert!(matches!(rig.write(0, b"x"), Err(FileError::NotOpen)));
        assert!(matches!(rig.finish(), Err(FileError::NotOpen)));
    }
}

#[test]
fn modes_and_owners_are_what_was_asked_for() {
    // Root can give files away, others only to themselves.
    let meta = fs::metadata(tempdir().unwrap().path()).unwrap();
    let owner = if meta.uid() == 0 {
        (12_345, 23_456)
    } else {
        (meta.uid(), meta.gid())
    };
    let mut rig = Rig::with(TreeOptions {
        owner: Some(owner),
        mode: 0o640,
        folder_mode: 0o750,
        ..TreeOptions::default()
    });
    rig.copy(making(place("a/b", "file")), b"x").unwrap();
    for (name, mode) in [("a", 0o40750), ("a/b", 0o40750), ("a/b/file", 0o100640)] {
        let found = fs::metadata(rig.path(name)).unwrap();
        assert_eq!(found.permissions().mode(), mode, "{name}");
        assert_eq!((found.uid(), found.gid()), owner, "{name}");
    }
    // Known bug 24 of Linux's daemon: all files could be executed.
    let mut rig = Rig::new(Temporary::Unnamed);
    rig.copy(place("", "file"), b"").unwrap();
    let found = fs::metadata(rig.path("file")).unwrap();
    assert_eq!(found.permissions().mode(), 0o100644);
}

#[test]
fn a_file_that_exists_is_replaced_if_both_sides_want_it() {
    for kind in KINDS {
        let mut rig = Rig::new(kind);
        rig.copy(place("", "file"), b"old").unwrap();
        let refused = rig.copy(place("", "file"), b"new").unwrap_err();
        assert_eq!(refused.status(), Status::ALREADY_EXISTS);
        assert_eq!(fs::read(rig.path("file")).unwrap(), b"old");
        // A copy that is given up does not touch it.
        rig.open(replacing(place("", "file"))).unwrap();
        rig.discard();
        assert_eq!(fs::read(rig.path("file")).unwrap(), b"old");
        rig.copy(replacing(place("", "file")), b"new").unwrap();
        assert_eq!(fs::read(rig.path("file")).unwrap(), b"new");
        assert_eq!(rig.names(), ["file"]);
        // One that came meanwhile is not lost either.
        rig.open(place("", "late")).unwrap();
        fs::write(rig.path("late"), "theirs").unwrap();
        let refused = rig.finish().unwrap_err();
        assert_eq!(refused.status(), Status::ALREADY_EXISTS);
        rig.discard();
        assert_eq!(fs::read(rig.path("late")).unwrap(), b"theirs");
        assert_eq!(rig.names(), ["file", "late"]);
    }
    let mut rig = Rig::with(TreeOptions::default());
    rig.copy(place("", "file"), b"old").unwrap();
    let refused = rig.copy(replacing(place("", "file")), b"new").unwrap_err();
    assert_eq!(refused.status(), Status::ALREADY_EXISTS);
}

/// Known bug 25 of Linux's daemon: a last part without a slash was never right.
#[test]
fn the_last_part_is_a_folder_if_there_is_one() {
    let mut rig = Rig::new(Temporary::Unnamed);
    fs::create_dir(rig.path("docs")).unwrap();
    rig.copy(at("docs", "file"), b"1").unwrap();
    rig.copy(at("other", "file"), b"2").unwrap();
    rig.copy(making(at("third", "file")), b"3").unwrap();
    assert_eq!(rig.names(), ["docs", "docs/file", "other", "third"]);
    let refused = rig.copy(at("other", "file"), b"4").unwrap_err();
    assert_eq!(refused.status(), Status::ALREADY_EXISTS);
}

#[test]
fn folders_are_made_if_asked_for_and_go_with_a_copy_that_fails() {
    for kind in KINDS {
        let mut rig = Rig::new(kind);
        let refused = rig.copy(place("a/b", "file"), b"1").unwrap_err();
        assert_eq!(refused.status(), Status::FAIL);
        assert!(rig.names().is_empty());
        rig.open(making(place("a/b/c", "file"))).unwrap();
        assert!(rig.path("a/b/c").is_dir());
        rig.discard();
        assert!(rig.names().is_empty());
        // What is there already, and what others put there, stays.
        fs::create_dir(rig.path("a")).unwrap();
        rig.open(making(place("a/b/c", "file"))).unwrap();
        fs::write(rig.path("a/b/theirs"), "").unwrap();
        rig.discard();
        assert_eq!(rig.names(), ["a", "a/b", "a/b/theirs"]);
        // The end of the process' interest is an end as well.
        rig.open(making(place("x", "file"))).unwrap();
        let Rig { root, tree } = rig;
        drop(tree);
        assert!(!root.path().join("x").exists());
    }
}

#[test]
fn an_open_that_comes_again_replaces_the_one_before() {
    let mut rig = Rig::new(Temporary::Named);
    rig.open(making(place("a", "one"))).unwrap();
    rig.open(place("", "two")).unwrap();
    assert_eq!(rig.names().len(), 1);
    rig.finish().unwrap();
    assert_eq!(rig.names(), ["two"]);
}

#[test]
fn no_link_leads_out_of_a_root() {
    for kind in KINDS {
        let outside = tempdir().unwrap();
        fs::write(outside.path().join("precious"), "theirs").unwrap();
        let mut rig = Rig::new(kind);
        symlink(outside.path(), rig.path("out")).unwrap();
        symlink("..", rig.path("up")).unwrap();
        symlink(outside.path().join("precious"), rig.path("precious")).unwrap();
        symlink("/proc/self/root", rig.path("magic")).unwrap();
        let before = rig.names();
        for target in [
            place("out", "file"),
            making(place("out/inner", "file")),
            place("up", "file"),
            making(place("magic/tmp", "file")),
            place("..", "file"),
            place("../..", "file"),
            replacing(place("", "precious")),
            replacing(at("precious", "precious")),
            replacing(at("out", "file")),
            replacing(place("", "out")),
        ] {
            let refused = rig.copy(target.clone(), b"ours").unwrap_err();
            let status = refused.status();
            assert!(
                [
                    Status::INVALID_ARGUMENT,
                    Status::ALREADY_EXISTS,
                    Status::FAIL
                ]
                .contains(&status),
                "{target:?}: {refused}"
            );
        }
        assert_eq!(rig.names(), before);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        assert_eq!(
            fs::read(outside.path().join("precious")).unwrap(),
            b"theirs"
        );
    }
}

#[test]
fn what_is_no_file_is_not_replaced() {
    let mut rig = Rig::new(Temporary::Unnamed);
    fs::create_dir(rig.path("folder")).unwrap();
    let refused = rig.copy(replacing(place("", "folder")), b"x").unwrap_err();
    assert!(matches!(refused, FileError::NotAFile { .. }), "{refused}");
    fs::write(rig.path("file"), "").unwrap();
    let refused = rig.copy(making(place("file/in", "x")), b"x").unwrap_err();
    assert_eq!(refused.status(), Status::FAIL);
    assert_eq!(rig.names(), ["file", "folder"]);
}

#[test]
fn a_file_that_is_larger_than_the_disk_is_refused_at_once() {
    for kind in KINDS {
        let mut rig = Rig::new(kind);
        let refused = rig
            .open(Place {
                size: 1 << 60,
                ..making(place("new", "huge"))
            })
            .unwrap_err();
        assert_eq!(refused.status(), Status::DISK_FULL, "{refused}");
        assert!(rig.names().is_empty());
    }
}

/// To reserve room there takes as long as the copy, and the host waits meanwhile.
#[test]
fn in_memory_room_is_looked_for_and_not_reserved() {
    let memory = Path::new("/dev/shm");
    let tmpfs = rustix::fs::statfs(memory).is_ok_and(|system| system.f_type == 0x0102_1994);
    if !tmpfs {
        println!("SKIP in_memory_room_is_looked_for: /dev/shm is no tmpfs");
        return;
    }
    for kind in KINDS {
        let options = TreeOptions {
            temporary: kind,
            ..TreeOptions::default()
        };
        let mut rig = Rig::below(memory, options);
        let huge = Place {
            size: 1 << 60,
            ..place("", "huge")
        };
        let refused = rig.open(huge).unwrap_err();
        assert!(matches!(refused, FileError::NoRoom { .. }), "{refused}");
        assert_eq!(refused.status(), Status::DISK_FULL);
        assert!(rig.names().is_empty());
        let file = Place {
            size: 1 << 20,
            ..place("", "file")
        };
        rig.open(file).unwrap();
        // Where it has a name it can be looked at.
        for name in rig.names() {
            assert_eq!(fs::metadata(rig.path(&name)).unwrap().blocks(), 0);
        }
        rig.write(0, &[7; 1 << 20]).unwrap();
        rig.finish().unwrap();
        assert_eq!(fs::metadata(rig.path("file")).unwrap().len(), 1 << 20);
    }
}

/// Bytes are written together where that can be; what is there is as if they were not.
#[test]
fn bytes_in_any_order_and_size_land_where_they_belong() {
    for seed in 1..30_u32 {
        let mut rig = Rig::new(Temporary::Unnamed);
        let len = 1 + (seed as usize * 7919 * 13) % 250_000;
        let mut want = vec![0; len];
        rig.open(Place {
            size: len as u64,
            ..place("", "file")
        })
        .unwrap();
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize
        };
        let mut at = 0;
        for number in 0..80_u8 {
            // Mostly one behind the other, sometimes elsewhere, sometimes large.
            if next() % 5 == 0 {
                at = next() % len;
            }
            let most = if next() % 9 == 0 { 150_000 } else { 6144 };
            let size = (1 + next() % most).min(len - at);
            let data = vec![number; size];
            rig.write(at as u64, &data).unwrap();
            want[at..at + size].copy_from_slice(&data);
            at = (at + size) % len;
        }
        rig.write(len as u64 - 1, &[0xEE]).unwrap();
        want[len - 1] = 0xEE;
        rig.finish().unwrap();
        assert!(fs::read(rig.path("file")).unwrap() == want, "seed {seed}");
    }
}

#[test]
fn a_root_that_is_no_folder_is_an_error() {
    let folder = tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for root in [file, folder.path().join("missing")] {
        let refused = Tree::new(&[root], TreeOptions::default());
        assert!(matches!(refused, Err(FileError::System { .. })));
    }
}

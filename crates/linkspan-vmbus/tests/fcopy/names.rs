//! Names and places.

use linkspan_vmbus::fcopy::{Effect, NameError, Place, Refusal, RootError, Roots, Target};
use linkspan_vmbus::ic::Status;

use crate::{Rig, raw_start, start, units};

/// The place of a copy, or why there is none.
fn place_of(file: &[u16], path: &[u16]) -> Result<Place, NameError> {
    let mut rig = Rig::new();
    let status = rig.ask(&raw_start(file, path, 0, 1));
    match rig.effects().pop() {
        Some(Effect::Open(place)) => {
            assert_eq!(status, Status::OK);
            Ok(place)
        }
        _ => match rig.refusal() {
            Refusal::Name(error) => {
                assert_eq!(status, Status::INVALID_ARGUMENT);
                assert!(!error.to_string().is_empty());
                Err(error)
            }
            other => panic!("{other}"),
        },
    }
}

fn place(file: &str, path: &str) -> Result<(usize, String, Target), NameError> {
    place_of(&units(file), &units(path)).map(|place| (place.root, place.folder, place.target))
}

fn inside(name: &str) -> Target {
    Target::In { name: name.into() }
}

fn at(last: &str, name: &str) -> Target {
    Target::At {
        last: last.into(),
        name: name.into(),
    }
}

/// Linux's daemon first cast units to `wchar_t`, so that every copy failed, and later
/// made invalid UTF-8 of all that is not ASCII.
#[test]
fn any_unicode_name_arrives_as_it_is() {
    for name in [
        "plain.txt",
        "naïve-日本.txt",
        "😀 emoji",
        "e\u{301} decomposed",
        "é composed",
        "\u{FFFD}",
        "tab\tand\nnewline",
        "%PATH% is a fine name",
        "$HOME",
        "C:",
        "  ",
        "-rf",
        "עברית",
    ] {
        assert_eq!(place(name, "/tmp/"), Ok((1, String::new(), inside(name))));
        if !name.contains(['%', '$']) {
            let folder = place("f", &format!("/tmp/{name}/"));
            assert_eq!(folder, Ok((1, name.into(), inside("f"))));
        }
    }
}

#[test]
fn half_a_character_is_refused() {
    for (units, unit, at) in [
        (vec![0xD800], 0xD800, 0),
        (vec![0x61, 0xDC00], 0xDC00, 1),
        (vec![0xD83D, 0xDE00, 0xD83D, 0x61], 0xD83D, 2),
    ] {
        let error = NameError::Unpaired { unit, at };
        assert_eq!(
            place_of(&units, &crate::units("/tmp/")).err(),
            Some(error.clone())
        );
        assert_eq!(place_of(&crate::units("f"), &units).err(), Some(error));
    }
}

#[test]
fn what_follows_the_first_zero_is_no_part_of_a_name() {
    let name = [0x61, 0, 0xD800, 0x2F];
    assert_eq!(
        place_of(&name, &units("/tmp/")).unwrap().target,
        inside("a")
    );
    assert_eq!(
        place_of(&[0x61; 260], &units("/tmp/")),
        Err(NameError::Endless)
    );
    assert_eq!(place_of(&units("f"), &[0x2F; 260]), Err(NameError::Endless));
    assert_eq!(place_of(&[], &units("/tmp/")), Err(NameError::Empty));
    assert_eq!(place_of(&[0, 0x61], &units("/tmp/")), Err(NameError::Empty));
    assert_eq!(place_of(&units("f"), &[]), Err(NameError::Empty));
}

/// 259 units for the file and 259 for the path were a buffer too short.
#[test]
fn the_longest_names_fit_or_are_refused_by_their_bytes() {
    let file = "f".repeat(255);
    let path = format!("/tmp/{}/{}/", "p".repeat(250), "q".repeat(2));
    assert_eq!(path.len(), 259);
    let folder = format!("{}/qq", "p".repeat(250));
    assert_eq!(place(&file, &path), Ok((1, folder, inside(&file))));
    let longer = "f".repeat(256);
    assert_eq!(place(&longer, &path), Err(NameError::TooLong { len: 256 }));
    assert_eq!(
        place("f", &format!("/{}", "p".repeat(258))).err(),
        Some(NameError::TooLong { len: 258 })
    );
    // 259 units can be 777 bytes.
    assert_eq!(
        place(&"日".repeat(259), "/tmp/"),
        Err(NameError::TooLong { len: 777 })
    );
    assert!(place(&"日".repeat(85), "/tmp/").is_ok());
}

/// A file name of `../esc.txt` left the folder.
#[test]
fn no_name_leads_out_of_a_root() {
    for name in [
        "../esc.txt",
        "..\\esc.txt",
        "a/b",
        "/etc/passwd",
        "\\",
        "a\\b",
    ] {
        assert_eq!(
            place(name, "/tmp/"),
            Err(NameError::Path { name: name.into() })
        );
    }
    for name in ["..", "."] {
        assert_eq!(
            place(name, "/tmp/"),
            Err(NameError::Dots { name: name.into() })
        );
    }
    for path in [
        "/tmp/..",
        "/tmp/../etc/",
        "..",
        "../x",
        "/tmp/a/../../b",
        "/..",
        "\\tmp\\..\\etc\\",
    ] {
        assert_eq!(
            place("f", path),
            Err(NameError::Dots { name: "..".into() }),
            "{path}"
        );
    }
    for path in [
        "/",
        "/etc/",
        "/tmpx/",
        "/srv/",
        "/srv/inn",
        "/srv",
        "//server/share/",
        "\\\\server\\share",
    ] {
        let outside = place("f", path).unwrap_err();
        assert_eq!(
            outside,
            NameError::Outside {
                path: path.replace('\\', "/")
            }
        );
    }
}

#[test]
fn a_destination_is_a_folder_or_a_full_path() {
    for (path, want) in [
        // Microsoft: an existing folder gets the file, any other path is the file's.
        ("/srv/in/report.txt", (0, "", at("report.txt", "f"))),
        ("/srv/in/new/report.txt", (0, "new", at("report.txt", "f"))),
        // Linux's daemon makes the last folder only with the slash behind it.
        ("/srv/in/new/", (0, "new", inside("f"))),
        ("/srv/in/new/.", (0, "new", inside("f"))),
        ("/srv/in", (0, "", inside("f"))),
        ("/srv/in/", (0, "", inside("f"))),
        ("/tmp//./x///y/", (1, "x/y", inside("f"))),
        ("\\srv\\in\\a\\b", (0, "a", at("b", "f"))),
        // Relative ones are below the first root.
        ("sub/dir/", (0, "sub/dir", inside("f"))),
        ("sub", (0, "", at("sub", "f"))),
        (".", (0, "", inside("f"))),
        ("./", (0, "", inside("f"))),
    ] {
        let (root, folder, target) = want;
        let want = (root, folder.to_string(), target);
        assert_eq!(place("f", path), Ok(want), "{path}");
    }
}

#[test]
fn environment_variables_and_drives_are_refused_by_name() {
    for (path, name) in [
        ("%SystemRoot%\\temp\\", "%SystemRoot%"),
        ("/tmp/%USERPROFILE%/x", "%USERPROFILE%"),
        ("/tmp/100%/%TEMP%/", "%TEMP%"),
        ("%ProgramFiles(x86)%/", "%ProgramFiles(x86)%"),
        ("$HOME/x", "$HOME"),
        ("/tmp/${USER}/", "${USER}"),
    ] {
        assert_eq!(
            place("f", path),
            Err(NameError::Variable { name: name.into() })
        );
    }
    for path in [
        "/tmp/100%/",
        "/tmp/50% off 20%/",
        "/tmp/a$b/",
        "/tmp/$/",
        "/tmp/%%/",
        "/tmp/$1/",
    ] {
        assert!(place("f", path).is_ok(), "{path}");
    }
    for (path, name) in [("C:\\temp\\", "C:"), ("z:/x", "z:"), ("c:", "c:")] {
        assert_eq!(
            place("f", path),
            Err(NameError::Drive { name: name.into() })
        );
    }
    assert!(place("f", "/tmp/C:/").is_ok());
}

#[test]
fn the_innermost_root_is_chosen() {
    let roots = Roots::new(&["/", "/srv", "/srv/in/"]).unwrap();
    assert_eq!(roots.iter().collect::<Vec<_>>(), ["/", "/srv", "/srv/in"]);
    let policy = linkspan_vmbus::fcopy::Policy {
        roots,
        max_size: 10,
    };
    let mut rig = Rig::new();
    rig.guest = linkspan_vmbus::fcopy::Guest::new(
        linkspan_vmbus::fcopy::Receiver::new(policy),
        linkspan_vmbus::ic::Echo::Full,
    );
    rig.negotiate();
    for (path, want, folder) in [
        ("/srv/in/x/", 2, "x"),
        ("/srv/x/", 1, "x"),
        ("/etc/", 0, "etc"),
        ("/", 0, ""),
    ] {
        rig.ask(&start("f", path, 0, 1));
        let Some(Effect::Open(place)) = rig.effects().pop() else {
            panic!("{path}");
        };
        assert_eq!((place.root, place.folder.as_str()), (want, folder));
    }
}

#[test]
fn roots_are_absolute_and_plain() {
    assert_eq!(Roots::new::<&str>(&[]), Err(RootError::None));
    for root in ["", "relative", "/a/../b", "/with\0zero"] {
        assert_eq!(
            Roots::new(&[root]),
            Err(RootError::Path { root: root.into() })
        );
    }
}

//! Planes as they are written: right ones, and all kinds of wrong ones.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::exit::Status;
use crate::supervisor::core::Restart;

const DISK: &str = "[link.a]\ncommand = \"blk\"\nsocket-path = \"a.sock\"\nimage = \"mem:1M\"\n";

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn plane(text: &str, folder: &Path) -> Plane {
    let folder = folder.canonicalize().unwrap();
    Plane::of("p.toml".into(), text.to_owned(), folder)
}

#[track_caller]
fn good(text: &str) -> Plane {
    let folder = folder();
    let plane = plane(text, folder.path());
    let said: Vec<_> = plane.problems.iter().map(|it| plane.said(it)).collect();
    assert!(said.is_empty(), "{text}\n{said:#?}");
    plane
}

fn setting<'a>(plane: &'a Plane, link: usize, key: &str) -> &'a Setting {
    let mut told = plane.links[link].told.iter();
    told.find(|setting| setting.key == key).expect(key)
}

#[test]
fn a_link_becomes_the_command_that_it_names() {
    let text = "[link.a]\ncommand = \"blk\"\nsocket-path = \"a.sock\"\nimage = \"mem:1M\"\n\
        queues = 2\nread-only = true\ndirect = false\nallow-backing = [\"/usr\", \"/var\"]\n\
        [link.v]\ncommand = \"vdpa serve\"\ndevice = \"/dev/null\"\nsocket-path = \"v.sock\"\n";
    let plane = good(text);
    let arguments: Vec<_> = plane.links[0].arguments.iter().collect();
    assert_eq!(
        arguments,
        [
            "blk",
            "--socket-path=a.sock",
            "--image=mem:1M",
            "--queues=2",
            "--read-only",
            "--allow-backing=/usr",
            "--allow-backing=/var",
        ]
    );
    let arguments: Vec<_> = plane.links[1].arguments.iter().collect();
    assert_eq!(
        arguments,
        ["vdpa", "serve", "--socket-path=v.sock", "--", "/dev/null"]
    );
}

/// A value that looks like an option is a value.
#[test]
fn no_value_becomes_an_option() {
    let text = "[link.v]\ncommand = \"vdpa serve\"\ndevice = \"--json\"\nsocket-path = \"--fd\"\n";
    let folder = folder();
    let plane = plane(text, folder.path());
    let arguments: Vec<_> = plane.links[0].arguments.iter().collect();
    assert_eq!(
        arguments,
        ["vdpa", "serve", "--socket-path=--fd", "--", "--json"]
    );
    assert_eq!(plane.problems.len(), 1, "{:?}", plane.problems);
    assert!(plane.problems[0].message.contains("there is no"));
}

#[test]
fn each_value_says_where_it_comes_from() {
    let text = format!(
        "[plane]\ndrain-seconds = 7\n[defaults.blk]\nqueues = 2\nserial = \"x\"\nrestart = \"never\"\n\
         {DISK}serial = \"y\"\nstart = false\n"
    );
    let plane = good(&text);
    let of = |key| {
        let setting = setting(&plane, 0, key);
        (setting.values[0].as_str(), plane.from(setting.origin))
    };
    assert_eq!(of("command"), ("blk", "line 8".to_owned()));
    assert_eq!(of("queues"), ("2", "defaults, line 4".to_owned()));
    assert_eq!(of("serial"), ("y", "line 11".to_owned()));
    assert_eq!(of("restart"), ("never", "defaults, line 6".to_owned()));
    assert_eq!(of("start"), ("false", "line 12".to_owned()));
    assert_eq!(of("queue-size"), ("1024", "default".to_owned()));
    assert_eq!(of("read-only"), ("false", "default".to_owned()));
    assert_eq!(plane.links[0].policy.restart, Restart::Never);
    assert!(!plane.links[0].policy.start);
    assert_eq!(plane.settings.drain.as_secs(), 7);
}

/// What is printed is a plane with the same meaning.
#[test]
fn the_merged_plane_is_a_plane_again() {
    let text = format!(
        "[plane]\ncontrol = \"c.sock\"\n[defaults.blk]\nqueues = 2\n{DISK}read-only = true\n\
         [link.n]\ncommand = \"net\"\nport = [\"vhost-user:\\\\n\\\".sock\", \"responder\"]\n\
         start = false\n[link.\"i.c\"]\ncommand = \"ic host\"\ncontrol = \"ic.sock\"\n"
    );
    let first = good(&text);
    let second = good(&first.merged());
    assert_eq!(first.settings, second.settings);
    for (one, two) in first.links.iter().zip(&second.links) {
        assert_eq!((&one.name, one.policy), (&two.name, two.policy));
        let values = |link: &Link| -> Vec<_> {
            let told = link.told.iter();
            told.map(|it| (it.key.clone(), it.values.clone())).collect()
        };
        assert_eq!(values(one), values(two));
    }
    assert_eq!(first.links.len(), second.links.len());
}

const GUEST: &str = "[link.a]\ncommand = \"blk\"\nsocket-path = \"a.sock\"\nimage = \"mem:1M\"\n\
    queues = 3\n[link.lan]\ncommand = \"net\"\nport = [\"vhost-user:x.sock,queues=2\", \
    \"vhost-user:y.sock\", \"responder\"]\n[link.v]\ncommand = \"gpu\"\nsocket-path = \"g.sock\"\n\
    [vm.g]\nlinks = [\"a\", \"lan:x.sock\", \"v\"]\ncpus = 2\n";

/// The links of a machine are options of what runs it, and it is one more link.
#[test]
fn a_machine_has_its_links_as_devices() {
    let plane = good(GUEST);
    let arguments = plane.links[3].arguments.iter();
    let arguments: Vec<_> = arguments.map(|it| it.to_str().unwrap()).collect();
    assert_eq!(arguments[..3], ["vm", "run", "--cpus=2"]);
    assert_eq!(arguments[3], "--disk=a.sock,queues=3");
    let card = "--nic=x.sock,queues=2,mac=02:";
    assert!(arguments[4].starts_with(card), "{arguments:?}");
    assert_eq!(arguments[5..], ["--gpu=g.sock"]);
    assert!(plane.links[3].is_machine && plane.machine("g").is_some());
    assert!(plane.machine("a").is_none() && plane.machine("h").is_none());
    // As a plane again it has each of them once.
    let again = good(&plane.merged());
    assert_eq!(
        again.links[3].arguments,
        plane.links[3].arguments[..].to_vec()
    );
    let defaults = GUEST.to_owned() + "[defaults.vm]\nmemory = \"64M\"\n";
    let plane = good(&defaults);
    assert_eq!(setting(&plane, 3, "memory").values, ["64M"]);
    // It is not a command that links have.
    assert!(plane.merged().contains("[vm.\"g\"]"));
}

#[test]
fn wrong_machines_are_told_with_their_place() {
    for (from, to, (line, column), words) in [
        ("\"a\", ", "\"b\", ", (13, 10), "vm g: there is no link b"),
        ("lan:x.sock", "lan", (13, 15), "link lan has 2 sockets"),
        ("lan:x.sock", "lan:z.sock", (13, 15), "has no socket z.sock"),
        (
            "links = [",
            "links = [\"g\", ",
            (13, 10),
            "there is no link g",
        ),
        ("cpus = 2", "cpus = 0", (14, 8), "0 is not in 1..=255"),
        (
            "cpus = 2",
            "cpu = 2",
            (14, 1),
            "`vm run` has no option `cpu`",
        ),
        (
            "cpus = 2",
            "command = \"blk\"",
            (14, 1),
            "has no option `command`",
        ),
        ("cpus = 2", "initrd = \"i\"", (12, 5), "`kernel` is missing"),
        ("cpus = 2", "disk = \"a.sock\"", (14, 1), "of vm g already"),
        ("cpus = 2", "kernel = \"none\"", (14, 1), "there is no"),
        (
            "[vm.g]",
            "[vm.a]",
            (12, 5),
            "a is the name of a link already",
        ),
        ("[vm.g]", "[vm.\"g h\"]", (12, 5), "a vm is not called"),
        (
            "links = [",
            "links = true\noption = [",
            (13, 1),
            "not a list of links",
        ),
        ("queues = 3", "queues = 0", (5, 10), "link a: `queues`"),
        (
            "cpus = 2",
            "[vm.h]\nlinks = [\"a\"]",
            (15, 1),
            "vm h: `links`",
        ),
    ] {
        let text = GUEST.replacen(from, to, 1);
        let folder = folder();
        let plane = plane(&text, folder.path());
        let said: Vec<_> = plane.problems.iter().map(|it| plane.said(it)).collect();
        let [one] = &said[..] else {
            panic!("{text}\n{said:#?}");
        };
        let place = format!("p.toml:{line}:{column}: ");
        assert!(one.starts_with(&place), "{text}\n{one}\nnot {place}");
        assert!(one.contains(words), "{text}\n{one}\nnot {words}");
    }
    // Links are the machine's own, and no default.
    let text = GUEST.to_owned() + "[defaults.vm]\nlinks = [\"a\"]\n";
    let folder = folder();
    assert_eq!(plane(&text, folder.path()).problems.len(), 1);
}

/// What is wrong, in which line and column, by which words, and how the program ends.
const WRONG: &[(&str, (usize, usize), &str, Status)] = &[
    (
        "[link.a]\nx = 1\n",
        (1, 7),
        "link a: it has no `command`",
        Status::Usage,
    ),
    (
        "[link.a]\ncommand = 1\n",
        (2, 11),
        "\"1\" is no command",
        Status::Usage,
    ),
    (
        "[link.a]\ncommand = \"demo\"\n",
        (2, 11),
        "\"demo\" is no command",
        Status::Usage,
    ),
    (
        "[link.a]\ncommand = \"blk\"\n",
        (1, 7),
        "missing",
        Status::Usage,
    ),
    (
        "[link.a]\ncommand = \"blk\"\nimage = \"mem:1M\"\n",
        (1, 7),
        "`socket-path` or `vduse` is missing",
        Status::Usage,
    ),
    (
        "[link.a]\ncommand = \"blk\"\nsocket-path = \"s\"\n",
        (1, 7),
        "`image` is missing",
        Status::Usage,
    ),
    (
        "DISK+socket_path = \"b\"\n",
        (5, 1),
        "`blk` has no option `socket_path`",
        Status::Usage,
    ),
    (
        "DISK+json = true\n",
        (5, 1),
        "no option `json`",
        Status::Usage,
    ),
    ("DISK+fd = 3\n", (5, 1), "no option `fd`", Status::Usage),
    (
        "DISK+queues = 0\n",
        (5, 10),
        "`queues`: 0 is not in 1..=256",
        Status::Usage,
    ),
    (
        "DISK+queues = \"many\"\n",
        (5, 10),
        "`queues`: invalid digit",
        Status::Usage,
    ),
    (
        "DISK+queues = 1979-05-27\n",
        (5, 10),
        "a date",
        Status::Usage,
    ),
    (
        "DISK+queues = [1, 2]\n",
        (5, 1),
        "not one value",
        Status::Usage,
    ),
    (
        "DISK+queues = true\n",
        (5, 1),
        "not text or a number",
        Status::Usage,
    ),
    (
        "DISK+read-only = \"yes\"\n",
        (5, 1),
        "not true or false",
        Status::Usage,
    ),
    (
        "DISK+cache = \"fast\"\n",
        (5, 9),
        "is none of writeback",
        Status::Usage,
    ),
    ("DISK+cache = \"\"\n", (5, 9), "`cache`", Status::Usage),
    (
        "DISK+direct = true\ncache = \"none\"\n",
        (5, 1),
        "`direct` and `cache` exclude each other",
        Status::Usage,
    ),
    (
        "DISK+iops-burst = 5\n",
        (1, 7),
        "`iops` is missing",
        Status::Usage,
    ),
    (
        "DISK+restart = \"maybe\"\n",
        (5, 11),
        "not always, on-failure or never",
        Status::Usage,
    ),
    (
        "DISK+start = 1\n",
        (5, 9),
        "not true or false",
        Status::Usage,
    ),
    (
        "DISK+image = \"mem:2M\"\n",
        (5, 1),
        "duplicate",
        Status::Usage,
    ),
    (
        "DISK+[defaults.blk]\nquees = 1\n",
        (6, 1),
        "no option `quees`",
        Status::Usage,
    ),
    (
        "DISK+[defaults.floppy]\n",
        (5, 11),
        "\"floppy\" is no command",
        Status::Usage,
    ),
    (
        "[defaults.blk]\nqueues = 0\nDISK",
        (2, 10),
        "`queues`: 0 is not in",
        Status::Usage,
    ),
    (
        "DISK+[plane]\ncontrl = \"c\"\n",
        (6, 1),
        "no setting of a plane",
        Status::Usage,
    ),
    (
        "DISK+[link.b]\ncommand = \"blk\"\nsocket-path = \"./a.sock\"\nimage = \"mem:1M\"\n",
        (7, 1),
        "is `socket-path` of link a already, in line 3",
        Status::Usage,
    ),
    (
        "DISK+[link.n]\ncommand = \"net\"\nport = [\"vhost-user:b\", \"vhost-user:a.sock\"]\n",
        (7, 1),
        "of link a already, in line 3",
        Status::Usage,
    ),
    (
        "DISK+[plane]\ncontrol = \"a.sock\"\n",
        (6, 1),
        "is `socket-path` of link a already",
        Status::Usage,
    ),
    (
        "[link.n]\ncommand = \"net\"\nport = [\n  \"responder\",\n  \"tape:x\",\n]\n",
        (5, 3),
        "is none of vhost-user:PATH",
        Status::Usage,
    ),
    (
        "[link.s]\ncommand = \"smbdirect listen\"\naddr = \"0.0.0.0:7\"\n\
         [link.t]\ncommand = \"smbdirect listen\"\naddr = \"127.0.0.1:7\"\n",
        (6, 1),
        "of link s already, in line 3",
        Status::Usage,
    ),
    (
        "[link.a]\ncommand = \"blk\"\nsocket-path = \"a.sock\"\nimage = \"none.img\"\n",
        (4, 1),
        "none.img",
        Status::Failed,
    ),
    (
        "[link.a]\ncommand = \"blk\"\nsocket-path = \"none/a.sock\"\nimage = \"mem:1M\"\n",
        (3, 1),
        "there is no",
        Status::Failed,
    ),
    ("", (0, 0), "no link in it", Status::Usage),
    ("[defaults.blk]\n", (0, 0), "no link in it", Status::Usage),
    ("[link.a\n", (1, 8), "unclosed", Status::Usage),
];

/// One clear error each, with its line.
#[test]
fn each_wrong_plane_has_one_error_with_its_place() {
    for (text, (line, column), words, status) in WRONG {
        let text = text.replace("DISK+", DISK).replace("DISK", DISK);
        let folder = folder();
        let plane = plane(&text, folder.path());
        let said: Vec<_> = plane.problems.iter().map(|it| plane.said(it)).collect();
        let [one] = &said[..] else {
            panic!("{text}\n{said:#?}");
        };
        let place = match line {
            0 => "p.toml: ".to_owned(),
            _ => format!("p.toml:{line}:{column}: "),
        };
        assert!(one.starts_with(&place), "{text}\n{one}\nnot {place}");
        assert!(one.contains(words), "{text}\n{one}\nnot {words}");
        assert_eq!(plane.status(), Some(*status), "{text}");
    }
}

/// Who says `[plane]` means it, and is told what to do.
#[test]
fn a_plane_may_have_no_link_yet() {
    let folder = folder();
    let empty = plane("[plane]\n", folder.path());
    assert!(empty.problems.is_empty(), "{:?}", empty.problems);
    let note = empty.without_links().unwrap();
    assert!(note.contains("p.toml"), "{note}");
    assert_eq!(plane(DISK, folder.path()).without_links(), None);
}

/// Whatever becomes of a file, it is judged, with places within it.
#[test]
fn no_text_is_too_broken_to_be_judged() {
    let folder = folder();
    let whole = format!("[plane]\ncontrol = \"ü\"\n[defaults.blk]\nqueues = 2\n{DISK}port = [1]\n");
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |bound: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % bound as u64).unwrap()
    };
    for _ in 0..300 {
        let mut text: Vec<char> = whole.chars().collect();
        for _ in 0..=below(3) {
            if text.is_empty() {
                break;
            }
            let at = below(text.len());
            match below(3) {
                0 => drop(text.remove(at)),
                1 => text[at] = ['"', '[', ']', '=', '\n', '.', 'ß', '\0'][below(8)],
                _ => text.truncate(at.max(1)),
            }
        }
        let text: String = text.into_iter().collect();
        let plane = plane(&text, folder.path());
        for problem in &plane.problems {
            let place = plane.place(problem.at);
            let lines = text.matches('\n').count() + 1;
            assert!(
                place.is_none_or(|it| it.line <= lines),
                "{text}\n{problem:?}"
            );
            assert!(!plane.said(problem).is_empty());
        }
    }
}

/// All of them are told, in the order of the file.
#[test]
fn errors_do_not_hide_each_other() {
    let text = format!(
        "{DISK}queues = 0\n[link.b]\ncommand = \"net\"\n[link.c]\ncommand = \"nothing\"\n[link.d]\n\
         command = \"blk\"\nsocket-path = \"d\"\nimage = \"none\"\n"
    );
    let folder = folder();
    let plane = plane(&text, folder.path());
    let lines: Vec<_> = plane
        .problems
        .iter()
        .map(|it| plane.place(it.at).unwrap().line)
        .collect();
    assert_eq!(lines, [5, 6, 9, 13]);
    assert_eq!(plane.status(), Some(Status::Usage));
    // Those that make sense are shown all the same.
    assert_eq!(plane.links.len(), 1);
}

/// Its link would end with an error of the system's, again and again.
#[test]
fn a_socket_whose_path_no_address_has_room_for_is_told_of() {
    let folder = folder();
    let of = |name: &str| {
        let text = format!("{DISK}[link.n]\ncommand = \"net\"\nport = [\"vhost-user:{name}\"]\n");
        plane(&text, folder.path())
    };
    let long = of(&"s".repeat(108));
    let said: Vec<_> = long.problems.iter().map(|it| long.said(it)).collect();
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(said[0].starts_with("p.toml:7:1: link n: `port`: a socket's path has at most 107"));
    assert!(said[0].contains("has 108"), "{said:?}");
    assert_eq!(long.status(), Some(Status::Usage));
    let keys = "k".repeat(108);
    let keys = format!("{DISK}[vm.v]\nlinks = [\"a\"]\nkeys = \"{keys}\"\n");
    let keys = plane(&keys, folder.path());
    let said: Vec<_> = keys.problems.iter().map(|it| keys.said(it)).collect();
    assert!(
        said.len() == 1 && said[0].contains("vm v: `keys`: a socket's path"),
        "{said:?}"
    );
    // A file may have it, and so may a socket that is only long from the root on.
    let deep = folder.path().join("d".repeat(100));
    fs::create_dir(&deep).unwrap();
    assert!(plane(DISK, &deep).problems.is_empty());
    let control = format!("{DISK}[plane]\ncontrol = \"c\"\n");
    let control = plane(&control, &deep);
    assert_eq!(control.problems.len(), 1, "{:?}", control.problems);
    assert_eq!(control.place(control.problems[0].at).unwrap().line, 6);
}

#[test]
fn what_is_shared_is_no_clash() {
    let text = "[link.a]\ncommand = \"blk\"\nsocket-path = \"a\"\nimage = \"i\"\nread-only = true\n\
        [link.b]\ncommand = \"blk\"\nsocket-path = \"b\"\nimage = \"./i\"\nread-only = true\n";
    let folder = folder();
    fs::write(folder.path().join("i"), [0; 4096]).unwrap();
    let shared = plane(text, folder.path());
    assert!(shared.problems.is_empty(), "{:?}", shared.problems);
    let written = text.replacen("read-only = true", "read-only = false", 1);
    let written = plane(&written, folder.path());
    assert_eq!(written.problems.len(), 1, "{:?}", written.problems);
}

#[test]
fn files_that_are_no_planes_are_named() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let status = |file: &Path| Plane::read(file).map(drop).unwrap_err().status;
    assert_eq!(status(&at("none")), Status::Failed);
    assert_eq!(status(folder.path()), Status::Failed);
    fs::write(at("binary"), [0xff, 0xfe]).unwrap();
    assert_eq!(status(&at("binary")), Status::Usage);
    fs::write(at("long"), vec![b'#'; (1 << 20) + 1]).unwrap();
    assert_eq!(status(&at("long")), Status::Usage);
    fs::write(at("good"), DISK).unwrap();
    let plane = Plane::read(&at("good")).unwrap();
    assert_eq!(plane.folder, folder.path().canonicalize().unwrap());
}

/// Those of the repository; what they say is checked where they are.
#[test]
fn example_planes_are_right() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut count = 0;
    for entry in fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "toml") {
            let plane = Plane::read(&path).unwrap();
            let said: Vec<_> = plane.problems.iter().map(|it| plane.said(it)).collect();
            assert!(said.is_empty(), "{said:#?}");
            count += 1;
        }
    }
    assert!(count >= 3, "{count} examples");
}

#[test]
fn a_page_finds_the_screens_of_a_plane_and_the_keys_of_their_machines() {
    let plane = good(
        "[plane]\npage = \"127.0.0.1:8080\"\n\
         [link.a]\ncommand = \"gpu\"\nsocket-path = \"a.sock\"\ndisplay = \"./a.view\"\nheads = 2\n\
         [link.b]\ncommand = \"display serve\"\nsocket-path = \"b.sock\"\ndisplay = \"b.view\"\n\
         [link.c]\ncommand = \"gpu\"\nsocket-path = \"c.sock\"\n\
         [vm.v]\nlinks = [\"a\"]\nkeys = \"v.keys\"\n",
    );
    assert_eq!(plane.settings.page, Some("127.0.0.1:8080".parse().unwrap()));
    let viewers = plane.viewers();
    let at = |name: &str| plane.folder.join(name);
    let a = Viewers {
        display: at("a.view"),
        heads: 2,
        keys: Some(at("v.keys")),
    };
    let b = Viewers {
        display: at("b.view"),
        heads: 1,
        keys: None,
    };
    let all = [("a".to_owned(), a), ("b".to_owned(), b)];
    assert_eq!(viewers, all.into());
}

#[test]
fn a_page_and_a_link_cannot_be_at_one_address() {
    let folder = folder();
    let text = "[plane]\npage = \"127.0.0.1:5445\"\n[link.a]\ncommand = \"smbdirect listen\"\n";
    let plane = plane(text, folder.path());
    let said: Vec<_> = plane.problems.iter().map(|it| plane.said(it)).collect();
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(said[0].contains("`page`"), "{said:#?}");
}

//! Commands of the pages are run: some as they are shown, and each one by a test.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};

use linkspan_testkit::census::settled;
use linkspan_testkit::namespace::Namespace;
use linkspan_testkit::program;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::commands::{Block, Line, blocks};
use super::named::is_test;
use super::project;

/// What runs as it is shown: the page, and how the first command of ours in the block
/// begins. Places in /tmp and /run are places in a folder that exists for the test.
const SHOWN: [(&str, &str); 12] = [
    ("README.md", "smbdirect listen"),
    (
        "docs/blk.md",
        "blk --socket-path /run/vm/disk.sock --image disk.img",
    ),
    ("docs/blk.md", "blk --socket-path /run/vm/scratch.sock"),
    ("docs/doctor.md", "doctor"),
    ("docs/fcopy.md", "fcopy host --control /tmp/fcopy.sock"),
    ("docs/ic.md", "ic host --control /tmp/ic.sock"),
    ("docs/plane.md", "plane check examples/host.toml"),
    ("docs/start.md", "doctor"),
    ("docs/start.md", "blk --socket-path"),
    ("docs/start.md", "fcopy demo"),
    ("docs/start.md", "smb serve"),
    ("docs/start.md", "up examples/host.toml"),
];

/// What serves until it is told to end, and makes the sockets that it names.
const SERVE: [&str; 8] = [
    "blk",
    "fcopy guest",
    "fcopy host",
    "ic guest",
    "ic host",
    "smbdirect listen",
    "up",
    "smb serve",
];

/// What waits until the other end is there.
const WAIT: [&str; 2] = ["driver", "fcopy send"];

/// Commands of others that blocks may need.
const OTHERS: [&str; 2] = ["mkdir", "truncate"];

/// Every command of the program, and a test that runs it, with a tab in between.
const RUN_BY: &str = include_str!("run-by.tsv");

/// The verbs of a command line, without options and values.
fn verbs(args: &[String]) -> String {
    let root = linkspan::cli::command();
    let mut command = &root;
    let mut verbs = Vec::new();
    for word in args {
        if let Some(next) = command.find_subcommand(word) {
            command = next;
            verbs.push(word.as_str());
        }
    }
    verbs.join(" ")
}

/// All commands of the program.
fn all_commands() -> Vec<String> {
    let root = linkspan::cli::command();
    let (mut all, mut left) = (Vec::new(), vec![(String::new(), &root)]);
    while let Some((path, command)) = left.pop() {
        if !command.has_subcommands() {
            all.push(path.trim().to_owned());
        }
        let verbs = command.get_subcommands();
        left.extend(verbs.map(|next| (format!("{path} {}", next.get_name()), next)));
    }
    all.sort();
    all
}

/// Whoever adds a command adds a line to the table, with a test that runs it.
#[test]
fn every_command_is_run_by_a_test() {
    let rows = RUN_BY.lines().map(|row| row.split_once('\t').unwrap());
    let rows: Vec<(&str, &str)> = rows.collect();
    let known: Vec<&str> = rows.iter().map(|(command, _)| *command).collect();
    assert_eq!(all_commands(), known, "see run-by.tsv");
    for (command, test) in rows {
        let (path, name) = test.split_once("::").unwrap();
        let path = project().join("crates").join(path);
        assert!(is_test(&path, name), "{command}: no such test: {test}");
    }
}

/// A folder in which what pages show can run, and what has been started there.
struct Place {
    folder: TempDir,
    network: Option<Namespace>,
    started: Vec<(String, Child)>,
}

impl Drop for Place {
    fn drop(&mut self) {
        // They have ended, unless the test failed.
        for (_, child) in &mut self.started {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Place {
    fn new(network: Option<Namespace>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        std::os::unix::fs::symlink(project().join("docs"), here.join("docs")).unwrap();
        fs::create_dir(here.join("examples")).unwrap();
        for entry in fs::read_dir(project().join("examples")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|kind| kind == "toml") {
                fs::copy(&path, here.join("examples").join(path.file_name().unwrap())).unwrap();
            }
        }
        if let Some(network) = &network {
            network.run("ip link set lo up");
        }
        Self {
            folder,
            network,
            started: Vec::new(),
        }
    }

    /// The word with its places in the folder.
    fn word(&self, word: &str) -> String {
        let here = format!("{}/", self.folder.path().display());
        let mut places = ["/run/vm/", "/tmp/"].into_iter();
        match places.find(|place| word.contains(place)) {
            Some(place) => word.replace(place, &here),
            None => word.to_owned(),
        }
    }

    fn command(&self, program_of: &str, args: &[String]) -> Command {
        let mut command = match &self.network {
            Some(network) => network.command(program_of),
            None => program(program_of),
        };
        command.args(args.iter().map(|arg| self.word(arg)));
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Waits for sockets that a command names, which others or it itself make.
    #[track_caller]
    fn answers(&self, args: &[String]) {
        let options = ["--control", "--socket-path", "--connect", "--display"];
        for pair in args.windows(2) {
            if options.contains(&pair[0].as_str()) {
                let path = self.folder.path().join(self.word(&pair[1]));
                let connects = || UnixStream::connect(&path).is_ok();
                assert!(
                    (0..6).any(|_| settled(connects)),
                    "{args:?}: {}",
                    path.display()
                );
            }
        }
    }

    /// Waits until the program listens for connections of TCP. Before it is the program it
    /// is the one that enters the network, and sees all of this machine.
    #[track_caller]
    fn listens(&self, pid: u32) {
        let listens = || {
            let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            let sockets = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
            let mut states = sockets.lines().map(|line| line.split_whitespace().nth(3));
            program.ends_with("linkspan") && states.any(|state| state == Some("0A"))
        };
        assert!((0..6).any(|_| settled(listens)));
    }

    #[track_caller]
    fn run(&mut self, line: &Line) {
        let Some(args) = line.ours() else {
            let (name, rest) = line.words.split_first().unwrap();
            if OTHERS.contains(&name.as_str()) {
                assert!(
                    self.command(name, rest).status().unwrap().success(),
                    "{line:?}"
                );
            }
            return;
        };
        let verbs = verbs(args);
        let serves = SERVE.contains(&verbs.as_str());
        let makes_sockets = serves && !verbs.ends_with("guest");
        if !makes_sockets {
            self.answers(args);
        }
        let mut command = self.command(env!("CARGO_BIN_EXE_linkspan"), args);
        if !serves {
            let output = command.output().unwrap();
            let ended = |status: ExitStatus| match verbs.as_str() {
                // What a machine lacks is what it tells.
                "doctor" => [Some(0), Some(5)].contains(&status.code()),
                _ => status.success(),
            };
            assert!(ended(output.status), "{args:?}: {output:?}");
            return;
        }
        let log = fs::File::create(self.folder.path().join("log")).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let pid = child.id();
        self.started.push((verbs.clone(), child));
        if makes_sockets {
            self.answers(args);
        }
        if ["smbdirect listen", "smb serve"].contains(&verbs.as_str()) {
            self.listens(pid);
        }
    }

    /// Ends what serves, the last one first.
    #[track_caller]
    fn end(mut self) {
        while let Some((verbs, mut child)) = self.started.pop() {
            assert!(
                (0..6).any(|_| settled(|| hears_of_its_end(child.id()))),
                "{verbs}"
            );
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
            let status = child.wait().unwrap();
            assert!(status.success(), "{verbs}: {status}");
        }
    }
}

/// Whether SIGTERM is caught, or blocked and read: a program that has just begun does neither.
fn hears_of_its_end(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let has = |name: &str| {
        let set = status.lines().find_map(|line| line.strip_prefix(name));
        let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
        set.is_some_and(|set| set & 1 << (Signal::TERM.as_raw() - 1) != 0)
    };
    has("SigBlk:") || has("SigCgt:")
}

fn begins(block: &Block, words: &str) -> bool {
    let mut ours = block.lines.iter().filter_map(Line::ours);
    ours.next()
        .is_some_and(|args| args.join(" ").starts_with(words))
}

/// Needs a network of its own, since ports are those that are shown.
fn needs_ports(block: &Block) -> bool {
    let mut words = block.lines.iter().flat_map(|line| &line.words);
    words.any(|word| ["smb", "smbdirect"].contains(&word.as_str()))
}

#[test]
fn blocks_of_the_pages_run_as_they_are_shown() {
    let blocks = blocks();
    // Where there is none this is said once.
    let mut lacks_network = false;
    for (page, words) in SHOWN {
        let mut found = blocks.iter().filter(|block| block.page == page);
        let block = found.find(|block| begins(block, words));
        let block = block.unwrap_or_else(|| panic!("{page} does not show `{words}`"));
        let network = match lacks_network {
            false => Namespace::new("docs"),
            true => None,
        };
        lacks_network = network.is_none();
        if lacks_network && needs_ports(block) {
            continue;
        }
        let mut place = Place::new(network);
        for line in &block.lines {
            place.run(line);
        }
        place.end();
    }
}

/// Whoever pastes a block is quicker than a server: what follows one waits itself, or there
/// is a moment between them.
#[test]
fn what_follows_a_server_gives_it_a_moment() {
    let blocks = blocks();
    let shown = |block: &&Block| {
        let is_it = |(page, words): &(&str, &str)| block.page == *page && begins(block, words);
        SHOWN.iter().any(is_it)
    };
    let (mut seen, mut without) = (0, Vec::new());
    for block in blocks.iter().filter(shown) {
        for pair in block.lines.windows(2) {
            let verbs = |line: &Line| line.ours().map(verbs);
            let (Some(server), next) = (verbs(&pair[0]), verbs(&pair[1])) else {
                continue;
            };
            if !pair[0].in_background || !SERVE.contains(&server.as_str()) {
                continue;
            }
            seen += 1;
            let waits = match &next {
                Some(next) => WAIT.iter().any(|verb| next.starts_with(verb)),
                None => pair[1].words[0] == "sleep",
            };
            if !waits {
                without.push(format!("{}: {server}, {:?}", block.page, pair[1].words));
            }
        }
    }
    assert!(without.is_empty(), "{without:#?}");
    assert!(seen > 6, "{seen} servers");
}

/// What the page on planes has between its fences is a plane, piece by piece and as a whole.
#[test]
fn planes_of_the_page_are_right() {
    let page = fs::read_to_string(project().join("docs/plane.md")).unwrap();
    let fenced = page.split("```").skip(1).step_by(2);
    let pieces = fenced.filter_map(|piece| piece.strip_prefix("toml\n"));
    let plane: String = pieces.map(|piece| piece.to_owned() + "\n").collect();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for named in ["disk-a.img", "vmlinuz"] {
        fs::write(at(named), [0; 512]).unwrap();
    }
    fs::write(at("plane.toml"), &plane).unwrap();
    let mut check = program(env!("CARGO_BIN_EXE_linkspan"));
    let check = check.args(["plane", "check"]).arg(at("plane.toml"));
    let output = check.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let shown = String::from_utf8(output.stdout).unwrap();
    for part in ["[link.\"disk-a\"]", "[link.\"lan\"]", "[vm.\"guest\"]"] {
        assert!(shown.contains(part), "{shown}");
    }
}

//! `linkspan demo` as people run it: what it says, and what it leaves.

#[allow(dead_code, reason = "a test of the GPU uses all of it")]
#[path = "gpu_guest/picture.rs"]
mod picture;

use std::io::{Cursor, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use linkspan_testkit::browser::Tab;
use linkspan_testkit::census::settled;
use linkspan_testkit::{Browser, Namespace};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use picture::Picture;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM)
        .arg("demo")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Everything was looked at and found right.
#[track_caller]
fn all_right(output: &Output, status: i32, what: &[&str]) -> Value {
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["ok"], true, "{summary:#}");
    let findings = summary["findings"].as_array().unwrap();
    for name in what {
        let found = findings.iter().any(|finding| finding["what"] == *name);
        assert!(found, "{name} was not looked at: {summary:#}");
    }
    summary
}

#[test]
fn without_qemu_that_is_said_and_the_built_in_driver_takes_the_place_of_the_guest() {
    let output = run(&["--check", "--json", "--qemu", "/no/such/qemu"]);
    let looked = ["disk", "network", "queue pairs used"];
    let summary = all_right(&output, 5, &looked);
    assert_eq!(summary["kernel"], Value::Null);
    let errors = text(&output.stderr);
    for words in ["QEMU is missing", "apt-get install", "built-in driver"] {
        assert!(errors.contains(words), "no {words} in:\n{errors}");
    }
}

#[test]
fn the_driver_is_asked_for_with_packed_rings() {
    let args = ["--no-guest", "--json", "--packed", "--queue-pairs", "3"];
    let summary = all_right(&run(&args), 0, &["disk", "network"]);
    assert_eq!(summary["network"]["form"], "echo");
    assert_eq!(summary["network"]["queue_pairs"], 3);
}

#[test]
fn the_driver_has_a_disk_on_a_share_over_smb_direct() {
    let args = ["--no-guest", "--json", "--disk-on-share"];
    let looked = ["disk", "end of linkspan smb serve", "disk over SMB Direct"];
    let summary = all_right(&run(&args), 0, &looked);
    assert_eq!(summary["disk_on_share"], true);
}

/// A demo in a network of its own.
struct Demo {
    child: Child,
}

impl Demo {
    fn start(here: &Namespace, args: &[&str]) -> Self {
        let mut command = here.command(PROGRAM);
        command
            .arg("demo")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        Self { child }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It has ended already, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `ip` shows in the namespace.
fn shown(here: &Namespace, what: &[&str]) -> String {
    text(&here.command("ip").args(what).output().unwrap().stdout)
}

fn can_boot(test: &str) -> bool {
    let missing = linkspan::demo::process::find_program(Path::new("qemu-system-x86_64")).is_none()
        || linkspan::demo::kernel::Kernel::find(None).is_err();
    if missing {
        drop(writeln!(
            std::io::stderr().lock(),
            "SKIP {test}: no QEMU or no kernel"
        ));
    }
    !missing
}

#[test]
fn a_demo_that_is_interrupted_leaves_no_interface_and_no_address() {
    if !can_boot("a_demo_that_is_interrupted") {
        return;
    }
    let Some(here) = Namespace::new("interrupted") else {
        return;
    };
    let demo = ["--check", "--net", "tap", "--accel", "tcg"];
    let mut demo = Demo::start(&here, &demo);
    let has_address = || shown(&here, &["-4", "addr"]).contains("172.31.254.1/30");
    assert!(settled(has_address), "{}", shown(&here, &["addr"]));
    assert!(shown(&here, &["link"]).contains("linkspan0"));
    kill_process(Pid::from_child(&demo.child), Signal::INT).unwrap();
    let mut status = None;
    let ended = settled(|| {
        status = demo.child.try_wait().unwrap();
        status.is_some()
    });
    assert!(ended, "it does not end");
    assert_eq!(status.unwrap().code(), Some(1));
    assert!(!shown(&here, &["link"]).contains("linkspan0"));
    assert!(!has_address());
}

/// The whole check, on a small disk, in a namespace. `through` is what starts it.
#[track_caller]
fn demo_passes(test: &str, through: &[&str], args: &[&str], looked: &[&str]) -> Option<Passed> {
    if !can_boot(test) {
        return None;
    }
    let here = Namespace::new(test)?;
    // Somebody else has the first network that would be taken.
    here.run("ip link set lo up");
    here.run("ip addr add 172.31.254.2/31 dev lo");
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), vec![0xA5; 2 << 20]).unwrap();
    let words = [through, &[PROGRAM]].concat();
    let mut command = here.command(words[0]);
    let output = command
        .args(&words[1..])
        .args(["demo", "--check", "--json", "--timeout", "240"])
        .args(["--accel", "tcg", "--image"])
        .arg(image.path())
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let summary = all_right(&output, 0, looked);
    assert_eq!(summary["network"]["queue_pairs"], 2);
    let network = summary["network"].clone();
    let said = text(&output.stderr);
    Some(Passed { network, said })
}

struct Passed {
    network: Value,
    said: String,
}

#[test]
fn the_demo_reaches_this_machine_through_a_tap() {
    let looked = [
        "guest pings",
        "guest is pinged",
        "guest is visited",
        "queue pairs used",
        "interface removed",
        "every byte after",
    ];
    if let Some(passed) = demo_passes("tap", &[], &[], &looked) {
        assert_eq!(passed.network["form"], "tap");
        assert_eq!(passed.network["guest"], "172.31.254.6");
    }
}

#[test]
fn the_demo_gets_a_lease_from_the_responder_where_no_interface_may_be_made() {
    let without = ["setpriv", "--bounding-set", "-net_admin"];
    let args = ["--packed", "--queues", "1"];
    let looked = ["lease", "guest pings", "queue pairs used"];
    if let Some(passed) = demo_passes("lease", &without, &args, &looked) {
        assert_eq!(passed.network["form"], "responder");
        let why = "no permission for the tap interface";
        assert!(passed.said.contains(why), "{}", passed.said);
    }
}

#[test]
fn the_demo_has_its_disk_on_a_share_over_smb_direct() {
    let args = ["--disk-on-share", "--net", "responder"];
    let looked = [
        "end of linkspan smb serve",
        "disk over SMB Direct",
        "every byte after",
    ];
    if let Some(passed) = demo_passes("share", &[], &args, &looked) {
        let url = "smb://demo@127.0.0.1:";
        assert!(passed.said.contains(url), "{}", passed.said);
    }
}

/// What a program says while it runs, in pieces.
fn pieces(mut from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(len @ 1..) = from.read(&mut bytes) {
            // Nobody may listen any more.
            let _ = sender.send(text(&bytes[..len]));
        }
    });
    receiver
}

/// What is said up to one of these words.
#[track_caller]
fn until(pieces: &Receiver<String>, words: &[&str]) -> String {
    let mut said = String::new();
    while !words.iter().any(|word| said.contains(word)) {
        match pieces.recv_timeout(Duration::from_secs(120)) {
            Ok(piece) => said += &piece,
            Err(error) => panic!("none of {words:?}: {error}: {said}"),
        }
    }
    said
}

/// The picture of the book, of a guest that does something.
fn picture(browser: &mut Browser, tab: &Tab, orders: &mut impl Write, path: &Path) {
    let work = "clear >/dev/tty0; (uname -a; head -n 6 /proc/cpuinfo; df) >/dev/tty0; \
        for i in 1 2 3 4 5 6 7 8; do echo 3 >/proc/sys/vm/drop_caches; \
        dd if=/dev/vda of=/dev/null bs=64k count=$((100 * i)) 2>/dev/tty0; \
        ping -c 2 10.0.2.2 >/dev/tty0; done; echo the-end\n";
    orders.write_all(work.as_bytes()).unwrap();
    browser.evaluate(
        tab,
        "document.querySelector('[data-link=disk] details').open = false",
    );
    let points = "(document.querySelector('[data-link=network] .line').getAttribute('d') \
        .match(/L/g) || []).length";
    let from = browser.evaluate(tab, points).as_i64().unwrap();
    let later = format!("{points} >= Math.min({from} + 30, 119)");
    browser.until(tab, &later);
    std::fs::write(path, browser.screenshot(tab)).unwrap();
}

/// Beside the screen is what the disk does.
fn shows_what_the_disk_does(browser: &mut Browser, tab: &Tab, orders: &mut impl Write) {
    // It was read when the guest's kernel looked for parts of it.
    let reads = "document.querySelector('[data-link=disk] .endpoints')?.textContent || ''";
    browser.evaluate(
        tab,
        "document.querySelector('[data-link=disk] details').open = true",
    );
    browser.until(tab, &format!("/reads [1-9]/.test({reads})"));
    let moved = "/[1-9]/.test(document.querySelector('[data-link=disk] svg').ariaLabel \
        .split('at most')[1])";
    // More than once: a machine with much to do may miss a round, of which nothing is known then.
    orders
        .write_all(
            b"for i in 1 2 3 4 5 6 7 8; do echo 3 >/proc/sys/vm/drop_caches; \
            dd if=/dev/vda of=/dev/null bs=64k count=64; done\n",
        )
        .unwrap();
    browser.until(tab, moved);
    // Nothing can be changed there.
    browser.until(
        tab,
        "document.querySelector('[data-link=disk] .verbs').hidden",
    );
}

#[test]
fn the_demo_shows_the_screen_of_its_guest_on_a_page() {
    const TEST: &str = "the_demo_shows_the_screen_of_its_guest_on_a_page";
    if !can_boot(TEST) {
        return;
    }
    let Some(mut browser) = Browser::start(TEST) else {
        return;
    };
    let mut command = Command::new(PROGRAM);
    command
        .args([
            "demo",
            "--net",
            "responder",
            "--accel",
            "tcg",
            "--queues",
            "1",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut demo = Demo {
        child: command.spawn().unwrap(),
    };
    let errors = pieces(demo.child.stderr.take().unwrap());
    let shell = pieces(demo.child.stdout.take().unwrap());
    let mut orders = demo.child.stdin.take().unwrap();
    let said = until(&errors, &["booting", "the built-in driver"]);
    let Some((_, url)) = said.split_once("page of the guest: ") else {
        panic!("nothing of a page: {said}");
    };
    if let Some(why) = said.lines().find(|line| line.contains("no screen")) {
        drop(writeln!(std::io::stderr().lock(), "SKIP {TEST}: {why}"));
        return;
    }
    let tab = browser.open(url.lines().next().unwrap());
    until(&shell, &["# \u{1b}", "/ # ", "~ # "]);
    // What the guest says of itself is on its console, and so on the page.
    let bright = "(() => { const it = document.getElementById('screen'); \
        const pixels = it.getContext('2d').getImageData(0, 0, it.width, it.height).data; \
        let count = 0; \
        for (let at = 0; at < pixels.length; at += 4) count += pixels[at + 1] > 100; \
        return count / (it.width * it.height); })()";
    browser.until(&tab, "document.getElementById('screen').width === 1280");
    browser.until(&tab, &format!("{bright} > 0.005 && {bright} < 0.2"));
    shows_what_the_disk_does(&mut browser, &tab, &mut orders);
    // Its console has a shell: what the page types is carried out, and read back there.
    browser.until(&tab, "!document.getElementById('hint').hidden");
    browser.evaluate(&tab, "document.getElementById('stage').focus()");
    browser.type_text(&tab, "clear; echo LINKSPAN\n");
    let mut text = || {
        let picture = Picture::read(Cursor::new(browser.canvas(&tab, "screen")));
        picture.row(0, 12) == "LINKSPAN    "
    };
    assert!((0..3).any(|_| settled(&mut text)), "no text on the page");
    if let Some(path) = std::env::var_os("LINKSPAN_PICTURE") {
        picture(&mut browser, &tab, &mut orders, Path::new(&path));
    }
    orders
        .write_all(b"tr '\\0' '\\377' </dev/zero | head -c 4096000 >/dev/fb0\n")
        .unwrap();
    browser.until(&tab, &format!("{bright} > 0.95"));
    orders.write_all(b"poweroff -f\n").unwrap();
    let mut status = None;
    let mut ended = || {
        status = demo.child.try_wait().unwrap();
        status.is_some()
    };
    assert!((0..3).any(|_| settled(&mut ended)), "it does not end");
    assert!(status.unwrap().success());
    let lost = "document.getElementById('state').textContent.startsWith('No signal: ')";
    browser.until(&tab, lost);
}

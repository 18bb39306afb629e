//! The page of a plane as people use it: a browser that others wrote opens the address that
//! `linkspan up --page` prints, while links do something, die, hang, and are restarted there;
//! and clients that keep to no rule.

#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers are cut into words"
)]

mod hostile;
#[path = "../programs/mod.rs"]
mod programs;
#[allow(dead_code, reason = "a test of the GPU uses all of it")]
#[path = "../../../linkspan-backends/tests/gpu/rig.rs"]
mod rig;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use linkspan_testkit::Browser;
use linkspan_testkit::browser::Tab;
use linkspan_testkit::census::settled;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use programs::Program;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

const PLANE: &str = "[plane]\ncontrol = \"control.sock\"\n\
    [link.disk]\ncommand = \"blk\"\nsocket-path = \"a.sock\"\nimage = \"mem:1M\"\n\
    [link.frail]\ncommand = \"blk\"\nsocket-path = \"f.sock\"\nimage = \"mem:1M\"\nrestart = \"never\"\n\
    [link.lan]\ncommand = \"net\"\nport = [\"responder\"]\n\
    [link.later]\ncommand = \"blk\"\nsocket-path = \"b.sock\"\nimage = \"mem:1M\"\nstart = false\n\
    [link.screen]\ncommand = \"gpu\"\nsocket-path = \"g.sock\"\ndisplay = \"s.sock\"\nheads = 2\n";

/// A plane that runs with a page.
struct Host {
    folder: TempDir,
    up: Program,
    url: String,
}

impl Host {
    fn new() -> Self {
        Self::of(PLANE)
    }

    fn of(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plane = folder.path().join("plane.toml");
        fs::write(&plane, text).unwrap();
        let plane = plane.to_str().unwrap();
        let up = Program::start("up", [plane, "--json", "--page", "127.0.0.1:0"]);
        let mut url = None;
        let mut told = || {
            let said = up.said();
            let lines = said
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok());
            let mut pages = lines.filter(|line: &Value| line["event"] == "page");
            url = pages.find_map(|line| Some(line["url"].as_str()?.to_owned()));
            url.is_some()
        };
        let told = (0..3).any(|_| settled(&mut told));
        assert!(told, "no page: {}{}", up.said(), up.complained());
        let url = url.unwrap();
        Self { folder, up, url }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn seen(&self, name: &str) -> Option<Value> {
        let mut command = Command::new(PROGRAM);
        command.args(["link", "list", "--json", "--control"]);
        let output = command.arg(self.at("control.sock")).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.find(|line: &Value| line["link"] == name)
    }

    fn process(&self, name: &str) -> Pid {
        let pid = self.seen(name).unwrap()["pid"].as_i64().unwrap();
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    }

    /// Address and token of the page.
    fn parts(&self) -> (&str, &str) {
        let rest = self.url.strip_prefix("http://").unwrap();
        rest.split_once("/#").unwrap()
    }

    #[track_caller]
    fn end(self) -> String {
        self.up.signal(Signal::TERM);
        let (status, _, errors) = self.up.end();
        assert_eq!(status, Some(0), "{errors}");
        errors
    }
}

/// Of a link's card.
fn state(link: &str) -> String {
    format!("document.querySelector('[data-link={link}]')?.dataset.state")
}

fn is(link: &str, wanted: &str) -> String {
    format!("{} === '{wanted}'", state(link))
}

/// What a button of a card is found by.
fn button(link: &str, verb: &str) -> String {
    format!("document.querySelector('[data-link={link}] [data-verb={verb}]')")
}

fn open(browser: &mut Browser, host: &Host) -> Tab {
    let tab = browser.open(&host.url);
    for (link, wanted) in [
        ("disk", "running"),
        ("lan", "running"),
        ("later", "stopped"),
    ] {
        browser.until(&tab, &is(link, wanted));
    }
    tab
}

#[test]
fn links_appear_and_their_plots_move() {
    let Some(mut browser) = Browser::start("links_appear_and_their_plots_move") else {
        return;
    };
    let host = Host::new();
    let tab = open(&mut browser, &host);
    browser.until(
        &tab,
        "document.getElementById('summary').textContent === '4 of 5 links run'",
    );
    let height = "(() => { const line = document.querySelector('[data-link=disk] .line') \
        .getAttribute('d') || ''; return new Set([...line.matchAll(/ (\\d+\\.\\d)/g)] \
        .map((it) => it[1])).size; })()";
    browser.until(&tab, &format!("{height} === 1"));
    // A machine with much to do may miss a round, of which nothing is known then.
    let moves = (0..20).any(|_| {
        let mut bench = Command::new(PROGRAM);
        bench
            .args(["driver", "blk", "--socket-path"])
            .arg(host.at("a.sock"));
        let bench = bench.args(["bench", "--seconds", "0.6"]).output().unwrap();
        assert!(bench.status.success(), "{bench:?}");
        browser.evaluate(&tab, height).as_u64() > Some(1)
    });
    assert!(moves, "the plot of the disk does not move");
    let at_most = "document.querySelector('[data-link=disk] svg').getAttribute('aria-label')";
    let label = browser.evaluate(&tab, at_most);
    assert!(
        label.as_str().unwrap().contains("operations a second"),
        "{label}"
    );
    // Of a screen nothing is counted, so there is nothing to plot.
    browser.until(
        &tab,
        "document.querySelector('[data-link=screen] .plots').hidden",
    );
    // What is within, for who opens it.
    browser.evaluate(
        &tab,
        "document.querySelector('[data-link=disk] summary').click()",
    );
    let inner = "document.querySelector('[data-link=disk] .endpoints').textContent";
    browser.until(
        &tab,
        &format!("/disk: \\w+peers \\d+, .*reads [\\d,]+/.test({inner})"),
    );
    host.end();
}

/// As after an installation; the first link comes to the page that is open.
#[test]
fn a_plane_without_links_says_so_until_there_is_one() {
    let Some(mut browser) = Browser::start("a_plane_without_links_says_so_until_there_is_one")
    else {
        return;
    };
    let host = Host::of("[plane]\ncontrol = \"control.sock\"\n");
    let tab = browser.open(&host.url);
    let summary = "document.getElementById('summary').textContent";
    browser.until(
        &tab,
        &format!("{summary}.startsWith('There are no links yet')"),
    );
    fs::write(host.at("plane.toml"), PLANE).unwrap();
    host.up.signal(Signal::HUP);
    browser.until(&tab, &is("disk", "running"));
    browser.until(&tab, &format!("{summary} === '4 of 5 links run'"));
    host.end();
}

#[test]
fn a_lost_link_is_seen_and_told_apart() {
    let Some(mut browser) = Browser::start("a_lost_link_is_seen_and_told_apart") else {
        return;
    };
    let host = Host::new();
    let tab = open(&mut browser, &host);
    // A death is told of as it happens; one that comes back may be back before it is drawn.
    kill_process(host.process("frail"), Signal::KILL).unwrap();
    browser.until(&tab, &is("frail", "failed"));
    let summary = "document.getElementById('summary').textContent";
    browser.until(
        &tab,
        &format!("{summary} === '3 of 5 links run; lost: frail'"),
    );
    browser.until(
        &tab,
        "document.querySelector('[data-link=frail] .badge').textContent \
        === '✕ ended: signal 9 ended it'",
    );
    kill_process(host.process("disk"), Signal::KILL).unwrap();
    let history = "document.querySelector('[data-link=disk] .history').textContent";
    browser.until(&tab, &format!("{history}.includes('signal 9 ended it')"));
    browser.until(&tab, &is("disk", "running"));
    // One that hangs is no longer called running, with words; the others go on.
    let lan = host.process("lan");
    kill_process(lan, Signal::STOP).unwrap();
    browser.until(&tab, &is("lan", "silent"));
    browser.until(
        &tab,
        "document.getElementById('summary').textContent.includes('lost: frail, lan')",
    );
    browser.until(
        &tab,
        "document.querySelector('[data-link=lan] .badge').textContent \
        .includes('does not answer')",
    );
    kill_process(lan, Signal::CONT).unwrap();
    browser.until(&tab, &is("lan", "running"));
    // The supervisor hangs, and dies.
    host.up.signal(Signal::STOP);
    browser.until(
        &tab,
        "document.getElementById('lost').textContent === \
        'Not live: nothing is heard from the supervisor'",
    );
    host.up.signal(Signal::CONT);
    browser.until(&tab, "document.getElementById('lost').hidden");
    host.up.signal(Signal::KILL);
    browser.until(
        &tab,
        "document.getElementById('lost').textContent.includes('Not live: ')",
    );
    drop(host);
}

/// As people without a pointer do it.
#[test]
fn a_link_is_restarted_by_keyboard_alone() {
    let Some(mut browser) = Browser::start("a_link_is_restarted_by_keyboard_alone") else {
        return;
    };
    let host = Host::new();
    let tab = open(&mut browser, &host);
    browser.until(&tab, "document.getElementById('view').hidden");
    let before = host.process("disk");
    let reach = |browser: &mut Browser, what: &str| {
        let there = format!("document.activeElement === {what}");
        let reached = (0..30).any(|_| {
            browser.press(&tab, "Tab");
            browser.evaluate(&tab, &there) == true
        });
        assert!(reached, "Tab never gets to {what}");
    };
    let restart = button("disk", "restart");
    let label = browser.evaluate(&tab, &format!("{restart}.ariaLabel"));
    assert_eq!(label, "Restart disk");
    reach(&mut browser, &restart);
    browser.press(&tab, "Enter");
    browser.until(&tab, "document.getElementById('confirm').open");
    let question = "document.getElementById('question').textContent";
    browser.until(&tab, &format!("{question}.startsWith('Restart disk?')"));
    // Nothing is done until it is said twice.
    reach(&mut browser, "document.getElementById('no')");
    browser.press(&tab, "Enter");
    browser.until(&tab, "!document.getElementById('confirm').open");
    assert_eq!(host.process("disk"), before);
    browser.evaluate(&tab, &format!("{restart}.focus()"));
    browser.press(&tab, "Enter");
    browser.until(&tab, "document.getElementById('confirm').open");
    reach(&mut browser, "document.getElementById('yes')");
    browser.press(&tab, "Enter");
    let again = || {
        host.seen("disk")
            .is_some_and(|it| it["starts"] == 2 && it["state"] == "running")
    };
    assert!((0..3).any(|_| settled(again)), "{:?}", host.seen("disk"));
    assert_ne!(host.process("disk"), before);
    browser.until(
        &tab,
        "document.querySelector('[data-link=disk] .history').textContent \
        .includes('started 2 times')",
    );
    // Another one is started, which is not asked twice, and stopped.
    browser.evaluate(&tab, &format!("{}.focus()", button("later", "start")));
    browser.press(&tab, "Enter");
    browser.until(&tab, &is("later", "running"));
    // Who is asked to end before it is ready does not end in order.
    assert!(settled(|| host.at("b.sock").exists()));
    // The button is not for a link that runs, and whoever was there is at the next one.
    browser.until(
        &tab,
        &format!("document.activeElement === {}", button("later", "restart")),
    );
    browser.evaluate(&tab, &format!("{}.focus()", button("later", "drain")));
    browser.press(&tab, "Enter");
    browser.until(&tab, "document.getElementById('confirm').open");
    reach(&mut browser, "document.getElementById('yes')");
    browser.press(&tab, "Enter");
    browser.until(&tab, &is("later", "stopped"));
    host.end();
}

#[test]
fn the_page_fits_a_phone_in_light_and_dark() {
    let Some(mut browser) = Browser::start("the_page_fits_a_phone_in_light_and_dark") else {
        return;
    };
    let host = Host::new();
    let tab = open(&mut browser, &host);
    browser.resize(&tab, 320, 640);
    browser.evaluate(
        &tab,
        "document.querySelectorAll('details').forEach((it) => it.open = true)",
    );
    browser.evaluate(
        &tab,
        "document.querySelector('[data-link=screen] .screens button').click()",
    );
    browser.until(&tab, "!document.getElementById('view').hidden");
    browser.until(
        &tab,
        "document.querySelector('[data-link=disk] .endpoints h3')",
    );
    browser.until(&tab, "document.documentElement.scrollWidth <= 320");
    let back = "getComputedStyle(document.body).backgroundColor";
    let mut seen = Vec::new();
    for scheme in ["light", "dark"] {
        browser.prefer(&tab, scheme);
        seen.push(browser.evaluate(&tab, back));
    }
    assert_ne!(seen[0], seen[1], "{seen:?}");
    // Each thing that is used has a name.
    let unnamed = "[...document.querySelectorAll('button, meter, canvas, svg')].filter((it) => \
        !(it.ariaLabel || it.textContent.trim() || it.labels?.length)).length";
    browser.until(&tab, &format!("{unnamed} === 0"));
    host.end();
}

#[test]
fn a_screen_is_opened_from_the_list_and_shows_what_the_guest_draws() {
    const TEST: &str = "a_screen_is_opened_from_the_list_and_shows_what_the_guest_draws";
    const SIZE: (u32, u32) = (320, 200);
    let Some(mut browser) = Browser::start(TEST) else {
        return;
    };
    // The guest's screen is the rig's, in the place of the plane's own.
    let wanted = rig::pattern(320 * 200, 5);
    let mut rig = rig::Rig::new();
    rig.driver.create(1, 2, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, &wanted);
    rig.driver.show(0, 1, [0, 0, SIZE.0, SIZE.1]);
    let host = Host::new();
    let tab = open(&mut browser, &host);
    browser.until(&tab, &is("screen", "running"));
    let shows = || host.at("s.sock").exists();
    assert!(settled(shows), "no socket for viewers");
    fs::remove_file(host.at("s.sock")).unwrap();
    std::os::unix::fs::symlink(rig.dir.path().join("s"), host.at("s.sock")).unwrap();
    let heads = "document.querySelectorAll('[data-link=screen] .screens button').length === 2";
    browser.until(&tab, heads);
    browser.evaluate(
        &tab,
        "document.querySelector('[data-link=screen] .screens button').click()",
    );
    let has_picture = "document.getElementById('screen').width === 320 && \
        document.getElementById('state').textContent === ''";
    browser.until(&tab, has_picture);
    let same = |browser: &mut Browser, wanted: &[u32]| {
        let picture = browser.canvas(&tab, "screen");
        let mut reader = png::Decoder::new(std::io::Cursor::new(picture))
            .read_info()
            .unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        let pixels = bytes[..info.buffer_size()].chunks_exact(info.color_type.samples());
        let pixels = pixels.map(|it| u32::from_be_bytes([0, it[0], it[1], it[2]]));
        pixels.eq(wanted.iter().copied())
    };
    assert!(
        (0..3).any(|_| settled(|| same(&mut browser, &wanted))),
        "other pixels"
    );
    // A screen that is off says so; the links beside it go on.
    rig.driver.show(0, 0, [0; 4]);
    browser.until(
        &tab,
        "document.getElementById('state').textContent.startsWith('No signal: ')",
    );
    rig.driver.show(0, 1, [0, 0, SIZE.0, SIZE.1]);
    browser.until(&tab, has_picture);
    browser.evaluate(&tab, "document.getElementById('close').click()");
    browser.until(&tab, "document.getElementById('view').hidden");
    browser.until(&tab, "document.activeElement.textContent === 'Screen 0'");
    // Without the source the page says why, and looks again.
    drop(rig);
    browser.evaluate(
        &tab,
        "document.querySelector('[data-link=screen] .screens button').click()",
    );
    browser.until(
        &tab,
        "document.getElementById('state').textContent \
        .startsWith('No signal: cannot connect')",
    );
    host.end();
}

#[test]
fn a_wrong_token_sees_nothing() {
    let Some(mut browser) = Browser::start("a_wrong_token_sees_nothing") else {
        return;
    };
    let host = Host::new();
    let (address, token) = host.parts();
    assert_eq!(token.len(), 64);
    let (address, token) = (address.to_owned(), token.to_owned());
    for url in [
        format!("http://{address}/"),
        format!("http://{address}/#{}", "0".repeat(64)),
    ] {
        let tab = browser.open(&url);
        let refused = "document.getElementById('lost').textContent.includes('token is wrong')";
        browser.until(&tab, refused);
        let cards = "document.querySelectorAll('[data-link]').length";
        assert_eq!(browser.evaluate(&tab, cards), 0);
        let text = browser.evaluate(&tab, "document.body.innerText");
        assert!(!text.as_str().unwrap().contains("disk"), "{text}");
    }
    // `linkspan link page` says it to whoever may ask there.
    let mut command = Command::new(PROGRAM);
    command.args(["link", "page", "--control"]);
    let output = command.arg(host.at("control.sock")).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), host.url);
    let errors = host.end();
    assert!(!errors.contains(&token), "{errors}");
}

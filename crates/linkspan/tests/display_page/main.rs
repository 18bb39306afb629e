//! `linkspan display watch` as people use it: a browser that others wrote opens the address
//! that is printed, and what it shows is compared with `linkspan display shot`.
#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers are cut into words"
)]

#[path = "../programs/mod.rs"]
mod programs;
#[allow(dead_code, reason = "a test of the GPU uses all of it")]
#[path = "../../../linkspan-backends/tests/gpu/rig.rs"]
mod rig;

use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use linkspan_testkit::Browser;
use linkspan_testkit::browser::Tab;
use linkspan_testkit::census::settled;
use rustix::process::Signal;
use serde_json::Value;

use programs::Program;
use rig::{Rig, pattern};

const XRGB: u32 = 2;
const SIZE: (u32, u32) = (320, 200);
const WHOLE: [u32; 4] = [0, 0, 320, 200];

/// A picture, `0xRRGGBB`.
#[derive(Debug, PartialEq, Eq)]
struct Picture {
    width: usize,
    pixels: Vec<u32>,
}

impl Picture {
    fn png(file: &[u8]) -> Self {
        let mut reader = png::Decoder::new(Cursor::new(file)).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        let channels = info.color_type.samples();
        let pixels = bytes[..info.buffer_size()].chunks_exact(channels);
        Self {
            width: info.width as usize,
            pixels: pixels
                .map(|pixel| u32::from_be_bytes([0, pixel[0], pixel[1], pixel[2]]))
                .collect(),
        }
    }

    /// A part of it.
    fn part(&self, x: usize, y: usize, (width, height): (u32, u32)) -> Vec<u32> {
        let lines = (y..y + height as usize).map(|line| line * self.width + x);
        let lines = lines.map(|start| &self.pixels[start..start + width as usize]);
        lines.flatten().copied().collect()
    }
}

/// What `linkspan display shot` sees.
fn shot(rig: &Rig) -> Picture {
    let file = rig.dir.path().join("shot.png");
    let output = Command::new(env!("CARGO_BIN_EXE_linkspan"))
        .args(["display", "shot"])
        .arg(rig.dir.path().join("s"))
        .arg("-o")
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    Picture::png(&std::fs::read(file).unwrap())
}

/// The program, and the address that it prints.
fn watch(socket: &Path) -> (Program, String) {
    watch_with(socket, &[])
}

fn watch_with(socket: &Path, more: &[&str]) -> (Program, String) {
    let socket = socket.to_str().unwrap();
    let args = ["watch", "--json", "--listen", "127.0.0.1:0", socket];
    let program = Program::start("display", [&args[..], more].concat());
    assert!(settled(|| program.said().ends_with('\n')));
    let said: Value = serde_json::from_str(program.said().trim()).unwrap();
    assert_eq!(said["event"], "listening");
    let url = said["url"].as_str().unwrap().to_owned();
    (program, url)
}

fn shown(wanted: &[u32]) -> Rig {
    let mut rig = Rig::new();
    rig.driver.create(1, XRGB, SIZE, 0);
    rig.driver.draw(1, SIZE, 0, wanted);
    rig.driver.show(0, 1, WHOLE);
    rig
}

const HAS_PICTURE: &str = "document.getElementById('screen').width === 320 && \
    document.getElementById('state').textContent === ''";

/// What is seen of the screen in the browser's window, in its own size.
fn seen(browser: &mut Browser, tab: &Tab) -> Vec<u32> {
    let place = "(() => { const it = document.getElementById('screen').getBoundingClientRect(); \
        return [it.x, it.y, it.width, it.height].map(Math.round); })()";
    let place = browser.evaluate(tab, place);
    let side = |at: usize| place[at].as_u64().unwrap() as usize;
    assert_eq!([side(2), side(3)], [320, 200]);
    let window = Picture::png(&browser.screenshot(tab));
    window.part(side(0), side(1), SIZE)
}

/// A browser draws when it has time to.
#[track_caller]
fn until_seen(browser: &mut Browser, tab: &Tab, wanted: &[u32]) {
    let same = (0..3).any(|_| settled(|| seen(browser, tab) == wanted));
    assert!(same, "the pixels in the browser are others");
}

#[test]
fn a_browser_shows_the_screen_and_what_changes_and_why_there_is_none() {
    let Some(mut browser) = Browser::start("a_browser_shows_the_screen") else {
        return;
    };
    let mut wanted = pattern(320 * 200, 5);
    let mut rig = shown(&wanted);
    let (program, url) = watch(&rig.dir.path().join("s"));
    let tab = browser.open(&url);
    browser.until(&tab, HAS_PICTURE);
    assert!(shot(&rig).pixels == wanted);
    until_seen(&mut browser, &tab, &wanted);
    // What changes.
    wanted[100 * 320 + 200] ^= 0x00FF_FFFF;
    wanted[0] ^= 0x00FF_FFFF;
    rig.driver.draw(1, SIZE, 0, &wanted);
    rig.driver.flush(1, WHOLE);
    assert!(shot(&rig).pixels == wanted);
    until_seen(&mut browser, &tab, &wanted);
    // Off and on again.
    rig.driver.show(0, 0, [0; 4]);
    let off = "No signal: the guest has switched its screen off";
    let says = |what: &str| format!("document.getElementById('state').textContent === {what:?}");
    browser.until(&tab, &says(off));
    browser.until(&tab, "document.title.startsWith('No signal')");
    rig.driver.show(0, 1, WHOLE);
    browser.until(&tab, HAS_PICTURE);
    until_seen(&mut browser, &tab, &wanted);
    // The GPU goes, and so does the program, after it has said why.
    drop(rig);
    let gone = "document.getElementById('state').textContent.startsWith('No signal: ') && \
        !document.getElementById('state').textContent.includes('connection')";
    browser.until(&tab, gone);
    let (status, _, errors) = program.end();
    assert_eq!(status, Some(3), "{errors}");
}

#[test]
fn a_browser_sees_within_a_second_that_the_program_is_gone_or_says_nothing() {
    let Some(mut browser) = Browser::start("a_browser_sees_a_loss") else {
        return;
    };
    let rig = shown(&pattern(320 * 200, 6));
    let (program, url) = watch(&rig.dir.path().join("s"));
    let tab = browser.open(&url);
    browser.until(&tab, HAS_PICTURE);
    // The page itself takes the time from the last word that it heard.
    program.signal(Signal::STOP);
    let silent = "document.getElementById('state').textContent === \
        'No signal: nothing is heard from linkspan'";
    browser.until(&tab, silent);
    program.signal(Signal::CONT);
    browser.until(&tab, HAS_PICTURE);
    program.signal(Signal::KILL);
    let lost = "document.getElementById('state').textContent === \
        'No signal: the connection to linkspan is lost'";
    browser.until(&tab, lost);
}

#[test]
fn a_browser_without_the_token_sees_nothing() {
    let Some(mut browser) = Browser::start("a_browser_without_the_token") else {
        return;
    };
    let rig = shown(&pattern(320 * 200, 7));
    let (program, url) = watch(&rig.dir.path().join("s"));
    let (page, token) = url.split_once('#').unwrap();
    assert_eq!(token.len(), 64);
    let wrong = format!("{page}#{}", "0".repeat(64));
    for address in [page, &wrong] {
        let tab = browser.open(address);
        let refused = "document.getElementById('state').textContent.includes('token is wrong')";
        browser.until(&tab, refused);
        let canvas =
            "[document.getElementById('screen').width, document.getElementById('screen').hidden]";
        assert_eq!(browser.evaluate(&tab, canvas), serde_json::json!([0, true]));
    }
    // Nothing of the token is in what a browser asks for, and a page of another server is
    // not let in even with it.
    let tab = browser.open("data:text/html,<p>evil</p>");
    let socket = page.replace("http:", "ws:") + "screen";
    let open = format!(
        "new Promise((done) => {{ const it = new WebSocket({socket:?}); \
         it.onopen = () => done('open'); it.onerror = () => done('refused'); }})"
    );
    assert_eq!(browser.evaluate(&tab, &open), "refused");
    program.signal(Signal::TERM);
    let (status, _, errors) = program.end();
    assert_eq!(status, Some(0), "{errors}");
    assert!(!errors.contains(token), "{errors}");
}

#[test]
fn the_page_fits_a_phone_and_is_used_by_keyboard() {
    let Some(mut browser) = Browser::start("the_page_fits_a_phone") else {
        return;
    };
    let rig = shown(&pattern(320 * 200, 8));
    let (_program, url) = watch(&rig.dir.path().join("s"));
    let tab = browser.open(&url);
    browser.until(&tab, HAS_PICTURE);
    browser.resize(&tab, 240, 400);
    let fits = "document.documentElement.scrollWidth <= 240 && \
        document.getElementById('screen').getBoundingClientRect().width <= 240";
    browser.until(&tab, fits);
    // The first thing that can be reached is Fit; without it the screen has its own size.
    browser.press(&tab, "Tab");
    browser.until(&tab, "document.activeElement.id === 'fit'");
    browser.press(&tab, "Enter");
    let whole = "document.getElementById('screen').getBoundingClientRect().width === 320";
    browser.until(&tab, whole);
    assert_eq!(
        browser.evaluate(
            &tab,
            "document.getElementById('fit').getAttribute('aria-pressed')"
        ),
        "false"
    );
    browser.press(&tab, " ");
    browser.until(&tab, fits);
}

/// The pointer may move while there is no connection, and goes to the guest once there is
/// one again.
#[test]
fn the_page_passes_the_pointer_on_when_its_connection_is_there_again() {
    let Some(mut browser) = Browser::start("the_page_passes_the_pointer_on") else {
        return;
    };
    let rig = shown(&pattern(320 * 200, 9));
    // QEMU may come later; what the page says is looked at here.
    let monitor = rig.dir.path().join("qmp");
    let qmp = ["--qmp", monitor.to_str().unwrap()];
    let (_program, url) = watch_with(&rig.dir.path().join("s"), &qmp);
    let tab = browser.open(&url);
    browser.until(&tab, HAS_PICTURE);
    let has_keys = "document.getElementById('stage').classList.contains('keys')";
    browser.until(&tab, has_keys);
    // The connection is the script's own, and seen where it says something.
    let hears = "(() => { const send = WebSocket.prototype.send; \
        WebSocket.prototype.send = function (text) { \
            if (!text.startsWith('at ')) return send.call(this, text); \
            window.connection = this; \
            window.said(text); \
        }; })()";
    browser.evaluate(&tab, hears);
    let moves = "document.getElementById('screen').dispatchEvent(new PointerEvent('pointermove'))";
    let said = format!(
        "new Promise((done) => {{ window.said = done; \
         setTimeout(() => done('nothing'), 20000); {moves}; }})"
    );
    assert_eq!(browser.evaluate(&tab, &said), "at 0 0 0");
    let lost = format!(
        "new Promise((done) => {{ \
         const wait = () => {has_keys} ? setTimeout(wait, 1) : done({moves}); \
         window.connection.close(); wait(); }})"
    );
    browser.evaluate(&tab, &lost);
    browser.until(&tab, has_keys);
    assert_eq!(browser.evaluate(&tab, &said), "at 0 0 0");
}

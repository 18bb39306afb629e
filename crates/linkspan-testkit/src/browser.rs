//! A browser that others wrote, without a window: headless Chromium, driven by its DevTools
//! protocol over a WebSocket.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;

use data_encoding::BASE64;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

use crate::PATIENCE;
use crate::census::settled;

/// Programs that will do, the smallest first.
const PROGRAMS: [&str; 2] = ["chromium-headless-shell", "chromium"];
/// What it says when it can be talked to.
const READY: &str = "DevTools listening on ";
/// A window that a screen of 1024x768 fits into.
pub const WINDOW: (u32, u32) = (1280, 900);

/// A browser; it ends with the value, and its profile goes.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    _profile: TempDir,
    socket: WebSocket<TcpStream>,
    last: u64,
}

/// A page that is open in it.
#[derive(Clone, Debug)]
pub struct Tab(String);

impl Browser {
    /// Starts one; `None`, and a word, where none is installed.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(test: &str) -> Option<Self> {
        let profile = tempfile::tempdir().expect("a folder");
        let started = PROGRAMS.iter().find_map(|name| {
            let mut command = Command::new(name);
            command
                .args(["--headless", "--no-sandbox", "--disable-gpu"])
                .args(["--remote-debugging-port=0", "--no-first-run"])
                .args(["--disable-dev-shm-usage", "--force-device-scale-factor=1"])
                .args(["--hide-scrollbars", "--force-color-profile=srgb"])
                .arg(format!("--window-size={},{}", WINDOW.0, WINDOW.1))
                .arg(format!("--user-data-dir={}", profile.path().display()))
                .arg("about:blank")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                // Its processes are more than the one that we know.
                .process_group(0);
            command.spawn().ok()
        });
        let Some(mut child) = started else {
            // Not by `eprintln`, which would be captured.
            let mut out = std::io::stderr().lock();
            let _ = writeln!(out, "SKIP {test}: no Chromium is installed");
            return None;
        };
        let address = child.stderr.take().and_then(listening);
        let address = address.expect("Chromium says where it can be talked to");
        Some(Self {
            child,
            _profile: profile,
            socket: connect(&address),
            last: 0,
        })
    }

    /// Calls a method of the protocol.
    #[track_caller]
    fn call(&mut self, tab: Option<&Tab>, method: &str, params: &Value) -> Value {
        let result = self.try_call(tab, method, params);
        result.unwrap_or_else(|error| panic!("{method} {params}: {error}"))
    }

    /// The same with its error.
    fn try_call(
        &mut self,
        tab: Option<&Tab>,
        method: &str,
        params: &Value,
    ) -> Result<Value, Value> {
        self.last += 1;
        let mut call = json!({ "id": self.last, "method": method, "params": params });
        if let Some(Tab(session)) = tab {
            call["sessionId"] = json!(session);
        }
        self.socket
            .send(Message::text(call.to_string()))
            .expect("Chromium listens");
        loop {
            let Message::Text(text) = self.socket.read().expect("Chromium answers") else {
                continue;
            };
            let mut said: Value = serde_json::from_str(&text).expect("JSON");
            // Events come in between.
            if said["id"] == self.last {
                return match said["error"].take() {
                    Value::Null => Ok(said["result"].take()),
                    error => Err(error),
                };
            }
        }
    }

    /// Opens a page.
    #[track_caller]
    pub fn open(&mut self, url: &str) -> Tab {
        let target = self.call(None, "Target.createTarget", &json!({ "url": url }));
        let id = &target["targetId"];
        let params = json!({ "targetId": id, "flatten": true });
        let session = self.call(None, "Target.attachToTarget", &params);
        let session = session["sessionId"].as_str().expect("a session");
        let tab = Tab(session.to_owned());
        let here = "location.href !== 'about:blank' && document.readyState === 'complete'";
        self.until(&tab, here);
        tab
    }

    /// The value of an expression in a page; promises are waited for.
    #[track_caller]
    pub fn evaluate(&mut self, tab: &Tab, expression: &str) -> Value {
        let value = self.try_evaluate(tab, expression);
        value.unwrap_or_else(|error| panic!("{expression}: {error}"))
    }

    fn try_evaluate(&mut self, tab: &Tab, expression: &str) -> Result<Value, Value> {
        let params = json!({
            "expression": expression,
            "returnByValue": true,
            "awaitPromise": true,
        });
        let mut result = self.try_call(Some(tab), "Runtime.evaluate", &params)?;
        match result["exceptionDetails"].take() {
            Value::Null => Ok(result["result"]["value"].take()),
            error => Err(error),
        }
    }

    /// Waits until an expression is true.
    ///
    /// # Panics
    /// With what the page says, when it does not come to be.
    #[track_caller]
    pub fn until(&mut self, tab: &Tab, expression: &str) {
        // A page that is loading has not all that it will have.
        let expression = &format!("Boolean({expression})");
        let mut is = || self.try_evaluate(tab, expression) == Ok(json!(true));
        // One of these waits for ten seconds or more.
        if !(0..3).any(|_| settled(&mut is)) {
            let said = self.try_evaluate(tab, "document.body && document.body.innerText");
            panic!("not so: {expression}; the page says {said:?}");
        }
    }

    /// What is seen of a page, as a PNG file.
    #[track_caller]
    pub fn screenshot(&mut self, tab: &Tab) -> Vec<u8> {
        let params = json!({ "format": "png" });
        let shot = self.call(Some(tab), "Page.captureScreenshot", &params);
        let data = shot["data"].as_str().expect("a picture");
        BASE64.decode(data.as_bytes()).expect("base64")
    }

    /// The page as a device with another window sees it.
    #[track_caller]
    pub fn resize(&mut self, tab: &Tab, width: u32, height: u32) {
        let params = json!({
            "width": width,
            "height": height,
            "deviceScaleFactor": 1,
            "mobile": false,
        });
        self.call(Some(tab), "Emulation.setDeviceMetricsOverride", &params);
    }

    /// Which colours its user likes: `light` or `dark`.
    #[track_caller]
    pub fn prefer(&mut self, tab: &Tab, scheme: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        let params = json!({ "features": [feature] });
        self.call(Some(tab), "Emulation.setEmulatedMedia", &params);
    }

    /// Presses a key, as a person does.
    #[track_caller]
    pub fn press(&mut self, tab: &Tab, key: &str) {
        let text = match key {
            "Enter" => "\r",
            " " => " ",
            _ => "",
        };
        let code = match key {
            "Enter" => 13,
            "Tab" => 9,
            " " => 32,
            _ => 0,
        };
        for kind in ["keyDown", "keyUp"] {
            let params = json!({
                "type": kind,
                "key": key,
                "code": key,
                "windowsVirtualKeyCode": code,
                "text": if kind == "keyDown" { text } else { "" },
            });
            self.call(Some(tab), "Input.dispatchKeyEvent", &params);
        }
    }

    /// Types on an American keyboard, key by key: capital letters, which need the shift key,
    /// small ones, digits, spaces, `;`, and a line's end.
    ///
    /// # Panics
    /// For letters that it does not know.
    #[track_caller]
    pub fn type_text(&mut self, tab: &Tab, text: &str) {
        for letter in text.chars() {
            let (code, key) = match letter {
                'a'..='z' | 'A'..='Z' => (
                    format!("Key{}", letter.to_ascii_uppercase()),
                    letter.to_string(),
                ),
                '0'..='9' => (format!("Digit{letter}"), letter.to_string()),
                ' ' => ("Space".into(), " ".into()),
                ';' => ("Semicolon".into(), ";".into()),
                '\n' => ("Enter".into(), "Enter".into()),
                other => panic!("{other:?} is not typed"),
            };
            let shift = letter.is_ascii_uppercase();
            let mut presses = vec![("rawKeyDown", &*code, &*key), ("keyUp", &*code, &*key)];
            if shift {
                presses.insert(0, ("rawKeyDown", "ShiftLeft", "Shift"));
                presses.push(("keyUp", "ShiftLeft", "Shift"));
            }
            for (kind, code, key) in presses {
                let modifiers = if shift { 8 } else { 0 };
                let params = json!({
                    "type": kind, "code": code, "key": key, "modifiers": modifiers,
                });
                self.call(Some(tab), "Input.dispatchKeyEvent", &params);
            }
        }
    }

    /// Clicks with the left button at this place of the window.
    #[track_caller]
    pub fn click(&mut self, tab: &Tab, x: f64, y: f64) {
        for (kind, buttons) in [("mouseMoved", 0), ("mousePressed", 1), ("mouseReleased", 0)] {
            let button = if kind == "mouseMoved" { "none" } else { "left" };
            let params = json!({
                "type": kind, "x": x, "y": y, "button": button,
                "buttons": buttons, "clickCount": 1,
            });
            self.call(Some(tab), "Input.dispatchMouseEvent", &params);
        }
    }

    /// What a canvas of a page holds, as a PNG file; empty where it has no size.
    #[track_caller]
    pub fn canvas(&mut self, tab: &Tab, id: &str) -> Vec<u8> {
        let expression = format!("document.getElementById({id:?}).toDataURL('image/png')");
        let url = self.evaluate(tab, &expression);
        let data = url.as_str().and_then(|url| url.split_once("base64,"));
        data.map_or_else(Vec::new, |(_, data)| {
            BASE64.decode(data.as_bytes()).expect("base64")
        })
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Where it listens. What else it says is read and dropped, so that it never waits for us.
fn listening(errors: ChildStderr) -> Option<String> {
    let mut lines = BufReader::new(errors).lines().map_while(Result::ok);
    let found = lines.find_map(|line| Some(line.strip_prefix(READY)?.trim().to_owned()));
    thread::spawn(move || lines.for_each(drop));
    found
}

fn connect(url: &str) -> WebSocket<TcpStream> {
    let host = url
        .strip_prefix("ws://")
        .and_then(|it| it.split('/').next());
    let stream = TcpStream::connect(host.expect("an address")).expect("Chromium listens");
    let limit = stream.set_read_timeout(Some(PATIENCE));
    limit.expect("a limit");
    let (socket, _) = tungstenite::client(url, stream).expect("a WebSocket");
    socket
}

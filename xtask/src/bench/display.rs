//! `cargo xtask bench display`: what viewers of a screen cost. The kernels by `cargo bench -p
//! linkspan-display`; the page, by a viewer of ours; VNC against QEMU's own server on the same
//! memory, which shows the same frames to both: QEMU by its ramfb device, whose guest does not
//! run, ours by a source that is asked as a VFIO device is.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::{Message, WebSocket};

use super::blk::example;
use super::smbdirect::{Other, cpu_seconds};
use super::{Args, Folder, Series, Server, Turn, alternate, machine, median, pinned};
use crate::project::{Project, cargo};

mod ramfb;
mod text;

/// Where the picture is in its file, behind what QEMU is told.
const PICTURE: u64 = 16 << 20;
const FILE_LEN: u64 = 64 << 20;
/// Frames of the sequence, again and again.
const FRAMES: usize = 16;
/// The screen of the sequence, and the one that is watched.
const SMALL: (u32, u32) = (1280, 800);
const LARGE: (u32, u32) = (1920, 1080);
/// ZRLE (RFC 6143, 7.7.6), which says how long it is.
const ZRLE: i32 = 16;
/// Updates of each kind that a page gets.
const UPDATES: u32 = 40;

pub(super) fn run(project: &Project, args: &Args) -> Result<String> {
    let shown = example(project, "linkspan-backends", "shown_memory")?;
    let folder = Folder::new(Path::new("/dev/shm"))?;
    let rig = Rig {
        shown,
        folder: folder.0.clone(),
        seconds: args.seconds,
    };
    let mut text = format!(
        "`cargo xtask bench display --rounds {} --seconds {}` on {}.\n\n",
        args.rounds,
        args.seconds,
        machine()
    );
    let wanted = |name: &str| args.only.as_ref().is_none_or(|only| name.contains(only));
    if wanted("kernels") {
        text += &kernels(project)?;
    }
    if wanted("page") {
        text += &rig.page()?;
    }
    if wanted("vnc") {
        text += &rig.vnc(args.rounds)?;
    }
    Ok(text)
}

/// What passes over a picture cost.
fn kernels(project: &Project) -> Result<String> {
    let output = cargo()
        .args(["bench", "--package", "linkspan-display", "--bench", "pass"])
        .current_dir(&project.root)
        .output()?;
    ensure!(output.status.success(), "the kernels: {}", output.status);
    let said = String::from_utf8(output.stdout)?;
    let mut text = String::from(
        "Milliseconds of `memcpy` and `memcmp` of a frame, and ratios to that `memcpy`: a copy out of the tiling (0.9 wanted of\n\
         tiled ones), and one pass that copies out, converts and compares with what was shown before (0.8 at 1080p, 0.6 at\n\
         2160p), where all has changed; where nothing has, the ratio is to `memcmp`.\n\n\
         | size | format | tiling | memcpy | memcmp | copy out | pass, all changed | pass, unchanged |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for line in said.lines() {
        // The name of a tiling has two words.
        let line = line.replace("Intel ", "Intel\u{a0}");
        let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
        let is_row = words.first().is_some_and(|word| word.contains('x'));
        if is_row && words.len() == 8 {
            text += &format!("| {} |\n", words.join(" | "));
        }
    }
    Ok(text)
}

/// A change of a screen of this size, by its number: where it begins, and its bytes.
type Change = fn((u32, u32), u32) -> (usize, Vec<u8>);

struct Rig {
    shown: PathBuf,
    folder: PathBuf,
    seconds: f64,
}

/// A file with a picture.
struct Picture {
    path: PathBuf,
    file: File,
    size: (u32, u32),
}

impl Rig {
    fn picture(&self, size: (u32, u32)) -> Result<Picture> {
        let path = self.folder.join("picture");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(&path)?;
        file.set_len(FILE_LEN)?;
        Ok(Picture { path, file, size })
    }

    /// Ours, in a process: what it says is an address, and a token behind it.
    fn serve(&self, what: &str, picture: &Picture) -> Result<Other> {
        let mut command = pinned(0, &self.shown);
        let (width, height) = picture.size;
        let numbers = [PICTURE, width.into(), height.into()].map(|it| it.to_string());
        command.arg(what).arg(&picture.path).args(numbers);
        Other::start(command, |line| Some(line.trim().to_owned()))
    }

    /// A page with one viewer.
    fn page(&self) -> Result<String> {
        let picture = self.picture(LARGE)?;
        let (width, height) = LARGE;
        picture.show(&text::frame(LARGE, 0))?;
        let server = self.serve("watch", &picture)?;
        let page = Viewer::start(&server.address)?;
        // The first picture is drawn.
        while page
            .updates
            .recv_timeout(Duration::from_millis(300))
            .is_ok()
        {}
        let percent = |seconds: f64| -> Result<f64> {
            let (cpu, start) = (cpu_seconds(server.id())?, Instant::now());
            thread::sleep(Duration::from_secs_f64(seconds));
            let cpu = cpu_seconds(server.id())? - cpu;
            Ok(cpu / start.elapsed().as_secs_f64() * 100.0)
        };
        // It looks often after a change: of one pixel, so that all of it is shown when it is heard of.
        picture.file.write_all_at(&[1, 2, 3, 4], PICTURE)?;
        page.next()?;
        let first = percent(1.5)?;
        thread::sleep(Duration::from_secs(1));
        let later = percent(5.0)?;
        let line = self.updates(&server, &page, &picture, first, text::line)?;
        let whole = self.updates(&server, &page, &picture, first, text::frame_at)?;
        Ok(format!(
            "\nA page with one viewer, {width}x{height}, of a source that does not tell of changes. Of its updates: milliseconds of\n\
             processor beyond looking 60 times a second, and from the change to the viewer, medians of {UPDATES}.\n\n\
             | | | target |\n|---|---|---|\n\
             | unchanged, the first 2 s | {first:.2} % of a processor | 5 % |\n\
             | unchanged, after 2 s | {later:.2} % | 1 % |\n\
             | 80 letters change | {:.2} ms of work, {:.1} ms to the viewer | 20 ms |\n\
             | all lines of text change | {:.2} ms of work, {:.1} ms to the viewer | |\n",
            line.0, line.1, whole.0, whole.1
        ))
    }

    /// Work of an update, and time until its viewer has it, in milliseconds.
    fn updates(
        &self,
        server: &Other,
        page: &Viewer,
        picture: &Picture,
        idle: f64,
        change: Change,
    ) -> Result<(f64, f64)> {
        let mut times = Vec::new();
        let (cpu, start) = (cpu_seconds(server.id())?, Instant::now());
        for number in 0..UPDATES {
            let (offset, bytes) = change(picture.size, number);
            let changed = Instant::now();
            picture.file.write_all_at(&bytes, PICTURE + offset as u64)?;
            page.next()?;
            times.push(changed.elapsed().as_secs_f64() * 1e3);
            // What is left of a large one.
            while page.updates.recv_timeout(Duration::from_millis(50)).is_ok() {}
        }
        let cpu = cpu_seconds(server.id())? - cpu;
        let looking = start.elapsed().as_secs_f64() * idle / 100.0;
        let work = (cpu - looking).max(0.0) * 1e3 / f64::from(UPDATES);
        Ok((work, median(times)))
    }

    /// VNC, ours and QEMU's.
    fn vnc(&self, rounds: usize) -> Result<String> {
        let frames: Vec<Vec<u8>> = (0..FRAMES).map(|at| text::frame(SMALL, at)).collect();
        let (width, height) = SMALL;
        let mut table = format!(
            "\nVNC with one viewer, {width}x{height}, ZRLE: text that is typed and scrolls, the same memory shown by QEMU's own server.\n\
             Updates a second, and milliseconds of processor for each: medians; the ratio is that of the medians.\n\n\
             | frames a second | ours | CPU | QEMU | its CPU | ratio of rates (target 1) | ratio of CPU (target 1 at most) |\n\
             |---|---|---|---|---|---|---|\n"
        );
        for rate in [25.0, 60.0] {
            let turns: Vec<Box<dyn Fn() -> Result<Turn> + '_>> = vec![
                Box::new(|| self.ours(&frames, rate)),
                Box::new(|| self.theirs(&frames, rate)),
            ];
            let series = alternate(rounds, &turns)?;
            let [ours, theirs]: [Series; 2] = series.try_into().ok().context("two of them")?;
            let (low, high) = ours.spread(&theirs);
            let line = format!(
                "| {rate:.0} | {:.1} | {:.2} | {:.1} | {:.2} | **{:.2}** ({low:.2}–{high:.2}) | **{:.2}** |\n",
                ours.rate(),
                ours.cpu(),
                theirs.rate(),
                theirs.cpu(),
                ours.rate() / theirs.rate(),
                ours.cpu() / theirs.cpu(),
            );
            eprint!("{line}");
            table += &line;
        }
        Ok(table)
    }

    fn ours(&self, frames: &[Vec<u8>], rate: f64) -> Result<Turn> {
        let picture = self.picture(SMALL)?;
        picture.show(&frames[0])?;
        let server = self.serve("vnc", &picture)?;
        let stream = TcpStream::connect(&server.address)?;
        self.watch(stream, server.id(), &picture, frames, rate)
    }

    fn theirs(&self, frames: &[Vec<u8>], rate: f64) -> Result<Turn> {
        let picture = self.picture(SMALL)?;
        picture.show(&frames[0])?;
        // Free again before QEMU takes it.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let control = self.folder.join("control");
        let mut command = pinned(0, "qemu-system-x86_64");
        command.args(ramfb::arguments(&picture.path, FILE_LEN, &control, port));
        let qemu = Server::start(command, &control)?;
        ramfb::show(&control, &picture.file, PICTURE, SMALL)?;
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        self.watch(stream, qemu.child.id(), &picture, frames, rate)
    }

    /// Replays the frames, and counts what a viewer gets.
    fn watch(
        &self,
        stream: TcpStream,
        server: u32,
        picture: &Picture,
        frames: &[Vec<u8>],
        rate: f64,
    ) -> Result<Turn> {
        let mut client = Rfb::new(stream, SMALL)?;
        // What is there at first is no update.
        client.update()?;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let replay = scope.spawn(|| picture.replay(frames, rate, &done));
            let (cpu, start) = (cpu_seconds(server)?, Instant::now());
            let mut updates = 0.0;
            let counted = loop {
                if start.elapsed().as_secs_f64() >= self.seconds {
                    break Ok(());
                }
                match client.update() {
                    Ok(()) => updates += 1.0,
                    Err(error) => break Err(error),
                }
            };
            let (cpu, took) = (cpu_seconds(server)? - cpu, start.elapsed().as_secs_f64());
            done.store(true, Ordering::Relaxed);
            replay.join().expect("it does not panic")?;
            counted?;
            Ok(Turn {
                rate: updates / took,
                cpu: cpu * 1e3 / updates,
            })
        })
    }
}

impl Picture {
    fn show(&self, frame: &[u8]) -> Result<()> {
        Ok(self.file.write_all_at(frame, PICTURE)?)
    }

    fn replay(&self, frames: &[Vec<u8>], rate: f64, done: &AtomicBool) -> Result<()> {
        let start = Instant::now();
        for (number, frame) in (1u32..).zip(frames.iter().cycle()) {
            if done.load(Ordering::Relaxed) {
                break;
            }
            self.show(frame)?;
            let next = start + Duration::from_secs_f64(f64::from(number) / rate);
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }
}

/// A viewer of VNC that does not look at what it gets.
struct Rfb(TcpStream);

impl Rfb {
    fn new(stream: TcpStream, (width, height): (u32, u32)) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut client = Self(stream);
        ensure!(
            client.read::<12>()? == *b"RFB 003.008\n",
            "it is no RFB 3.8"
        );
        client.0.write_all(b"RFB 003.008\n")?;
        let [count] = client.read()?;
        client.skip(count.into())?;
        client.0.write_all(&[1])?;
        ensure!(client.read::<4>()? == [0; 4], "it wants a password");
        client.0.write_all(&[1])?;
        let init = client.read::<24>()?;
        let side = |at: usize| u32::from(u16::from_be_bytes([init[at], init[at + 1]]));
        // A server may say its size before it has looked.
        let is_it = (side(0), side(2)) == (width, height);
        let name = u32::from_be_bytes([init[20], init[21], init[22], init[23]]);
        client.skip(name.into())?;
        let mut encodings = vec![2, 0, 0, 2];
        for encoding in [ZRLE, -223] {
            encodings.extend(encoding.to_be_bytes());
        }
        client.0.write_all(&encodings)?;
        client.request(false)?;
        if !is_it {
            client.update()?;
        }
        Ok(client)
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, len: u64) -> Result<()> {
        let skipped = std::io::copy(&mut (&mut self.0).take(len), &mut std::io::sink())?;
        ensure!(skipped == len, "the server has gone");
        Ok(())
    }

    fn request(&mut self, incremental: bool) -> Result<()> {
        let mut bytes = vec![3, u8::from(incremental), 0, 0, 0, 0];
        bytes.extend([0xFF; 4]);
        Ok(self.0.write_all(&bytes)?)
    }

    /// Takes an update, and asks for the next one.
    fn update(&mut self) -> Result<()> {
        let [kind, _, high, low] = self.read()?;
        ensure!(kind == 0, "a message of kind {kind}");
        for _ in 0..u16::from_be_bytes([high, low]) {
            let head = self.read::<12>()?;
            match i32::from_be_bytes([head[8], head[9], head[10], head[11]]) {
                ZRLE => {
                    let len = u32::from_be_bytes(self.read()?);
                    self.skip(len.into())?;
                }
                -223 => {}
                other => bail!("encoding {other} was not asked for"),
            }
        }
        self.request(true)
    }
}

/// A viewer of a page, in a thread that ends with its server.
struct Viewer {
    updates: Receiver<()>,
}

impl Viewer {
    /// `place` is an address and a token.
    fn start(place: &str) -> Result<Self> {
        let (address, token) = place.split_once(' ').context("no token")?;
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut request = format!("ws://{address}/screen").into_client_request()?;
        let origin = format!("http://{address}").parse()?;
        request.headers_mut().insert("Origin", origin);
        let (mut socket, _): (WebSocket<TcpStream>, _) =
            tungstenite::client(request, stream).context("no WebSocket")?;
        socket.send(Message::text(token))?;
        let (sender, updates) = channel();
        thread::spawn(move || {
            while let Ok(message) = socket.read() {
                let alive = matches!(&message, Message::Text(text) if text.as_str() == "{}");
                let goes_on = alive || socket.send(Message::text("seen")).is_ok();
                if !goes_on || (message.is_binary() && sender.send(()).is_err()) {
                    return;
                }
            }
        });
        Ok(Self { updates })
    }

    /// Waits for an update.
    fn next(&self) -> Result<()> {
        let limit = Duration::from_secs(10);
        self.updates.recv_timeout(limit).context("no update comes")
    }
}

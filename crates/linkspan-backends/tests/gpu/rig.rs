//! A driver of a GPU in this process, which says what it is told to say, and viewers.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use linkspan_backends::display::{
    DisplayServer, GpuDevice, GpuOptions, GpuSource, Screen, Source, SourceError,
};
use linkspan_engine::{Device as _, DriverMemory, InProcess, QueueEvents, WorkerOptions, Workers};
use linkspan_mem::{Gpa, Span, Window};
use linkspan_sys::Listener;
use linkspan_sys::poll::{Direction, Wake, wait_for};
use linkspan_virtio::{Buffer, DriverQueue, Features};
use tempfile::TempDir;

/// Where commands and answers are, behind the rings; pixels of the guest come after.
const ANSWER: u64 = 8192;
pub(crate) const PIXELS: u64 = 16384;
const REST: u64 = 4 << 20;

pub(crate) const OK: u32 = 0x1100;
pub(crate) const OUT_OF_MEMORY: u32 = 0x1201;
pub(crate) const BAD_SCANOUT: u32 = 0x1202;
pub(crate) const BAD_RESOURCE: u32 = 0x1203;
pub(crate) const BAD_PARAMETER: u32 = 0x1205;
pub(crate) const UNSPECIFIED: u32 = 0x1200;

pub(crate) struct Driver {
    queues: Vec<DriverQueue<Window>>,
    events: Vec<QueueEvents>,
    _link: InProcess,
    memory: DriverMemory,
}

/// A GPU, its driver and its viewers' socket.
pub(crate) struct Rig {
    pub(crate) driver: Driver,
    _viewers: DisplayServer,
    pub(crate) device: Arc<GpuDevice>,
    pub(crate) dir: TempDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(&GpuOptions::default(), false)
    }

    pub(crate) fn with(options: &GpuOptions, packed: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let device = Arc::new(GpuDevice::new(options).unwrap());
        let listener = Listener::bind(&dir.path().join("s")).unwrap();
        let viewers = DisplayServer::start(&device, listener).unwrap();
        Self {
            driver: Driver::new(&device, packed),
            _viewers: viewers,
            device,
            dir,
        }
    }

    pub(crate) fn source(&self) -> GpuSource {
        GpuSource::connect(&self.dir.path().join("s")).unwrap()
    }

    pub(crate) fn screen(&self) -> Screen {
        Screen::new(Box::new(self.source()), 0).unwrap()
    }
}

impl Driver {
    pub(crate) fn new(device: &GpuDevice, packed: bool) -> Self {
        let mut features = device.features() | Features::SPLIT_QUEUE;
        if packed {
            features |= Features::PACKED_QUEUE;
        }
        let memory = DriverMemory::new(2, 16, REST).unwrap();
        let events: Vec<_> = (0..2).map(|_| QueueEvents::new().unwrap()).collect();
        let options = WorkerOptions {
            count: 1,
            ..WorkerOptions::default()
        };
        let workers = Arc::new(Workers::with(&options).unwrap());
        let queue = |index| memory.new_queue(index, features).unwrap();
        let queues = vec![queue(0), queue(1)];
        let link = InProcess::start(device, workers, &memory, &events, features).unwrap();
        Self {
            queues,
            events,
            _link: link,
            memory,
        }
    }

    fn place(&self, at: u64, len: u32) -> (Gpa, Span) {
        self.memory.rest(at, len).unwrap()
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        let (_, span) = self.place(at, u32::try_from(bytes.len()).unwrap());
        self.memory.memory().table().slice(span).write(bytes);
    }

    /// Says a command, and gives the answer.
    pub(crate) fn say(&mut self, queue: usize, command: &[u8], room: u32) -> Vec<u8> {
        self.write(0, command);
        let buffer = |at: u64, len: u32| Buffer {
            address: self.place(at, len).0,
            len,
        };
        let readable = [buffer(0, u32::try_from(command.len()).unwrap())];
        let writable = [buffer(ANSWER, room.max(1))];
        let writable = if room == 0 { &[][..] } else { &writable[..] };
        let driver = &mut self.queues[queue];
        driver.add(&readable, writable, None).unwrap();
        driver.publish().unwrap();
        self.events[queue].kick.signal().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !driver.arm().unwrap() {
            let call = &self.events[queue].call;
            let waited = wait_for(call.as_fd(), Direction::Read, None, Some(deadline));
            assert_eq!(waited.unwrap(), Wake::Ready, "no answer");
            call.drain().unwrap();
        }
        let used = driver.pop().unwrap().unwrap();
        let mut bytes = vec![0; used.written as usize];
        if !bytes.is_empty() {
            let (_, span) = self.place(ANSWER, used.written);
            self.memory.memory().table().slice(span).read(&mut bytes);
        }
        bytes
    }

    /// Says a command of these words, after its header, and gives the answer's type.
    pub(crate) fn command(&mut self, kind: u32, words: &[u32]) -> u32 {
        let answer = self.say(0, &bytes(kind, words), 24);
        word(&answer, 0)
    }

    #[track_caller]
    pub(crate) fn done(&mut self, kind: u32, words: &[u32]) {
        assert_eq!(self.command(kind, words), OK, "{kind:#x} {words:?}");
    }

    /// A resource with pixels behind it, at this place among the guest's pixels.
    #[track_caller]
    pub(crate) fn create(&mut self, id: u32, format: u32, (width, height): (u32, u32), at: u64) {
        self.done(0x101, &[id, format, width, height]);
        let (address, _) = self.place(PIXELS + at, width * height * 4);
        let [low, high] = halves(address.0);
        // In two pieces, of which the first is odd.
        let first = width * height * 4 / 3;
        let [low2, high2] = halves(address.0 + u64::from(first));
        let rest = width * height * 4 - first;
        self.done(0x106, &[id, 2, low, high, first, 0, low2, high2, rest, 0]);
    }

    /// Puts so many of the guest's pixels behind a resource.
    #[track_caller]
    pub(crate) fn back(&mut self, id: u32, len: u32, at: u64) {
        let [low, high] = halves(self.place(PIXELS + at, len).0.0);
        self.done(0x106, &[id, 1, low, high, len, 0]);
    }

    /// Puts the first pixel behind a resource, so often; the answer's type.
    pub(crate) fn back_in_pieces(&mut self, id: u32, count: u32) -> u32 {
        let [low, high] = halves(self.place(PIXELS, 4).0.0);
        let mut words = vec![id, count];
        (0..count).for_each(|_| words.extend([low, high, 4, 0]));
        self.command(0x106, &words)
    }

    /// Draws these pixels, and copies all of them.
    #[track_caller]
    pub(crate) fn draw(&mut self, id: u32, (width, height): (u32, u32), at: u64, pixels: &[u32]) {
        let bytes: Vec<u8> = pixels
            .iter()
            .flat_map(|pixel| pixel.to_le_bytes())
            .collect();
        self.write(PIXELS + at, &bytes);
        self.done(0x105, &[0, 0, width, height, 0, 0, id, 0]);
    }

    #[track_caller]
    pub(crate) fn show(&mut self, head: u32, id: u32, part: [u32; 4]) {
        let [x, y, width, height] = part;
        self.done(0x103, &[x, y, width, height, head, id]);
    }

    #[track_caller]
    pub(crate) fn flush(&mut self, id: u32, part: [u32; 4]) {
        let [x, y, width, height] = part;
        self.done(0x104, &[x, y, width, height, id, 0]);
    }

    /// Says something of the pointer, as Linux does: without room for an answer.
    pub(crate) fn pointer(&mut self, kind: u32, place: (i32, i32), id: u32, hot: (u32, u32)) {
        self.point_on(0, kind, place, id, hot);
    }

    /// The same, on this screen.
    pub(crate) fn point_on(
        &mut self,
        head: u32,
        kind: u32,
        place: (i32, i32),
        id: u32,
        hot: (u32, u32),
    ) {
        let (x, y) = (place.0.cast_unsigned(), place.1.cast_unsigned());
        let words = [head, x, y, 0, id, hot.0, hot.1, 0];
        assert!(self.say(1, &bytes(kind, &words), 0).is_empty());
    }

    /// The sizes of the first two screens.
    pub(crate) fn display_info(&mut self) -> [(u32, u32); 2] {
        let answer = self.say(0, &bytes(0x100, &[]), 24 + 16 * 24);
        assert_eq!((word(&answer, 0), answer.len()), (0x1101, 408));
        [0, 1].map(|head| (word(&answer, 8 + 6 * head), word(&answer, 9 + 6 * head)))
    }

    pub(crate) fn edid(&mut self, head: u32) -> Vec<u8> {
        let answer = self.say(0, &bytes(0x10A, &[head, 0]), 24 + 8 + 1024);
        assert_eq!((word(&answer, 0), answer.len()), (0x1104, 1056));
        answer[32..32 + word(&answer, 6) as usize].to_vec()
    }
}

pub(crate) fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// A command with this type.
pub(crate) fn bytes(kind: u32, words: &[u32]) -> Vec<u8> {
    let header = [kind, 0, 0, 0, 0, 0];
    let words = header.iter().chain(words);
    words.flat_map(|word| word.to_le_bytes()).collect()
}

/// A word of an answer.
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at * 4..at * 4 + 4].try_into().unwrap())
}

/// Pixels that are nowhere alike.
pub(crate) fn pattern(count: u32, seed: u32) -> Vec<u32> {
    let pixel = |n: u32| (n.wrapping_mul(0x9E37_79B1) ^ seed) & 0x00FF_FFFF;
    (0..count).map(pixel).collect()
}

/// Waits until the source says something, and looks.
pub(crate) fn look(screen: &mut Screen) -> linkspan_backends::display::Update {
    let deadline = Instant::now() + Duration::from_secs(60);
    // What was heard while an answer was waited for is not said again.
    if !screen.source().has_news() {
        let wake = screen.source().wake_fd().unwrap();
        let waited = wait_for(wake, Direction::Read, None, Some(deadline)).unwrap();
        assert_eq!(waited, Wake::Ready, "nothing is said");
    }
    screen.look().unwrap()
}

/// Looks until this is so.
#[track_caller]
pub(crate) fn until(screen: &mut Screen, is: impl Fn(&Screen) -> bool) {
    let _ = screen.look().unwrap();
    while !is(screen) {
        look(screen);
    }
}

/// What a screen shows, without opacity.
pub(crate) fn pixels(screen: &Screen) -> Vec<u32> {
    let Some(scene) = screen.scene() else {
        return Vec::new();
    };
    let pixels = scene.frame.pixels().iter();
    pixels.map(|pixel| pixel & 0x00FF_FFFF).collect()
}

/// The ids that a source names now.
pub(crate) fn ids(source: &mut GpuSource) -> Result<Vec<u32>, SourceError> {
    let planes = source.planes()?;
    Ok(planes.iter().map(|shown| shown.id).collect())
}

//! Keys and the pointer of viewers, and the size that they want, for a guest of QEMU: over
//! QEMU's monitor (QMP).
//!
//! An [`Input`] is the connection with a monitor, and a thread of its own: who looks at a
//! screen never waits for QEMU. Each viewer has a [`Seat`], which knows what it holds down,
//! and lets go of it when the viewer leaves.

mod dbus;
mod keys;
mod qmp;

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use linkspan_sys::EventFd;
use linkspan_sys::thread::spawn;

pub use qmp::{QmpError, Replies, Reply};

/// Events that may wait for QEMU. More are not taken, but for keys that are let go of.
const WAITING_MAX: usize = 4096;
/// What QEMU counts an axis to.
const AXIS_MAX: u64 = 0x7FFF;

/// Buttons in the order of their bits in RFB, with QEMU's names.
const BUTTONS: [&str; 9] = [
    "left",
    "middle",
    "right",
    "wheel-up",
    "wheel-down",
    "wheel-left",
    "wheel-right",
    "side",
    "extra",
];

/// Something that a guest is to feel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A key, by QEMU's name for it.
    Key { name: &'static str, down: bool },
    /// A button of the pointer.
    Button { name: &'static str, down: bool },
    /// The pointer is there, of [`AXIS_MAX`].
    Place { x: u16, y: u16 },
}

impl Event {
    /// Whether it is for a keyboard; a guest may have only one of both.
    fn is_key(self) -> bool {
        matches!(self, Self::Key { .. })
    }

    /// It has to come, as what it ends has come.
    fn is_end(self) -> bool {
        matches!(
            self,
            Self::Key { down: false, .. } | Self::Button { down: false, .. }
        )
    }
}

/// A size that a screen is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    head: u8,
    width: u32,
    height: u32,
}

/// What waits for QEMU.
#[derive(Debug, Default)]
struct Waiting {
    /// Whether QEMU is there.
    connected: bool,
    ending: bool,
    events: VecDeque<Event>,
    /// Keys (`true`) and buttons of which QEMU was told that they are down, and not up.
    down: BTreeSet<(bool, &'static str)>,
    /// The last one that was asked for.
    size: Option<Size>,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    wake: EventFd,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Takes an event, unless QEMU is gone or far behind.
    fn push(&self, event: Event) -> bool {
        let mut waiting = lock(&self.waiting);
        if !waiting.connected || waiting.events.len() >= WAITING_MAX && !event.is_end() {
            return false;
        }
        match (event, waiting.events.back_mut()) {
            // Only the last place counts.
            (Event::Place { .. }, Some(last @ Event::Place { .. })) => *last = event,
            _ => waiting.events.push_back(event),
        }
        drop(waiting);
        let _ = self.wake.signal();
        true
    }

    /// Takes what waits and can be told at once: a key alone, or what is for the pointer.
    fn take(&self) -> Vec<Event> {
        let mut waiting = lock(&self.waiting);
        let count = match waiting.events.front() {
            Some(event) if event.is_key() => 1,
            _ => {
                let events = waiting.events.iter();
                events.take_while(|event| !event.is_key()).count()
            }
        };
        let Waiting { events, down, .. } = &mut *waiting;
        let taken: Vec<Event> = events.drain(..count).collect();
        for event in &taken {
            let (key, name, is_down) = match *event {
                Event::Key { name, down } => (true, name, down),
                Event::Button { name, down } => (false, name, down),
                Event::Place { .. } => continue,
            };
            match is_down {
                true => down.insert((key, name)),
                false => down.remove(&(key, name)),
            };
        }
        taken
    }

    fn take_size(&self) -> Option<Size> {
        lock(&self.waiting).size.take()
    }

    fn is_ending(&self) -> bool {
        lock(&self.waiting).ending
    }

    /// QEMU is there, or not any more: what waits is for nobody then. One that is there again
    /// hears first that nothing is down: it may be the same, and have missed that.
    fn set_connected(&self, connected: bool) {
        let mut waiting = lock(&self.waiting);
        let Waiting { events, down, .. } = &mut *waiting;
        events.clear();
        if connected {
            events.extend(down.iter().map(|&(key, name)| match key {
                true => Event::Key { name, down: false },
                false => Event::Button { name, down: false },
            }));
        }
        waiting.connected = connected;
        waiting.size = None;
    }
}

/// The connection with a monitor of QEMU, for as long as this and its seats are there.
#[derive(Debug)]
pub struct Input {
    shared: Arc<Shared>,
}

impl Input {
    /// Connects to a monitor (QMP) at this socket. When QEMU goes, its next life is tried
    /// again and again.
    ///
    /// # Errors
    /// There is none, or it does not speak QMP, or no thread can be had.
    pub fn connect(path: &Path) -> Result<Self, QmpError> {
        Self::start(Some(qmp::Monitor::connect(path)?), path)
    }

    /// The same where QEMU may come later: until then what viewers do is for nobody.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn later(path: &Path) -> Result<Self, QmpError> {
        Self::start(None, path)
    }

    fn start(monitor: Option<qmp::Monitor>, path: &Path) -> Result<Self, QmpError> {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            wake: EventFd::new().map_err(QmpError::System)?,
        });
        shared.set_connected(monitor.is_some());
        let (ours, path) = (Arc::clone(&shared), path.to_owned());
        let thread = spawn("qmp-input", move || qmp::run(monitor, &path, &ours));
        thread.map_err(QmpError::System)?;
        Ok(Self { shared })
    }

    /// Has QEMU tell the guest another size of a screen, by its D-Bus display; `false` if QEMU
    /// is gone. Whether the guest takes it is to be seen on the screen.
    pub fn resize(&self, head: u8, width: u32, height: u32) -> bool {
        let mut waiting = lock(&self.shared.waiting);
        if !waiting.connected {
            return false;
        }
        waiting.size = Some(Size {
            head,
            width,
            height,
        });
        drop(waiting);
        self.shared.wake.signal().is_ok()
    }

    /// The keyboard and pointer of a viewer.
    #[must_use]
    pub fn seat(&self) -> Seat {
        Seat {
            shared: Arc::clone(&self.shared),
            keys: BTreeSet::new(),
            buttons: 0,
        }
    }
}

impl Drop for Input {
    /// Nobody waits for the thread.
    fn drop(&mut self) {
        lock(&self.shared.waiting).ending = true;
        let _ = self.shared.wake.signal();
    }
}

/// The keyboard and pointer of one viewer.
pub struct Seat {
    shared: Arc<Shared>,
    /// Keys that are down.
    keys: BTreeSet<&'static str>,
    /// A bit for each button that is down.
    buttons: u16,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("keys", &self.keys.len())
            .field("buttons", &self.buttons)
            .finish_non_exhaustive()
    }
}

impl Seat {
    /// A key, by its X11 keysym, goes down or up. Those that no keyboard has are dropped.
    ///
    /// The guest gets keys, not letters, and has a layout of its own; the table is that of
    /// an American keyboard. A letter that needs the shift key gets it, if it is not down.
    pub fn keysym(&mut self, down: bool, keysym: u32) {
        let Some((key, shifted)) = keys::of_keysym(keysym) else {
            return;
        };
        let shift = down && shifted && !keys::SHIFTS.iter().any(|key| self.keys.contains(key));
        let name = keys::SHIFTS[0];
        if shift && !self.shared.push(Event::Key { name, down: true }) {
            return;
        }
        self.key(down, key.qcode);
        if shift {
            self.shared.push(Event::Key { name, down: false });
        }
    }

    /// A key, by its place on the keyboard (the DOM's `KeyboardEvent.code`), goes down or up.
    pub fn code(&mut self, down: bool, code: &str) {
        if let Some(key) = keys::of_code(code) {
            self.key(down, key.qcode);
        }
    }

    fn key(&mut self, down: bool, name: &'static str) {
        // One that goes down again is one that repeats.
        if down {
            if self.shared.push(Event::Key { name, down }) {
                self.keys.insert(name);
            }
        } else if self.keys.remove(name) {
            self.shared.push(Event::Key { name, down });
        }
    }

    /// The pointer is at this pixel of a screen of this size, and these buttons are down: a
    /// bit for each, as in RFB (left, middle, right, and four of the wheel).
    pub fn pointer(&mut self, buttons: u16, place: (u32, u32), size: (u32, u32)) {
        let axis = |at: u32, length: u32| {
            let last = u64::from(length.saturating_sub(1)).max(1);
            let at = u64::from(at).min(last);
            // Upwards, so that a guest that rounds down finds the same pixel.
            u16::try_from((at * AXIS_MAX).div_ceil(last)).unwrap_or(0)
        };
        let (x, y) = (axis(place.0, size.0), axis(place.1, size.1));
        self.shared.push(Event::Place { x, y });
        for (bit, name) in BUTTONS.iter().enumerate() {
            let mask = 1 << bit;
            let down = buttons & mask != 0;
            let changed = (buttons ^ self.buttons) & mask != 0;
            if changed && self.shared.push(Event::Button { name, down }) {
                self.buttons ^= mask;
            }
        }
    }
}

impl Seat {
    /// Lets go of all that is down: nobody is there.
    pub fn let_go(&mut self) {
        for name in std::mem::take(&mut self.keys) {
            let down = false;
            self.shared.push(Event::Key { name, down });
        }
        let buttons = std::mem::take(&mut self.buttons);
        for (bit, name) in BUTTONS.iter().enumerate() {
            let down = false;
            if buttons & 1 << bit != 0 {
                self.shared.push(Event::Button { name, down });
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.let_go();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Arc<Shared> {
        let shared = Shared {
            waiting: Mutex::default(),
            wake: EventFd::new().unwrap(),
        };
        shared.set_connected(true);
        Arc::new(shared)
    }

    fn input() -> Input {
        Input { shared: shared() }
    }

    fn taken(input: &Input) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let events = input.shared.take();
            if events.is_empty() {
                return all;
            }
            all.extend(events.iter().map(|event| match event {
                Event::Key { name, down } => format!("{name} {down}"),
                Event::Button { name, down } => format!("button {name} {down}"),
                Event::Place { x, y } => format!("at {x} {y}"),
            }));
        }
    }

    #[test]
    fn letters_become_keys_with_shift_where_it_is_needed() {
        let input = input();
        let mut seat = input.seat();
        seat.keysym(true, 0x41);
        seat.keysym(false, 0x41);
        assert_eq!(
            taken(&input),
            ["shift true", "a true", "shift false", "a false"]
        );
        // A client that says the shift key itself.
        for (down, keysym) in [(true, 0xFFE2), (true, 0x21), (false, 0x21), (false, 0xFFE2)] {
            seat.keysym(down, keysym);
        }
        assert_eq!(
            taken(&input),
            ["shift_r true", "1 true", "1 false", "shift_r false"]
        );
        // What goes up was down before, and what is no key is nothing.
        seat.keysym(false, 0x62);
        seat.keysym(true, 0x0100_20AC);
        seat.code(true, "Nowhere");
        assert!(taken(&input).is_empty());
        seat.code(true, "KeyZ");
        seat.code(true, "KeyZ");
        seat.code(false, "KeyZ");
        assert_eq!(taken(&input), ["z true", "z true", "z false"]);
    }

    /// A viewer that goes leaves no key down: QEMU's guests would see it repeat for ever.
    #[test]
    fn who_leaves_lets_go() {
        let input = input();
        let mut seat = input.seat();
        seat.keysym(true, 0xFFE3);
        seat.code(true, "KeyC");
        seat.pointer(0b101, (0, 0), (100, 100));
        drop(taken(&input));
        drop(seat);
        assert_eq!(
            taken(&input),
            [
                "c false",
                "ctrl false",
                "button left false",
                "button right false"
            ]
        );
    }

    #[test]
    fn the_pointer_goes_from_edge_to_edge() {
        let input = input();
        let mut seat = input.seat();
        for (place, size, wanted) in [
            ((0, 0), (1280, 800), "at 0 0"),
            ((1279, 799), (1280, 800), "at 32767 32767"),
            ((5000, u32::MAX), (1280, 800), "at 32767 32767"),
            ((0, 0), (1, 1), "at 0 0"),
            ((7, 7), (0, 0), "at 32767 32767"),
        ] {
            seat.pointer(0, place, size);
            assert_eq!(taken(&input), [wanted]);
        }
        // Only the last place waits, and buttons keep theirs.
        seat.pointer(0, (1, 1), (3, 3));
        seat.pointer(1, (2, 2), (3, 3));
        seat.pointer(0, (0, 0), (3, 3));
        assert_eq!(
            taken(&input),
            [
                "at 32767 32767",
                "button left true",
                "at 0 0",
                "button left false"
            ]
        );
        // A wheel has no state: each turn is down and up.
        seat.pointer(8, (0, 0), (3, 3));
        seat.pointer(0, (0, 0), (3, 3));
        let all = taken(&input);
        assert_eq!(all[1], "button wheel-up true");
        assert_eq!(all[3], "button wheel-up false");
    }

    /// A monitor that was silent for a while may be that of the same guest, in which a key
    /// would repeat for ever.
    #[test]
    fn what_was_down_when_qemu_went_is_up_when_it_comes() {
        let input = input();
        let mut seat = input.seat();
        seat.keysym(true, 0xFFE3);
        seat.pointer(1, (0, 0), (3, 3));
        seat.code(true, "KeyC");
        seat.code(false, "KeyC");
        drop(taken(&input));
        // Of this it is not told.
        seat.code(true, "KeyZ");
        seat.keysym(false, 0xFFE3);
        input.shared.set_connected(false);
        drop(seat);
        assert!(taken(&input).is_empty());
        input.shared.set_connected(true);
        assert_eq!(taken(&input), ["button left false", "ctrl false"]);
        input.shared.set_connected(false);
        input.shared.set_connected(true);
        assert!(taken(&input).is_empty());
    }

    /// QEMU that does not answer makes nothing grow, and no key stay down.
    #[test]
    fn no_more_waits_than_may() {
        let input = input();
        let mut seat = input.seat();
        for _ in 0..10_000 {
            seat.keysym(true, 0x61);
            seat.keysym(true, 0x42);
            seat.pointer(1, (1, 1), (9, 9));
            seat.pointer(0, (2, 1), (9, 9));
        }
        drop(seat);
        let waiting = lock(&input.shared.waiting).events.len();
        assert!(waiting <= WAITING_MAX + 16, "{waiting}");
        let all = taken(&input);
        for name in ["a", "b", "shift", "button left"] {
            let of = format!("{name} ");
            let last = all.iter().rfind(|event| event.starts_with(&of));
            assert_eq!(last, Some(&format!("{name} false")));
        }
        input.shared.set_connected(false);
        let mut seat = input.seat();
        seat.keysym(true, 0x61);
        assert!(taken(&input).is_empty() && seat.keys.is_empty());
    }
}

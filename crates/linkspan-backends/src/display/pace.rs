//! How often a screen is looked at.

use std::io;
use std::time::{Duration, Instant};

use linkspan_sys::Epoll;
use linkspan_sys::poll::Interest;

use super::screen::{Screen, Update};
use super::source::SourceError;

/// From one look to the next while there is something to see: 60 a second.
const LOOK: Duration = Duration::from_micros(16_600);
/// The same once nothing has changed for so long, at one line of the picture in [`STEP`]. A line of text, or
/// anything as high, is seen at once, unless lines are rows of tiles; a film of 24 pictures a second is looked at as a whole.
const CALMER: [(Duration, Duration); 3] = [
    (Duration::from_millis(100), LOOK),
    (Duration::from_secs(1), Duration::from_millis(33)),
    (Duration::from_secs(2), Duration::from_millis(125)),
];
/// A calm screen costs this part of what reading all of it does, and its change is seen four times
/// as soon as it would be for the same work.
const STEP: usize = 4;
/// From one look to the next when the last one failed.
pub(super) const REST: Duration = Duration::from_millis(250);
/// From one check to the next while nobody looks.
const CHECK: Duration = Duration::from_secs(1);

/// When the next look is due. A source that says when something has changed is looked at
/// then, and not more often than others; others are asked, the less often the longer they are calm.
#[derive(Debug)]
pub(super) struct Pace {
    tells: bool,
    looked: Instant,
    /// When something had changed last, or was about to.
    changed: Instant,
    told: bool,
    /// The last look failed, and nobody may say when another one would not.
    failed: bool,
}

impl Pace {
    /// That of this screen. A source that tells is watched with this token, and to be
    /// [told](Self::tell) of.
    pub(super) fn of(screen: &Screen, epoll: &Epoll, token: u64) -> io::Result<Self> {
        let wake = screen.source().wake_fd();
        if let Some(wake) = wake {
            // Told once for each change: one that has ended stays readable for ever.
            epoll.add(wake, token, Interest::READ.edge())?;
        }
        Ok(Self::new(wake.is_some(), Instant::now()))
    }

    /// The first look is due now.
    fn new(tells: bool, now: Instant) -> Self {
        Self {
            tells,
            looked: now.checked_sub(LOOK).unwrap_or(now),
            changed: now,
            told: true,
            failed: false,
        }
    }

    /// The source says that something has changed.
    pub(super) fn tell(&mut self) {
        self.told = true;
    }

    /// A viewer has used the guest's keyboard or pointer, so that something will change soon.
    pub(super) fn expect(&mut self, now: Instant) {
        self.changed = now;
    }

    /// Looks, if that is due.
    ///
    /// # Errors
    /// As [`Screen::look`].
    pub(super) fn look(
        &mut self,
        screen: &mut Screen,
        now: Instant,
    ) -> Result<Option<Update>, SourceError> {
        if self.due().is_none_or(|due| due > now) {
            return Ok(None);
        }
        let update = match self.calmer() {
            None => screen.look()?,
            Some(_) => screen.glance(STEP)?,
        };
        self.looked(now, !update.is_empty());
        // What was heard meanwhile is not told again, and a failure may pass.
        self.told = screen.source().has_news();
        self.failed = screen.has_failed();
        Ok(Some(update))
    }

    /// Has the source checked, if that is due: while nobody looks.
    ///
    /// # Errors
    /// As [`Screen::check`].
    pub(super) fn check(&mut self, screen: &mut Screen, now: Instant) -> Result<(), SourceError> {
        if self.check_due(screen).is_some_and(|due| due <= now) {
            self.looked = now;
            screen.check()?;
        }
        Ok(())
    }

    /// When that is due; `None`: never.
    pub(super) fn check_due(&self, screen: &Screen) -> Option<Instant> {
        screen.source().needs_checks().then(|| self.looked + CHECK)
    }

    /// The source was looked at.
    fn looked(&mut self, now: Instant, changed: bool) {
        self.looked = now;
        self.told = false;
        self.failed = false;
        if changed {
            self.changed = now;
        }
    }

    /// When the next look is due; `None`: when the source says so.
    pub(super) fn due(&self) -> Option<Instant> {
        let pause = match (self.tells, self.told) {
            (true, false) if self.failed => REST,
            (true, false) => return None,
            (true, true) => LOOK,
            (false, _) => self.calmer().unwrap_or(LOOK),
        };
        Some(self.looked + pause)
    }

    /// From one look to the next of a screen that has been calm; `None` of another one, and of one that tells.
    fn calmer(&self) -> Option<Duration> {
        let calm = self.looked.saturating_duration_since(self.changed);
        let mut calmer = CALMER.iter().rev().filter(|_| !self.tells);
        calmer
            .find(|(after, _)| calm > *after)
            .map(|(_, pause)| *pause)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::BorrowedFd;
    use std::os::unix::fs::FileExt as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use linkspan_display::{FourCc, Kind, Modifier, Plane, Position, Surface};
    use linkspan_sys::memfd::{self, Sealing};
    use linkspan_sys::{EventFd, PeerMemory, View};

    use super::*;
    use crate::display::source::{Change, Memory, Shown, Source};

    const LINES: u32 = 16;
    const BYTES: u64 = LINES as u64 * 4096;

    /// A screen that never changes by itself, and how often it was asked.
    struct Still {
        memory: Memory,
        asked: Arc<AtomicU32>,
        /// Of one that says when something changes.
        wake: Option<EventFd>,
        fresh: bool,
    }

    impl Source for Still {
        fn name(&self) -> String {
            "still".into()
        }

        fn planes(&mut self) -> Result<Vec<Shown>, SourceError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let surface = Surface {
                format: FourCc::XRGB8888,
                modifier: Modifier::LINEAR,
                width: 1024,
                height: LINES,
                stride: 4096,
                offset: 0,
                x: 0,
                y: 0,
            };
            let plane = Plane {
                surface,
                size: BYTES,
                position: Position::default(),
                hot_spot: None,
            };
            Ok(vec![Shown {
                head: 0,
                kind: Kind::Primary,
                id: 1,
                plane,
                content: 0,
            }])
        }

        fn memory(&mut self, _: &Shown) -> Result<Memory, SourceError> {
            Ok(self.memory.clone())
        }

        fn change(&mut self) -> Change {
            match (&self.wake, std::mem::take(&mut self.fresh)) {
                (Some(_), false) => Change::None,
                _ => Change::Compare,
            }
        }

        fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
            use std::os::fd::AsFd as _;
            self.wake.as_ref().map(EventFd::as_fd)
        }

        fn needs_checks(&self) -> bool {
            self.wake.is_none()
        }

        fn check(&mut self) -> Result<(), SourceError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }

        fn resize(&mut self, _: u8, _: u32, _: u32) -> Result<(), SourceError> {
            Err(SourceError::Unsupported("it is still".into()))
        }
    }

    /// How often the picture is compared in ten seconds, by a clock that is turned; or the
    /// source checked, when nobody looks.
    fn looks(wake: Option<EventFd>, seen: bool) -> u32 {
        let file = memfd::create("still", BYTES, Sealing::Fixed).unwrap();
        let file = PeerMemory::check(file).unwrap();
        let asked = Arc::new(AtomicU32::new(0));
        let tells = wake.is_some();
        let source = Still {
            memory: View::of_peer(&file, 0, BYTES).unwrap().into(),
            asked: Arc::clone(&asked),
            wake,
            fresh: true,
        };
        let mut screen = Screen::new(Box::new(source), 0).unwrap();
        let start = Instant::now();
        let mut pace = Pace::new(tells, start);
        for millisecond in 0..10_000 {
            let now = start + Duration::from_millis(millisecond);
            if !seen {
                pace.check(&mut screen, now).unwrap();
                continue;
            }
            let update = pace.look(&mut screen, now).unwrap();
            assert!(millisecond == 0 || update.is_none_or(Update::is_empty));
        }
        asked.load(Ordering::Relaxed)
    }

    /// 60 a second for a second, half of that for another one, and then eight, of one that does not
    /// tell; one look of one that does.
    #[test]
    fn a_screen_that_does_not_change_is_hardly_looked_at() {
        let silent = looks(None, true);
        assert!((145..=160).contains(&silent), "{silent}");
        let telling = looks(Some(EventFd::new().unwrap()), true);
        assert_eq!(telling, 1);
        // While nobody looks a device is asked once a second whether it is there.
        let checked = looks(None, false);
        assert!((9..=10).contains(&checked), "{checked}");
        assert_eq!(looks(Some(EventFd::new().unwrap()), false), 0);
    }

    /// A calm screen is not read whole; what is as high as a line of text is seen at once, what is
    /// less within four glances, and then all that has changed.
    #[test]
    fn a_glance_misses_nothing_for_long() {
        let file = memfd::create("still", BYTES, Sealing::Fixed).unwrap();
        let memory = fs::File::from(file.try_clone().unwrap());
        let file = PeerMemory::check(file).unwrap();
        let source = Still {
            memory: View::of_peer(&file, 0, BYTES).unwrap().into(),
            asked: Arc::default(),
            wake: None,
            fresh: true,
        };
        let mut screen = Screen::new(Box::new(source), 0).unwrap();
        assert!(screen.look().unwrap().resized);
        assert!(screen.glance(STEP).unwrap().is_empty());
        let pixel = |screen: &Screen, line: u32| screen.scene().unwrap().frame.line(line, 7, 1)[0];
        let paint = |line: u32, value: u8| {
            memory
                .write_all_at(&[value; 4], u64::from(line) * 4096 + 28)
                .unwrap();
        };
        for line in 0..LINES {
            paint(line, 1);
            let seen = (0..STEP)
                .filter(|_| screen.glance(STEP).unwrap().damaged)
                .count();
            assert_eq!((seen, pixel(&screen, line)), (1, 0xFF01_0101));
        }
        let high = 5..5 + u32::try_from(STEP).unwrap();
        for line in high.clone() {
            paint(line, 2);
        }
        assert!(screen.glance(STEP).unwrap().damaged);
        for line in high {
            assert_eq!(pixel(&screen, line), 0xFF02_0202, "{line}");
        }
    }

    #[test]
    fn who_tells_is_not_asked() {
        let start = Instant::now();
        let mut pace = Pace::new(true, start);
        assert!(pace.due().is_some_and(|due| due <= start));
        pace.looked(start, true);
        assert_eq!(pace.due(), None);
        pace.tell();
        assert_eq!(pace.due(), Some(start + LOOK));
        // But for a look that failed, once more after a rest.
        pace.looked(start, true);
        pace.failed = true;
        assert_eq!(pace.due(), Some(start + REST));
        pace.looked(start, true);
        assert_eq!(pace.due(), None);
    }

    #[test]
    fn who_is_calm_is_asked_seldom() {
        let start = Instant::now();
        let mut pace = Pace::new(false, start);
        pace.looked(start, true);
        assert_eq!(pace.due(), Some(start + LOOK));
        assert_eq!(pace.calmer(), None);
        let later = start + Duration::from_secs(3);
        pace.looked(later, false);
        assert_eq!(pace.due(), Some(later + Duration::from_millis(125)));
        pace.looked(later, true);
        assert_eq!(pace.due(), Some(later + LOOK));
    }

    /// Within 1/60 s, the work left out, if that is within a second of the change before.
    #[test]
    fn what_moves_is_seen_soon() {
        let start = Instant::now();
        let mut pace = Pace::new(false, start);
        pace.looked(start, true);
        // Of the work of looking at all of it, in quarters.
        let (mut work, mut now) = (0, start);
        while now < start + Duration::from_secs(2) {
            let due = pace.due().unwrap();
            if now <= start + Duration::from_secs(1) {
                assert_eq!(due - now, LOOK);
            }
            now = due;
            work += if pace.calmer().is_none() { 4 } else { 1 };
            pace.looked(now, false);
        }
        // Less than a quarter of 60 looks a second.
        assert!(work < 2 * 60, "{work}");
        // A film is looked at as a whole.
        let mut pace = Pace::new(false, start);
        pace.looked(start, true);
        for _ in 0..5 {
            now = pace.due().unwrap();
            assert_eq!(pace.calmer(), None);
            pace.looked(now, false);
        }
        assert_eq!(now, start + 5 * LOOK);
    }

    #[test]
    fn after_a_key_one_looks_at_once() {
        let start = Instant::now();
        let mut pace = Pace::new(false, start);
        let later = start + Duration::from_secs(3);
        pace.looked(later, false);
        let key = later + Duration::from_millis(20);
        pace.expect(key);
        assert!(pace.due().is_some_and(|due| due <= key));
        pace.looked(key, false);
        assert_eq!(pace.due(), Some(key + LOOK));
    }
}

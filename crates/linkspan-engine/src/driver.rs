//! What a driver has of a device, over any transport: memory that both see, and
//! queues with their descriptors.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};

use linkspan_mem::{Gpa, GuestMemory, Region, Span, SplitRing, UserVa, Window};
use linkspan_sys::vdpa::Doorbell;
use linkspan_sys::{EventFd, PeerMemory, memfd};
use linkspan_virtio::{DriverQueue, Features, QueueLayout, StartError};

use crate::worker::signal;

/// Where the memory begins for the device. Not zero, so that an address that
/// was never set is not one of ours.
const GUEST_BASE: u64 = 0x1_0000_0000;

/// Where the memory begins for the messages that carry ring addresses. Another
/// number than the one above, so that mixing them up cannot go unnoticed.
const USER_BASE: u64 = 0x7000_0000_0000;

/// What rings and areas are aligned to: a cache line of any processor, and more
/// than any part of a ring asks for.
const ALIGN: u64 = 256;

/// Memory that a driver shares with its device: first the rings, then the rest,
/// which is the driver's to use. One file, sealed, so that the device need not
/// fear that it shrinks.
#[derive(Debug)]
pub struct DriverMemory {
    fd: OwnedFd,
    memory: Arc<GuestMemory>,
    rings: Vec<RingPlace>,
    rest: u64,
}

/// Where the parts of a ring are, as distances from the start of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPlace {
    /// Entries.
    pub size: u16,
    /// Descriptor area.
    pub descriptor: u64,
    /// Driver area: the available ring.
    pub driver: u64,
    /// Device area: the used ring.
    pub device: u64,
}

impl DriverMemory {
    /// Memory for `queues` rings of `size` entries and `rest` bytes beside.
    ///
    /// # Errors
    /// When the system refuses a file or a mapping of that size.
    pub fn new(queues: u16, size: u16, rest: u64) -> io::Result<Self> {
        let mut end = 0;
        let mut place = |len: usize| {
            let at = end;
            end = (end + len as u64).next_multiple_of(ALIGN);
            at
        };
        // Those of a packed ring are never larger.
        let [descriptors, driver, device] = QueueLayout::Split.part_lens(size);
        let rings = (0..queues).map(|_| RingPlace {
            size,
            descriptor: place(descriptors),
            driver: place(driver),
            device: place(device),
        });
        let rings = rings.collect();
        // Whole pages, so that the rest can be used for direct I/O.
        let start = end.next_multiple_of(4096);
        let len = start
            .checked_add(rest)
            .and_then(|len| len.checked_next_multiple_of(4096))
            .ok_or(io::ErrorKind::InvalidInput)?;
        let fd = memfd::create("linkspan-driver", len, memfd::Sealing::Fixed)?;
        let file = PeerMemory::check(fd.try_clone()?).map_err(io::Error::other)?;
        let mapping = file.map(0, len, None).map_err(io::Error::other)?;
        let region = Region::new(Arc::new(mapping));
        let memory = GuestMemory::new(vec![(region, Gpa(GUEST_BASE), UserVa(USER_BASE))])
            .map_err(io::Error::other)?;
        Ok(Self {
            fd,
            memory: Arc::new(memory),
            rings,
            rest: start,
        })
    }

    /// The memory as both sides address it.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        self.memory.table().regions()[0].len() as u64
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it begins for the device.
    pub fn guest_base(&self) -> Gpa {
        Gpa(GUEST_BASE)
    }

    /// Where it begins in messages that carry ring addresses.
    pub fn user_base(&self) -> UserVa {
        UserVa(USER_BASE)
    }

    /// Where the rings are.
    pub fn rings(&self) -> &[RingPlace] {
        &self.rings
    }

    /// Entries of queue `index`.
    ///
    /// # Panics
    /// When there is no such queue.
    pub fn size(&self, index: u16) -> u16 {
        self.rings[usize::from(index)].size
    }

    /// Descriptor, driver and device area of queue `index`, for either side.
    ///
    /// # Panics
    /// When there is no such queue.
    pub fn parts(&self, index: u16, layout: QueueLayout) -> [Window; 3] {
        let place = self.rings[usize::from(index)];
        let region = &self.memory.table().regions()[0];
        let window = |at, len| region.window(at, len).expect("the ring was laid out in it");
        let [descriptors, driver, device] = layout.part_lens(place.size);
        [
            window(place.descriptor, descriptors),
            window(place.driver, driver),
            window(place.device, device),
        ]
    }

    /// Queue `index` as a split ring, to see where it stands.
    ///
    /// # Panics
    /// When there is no such queue.
    pub fn ring(&self, index: u16) -> SplitRing<Window> {
        let [descriptors, driver, device] = self.parts(index, QueueLayout::Split);
        SplitRing::new(descriptors, driver, device, self.size(index))
            .expect("the ring was laid out for its size")
    }

    /// The driver's side of queue `index`, whose ring is all zero.
    ///
    /// # Errors
    /// When private memory cannot be had.
    ///
    /// # Panics
    /// When there is no such queue.
    pub fn new_queue(
        &self,
        index: u16,
        features: Features,
    ) -> Result<DriverQueue<Window>, StartError> {
        let layout = QueueLayout::of(features);
        let parts = self.parts(index, layout);
        DriverQueue::new(parts, self.size(index), features, layout.start())
    }

    /// Puts zeroes where the ring of queue `index` is, as a driver does before
    /// it starts it.
    pub fn clear_ring(&self, index: u16) {
        let place = self.rings[usize::from(index)];
        let [.., device] = QueueLayout::Split.part_lens(place.size);
        let end = place.device + device as u64;
        let region = &self.memory.table().regions()[0];
        let mut at = place.descriptor;
        while at < end {
            let len = (end - at).min(ZEROES.len() as u64);
            if let Ok(slice) = region.slice(at, len) {
                slice.write(&ZEROES);
            }
            at += len;
        }
    }

    /// `len` bytes at distance `at` into the part behind the rings: the address
    /// for the device and the place for the driver. `None` when it is not there.
    pub fn rest(&self, at: u64, len: u32) -> Option<(Gpa, Span)> {
        let address = Gpa(GUEST_BASE.checked_add(self.rest)?.checked_add(at)?);
        let mut spans = [Span::default()];
        self.memory
            .guest
            .resolve(address, len, |span| spans[0] = span)
            .ok()?;
        Some((address, spans[0]))
    }
}

impl AsFd for DriverMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const ZEROES: [u8; 4096] = [0; 4096];

/// The descriptors by which a driver and its device wake each other, for one
/// queue. They stay the same when the device is replaced.
#[derive(Clone, Debug)]
pub struct QueueEvents {
    /// The driver made something available.
    pub kick: Arc<EventFd>,
    /// The device used something.
    pub call: Arc<EventFd>,
}

impl QueueEvents {
    /// A new pair.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            kick: Arc::new(EventFd::new()?),
            call: Arc::new(EventFd::new()?),
        })
    }
}

/// A queue's end of its link: how the thread that drives the queue hears of what
/// becomes of the device.
#[derive(Debug)]
pub struct QueueLink {
    /// The descriptors of the queue.
    pub events: QueueEvents,
    /// A page of the device, if kicks can go there instead.
    doorbell: Option<Arc<Doorbell>>,
    attention: Arc<AtomicBool>,
    news: Receiver<News>,
    parked: Sender<()>,
    bell: Arc<OnceLock<Arc<EventFd>>>,
}

/// The link's end of a queue.
#[derive(Debug)]
pub struct QueueHandle {
    /// The descriptors of the queue.
    pub events: QueueEvents,
    attention: Arc<AtomicBool>,
    news: Sender<News>,
    parked: Receiver<()>,
    bell: Arc<OnceLock<Arc<EventFd>>>,
}

#[derive(Debug)]
enum News {
    Doorbell(Arc<Doorbell>),
    Lost,
    Resumed(Resumed),
    Ended(Arc<str>),
}

/// What became of a device that was lost and came back. Of several times in a
/// row the greatest counts: who begins anew once cannot go on afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resumed {
    /// It goes on where the other one ended: whatever was under way is answered.
    Continued,
    /// It knows nothing of what was under way: the ring is empty and begins anew.
    Fresh,
}

/// A link that is over for good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the link to the device has ended: {reason}")]
pub struct LinkEnded {
    /// Why.
    pub reason: Arc<str>,
}

/// Joins a queue and its link.
///
/// # Errors
/// When no descriptor can be had.
pub fn queue_link() -> io::Result<(QueueLink, QueueHandle)> {
    let events = QueueEvents::new()?;
    let attention = Arc::new(AtomicBool::new(false));
    let (news, news_received) = mpsc::channel();
    let (parked, parked_received) = mpsc::channel();
    let bell = Arc::new(OnceLock::new());
    let link = QueueLink {
        events: events.clone(),
        doorbell: None,
        attention: Arc::clone(&attention),
        news: news_received,
        parked,
        bell: Arc::clone(&bell),
    };
    let handle = QueueHandle {
        events,
        attention,
        news,
        parked: parked_received,
        bell,
    };
    Ok((link, handle))
}

impl QueueLink {
    /// Wakes the device, which finds what was published.
    ///
    /// # Errors
    /// When the descriptor of ours fails.
    #[inline]
    pub fn kick(&self) -> io::Result<()> {
        match &self.doorbell {
            Some(doorbell) => {
                doorbell.kick();
                Ok(())
            }
            None => self.events.kick.signal(),
        }
    }

    /// Whether the link has news: one relaxed load, for every pass.
    #[inline]
    pub fn has_news(&self) -> bool {
        self.attention.load(Ordering::Relaxed)
    }

    /// Takes in the news. When the device was lost this waits until there is one
    /// again, and says how it goes on; the ring must not be touched meanwhile,
    /// so call it from the thread that drives the queue.
    ///
    /// # Errors
    /// When there will be no device any more.
    pub fn take_news(&mut self) -> Result<Option<Resumed>, LinkEnded> {
        // With `tell`: news whose flag is taken here are in the channel by now.
        self.attention.swap(false, Ordering::Acquire);
        let mut resumed = None;
        while let Ok(news) = self.news.try_recv() {
            match news {
                News::Doorbell(doorbell) => self.doorbell = Some(doorbell),
                News::Lost => resumed = resumed.max(Some(self.park()?)),
                News::Resumed(_) => {}
                News::Ended(reason) => return Err(LinkEnded { reason }),
            }
        }
        Ok(resumed)
    }

    fn park(&mut self) -> Result<Resumed, LinkEnded> {
        let gone = || LinkEnded {
            reason: "its thread is gone".into(),
        };
        loop {
            self.doorbell = None;
            self.parked.send(()).map_err(|_| gone())?;
            if let Some(bell) = self.bell.get() {
                signal(bell);
            }
            loop {
                match self.news.recv().map_err(|_| gone())? {
                    News::Doorbell(doorbell) => self.doorbell = Some(doorbell),
                    News::Resumed(resumed) => return Ok(resumed),
                    News::Ended(reason) => return Err(LinkEnded { reason }),
                    News::Lost => break,
                }
            }
        }
    }
}

impl QueueHandle {
    /// Tells the queue that its device is gone. It parks when its thread next
    /// looks: at once if it waits for the device, or much later, or never.
    pub fn lost(&self) {
        self.tell(News::Lost);
    }

    /// Waits until the queue does not touch its ring any more; false when its
    /// driver is gone.
    pub fn wait_parked(&self) -> bool {
        self.parked.recv().is_ok()
    }

    /// Whether the queue has come to touch its ring no more since this was last
    /// asked.
    pub(crate) fn has_parked(&self) -> bool {
        self.parked.try_recv().is_ok()
    }

    /// Has this signalled whenever the queue parks. The first one counts.
    pub(crate) fn signal_when_parked(&self, bell: &Arc<EventFd>) {
        self.bell.get_or_init(|| Arc::clone(bell));
    }

    /// Kicks go here until the device is lost.
    pub(crate) fn give_doorbell(&self, doorbell: &Arc<Doorbell>) {
        self.tell(News::Doorbell(Arc::clone(doorbell)));
    }

    /// Tells a parked queue that it has a device again.
    pub fn resumed(&self, resumed: Resumed) {
        self.tell(News::Resumed(resumed));
    }

    /// Tells the queue that there will be no device any more.
    pub fn ended(&self, reason: &Arc<str>) {
        self.tell(News::Ended(Arc::clone(reason)));
    }

    fn tell(&self, news: News) {
        // A driver that is gone needs no news.
        if self.news.send(news).is_ok() {
            self.attention.store(true, Ordering::Release);
            signal(&self.events.call);
        }
    }
}

impl Drop for QueueHandle {
    fn drop(&mut self) {
        self.ended(&"the link was closed".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_and_rest_are_apart_and_inside() {
        let memory = DriverMemory::new(3, 128, 1 << 20).unwrap();
        let mut ends = vec![0];
        for place in memory.rings() {
            assert!(place.descriptor >= *ends.last().unwrap());
            assert!(place.driver >= place.descriptor + 128 * 16);
            assert!(place.device >= place.driver + 6 + 2 * 128);
            ends.push(place.device + 6 + 8 * 128);
        }
        let (address, span) = memory.rest(0, 1 << 20).unwrap();
        assert!(address.0 >= GUEST_BASE + ends.last().unwrap());
        assert_eq!(span.len(), 1 << 20);
        assert!(memory.rest(memory.len(), 1).is_none());
        assert!(memory.rest(u64::MAX, 1).is_none());
    }

    #[test]
    fn a_cleared_ring_is_empty_and_its_neighbours_are_not() {
        let memory = DriverMemory::new(2, 256, 4096).unwrap();
        for index in 0..2 {
            memory.ring(index).publish_available_index(7);
            memory.ring(index).set_available_event(9);
        }
        memory.clear_ring(0);
        assert_eq!(memory.ring(0).available_index(), 0);
        assert_eq!(memory.ring(0).available_event(), 0);
        assert_eq!(memory.ring(1).available_index(), 7);
        assert_eq!(memory.ring(1).available_event(), 9);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn kicks_go_to_the_page_of_the_device_as_long_as_there_is_one() {
        let page = memfd::create(
            "page",
            linkspan_sys::vdpa::page_size(),
            memfd::Sealing::Fixed,
        );
        let page = page.unwrap();
        let (mut link, handle) = queue_link().unwrap();
        link.kick().unwrap();
        assert_eq!(link.events.kick.drain().unwrap(), 1);
        let doorbell = Arc::new(Doorbell::map(&page, 0).unwrap());
        handle.give_doorbell(&doorbell);
        assert!(link.has_news());
        assert_eq!(link.take_news(), Ok(None));
        link.kick().unwrap();
        assert_eq!(link.events.kick.drain().unwrap(), 0);
        handle.lost();
        handle.resumed(Resumed::Fresh);
        assert_eq!(link.take_news(), Ok(Some(Resumed::Fresh)));
        assert_eq!(Arc::strong_count(&doorbell), 1, "it went with the device");
        link.kick().unwrap();
        assert_eq!(link.events.kick.drain().unwrap(), 1);
        handle.lost();
        handle.give_doorbell(&doorbell);
        handle.resumed(Resumed::Fresh);
        assert_eq!(link.take_news(), Ok(Some(Resumed::Fresh)));
        link.kick().unwrap();
        assert_eq!(link.events.kick.drain().unwrap(), 0);
    }

    /// The second device goes on where the first one was; the first knew nothing,
    /// and the queue hears of both at once.
    #[test]
    fn a_fresh_device_is_not_forgotten_over_a_second_one() {
        let (mut link, handle) = queue_link().unwrap();
        for resumed in [Resumed::Continued, Resumed::Fresh, Resumed::Continued] {
            handle.lost();
            handle.resumed(resumed);
        }
        assert!(link.has_news());
        assert_eq!(link.take_news(), Ok(Some(Resumed::Fresh)));
        assert_eq!(link.take_news(), Ok(None));
        for _ in 0..3 {
            assert!(handle.has_parked(), "it parks for each of them");
        }
        assert!(!handle.has_parked());
        handle.lost();
        handle.ended(&"test".into());
        let reason = "test".into();
        assert_eq!(link.take_news(), Err(LinkEnded { reason }));
    }
}

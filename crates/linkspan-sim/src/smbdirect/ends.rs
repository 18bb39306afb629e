//! Two connections over what carries them, one step at a time.

use linkspan_mem::Region;
use linkspan_mem::fault::Injected;
use linkspan_rdma::Memories;
use linkspan_rdma::local::{End, Packet};
use linkspan_rdma::verbs::{
    Access, Depth, Event, Limits, MemoryId, Post, PostError, Remote, Slice, Verbs,
};
use linkspan_smbdirect::{
    Connection, Descriptor, Driver, MessageId, News, Options, OptionsError, Refusal,
    RegistrationId, Role, private_data,
};

/// Limits with room for all that tests do.
pub const LIMITS: Limits = Limits {
    works: 1024,
    receives: 4096,
    receive_size: 8192,
    gather: 8,
    read_into: 4,
    work_bytes: 1 << 20,
    exposures: 128,
    exposure_slices: 64,
    exposure_bytes: 1 << 24,
};

/// Bytes of memory of each end for what it sends, reads and lets the peer reach.
pub const ARENA: u32 = 3 << 18;

/// One end: a connection, its driver, and its end of what carries it.
pub struct Side<C = End> {
    /// The driver with the connection.
    pub driver: Driver,
    /// The provider.
    pub end: C,
    /// Its memory.
    pub arena: MemoryId,
    /// What it was told.
    pub news: Vec<News>,
    /// Which call from now on is refused; 0 for none.
    pub refuses: u64,
}

/// A provider that refuses one call.
struct Refusing<'a, C> {
    end: &'a mut C,
    left: &'a mut u64,
}

impl<C> Refusing<'_, C> {
    fn call(&mut self) -> Result<(), PostError> {
        let due = *self.left == 1;
        *self.left = self.left.saturating_sub(1);
        if due {
            return Err(PostError::Full { max: 0 });
        }
        Ok(())
    }
}

impl<C: Verbs> Verbs for Refusing<'_, C> {
    fn limits(&self) -> Limits {
        self.end.limits()
    }

    fn memories(&self) -> &Memories {
        self.end.memories()
    }

    fn accept(&mut self, private_data: &[u8], depth: Depth) -> Result<(), PostError> {
        self.call()?;
        self.end.accept(private_data, depth)
    }

    fn reject(&mut self, private_data: &[u8]) -> Result<(), PostError> {
        self.end.reject(private_data)
    }

    fn post_receives(&mut self, count: u32) -> Result<(), PostError> {
        self.call()?;
        self.end.post_receives(count)
    }

    fn release(&mut self, buffer: Slice) {
        self.end.release(buffer);
    }

    fn post(&mut self, post: &Post<'_>) -> Result<(), PostError> {
        self.call()?;
        self.end.post(post)
    }

    fn expose(&mut self, slices: &[Slice], access: Access) -> Result<Remote, PostError> {
        self.call()?;
        self.end.expose(slices, access)
    }

    fn disconnect(&mut self) {
        self.end.disconnect();
    }

    fn poll(&mut self) -> Option<Event> {
        self.end.poll()
    }
}

impl Side {
    /// An end over the pair in memory.
    ///
    /// # Errors
    /// The options cannot be.
    pub fn new(
        role: Role,
        options: &Options,
        limits: Limits,
        now: u64,
    ) -> Result<Self, OptionsError> {
        let end = local(role, options, limits);
        Self::over(end, End::add_memory, role, options, now)
    }
}

/// An end of the pair in memory.
pub fn local(role: Role, options: &Options, limits: Limits) -> End {
    let depth = Depth {
        inbound: options.inbound_reads,
        outbound: options.outbound_reads,
    };
    match role {
        Role::Initiator => End::initiator(limits, depth, [1; 32], &private_data(options)),
        Role::Listener => End::responder(limits, depth, [2; 32]),
    }
}

impl<C: Verbs> Side<C> {
    /// Over `end`, to which `add` makes memory known.
    ///
    /// # Errors
    /// The options cannot be.
    pub fn over(
        end: C,
        add: fn(&mut C, Region) -> Result<MemoryId, Injected>,
        role: Role,
        options: &Options,
        now: u64,
    ) -> Result<Self, OptionsError> {
        Self::with_arena(end, add, role, options, now, ARENA)
    }

    /// The same with an arena of so many bytes.
    ///
    /// # Errors
    /// The options cannot be.
    pub fn with_arena(
        mut end: C,
        add: fn(&mut C, Region) -> Result<MemoryId, Injected>,
        role: Role,
        options: &Options,
        now: u64,
        arena: u32,
    ) -> Result<Self, OptionsError> {
        let limits = end.limits();
        let core = Connection::new(role, options, &limits, now)?;
        let len = Driver::header_bytes(options);
        let region = Region::heap(len as usize)?;
        let headers = Slice {
            memory: add(&mut end, region)?,
            len,
            offset: 0,
        };
        let arena = add(&mut end, Region::heap(arena as usize)?)?;
        Ok(Self {
            driver: Driver::new(core, headers),
            end,
            arena,
            news: Vec::new(),
            refuses: 0,
        })
    }

    /// Bytes of the arena.
    #[must_use]
    pub fn slice(&self, offset: u64, len: u32) -> Slice {
        Slice {
            memory: self.arena,
            len,
            offset,
        }
    }

    /// Writes bytes there.
    ///
    /// # Panics
    /// It is not memory of this end.
    pub fn write(&self, slice: Slice, bytes: &[u8]) {
        self.end.memories().slice(slice).unwrap().write(bytes);
    }

    /// What is there.
    ///
    /// # Panics
    /// It is not memory of this end.
    pub fn bytes(&self, slice: Slice) -> Vec<u8> {
        let mut bytes = vec![0; slice.len as usize];
        self.end.memories().slice(slice).unwrap().read(&mut bytes);
        bytes
    }

    /// Everything that has happened, if anything has, and all that is to be done.
    pub fn turn(&mut self, now: u64) -> bool {
        let mut happened = false;
        while let Some(event) = self.end.poll() {
            self.driver.happened(now, self.end.memories(), event);
            happened = true;
        }
        let (end, left) = (&mut self.end, &mut self.refuses);
        let mut verbs = Refusing { end, left };
        while let Some(news) = self.driver.poll(now, &mut verbs) {
            self.news.push(news);
        }
        happened
    }

    /// All that has arrived of the first message.
    ///
    /// # Panics
    /// Less can be read than has arrived.
    pub fn read(&mut self) -> Vec<u8> {
        let arrived = self.driver.core().message().map_or(0, |it| it.arrived);
        let mut bytes = vec![0; arrived as usize];
        let read = self.driver.read(self.end.memories(), &mut bytes);
        assert_eq!(read, bytes.len());
        bytes
    }

    /// Lets the peer read or write.
    ///
    /// # Errors
    /// The connection or the provider refuses.
    pub fn register(
        &mut self,
        slices: &[Slice],
        access: Access,
    ) -> Result<(RegistrationId, Descriptor), Refusal> {
        let (end, left) = (&mut self.end, &mut self.refuses);
        self.driver
            .register(&mut Refusing { end, left }, slices, access)
    }

    /// Sends a message.
    ///
    /// # Panics
    /// It is refused.
    pub fn send(&mut self, slices: &[Slice]) -> MessageId {
        self.driver.core_mut().send(slices, None).unwrap()
    }
}

/// Both ends; the first one is the initiator.
pub struct Pair {
    /// They.
    pub sides: [Side; 2],
    /// The time in milliseconds.
    pub now: u64,
}

impl Pair {
    /// Both, of which neither has said anything.
    ///
    /// # Errors
    /// The options cannot be.
    pub fn new(options: [&Options; 2], limits: Limits) -> Result<Self, OptionsError> {
        let roles = [Role::Initiator, Role::Listener];
        let side = |at: usize| Side::new(roles[at], options[at], limits, 0);
        Ok(Self {
            sides: [side(0)?, side(1)?],
            now: 0,
        })
    }

    /// Connected, with default options.
    ///
    /// # Panics
    /// They do not connect.
    pub fn connected() -> Self {
        let options = [&Options::initiator(), &Options::listener()];
        let mut pair = Self::new(options, LIMITS).unwrap();
        pair.settle();
        for side in &mut pair.sides {
            assert_eq!(side.news, [News::Connected]);
            side.news.clear();
        }
        pair
    }

    /// Until nothing happens any more.
    pub fn settle(&mut self) {
        // Whoever is asked for packets may have done something that is told next.
        let mut quiet = 0;
        while quiet < 2 {
            let mut happened = false;
            for side in &mut self.sides {
                happened |= side.turn(self.now);
            }
            let [a, b] = &mut self.sides;
            let packets: [Option<Packet>; 2] = [a.end.take(), b.end.take()];
            let is_quiet = !happened && packets.iter().all(Option::is_none);
            quiet = if is_quiet { quiet + 1 } else { 0 };
            let [from_a, from_b] = packets;
            from_a.into_iter().for_each(|packet| b.end.deliver(packet));
            from_b.into_iter().for_each(|packet| a.end.deliver(packet));
        }
    }

    /// Time passes, up to the next thing that is due on either end.
    pub fn wait(&mut self) {
        let due = self
            .sides
            .iter()
            .map(|side| side.driver.core().next_timeout());
        if let Some(due) = due.flatten().min() {
            self.now = self.now.max(due);
        }
        for side in &mut self.sides {
            side.driver.core_mut().handle_timeout(self.now);
        }
        self.settle();
    }
}

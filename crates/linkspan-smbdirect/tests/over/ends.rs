//! Two connections over the pair in memory, one step at a time.

use linkspan_mem::Region;
use linkspan_rdma::local::{End, Packet};
use linkspan_rdma::verbs::{Depth, Limits, MemoryId, Slice, Verbs as _};
use linkspan_smbdirect::{
    Connection, Descriptor, Driver, MessageId, News, Options, Role, private_data,
};

pub(crate) const LIMITS: Limits = Limits {
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
pub(crate) const ARENA: u32 = 1 << 20;

/// One end: a connection, its driver, and its end of the pair.
pub(crate) struct Side {
    pub driver: Driver,
    pub end: End,
    pub arena: MemoryId,
    pub news: Vec<News>,
}

impl Side {
    pub(crate) fn new(role: Role, options: &Options, limits: Limits, now: u64) -> Self {
        let depth = Depth {
            inbound: options.inbound_reads,
            outbound: options.outbound_reads,
        };
        let mut end = match role {
            Role::Initiator => End::initiator(limits, depth, [1; 32], &private_data(options)),
            Role::Listener => End::responder(limits, depth, [2; 32]),
        };
        let core = Connection::new(role, options, &limits, now).unwrap();
        let len = Driver::header_bytes(options);
        let region = Region::heap(len as usize).unwrap();
        let headers = Slice {
            memory: end.add_memory(region).unwrap(),
            len,
            offset: 0,
        };
        let arena = end.add_memory(Region::heap(ARENA as usize).unwrap());
        Self {
            driver: Driver::new(core, headers),
            end,
            arena: arena.unwrap(),
            news: Vec::new(),
        }
    }

    /// Bytes of the arena.
    pub(crate) fn slice(&self, offset: u64, len: u32) -> Slice {
        Slice {
            memory: self.arena,
            len,
            offset,
        }
    }

    pub(crate) fn write(&self, slice: Slice, bytes: &[u8]) {
        self.end.memories().slice(slice).unwrap().write(bytes);
    }

    pub(crate) fn bytes(&self, slice: Slice) -> Vec<u8> {
        let mut bytes = vec![0; slice.len as usize];
        self.end.memories().slice(slice).unwrap().read(&mut bytes);
        bytes
    }

    /// Everything that has happened, if anything has, and all that is to be done.
    pub(crate) fn turn(&mut self, now: u64) -> bool {
        let mut happened = false;
        while let Some(event) = self.end.poll() {
            self.driver.happened(now, self.end.memories(), event);
            happened = true;
        }
        while let Some(news) = self.driver.poll(now, &mut self.end) {
            self.news.push(news);
        }
        happened
    }

    /// All that has arrived of the first message.
    pub(crate) fn read(&mut self) -> Vec<u8> {
        let arrived = self.driver.core().message().map_or(0, |it| it.arrived);
        let mut bytes = vec![0; arrived as usize];
        let read = self.driver.read(self.end.memories(), &mut bytes);
        assert_eq!(read, bytes.len());
        bytes
    }

    pub(crate) fn send(&mut self, slices: &[Slice]) -> MessageId {
        self.driver.core_mut().send(slices, None).unwrap()
    }
}

/// Both ends; the first one is the initiator.
pub(crate) struct Pair {
    pub sides: [Side; 2],
    pub now: u64,
}

impl Pair {
    pub(crate) fn new(options: [&Options; 2], limits: Limits) -> Self {
        let roles = [Role::Initiator, Role::Listener];
        let side = |at: usize| Side::new(roles[at], options[at], limits, 0);
        Self {
            sides: [side(0), side(1)],
            now: 0,
        }
    }

    /// Connected, with default options.
    pub(crate) fn connected() -> Self {
        let mut pair = Self::new([&Options::initiator(), &Options::listener()], LIMITS);
        pair.settle();
        for side in &mut pair.sides {
            assert_eq!(side.news, [News::Connected]);
            side.news.clear();
        }
        pair
    }

    /// Until nothing happens any more.
    pub(crate) fn settle(&mut self) {
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
    pub(crate) fn wait(&mut self) {
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

    /// What the end of this index has learned from the other's registration.
    pub(crate) fn register(&mut self, at: usize, slices: &[Slice], write: bool) -> Registered {
        use linkspan_rdma::verbs::Access;
        let access = if write { Access::WRITE } else { Access::READ };
        let side = &mut self.sides[at];
        let registered = side.driver.register(&mut side.end, slices, access);
        let (id, descriptor) = registered.unwrap();
        Registered { id, descriptor }
    }
}

pub(crate) struct Registered {
    pub id: linkspan_smbdirect::RegistrationId,
    pub descriptor: Descriptor,
}

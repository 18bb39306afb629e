//! The pair in memory as two providers: what one says the other hears when it next waits.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use linkspan_backends::rdma::{Carrier, ConnectionId, ProviderError};
use linkspan_mem::Region;
use linkspan_mem::fault::Injected;
use linkspan_rdma::Memories;
use linkspan_rdma::local::{End, Packet};
use linkspan_rdma::verbs::{Depth, Event, Limits, MemoryId, Verbs as _};

type Packets = Rc<RefCell<VecDeque<(ConnectionId, Packet)>>>;

/// One of two.
pub struct LocalProvider {
    limits: Limits,
    depth: Depth,
    regions: Vec<Option<Region>>,
    memories: Memories,
    /// At most one is alive; its memory is what is known.
    end: Option<(ConnectionId, End)>,
    told_end: bool,
    next: u64,
    to_peer: Packets,
    from_peer: Packets,
    listens: bool,
    never: File,
}

pub fn pair(limits: Limits, depth: Depth) -> [LocalProvider; 2] {
    let (there, back) = (Packets::default(), Packets::default());
    [(&there, &back), (&back, &there)].map(|(to_peer, from_peer)| LocalProvider {
        limits,
        depth,
        regions: Vec::new(),
        memories: Memories::new(),
        end: None,
        told_end: false,
        next: 0,
        to_peer: to_peer.clone(),
        from_peer: from_peer.clone(),
        listens: false,
        never: File::open("/dev/null").unwrap(),
    })
}

impl LocalProvider {
    fn begin(&mut self, id: ConnectionId, mut end: End) {
        for region in self.regions.iter().flatten() {
            end.add_memory(region.clone()).unwrap();
        }
        self.end = Some((id, end));
        self.told_end = false;
    }

    fn settle(&mut self) {
        if self.told_end && self.end.as_ref().is_some_and(|it| it.1.lent() == 0) {
            // What it says last is still said.
            self.say();
            self.end = None;
        }
    }

    fn say(&mut self) {
        if let Some((id, end)) = &mut self.end {
            while let Some(packet) = end.take() {
                self.to_peer.borrow_mut().push_back((*id, packet));
            }
        }
    }
}

impl Carrier for LocalProvider {
    type Handle<'a> = &'a mut End;

    fn add_memory(&mut self, region: Region) -> Result<MemoryId, Injected> {
        self.regions.push(Some(region.clone()));
        if let Some((_, end)) = &mut self.end {
            return end.add_memory(region);
        }
        self.memories.add(region)
    }

    fn remove_memory(&mut self, memory: MemoryId) -> Option<Region> {
        self.regions.truncate(1);
        let (_, end) = self.end.as_mut()?;
        end.remove_memory(memory)
    }

    fn memories(&self) -> &Memories {
        match &self.end {
            Some((_, end)) => end.memories(),
            None => &self.memories,
        }
    }

    fn listen(&mut self, address: SocketAddr) -> io::Result<SocketAddr> {
        self.listens = true;
        Ok(address)
    }

    fn connect(&mut self, _: SocketAddr, words: &[u8]) -> Result<ConnectionId, ProviderError> {
        assert!(self.end.is_none(), "one at a time");
        self.next += 1;
        let id = ConnectionId::new(self.next);
        self.begin(id, End::initiator(self.limits, self.depth, [1; 32], words));
        Ok(id)
    }

    fn connection(&mut self, id: ConnectionId) -> Option<&mut End> {
        let (own, end) = self.end.as_mut()?;
        (*own == id && !(self.told_end && end.lent() == 0)).then_some(end)
    }

    fn count(&self) -> usize {
        usize::from(self.end.is_some())
    }

    fn flush(&mut self) {
        self.say();
    }

    fn wait(&mut self, _: Option<Duration>) -> io::Result<()> {
        self.settle();
        self.say();
        loop {
            let Some((id, packet)) = self.from_peer.borrow_mut().pop_front() else {
                break;
            };
            if self.listens && self.end.is_none() && matches!(packet, Packet::Request(_)) {
                self.begin(id, End::responder(self.limits, self.depth, [2; 32]));
            }
            if let Some((own, end)) = &mut self.end
                && *own == id
            {
                end.deliver(packet);
            }
        }
        self.say();
        Ok(())
    }

    fn poll(&mut self) -> Option<(ConnectionId, Event)> {
        let (id, end) = self.end.as_mut()?;
        let event = end.poll()?;
        self.told_end |= matches!(event, Event::Ended(_));
        let told = Some((*id, event));
        self.settle();
        told
    }
}

impl AsFd for LocalProvider {
    /// Nobody waits on it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.never.as_fd()
    }
}

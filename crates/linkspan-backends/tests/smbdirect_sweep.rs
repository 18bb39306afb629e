//! Each acquisition of a listener and of an initiator fails in turn, and everything is as
//! it was before. One test, since a sweep is the process's.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use linkspan_backends::smbdirect::{
    Classes, Config, Endpoint, HELLO_LEN, Happening, Hello, Id, Mode, Peer, Service,
};
use linkspan_mem::{Region, fault};
use linkspan_rdma::verbs::{MemoryId, Slice};
use linkspan_smbdirect::{Descriptor, Options, Role};
use linkspan_testkit::PATIENCE;

/// Bytes of a message of the other connection.
const OTHER: usize = 3000;

/// Sizes that leave little to allocate.
fn config(role: Role) -> Config {
    let options = Options {
        receive_credit_max: 16,
        send_credit_target: 16,
        ..Options::of(role)
    };
    let mut config = Config::new(role, options);
    // Nobody answers a goodbye here: both ends are one thread.
    config.iwarp.options.linger = Duration::from_millis(5);
    config
}

struct Ends {
    service: Service,
    initiator: Endpoint,
    memory: MemoryId,
    id: Option<Id>,
}

/// Another connection of the same listener, which is there before and goes on.
struct Other {
    endpoint: Endpoint,
    memory: MemoryId,
    id: Id,
    echoes: u64,
}

type Step<T> = Result<T, String>;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Ends {
    fn new() -> Step<Self> {
        let listener = Endpoint::new(config(Role::Listener)).map_err(text)?;
        let service = Service::new(listener, Mode::Echo, 1 << 20, Classes::NONE);
        let mut initiator = Endpoint::new(config(Role::Initiator)).map_err(text)?;
        let region = Region::heap(1 << 16).map_err(text)?;
        Ok(Self {
            service,
            memory: initiator.add_memory(region).map_err(text)?,
            initiator,
            id: None,
        })
    }

    fn slice(&self, len: usize) -> Slice {
        Slice {
            memory: self.memory,
            len: u32::try_from(len).unwrap(),
            offset: 0,
        }
    }

    /// Both go on until something is found.
    fn until<T>(
        &mut self,
        mut found: impl FnMut(&mut Endpoint, Happening) -> Option<T>,
    ) -> Step<T> {
        loop {
            self.service
                .turn_within(Some(Duration::from_millis(1)))
                .map_err(text)?;
            while self.service.happened().is_some() {}
            self.initiator
                .wait(Some(Duration::from_millis(1)))
                .map_err(text)?;
            while let Some((_, happening)) = self.initiator.poll() {
                if let Happening::Ended(gone) = happening {
                    return Err(text(gone));
                }
                if let Some(found) = found(&mut self.initiator, happening) {
                    return Ok(found);
                }
            }
        }
    }

    fn message(&mut self, id: Id) -> Step<Vec<u8>> {
        self.until(|endpoint, happening| match happening {
            Happening::Received => endpoint.session(id)?.take(),
            _ => None,
        })
    }

    fn transferred(&mut self) -> Step<()> {
        let done = self.until(|_, happening| match happening {
            Happening::Transferred(_, result) => Some(result),
            _ => None,
        });
        done?.map_err(text)
    }

    /// From nothing to a hello, an echo, a write and a read.
    fn all(&mut self) -> Step<()> {
        let address = self
            .service
            .listen((Ipv4Addr::LOCALHOST, 0).into())
            .map_err(text)?;
        self.load(address)
    }

    /// The same of another initiator, with the listener as it is.
    fn again(&mut self, address: SocketAddr) -> Step<()> {
        let mut initiator = Endpoint::new(config(Role::Initiator)).map_err(text)?;
        let region = Region::heap(1 << 16).map_err(text)?;
        self.memory = initiator.add_memory(region).map_err(text)?;
        self.initiator = initiator;
        self.load(address)
    }

    fn load(&mut self, address: SocketAddr) -> Step<()> {
        let id = self.initiator.connect(address).map_err(text)?;
        self.id = Some(id);
        self.until(|_, happening| matches!(happening, Happening::Connected).then_some(()))?;
        let hello = Hello { memory: 5000 };
        self.initiator.fill(self.memory, 0, &hello.to_bytes());
        let slice = self.slice(HELLO_LEN);
        self.initiator
            .session(id)
            .ok_or("gone")?
            .send(&[slice])
            .map_err(text)?;
        let answer = self.message(id)?;
        let Peer::Ours(welcome) = Peer::of(hello, &answer) else {
            return Err("who is that".to_owned());
        };
        let memory: Vec<Descriptor> = welcome.memory;
        if memory.is_empty() {
            return Err("no memory".to_owned());
        }
        let slice = self.slice(5000);
        self.initiator
            .session(id)
            .ok_or("gone")?
            .send(&[slice])
            .map_err(text)?;
        if self.message(id)?.len() != 5000 {
            return Err("another message".to_owned());
        }
        self.initiator
            .session(id)
            .ok_or("gone")?
            .write(&[slice], &memory, 0)
            .map_err(text)?;
        self.transferred()?;
        self.initiator
            .session(id)
            .ok_or("gone")?
            .read(&[slice], &memory, 0)
            .map_err(text)?;
        self.transferred()
    }
}

impl Other {
    fn connect(service: &mut Service, address: SocketAddr) -> Self {
        let mut endpoint = Endpoint::new(config(Role::Initiator)).unwrap();
        let memory = endpoint.add_memory(Region::heap(OTHER).unwrap()).unwrap();
        let mut this = Self {
            id: endpoint.connect(address).unwrap(),
            endpoint,
            memory,
            echoes: 0,
        };
        this.until(service, |_, _, happening| {
            matches!(happening, Happening::Connected).then_some(())
        });
        this
    }

    fn until<T>(
        &mut self,
        service: &mut Service,
        mut found: impl FnMut(&mut Endpoint, Id, Happening) -> Option<T>,
    ) -> T {
        let begin = Instant::now();
        loop {
            assert!(begin.elapsed() < PATIENCE, "nothing happens");
            let moment = Some(Duration::from_millis(1));
            service.turn_within(moment).unwrap();
            while service.happened().is_some() {}
            self.endpoint.wait(moment).unwrap();
            while let Some((id, happening)) = self.endpoint.poll() {
                if let Happening::Ended(gone) = happening {
                    panic!("it is gone: {gone}");
                }
                if let Some(found) = found(&mut self.endpoint, id, happening) {
                    return found;
                }
            }
        }
    }

    /// A message goes there and comes back, and no other.
    fn echo(&mut self, service: &mut Service) {
        self.echoes += 1;
        let word = self.echoes.to_le_bytes();
        let bytes: Vec<u8> = word.iter().copied().cycle().take(OTHER).collect();
        self.endpoint.fill(self.memory, 0, &bytes);
        let slice = Slice {
            memory: self.memory,
            len: u32::try_from(OTHER).unwrap(),
            offset: 0,
        };
        let mut session = self.endpoint.session(self.id).unwrap();
        session.send(&[slice]).unwrap();
        let echo = self.until(service, |endpoint, id, happening| match happening {
            Happening::Received => endpoint.session(id)?.take(),
            _ => None,
        });
        assert!(echo == bytes, "echo {} has other bytes", self.echoes);
    }
}

/// Whoever else is connected to the listener goes on, unharmed, whatever step of a connection
/// fails at either end of it.
fn others_go_on() {
    let mut ends = Ends::new().unwrap();
    let address = ends
        .service
        .listen((Ipv4Addr::LOCALHOST, 0).into())
        .unwrap();
    let mut other = Other::connect(&mut ends.service, address);
    other.echo(&mut ends.service);
    let number = |service: &Service| {
        let numbers: Vec<u64> = service.connections().map(|one| one.number).collect();
        <[u64; 1]>::try_from(numbers).expect("one connection")
    };
    let (first, mut before) = (number(&ends.service), None);
    let (mut failed, mut fired, mut nth) = (0, true, 0);
    while fired {
        // The first of all is whole.
        let sweep = fault::arm(if nth == 0 { u64::MAX } else { nth });
        let result = ends.again(address);
        fired = nth == 0 || sweep.fired();
        drop(sweep);
        ends.initiator.stop().unwrap();
        let begin = Instant::now();
        while ends.service.connections().count() > 1 {
            assert!(begin.elapsed() < PATIENCE, "step {nth}: it stays");
            let moment = Some(Duration::from_millis(1));
            ends.service.turn_within(moment).unwrap();
            while ends.service.happened().is_some() {}
        }
        other.echo(&mut ends.service);
        assert_eq!(number(&ends.service), first, "step {nth}");
        let now = descriptors();
        assert_eq!(now, *before.get_or_insert(now), "step {nth}: {result:?}");
        failed += usize::from(result.is_err());
        assert!(fired && nth > 0 || result.is_ok(), "{result:?}");
        nth += 1;
    }
    assert_eq!(other.echoes, nth + 1);
    assert!(failed > 15, "only {failed} steps failed");
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn every_step_fails_in_turn_and_leaves_nothing() {
    Ends::new().unwrap().all().unwrap();
    let before = descriptors();
    let (mut failed, mut fired) = (0, true);
    let mut nth = 0;
    while fired {
        nth += 1;
        let sweep = fault::arm(nth);
        let mut ends = Ends::new();
        let result = match &mut ends {
            Ok(ends) => ends.all(),
            Err(error) => Err(error.clone()),
        };
        fired = sweep.fired();
        drop(sweep);
        if let Ok(ends) = &mut ends {
            // Whoever is still there goes in order, and takes nothing along.
            ends.initiator.stop().unwrap();
            ends.service.stop().unwrap();
            let summary = ends.service.summary();
            assert_eq!(
                (summary.connections, summary.receive_buffers),
                (0, 0),
                "step {nth}"
            );
            assert_eq!(summary.memory_bytes, 0, "step {nth}: {result:?}");
            assert_eq!(ends.initiator.count(), 0);
            assert_eq!(ends.initiator.buffers().1, 0);
        }
        drop(ends);
        assert_eq!(descriptors(), before, "step {nth}: {result:?}");
        failed += usize::from(result.is_err());
        assert!(fired || result.is_ok(), "{result:?}");
    }
    assert!(failed > 20, "only {failed} steps failed");
    others_go_on();
}

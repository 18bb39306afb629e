//! Each acquisition of a listener and of an initiator fails in turn, and everything is as
//! it was before. One test, since a sweep is the process's.

use std::net::Ipv4Addr;
use std::time::Duration;

use linkspan_backends::smbdirect::{
    Classes, Config, Endpoint, HELLO_LEN, Happening, Hello, Id, Mode, Peer, Service,
};
use linkspan_mem::{Region, fault};
use linkspan_rdma::verbs::{MemoryId, Slice};
use linkspan_smbdirect::{Descriptor, Options, Role};

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
            Happening::Transferred(result) => Some(result),
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
}

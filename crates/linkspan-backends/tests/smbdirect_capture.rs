//! SMB Direct as Wireshark sees it: fragments that it puts together, signs of life, what is
//! refused, and how a connection ends.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use linkspan_backends::rdma;
use linkspan_backends::smbdirect::{Classes, Config, Endpoint, Gone, Happening, Id, Mode, Service};
use linkspan_mem::Region;
use linkspan_rdma::verbs::{Event, MemoryId, Post, Slice, Verbs as _, Work};
use linkspan_smbdirect::{Descriptor, Options, Role};
use linkspan_testkit::{PATIENCE, tshark};

/// Bytes of a message that has many fragments.
const LONG: u32 = 100_000;

fn config(role: Role) -> Config {
    let mut config = Config::new(role, Options::of(role));
    config.iwarp.options.crc = true;
    config
}

fn listener() -> (Service, SocketAddr) {
    let endpoint = Endpoint::new(config(Role::Listener)).unwrap();
    let mut service = Service::new(endpoint, Mode::Echo, 1 << 20, Classes::NONE);
    let address = service.listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    (service, address)
}

struct Ends {
    service: Service,
    initiator: Endpoint,
    memory: MemoryId,
    id: Id,
}

impl Ends {
    /// Connected, with all that the initiator hears and says in a file.
    fn new(path: &Path) -> Self {
        let (service, address) = listener();
        let mut initiator = Endpoint::new(config(Role::Initiator)).unwrap();
        initiator.capture(File::create(path).unwrap()).unwrap();
        let region = Region::heap(LONG as usize).unwrap();
        let mut ends = Self {
            service,
            memory: initiator.add_memory(region).unwrap(),
            id: initiator.connect(address).unwrap(),
            initiator,
        };
        ends.until(|_, _, it| matches!(it, Some(Happening::Connected)).then_some(()));
        ends
    }

    fn until<T>(
        &mut self,
        mut found: impl FnMut(&mut Endpoint, Id, Option<Happening>) -> Option<T>,
    ) -> T {
        let begin = Instant::now();
        loop {
            assert!(begin.elapsed() < PATIENCE, "nothing happens");
            let moment = Some(Duration::from_millis(1));
            self.service.turn_within(moment).unwrap();
            while self.service.happened().is_some() {}
            self.initiator.wait(moment).unwrap();
            loop {
                let next = self.initiator.poll();
                let is_last = next.is_none();
                let happening = next.map(|(_, happening)| happening);
                if let Some(found) = found(&mut self.initiator, self.id, happening) {
                    return found;
                }
                if is_last {
                    break;
                }
            }
        }
    }

    fn slice(&self, len: u32) -> Slice {
        Slice {
            memory: self.memory,
            len,
            offset: 0,
        }
    }

    fn echo(&mut self, len: u32) {
        let slice = self.slice(len);
        let mut session = self.initiator.session(self.id).unwrap();
        session.send(&[slice]).unwrap();
        let back = self.until(|endpoint, id, _| endpoint.session(id)?.take());
        assert_eq!(back.len(), len as usize);
    }
}

#[test]
fn fragments_signs_of_life_and_the_end_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("smbdirect.pcap");
    let mut ends = Ends::new(&path);
    ends.echo(LONG);
    ends.echo(3);
    ends.initiator.session(ends.id).unwrap().ask().unwrap();
    ends.until(|endpoint, id, _| {
        let status = endpoint.session(id)?.status();
        (status.traffic.keepalives > 0 && !status.awaits_sign_of_life).then_some(())
    });
    // Where nobody may write: the other end says so, and that is the end.
    let nowhere = Descriptor {
        offset: 0,
        token: 0xDEAD_BEEF,
        length: 100,
    };
    let slice = ends.slice(100);
    let mut session = ends.initiator.session(ends.id).unwrap();
    session.write(&[slice], &[nowhere], 0).unwrap();
    let gone: Gone = ends.until(|_, _, it| match it {
        Some(Happening::Ended(gone)) => Some(gone),
        _ => None,
    });
    assert!(gone.to_string().contains("no such steering tag"), "{gone}");
    ends.initiator.stop().unwrap();
    let Some(good) = tshark::good_checksums(&path) else {
        return;
    };
    let numbers = |field: &str| tshark::numbers(&path, field);
    let text = tshark::read(&path, &["-V"]).unwrap();
    for (what, least) in [
        ("NegotiateRequest", 1),
        ("NegotiateResponse", 1),
        ("DataMessage", 150),
    ] {
        let count = text.matches(what).count();
        assert!(count >= least, "{count} of {what}");
    }
    // There and back.
    let fragments = u64::from(LONG.div_ceil(1364 - 24));
    let count =
        |field: &str, wanted: u64| numbers(field).iter().filter(|it| **it == wanted).count();
    assert_eq!(count("smb_direct.reassembled.length", LONG.into()), 2);
    assert_eq!(count("smb_direct.fragment.count", fragments), 2);
    assert_eq!(count("smb_direct.flags.response_requested", 1), 1);
    assert!(count("smb_direct.data_length", 0) >= 2, "signs of life");
    let opcodes = numbers("iwarp_rdma.opcode");
    assert_eq!(
        opcodes.iter().filter(|it| **it == 0).count(),
        1,
        "{opcodes:?}"
    );
    assert_eq!(opcodes.last(), Some(&7), "{opcodes:?}");
    assert_eq!(numbers("iwarp_rdma.term_layer").len(), 1);
    assert_eq!(good, opcodes.len());
}

/// An initiator of a version that there is not: it is answered with the reason.
#[test]
fn a_negotiation_that_is_refused_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("refused.pcap");
    let (mut service, address) = listener();
    let mut script = rdma::Provider::new(rdma::Config::default()).unwrap();
    script.capture(File::create(&path).unwrap()).unwrap();
    let memory = script.add_memory(Region::heap(20).unwrap()).unwrap();
    let gather = [Slice {
        memory,
        len: 20,
        offset: 0,
    }];
    let request = b"\x00\x02\x00\x03\0\0\x0A\0\x54\x05\0\0\x54\x05\0\0\0\0\x02\0";
    script.memories().slice(gather[0]).unwrap().write(request);
    script.connect(address, b"").unwrap();
    let begin = Instant::now();
    let mut answer = Vec::new();
    while script.count() > 0 {
        assert!(begin.elapsed() < PATIENCE, "nothing happens");
        let moment = Some(Duration::from_millis(1));
        service.turn_within(moment).unwrap();
        while service.happened().is_some() {}
        script.wait(moment).unwrap();
        while let Some((id, event)) = script.poll() {
            let Some(mut connection) = script.connection(id) else {
                continue;
            };
            match event {
                Event::Established(_) => {
                    connection.post_receives(1).unwrap();
                    let work = Work::Send {
                        gather: &gather,
                        invalidate: None,
                        solicited: false,
                    };
                    let post = Post {
                        id: 1,
                        signalled: true,
                        work,
                    };
                    connection.post(&post).unwrap();
                }
                Event::Received(received) => {
                    answer.resize(received.buffer.len as usize, 0);
                    let bytes = connection.memories().slice(received.buffer);
                    bytes.unwrap().read(&mut answer);
                    connection.release(received.buffer);
                }
                _ => {}
            }
        }
    }
    // STATUS_NOT_SUPPORTED, with the version that there is, and nothing else.
    let mut refusal = [0; 32];
    refusal[..4].copy_from_slice(&[0, 1, 0, 1]);
    refusal[12..16].copy_from_slice(&0xC000_00BB_u32.to_le_bytes());
    assert_eq!(answer, refusal);
    let Some(good) = tshark::good_checksums(&path) else {
        return;
    };
    let numbers = |field: &str| tshark::numbers(&path, field);
    assert_eq!(good, 2);
    assert_eq!(numbers("iwarp_rdma.opcode"), [3, 3]);
    // It knows SMB Direct by the one version that there is, which neither message has.
    assert_eq!(numbers("smb_direct.version.min"), [0_u64; 0]);
}

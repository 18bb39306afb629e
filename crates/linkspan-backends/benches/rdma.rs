//! iWARP over TCP on loopback against TCP alone, in turns: `cargo bench -p
//! linkspan-backends --bench rdma`. Not to be mistaken for RDMA hardware.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use linkspan_backends::rdma::{Config, ConnectionId, Provider};
use linkspan_mem::Region;
use linkspan_rdma::iwarp::Options;
use linkspan_rdma::verbs::{Access, Depth, Event, MemoryId, Post, Remote, Slice, Verbs as _, Work};

const MIB: u32 = 1 << 20;
/// Works of 1 MiB under way.
const UNDER_WAY: u64 = 4;
const RUN: Duration = Duration::from_millis(400);
const TURNS: usize = 7;
const PINGS: u32 = 5000;

fn main() {
    println!("GB/s of 1 MiB works, median of {TURNS} turns");
    let names = ["TCP", "write", "read", "write, CRC", "read, CRC"];
    let mut rows = names.map(|name| (name, Vec::new()));
    for _ in 0..TURNS {
        rows[0].1.push(tcp_stream());
        for (at, crc) in [(1, false), (3, true)] {
            let (write, read, _) = with_peer(crc, RUN);
            rows[at].1.push(write);
            rows[at + 1].1.push(read);
        }
    }
    let base = median(&mut rows[0].1);
    for (name, values) in &mut rows {
        let value = median(values);
        println!("{name:12} {value:6.2}  {:5.2} of TCP", value / base);
    }
    println!("microseconds of a round trip of 64 bytes, median of {TURNS} turns");
    let (mut tcp, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        tcp.push(tcp_ping());
        ours.push(with_peer(false, Duration::ZERO).2);
    }
    let (tcp, ours) = (median(&mut tcp), median(&mut ours));
    println!("{:12} {tcp:6.1}", "TCP");
    println!("{:12} {ours:6.1}  {:5.2} of TCP", "send", ours / tcp);
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    for stream in [&one, &other] {
        stream.set_nodelay(true).unwrap();
    }
    (one, other)
}

/// Writes of 512 KiB, reads of 64 KiB, as ours are.
fn tcp_stream() -> f64 {
    let (mut one, mut other) = tcp_pair();
    let reader = thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        let (mut total, mut at) = (0_u64, 0);
        let begin = Instant::now();
        loop {
            match other.read(&mut buffer[at..at + (64 << 10)]) {
                Ok(0) | Err(_) => return rate(total, begin),
                Ok(count) => total += count as u64,
            }
            at = (at + (64 << 10)) % buffer.len();
        }
    });
    let bytes = vec![1; 512 << 10];
    let begin = Instant::now();
    while begin.elapsed() < RUN {
        one.write_all(&bytes).unwrap();
    }
    drop(one);
    reader.join().unwrap()
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn rate(bytes: u64, begin: Instant) -> f64 {
    bytes as f64 / begin.elapsed().as_secs_f64() / 1e9
}

fn tcp_ping() -> f64 {
    let (mut one, mut other) = tcp_pair();
    let echo = thread::spawn(move || {
        let mut bytes = [0; 64];
        while other.read_exact(&mut bytes).is_ok() {
            other.write_all(&bytes).unwrap();
        }
    });
    let mut bytes = [0; 64];
    let begin = Instant::now();
    for _ in 0..PINGS {
        one.write_all(&bytes).unwrap();
        one.read_exact(&mut bytes).unwrap();
    }
    let time = begin.elapsed();
    drop(one);
    echo.join().unwrap();
    micros(time)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6 / f64::from(PINGS)
}

fn provider(crc: bool) -> (Provider, MemoryId) {
    let options = Options {
        crc,
        depth: Depth {
            inbound: 8,
            outbound: 8,
        },
        ..Options::default()
    };
    let mut provider = Provider::new(Config {
        options,
        ..Config::default()
    })
    .unwrap();
    let region = Region::heap(8 << 20).unwrap();
    let memory = provider.add_memory(region).unwrap();
    (provider, memory)
}

fn slice(memory: MemoryId, offset: u64, len: u32) -> Slice {
    Slice {
        memory,
        len,
        offset,
    }
}

fn send(gather: &[Slice]) -> Work<'_> {
    Work::Send {
        gather,
        invalidate: None,
        solicited: false,
    }
}

/// Rates of writes and of reads, or the time of a round trip, against a peer that is a
/// thread of its own.
fn with_peer(crc: bool, run: Duration) -> (f64, f64, f64) {
    let (address_out, address_in) = channel();
    let (remote_out, remote_in) = channel();
    let peer = thread::spawn(move || echo(crc, &address_out, &remote_out));
    let (mut provider, memory) = provider(crc);
    let id = provider.connect(address_in.recv().unwrap(), b"").unwrap();
    loop {
        provider.wait(None).unwrap();
        if let Some((_, Event::Established(_))) = provider.poll() {
            break;
        }
    }
    let mut connection = provider.connection(id).unwrap();
    connection.post_receives(60_000).unwrap();
    let mut end = Ours {
        provider,
        id,
        memory,
    };
    end.ping();
    let remote = remote_in.recv().unwrap();
    let mut rates = (0.0, 0.0, 0.0);
    if run.is_zero() {
        let begin = Instant::now();
        (0..PINGS).for_each(|_| end.ping());
        rates.2 = micros(begin.elapsed());
    } else {
        rates.0 = end.stream(run, remote, true);
        rates.1 = end.stream(run, remote, false);
    }
    end.provider.connection(id).unwrap().disconnect();
    while end.provider.count() > 0 {
        end.provider.wait(None).unwrap();
        while end.provider.poll().is_some() {}
    }
    peer.join().unwrap();
    rates
}

struct Ours {
    provider: Provider,
    id: ConnectionId,
    memory: MemoryId,
}

impl Ours {
    fn post(&mut self, id: u64, work: Work<'_>) {
        let mut connection = self.provider.connection(self.id).unwrap();
        let signalled = true;
        let post = Post {
            id,
            signalled,
            work,
        };
        connection.post(&post).unwrap();
    }

    fn ping(&mut self) {
        self.post(0, send(&[slice(self.memory, 0, 64)]));
        loop {
            while let Some((_, event)) = self.provider.poll() {
                if let Event::Received(received) = event {
                    let mut connection = self.provider.connection(self.id).unwrap();
                    connection.release(received.buffer);
                    return;
                }
            }
            self.provider.wait(None).unwrap();
        }
    }

    fn stream(&mut self, run: Duration, remote: Remote, write: bool) -> f64 {
        let (mut posted, mut done) = (0, 0_u64);
        let begin = Instant::now();
        while begin.elapsed() < run || done < posted {
            while posted - done < UNDER_WAY && begin.elapsed() < run {
                let offset = posted % UNDER_WAY * u64::from(MIB);
                let list = [slice(self.memory, offset, MIB)];
                let (gather, into) = (&list, &list);
                self.post(
                    posted,
                    if write {
                        Work::Write { gather, to: remote }
                    } else {
                        Work::Read { into, from: remote }
                    },
                );
                posted += 1;
            }
            self.provider.wait(None).unwrap();
            while let Some((_, event)) = self.provider.poll() {
                assert!(matches!(event, Event::Completed(_)), "{event:?}");
                done += 1;
            }
        }
        // What was written has arrived when this has.
        self.ping();
        while self.provider.poll().is_some() {}
        rate(posted * u64::from(MIB), begin)
    }
}

/// The other end: exposes 1 MiB and sends back what it gets.
fn echo(crc: bool, addresses: &Sender<SocketAddr>, remotes: &Sender<Remote>) {
    let (mut provider, memory) = provider(crc);
    let address = provider.listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    addresses.send(address).unwrap();
    loop {
        provider.wait(None).unwrap();
        while let Some((id, event)) = provider.poll() {
            let Some(mut connection) = provider.connection(id) else {
                return;
            };
            match event {
                Event::Requested(greeting) => {
                    connection.post_receives(60_000).unwrap();
                    connection.accept(b"", greeting.depth).unwrap();
                    let both = Access {
                        read: true,
                        write: true,
                    };
                    let list = [slice(memory, 0, MIB)];
                    let remote = connection.expose(&list, both).unwrap();
                    remotes.send(remote).unwrap();
                }
                Event::Received(received) => {
                    connection.release(received.buffer);
                    let gather = [slice(memory, 0, 64)];
                    let post = Post {
                        id: 0,
                        signalled: false,
                        work: send(&gather),
                    };
                    connection.post(&post).unwrap();
                }
                Event::Ended(_) => return,
                _ => {}
            }
        }
    }
}

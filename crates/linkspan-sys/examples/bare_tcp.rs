//! What a machine can do at most with TCP on loopback: the ends that `cargo xtask bench
//! smbdirect` holds ours against, and the relay of `cargo xtask bench smb`.
//!
//! ```text
//! bare_tcp sink READ MEMORY     listens, and reads so many bytes at a time
//! bare_tcp echo                 listens, and returns what comes
//! bare_tcp relay PORT READ      listens, and passes on to there and back, so many bytes at a time
//! bare_tcp stream PORT WRITE SECONDS MEMORY
//! bare_tcp ping PORT BYTES COUNT
//! ```
//!
//! Reads and writes go through so many bytes of memory, round and round.
//!
//! Who listens prints the port. Who connects prints JSON: bytes a second until the last
//! one was read, or the median time of a round trip, and its processor time.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["sink", read, memory] => {
            let (read, memory) = (read.parse()?, memory.parse()?);
            serve(|stream| sink(stream, read, memory))
        }
        ["echo"] => serve(echo),
        ["relay", port, read] => {
            let read = read.parse()?;
            serve(|client| relay(client, connect(port)?, read))
        }
        ["stream", port, write, seconds, memory] => {
            let time = Duration::from_secs_f64(seconds.parse()?);
            stream(connect(port)?, write.parse()?, time, memory.parse()?)
        }
        ["ping", port, bytes, count] => ping(connect(port)?, bytes.parse()?, count.parse()?),
        _ => Err("usage: bare_tcp sink|echo|relay|stream|ping, see the source".into()),
    }
}

fn connect(port: &str) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port.parse()?))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn serve(each: impl Fn(TcpStream) -> Result<(), Failure>) -> Result<(), Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        each(stream)?;
    }
}

fn sink(mut stream: TcpStream, read: usize, memory: usize) -> Result<(), Failure> {
    let mut memory = vec![0; memory.max(read)];
    let mut at = 0;
    loop {
        if at + read > memory.len() {
            at = 0;
        }
        match stream.read(&mut memory[at..at + read])? {
            0 => return Ok(()),
            len => at += len,
        }
    }
}

fn echo(mut stream: TcpStream) -> Result<(), Failure> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            len => stream.write_all(&bytes[..len])?,
        }
    }
}

/// Both directions, each on a thread and through memory of this process.
fn relay(client: TcpStream, server: TcpStream, read: usize) -> Result<(), Failure> {
    std::thread::scope(|scope| {
        scope.spawn(|| pass(&client, &server, read));
        pass(&server, &client, read);
    });
    Ok(())
}

/// An end of either is the other's.
fn pass(mut from: &TcpStream, mut to: &TcpStream, read: usize) {
    let mut bytes = vec![0; read];
    while let Ok(len @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..len]).is_err() {
            break;
        }
    }
    // Whoever has closed it already wants nothing more.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}

/// Processor seconds of this process.
fn cpu() -> f64 {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime))
        .map_or(0.0, |time| time.as_secs_f64())
}

fn stream(
    mut stream: TcpStream,
    write: usize,
    time: Duration,
    memory: usize,
) -> Result<(), Failure> {
    let memory = vec![1; memory.max(write)];
    let (mut at, mut bytes, mut calls) = (0, 0_u64, 0_u64);
    let (begin, before) = (Instant::now(), cpu());
    // The clock is looked at now and then.
    while calls % 16 != 0 || begin.elapsed() < time {
        if at + write > memory.len() {
            at = 0;
        }
        stream.write_all(&memory[at..at + write])?;
        at += write;
        bytes += write as u64;
        calls += 1;
    }
    stream.shutdown(Shutdown::Write)?;
    // The end of the other comes when it has read all.
    stream.read_exact(&mut [0]).err();
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), cpu() - before);
    println!(
        "{{\"bytes_per_second\":{},\"bytes\":{bytes},\"cpu_seconds\":{cpu},\"system_calls\":{calls}}}",
        bytes as f64 / seconds
    );
    Ok(())
}

fn ping(mut stream: TcpStream, len: usize, count: usize) -> Result<(), Failure> {
    let mut bytes = vec![1; len];
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    let median = times[times.len() / 2].as_secs_f64() * 1e6;
    println!("{{\"median_us\":{median}}}");
    Ok(())
}

//! What a machine can do at most with a file in pieces of 6 KiB, as Hyper-V's file copy
//! has them. `cargo xtask bench fcopy` holds the copy into a guest against it.
//!
//! ```text
//! cargo run --release -p linkspan-sys --example bare_copy -- alone FROM TO
//! cargo run --release -p linkspan-sys --example bare_copy -- turns FROM TO
//! ```
//!
//! `alone` reads and writes in one loop. `turns` reads in one thread and writes in
//! another, one piece at a time, and each wakes the other with an eventfd: what one
//! outstanding message costs when both ends sleep.

use std::error::Error;
use std::fs::File;
use std::time::Instant;

use linkspan_sys::EventFd;
use linkspan_sys::poll::{Direction, wait_for};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{pread, pwrite};
use std::os::fd::AsFd as _;
use std::sync::Mutex;

const PIECE: usize = 6 * 1024;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, from, to] = &arguments[..] else {
        return Err("usage: bare_copy alone|turns FROM TO".into());
    };
    let from = File::open(from)?;
    let size = from.metadata()?.len();
    let start = Instant::now();
    let to = File::create(to)?;
    if size > 0 {
        fallocate(&to, FallocateFlags::KEEP_SIZE, 0, size)?;
    }
    match mode.as_str() {
        "alone" => alone(&from, &to)?,
        "turns" => turns(&from, &to)?,
        _ => return Err("the mode is alone or turns".into()),
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{{\"bytes\":{size},\"seconds\":{seconds}}}");
    Ok(())
}

fn alone(from: &File, to: &File) -> Result<(), Failure> {
    let (mut piece, mut at) = ([0; PIECE], 0);
    loop {
        let len = pread(from, &mut piece, at)?;
        if len == 0 {
            return Ok(());
        }
        at += pwrite(to, &piece[..len], at)? as u64;
    }
}

/// A piece on its way; none is the end.
struct Piece {
    bytes: [u8; PIECE],
    len: usize,
    at: u64,
}

fn turns(from: &File, to: &File) -> Result<(), Failure> {
    let (there, back) = (EventFd::new()?, EventFd::new()?);
    let place = Mutex::new(Piece {
        bytes: [0; PIECE],
        len: 0,
        at: 0,
    });
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<(), Failure> {
            loop {
                wait_for(there.as_fd(), Direction::Read, None, None)?;
                there.drain()?;
                let piece = place.lock().expect("nobody panics with it");
                if piece.len == 0 {
                    return Ok(());
                }
                pwrite(to, &piece.bytes[..piece.len], piece.at)?;
                drop(piece);
                back.signal()?;
            }
        });
        let mut at = 0;
        loop {
            let mut piece = place.lock().expect("nobody panics with it");
            let len = pread(from, &mut piece.bytes, at)?;
            (piece.len, piece.at) = (len, at);
            drop(piece);
            there.signal()?;
            if len == 0 {
                break;
            }
            at += len as u64;
            wait_for(back.as_fd(), Direction::Read, None, None)?;
            back.drain()?;
        }
        writer.join().expect("the writer")
    })
}

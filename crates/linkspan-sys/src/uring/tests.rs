//! Rings on files and pipes of this process.

use super::*;
use crate::memfd::{self, Sealing};
use crate::poll::{Direction, Wake, wait_for};
use crate::testing::in_child;
use crate::{Epoll, PeerMemory};
use linkspan_mem::{AddressSpace, Region, RegionOffset, Span};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Weak;
use std::thread;

const NONE: ReadWriteFlags = ReadWriteFlags::empty();

/// A ring, or the reason why the tests of it cannot run here.
fn ring(file: impl AsFd, depth: u32) -> Option<Ring> {
    match Ring::new(file.as_fd(), depth) {
        Ok(ring) => Some(ring),
        Err(Error::Refused { why, .. }) => {
            println!("SKIP: io_uring is refused: {why}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn table_of(region: Region) -> Arc<RegionTable> {
    Arc::new(RegionTable::new(vec![region]))
}

fn heap(len: usize) -> Arc<RegionTable> {
    table_of(Region::heap(len).unwrap())
}

fn spans(table: &Arc<RegionTable>, ranges: &[(u64, u32)]) -> Vec<Span> {
    let space = AddressSpace::new(Arc::clone(table), &[RegionOffset(0)]).unwrap();
    let mut spans = Vec::new();
    for &(at, len) in ranges {
        let found = space.resolve(RegionOffset(at), len, |span| spans.push(span));
        found.unwrap();
    }
    spans
}

fn transfer<'a>(table: &'a RegionTable, spans: &'a [Span], offset: u64) -> Transfer<'a> {
    Transfer {
        table,
        spans,
        offset,
    }
}

/// Waits for the next completion as a worker does.
fn next(ring: &mut Ring) -> Completion {
    loop {
        if let Some(completion) = ring.completion() {
            return completion;
        }
        let woken = wait_for(ring.as_fd(), Direction::Read, None, None).unwrap();
        assert_eq!(woken, Wake::Ready);
    }
}

#[test]
fn scattered_memory_is_written_read_and_made_durable() {
    let file = tempfile::tempfile().unwrap();
    let Some(mut ring) = ring(&file, 4) else {
        return;
    };
    let memory = heap(1 << 16);
    let out = spans(&memory, &[(100, 300), (0, 0), (5000, 724)]);
    memory.scatter(&out, 0, &[0xAB; 1024]).unwrap();
    ring.write(1, &memory, &transfer(&memory, &out, 512), 0, NONE)
        .unwrap();
    ring.submit().unwrap();
    assert_eq!(next(&mut ring).result.unwrap(), 1024);
    ring.sync_data(2).unwrap();
    ring.submit().unwrap();
    let synced = next(&mut ring);
    assert_eq!((synced.token, synced.result.unwrap()), (2, 0));
    let mut bytes = [0; 1600];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 1536);
    assert!(bytes[512..1536].iter().all(|byte| *byte == 0xAB));

    // The rest of a transfer of which some is done, in one slice and in two.
    for done in [0, 400] {
        let back = spans(&memory, &[(20_000, 300), (30_000, 724)]);
        ring.read(3, &memory, &transfer(&memory, &back, 512), done)
            .unwrap();
        ring.submit().unwrap();
        assert_eq!(u64::from(next(&mut ring).result.unwrap()), 1024 - done);
        let mut seen = vec![0; 1024 - usize::try_from(done).unwrap()];
        memory.gather(&back, done, &mut seen).unwrap();
        assert!(seen.iter().all(|byte| *byte == 0xAB));
        memory.scatter(&back, 0, &[0; 1024]).unwrap();
    }
}

#[test]
fn nothing_else_can_be_done_with_a_ring() {
    let file = tempfile::tempfile().unwrap();
    let Some(mut ring) = ring(&file, 4) else {
        return;
    };
    let mut byte = 0_u8;
    let stdin = io_uring::types::Fd(0);
    let forbidden = [
        opcode::Nop::new().build().flags(Flags::FIXED_FILE),
        opcode::Read::new(stdin, &raw mut byte, 1).build(),
        opcode::Fsync::new(FILE).build().flags(Flags::IO_LINK),
    ];
    for entry in forbidden {
        // SAFETY: the byte outlives the ring, and the operation is refused.
        unsafe { ring.ring.submission().push(&entry).unwrap() };
        ring.ring.submit_and_wait(1).unwrap();
        let result = ring.ring.completion().next().unwrap().result();
        assert_eq!(result, -libc::EACCES);
    }
    let changed = ring.ring.submitter().register_files_update(0, &[0]);
    assert_eq!(changed.unwrap_err().raw_os_error(), Some(libc::EACCES));
}

#[test]
fn many_operations_are_in_flight_and_one_too_many_is_refused() {
    let file = tempfile::tempfile().unwrap();
    let content: Vec<u8> = (0..300).flat_map(|at: u32| at.to_ne_bytes()).collect();
    file.write_all_at(&content, 0).unwrap();
    let Some(mut ring) = ring(&file, 300) else {
        return;
    };
    let epoll = Epoll::new().unwrap();
    epoll.add(&ring, 1, crate::poll::Interest::READ).unwrap();
    let memory = heap(4096);
    for _ in 0..3 {
        memory
            .scatter(&spans(&memory, &[(0, 1200)]), 0, &[0; 1200])
            .unwrap();
        for token in 0..300 {
            let place = spans(&memory, &[(u64::from(token) * 4, 4)]);
            let one = transfer(&memory, &place, u64::from(token) * 4);
            ring.read(token, &memory, &one, 0).unwrap();
        }
        assert_eq!(ring.in_flight(), 300);
        let full = ring.sync_data(300).unwrap_err();
        assert_eq!(full.raw_os_error(), Some(libc::ENOBUFS));
        ring.submit().unwrap();
        let mut tokens: Vec<u32> = (0..300).map(|_| next(&mut ring).token).collect();
        tokens.sort_unstable();
        assert!(tokens.into_iter().eq(0..300));
        let mut seen = vec![0; 1200];
        let all = spans(&memory, &[(0, 1200)]);
        memory.gather(&all, 0, &mut seen).unwrap();
        assert_eq!(seen, content);
        assert_eq!(ring.in_flight(), 0);
    }
    epoll.delete(&ring).unwrap();
}

#[test]
fn memory_is_held_until_the_completion_is_taken() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let Some(mut ring) = ring(&reader, 1) else {
        return;
    };
    let memory = heap(4096);
    let held: Weak<RegionTable> = Arc::downgrade(&memory);
    let place = spans(&memory, &[(0, 4)]);
    ring.read(9, &memory, &transfer(&memory, &place, 0), 0)
        .unwrap();
    ring.submit().unwrap();
    drop(memory);
    assert!(ring.completion().is_none() && held.upgrade().is_some());
    File::from(writer).write_all(b"late").unwrap();
    assert_eq!(next(&mut ring).result.unwrap(), 4);
    assert!(held.upgrade().is_none());
}

#[test]
fn dropped_ring_waits_for_what_is_in_flight() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let Some(mut ring) = ring(&reader, 2) else {
        return;
    };
    let memory = heap(4096);
    let place = spans(&memory, &[(0, 4)]);
    ring.read(1, &memory, &transfer(&memory, &place, 0), 0)
        .unwrap();
    ring.submit().unwrap();
    // The kernel's tasks belong to the thread that submitted, so that one stays.
    let dropping = thread::scope(|scope| {
        let dropping = scope.spawn(move || drop(ring));
        assert!(!dropping.is_finished());
        File::from(writer).write_all(b"late").unwrap();
        dropping.join()
    });
    dropping.unwrap();
    assert_eq!(Arc::strong_count(&memory), 1);
    let mut seen = [0; 4];
    memory.gather(&place, 0, &mut seen).unwrap();
    assert_eq!(&seen, b"late");
}

#[test]
fn dropped_ring_lets_go_of_the_file_at_once() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let open = || File::options().read(true).write(true).open(file.path());
    for _ in 0..20 {
        let locked = open().unwrap();
        let lock = crate::lock::lock_image(locked.as_fd(), false).unwrap();
        assert!(lock.is_ok(), "a file that is closed has no lock: {lock:?}");
        let Some(ring) = ring(&locked, 8) else {
            return;
        };
        drop((ring, locked));
    }
}

#[test]
fn memory_that_a_peer_took_away_is_an_error_of_its_operation() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let Some(mut ring) = ring(&file, 2) else {
        return;
    };
    let fd = memfd::create("test", 8192, Sealing::Open).unwrap();
    let mapping = PeerMemory::check(fd.try_clone().unwrap())
        .and_then(|memory| memory.map(0, 8192, None))
        .unwrap();
    let memory = table_of(Region::new(Arc::new(mapping)));
    rustix::fs::ftruncate(&fd, 4096).unwrap();
    for (token, at) in [(1, 4096), (2, 0)] {
        let place = spans(&memory, &[(at, 4096)]);
        let one = transfer(&memory, &place, 0);
        ring.write(token, &memory, &one, 0, NONE).unwrap();
        ring.submit().unwrap();
        let ended = next(&mut ring);
        match ended.token {
            1 => assert_eq!(ended.result.unwrap_err().raw_os_error(), Some(libc::EFAULT)),
            _ => assert_eq!(ended.result.unwrap(), 4096),
        }
    }
}

#[test]
#[should_panic(expected = "the transfer is of other memory")]
fn spans_of_other_memory_are_refused() {
    let file = tempfile::tempfile().unwrap();
    let Some(mut ring) = ring(&file, 2) else {
        panic!("the transfer is of other memory, or would be");
    };
    let (memory, other) = (heap(4096), heap(4096));
    let place = spans(&other, &[(0, 4)]);
    let _ = ring.read(1, &memory, &transfer(&other, &place, 0), 0);
}

#[test]
fn refusal_by_a_seccomp_filter_has_a_name() {
    let name = "uring::tests::refusal_by_a_seccomp_filter_has_a_name";
    let child = in_child(name, || {
        for (errno, word) in [(libc::EPERM, "forbids"), (libc::ENOSYS, "has none")] {
            // A thread of its own: a filter stays for as long as its thread.
            let refused = thread::spawn(move || {
                forbid(libc::SYS_io_uring_setup, errno)?;
                let file = tempfile::tempfile()?;
                Ok::<_, io::Error>(Ring::new(file.as_fd(), 1).map(drop))
            });
            match refused.join().unwrap() {
                Err(error) => println!("SKIP: no seccomp here: {error}"),
                Ok(Err(error @ Error::Refused { .. })) => {
                    assert!(error.to_string().contains(word), "{error}");
                }
                Ok(other) => panic!("{other:?}"),
            }
        }
    });
    child.assert_success();
}

/// Makes a system call fail in this thread from now on.
fn forbid(call: libc::c_long, errno: i32) -> io::Result<()> {
    let op = |code: u32, jf, k| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf,
        k,
    };
    let errno = libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
    let mut code = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        op(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            1,
            u32::try_from(call).unwrap(),
        ),
        op(libc::BPF_RET | libc::BPF_K, 0, errno),
        op(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: code.as_mut_ptr(),
    };
    // SAFETY: the program lives through the call, and only forbids one call.
    let result = unsafe {
        match libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) {
            0 => libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            ),
            failed => failed,
        }
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

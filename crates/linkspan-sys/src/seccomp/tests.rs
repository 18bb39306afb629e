//! What is forbidden is called, in processes that have entered, and ends them.

use std::io::Write as _;

use super::*;
use crate::testing::in_child;

/// A call with its arguments, which does no harm should it be done.
type Made = (&'static str, libc::c_long, [libc::c_long; 5]);

const NONE: [libc::c_long; 5] = [0; 5];

const fn first(one: libc::c_long) -> [libc::c_long; 5] {
    [one, 0, 0, 0, 0]
}

/// What no kind may do; the arguments make no sense where the kernel would do it.
const NEVER: &[Made] = &[
    ("execve", libc::SYS_execve, NONE),
    ("execveat", libc::SYS_execveat, first(-1)),
    ("ptrace", libc::SYS_ptrace, first(0x4200)),
    ("bpf", libc::SYS_bpf, first(-1)),
    ("mount", libc::SYS_mount, NONE),
    ("pivot_root", libc::SYS_pivot_root, NONE),
    ("chroot", libc::SYS_chroot, NONE),
    ("keyctl", libc::SYS_keyctl, first(-1)),
    ("add_key", libc::SYS_add_key, NONE),
    ("request_key", libc::SYS_request_key, NONE),
    ("userfaultfd", libc::SYS_userfaultfd, first(-1)),
    ("process_vm_readv", libc::SYS_process_vm_readv, first(-1)),
    ("process_vm_writev", libc::SYS_process_vm_writev, first(-1)),
    ("kexec_load", libc::SYS_kexec_load, [0, -1, 0, 0, 0]),
    ("init_module", libc::SYS_init_module, NONE),
    ("finit_module", libc::SYS_finit_module, first(-1)),
    ("delete_module", libc::SYS_delete_module, NONE),
    ("setns", libc::SYS_setns, first(-1)),
    ("unshare", libc::SYS_unshare, NONE),
    ("perf_event_open", libc::SYS_perf_event_open, NONE),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, first(-1)),
    ("reboot", libc::SYS_reboot, NONE),
    ("swapon", libc::SYS_swapon, NONE),
    ("settimeofday", libc::SYS_settimeofday, NONE),
    ("clock_settime", libc::SYS_clock_settime, first(-1)),
    ("personality", libc::SYS_personality, first(0xffff_ffff)),
    ("capset", libc::SYS_capset, NONE),
    ("setuid", libc::SYS_setuid, first(-1)),
    ("setgroups", libc::SYS_setgroups, [1, 0, 0, 0, 0]),
    ("seccomp", libc::SYS_seccomp, first(-1)),
    ("kill", libc::SYS_kill, first(0)),
    (
        "tgkill of another process",
        libc::SYS_tgkill,
        [1, 1, 0, 0, 0],
    ),
    (
        "a signal to a descriptor",
        libc::SYS_pidfd_send_signal,
        first(-1),
    ),
    ("kcmp", libc::SYS_kcmp, first(-1)),
    ("quotactl", libc::SYS_quotactl, first(-1)),
    ("mknodat", libc::SYS_mknodat, first(-1)),
    ("mprotect to run", libc::SYS_mprotect, [0, 0, EXECUTE, 0, 0]),
    ("pkey_mprotect", libc::SYS_pkey_mprotect, [0, 0, 1, -1, 0]),
    ("shmget", libc::SYS_shmget, NONE),
    ("a new process", libc::SYS_clone, first(SIGCHLD)),
    ("a namespace", libc::SYS_clone, first(SIGCHLD | NEWUSER)),
    (
        "a thread in a namespace",
        libc::SYS_clone,
        first(THREAD | NEWUSER),
    ),
    ("other limits", libc::SYS_prlimit64, [0, 7, 1, 0, 0]),
    ("dumps of memory", libc::SYS_prctl, [DUMPABLE, 1, 0, 0, 0]),
    ("raw packets", libc::SYS_socket, [17, 3, 0, 0, 0]),
    ("raw packets of IP", libc::SYS_socket, [2, 3, -1, 0, 0]),
    ("pairs of datagrams", libc::SYS_socketpair, [1, 2, 0, 0, 0]),
    (
        "netlink of the firewall",
        libc::SYS_socket,
        [16, 3, 12, 0, 0],
    ),
    ("vsock", libc::SYS_socket, [40, 1, 0, 0, 0]),
    ("a pty's input", libc::SYS_ioctl, [-1, 0x5412, 0, 0, 0]),
    ("virtual machines", libc::SYS_ioctl, [-1, 0xae01, 0, 0, 0]),
    ("signals by files", libc::SYS_fcntl, [-1, 8, 0, 0, 0]),
];

const EXECUTE: libc::c_long = 4;
const ANONYMOUS: libc::c_long = 0x22;
const SIGCHLD: libc::c_long = 17;
const NEWUSER: libc::c_long = 0x1000_0000;
const THREAD: libc::c_long = 0x0001_0100;
const DUMPABLE: libc::c_long = 4;

/// What some kinds do, and which.
const SOME: &[(Made, &[Kind])] = &[
    (
        ("listening", libc::SYS_listen, first(-1)),
        &[Kind::DevicePlugin],
    ),
    (
        ("a file to write", libc::SYS_openat, [-1, 0, 1, 0, 0]),
        &[
            Kind::Gpu,
            Kind::DisplayServe,
            Kind::DisplayView,
            Kind::Vdpa,
            Kind::FcopyGuest,
            Kind::SmbServe,
        ],
    ),
    (
        ("a file to make", libc::SYS_openat, [-1, 0, 0o100, 0, 0]),
        &[Kind::FcopyGuest, Kind::SmbServe],
    ),
    (
        ("a mode", libc::SYS_fchmod, [-1, 0o600, 0, 0, 0]),
        &[
            Kind::Gpu,
            Kind::DisplayServe,
            Kind::DisplayView,
            Kind::FcopyGuest,
            Kind::SmbServe,
            Kind::Page,
        ],
    ),
    (
        ("news of a folder", libc::SYS_inotify_add_watch, first(-1)),
        &[Kind::FcopyGuest, Kind::SmbServe],
    ),
    (
        ("flags", libc::SYS_ioctl, [-1, 0x8008_6601, 0, 0, 0]),
        &[Kind::FcopyGuest, Kind::SmbServe],
    ),
    (
        (
            "memory to run, which some are answered that there is none of",
            libc::SYS_mmap,
            [0, 4096, EXECUTE, ANONYMOUS, -1],
        ),
        &[Kind::BlockOnShare, Kind::SmbMount],
    ),
    (
        ("a folder", libc::SYS_mkdirat, first(-1)),
        &[Kind::FcopyGuest, Kind::SmbServe],
    ),
    (
        ("another name", libc::SYS_renameat2, first(-1)),
        &[Kind::FcopyGuest, Kind::SmbServe],
    ),
    (
        ("TCP", libc::SYS_socket, [2, 1, -1, 0, 0]),
        &[
            Kind::BlockOnShare,
            Kind::SmbGateway,
            Kind::SmbServe,
            Kind::SmbMount,
        ],
    ),
    (
        ("TCP of version 6", libc::SYS_socket, [10, 1, -1, 0, 0]),
        &[
            Kind::BlockOnShare,
            Kind::SmbGateway,
            Kind::SmbServe,
            Kind::SmbMount,
        ],
    ),
    (
        ("UDP", libc::SYS_socket, [2, 2, -1, 0, 0]),
        &[Kind::BlockOnShare, Kind::SmbMount],
    ),
    (
        ("a Unix socket", libc::SYS_socket, [1, -1, 0, 0, 0]),
        &[
            Kind::BlockOnShare,
            Kind::Net,
            Kind::DisplayView,
            Kind::FcopyGuest,
            Kind::SmbMount,
            Kind::Page,
            Kind::DevicePlugin,
        ],
    ),
    (("io_uring", libc::SYS_io_uring_setup, NONE), &[]),
    (
        ("limits of a ring", libc::SYS_io_uring_register, first(-1)),
        &[],
    ),
    (
        ("a ring", libc::SYS_io_uring_enter, first(-1)),
        &[Kind::Block],
    ),
    (
        ("a carrier", libc::SYS_ioctl, [-1, 0x4004_54e2, 0, 0, 0]),
        &[Kind::Net],
    ),
    (
        ("tap's name", libc::SYS_ioctl, [-1, 0x8004_54d2, 0, 0, 0]),
        &[Kind::Net],
    ),
    (
        ("vhost", libc::SYS_ioctl, [-1, 0x8008_af00, 0, 0, 0]),
        &[Kind::Vdpa],
    ),
    (
        ("unmounting", libc::SYS_umount2, [0, -1, 0, 0, 0]),
        &[Kind::SmbMount],
    ),
    (
        ("descriptors of others", libc::SYS_pidfd_getfd, first(-1)),
        &[],
    ),
];

/// How a process ends that enters and then makes a call.
fn end(kind: Kind, mode: Mode, (what, number, arguments): Made) -> Option<i32> {
    // SAFETY: the child calls nothing but what a process with one thread may.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        enter(kind, &[], mode).unwrap();
        let [a, b, c, d, e] = arguments;
        // SAFETY: no argument is memory of ours, and those that name something name nothing.
        unsafe { libc::syscall(number, a, b, c, d, e, 0) };
        // SAFETY: ends this process.
        unsafe { libc::_exit(0) };
    }
    let mut status = -1;
    // SAFETY: the status is ours.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child, "{what}");
    libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
}

fn here(test: &str, body: impl FnOnce()) {
    in_child(test, || {
        match allowed([Group::Process].iter(), Mode::Kill) {
            Ok(_) => body(),
            Err(error) => panic!("{error}"),
        }
    })
    .assert_success();
}

#[test]
fn what_is_forbidden_ends_the_process_of_each_kind() {
    let test = "seccomp::tests::what_is_forbidden_ends_the_process_of_each_kind";
    here(test, || {
        for kind in Kind::ALL {
            for made in NEVER {
                let ended = end(kind, Mode::Kill, *made);
                assert_eq!(ended, Some(libc::SIGSYS), "{kind:?} does {}", made.0);
            }
        }
    });
}

#[test]
fn what_some_kinds_do_ends_the_others() {
    let test = "seccomp::tests::what_some_kinds_do_ends_the_others";
    here(test, || {
        for (made, kinds) in SOME {
            for kind in Kind::ALL {
                let wanted = (!kinds.contains(&kind)).then_some(libc::SIGSYS);
                let ended = end(kind, Mode::Kill, *made);
                assert_eq!(ended, wanted, "{kind:?} does {}", made.0);
            }
        }
    });
}

#[test]
fn what_is_logged_is_done() {
    let test = "seccomp::tests::what_is_logged_is_done";
    here(test, || {
        for made in NEVER {
            assert_eq!(end(Kind::Page, Mode::Log, *made), None, "{}", made.0);
        }
    });
}

/// Names are looked up without modules that a C library has not loaded yet.
#[test]
fn memory_to_run_is_not_had_where_names_are_looked_up() {
    let test = "seccomp::tests::memory_to_run_is_not_had_where_names_are_looked_up";
    here(test, || {
        enter(Kind::SmbMount, &[], Mode::Kill).unwrap();
        let none = std::ptr::null_mut();
        let (run, private) = (libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: memory that nobody else has.
        let memory = unsafe { libc::mmap(none, 4096, run, private, -1, 0) };
        assert_eq!(memory, libc::MAP_FAILED);
    });
}

/// Threads, memory, events, sockets, files to read, and words to say.
#[test]
fn what_each_process_does_goes_on() {
    let test = "seccomp::tests::what_each_process_does_goes_on";
    here(test, || {
        let (send, wait) = std::sync::mpsc::channel::<()>();
        // Of before; the filter is for it as well.
        let before = std::thread::spawn(move || {
            wait.recv().unwrap();
            std::fs::read_to_string("/proc/thread-self/status").unwrap()
        });
        enter(Kind::Page, &[], Mode::Kill).unwrap();
        send.send(()).unwrap();
        let after = std::thread::spawn(|| {
            let memory = vec![1_u8; 64 << 20];
            let sum: u64 = memory.iter().map(|&byte| u64::from(byte)).sum();
            assert_eq!(sum, 64 << 20);
            std::fs::read_to_string("/proc/thread-self/status").unwrap()
        });
        for status in [before.join().unwrap(), after.join().unwrap()] {
            assert!(status.contains("Seccomp:\t2"), "{status}");
            assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        }
        std::thread::available_parallelism().unwrap();
        let (mut one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        other.set_nonblocking(true).unwrap();
        one.write_all(b"word").unwrap();
        std::fs::read_dir("/proc/self/fd").unwrap().for_each(drop);
        std::fs::read_link("/proc/self/exe").unwrap();
    });
}

/// A panic is told of with where it was, and ends as it does elsewhere.
#[test]
fn a_panic_is_told_of_and_ends_by_its_own_signal() {
    let test = "seccomp::tests::a_panic_is_told_of_and_ends_by_its_own_signal";
    let ended = in_child(test, || {
        enter(Kind::Block, &[], Mode::Kill).unwrap();
        let trace = std::backtrace::Backtrace::force_capture().to_string();
        assert!(trace.contains("seccomp"), "{trace}");
        println!("told");
        std::process::abort();
    });
    ended.assert_signal(libc::SIGABRT);
}

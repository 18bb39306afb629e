//! The calls of each group. Those that x86-64 has from before other processors came are in
//! lists of their own.

use libc::{self as c, c_long};

use super::{Call, Check, call, when};
use crate::{dmabuf, fuse, tap, udmabuf, vdpa, vduse, vfio};

/// Something that a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// What each does: memory without programs in it, threads, clocks, signals to itself, what
    /// is open already, events, connections that it has and takes, files to read.
    Process,
    /// Makes durable what it wrote, keeps others out of it, makes holes.
    Durable,
    /// Uses the rings of `io_uring` that it has, which are restricted to its files.
    IoUring,
    /// Takes files and its sockets away.
    Remove,
    /// Makes, writes, names and removes files and folders.
    Files,
    /// Opens devices anew.
    OpenDevices,
    /// Connects to Unix sockets.
    Unix,
    /// Listens anew, at Unix sockets if it can make these alone.
    Listen,
    /// Makes connections of TCP.
    Tcp,
    /// Looks up names.
    Resolve,
    /// Asks after interfaces.
    Interfaces,
    /// Tap interfaces.
    Tap,
    /// Pictures in memory that others get.
    Pictures,
    /// vDPA devices of the kernel.
    VhostVdpa,
    /// Devices of ours in the kernel.
    Vduse,
    /// Devices that are passed through.
    Vfio,
    /// A file system in user space.
    Fuse,
}

impl Group {
    /// The calls that it allows, but for [`Self::controls`].
    pub(super) fn calls(self) -> impl Iterator<Item = &'static Call> {
        let lists: &[&[Call]] = match self {
            Self::Process => &[
                MEMORY,
                THREADS,
                TIME,
                OPEN_ALREADY,
                EVENTS,
                CONNECTIONS,
                READ,
                OLD,
            ],
            Self::Durable => &[DURABLE],
            Self::IoUring => &[IO_URING],
            Self::Remove => &[REMOVE, OLD_REMOVE],
            Self::Files => &[DURABLE, OPEN, FILES, REMOVE, OLD_FILES, OLD_REMOVE],
            Self::OpenDevices => &[DEVICES],
            Self::Unix => &[CONNECT, UNIX],
            Self::Listen => &[LISTEN],
            Self::Tcp => &[CONNECT, TCP],
            Self::Resolve => &[CONNECT, UNIX, NETLINK, TCP, UDP, MODULES],
            Self::Interfaces => &[NETLINK, CONNECT],
            Self::Vduse => &[OPEN, FOLDER],
            Self::Fuse => &[UNMOUNT],
            Self::Pictures => &[MEMORY_FILES],
            Self::Tap | Self::VhostVdpa | Self::Vfio => &[],
        };
        lists.iter().flat_map(|list| list.iter())
    }

    /// The requests of ioctl that it allows.
    pub(super) fn controls(self) -> &'static [u32] {
        match self {
            Self::Process => PLAIN,
            Self::Durable => BLOCK_DEVICES,
            Self::Files => &[FS_IOC_GETFLAGS],
            Self::Interfaces => &[SIOCGIFFLAGS],
            Self::Tap => tap::CALLS,
            Self::Pictures => PICTURES,
            Self::VhostVdpa => vdpa::CALLS,
            Self::Vduse => vduse::CALLS,
            Self::Vfio => vfio::CALLS,
            Self::Fuse => fuse::CALLS,
            _ => &[],
        }
    }
}

/// Its arguments are in memory, which a filter does not see.
pub(super) const CLONE3: c_long = c::SYS_clone3;

/// Memory with programs in it is wanted of mmap.
pub(super) const TO_RUN: Check = bits(2, c::PROT_EXEC, c::PROT_EXEC);

/// An argument is this number.
const fn is(argument: u8, number: i32) -> Check {
    bits(argument, -1, number)
}

/// These bits of an argument are these.
const fn bits(argument: u8, mask: i32, are: i32) -> Check {
    Check::Bits {
        argument,
        mask: mask.cast_unsigned(),
        are: are.cast_unsigned(),
    }
}

/// No page becomes a program.
const MEMORY: &[Call] = &[
    when(c::SYS_mmap, &[bits(2, c::PROT_EXEC, 0)]),
    when(c::SYS_mprotect, &[bits(2, c::PROT_EXEC, 0)]),
    call(c::SYS_munmap),
    call(c::SYS_mremap),
    call(c::SYS_madvise),
    call(c::SYS_mincore),
    call(c::SYS_brk),
    call(c::SYS_membarrier),
    call(c::SYS_memfd_create),
];

/// A thread, in no namespace of its own; a process is none.
const THREAD: i32 = c::CLONE_VM | c::CLONE_THREAD;
const NAMESPACES: i32 = c::CLONE_NEWNS
    | c::CLONE_NEWCGROUP
    | c::CLONE_NEWUTS
    | c::CLONE_NEWIPC
    | c::CLONE_NEWUSER
    | c::CLONE_NEWPID
    | c::CLONE_NEWNET;

const THREADS: &[Call] = &[
    when(c::SYS_clone, &[bits(0, THREAD | NAMESPACES, THREAD)]),
    // Answered by another filter, which comes before.
    call(CLONE3),
    call(c::SYS_exit),
    call(c::SYS_exit_group),
    call(c::SYS_futex),
    call(c::SYS_futex_waitv),
    call(c::SYS_set_robust_list),
    call(c::SYS_get_robust_list),
    call(c::SYS_set_tid_address),
    call(c::SYS_rseq),
    call(c::SYS_sched_yield),
    call(c::SYS_sched_getaffinity),
    call(c::SYS_sched_setaffinity),
    call(c::SYS_getcpu),
    call(c::SYS_gettid),
    call(c::SYS_getpid),
    call(c::SYS_getppid),
    call(c::SYS_getuid),
    call(c::SYS_geteuid),
    call(c::SYS_getgid),
    call(c::SYS_getegid),
    call(c::SYS_uname),
    call(c::SYS_sysinfo),
    call(c::SYS_getrusage),
    call(c::SYS_getrandom),
    when(c::SYS_prctl, &[is(0, c::PR_SET_NAME)]),
    when(c::SYS_prctl, &[is(0, c::PR_GET_NAME)]),
    // How large a page is, of who has not asked before.
    when(c::SYS_prctl, &[is(0, PR_GET_AUXV)]),
    // What a C library calls its memory by.
    when(c::SYS_prctl, &[is(0, c::PR_SET_VMA)]),
    when(c::SYS_prlimit64, &[Check::Null { argument: 2 }]),
    call(c::SYS_rt_sigaction),
    call(c::SYS_rt_sigprocmask),
    call(c::SYS_rt_sigreturn),
    call(c::SYS_sigaltstack),
    call(c::SYS_restart_syscall),
    // How a panic ends.
    when(c::SYS_tgkill, &[Check::Ourselves { argument: 0 }]),
    #[cfg(target_env = "musl")]
    call(c::SYS_tkill),
];

/// `PR_GET_AUXV` of linux/prctl.h.
const PR_GET_AUXV: i32 = 0x4155_5856;

const TIME: &[Call] = &[
    call(c::SYS_clock_gettime),
    call(c::SYS_clock_getres),
    call(c::SYS_clock_nanosleep),
    call(c::SYS_nanosleep),
    call(c::SYS_gettimeofday),
    call(c::SYS_times),
];

const OPEN_ALREADY: &[Call] = &[
    call(c::SYS_read),
    call(c::SYS_write),
    call(c::SYS_readv),
    call(c::SYS_writev),
    call(c::SYS_pread64),
    call(c::SYS_pwrite64),
    call(c::SYS_preadv),
    call(c::SYS_pwritev),
    call(c::SYS_preadv2),
    call(c::SYS_pwritev2),
    call(c::SYS_close),
    call(c::SYS_close_range),
    call(c::SYS_dup),
    call(c::SYS_dup3),
    when(c::SYS_fcntl, &[is(1, c::F_DUPFD)]),
    when(c::SYS_fcntl, &[is(1, c::F_DUPFD_CLOEXEC)]),
    when(c::SYS_fcntl, &[is(1, c::F_GETFD)]),
    when(c::SYS_fcntl, &[is(1, c::F_SETFD)]),
    when(c::SYS_fcntl, &[is(1, c::F_GETFL)]),
    when(c::SYS_fcntl, &[is(1, c::F_SETFL)]),
    when(c::SYS_fcntl, &[is(1, c::F_GET_SEALS)]),
    when(c::SYS_fcntl, &[is(1, c::F_ADD_SEALS)]),
    call(c::SYS_lseek),
    call(c::SYS_fstat),
    call(c::SYS_newfstatat),
    call(c::SYS_statx),
    call(c::SYS_fstatfs),
    call(c::SYS_ftruncate),
    call(c::SYS_fallocate),
];

/// Requests of ioctl: blocking or not, inherited or not, how many bytes there are, and whether
/// it is a terminal, of which size.
const PLAIN: &[u32] = &[
    0x5421,      // FIONBIO
    0x5450,      // FIONCLEX
    0x5451,      // FIOCLEX
    0x541b,      // FIONREAD
    0x5401,      // TCGETS
    0x802c_542a, // TCGETS2
    0x5413,      // TIOCGWINSZ
];

const EVENTS: &[Call] = &[
    call(c::SYS_ppoll),
    call(c::SYS_pselect6),
    call(c::SYS_epoll_create1),
    call(c::SYS_epoll_ctl),
    call(c::SYS_epoll_pwait),
    call(c::SYS_epoll_pwait2),
    call(c::SYS_eventfd2),
    call(c::SYS_pipe2),
];

const CONNECTIONS: &[Call] = &[
    call(c::SYS_accept),
    call(c::SYS_accept4),
    call(c::SYS_sendto),
    call(c::SYS_sendmsg),
    call(c::SYS_sendmmsg),
    call(c::SYS_recvfrom),
    call(c::SYS_recvmsg),
    call(c::SYS_recvmmsg),
    call(c::SYS_shutdown),
    call(c::SYS_getsockname),
    call(c::SYS_getpeername),
    call(c::SYS_getsockopt),
    call(c::SYS_setsockopt),
    // Datagrams of a pair could be sent to any socket.
    when(c::SYS_socketpair, &[is(0, c::AF_UNIX), STREAM]),
];

/// What makes a file, cuts it or writes to it.
const WRITES: i32 = c::O_ACCMODE | c::O_CREAT | c::O_TRUNC;

/// What tells of the machine and this process, and the names of functions for a panic.
const READ: &[Call] = &[
    when(c::SYS_openat, &[bits(2, WRITES, 0)]),
    call(c::SYS_getdents64),
    call(c::SYS_readlinkat),
    call(c::SYS_faccessat),
    call(c::SYS_faccessat2),
    call(c::SYS_statfs),
    call(c::SYS_getcwd),
    call(c::SYS_fadvise64),
];

#[cfg(target_arch = "x86_64")]
const OLD: &[Call] = &[
    when(c::SYS_open, &[bits(1, WRITES, 0)]),
    call(c::SYS_stat),
    call(c::SYS_lstat),
    call(c::SYS_access),
    call(c::SYS_readlink),
    call(c::SYS_dup2),
    call(c::SYS_pipe),
    call(c::SYS_poll),
    call(c::SYS_select),
    call(c::SYS_epoll_create),
    call(c::SYS_epoll_wait),
    call(c::SYS_eventfd),
    call(c::SYS_time),
    call(c::SYS_getrlimit),
    call(c::SYS_getdents),
    when(c::SYS_arch_prctl, &[is(0, ARCH_GET_FS)]),
];

/// `ARCH_GET_FS` of asm/prctl.h.
#[cfg(target_arch = "x86_64")]
const ARCH_GET_FS: i32 = 0x1003;

#[cfg(not(target_arch = "x86_64"))]
const OLD: &[Call] = &[];

const DURABLE: &[Call] = &[
    call(c::SYS_fsync),
    call(c::SYS_fdatasync),
    call(c::SYS_sync_file_range),
    call(c::SYS_syncfs),
    call(c::SYS_flock),
    when(c::SYS_fcntl, &[is(1, c::F_GETLK)]),
    when(c::SYS_fcntl, &[is(1, c::F_SETLK)]),
    when(c::SYS_fcntl, &[is(1, c::F_SETLKW)]),
    when(c::SYS_fcntl, &[is(1, c::F_OFD_GETLK)]),
    when(c::SYS_fcntl, &[is(1, c::F_OFD_SETLK)]),
    when(c::SYS_fcntl, &[is(1, c::F_OFD_SETLKW)]),
];

/// How large a block device is, in which blocks, and no more of these.
const BLOCK_DEVICES: &[u32] = &[
    0x1268,      // BLKSSZGET
    0x8008_1272, // BLKGETSIZE64
];

const IO_URING: &[Call] = &[
    call(c::SYS_io_uring_enter),
    // The one thing that is registered when a ring ends: it lets go of its file.
    when(c::SYS_io_uring_register, &[is(1, UNREGISTER_FILES)]),
];

/// `IORING_UNREGISTER_FILES`.
const UNREGISTER_FILES: i32 = 3;

/// What makes a file or cuts it: not what who opens a device does.
const MAKES: i32 = c::O_CREAT | c::O_TRUNC | c::O_TMPFILE;

const DEVICES: &[Call] = &[
    when(c::SYS_openat, &[bits(2, MAKES, 0)]),
    #[cfg(target_arch = "x86_64")]
    when(c::SYS_open, &[bits(1, MAKES, 0)]),
];

const OPEN: &[Call] = &[
    call(c::SYS_openat),
    call(c::SYS_openat2),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_open),
];

const REMOVE: &[Call] = &[call(c::SYS_unlinkat)];

#[cfg(target_arch = "x86_64")]
const OLD_REMOVE: &[Call] = &[call(c::SYS_unlink)];

#[cfg(not(target_arch = "x86_64"))]
const OLD_REMOVE: &[Call] = &[];

const FILES: &[Call] = &[
    call(c::SYS_mkdirat),
    call(c::SYS_linkat),
    call(c::SYS_symlinkat),
    #[cfg(not(target_arch = "riscv64"))]
    call(c::SYS_renameat),
    call(c::SYS_renameat2),
    call(c::SYS_truncate),
    call(c::SYS_fchmod),
    call(c::SYS_fchmodat),
    call(FCHMODAT2),
    call(c::SYS_fchown),
    call(c::SYS_fchownat),
    call(c::SYS_utimensat),
    call(c::SYS_umask),
    call(c::SYS_copy_file_range),
    call(c::SYS_sendfile),
    call(c::SYS_splice),
    call(c::SYS_getxattr),
    call(c::SYS_lgetxattr),
    call(c::SYS_fgetxattr),
    call(c::SYS_setxattr),
    call(c::SYS_lsetxattr),
    call(c::SYS_fsetxattr),
    call(c::SYS_listxattr),
    call(c::SYS_llistxattr),
    call(c::SYS_flistxattr),
    call(c::SYS_removexattr),
    call(c::SYS_lremovexattr),
    call(c::SYS_fremovexattr),
    // A client of a share may want to hear of what changes in a folder.
    call(c::SYS_inotify_init1),
    call(c::SYS_inotify_add_watch),
    call(c::SYS_inotify_rm_watch),
];

/// Whether names in a folder differ by their case alone, among others.
const FS_IOC_GETFLAGS: u32 = 0x8008_6601;

/// A folder for files of ours, which may be there.
const FOLDER: &[Call] = &[
    call(c::SYS_mkdirat),
    #[cfg(target_arch = "x86_64")]
    call(c::SYS_mkdir),
];

/// The same on all processors; not all C libraries name it.
const FCHMODAT2: c_long = 452;

#[cfg(target_arch = "x86_64")]
const OLD_FILES: &[Call] = &[
    call(c::SYS_creat),
    call(c::SYS_mkdir),
    call(c::SYS_rmdir),
    call(c::SYS_rename),
    call(c::SYS_link),
    call(c::SYS_symlink),
    call(c::SYS_chmod),
    call(c::SYS_chown),
    call(c::SYS_lchown),
    call(c::SYS_utime),
    call(c::SYS_utimes),
    call(c::SYS_futimesat),
];

#[cfg(not(target_arch = "x86_64"))]
const OLD_FILES: &[Call] = &[];

const CONNECT: &[Call] = &[call(c::SYS_connect), call(c::SYS_bind)];

const LISTEN: &[Call] = &[call(c::SYS_listen)];

const UNIX: &[Call] = &[when(c::SYS_socket, &[is(0, c::AF_UNIX)])];

/// A type of socket without its flags.
const STREAM: Check = bits(1, 0xf, c::SOCK_STREAM);
const DATAGRAM: Check = bits(1, 0xf, c::SOCK_DGRAM);

const TCP: &[Call] = &[
    when(c::SYS_socket, &[is(0, c::AF_INET), STREAM]),
    when(c::SYS_socket, &[is(0, c::AF_INET6), STREAM]),
];

const UDP: &[Call] = &[
    when(c::SYS_socket, &[is(0, c::AF_INET), DATAGRAM]),
    when(c::SYS_socket, &[is(0, c::AF_INET6), DATAGRAM]),
];

/// glibc loads modules to look names up with, some of them only once others have failed. The
/// filter that comes before answers that their programs cannot be mapped, and it does without.
const MODULES: &[Call] = &[call(c::SYS_mmap)];

const NETLINK: &[Call] = &[when(
    c::SYS_socket,
    &[is(0, c::AF_NETLINK), is(2, c::NETLINK_ROUTE)],
)];

const SIOCGIFFLAGS: u32 = 0x8913;

/// Memory in a file is for its owner alone.
const MEMORY_FILES: &[Call] = &[call(c::SYS_fchmod)];

const PICTURES: &[u32] = &[dmabuf::CALLS[0], udmabuf::CALLS[0], udmabuf::CALLS[1]];

const UNMOUNT: &[Call] = &[call(c::SYS_umount2)];

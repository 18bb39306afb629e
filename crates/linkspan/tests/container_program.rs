//! Links in a container: under the system calls that containerd's default profile refuses, which
//! those of `io_uring` are among.
#![cfg(target_arch = "x86_64")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use linkspan_testkit::census::settled;
use rustix::process::Signal;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

mod programs;

use programs::Program;

const PROGRAM: &str = env!("CARGO_BIN_EXE_linkspan");

/// The calls of x86-64 that the profile of containerd 2.0 does not have without capabilities;
/// of its predecessors, too, but for those of `io_uring`.
#[rustfmt::skip]
const REFUSED: &[libc::c_long] = &[
    libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register,
    libc::SYS_syslog, libc::SYS_uselib, libc::SYS_ustat, libc::SYS_sysfs, libc::SYS_vhangup,
    libc::SYS_pivot_root, libc::SYS__sysctl, libc::SYS_chroot, libc::SYS_acct,
    libc::SYS_settimeofday, libc::SYS_mount, libc::SYS_umount2, libc::SYS_swapon,
    libc::SYS_swapoff, libc::SYS_reboot, libc::SYS_sethostname, libc::SYS_setdomainname,
    libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_init_module,
    libc::SYS_delete_module,
    libc::SYS_quotactl,
    libc::SYS_nfsservctl, libc::SYS_getpmsg, libc::SYS_putpmsg,
    libc::SYS_afs_syscall, libc::SYS_tuxcall, libc::SYS_security, libc::SYS_lookup_dcookie,
    libc::SYS_clock_settime, libc::SYS_vserver, libc::SYS_mbind, libc::SYS_set_mempolicy,
    libc::SYS_get_mempolicy, libc::SYS_kexec_load, libc::SYS_add_key, libc::SYS_request_key,
    libc::SYS_keyctl, libc::SYS_migrate_pages, libc::SYS_unshare, libc::SYS_move_pages,
    libc::SYS_perf_event_open, libc::SYS_fanotify_init, libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at, libc::SYS_setns, libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev, libc::SYS_kcmp, libc::SYS_finit_module,
    libc::SYS_kexec_file_load, libc::SYS_bpf, libc::SYS_userfaultfd, libc::SYS_pkey_mprotect,
    libc::SYS_pkey_alloc, libc::SYS_pkey_free, libc::SYS_open_tree, libc::SYS_move_mount,
    libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fspick,
    libc::SYS_pidfd_getfd, libc::SYS_process_madvise, libc::SYS_mount_setattr,
    libc::SYS_quotactl_fd, libc::SYS_set_mempolicy_home_node,
    // Newer than the profile.
    libc::SYS_fchmodat2,
];

/// Namespaces, which no new process may be in.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP;

fn filter(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: libc::c_int) -> BpfProgram {
    let refused = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, TargetArch::x86_64);
    filter.unwrap().try_into().unwrap()
}

/// A program that a container's runtime started with its default profile.
fn contained<T: Send>(start: impl FnOnce() -> T + Send) -> T {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let namespace = |bit: libc::c_int| {
        let bit = u64::from(bit.unsigned_abs());
        let is = SeccompCmpOp::MaskedEq(bit);
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, is, bit);
        SeccompRule::new(vec![condition.unwrap()]).unwrap()
    };
    let bits = (0..31)
        .map(|bit| 1 << bit)
        .filter(|bit| NAMESPACES & bit != 0);
    rules.insert(libc::SYS_clone, bits.map(namespace).collect());
    let eperm = filter(rules, libc::EPERM);
    let enosys = filter(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        libc::ENOSYS,
    );
    // Of this thread, and of what it starts.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            apply_filter(&eperm).unwrap();
            apply_filter(&enosys).unwrap();
            start()
        });
        thread.join().unwrap()
    })
}

fn driver(kind: &str, socket: &Path, words: &[&str]) -> (bool, String) {
    let mut command = Command::new(PROGRAM);
    command.args(["driver", kind, "--socket-path"]).arg(socket);
    let output = command.args(words).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

/// A plane as in a container; its disk does without `io_uring`, and says so.
#[test]
fn a_plane_works_under_the_default_profile_of_a_container() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let plane = "[plane]\ncontrol = \"control.sock\"\n\
        [link.disk]\ncommand = \"blk\"\nsocket-path = \"disk.sock\"\nimage = \"disk.img\"\nqueues = 2\n\
        [link.bare]\ncommand = \"blk\"\nsocket-path = \"bare.sock\"\nimage = \"bare.img\"\n\
        no-map = true\n\
        [link.lan]\ncommand = \"net\"\nport = [\"vhost-user:lan.sock\", \"responder\"]\n\
        [link.screen]\ncommand = \"gpu\"\nsocket-path = \"screen.sock\"\n";
    fs::write(at("plane.toml"), plane).unwrap();
    for image in ["disk.img", "bare.img"] {
        fs::write(at(image), vec![0; 16 << 20]).unwrap();
    }
    let words = [at("plane.toml").into_os_string(), "--json".into()];
    let up = contained(|| Program::start("up", words));
    let mut served = || {
        let mut names = ["disk", "bare", "lan", "screen"].iter();
        names.all(|name| at(&format!("{name}.sock")).exists())
    };
    let served = (0..6).any(|_| settled(&mut served));
    assert!(served, "{}", up.complained());
    up.await_error("a seccomp filter or security module forbids it, as containers do");
    let words = ["verify", "--overwrite", "--seconds", "1", "--length", "8M"];
    for disk in ["disk", "bare"] {
        let socket = at(&format!("{disk}.sock"));
        let (works, said) = driver("blk", &socket, &words);
        assert!(works, "{disk}: {said}\n{}", up.complained());
    }
    let (works, said) = driver("net", &at("lan.sock"), &["info"]);
    assert!(works, "{said}\n{}", up.complained());
    up.signal(Signal::TERM);
    let (status, lines, errors) = up.end();
    assert_eq!(status, Some(0), "{errors}");
    // No process of theirs ended before.
    let started = lines.iter().filter(|it| it["event"] == "started");
    assert_eq!(started.count(), 4, "{lines:?}");
}

/// The filter is what it is said to be.
#[test]
fn a_container_has_no_io_uring_and_no_new_namespaces() {
    let tried = contained(|| {
        let unshare = Command::new("unshare").args(["--user", "true"]).output();
        let clone = Command::new("true").status();
        (
            unshare.map(|it| it.status.success()),
            clone.map(|it| it.success()),
        )
    });
    assert!(!tried.0.unwrap_or(false));
    assert!(tried.1.unwrap());
}

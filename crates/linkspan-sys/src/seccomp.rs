//! What a process may still call once it is set up: a filter of system calls (seccomp) for
//! each kind of process, of lists that allow. Whatever is not on them ends the process.
//!
//! A filter is of **groups**: what a process does, such as writing files. What a call does
//! to whom is in its arguments, so some calls are allowed with these alone. Where a C library
//! or a kernel has a new and an old call for the same, both are there, on each processor: an
//! honest process that is ended for a call that is rare is worse than a list that is longer.

mod calls;
mod kinds;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

pub use calls::Group;
pub use kinds::Kind;

/// What becomes of a process that calls what it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All of it ends at once, by SIGSYS.
    Kill,
    /// The kernel's log says it (audit, type 1326), and the call is done.
    Log,
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This kernel has no filters, or hides them.
    #[error("this kernel filters no system calls")]
    Missing,
    /// The lists make no filter, or the system refuses it.
    #[error("cannot filter system calls: {0}")]
    Refused(#[from] seccompiler::Error),
}

impl From<seccompiler::BackendError> for Error {
    fn from(error: seccompiler::BackendError) -> Self {
        Self::Refused(error.into())
    }
}

/// A call, and what its arguments have to be.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: libc::c_long,
    when: &'static [Check],
}

/// What an argument has to be.
#[derive(Clone, Copy, Debug)]
enum Check {
    /// These bits of the lower 32 of an argument are these: a C library may extend the sign.
    Bits { argument: u8, mask: u32, are: u32 },
    /// A pointer is null.
    Null { argument: u8 },
    /// A number is that of this process.
    Ourselves { argument: u8 },
}

/// Requests of ioctl as the kernel takes them, whatever their type in a C library is.
macro_rules! requests {
    ($($request:expr),* $(,)?) => {{
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::unnecessary_cast,
            reason = "C libraries differ in the type, and the kernel takes 32 bits"
        )]
        const ALL: &[u32] = &[$($request as u32),*];
        ALL
    }};
}
pub(crate) use requests;

const fn call(number: libc::c_long) -> Call {
    Call { number, when: &[] }
}

const fn when(number: libc::c_long, when: &'static [Check]) -> Call {
    Call { number, when }
}

/// Leaves all threads of this process the calls of a kind and of these groups, and those that
/// each process makes. For good, and for what it starts. New privileges are given up as well.
///
/// # Errors
/// [`Error`]. New privileges may be gone then.
pub fn enter(kind: Kind, more: &[Group], mode: Mode) -> Result<(), Error> {
    let groups = [Group::Process].iter().chain(kind.groups()).chain(more);
    let looks_up = kind.groups().contains(&Group::Resolve);
    let programs = [answered(looks_up)?, allowed(groups, mode)?];
    for program in &programs {
        apply_filter_all_threads(program).map_err(|error| match error {
            seccompiler::Error::Seccomp(error) if is_missing(&error) => Error::Missing,
            error => error.into(),
        })?;
    }
    Ok(())
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOSYS | libc::EINVAL | libc::EPERM | libc::EACCES)
    )
}

/// A filter that lets through what is on the lists of these groups.
fn allowed<'a>(groups: impl Iterator<Item = &'a Group>, mode: Mode) -> Result<BpfProgram, Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut always = Vec::new();
    for group in groups {
        for call in group.calls() {
            let rule = rules.entry(call.number).or_default();
            match call.when {
                [] => always.push(call.number),
                checks => rule.push(SeccompRule::new(conditions(checks)?)?),
            }
        }
        for &are in group.controls() {
            let mask = u32::MAX;
            let argument = 1;
            let check = Check::Bits {
                argument,
                mask,
                are,
            };
            let rule = SeccompRule::new(conditions(&[check])?)?;
            rules.entry(libc::SYS_ioctl).or_default().push(rule);
        }
    }
    // No rule is: whatever its arguments are.
    for number in always {
        rules.entry(number).or_default().clear();
    }
    let otherwise = match mode {
        Mode::Kill => SeccompAction::KillProcess,
        Mode::Log => SeccompAction::Log,
    };
    Ok(SeccompFilter::new(rules, otherwise, SeccompAction::Allow, ARCH)?.try_into()?)
}

/// A filter for calls that are not done, and that the C libraries have something else for:
/// the one whose arguments no filter sees, as threads are made by clone; and, where names are
/// looked up, that by which a module gets its program.
fn answered(looks_up: bool) -> Result<BpfProgram, Error> {
    let mut rules = BTreeMap::from([(calls::CLONE3, Vec::new())]);
    if looks_up {
        let program = SeccompRule::new(conditions(&[calls::TO_RUN])?)?;
        rules.insert(libc::SYS_mmap, vec![program]);
    }
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, missing, ARCH)?.try_into()?)
}

fn conditions(checks: &[Check]) -> Result<Vec<SeccompCondition>, Error> {
    let condition = |check: &Check| {
        let (argument, length, how, value) = match *check {
            Check::Bits {
                argument,
                mask,
                are,
            } => {
                let how = SeccompCmpOp::MaskedEq(mask.into());
                (argument, SeccompCmpArgLen::Dword, how, are.into())
            }
            Check::Null { argument } => (argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0),
            Check::Ourselves { argument } => {
                let number = std::process::id().into();
                (argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, number)
            }
        };
        SeccompCondition::new(argument, length, how, value)
    };
    let all: Result<Vec<_>, _> = checks.iter().map(condition).collect();
    Ok(all?)
}

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;
#[cfg(target_arch = "riscv64")]
const ARCH: TargetArch = TargetArch::riscv64;

//! Capabilities: which of root's rights a process keeps.

use std::io;

use rustix::io::Errno;
pub use rustix::thread::CapabilitySet;
use rustix::thread::{
    CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// Leaves this thread, and what it starts from now on, no capabilities but `kept`, of which it
/// has what it had. For good: no program gives them back.
///
/// # Errors
/// The system refuses; some may be gone then.
pub fn keep(kept: CapabilitySet) -> io::Result<()> {
    for capability in all() {
        if kept.contains(capability) {
            continue;
        }
        // Who may not take it from the set never gets it by new privileges, which are given up.
        match remove_capability_from_bounding_set(capability) {
            Ok(()) | Err(Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Kernels before 4.3 have no such set.
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let now = capabilities(None)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: now.effective & kept,
            permitted: now.permitted & kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}

/// All that this kernel knows.
fn all() -> impl Iterator<Item = CapabilitySet> {
    let all = (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number));
    all.take_while(|&capability| capability_is_in_bounding_set(capability).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_child_alone;

    fn set(name: &str) -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(line.unwrap().trim_start_matches([':', '\t']), 16).unwrap()
    }

    #[test]
    fn what_is_not_kept_is_gone_from_each_set() {
        let test = "capabilities::tests::what_is_not_kept_is_gone_from_each_set";
        in_child_alone(test, || {
            let before = ["CapPrm", "CapEff"].map(set);
            if before[1] == 0 {
                println!("SKIP: capabilities are root's");
            }
            let kept = CapabilitySet::DAC_OVERRIDE | CapabilitySet::NET_ADMIN;
            keep(kept).unwrap();
            assert_eq!(
                ["CapPrm", "CapEff"].map(set),
                before.map(|set| set & kept.bits())
            );
            assert_eq!(["CapInh", "CapAmb"].map(set), [0, 0]);
            if before[1] & CapabilitySet::SETPCAP.bits() != 0 {
                assert_eq!(set("CapBnd") & !kept.bits(), 0);
            }
            // Less is possible, and more is not.
            keep(CapabilitySet::all()).unwrap();
            assert_eq!(set("CapEff"), before[1] & kept.bits());
            keep(CapabilitySet::empty()).unwrap();
            assert_eq!(["CapPrm", "CapEff"].map(set), [0, 0]);
        })
        .assert_success();
    }
}

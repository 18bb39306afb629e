//! VLAN tags and sets of VLANs (IEEE 802.1Q).

use super::packet::{ETHERNET_LEN, ETHERTYPE_VLAN, be16};

/// How many VLAN numbers there are; 0 means that a tag has only a priority.
pub const VLANS: u16 = 4096;

/// The VLAN number in the tag of a frame that begins with `head`, if it has one.
#[inline]
pub fn vlan_tag(head: &[u8]) -> Option<u16> {
    if be16(head, ETHERNET_LEN - 2) != Some(ETHERTYPE_VLAN) {
        return None;
    }
    Some(be16(head, ETHERNET_LEN)? % VLANS)
}

/// A set of VLAN numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VlanSet([u64; VLANS as usize / 64]);

impl VlanSet {
    /// No VLAN.
    pub const NONE: Self = Self([0; VLANS as usize / 64]);
    /// Every VLAN.
    pub const ALL: Self = Self([u64::MAX; VLANS as usize / 64]);

    /// Whether `vlan` is in it; a number that there is not is in none.
    #[inline]
    pub fn contains(&self, vlan: u16) -> bool {
        let word = self.0.get(usize::from(vlan / 64));
        word.is_some_and(|word| word & (1 << (vlan % 64)) != 0)
    }

    /// Puts `vlan` in or takes it out; `false` when there is no such number.
    pub fn set(&mut self, vlan: u16, member: bool) -> bool {
        let Some(word) = self.0.get_mut(usize::from(vlan / 64)) else {
            return false;
        };
        if member {
            *word |= 1 << (vlan % 64);
        } else {
            *word &= !(1 << (vlan % 64));
        }
        true
    }

    pub(super) fn words(&self) -> &[u64] {
        &self.0
    }

    pub(super) fn words_mut(&mut self) -> &mut [u64] {
        &mut self.0
    }
}

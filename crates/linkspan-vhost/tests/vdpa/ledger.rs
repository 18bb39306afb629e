//! What the kernel knows of a device, with its rules: a call that they forbid is a
//! mistake of ours.

use std::collections::BTreeSet;

use linkspan_vhost::vdpa::{Mapping, Reply, Step, Wire, status};

/// The kernel's books.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    persist: bool,
    can_suspend: bool,
    owned: bool,
    status: u8,
    suspended: bool,
    batch: Option<u32>,
    pub(crate) mapped: Vec<Mapping>,
    wires: BTreeSet<(u16, u8)>,
    config_call: bool,
    groups: BTreeSet<(u32, u32)>,
    bases: Vec<(u16, u32)>,
    /// Bits of the status that the device does not take.
    pub(crate) refuses: u8,
    /// It breaks as it starts.
    pub(crate) breaks: bool,
    pub(crate) log: Vec<Step>,
}

/// All but the log.
pub(crate) type Comparable = (u8, bool, Option<u32>, Vec<(u32, u64)>, usize, bool);

impl Ledger {
    pub(crate) fn new(kind: u64) -> Self {
        Self {
            persist: kind & 1 << 8 != 0,
            can_suspend: kind & 1 << 4 != 0,
            owned: false,
            status: 0,
            suspended: false,
            batch: None,
            mapped: Vec::new(),
            wires: BTreeSet::new(),
            config_call: false,
            groups: BTreeSet::new(),
            bases: Vec::new(),
            refuses: 0,
            breaks: false,
            log: Vec::new(),
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.status & status::DRIVER_OK != 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.comparable() == (0, false, None, Vec::new(), 0, false)
    }

    pub(crate) fn comparable(&self) -> Comparable {
        let mut mapped: Vec<_> = self.mapped.iter().map(|it| (it.asid, it.iova.0)).collect();
        mapped.sort_unstable();
        let held = self.wires.len() + self.groups.len();
        (
            self.status,
            self.suspended,
            self.batch,
            mapped,
            held,
            self.config_call,
        )
    }

    /// Carries a step out as the kernel does.
    ///
    /// # Panics
    /// When the kernel would refuse it.
    pub(crate) fn carry_out(&mut self, step: &Step) -> Reply {
        self.log.push(step.clone());
        let live = self.is_live();
        match step {
            Step::SetOwner => {
                assert!(!self.owned, "EBUSY");
                self.owned = true;
            }
            Step::SetBackendFeatures(_) => assert!(self.mapped.is_empty(), "once, at first"),
            Step::SetStatus(0) => {
                self.status = 0;
                self.suspended = false;
                // What the parent had is gone, while the kernel's own list stays.
                if !self.persist {
                    self.batch = None;
                }
            }
            Step::SetStatus(new) => {
                assert_eq!(self.status & !new, 0, "EINVAL: a bit cannot go");
                self.status |= new & !self.refuses;
                if self.breaks && self.is_live() {
                    self.status |= status::NEEDS_RESET;
                }
            }
            Step::CheckStatus(_) => return Reply::Status(self.status),
            Step::SetFeatures(_) => assert_eq!(self.status & status::FEATURES_OK, 0, "EBUSY"),
            Step::SetGroupAsid { group, asid } => {
                self.groups.retain(|(known, _)| known != group);
                if *asid != 0 {
                    self.groups.insert((*group, *asid));
                }
            }
            Step::Batch { asid, begin } => {
                if let Some(open) = self.batch {
                    assert_eq!(open, *asid, "EINVAL");
                }
                self.batch = begin.then_some(*asid);
            }
            Step::Map(mapping) => {
                self.in_batch(mapping.asid);
                let (start, end) = (mapping.iova.0, mapping.iova.0 + mapping.len);
                let overlaps = self.mapped.iter().any(|it| {
                    it.asid == mapping.asid && it.iova.0 < end && start < it.iova.0 + it.len
                });
                assert!(!overlaps, "EEXIST: {mapping:x?}");
                self.mapped.push(*mapping);
            }
            Step::Unmap(mapping) => {
                self.in_batch(mapping.asid);
                let before = self.mapped.len();
                self.mapped.retain(|it| it != mapping);
                assert_eq!(
                    self.mapped.len() + 1,
                    before,
                    "it was not mapped: {mapping:x?}"
                );
            }
            step @ (Step::SetSize { .. }
            | Step::SetBase { .. }
            | Step::SetAddress { .. }
            | Step::Wire { .. }
            | Step::ConfigCall { .. }
            | Step::Enable { .. }) => self.carry_out_of_ring(step),
            Step::Suspend => {
                assert!(live && self.can_suspend && !self.suspended);
                self.suspended = true;
            }
            Step::Resume => {
                assert!(live && self.suspended);
                self.suspended = false;
            }
            Step::ReadBase { ring } => {
                assert!(live && self.suspended, "it is no base before that");
                let known = self.bases.iter().find(|(known, _)| known == ring);
                return Reply::Base(known.expect("it was set").1 + 7);
            }
        }
        Reply::Done
    }

    /// Steps about one ring.
    fn carry_out_of_ring(&mut self, step: &Step) {
        let live = self.is_live();
        match step {
            Step::SetSize { .. } => assert!(self.owned && !live, "EPERM, EBUSY"),
            Step::SetBase { ring, base } => {
                assert!(self.owned && !live, "EPERM, EINVAL");
                self.bases.retain(|(known, _)| known != ring);
                self.bases.push((*ring, *base));
            }
            Step::SetAddress { .. } => assert!(self.owned && !live, "EPERM, EINVAL"),
            Step::Wire { ring, wire, bind } => {
                assert!(self.owned, "EPERM");
                let wire = match wire {
                    Wire::Kick => 0,
                    Wire::Call => 1,
                    Wire::Err => 2,
                };
                if *bind {
                    self.wires.insert((*ring, wire));
                } else {
                    assert!(self.wires.remove(&(*ring, wire)), "it was not there");
                }
            }
            Step::ConfigCall { bind } => {
                assert_ne!(self.config_call, *bind);
                self.config_call = *bind;
            }
            Step::Enable { .. } => assert!(self.owned, "EPERM"),
            other => panic!("{other:?} is about no ring"),
        }
    }

    fn in_batch(&self, asid: u32) {
        assert!(self.owned, "EPERM");
        assert!(self.batch.is_none_or(|open| open == asid), "EINVAL");
    }
}

impl PartialEq for Ledger {
    fn eq(&self, other: &Self) -> bool {
        self.comparable() == other.comparable()
    }
}

//! RDMA reads or writes that wait or are under way: each is split by the peer's
//! descriptors, by what one piece of work may carry, and by how many may be under way.

use alloc::collections::VecDeque;

use linkspan_mem::fault::{Injected, try_with_capacity};
use linkspan_rdma::verbs::Slice;

use crate::connection::TransferId;
use crate::descriptor::{self, Descriptor};
use crate::error::{Misuse, Refusal};
use crate::gather::{self, Gather};

/// Descriptors and slices of all transfers that wait, for each of them on average.
const PARTS_PER_TRANSFER: usize = 32;
const SLICES_PER_TRANSFER: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Transfer {
    id: TransferId,
    /// Bytes that were not posted.
    left: u64,
    /// Works that are under way.
    outstanding: u32,
    refused: Option<Refusal>,
}

/// A part that is to be posted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) id: TransferId,
    pub(crate) remote: Descriptor,
    /// Whether it is the last one of its transfer.
    pub(crate) last: bool,
}

#[derive(Debug)]
pub(crate) struct Transfers {
    transfers: VecDeque<Transfer>,
    parts: VecDeque<Descriptor>,
    slices: VecDeque<Slice>,
    max: usize,
    /// Transfers that were taken, and that were posted as a whole or given up.
    taken: u64,
    posted: u64,
    outstanding: usize,
}

impl Transfers {
    /// Room for `max` transfers, which is acquired with the first of them: many
    /// connections never have one.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            transfers: VecDeque::new(),
            parts: VecDeque::new(),
            slices: VecDeque::new(),
            max,
            taken: 0,
            posted: 0,
            outstanding: 0,
        }
    }

    /// All room, or nothing.
    fn acquire(&mut self) -> Result<(), Injected> {
        let transfers = try_with_capacity(self.max)?;
        let parts = try_with_capacity(self.max * PARTS_PER_TRANSFER)?;
        let slices = try_with_capacity(self.max * SLICES_PER_TRANSFER)?;
        (self.transfers, self.parts, self.slices) = (transfers.into(), parts.into(), slices.into());
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.transfers.len()
    }

    /// Works under way.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Transfers that were ever taken.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Transfers that were posted as a whole.
    pub(crate) fn posted(&self) -> u64 {
        self.posted
    }

    /// Takes a transfer of `len` bytes, which is that of `local`, at `offset` of what is
    /// described.
    pub(crate) fn push(
        &mut self,
        id: TransferId,
        local: &[Slice],
        len: u32,
        remote: &[Descriptor],
        offset: u64,
    ) -> Result<(), Misuse> {
        let full = |what, max| Misuse::Full { what, max };
        if self.transfers.len() == self.max {
            return Err(full("transfers", self.max));
        }
        let slices_max = self.max * SLICES_PER_TRANSFER;
        if local.len() > slices_max - self.slices.len() {
            return Err(full("slices", slices_max));
        }
        let parts_max = self.max * PARTS_PER_TRANSFER;
        let parts = descriptor::part(remote, offset, u64::from(len))?;
        if remote.len() > parts_max - self.parts.len() {
            return Err(full("descriptors", parts_max));
        }
        if self.transfers.capacity() == 0 {
            self.acquire()?;
        }
        self.parts.extend(parts);
        self.slices
            .extend(local.iter().filter(|slice| slice.len > 0));
        self.taken += 1;
        self.transfers.push_back(Transfer {
            id,
            left: u64::from(len),
            outstanding: 0,
            refused: None,
        });
        Ok(())
    }

    /// The next part: at most `bytes` bytes in at most `slices` slices, which `local` is
    /// then.
    pub(crate) fn part(&mut self, bytes: u32, slices: usize, local: &mut Gather) -> Option<Part> {
        let transfer = self.transfers.iter_mut().find(|one| one.left > 0)?;
        let remote = self.parts.front_mut()?;
        let len = local.take(&mut self.slices, bytes.min(remote.length), slices);
        let target = remote.split(len);
        if remote.length == 0 {
            self.parts.pop_front();
        }
        transfer.left -= u64::from(len);
        transfer.outstanding += 1;
        self.outstanding += 1;
        let last = transfer.left == 0;
        self.posted += u64::from(last);
        Some(Part {
            id: transfer.id,
            remote: target,
            last,
        })
    }

    /// A part is done, or not under way after all. `refused`: the rest is given up.
    pub(crate) fn done(&mut self, id: TransferId, refused: Option<Refusal>) {
        self.outstanding = self.outstanding.saturating_sub(1);
        let mut transfers = self.transfers.iter_mut();
        let Some(transfer) = transfers.find(|transfer| transfer.id == id) else {
            return;
        };
        transfer.outstanding -= 1;
        if let Some(why) = refused {
            transfer.refused.get_or_insert(why);
            let left = core::mem::take(&mut transfer.left);
            self.posted += u64::from(left > 0);
            gather::skip(&mut self.slices, left);
            self.skip_parts(left);
        }
    }

    fn skip_parts(&mut self, mut bytes: u64) {
        while let Some(front) = self.parts.front_mut().filter(|_| bytes > 0) {
            let len = u32::try_from(bytes).map_or(front.length, |left| left.min(front.length));
            let _ = front.split(len);
            bytes -= u64::from(len);
            if front.length == 0 {
                self.parts.pop_front();
            }
        }
    }

    /// Whether a transfer is given up of which some works are still under way.
    pub(crate) fn are_refused(&self) -> bool {
        self.transfers.iter().any(|one| one.refused.is_some())
    }

    /// A transfer that is over, and how.
    pub(crate) fn finished(&mut self) -> Option<(TransferId, Option<Refusal>)> {
        let over = |transfer: &Transfer| transfer.left == 0 && transfer.outstanding == 0;
        let index = self.transfers.iter().position(over)?;
        let transfer = self.transfers.remove(index)?;
        Some((transfer.id, transfer.refused))
    }

    /// Nothing will be posted any more; with `all`, nothing is under way either.
    pub(crate) fn end(&mut self, why: Refusal, all: bool) {
        for transfer in &mut self.transfers {
            transfer.left = 0;
            transfer.refused.get_or_insert(why);
            if all {
                transfer.outstanding = 0;
            }
        }
        self.slices.clear();
        self.parts.clear();
        self.posted = self.taken;
        if all {
            self.outstanding = 0;
        }
    }
}

//! What the server has taken and not made durable yet: if it is lost there, with a server that
//! was switched off, it is written again.
//!
//! No two runs overlap: of what was written twice the last one is there. So they may be written
//! in any order, and again at any time, and no byte is ever older than one that was read.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

/// What each change costs besides its bytes.
const AROUND: u64 = 256;

/// What a run of bytes is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// These, from this one on.
    Data(Arc<[u8]>, usize),
    /// Zeroes.
    Zeroes,
}

impl Content {
    /// The same without its first bytes.
    fn from(&self, skipped: u64) -> Self {
        match self {
            // A run is within what there is in memory.
            Self::Data(data, at) => Self::Data(
                Arc::clone(data),
                at + usize::try_from(skipped).unwrap_or(usize::MAX),
            ),
            Self::Zeroes => Self::Zeroes,
        }
    }
}

#[derive(Clone, Debug)]
struct Run {
    end: u64,
    content: Content,
    /// The number of the change.
    change: u64,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// By where they begin.
    runs: BTreeMap<u64, Run>,
    /// What each change since costs, those that others have covered included: their bytes may
    /// still be there.
    costs: VecDeque<u64>,
    cost: u64,
    /// Changes until now.
    changes: u64,
}

impl Kept {
    /// Takes note of a change that the server has taken.
    pub(super) fn add(&mut self, range: Range<u64>, content: Content) {
        self.cut(&range);
        let cost = AROUND
            + match &content {
                Content::Data(data, _) => data.len() as u64,
                Content::Zeroes => 0,
            };
        self.changes += 1;
        self.costs.push_back(cost);
        self.cost += cost;
        let run = Run {
            end: range.end,
            content,
            change: self.changes,
        };
        self.runs.insert(range.start, run);
    }

    /// A range is not there any more: it is not written again.
    pub(super) fn forget(&mut self, range: Range<u64>) {
        if !range.is_empty() {
            self.cut(&range);
        }
    }

    /// Forgets what there is of a range.
    fn cut(&mut self, range: &Range<u64>) {
        if let Some((&start, before)) = self.runs.range_mut(..range.start).next_back()
            && before.end > range.start
        {
            let end = std::mem::replace(&mut before.end, range.start);
            if end > range.end {
                let rest = Run {
                    end,
                    content: before.content.from(range.end - start),
                    change: before.change,
                };
                self.runs.insert(range.end, rest);
            }
        }
        while let Some((&start, run)) = self.runs.range(range.clone()).next() {
            let run = run.clone();
            self.runs.remove(&start);
            if run.end > range.end {
                let rest = Run {
                    content: run.content.from(range.end - start),
                    ..run
                };
                self.runs.insert(range.end, rest);
            }
        }
    }

    /// The number of the last change.
    pub(super) fn last(&self) -> u64 {
        self.changes
    }

    /// What was changed up to this number is durable.
    pub(super) fn durable(&mut self, last: u64) {
        self.runs.retain(|_, run| run.change > last);
        let first = self.changes - self.costs.len() as u64;
        for _ in first..last {
            self.cost -= self.costs.pop_front().unwrap_or(0);
        }
    }

    /// Bytes that it takes, at most.
    pub(super) fn cost(&self) -> u64 {
        self.cost
    }

    /// Whether there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The runs, in order of their place.
    pub(super) fn runs(&self) -> impl Iterator<Item = (Range<u64>, &Content)> {
        self.runs
            .iter()
            .map(|(start, run)| (*start..run.end, &run.content))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEN: u64 = 64;

    /// A place or a length below 64.
    fn at(place: u64) -> usize {
        usize::try_from(place).unwrap()
    }

    /// What a change writes to a place.
    fn value(number: usize, place: u64) -> u8 {
        u8::try_from(number ^ at(place)).unwrap()
    }

    /// What is to be written again, byte by byte.
    fn bytes(kept: &Kept) -> Vec<Option<u8>> {
        let mut all = vec![None; at(LEN)];
        let mut end = 0;
        for (range, content) in kept.runs() {
            assert!(range.start >= end && range.end > range.start);
            end = range.end;
            for place in range.clone() {
                all[at(place)] = Some(match content {
                    Content::Data(data, skip) => data[skip + at(place - range.start)],
                    Content::Zeroes => 0,
                });
            }
        }
        all
    }

    proptest! {
        #[test]
        fn it_has_what_was_last_written_and_not_flushed(
            steps in prop::collection::vec((0..LEN, 1..LEN, 0..8_u8, 0..6_usize), 1..60)
        ) {
            let mut kept = Kept::default();
            let mut model: Vec<Option<(u8, u64)>> = vec![None; at(LEN)];
            let mut last = 0;
            for (number, (start, len, back, kind)) in steps.into_iter().enumerate() {
                let range = start..(start + len).min(LEN);
                match kind {
                    0 => {
                        // A flush that was asked for some changes ago.
                        let until = kept.last().saturating_sub(u64::from(back)).max(last);
                        last = until;
                        kept.durable(until);
                        for byte in &mut model {
                            *byte = byte.filter(|(_, change)| *change > until);
                        }
                        continue;
                    }
                    1 => kept.add(range.clone(), Content::Zeroes),
                    _ => {
                        let data: Vec<u8> = range.clone().map(|place| value(number, place)).collect();
                        kept.add(range.clone(), Content::Data(data.into(), 0));
                    }
                }
                for place in range {
                    let value = if kind == 1 { 0 } else { value(number, place) };
                    model[at(place)] = Some((value, kept.last()));
                }
                let expected: Vec<_> = model.iter().map(|byte| byte.map(|it| it.0)).collect();
                prop_assert_eq!(bytes(&kept), expected);
            }
            kept.durable(kept.last());
            prop_assert!(kept.is_empty() && kept.cost() == 0);
        }
    }
}

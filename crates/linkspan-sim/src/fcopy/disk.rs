//! The guest's disk of the model, and what may be on it.

use std::collections::BTreeMap;

use linkspan_vmbus::fcopy::{Effect, Place, Target};
use linkspan_vmbus::ic::Status;

/// A file that is being written: where it goes, and its bytes.
type Open = (Place, Vec<u8>);

#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) open: Option<Open>,
    /// Effects that are refused from now on, and how many were.
    pub(crate) refuses: u64,
    pub(crate) refused: u64,
}

impl Disk {
    /// Does what a receiver wants.
    pub(crate) fn carry_out(&mut self, effect: &Effect, payload: &[u8]) -> Status {
        if !matches!(effect, Effect::Discard) && self.refuses > 0 {
            self.refuses -= 1;
            self.refused += 1;
            return Status::DISK_FULL;
        }
        match effect {
            Effect::Open(place) => {
                assert!(self.open.is_none(), "two files are open");
                if self.files.contains_key(&path(place)) && !place.overwrite {
                    return Status::ALREADY_EXISTS;
                }
                self.open = Some((place.clone(), Vec::new()));
            }
            Effect::Write { offset, data } => {
                let (_, bytes) = self.open.as_mut().expect("a file is open");
                let (at, here) = (usize::try_from(*offset).expect("small"), bytes.len());
                // Behind what was refused there is a gap.
                let next = at == here || (at > here && self.refused > 0);
                assert!(next, "a piece is lost or comes twice: {at} after {here}");
                bytes.resize(at, 0);
                bytes.extend_from_slice(&payload[data.clone()]);
            }
            Effect::Finish => {
                let (place, bytes) = self.open.take().expect("a file is open");
                assert_eq!(bytes.len() as u64, place.size, "a file has another size");
                self.files.insert(path(&place), bytes);
            }
            Effect::Discard => self.open = None,
        }
        Status::OK
    }
}

fn path(place: &Place) -> String {
    let name = match &place.target {
        Target::In { name } => name,
        Target::At { last, .. } => last,
    };
    format!("/tmp/{name}")
}

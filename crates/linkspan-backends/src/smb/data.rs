//! Where data of READ and WRITE is: in a message, or in memory that the server reaches by RDMA.
//! It is moved from there to where it stays, or the other way, once.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;

use linkspan_mem::SharedSlice;
use linkspan_sys::file;

/// Data that has come.
#[derive(Clone, Copy)]
pub enum Data<'a> {
    /// In a message.
    Message(&'a [u8]),
    /// The server has put it there by RDMA, and cannot reach it any more.
    Placed(SharedSlice<'a>),
}

/// Where data is to be put that is to be sent: all of it.
pub enum Room<'a> {
    /// In a message.
    Message(&'a mut [u8]),
    /// The server fetches it there by RDMA.
    Lent(SharedSlice<'a>),
}

impl Data<'_> {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Message(bytes) => bytes.len(),
            Self::Placed(place) => place.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies it to `target`, which is as long.
    ///
    /// # Panics
    /// It is not.
    pub fn copy_to(&self, target: &mut [u8]) {
        assert_eq!(target.len(), self.len(), "another length");
        match self {
            Self::Message(bytes) => target.copy_from_slice(bytes),
            Self::Placed(place) => {
                place.read(target);
            }
        }
    }

    /// Writes it to a file, from this byte on.
    ///
    /// # Errors
    /// What `pwritev2(2)` reports; `WriteZero` if the file takes no more.
    pub fn write_all_at(&self, to: &File, at: u64) -> io::Result<()> {
        match self {
            Self::Message(bytes) => to.write_all_at(bytes, at),
            Self::Placed(place) => file::write_all_at(to.as_fd(), *place, at),
        }
    }
}

impl Room<'_> {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Message(bytes) => bytes.len(),
            Self::Lent(place) => place.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts `source` there, which is as long.
    ///
    /// # Panics
    /// It is not.
    pub fn copy_from(self, source: &[u8]) {
        assert_eq!(source.len(), self.len(), "another length");
        match self {
            Self::Message(bytes) => bytes.copy_from_slice(source),
            Self::Lent(place) => {
                place.write(source);
            }
        }
    }

    /// Puts zeroes there.
    pub fn clear(self) {
        match self {
            Self::Message(bytes) => bytes.fill(0),
            Self::Lent(place) => {
                let zeroes = [0; 4096];
                for at in (0..place.len()).step_by(zeroes.len()) {
                    place.part(at, zeroes.len()).write(&zeroes);
                }
            }
        }
    }

    /// Puts there what is in a file from this byte on.
    ///
    /// # Errors
    /// What `preadv2(2)` reports; `UnexpectedEof` if the file ends before.
    pub fn read_exact_at(self, from: &File, at: u64) -> io::Result<()> {
        match self {
            Self::Message(bytes) => from.read_exact_at(bytes, at),
            Self::Lent(place) => file::read_exact_at(from.as_fd(), place, at),
        }
    }
}

#[cfg(test)]
mod tests {
    use linkspan_mem::Region;

    use super::*;

    #[test]
    fn data_is_moved_the_same_way_from_and_to_both_places() {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..10_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        let region = Region::heap(10_000).unwrap();
        let place = || region.slice(0, 10_000).unwrap();
        let mut message = vec![1; 10_000];
        for (at, data) in [(0, Data::Message(&bytes)), (5, Data::Placed(place()))] {
            Room::Lent(place()).copy_from(&bytes);
            let mut copy = vec![0; data.len()];
            data.copy_to(&mut copy);
            assert!(copy == bytes && !data.is_empty());
            data.write_all_at(&file, at).unwrap();
            Room::Lent(place()).clear();
            Room::Lent(place()).read_exact_at(&file, at).unwrap();
            Room::Message(&mut message)
                .read_exact_at(&file, at)
                .unwrap();
            Data::Placed(place()).copy_to(&mut copy);
            assert!(copy == bytes && message == bytes);
            Room::Message(&mut message).clear();
            assert!(message.iter().all(|byte| *byte == 0));
        }
        let short = Room::Lent(place()).read_exact_at(&file, 6).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    }
}

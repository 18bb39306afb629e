//! What holds an open file over a lost connection: a lease and a durable handle, both of version
//! 2 (MS-SMB2 3.2.4.3.8, 3.2.4.4, 3.2.5.19.2). A server may grant both, one, or none.
//!
//! Nothing is cached for the lease: it is asked for since a handle is durable only with one, and
//! whatever the server takes back is let go at once.

use alloc::vec::Vec;

use zerocopy::IntoBytes as _;

use crate::create::{
    self, Context, CreateResponse, DurableReconnectV2, DurableRequestV2, DurableResponseV2, FileId,
    LeaseV2, context, lease, oplock,
};
use crate::error::Error;
use crate::negotiate::dialect;
use crate::notify::{ACK_REQUIRED, LeaseAck, LeaseBreak};

/// What is asked for: that the handle may be kept, which comes with that reads may be.
const WANTED: u32 = lease::READ | lease::HANDLE;

/// What holds one open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Of the lease: one for a file, for as long as the client is there.
    key: [u8; 16],
    /// Of the handle: another one each time that the file is opened.
    guid: [u8; 16],
    /// What the server has granted, of [`lease`].
    state: u32,
    /// The open file, if its handle is durable.
    file: Option<FileId>,
}

/// Contexts of a CREATE: names, and what they say.
pub type Contexts = Vec<([u8; 4], Vec<u8>)>;

impl Hold {
    /// For a file that is to be opened in this dialect, with random numbers; `None`: the dialect
    /// has no such thing.
    #[must_use]
    pub fn new(dialect: u16, key: [u8; 16], guid: [u8; 16]) -> Option<Self> {
        (dialect >= dialect::SMB_3_0).then_some(Self {
            key,
            guid,
            state: 0,
            file: None,
        })
    }

    /// The key of its lease.
    #[must_use]
    pub fn key(&self) -> [u8; 16] {
        self.key
    }

    /// `RequestedOplockLevel` of both kinds of CREATE.
    #[must_use]
    pub fn oplock(&self) -> u8 {
        oplock::LEASE
    }

    fn lease(&self) -> ([u8; 4], Vec<u8>) {
        let lease = LeaseV2 {
            key: self.key,
            state: WANTED.into(),
            ..LeaseV2::default()
        };
        (context::LEASE, lease.as_bytes().to_vec())
    }

    /// Opens the file, and asks for both.
    #[must_use]
    pub fn ask(&self) -> Contexts {
        let durable = DurableRequestV2 {
            create_guid: self.guid,
            ..DurableRequestV2::default()
        };
        let durable = (context::DURABLE_V2, durable.as_bytes().to_vec());
        [self.lease(), durable].into()
    }

    /// Takes the file up again as it was open, on another connection of the same client;
    /// `None`: its handle is not durable, and it has to be opened anew.
    #[must_use]
    pub fn ask_again(&self) -> Option<Contexts> {
        let again = DurableReconnectV2 {
            file: self.file?,
            create_guid: self.guid,
            ..DurableReconnectV2::default()
        };
        let again = (context::RECONNECT_V2, again.as_bytes().to_vec());
        Some([self.lease(), again].into())
    }

    /// Takes note of what the server grants with its answer to [`ask`](Self::ask).
    ///
    /// # Errors
    /// It grants a lease of another key, or more than was asked for.
    pub fn opened(
        &mut self,
        fixed: &CreateResponse,
        contexts: &[Context<'_>],
    ) -> Result<(), Error> {
        self.state = self.granted(fixed, contexts)?;
        let durable: Option<DurableResponseV2> = create::find(contexts, context::DURABLE_V2);
        let is_durable = durable.is_some() && self.state & lease::HANDLE != 0;
        self.file = is_durable.then_some(fixed.file);
        Ok(())
    }

    /// The same for [`ask_again`](Self::ask_again). The handle is durable as before.
    ///
    /// # Errors
    /// As above, or it is another open file.
    pub fn taken_up(
        &mut self,
        fixed: &CreateResponse,
        contexts: &[Context<'_>],
    ) -> Result<(), Error> {
        let before = self.file.map(|file| file.persistent);
        if before != Some(fixed.file.persistent) {
            return Err(Error::Field {
                field: "the persistent FileId of a durable handle that is taken up",
                value: fixed.file.persistent.get(),
            });
        }
        self.state = self.granted(fixed, contexts)?;
        self.file = (self.state & lease::HANDLE != 0).then_some(fixed.file);
        Ok(())
    }

    /// The state of the lease in an answer.
    fn granted(&self, fixed: &CreateResponse, contexts: &[Context<'_>]) -> Result<u32, Error> {
        if fixed.oplock != oplock::LEASE {
            return Ok(0);
        }
        let Some(lease) = create::find::<LeaseV2>(contexts, context::LEASE) else {
            return Ok(0);
        };
        if lease.key != self.key {
            return Err(Error::Field {
                field: "LeaseKey of a lease that was not asked for",
                value: u64::from_le_bytes(core::array::from_fn(|at| lease.key[at])),
            });
        }
        match lease.state.get() {
            state if state & !WANTED == 0 => Ok(state),
            state => Err(Error::Field {
                field: "LeaseState, with more than was asked for,",
                value: state.into(),
            }),
        }
    }

    /// The server takes back what it has granted, or a part of that. What it is to be told, if
    /// it waits for that.
    ///
    /// # Errors
    /// It is another lease, or nothing is taken back: that could go on for ever.
    pub fn broken(&mut self, said: &LeaseBreak) -> Result<Option<LeaseAck>, Error> {
        let new = said.new.get();
        if said.key != self.key {
            return Err(Error::Unasked);
        }
        if new & !self.state != 0 || new == self.state {
            return Err(Error::Field {
                field: "NewLeaseState, which takes nothing back,",
                value: new.into(),
            });
        }
        self.state = new;
        if new & lease::HANDLE == 0 {
            // A handle is durable only with it (MS-SMB2 3.3.4.7).
            self.file = None;
        }
        let is_awaited = said.flags.get() & ACK_REQUIRED != 0;
        Ok(is_awaited.then(|| LeaseAck {
            key: self.key,
            state: new.into(),
            ..LeaseAck::new()
        }))
    }
}

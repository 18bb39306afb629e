//! Memory that is lent to the server for one request.

use linkspan_rdma::verbs::Access;
use linkspan_smb2::client::{Request, RequestId};

use super::super::error::Error;
use super::super::transport::Lent;
use super::Connection;

/// Payload from which on RDMA pays, as Linux has it.
const RDMA_FROM: u32 = 4096;

impl Connection {
    /// Memory for the server, if that may be and pays; waits until there is some.
    pub(super) fn lend(&mut self, access: Access, len: u32) -> Result<Option<(u32, Lent)>, Error> {
        let pays = self.transport.bounds().is_some() && len >= RDMA_FROM;
        let Some(channel) = self.client.channel().filter(|_| pays) else {
            return Ok(None);
        };
        loop {
            if let Some(lent) = self.transport.lend(access, len)? {
                return Ok(Some((channel, lent)));
            }
            if self.lent.is_empty() {
                return Err(no_memory(len));
            }
            self.wait()?;
        }
    }

    pub(super) fn submit_lent(&mut self, request: Request, lent: Lent) -> Result<RequestId, Error> {
        match self.submit(request) {
            Ok(id) => {
                self.lent.insert(id, lent);
                Ok(id)
            }
            Err(error) => {
                self.unlend(&lent);
                Err(error)
            }
        }
    }

    /// Takes back what nobody was told of. What goes wrong here says less than what did before;
    /// the memory is not used again then.
    pub(super) fn unlend(&mut self, lent: &Lent) {
        if self.transport.take_back(lent).is_ok() {
            self.transport.put_back(lent);
        }
    }
}

/// Memory as SMB2 writes it.
pub(super) fn wire(lent: &Lent) -> linkspan_smb2::io::Descriptor {
    let memory = lent.descriptor;
    linkspan_smb2::io::Descriptor {
        offset: memory.offset.into(),
        token: memory.token.into(),
        length: memory.length.into(),
    }
}

/// There is none, and none is to come.
pub(super) fn no_memory(len: u32) -> Error {
    Error::Room {
        what: "data that the server reaches by RDMA",
        bytes: len as usize,
    }
}

//! The file of a disk: how it is opened, and that it is the same one again.

use std::thread::sleep;
use std::time::{Duration, Instant};

use linkspan_smb2::client::Request;
use linkspan_smb2::create::{
    self, CreateRequest, CreateResponse, DiskId, access, context, disposition, options, share,
};
use linkspan_smb2::wire::Body as _;
use linkspan_smb2::{Command, status};

use super::super::error::Error;
use super::super::share::{IMPERSONATION, Kind, Meta, Open, Share, accepted, wire_path};

/// Bytes of a sector: the size of a disk is whole ones.
const SECTOR: u64 = 512;

/// Between two looks whether somebody else has ended.
const PAUSE: Duration = Duration::from_millis(200);

/// Which file a disk is.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) path: String,
    pub(super) read_only: bool,
    /// Bytes of the disk, once it was opened.
    pub(super) len: u64,
    /// The server's number of the file, if it says one.
    number: Option<(u64, u64)>,
}

impl Target {
    pub(super) fn new(path: &str, read_only: bool) -> Self {
        Self {
            path: path.into(),
            read_only,
            len: 0,
            number: None,
        }
    }

    /// The request: nobody else may write it, nor read it if it is written here.
    fn create(&self) -> Request {
        let (rights, others) = match self.read_only {
            true => (0, share::READ),
            false => (access::WRITE_DATA, 0),
        };
        let rights = rights | access::READ_DATA | access::READ_ATTRIBUTES | access::SYNCHRONIZE;
        let fixed = CreateRequest {
            impersonation: IMPERSONATION.into(),
            access: rights.into(),
            share: others.into(),
            disposition: disposition::OPEN.into(),
            // A link of the server could lead anywhere.
            options: (options::NON_DIRECTORY_FILE | options::OPEN_REPARSE_POINT).into(),
            ..CreateRequest::new()
        };
        let body = fixed.body(&wire_path(&self.path), &[(&context::DISK_ID, &[])]);
        Request::new(Command::Create, body, 0)
    }

    /// Opens it, for the first time or again.
    ///
    /// # Errors
    /// The server refuses; it is no file, has no sector, is shorter than before, or is another one.
    pub(super) fn open(&mut self, share: &mut Share) -> Result<Open, Error> {
        let response = share.connection.call(self.create())?;
        let response = accepted(&self.path, response)?;
        let message = response.message();
        let fixed = CreateResponse::read(message)?;
        let open = Open {
            file: fixed.file,
            path: self.path.clone(),
            meta: Meta::opened(&fixed),
        };
        let contexts = fixed.contexts(message)?;
        let number = create::find::<DiskId>(&contexts, context::DISK_ID)
            .map(|id| (id.volume.get(), id.file.get()));
        match self.check(&open.meta, number) {
            Ok(()) => Ok(open),
            Err(why) => {
                share.close(open)?;
                Err(Error::Kind(format!("{}: {why}", self.path)))
            }
        }
    }

    fn check(&mut self, meta: &Meta, number: Option<(u64, u64)>) -> Result<(), String> {
        if meta.kind != Kind::File {
            return Err("it is no file".into());
        }
        let len = meta.size - meta.size % SECTOR;
        if len == 0 {
            return Err("the image is empty; make it as large as the disk first".into());
        }
        if self.len == 0 {
            (self.len, self.number) = (len, number);
        }
        if len < self.len {
            let from = self.len;
            return Err(format!(
                "it got smaller, from {from} to {} bytes",
                meta.size
            ));
        }
        if self.number.is_some() && number.is_some() && number != self.number {
            return Err("another file has this name now".into());
        }
        Ok(())
    }

    /// Opens it for the first time; waits so long for others to close it. What was written before
    /// is durable then.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub(super) fn open_within(&mut self, share: &mut Share, wait: Duration) -> Result<Open, Error> {
        let begin = Instant::now();
        let open = loop {
            match self.open(share) {
                Err(error)
                    if error.status() == Some(status::SHARING_VIOLATION)
                        && begin.elapsed() < wait =>
                {
                    sleep(PAUSE);
                }
                result => break result?,
            }
        };
        if !self.read_only {
            // By a process before this one, which was killed.
            share.flush(&open)?;
        }
        Ok(open)
    }
}

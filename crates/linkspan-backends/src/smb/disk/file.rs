//! The file of a disk: how it is opened, and that it is the same one again.

use std::thread::sleep;
use std::time::{Duration, Instant};

use linkspan_smb2::client::Request;
use linkspan_smb2::create::{
    self, Context, CreateRequest, CreateResponse, DiskId, access, context, disposition, options,
    share,
};
use linkspan_smb2::hold::{Contexts, Hold};
use linkspan_smb2::wire::Body as _;
use linkspan_smb2::{Command, status};

use super::super::connection::random;
use super::super::error::Error;
use super::super::share::{IMPERSONATION, Kind, Meta, Open, Share, accepted, refused, wire_path};

/// Bytes of a sector: the size of a disk is whole ones.
const SECTOR: u64 = 512;

/// Between two looks whether somebody else has ended.
const PAUSE: Duration = Duration::from_millis(200);

/// Contexts as they are written.
fn wire(contexts: &Contexts) -> Vec<Context<'_>> {
    let contexts = contexts.iter();
    contexts
        .map(|(name, data)| (&name[..], &data[..]))
        .collect()
}

/// Which file a disk is.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) path: String,
    pub(super) read_only: bool,
    /// Bytes of the disk, once it was opened.
    pub(super) len: u64,
    /// The server's number of the file, if it says one.
    number: Option<(u64, u64)>,
    /// What holds it over a lost connection, as far as the server grants that.
    hold: Option<Hold>,
}

impl Target {
    pub(super) fn new(path: &str, read_only: bool) -> Self {
        Self {
            path: path.into(),
            read_only,
            len: 0,
            number: None,
            hold: None,
        }
    }

    /// The request: nobody else may write it, nor read it if it is written here.
    fn create(&self, oplock: u8, contexts: &[Context<'_>]) -> Request {
        let (rights, others) = match self.read_only {
            true => (0, share::READ),
            false => (access::WRITE_DATA, 0),
        };
        let rights = rights | access::READ_DATA | access::READ_ATTRIBUTES | access::SYNCHRONIZE;
        let fixed = CreateRequest {
            oplock,
            impersonation: IMPERSONATION.into(),
            access: rights.into(),
            share: others.into(),
            disposition: disposition::OPEN.into(),
            // A link of the server could lead anywhere.
            options: (options::NON_DIRECTORY_FILE | options::OPEN_REPARSE_POINT).into(),
            ..CreateRequest::new()
        };
        let body = fixed.body(&wire_path(&self.path), contexts);
        Request::new(Command::Create, body, 0)
    }

    /// Opens it, for the first time or again: as it was open, if the server has kept it so.
    ///
    /// # Errors
    /// The server refuses; it is no file, has no sector, is shorter than before, or is another one.
    pub(super) fn open(&mut self, share: &mut Share) -> Result<Open, Error> {
        if let Some(open) = self.take_up(share)? {
            return Ok(open);
        }
        let dialect = share.connection.agreed().map_or(0, |agreed| agreed.dialect);
        // The lease is of the file, and the handle of this open.
        let key = self
            .hold
            .as_ref()
            .map_or_else(random, |hold| Ok(hold.key()))?;
        let mut hold = Hold::new(dialect, key, random()?);
        let (oplock, asked) = match &hold {
            Some(hold) => (hold.oplock(), hold.ask()),
            None => (create::oplock::NONE, Contexts::new()),
        };
        share.connection.expect_lease(key);
        let mut contexts = wire(&asked);
        contexts.push((&context::DISK_ID, &[]));
        let response = share.connection.call(self.create(oplock, &contexts))?;
        let response = accepted(&self.path, response)?;
        let message = response.message();
        let fixed = CreateResponse::read(message)?;
        let contexts = fixed.contexts(message)?;
        if let Some(hold) = &mut hold {
            hold.opened(&fixed, &contexts)?;
        }
        let open = self.opened(share, &fixed, &contexts)?;
        self.hold = hold;
        Ok(open)
    }

    /// Takes it up as it was open; `None` if the server has not kept it so.
    fn take_up(&mut self, share: &mut Share) -> Result<Option<Open>, Error> {
        let Some((oplock, key, asked)) = self.hold.as_ref().and_then(|hold| {
            let asked = hold.ask_again()?;
            Some((hold.oplock(), hold.key(), asked))
        }) else {
            return Ok(None);
        };
        share.connection.expect_lease(key);
        // Nothing else may be asked with it (MS-SMB2 3.3.5.9.12).
        let request = self.create(oplock, &wire(&asked));
        let response = share.connection.call(request)?;
        match response.status() {
            status::SUCCESS => {}
            // It cannot be opened anew here, either. Whatever else is said is about the handle.
            said @ (status::USER_SESSION_DELETED
            | status::NETWORK_SESSION_EXPIRED
            | status::NETWORK_NAME_DELETED) => return Err(refused(&self.path, said)),
            said => {
                let why = status::text(said);
                tracing::info!("{}: the server did not keep it open: {why}", self.path);
                return Ok(None);
            }
        }
        let message = response.message();
        let fixed = CreateResponse::read(message)?;
        let contexts = fixed.contexts(message)?;
        if let Some(mut hold) = self.hold.take() {
            // Where that is wrong it is opened anew next time.
            hold.taken_up(&fixed, &contexts)?;
            self.hold = Some(hold);
        }
        tracing::info!("{}: the server has kept it open", self.path);
        self.opened(share, &fixed, &contexts).map(Some)
    }

    /// What the server says of the file, if it may be the disk.
    fn opened(
        &mut self,
        share: &mut Share,
        fixed: &CreateResponse,
        contexts: &[Context<'_>],
    ) -> Result<Open, Error> {
        let open = Open {
            file: fixed.file,
            path: self.path.clone(),
            meta: Meta::opened(fixed),
        };
        let number = create::find::<DiskId>(contexts, context::DISK_ID)
            .map(|id| (id.volume.get(), id.file.get()));
        match self.check(&open.meta, number) {
            Ok(()) => Ok(open),
            Err(why) => {
                share.close(open)?;
                Err(Error::Kind(format!("{}: {why}", self.path)))
            }
        }
    }

    /// Lets go what the server takes back of the lease. Who waits for that goes on, and is kept
    /// out by how the file was opened.
    ///
    /// # Errors
    /// The server takes back what it did not grant, or the connection is lost.
    pub(super) fn let_go(&mut self, share: &mut Share) -> Result<(), Error> {
        while let Some(said) = share.connection.broken() {
            let hold = self.hold.as_mut();
            let hold = hold.ok_or(Error::Protocol(linkspan_smb2::Error::Unasked))?;
            if let Some(ack) = hold.broken(&said)? {
                share.connection.acknowledge(&ack)?;
            }
        }
        Ok(())
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

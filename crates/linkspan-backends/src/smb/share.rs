//! One share: what is asked of its files and folders.

use linkspan_smb2::client::{self, Request, Response};
use linkspan_smb2::create::{
    CloseRequest, CreateRequest, CreateResponse, FileId, FlushRequest, access, attributes,
    disposition, options, share,
};
use linkspan_smb2::info::{
    self, Entry, FullSize, QueryDirectoryRequest, QueryDirectoryResponse, QueryInfoRequest,
    QueryInfoResponse, SetInfoRequest, class, kind,
};
use linkspan_smb2::ioctl::{self, Interface, IoctlRequest, IoctlResponse, NO_FILE, code};
use linkspan_smb2::session::{self, TreeConnectResponse};
use linkspan_smb2::wire::Body;
use linkspan_smb2::{Command, status};

use super::connection::{Connection, Login, Settings, random};
use super::error::Error;

/// Bytes of one answer about a folder.
const LISTING: u32 = 65_536;

/// Impersonation (MS-SMB2 2.2.13): the server may act as the user.
pub(super) const IMPERSONATION: u32 = 2;

/// Bytes of all answers about one folder: a server could go on for ever.
const FOLDER_MAX: usize = 256 << 20;

/// What something on a share is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A link, or something else that is not followed.
    Link,
}

/// What is known of a file or folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Bytes on the disk.
    pub allocated: u64,
    /// When it was made: 100 ns since 1601.
    pub created: u64,
    /// When it was last read: 100 ns since 1601.
    pub accessed: u64,
    /// When it was last written: 100 ns since 1601.
    pub written: u64,
    /// When anything of it was last changed: 100 ns since 1601.
    pub changed: u64,
    /// `FileAttributes`.
    pub attributes: u32,
}

impl Kind {
    fn of(flags: u32) -> Self {
        if flags & attributes::REPARSE_POINT != 0 {
            Self::Link
        } else if flags & attributes::DIRECTORY != 0 {
            Self::Folder
        } else {
            Self::File
        }
    }
}

impl Meta {
    /// Of an entry of a folder.
    #[must_use]
    pub fn of(entry: &Entry) -> Self {
        let fixed = &entry.fixed;
        Self {
            kind: Kind::of(fixed.attributes.get()),
            size: fixed.end_of_file.get(),
            allocated: fixed.allocation.get(),
            created: fixed.created.get(),
            accessed: fixed.accessed.get(),
            written: fixed.written.get(),
            changed: fixed.changed.get(),
            attributes: fixed.attributes.get(),
        }
    }

    pub(super) fn opened(fixed: &CreateResponse) -> Self {
        Self {
            kind: Kind::of(fixed.attributes.get()),
            size: fixed.end_of_file.get(),
            allocated: fixed.allocation.get(),
            created: fixed.created.get(),
            accessed: fixed.accessed.get(),
            written: fixed.written.get(),
            changed: fixed.changed.get(),
            attributes: fixed.attributes.get(),
        }
    }
}

/// What becomes of a file that is there when one is opened to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    /// It is written as it is.
    Keep,
    /// It is emptied.
    Replace,
    /// The server refuses with `OBJECT_NAME_COLLISION`.
    Refuse,
}

/// An open file.
#[derive(Clone, Debug)]
pub struct Open {
    pub(super) file: FileId,
    pub(super) path: String,
    /// What was known when it was opened.
    pub meta: Meta,
}

/// A share of a server.
#[derive(Debug)]
pub struct Share {
    pub(super) connection: Connection,
    place: Place,
}

/// Where a share is, and who asks for it how.
#[derive(Debug)]
struct Place {
    host: String,
    port: u16,
    share: String,
    login: Login,
    settings: Settings,
    /// Who we are on all its connections.
    guid: [u8; 16],
}

impl Place {
    /// Connects, logs on, and asks for the share. What goes on in this session before is over
    /// then.
    fn connect(&self, session: u64) -> Result<Connection, Error> {
        let (host, share) = (&self.host, &self.share);
        let (login, settings) = (&self.login, &self.settings);
        let before = (self.guid, session);
        let mut connection = Connection::open_after(host, self.port, login, settings, before)?;
        let id = connection.client().connect(&format!(r"\\{host}\{share}"))?;
        let response = connection.any(|answered| answered == id)?;
        let response = accepted(share, response)?;
        let tree = TreeConnectResponse::read(response.message())?;
        if tree.share_type != session::DISK {
            return Err(Error::Kind(format!("{share} is no share of files")));
        }
        if let Some(request) = connection.client().validation() {
            let response = connection.call(request)?;
            connection.client().validated(&response)?;
        }
        Ok(connection)
    }
}

/// A refusal of something about a path.
pub(super) fn refused(path: &str, status: u32) -> Error {
    let what = if path.is_empty() { "the share" } else { path };
    Error::Refused {
        what: what.into(),
        status,
    }
}

/// An answer that is not an error.
pub(super) fn accepted(path: &str, response: Response) -> Result<Response, Error> {
    match response.status() {
        status::SUCCESS => Ok(response),
        status => Err(refused(path, status)),
    }
}

/// Has what was written put on the disk.
pub(super) fn flush_request(open: &Open) -> Request {
    Request::fixed(&FlushRequest {
        file: open.file,
        ..FlushRequest::new()
    })
}

/// As the server writes paths: no separator at either end.
pub(super) fn wire_path(path: &str) -> String {
    path.trim_matches('/').replace('/', "\\")
}

impl Share {
    /// Connects, logs on, and asks for the share.
    ///
    /// # Errors
    /// Whatever the first step is that does not work; nothing is left then.
    pub fn open(
        host: &str,
        port: u16,
        share: &str,
        login: &Login,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let place = Place {
            host: host.into(),
            port,
            share: share.into(),
            login: login.clone(),
            settings: settings.clone(),
            guid: random()?,
        };
        Ok(Self {
            connection: place.connect(0)?,
            place,
        })
    }

    /// Makes a new connection in the place of one that was lost. What was open is not any more,
    /// nor is anything under way that was asked there: the server is told which session that was.
    ///
    /// # Errors
    /// As for [`Share::open`]; nothing has changed then.
    pub fn reopen(&mut self) -> Result<(), Error> {
        self.connection = self.place.connect(self.connection.session())?;
        Ok(())
    }

    /// What a person reads: dialect, and what protects it.
    #[must_use]
    pub fn describe(&self) -> String {
        let agreed = self.connection.agreed();
        agreed.map_or_else(String::new, |agreed| {
            client::describe(agreed, self.connection.protection())
        })
    }

    /// The connection.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    fn create(path: &str, rights: u32, disposition: u32, how: u32) -> Request {
        let fixed = CreateRequest {
            impersonation: IMPERSONATION.into(),
            access: (rights | access::SYNCHRONIZE).into(),
            share: share::ALL.into(),
            disposition: disposition.into(),
            // A link of the server could lead anywhere.
            options: (how | options::OPEN_REPARSE_POINT).into(),
            ..CreateRequest::new()
        };
        Request::new(Command::Create, fixed.body(&wire_path(path), &[]), 0)
    }

    fn close_request(file: FileId) -> Request {
        Request::fixed(&CloseRequest {
            file,
            ..CloseRequest::new()
        })
    }

    /// Opens what is at a path.
    pub(super) fn open_at(
        &mut self,
        path: &str,
        access: u32,
        disposition: u32,
        options: u32,
    ) -> Result<Open, Error> {
        let response = self
            .connection
            .call(Self::create(path, access, disposition, options))?;
        let response = accepted(path, response)?;
        let fixed = CreateResponse::read(response.message())?;
        Ok(Open {
            file: fixed.file,
            path: path.into(),
            meta: Meta::opened(&fixed),
        })
    }

    /// Opens a file to read it.
    ///
    /// # Errors
    /// The server refuses, or it is no file.
    pub fn open_read(&mut self, path: &str) -> Result<Open, Error> {
        let rights = access::READ_DATA | access::READ_ATTRIBUTES;
        let options = options::NON_DIRECTORY_FILE;
        let open = self.open_at(path, rights, disposition::OPEN, options)?;
        if open.meta.kind == Kind::File {
            return Ok(open);
        }
        self.close(open)?;
        Err(Error::Kind(format!("{path} is no file")))
    }

    /// Opens a file to write it.
    ///
    /// # Errors
    /// The server refuses.
    pub fn open_write(&mut self, path: &str, there: There) -> Result<Open, Error> {
        let rights = access::READ_DATA
            | access::WRITE_DATA
            | access::APPEND_DATA
            | access::READ_ATTRIBUTES
            | access::WRITE_ATTRIBUTES;
        let how = match there {
            There::Keep => disposition::OPEN_IF,
            There::Replace => disposition::OVERWRITE_IF,
            There::Refuse => disposition::CREATE,
        };
        self.open_at(path, rights, how, options::NON_DIRECTORY_FILE)
    }

    /// Closes a file. What is still to come of errors is said here.
    ///
    /// # Errors
    /// The server refuses.
    pub fn close(&mut self, open: Open) -> Result<(), Error> {
        let response = self.connection.call(Self::close_request(open.file))?;
        accepted(&open.path, response).map(drop)
    }

    /// Has what was written put on the disk.
    ///
    /// # Errors
    /// The server refuses.
    pub fn flush(&mut self, open: &Open) -> Result<(), Error> {
        let response = self.connection.call(flush_request(open))?;
        accepted(&open.path, response).map(drop)
    }

    /// Opens a file that is there, with these rights.
    pub(super) fn open_file(&mut self, path: &str, rights: u32) -> Result<Open, Error> {
        self.open_at(path, rights, disposition::OPEN, options::NON_DIRECTORY_FILE)
    }

    /// Sets information of an open file.
    pub(super) fn set(&mut self, open: &Open, class: u8, input: &[u8]) -> Result<(), Error> {
        let request = SetInfoRequest {
            kind: kind::FILE,
            class,
            file: open.file,
            ..SetInfoRequest::new()
        };
        let request = Request::new(Command::SetInfo, request.body(input), 0);
        accepted(&open.path, self.connection.call(request)?).map(drop)
    }

    /// Ends a file at this byte.
    ///
    /// # Errors
    /// The server refuses.
    pub fn set_size(&mut self, open: &Open, size: u64) -> Result<(), Error> {
        self.set(open, class::END_OF_FILE, &size.to_le_bytes())
    }

    /// What is at a path: one round trip.
    ///
    /// # Errors
    /// The server refuses.
    pub fn stat(&mut self, path: &str) -> Result<Meta, Error> {
        let create = Self::create(path, access::READ_ATTRIBUTES, disposition::OPEN, 0);
        let ids = self
            .connection
            .submit_all(&mut [create, Self::close_request(FileId::RELATED)])?;
        let created = self.connection.any(|answered| answered == ids[0]);
        // Both are answered, whatever the first answer is.
        self.connection.any(|answered| answered == ids[1])?;
        let response = accepted(path, created?)?;
        Ok(Meta::opened(&CreateResponse::read(response.message())?))
    }

    /// What is in a folder.
    ///
    /// # Errors
    /// The server refuses, or does not end.
    pub fn list(&mut self, path: &str) -> Result<Vec<Entry>, Error> {
        let rights = access::READ_DATA | access::READ_ATTRIBUTES;
        let folder = self.open_at(path, rights, disposition::OPEN, options::DIRECTORY_FILE)?;
        let listed = self.listed(&folder);
        let closed = self.close(folder);
        let entries = listed?;
        closed?;
        Ok(entries)
    }

    fn listed(&mut self, folder: &Open) -> Result<Vec<Entry>, Error> {
        let (mut all, mut bytes) = (Vec::new(), 0);
        loop {
            let request = QueryDirectoryRequest {
                class: class::ID_BOTH_DIRECTORY,
                file: folder.file,
                max_output: LISTING.into(),
                ..QueryDirectoryRequest::new()
            };
            let request = Request::new(Command::QueryDirectory, request.body("*"), LISTING);
            let response = self.connection.call(request)?;
            if matches!(
                response.status(),
                status::NO_MORE_FILES | status::NO_SUCH_FILE
            ) {
                return Ok(all);
            }
            let response = accepted(&folder.path, response)?;
            let message = response.message();
            let output = QueryDirectoryResponse::read(message)?.output(message)?;
            bytes += output.len();
            // An answer without an entry would come again and again.
            if output.is_empty() || bytes > FOLDER_MAX {
                return Err(Error::Kind(format!(
                    "{}: the folder does not end",
                    folder.path
                )));
            }
            all.extend(info::entries(output)?);
        }
    }

    /// Makes a folder; one that is there is fine.
    ///
    /// # Errors
    /// The server refuses, or it is a file.
    pub fn make_folder(&mut self, path: &str) -> Result<(), Error> {
        let (how, options) = (disposition::OPEN_IF, options::DIRECTORY_FILE);
        let open = self.open_at(path, access::READ_ATTRIBUTES, how, options)?;
        self.close(open)
    }

    /// Removes a file, or a folder in which nothing is.
    ///
    /// # Errors
    /// The server refuses.
    pub fn remove(&mut self, path: &str) -> Result<(), Error> {
        let rights = access::DELETE | access::READ_ATTRIBUTES;
        let open = self.open_at(path, rights, disposition::OPEN, 0)?;
        let set = self.set(&open, class::DISPOSITION, &[1]);
        let closed = self.close(open);
        set.and(closed)
    }

    /// Gives a file or folder another path.
    ///
    /// # Errors
    /// The server refuses.
    pub fn rename(&mut self, from: &str, to: &str, replace: bool) -> Result<(), Error> {
        let rights = access::DELETE | access::READ_ATTRIBUTES;
        let open = self.open_at(from, rights, disposition::OPEN, 0)?;
        let set = self.set(&open, class::RENAME, &info::rename(&wire_path(to), replace));
        let closed = self.close(open);
        set.and(closed)
    }

    /// The server's interfaces, as it tells them: where another connection could go.
    ///
    /// # Errors
    /// The server refuses, or what it says makes no sense.
    pub fn interfaces(&mut self) -> Result<Vec<Interface>, Error> {
        const OUTPUT: u32 = 65_536;
        let request = IoctlRequest {
            code: code::QUERY_NETWORK_INTERFACE_INFO.into(),
            file: NO_FILE,
            max_output: OUTPUT.into(),
            ..IoctlRequest::new()
        };
        let request = Request::new(Command::Ioctl, request.body(&[]), OUTPUT);
        let response = accepted("", self.connection.call(request)?)?;
        let message = response.message();
        let output = IoctlResponse::read(message)?.output(message)?;
        Ok(ioctl::interfaces(output)?)
    }

    /// Bytes of the disk behind the share: all, and those that this user may still use.
    ///
    /// # Errors
    /// The server refuses, or says sizes that cannot be.
    pub fn room(&mut self) -> Result<(u64, u64), Error> {
        let open = self.open_at("", access::READ_ATTRIBUTES, disposition::OPEN, 0)?;
        let size = u32::try_from(size_of::<FullSize>()).unwrap_or(u32::MAX);
        let request = QueryInfoRequest {
            kind: kind::FILE_SYSTEM,
            class: class::FS_FULL_SIZE,
            max_output: size.into(),
            file: open.file,
            ..QueryInfoRequest::new()
        };
        let request = Request::new(Command::QueryInfo, request.body(), size);
        let response = self.connection.call(request)?;
        self.close(open)?;
        let response = accepted("", response)?;
        let message = response.message();
        let output = QueryInfoResponse::read(message)?.output(message)?;
        let size = FullSize::parse(output)?;
        size.bytes()
            .ok_or_else(|| Error::Kind("the size of the disk cannot be".into()))
    }
}

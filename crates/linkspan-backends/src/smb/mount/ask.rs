//! What the kernel asks: taken by one thread, handed to the one with the connection.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::asked::Asked;
use super::{LIFE, names};

/// Bytes of one write of the kernel, at most.
const WRITE_MAX: u32 = 1 << 20;

/// Requests of the kernel that nobody waits for, such as reading ahead, at a time.
const BACKGROUND: u16 = 64;

/// Size of a unit of `statfs`, in bytes.
const UNIT: u32 = 4096;

/// What is to be set of a file or folder.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Set {
    pub(super) size: Option<u64>,
    pub(super) accessed: Option<SystemTime>,
    pub(super) written: Option<SystemTime>,
    pub(super) read_only: Option<bool>,
}

/// Something that needs answers of the server before it is answered, and no data.
#[derive(Debug)]
pub(super) enum Ask {
    Lookup {
        folder: u64,
        name: String,
    },
    Attr {
        node: u64,
    },
    Set {
        node: u64,
        set: Set,
    },
    MakeFolder {
        folder: u64,
        name: String,
    },
    Create {
        folder: u64,
        name: String,
        flags: OpenFlags,
    },
    Open {
        node: u64,
        flags: OpenFlags,
    },
    Release {
        file: u64,
    },
    OpenFolder {
        node: u64,
    },
    List {
        file: u64,
        again: bool,
    },
    Rename {
        from: (u64, String),
        to: (u64, String),
        replace: bool,
    },
    Unlink {
        folder: u64,
        name: String,
    },
    RemoveFolder {
        folder: u64,
        name: String,
    },
    Room,
}

/// What it is answered with.
#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Found(FileAttr),
    Opened(u64),
    Created(FileAttr, u64),
    /// Bytes: all, and free.
    Room(u64, u64),
}

/// Where an answer goes.
#[derive(Debug)]
pub(super) enum Reply {
    Empty(ReplyEmpty),
    Attr(ReplyAttr),
    Entry(ReplyEntry),
    Open(ReplyOpen),
    Create(ReplyCreate),
    Room(ReplyStatfs),
    List(ReplyDirectory, u64),
    ListAll(ReplyDirectoryPlus, u64),
    /// Who asked has been told that it took too long, and it has to be done all the same.
    Nobody,
}

/// Something to do.
#[derive(Debug)]
pub(super) enum Job {
    Ask(Ask, Reply),
    Read {
        file: u64,
        offset: u64,
        len: u32,
        reply: ReplyData,
    },
    Write {
        file: u64,
        offset: u64,
        data: Arc<[u8]>,
        reply: ReplyWrite,
    },
    /// Makes a file durable.
    Flush {
        node: u64,
        reply: ReplyEmpty,
    },
    Forget {
        node: u64,
        lookups: u64,
    },
}

impl Job {
    /// It was not done.
    pub(super) fn fail(self, errno: Errno) {
        match self {
            Self::Ask(_, reply) => reply.fail(errno),
            Self::Read { reply, .. } => reply.error(errno),
            Self::Write { reply, .. } => reply.error(errno),
            Self::Flush { reply, .. } => reply.error(errno),
            Self::Forget { .. } => {}
        }
    }
}

impl Reply {
    pub(super) fn fail(self, errno: Errno) {
        match self {
            Self::Empty(reply) => reply.error(errno),
            Self::Attr(reply) => reply.error(errno),
            Self::Entry(reply) => reply.error(errno),
            Self::Open(reply) => reply.error(errno),
            Self::Create(reply) => reply.error(errno),
            Self::Room(reply) => reply.error(errno),
            Self::List(reply, _) => reply.error(errno),
            Self::ListAll(reply, _) => reply.error(errno),
            Self::Nobody => {}
        }
    }

    pub(super) fn give(self, answer: Answer) {
        const FIRST: Generation = Generation(0);
        let none = FopenFlags::empty();
        match (self, answer) {
            (Self::Empty(reply), _) => reply.ok(),
            (Self::Nobody, _) => {}
            (Self::Attr(reply), Answer::Found(attr)) => reply.attr(&LIFE, &attr),
            (Self::Entry(reply), Answer::Found(attr)) => reply.entry(&LIFE, &attr, FIRST),
            (Self::Open(reply), Answer::Opened(file)) => reply.opened(FileHandle(file), none),
            (Self::Create(reply), Answer::Created(attr, file)) => {
                reply.created(&LIFE, &attr, FIRST, FileHandle(file), none);
            }
            (Self::Room(reply), Answer::Room(all, free)) => {
                let units = |bytes: u64| bytes / u64::from(UNIT);
                let (all, free) = (units(all), units(free));
                reply.statfs(all, free, free, 0, 0, UNIT, 255, UNIT);
            }
            (other, answer) => {
                tracing::error!("{answer:?} is no answer");
                other.fail(Errno::EIO);
            }
        }
    }
}

/// The kernel's end.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) asked: Arc<Asked>,
    /// Whose files all are.
    pub(super) owner: (u32, u32),
}

impl Kernel {
    fn ask(&self, ask: Ask, reply: Reply) {
        self.asked.hand_over(Job::Ask(ask, reply));
    }

    /// Asks about a name in a folder.
    fn ask_name(&self, name: &OsStr, reply: Reply, ask: impl FnOnce(String) -> Ask) {
        match names::to_server(name) {
            Ok(name) => self.ask(ask(name), reply),
            Err(errno) => reply.fail(errno),
        }
    }
}

fn time(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

impl Filesystem for Kernel {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What a kernel does not know it does without.
        for wanted in [
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_write(WRITE_MAX);
        let _ = config.set_max_background(BACKGROUND);
        Ok(())
    }

    fn destroy(&mut self) {
        self.asked.end();
    }

    fn lookup(&self, _: &Request, folder: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let folder = folder.0;
        self.ask_name(name, Reply::Entry(reply), |name| Ask::Lookup {
            folder,
            name,
        });
    }

    fn forget(&self, _: &Request, node: INodeNo, lookups: u64) {
        let node = node.0;
        self.asked.hand_over(Job::Forget { node, lookups });
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.ask(Ask::Attr { node: node.0 }, Reply::Attr(reply));
    }

    fn setattr(
        &self,
        _: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        written: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let is_owner = |id: Option<u32>, own| id.is_none_or(|id| id == own);
        if !is_owner(uid, self.owner.0) || !is_owner(gid, self.owner.1) {
            return reply.error(Errno::EPERM);
        }
        let set = Set {
            size,
            accessed: accessed.map(time),
            written: written.map(time),
            read_only: mode.map(|mode| mode & 0o222 == 0),
        };
        self.ask(Ask::Set { node: node.0, set }, Reply::Attr(reply));
    }

    fn readlink(&self, _: &Request, _: INodeNo, reply: ReplyData) {
        // Links are shown and not followed.
        reply.error(Errno::EOPNOTSUPP);
    }

    fn mkdir(&self, _: &Request, folder: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let folder = folder.0;
        let ask = |name| Ask::MakeFolder { folder, name };
        self.ask_name(name, Reply::Entry(reply), ask);
    }

    fn unlink(&self, _: &Request, folder: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let folder = folder.0;
        self.ask_name(name, Reply::Empty(reply), |name| Ask::Unlink {
            folder,
            name,
        });
    }

    fn rmdir(&self, _: &Request, folder: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let folder = folder.0;
        let ask = |name| Ask::RemoveFolder { folder, name };
        self.ask_name(name, Reply::Empty(reply), ask);
    }

    fn rename(
        &self,
        _: &Request,
        folder: INodeNo,
        name: &OsStr,
        new_folder: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let new_name = match names::to_server(new_name) {
            Ok(name) => name,
            Err(errno) => return reply.error(errno),
        };
        let replace = !flags.contains(RenameFlags::RENAME_NOREPLACE);
        self.ask_name(name, Reply::Empty(reply), |name| Ask::Rename {
            from: (folder.0, name),
            to: (new_folder.0, new_name),
            replace,
        });
    }

    fn open(&self, _: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let node = node.0;
        self.ask(Ask::Open { node, flags }, Reply::Open(reply));
    }

    fn create(
        &self,
        _: &Request,
        folder: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (folder, flags) = (folder.0, OpenFlags(flags));
        self.ask_name(name, Reply::Create(reply), |name| Ask::Create {
            folder,
            name,
            flags,
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        file: FileHandle,
        offset: u64,
        len: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file = file.0;
        self.asked.hand_over(Job::Read {
            file,
            offset,
            len,
            reply,
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        file: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let file = file.0;
        let end = i64::try_from(offset)
            .ok()
            .and_then(|at| at.checked_add_unsigned(data.len() as u64));
        if end.is_none() {
            return reply.error(Errno::EFBIG);
        }
        self.asked.hand_over(Job::Write {
            file,
            offset,
            data: data.into(),
            reply,
        });
    }

    fn flush(&self, _: &Request, node: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let node = node.0;
        self.asked.hand_over(Job::Flush { node, reply });
    }

    fn fsync(&self, _: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let node = node.0;
        self.asked.hand_over(Job::Flush { node, reply });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        file: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.ask(Ask::Release { file: file.0 }, Reply::Empty(reply));
    }

    fn opendir(&self, _: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.ask(Ask::OpenFolder { node: node.0 }, Reply::Open(reply));
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        file: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let (file, again) = (file.0, offset == 0);
        self.ask(Ask::List { file, again }, Reply::List(reply, offset));
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        file: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (file, again) = (file.0, offset == 0);
        self.ask(Ask::List { file, again }, Reply::ListAll(reply, offset));
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        file: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.ask(Ask::Release { file: file.0 }, Reply::Empty(reply));
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        // There is nothing that a server could be asked for.
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.ask(Ask::Room, Reply::Room(reply));
    }
}

/// Whether a file is opened to be read, and to be written.
pub(super) fn wants(flags: OpenFlags) -> (bool, bool) {
    match flags.acc_mode() {
        OpenAccMode::O_RDONLY => (true, false),
        OpenAccMode::O_WRONLY => (false, true),
        OpenAccMode::O_RDWR => (true, true),
    }
}

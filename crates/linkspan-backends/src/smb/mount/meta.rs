//! What is asked of files and folders besides their data: one question at a time, each with all
//! that the server has to say to it.
//!
//! A question that is asked again on a new connection may have been answered on the one before:
//! what it was to do and finds done was done.

use std::time::Instant;

use fuser::{Errno, FileAttr, OpenFlags};
use linkspan_smb2::create::{access, attributes, disposition, options};
use linkspan_smb2::info::{Basic, class};
use linkspan_smb2::status;
use zerocopy::IntoBytes as _;

use super::super::error::Error;
use super::super::share::{Kind, Meta, Open};
use super::ask::{Answer, Ask, Set, wants};
use super::attr::{attr, ticks};
use super::nodes::hidden_name;
use super::serve::{Failed, File, Handle, Server};

/// Open files and folders at most.
const OPEN_MAX: usize = 65_536;

/// By how much a server's clock for files may be behind its other one: 1 s in units of 100 ns.
const CLOCK: u64 = 10_000_000;

/// What was done with what is where something is to go.
enum Way {
    /// It is replaced, or there is nothing.
    Free,
    /// A file of this number has another name.
    Hidden(u64),
    /// An empty folder is gone.
    Removed,
}

/// Whether the server says this.
fn says(result: &Result<(), Error>, said: &[u32]) -> bool {
    let error = result.as_ref().err().and_then(Error::status);
    error.is_some_and(|error| said.contains(&error))
}

/// Whether what is there may have been made by who asked for it then, if it was asked before: an
/// answer may be lost, and others may have made it first. Where the server says no time it was not.
fn is_own(meta: &Meta, asked: Option<u64>) -> bool {
    asked.is_some_and(|asked| asked > 0 && meta.created.saturating_add(CLOCK) >= asked)
}

impl Server {
    /// Does what is asked for.
    pub(super) fn answer(&mut self, ask: &Ask, asked: Option<u64>) -> Result<Answer, Failed> {
        let writes = !matches!(
            ask,
            Ask::Lookup { .. }
                | Ask::Attr { .. }
                | Ask::Open { .. }
                | Ask::Release { .. }
                | Ask::OpenFolder { .. }
                | Ask::List { .. }
                | Ask::Room
        );
        if writes && self.read_only {
            return Err(Errno::EROFS.into());
        }
        let again = asked.is_some();
        match ask {
            Ask::Lookup { folder, name } => {
                let path = self.nodes.child(*folder, name)?;
                let meta = self.share.stat(&path)?;
                self.found(&path, &meta)
            }
            Ask::Attr { node } => {
                let meta = self.share.stat(&self.nodes.path(*node)?)?;
                Ok(Answer::Found(self.known(*node, &meta)?))
            }
            Ask::Set { node, set } => self.set(*node, set),
            Ask::MakeFolder { folder, name } => {
                let path = self.nodes.child(*folder, name)?;
                let meta = self.make_folder(&path, asked)?;
                self.found(&path, &meta)
            }
            Ask::Create {
                folder,
                name,
                flags,
            } => {
                let path = self.nodes.child(*folder, name)?;
                self.create(&path, *flags, asked)
            }
            Ask::Open { node, flags } => self.open(*node, *flags),
            Ask::Release { file } => {
                self.release(*file)?;
                Ok(Answer::Done)
            }
            Ask::OpenFolder { node } => {
                let node = *node;
                let folder = Handle::Folder {
                    node,
                    entries: Vec::new(),
                    listed: Instant::now(),
                };
                self.add(node, folder).map(Answer::Opened)
            }
            Ask::List { file, again } => self.fetch(*file, *again),
            Ask::Rename { from, to, replace } => {
                let from = self.nodes.child(from.0, &from.1)?;
                let to = self.nodes.child(to.0, &to.1)?;
                self.rename(&from, &to, *replace, again)
            }
            Ask::Unlink { folder, name } => {
                let path = self.nodes.child(*folder, name)?;
                self.unlink(&path, again)
            }
            Ask::RemoveFolder { folder, name } => {
                let path = self.nodes.child(*folder, name)?;
                let removed = self.share.remove(&path);
                self.removed(&path, removed, again)
            }
            Ask::Room => {
                let (all, free) = self.share.room()?;
                Ok(Answer::Room(all, free))
            }
        }
    }

    /// The kernel learns of what is at a path.
    fn found(&mut self, path: &str, meta: &Meta) -> Result<Answer, Failed> {
        // Nobody is told a number of what cannot be.
        attr(0, meta, self.owner)?;
        let number = self.nodes.found(path);
        Ok(Answer::Found(self.known(number, meta)?))
    }

    /// What is known of a node.
    fn known(&mut self, number: u64, meta: &Meta) -> Result<FileAttr, Errno> {
        if let Ok(node) = self.nodes.get(number) {
            node.learn(meta.size);
        }
        attr(number, meta, self.owner)
    }

    fn add(&mut self, node: u64, handle: Handle) -> Result<u64, Failed> {
        if self.handles.len() >= OPEN_MAX {
            return Err(Errno::ENFILE.into());
        }
        let number = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(number, handle);
        self.nodes.opened(node);
        Ok(number)
    }

    fn set(&mut self, node: u64, set: &Set) -> Result<Answer, Failed> {
        let path = self.nodes.path(node)?;
        if let Some(size) = set.size {
            self.set_size(node, &path, size)?;
        }
        if set.accessed.is_some() || set.written.is_some() || set.read_only.is_some() {
            let rights = access::READ_ATTRIBUTES | access::WRITE_ATTRIBUTES;
            let open = self.share.open_at(&path, rights, disposition::OPEN, 0)?;
            let done = self.set_basic(&open, set);
            let closed = self.share.close(open);
            done.and(closed)?;
        }
        let meta = self.share.stat(&path)?;
        Ok(Answer::Found(self.known(node, &meta)?))
    }

    fn set_basic(&mut self, open: &Open, set: &Set) -> Result<(), Error> {
        let flags = match set.read_only.filter(|_| open.meta.kind == Kind::File) {
            None => 0,
            Some(true) => open.meta.attributes | attributes::READONLY,
            Some(false) => match open.meta.attributes & !attributes::READONLY {
                // 0 changes nothing.
                0 => attributes::NORMAL,
                others => others,
            },
        };
        let basic = Basic {
            created: 0.into(),
            accessed: set.accessed.map_or(0, ticks).into(),
            written: set.written.map_or(0, ticks).into(),
            changed: 0.into(),
            attributes: flags.into(),
            reserved: 0.into(),
        };
        self.share.set(open, class::BASIC, basic.as_bytes())
    }

    fn set_size(&mut self, number: u64, path: &str, size: u64) -> Result<(), Failed> {
        if i64::try_from(size).is_err() {
            return Err(Errno::EFBIG.into());
        }
        self.settle(number)?;
        if let Some(open) = self.writer(number).map(|file| file.open.clone()) {
            self.share.set_size(&open, size)?;
            self.nodes.get(number)?.sized(size);
            return Ok(());
        }
        // Nobody is there who would flush it.
        let open = self.share.open_file(path, access::WRITE_DATA)?;
        let done = self.share.set_size(&open, size);
        let done = done.and_then(|()| self.share.flush(&open));
        let closed = self.share.close(open);
        done.and(closed)?;
        Ok(())
    }

    /// `asked`: when that was, by the server's clock, if it may have been done.
    fn make_folder(&mut self, path: &str, asked: Option<u64>) -> Result<Meta, Failed> {
        let (how, options) = (disposition::CREATE, options::DIRECTORY_FILE);
        match self
            .share
            .open_at(path, access::READ_ATTRIBUTES, how, options)
        {
            Ok(open) => {
                let meta = open.meta;
                self.share.close(open)?;
                Ok(meta)
            }
            Err(error)
                if asked.is_some() && error.status() == Some(status::OBJECT_NAME_COLLISION) =>
            {
                let meta = self.share.stat(path)?;
                match meta.kind == Kind::Folder && is_own(&meta, asked) {
                    true => Ok(meta),
                    false => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn rights(flags: OpenFlags) -> (u32, bool) {
        let (reads, writes) = wants(flags);
        let mut rights = access::READ_ATTRIBUTES;
        if reads {
            rights |= access::READ_DATA;
        }
        if writes {
            rights |= access::WRITE_DATA | access::APPEND_DATA;
        }
        (rights, writes)
    }

    /// `asked`: as above.
    fn create(
        &mut self,
        path: &str,
        flags: OpenFlags,
        asked: Option<u64>,
    ) -> Result<Answer, Failed> {
        let has = |flag: libc_flags::Flag| flags.0 & flag != 0;
        let how = match () {
            () if has(libc_flags::EXCL) => disposition::CREATE,
            () if has(libc_flags::TRUNC) => disposition::OVERWRITE_IF,
            () => disposition::OPEN_IF,
        };
        let (rights, writes) = Self::rights(flags);
        let options = options::NON_DIRECTORY_FILE;
        let open = match self.share.open_at(path, rights, how, options) {
            Err(error)
                if asked.is_some() && error.status() == Some(status::OBJECT_NAME_COLLISION) =>
            {
                let open = self.share.open_file(path, rights)?;
                // Whoever has written there is not who waits for this answer.
                if open.meta.size > 0 || !is_own(&open.meta, asked) {
                    self.share.close(open)?;
                    return Err(error.into());
                }
                open
            }
            result => result?,
        };
        let meta = open.meta;
        attr(0, &meta, self.owner)?;
        let node = self.nodes.found(path);
        let file = self.add_file(node, open, rights, writes)?;
        Ok(Answer::Created(self.known(node, &meta)?, file))
    }

    fn add_file(
        &mut self,
        node: u64,
        open: Open,
        rights: u32,
        writes: bool,
    ) -> Result<u64, Failed> {
        let file = File {
            node,
            open,
            rights,
            writes,
            dead: None,
        };
        self.add(node, Handle::File(file))
    }

    fn open(&mut self, node: u64, flags: OpenFlags) -> Result<Answer, Failed> {
        let path = self.nodes.path(node)?;
        let (rights, writes) = Self::rights(flags);
        if writes && self.read_only {
            return Err(Errno::EROFS.into());
        }
        let open = self.share.open_file(&path, rights)?;
        if open.meta.kind != Kind::File {
            self.share.close(open)?;
            return Err(Errno::EOPNOTSUPP.into());
        }
        if let Ok(node) = self.nodes.get(node) {
            node.learn(open.meta.size);
        }
        let file = self.add_file(node, open, rights, writes)?;
        Ok(Answer::Opened(file))
    }

    /// Closes a file or folder. What was written is durable then.
    pub(super) fn release(&mut self, number: u64) -> Result<(), Failed> {
        let (node, file) = match self.handles.get(&number) {
            None => return Err(Errno::EBADF.into()),
            Some(Handle::Folder { node, .. }) => (*node, None),
            Some(Handle::File(file)) => {
                let alive = file
                    .dead
                    .is_none()
                    .then(|| (file.open.clone(), file.writes));
                (file.node, alive)
            }
        };
        let mut done = Ok(());
        if let Some((open, writes)) = file {
            self.settle(node)?;
            if writes {
                done = self.unless_over(|server| server.flush_now(node, &open))?;
            }
            let closed = self.unless_over(|server| Ok(server.share.close(open)?))?;
            done = done.and(closed);
        }
        let (hidden, last) = self
            .nodes
            .get(node)
            .map_or((false, false), |node| node.hides());
        if let (true, true, Ok(path)) = (hidden, last, self.nodes.path(node)) {
            // Whoever cannot be removed has its other name.
            let removed = self.unless_over(|server| Ok(server.share.remove(&path)?))?;
            if let Err(failed) = removed {
                tracing::warn!("{path} stays: {failed:?}");
            }
            self.nodes.gone(&path);
        }
        self.handles.remove(&number);
        self.nodes.closed(node);
        if self.writer(node).is_none()
            && let Ok(node) = self.nodes.get(node)
        {
            // Who wrote has heard how that ended.
            node.give_up();
        }
        done
    }

    /// Does something; what goes wrong with the connection itself is for the caller.
    fn unless_over(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), Failed>,
    ) -> Result<Result<(), Failed>, Failed> {
        match work(self) {
            Err(Failed::There(error)) if self.is_over(&error) => Err(error.into()),
            result => Ok(result),
        }
    }

    /// Has what is not durable of a node made so.
    fn flush_now(&mut self, number: u64, open: &Open) -> Result<(), Failed> {
        let Ok(node) = self.nodes.get(number) else {
            return Ok(());
        };
        if !node.is_dirty() {
            return Ok(());
        }
        let (last, cuts) = (node.kept.last(), node.cuts);
        self.share.flush(open)?;
        self.nodes.get(number)?.durable(last, cuts);
        Ok(())
    }

    fn unlink(&mut self, path: &str, again: bool) -> Result<Answer, Failed> {
        if let Some(number) = self.nodes.known(path)
            && self.nodes.is_open(number)
        {
            return self.hide(path, number).map(|()| Answer::Done);
        }
        let mut removed = self.share.remove(path);
        let refused = [status::CANNOT_DELETE, status::ACCESS_DENIED];
        if says(&removed, &refused) && self.share.stat(path)?.attributes & attributes::READONLY != 0
        {
            // What is read-only may be removed here, and not there.
            self.make_writable(path)?;
            removed = self.share.remove(path);
        }
        self.removed(path, removed, again)
    }

    fn removed(
        &mut self,
        path: &str,
        removed: Result<(), Error>,
        again: bool,
    ) -> Result<Answer, Failed> {
        if !(again && says(&removed, &[status::OBJECT_NAME_NOT_FOUND])) {
            removed?;
        }
        self.nodes.gone(path);
        Ok(Answer::Done)
    }

    fn make_writable(&mut self, path: &str) -> Result<(), Error> {
        let rights = access::READ_ATTRIBUTES | access::WRITE_ATTRIBUTES;
        let open = self.share.open_at(path, rights, disposition::OPEN, 0)?;
        let set = Set {
            read_only: Some(false),
            ..Set::default()
        };
        let done = self.set_basic(&open, &set);
        let closed = self.share.close(open);
        done.and(closed)
    }

    /// Gives a file that is open another name until it is closed.
    fn hide(&mut self, path: &str, number: u64) -> Result<(), Failed> {
        if self.nodes.get(number)?.hidden {
            // It goes when it is closed.
            return Err(Errno::EBUSY.into());
        }
        let hidden = hidden_name(path, self.secret, number);
        let renamed = self.rename_there(path, &hidden, false);
        // On a connection before this one, which was lost: nobody else knows the name.
        let was_done =
            says(&renamed, &[status::OBJECT_NAME_NOT_FOUND]) && self.share.stat(&hidden).is_ok();
        if !was_done {
            renamed?;
        }
        self.nodes.moved(path, &hidden);
        self.nodes.get(number)?.hidden = true;
        Ok(())
    }

    /// Gives a file that was hidden its name back.
    fn show(&mut self, number: u64, path: &str) -> Result<(), Failed> {
        let hidden = self.nodes.path(number)?;
        // Whatever it is called then, it is not removed.
        self.nodes.get(number)?.hidden = false;
        self.rename_there(&hidden, path, false)?;
        self.nodes.moved(&hidden, path);
        Ok(())
    }

    /// Renames at the server. If the connection is lost meanwhile, files may be at either place.
    fn rename_there(&mut self, from: &str, to: &str, replace: bool) -> Result<(), Error> {
        self.moving = Some((from.into(), to.into()));
        let renamed = self.share.rename(from, to, replace);
        if !renamed.as_ref().is_err_and(|error| self.is_over(error)) {
            self.moving = None;
        }
        renamed
    }

    fn rename(
        &mut self,
        from: &str,
        to: &str,
        replace: bool,
        again: bool,
    ) -> Result<Answer, Failed> {
        let done = self.rename_there(from, to, replace);
        let refused = [
            status::ACCESS_DENIED,
            status::SHARING_VIOLATION,
            status::CANNOT_DELETE,
            status::OBJECT_NAME_COLLISION,
        ];
        if says(&done, &refused) {
            return self.rename_anyway(from, to, replace);
        }
        let was_done =
            again && says(&done, &[status::OBJECT_NAME_NOT_FOUND]) && self.share.stat(to).is_ok();
        if !was_done {
            done?;
        }
        self.renamed(from, to)?;
        Ok(Answer::Done)
    }

    fn renamed(&mut self, from: &str, to: &str) -> Result<(), Errno> {
        // Unless that was found out when it was opened again.
        if self.nodes.known(from).is_some() {
            self.nodes.moved(from, to);
        }
        if let Some(number) = self.nodes.known(to) {
            // Who gives it a name wants to have it.
            self.nodes.get(number)?.hidden = false;
        }
        Ok(())
    }

    /// Removes what a server may refuse to rename for, and renames.
    fn rename_anyway(&mut self, from: &str, to: &str, replace: bool) -> Result<Answer, Failed> {
        let way = match replace {
            true => self.make_way(to)?,
            false => Way::Free,
        };
        let closed = self.close_below(from);
        let done = closed.and_then(|()| Ok(self.rename_there(from, to, replace)?));
        match &done {
            Ok(()) => self.renamed(from, to)?,
            // It is asked again.
            Err(Failed::There(error)) if self.is_over(error) => {}
            Err(_) => {
                let back = match way {
                    Way::Free => Ok(()),
                    Way::Hidden(number) => self.show(number, to),
                    Way::Removed => self.make_folder(to, None).map(drop),
                };
                if let Err(failed) = back {
                    tracing::error!("{to} is not there as it was: {failed:?}");
                }
            }
        }
        let below = self.nodes.below(if done.is_ok() { to } else { from });
        self.open_again(|number| below.contains(&number))?;
        done.map(|()| Answer::Done)
    }

    /// What is at a path must not be in the way: a file that is open or read-only, a folder in
    /// which nothing is.
    fn make_way(&mut self, to: &str) -> Result<Way, Failed> {
        let meta = match self.share.stat(to) {
            Err(error) if error.status() == Some(status::OBJECT_NAME_NOT_FOUND) => {
                return Ok(Way::Free);
            }
            result => result?,
        };
        let open = self.nodes.known(to).filter(|it| self.nodes.is_open(*it));
        match (meta.kind, open) {
            (Kind::Folder, _) => {
                // It keeps its number until something else has its name.
                self.share.remove(to)?;
                return Ok(Way::Removed);
            }
            (_, Some(number)) => {
                self.hide(to, number)?;
                return Ok(Way::Hidden(number));
            }
            (_, None) if meta.attributes & attributes::READONLY != 0 => self.make_writable(to)?,
            _ => {}
        }
        Ok(Way::Free)
    }

    /// Closes the files below a folder, which a server does not rename otherwise; they are to be
    /// opened again.
    fn close_below(&mut self, folder: &str) -> Result<(), Failed> {
        let below = self.nodes.below(folder);
        let mut files = Vec::new();
        for handle in self.handles.values() {
            if let Handle::File(file) = handle
                && file.dead.is_none()
                && below.contains(&file.node)
            {
                files.push((file.node, file.writes, file.open.clone()));
            }
        }
        for (node, writes, open) in files {
            self.settle(node)?;
            if writes {
                self.flush_now(node, &open)?;
            }
            self.share.close(open)?;
        }
        Ok(())
    }
}

/// Flags of `open(2)` that matter here.
mod libc_flags {
    use rustix::fs::OFlags;

    pub(super) type Flag = i32;

    /// It must not be there.
    pub(super) const EXCL: Flag = OFlags::EXCL.bits().cast_signed();
    /// It is emptied.
    pub(super) const TRUNC: Flag = OFlags::TRUNC.bits().cast_signed();
}

//! What is in folders.

use std::time::{Duration, Instant};

use fuser::Errno;

use super::super::share::{Kind, Meta};
use super::ask::{Answer, Ask, Reply};
use super::attr::{attr, kind};
use super::serve::{Failed, Handle, Server};
use super::{LIFE, names};

/// The number of an entry that has none.
const NO_NODE: u64 = 0xFFFF_FFFF;

impl Server {
    /// Fetches what is in an open folder, if that was not done.
    pub(super) fn fetch(&mut self, number: u64, again: bool) -> Result<Answer, Failed> {
        let node = match self.handles.get(&number) {
            Some(Handle::Folder { .. }) if !again => return Ok(Answer::Done),
            Some(Handle::Folder { node, .. }) => *node,
            _ => return Err(Errno::EBADF.into()),
        };
        let path = self.nodes.path(node)?;
        let begin = Instant::now();
        let found = self.share.list(&path)?;
        let found = found
            .iter()
            .map(|entry| (entry.name.clone(), Meta::of(entry)))
            .collect();
        if let Some(Handle::Folder {
            entries, listed, ..
        }) = self.handles.get_mut(&number)
        {
            (*entries, *listed) = (found, begin);
        }
        Ok(Answer::Done)
    }

    /// Says what is in a folder, from where the kernel is.
    pub(super) fn list(&mut self, ask: &Ask, reply: Reply) {
        let Ask::List { file, .. } = ask else {
            return reply.fail(Errno::EIO);
        };
        let Some(Handle::Folder {
            node,
            entries,
            listed,
        }) = self.handles.get(file)
        else {
            return reply.fail(Errno::EBADF);
        };
        let Ok(path) = self.nodes.path(*node) else {
            return reply.fail(Errno::ESTALE);
        };
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        match reply {
            Reply::List(mut reply, offset) => {
                for (index, (name, meta)) in entries.iter().enumerate().skip(at(offset)) {
                    let number = self.nodes.known(&names::join(&path, name));
                    let number = fuser::INodeNo(number.unwrap_or(NO_NODE));
                    let name = names::to_here(name);
                    if reply.add(number, index as u64 + 1, kind(meta.kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Reply::ListAll(mut reply, offset) => {
                let owner = self.owner;
                for (index, (name, meta)) in entries.iter().enumerate().skip(at(offset)) {
                    let path = names::join(&path, name);
                    let (mut meta, mut life) = (*meta, LIFE);
                    // The kernel would cut off what was written since.
                    let newer = self.nodes.newer_size(&path, *listed);
                    if let (Kind::File, Some(size)) = (meta.kind, newer) {
                        (meta.size, life) = (size, Duration::ZERO);
                    }
                    // One that cannot be is left out.
                    if attr(0, &meta, owner).is_err() {
                        continue;
                    }
                    let number = self.nodes.found(&path);
                    let Ok(attr) = attr(number, &meta, owner) else {
                        continue;
                    };
                    let name = names::to_here(name);
                    let next = index as u64 + 1;
                    if reply.add(attr.ino, next, name, &life, &attr, fuser::Generation(0)) {
                        self.nodes.forget(number, 1);
                        break;
                    }
                }
                reply.ok();
            }
            other => other.fail(Errno::EIO),
        }
    }
}

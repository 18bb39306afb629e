//! The files that senders ask for: in a row, and the first of them under way.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use linkspan_engine::vmbus::FramedError;
use linkspan_vmbus::link::{Outcome, Request};
use rustix::fs::{FileType, fstat};

use super::{Host, Job};

impl Host {
    pub(super) fn enqueue(
        &mut self,
        token: u64,
        request: Request,
        source: OwnedFd,
    ) -> Result<(), FramedError> {
        let kind = if request.folder {
            FileType::Directory
        } else {
            FileType::RegularFile
        };
        let right = fstat(&source).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == kind);
        let patience = Duration::from_millis(u64::from(request.patience));
        let Some(client) = self.clients.get_mut(token) else {
            return Ok(());
        };
        let mut job = Job {
            file: request.file.clone(),
            path: request.path.clone(),
            size: request.size,
            patience,
            verify: request.verify,
            waiting: None,
        };
        if right {
            job.waiting = Some((request, source, Instant::now() + patience));
            self.queue.push_back(token);
        }
        client.known.job = Some(job);
        if !right {
            self.done(token, Outcome::Source);
        }
        Ok(())
    }

    pub(super) fn cancel(&mut self, token: u64) {
        if self.current == Some(token) {
            self.stop_current();
        } else if self.queue.contains(&token) {
            self.queue.retain(|waiting| *waiting != token);
            self.done(token, Outcome::Stopped);
        }
    }

    /// The file that is under way is not wanted any more.
    pub(super) fn stop_current(&mut self) {
        if let Some(asking) = &mut self.asking {
            asking.stop();
        } else if let Some((_, guest)) = &mut self.guest {
            guest.cancel();
        }
    }

    /// Whether a file waits, and the guest for one.
    pub(super) fn may_begin(&self) -> bool {
        let guest = self.guest.as_ref();
        let ready = guest.is_some_and(|(_, guest)| guest.is_ready());
        ready && self.current.is_none() && !self.queue.is_empty()
    }

    /// Begins the next file, if the guest is ready for one.
    pub(super) fn begin(&mut self) {
        while let Some((_, guest)) = &mut self.guest {
            if !guest.is_ready() || self.current.is_some() {
                return;
            }
            let Some(token) = self.queue.pop_front() else {
                return;
            };
            let client = self.clients.get_mut(token);
            let waiting = client.and_then(|client| client.known.job.as_mut()?.waiting.take());
            let Some((request, source, _)) = waiting else {
                continue;
            };
            self.current = Some(token);
            let begun = if request.folder {
                self.make_folder(&request)
            } else {
                guest.begin(request, source)
            };
            match begun {
                Ok(()) => {}
                Err(outcome) => {
                    self.current = None;
                    self.done(token, outcome);
                }
            }
        }
    }
}

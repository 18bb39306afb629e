//! What a guest of ours is asked beside the channel: to read back the file that it has,
//! and to make a folder. It answers one question at a time.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use linkspan_vmbus::fcopy::Operation;
use linkspan_vmbus::ic::Status;
use linkspan_vmbus::link::{ASKS, Digest, Frame, Outcome, Request, SLICE_MAX};

use super::Host;
use crate::fcopy::digest::{self, Slice};

/// A question that was asked.
pub(super) struct Asking {
    what: What,
    patience: Duration,
    /// By when the guest has to have answered.
    until: Instant,
}

enum What {
    Folder,
    File(Check),
}

/// A file that is read back, slice by slice, at both ends.
struct Check {
    source: OwnedFd,
    size: u64,
    offset: u64,
    /// The slice that the guest reads, as it is here.
    ours: Slice,
    /// What makes it end with the next answer.
    over: Option<Outcome>,
}

impl Check {
    fn question(&self) -> Frame {
        let left = self.size - self.offset;
        let len = u32::try_from(left).map_or(SLICE_MAX, |left| left.min(SLICE_MAX));
        let offset = self.offset;
        Frame::Verify { offset, len }
    }

    /// Reads what the guest reads meanwhile.
    fn read(&mut self) {
        let left = self.size - self.offset;
        let len = u32::try_from(left).map_or(SLICE_MAX, |left| left.min(SLICE_MAX));
        match digest::read(self.source.as_fd(), self.offset, len) {
            Ok(slice) if slice.len == len => self.ours = slice,
            _ => self.over = Some(Outcome::Source),
        }
    }

    /// What came of it, if that was all.
    fn answered(&mut self, digest: &Digest) -> Option<Outcome> {
        if self.over.is_some() {
            return self.over;
        }
        if !digest.status.is_ok() {
            let status = digest.status;
            return Some(Outcome::Unread { status });
        }
        let theirs = Slice {
            len: digest.len,
            sha256: digest.sha256,
        };
        if digest.size != self.size || theirs != self.ours {
            let offset = self.offset;
            return Some(Outcome::Differs { offset });
        }
        self.offset += u64::from(digest.len);
        (self.offset == self.size).then_some(Outcome::Verified)
    }
}

impl Asking {
    pub(super) fn deadline(&self) -> Instant {
        self.until
    }

    /// Whether it is a file that the guest has, and reads back.
    pub(super) fn is_of_file(&self) -> bool {
        matches!(self.what, What::File(_))
    }

    /// The sender does not want to know any more.
    pub(super) fn stop(&mut self) {
        if let What::File(check) = &mut self.what {
            // The guest has it all the same.
            check.over.get_or_insert(Outcome::Done);
        }
    }
}

impl Host {
    /// Whether the guest there is can be asked anything.
    fn guest_answers(&self) -> bool {
        let client = self.guest.as_ref();
        let client = client.and_then(|(token, _)| self.clients.get(*token));
        client.is_some_and(|client| client.framed.version() >= ASKS)
    }

    /// The guest says that it has the file of `token`: has it read back, if that was
    /// wanted and can be.
    pub(super) fn verify(&mut self, token: u64, source: Option<OwnedFd>) -> bool {
        let client = self.clients.get(token);
        let job = client.and_then(|client| client.known.job.as_ref());
        let wanted = job
            .filter(|job| job.verify)
            .map(|job| (job.size, job.patience));
        let (Some((size, patience)), Some(source)) = (wanted, source) else {
            return false;
        };
        if !self.guest_answers() {
            return false;
        }
        let nothing = Slice {
            len: 0,
            sha256: [0; 32],
        };
        let check = Check {
            source,
            size,
            offset: 0,
            ours: nothing,
            over: None,
        };
        let question = check.question();
        self.ask(What::File(check), patience, &question);
        true
    }

    /// Has the folder made, or says why not.
    pub(super) fn make_folder(&mut self, request: &Request) -> Result<(), Outcome> {
        if !self.guest_answers() {
            return Err(Outcome::NoFolders);
        }
        let question = Frame::Folder {
            file: request.file.clone(),
            path: request.path.clone(),
            create_path: request.create_path,
        };
        let patience = Duration::from_millis(u64::from(request.patience));
        self.ask(What::Folder, patience, &question);
        Ok(())
    }

    fn ask(&mut self, what: What, patience: Duration, question: &Frame) {
        let Some((token, _)) = self.guest else {
            return;
        };
        let asking = self.asking.insert(Asking {
            what,
            patience,
            until: Instant::now() + patience,
        });
        let Some(client) = self.clients.get_mut(token) else {
            return;
        };
        match client.framed.say(question, &[]) {
            Ok(()) => {
                if let What::File(check) = &mut asking.what {
                    check.read();
                }
            }
            Err(error) => self.remove(token, &error),
        }
    }

    /// The guest has read something back.
    pub(super) fn digested(&mut self, digest: &Digest) {
        let Some(Asking {
            what: What::File(mut check),
            patience,
            ..
        }) = self.asking.take()
        else {
            return;
        };
        if let Some(outcome) = check.answered(digest) {
            return self.finish(outcome);
        }
        let (sent, checked) = (check.size, check.offset);
        // One that left is not told, and not verified for.
        if let Some(current) = self.current {
            self.tell(current, &Frame::Progress { sent, checked });
        }
        let question = check.question();
        self.ask(What::File(check), patience, &question);
    }

    /// The guest has made a folder, or not.
    pub(super) fn made(&mut self, status: Status) {
        self.asking = None;
        self.finish(if status.is_ok() {
            Outcome::Done
        } else {
            let operation = Operation::Start;
            Outcome::Refused { operation, status }
        });
    }

    fn finish(&mut self, outcome: Outcome) {
        if let Some(current) = self.current.take() {
            self.done(current, outcome);
        }
    }
}

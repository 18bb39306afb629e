//! The thread of a qcow2 image: takes what queues handed over, and answers.

use std::any::Any;
use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::SyncSender;

use imago::file::File as Storage;
use imago::{FormatAccess, Mapping, StorageExt as _};
use linkspan_mem::{RegionTable, Span};

use super::super::handed::{Handed, Job, Request, Work};
use super::chain::{self, ChainOptions, Qcow2Error};
use super::header::Header;

/// Bytes that go through the buffer at a time.
const BUFFER: usize = 256 << 10;

thread_local! {
    static CONTAINS_PANICS: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread is caught and answered as errors of its image's
/// requests: the reader of a format that others wrote runs here, on an image that
/// may be hostile. Any other panic is a bug of ours, and should end the process.
pub fn contains_panics() -> bool {
    CONTAINS_PANICS.get()
}

/// Opens the image, says how that went, and serves it until the end.
pub(super) fn run(
    path: &Path,
    options: &ChainOptions,
    handed: &Handed,
    opened: &SyncSender<Result<Header, Qcow2Error>>,
) {
    CONTAINS_PANICS.set(true);
    let chain = catch_unwind(|| chain::open(path, options)).unwrap_or_else(|panic| {
        Err(Qcow2Error::Panicked {
            path: path.to_owned(),
            what: what_it_said(&*panic),
        })
    });
    let (image, result) = match chain {
        Ok((image, header)) => (Some(image), Ok(header)),
        Err(error) => (None, Err(error)),
    };
    // Who opens the image waits for this.
    let _ = opened.send(result);
    if let Some(image) = image {
        let server = Server {
            image: Some(image),
            buffer: vec![0; BUFFER],
            failed: None,
        };
        server.run(handed);
    }
}

struct Server {
    /// None when its reader has panicked.
    image: Option<FormatAccess<Storage>>,
    buffer: Vec<u8>,
    /// Why nothing can be made durable any more.
    failed: Option<String>,
}

impl Server {
    fn run(mut self, handed: &Handed) {
        let mut jobs = VecDeque::new();
        let mut written = Vec::new();
        while handed.wait(&mut jobs) {
            for job in jobs.drain(..) {
                match job {
                    Job::Request(request) => {
                        let result = self.carry_out(&request);
                        match (request.work, &result) {
                            (Work::Read { .. }, _) | (_, Err(_)) => request.complete(result),
                            _ => written.push(request),
                        }
                    }
                    Job::Sync(answer) => {
                        // Nobody may wait any more.
                        let _ = answer.send(self.sync());
                    }
                }
            }
            // Once for all of them: who is told that it wrote must find it after
            // this process was killed.
            let tables = if written.is_empty() {
                Ok(())
            } else {
                self.with_image(|image, _| image.flush())
            };
            for request in written.drain(..) {
                request.complete(match &tables {
                    Ok(()) => Ok(()),
                    Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
                });
            }
        }
        let end = self.with_image(|image, _| image.flush());
        if let Err(error) = end {
            tracing::error!("the tables of a qcow2 image could not be written: {error}");
        }
        // Closing it writes back what is left, which is nothing but what failed.
        let image = self.image.take();
        let _ = catch_unwind(AssertUnwindSafe(move || drop(image)));
    }

    fn carry_out(&mut self, request: &Request) -> io::Result<()> {
        let (spans, memory) = (&request.spans, &*request.memory);
        match request.work {
            Work::Read { offset } => self.with_image(|image, buffer| {
                each_part(spans, buffer, |at, part| {
                    image.read(&mut *part, offset + at)?;
                    memory.scatter(spans, at, part).map_err(io::Error::other)
                })
            }),
            Work::Write { offset, durable } => {
                self.with_image(|image, buffer| write(image, buffer, offset, spans, memory))?;
                if durable { self.sync() } else { Ok(()) }
            }
            Work::Flush => self.sync(),
            Work::Discard { offset, len } => {
                let done = self.with_image(|image, _| {
                    give_back(image, offset, len)?;
                    image.discard_to_any(offset, len)
                });
                match done {
                    // Version 2 cannot; the bytes stay, which is allowed.
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
                    done => done,
                }
            }
            Work::Zero {
                offset,
                len,
                unmap,
                durable,
            } => {
                self.zero(offset, len, unmap)?;
                if durable { self.sync() } else { Ok(()) }
            }
        }
    }

    fn zero(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let done = self.with_image(|image, _| {
            if unmap {
                give_back(image, offset, len)?;
                image.discard_to_zero(offset, len)
            } else {
                image.write_zeroes(offset, len)
            }
        });
        match done {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            done => return done,
        }
        // Version 2 has no zeroes but written ones.
        self.with_image(|image, buffer| {
            buffer.fill(0);
            let mut at = 0;
            while at < len {
                let part = usize::try_from(len - at).map_or(buffer.len(), |n| n.min(buffer.len()));
                image.write(&buffer[..part], offset + at)?;
                at += part as u64;
            }
            Ok(())
        })
    }

    /// Makes durable what was written. A sync that failed once stays failed.
    fn sync(&mut self) -> io::Result<()> {
        if let Some(error) = &self.failed {
            return Err(io::Error::other(format!(
                "an earlier sync of the image failed: {error}"
            )));
        }
        let done = self.with_image(|image, _| {
            image.flush()?;
            image.sync()
        });
        done.inspect_err(|error| self.failed = Some(error.to_string()))
    }

    /// Does something with the image. If its reader panics, that is an error, and
    /// the image is not touched again: nobody knows what state it is in.
    fn with_image(
        &mut self,
        work: impl FnOnce(&mut FormatAccess<Storage>, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let broken = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the qcow2 image is broken in a way that its reader does not bear; \
                 check it with `qemu-img check`",
            )
        };
        let Some(mut image) = self.image.take() else {
            return Err(broken());
        };
        let buffer = &mut self.buffer[..];
        match catch_unwind(AssertUnwindSafe(|| work(&mut image, buffer))) {
            Ok(result) => {
                self.image = Some(image);
                result
            }
            Err(panic) => {
                tracing::error!(
                    "the reader of qcow2 failed: {}; all requests fail from now on",
                    what_it_said(&*panic)
                );
                // Closing it would write what may be wrong.
                std::mem::forget(image);
                Err(broken())
            }
        }
    }
}

/// Gives the storage below a part of the disk back to the file system. The reader
/// only forgets where the data was; so the storage goes first, while nothing else
/// can be there, and what a snapshot has as well is not touched.
fn give_back(image: &FormatAccess<Storage>, offset: u64, len: u64) -> io::Result<()> {
    let end = offset + len;
    let mut at = offset;
    while at < end {
        let (mapping, count) = image.get_mapping(at, end - at)?;
        if count == 0 {
            break;
        }
        if let Mapping::Raw {
            storage,
            offset,
            writable: true,
            ..
        } = mapping
        {
            storage.discard(offset, count)?;
        }
        at += count;
    }
    Ok(())
}

fn write(
    image: &FormatAccess<Storage>,
    buffer: &mut [u8],
    offset: u64,
    spans: &[Span],
    memory: &RegionTable,
) -> io::Result<()> {
    each_part(spans, buffer, |at, part| {
        memory.gather(spans, at, part).map_err(io::Error::other)?;
        image.write(&*part, offset + at)
    })
}

/// Calls `work` for each part of the spans that fits into the buffer, with the
/// distance of its first byte.
fn each_part(
    spans: &[Span],
    buffer: &mut [u8],
    mut work: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let len: u64 = spans.iter().map(|span| u64::from(span.len())).sum();
    let mut at = 0;
    while at < len {
        let part = usize::try_from(len - at).map_or(buffer.len(), |n| n.min(buffer.len()));
        work(at, &mut buffer[..part])?;
        at += part as u64;
    }
    Ok(())
}

fn what_it_said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use imago::qcow2::Qcow2;
    use imago::{FormatCreateBuilder as _, FormatDriverBuilder as _};

    use super::*;

    #[test]
    fn reader_that_panics_is_an_error_and_is_never_called_again() {
        let storage = Storage::try_from(tempfile::tempfile().unwrap()).unwrap();
        let create = Qcow2::<Storage>::create_builder(storage).size(1 << 20);
        let open = |image| Ok(Qcow2::builder(image).write(true));
        let image = create.create_open(imago::DenyImplicitOpenGate::default(), open);
        let mut server = Server {
            image: Some(FormatAccess::new(image.unwrap())),
            buffer: vec![0; BUFFER],
            failed: None,
        };
        assert!(server.sync().is_ok());
        // The report of a panic is noise here.
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let broken = server.with_image(|_, _| panic!("a number that cannot be"));
        std::panic::set_hook(report);
        assert_eq!(broken.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut called = false;
        let again = server.with_image(|_, _| {
            called = true;
            Ok(())
        });
        assert!(again.is_err() && !called);
        assert!(server.sync().is_err());
        assert!(server.failed.is_some());
    }
}

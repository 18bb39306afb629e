//! Where the corpora come from: small inputs, each with a name and a reason.

mod conform;
mod display;
mod driver;
mod gpu;
mod monitor;
mod net;
mod packed;
mod queue;
mod rdma;
mod replies;
mod saved_link;
mod saved_ports;
mod smb2;
mod smb2_gateway;
mod smbdirect;
mod smbdirect_hello;
mod stream;
mod supervisor;
mod uio;
mod vdpa;
mod vduse;
mod vfio_user;
mod virtio_pci;
mod vmbus;
mod web;

use crate::{
    display as display_target, net as net_target, rdma as rdma_target, ring_memory,
    smb2 as smb2_target, uio as uio_target, vdpa as vdpa_target, vduse as vduse_target,
    vfio_user as vfio_user_target, vhost_user_replies, vhost_user_stream,
    virtio_pci as virtio_pci_target, vmbus as vmbus_target,
};

/// One input of a corpus.
#[derive(Clone, Debug)]
pub struct Seed {
    /// Which target it is for.
    pub target: &'static str,
    /// The name of its file.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
    /// What has to come of it.
    pub expected: Expected,
}

/// What comes of a seed, so that it stays what its name says.
#[derive(Clone, Debug)]
pub enum Expected {
    /// So many answers, or chains that came back; and the queue is retired with an error that says this.
    Queue {
        /// Requests answered.
        answers: usize,
        /// A part of the error, or nothing.
        retired: Option<&'static str>,
    },
    /// So many commands that were done and refused, and frames that were delivered,
    /// dropped, and answered by the host.
    Net {
        /// Commands done.
        done: usize,
        /// Commands refused.
        refused: usize,
        /// Frames that reach their receiver.
        delivered: usize,
        /// Frames that do not.
        dropped: usize,
        /// Frames that the host answers.
        answered: usize,
    },
    /// So many commands that were done and refused; and the session ends with an
    /// error that says this.
    Replies {
        /// Commands done.
        done: usize,
        /// Commands refused.
        refused: usize,
        /// A part of the error, or nothing.
        error: Option<&'static str>,
    },
    /// So many requests that were done and refused, rings that were started, and
    /// processes that went on for one that died; the driver at the end included.
    Vduse {
        /// Requests done.
        done: usize,
        /// Requests refused.
        refused: usize,
        /// Rings started.
        starts: usize,
        /// Processes that went on.
        restores: usize,
    },
    /// So many things that were done and refused, and an error that says this.
    Vmbus {
        /// Things done.
        done: usize,
        /// Things refused.
        refused: usize,
        /// A part of the last error, or nothing.
        error: Option<&'static str>,
    },
    /// So many messages and works that were done, works that were not, and why the
    /// connection ended.
    Rdma {
        /// Messages and works.
        done: usize,
        /// Works refused, or given back.
        refused: usize,
        /// A part of why it ended, or nothing.
        error: Option<&'static str>,
    },
    /// So many bytes that were read and things that were done, things that were not, and
    /// why the connection ended.
    Smbdirect {
        /// Bytes, and things done.
        done: usize,
        /// Things refused, or given back.
        refused: usize,
        /// A part of why it ended, or nothing.
        error: Option<&'static str>,
    },
    /// So many messages that were taken, or events, and an error that says this.
    Smb2 {
        /// Messages or events.
        done: usize,
        /// A part of the error, or nothing.
        error: Option<&'static str>,
    },
    /// What came to a supervisor was this.
    Told(&'static str),
    /// A saved link is this.
    Saved(&'static str),
    /// How far the conformance kit comes has these words in it.
    Met(&'static str),
    /// A first message is this.
    Hello(&'static str),
    /// So many pictures or updates and events, refusals, and an error that says this.
    Display {
        /// Pictures, or updates and events.
        done: usize,
        /// Refusals.
        refused: usize,
        /// A part of the last error, or nothing.
        error: Option<&'static str>,
    },
    /// So many answers and refusals, and an error that says this.
    VfioUser {
        /// Answers.
        done: usize,
        /// Refusals.
        refused: usize,
        /// A part of the last error, or nothing.
        error: Option<&'static str>,
    },
    /// What a program and its kernel asked of a device's file came to this.
    Uio(uio_target::Outcome),
    /// What a device and its kernel answered came to this.
    Vdpa(vdpa_target::Outcome),
    /// What a driver wrote to a function came to this.
    VirtioPci(virtio_pci_target::Outcome),
    /// So many replies and starts of rings; and whether the session ends itself.
    Stream {
        /// Messages to the front end.
        replies: usize,
        /// Rings started.
        starts: usize,
        /// Whether the back end ended it.
        closed: bool,
    },
}

/// All seeds of all targets.
pub fn all() -> Vec<Seed> {
    [
        stream::seeds(),
        replies::seeds(),
        queue::seeds(),
        packed::seeds(),
        driver::seeds(),
        net::seeds(),
        vduse::seeds(),
        vmbus::seeds(),
        uio::seeds(),
        vdpa::seeds(),
        virtio_pci::seeds(),
        rdma::seeds(),
        smb2::seeds(),
        smb2_gateway::seeds(),
        smbdirect::seeds(),
        smbdirect_hello::seeds(),
        saved_link::seeds(),
        saved_ports::seeds(),
        supervisor::seeds(),
        display::seeds(),
        gpu::seeds(),
        vfio_user::seeds(),
        web::seeds(),
        monitor::seeds(),
        conform::seeds(),
    ]
    .concat()
}

impl Seed {
    /// Runs it.
    ///
    /// # Panics
    /// When what comes of it is not what was expected.
    pub fn check(&self) {
        let name = &self.name;
        match self.expected {
            Expected::Queue { answers, retired } => {
                let outcome = ring_memory::run(&self.bytes);
                assert_eq!(outcome.answers, answers, "{name}: {outcome:?}");
                check_error(name, outcome.error, retired);
            }
            Expected::Net {
                done,
                refused,
                delivered,
                dropped,
                answered,
            } => {
                let expected = net_target::Outcome {
                    done,
                    refused,
                    delivered,
                    dropped,
                    answered,
                };
                assert_eq!(net_target::run(&self.bytes), expected, "{name}");
            }
            Expected::Replies {
                done,
                refused,
                error,
            } => {
                let outcome = vhost_user_replies::run(&self.bytes);
                let found = (outcome.done, outcome.refused);
                assert_eq!(found, (done, refused), "{name}: {outcome:?}");
                check_error(name, outcome.error, error);
            }
            Expected::VfioUser {
                done,
                refused,
                error,
            } => {
                let outcome = vfio_user_target::run(self.target, &self.bytes);
                let found = (outcome.done, outcome.refused);
                assert_eq!(found, (done, refused), "{name}: {outcome:?}");
                check_error(name, outcome.error, error);
            }
            Expected::Vduse {
                done,
                refused,
                starts,
                restores,
            } => {
                let expected = vduse_target::Outcome {
                    done,
                    refused,
                    starts,
                    restores,
                };
                assert_eq!(vduse_target::run(&self.bytes), expected, "{name}");
            }
            Expected::Smb2 { done, error } => {
                let run = match self.target {
                    "smb2_gateway" => crate::smb2_gateway::run,
                    _ => smb2_target::run,
                };
                let outcome = run(&self.bytes);
                assert_eq!(outcome.done, done, "{name}: {outcome:?}");
                check_error(name, outcome.error, error);
            }
            Expected::Told(what) => {
                assert_eq!(linkspan::outside::take(&self.bytes), what, "{name}");
            }
            Expected::Saved(what) => {
                let run = match self.target {
                    "saved_ports" => crate::saved_ports::run,
                    _ => crate::saved_link::run,
                };
                assert_eq!(run(&self.bytes), what, "{name}");
            }
            Expected::Met(words) => {
                let met = crate::conform_replies::run(&self.bytes);
                assert!(met.contains(words), "{name}: {met}");
            }
            Expected::Hello(what) => {
                assert_eq!(crate::smbdirect_hello::run(&self.bytes), what, "{name}");
            }
            Expected::Vmbus {
                done,
                refused,
                error,
            } => {
                let outcome = vmbus_target::run(self.target, &self.bytes);
                let found = (outcome.done, outcome.refused);
                assert_eq!(found, (done, refused), "{name}: {outcome:?}");
                check_error(name, outcome.error, error);
            }
            Expected::Rdma {
                done,
                refused,
                error,
            } => {
                let run = match self.target {
                    "rdma_mpa" => rdma_target::run_mpa,
                    _ => rdma_target::run_ddp,
                };
                let outcome = run(&self.bytes);
                let found = (outcome.done, outcome.refused);
                assert_eq!(found, (done, refused), "{name}: {outcome:?}");
                check_error(name, outcome.error, error);
            }
            Expected::Display {
                done,
                refused,
                error,
            } => {
                let outcome = display_target::run(self.target, &self.bytes);
                let found = (outcome.done, outcome.refused);
                assert_eq!(found, (done, refused), "{name}: {outcome:?}");
                check_error(name, outcome.error, error);
            }
            Expected::Smbdirect {
                done,
                refused,
                error,
            } => {
                let outcome = crate::smbdirect::run(&self.bytes);
                let found = (outcome.done, outcome.refused);
                assert_eq!(found, (done, refused), "{name}: {outcome:?}");
                check_error(name, outcome.error, error);
            }
            Expected::Uio(expected) => {
                assert_eq!(uio_target::run(&self.bytes), expected, "{name}");
            }
            Expected::Vdpa(expected) => {
                assert_eq!(vdpa_target::run(&self.bytes), expected, "{name}");
            }
            Expected::VirtioPci(expected) => {
                assert_eq!(virtio_pci_target::run(&self.bytes), expected, "{name}");
            }
            Expected::Stream {
                replies,
                starts,
                closed,
            } => {
                let outcome = vhost_user_stream::run(&self.bytes);
                let found = (outcome.replies, outcome.starts, outcome.closed);
                assert_eq!(found, (replies, starts, closed), "{name}: {outcome:?}");
            }
        }
    }
}

fn check_error(name: &str, error: Option<impl ToString>, part: Option<&str>) {
    let error = error.map(|error| error.to_string());
    match part {
        None => assert_eq!(error, None, "{name}"),
        Some(part) => assert!(
            error.as_ref().is_some_and(|error| error.contains(part)),
            "{name}: {error:?}"
        ),
    }
}

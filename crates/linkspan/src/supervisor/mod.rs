//! Keeps the links of a plane running, each in a process of its own, and tells of them.

mod activation;
pub mod core;
pub(crate) mod gathering;
mod line;
pub mod link;
pub(crate) mod listed;
mod metrics;
mod notify;
mod page;
pub mod processes;
mod question;
mod succession;
pub mod up;

pub use activation::Sockets;
pub(crate) use line::Line;
pub(crate) use page::NAME as PAGE;
pub(crate) use processes::follow;
pub(crate) use question::{Question, Verb};

/// What shows all that there is to see of links.
pub(crate) const INSPECT: Question = Question::Inspect;

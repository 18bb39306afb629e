//! Links as they are told to whoever asks.

use std::path::PathBuf;

use serde::Serialize;

use crate::plane::Viewers;

/// A link, as `linkspan link list` gets it.
#[derive(Serialize)]
pub(crate) struct Listed {
    pub(crate) link: String,
    pub(crate) state: &'static str,
    pub(crate) pid: Option<u32>,
    pub(crate) starts: u64,
    pub(crate) last_end: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) viewers: Option<Viewers>,
    /// Where it serves virtual machines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) sockets: Vec<PathBuf>,
}

impl Listed {
    /// A line for each.
    pub(crate) fn lines(all: impl Iterator<Item = Self>) -> String {
        let lines = all.map(|line| serde_json::to_string(&line).unwrap_or_default() + "\n");
        lines.collect()
    }
}

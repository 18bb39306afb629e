//! The screens of a plane's guests: which links have some, and where keys and the pointer of
//! their guests go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Plane;
use super::merge::Link;
use super::uses::Use;
use crate::cli;

/// What a link shows, as its arguments say it.
#[derive(Clone, Debug)]
pub(crate) struct Shows {
    /// The socket for viewers.
    pub(crate) display: PathBuf,
    /// How many screens.
    pub(crate) heads: u8,
    /// Where its machine connects.
    pub(crate) socket: Option<PathBuf>,
}

/// What a link shows, from where a page is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Viewers {
    pub(crate) display: PathBuf,
    pub(crate) heads: u8,
    /// The monitor of QEMU that takes keys and the pointer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) keys: Option<PathBuf>,
}

impl Plane {
    /// All links that have screens for viewers.
    pub(crate) fn viewers(&self) -> BTreeMap<String, Viewers> {
        let links = self.links.iter().filter(|link| !link.is_machine);
        let shows = links.filter_map(|link| {
            let shows = cli::shows(&link.arguments)?;
            let viewers = Viewers {
                display: self.straight(&shows.display),
                heads: shows.heads,
                keys: shows.socket.and_then(|socket| self.keys(&socket)),
            };
            Some((link.name.clone(), viewers))
        });
        shows.collect()
    }

    /// The sockets at which links serve virtual machines.
    pub(crate) fn sockets(&self) -> BTreeMap<String, Vec<PathBuf>> {
        let of = |link: &Link| {
            let sockets = link.offers.iter().map(|it| self.straight(&it.socket));
            (link.name.clone(), sockets.collect())
        };
        self.links.iter().map(of).collect()
    }

    /// Where the machine that has its screen behind this socket takes keys.
    fn keys(&self, socket: &Path) -> Option<PathBuf> {
        let socket = self.straight(socket);
        let machines = self.links.iter().filter(|link| link.is_machine);
        let mut machines = machines.filter_map(|link| cli::machine(&link.arguments));
        let machine = machines.find(|it| it.screens().any(|it| self.straight(it) == socket));
        Some(self.straight(machine?.keys()?))
    }

    fn straight(&self, path: &Path) -> PathBuf {
        match Use::Makes(path.to_owned()).below(&self.folder) {
            Use::Makes(path) => path,
            _ => path.to_owned(),
        }
    }
}

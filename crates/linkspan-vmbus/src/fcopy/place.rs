//! Where a file goes: an absolute path within one of the roots. Only what can be
//! told from the text is told here; links and what exists are for whoever opens it.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use thiserror::Error;

use super::name::{self, NameError};

/// The folders that may be written to, by the paths that the host names them with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots(Vec<String>);

/// A folder that cannot be a root.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RootError {
    /// There is none at all.
    #[error("there is no folder that may be written to")]
    None,
    /// It is not absolute, or not written in the shortest way.
    #[error("{root:?} is no absolute path without `.` and `..`")]
    Path {
        /// It.
        root: String,
    },
}

/// A place within a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which root, counted from 0.
    pub root: usize,
    /// The folder below it, parts joined by `/`; empty for the root itself.
    pub folder: String,
    /// The file in that folder.
    pub target: Target,
    /// Whether a file that exists is replaced.
    pub overwrite: bool,
    /// Whether folders that are missing are made.
    pub create_path: bool,
    /// Bytes of the file.
    pub size: u64,
}

/// What the last part of a destination is. Microsoft documents both: a folder that
/// exists gets the file under its own name, any other path is the file's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The folder is meant; the file has this name in it.
    In {
        /// The file's name.
        name: String,
    },
    /// If the folder has a folder `last`, the file goes there with the name `name`;
    /// otherwise `last` is its name.
    At {
        /// The last part of the destination.
        last: String,
        /// The file's name at the host.
        name: String,
    },
}

impl Roots {
    /// These folders; a relative destination is below the first.
    ///
    /// # Errors
    /// There is none, or one is no absolute path.
    pub fn new<T: AsRef<str>>(roots: &[T]) -> Result<Self, RootError> {
        let mut all = Vec::new();
        for root in roots {
            let root = root.as_ref();
            let wrong = RootError::Path { root: root.into() };
            let parts = parts(root).filter(|_| root.starts_with('/') && !root.contains('\0'));
            let parts = parts.ok_or(wrong)?;
            all.push(joined(&parts));
        }
        if all.is_empty() {
            return Err(RootError::None);
        }
        Ok(Self(all))
    }

    /// The place that the host's names stand for.
    pub(super) fn place(
        &self,
        file: String,
        path: &str,
    ) -> Result<(usize, String, Target), NameError> {
        let name = name::leaf(file)?;
        let path = path.replace('\\', "/");
        if let Some(variable) = name::variable(&path) {
            return Err(NameError::Variable {
                name: variable.into(),
            });
        }
        let absolute = path.starts_with('/');
        let first = path.split('/').next().unwrap_or_default();
        if let [letter, b':'] = first.as_bytes()
            && letter.is_ascii_alphabetic()
        {
            return Err(NameError::Drive { name: first.into() });
        }
        let parts = parts(&path).ok_or_else(|| NameError::Dots { name: "..".into() })?;
        for part in &parts {
            name::part(part)?;
        }
        let (root, below) = if absolute {
            self.root_of(&parts)
                .ok_or_else(|| NameError::Outside { path: path.clone() })?
        } else {
            (0, &parts[..])
        };
        // A path that ends like one is a folder's.
        let folder = path.ends_with('/') || path.ends_with("/.");
        let (below, target) = match below.split_last() {
            Some((last, before)) if !folder => {
                let last = (*last).to_string();
                (before, Target::At { last, name })
            }
            _ => (below, Target::In { name }),
        };
        Ok((root, joined_below(below), target))
    }

    /// The innermost root that the path is in, and what is below it.
    fn root_of<'a, 'b>(&self, path: &'a [&'b str]) -> Option<(usize, &'a [&'b str])> {
        let mut best: Option<(usize, &[&str])> = None;
        for (index, root) in self.0.iter().enumerate() {
            let root = parts(root)?;
            if path.get(..root.len()) == Some(&root[..]) {
                let below = &path[root.len()..];
                if best.is_none_or(|(_, before)| below.len() < before.len()) {
                    best = Some((index, below));
                }
            }
        }
        best
    }

    /// The roots, as they are compared with.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// The parts of a path but for those that mean nothing; `None` if one leads back.
fn parts(path: &str) -> Option<Vec<&str>> {
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    let parts: Vec<_> = parts.collect();
    (!parts.contains(&"..")).then_some(parts)
}

fn joined(parts: &[&str]) -> String {
    let mut path = String::from("/");
    path += &joined_below(parts);
    path
}

fn joined_below(parts: &[&str]) -> String {
    parts.join("/")
}

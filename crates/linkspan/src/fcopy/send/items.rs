//! What is to be sent: files one by one, and folders in which none is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use linkspan_vmbus::link::{NAME_MAX, Outcome};

use super::Args;

/// Folders in folders at most; what is deeper has a path that no message has room for.
const DEPTH_MAX: usize = 128;

/// A file to send, and where to.
pub(super) struct Item {
    pub(super) source: PathBuf,
    pub(super) name: String,
    pub(super) to: String,
    pub(super) create_path: bool,
    /// A folder in which there is no file; others are made by their files.
    pub(super) folder: bool,
}

/// All files, in the order of their names; what cannot be one is put aside.
pub(super) fn items(args: &Args, faults: &mut Vec<(PathBuf, anyhow::Error)>) -> Vec<Item> {
    let mut items = Vec::new();
    let many = args.files.len() > 1;
    for source in &args.files {
        let meta = match fs::metadata(source) {
            Ok(meta) => meta,
            Err(error) => {
                faults.push((source.clone(), error.into()));
                continue;
            }
        };
        let mut to = args.to.clone();
        if (many || meta.is_dir()) && !to.ends_with(['/', '\\']) {
            to.push('/');
        }
        let walk = Walk {
            overall: args.create_path || meta.is_dir(),
        };
        // `..` and `.` have names of their own.
        let whole = fs::canonicalize(source).unwrap_or_else(|_| source.clone());
        let named = if source.file_name().is_some() {
            source
        } else {
            &whole
        };
        walk.add(source, named, &to, 0, &mut items, faults);
    }
    items
}

struct Walk {
    /// Whether folders that are missing are made.
    overall: bool,
}

impl Walk {
    /// Adds a file, or a folder with all that is in it.
    fn add(
        &self,
        source: &Path,
        named: &Path,
        to: &str,
        depth: usize,
        items: &mut Vec<Item>,
        faults: &mut Vec<(PathBuf, anyhow::Error)>,
    ) {
        match self.entries(source, named, to, depth) {
            Ok(Found::File(item)) => items.push(item),
            Ok(Found::Folder(folder, inner, entries)) => {
                let before = items.len();
                for entry in entries {
                    self.add(&entry, &entry, &inner, depth + 1, items, faults);
                }
                if items.len() == before {
                    items.push(folder);
                }
            }
            Err(error) => faults.push((source.to_owned(), error)),
        }
    }

    fn entries(
        &self,
        source: &Path,
        named: &Path,
        to: &str,
        depth: usize,
    ) -> Result<Found, anyhow::Error> {
        let name = named.file_name().context("it has no name")?;
        let name = name.to_str().context("its name is not UTF-8")?.to_owned();
        // What was named may be a link; what is in a folder may lead anywhere.
        let meta = if depth == 0 {
            fs::metadata(source)?
        } else {
            fs::symlink_metadata(source)?
        };
        if name.len() > NAME_MAX || to.len() > NAME_MAX || depth > DEPTH_MAX {
            return Err(anyhow!("{}", Outcome::Name));
        }
        let item = |folder| Item {
            source: source.to_owned(),
            name: name.clone(),
            to: to.to_owned(),
            create_path: self.overall,
            folder,
        };
        if meta.is_dir() {
            let mut entries = Vec::new();
            for entry in fs::read_dir(source)? {
                entries.push(entry?.path());
            }
            entries.sort();
            let inner = format!("{to}{name}/");
            return Ok(Found::Folder(item(true), inner, entries));
        }
        if meta.is_symlink() {
            return Err(anyhow!("links in folders are not sent"));
        }
        if !meta.is_file() {
            return Err(anyhow!("it is neither a file nor a folder"));
        }
        Ok(Found::File(item(false)))
    }
}

enum Found {
    File(Item),
    /// Itself, what is in it goes where, and that.
    Folder(Item, String, Vec<PathBuf>),
}

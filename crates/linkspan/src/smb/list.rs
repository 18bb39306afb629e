//! `ls`, `stat` and `rm`.

use std::borrow::Cow;

use anyhow::anyhow;
use linkspan_backends::smb::{Kind, Meta, Share};
use serde::Serialize;

use super::url::{Url, join};
use super::{Common, connect, failure};
use crate::exit::{Failure, Status};
use crate::serving::print;

/// Folders within folders at most: a server could go on for ever.
pub(super) const DEPTH_MAX: usize = 128;

/// Entries of all folders below one, and bytes of their paths, at most: alike.
const ENTRIES_MAX: usize = 4_000_000;
const PATHS_MAX: usize = 1 << 30;

/// Options of `ls`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n\n  linkspan smb ls --recursive smb://me@server/share/folder")]
pub(super) struct LsArgs {
    /// smb://[[domain;]user@]host[:port]/share/path
    url: Url,
    /// With all that is in folders below
    #[arg(short, long)]
    recursive: bool,
    #[command(flatten)]
    common: Common,
}

/// Options of `stat`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n\n  linkspan smb stat --json smb://me@server/share/disk.img")]
pub(super) struct StatArgs {
    /// smb://[[domain;]user@]host[:port]/share/path
    url: Url,
    #[command(flatten)]
    common: Common,
}

/// Options of `rm`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Links are removed, not followed.\n\n\
    Example:\n\n  linkspan smb rm --recursive smb://me@server/share/old")]
pub(super) struct RmArgs {
    /// smb://[[domain;]user@]host[:port]/share/path
    url: Url,
    /// A folder with all that is in it
    #[arg(short, long)]
    recursive: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Serialize)]
struct Line<'a> {
    path: &'a str,
    kind: &'static str,
    size: u64,
    allocated: u64,
    /// Seconds since 1970.
    created: i64,
    written: i64,
    read_only: bool,
}

impl<'a> Line<'a> {
    fn of(path: &'a str, meta: &Meta) -> Self {
        Self {
            path,
            kind: name(meta.kind),
            size: meta.size,
            allocated: meta.allocated,
            created: seconds(meta.created),
            written: seconds(meta.written),
            read_only: meta.attributes & 1 != 0,
        }
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Folder => "folder",
        Kind::Link => "link",
    }
}

/// From 100 ns since 1601 to seconds since 1970.
fn seconds(time: u64) -> i64 {
    i64::try_from(time / 10_000_000).unwrap_or(i64::MAX) - 11_644_473_600
}

/// `2026-11-27 10:00:00`, in UTC.
fn date(time: u64) -> String {
    let seconds = seconds(time);
    let (day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years begin with March, so that a leap day is their last one; 400 of them have 146097 days.
    let day = day + 719_468;
    let (era, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{date:02} {hour:02}:{minute:02}:{second:02}")
}

/// Names of a server go to a terminal: no control characters.
pub(super) fn shown(path: &str) -> Cow<'_, str> {
    if path.chars().any(char::is_control) {
        return path
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
    }
    path.into()
}

fn say(path: &str, meta: &Meta, json: bool) {
    if json {
        print(&Line::of(path, meta));
        return;
    }
    let slash = if meta.kind == Kind::Folder { "/" } else { "" };
    let (size, date) = (meta.size, date(meta.written));
    println!(
        "{:6} {size:>14} {date} {}{slash}",
        name(meta.kind),
        shown(path)
    );
}

/// What a walk has seen.
#[derive(Default)]
struct Seen {
    entries: usize,
    bytes: usize,
}

impl Seen {
    /// One more, with a path of so many bytes.
    fn add(&mut self, bytes: usize) -> Result<(), Failure> {
        self.entries += 1;
        self.bytes += bytes;
        if self.entries > ENTRIES_MAX || self.bytes > PATHS_MAX {
            let (entries, bytes) = (self.entries, self.bytes);
            let error = anyhow!("{entries} entries with paths of {bytes} bytes are too many");
            return Err(Failure::new(Status::Failed, error));
        }
        Ok(())
    }
}

/// Calls for all that is in a folder, folders before what is in them.
pub(super) fn walk(
    share: &mut Share,
    folder: &str,
    recursive: bool,
    visit: &mut dyn FnMut(&str, &Meta) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut left = vec![(folder.to_string(), 0)];
    let mut seen = Seen::default();
    while let Some((folder, depth)) = left.pop() {
        for entry in share.list(&folder).map_err(failure)? {
            let (path, meta) = (join(&folder, &entry.name), Meta::of(&entry));
            seen.add(path.len())?;
            visit(&path, &meta)?;
            if recursive && meta.kind == Kind::Folder {
                if depth == DEPTH_MAX {
                    let error = anyhow!("{path}: more than {DEPTH_MAX} folders in each other");
                    return Err(Failure::new(Status::Failed, error));
                }
                left.push((path, depth + 1));
            }
        }
    }
    Ok(())
}

pub(super) fn ls(args: &LsArgs) -> Result<(), Failure> {
    let mut share = connect(&args.url, &args.common.reach)?;
    let json = args.common.json;
    let meta = share.stat(&args.url.path).map_err(failure)?;
    if meta.kind != Kind::Folder {
        say(&args.url.path, &meta, json);
        return Ok(());
    }
    walk(
        &mut share,
        &args.url.path,
        args.recursive,
        &mut |path, meta| {
            say(path, meta, json);
            Ok(())
        },
    )
}

pub(super) fn stat(args: &StatArgs) -> Result<(), Failure> {
    let mut share = connect(&args.url, &args.common.reach)?;
    let meta = share.stat(&args.url.path).map_err(failure)?;
    if args.common.json {
        print(&Line::of(&args.url.path, &meta));
        return Ok(());
    }
    println!("path       {}", shown(&args.url.path));
    println!("kind       {}", name(meta.kind));
    println!("size       {}", meta.size);
    println!("allocated  {}", meta.allocated);
    println!("created    {} UTC", date(meta.created));
    println!("written    {} UTC", date(meta.written));
    println!("attributes {:#x}", meta.attributes);
    Ok(())
}

pub(super) fn rm(args: &RmArgs) -> Result<(), Failure> {
    let path = &args.url.path;
    if path.is_empty() {
        return Err(Failure::new(
            Status::Usage,
            anyhow!("a share cannot be removed"),
        ));
    }
    let mut share = connect(&args.url, &args.common.reach)?;
    let mut all = vec![path.clone()];
    if args.recursive && share.stat(path).map_err(failure)?.kind == Kind::Folder {
        walk(&mut share, path, true, &mut |path, _| {
            all.push(path.into());
            Ok(())
        })?;
    }
    // What is in a folder comes behind it.
    for path in all.iter().rev() {
        share.remove(path).map_err(failure)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds: u64| date((seconds + 11_644_473_600) * 10_000_000);
        assert_eq!(at(0), "1970-01-01 00:00:00");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(at(1_798_761_599), "2026-12-31 23:59:59");
        assert_eq!(date(0), "1601-01-01 00:00:00");
        assert!(!date(u64::MAX).is_empty());
    }

    /// Ours: each folder had its limit, and there was none for how many there are.
    #[test]
    fn a_walk_ends() {
        let count = |bytes: usize| {
            let mut seen = Seen::default();
            (0..=ENTRIES_MAX)
                .take_while(|_| seen.add(bytes).is_ok())
                .count()
        };
        assert_eq!(count(10), ENTRIES_MAX);
        assert_eq!(count(1 << 20), 1024);
    }
}

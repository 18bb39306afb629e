//! `get` and `put`: whole files, and folders of them.
//!
//! A file has another name until it is whole: its own with `.part` behind it, or `.part1`
//! and so on where something else that is copied is called that. What has this name already
//! may be somebody's, and stays: a transfer that broke goes on from there with `--resume`;
//! since pieces come in any order, it goes back by as much as can have been in flight.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use linkspan_backends::smb::{Data, Kind, Room, Settings, Share, There, WINDOW};
use linkspan_smb2::status;
use rustix::fs::OFlags;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::list::{DEPTH_MAX, shown, walk};
use super::url::{Url, join};
use super::{Common, connect, failure};
use crate::exit::{Failure, Status};
use crate::serving::print;

/// Options of `get`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n\n  linkspan smb get --resume smb://me@server/share/disk.img /tmp/"
)]
pub(super) struct GetArgs {
    /// smb://[[domain;]user@]host[:port]/share/path
    url: Url,
    /// Where it goes: a file, or a folder that is there
    #[arg(default_value = ".")]
    to: PathBuf,
    #[command(flatten)]
    copy: Copy,
}

/// Options of `put`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A URL that ends with a slash, or is a folder, gets the file under its own name.\n\n\
    Example:\n\n  linkspan smb put --hash disk.img smb://me@server/share/images/"
)]
pub(super) struct PutArgs {
    /// A file, or a folder
    from: PathBuf,
    /// smb://[[domain;]user@]host[:port]/share/path
    url: Url,
    #[command(flatten)]
    copy: Copy,
}

/// What both have in common.
#[derive(Debug, clap::Args)]
struct Copy {
    /// A folder with all that is in it
    #[arg(short, long)]
    recursive: bool,
    /// Replaces files that are there
    #[arg(long)]
    overwrite: bool,
    /// Goes on with a transfer that broke
    #[arg(long)]
    resume: bool,
    /// How often a connection that is lost in the middle of a file is made again; the transfer
    /// goes on then
    #[arg(long, value_name = "N", default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(0..=1000))]
    retries: u32,
    /// Reads both ends again when a file is whole, compares them, and says its SHA-256
    #[arg(long)]
    hash: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Serialize)]
struct Line<'a> {
    from: &'a str,
    to: &'a str,
    bytes: u64,
    /// Bytes that were there already.
    resumed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

/// One share, and how things are copied.
struct Copying<'a> {
    share: Share,
    options: &'a Copy,
    bar: ProgressBar,
}

/// Where a transfer begins that has so many bytes of `size`.
fn begin(there: u64, size: u64) -> u64 {
    if there > size {
        return 0;
    }
    // No requests of this program were longer.
    let flying = WINDOW as u64 * u64::from(Settings::default().max_io);
    there.saturating_sub(flying)
}

fn failed(error: anyhow::Error) -> Failure {
    Failure::new(Status::Failed, error)
}

fn exists(path: &str) -> Failure {
    failed(anyhow!("{} is there already", shown(path))).hint("--overwrite")
}

/// Something has the name that a file has until it is whole.
fn in_the_way(path: &str) -> Failure {
    let error = anyhow!("{} is there already, and may be somebody's", shown(path));
    failed(error).hint("--resume to go on with it, or --overwrite")
}

/// What is behind the name of a file until it is whole; another one if that is `taken`.
fn suffix(taken: impl Fn(&str) -> bool) -> String {
    let mut suffix = String::from(".part");
    let mut number = 0_u64;
    while taken(&suffix) {
        number += 1;
        suffix = format!(".part{number}");
    }
    suffix
}

/// Why a file was not copied.
enum Stop {
    /// The connection was lost in the middle of its data: another one can go on.
    Lost(Failure),
    /// Something else.
    Failed(Failure),
}

impl<E: Into<Failure>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// A transfer that broke can go on.
fn broke(error: linkspan_backends::smb::Error) -> Stop {
    let lost = error.is_unreachable();
    let failure = failure(error);
    match lost {
        true => Stop::Lost(failure.hint("the same with --resume goes on from there")),
        false => Stop::Failed(failure),
    }
}

/// How long to wait before a connection is made for the n-th time: longer each time.
fn pause(n: u32) -> Duration {
    Duration::from_secs(1 << n.min(5))
}

impl Copying<'_> {
    /// Copies a file, on one connection after another if need be.
    fn lasting(
        &mut self,
        mut once: impl FnMut(&mut Self, bool) -> Result<(), Stop>,
    ) -> Result<(), Failure> {
        let (at, all) = (self.bar.position(), self.bar.length());
        let mut resume = self.options.resume;
        let mut tried = 0;
        loop {
            let mut lost = match once(self, resume) {
                Ok(()) => return Ok(()),
                Err(Stop::Failed(failure)) => return Err(failure),
                Err(Stop::Lost(failure)) => failure,
            };
            loop {
                if tried == self.options.retries {
                    return Err(lost);
                }
                let text = format!("linkspan: {:#}; connecting again", lost.error);
                self.bar.suspend(|| eprintln!("{text}"));
                thread::sleep(pause(tried));
                tried += 1;
                match self.share.reopen() {
                    Ok(()) => break,
                    Err(error) if error.is_unreachable() => lost.error = error.into(),
                    Err(error) => return Err(failure(error)),
                }
            }
            self.bar.set_position(at);
            self.bar.set_length(all.unwrap_or(0));
            resume = true;
        }
    }

    /// What becomes of what is there when a file begins, or goes on.
    fn there(&self, resume: bool) -> There {
        match (resume, self.options.overwrite) {
            (true, _) => There::Keep,
            (false, true) => There::Replace,
            (false, false) => There::Refuse,
        }
    }

    /// Opens a file here, through no link.
    fn open_here(&self, path: &Path, resume: bool) -> Result<File, Failure> {
        let there = self.there(resume);
        let mut how = OpenOptions::new();
        how.read(true)
            .write(true)
            .create(true)
            .create_new(there == There::Refuse)
            .truncate(there == There::Replace)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        how.open(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => in_the_way(&path.to_string_lossy()),
            _ => failed(anyhow!("cannot write {}: {error}", path.display())),
        })
    }

    /// Fetches a file, with `suffix` behind its name until it is whole.
    fn get(&mut self, from: &str, to: &Path, suffix: &str) -> Result<(), Failure> {
        self.lasting(|copying, resume| copying.get_once(from, to, suffix, resume))
    }

    fn get_once(&mut self, from: &str, to: &Path, suffix: &str, resume: bool) -> Result<(), Stop> {
        if !self.options.overwrite && to.symlink_metadata().is_ok() {
            return Err(exists(&to.to_string_lossy()).into());
        }
        let mut part = to.as_os_str().to_owned();
        part.push(suffix);
        let part = PathBuf::from(part);
        let cannot = |what: &str, path: &Path| format!("cannot {what} {}", path.display());
        let open = self.share.open_read(from).map_err(failure)?;
        let file = self.open_here(&part, resume)?;
        let there = file
            .metadata()
            .with_context(|| cannot("read", &part))?
            .len();
        let size = open.meta.size;
        let start = begin(there, size);
        self.bar.inc_length(size);
        self.bar.inc(start);
        let bar = &self.bar;
        let sink = |at: u64, piece: Data<'_>| {
            bar.inc(piece.len() as u64);
            piece.write_all_at(&file, at)
        };
        self.share.read(&open, start, size, sink).map_err(broke)?;
        file.set_len(size).with_context(|| cannot("write", &part))?;
        file.sync_all().with_context(|| cannot("write", &part))?;
        let hash = self.compare(&file, from, &open)?;
        self.share.close(open).map_err(failure)?;
        fs::rename(&part, to).with_context(|| cannot("name", to))?;
        self.done(from, &to.to_string_lossy(), size, start, hash);
        Ok(())
    }

    /// Sends a file, with `suffix` behind its name until it is whole.
    fn put(&mut self, from: &Path, to: &str, suffix: &str) -> Result<(), Failure> {
        self.lasting(|copying, resume| copying.put_once(from, to, suffix, resume))
    }

    fn put_once(&mut self, from: &Path, to: &str, suffix: &str, resume: bool) -> Result<(), Stop> {
        let there = self.share.stat(to);
        if !self.options.overwrite && there.is_ok() {
            return Err(exists(to).into());
        }
        let cannot = || format!("cannot read {}", from.display());
        let file = File::open(from).with_context(cannot)?;
        let size = file.metadata().with_context(cannot)?.len();
        let part = format!("{to}{suffix}");
        let open = self.share.open_write(&part, self.there(resume));
        let open = open.map_err(|error| match error.status() {
            Some(status::OBJECT_NAME_COLLISION) => in_the_way(&part),
            _ => failure(error),
        })?;
        let start = begin(open.meta.size, size);
        self.bar.inc_length(size);
        self.bar.inc(start);
        let bar = &self.bar;
        let source = |at: u64, piece: Room<'_>| piece.read_exact_at(&file, at);
        let sent = self
            .share
            .write(&open, start, size, source, |count| bar.inc(count));
        sent.map_err(broke)?;
        self.share.set_size(&open, size).map_err(failure)?;
        self.share.flush(&open).map_err(failure)?;
        let hash = self.compare(&file, &part, &open)?;
        self.share.close(open).map_err(failure)?;
        self.share
            .rename(&part, to, self.options.overwrite)
            .map_err(failure)?;
        self.done(&from.to_string_lossy(), to, size, start, hash);
        Ok(())
    }

    /// Reads both ends again, if that is wanted; the hash of both.
    fn compare(
        &mut self,
        file: &File,
        path: &str,
        open: &linkspan_backends::smb::Open,
    ) -> Result<Option<String>, Failure> {
        if !self.options.hash {
            return Ok(None);
        }
        let size = file.metadata()?.len();
        let mut differs = None;
        let (mut here, mut there) = (Vec::new(), Vec::new());
        let sink = |at: u64, piece: Data<'_>| {
            here.resize(piece.len(), 0);
            there.resize(piece.len(), 0);
            file.read_exact_at(&mut here, at)?;
            piece.copy_to(&mut there);
            if here != there {
                differs = Some(at);
            }
            Ok(())
        };
        self.share.read(open, 0, size, sink).map_err(failure)?;
        if let Some(at) = differs {
            return Err(failed(anyhow!(
                "{}: both ends differ, near byte {at}",
                shown(path)
            )));
        }
        let mut hash = Sha256::new();
        let mut piece = vec![0; 1 << 20];
        let mut at = 0;
        while at < size {
            let len = piece
                .len()
                .min(usize::try_from(size - at).unwrap_or(usize::MAX));
            file.read_exact_at(&mut piece[..len], at)?;
            hash.update(&piece[..len]);
            at += len as u64;
        }
        Ok(Some(
            hash.finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        ))
    }

    fn done(&self, from: &str, to: &str, bytes: u64, resumed: u64, sha256: Option<String>) {
        if self.options.common.json {
            let line = Line {
                from,
                to,
                bytes,
                resumed,
                sha256,
            };
            self.bar.suspend(|| print(&line));
        } else if let Some(sha256) = sha256 {
            self.bar.suspend(|| println!("{sha256}  {}", shown(to)));
        }
    }

    /// Fetches a folder.
    fn get_folder(&mut self, from: &str, to: &Path) -> Result<(), Failure> {
        let mut all = Vec::new();
        walk(&mut self.share, from, true, &mut |path, meta| {
            all.push((path.to_string(), meta.kind));
            Ok(())
        })?;
        let make = |path: &Path| {
            fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
        };
        make(to)?;
        let names: BTreeSet<&str> = all.iter().map(|(path, _)| path.as_str()).collect();
        for (path, kind) in &all {
            // Each part of it was checked to be a name.
            let below = path
                .strip_prefix(from)
                .unwrap_or(path)
                .trim_start_matches('/');
            let place = to.join(below);
            match kind {
                Kind::Folder => make(&place)?,
                Kind::File => {
                    let taken = |suffix: &str| names.contains(format!("{path}{suffix}").as_str());
                    self.get(path, &place, &suffix(taken))?;
                }
                Kind::Link => self.left_out(path),
            }
        }
        Ok(())
    }

    /// Sends a folder.
    fn put_folder(&mut self, from: &Path, to: &str) -> Result<(), Failure> {
        let mut left = vec![(from.to_path_buf(), to.to_string(), 0)];
        while let Some((from, to, depth)) = left.pop() {
            self.share.make_folder(&to).map_err(failure)?;
            let cannot = || format!("cannot read {}", from.display());
            let entries = fs::read_dir(&from).with_context(cannot)?;
            let entries: Vec<_> = entries.collect::<io::Result<_>>().with_context(cannot)?;
            // There upper case may be as good as lower case.
            let lower = |name: OsString| name.to_string_lossy().to_lowercase();
            let names: BTreeSet<_> = entries.iter().map(|it| lower(it.file_name())).collect();
            for entry in entries {
                let (path, name) = (entry.path(), entry.file_name());
                let name = name
                    .to_str()
                    .ok_or_else(|| anyhow!("{} is not UTF-8", path.display()))?;
                let place = join(&to, name);
                let kind = entry.file_type().with_context(cannot)?;
                if kind.is_dir() && depth < DEPTH_MAX {
                    left.push((path, place, depth + 1));
                } else if kind.is_file() {
                    let taken =
                        |suffix: &str| names.contains(&lower(format!("{name}{suffix}").into()));
                    self.put(&path, &place, &suffix(taken))?;
                } else {
                    self.left_out(&path.to_string_lossy());
                }
            }
        }
        Ok(())
    }

    fn left_out(&self, path: &str) {
        let text = format!("linkspan: {}: no file and no folder, left out", shown(path));
        self.bar.suspend(|| eprintln!("{text}"));
    }
}

/// A bar on a terminal, nothing elsewhere.
fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
    );
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn copying<'a>(url: &Url, options: &'a Copy) -> Result<Copying<'a>, Failure> {
    Ok(Copying {
        share: connect(url, &options.common.reach)?,
        options,
        bar: progress(),
    })
}

fn needs_recursive(path: &str) -> Failure {
    let error = anyhow!("{} is a folder", shown(path));
    Failure::new(Status::Usage, error).hint("--recursive")
}

pub(super) fn get(args: &GetArgs) -> Result<(), Failure> {
    let mut copying = copying(&args.url, &args.copy)?;
    let path = &args.url.path;
    let kind = copying.share.stat(path).map_err(failure)?.kind;
    let to = match args.to.is_dir() {
        true => args.to.join(args.url.name()),
        false => args.to.clone(),
    };
    let result = match kind {
        Kind::Folder if !args.copy.recursive => Err(needs_recursive(path)),
        Kind::Folder => copying.get_folder(path, &to),
        Kind::File | Kind::Link => copying.get(path, &to, &suffix(|_| false)),
    };
    copying.bar.finish_and_clear();
    result
}

pub(super) fn put(args: &PutArgs) -> Result<(), Failure> {
    let cannot = || format!("cannot read {}", args.from.display());
    let meta = fs::metadata(&args.from).with_context(cannot)?;
    if meta.is_dir() && !args.copy.recursive {
        return Err(needs_recursive(&args.from.to_string_lossy()));
    }
    let mut copying = copying(&args.url, &args.copy)?;
    let into = args.url.folder
        || matches!(copying.share.stat(&args.url.path), Ok(meta) if meta.kind == Kind::Folder);
    let mut to = args.url.path.clone();
    if into {
        let whole = fs::canonicalize(&args.from).with_context(cannot)?;
        let name = whole.file_name().and_then(|name| name.to_str());
        to = join(&to, name.ok_or_else(|| anyhow!("the name is not UTF-8"))?);
    }
    let result = match meta.is_dir() {
        true => copying.put_folder(&args.from, &to),
        false => copying.put(&args.from, &to, &suffix(|_| false)),
    };
    copying.bar.finish_and_clear();
    result
}

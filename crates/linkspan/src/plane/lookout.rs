//! A whole plane: its links, whether they get in each other's way, and whether all that they
//! name is there.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::anyhow;

use super::document;
use super::merge::{self, Link};
use super::problem::{Place, Problem};
use super::settings::{Setting, Settings};
use super::uses::{Lack, SOCKET_MAX, Use};
use crate::exit::{Failure, Status};

/// Bytes of a plane at most.
const FILE_MAX: u64 = 1 << 20;

/// A plane that was read.
#[derive(Debug)]
pub(crate) struct Plane {
    /// The file, as it was named.
    pub(super) file: PathBuf,
    pub(super) text: String,
    pub(crate) settings: Settings,
    /// The settings, each with where it was said.
    pub(super) told: Vec<Setting>,
    pub(crate) links: Vec<Link>,
    /// Where what relative paths mean begins: the folder of the file.
    pub(crate) folder: PathBuf,
    /// All that is wrong, in the order of the file.
    pub(super) problems: Vec<Problem>,
}

impl Plane {
    /// Reads a plane and checks all of it. What is wrong is in the plane.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn read(file: &Path) -> Result<Self, Failure> {
        let cannot = |error: std::io::Error| {
            let status = match error.kind() {
                std::io::ErrorKind::PermissionDenied => Status::Missing,
                _ => Status::Failed,
            };
            let error = anyhow!(error).context(format!("cannot read {}", file.display()));
            Failure::new(status, error)
        };
        let mut bytes = Vec::new();
        let opened = File::open(file).map_err(cannot)?;
        let read = opened.take(FILE_MAX + 1).read_to_end(&mut bytes);
        read.map_err(cannot)?;
        let usage = |why: &str| {
            let error = anyhow!("{} {why}", file.display());
            Failure::new(Status::Usage, error)
        };
        if bytes.len() as u64 > FILE_MAX {
            return Err(usage(&format!("is longer than {FILE_MAX} bytes")));
        }
        let text = String::from_utf8(bytes).map_err(|_| usage("is not UTF-8"))?;
        let real = file.canonicalize().map_err(cannot)?;
        let folder = real.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self::of(file.to_owned(), text, folder))
    }

    /// The plane that a text stands for.
    pub(crate) fn of(file: PathBuf, text: String, folder: PathBuf) -> Self {
        let (document, mut problems) = document::parse(&text);
        let settings = Settings::of(&document.plane, &mut problems);
        let links = merge::links(&document, &mut problems);
        // Who means to have no link says `[plane]`. An empty file may be one that somebody is
        // about to write: read again as it is, it would end all links.
        if links.is_empty() && problems.is_empty() && !document.has_plane {
            let problem = Problem::new(None, "there is no link in it, and no [plane]");
            problems.push(problem.hint("[link.NAME] with command = \"blk\" and its options"));
        }
        let told = settings.told(&document.plane);
        let (claims, long) = claims(&links, &settings, &told, &folder);
        problems.extend(long);
        problems.extend(clashes(&claims, &text));
        problems.extend(claims.iter().filter_map(lack));
        problems.sort_by_key(|problem| problem.at);
        Self {
            file,
            text,
            told,
            settings,
            links,
            folder,
            problems,
        }
    }

    /// Whether nothing in it is wrong by itself; what is missing elsewhere does not count.
    pub(crate) fn makes_sense(&self) -> bool {
        self.problems.iter().all(|it| it.status != Status::Usage)
    }

    /// The lines of all problems that have a place.
    pub(crate) fn places(&self) -> impl Iterator<Item = usize> {
        let places = self.problems.iter().filter_map(|it| self.place(it.at));
        places.map(|place| place.line)
    }

    /// How many lines it has.
    pub(crate) fn lines(&self) -> usize {
        self.text.matches('\n').count() + 1
    }

    /// Where a place is.
    pub(super) fn place(&self, at: Option<usize>) -> Option<Place> {
        at.map(|at| Place::of(&self.text, at))
    }

    /// How a program ends that was given this plane: what makes no sense counts before what
    /// is missing.
    pub(super) fn status(&self) -> Option<Status> {
        let has = |status| self.problems.iter().any(|problem| problem.status == status);
        [Status::Usage, Status::Missing, Status::Failed]
            .into_iter()
            .find(|status| has(*status))
    }
}

/// Something that is used, by whom, and where that is said.
struct Claim {
    who: String,
    key: &'static str,
    at: usize,
    used: Use,
}

/// All that the plane and its links use, in the order of the file, and what of it has too
/// long a path.
fn claims(
    links: &[Link],
    settings: &Settings,
    told: &[Setting],
    folder: &Path,
) -> (Vec<Claim>, Vec<Problem>) {
    let control = settings.control.iter().map(|path| Claim {
        who: "plane".to_owned(),
        key: "control",
        at: place_of(told, "control").unwrap_or(0),
        used: Use::Socket(folder.join(path)),
    });
    let metrics = settings.metrics.iter().map(|address| Claim {
        who: "plane".to_owned(),
        key: "metrics",
        at: place_of(told, "metrics").unwrap_or(0),
        used: Use::Listens(*address),
    });
    let page = settings.page.iter().map(|address| Claim {
        who: "plane".to_owned(),
        key: "page",
        at: place_of(told, "page").unwrap_or(0),
        used: Use::Listens(*address),
    });
    let used = links.iter().flat_map(|link| {
        link.uses.iter().map(|(key, used)| Claim {
            who: format!("{} {}", link.kind(), link.name),
            key,
            at: place_of(&link.told, key).unwrap_or(link.at),
            used: used.clone(),
        })
    });
    let mut claims: Vec<Claim> = control.chain(page).chain(metrics).chain(used).collect();
    claims.sort_by_key(|claim| claim.at);
    let long = claims.iter().filter_map(long).collect();
    for claim in &mut claims {
        claim.used = claim.used.clone().below(folder);
    }
    (claims, long)
}

/// A socket whose path is too long.
fn long(claim: &Claim) -> Option<Problem> {
    let bytes = claim.used.too_long()?;
    let message = format!(
        "{}: `{}`: a socket's path has at most {SOCKET_MAX} bytes, and {} has {bytes}",
        claim.who,
        claim.key,
        claim.used.name()
    );
    let problem = Problem::new(Some(claim.at), message);
    Some(problem.hint("a shorter one; a link's counts from the folder of the plane"))
}

/// Where a key is said.
fn place_of(told: &[Setting], key: &str) -> Option<usize> {
    let setting = told.iter().find(|setting| setting.key == key)?;
    setting.origin.at()
}

/// What a use is compared by with few others: its name, but for addresses, of which one
/// may stand for all.
fn subject(used: &Use) -> String {
    match used {
        Use::Listens(address) => format!("port {}", address.port()),
        other => other.name(),
    }
}

/// Those who want the same thing. The second is told of, with the place of the first.
fn clashes(claims: &[Claim], text: &str) -> Vec<Problem> {
    let mut seen: HashMap<String, Vec<&Claim>> = HashMap::new();
    let mut problems = Vec::new();
    for claim in claims {
        let others = seen.entry(subject(&claim.used)).or_default();
        if let Some(first) = others.iter().find(|it| it.used.excludes(&claim.used)) {
            let message = format!(
                "{}: `{}`: {} is `{}` of {} already, in line {}",
                claim.who,
                claim.key,
                claim.used.name(),
                first.key,
                first.who,
                Place::of(text, first.at).line
            );
            problems.push(Problem::new(Some(claim.at), message));
        }
        others.push(claim);
    }
    problems
}

/// What is named and is not there, or what this process may not use.
fn lack(claim: &Claim) -> Option<Problem> {
    let lack = claim.used.look().err()?;
    let status = match lack {
        Lack::Denied { .. } => Status::Missing,
        Lack::Absent(_) | Lack::NoFolder(_) => Status::Failed,
    };
    let message = format!("{}: `{}`: {lack}", claim.who, claim.key);
    Some(Problem::new(Some(claim.at), message).status(status))
}

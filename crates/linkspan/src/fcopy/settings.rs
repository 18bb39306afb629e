//! Where files may go and what they become: from the command line, and from a file of
//! the same words.

use std::fmt::Display;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use linkspan_backends::fcopy::{Tree, TreeOptions};
use linkspan_vmbus::fcopy::{Policy, Roots};
use serde::Deserialize;
use toml::Spanned;

use crate::exit::{Failure, Status};
use crate::plane::{Use, Used};

/// The file that is read if the command line names neither a file nor a folder.
pub(super) const FILE: &str = "/etc/linkspan/fcopy.toml";

/// What `guest` is told on its command line. Each goes before the file's.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub(super) struct Options {
    /// A folder that files may go to, by its absolute path; a relative destination is
    /// below the first
    #[arg(long, value_name = "DIR")]
    root: Vec<PathBuf>,

    /// Who owns files and new folders, by name or number [default: whoever runs this]
    #[arg(long, value_name = "USER[:GROUP]", value_parser = owner)]
    owner: Option<(u32, u32)>,

    /// The mode of files, octal; a new folder has it with `x` wherever there is `r`
    /// [default: 644]
    #[arg(long, value_name = "MODE", value_parser = mode)]
    mode: Option<u32>,

    /// The largest file: bytes, or a number with K, M, G or T [default: 1T]
    #[arg(long, value_name = "BYTES", value_parser = crate::driver::bytes)]
    max_size: Option<u64>,

    /// Lets the host replace files that exist; without it that is refused even if the
    /// host asks for it
    #[arg(long)]
    overwrite: bool,

    /// A host of ours at this socket, instead of the kernel's device
    #[arg(long, value_name = "PATH")]
    connect: Option<PathBuf>,

    /// Settings, in TOML, with the names of these options [default:
    /// /etc/linkspan/fcopy.toml, if there is no --root]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// All that a guest has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// Where files may go; there is at least one.
    pub(super) roots: Vec<PathBuf>,
    owner: Option<(u32, u32)>,
    mode: u32,
    max_size: u64,
    overwrite: bool,
    /// A host of ours, instead of the kernel's device.
    pub(super) connect: Option<PathBuf>,
}

/// The file, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Document {
    root: Option<Folders>,
    owner: Option<Spanned<String>>,
    mode: Option<Spanned<String>>,
    max_size: Option<Spanned<Size>>,
    overwrite: Option<bool>,
    connect: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a folder, or a list of folders")]
enum Folders {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected bytes, or text such as \"10G\"")]
enum Size {
    Bytes(u64),
    Text(String),
}

impl Options {
    /// Those of `file` alone, or of [`FILE`].
    pub(super) fn of_file(file: Option<PathBuf>) -> Self {
        Self {
            config: file,
            ..Self::default()
        }
    }

    /// What it takes of this machine.
    pub(super) fn uses(&self) -> Vec<Used> {
        let roots = self.root.iter().cloned();
        roots.map(|root| ("root", Use::Folder(root))).collect()
    }

    /// What the command line and the file say.
    ///
    /// # Errors
    /// Usage, with the line of the file where it is to blame.
    pub(super) fn settings(&self) -> Result<Settings, Failure> {
        let file = match &self.config {
            Some(file) => read(file)?,
            None if self.root.is_empty() => match read(Path::new(FILE)) {
                Err(failure) if is_missing(&failure) => Self::default(),
                done => done?,
            },
            None => Self::default(),
        };
        let roots = if self.root.is_empty() {
            file.root
        } else {
            self.root.clone()
        };
        if roots.is_empty() {
            let error = anyhow!("no folder is named that files may go to");
            let hint = format!("--root DIR, or root = \"DIR\" in {FILE}");
            return Err(Failure::new(Status::Usage, error).hint(hint));
        }
        Ok(Settings {
            roots,
            owner: self.owner.or(file.owner),
            mode: self.mode.or(file.mode).unwrap_or(0o644),
            max_size: self.max_size.or(file.max_size).unwrap_or(1 << 40),
            overwrite: self.overwrite || file.overwrite,
            connect: self.connect.clone().or(file.connect),
        })
    }
}

impl Settings {
    /// What the host may ask for.
    ///
    /// # Errors
    /// Usage: a folder is not absolute, or not UTF-8.
    pub(super) fn policy(&self) -> Result<Policy, Failure> {
        let usage = |error| Failure::new(Status::Usage, error);
        let roots: Result<Vec<&str>, Failure> = self
            .roots
            .iter()
            .map(|root| {
                let text = root.to_str();
                text.ok_or_else(|| usage(anyhow!("{} is not UTF-8", root.display())))
            })
            .collect();
        let roots = Roots::new(&roots?).map_err(|error| usage(error.into()))?;
        Ok(Policy {
            roots,
            max_size: self.max_size,
        })
    }

    /// The folders, open.
    ///
    /// # Errors
    /// One is not there.
    pub(super) fn tree(&self) -> Result<Tree, Failure> {
        let options = TreeOptions {
            owner: self.owner,
            mode: self.mode,
            overwrite: self.overwrite,
            folder_mode: self.mode | (self.mode & 0o444) >> 2,
            ..TreeOptions::default()
        };
        let tree = Tree::new(&self.roots, options);
        tree.map_err(|error| Failure::new(Status::Missing, error))
    }
}

/// Whether a file is not there.
fn is_missing(failure: &Failure) -> bool {
    let cause = failure.error.downcast_ref::<io::Error>();
    cause.is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn read(file: &Path) -> Result<Options, Failure> {
    let text = fs::read_to_string(file).map_err(|error| {
        let status = match error.kind() {
            io::ErrorKind::PermissionDenied => Status::Missing,
            _ => Status::Usage,
        };
        let error = anyhow!(error).context(format!("cannot read {}", file.display()));
        Failure::new(status, error)
    })?;
    parse(&text).map_err(|(line, message)| {
        let error = anyhow!("{}:{line}: {message}", file.display());
        Failure::new(Status::Usage, error)
    })
}

/// What is wrong, and in which line.
type Wrong = (usize, String);

/// The options that a file stands for.
fn parse(text: &str) -> Result<Options, Wrong> {
    let at = |span: Range<usize>, message: &dyn Display| {
        let before = text.get(..span.start).unwrap_or(text);
        (before.matches('\n').count() + 1, message.to_string())
    };
    let document: Document = toml::from_str(text)
        .map_err(|error| at(error.span().unwrap_or_default(), &error.message()))?;
    let text_of = |word: Option<Spanned<String>>| word.map(|word| (word.span(), word.into_inner()));
    let owner = text_of(document.owner)
        .map(|(span, word)| owner(&word).map_err(|why| at(span, &format!("owner: {why}"))));
    let mode = text_of(document.mode)
        .map(|(span, word)| mode(&word).map_err(|why| at(span, &format!("mode: {why}"))));
    let max_size = document.max_size.map(|size| {
        let span = size.span();
        match size.into_inner() {
            Size::Bytes(bytes) => Ok(bytes),
            Size::Text(word) => {
                crate::driver::bytes(&word).map_err(|why| at(span, &format!("max-size: {why}")))
            }
        }
    });
    Ok(Options {
        root: match document.root {
            None => Vec::new(),
            Some(Folders::One(folder)) => vec![folder],
            Some(Folders::Many(folders)) => folders,
        },
        owner: owner.transpose()?,
        mode: mode.transpose()?,
        max_size: max_size.transpose()?,
        overwrite: document.overwrite.unwrap_or(false),
        connect: document.connect,
        config: None,
    })
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok();
    let mode = mode.filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "a mode is three octal digits, such as 640".into())
}

fn owner(text: &str) -> Result<(u32, u32), String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let entry = find(&passwd, user);
    let number = |text: &str| text.parse::<u32>().ok();
    let user_id = entry.and_then(|fields| number(fields[2])).or(number(user));
    let user_id = user_id.ok_or_else(|| format!("there is no user {user}"))?;
    let group_id = match group {
        Some(group) => find(&groups, group)
            .and_then(|fields| number(fields[2]))
            .or(number(group))
            .ok_or_else(|| format!("there is no group {group}"))?,
        None => entry
            .and_then(|fields| number(fields[3]))
            .unwrap_or(user_id),
    };
    Ok((user_id, group_id))
}

/// The line of a database that begins with this name: its first fields.
fn find<'a>(database: &'a str, name: &str) -> Option<[&'a str; 4]> {
    let mut lines = database.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let mut next = || fields.next();
        Some([next()?, next()?, next()?, next().unwrap_or_default()])
    });
    lines.find(|fields| fields[0] == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Args as _;

    #[test]
    fn owners_and_modes_are_read() {
        assert_eq!(owner("0:0"), Ok((0, 0)));
        assert_eq!(owner("root"), Ok((0, 0)));
        assert_eq!(owner("4000000"), Ok((4_000_000, 4_000_000)));
        assert!(owner("nobody-has-this-name").is_err());
        assert!(owner("0:nobody-has-this-name").is_err());
        assert_eq!(mode("640"), Ok(0o640));
        assert!(mode("4755").is_err());
        assert!(mode("9").is_err());
    }

    const ALL: &str = "# Where.\nroot = [\"/srv/in\", \"/home\"]\nowner = \"7:8\"\n\
        mode = \"600\"\nmax-size = \"10G\"\noverwrite = true\nconnect = \"/run/s\"\n";

    #[test]
    fn a_file_says_what_the_options_say() {
        let all = Options {
            root: vec!["/srv/in".into(), "/home".into()],
            owner: Some((7, 8)),
            mode: Some(0o600),
            max_size: Some(10 << 30),
            overwrite: true,
            connect: Some("/run/s".into()),
            config: None,
        };
        assert_eq!(parse(ALL), Ok(all));
        assert_eq!(parse(""), Ok(Options::default()));
        let one = parse("root = \"/srv\"\nmax-size = 5\n").unwrap();
        assert_eq!((one.root, one.max_size), (vec!["/srv".into()], Some(5)));
        // Every option has its key, and no key is without one.
        let command = Options::augment_args(clap::Command::new("guest"));
        let options = command.get_arguments().filter_map(|arg| arg.get_long());
        let mut options: Vec<&str> = options.filter(|name| *name != "config").collect();
        let document: toml::Table = toml::from_str(ALL).unwrap();
        let mut keys: Vec<&str> = document.keys().map(String::as_str).collect();
        options.sort_unstable();
        keys.sort_unstable();
        assert_eq!(keys, options);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, line, word) in [
            (
                "root = \"/a\"\nroots = \"/b\"\n",
                2,
                "unknown field `roots`",
            ),
            ("\n\nmode = 640\n", 3, "string"),
            ("mode = \"4755\"\n", 1, "three octal digits"),
            (
                "# x\nowner = \"nobody-has-this-name\"\n",
                2,
                "there is no user",
            ),
            ("max-size = \"many\"\n", 1, "max-size"),
            ("max-size = -1\n", 1, "expected bytes"),
            ("root = 7\n", 1, "expected a folder"),
            ("overwrite = \"yes\"\n", 1, "boolean"),
            ("root = \"/a\"\nroot = \"/b\"\n", 2, "duplicate"),
            ("root = [\n\"/a\"\n", 2, ""),
        ] {
            let (found, message) = parse(text).unwrap_err();
            assert!(message.contains(word), "{text}: {message}");
            assert_eq!(found, line, "{text}: {message}");
        }
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("fcopy.toml");
        fs::write(&file, ALL).unwrap();
        let mut options = Options::of_file(Some(file.clone()));
        let settings = options.settings().unwrap();
        assert_eq!(settings.roots.len(), 2);
        assert_eq!((settings.mode, settings.overwrite), (0o600, true));
        options.root = vec!["/other".into()];
        options.mode = Some(0o640);
        let settings = options.settings().unwrap();
        assert_eq!(settings.roots, [PathBuf::from("/other")]);
        assert_eq!((settings.mode, settings.owner), (0o640, Some((7, 8))));
        // Without a file, what it would be otherwise.
        options.config = None;
        let settings = options.settings().unwrap();
        assert_eq!((settings.owner, settings.max_size), (None, 1 << 40));
        // A file that was named has to be there.
        let failure = Options::of_file(Some(dir.path().join("none"))).settings();
        assert_eq!(failure.unwrap_err().status, Status::Usage);
        fs::write(&file, "mode = \"644\"\n").unwrap();
        let failure = Options::of_file(Some(file)).settings().unwrap_err();
        assert!(failure.to_string().contains("--root DIR"), "{failure}");
    }
}

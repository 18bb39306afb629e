//! What a link takes of this machine: so that two links that want the same are found, and
//! what is not there, before any of them starts.

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;

/// Bytes of the path of a socket at most (unix(7)).
pub(super) const SOCKET_MAX: usize = 107;

/// Something that a link uses, and the option that says so.
pub(crate) type Used = (&'static str, Use);

/// Something that a link uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// A socket that is made here.
    Socket(PathBuf),
    /// A file that is made here.
    Makes(PathBuf),
    /// A socket at which another process listens, for one who connects.
    Connects(PathBuf),
    /// A file that is read.
    Reads(PathBuf),
    /// A file or a device that is written too, so it is one link's.
    Writes(PathBuf),
    /// A folder in which files are looked up.
    Folder(PathBuf),
    /// A folder in which files are made and changed, which others may do as well.
    Fills(PathBuf),
    /// A device of this machine's kernel that is made here, by its name.
    Vduse(String),
    /// An interface of this machine.
    Interface(String),
    /// An address where connections are taken.
    Listens(SocketAddr),
}

/// What is wrong with a use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Lack {
    #[error("there is no {}", .0.display())]
    Absent(PathBuf),
    #[error("{} is no folder", .0.display())]
    NoFolder(PathBuf),
    #[error("{} is for others to {what}", .path.display())]
    Denied { path: PathBuf, what: &'static str },
}

impl Use {
    /// With its path as seen from a folder, and without detours.
    pub(super) fn below(self, folder: &Path) -> Self {
        let of = |path: PathBuf| straight(&folder.join(path));
        match self {
            Self::Socket(path) => Self::Socket(of(path)),
            Self::Makes(path) => Self::Makes(of(path)),
            Self::Connects(path) => Self::Connects(of(path)),
            Self::Reads(path) => Self::Reads(of(path)),
            Self::Writes(path) => Self::Writes(of(path)),
            Self::Folder(path) => Self::Folder(of(path)),
            Self::Fills(path) => Self::Fills(of(path)),
            other => other,
        }
    }

    /// The bytes of its path, if it is a socket and no address of one has room for them. They
    /// count as they are said: who uses it is in the folder where relative paths begin.
    pub(super) fn too_long(&self) -> Option<usize> {
        let (Self::Socket(path) | Self::Connects(path)) = self else {
            return None;
        };
        let bytes = path.as_os_str().len();
        (bytes > SOCKET_MAX).then_some(bytes)
    }

    /// Whether another link, or another option of this one, cannot have `other` besides.
    pub(super) fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Listens(one), Self::Listens(two)) => {
                let all = one.ip().is_unspecified() || two.ip().is_unspecified();
                let family = one.is_ipv4() == two.is_ipv4();
                one.port() != 0 && one.port() == two.port() && (one == two || all && family)
            }
            (Self::Vduse(one), Self::Vduse(two)) => one == two,
            (Self::Interface(one), Self::Interface(two)) => one == two,
            (Self::Connects(one), Self::Connects(two)) => one == two,
            // Whose socket it is.
            (Self::Socket(_), Self::Connects(_)) | (Self::Connects(_), Self::Socket(_)) => false,
            _ => {
                let shared =
                    |it: &Self| matches!(it, Self::Reads(_) | Self::Folder(_) | Self::Fills(_));
                let same = self.path().is_some() && self.path() == other.path();
                same && !(shared(self) && shared(other))
            }
        }
    }

    fn path(&self) -> Option<&Path> {
        match self {
            Self::Socket(path)
            | Self::Makes(path)
            | Self::Connects(path)
            | Self::Reads(path)
            | Self::Writes(path)
            | Self::Folder(path)
            | Self::Fills(path) => Some(path),
            Self::Vduse(_) | Self::Interface(_) | Self::Listens(_) => None,
        }
    }

    /// What people call it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Socket(path)
            | Self::Makes(path)
            | Self::Connects(path)
            | Self::Reads(path)
            | Self::Writes(path)
            | Self::Folder(path)
            | Self::Fills(path) => path.display().to_string(),
            Self::Vduse(name) => format!("the VDUSE device {name}"),
            Self::Interface(name) => format!("the interface {name}"),
            Self::Listens(address) => address.to_string(),
        }
    }

    /// Whether it is there, and this process may use it.
    ///
    /// # Errors
    /// [`Lack`].
    pub(super) fn look(&self) -> Result<(), Lack> {
        match self {
            Self::Reads(path) => may(path, Access::READ_OK, "read"),
            Self::Writes(path) => may(path, Access::READ_OK | Access::WRITE_OK, "write"),
            Self::Folder(path) | Self::Fills(path) if path.exists() && !path.is_dir() => {
                Err(Lack::NoFolder(path.clone()))
            }
            Self::Fills(path) => may(path, Access::WRITE_OK | Access::EXEC_OK, "make files in"),
            Self::Folder(path) => may(path, Access::READ_OK | Access::EXEC_OK, "look into"),
            Self::Socket(path) | Self::Makes(path) => {
                let folder = path.parent().unwrap_or(Path::new("/"));
                if folder.exists() && !folder.is_dir() {
                    return Err(Lack::NoFolder(folder.to_owned()));
                }
                may(folder, Access::WRITE_OK | Access::EXEC_OK, "make files in")
            }
            Self::Connects(_) | Self::Vduse(_) | Self::Interface(_) | Self::Listens(_) => Ok(()),
        }
    }
}

fn may(path: &Path, access: Access, what: &'static str) -> Result<(), Lack> {
    match accessat(CWD, path, access, AtFlags::EACCESS) {
        Ok(()) => Ok(()),
        Err(Errno::NOENT | Errno::NOTDIR) => Err(Lack::Absent(path.to_owned())),
        Err(_) => Err(Lack::Denied {
            path: path.to_owned(),
            what,
        }),
    }
}

/// The path without `.`, `..` and links, as far as it exists.
fn straight(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (path.parent(), path.components().next_back()) {
        (Some(parent), Some(Component::Normal(name))) => straight(parent).join(name),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_one_can_have_is_told_from_what_all_can() {
        let listens = |text: &str| Use::Listens(text.parse().unwrap());
        let socket = || Use::Socket("/s".into());
        let (makes, reads) = (|| Use::Makes("/s".into()), || Use::Reads("/s".into()));
        let writes = || Use::Writes("/s".into());
        for (one, two, excludes) in [
            (makes(), makes(), true),
            (makes(), reads(), true),
            (writes(), reads(), true),
            (writes(), writes(), true),
            (reads(), reads(), false),
            (reads(), Use::Folder("/s".into()), false),
            (makes(), Use::Makes("/t".into()), false),
            (socket(), socket(), true),
            (socket(), makes(), true),
            (socket(), Use::Connects("/s".into()), false),
            (makes(), Use::Connects("/s".into()), true),
            (Use::Connects("/s".into()), Use::Connects("/s".into()), true),
            (Use::Vduse("a".into()), Use::Vduse("a".into()), true),
            (Use::Vduse("a".into()), Use::Interface("a".into()), false),
            (Use::Interface("a".into()), Use::Interface("a".into()), true),
            (listens("127.0.0.1:1"), listens("127.0.0.1:1"), true),
            (listens("127.0.0.1:1"), listens("127.0.0.2:1"), false),
            (listens("127.0.0.1:1"), listens("0.0.0.0:1"), true),
            (listens("127.0.0.1:1"), listens("[::]:1"), false),
            (listens("127.0.0.1:0"), listens("127.0.0.1:0"), false),
        ] {
            assert_eq!(one.excludes(&two), excludes, "{one:?} {two:?}");
            assert_eq!(two.excludes(&one), excludes, "{two:?} {one:?}");
        }
    }

    #[test]
    fn one_path_has_many_names() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("a")).unwrap();
        std::os::unix::fs::symlink("a", real.join("b")).unwrap();
        let socket = real.join("a/s");
        for name in ["a/s", "./a/s", "b/s", "a/../b/s"] {
            assert_eq!(
                Use::Makes(name.into()).below(&real),
                Use::Makes(socket.clone())
            );
        }
        assert_eq!(
            Use::Makes("none/x/s".into()).below(&real),
            Use::Makes(real.join("none/x/s"))
        );
    }

    #[test]
    fn a_socket_has_an_address_of_its_own_length() {
        let path = |bytes: usize| PathBuf::from("s".repeat(bytes));
        for (used, too_long) in [
            (Use::Socket(path(107)), None),
            (Use::Socket(path(108)), Some(108)),
            (Use::Connects(path(200)), Some(200)),
            (Use::Makes(path(200)), None),
        ] {
            assert_eq!(used.too_long(), too_long);
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f");
        std::fs::write(&file, "").unwrap();
        let below = |name: &str| folder.path().join(name);
        assert_eq!(Use::Reads(file.clone()).look(), Ok(()));
        assert_eq!(Use::Writes(file.clone()).look(), Ok(()));
        assert_eq!(Use::Makes(below("s")).look(), Ok(()));
        assert_eq!(Use::Folder(folder.path().into()).look(), Ok(()));
        let absent = |name: &str| Err(Lack::Absent(below(name)));
        assert_eq!(Use::Reads(below("g")).look(), absent("g"));
        assert_eq!(Use::Makes(below("none/s")).look(), absent("none"));
        assert_eq!(Use::Folder(below("none")).look(), absent("none"));
        let no_folder = || Err(Lack::NoFolder(file.clone()));
        assert_eq!(Use::Folder(file.clone()).look(), no_folder());
        assert_eq!(Use::Makes(file.join("s")).look(), no_folder());
    }
}

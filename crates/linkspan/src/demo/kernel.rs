//! Finds a stock guest kernel and the modules that it needs for its disk.
//!
//! A kernel is looked for below a *root*: a folder with `boot/vmlinuz-RELEASE`
//! and `lib/modules/RELEASE`, as in an unpacked Debian package or in `/` itself.
//! Dependencies come from the modules' own `depends=` entries, because a package
//! that was only unpacked has no `modules.dep`.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Error;

/// The environment variable that names a kernel root.
pub const KERNEL_ENV: &str = "LINKSPAN_GUEST_KERNEL";

/// A kernel that can be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What `uname -r` will say.
    pub release: String,
    /// The boot image.
    pub vmlinuz: PathBuf,
    /// The folder of its modules.
    pub modules: PathBuf,
}

/// A module, unpacked, ready for insmod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name with underscores, as lsmod shows it.
    pub name: String,
    /// The ELF image.
    pub image: Vec<u8>,
}

impl Kernel {
    /// Finds a kernel: in `explicit`, else where [`KERNEL_ENV`] points, else the
    /// newest in the cache, else the newest that this machine has in /boot.
    ///
    /// # Errors
    /// [`Error::Kernel`] with the places that were searched.
    pub fn find(explicit: Option<&Path>) -> Result<Self, Error> {
        let from_env = std::env::var_os(KERNEL_ENV)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from);
        if let Some(root) = explicit.map(Path::to_path_buf).or(from_env) {
            return Self::newest_in(&root).ok_or(Error::Kernel {
                searched: vec![root],
            });
        }
        let cache = cache_dir().join("kernels");
        let mut found: Vec<Self> = fs::read_dir(&cache)
            .into_iter()
            .flatten()
            .flatten()
            // A name that begins with a dot is still being unpacked.
            .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
            .filter_map(|entry| Self::newest_in(&entry.path()))
            .collect();
        found.sort_by(|a, b| compare_releases(&a.release, &b.release));
        found
            .pop()
            .or_else(|| Self::newest_in(Path::new("/")))
            .ok_or(Error::Kernel {
                searched: vec![cache, PathBuf::from("/boot")],
            })
    }

    /// The newest kernel of the cache that draws on a GPU, which those for machines without
    /// a screen do not.
    ///
    /// # Errors
    /// [`Error::Kernel`] with the place that was searched.
    pub fn find_with_screen() -> Result<Self, Error> {
        let cache = cache_dir().join("display-kernels");
        let entries = fs::read_dir(&cache).into_iter().flatten().flatten();
        let found = entries
            .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
            .filter_map(|entry| Self::newest_in(&entry.path()));
        found
            .max_by(|a, b| compare_releases(&a.release, &b.release))
            .ok_or(Error::Kernel {
                searched: vec![cache],
            })
    }

    /// The newest kernel below `root` that is readable and has its modules.
    #[must_use]
    pub fn newest_in(root: &Path) -> Option<Self> {
        let mut releases: Vec<String> = fs::read_dir(root.join("boot"))
            .ok()?
            .flatten()
            .filter_map(|entry| {
                Some(
                    entry
                        .file_name()
                        .to_str()?
                        .strip_prefix("vmlinuz-")?
                        .to_owned(),
                )
            })
            .collect();
        releases.sort_by(|a, b| compare_releases(b, a));
        releases.into_iter().find_map(|release| {
            let vmlinuz = root.join("boot").join(format!("vmlinuz-{release}"));
            fs::File::open(&vmlinuz).ok()?;
            let modules = ["lib/modules", "usr/lib/modules"]
                .iter()
                .map(|dir| root.join(dir).join(&release))
                .find(|dir| dir.join("kernel").is_dir())?;
            Some(Self {
                release,
                vmlinuz,
                modules,
            })
        })
    }

    /// The modules to load, in this order, so that `wanted` work. Those that are
    /// built into the kernel are left out.
    ///
    /// # Errors
    /// [`Error::Module`] where one is neither a file nor built in,
    /// [`Error::Unpack`] where one cannot be unpacked.
    pub fn modules_for(&self, wanted: &[&str], busybox: &Path) -> Result<Vec<Module>, Error> {
        let built_in = self.built_in();
        let mut files = BTreeMap::new();
        collect_modules(&self.modules.join("kernel"), &mut files);
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        // Depth first, dependencies before dependants: a stack of (name, done).
        let mut stack: Vec<Step> = wanted
            .iter()
            .rev()
            .map(|n| Step::Visit(module_name(n)))
            .collect();
        while let Some(step) = stack.pop() {
            let name = match step {
                Step::Emit(module) => {
                    order.push(module);
                    continue;
                }
                Step::Visit(name) => name,
            };
            if built_in.contains(&name) || !seen.insert(name.clone()) {
                continue;
            }
            let path = files.get(&name).ok_or_else(|| Error::Module {
                name: name.clone(),
                dir: self.modules.clone(),
            })?;
            let image = unpack(path, busybox)?;
            let needs = depends(&image);
            stack.push(Step::Emit(Module { name, image }));
            stack.extend(needs.into_iter().rev().map(Step::Visit));
        }
        Ok(order)
    }

    fn built_in(&self) -> HashSet<String> {
        fs::read_to_string(self.modules.join("modules.builtin"))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| Some(module_name(Path::new(line).file_name()?.to_str()?)))
            .collect()
    }
}

enum Step {
    Visit(String),
    Emit(Module),
}

/// The folder for what is slow to make: `$XDG_CACHE_HOME/linkspan` or `~/.cache/linkspan`.
#[must_use]
pub fn cache_dir() -> PathBuf {
    std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute())
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("linkspan")
}

/// Orders releases as people do: 6.12.9 before 6.12.10.
fn compare_releases(a: &str, b: &str) -> Ordering {
    release_key(a).cmp(&release_key(b))
}

fn release_key(release: &str) -> Vec<(u64, String)> {
    let mut key = Vec::new();
    let mut rest = release;
    while !rest.is_empty() {
        let text_end = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (text, after) = rest.split_at(text_end);
        let digits_end = after
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(after.len());
        let (digits, after) = after.split_at(digits_end);
        key.push((digits.parse().unwrap_or(0), text.to_owned()));
        rest = after;
    }
    key
}

/// `virtio-rng.ko.xz` and `virtio_rng` are one module.
fn module_name(file: &str) -> String {
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

fn collect_modules(dir: &Path, found: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_modules(&path, found);
        } else if let Some(name) = path.file_name().and_then(|n| n.to_str())
            && name.contains(".ko")
        {
            found.insert(module_name(name), path);
        }
    }
}

/// The bytes of a module file. busybox, which the guest needs anyway, unpacks.
fn unpack(path: &Path, busybox: &Path) -> Result<Vec<u8>, Error> {
    let mut command = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => busybox_applet(busybox, "xzcat"),
        Some("gz") => busybox_applet(busybox, "zcat"),
        Some("zst") => {
            let mut zstd = Command::new("zstd");
            zstd.args(["-q", "-d", "-c"]);
            zstd
        }
        _ => return fs::read(path).map_err(Error::file("read", path)),
    };
    let output = command
        .arg(path)
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success() && output.stdout.starts_with(b"\x7fELF"));
    match output {
        Some(output) => Ok(output.stdout),
        None => Err(Error::Unpack {
            path: path.to_owned(),
            program: command.get_program().to_string_lossy().into_owned(),
        }),
    }
}

fn busybox_applet(busybox: &Path, applet: &str) -> Command {
    let mut command = Command::new(busybox);
    command.arg(applet);
    command
}

/// The names after `depends=` in the module's information section.
fn depends(image: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    // The first entry of a section has no NUL before it; Debian's is licence or
    // version, and `depends=` is written by modpost among the last.
    let Some(at) = image.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &image[at + KEY.len()..];
    let end = value
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(module_name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with one release and the named plain modules.
    fn root(release: &str, modules: &[(&str, &str)], built_in: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        add_release(root.path(), release, modules, built_in);
        root
    }

    fn add_release(root: &Path, release: &str, modules: &[(&str, &str)], built_in: &str) {
        let dir = root.join("lib/modules").join(release);
        fs::create_dir_all(dir.join("kernel/drivers")).unwrap();
        fs::create_dir_all(root.join("boot")).unwrap();
        fs::write(
            root.join("boot").join(format!("vmlinuz-{release}")),
            b"image",
        )
        .unwrap();
        fs::write(dir.join("modules.builtin"), built_in).unwrap();
        for (file, needs) in modules {
            let image = format!("\x7fELF\0license=GPL\0depends={needs}\0name=x\0");
            fs::write(dir.join("kernel/drivers").join(file), image).unwrap();
        }
    }

    fn names(root: &Path, wanted: &[&str]) -> Result<Vec<String>, Error> {
        let kernel = Kernel::newest_in(root).unwrap();
        let modules = kernel.modules_for(wanted, Path::new("/bin/busybox"))?;
        Ok(modules.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn modules_come_after_what_they_depend_on_and_once() {
        let files = [
            ("virtio_blk.ko", "virtio-ring,virtio"),
            ("virtio-ring.ko", "virtio"),
            ("virtio.ko", ""),
            ("other.ko", ""),
        ];
        let root = root("6.12.1", &files, "kernel/drivers/virtio/virtio_pci.ko\n");
        let order = names(root.path(), &["virtio_pci", "virtio_blk"]).unwrap();
        assert_eq!(order, ["virtio", "virtio_ring", "virtio_blk"]);
    }

    #[test]
    fn a_module_that_is_nowhere_is_named() {
        let root = root("6.12.1", &[("virtio_blk.ko", "gone")], "");
        let error = names(root.path(), &["virtio_blk"]).unwrap_err();
        assert!(
            matches!(error, Error::Module { ref name, .. } if name == "gone"),
            "{error}"
        );
    }

    #[test]
    fn modules_that_depend_on_each_other_end() {
        let root = root("6.12.1", &[("a.ko", "b"), ("b.ko", "a")], "");
        assert_eq!(names(root.path(), &["a"]).unwrap(), ["b", "a"]);
    }

    #[test]
    fn a_packed_module_that_is_broken_is_an_error() {
        let root = root("6.12.1", &[("virtio_blk.ko.xz", "")], "");
        let error = names(root.path(), &["virtio_blk"]).unwrap_err();
        assert!(matches!(error, Error::Unpack { .. }), "{error}");
    }

    #[test]
    fn the_newest_release_with_modules_wins() {
        let root = root("6.12.9+deb12-cloud-amd64", &[], "");
        add_release(root.path(), "6.12.10+deb12-cloud-amd64", &[], "");
        fs::write(root.path().join("boot/vmlinuz-6.13.0"), b"without modules").unwrap();
        let kernel = Kernel::newest_in(root.path()).unwrap();
        assert_eq!(kernel.release, "6.12.10+deb12-cloud-amd64");
    }

    #[test]
    fn a_root_without_a_kernel_is_named_in_the_error() {
        let empty = tempfile::tempdir().unwrap();
        let error = Kernel::find(Some(empty.path())).unwrap_err();
        assert!(matches!(&error, Error::Kernel { searched } if searched == &[empty.path()]));
    }
}

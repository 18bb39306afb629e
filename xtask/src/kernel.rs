//! Fetches a stock Debian kernel for the guest without installing it: the
//! package is unpacked into the cache.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::debs::{self, fetch, text_of};
use crate::packages::{self, Missing};
use crate::project::cache_dir;

/// Names of the kernels we like best: the small flavour of the 6.12 series.
const PREFERRED: &str = "^linux-image-6\\.12\\..*-cloud-amd64";

/// What always depends on the newest kernel of that flavour.
const FALLBACK: &str = "linux-image-cloud-amd64";

/// The same for a guest with a screen, which the small flavour has no drivers for.
const WITH_SCREEN: &str = "^linux-image-6\\.12\\..*-amd64";

/// The folder of a kernel for a guest with a screen, fetched if the cache has none.
pub(crate) fn ensure_with_screen() -> Result<PathBuf> {
    let cache = cache_dir().join("display-kernels");
    if let Some(cached) = newest_cached(&cache) {
        return Ok(cached);
    }
    if !packages::runs("apt-get") || !packages::runs("dpkg-deb") {
        bail!(Missing(
            "no kernel for a guest with a screen: there is no apt-get or dpkg-deb".to_owned()
        ));
    }
    let found = text_of("apt-cache", &["search", "--names-only", WITH_SCREEN])?;
    let Some(package) = newest_package(&found, has_screen) else {
        bail!(Missing(
            "no kernel for a guest with a screen: apt knows none".to_owned()
        ));
    };
    let version = debs::version(&package)?;
    eprintln!("xtask: fetching the kernel {package} {version} (about 107 MB, once)");
    fetch(&cache, &package, &version)
}

/// Whether this is the flavour for PCs.
fn has_screen(name: &str) -> bool {
    let plain = name.trim_end_matches("-unsigned");
    plain.ends_with("-amd64")
        && !["-cloud-", "-rt-"]
            .iter()
            .any(|flavour| plain.contains(flavour))
}

/// Whether this is the small flavour.
fn is_small(name: &str) -> bool {
    name.ends_with("-cloud-amd64") || name.ends_with("-cloud-amd64-unsigned")
}

/// The folder of a guest kernel, fetched if the cache has none.
pub(crate) fn ensure() -> Result<PathBuf> {
    let cache = cache_dir().join("kernels");
    if let Some(cached) = newest_cached(&cache) {
        return Ok(cached);
    }
    if !packages::runs("apt-get") || !packages::runs("dpkg-deb") {
        bail!(Missing(format!(
            "no guest kernel: without apt-get and dpkg-deb it cannot be fetched. Unpack a Debian \
             linux-image-*-cloud-amd64 package (`ar x`, `tar xf data.tar*`) into {}/NAME",
            cache.display()
        )));
    }
    match newest_available(&cache) {
        // A fresh machine has no package lists, and old lists name files that
        // are gone; only root may fetch new ones.
        Err(_) if packages::is_root() && packages::update()? => newest_available(&cache),
        result => result,
    }
}

fn newest_available(cache: &Path) -> Result<PathBuf> {
    let (package, version) = choose_package()?;
    eprintln!("xtask: fetching the guest kernel {package} {version} (about 35 MB, once)");
    fetch(cache, &package, &version)
}

fn newest_cached(cache: &Path) -> Option<PathBuf> {
    let mut names: Vec<String> = fs::read_dir(cache)
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort_by(|a, b| compare_versions(a, b));
    Some(cache.join(names.pop()?))
}

fn choose_package() -> Result<(String, String)> {
    let found = text_of("apt-cache", &["search", "--names-only", PREFERRED])?;
    let package = match newest_package(&found, is_small) {
        Some(package) => package,
        None => {
            let depends = text_of("apt-cache", &["depends", FALLBACK])?;
            dependency(&depends).ok_or_else(|| {
                Missing(
                    "no guest kernel: apt knows no cloud kernel. Try as root: apt-get update"
                        .to_owned(),
                )
            })?
        }
    };
    let version = debs::version(&package)?;
    Ok((package, version))
}

/// The newest real kernel in `apt-cache search` output: neither debugging
/// symbols nor a name that only depends on one; signed rather than unsigned.
fn newest_package(found: &str, is: fn(&str) -> bool) -> Option<String> {
    found
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| is(name))
        .max_by(|a, b| {
            let bare = |name: &str| name.trim_end_matches("-unsigned").to_owned();
            compare_versions(&bare(a), &bare(b)).then_with(|| b.len().cmp(&a.len()))
        })
        .map(str::to_owned)
}

fn dependency(depends: &str) -> Option<String> {
    let name = |line: &str| Some(line.trim().strip_prefix("Depends: ")?.to_owned());
    depends
        .lines()
        .filter_map(name)
        .find(|name| name.starts_with("linux-image-"))
}

/// Orders names by the numbers in them: 6.12.9 before 6.12.10.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let key = |text: &str| -> Vec<(String, u64)> {
        let mut parts = Vec::new();
        for piece in text.split_inclusive(|c: char| !c.is_ascii_digit()) {
            let digits = piece.trim_end_matches(|c: char| !c.is_ascii_digit());
            parts.push((
                piece[digits.len()..].to_owned(),
                digits.parse().unwrap_or(0),
            ));
        }
        parts
    };
    let (a, b) = (key(a), key(b));
    let numbers = |parts: &[(String, u64)]| parts.iter().map(|part| part.1).collect::<Vec<_>>();
    numbers(&a).cmp(&numbers(&b)).then_with(|| a.cmp(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debs::Draft;

    #[test]
    fn the_newest_signed_kernel_is_chosen() {
        let found = "\
linux-image-6.12-cloud-amd64-dbg - Debugging symbols (meta-package)
linux-image-6.12.9+deb12-cloud-amd64-dbg - Debug symbols
linux-image-6.12.9+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.10+deb12-cloud-amd64-unsigned - Linux 6.12 for x86-64 cloud
linux-image-6.12.10+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.2+deb12-cloud-amd64-unsigned - Linux 6.12 for x86-64 cloud
";
        assert_eq!(
            newest_package(found, is_small).as_deref(),
            Some("linux-image-6.12.10+deb12-cloud-amd64")
        );
        let unsigned_only = "linux-image-6.12.10+deb12-cloud-amd64-unsigned - Linux";
        assert_eq!(
            newest_package(unsigned_only, is_small).as_deref(),
            Some("linux-image-6.12.10+deb12-cloud-amd64-unsigned")
        );
        assert_eq!(
            newest_package("linux-image-6.12.9+deb12-cloud-amd64-dbg - x\n", is_small),
            None
        );
        let flavours = "\
linux-image-6.12.10+deb12-amd64-dbg - Debug symbols
linux-image-6.12.9+deb12-amd64 - Linux 6.12 for 64-bit PCs (signed)
linux-image-6.12.10+deb12-cloud-amd64 - Linux 6.12 for x86-64 cloud (signed)
linux-image-6.12.10+deb12-rt-amd64 - Linux 6.12 for 64-bit PCs, PREEMPT_RT (signed)
";
        assert_eq!(
            newest_package(flavours, has_screen).as_deref(),
            Some("linux-image-6.12.9+deb12-amd64")
        );
    }

    #[test]
    fn the_fallback_follows_the_dependency() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(
            dependency(depends).as_deref(),
            Some("linux-image-6.1.0-56-cloud-amd64")
        );
        assert_eq!(dependency(""), None);
    }

    #[test]
    fn an_unfinished_download_is_not_taken_for_a_kernel() {
        let cache = std::env::temp_dir().join(format!("xtask-kernel-test-{}", std::process::id()));
        let cache = Draft(cache);
        for name in [
            ".linux-image-6.12.11.77",
            "linux-image-6.12.9_1",
            "linux-image-6.12.10_1",
        ] {
            fs::create_dir_all(cache.0.join(name)).unwrap();
        }
        assert_eq!(
            newest_cached(&cache.0),
            Some(cache.0.join("linux-image-6.12.10_1"))
        );
        assert_eq!(newest_cached(&cache.0.join("nothing")), None);
    }
}

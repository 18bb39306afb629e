//! What can run in the lab: shell scripts in lab/scripts and Rust tests named
//! `lab_*.rs`. A header in each says what its guest needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::project::Project;

/// A guest and what runs in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Guest {
    pub(crate) name: String,
    pub(crate) body: Body,
    pub(crate) needs: Needs,
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// A shell script.
    Script(PathBuf),
    /// The tests of one file of a package.
    Tests { package: String },
}

/// What the header says. Each line of it is `#: KEY VALUE` (`//: KEY VALUE` in Rust).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// `about`: one line for people.
    pub(crate) about: String,
    /// `pack`: programs and sets of programs; may stand several times.
    pub(crate) pack: Vec<String>,
    /// `memory`: MiB for what runs, beside what the image takes.
    pub(crate) memory_mib: u64,
    /// `cpus`.
    pub(crate) cpus: u32,
    /// `limit`: seconds.
    pub(crate) limit: Duration,
    /// `machine`: QEMU's name of it and its options.
    pub(crate) machine: String,
    /// `qemu`: further options, one set a line.
    pub(crate) qemu: Vec<String>,
    /// `append`: words on the kernel's command line.
    pub(crate) append: String,
    /// `quick`: is part of `cargo xtask test --quick`.
    pub(crate) quick: bool,
}

impl Default for Needs {
    fn default() -> Self {
        Self {
            about: String::new(),
            pack: Vec::new(),
            memory_mib: 256,
            cpus: 2,
            limit: Duration::from_secs(120),
            machine: "q35".to_owned(),
            qemu: Vec::new(),
            append: String::new(),
            quick: false,
        }
    }
}

impl Needs {
    fn parse(text: &str, mark: &str) -> Result<Self> {
        let mut needs = Self::default();
        // The header ends where code begins.
        let comment = &mark[..mark.len() - 1];
        let header = text
            .lines()
            .take_while(|line| line.is_empty() || line.starts_with(comment));
        for line in header.filter_map(|line| line.strip_prefix(mark)) {
            let line = line.trim();
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            let value = value.trim();
            let number = || -> Result<u64> {
                let number: u64 = value.parse().with_context(|| format!("`{line}`"))?;
                anyhow::ensure!(number > 0, "`{line}`: it is not positive");
                Ok(number)
            };
            match key {
                "about" => needs.about = value.to_owned(),
                "pack" => needs
                    .pack
                    .extend(value.split_whitespace().map(str::to_owned)),
                "memory" => needs.memory_mib = number()?,
                "cpus" => needs.cpus = u32::try_from(number()?)?,
                "limit" => needs.limit = Duration::from_secs(number()?),
                "machine" => needs.machine = value.to_owned(),
                "qemu" => needs
                    .qemu
                    .extend(value.split_whitespace().map(str::to_owned)),
                "append" => needs.append = value.to_owned(),
                "quick" => needs.quick = true,
                _ => bail!(
                    "`{line}`: there is no `{key}`; there are about, pack, memory, cpus, limit, \
                     machine, qemu, append and quick"
                ),
            }
        }
        Ok(needs)
    }
}

/// Everything that can run, in the order of names: scripts, then tests.
pub(crate) fn all(project: &Project) -> Result<Vec<Guest>> {
    let mut guests = Vec::new();
    for (name, path) in files(&project.root.join("lab/scripts"), "", ".sh")? {
        let needs = read(&path, "#:")?;
        let body = Body::Script(path);
        guests.push(Guest { name, body, needs });
    }
    for package in &project.packages {
        for (name, path) in files(&package.dir.join("tests"), "lab_", ".rs")? {
            let needs = read(&path, "//:")?;
            let package = package.name.clone();
            let body = Body::Tests { package };
            guests.push(Guest { name, body, needs });
        }
    }
    Ok(guests)
}

/// A script that is not in the list, named like its file.
pub(crate) fn script(path: &Path) -> Result<Guest> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(Guest {
        name: name.into_owned(),
        body: Body::Script(path.to_owned()),
        needs: read(path, "#:")?,
    })
}

fn read(path: &Path, mark: &str) -> Result<Needs> {
    let place = || format!("in the header of {}", path.display());
    Needs::parse(&fs::read_to_string(path).with_context(place)?, mark).with_context(place)
}

/// Names without their ends, and paths.
fn files(dir: &Path, begin: &str, end: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(begin)
            && let Some(name) = name.strip_suffix(end)
        {
            found.push((name.to_owned(), path));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_what_a_guest_needs() {
        let text = "\
#!/bin/sh
# Words for people.
#: about does it
#: pack vdpa mkfs.ext4

#: pack qemu
#: memory 512
#: cpus 4
#: limit 30
#: quick
#: qemu -device intel-iommu
#: append intel_iommu=on
. /lab/functions.sh
#: memory 1
";
        let needs = Needs::parse(text, "#:").unwrap();
        let want = Needs {
            about: "does it".into(),
            pack: ["vdpa", "mkfs.ext4", "qemu"].map(str::to_owned).to_vec(),
            memory_mib: 512,
            cpus: 4,
            limit: Duration::from_secs(30),
            machine: "q35".into(),
            qemu: ["-device", "intel-iommu"].map(str::to_owned).to_vec(),
            append: "intel_iommu=on".into(),
            quick: true,
        };
        assert_eq!(needs, want);
    }

    #[test]
    fn a_test_has_its_header_behind_the_module_doc() {
        let text = "//! Tests.\n\n//: pack vdpa\n//: limit 9\nuse a;\n";
        let needs = Needs::parse(text, "//:").unwrap();
        assert_eq!((needs.pack.len(), needs.limit.as_secs()), (1, 9));
    }

    #[test]
    fn a_wrong_header_is_refused_with_the_line() {
        for line in ["#: memroy 5", "#: memory much", "#: cpus 0"] {
            let error = Needs::parse(line, "#:").unwrap_err();
            assert!(format!("{error:#}").contains(&line[3..]), "{error:#}");
        }
    }
}

//! Packs a guest: busybox, our init, what its header names, the libraries of all
//! that, and what runs.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use linkspan_guest::{Archive, busybox};
use serde_json::Value;

use super::guest::{Body, Guest};
use super::things;
use crate::packages::Missing;
use crate::project::{Project, cargo};

/// Where Debian's loader looks for libraries; all of them go there.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// The folders that are links to those below /usr.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// What the guest's init executes.
const RUN: &str = "/lab/run";

/// A file of the guest.
enum Entry {
    Copy(PathBuf),
    Text(String),
    Link(String),
}

/// The files of a guest by their places in it.
#[derive(Default)]
struct Image {
    entries: BTreeMap<String, Entry>,
    library_dirs: Vec<PathBuf>,
}

/// How our own programs are built.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Build {
    pub(crate) release: bool,
}

impl Build {
    /// What builds our program.
    fn program(self) -> Command {
        let mut command = cargo();
        if self.release {
            command.args(["build", "--package", "linkspan", "--bin", "linkspan"]);
        } else {
            // With a test of it, out of the whole workspace: it and all that it stands on are
            // built already, for the tests of the workspace, whose features differ.
            command.args(["test", "--no-run", "--workspace", "--test", "lab_program"]);
        }
        command
    }
}

/// Packs `guest` into a file and gives the size. `arguments` go to its tests.
pub(crate) fn pack(
    project: &Project,
    guest: &Guest,
    kernel: &Path,
    arguments: &[String],
    build: Build,
    to: &Path,
) -> Result<u64> {
    let found = things::find(&guest.needs.pack)?;
    let mut image = Image {
        library_dirs: found.library_dirs,
        ..Image::default()
    };
    for (path, inner) in found.files {
        image.add(&inner, Entry::Copy(path));
    }
    if found.kernel {
        image.add("/lab/bzImage", Entry::Copy(kernel.to_owned()));
    }
    image.own(project, guest, found.program, arguments, build)?;
    image.system(project)?;
    image.libraries()?;
    for (path, inner) in found.complete {
        image.add(&inner, Entry::Copy(path));
    }
    image.write(to)
}

impl Image {
    fn add(&mut self, path: &str, entry: Entry) {
        let path = path.trim_start_matches('/');
        let (first, _) = path.split_once('/').unwrap_or((path, ""));
        let path = match MERGED.contains(&first) {
            true => format!("usr/{path}"),
            false => path.to_owned(),
        };
        self.entries.insert(path, entry);
    }

    /// Our programs, and what runs.
    fn own(
        &mut self,
        project: &Project,
        guest: &Guest,
        program: bool,
        arguments: &[String],
        build: Build,
    ) -> Result<()> {
        let mut builds = Vec::new();
        let run = match &guest.body {
            Body::Script(path) => Entry::Copy(path.clone()),
            Body::Tests { .. } => {
                let mut command = cargo();
                command.args(["test", "--no-run", "--workspace", "--test", &guest.name]);
                builds.push((command, true));
                let words = arguments.iter().map(|word| quoted(word));
                let words = words.collect::<Vec<_>>().join(" ");
                // One at a time: they share one kernel.
                let run = format!("exec /lab/tests --test-threads=1 {words}\n");
                Entry::Text(run)
            }
        };
        self.add(RUN, run);
        // It comes with its own tests.
        let comes = matches!(&guest.body, Body::Tests { package } if package == "linkspan");
        if program && !comes {
            builds.push((build.program(), false));
        }
        for (mut command, tests) in builds {
            if build.release {
                command.arg("--release");
            }
            for made in executables(command.current_dir(&project.root))? {
                if made.test && !tests {
                    continue;
                }
                let slim = slim(project, &made.path)?;
                if made.test {
                    self.add("/lab/tests", Entry::Copy(slim));
                    continue;
                }
                // Tests know the program by the place where cargo put it.
                let place = made.path.to_string_lossy().into_owned();
                self.add(
                    &format!("/usr/bin/{}", made.name),
                    Entry::Link(place.clone()),
                );
                self.add(&place, Entry::Copy(slim));
            }
        }
        Ok(())
    }

    fn system(&mut self, project: &Project) -> Result<()> {
        let (path, _) = busybox::find().map_err(|_| {
            Missing("no static busybox. Install the Debian package busybox-static".to_owned())
        })?;
        self.add("/lab/busybox", Entry::Copy(path));
        // Others start it by this path.
        self.add("/bin/sh", Entry::Link("/lab/busybox".to_owned()));
        let lab = project.root.join("lab");
        self.add("/init", Entry::Copy(lab.join("init.sh")));
        self.add("/lab/functions.sh", Entry::Copy(lab.join("functions.sh")));
        self.add(
            "/etc/passwd",
            Entry::Text(
                "root:x:0:0:root:/root:/bin/sh\n\
                 nobody:x:65534:65534:nobody:/:/bin/false\n"
                    .to_owned(),
            ),
        );
        let groups = "root:x:0:\nnogroup:x:65534:\n";
        self.add("/etc/group", Entry::Text(groups.to_owned()));
        self.add(
            "/etc/hosts",
            Entry::Text("127.0.0.1 localhost\n".to_owned()),
        );
        self.add("/var/run", Entry::Link("/run".to_owned()));
        for dir in MERGED {
            self.entries
                .insert(dir.to_owned(), Entry::Link(format!("usr/{dir}")));
        }
        Ok(())
    }

    /// The libraries of every program and library.
    fn libraries(&mut self) -> Result<()> {
        let copies = self.entries.values().filter_map(|entry| match entry {
            Entry::Copy(path) => Some(path),
            _ => None,
        });
        let programs: Vec<&PathBuf> = copies.filter(|path| is_elf(path)).collect();
        let mut command = Command::new("ldd");
        command.args(programs).stderr(Stdio::null());
        if !self.library_dirs.is_empty() {
            command.env("LD_LIBRARY_PATH", std::env::join_paths(&self.library_dirs)?);
        }
        // It fails for a program that is static, and tells of all others.
        let output = command.output().context("cannot run ldd")?;
        for (name, path) in needed(&String::from_utf8_lossy(&output.stdout))? {
            let inner = match name.starts_with('/') {
                true => name,
                false => format!("{LIBRARIES}/{name}"),
            };
            self.add(&inner, Entry::Copy(path));
        }
        Ok(())
    }

    fn write(&self, to: &Path) -> Result<u64> {
        let place = || format!("cannot write {}", to.display());
        let file = BufWriter::with_capacity(1 << 20, File::create(to).with_context(place)?);
        let mut archive = Archive::new(file);
        for dir in [
            "dev", "proc", "sys", "tmp", "run", "root", "usr/bin", "usr/sbin",
        ] {
            archive.dir(dir)?;
        }
        // Without /dev/console the first process has no standard output.
        archive.char_device("dev/console", 5, 1)?;
        // What is one file here is one there, whatever its names: the loader knows
        // by that whether it has a library already.
        let mut written: HashMap<PathBuf, &str> = HashMap::new();
        for (path, entry) in &self.entries {
            match entry {
                Entry::Copy(from) => {
                    let from = fs::canonicalize(from)
                        .with_context(|| format!("cannot find {}", from.display()))?;
                    if let Some(first) = written.get(&from) {
                        archive.symlink(path, &format!("/{first}"))
                    } else {
                        let data =
                            fs::read(&from).with_context(|| format!("{}", from.display()))?;
                        written.insert(from, path);
                        archive.file(path, 0o755, &data)
                    }
                }
                Entry::Text(text) => archive.file(path, 0o755, text.as_bytes()),
                Entry::Link(target) => archive.symlink(path, target),
            }
            .with_context(place)?;
        }
        let bytes = archive.bytes();
        archive.finish().with_context(place)?;
        Ok(bytes)
    }
}

/// A program that cargo made.
struct Executable {
    name: String,
    path: PathBuf,
    test: bool,
}

/// Runs cargo and gives what it made.
fn executables(command: &mut Command) -> Result<Vec<Executable>> {
    let output = command
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "it does not build");
    let messages = output.stdout.split(|byte| *byte == b'\n');
    let messages = messages.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let executable = |message: Value| {
        Some(Executable {
            path: message["executable"].as_str()?.into(),
            name: message["target"]["name"].as_str()?.to_owned(),
            test: message["profile"]["test"].as_bool()?,
        })
    };
    Ok(messages.filter_map(executable).collect())
}

/// The program without what only a debugger reads, which is most of it.
fn slim(project: &Project, path: &Path) -> Result<PathBuf> {
    let dir = project.target.join("lab/slim");
    fs::create_dir_all(&dir)?;
    let name = path.file_name().context("a program has a name")?;
    let kind = match path.to_string_lossy().contains("/release/") {
        true => "release",
        false => "debug",
    };
    let slim = dir.join(format!("{kind}-{}", name.to_string_lossy()));
    let made = |path: &Path| fs::metadata(path)?.modified();
    if made(&slim).is_ok_and(|then| made(path).is_ok_and(|now| now < then)) {
        return Ok(slim);
    }
    let status = Command::new("strip")
        .args(["--strip-debug", "-o"])
        .arg(&slim)
        .arg(path)
        .status();
    // It is smaller without, and the same.
    Ok(match status {
        Ok(status) if status.success() => slim,
        _ => path.to_owned(),
    })
}

fn is_elf(path: &Path) -> bool {
    use std::io::Read as _;
    let mut magic = [0; 4];
    File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok())
        && &magic == b"\x7fELF"
}

/// Names and places of libraries in what ldd prints; the loader's name is its place.
fn needed(text: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some((name, place)) = line.split_once(" => ") {
            let place = place.split(" (").next().unwrap_or(place);
            if place == "not found" {
                bail!(Missing(format!("the library {name} is missing here")));
            }
            found.push((name.to_owned(), place.into()));
        } else if line.starts_with('/')
            && let Some((place, _)) = line.split_once(" (")
        {
            found.push((place.to_owned(), place.into()));
        }
    }
    // A library that was asked for by its path is one that the loader finds.
    for (name, _) in &mut found {
        if let Some((_, file)) = name.rsplit_once('/')
            && !name.contains("/ld-linux")
        {
            *name = file.to_owned();
        }
    }
    Ok(found)
}

/// A word for the guest's shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_says() {
        let text = "\
/usr/bin/a:
\tlinux-vdso.so.1 (0x00007f54768b7000)
\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f547663e000)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f54768b9000)
/usr/bin/b:
\tnot a dynamic executable
";
        let want = [
            ("libm.so.6", "/lib/x86_64-linux-gnu/libm.so.6"),
            ("/lib64/ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2"),
        ];
        let want = want.map(|(name, place)| (name.to_owned(), PathBuf::from(place)));
        assert_eq!(needed(text).unwrap(), want);
        let error = needed("\tlibx.so => not found\n").unwrap_err();
        assert!(error.to_string().contains("libx.so"), "{error}");
    }

    #[test]
    fn what_belongs_below_usr_goes_there() {
        let mut image = Image::default();
        for path in ["/lib64/a", "/bin/b", "/usr/bin/c", "/etc/d", "/init"] {
            image.add(path, Entry::Text(String::new()));
        }
        let names: Vec<&String> = image.entries.keys().collect();
        assert_eq!(
            names,
            ["etc/d", "init", "usr/bin/b", "usr/bin/c", "usr/lib64/a"]
        );
    }

    #[test]
    fn words_reach_the_guest_as_they_are() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}

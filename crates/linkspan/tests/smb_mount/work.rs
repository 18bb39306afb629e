//! Random work on files, and what they should have in them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use linkspan_sim::Rng;
use linkspan_testkit::census::settled;

/// Bytes of a file, at most.
const SIZE_MAX: u64 = 600_000;

/// Files at a time.
const FILES: u64 = 4;

/// Files that are worked on.
pub(crate) struct Files {
    rng: Rng,
    /// What each has in it.
    want: BTreeMap<String, Vec<u8>>,
    /// Those that are open.
    open: BTreeMap<String, File>,
    replaces_closed_only: bool,
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

impl Files {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            want: BTreeMap::new(),
            open: BTreeMap::new(),
            replaces_closed_only: false,
        }
    }

    /// No file takes the place of one that is open, as servers of SMB refuse that.
    #[allow(dead_code, reason = "each test uses some of it")]
    pub(crate) fn replacing_closed_only(seed: u64) -> Self {
        Self {
            replaces_closed_only: true,
            ..Self::new(seed)
        }
    }

    fn name(&mut self) -> String {
        format!("file {}", self.rng.below(FILES))
    }

    /// The file of this name, open; it is made if it is not there.
    fn file(&mut self, folder: &Path, name: &str) -> &File {
        self.want.entry(name.into()).or_default();
        self.open.entry(name.into()).or_insert_with(|| {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(folder.join(name))
                .unwrap()
        })
    }

    /// One piece of work.
    pub(crate) fn step(&mut self, folder: impl AsRef<Path>) {
        let folder = folder.as_ref();
        let name = self.name();
        match self.rng.below(100) {
            0..35 => self.write(folder, &name),
            35..60 => self.read(folder, &name),
            60..70 => self.truncate(folder, &name),
            70..78 => self.append(folder, &name),
            78..84 => self.rename(folder, &name),
            84..92 => drop(self.open.remove(&name)),
            92..96 => self.remove(folder, &name),
            _ => self.file(folder, &name).sync_all().unwrap(),
        }
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        let word = self.rng.next().to_le_bytes();
        (0..to_usize(len))
            .map(|at| word[at % 8] ^ at.to_le_bytes()[0])
            .collect()
    }

    fn write(&mut self, folder: &Path, name: &str) {
        let offset = self.rng.below(SIZE_MAX / 2);
        let len = match self.rng.below(8) {
            0 => self.rng.below(SIZE_MAX / 2),
            _ => 1 + self.rng.below(20_000),
        };
        let bytes = self.bytes(len);
        self.file(folder, name)
            .write_all_at(&bytes, offset)
            .unwrap();
        self.wrote(name, offset, &bytes);
    }

    fn wrote(&mut self, name: &str, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let want = self.want.get_mut(name).unwrap();
        let (begin, end) = (to_usize(offset), to_usize(offset) + bytes.len());
        want.resize(want.len().max(end), 0);
        want[begin..end].copy_from_slice(bytes);
    }

    fn append(&mut self, folder: &Path, name: &str) {
        let end = self.want.get(name).map_or(0, |want| want.len() as u64);
        if end > SIZE_MAX {
            return;
        }
        let len = 1 + self.rng.below(9000);
        let bytes = self.bytes(len);
        let mut options = File::options();
        let mut file = options
            .append(true)
            .create(true)
            .open(folder.join(name))
            .unwrap();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        self.want.entry(name.into()).or_default();
        self.wrote(name, end, &bytes);
    }

    fn read(&mut self, folder: &Path, name: &str) {
        let offset = self.rng.below(SIZE_MAX);
        let mut bytes = vec![0; to_usize(1 + self.rng.below(100_000))];
        let file = self.file(folder, name);
        let mut got = 0;
        loop {
            let at = offset + got as u64;
            match file.read_at(&mut bytes[got..], at).unwrap() {
                0 => break,
                len => got += len,
            }
        }
        let want = &self.want[name];
        let begin = to_usize(offset).min(want.len());
        let end = (begin + bytes.len()).min(want.len());
        assert!(
            bytes[..got] == want[begin..end],
            "{name} at {offset}: {got} bytes"
        );
    }

    fn truncate(&mut self, folder: &Path, name: &str) {
        let size = self.rng.below(SIZE_MAX / 2);
        match self.rng.percent(50) && self.want.contains_key(name) {
            // By another descriptor.
            true => {
                let file = File::options().write(true).open(folder.join(name));
                file.unwrap().set_len(size).unwrap();
            }
            false => self.file(folder, name).set_len(size).unwrap(),
        }
        self.want.get_mut(name).unwrap().resize(to_usize(size), 0);
    }

    fn rename(&mut self, folder: &Path, name: &str) {
        let to = self.name();
        if to == name || !self.want.contains_key(name) {
            return;
        }
        if self.replaces_closed_only {
            self.open.remove(&to);
        }
        fs::rename(folder.join(name), folder.join(&to)).unwrap();
        let want = self.want.remove(name).unwrap();
        self.want.insert(to.clone(), want);
        self.open.remove(&to);
        if let Some(file) = self.open.remove(name) {
            self.open.insert(to, file);
        }
    }

    fn remove(&mut self, folder: &Path, name: &str) {
        if self.want.remove(name).is_some() {
            fs::remove_file(folder.join(name)).unwrap();
            self.open.remove(name);
        }
    }

    /// Nothing is open any more.
    pub(crate) fn close(&mut self) {
        self.open.clear();
    }

    /// Puts what should be there into a new folder.
    pub(crate) fn save(&self, folder: &Path) {
        fs::create_dir(folder).unwrap();
        for (name, want) in &self.want {
            fs::write(folder.join(name), want).unwrap();
        }
    }

    /// All files have in them what they should, and there are no others.
    pub(crate) fn compare(&self, folder: impl AsRef<Path>) {
        let folder = folder.as_ref();
        for (name, want) in &self.want {
            let got = fs::read(folder.join(name)).unwrap();
            assert!(
                got == *want,
                "{name}: {} bytes, not {}",
                got.len(),
                want.len()
            );
        }
        let mut listed = Vec::new();
        // What was removed while a program that is being started had it, too, goes in a moment.
        let mut same = || {
            listed = crate::names(folder);
            listed.iter().eq(self.want.keys())
        };
        let same = settled(&mut same);
        assert!(same, "{listed:?}");
    }
}

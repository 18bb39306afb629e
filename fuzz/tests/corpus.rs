//! The corpora, run as ordinary tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use linkspan_fuzz::{TARGETS, seeds};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

#[test]
fn seeds_do_what_they_say() {
    for seed in seeds::all() {
        seed.check();
    }
}

/// `LINKSPAN_WRITE_CORPUS=1` writes them.
#[test]
fn seeds_are_in_the_corpus() {
    let mut names = BTreeSet::new();
    for seed in seeds::all() {
        let path = corpus().join(seed.target).join(&seed.name);
        if std::env::var_os("LINKSPAN_WRITE_CORPUS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &seed.bytes).unwrap();
        }
        let stored = fs::read(&path).unwrap_or_default();
        assert!(stored == seed.bytes, "{} is outdated", path.display());
        assert!(names.insert(path), "{} is there twice", seed.name);
    }
}

#[test]
fn every_file_of_a_corpus_passes_its_target() {
    for (name, target) in TARGETS {
        let mut count = 0;
        for entry in fs::read_dir(corpus().join(name)).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            target(&fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 10, "{name} has only {count} inputs");
    }
}

/// Any prefix of a script is a script, and so is one with a byte changed: cheap
/// neighbours of the seeds, without a fuzzer.
#[test]
fn neighbours_of_the_seeds_pass() {
    for seed in seeds::all() {
        let target = linkspan_fuzz::find(seed.target).unwrap();
        for at in 0..seed.bytes.len() {
            target(&seed.bytes[..at]);
            for change in [1, 0x80, 0xFF] {
                let mut bytes = seed.bytes.clone();
                bytes[at] ^= change;
                target(&bytes);
            }
        }
    }
}

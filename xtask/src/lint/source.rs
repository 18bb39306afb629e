//! Rules about what stands in source files.

use super::Fault;
use super::crates::PURE;
use super::mask::{Source, braces};

/// The crates that may contain unsafe code.
const UNSAFE: &[&str] = &["linkspan-mem", "linkspan-sys"];

/// What a pure crate cannot name: time, threads, locks, async, descriptors, logs.
/// The prelude of `no_std` has none of them, so this finds the ways around it.
const IMPURE_WORDS: &[&str] = &[
    "std",
    "Instant",
    "SystemTime",
    "Mutex",
    "RwLock",
    "Condvar",
    "thread",
    "thread_local",
    "async",
    "await",
    "tracing",
    "OwnedFd",
    "BorrowedFd",
    "RawFd",
];

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

/// Pure crates touch nothing but their inputs. (Whether they build without the
/// standard library, `#![no_std]` decides when they are built.)
pub(super) fn purity(files: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for file in files.iter().filter(|file| PURE.contains(&file.package())) {
        if !file.path.contains("/src/") {
            continue;
        }
        for word in IMPURE_WORDS {
            for at in file.words(word).filter(|&at| !file.in_tests(at)) {
                faults.push(Fault::new(
                    file.place(at),
                    format!("`{word}` in a pure crate"),
                ));
            }
        }
    }
    faults
}

/// Unsafe code stays where it is looked for.
pub(super) fn unsafe_code(files: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for file in files
        .iter()
        .filter(|file| !UNSAFE.contains(&file.package()))
    {
        for at in file.words("unsafe") {
            faults.push(Fault::new(
                file.place(at),
                "unsafe code; it belongs into linkspan-mem or linkspan-sys",
            ));
        }
    }
    faults
}

/// The attributes with which the compiler keeps the rules for us.
pub(super) fn crate_attributes(files: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for file in files {
        let is_root = file.path.ends_with("/src/lib.rs") || file.path.ends_with("/src/main.rs");
        if !is_root || file.path.starts_with("fuzz/") {
            continue;
        }
        let code: String = file.code.split_whitespace().collect();
        let mut want = |attribute: &str| {
            if !code.contains(attribute) {
                faults.push(Fault::new(&file.path, format!("lacks `{attribute}`")));
            }
        };
        if !UNSAFE.contains(&file.package()) {
            want("#![forbid(unsafe_code)]");
        }
        if PURE.contains(&file.package()) {
            want("#![no_std]");
        }
    }
    faults
}

/// A file says first what it is for, by itself or by the README that it includes.
pub(super) fn opening(files: &[Source]) -> Vec<Fault> {
    let opens = |file: &&Source| {
        file.text.starts_with("//! ") || file.text.starts_with("#![doc = include_str!(")
    };
    let fault = |file: &Source| Fault::new(&file.path, "does not open with `//! ` and its purpose");
    files
        .iter()
        .filter(|file| !opens(file))
        .map(fault)
        .collect()
}

/// A test that sleeps is slow and still races; one that is ignored is forgotten.
pub(super) fn tests(files: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for file in files {
        for at in file.words("sleep").filter(|&at| file.in_tests(at)) {
            if file.code[at..].starts_with("sleep(") {
                faults.push(Fault::new(
                    file.place(at),
                    "a test that sleeps; wait for the event itself",
                ));
            }
        }
        for at in file.words("ignore") {
            if file.code[..at].trim_end().ends_with("#[") {
                faults.push(Fault::new(
                    file.place(at),
                    "an ignored test; let it say SKIP and why, or remove it",
                ));
            }
        }
    }
    faults
}

/// Long files and functions: a sign that a piece is missing, so only a warning.
pub(super) fn sizes(files: &[Source]) -> Vec<Fault> {
    let mut warnings = Vec::new();
    for file in files {
        let lines = file.text.lines().count();
        if lines > FILE_LINES_MAX {
            warnings.push(Fault::new(
                &file.path,
                format!("{lines} lines, more than {FILE_LINES_MAX}"),
            ));
        }
        for at in file.words("fn") {
            let Some(body) = braces(&file.code, at) else {
                continue;
            };
            let lines = file.line(body.end) - file.line(at) + 1;
            if lines > FUNCTION_LINES_MAX {
                let what = format!("a function of {lines} lines, more than {FUNCTION_LINES_MAX}");
                warnings.push(Fault::new(file.place(at), what));
            }
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(rule: fn(&[Source]) -> Vec<Fault>, path: &str, text: &str) -> Vec<String> {
        rule(&[Source::new(path, text)])
            .into_iter()
            .map(|fault| fault.at)
            .collect()
    }

    const PURE_FILE: &str = "crates/linkspan-virtio/src/queue.rs";

    #[test]
    fn a_pure_crate_names_no_clock_thread_lock_or_log() {
        for bad in [
            "extern crate std;",
            "use std::io;",
            "fn f(now: Instant) {}",
            "struct S(Arc<Mutex<u8>>);",
            "async fn f() {}",
            "fn f() { tracing::info!() }",
            "fn f() { thread::spawn(g) }",
        ] {
            assert_eq!(
                faults(purity, PURE_FILE, &format!("//! A.\n{bad}\n")),
                ["crates/linkspan-virtio/src/queue.rs:2"],
                "{bad}"
            );
            assert!(faults(purity, "crates/linkspan-engine/src/a.rs", bad).is_empty());
        }
    }

    #[test]
    fn a_pure_crates_tests_and_comments_may() {
        for good in [
            "// std::time::Instant\nfn f() {}",
            "#[cfg(test)]\nextern crate std;",
            "#[cfg(test)]\nmod tests { use std::thread; }",
            "fn standard() { let s = \"std\"; }",
        ] {
            assert_eq!(faults(purity, PURE_FILE, good), [""; 0], "{good}");
        }
        assert!(
            faults(
                purity,
                "crates/linkspan-virtio/tests/loom_ring.rs",
                "use std::io;"
            )
            .is_empty()
        );
    }

    #[test]
    fn unsafe_is_found_outside_mem_and_sys_even_in_tests() {
        let bad = "//! A.\n#[cfg(test)]\nmod tests { fn f() { unsafe { g() } } }";
        assert_eq!(
            faults(unsafe_code, "crates/linkspan-engine/src/a.rs", bad),
            ["crates/linkspan-engine/src/a.rs:3"]
        );
        assert_eq!(faults(unsafe_code, "xtask/src/a.rs", bad).len(), 1);
        assert!(faults(unsafe_code, "crates/linkspan-mem/src/a.rs", bad).is_empty());
        assert!(
            faults(
                unsafe_code,
                "crates/linkspan-engine/src/a.rs",
                "#![forbid(unsafe_code)]"
            )
            .is_empty()
        );
    }

    #[test]
    fn crate_roots_forbid_what_they_must() {
        let root = "crates/linkspan-vhost/src/lib.rs";
        assert_eq!(faults(crate_attributes, root, "//! A.\n").len(), 2);
        assert_eq!(
            faults(crate_attributes, root, "//! A.\n#![no_std]\n").len(),
            1
        );
        assert_eq!(
            faults(
                crate_attributes,
                root,
                "// #![no_std] #![forbid(unsafe_code)]"
            )
            .len(),
            2
        );
        assert!(
            faults(
                crate_attributes,
                root,
                "#![no_std]\n#![forbid(unsafe_code)]\n"
            )
            .is_empty()
        );
        assert!(faults(crate_attributes, "crates/linkspan-sys/src/lib.rs", "").is_empty());
        assert_eq!(
            faults(crate_attributes, "crates/linkspan/src/main.rs", "").len(),
            1
        );
    }

    #[test]
    fn a_file_without_its_purpose_is_found() {
        for bad in ["", "fn f() {}", "// A comment\n", "\n//! Late", "//!\n"] {
            assert_eq!(
                faults(opening, "crates/x/src/a.rs", bad).len(),
                1,
                "{bad:?}"
            );
        }
        for good in [
            "//! What it is for.\n",
            "#![doc = include_str!(\"../README.md\")]\n",
        ] {
            assert!(faults(opening, "crates/x/src/lib.rs", good).is_empty());
        }
    }

    #[test]
    fn tests_that_sleep_or_are_ignored_are_found() {
        let nap = "std::thread::sleep(d)";
        let sleeping = format!("//! A.\n#[cfg(test)]\nmod tests {{ #[test] fn f() {{ {nap} }} }}");
        assert_eq!(
            faults(tests, "crates/x/src/a.rs", &sleeping),
            ["crates/x/src/a.rs:3"]
        );
        assert_eq!(
            faults(
                tests,
                "crates/x/tests/a.rs",
                "use a::sleep; fn f() { sleep(d) }"
            )
            .len(),
            1
        );
        assert!(faults(tests, "crates/x/src/a.rs", "fn f() { sleep(d) }").is_empty());
        assert_eq!(
            faults(tests, "crates/x/src/a.rs", "#[test]\n#[ignore]\nfn f() {}").len(),
            1
        );
        assert_eq!(
            faults(
                tests,
                "crates/x/src/a.rs",
                "#[ignore = \"slow\"]\nfn f() {}"
            )
            .len(),
            1
        );
        assert!(faults(tests, "crates/x/src/a.rs", "fn ignore() {}").is_empty());
    }

    #[test]
    fn long_files_and_functions_are_warned_of() {
        let body = "    x();\n";
        let function = |lines| {
            format!(
                "//! A.\nfn f(a: [u8; 4]) -> [u8; 2] {{\n{}}}\n",
                body.repeat(lines)
            )
        };
        assert!(faults(sizes, "a.rs", &function(68)).is_empty());
        assert_eq!(faults(sizes, "a.rs", &function(69)), ["a.rs:2"]);
        assert_eq!(faults(sizes, "a.rs", &"//\n".repeat(601)), ["a.rs"]);
        assert!(faults(sizes, "a.rs", "trait T { fn f(&self); }").is_empty());
    }
}

//! The tests that pages name are there.

use std::fs;
use std::path::Path;

use super::{docs, project};

/// The heading from which on the page of known bugs lists what comes with
/// links that do not exist yet.
const LATER: &str = "## Later";

/// What stands in the tables of a page, row by row, without their heads.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let rows = rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect());
    let rows: Vec<Vec<&str>> = rows.collect();
    let is_rule = |row: &Vec<&str>| row.iter().all(|cell| *cell == "---");
    let heads = rows.iter().skip(1).map(is_rule).chain([false]);
    let keep: Vec<bool> = heads.map(|head| !head).collect();
    let kept = rows.into_iter().zip(keep).filter(|(_, keep)| *keep);
    kept.map(|(row, _)| row)
        .filter(|row| !is_rule(row))
        .collect()
}

/// What is wrong with a cell of tests, each of which is `path below crates/::function`.
fn wrong_tests(cell: &str) -> Vec<String> {
    let crates = project().join("crates");
    let missing = |test: &&str| {
        let parts = test.trim_matches('`').split_once("::");
        !parts.is_some_and(|(path, name)| is_test(&crates.join(path), name))
    };
    let missing = cell.split_whitespace().filter(missing);
    let mut wrong: Vec<String> = missing
        .map(|test| format!("no such test: {test}"))
        .collect();
    if !cell.contains("::") {
        wrong.push(format!("no tests: {cell}"));
    }
    wrong
}

/// Every row of the page of known bugs names tests, and every test that it
/// names exists.
#[test]
fn known_bugs_have_the_tests_that_the_page_names() {
    let page = fs::read_to_string(docs().join("known-bugs.md")).unwrap();
    let (page, _later) = page.split_once(LATER).unwrap_or((&page, ""));
    let (mut named, mut wrong) = (0, Vec::new());
    for row in rows(page) {
        let [bug, instead, tests] = row[..] else {
            wrong.push(format!("not three cells: {row:?}"));
            continue;
        };
        if bug.is_empty() || instead.is_empty() {
            wrong.push(format!("an empty cell: {row:?}"));
        }
        named += 1;
        wrong.extend(wrong_tests(tests));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(named > 0, "the page names no test");
}

/// What does not apply says so, and has no test.
const APPLIES_NOT: &str = "does not apply";

/// Every patch and every remark has a place that keeps it and tests that show it, and all of
/// them exist.
#[test]
fn each_patch_and_remark_has_the_tests_that_the_page_names() {
    let page = fs::read_to_string(docs().join("lineage.md")).unwrap();
    let mut wrong = Vec::new();
    let rows = rows(&page);
    for row in &rows {
        let [patch, rule, places, tests] = row[..] else {
            wrong.push(format!("not four cells: {row:?}"));
            continue;
        };
        if patch.is_empty() || rule.is_empty() {
            wrong.push(format!("an empty cell: {row:?}"));
        }
        if rule.starts_with(APPLIES_NOT) && tests == "none" {
            continue;
        }
        for place in places.split_whitespace() {
            let path = project().join("crates").join(place.trim_matches('`'));
            if !path.is_file() {
                wrong.push(format!("no such place: {place}"));
            }
        }
        wrong.extend(wrong_tests(tests));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Five series of 37, 5, 4, 7 and 7 patches, of which some are told together.
    assert!(rows.len() > 60, "{} rows", rows.len());
}

/// The pages for operators name tests in their text.
#[test]
fn pages_on_security_and_operations_name_tests_that_are_there() {
    for page in ["SECURITY.md", "operations.md", "migration.md"] {
        let text = fs::read_to_string(docs().join(page)).unwrap();
        let spans = text.split('`').skip(1).step_by(2);
        let tests: Vec<&str> = spans
            .filter(|span| span.contains(".rs::"))
            .flat_map(str::split_whitespace)
            .collect();
        assert!(tests.len() > 4, "{page}: {tests:?}");
        let wrong: Vec<String> = tests.iter().flat_map(|test| wrong_tests(test)).collect();
        assert!(wrong.is_empty(), "{page}: {wrong:#?}");
    }
}

/// The 31 faults of the first ends of SMB Direct are each on the page, with a test whose
/// documentation has the number.
#[test]
fn each_fault_of_smb_direct_is_a_named_test() {
    let page = fs::read_to_string(docs().join("known-bugs.md")).unwrap();
    let crates = project().join("crates");
    let mut missing = Vec::new();
    for number in 1..=31 {
        let has = |text: &str| names_fault(text, number);
        let rows = page.lines().filter(|row| row.starts_with('|') && has(row));
        let mut tests = rows.flat_map(|row| row.rsplit(" | ").next().unwrap().split_whitespace());
        let found = tests.any(|test| {
            let parts = test.trim_matches('`').split_once("::");
            parts.is_some_and(|(path, name)| has(&documentation(&crates.join(path), name)))
        });
        if !found {
            missing.push(number);
        }
    }
    assert!(missing.is_empty(), "no test for faults {missing:?}");
}

/// Whether a text says "fault N", alone or as one of two.
fn names_fault(text: &str, number: u32) -> bool {
    let text = text.to_lowercase();
    let number = number.to_string();
    let is_number = |word: &str| word.trim_end_matches([')', ',', ':', '.']) == number;
    let words: Vec<&str> = text.split_whitespace().collect();
    (0..words.len()).any(|at| {
        let next = |by: usize| words.get(at + by).is_some_and(|word| is_number(word));
        match words[at].trim_start_matches('(') {
            "fault" => next(1),
            "faults" => next(1) || next(3),
            _ => false,
        }
    })
}

/// What stands right above the test of this name.
fn documentation(file: &Path, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let (above, _) = text.split_once(&format!("fn {name}(")).unwrap_or_default();
    let lines = above.lines().rev().map(str::trim);
    let lines = lines.skip_while(|line| line.is_empty());
    let lines: Vec<&str> = lines
        .take_while(|line| line.starts_with("//") || line.starts_with("#["))
        .collect();
    let lines = lines.iter().rev().map(|line| line.trim_start_matches('/'));
    lines.collect::<Vec<_>>().join(" ")
}

/// Whether the file has a function of this name that runs as a test: right
/// behind `#[test]` and its documentation.
pub(crate) fn is_test(file: &Path, name: &str) -> bool {
    let Ok(text) = fs::read_to_string(file) else {
        return false;
    };
    let mut lines = text.lines().map(str::trim);
    while lines.any(|line| line == "#[test]") {
        let function = lines
            .by_ref()
            .find(|line| !line.starts_with("//") && !line.starts_with("#["));
        let rest = function.and_then(|line| line.strip_prefix("fn "));
        if rest
            .and_then(|rest| rest.strip_prefix(name))
            .is_some_and(|rest| rest.starts_with('('))
        {
            return true;
        }
    }
    false
}

/// All sources below a folder, if it is there.
fn read_all(folder: &Path, sources: &mut String) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, sources);
        } else {
            *sources += &fs::read_to_string(path).unwrap_or_default();
        }
    }
}

/// What the book says was proved, a test proves.
#[test]
fn tests_that_the_book_names_are_there() {
    let mut sources = String::new();
    for package in fs::read_dir(project().join("crates")).unwrap() {
        let package = package.unwrap().path();
        read_all(&package.join("tests"), &mut sources);
        read_all(&package.join("src"), &mut sources);
    }
    let page = fs::read_to_string(docs().join("peers.md")).unwrap();
    let last_columns = page.lines().filter_map(|line| line.rsplit('|').nth(1));
    let names: Vec<&str> = last_columns
        .flat_map(|column| column.split('`').skip(1).step_by(2))
        .collect();
    assert!(names.len() > 10, "{names:?}");
    let missing = |name: &&&str| !sources.contains(&format!("fn {name}()"));
    let missing: Vec<_> = names.iter().filter(missing).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

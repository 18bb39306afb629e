//! The book says what the code says.

use std::fs;
use std::path::{Path, PathBuf};

use linkspan_vhost::message::{BACKEND_REQUESTS, FRONTEND_REQUESTS, markdown};
use linkspan_vhost::vdpa::feature_markdown;

/// Set to rewrite the pages that are made from the code.
const UPDATE_ENV: &str = "LINKSPAN_UPDATE_DOCS";

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

#[test]
fn page_of_messages_is_the_table_in_the_code() {
    let page = format!(
        "# The messages of vhost-user\n\n\
         Made from the table that the code works by; `LINKSPAN_UPDATE_DOCS=1 cargo test --test docs` writes it anew.\n\n\
         ## Requests of the front end\n\n{}\n## Requests of the back end\n\n{}",
        markdown(&FRONTEND_REQUESTS),
        markdown(&BACKEND_REQUESTS)
    );
    let path = docs().join("vhost-user.md");
    if std::env::var_os(UPDATE_ENV).is_some() {
        fs::write(&path, &page).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == page,
        "docs/vhost-user.md is out of date: {UPDATE_ENV}=1 cargo test --test docs"
    );
}

/// The page has this table between the marks of this name.
#[track_caller]
fn has_table(name: &str, mark: &str, table: &str) {
    let path = docs().join(name);
    let page = fs::read_to_string(&path).unwrap();
    let begin = format!("<!-- {mark} -->\n");
    let (before, rest) = page.split_once(&begin).unwrap();
    let (_, after) = rest.split_once("<!-- end -->").unwrap();
    let wanted = format!("{before}{begin}{table}<!-- end -->{after}");
    if std::env::var_os(UPDATE_ENV).is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap();
    assert!(
        found == wanted,
        "docs/{name} is out of date: {UPDATE_ENV}=1 cargo test --test docs"
    );
}

/// What the bridge does with feature bits is what the page on vDPA says.
#[test]
fn page_of_vdpa_has_the_table_of_features() {
    has_table("vdpa.md", "features", &feature_markdown());
}

#[test]
fn page_of_smb_direct_has_the_table_of_parameters() {
    let table = linkspan_smbdirect::markdown();
    has_table("smbdirect.md", "options", &table);
}

/// Links between pages lead somewhere.
#[test]
fn links_of_the_book_lead_somewhere() {
    let mut broken = Vec::new();
    for entry in fs::read_dir(docs()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|kind| kind != "md") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let file = link.split('#').next().unwrap_or_default();
            if !file.is_empty() && !link.contains("://") && !docs().join(file).exists() {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// The heading from which on the page of known bugs lists what comes with
/// links that do not exist yet.
const LATER: &str = "## Later";

/// Every row of the page of known bugs names tests, and every test that it
/// names exists, once.
#[test]
fn known_bugs_have_the_tests_that_the_page_names() {
    let page = fs::read_to_string(docs().join("known-bugs.md")).unwrap();
    let (rows, _later) = page.split_once(LATER).unwrap_or((&page, ""));
    let crates = docs().join("../crates");
    let (mut named, mut wrong) = (0, Vec::new());
    for row in rows.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [bug, instead, tests] = cells[..] else {
            wrong.push(format!("not three cells: {row}"));
            continue;
        };
        if tests == "tests" || tests == "---" {
            continue;
        }
        if bug.is_empty() || instead.is_empty() || !tests.contains("::") {
            wrong.push(format!("an empty cell: {row}"));
        }
        for test in tests.split_whitespace() {
            named += 1;
            let parts = test.trim_matches('`').split_once("::");
            if !parts.is_some_and(|(path, name)| is_test(&crates.join(path), name)) {
                wrong.push(format!("no such test: {test}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(named > 0, "the page names no test");
}

/// Whether the file has a function of this name that runs as a test: right
/// behind `#[test]` and its documentation.
fn is_test(file: &Path, name: &str) -> bool {
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

/// What the book says was proved, a test proves.
#[test]
fn tests_that_the_book_names_are_there() {
    let mut sources = String::new();
    for package in fs::read_dir(docs().join("../crates")).unwrap() {
        let tests = fs::read_dir(package.unwrap().path().join("tests"));
        for file in tests.into_iter().flatten() {
            sources += &fs::read_to_string(file.unwrap().path()).unwrap_or_default();
        }
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

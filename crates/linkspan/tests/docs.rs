//! The book says what the code says.

use std::fs;
use std::path::{Path, PathBuf};

use linkspan_vhost::message::{BACKEND_REQUESTS, FRONTEND_REQUESTS, markdown};

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

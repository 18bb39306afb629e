//! Every page is in the book, and every link leads somewhere.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use super::{docs, pages, project};

/// Where files of the project are that are not in the book, for who reads it.
const SOURCE: &str = "https://github.com/linkspan/linkspan/blob/main/";

/// Text without what is between fences, and without spans of code.
fn prose(text: &str) -> String {
    let outside = text.split("```").step_by(2).collect::<String>();
    outside.split('`').step_by(2).collect()
}

/// Where the links of a text lead to.
fn links(text: &str) -> Vec<String> {
    let text = prose(text);
    let ends = text.split("](").skip(1);
    let links = ends.filter_map(|rest| rest.split(')').next());
    let is_ours = |link: &&str| link.starts_with(SOURCE) || !link.contains("://");
    let here = links.filter(|link| is_ours(link) && !link.starts_with("mailto:"));
    here.map(String::from).collect()
}

/// What `#` leads to: headings as GitHub and mdBook name them.
fn anchors(text: &str) -> BTreeSet<String> {
    let outside = text.split("```").step_by(2).collect::<String>();
    let headings = outside.lines().filter(|line| line.starts_with('#'));
    let headings = headings.map(|line| line.trim_start_matches('#').trim().to_lowercase());
    let mut anchors = BTreeSet::new();
    for heading in headings {
        let kept = |letter: &char| letter.is_alphanumeric() || " -_".contains(*letter);
        let name: String = heading.chars().filter(kept).collect();
        let name = name.replace(' ', "-");
        let numbered = (1..).map(|number| format!("{name}-{number}"));
        let mut names = [name.clone()].into_iter().chain(numbered);
        let free = names.find(|name| !anchors.contains(name));
        anchors.insert(free.unwrap());
    }
    anchors
}

/// A path without `..`, so that two of one file are equal.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// Links of all pages lead to files and headings that are there.
#[test]
fn links_of_the_book_lead_somewhere() {
    let mut broken = Vec::new();
    let mut seen = 0;
    for (page, text) in pages() {
        let folder = project().join(&page).parent().unwrap().to_path_buf();
        for link in links(&text) {
            seen += 1;
            let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file.strip_prefix(SOURCE) {
                Some(file) => project().join(file),
                None if file.is_empty() => project().join(&page),
                None => plain(&folder.join(file)),
            };
            let leaves = !file.starts_with(SOURCE) && !target.starts_with(docs());
            let has = |text: String| heading.is_empty() || anchors(&text).contains(heading);
            let leads = match target.extension() {
                _ if leaves && page.starts_with("docs/") => false,
                Some(kind) if kind == "md" => fs::read_to_string(&target).is_ok_and(has),
                _ => target.exists() && heading.is_empty(),
            };
            if !leads {
                broken.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(seen > 100, "{seen} links");
}

/// mdBook makes a page of what its summary names, and of nothing else.
#[test]
fn every_page_is_in_the_summary_once_and_every_entry_is_a_page() {
    let summary = fs::read_to_string(docs().join("SUMMARY.md")).unwrap();
    let mut entries = links(&summary);
    let pages = pages();
    let pages = pages
        .iter()
        .filter_map(|(path, _)| path.strip_prefix("docs/"));
    let mut pages: Vec<&str> = pages.filter(|page| *page != "SUMMARY.md").collect();
    entries.sort();
    pages.sort_unstable();
    assert_eq!(entries, pages);
    let settings = fs::read_to_string(project().join("book.toml")).unwrap();
    let settings: toml::Table = settings.parse().unwrap();
    assert_eq!(settings["book"]["src"].as_str(), Some("docs"));
}

/// What mdBook would warn of, or take for something else than was meant.
#[test]
fn fences_are_closed_and_no_word_is_taken_for_a_tag() {
    let is_comment = |rest: &str| rest.starts_with("!--");
    for (page, text) in pages() {
        let fences = text
            .lines()
            .filter(|line| line.trim_start().starts_with("```"));
        assert_eq!(fences.count() % 2, 0, "{page}: a fence is not closed");
        let prose = prose(&text);
        let mut after = prose.split('<').skip(1);
        let tag = after.find(|rest| {
            rest.starts_with(|it: char| it.is_alphabetic() || "/!".contains(it))
                && !is_comment(rest)
        });
        assert_eq!(tag, None, "{page}: a tag");
    }
}

/// Where somebody has mdBook it makes the book, and has nothing to say against it.
#[test]
fn mdbook_makes_the_book_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let mut mdbook = Command::new("mdbook");
    mdbook.arg("build").arg("--dest-dir").arg(folder.path());
    let made = mdbook.arg(project()).stdin(Stdio::null()).output();
    let Ok(made) = made else {
        // Not by `eprintln`, which the test harness captures.
        let why = "SKIP mdbook_makes_the_book_without_a_warning: there is no mdbook";
        return drop(writeln!(io::stderr().lock(), "{why}"));
    };
    let said = String::from_utf8_lossy(&made.stderr).into_owned();
    let said = said + &String::from_utf8_lossy(&made.stdout);
    assert!(made.status.success(), "{said}");
    assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");
    let start = fs::read_to_string(folder.path().join("start.html")).unwrap();
    assert!(start.contains("A start in five minutes"), "{start}");
}

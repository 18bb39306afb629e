//! The book says what the code says.

use std::fs;
use std::path::{Path, PathBuf};

use linkspan_vhost::message::{BACKEND_REQUESTS, FRONTEND_REQUESTS, markdown};
use linkspan_vhost::vdpa::{feature_markdown, pci_feature_markdown};

mod commands;
mod links;
mod named;
mod running;

/// Set to rewrite the pages that are made from the code.
const UPDATE_ENV: &str = "LINKSPAN_UPDATE_DOCS";

/// The folder of the whole project.
fn project() -> PathBuf {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    project.canonicalize().unwrap()
}

fn docs() -> PathBuf {
    project().join("docs")
}

/// All pages that people read: their paths below the project, and their text. Pages of
/// the book that are made from code are among them.
fn pages() -> Vec<(String, String)> {
    let read = |path: String| {
        let text = fs::read_to_string(project().join(&path)).unwrap();
        (path, text)
    };
    let mut paths: Vec<String> = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"]
        .map(String::from)
        .into();
    for folder in ["docs", "docs/decisions"] {
        for entry in fs::read_dir(project().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                paths.push(format!("{folder}/{name}"));
            }
        }
    }
    paths.sort();
    paths.into_iter().map(read).collect()
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

/// The names of metrics stay, so they are on the page.
#[test]
fn page_of_planes_has_the_metrics() {
    let table = linkspan::inspect::metrics::markdown();
    has_table("plane.md", "metrics", &table);
}

/// What the bridge and the function do with feature bits is what the page on vDPA says.
#[test]
fn page_of_vdpa_has_the_tables_of_features() {
    has_table("vdpa.md", "features", &feature_markdown());
    has_table("vdpa.md", "pci features", &pci_feature_markdown());
}

#[test]
fn page_of_smb_direct_has_the_table_of_parameters() {
    let table = linkspan_smbdirect::markdown();
    has_table("smbdirect.md", "options", &table);
}

/// What others' back ends survive stands there for each rule, in the order of `conform list`.
#[test]
fn page_of_conformance_has_a_row_for_each_rule() {
    use linkspan_conform::{Kind, rules};
    let page = fs::read_to_string(docs().join("conformance.md")).unwrap();
    let (_, table) = page.split_once("<!-- results -->\n").unwrap();
    let (table, _) = table.split_once("<!-- end -->").unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    let net = rules(Kind::Net).filter(|rule| !rule.concerns(Kind::Blk));
    let names: Vec<&str> = rules(Kind::Blk).chain(net).map(|rule| rule.name).collect();
    assert_eq!(rows, names);
}

/// The sums under the table are those of its rows.
#[test]
fn page_of_conformance_adds_up() {
    let page = fs::read_to_string(docs().join("conformance.md")).unwrap();
    let (_, table) = page.split_once("<!-- results -->\n").unwrap();
    let (table, _) = table.split_once("<!-- end -->").unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    let rows: Vec<Vec<&str>> = rows.map(|row| row.split(" | ").collect()).collect();
    let targets = ["Our disk", "Our network device", "QEMU", "Rust-vmm", "DPDK"];
    for (column, target) in targets.iter().enumerate() {
        let words: Vec<&str> = rows
            .iter()
            .map(|row| row[2 + column].trim_end_matches(" |"))
            .collect();
        let count = |word| words.iter().filter(|found| **found == word).count();
        let sums = format!(
            "\n{target}: {} held, {} broken, {} died, {} not applicable.",
            count("held"),
            count("**broken**"),
            count("**died**"),
            count("n/a")
        );
        assert!(table.contains(&sums), "{sums}");
    }
}
